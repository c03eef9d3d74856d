"""One family's WireGuard in a real kernel: routes, rule, addresses; the device is the kernel's too where it has
WireGuard, as felix chooses, else wireguard-go's.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from libs.feed.delta import Delta
from libs.netlink.monitor import ROUTES, RULES, Changed, Event, Lost, Monitor
from libs.netlink.netns import in_netns
from libs.netlink.routes import Route
from libs.netlink.rules import RuleInto
from libs.netlink.wireguard import WgChange, WgDevice, WgPeer, format_key, parse_key
from libs.netlink.wireguard_keys import clamp, public_key
from libs.policy.output import Block, NodeInfo
from libs.testkit.netns import call_in, can_make_namespaces, kernel_makes
from libs.testkit.netns import run as run_in
from libs.testkit.patience import patient
from libs.testkit.processes import Probe
from libs.testkit.reach import Flow, Verdict, check
from libs.testkit.sniff import Sniffer
from libs.testkit.topology import Namespace, remove
from services.felix.core.mtu import PATTERN
from services.felix.core.route_settings import RouteSettings
from services.felix.core.wireguard import FamilySettings, Wanted, Way, WireguardSettings
from services.felix.drivers import wireguard_writer
from services.felix.drivers.interfaces import InterfaceDriver
from services.felix.drivers.wireguard import Devices, FirstOf, KernelDevices, WireguardError
from services.felix.drivers.wireguard_userspace import UserspaceDevices
from services.felix.drivers.wireguard_writer import FamilyWriter
from services.felix.shell.wireguard import WireguardReconciler

IN_KERNEL = kernel_makes("wireguard")
pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not can_make_namespaces(), reason="needs root and network namespaces"),
    pytest.mark.skipif(
        not IN_KERNEL and (shutil.which("wireguard-go") is None or not Path("/dev/net/tun").exists()),
        reason="wireguard-go is not here",
    ),
]

MARK = 0x200000
PEER, OTHER = public_key(clamp(b"\1" * 32)), public_key(clamp(b"\2" * 32))
TUNNEL, THROW, UNREACHABLE = Way.TUNNEL, Way.THROW, Way.UNREACHABLE
NETS = {
    4: ("10.65.1.0/26", "10.65.2.0/26", "10.65.0.0/16", "10.65.1.1", "192.0.2.2"),
    6: ("fd00:65:1::/122", "fd00:65:2::/122", "fd00:65::/48", "fd00:65:1::1", "2001:db8::2"),
}


MAKER: type[KernelDevices] | type[UserspaceDevices] = KernelDevices if IN_KERNEL else UserspaceDevices


class Counting:
    """Devices; notes what is written to them, and what the routes were at that moment."""

    def __init__(self, routes: Callable[[], dict[str, str]]) -> None:
        self._devices: Devices = KernelDevices() if IN_KERNEL else UserspaceDevices("wireguard-go")
        self.kind = self._devices.kind
        self.create, self.read = self._devices.create, self._devices.read
        self.changes = 0
        self.puts: list[dict[str, str]] = []
        self.drops: list[dict[str, str]] = []
        self._routes = routes

    def change(self, name: str, change: WgChange) -> None:
        self.changes += bool(change)
        for peers, noted in ((change.put, self.puts), (change.drop, self.drops)):
            if peers:
                noted.append(self._routes())
        self._devices.change(name, change)


class Stage:
    def __init__(self, space: Namespace, version: int) -> None:
        self.space, self.version, self.table = space, version, 1
        self.name = f"wg{uuid.uuid4().hex[:10]}"
        self.devices = Counting(self.routes)
        self.restart()

    def restart(self) -> None:
        """Another process, which knows nothing."""
        self.writer = FamilyWriter(self.version, FirstOf(self.devices))

    def call(self, function: Callable[[], object]) -> object:
        return call_in(self.space, function)  # type: ignore[arg-type]

    def ensure(self) -> bytes:
        found = self.call(lambda: self.writer.ensure(self.name, make=True))
        assert isinstance(found, bytes)
        return found

    def apply(self, wanted: Wanted) -> object:
        return self.call(lambda: self.writer.apply(wanted, 1380))

    def wanted(self) -> Wanted:
        """Our own block thrown back, the peer's in the tunnel, the pool shut."""
        own, theirs, pool, address, endpoint = NETS[self.version]
        where = (ip_address(endpoint), 51820)
        return Wanted(
            interface=self.name, listen_port=51833, fwmark=MARK, priority=99,
            addresses=frozenset({ip_address(address)}),
            peers={PEER: WgPeer(PEER, where, frozenset({ip_network(theirs)}))},
            routes={ip_network(own): THROW, ip_network(theirs): TUNNEL, ip_network(pool): UNREACHABLE},
        )  # fmt: skip

    def run(self, *command: str) -> str:
        return run_in(self.space, command)  # type: ignore[arg-type]

    def routes(self) -> dict[str, str]:
        """Range → type of route, or device; of those that we could have made."""
        found = {}
        command = ("ip", f"-{self.version}", "route", "show", "table", str(self.table))
        for line in run_in(self.space, command, check=False).splitlines():  # type: ignore[arg-type]  # or no table yet
            words = line.split()
            if words[0] in ("throw", "unreachable"):
                found[words[1]] = words[0]
            else:
                found[words[0]] = words[words.index("dev") + 1]
        return found

    def rules(self) -> list[str]:
        shown = self.run("ip", f"-{self.version}", "rule").splitlines()
        return [line.replace("\t", " ").strip() for line in shown if line.strip().endswith(f"lookup {self.table}")]


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    space = Namespace(f"t-wgw-{uuid.uuid4().hex[:8]}")
    space.create()
    made = Stage(space, request.param)
    try:
        yield made
    finally:
        remove([space])
        Path(f"/var/run/wireguard/{made.name}.sock").unlink(missing_ok=True)


