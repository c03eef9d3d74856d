"""Tunnel devices, forwarding entries and neighbours through the reconciler: one suite for the kernel and the fake."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest

from libs.netlink import tunnels
from libs.netlink.fdb import FdbEntry, fdb_request
from libs.netlink.links import VethEnd, create_veth, get_link, set_link
from libs.netlink.neighbours import Neighbour, neighbour_request
from libs.netlink.netns import in_netns
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from libs.netlink.tunnel_drivers import FdbDriver, NeighbourDriver, TunnelDriver, Worker, neighbour_key
from libs.netlink.tunnel_fakes import FakeFdb, FakeNeighbours, FakeTunnelKernel, FakeTunnels
from libs.netlink.tunnels import Ipip, TunnelDevice, Unsupported, Vxlan, get_tunnel
from libs.reconcile import Diff, Reconciler
from libs.testkit import netns

V4, V6, IPIP = "vxlan.calico", "vxlan-v6.calico", "tunl0"
NAMES = (V4, V6, IPIP)


@dataclass
class World:
    tunnels: TunnelDriver | FakeTunnels
    fdb: FdbDriver | FakeFdb
    neighbours: NeighbourDriver | FakeNeighbours
    parent: int
    other: int
    kernel: FakeTunnelKernel | None = None
    ns: netns.Namespace | None = None

    def v4(self) -> TunnelDevice:
        kind = Vxlan(4096, 4789, ip_address("192.0.2.1"), self.parent)
        return TunnelDevice(V4, kind, 1450, frozenset({ip_interface("10.66.1.0/32")}), "66:f9:37:c3:7e:94")

    def v6(self) -> TunnelDevice:
        kind = Vxlan(4096, 4789, ip_address("2001:db8::1"), self.parent)
        return TunnelDevice(V6, kind, 1430, frozenset({ip_interface("fd00:66::/128")}), "66:f9:37:c3:7e:95")

    async def device(self) -> int:
        """vxlan.calico, ready for entries."""
        assert await self.tunnels.apply(Diff({V4: self.v4()}, set())) == {}
        index = self.tunnels.indexes[V4]
        self.fdb.devices = self.neighbours.devices = frozenset({index})
        return index

    def meddle(self, *requests: tuple[int, int, bytes]) -> None:
        """Somebody else changes the kernel."""
        assert self.ns is not None
        with NetlinkSocket(NETLINK_ROUTE, self.ns.path) as netlink:
            assert netlink.batch(requests) == {}


KERNEL = [pytest.mark.kernel, pytest.mark.stock_kernel]


@pytest.fixture(params=["fake", pytest.param("kernel", marks=KERNEL)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "fake":
        kernel = FakeTunnelKernel({2: 1500, 3: 1500})
        yield World(FakeTunnels(kernel, NAMES), FakeFdb(kernel), FakeNeighbours(kernel), 2, 3, kernel)
        return
    if not netns.can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    with kernel_world() as made:
        yield made


@pytest.fixture
def real() -> Iterator[World]:
    """For what the fake has nothing to say about."""
    if not netns.can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    with kernel_world() as made:
        yield made


@contextmanager
def kernel_world() -> Iterator[World]:
    with netns.namespace("tu") as ns, NetlinkSocket(NETLINK_ROUTE, ns.path) as netlink:
        indexes = []
        for name in ("eth0", "eth1"):
            create_veth(netlink, VethEnd(name), VethEnd(name + "p"))
            link = get_link(netlink, name)
            assert link is not None
            set_link(netlink, link.index, up=True)
            indexes.append(link.index)
        worker = Worker(ns.path)
        try:
            yield World(
                TunnelDriver(worker, NAMES), FdbDriver(worker), NeighbourDriver(worker), *indexes, kernel=None, ns=ns
            )
        finally:
            worker.close()


def reconciler(world: World) -> Reconciler[str, TunnelDevice]:
    made = Reconciler(world.tunnels)
    made.in_sync = True
    return made


async def test_devices_read_back_as_they_were_made(world: World) -> None:
    one = reconciler(world)
    one.desired = {V4: world.v4(), V6: world.v6()}
    assert await one.step() == {}
    assert await world.tunnels.read() == {V4: world.v4(), V6: world.v6()}


async def test_a_restart_leaves_what_is_right_alone_and_removes_what_is_not_wanted(world: World) -> None:
    one = reconciler(world)
    one.desired = {V4: world.v4(), V6: world.v6()}
    await one.step()
    index = world.tunnels.indexes[V4]
    again = reconciler(world)
    again.desired = {V4: world.v4()}
    assert await again.step() == {}
    assert await world.tunnels.read() == {V4: world.v4()}
    assert world.tunnels.indexes == {V4: index}


@pytest.mark.parametrize("what", ["mtu", "mac", "address", "checksum", "down"])
async def test_what_can_be_changed_is_changed_in_place(world: World, what: str) -> None:
    index = await world.device()
    changed = {
        "mtu": replace(world.v4(), mtu_bytes=1400),
        "mac": replace(world.v4(), mac="66:00:00:00:00:01"),
        "address": replace(world.v4(), addresses=frozenset({ip_interface("10.66.9.9/32")})),
        "checksum": replace(world.v4(), tx_checksum=False),
        "down": replace(world.v4(), up=False),
    }[what]
    assert await world.tunnels.apply(Diff({V4: changed}, set())) == {}
    assert await world.tunnels.read() == {V4: changed}
    assert world.tunnels.indexes == {V4: index}
    assert await world.tunnels.apply(Diff({V4: world.v4()}, set())) == {}
    assert await world.tunnels.read() == {V4: world.v4()}


@pytest.mark.parametrize("what", ["vni", "port", "local", "parent", "learning"])
async def test_what_cannot_be_changed_makes_a_new_device(world: World, what: str) -> None:
    index = await world.device()
    kind = world.v4().kind
    assert isinstance(kind, Vxlan)
    changed = replace(
        world.v4(),
        kind={
            "vni": replace(kind, vni=5),
            "port": replace(kind, port=8472),
            "local": replace(kind, local=ip_address("192.0.2.9")),
            "parent": replace(kind, parent=world.other),
            "learning": replace(kind, learning=True),
        }[what],
    )
    assert await world.tunnels.apply(Diff({V4: changed}, set())) == {}
    assert await world.tunnels.read() == {V4: changed}
    assert world.tunnels.indexes[V4] != index


@pytest.mark.parametrize(("what", "code"), [("parent", errno.ENODEV), ("mtu", errno.EINVAL)])
async def test_a_refused_device_is_named_and_the_other_is_made(world: World, what: str, code: int) -> None:
    kind = world.v4().kind
    assert isinstance(kind, Vxlan)
    bad = {"parent": replace(world.v4(), kind=replace(kind, parent=4711)), "mtu": replace(world.v4(), mtu_bytes=1480)}
    failed = await world.tunnels.apply(Diff({V4: bad[what], V6: world.v6()}, set()))
    assert failed.keys() == {V4}
    error = failed[V4]
    assert isinstance(error, OSError)
    assert error.errno == code
    assert (await world.tunnels.read()).keys() >= {V6}


async def test_a_device_that_is_gone_already_counts_as_removed(world: World) -> None:
    assert await world.tunnels.apply(Diff({}, {V4})) == {}


@pytest.mark.kernel
@pytest.mark.stock_kernel
@pytest.mark.parametrize("name", [V4, IPIP])
async def test_a_device_that_appears_while_it_is_made_is_taken(
    real: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking for the first one loads ipip, and with it comes a tunl0 in every namespace."""
    device = ip_in_ip(real) if name == IPIP else real.v4()
    assert await real.tunnels.apply(Diff({name: replace(device, mtu_bytes=1400)}, set())) == {}
    unseen = [None]

    def get(netlink: NetlinkSocket, control: socket.socket, asked: str) -> tuple[int, TunnelDevice] | None:
        return unseen.pop() if unseen else get_tunnel(netlink, control, asked)

    monkeypatch.setattr(tunnels, "get_tunnel", get)
    assert await real.tunnels.apply(Diff({name: device}, set())) == {}
    assert unseen == []
    assert await real.tunnels.read() == {name: device}


