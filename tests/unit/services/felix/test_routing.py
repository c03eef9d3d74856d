"""Which kernel routes a node wants; and that any order of telling it ends in the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable, ItemsView
from ipaddress import ip_address, ip_network

import msgspec
import pytest

from libs.policy.output import Block, NodeInfo, Pool, Workload, WorkloadKey
from libs.policy.routes import Route as ResolvedRoute
from services.felix.core.overlay import ClusterRoutes, OverlaySettings
from services.felix.core.routing import Network, RouteClass, Routing, WantedRoute

NODES = {
    "n1": NodeInfo(ipv4="192.0.2.1/24", ipv6="2001:db8::1/64"),
    "n2": NodeInfo(ipv4="192.0.2.2/24", ipv6="2001:db8::2/64"),
    "far": NodeInfo(ipv4="198.51.100.3/24", ipv6="2001:db8:1::3/64"),
}
POOLS = {"10.0.0.0/16": Pool(cidr="10.0.0.0/16"), "fd00::/48": Pool(cidr="fd00::/48")}
WEB = WorkloadKey("k8s", "ns1/web", "eth0")


def routing(*, owner: ClusterRoutes = ClusterRoutes.ENABLED, pools: dict[str, Pool] | None = None) -> Routing:
    made = Routing("n1", owner)
    for cidr, pool in (POOLS if pools is None else pools).items():
        made.put_pool(cidr, pool)
    for name, info in NODES.items():
        made.put_node(name, info)
    made.flush()
    return made


def block(cidr: str, node: str, **borrowed: str) -> tuple[str, Block]:
    return cidr, Block(cidr=cidr, node=node, borrowed=borrowed)


def route(kind: RouteClass | None = None, **wanted: str) -> WantedRoute:
    """By default as in a pool without encapsulation."""
    interface, via = wanted.get("interface", ""), wanted.get("via")
    if kind is None:
        kind = RouteClass.LOCAL_WORKLOAD if interface else RouteClass.NO_ENCAP if via else RouteClass.BLACKHOLE_NO_ENCAP
    return WantedRoute(kind, interface, ip_address(via) if via else None)


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


WITH_TUNNELS = {
    "n1": NodeInfo(ipv4="192.0.2.1/24", ipv6="2001:db8::1/64", vxlan_ipv4="10.0.1.0", vxlan_ipv6="fd00::40"),
    "n2": NodeInfo(
        ipv4="192.0.2.2/24", ipv6="2001:db8::2/64", vxlan_ipv4="10.0.2.0", vxlan_ipv6="fd00::80", ipip_ipv4="10.0.2.1"
    ),
    "far": NodeInfo(
        ipv4="198.51.100.3/24", ipv6="2001:db8:1::3/64", vxlan_ipv4="10.0.3.0", vxlan_ipv6="fd00::c0",
        ipip_ipv4="10.0.3.1",
    ),
}  # fmt: skip
NEAR_BLOCK, FAR_BLOCK, OWN_BLOCK = "10.0.2.0/26", "10.0.3.0/26", "10.0.1.0/26"
VX, IP = "vxlan_mode", "ipip_mode"
E, D, T, N = ClusterRoutes.ENABLED, ClusterRoutes.DISABLED, ClusterRoutes.IPIP_ONLY, ClusterRoutes.NO_ENCAP_ONLY
C = RouteClass


@pytest.mark.parametrize(
    ("mode", "owners", "near", "far", "own"),
    [
        ({VX: "Always"}, (E, D, T, N),
         route(C.VXLAN_TUNNEL, interface="vxlan.calico", via="10.0.2.0"),
         route(C.VXLAN_TUNNEL, interface="vxlan.calico", via="10.0.3.0"), route(C.BLACKHOLE_VXLAN)),
        ({VX: "CrossSubnet"}, (E, D, T, N),
         route(C.VXLAN_SAME_SUBNET, via="192.0.2.2"),
         route(C.VXLAN_TUNNEL, interface="vxlan.calico", via="10.0.3.0"), route(C.BLACKHOLE_VXLAN)),
        ({IP: "Always"}, (E, T),
         route(C.IPIP_TUNNEL, interface="tunl0", via="192.0.2.2"),
         route(C.IPIP_TUNNEL, interface="tunl0", via="198.51.100.3"), route(C.BLACKHOLE_IPIP)),
        ({IP: "CrossSubnet"}, (E, T),
         route(C.IPIP_SAME_SUBNET, via="192.0.2.2"),
         route(C.IPIP_TUNNEL, interface="tunl0", via="198.51.100.3"), route(C.BLACKHOLE_IPIP)),
        ({IP: "Always"}, (D, N), None, None, None),
        ({IP: "CrossSubnet"}, (D, N), None, None, None),
        ({}, (E, N), route(C.NO_ENCAP, via="192.0.2.2"), None, route(C.BLACKHOLE_NO_ENCAP)),
        ({}, (D, T), None, None, None),
    ],
)  # fmt: skip
def test_who_owns_which_route_and_where_it_leads(
    mode: dict[str, str],
    owners: tuple[ClusterRoutes, ...],
    near: WantedRoute | None,
    far: WantedRoute | None,
    own: WantedRoute | None,
) -> None:
    for owner in owners:
        made = routing(owner=owner, pools={"10.0.0.0/16": Pool(cidr="10.0.0.0/16", **mode)})  # type: ignore[arg-type]
        for name, info in WITH_TUNNELS.items():
            made.put_node(name, info)
        for cidr, node in ((NEAR_BLOCK, "n2"), (FAR_BLOCK, "far"), (OWN_BLOCK, "n1")):
            made.put_block(*block(cidr, node))
        made.flush()
        wanted = {
            ip_network(cidr): one for cidr, one in ((NEAR_BLOCK, near), (FAR_BLOCK, far), (OWN_BLOCK, own)) if one
        }
        assert made.wanted == wanted, owner


def test_vxlan_for_ipv6_leads_to_the_other_nodes_ipv6_end() -> None:
    made = routing(pools={"fd00::/48": Pool(cidr="fd00::/48", vxlan_mode="Always")})
    for name, info in WITH_TUNNELS.items():
        made.put_node(name, info)
    made.put_block(*block("fd00::80/122", "n2"))
    made.flush()
    ends = {ip_network(f"{address}/128") for address in ("fd00::80", "fd00::c0")}
    assert made.wanted == {
        ip_network("fd00::80/122"): route(C.VXLAN_TUNNEL, interface="vxlan-v6.calico", via="fd00::80"),
        **dict.fromkeys(ends, route(C.VXLAN_TUNNEL, interface="vxlan-v6.calico")),
    }


def test_a_route_waits_for_the_other_end_and_follows_it() -> None:
    made = routing(pools={"10.0.0.0/16": Pool(cidr="10.0.0.0/16", vxlan_mode="Always")})
    made.put_block(*block(NEAR_BLOCK, "n2"))
    made.flush()
    assert made.wanted == {}
    network = ip_network(NEAR_BLOCK)
    for address in ("10.0.2.0", "10.0.2.9"):
        made.put_node("n2", NodeInfo(ipv4="192.0.2.2/24", vxlan_ipv4=address))
        assert made.flush()[network] == route(C.VXLAN_TUNNEL, interface="vxlan.calico", via=address)
    made.put_node("n2", NODES["n2"])
    assert made.flush()[network] is None


class CountedDict(dict[str, ResolvedRoute]):
    """How often everything was gone through."""

    scans = 0

    def items(self) -> ItemsView[str, ResolvedRoute]:
        self.scans += 1
        return super().items()


def test_many_nodes_that_get_tunnel_addresses_at_once_are_one_scan_of_all_routes() -> None:
    made = routing(pools={"10.0.0.0/16": Pool(cidr="10.0.0.0/16", vxlan_mode="Always")})
    names = [f"n{number}" for number in range(10, 110)]
    infos = {name: NodeInfo(ipv4=f"192.0.2.{name[1:]}/24") for name in names}
    for name, info in infos.items():
        made.put_node(name, info)
        made.put_block(*block(f"10.0.{name[1:]}.0/26", name))
    assert made.flush() == {}
    made._resolver.routes = counted = CountedDict(made._resolver.routes)
    for name, info in infos.items():
        made.put_node(name, msgspec.structs.replace(info, vxlan_ipv4=f"10.0.{name[1:]}.0"))
    changed = made.flush()
    assert counted.scans == 1
    assert {ip_network(f"10.0.{name[1:]}.0/26") for name in names} == changed.keys()
    assert made.flush() == {}
    assert counted.scans == 1


def test_a_borrowed_tunnel_address_and_one_that_is_a_block_are_directly_on_the_device() -> None:
    made = routing(pools={"10.0.0.0/16": Pool(cidr="10.0.0.0/16", vxlan_mode="Always")})
    there = route(C.VXLAN_TUNNEL, interface="vxlan.calico")
    made.put_node("far", WITH_TUNNELS["far"])
    made.put_block(*block("10.0.3.0/26", "n2", **{"10.0.3.0": "far"}))  # far's own end, borrowed from n2's block
    made.flush()
    assert made.wanted[ip_network("10.0.3.0/32")] == there
    made.put_block("10.0.3.0/26", None)
    made.put_block(*block("10.0.3.0/32", "far"))
    made.flush()
    assert made.wanted == {ip_network("10.0.3.0/32"): there}


@pytest.mark.parametrize(
    ("mode", "owner", "wanted"),
    [
        ({VX: "Always"}, D, route(C.VXLAN_TUNNEL, interface="vxlan.calico", via="10.0.2.0")),
        ({VX: "CrossSubnet"}, D, route(C.VXLAN_SAME_SUBNET, via="192.0.2.2")),
        ({IP: "Always"}, T, route(C.IPIP_TUNNEL, interface="tunl0", via="192.0.2.2")),
        ({IP: "CrossSubnet"}, T, route(C.IPIP_SAME_SUBNET, via="192.0.2.2")),
        ({}, N, route(C.NO_ENCAP, via="192.0.2.2")),
    ],
)
def test_a_borrowed_address_is_reached_in_every_mode(
    mode: dict[str, str], owner: ClusterRoutes, wanted: WantedRoute
) -> None:
    made = routing(owner=owner, pools={"10.0.0.0/16": Pool(cidr="10.0.0.0/16", **mode)})  # type: ignore[arg-type]
    for name, info in WITH_TUNNELS.items():
        made.put_node(name, info)
    made.put_block(*block("10.0.1.0/26", "n1", **{"10.0.1.5": "n2"}))
    made.flush()
    assert made.wanted[ip_network("10.0.1.5/32")] == wanted


def test_settings_may_change_while_running() -> None:
    made = routing(owner=D)
    made.put_block(*block("10.0.2.0/26", "n2"))
    assert made.flush() == {}
    assert made.configure(E, OverlaySettings())
    assert made.flush() == {ip_network("10.0.2.0/26"): route(via="192.0.2.2")}
    assert not made.configure(E, OverlaySettings())
    assert made.flush() == {}
    assert made.configure(T, OverlaySettings())
    assert made.flush() == {ip_network("10.0.2.0/26"): None}


def test_vxlan_that_is_switched_off_has_no_routes_whatever_pools_say() -> None:
    made = routing(pools={"10.0.0.0/16": Pool(cidr="10.0.0.0/16", vxlan_mode="Always")})
    made.put_node("n2", WITH_TUNNELS["n2"])
    made.put_block(*block(NEAR_BLOCK, "n2"))
    made.flush()
    assert made.wanted
    made.configure(E, OverlaySettings(vxlan=False))
    assert made.flush() == {ip_network(NEAR_BLOCK): None}


def test_cluster_routes_can_be_switched_off_and_pods_keep_theirs() -> None:
    made = routing(owner=D)
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
        made = Routing("n1", ClusterRoutes.ENABLED)
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
