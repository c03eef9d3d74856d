"""What felix tells of its health: to the probes, of each part that may hang; to metrics, where it stands.

The dataplane's reporter falls silent while one step of a pass over the kernel does not end, so that its timeout
(DataplaneWatchdogTimeout) finds one that hangs. Steps that end are good, however many there are.
"""

from __future__ import annotations

from typing import Protocol

from libs.feed.feed import Phase
from libs.feed.runner import FeedRunner
from libs.runtime.health import Aggregator
from services.felix.core.fields import MAIN_LOOP
from services.felix.metrics import Metrics
from services.felix.shell.dataplane import Progress

PHASES = {Phase.DISCOVERING: 1, Phase.SYNCING: 2, Phase.FOLLOWING: 3}


class Loop(Protocol):
    """The dataplane (services/felix/shell/dataplane.py), as far as it tells whether it goes on."""

    progress: Progress
    in_sync: bool
    passes: int
    steps: int
    passing: bool


class Connection(Protocol):
    @property
    def connected(self) -> bool: ...


class Vitals:
    def __init__(self, health: Aggregator, feed: FeedRunner, plane: Loop, bus: Connection, metrics: Metrics) -> None:
        self._feed, self._plane, self._bus, self._metrics = feed, plane, bus, metrics
        self._calculation = health.register("CalculationGraph", timeout_s=30.0)
        self._main_loop = health.register(MAIN_LOOP, timeout_s=90.0)
        self._bus_health = health.register("Bus", readiness=False)
        self._steps = 0  # when it was last looked

    def update(self) -> None:
        """Call more often than the shortest timeout."""
        self._look_at_dataplane()
        feed, connected, metrics = self._feed.feed, self._bus.connected, self._metrics
        detail = f"{feed.standing}, revision {feed.rev}" + (f", typha {feed.instance}" if feed.instance else "")
        self._calculation.report(ready=feed.in_sync, detail=detail)
        self._bus_health.report(ready=connected, detail="" if connected else "not connected")
        metrics.local_endpoints.set(len(feed.state.workloads))
        metrics.local_policies.set(len(feed.state.policies))
        metrics.ipsets.set(len(feed.state.sets))
        metrics.resync_state.set(PHASES[feed.phase])
        metrics.resyncs.set(feed.snapshots)
        metrics.revision.set(self._plane.progress.rev)
        metrics.feed_bytes.set(self._feed.received_bytes)
        metrics.feed_messages.set(self._feed.received_messages)

    def _look_at_dataplane(self) -> None:
        plane = self._plane
        hangs = plane.passing and plane.steps == self._steps
        self._steps = plane.steps
        if not hangs:
            detail = "; ".join(f"{name}: {reason}" for name, reason in list(plane.progress.failures.items())[:5])
            self._main_loop.report(ready=plane.in_sync and plane.passes > 0, detail=detail)
