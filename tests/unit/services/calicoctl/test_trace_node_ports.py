"""`calicoctl trace` by ports that kube_controllers stores: node ports, policies Local, one address of several."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.libs.policy import build
from tests.unit.services.calicoctl.ctl import Ctl
from tests.unit.services.calicoctl.service_lab import (
    GUARD,
    POLICY,
    PORTS,
    endpoint,
    few,
    filled,
    piece,
    port,
    put,
    service,
    traced,
)


@pytest.fixture
def ctl() -> Ctl:
    return filled()


def with_ports(ctl: Ctl, *addresses: str, **spec: Any) -> None:
    put(
        ctl,
        service("web", *(addresses or ("10.96.0.10", "fd00:96::10")), **{"type": "NodePort", "ports": PORTS, **spec}),
    )


def hops_of(told: dict[str, Any]) -> list[tuple[str, str]]:
    return [(hop["node"], hop["role"]) for hop in told["hops"]]


def test_a_node_port_is_its_service_entered_by_that_node(ctl: Ctl) -> None:
    with_ports(ctl)
    few(ctl, 0, 1)
    for to in ("192.0.2.1", "node:n1", "n1", "hep:n1-eth0"):
        near, far = traced(ctl, "198.51.100.1", to, "--port", "30080", "--family", "4")
        assert near["service"] == {
            "namespace": "ns1", "name": "web", "address": "192.0.2.1", "kind": "node port", "protocol": "tcp",
            "backends": 2, "port": "http", "number": 80, "idle": 0, "nodePort": 30080, "node": "n1",
        }  # fmt: skip
        assert (near["packet"]["dst"], near["packet"]["dst_port"]) == ("10.0.0.0", 8080)
        assert hops_of(near) == [("n1", "receiver's node")]
        assert hops_of(far) == [("n1", "node port's node"), ("n2", "receiver's node")]
        assert "beyond n1 the source is its address 192.0.2.1, or that of its tunnel (kube-proxy)" in far["notes"]
        assert not any("trace from that node too" in note for note in (*near["notes"], *far["notes"]))
    (six,) = traced(ctl, "2001:db8::99", "2001:db8::1", "--port", "30080")[:1]
    assert six["service"]["address"] == "2001:db8::1"
    text = ctl.good("trace", "198.51.100.1", "192.0.2.1", "--port", "30080", "--datastore-only")
    assert text.startswith(
        "service ns1/web, node port 192.0.2.1:30080 of n1, port 80/tcp (http; 8080 at its endpoints): one of 2 backends"
    )
    text = ctl.good("trace", "2001:db8::99", "2001:db8::1", "--port", "30080", "--datastore-only")
    assert "node port [2001:db8::1]:30080 of n1, port 80/tcp" in text


def test_a_backend_on_another_node_sees_the_address_of_the_node_port_s(ctl: Ctl) -> None:
    """So a policy that lets the client's address in does not count there, but does on the node itself."""
    source = "{nets: [198.51.100.0/24]}"
    ctl.apply(POLICY.replace("{selector: app == 'client'}", source, 1))
    with_ports(ctl)
    few(ctl, 0, 1)
    near, far = traced(ctl, "198.51.100.1", "n1", "--port", "30080", "--family", "4")
    assert (near["verdict"], far["verdict"]) == ("allow", "deny")
    ctl.apply(POLICY.replace("{selector: app == 'client'}", "{nets: [192.0.2.1/32]}", 1))
    near, far = traced(ctl, "198.51.100.1", "n1", "--port", "30080", "--family", "4")
    assert (near["verdict"], far["verdict"]) == ("deny", "allow")


def test_pre_dnat_policy_of_the_node_port_s_node_alone_meets_the_node_port(ctl: Ctl) -> None:
    ctl.store(build.hep("n2-eth0", "n2", {"guard": "yes"}))
    ctl.apply(GUARD.replace("203.0.113.9/32", "192.0.2.1/32").replace("[81]", "[30080]"))
    with_ports(ctl)
    few(ctl, 0, 1)
    near, far = traced(ctl, "198.51.100.1", "n1", "--port", "30080", "--family", "4")
    assert [step["decision"]["rule"] for step in near["hops"][0]["steps"] if step["stage"] == "preDNAT"] == [0]
    assert [step["decision"]["rule"] for step in far["hops"][0]["steps"] if step["stage"] == "preDNAT"] == [0]
    assert [step["decision"]["rule"] for step in far["hops"][1]["steps"] if step["stage"] == "preDNAT"] == [2]