@pytest.mark.stock_kernel
def test_device_peers_routes_and_rule_are_as_wanted_and_a_restart_writes_nothing(stage: Stage) -> None:
    key = stage.ensure()
    assert stage.apply(stage.wanted()) == {}
    assert stage.devices.puts[0] == {}  # before anything led to it
    own, theirs, pool, address, _ = NETS[stage.version]
    assert stage.routes() == {own: "throw", theirs: stage.name, pool: "unreachable"}
    assert stage.rules() == ["99: not from all fwmark 0x200000/0x200000 lookup 1"]
    shown = stage.run("ip", "addr", "show", "dev", stage.name)
    assert f"{address}/{32 if stage.version == 4 else 128} " in shown
    assert "mtu 1380 " in shown
    assert ",UP" in shown
    device = stage.devices.read(stage.name)
    assert (device.listen_port, device.fwmark, set(device.peers)) == (51833, MARK, {PEER})

    before = stage.devices.changes
    stage.restart()
    assert stage.ensure() == key
    assert stage.apply(stage.wanted()) == {}
    assert stage.devices.changes == before


def test_what_others_broke_is_mended_and_what_is_theirs_stays(stage: Stage) -> None:
    stage.ensure()
    stage.apply(stage.wanted())
    own, theirs, pool, address, _ = NETS[stage.version]
    family, length = f"-{stage.version}", 32 if stage.version == 4 else 128
    alien = "10.99.0.0/24" if stage.version == 4 else "fd99::/64"
    stage.run("ip", family, "route", "del", theirs, "table", "1")
    stage.run("ip", family, "route", "add", "throw", alien, "table", "1", "proto", "80")  # an older one of ours
    stage.run("ip", family, "route", "add", "blackhole", alien, "metric", "7", "table", "1")  # somebody's
    stage.run("ip", family, "rule", "add", "not", "fwmark", "0x4/0x4", "lookup", "1", "priority", "98")  # ours, older
    stage.run("ip", family, "rule", "add", "fwmark", "0x1", "lookup", "1", "priority", "500")
    stage.run("ip", family, "rule", "add", "from", alien, "lookup", "7", "priority", "501")
    stage.run("ip", family, "rule", "del", "priority", "99")
    stage.run("ip", family, "addr", "del", f"{address}/{length}", "dev", stage.name)
    stage.run("ip", family, "addr", "add", "10.99.0.1/32" if stage.version == 4 else "fd99::1/128", "dev", stage.name)
    stage.run("ip", "link", "set", stage.name, "mtu", "1300")
    assert stage.apply(stage.wanted()) == {}
    assert stage.rules() == ["99: not from all fwmark 0x200000/0x200000 lookup 1", "500: from all fwmark 0x1 lookup 1"]
    assert "lookup 7" in stage.run("ip", family, "rule")
    shown = stage.run("ip", "addr", "show", "dev", stage.name)
    assert f"{address}/{length} " in shown
    assert "10.99.0.1" not in shown
    assert "fd99::1" not in shown
    assert "mtu 1380 " in shown
    table = stage.run("ip", family, "route", "show", "table", "1")
    assert f"blackhole {alien}" in table
    assert f"throw {alien}" not in table
    assert f"unreachable {pool}" in table
    assert f"throw {own}" in table
    assert f"{theirs} dev {stage.name}" in table


