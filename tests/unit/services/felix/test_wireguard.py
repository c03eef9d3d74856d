"""What WireGuard wants: peers, networks, routes, keys; without a kernel."""

from __future__ import annotations

import base64
from dataclasses import replace
from ipaddress import ip_address

import msgspec
import pytest

from libs.model import keys
from libs.netlink.wireguard import WgPeer
from libs.policy.output import Block, NodeInfo, Pool
from services.felix.core.live import LiveSettings, effective, environment_settings
from services.felix.core.options import RulesetOptions
from services.felix.core.wireguard import (
    FamilySettings,
    Wanted,
    Way,
    Wireguard,
    WireguardSettings,
    mark_of,
)
from services.felix.core.wireguard_rules import mark_chains

MARK = 0x200000
OWN, TWO, THREE = b"\1" * 32, b"\2" * 32, b"\3" * 32
SETTINGS = WireguardSettings(v4=FamilySettings(enabled=True))
TUNNEL, THROW, UNREACHABLE = Way.TUNNEL, Way.THROW, Way.UNREACHABLE


def text(key: bytes | None) -> str:
    return base64.b64encode(key).decode() if key else ""


def node(number: int, key: bytes | None = None, **more: str) -> NodeInfo:
    return NodeInfo(ipv4=f"192.0.2.{number}/24", ipv6=f"2001:db8::{number}/64", wireguard_key=text(key), **more)


def core(settings: WireguardSettings = SETTINGS, version: int = 4) -> Wireguard:
    """node1 is ours and has told its key, as has node2; node3 has none. Each has a block."""
    made = Wireguard("node1", version)
    made.configure(settings, MARK)
    for number, key in ((1, OWN), (2, TWO), (3, None)):
        made.put_node(f"node{number}", node(number, key))
        made.put_block(f"10.65.{number}.0/26", Block(cidr=f"10.65.{number}.0/26", node=f"node{number}"))
    return made


def wanted(made: Wireguard, own: bytes | None = OWN) -> Wanted:
    found = made.wanted(own)
    assert found is not None
    return found


def routes(found: Wanted) -> dict[str, Way]:
    return {str(net): way for net, way in found.routes.items()}


def allowed(peer: WgPeer) -> set[str]:
    return {str(net) for net in peer.allowed}


def test_o09_blocks_of_nodes_with_a_key_go_into_the_tunnel() -> None:
    found = wanted(core())
    assert (found.interface, found.listen_port, found.fwmark, found.priority) == ("wireguard.cali", 51820, MARK, 99)
    (peer,) = found.peers.values()
    assert (peer.public_key, peer.endpoint, allowed(peer)) == (TWO, (ip_address("192.0.2.2"), 51820), {"10.65.2.0/26"})
    assert routes(found) == {"10.65.1.0/26": THROW, "10.65.2.0/26": TUNNEL, "10.65.3.0/26": THROW}
    assert found.problems == {}


def test_the_other_family_has_its_own_key_blocks_device_and_port() -> None:
    made = core(WireguardSettings(v6=FamilySettings(True, "wg-v6.cali", 51821)), version=6)
    made.put_node("node1", node(1, None, wireguard_key6=text(OWN)))
    made.put_node("node2", node(2, None, wireguard_key6=text(TWO)))
    made.put_block("fd00:65:2::/122", Block(cidr="fd00:65:2::/122", node="node2"))
    found = wanted(made)
    (peer,) = found.peers.values()
    assert (found.interface, found.listen_port) == ("wg-v6.cali", 51821)
    assert peer.endpoint == (ip_address("2001:db8::2"), 51821)
    assert routes(found) == {"fd00:65:2::/122": TUNNEL}


def test_an_address_that_was_lent_goes_to_who_uses_it() -> None:
    made = core()
    made.put_block("10.65.2.0/26", Block(cidr="10.65.2.0/26", node="node2", borrowed={
        "10.65.2.5/32": "node1", "10.65.2.6/32": "node3", "10.65.2.7/32": ""}))  # fmt: skip
    made.put_block("10.65.3.0/26", Block(cidr="10.65.3.0/26", node="node3", borrowed={"10.65.3.9/32": "node2"}))
    found = wanted(made)
    assert routes(found) == {
        "10.65.1.0/26": THROW, "10.65.2.0/26": TUNNEL, "10.65.3.0/26": THROW, "10.65.2.5/32": THROW,
        "10.65.2.6/32": THROW, "10.65.3.9/32": TUNNEL,
    }  # fmt: skip
    assert allowed(found.peers[TWO]) == {"10.65.2.0/26", "10.65.3.9/32"}


