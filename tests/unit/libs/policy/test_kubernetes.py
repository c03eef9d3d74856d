"""Kubernetes' own policies in Calico's words, piece by piece (the worked conversions of the facts), and what services
put into rules.
"""

from __future__ import annotations

from typing import Any

import pytest

from libs import model
from libs.model import kubernetes as k8s
from libs.model.codec import convert, to_dict
from libs.model.policy import StagedKubernetesNetworkPolicySpec
from libs.policy import kubernetes
from libs.policy.output import IPSetType, PolicyKey
from tests.unit.libs.policy.build import calculate, key_of, np, rule, view_of, wep, workload

ALL = "projectcalico.org/orchestrator == 'k8s'"


def converted(spec: dict[str, Any]) -> dict[str, Any]:
    made = kubernetes.network_policy(convert(StagedKubernetesNetworkPolicySpec, spec))
    assert made.problems == []
    found: dict[str, Any] = to_dict(model.NetworkPolicy(spec=made.spec))["spec"]
    return found


def ingress(*rules: dict[str, Any], **spec: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = converted({"podSelector": {}, "ingress": list(rules), **spec}).get("ingress", [])
    return found


def test_the_policy_itself() -> None:
    assert converted({"podSelector": {}, "policyTypes": ["Ingress"]}) == {
        "tier": "default", "order": 1000, "selector": ALL, "types": ["Ingress"],
    }  # fmt: skip
    assert converted({"podSelector": {}, "egress": [{}]})["types"] == ["Ingress"], "egress is not inferred"


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ({"matchLabels": {"b": "2", "a": "1"}}, f"{ALL} && a == '1' && b == '2'"),
        ({"matchExpressions": [{"key": "k", "operator": "In", "values": ["x", "y"]}]}, f"{ALL} && k in {{ 'x', 'y' }}"),
        ({"matchExpressions": [{"key": "k", "operator": "NotIn", "values": ["x"]}]}, f"{ALL} && k not in {{ 'x' }}"),
        ({"matchExpressions": [{"key": "k", "operator": "Exists"}]}, f"{ALL} && has(k)"),
        ({"matchExpressions": [{"key": "k", "operator": "DoesNotExist"}]}, f"{ALL} && ! has(k)"),
        (
            {"matchLabels": {"z": "1"}, "matchExpressions": [{"key": "k", "operator": "Exists"}]},
            f"{ALL} && z == '1' && has(k)",
        ),
    ],
)
def test_pod_selectors(selector: dict[str, Any], text: str) -> None:
    assert converted({"podSelector": selector})["selector"] == text


@pytest.mark.parametrize(
    ("peer", "entity"),
    [
        ({"podSelector": {"matchLabels": {"r": "w"}}}, {"selector": f"{ALL} && r == 'w'"}),
        ({"podSelector": {}}, {"selector": ALL}),
        (
            {"namespaceSelector": {"matchLabels": {"env": "prod"}}},
            {"selector": ALL, "namespaceSelector": "env == 'prod'"},
        ),
        (
            {"namespaceSelector": {}, "podSelector": {"matchLabels": {"r": "w"}}},
            {"selector": f"{ALL} && r == 'w'", "namespaceSelector": "all()"},
        ),
        (
            {"ipBlock": {"cidr": "10.0.0.5/16", "except": ["10.0.1.0/24"]}},
            {"nets": ["10.0.0.0/16"], "notNets": ["10.0.1.0/24"]},
        ),
    ],
)
def test_peers(peer: dict[str, Any], entity: dict[str, Any]) -> None:
    assert ingress({"from": [peer]}) == [{"action": "Allow", "source": entity}]
    egress = converted({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [peer]}]})["egress"]
    assert egress == [{"action": "Allow", "destination": entity}]