EGRESS = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: out, namespace: ns1}
spec:
  selector: app == 'client'
  types: [Egress]
  egress: [{action: Allow, protocol: TCP, destination: {%s}}]
"""


def test_a_pods_own_policy_meets_the_node_port_of_another_node_and_the_backend_behind_its_own(ctl: Ctl) -> None:
    with_ports(ctl)
    few(ctl, 0, 1)
    ctl.apply(EGRESS % "nets: [192.0.2.0/24], ports: [30080]")
    near, far = traced(ctl, "ns1/client", "n1", "--port", "30080", "--family", "4")
    assert hops_of(near) == [("n2", "sender's node"), ("n1", "receiver's node")]
    assert hops_of(far) == [("n2", "sender's node"), ("n1", "node port's node"), ("n2", "receiver's node")]
    assert near["verdict"] == "allow"
    assert [hop["allowed"] for hop in far["hops"]] == [True, True, False]  # it comes back as from n1
    own = traced(ctl, "ns1/client", "n2", "--port", "30080", "--family", "4")
    assert [hops_of(one) for one in own] == [
        [("n2", "sender's node"), ("n1", "receiver's node")], [("n2", "both ends")],
    ]  # fmt: skip
    assert {one["verdict"] for one in own} == {"deny"}
    ctl.apply(EGRESS % "nets: [10.0.0.0/24], ports: [8080]")
    assert traced(ctl, "ns1/client", "n1", "--port", "30080", "--family", "4")[0]["verdict"] == "deny"
    own = traced(ctl, "ns1/client", "n2", "--port", "30080", "--family", "4")
    assert [one["verdict"] for one in own] == ["deny", "allow"]  # beyond its node it comes as from n2


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
@pytest.mark.parametrize("kind", ["lb", "externalIPs"])
def test_what_pods_send_to_addresses_for_outside_comes_to_other_nodes_as_from_their_own(
    ctl: Ctl, kind: str, policy: str
) -> None:
    """kube-proxy masquerades it, but for a policy Local."""
    with_ports(ctl, type="LoadBalancer", externalTrafficPolicy=policy, **{kind: ["203.0.113.9"]})
    few(ctl, 0, 1)
    far, near = traced(ctl, "ns1/client", "203.0.113.9", "--port", "80")
    assert (far["verdict"], near["verdict"]) == ("allow" if policy == "Local" else "deny", "allow")
    masked = "beyond n2 the source is its address 192.0.2.2, or that of its tunnel (kube-proxy)"
    assert (masked in far["notes"]) is (policy == "Cluster")
    assert masked not in near["notes"]
    by_cluster_ip = traced(ctl, "ns1/client", "service:ns1/web", "--port", "80", "--family", "4")
    assert [one["verdict"] for one in by_cluster_ip] == ["allow", "allow"]


def test_a_load_balancers_source_ranges_keep_others_out(ctl: Ctl) -> None:
    ranges = ["198.51.100.0/24", "2001:db8::/32"]
    with_ports(ctl, type="LoadBalancer", lb=["203.0.113.9"], loadBalancerSourceRanges=ranges)
    few(ctl, 1)
    said = ctl("trace", "ns1/client", "203.0.113.9", "--port", "80", "--datastore-only")
    assert said.exit_code == 1
    assert "loadBalancerSourceRanges do not have 10.0.1.1: kube-proxy drops what it sends to 203.0.113.9" in said.output
    assert traced(ctl, "198.51.100.1", "203.0.113.9", "--port", "80")
    assert traced(ctl, "ns1/client", "service:ns1/web", "--port", "80", "--family", "4"), "its cluster IP is another"
    with_ports(ctl, type="LoadBalancer", lb=["203.0.113.9"], loadBalancerSourceRanges=ranges[1:])
    assert traced(ctl, "ns1/client", "203.0.113.9", "--port", "80"), "none of this family: everybody may"


@pytest.mark.parametrize("arguments", [("--port", "22"), ("--icmp-type", "8"), ("--port", "80", "--protocol", "udp")])
def test_other_ports_at_addresses_for_outside_are_not_the_services(ctl: Ctl, arguments: tuple[str, ...]) -> None:
    with_ports(ctl, type="LoadBalancer", lb=["203.0.113.9"], ports=[port("http", 80)])
    (told,) = traced(ctl, "ns1/client", "203.0.113.9", *arguments)
    assert "service" not in told
    note = "203.0.113.9 is service ns1/web's load balancer's address, but kube-proxy leaves such packets alone"
    assert note in told["notes"]


def test_a_port_may_be_called_by_digits(ctl: Ctl) -> None:
    with_ports(ctl, ports=[port("443", 80), port("80", 443)])
    put(ctl, piece("web-4", [endpoint("10.0.0.1")], [("443", "TCP", 8080), ("80", "TCP", 8081)]))
    for asked, reached in (("80", 8080), ("443", 8081)):
        (told,) = traced(ctl, "ns1/client", "service:ns1/web", "--port", asked, "--family", "4")
        assert told["packet"]["dst_port"] == reached, "the number goes before the name"
    with_ports(ctl, ports=[port("8443", 80)])
    put(ctl, piece("web-4", [endpoint("10.0.0.1")], [("8443", "TCP", 8080)]))
    assert traced(ctl, "ns1/client", "service:ns1/web", "--port", "8443", "--family", "4")
    assert "is not within 1 to 65535" in ctl("trace", "ns1/client", "10.0.0.1", "--port", "9" * 5000).output


def test_pre_dnat_policy_meets_the_number_of_a_port_that_is_called_by_other_digits(ctl: Ctl) -> None:
    ctl.apply(GUARD)
    with_ports(ctl, type="LoadBalancer", lb=["203.0.113.9"], ports=[port("8443", 81)])
    put(ctl, piece("web-4", [endpoint("10.0.0.0", node="n1")], [("8443", "TCP", 8080)]))
    (told,) = traced(ctl, "198.51.100.1", "203.0.113.9", "--port", "8443")
    assert told["hops"][0]["steps"][0]["decision"]["rule"] == 0, "that denies port 81"


def test_nat_outgoing_on_the_way_to_a_node_port(ctl: Ctl) -> None:
    """The backend on the node of the node port sees the address of the sender's node."""
    with_ports(ctl)
    few(ctl, 0)
    ctl.store(build.pool("pods", "10.0.0.0/16", nat_outgoing=True))
    (told,) = traced(ctl, "ns1/client", "n1", "--port", "30080", "--family", "4")
    assert "natOutgoing: beyond n2 the source is the node's address 192.0.2.2" in told["notes"]
    assert told["verdict"] == "deny"
    ctl.apply(POLICY.replace("{selector: app == 'client'}", "{nets: [192.0.2.2/32]}", 1))
    (told,) = traced(ctl, "ns1/client", "n1", "--port", "30080", "--family", "4")
    assert told["verdict"] == "allow"


