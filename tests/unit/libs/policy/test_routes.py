"""What each address range is, seen from one node."""

from __future__ import annotations

import time
from collections.abc import ItemsView

import pytest

from libs.policy import nets
from libs.policy.output import Block, NodeInfo, Pool, RouteType
from libs.policy.routes import PoolType, Route, RouteResolver, Vtep, generated_mac, resolve_routes, vteps_for

POOL = Pool(cidr="10.0.0.0/16", vxlan_mode="CrossSubnet", nat_outgoing=True)
NODES = {
    "n1": NodeInfo(ipv4="192.0.2.1/24", ipv6="2001:db8::1/64", vxlan_ipv4="10.0.1.0"),
    "n2": NodeInfo(ipv4="192.0.2.2/24", vxlan_ipv4="10.0.2.0"),
    "n3": NodeInfo(ipv4="198.51.100.3/24"),
}
BLOCKS = {
    "b1": Block(cidr="10.0.1.0/26", node="n1", borrowed={"10.0.1.5": "n2"}),
    "b2": Block(cidr="10.0.2.0/26", node="n2", borrowed={"10.0.2.9": "n1"}),
    "b3": Block(cidr="10.0.3.0/26", node="n3"),
    "b4": Block(cidr="10.9.0.0/26", node="unknown"),
}


def routes(node: str = "n1") -> dict[str, Route]:
    return resolve_routes(node, {"p": POOL}, BLOCKS, NODES, {"w": ("n1", ("10.0.1.7/32", "fd00::7/128"))})


@pytest.mark.parametrize(
    ("dst", "expected"),
    [
        ("10.0.0.0/16", {"types": RouteType.CIDR_INFO, "pool_type": PoolType.VXLAN, "nat_outgoing": True}),
        ("10.0.1.0/26", {"types": RouteType.LOCAL_WORKLOAD, "dst_node": "n1", "dst_node_ip": "192.0.2.1"}),
        ("10.0.2.0/26", {"types": RouteType.REMOTE_WORKLOAD, "dst_node": "n2", "same_subnet": True}),
        ("10.0.3.0/26", {"types": RouteType.REMOTE_WORKLOAD, "dst_node": "n3", "same_subnet": False}),
        ("10.9.0.0/26", {"dst_node": "unknown", "dst_node_ip": "", "pool_type": PoolType.NONE, "same_subnet": False}),
        ("10.0.1.7/32", {"types": RouteType.LOCAL_WORKLOAD, "local_workload": True, "borrowed": False}),
        ("fd00::7/128", {"types": RouteType.LOCAL_WORKLOAD, "dst_node_ip": "2001:db8::1"}),
        ("10.0.1.5/32", {"dst_node": "n2", "borrowed": True}),
        ("10.0.2.9/32", {"dst_node": "n1", "borrowed": True, "local_workload": False}),
        ("192.0.2.1/32", {"types": RouteType.LOCAL_HOST, "dst_node": "n1"}),
        ("198.51.100.3/32", {"types": RouteType.REMOTE_HOST, "dst_node": "n3"}),
        ("10.0.2.0/32", {"types": RouteType.REMOTE_TUNNEL, "tunnel_vxlan": True, "dst_node_ip": "192.0.2.2"}),
        ("10.0.1.0/32", {"types": RouteType.LOCAL_TUNNEL, "tunnel_vxlan": True}),
    ],
)
def test_range(dst: str, expected: dict[str, object]) -> None:
    route = routes()[dst]
    assert {field: getattr(route, field) for field in expected} == expected


def test_zero_address_is_never_a_route() -> None:
    assert resolve_routes("n1", {}, {}, {"n1": NodeInfo(ipv4="0.0.0.0/32", ipv6="::/128")}, {}) == {}


def test_workload_that_appears_changes_only_its_own_route() -> None:
    resolver = RouteResolver("n1")
    resolver.put_pool("p", POOL)
    resolver.put_block("b", BLOCKS["b1"])
    resolver.flush()
    resolver.put_workload("w", "n1", ("10.0.1.7/32",))
    assert set(resolver.flush()) == {"10.0.1.7/32"}
    resolver.put_workload("w", "n1", None)
    assert resolver.flush() == {"10.0.1.7/32": None}