# --- IP in IP ---------------------------------------------------------------------------------------------------------


def needs_ip_in_ip() -> None:
    if not netns.kernel_makes("ipip"):
        pytest.skip("this kernel has no IP-in-IP tunnels")


def ip_in_ip(world: World) -> TunnelDevice:
    if world.ns is not None:
        needs_ip_in_ip()
    return TunnelDevice(IPIP, Ipip(), 1480, frozenset({ip_interface("10.66.1.1/32")}))


async def test_a_kernel_without_ip_in_ip_says_so_in_plain_words(world: World) -> None:
    device = TunnelDevice(IPIP, Ipip(), 1480, frozenset({ip_interface("10.66.1.1/32")}))
    if world.kernel is not None:
        world.kernel.kinds.remove("ipip")
    failed = await world.tunnels.apply(Diff({IPIP: device}, set()))
    if not failed:
        pytest.skip("this kernel has IP-in-IP tunnels")
    assert isinstance(failed[IPIP], Unsupported)
    assert "this kernel has no IP-in-IP tunnels (module ipip is not available)" in str(failed[IPIP])
    assert await world.tunnels.apply(Diff({}, {IPIP})) == {}


async def test_ip_in_ip_is_made_changed_in_place_and_removed(world: World) -> None:
    device = ip_in_ip(world)
    assert await world.tunnels.read() == {}
    assert await world.tunnels.apply(Diff({IPIP: device}, set())) == {}
    indexes = dict(world.tunnels.indexes)
    for wanted in (
        replace(device, addresses=frozenset({ip_interface("10.66.1.2/32")}), mtu_bytes=1400),
        replace(device, tx_checksum=False),
        replace(device, up=False),
        device,
    ):
        assert await world.tunnels.apply(Diff({IPIP: wanted}, set())) == {}
        assert await world.tunnels.read() == {IPIP: wanted}
        assert world.tunnels.indexes == indexes
    if world.ns is not None:
        shown = world.ns.run("ip", "addr", "show", "dev", IPIP)
        assert "link/ipip 0.0.0.0 brd 0.0.0.0" in shown  # from and to whatever address
        assert "inet 10.66.1.1/32 scope global tunl0" in shown
        assert "<NOARP,UP,LOWER_UP> mtu 1480" in shown
    again = reconciler(world)
    again.desired = {}
    assert await again.step() == {}
    assert await world.tunnels.read() == {}
    assert await world.tunnels.apply(Diff({IPIP: device}, set())) == {}
    assert await world.tunnels.read() == {IPIP: device}