def test_tunnel_addresses_belong_to_their_node_wherever_they_come_from() -> None:
    made = core()
    made.put_node("node2", node(2, TWO, wireguard_ipv4="10.65.2.1", ipip_ipv4="10.65.3.40", vxlan_ipv4="10.99.0.1"))
    made.put_node("node1", node(1, OWN, wireguard_ipv4="10.65.1.1"))
    found = wanted(made)
    assert allowed(found.peers[TWO]) == {"10.65.2.0/26", "10.65.3.40/32", "10.99.0.1/32"}
    assert found.addresses == {ip_address("10.65.1.1")}


def test_a_block_that_goes_or_changes_hands_takes_its_routes_along() -> None:
    made = core()
    made.put_block("10.65.2.0/26", None)
    made.put_block("10.65.3.0/26", Block(cidr="10.65.3.0/26", node="node2"))
    found = wanted(made)
    assert routes(found) == {"10.65.1.0/26": THROW, "10.65.3.0/26": TUNNEL}
    assert allowed(found.peers[TWO]) == {"10.65.3.0/26"}


def test_nothing_goes_through_before_our_own_key_is_told_and_peers_are_there_all_the_same() -> None:
    made = core()
    made.put_node("node1", node(1))
    found = wanted(made)
    assert (found.routes, set(found.peers)) == ({}, {TWO})  # what they send is understood
    made.put_node("node1", node(1, THREE))  # of before a reboot, which took the device along
    assert wanted(made).routes == {}
    assert wanted(made, None).routes == {}


def test_switched_off_it_goes_on_until_the_key_is_withdrawn() -> None:
    """Nobody else has routes for these ranges before."""
    made = core(WireguardSettings())
    assert wanted(made) == wanted(core())
    made.configure(WireguardSettings(host_encryption=True), MARK)
    found = wanted(made)
    assert (found.routes, set(found.peers)) == ({}, {TWO})  # or we could not reach who stopped listening
    made.configure(WireguardSettings(encrypt_or_drop=True), MARK)
    assert wanted(made, None).routes == {}
    made.put_node("node1", node(1))
    assert made.wanted(OWN) is None


def test_o11_two_nodes_with_one_key_are_both_no_peers_and_both_named() -> None:
    made = core()
    made.put_node("node3", node(3, TWO))
    found = wanted(made)
    assert found.peers == {}
    assert set(routes(found).values()) == {THROW}
    assert found.problems == {
        "WireGuard IPv4 node node2": "not encrypted: node3 has the same key",
        "WireGuard IPv4 node node3": "not encrypted: node2 has the same key",
    }
    made.put_node("node3", node(3, THREE))
    assert set(wanted(made).peers) == {TWO, THREE}


def test_o11_a_node_that_tells_our_key_is_no_peer_and_we_do_not_send() -> None:
    made = core()
    made.put_node("node3", node(3, OWN))
    found = wanted(made)
    assert set(found.peers) == {TWO}
    assert found.routes == {}
    assert set(found.problems) == {"WireGuard IPv4 node node1", "WireGuard IPv4 node node3"}
    made.put_node("node1", node(1))  # not told yet: the other has it all the same
    assert "not encrypted: node1 has the same key" in wanted(made).problems["WireGuard IPv4 node node3"]


@pytest.mark.parametrize("key", ["no key", "AAAA", "A" * 43 + "="])
def test_o11_a_key_that_is_none_is_named_and_that_node_reached_in_clear_text(key: str) -> None:
    made = core()
    made.put_node("node2", NodeInfo(ipv4="192.0.2.2/24", wireguard_key=key))
    found = wanted(made)
    assert found.peers == {}
    assert routes(found)["10.65.2.0/26"] is THROW
    assert "cannot be used" in found.problems["WireGuard IPv4 node node2"]


