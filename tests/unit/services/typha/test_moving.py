"""Typha's shell that moves readers, over the bus's fake: a stop with and without other typhas."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from libs.bus import subjects, wire
from libs.bus.memory import MemoryBroker
from libs.bus.subjects import Role
from services.typha.core import balance
from services.typha.metrics import Metrics
from services.typha.shell.moving import Mover
from tests.unit.services.typha.samples import EPOCH, Writer, endpoint

OTHER = wire.Epoch("t2", 2, 7)
pytestmark = pytest.mark.virtual_time


class Typha:
    """Readers are nodes n0, n1, …; `follows` lets them move as soon as they are asked to."""

    def __init__(self, readers: int, *, even: bool = True, clock: Callable[[], float] | None = None) -> None:
        self.writer = Writer(endpoint("n0", "p1", "web", 1))
        self.broker = MemoryBroker()
        self.own, self.other = self.broker.connect("typha"), self.broker.connect("other")
        self.registry = CollectorRegistry()
        self.publisher = self.writer.publisher
        self.clock = clock or asyncio.get_running_loop().time
        self.mover = Mover(self.own, self.publisher, self.send, Metrics(self.registry), even=even, clock=self.clock)
        self.mover.start()
        self.sent: list[tuple[str, str]] = []
        self.follows = True
        self.together = self.most_together = 0
        for number in range(readers):
            self.publisher.snapshot(f"n{number}", 0.0)
            self.report(f"n{number}", EPOCH)

    def report(self, node: str, epoch: wire.Epoch) -> None:
        report = wire.Applied(node=node, epoch=epoch, rev=1, seq=0)
        self.publisher.applied(report, self.clock(), Role.FELIX)
        self.mover.heard(Role.FELIX, report)

    def send(self, out: list[tuple[str, bytes]]) -> None:
        for subject, data in out:
            mark = wire.decoder(wire.NodeMessage).decode(data)
            node = subjects.stream_of(subject).removeprefix("node.")
            self.sent.append((node, mark.follow))
            self.together += 1
            self.most_together = max(self.most_together, self.together)
            if self.follows:
                asyncio.get_running_loop().call_later(0.01, self.arrived, node)

    def arrived(self, node: str) -> None:
        self.together -= 1
        self.report(node, OTHER)

    async def beat(self, **fields: Any) -> None:
        beat = wire.Beat(epoch=OTHER, rev=1, etcd_age_s=0.1, head=1, **fields)
        self.other.publish(subjects.beat("t2"), wire.encode(beat))
        await self.other.barrier()
        await asyncio.sleep(0)

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[None]:
        """The other typha is there all the time."""

        async def beat_on() -> None:
            while True:
                await asyncio.sleep(0.5)
                await self.beat()

        await self.beat()
        task = asyncio.create_task(beat_on())
        try:
            yield
        finally:
            task.cancel()

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


async def test_the_only_typha_ends_at_once_and_its_readers_are_asked_nothing() -> None:
    typha = Typha(5)
    await typha.mover.hand_over(30.0)
    assert typha.sent == []
    assert asyncio.get_running_loop().time() == 0.0


@pytest.mark.parametrize("fields", [{"leaving": True}, {"protocol": 2}], ids=str)
async def test_typha_ends_at_once_when_the_others_can_take_nobody(fields: dict[str, Any]) -> None:
    typha = Typha(5)
    await typha.beat(**fields)
    await typha.mover.hand_over(30.0)
    assert typha.sent == []
    assert asyncio.get_running_loop().time() == 0.0


async def test_a_beat_that_is_not_understood_is_no_typha_and_does_no_harm() -> None:
    typha = Typha(1)
    typha.other.publish(subjects.beat("t2"), b'{"epoch":5}')
    await typha.other.barrier()
    await typha.mover.hand_over(30.0)
    assert typha.sent == []


async def test_all_readers_are_handed_over_one_after_the_other_before_the_end() -> None:
    typha = Typha(12)
    async with typha.beating():
        await typha.mover.hand_over(4.0)  # asked within 2.4 s, and there are 3.2
    assert sorted(typha.sent) == sorted((f"n{number}", "t2") for number in range(12))
    assert typha.publisher.readers == {}
    assert typha.most_together <= 3
    assert typha.value("typha_readers_moved_total", reason="shutdown") == 12


async def test_readers_that_do_not_move_hold_up_the_end_no_longer_than_the_grace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(balance, "ASKED_AGAIN_S", 0.1)
    typha = Typha(3)
    typha.follows = False
    async with typha.beating(), asyncio.timeout(20):
        await typha.mover.hand_over(600.0)
    assert Counter(typha.sent) == {(f"n{number}", "t2"): balance.ASKED_AT_MOST for number in range(3)}
    monkeypatch.setattr(balance, "ASKED_AGAIN_S", 60.0)
    other = Typha(3)
    other.follows = False
    await other.beat()
    async with asyncio.timeout(20):  # it would wait for a minute
        await other.mover.hand_over(0.3)


async def test_readers_that_had_not_reported_yet_are_handed_over_once_they_do() -> None:
    typha = Typha(1)
    typha.publisher.snapshot("n7", 0.0)
    asyncio.get_running_loop().call_later(1.0, typha.report, "n7", EPOCH)
    async with typha.beating(), asyncio.timeout(20):
        await typha.mover.hand_over(30.0)
    assert typha.sent == [("n0", "t2"), ("n7", "t2")]
    assert typha.publisher.readers == {}


async def test_while_it_runs_readers_move_only_when_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "LISTEN_S", 0.0)
    monkeypatch.setattr(balance, "SETTLE_S", 0.0)
    for even in (True, False):
        typha = Typha(6, even=even, clock=lambda: 1000.0)
        await typha.beat()
        for _ in range(3):
            typha.mover.tick()
        assert typha.sent == ([("n0", "t2")] if even else [])
        assert typha.value("typha_readers", instance="t1") == (5 if even else 6)
        assert typha.value("typha_readers", instance="t2") == (1 if even else 0)
    typha.mover.leaving = True
    typha.mover.tick()
    assert typha.value("typha_readers_moved_total", reason="balance") == 0