def test_two_workloads_with_one_address_keep_its_route_until_the_last_goes() -> None:
    resolver = RouteResolver("n1")
    resolver.put_workload("a", "n1", ("10.0.1.7/32",))
    resolver.put_workload("b", "n1", ("10.0.1.7/32",))
    resolver.flush()
    resolver.put_workload("a", "n1", None)
    assert resolver.flush() == {}
    assert "10.0.1.7/32" in resolver.routes


def test_own_subnet_changes_what_is_in_the_same_subnet() -> None:
    resolver = RouteResolver("n1")
    resolver.put_pool("p", POOL)
    for key, block in BLOCKS.items():
        resolver.put_block(key, block)
    for name, info in NODES.items():
        resolver.put_node(name, info)
    resolver.flush()
    resolver.put_node("n1", NodeInfo(ipv4="198.51.100.1/24"))
    resolver.flush()
    assert not resolver.routes["10.0.2.0/26"].same_subnet
    assert resolver.routes["10.0.3.0/26"].same_subnet


def test_vtep_needs_both_addresses_of_a_family() -> None:
    assert vteps_for(
        {
            "both": NodeInfo(
                ipv4="192.0.2.1/24",
                vxlan_ipv4="10.0.1.0",
                ipv6="2001:db8::1/64",
                vxlan_ipv6="fd00::1",
                vxlan_mac6="66:00",
            ),
            "mixed": NodeInfo(ipv4="192.0.2.2/24", vxlan_ipv6="fd00::2"),
            "none": NodeInfo(),
        }
    ) == {
        "both": Vtep(
            node="both",
            mac=generated_mac("both"),
            ipv4="10.0.1.0",
            parent_device_ipv4="192.0.2.1",
            mac6="66:00",
            ipv6="fd00::1",
            parent_device_ipv6="2001:db8::1",
        )
    }


def test_generated_mac_is_calicos() -> None:
    assert generated_mac("node3") == "66:a4:6f:e0:c4:da"


def test_a_block_touches_what_lies_inside_it_and_nothing_else() -> None:
    """Neighbours in the order of addresses, a wider range that begins at the same one, and the other family."""
    resolver = RouteResolver("n1")
    resolver.put_pool("p", Pool(cidr="10.0.0.0/16"))
    for cidr in ("9.255.255.0/24", "10.0.0.0/24", "10.0.0.64/26", "10.0.1.0/24", "a00::/24"):
        resolver.put_block(cidr, Block(cidr=cidr, node="n2"))
    resolver.flush()
    resolver.put_block("10.0.0.0/24", Block(cidr="10.0.0.0/24", node="n3"))
    assert {nets.text(net) for net in resolver._dirty} == {"10.0.0.0/24", "10.0.0.64/26"}
    for cidr in ("10.0.0.0/24", "10.0.0.64/26"):
        resolver.put_block(cidr, None)
    resolver.flush()
    assert resolver._ordered == sorted(resolver._ranges)


class CountedDict(dict[str, Route]):
    """How often everything was gone through."""

    scans = 0

    def items(self) -> ItemsView[str, Route]:
        self.scans += 1
        return super().items()


def test_many_nodes_that_get_addresses_at_once_are_one_scan_of_all_routes() -> None:
    resolver = RouteResolver("n1")
    resolver.put_pool("p", Pool(cidr="10.0.0.0/16"))
    names = [f"n{number}" for number in range(2, 102)]
    for number, name in enumerate(names):
        resolver.put_block(name, Block(cidr=f"10.0.{number}.0/26", node=name))
    resolver.flush()
    resolver.routes = counted = CountedDict(resolver.routes)
    for number, name in enumerate(names):
        resolver.put_node(name, NodeInfo(ipv4=f"192.0.2.{number}/24"))
    changed = resolver.flush()
    assert counted.scans == 1
    for number in range(len(names)):
        route = changed[f"10.0.{number}.0/26"]
        assert route is not None
        assert route.dst_node_ip == f"192.0.2.{number}"
    assert resolver.flush() == {}
    assert counted.scans == 1


def test_ten_thousand_blocks_are_taken_in_without_holding_up_the_caller() -> None:
    """Each new block once looked at all earlier ones: eighteen seconds for what takes a tenth of one."""
    resolver = RouteResolver("n1")
    started = time.process_time()
    for number in range(10_000):
        cidr = nets.text(nets.Net(4, (10 << 24) + 64 * number, 26))
        resolver.put_block(cidr, Block(cidr=cidr, node="n2"))
    assert time.process_time() - started < 3