@pytest.mark.parametrize(
    ("ports", "rules"),
    [
        ([80, 81, 82, 100], [("TCP", ["80:82", 100])]),
        ([{"port": 80}, {"port": 53, "protocol": "UDP"}], [("TCP", [80]), ("UDP", [53])]),
        ([{"port": "http"}, {"port": 80}], [("TCP", ["http", 80])]),
        ([{"port": 80}, {"port": "http"}], [("TCP", [80, "http"])]),
        ([{"port": 80}, {"port": "http"}, {"port": 90}], [("TCP", ["http", 80, 90])]),
        ([{"port": 8000, "endPort": 8010}], [("TCP", ["8000:8010"])]),
        ([{"port": 8000, "endPort": 8010}, {"port": 8005}, {"port": 8011}], [("TCP", ["8000:8011"])]),
        ([{"protocol": "UDP"}], [("UDP", [])]),
        ([{}], [("TCP", [])]),
        ([{"port": 80}, {}], [("TCP", [])]),
        ([{"protocol": "UDP", "port": 1}, {"protocol": "SCTP", "port": 2}], [("SCTP", [2]), ("UDP", [1])]),
    ],
)
def test_ports(ports: list[Any], rules: list[tuple[str, list[Any]]]) -> None:
    given = [{"port": port} if isinstance(port, int) else port for port in ports]
    want = [
        {"action": "Allow", "protocol": protocol} | ({"destination": {"ports": numbers}} if numbers else {})
        for protocol, numbers in rules
    ]
    assert ingress({"ports": given}) == want


def test_no_restriction_and_products_of_protocols_and_peers() -> None:
    assert ingress({}) == [{"action": "Allow"}]
    assert ingress({"ports": [{"port": 80}]}) == [
        {"action": "Allow", "protocol": "TCP", "destination": {"ports": [80]}}
    ]
    peers = [{"podSelector": {"matchLabels": {"n": name}}} for name in ("a", "b")]
    found = ingress({"from": peers, "ports": [{"port": 1}, {"port": 2, "protocol": "UDP"}]})
    assert [(one["protocol"], one["source"]["selector"][-3:]) for one in found] == [
        ("TCP", "'a'"), ("TCP", "'b'"), ("UDP", "'a'"), ("UDP", "'b'"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "bad",
    [
        {"ports": [{"port": 0}]},
        {"ports": [{"port": 70000}]},
        {"ports": [{"port": 90, "endPort": 80}]},
        {"ports": [{"port": "http", "endPort": 80}]},
        {"from": [{"ipBlock": {"cidr": "10.0.0.0/40"}}]},
        {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["x"]}}]},
        {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}]},
    ],
)
def test_a_rule_that_means_nothing_allows_nothing_and_leaves_the_others(bad: dict[str, Any]) -> None:
    spec = {"podSelector": {}, "ingress": [bad, {"ports": [{"port": 80}]}]}
    made = kubernetes.network_policy(convert(StagedKubernetesNetworkPolicySpec, spec))
    assert len(made.problems) == 1
    assert made.problems[0].startswith("ingress[0]: ")
    assert len(made.spec.ingress) == 1


# --- ClusterNetworkPolicy ---------------------------------------------------------------------------------------------


def cluster(spec: dict[str, Any]) -> kubernetes.Converted:
    return kubernetes.cluster_network_policy(convert(k8s.ClusterPolicySpec, spec))


UPSIDE_DOWN = {"range": {"start": 9, "end": 5}}
NAMESPACES = {"namespaces": {"matchLabels": {"env": "prod"}}}


def test_cluster_policy() -> None:
    made = cluster(
        {
            "tier": "Admin",
            "priority": 7,
            "subject": {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"a": "b"}}}},
            "ingress": [{"name": "in", "action": "Deny", "from": [NAMESPACES]}],
            "egress": [
                {
                    "action": "Accept",
                    "to": [{"networks": ["192.0.2.0/24"]}],
                    "protocols": [
                        {"tcp": {"destinationPort": {"number": 80}}},
                        {"udp": {"destinationPort": {"range": {"start": 5, "end": 9}}}},
                        {"destinationNamedPort": "http"},
                    ],
                },
                {"action": "Pass", "to": [NAMESPACES]},
            ],
        }
    )
    assert made.problems == []
    assert to_dict(model.GlobalNetworkPolicy(spec=made.spec))["spec"] == {
        "tier": "kube-admin",
        "order": 7,
        "selector": f"{ALL} && a == 'b'",
        "namespaceSelector": "all()",
        "types": ["Ingress", "Egress"],
        "ingress": [
            {
                "action": "Deny",
                "source": {"selector": ALL, "namespaceSelector": "env == 'prod'"},
                "metadata": {"annotations": {"name": "in"}},
            }
        ],
        "egress": [
            {"action": "Allow", "protocol": "TCP", "destination": {"nets": ["192.0.2.0/24"], "ports": [80]}},
            {"action": "Allow", "protocol": "UDP", "destination": {"nets": ["192.0.2.0/24"], "ports": ["5:9"]}},
            {"action": "Allow", "destination": {"nets": ["192.0.2.0/24"], "ports": ["http"]}},
            {"action": "Pass", "destination": {"selector": ALL, "namespaceSelector": "env == 'prod'"}},
        ],
    }


