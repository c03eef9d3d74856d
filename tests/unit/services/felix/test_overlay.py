"""Which tunnel devices a node wants, and the keeper that makes them, with a pretend kernel."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface

import pytest

from libs.netlink.addresses import Address as InterfaceAddress
from libs.netlink.fdb import FdbEntry
from libs.netlink.links import Link
from libs.netlink.monitor import Changed, Lost
from libs.netlink.neighbours import Neighbour
from libs.netlink.tunnel_fakes import FakeFdb, FakeNeighbours, FakeTunnelKernel, FakeTunnels
from libs.netlink.tunnels import TunnelDevice, Vxlan
from libs.policy.output import NodeInfo, Pool
from libs.policy.routes import generated_mac
from services.felix.core.overlay import (
    DEVICES,
    TUNL,
    VXLAN,
    VXLAN6,
    Address,
    Overlays,
    OverlaySettings,
    RemoteEnd,
    WantedOverlays,
)
from services.felix.drivers import overlays as module
from services.felix.drivers.overlays import OverlayKeeper, checksum_broken

NODES = {
    "n1": NodeInfo(
        ipv4="192.0.2.1/24", ipv6="2001:db8::1/64", vxlan_ipv4="10.0.1.0", vxlan_ipv6="fd00::1", ipip_ipv4="10.0.1.1"
    ),
    "n2": NodeInfo(ipv4="192.0.2.2/24", ipv6="2001:db8::2/64", vxlan_ipv4="10.0.2.0", vxlan_ipv6="fd00::2"),
    "n3": NodeInfo(ipv4="192.0.2.3/24", vxlan_ipv4="10.0.3.0", vxlan_mac="66:00:00:00:00:03"),
}
POOL4, POOL6 = Pool(cidr="10.0.0.0/16", vxlan_mode="Always"), Pool(cidr="fd00::/48", vxlan_mode="CrossSubnet")
IPIP_POOL = Pool(cidr="10.1.0.0/16", ipip_mode="Always")


def overlays(*pools: Pool, nodes: dict[str, NodeInfo] | None = None) -> Overlays:
    made = Overlays("n1")
    for pool in pools:
        made.put_pool(pool.cidr, pool)
    for name, info in (NODES if nodes is None else nodes).items():
        made.put_node(name, info)
    return made


# --- what is wanted ---------------------------------------------------------------------------------------------------


def test_devices_follow_the_pools_and_the_other_ends_are_known() -> None:
    wanted = overlays(POOL4, POOL6, IPIP_POOL).wanted
    assert wanted.enabled == {VXLAN, VXLAN6, TUNL}
    assert wanted.missing == {}
    four = wanted.devices[VXLAN]
    assert (four.address, four.carrier, four.mac, four.vni, four.port) == (
        ip_address("10.0.1.0"), ip_address("192.0.2.1"), generated_mac("n1"), 4096, 4789,
    )  # fmt: skip
    assert wanted.devices[VXLAN6].mac == generated_mac("n1-v6")
    assert (wanted.devices[TUNL].address, wanted.devices[TUNL].carrier) == (ip_address("10.0.1.1"), None)
    assert wanted.ends == {
        RemoteEnd(VXLAN, ip_address("10.0.2.0"), generated_mac("n2"), ip_address("192.0.2.2")),
        RemoteEnd(VXLAN, ip_address("10.0.3.0"), "66:00:00:00:00:03", ip_address("192.0.2.3")),
        RemoteEnd(VXLAN6, ip_address("fd00::2"), generated_mac("n2-v6"), ip_address("2001:db8::2")),
    }


@pytest.mark.parametrize(
    ("pools", "settings", "enabled"),
    [
        ((), OverlaySettings(), set()),
        ((POOL4,), OverlaySettings(), {VXLAN}),
        ((POOL6,), OverlaySettings(), {VXLAN6}),
        ((POOL6,), OverlaySettings(ipv6=False), set()),
        ((POOL4, IPIP_POOL), OverlaySettings(vxlan=False), {TUNL}),
        ((POOL4, IPIP_POOL), OverlaySettings(ipip=False), {VXLAN}),
        ((), OverlaySettings(vxlan=True, ipip=True), {VXLAN, TUNL}),
        ((Pool(cidr="fd00::/48", ipip_mode="Always"),), OverlaySettings(), set()),  # there is no such thing
    ],
)
def test_which_devices_are_wanted(pools: tuple[Pool, ...], settings: OverlaySettings, enabled: set[str]) -> None:
    made = overlays(*pools)
    made.configure(settings)
    assert made.enabled == enabled


def test_a_device_waits_for_the_nodes_own_tunnel_address() -> None:
    made = overlays(POOL4, IPIP_POOL, nodes={**NODES, "n1": NodeInfo(ipv4="192.0.2.1/24")})
    assert made.wanted.enabled == {VXLAN, TUNL}
    assert made.wanted.devices == {}
    assert made.wanted.ends == frozenset()
    assert "node n1 has no IPv4 VXLAN tunnel address" in made.wanted.missing[VXLAN]
    assert "node n1 has no IPv4 IP-in-IP tunnel address" in made.wanted.missing[TUNL]
    made.put_node("n1", NODES["n1"])
    assert made.wanted.missing == {}
    made.put_node("n1", None)
    assert made.wanted.missing.keys() == {VXLAN, TUNL}


def test_of_two_nodes_with_one_mac_or_address_the_lower_name_has_it() -> None:
    twin = NodeInfo(ipv4="192.0.2.9/24", vxlan_ipv4="10.0.9.0", vxlan_mac="66:00:00:00:00:03")
    same_address = NodeInfo(ipv4="192.0.2.8/24", vxlan_ipv4="10.0.3.0")
    for order in itertools.permutations({"n3": NODES["n3"], "n4": twin, "n5": same_address}.items()):
        wanted = overlays(POOL4, nodes={"n1": NODES["n1"], **dict(order)}).wanted
        assert {str(end.host) for end in wanted.ends} == {"192.0.2.3"}


# --- the keeper -------------------------------------------------------------------------------------------------------


class Carriers:
    def __init__(self) -> None:
        self.mtu_bytes = 1500
        self.indexes = {"192.0.2.1": 2, "2001:db8::1": 2}

    def index_of(self, address: Address) -> int | None:
        return self.indexes.get(str(address))

    def underlay_mtu_bytes(self) -> int:
        return self.mtu_bytes


@dataclass
class Stage:
    kernel: FakeTunnelKernel
    carriers: Carriers
    keeper: OverlayKeeper
    wanted: Overlays

    async def step(self) -> tuple[bool, dict[str, str]]:
        """A pass as the dataplane makes it."""
        new, failed = await self.keeper.prepare(self.wanted.wanted, self.wanted.settings)
        return new, failed | await self.keeper.finish(self.wanted.wanted)


def keeper(kernel: FakeTunnelKernel, carriers: Carriers, release: str = "6.1.0") -> OverlayKeeper:
    drivers = FakeTunnels(kernel, DEVICES), FakeFdb(kernel), FakeNeighbours(kernel)
    return OverlayKeeper(carriers, drivers, release=release)


def stage(*pools: Pool, kinds: tuple[str, ...] = ("vxlan", "ipip")) -> Stage:
    kernel, carriers = FakeTunnelKernel({2: 1500, 3: 1500}, kinds), Carriers()
    return Stage(kernel, carriers, keeper(kernel, carriers), overlays(*pools))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0.0)


async def test_devices_and_entries_are_made_and_a_restart_changes_nothing() -> None:
    made = stage(POOL4, POOL6, IPIP_POOL)
    assert await made.step() == (True, {})
    kernel = made.kernel
    device = kernel.devices[VXLAN]
    assert device == TunnelDevice(
        VXLAN, Vxlan(4096, 4789, ip_address("192.0.2.1"), 2), 1450, frozenset({ip_interface("10.0.1.0/32")}),
        generated_mac("n1"),
    )  # fmt: skip
    assert (kernel.devices[VXLAN6].mtu_bytes, kernel.devices[TUNL].mtu_bytes) == (1430, 1480)
    index = kernel.indexes[VXLAN]
    assert {(entry.mac, str(entry.remote)) for entry in kernel.fdb if entry.index == index} == {
        (generated_mac("n2"), "192.0.2.2"), ("66:00:00:00:00:03", "192.0.2.3"),
    }  # fmt: skip
    assert len(kernel.neighbours) == 3
    assert await made.step() == (False, {})
    again = Stage(kernel, made.carriers, keeper(kernel, made.carriers), made.wanted)
    assert await again.step() == (False, {})
    assert kernel.made == [TUNL, VXLAN6, VXLAN]


async def test_nothing_is_removed_before_the_routes_are_written() -> None:
    made = stage(POOL4)
    await made.step()
    made.wanted.put_node("n2", None)
    await made.keeper.prepare(made.wanted.wanted, made.wanted.settings)
    assert len(made.kernel.fdb) == len(made.kernel.neighbours) == 2
    await made.keeper.finish(made.wanted.wanted)
    assert len(made.kernel.fdb) == len(made.kernel.neighbours) == 1
    made.wanted.put_pool(POOL4.cidr, None)
    await made.keeper.prepare(made.wanted.wanted, made.wanted.settings)
    assert VXLAN in made.kernel.devices
    assert made.kernel.fdb
    await made.keeper.finish(made.wanted.wanted)
    assert made.kernel.devices == {}


async def test_after_a_restart_too_an_unwanted_device_outlives_the_routes() -> None:
    made = stage(POOL4)
    await made.step()
    made.wanted.put_pool(POOL4.cidr, None)
    again = keeper(made.kernel, made.carriers)
    await again.prepare(made.wanted.wanted, made.wanted.settings)
    assert VXLAN in made.kernel.devices
    await again.finish(made.wanted.wanted)
    assert made.kernel.devices == {}


async def test_a_device_lingers_until_others_have_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_S", 60.0)
    made = stage(POOL4)
    await made.step()
    made.wanted.put_pool(POOL4.cidr, None)
    assert await made.step() == (False, {})
    assert VXLAN in made.kernel.devices
    monkeypatch.setattr(module, "LINGER_S", 0.0)
    made.keeper._look_again()
    assert await made.step() == (False, {})
    assert made.kernel.devices == {}


async def test_a_mac_or_address_that_moves_is_known_at_its_new_place_before_the_old_one_is_forgotten() -> None:
    made = stage(POOL4)
    await made.step()
    made.wanted.put_node("n2", NodeInfo(ipv4="192.0.2.22/24", vxlan_ipv4="10.0.2.99"))
    await made.keeper.prepare(made.wanted.wanted, made.wanted.settings)
    assert {str(address) for _, address in made.kernel.neighbours} == {"10.0.2.0", "10.0.2.99", "10.0.3.0"}
    assert {str(entry.remote) for entry in made.kernel.fdb} == {"192.0.2.22", "192.0.2.3"}
    await made.keeper.finish(made.wanted.wanted)
    assert {str(address) for _, address in made.kernel.neighbours} == {"10.0.2.99", "10.0.3.0"}


async def test_an_end_whose_address_alone_changes_keeps_its_forwarding_entry() -> None:
    made = stage(POOL4)
    await made.step()
    fdb = set(made.kernel.fdb)
    made.wanted.put_node("n2", NodeInfo(ipv4="192.0.2.2/24", vxlan_ipv4="10.0.2.99"))
    assert await made.step() == (False, {})
    assert made.kernel.fdb == fdb
    assert {str(address) for _, address in made.kernel.neighbours} == {"10.0.2.99", "10.0.3.0"}
    made.wanted.put_node("n2", NodeInfo(ipv4="192.0.2.2/24", vxlan_ipv4="10.0.2.99", vxlan_mac="66:00:00:00:00:22"))
    assert await made.step() == (False, {})
    assert {entry.mac for entry in made.kernel.fdb} == {"66:00:00:00:00:22", "66:00:00:00:00:03"}
    assert {entry.mac for entry in made.kernel.neighbours.values()} == {"66:00:00:00:00:22", "66:00:00:00:00:03"}
    again = Stage(made.kernel, made.carriers, keeper(made.kernel, made.carriers), made.wanted)
    before = set(made.kernel.fdb), dict(made.kernel.neighbours)
    assert await again.step() == (False, {})
    assert (made.kernel.fdb, made.kernel.neighbours) == before


@pytest.mark.parametrize("settings", [OverlaySettings(vni=7), OverlaySettings(port=8472)])
async def test_another_number_or_port_makes_a_new_device_with_all_its_entries(settings: OverlaySettings) -> None:
    made = stage(POOL4)
    await made.step()
    made.wanted.configure(settings)
    assert await made.step() == (True, {})
    index = made.kernel.indexes[VXLAN]
    assert made.kernel.made == [VXLAN, VXLAN]
    assert {entry.index for entry in made.kernel.fdb} == {index}
    assert len(made.kernel.fdb) == len(made.kernel.neighbours) == 2


async def test_what_the_kernel_lacks_is_told_and_does_not_keep_the_others_away() -> None:
    made = stage(POOL4, IPIP_POOL, kinds=("vxlan",))
    new, failed = await made.step()
    assert new
    assert failed.keys() == {"overlay tunl0"}
    assert "this kernel has no IP-in-IP tunnels" in failed["overlay tunl0"]
    assert made.kernel.devices.keys() == {VXLAN}
    assert made.kernel.fdb
    made.kernel.kinds.add("ipip")  # somebody loaded the module
    assert (await made.step())[1] == {}
    assert made.kernel.devices.keys() == {VXLAN, TUNL}


async def test_what_is_not_known_yet_is_waited_for_and_is_no_failure() -> None:
    made = stage(POOL4)
    made.wanted.put_node("n1", NodeInfo(ipv4="192.0.2.1/24"))
    assert await made.step() == (False, {})
    assert made.keeper.waiting.keys() == {f"overlay {VXLAN}"}
    made.wanted.put_node("n1", NODES["n1"])
    assert await made.step() == (True, {})
    assert made.keeper.waiting == {}


@pytest.mark.parametrize("restart", [False, True])
async def test_an_address_that_was_taken_back_leaves_its_device(restart: bool) -> None:
    made = stage(POOL4, IPIP_POOL)
    await made.step()
    made.wanted.put_node("n1", NodeInfo(ipv4="192.0.2.1/24"))
    if restart:
        made.keeper = keeper(made.kernel, made.carriers)
    assert await made.step() == (True, {}), "routes are compared, as the kernel drops those of a device without address"
    devices = made.kernel.devices
    assert {name: (one.addresses, one.up) for name, one in devices.items()} == {
        VXLAN: (frozenset(), True), TUNL: (frozenset(), True),
    }  # fmt: skip
    assert await made.step() == (False, {})
    assert made.keeper.waiting.keys() == {f"overlay {VXLAN}", f"overlay {TUNL}"}
    index = made.kernel.indexes[TUNL]
    strange = InterfaceAddress(ip_interface("10.0.1.1/32"), index)
    assert made.keeper._matters(Changed(strange, gone=False))
    assert not made.keeper._matters(Changed(strange, gone=True)), "our own doing is no news"
    made.wanted.put_node("n1", NODES["n1"])
    assert await made.step() == (True, {})
    assert devices[TUNL].addresses == {ip_interface("10.0.1.1/32")}
    assert len(made.kernel.fdb) == len(made.kernel.neighbours) == 2
    assert made.kernel.made == [TUNL, VXLAN]


async def test_an_address_that_no_interface_has_is_a_failure_until_one_does() -> None:
    made = stage(POOL4)
    made.carriers.indexes.clear()
    assert (await made.step())[1] == {f"overlay {VXLAN}": "no interface of this node has its address 192.0.2.1"}
    made.carriers.indexes["192.0.2.1"] = 3
    assert await made.step() == (True, {})


async def test_the_devices_mtu_follows_the_hosts() -> None:
    made = stage(POOL4)
    await made.step()
    made.carriers.mtu_bytes = 1400
    made.keeper._event(Changed(Link(2, "eth0", "", "", 1400, True, True, 0, 0), gone=False))
    await made.step()
    assert made.kernel.devices[VXLAN].mtu_bytes == 1350


async def test_the_mtu_follows_an_interface_that_carries_no_tunnel_too() -> None:
    made = stage(POOL4, IPIP_POOL)
    await made.step()
    made.carriers.mtu_bytes = 1400  # the driver of interfaces heard of it, and made a pass
    assert (await made.step())[1] == {}
    assert {name: device.mtu_bytes for name, device in made.kernel.devices.items()} == {VXLAN: 1350, TUNL: 1380}
    assert await made.step() == (False, {})


@pytest.mark.parametrize(
    ("release", "override", "offload"),
    [("6.1.0", None, True), ("5.4.0-150-generic", None, False), ("5.4.0", False, True), ("6.1.0", True, False)],
)
async def test_checksums_are_computed_where_the_kernels_are_wrong(
    release: str, override: bool | None, offload: bool
) -> None:
    made = stage(POOL4)
    made.keeper = keeper(made.kernel, made.carriers, release)
    made.wanted.configure(OverlaySettings(checksum_broken=override))
    await made.step()
    assert made.kernel.devices[VXLAN].tx_checksum == offload


def test_kernel_versions() -> None:
    assert [checksum_broken(text) for text in ("4.19.1", "5.6.99", "5.7.0", "5.10", "10.1", "strange")] == [
        True, True, False, False, False, False,
    ]  # fmt: skip


async def test_events_of_others_are_put_right_and_our_own_are_no_news() -> None:
    made = stage(POOL4)
    await made.step()
    told = 0

    def tell() -> None:
        nonlocal told
        told += 1

    made.keeper._changed = tell
    index, device = made.kernel.indexes[VXLAN], made.kernel.devices[VXLAN]
    link = Link(index, VXLAN, "vxlan", device.mac, 1450, True, True, 0, 2)
    entry = next(iter(made.kernel.fdb))
    neighbour = next(iter(made.kernel.neighbours.values()))
    own = InterfaceAddress(ip_interface("10.0.1.0/32"), index)
    quiet = [
        Changed(link, gone=False), Changed(entry, gone=False), Changed(neighbour, gone=False),
        Changed(own, gone=False), Changed(replace(own, interface=ip_interface("fe80::1/64")), gone=False),
        Changed(replace(entry, remote=ip_address("192.0.2.77")), gone=True),
        Changed(replace(entry, index=9), gone=True), Changed(replace(neighbour, index=9), gone=True),
        Changed(replace(link, name="eth5", index=5), gone=True),
        Changed(replace(own, index=9, interface=ip_interface("192.0.2.200/24")), gone=True),
    ]  # fmt: skip
    for event in quiet:
        made.keeper._event(event)
        assert not told, event
    loud = [
        Changed(link, gone=True), Changed(replace(link, mtu_bytes=1400), gone=False),
        Changed(replace(link, mac="66:00:00:00:00:99"), gone=False), Changed(replace(link, up=False), gone=False),
        Changed(entry, gone=True), Changed(replace(entry, remote=ip_address("192.0.2.77")), gone=False),
        Changed(neighbour, gone=True), Changed(replace(neighbour, mac="66:00:00:00:00:99"), gone=False),
        Changed(own, gone=True), Changed(replace(own, interface=ip_interface("10.0.1.9/32")), gone=False),
        Changed(InterfaceAddress(ip_interface("192.0.2.1/24"), 2), gone=True),
        Changed(replace(link, name="eth0", index=2), gone=True), Lost(),
    ]  # fmt: skip
    for number, event in enumerate(loud, 1):
        made.keeper._event(event)
        assert told == number, event
    stray = FdbEntry(index, "66:00:00:00:00:0a", ip_address("192.0.2.10"))
    made.kernel.fdb = {stray}
    strange = Neighbour(ip_address("10.0.7.7"), index, "66:00:00:00:00:07")
    made.kernel.neighbours = {(index, strange.address): strange}
    assert (await made.step())[1] == {}
    assert stray not in made.kernel.fdb
    assert len(made.kernel.fdb) == len(made.kernel.neighbours) == 2


async def test_a_kernel_that_cannot_be_read_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = stage(POOL4)

    async def broken() -> dict[str, TunnelDevice]:
        raise OSError(5, "gone")

    with monkeypatch.context() as patch:
        patch.setattr(made.keeper._tunnels, "read", broken)
        assert (await made.step())[1] == {"overlays": "[Errno 5] gone"}
    assert await made.step() == (True, {})


async def test_an_end_that_cannot_be_written_is_told_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = stage(POOL4)

    async def broken(todo: object) -> dict[FdbEntry, Exception]:
        raise ValueError("'66-aa' is no MAC address")

    with monkeypatch.context() as patch:
        patch.setattr(made.keeper._fdb, "apply", broken)
        assert (await made.step())[1] == {"overlays": "'66-aa' is no MAC address"}
        assert (await made.step())[1] == {"overlays": "'66-aa' is no MAC address"}
    assert (await made.step())[1] == {}
    assert len(made.kernel.fdb) == len(made.kernel.neighbours) == 2


def test_nothing_is_wanted_of_a_cluster_without_overlays() -> None:
    assert overlays(Pool(cidr="10.0.0.0/16")).wanted == WantedOverlays()