def test_a_node_with_a_key_and_no_address_is_no_peer() -> None:
    made = core()
    made.put_node("node2", NodeInfo(wireguard_key=text(TWO)))
    found = wanted(made)
    assert found.peers == {}
    assert routes(found)["10.65.2.0/26"] is THROW
    assert "no IPv4 address" in found.problems["WireGuard IPv4 node node2"]


def test_where_we_have_no_address_ourselves_nobody_is_our_peer_and_we_send_nothing_through_the_tunnel() -> None:
    made = core()
    made.put_node("node1", NodeInfo(wireguard_key=text(OWN)))
    found = wanted(made)
    assert found.routes == {}
    assert found.problems == {"WireGuard IPv4 node node1": "not encrypted: it has a key and no IPv4 address"}


def test_o10_with_host_encryption_nodes_addresses_go_into_the_tunnel_too() -> None:
    made = core(replace(SETTINGS, host_encryption=True, keepalive_s=25))
    made.put_node("node1", node(1, OWN, wireguard_ipv4="10.65.1.1"))
    found = wanted(made)
    assert allowed(found.peers[TWO]) == {"10.65.2.0/26", "192.0.2.2/32"}
    assert found.peers[TWO].keepalive_s == 25
    assert routes(found)["192.0.2.2/32"] is TUNNEL
    assert routes(found)["192.0.2.3/32"] is THROW
    assert found.addresses == frozenset()


STRICT = replace(SETTINGS, encrypt_or_drop=True)


def test_o12_what_cannot_be_encrypted_is_unreachable() -> None:
    made = core(STRICT)
    made.put_pool("10.65.0.0/16", Pool(cidr="10.65.0.0/16", allowed_uses=("Workload", "Tunnel")))
    made.put_pool("10.70.0.0/16", Pool(cidr="10.70.0.0/16", allowed_uses=("LoadBalancer",)))
    made.put_pool("fd00::/48", Pool(cidr="fd00::/48"))
    hosts = {f"192.0.2.{number}/32": THROW for number in (1, 2, 3)}
    ways = {"10.65.0.0/16": UNREACHABLE, "10.65.1.0/26": THROW, "10.65.2.0/26": TUNNEL, "10.65.3.0/26": UNREACHABLE}
    assert routes(wanted(made)) == ways | hosts
    # Before our key is told, with a stale one, without a device: nothing leaves in clear text either.
    shut = ways | hosts | {"10.65.2.0/26": UNREACHABLE}
    assert routes(wanted(made, None)) == shut
    made.put_node("node1", node(1))
    assert routes(wanted(made)) == shut


def test_o12_nodes_stay_reachable_with_host_encryption_too() -> None:
    made = core(replace(STRICT, host_encryption=True))
    made.put_pool("192.0.0.0/16", Pool(cidr="192.0.0.0/16"))
    found = routes(wanted(made))
    assert (found["192.0.0.0/16"], found["192.0.2.2/32"], found["192.0.2.3/32"]) == (UNREACHABLE, TUNNEL, THROW)


def test_nothing_is_wanted_where_it_was_never_on_and_only_changes_are_work() -> None:
    made = core(WireguardSettings())
    made.put_node("node1", node(1))
    assert made.wanted(None) is None
    made.dirty = False
    made.put_node("node1", node(1))
    made.put_block("fd00::/122", Block(cidr="fd00::/122", node="node2"))  # of the other family
    made.configure(WireguardSettings(), MARK)
    assert not made.dirty
    made.put_node("node4", None)
    assert not made.dirty
    made.put_node("node3", None)
    assert made.dirty


def test_the_mark_is_calicos_bit_where_there_are_enough() -> None:
    assert mark_of(0xFFFF0000) == 0x200000
    assert mark_of(0x00000700) == 0x400
    assert mark_of(0x101) == 0x100


# --- settings ---------------------------------------------------------------------------------------------------------