@pytest.mark.parametrize("restart", [False, True])
def test_another_table_is_filled_before_the_former_is_left(stage: Stage, restart: bool) -> None:
    """No packet meets a moment without one of them, and after a restart the former is known again."""
    stage.ensure()
    wanted = stage.wanted()
    family = f"-{stage.version}"
    alien = "10.99.0.0/24" if stage.version == 4 else "fd99::/64"
    stage.apply(wanted)
    stage.run("ip", family, "route", "add", "blackhole", alien, "table", "1")  # somebody's, as is the other's rule
    stage.run("ip", family, "rule", "add", "not", "fwmark", "0x4/0x4", "lookup", "77", "priority", "90")
    if restart:
        stage.restart()
        assert stage.call(stage.writer.used) == stage.name
    own, theirs, pool, _, _ = NETS[stage.version]
    for table in (1000, 5):
        with changes(stage, routes_gone=3) as seen:
            assert stage.apply(replace(wanted, table=table)) == {}
        assert stage.run("ip", family, "route", "show", "table", "1").split()[:2] == ["blackhole", alien]
        shown = stage.run("ip", family, "route", "show", "table", str(table))
        assert f"{theirs} dev {stage.name}" in shown
        assert f"throw {own}" in shown
        assert f"unreachable {pool}" in shown
        rules = [line.split(":")[0] + " " + line.split()[-1] for line in stage.run("ip", family, "rule").splitlines()]
        assert [rule for rule in rules if not rule.endswith(("local", "main", "default"))] == ["90 77", f"99 {table}"]
        first_gone = next(place for place, (gone, _, _) in enumerate(seen) if gone)
        assert all(gone for gone, _, _ in seen[first_gone:]), "nothing new comes after something has gone"
        kinds = [kind for _, kind, _ in seen]
        assert kinds[first_gone - 1 : first_gone + 1] == ["rule", "rule"], "the new one just before the old one goes"
        assert {one for gone, _, one in seen if not gone} == {table}
    stage.call(lambda: stage.writer.remove(stage.name))
    assert "lookup 5" not in stage.run("ip", family, "rule")
    assert stage.run("ip", family, "route", "show", "table", "all", "proto", "80") == ""