FALLBACK = Path("/proc/sys/net/core/fb_tunnels_only_for_init_net")
tunl0_of_the_module = pytest.mark.xdist_group("tunl0")  # whether a new namespace gets one is a setting of the machine


@pytest.fixture
def without_fallback() -> Iterator[World]:
    """In a namespace that got no tunl0 from the module, as an administrator may have it."""
    needs_ip_in_ip()
    before = FALLBACK.read_text()
    FALLBACK.write_text("1\n")
    try:
        with kernel_world() as made:
            FALLBACK.write_text(before)
            yield made
    finally:
        FALLBACK.write_text(before)


@tunl0_of_the_module
@pytest.mark.kernel
@pytest.mark.stock_kernel
async def test_the_modules_own_tunl0_is_left_idle(real: World) -> None:
    assert real.ns is not None
    device = ip_in_ip(real)
    assert "tunl0@NONE" in real.ns.run("ip", "-br", "link")
    assert await real.tunnels.apply(Diff({IPIP: device}, set())) == {}
    assert await real.tunnels.apply(Diff({}, {IPIP})) == {}
    assert real.ns.run("ip", "-br", "addr", "show", "dev", IPIP).split() == ["tunl0@NONE", "DOWN"]


@tunl0_of_the_module
@pytest.mark.kernel
@pytest.mark.stock_kernel
async def test_a_tunl0_of_ours_goes(without_fallback: World) -> None:
    assert without_fallback.ns is not None
    assert IPIP not in without_fallback.ns.run("ip", "-br", "link")
    device = ip_in_ip(without_fallback)
    assert await without_fallback.tunnels.apply(Diff({IPIP: device}, set())) == {}
    assert await without_fallback.tunnels.read() == {IPIP: device}
    assert await without_fallback.tunnels.apply(Diff({}, {IPIP})) == {}
    assert IPIP not in without_fallback.ns.run("ip", "-br", "link")


