"""The speaker's input, by typha or from disk: what cannot be put in force is reported, and never takes the place of
what can."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from libs.bus import subjects, wire
from libs.bus.api import BusUnavailable
from libs.bus.memory import MemoryBroker
from libs.feed.delta import Delta
from libs.feed.feed import Apply
from libs.policy.bgp_output import BgpPeer
from libs.policy.output import NodeInfo
from services.bgp.core.saved import Saved, decode, encode
from services.bgp.core.settings import SpeakerSettings
from services.bgp.core.tables import Tables
from services.bgp.shell.cluster import FILE, Cluster

NODE = "node1"
EPOCH = wire.Epoch("typha-1", 1, 1)


def tables(address: str) -> Tables:
    return Tables(nodes={NODE: NodeInfo(ipv4=address)})


GOOD, BETTER, BAD = tables("10.9.0.1/24"), tables("10.9.0.2/24"), tables("garbage")


class Side:
    """A speaker that notes its settings, and what typha is told. refused: the router ids it cannot run with."""

    def __init__(self, state_dir: Path) -> None:
        self.file = state_dir / FILE
        self.broker = MemoryBroker()
        self.bus = self.broker.connect("bgp")
        self.taken: list[str] = []
        self.refused: set[str] = set()
        self.reports: list[wire.Applied] = []
        self.cluster = Cluster(
            self.bus, NODE, router_id="", state_dir=state_dir, take=self.take, state=lambda _: None, random=Random(1)
        )
        typha = self.broker.connect("typha")
        typha.subscribe(
            subjects.applied(NODE, subjects.Role.BGP),
            lambda message: self.reports.append(wire.decoder(wire.Applied).decode(message.data)),
        )

    async def take(self, settings: SpeakerSettings) -> None:
        address = str(settings.addresses[0])
        if address in self.refused:
            raise RuntimeError(f"no {address} here")
        self.taken.append(address)

    def hear(self, now: Tables, rev: int, epoch: wire.Epoch = EPOCH) -> None:
        self.cluster._on_tables(now, Apply(Delta(), rev, rev, epoch), None)

    def typha(self, cluster: int) -> None:
        """One that answers who it is."""
        reply = wire.SnapshotReply(epoch=wire.Epoch("typha-1", 1, cluster), rev=1, etcd_age_s=0, head=1)
        bus = self.broker.connect("another typha")
        bus.subscribe(subjects.any_snapshot(NODE), lambda message: message.respond(wire.encode(reply)))

    async def failures(self, rev: int) -> dict[str, str]:
        await until(lambda: bool(self.reports) and self.reports[-1].rev == rev)
        return self.reports[-1].failures

    def saved(self) -> tuple[int, Tables] | None:
        if not self.file.exists():
            return None
        saved = decode(NODE, self.file.read_bytes())
        assert saved.cluster == EPOCH.cluster
        return saved.rev, saved.tables


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


@asynccontextmanager
async def running(state_dir: Path) -> AsyncIterator[Side]:
    side = Side(state_dir)
    task = asyncio.create_task(side.cluster.run())
    try:
        yield side
        assert not task.done(), "it goes on whatever it is told"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_saved_tables_without_sense_are_no_start(tmp_path: Path) -> None:
    """Else the service would end at every start, before it could hear of better ones."""
    side = Side(tmp_path)
    side.file.write_bytes(encode(Saved(node=NODE, rev=7, tables=BAD)))
    assert not await side.cluster.start_from_disk()
    assert (side.cluster.rev, side.taken) == (0, [])
    side.file.write_bytes(encode(Saved(node=NODE, rev=8, tables=GOOD)))
    side.refused.add("10.9.0.1")
    assert not await side.cluster.start_from_disk()
    side.refused.clear()
    assert await side.cluster.start_from_disk()
    assert (side.cluster.rev, side.taken) == (8, ["10.9.0.1"])


async def test_tables_without_sense_are_reported_and_not_saved(tmp_path: Path) -> None:
    async with running(tmp_path) as side:
        side.hear(GOOD, 1)
        assert await side.failures(1) == {}
        await until(lambda: side.saved() == (1, GOOD))
        side.hear(BAD, 2)
        assert "garbage" in (await side.failures(2))["speaker"]
        side.hear(BETTER, 3)
        assert await side.failures(3) == {}
        assert side.taken == ["10.9.0.1", "10.9.0.2"]
        await until(lambda: side.saved() == (3, BETTER))


async def test_settings_that_fail_half_way_are_replaced_by_the_last_good_ones(tmp_path: Path) -> None:
    """When they are told again, though nothing differs from what was in force before."""
    async with running(tmp_path) as side:
        side.hear(GOOD, 1)
        await side.failures(1)
        await until(lambda: side.saved() == (1, GOOD))
        side.refused.add("10.9.0.2")
        side.hear(BETTER, 2)
        assert "no 10.9.0.2 here" in (await side.failures(2))["speaker"]
        assert side.saved() == (1, GOOD)
        side.hear(GOOD, 3)
        assert await side.failures(3) == {}
        assert side.taken == ["10.9.0.1", "10.9.0.1"]


@pytest.mark.parametrize(
    ("saved", "here", "used"),
    [(7, 7, True), (7, 8, False), (7, None, True), (0, 8, True)],
    ids=["the same cluster", "another", "nobody tells", "saved by an older release"],
)
async def test_what_was_saved_of_another_cluster_is_not_used(
    tmp_path: Path,
    saved: int,
    here: int | None,
    used: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.bgp.shell.cluster.ANSWER_S", 30.0)
    side = Side(tmp_path)
    data = encode(Saved(node=NODE, rev=8, cluster=saved, tables=GOOD))
    side.file.write_bytes(data if saved else data.replace(b'"cluster":0,', b""))
    if here is not None:
        side.typha(here)
    assert await side.cluster.start_from_disk() is used
    assert side.taken == (["10.9.0.1"] if used else [])
    assert ("it is of another cluster" in caplog.text) is not used


async def test_a_bus_that_is_not_there_holds_up_a_start_for_a_moment_only(tmp_path: Path) -> None:
    side = Side(tmp_path)
    side.file.write_bytes(encode(Saved(node=NODE, rev=8, cluster=7, tables=GOOD)))
    waited: list[float] = []

    async def connected(timeout_s: float) -> None:
        waited.append(timeout_s)
        raise BusUnavailable("no NATS server reachable")

    side.cluster._connected = connected
    side.typha(8)
    assert await side.cluster.start_from_disk()
    assert waited == [1.0]


async def test_nothing_of_another_cluster_is_held(tmp_path: Path) -> None:
    """Started from disk without typha, or moved while it ran."""
    peer, broken = BgpPeer(address="192.0.2.1", as_number=64512), BgpPeer(problem="means nothing")
    good, now = tables("10.9.0.1/24"), tables("10.9.0.2/24")
    good.bgp["peer/p"], now.bgp["peer/p"] = peer, broken
    for cluster, held in ((7, True), (8, False)):
        directory = tmp_path / str(cluster)
        directory.mkdir()
        async with running(directory) as side:
            side.file.write_bytes(encode(Saved(node=NODE, rev=8, cluster=7, tables=good)))
            assert await side.cluster.start_from_disk()
            side.hear(now, 9, wire.Epoch("typha-1", 1, cluster))
            failures = await side.failures(9)
            assert ("the version before stays in effect" in failures["BGPPeer(p)"]) is held
            await until(lambda side=side: decode(NODE, side.file.read_bytes()).rev == 9)
            assert decode(NODE, side.file.read_bytes()).cluster == cluster


async def test_nothing_of_another_cluster_comes_back_after_a_failure(tmp_path: Path) -> None:
    """The first that came of the new one could not be put in force."""
    good, broken = tables("10.9.0.1/24"), tables("10.9.0.3/24")
    good.bgp["peer/p"], broken.bgp["peer/p"] = (
        BgpPeer(address="192.0.2.1", as_number=64512),
        BgpPeer(problem="means nothing"),
    )
    async with running(tmp_path) as side:
        side.hear(good, 1, wire.Epoch("typha-1", 1, 7))
        await side.failures(1)
        side.refused.add("10.9.0.2")
        side.hear(BETTER, 2, wire.Epoch("typha-1", 1, 8))
        assert "no 10.9.0.2 here" in (await side.failures(2))["speaker"]
        side.hear(broken, 3, wire.Epoch("typha-1", 1, 8))
        assert "stays in effect" not in (await side.failures(3))["BGPPeer(p)"]


async def test_an_older_file_gets_its_cluster_though_nothing_else_changes(tmp_path: Path) -> None:
    async with running(tmp_path) as side:
        side.file.write_bytes(encode(Saved(node=NODE, rev=8, tables=GOOD)))
        assert await side.cluster.start_from_disk()
        side.hear(GOOD, 9)
        assert await side.failures(9) == {}
        await until(lambda: decode(NODE, side.file.read_bytes()).cluster == EPOCH.cluster)
        assert side.taken == ["10.9.0.1"]