@contextmanager
def changes(stage: Stage, routes_gone: int) -> Iterator[list[tuple[bool, str, int]]]:
    """What happens to rules and to routes of felix meanwhile, in order: gone, which of the two, table."""
    seen: list[tuple[bool, str, int]] = []

    def note(event: Event) -> None:
        assert isinstance(event, Changed)
        match event.object:
            case RuleInto() as rule:
                seen.append((event.gone, "rule", rule.table))
            case Route(protocol=80) as route:
                seen.append((event.gone, "route", route.table))

    monitor = Monitor(note, (*ROUTES, *RULES), stage.space.path)  # hears of what happens from now on
    yield seen

    async def listen() -> None:
        monitor.start()
        try:
            deadline = time.monotonic() + 10
            while sum(gone and kind == "route" for gone, kind, _ in seen) < routes_gone:
                assert time.monotonic() < deadline, seen
                await asyncio.sleep(0.01)
        finally:
            monitor.stop()

    asyncio.run(listen())


@pytest.mark.stock_kernel
def test_a_device_that_somebody_removed_comes_back_with_another_key(stage: Stage) -> None:
    key = stage.ensure()
    stage.apply(stage.wanted())
    stage.run("ip", "link", "del", stage.name)
    # Meanwhile nothing that should be in the tunnel leaves in clear text.
    assert stage.apply(stage.wanted()) == {}
    assert stage.routes()[NETS[stage.version][1]] == "unreachable"
    socket_gone(stage)
    assert stage.ensure() != key
    stage.apply(stage.wanted())
    assert stage.routes()[NETS[stage.version][1]] == stage.name


def socket_gone(stage: Stage) -> None:
    """wireguard-go ends when it sees that its device has gone; only then can there be another of that name."""
    deadline = time.monotonic() + 20
    while Path(f"/var/run/wireguard/{stage.name}.sock").exists():
        assert time.monotonic() < deadline, "wireguard-go does not end"
        time.sleep(0.01)


@pytest.mark.stock_kernel
def test_peers_change_hands_and_leave(stage: Stage) -> None:
    stage.ensure()
    wanted = stage.wanted()
    stage.apply(wanted)
    network = ip_network(NETS[stage.version][1])
    moved = replace(wanted.peers[PEER], public_key=OTHER)
    stage.apply(replace(wanted, peers={OTHER: moved}))
    assert stage.devices.read(stage.name).peers == {OTHER: moved}
    stage.devices.drops.clear()
    stage.apply(replace(wanted, peers={}, routes={network: THROW}))
    assert stage.devices.drops == [{NETS[stage.version][1]: "throw"}]  # only when nothing leads to it any more
    assert stage.devices.read(stage.name).peers == {}
    assert stage.routes() == {NETS[stage.version][1]: "throw"}


@pytest.mark.stock_kernel
def test_without_routes_there_is_no_rule_and_removal_leaves_nothing(stage: Stage) -> None:
    stage.ensure()
    stage.apply(stage.wanted())
    stage.apply(replace(stage.wanted(), routes={}))
    assert stage.rules() == []
    assert stage.routes() == {}
    stage.apply(stage.wanted())
    stage.restart()
    stage.call(lambda: stage.writer.remove(stage.name))
    assert stage.rules() == []
    assert stage.name not in stage.run("ip", "link")
    assert stage.call(lambda: stage.writer.ensure(stage.name, make=False)) is None


def test_a_link_of_another_kind_that_has_our_name_is_reported_and_stays(stage: Stage) -> None:
    stage.run("ip", "link", "add", stage.name, "type", "bridge")
    with pytest.raises(WireguardError, match="is no WireGuard device but bridge"):
        stage.ensure()
    stage.call(lambda: stage.writer.remove(stage.name))
    assert stage.name in stage.run("ip", "link")


def test_another_priority_or_mark_replaces_the_rule(stage: Stage) -> None:
    stage.ensure()
    stage.apply(stage.wanted())
    stage.apply(replace(stage.wanted(), priority=55, fwmark=0x400))
    assert stage.rules() == ["55: not from all fwmark 0x400/0x400 lookup 1"]
    assert stage.devices.read(stage.name).fwmark == 0x400