def settings(spec: dict[str, object], annotations: dict[str, str] | None = None, **environ: str) -> LiveSettings:
    resource = {"metadata": {"annotations": annotations}, "spec": spec}
    stored = {keys.resource_key("FelixConfiguration", "default"): msgspec.Raw(msgspec.json.encode(resource))}
    return effective(stored, "node1", {}, environment_settings(environ))


def test_settings_are_read_and_the_port_is_open_at_host_endpoints() -> None:
    found = settings({
        "wireguardEnabled": True, "wireguardEnabledV6": True, "wireguardListeningPortV6": 4000, "wireguardMTU": 1380,
        "wireguardInterfaceName": "wg9", "wireguardKeepAlive": "25s", "wireguardRoutingRulePriority": 88,
        "wireguardThreadingEnabled": True, "wireguardHostEncryptionEnabled": True,
    })  # fmt: skip
    assert found.problems == ()
    got = found.wireguard
    assert got.v4 == FamilySettings(True, "wg9", 51820, 1380)
    assert got.v6 == FamilySettings(True, "wg-v6.cali", 4000, 0)
    assert (got.keepalive_s, got.priority, got.threading, got.host_encryption) == (25, 88, True, True)
    for ports in (found.options.failsafe_in, found.options.failsafe_out):
        assert [str(port) for port in ports if port.protocol == "udp" and port.port in (51820, 4000)] == [
            "udp/51820 0.0.0.0/0", "udp/4000 ::/0",
        ]  # fmt: skip
    assert (found.options.wireguard_ports, found.options.wireguard_mark) == ({4: 51820, 6: 4000}, 0x200000)


def test_the_ruleset_masquerades_into_devices_in_use_unless_hosts_encrypt() -> None:
    on: dict[str, object] = {"wireguardEnabledV6": True, "wireguardInterfaceNameV6": "wg6"}
    assert settings(on).options.wireguard_devices == {6: "wg6"}
    assert settings(on | {"wireguardHostEncryptionEnabled": True}).options.wireguard_devices == {}


def test_without_wireguard_the_ruleset_knows_nothing_of_it() -> None:
    assert settings({"wireguardHostEncryptionEnabled": True}).options == RulesetOptions()
    assert settings({"wireguardEnabled": True}).options.wireguard_mark == 0


def test_o12_encrypt_or_drop_is_an_annotation_or_in_the_environment() -> None:
    key = "felix.calico-py/wireguardEncryptOrDrop"
    assert not settings({}).wireguard.encrypt_or_drop
    assert settings({}, {key: "true"}).wireguard.encrypt_or_drop
    assert not settings({}, {key: "true"}, FELIX_WIREGUARDENCRYPTORDROP="false").wireguard.encrypt_or_drop
    assert settings({}, FELIX_WIREGUARDENCRYPTORDROP="true").wireguard.encrypt_or_drop
    bad = settings({}, {key: "perhaps"})
    assert not bad.wireguard.encrypt_or_drop
    assert bad.problems == (f"{key} (default): 'perhaps' is not one of true, false",)


def test_without_a_bit_for_it_wireguard_is_off_and_that_is_said() -> None:
    found = settings({"wireguardEnabled": True, "nftablesMarkMask": 0x30000})
    assert not found.wireguard.v4.enabled
    assert found.problems == ("wireguardEnabled: nftablesMarkMask has no third bit, which WireGuard needs: it is off",)
    assert settings({"nftablesMarkMask": 0x30000}).problems == ()
    assert settings({"wireguardEnabled": True, "nftablesMarkMask": 0x70000}).wireguard.v4.enabled


@pytest.mark.parametrize("name", ["", "a" * 16, "a/b", "a b", ".."])
def test_a_name_that_no_interface_can_have_is_refused(name: str) -> None:
    found = settings({"wireguardInterfaceName": name})
    assert found.wireguard.v4.interface == "wireguard.cali"
    assert bool(found.problems) == bool(name)


def test_o10_what_comes_in_encrypted_is_marked_only_where_hosts_encrypt() -> None:
    options = RulesetOptions(wireguard_ports={4: 51820}, wireguard_mark=MARK)
    (chain,) = mark_chains(options, 4)
    assert chain.base is not None
    assert mark_chains(options, 6) == ()
    assert mark_chains(replace(options, wireguard_mark=0), 4) == ()