@tunl0_of_the_module
@pytest.mark.kernel
@pytest.mark.stock_kernel
async def test_a_tunnel_to_one_place_that_has_the_name_gives_way(without_fallback: World) -> None:
    assert without_fallback.ns is not None
    one_place = ("type", "ipip", "local", "192.0.2.1", "remote", "192.0.2.2")
    without_fallback.ns.run("ip", "link", "add", IPIP, *one_place)
    device = ip_in_ip(without_fallback)
    assert await without_fallback.tunnels.apply(Diff({IPIP: device}, set())) == {}
    assert await without_fallback.tunnels.read() == {IPIP: device}


@tunl0_of_the_module
@pytest.mark.kernel
@pytest.mark.stock_kernel
async def test_a_device_of_another_name_that_takes_all_packets_is_told(real: World) -> None:
    assert real.ns is not None
    device = ip_in_ip(real)
    real.ns.run("ip", "link", "set", IPIP, "name", "cilium_tunl")  # Cilium does so
    failed = await real.tunnels.apply(Diff({IPIP: device}, set()))
    assert "tunl0: a device of another name takes all IP-in-IP packets" in str(failed[IPIP])


# --- forwarding entries -----------------------------------------------------------------------------------------------


def entries(index: int) -> dict[FdbEntry, FdbEntry]:
    made = [
        FdbEntry(index, "66:00:00:00:00:02", ip_address("192.0.2.2")),
        FdbEntry(index, "66:00:00:00:00:03", ip_address("192.0.2.3")),
    ]
    return {entry: entry for entry in made}


async def test_forwarding_entries_read_back_and_the_unwanted_go(world: World) -> None:
    wanted = entries(await world.device())
    one = Reconciler(world.fdb)
    one.in_sync = True
    one.desired = wanted
    assert await one.step() == {}
    assert await world.fdb.read() == wanted
    first, second = wanted
    again = Reconciler(world.fdb)
    again.in_sync = True
    again.desired = {first: first}
    assert await again.step() == {}
    assert await world.fdb.read() == {first: first}
    assert await world.fdb.apply(Diff({}, {second})) == {}  # gone already


async def test_a_mac_that_moves_to_another_host_is_found_there_alone(world: World) -> None:
    index = await world.device()
    one = Reconciler(world.fdb)
    one.in_sync = True
    one.desired = entries(index)
    await one.step()
    moved = FdbEntry(index, "66:00:00:00:00:02", ip_address("192.0.2.77"))
    stays = FdbEntry(index, "66:00:00:00:00:03", ip_address("192.0.2.3"))
    one.desired = {moved: moved, stays: stays}
    assert await one.step() == {}
    assert await world.fdb.read() == {moved: moved, stays: stays}


async def test_an_entry_of_a_device_that_is_not_there_is_refused_and_the_others_are_written(world: World) -> None:
    index = await world.device()
    good, bad = next(iter(entries(index))), next(iter(entries(4711)))
    failed = await world.fdb.apply(Diff({bad: bad, good: good}, set()))
    assert failed.keys() == {bad}
    assert await world.fdb.read() == {good: good}