def test_routes_that_shut_are_written_where_no_device_can_be(stage: Stage) -> None:
    wanted = replace(stage.wanted(), peers={}, routes={ip_network(NETS[stage.version][2]): UNREACHABLE})
    assert stage.apply(wanted) == {}
    assert stage.routes() == {NETS[stage.version][2]: "unreachable"}
    assert len(stage.rules()) == 1


@pytest.mark.stock_kernel
def test_a_port_that_is_taken_is_reported_and_nothing_leaves_in_clear_text(stage: Stage) -> None:
    stage.ensure()
    family = socket.AF_INET if stage.version == 4 else socket.AF_INET6
    with in_netns(stage.space.path):
        other = socket.socket(family, socket.SOCK_DGRAM)
    with other:
        other.bind(("", 51833))
        failures = stage.apply(stage.wanted())
        assert isinstance(failures, dict)
        assert "Address already in use" in failures[f"WireGuard {stage.name}"]
        # The device is down, so no route can lead to it; the range is shut instead.
        assert stage.routes()[NETS[stage.version][1]] == "unreachable"
    assert stage.apply(stage.wanted()) == {}
    assert stage.devices.read(stage.name).listen_port == 51833
    assert stage.routes()[NETS[stage.version][1]] == stage.name


def test_threads_that_cannot_be_had_are_reported_and_stop_nothing(stage: Stage) -> None:
    """/sys shows the devices of another namespace here, so there is nothing to switch on."""
    stage.ensure()
    failures = stage.apply(replace(stage.wanted(), threading=True))
    assert isinstance(failures, dict)
    assert list(failures) == [f"WireGuard threads of {stage.name}"]
    assert stage.routes()[NETS[stage.version][1]] == stage.name