@pytest.mark.parametrize(
    ("direction", "bad"),
    [
        ("ingress", {}),
        ("ingress", {"from": [{}]}),
        ("ingress", {"from": [{"networks": ["10.0.0.0/8"]}]}),
        ("egress", {"to": [{"networks": ["10.0.0.0/99"]}]}),
        ("egress", {"to": [NAMESPACES], "protocols": [{}]}),
        ("egress", {"to": [NAMESPACES], "protocols": [{"tcp": {"destinationPort": {}}}]}),
        (
            "egress",
            {"to": [NAMESPACES], "protocols": [{"tcp": {"destinationPort": {"range": {"start": 9, "end": 5}}}}]},
        ),
    ],
)
def test_bad_rules_fail_closed(direction: str, bad: dict[str, Any]) -> None:
    for action, left in (("Accept", []), ("Deny", ["Deny"]), ("Pass", ["Deny"])):
        made = cluster({"tier": "Baseline", "subject": NAMESPACES, direction: [{"action": action, **bad}]})
        assert [one.action for one in getattr(made.spec, direction)] == left
        assert len(made.problems) == 1


@pytest.mark.parametrize(
    "bad", [{"tier": "Other", "subject": NAMESPACES}, {"tier": "Admin"}, {"tier": "Admin", "subject": {}}]
)
def test_policies_that_mean_nothing_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"tier|subject"):
        cluster(bad)


def test_stored_under_the_plurals_of_the_key_table() -> None:
    base = "/calico/resources/v3/projectcalico.org"
    read = model.from_storage(
        f"{base}/kubernetesclusternetworkpolicies/p",
        b'{"kind":"ClusterNetworkPolicy","apiVersion":"x","metadata":{"name":"p"},"spec":{"tier":"Admin","priority":3}}',
        1,
    )
    assert isinstance(read, k8s.KubernetesClusterNetworkPolicy)
    assert (read.spec.tier, read.spec.priority) == ("Admin", 3)
    sliced = model.from_storage(f"{base}/kubernetesendpointslices/ns1/s", b'{"addressType":"IPv4"}', 1)
    assert isinstance(sliced, k8s.KubernetesEndpointSlice)
    assert (sliced.metadata.namespace, sliced.metadata.name) == ("ns1", "s")


def test_staged_kubernetes_policy_is_calculated_under_its_own_name() -> None:
    def staged(action: str) -> model.StagedKubernetesNetworkPolicy:
        spec = StagedKubernetesNetworkPolicySpec(staged_action=action, policy_types=["Ingress"])
        return model.StagedKubernetesNetworkPolicy(metadata=model.ObjectMeta(name="p", namespace="ns1"), spec=spec)

    x = wep("x", labels={"projectcalico.org/orchestrator": "k8s"})
    key = PolicyKey("StagedKubernetesNetworkPolicy", "p", "ns1")
    assert workload(view_of(x, staged("Set")), "x").tiers[0].ingress == (key,)
    assert workload(view_of(x, staged("Delete")), "x").tiers == ()


def test_cluster_policy_without_rules_selects_nothing() -> None:
    policy = k8s.KubernetesClusterNetworkPolicy(
        metadata=model.ObjectMeta(name="p"),
        spec=convert(k8s.ClusterPolicySpec, {"tier": "Admin", "subject": {"namespaces": {}}}),
    )
    x = wep("x", labels={"projectcalico.org/orchestrator": "k8s"})
    assert workload(view_of(x, policy), "x").tiers == ()


# --- services ---------------------------------------------------------------------------------------------------------