def test_an_external_traffic_policy_local_leaves_a_node_port_the_nodes_own_backends(ctl: Ctl) -> None:
    with_ports(ctl, externalTrafficPolicy="Local")
    few(ctl, 0, 1)
    (outside,) = traced(ctl, "198.51.100.1", "n1", "--port", "30080", "--family", "4")
    assert outside["packet"]["dst"] == "10.0.0.0"
    assert "externalTrafficPolicy Local: n1 serves its node port by its own backends" in outside["notes"]
    (pod,) = traced(ctl, "ns1/client", "n1", "--port", "30080", "--family", "4")
    assert any("own backends; of pods' own addresses also by others" in note for note in pod["notes"])
    inside = traced(ctl, "ns1/client", "n2", "--port", "30080", "--family", "4")
    assert [one["packet"]["dst"] for one in inside] == ["10.0.0.0", "10.0.0.1"]
    assert any("inside, every backend is one" in note for note in inside[0]["notes"])
    few(ctl, 0)
    said = ctl.bad("trace", "198.51.100.1", "192.0.2.2", "--port", "30080", "--datastore-only")
    assert "no ready endpoint on n2 on IPv4" in said
    assert "and externalTrafficPolicy is Local: kube-proxy there drops what is sent to it" in said


@pytest.mark.parametrize(
    ("spec", "arguments"),
    [
        ({"type": "ClusterIP"}, ()), ({"type": "ExternalName"}, ()), ({}, ("--protocol", "udp")),
        ({"clusterIPs": ["None"]}, ()), ({"clusterIPs": ["fd00:96::10"], "clusterIP": "fd00:96::10"}, ()),
    ],
)  # fmt: skip
def test_what_is_no_node_port_is_the_node_itself(ctl: Ctl, spec: dict[str, Any], arguments: tuple[str, ...]) -> None:
    with_ports(ctl, **spec)
    (told,) = traced(ctl, "ns1/client", "192.0.2.1", "--port", "30080", *arguments)
    assert "service" not in told
    assert told["packet"]["dst"] == "192.0.2.1"
    assert not any("node port" in note for note in told["notes"])


