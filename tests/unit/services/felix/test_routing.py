"""Which kernel routes a node wants; and that any order of telling it ends in the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from ipaddress import ip_address, ip_network

import pytest

from libs.policy.output import Block, NodeInfo, Pool, Workload, WorkloadKey
from services.felix.core.routing import Network, Routing, WantedRoute

NODES = {
    "n1": NodeInfo(ipv4="192.0.2.1/24", ipv6="2001:db8::1/64"),
    "n2": NodeInfo(ipv4="192.0.2.2/24", ipv6="2001:db8::2/64"),
    "far": NodeInfo(ipv4="198.51.100.3/24", ipv6="2001:db8:1::3/64"),
}
POOLS = {"10.0.0.0/16": Pool(cidr="10.0.0.0/16"), "fd00::/48": Pool(cidr="fd00::/48")}
WEB = WorkloadKey("k8s", "ns1/web", "eth0")


def routing(*, cluster: bool = True, pools: dict[str, Pool] | None = None) -> Routing:
    made = Routing("n1", program_cluster_routes=cluster)
    for cidr, pool in (POOLS if pools is None else pools).items():
        made.put_pool(cidr, pool)
    for name, info in NODES.items():
        made.put_node(name, info)
    made.flush()
    return made


def block(cidr: str, node: str, **borrowed: str) -> tuple[str, Block]:
    return cidr, Block(cidr=cidr, node=node, borrowed=borrowed)


def route(**wanted: str) -> WantedRoute:
    return WantedRoute(wanted.get("interface", ""), ip_address(wanted["via"]) if "via" in wanted else None)


@pytest.mark.parametrize(
    ("cidr", "node", "wanted"),
    [
        ("10.0.1.0/26", "n1", route()),  # ours: what nobody uses goes nowhere
        ("10.0.2.0/26", "n2", route(via="192.0.2.2")),
        ("10.0.3.0/26", "far", None),  # not in our subnet: somebody else routes it
        ("10.0.4.0/26", "unknown", None),
        ("10.9.0.0/26", "n2", None),  # in no pool
        ("fd00::40/122", "n1", route()),
        ("fd00::80/122", "n2", route(via="2001:db8::2")),
        ("fd00::c0/122", "far", None),
    ],
)
def test_blocks(cidr: str, node: str, wanted: WantedRoute | None) -> None:
    made = routing()
    made.put_block(*block(cidr, node))
    changed = made.flush()
    assert made.wanted.get(ip_network(cidr)) == wanted
    assert changed == ({} if wanted is None else {ip_network(cidr): wanted})
    made.put_block(cidr, None)
    assert made.flush() == ({} if wanted is None else {ip_network(cidr): None})
    assert made.wanted == {}


def test_encapsulated_pools_are_others_business_except_across_one_subnet() -> None:
    for mode, wanted in (("Always", None), ("CrossSubnet", route(via="192.0.2.2"))):
        made = routing(pools={"10.0.0.0/16": Pool(cidr="10.0.0.0/16", vxlan_mode=mode)})
        made.put_block(*block("10.0.2.0/26", "n2"))
        made.flush()
        assert made.wanted.get(ip_network("10.0.2.0/26")) == wanted, mode


def test_cluster_routes_can_be_switched_off_and_pods_keep_theirs() -> None:
    made = routing(cluster=False)
    made.put_block(*block("10.0.2.0/26", "n2"))
    made.put_workload(WEB, Workload(name="cali1", nets4=("10.0.1.7/32",)))
    made.flush()
    assert made.wanted == {ip_network("10.0.1.7/32"): route(interface="cali1")}


def test_a_workload_has_a_route_for_each_address_and_a_change_moves_only_what_changed() -> None:
    made = routing()
    made.put_workload(WEB, Workload(name="cali1", nets4=("10.0.1.7/32",), nets6=("fd00::7/128",)))
    four, six, other = (ip_network(text) for text in ("10.0.1.7/32", "fd00::7/128", "10.0.1.8/32"))
    assert made.flush() == {four: route(interface="cali1"), six: route(interface="cali1")}
    made.put_workload(WEB, Workload(name="cali1", nets4=("10.0.1.8/32",), nets6=("fd00::7/128",)))
    assert made.flush() == {four: None, other: route(interface="cali1")}
    made.put_workload(WEB, None)
    assert made.flush() == {other: None, six: None}
    assert made.flush() == {}


def test_of_two_endpoints_with_one_address_the_lower_id_has_it_and_the_other_takes_over() -> None:
    first, second = WorkloadKey("k8s", "ns1/a", "eth0"), WorkloadKey("k8s", "ns1/b", "eth0")
    made = routing()
    for key, name in ((second, "cali2"), (first, "cali1")):
        made.put_workload(key, Workload(name=name, nets4=("10.0.1.7/32",)))
        made.flush()
        assert made.wanted[ip_network("10.0.1.7/32")] == route(interface=name)
    made.put_workload(first, None)
    assert made.flush() == {ip_network("10.0.1.7/32"): route(interface="cali2")}


def test_a_borrowed_address_goes_to_the_node_that_uses_it() -> None:
    made = routing()
    made.put_block(*block("10.0.1.0/26", "n1", **{"10.0.1.5": "n2"}))
    made.put_block(*block("10.0.2.0/26", "n2", **{"10.0.2.9": "n1"}))
    made.flush()
    assert made.wanted[ip_network("10.0.1.5/32")] == route(via="192.0.2.2")
    assert ip_network("10.0.2.9/32") not in made.wanted  # ours once its workload is here
    made.put_workload(WEB, Workload(name="cali1", nets4=("10.0.2.9/32",)))
    made.flush()
    assert made.wanted[ip_network("10.0.2.9/32")] == route(interface="cali1")


def test_an_address_of_our_own_that_moves_to_another_subnet_takes_its_routes_along() -> None:
    made = routing()
    made.put_block(*block("10.0.2.0/26", "n2"))
    made.put_block(*block("10.0.3.0/26", "far"))
    made.flush()
    made.put_node("n1", NodeInfo(ipv4="198.51.100.1/24"))
    made.flush()
    assert made.wanted == {ip_network("10.0.3.0/26"): route(via="198.51.100.3")}
    made.put_node("n1", None)
    made.flush()
    assert made.wanted == {}


def test_any_order_of_telling_ends_in_the_same_routes() -> None:
    steps: list[Callable[[Routing], None]] = [
        lambda made: made.put_pool("10.0.0.0/16", POOLS["10.0.0.0/16"]),
        lambda made: made.put_node("n1", NODES["n1"]),
        lambda made: made.put_node("n2", NODES["n2"]),
        lambda made: made.put_block(*block("10.0.1.0/26", "n1", **{"10.0.1.5": "n2"})),
        lambda made: made.put_block(*block("10.0.2.0/26", "n2")),
        lambda made: made.put_workload(WEB, Workload(name="cali1", nets4=("10.0.1.7/32",))),
    ]
    ends: list[dict[Network, WantedRoute]] = []
    for order in itertools.permutations(steps):
        made = Routing("n1", program_cluster_routes=True)
        told: dict[Network, WantedRoute] = {}
        for step in order:
            step(made)
            for network, wanted in made.flush().items():
                if wanted is None:
                    del told[network]
                else:
                    told[network] = wanted
        assert told == made.wanted
        ends.append(made.wanted)
    assert all(end == ends[0] for end in ends)
    assert len(ends[0]) == 4