async def test_entries_of_other_devices_are_nobodys_business(world: World) -> None:
    index = await world.device()
    assert await world.tunnels.apply(Diff({V6: world.v6()}, set())) == {}
    foreign = FdbEntry(world.tunnels.indexes[V6], "66:00:00:00:00:09", ip_address("2001:db8::9"))
    assert await world.fdb.apply(Diff({foreign: foreign}, set())) == {}
    assert await world.fdb.read() == {}
    world.fdb.devices = frozenset({index, foreign.index})
    assert await world.fdb.read() == {foreign: foreign}


# --- neighbours -------------------------------------------------------------------------------------------------------


async def test_neighbours_of_both_families_read_back_change_and_go(world: World) -> None:
    index = await world.device()
    four = Neighbour(ip_address("10.66.2.0"), index, "66:00:00:00:00:02")
    six = Neighbour(ip_address("fd00:66::2"), index, "66:00:00:00:00:02")
    one = Reconciler(world.neighbours)
    one.in_sync = True
    one.desired = {neighbour_key(entry): entry for entry in (four, six)}
    assert await one.step() == {}
    assert await world.neighbours.read() == one.desired
    four = replace(four, mac="66:00:00:00:00:05")
    one.desired = {neighbour_key(four): four}
    assert await one.step() == {}
    assert await world.neighbours.read() == {neighbour_key(four): four}
    assert await world.neighbours.apply(Diff({}, {neighbour_key(six)})) == {}  # gone already


@pytest.mark.kernel
async def test_what_somebody_did_to_the_device_is_seen_and_mended(world: World) -> None:
    if world.ns is None:
        return  # nobody meddles with the fake
    index = await world.device()
    stray = FdbEntry(index, "66:00:00:00:00:0a", ip_address("192.0.2.10"))
    second = FdbEntry(index, "00:00:00:00:00:00", ip_address("192.0.2.11"))
    learnt = FdbEntry(index, "66:00:00:00:00:0c", ip_address("192.0.2.12"), permanent=False)
    neighbour = Neighbour(ip_address("10.66.7.7"), index, "66:00:00:00:00:07")
    resolved = Neighbour(ip_address("10.66.7.8"), index, "66:00:00:00:00:08", permanent=False)
    world.meddle(*(fdb_request(entry) for entry in (stray, learnt)), neighbour_request(neighbour))
    for remote in ("192.0.2.11", "192.0.2.99"):
        world.ns.run("bridge", "fdb", "append", second.mac, "dev", V4, "dst", remote, "self", "permanent")
    world.ns.run("ip", "neigh", "add", str(resolved.address), "lladdr", resolved.mac, "dev", V4, "nud", "stale")
    also = replace(second, remote=ip_address("192.0.2.99"))
    assert await world.fdb.read() == {entry: entry for entry in (stray, second, also)}
    assert await world.neighbours.read() == {neighbour_key(neighbour): neighbour}
    wanted = replace(stray, remote=ip_address("192.0.2.55"))
    assert await world.fdb.apply(Diff({wanted: wanted}, {stray, second, also})) == {}
    assert await world.fdb.read() == {wanted: wanted}
    world.ns.run("ip", "link", "del", V4)
    assert await world.tunnels.read() == {}
    world.ns.run("ip", "link", "add", V4, "type", "bridge")
    assert await world.tunnels.apply(Diff({V4: world.v4()}, set())) == {}
    assert await world.tunnels.read() == {V4: world.v4()}
    with in_netns(world.ns.path):
        control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with closing(control), NetlinkSocket(NETLINK_ROUTE, world.ns.path) as netlink:
        assert get_tunnel(netlink, control, "eth0") is not None
        assert get_tunnel(netlink, control, "nothing") is None