def endpoint_slice(
    name: str, service: str, addresses: list[str], ports: list[tuple[str, int]], namespace: str = "ns1"
) -> k8s.KubernetesEndpointSlice:
    return k8s.KubernetesEndpointSlice(
        metadata=model.ObjectMeta(name=name, namespace=namespace, labels={k8s.SERVICE_NAME_LABEL: service}),
        endpoints=[k8s.SliceEndpoint(addresses=[address]) for address in addresses],
        ports=[k8s.SlicePort(protocol=protocol, port=port) for protocol, port in ports],
    )


def test_service_in_a_rule_follows_its_slices() -> None:
    to = rule(destination={"services": model.ServiceMatch(name="web")})
    by = rule(source={"services": model.ServiceMatch(name="web", namespace="ns1")})
    one = endpoint_slice("web-1", "web", ["10.0.0.5", "fd00::5"], [("TCP", 80), ("UDP", 53)])
    calculator = calculate(wep("x"), np("p", ingress=[by], egress=[to]), one)
    ids = {type_: next(i for i in calculator.ipset_ids() if i.startswith(prefix))
           for type_, prefix in ((IPSetType.IP_PORT, "svc:"), (IPSetType.NET, "svcnoport:"))}  # fmt: skip

    def members(type_: IPSetType) -> set[str]:
        found = calculator.ipset(ids[type_])
        assert found is not None
        assert found.type is type_
        return set(found.members)

    assert members(IPSetType.IP_PORT) == {
        "10.0.0.5,tcp:80", "10.0.0.5,udp:53", "fd00::5,tcp:80", "fd00::5,udp:53",
    }  # fmt: skip
    assert members(IPSetType.NET) == {"10.0.0.5/32", "fd00::5/128"}
    # A second slice, an address in both, another service, and a slice that goes.
    two = endpoint_slice("web-2", "web", ["10.0.0.5", "10.0.0.6"], [("TCP", 80)])
    for more in (two, endpoint_slice("db-1", "db", ["10.0.0.9"], [("TCP", 1)])):
        calculator.update(key_of(more), more)
    change = calculator.flush().ipsets[ids[IPSetType.NET]]
    assert (change.added, change.removed) == ({"10.0.0.6/32"}, frozenset())
    calculator.update(key_of(one), None)
    change = calculator.flush().ipsets[ids[IPSetType.NET]]
    assert (change.added, change.removed) == (frozenset(), {"fd00::5/128"})
    assert members(IPSetType.IP_PORT) == {"10.0.0.5,tcp:80", "10.0.0.6,tcp:80"}
    moved = endpoint_slice("web-2", "other", ["10.0.0.5"], [("TCP", 80)])
    calculator.update(key_of(moved), moved)
    calculator.flush()
    assert members(IPSetType.NET) == set()


def test_slice_before_and_after_the_policy_give_the_same() -> None:
    to = rule(destination={"services": model.ServiceMatch(name="web")})
    one = endpoint_slice("web-1", "web", ["10.0.0.5"], [("SCTP", 99)])
    x, p = wep("x"), np("p", egress=[to])
    late = calculate(x, p)
    late.update(key_of(one), one)
    late.flush()
    for calculator in (late, calculate(one, x, p)):
        (set_id,) = calculator.ipset_ids()
        found = calculator.ipset(set_id)
        assert found is not None
        assert found.members == {"10.0.0.5,sctp:99"}


def test_slice_gives_no_member_that_is_no_address_and_port() -> None:
    to = rule(destination={"services": model.ServiceMatch(name="web")})
    x, p = wep("x"), np("p", egress=[to])
    odd = endpoint_slice("web-1", "web", ["10.0.0.5"], [("TCP", 80), ("ICMP", 1), ("odd", 2)])
    calculator = calculate(odd, x, p)
    (set_id,) = calculator.ipset_ids()
    found = calculator.ipset(set_id)
    assert found is not None
    assert found.members == {"10.0.0.5,tcp:80"}
    for bad in (
        endpoint_slice("web-1", "web", ["fe80::1%eth0"], [("TCP", 80)]),
        endpoint_slice("web-1", "web", ["10.0.0.5"], [("TCP", 70000)]),
    ):
        calculator.update(key_of(odd), bad)
        assert set(calculator.flush().refused) == {key_of(odd)}
