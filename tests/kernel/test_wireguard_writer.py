"""One family's WireGuard in a real kernel: device, peers, routes, rule, addresses."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from libs.netlink.monitor import ROUTES, RULES, Changed, Event, Monitor
from libs.netlink.netns import in_netns
from libs.netlink.routes import Route
from libs.netlink.rules import RuleInto
from services.felix.drivers import wireguard_writer
from services.felix.drivers.wireguard import WireguardError
from tests.kernel.wireguard_lab import (
    IN_KERNEL,
    MARK,
    MARKS,
    NETS,
    OTHER,
    PEER,
    THROW,
    UNREACHABLE,
    Stage,
    socket_gone,
)

pytestmark = MARKS


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
