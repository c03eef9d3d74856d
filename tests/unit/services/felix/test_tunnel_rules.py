"""Rules about the packets of overlays: who may send them, and that they are there only while an overlay is."""

from __future__ import annotations

import pytest

from libs.nftables.model import Hook
from libs.nftables.state import TableState
from libs.policy.output import Host, NodeInfo, Pool
from services.felix.core.options import NatOptions, RulesetOptions
from services.felix.core.overlay import OverlaySettings
from services.felix.core.ruleset import RulesetBuilder
from services.felix.core.tunnel_rules import _without
from tests.unit.services.felix.table import Node

NODES = {
    "n1": NodeInfo(ipv4="192.0.2.1/24", ipv6="2001:db8::1/64", vxlan_ipv4="10.0.1.0", vxlan_ipv6="fd00::1"),
    "n2": NodeInfo(ipv4="192.0.2.2/24", ipv6="2001:db8::2/64", vxlan_ipv4="10.0.2.0", vxlan_ipv6="fd00::2"),
    "plain": NodeInfo(ipv4="192.0.2.3/24"),  # has no tunnel address: nobody of the overlay
}
EXTERNAL = ("198.51.100.0/24", "192.0.2.0/30", "2001:db8:9::/64")


def node(pool: Pool | None, options: RulesetOptions | None = None) -> Node:
    made = Node(RulesetBuilder(options))
    for name, info in NODES.items():
        made.builder.set_node(name, info)
    if pool is not None:
        made.builder.set_pool(pool.cidr, pool)
    made.flush()
    for table in (made.v4, made.v6):
        table.ruleset()
    return made


def tunnels(made: Node, version: int = 4) -> set[str]:
    table = made.v4 if version == 4 else made.v6
    return {name for name in (*table.chains, *table.sets) if "tunnel" in name or "vxlan" in name or "all-hosts" in name}


def test_vxlan_comes_from_known_nodes_and_listed_networks_alone() -> None:
    made = node(Pool(cidr="10.0.0.0/16", vxlan_mode="Always"), RulesetOptions(external_nodes=EXTERNAL))
    packet = "meta l4proto 17 th dport 4789"
    assert made.chain("tunnel-senders") == [f"{packet} ip saddr @all-vxlan-net fib accept", f"{packet} fib drop"]
    assert made.chain("tunnel-receivers") == [f"{packet} fib ip daddr @all-vxlan-net accept"]
    assert made.v4.sets["all-vxlan-net"].elements == {"192.0.2.1", "192.0.2.2", "198.51.100.0/24", "192.0.2.0/30"}
    assert made.v4.sets["all-vxlan-net"].interval
    for name, hook in (("hook-tunnels-raw-in", Hook.PREROUTING), ("hook-tunnels-raw-out", Hook.OUTPUT)):
        assert made.chain(name) == [f"{packet} notrack"]
        base = made.v4.chains[name].base
        assert base is not None
        assert (base.hook, base.priority) == (hook, -300)
    base = made.v4.chains["hook-tunnels"].base
    assert base is not None
    assert base.hook is Hook.INPUT
    assert base.priority < -2, "before host endpoints"
    assert tunnels(made, 6) == set()


def test_ipv6_has_its_own_senders() -> None:
    made = node(Pool(cidr="fd00::/48", vxlan_mode="CrossSubnet"), RulesetOptions(external_nodes=EXTERNAL))
    assert made.v6.sets["all-vxlan-net"].elements == {"2001:db8::1", "2001:db8::2", "2001:db8:9::/64"}
    assert tunnels(made, 4) == set()


def test_ip_in_ip_comes_from_all_nodes_and_listed_networks() -> None:
    made = node(Pool(cidr="10.0.0.0/16", ipip_mode="CrossSubnet"), RulesetOptions(external_nodes=EXTERNAL))
    assert made.chain("tunnel-senders") == [
        "meta l4proto 4 ip saddr @all-hosts-net fib accept", "meta l4proto 4 fib drop",
    ]  # fmt: skip
    assert made.v4.sets["all-hosts-net"].elements == {
        "192.0.2.1", "192.0.2.2", "192.0.2.3", "198.51.100.0/24", "192.0.2.0/30",
    }  # fmt: skip
    assert not [name for name in made.v4.chains if "tunnels-raw" in name], "IP in IP is tracked"


@pytest.mark.parametrize(
    ("pool", "settings", "there"),
    [
        (Pool(cidr="10.0.0.0/16"), OverlaySettings(), False),
        (Pool(cidr="10.0.0.0/16"), OverlaySettings(vxlan=True), True),
        (Pool(cidr="10.0.0.0/16", vxlan_mode="Always"), OverlaySettings(vxlan=False), False),
        (None, OverlaySettings(ipip=True), True),
    ],
)
def test_the_configuration_may_say_otherwise_than_pools(
    pool: Pool | None, settings: OverlaySettings, there: bool
) -> None:
    assert bool(tunnels(node(pool, RulesetOptions(overlay=settings)))) == there