@pytest.mark.stock_kernel
@pytest.mark.skipif(not IN_KERNEL, reason="this kernel has no WireGuard")
def test_threads_are_switched_on(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.run("mount", "-t", "sysfs", "sysfs", str(tmp_path))
    try:
        monkeypatch.setattr(wireguard_writer, "NAPI_THREADS", tmp_path / "class/net")
        stage.ensure()
        assert stage.apply(replace(stage.wanted(), threading=True)) == {}
        assert (tmp_path / "class/net" / stage.name / "threaded").read_text() == "1\n"
    finally:
        stage.run("umount", str(tmp_path))


PORT = 51833
PODS = {4: ("10.65.1.5", "10.65.2.5"), 6: ("fd00:65:1::5", "fd00:65:2::5")}  # in the block of each


class Pair:
    """Two nodes on one link, each with a pod's address. Without WireGuard they reach each other in clear text."""

    def __init__(self, one: Stage, two: Stage) -> None:
        self.stages = one, two
        self.pods = PODS[one.version]
        self.blocks = NETS[one.version][:2]
        self._hosts = ("192.0.2.1", "192.0.2.2") if one.version == 4 else ("2001:db8::1", "2001:db8::2")
        one.run("ip", "link", "add", "e0", "type", "veth", "peer", "name", "e0", "netns", two.space.name)
        full, length, nodad = (32, 24, ()) if one.version == 4 else (128, 64, ("nodad",))
        for stage, host, pod in zip(self.stages, self._hosts, self.pods, strict=True):
            stage.run("ip", "addr", "add", f"{host}/{length}", "dev", "e0", *nodad)
            stage.run("ip", "addr", "add", f"{pod}/{full}", "dev", "lo", *nodad)
            stage.run("ip", "link", "set", "e0", "up")
        for stage, block, host in zip(self.stages, self.blocks[::-1], self._hosts[::-1], strict=True):
            stage.run("ip", f"-{stage.version}", "route", "add", block, "via", host)

    def wanted(self, number: int, key: bytes) -> Wanted:
        """What the one or the other wants of a peer with this key: its block in the tunnel, our own thrown back."""
        own, theirs = ip_network(self.blocks[number]), ip_network(self.blocks[1 - number])
        there = WgPeer(key, (ip_address(self._hosts[1 - number]), PORT), frozenset({theirs}))
        made = self.stages[number].wanted()
        return replace(made, addresses=frozenset(), peers={key: there}, routes={own: THROW, theirs: TUNNEL})

    def on(self) -> None:
        keys = [stage.ensure() for stage in self.stages]
        for number, stage in enumerate(self.stages):
            assert stage.apply(self.wanted(number, keys[1 - number])) == {}

    def passes(self) -> Verdict:
        one = self.stages[0]
        flow = Flow(one.space.path, ip_address(self.pods[1]), 8080, "tcp", ip_address(self.pods[0]))
        return check([flow], timeout_s=patient(1))[0]

    def seen(self) -> tuple[int, int]:
        """Packets on the link while the pods connect, until they can: (in clear text, encrypted)."""
        pods = {ip_address(pod) for pod in self.pods}
        deadline = time.monotonic() + 60
        with Sniffer(self.stages[0].space, "e0") as wire:
            while self.passes() is not Verdict.ALLOW:
                assert time.monotonic() < deadline, "no connection"
            packets = wire.packets()
        return sum(one.source in pods for one in packets), sum(one.target_port == PORT for one in packets)


@pytest.fixture
def pair(stage: Stage) -> Iterator[Pair]:
    space = Namespace(f"t-wgw-{uuid.uuid4().hex[:8]}")
    space.create()
    other = Stage(space, stage.version)
    probe = None
    try:
        made = Pair(stage, other)
        probe = Probe("two", space, (8080,), ())
        yield made
    finally:
        if probe is not None:
            probe.stop()
        remove([space])
        Path(f"/var/run/wireguard/{other.name}.sock").unlink(missing_ok=True)


@pytest.mark.stock_kernel
def test_a_new_peer_is_greeted_without_any_traffic(pair: Pair) -> None:
    """Each of two is told of the other, one after the other; the first attempt of the first meets nobody."""
    pair.on()
    deadline = time.monotonic() + 60
    for stage in pair.stages:
        (key,) = stage.devices.read(stage.name).peers
        while not stage.devices.read(stage.name).stats[key].handshake_s:
            assert time.monotonic() < deadline, "no handshake"
            time.sleep(0.02)
        assert stage.devices.read(stage.name).peers[key].keepalive_s == 0


@pytest.mark.stock_kernel
def test_packets_are_encrypted_while_it_is_on_and_after_another_key_and_not_once_it_is_off(pair: Pair) -> None:
    one, two = pair.stages

    def encrypted() -> None:
        in_clear, hidden = pair.seen()
        assert hidden
        assert not in_clear

    in_clear, hidden = pair.seen()
    assert in_clear
    assert not hidden
    pair.on()
    encrypted()
    before = two.devices.read(two.name).public_key
    two.run("ip", "link", "del", two.name)
    socket_gone(two)
    after = two.ensure()
    assert after != before
    assert two.apply(pair.wanted(1, one.ensure())) == {}
    assert pair.passes() is not Verdict.ALLOW, "who has the old key alone is not understood, and sends no clear text"
    pair.on()
    assert set(one.devices.read(one.name).peers) == {after}
    encrypted()
    for stage in pair.stages:
        stage.call(lambda stage=stage: stage.writer.remove(stage.name))  # type: ignore[misc]
    in_clear, hidden = pair.seen()
    assert in_clear
    assert not hidden
    for stage in pair.stages:
        socket_gone(stage)
    pair.on()
    encrypted()


def info(version: int, number: int, key: bytes | None) -> NodeInfo:
    told = format_key(key) if key else ""
    return NodeInfo(
        ipv4=f"192.0.2.{number}/24", ipv6=f"2001:db8::{number}/64", wireguard_key=told if version == 4 else "",
        wireguard_key6="" if version == 4 else told,
    )  # fmt: skip


class Node1:
    """A reconciler and the keys that it tells; node2 has one."""

    def __init__(self, stage: Stage) -> None:
        self.told: list[dict[int, str]] = []
        self.version = stage.version
        self.made = WireguardReconciler("node1", "wireguard-go", lambda: 1500, on_keys=self.told.append)
        family = FamilySettings(enabled=True, interface=stage.name, port=51833)
        on = WireguardSettings(v4=family) if stage.version == 4 else WireguardSettings(v6=family)
        self.made.configure(on, 0xFFFF0000)
        own, theirs, *_ = NETS[stage.version]
        blocks: dict[str, Block | None] = {own: Block(cidr=own, node="node1"), theirs: Block(cidr=theirs, node="node2")}
        self.made.fold(Delta(blocks=blocks, nodes={"node2": info(stage.version, 2, PEER)}))
        self.hear("")

    def hear(self, key: str) -> None:
        """Our own Node says this key."""
        self.made.fold(Delta(nodes={"node1": info(self.version, 1, parse_key(key) if key else None)}))

    async def agreed(self) -> str:
        """The key, told and heard; routes lead into the tunnel."""
        assert await self.made.step() == {}
        key = self.made.keys[self.version]
        self.hear(key)
        assert await self.made.step() == {}
        return key


def play(stage: Stage, story: Callable[[Node1], Coroutine[None, None, None]]) -> None:
    async def run() -> None:
        node1 = Node1(stage)
        try:
            await story(node1)
        finally:
            await node1.made.close()

    stage.call(lambda: asyncio.run(run()))


@pytest.mark.parametrize("restarted", [False, True])
def test_a_device_that_cannot_be_read_once_changes_nothing(
    stage: Stage, restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(node1: Node1) -> None:
        key, shown = await node1.agreed(), stage.routes()
        if restarted:
            await node1.made.close()
            node1.__init__(stage)  # type: ignore[misc]
            node1.hear(key)
        node1.told.clear()
        node1.made.resync()

        def fail(devices: Devices, name: str) -> WgDevice:
            raise WireguardError("no answer")

        with monkeypatch.context() as patch:
            patch.setattr(MAKER, "read", fail)
            assert await node1.made.step() == {
                f"WireGuard IPv{stage.version}": "not compared with the kernel: no answer"
            }
        assert stage.routes() == shown
        assert len(stage.rules()) == 1
        assert await node1.made.step() == {}, "it is tried again without another reason"
        assert [told for told in node1.told if told] == []

    play(stage, story)


def test_after_a_restart_no_familys_key_is_taken_back_before_its_device_was_read(stage: Stage) -> None:
    async def story(node1: Node1) -> None:
        node1.hear(await node1.agreed())
        key = node1.made.keys[stage.version]
        await node1.made.close()
        node1.__init__(stage)  # type: ignore[misc]
        node1.hear(key)
        assert await node1.made.step() == {}
        assert [told for told in node1.told if told] == []

    play(stage, story)


@pytest.mark.parametrize("enabled", [True, False])
def test_after_a_restart_with_another_name_the_old_device_goes(stage: Stage, enabled: bool) -> None:
    async def story(node1: Node1) -> None:
        key = await node1.agreed()
        await node1.made.close()
        stage.name = f"wg{uuid.uuid4().hex[:10]}"
        node1.__init__(stage)  # type: ignore[misc]
        node1.hear(key)
        if not enabled:
            node1.made.configure(WireguardSettings(), 0xFFFF0000)
        async with asyncio.timeout(20):
            while await node1.made.step():  # noqa: ASYNC110  # the old one's process may still have the port
                await asyncio.sleep(0.01)
        links = stage.run("ip", "link")
        assert old not in links
        assert (stage.name in links) == enabled
        assert (node1.made.keys[stage.version] not in ("", key)) == enabled
        assert stage.routes() == {}

    old = stage.name
    try:
        play(stage, story)
    finally:
        Path(f"/var/run/wireguard/{old}.sock").unlink(missing_ok=True)


@pytest.mark.parametrize("table", [1, 1000])
def test_what_others_take_away_is_mended_when_the_kernel_says_so(stage: Stage, table: int) -> None:
    """Also once the settings name another table."""

    async def story(node1: Node1) -> None:
        await node1.agreed()
        stage.table = table
        node1.made.configure(replace(node1.made.settings, table=table), 0xFFFF0000)
        assert await node1.made.step() == {}
        rules, routes, family = stage.rules(), stage.routes(), f"-{stage.version}"
        driver = InterfaceDriver(("cali",))
        driver.configure(PATTERN, False, RouteSettings(), table)
        assert routes
        watching = asyncio.ensure_future(driver.watch(node1.made.interfaces_changed, lambda: None, node1.made.resync))
        try:
            await asyncio.sleep(0)
            driver.underlay_mtu_bytes()  # so that links are known
            for command in (
                ("link", "set", stage.name, "down"),
                (family, "rule", "del", "priority", "99"),
                (family, "route", "del", NETS[stage.version][1], "table", str(table)),
                (family, "route", "flush", "table", str(table)),
            ):
                stage.run("ip", *command)
                async with asyncio.timeout(10):
                    while (stage.rules(), stage.routes()) != (rules, routes):
                        await asyncio.sleep(0.01)
                        assert await node1.made.step() == {}, command
            async with asyncio.timeout(10):  # what we did ourselves is looked at, and comes to rest
                before = -1
                while before != node1.made.comparisons:
                    before = node1.made.comparisons
                    await asyncio.sleep(0.1)
                    await node1.made.step()
            driver._event(Lost())
            await node1.made.step()
            assert node1.made.comparisons > before
        finally:
            watching.cancel()
            await driver.close()

    play(stage, story)


def test_a_key_is_told_when_the_device_can_hear(stage: Stage) -> None:
    async def story(node1: Node1) -> None:
        with in_netns(stage.space.path):
            other = socket.socket(socket.AF_INET if stage.version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        with other:
            other.bind(("", 51833))
            assert "Address already in use" in (await node1.made.step())[f"WireGuard {stage.name}"]
            assert node1.made.keys[stage.version] == ""
        key = await node1.agreed()
        assert {stage.version: key} in node1.told
        assert stage.routes()[NETS[stage.version][1]] == stage.name

    play(stage, story)


@pytest.mark.stock_kernel
def test_the_reconciler_compares_when_there_is_a_reason_and_not_with_every_pod(stage: Stage) -> None:
    """A key, then routes once it is told, then nothing until the device is taken away."""
    own, theirs, *_ = NETS[stage.version]

    async def story(node1: Node1) -> None:
        made, version = node1.made, stage.version
        assert await made.step() == {}
        key = made.keys[version]
        assert node1.told[-1] == {version: key}
        assert stage.routes() == {}
        node1.hear(key)
        assert await made.step() == {}
        assert stage.routes() == {own: "throw", theirs: stage.name}
        before = made.comparisons
        made.interfaces_changed()
        assert await made.step() == {}
        assert made.comparisons == before
        stage.run("ip", "link", "del", stage.name)
        await asyncio.to_thread(socket_gone, stage)
        made.interfaces_changed()
        assert await made.step() == {}
        assert made.comparisons == before + 1
        assert made.keys[version] not in ("", key)
        assert stage.routes() == {}  # nobody would understand us
        made.fold(Delta(nodes={"node2": info(version, 2, parse_key(made.keys[version]))}))
        assert set(await made.step()) == {f"WireGuard IPv{version} node node{n}" for n in (1, 2)}
        made.configure(WireguardSettings(), 0xFFFF0000)
        made.fold(Delta(nodes={"node1": info(version, 1, None), "node2": None}))
        assert await made.step() == {}
        assert stage.name not in stage.run("ip", "link")

    play(stage, story)
