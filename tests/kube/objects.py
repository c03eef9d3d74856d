"""Objects that the tests write, as users have them in files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

JsonObject = dict[str, Any]
API = "projectcalico.org/v3"
RBAC = "rbac.authorization.k8s.io"


def calico(
    kind: str, name: str, spec: JsonObject, *, namespace: str = "", labels: JsonObject | None = None
) -> JsonObject:
    metadata: JsonObject = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    if labels:
        metadata["labels"] = labels
    return {"apiVersion": API, "kind": kind, "metadata": metadata, "spec": spec}


def tier(name: str, order: float = 500) -> JsonObject:
    return calico("Tier", name, {"order": order})


def network_policy(
    name: str, namespace: str = "default", *, tier: str = "default", order: float = 10, labels: JsonObject | None = None
) -> JsonObject:
    spec = {
        "tier": tier, "order": order, "selector": "app == 'db'", "types": ["Ingress"],
        "ingress": [
            {
                "action": "Allow", "protocol": "TCP", "source": {"selector": "app == 'web'"},
                "destination": {"ports": [5432]},
            }
        ],
    }  # fmt: skip
    return calico("NetworkPolicy", name, spec, namespace=namespace, labels=labels)


def global_policy(name: str, *, tier: str = "default") -> JsonObject:
    spec = {"tier": tier, "order": 20, "selector": "all()", "types": ["Egress"], "egress": [{"action": "Deny"}]}
    return calico("GlobalNetworkPolicy", name, spec)


def network_set(name: str, *nets: str, labels: JsonObject | None = None) -> JsonObject:
    return calico("GlobalNetworkSet", name, {"nets": list(nets or ("192.0.2.0/24", "2001:db8::/64"))}, labels=labels)


def rule(resources: Sequence[str], verbs: Sequence[str], names: Sequence[str] = ()) -> JsonObject:
    found: JsonObject = {"apiGroups": ["projectcalico.org"], "resources": list(resources), "verbs": list(verbs)}
    return found | ({"resourceNames": list(names)} if names else {})


def cluster_role(name: str, *rules: JsonObject, user: str) -> list[JsonObject]:
    """The role, and its binding to one user."""
    metadata = {"name": name}
    return [
        {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRole", "metadata": metadata, "rules": list(rules)},
        {
            "apiVersion": f"{RBAC}/v1", "kind": "ClusterRoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": RBAC, "kind": "ClusterRole", "name": name},
            "subjects": [{"apiGroup": RBAC, "kind": "User", "name": user}],
        },
    ]  # fmt: skip


def role(name: str, namespace: str, *rules: JsonObject, user: str) -> list[JsonObject]:
    """The same in one namespace."""
    metadata = {"name": name, "namespace": namespace}
    return [
        {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": metadata, "rules": list(rules)},
        {
            "apiVersion": f"{RBAC}/v1", "kind": "RoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name},
            "subjects": [{"apiGroup": RBAC, "kind": "User", "name": user}],
        },
    ]  # fmt: skip
