"""What the probes hear of felix."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from prometheus_client import CollectorRegistry

from libs.bus.memory import MemoryBroker, MemoryBus
from libs.feed.runner import FeedRunner
from libs.runtime.health import Aggregator
from services.felix.core.fields import MAIN_LOOP
from services.felix.metrics import Metrics
from services.felix.shell.dataplane import Progress
from services.felix.shell.vitals import Vitals


@dataclass
class Plane:
    progress: Progress = field(default_factory=Progress)
    in_sync: bool = True
    passes: int = 1
    steps: int = 1
    passing: bool = False


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def word(health: Aggregator) -> str:
    return {name: word for name, word, _ in health.liveness().rows}[MAIN_LOOP]


def test_a_pass_that_hangs_is_found_by_the_watchdog_and_many_passes_are_not() -> None:
    clock, plane = Clock(), Plane()
    health = Aggregator(clock=clock)
    health.override_timeouts({MAIN_LOOP: 30.0})
    bus = MemoryBus(MemoryBroker(), "felix-n1")
    feed = FeedRunner(bus, "n1", lambda apply, parent: None, Random(1))
    vitals = Vitals(health, feed, plane, bus, Metrics(CollectorRegistry()))

    def run(seconds: int, *, ends: bool) -> None:
        for _ in range(seconds):
            clock.now += 1
            plane.steps += ends
            vitals.update()

    run(60, ends=False)
    assert word(health) == "ok", "idle"
    assert MAIN_LOOP in {row[0] for row in health.readiness().rows if row[1] == "ok"}
    plane.passing = True
    run(60, ends=True)
    assert word(health) == "ok", "busy: another step each time"
    run(30, ends=False)
    assert word(health) == "ok"
    run(1, ends=False)
    assert word(health) == "timed out"
    plane.passing = False
    run(1, ends=True)
    assert word(health) == "ok"