def test_a_node_port_is_any_number_and_of_the_services_families_only(ctl: Ctl) -> None:
    with_ports(ctl, "10.96.0.10", ports=[port("http", 80, node=8080)])
    few(ctl, 0)
    (told,) = traced(ctl, "ns1/client", "n1", "--port", "8080")
    assert told["service"]["nodePort"] == 8080
    assert "service ns1/web has no IPv6: there 8080 is no node port" in told["notes"]


def test_the_senders_node_alone_counts_for_an_internal_traffic_policy_local(ctl: Ctl) -> None:
    with_ports(ctl, internalTrafficPolicy="Local")
    few(ctl, 0, 1)
    (told,) = traced(ctl, "ns1/client", "service:ns1/web", "--port", "80", "--family", "4")
    assert told["packet"]["dst"] == "10.0.0.1"
    assert "internalTrafficPolicy Local: 1 on other nodes than n2 get nothing of it" in told["notes"]
    few(ctl, 0)
    few(ctl, 1, family=6)
    lacking, told = traced(ctl, "ns1/client", "service:ns1/web", "--port", "80", status=1)
    assert "internalTrafficPolicy is Local: kube-proxy there drops" in lacking["error"]
    assert told["packet"]["dst"] == "fd00::1"
    assert "kube-proxy there drops" in ctl.bad("trace", "ns1/client", "10.96.0.10", "--port", "80", "--datastore-only")
    outside = traced(ctl, "198.51.100.1", "10.96.0.10", "--port", "80")
    assert any("internalTrafficPolicy Local: a backend gets what comes in by its own" in n for n in outside[0]["notes"])


def test_pre_dnat_policy_meets_the_services_number_also_of_a_port_by_name(ctl: Ctl) -> None:
    ctl.apply(GUARD)
    with_ports(ctl, type="LoadBalancer", lb=["203.0.113.9"], ports=[port("http", 81)])
    few(ctl, 0)
    (told,) = traced(ctl, "198.51.100.1", "203.0.113.9", "--port", "http")
    assert told["hops"][0]["steps"][0]["decision"]["rule"] == 0
    assert not any("number" in note for note in told["notes"])


def test_an_address_of_several_services_is_that_of_the_one_whose_port_it_is(ctl: Ctl) -> None:
    with_ports(ctl, type="LoadBalancer", lb=["203.0.113.9"])
    few(ctl, 0)
    put(ctl, service("api", "10.96.0.11", type="LoadBalancer", lb=["203.0.113.9"], ports=[port("http", 81)]))
    put(ctl, piece("api-4", [endpoint("10.0.0.2")], of="api"))
    for number, name in (("80", "web"), ("81", "api")):
        assert [one["service"]["name"] for one in traced(ctl, "ns1/client", "203.0.113.9", "--port", number)] == [name]
    put(ctl, service("api", "10.96.0.11", type="LoadBalancer", lb=["203.0.113.9"]))  # as it was before an upgrade
    (told,) = traced(ctl, "ns1/client", "203.0.113.9", "--port", "80")
    assert told["service"]["name"] == "web"
