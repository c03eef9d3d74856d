"""What a cluster's etcd holds before anybody starts: the resources that installing Calico makes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from libs.store.api import Store
    from libs.testkit.cluster import Cluster, Node

POOL_V4, POOL_V6 = "10.65.0.0/16", "fd00:65::/48"


def resource(kind: str, name: str, spec: Mapping[str, Any], **metadata: Any) -> bytes:
    """A resource of projectcalico.org/v3 as calicoctl would have stored it."""
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    meta = {"name": name, "uid": str(uuid.uuid4()), "creationTimestamp": created} | metadata
    return json.dumps(
        {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": meta, "spec": spec}, separators=(",", ":")
    ).encode()


def key(plural: str, name: str) -> str:
    return f"/calico/resources/v3/projectcalico.org/{plural}/{name}"


def pool_spec(cidr: str, *, vxlan_mode: str = "Never", ipip_mode: str = "Never", block_size: int) -> dict[str, Any]:
    return {
        "cidr": cidr,
        "vxlanMode": vxlan_mode,
        "ipipMode": ipip_mode,
        "natOutgoing": False,
        "blockSize": block_size,
        "nodeSelector": "all()",
        "allowedUses": ["Workload", "Tunnel"],
        "assignmentMode": "Automatic",
    }


def namespace_profiles(name: str, labels: Mapping[str, str], service_accounts: Sequence[str] = ()) -> dict[str, bytes]:
    """etcd key -> value of the profiles kns.<namespace> and ksa.<namespace>.<account>, from kube-controllers."""
    allow: list[dict[str, str]] = [{"action": "Allow"}]
    passed_on = {f"pcns.{k}": v for k, v in labels.items()} | {"pcns.projectcalico.org/name": name}
    profiles: dict[str, dict[str, Any]] = {
        f"kns.{name}": {"ingress": allow, "egress": allow, "labelsToApply": passed_on}
    }
    for account in service_accounts:
        profiles[f"ksa.{name}.{account}"] = {"labelsToApply": {"pcsa.projectcalico.org/name": account}}
    return {key("profiles", profile): resource("Profile", profile, spec) for profile, spec in profiles.items()}


def node_spec(node: Node) -> dict[str, Any]:
    return {
        "addresses": [{"address": str(one.ip), "type": "InternalIP"} for one in (node.ipv4, node.ipv6)],
        "bgp": {"ipv4Address": str(node.ipv4), "ipv6Address": str(node.ipv6)},
    }


async def nodes_only(store: Store, cluster: Cluster) -> None:
    """Node resources and what every datastore is initialised with; pools come from the user's own files."""
    await defaults(store, cluster)
    for name in ("default-ipv4-ippool", "default-ipv6-ippool"):
        await store.delete(key("ippools", name))


async def defaults(store: Store, cluster: Cluster) -> None:
    """Node resources of the cluster's nodes, tiers, a pool of each family, ClusterInformation, namespace "default"."""
    entries = {
        key("clusterinformations", "default"): resource(
            "ClusterInformation", "default", {"clusterGUID": uuid.uuid4().hex, "datastoreReady": True}
        ),
        key("ippools", "default-ipv4-ippool"): resource(
            "IPPool", "default-ipv4-ippool", pool_spec(POOL_V4, block_size=26)
        ),
        key("ippools", "default-ipv6-ippool"): resource(
            "IPPool", "default-ipv6-ippool", pool_spec(POOL_V6, block_size=122)
        ),
    }
    for name, order, action in (
        ("default", 1_000_000, "Deny"), ("kube-admin", 1_000, "Pass"), ("kube-baseline", 10_000_000, "Pass"),
    ):  # fmt: skip
        entries[key("tiers", name)] = resource("Tier", name, {"order": order, "defaultAction": action})
    for node in cluster.nodes:
        entries[key("nodes", node.name)] = resource(
            "Node", node.name, node_spec(node), labels={"kubernetes.io/hostname": node.name}
        )
    entries |= namespace_profiles("default", {"kubernetes.io/metadata.name": "default"}, ["default"])
    for name, value in entries.items():
        await store.put(name, value)