def test_all_goes_with_the_last_pool_that_needs_it() -> None:
    made = node(Pool(cidr="10.0.0.0/16", vxlan_mode="Always", nat_outgoing=True))
    assert tunnels(made)
    made.builder.set_pool("10.0.0.0/16", Pool(cidr="10.0.0.0/16", nat_outgoing=True))
    made.flush()
    assert tunnels(made) == set()
    assert not [rule for rule in made.chain("hook-nat-postrouting") if "vxlan" in rule]
    made.v4.ruleset()


def test_a_node_that_comes_is_one_element() -> None:
    made = node(Pool(cidr="10.0.0.0/16", vxlan_mode="Always"))
    made.builder.set_node("n3", NodeInfo(ipv4="192.0.2.9/24", vxlan_ipv4="10.0.9.0"))
    assert made.flush() == ["add 1 to all-vxlan-net"]
    made.builder.set_node("n3", None)
    assert made.flush() == ["remove 1 from all-vxlan-net"]


def test_host_endpoints_leave_the_packets_of_overlays_alone() -> None:
    pool = Pool(cidr="10.0.0.0/16", vxlan_mode="Always")
    made = node(None)
    made.builder.set_host("all", Host(name="*", profiles=()))
    made.flush()
    assert not [rule for rule in made.chain("hook-fh") if "tunnel" in rule]
    made.builder.set_pool(pool.cidr, pool)
    made.flush()
    for hook, chain in (("hook-fh", "tunnel-senders"), ("hook-th", "tunnel-receivers")):
        rules = made.chain(hook)
        assert rules.index(f"jump {chain}") < len(rules) - 1
        assert rules[-1].startswith("goto ")
    after_dnat = made.chain("hook-th-dnat")
    assert after_dnat.index("ct state & 0x41 != 0x0 accept") < after_dnat.index("fib accept")
    assert not [rule for rule in made.chain("hook-fh", 6) if "tunnel" in rule], "there is no overlay for IPv6"


def test_what_the_host_sends_into_a_tunnel_wears_the_tunnels_address() -> None:
    made = node(Pool(cidr="10.0.0.0/16", vxlan_mode="Always", nat_outgoing=True))
    rules = made.chain("hook-nat-postrouting")
    assert rules == [
        "jump nat-outgoing",
        "meta l4proto 17 oifname vxlan.calico fib fib masquerade",
        "oifname vxlan.calico fib fib masquerade",
    ]
    masquerade = made.v4.chains["hook-nat-postrouting"].rules[1].exprs[-1]
    assert masquerade.ports == (4790, 65535)  # type: ignore[union-attr]


def test_what_the_host_sends_into_wireguard_wears_its_address_whatever_else_there_is() -> None:
    into = "oifname wireguard.cali fib fib masquerade"
    made = node(None, RulesetOptions(wireguard_devices={4: "wireguard.cali"}))
    assert made.chain("hook-nat-postrouting") == [into], "any port will do"
    assert "hook-nat-postrouting" not in made.v6.chains
    assert tunnels(made) == set()
    made.builder.set_pool("10.0.0.0/16", Pool(cidr="10.0.0.0/16", vxlan_mode="Always"))
    made.flush()
    overlay = "oifname vxlan.calico fib fib masquerade"
    assert made.chain("hook-nat-postrouting") == [f"meta l4proto 17 {overlay}", overlay, into]


def test_wireguard_that_is_switched_on_and_off_is_all_that_changes() -> None:
    builder = RulesetBuilder()
    tables = tuple(TableState(table) for table in RulesetBuilder.tables())
    on = RulesetOptions(wireguard_devices={6: "wg-v6.cali"})
    for options, there in ((RulesetOptions(), False), (on, True), (RulesetOptions(), False)):
        builder.set_options(options)
        builder.apply_to(*tables)
        assert ["hook-nat-postrouting" in table.chains for table in tables] == [False, there]


@pytest.mark.parametrize(
    ("port", "ports"), [(4789, (4790, 65535)), (500, (1024, 65535)), (60000, (1024, 59999)), (65535, (1024, 65534))]
)
def test_source_ports_avoid_vxlans_own(port: int, ports: tuple[int, int]) -> None:
    assert _without(port) == ports


def test_the_set_of_all_hosts_serves_nat_as_well() -> None:
    options = RulesetOptions(nat=NatOptions(exclude_hosts=True))
    made = node(Pool(cidr="10.0.0.0/16", nat_outgoing=True), options)
    assert made.v4.sets["all-hosts-net"].elements == {"192.0.2.1", "192.0.2.2", "192.0.2.3"}
    made.builder.set_pool("10.0.0.0/16", Pool(cidr="10.0.0.0/16"))
    made.flush()
    assert tunnels(made) == set()


def test_another_port_is_everywhere() -> None:
    made = node(Pool(cidr="10.0.0.0/16", vxlan_mode="Always"), RulesetOptions(overlay=OverlaySettings(port=8472)))
    text = [rule for chain in made.v4.chains for rule in made.chain(chain)]
    assert [rule for rule in text if "th dport 8472" in rule]
    assert not [rule for rule in text if "4789" in rule]
