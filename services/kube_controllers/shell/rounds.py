"""Calls a controller's round whenever it is due: one at a time, bursts of changes together, failures with backoff."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from random import Random

from libs.resources.errors import ResourceError
from libs.runtime.backoff import Backoff
from libs.runtime.health import Reporter
from libs.store.api import FenceLost, StoreError
from services.kube_controllers.core.controller import Round
from services.kube_controllers.metrics import Metrics

log = logging.getLogger(__name__)

SETTLE_S = 0.02  # changes that come together are looked at together
_SHOWN = 5  # failures that the log names


class Rounds:
    def __init__(
        self, name: str, work: Callable[[], Awaitable[Round]], metrics: Metrics, health: Reporter, random: Random
    ) -> None:
        self.name = name
        self._work = work
        self._metrics = metrics
        self._health = health
        self._backoff = Backoff(random, first_s=0.1, cap_s=30.0)
        self._due = asyncio.Event()
        self._again_s: float | None = None

    def poke(self) -> None:
        """Something changed: a round is due, also when one is being made or a failed one waits for its turn."""
        self._due.set()

    async def run(self) -> None:
        """For ever. Raises FenceLost."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._again_s):
                    await self._due.wait()
            await asyncio.sleep(SETTLE_S)
            self._due.clear()
            failures = await self._round()
            self._metrics.rounds.labels(self.name).inc()
            if not failures:
                self._backoff.reset()
                continue
            self._metrics.failures.labels(self.name).inc()
            retry_s = self._backoff.next_s()
            shown = "; ".join(failures[:_SHOWN]) + (f"; and {len(failures) - _SHOWN} more" if failures[_SHOWN:] else "")
            self._health.report(detail=f"failed: {shown}")  # ready all the same: another replica would fail too
            log.warning(
                "not all could be done, trying again",
                extra={
                    "controller": self.name,
                    "failures": len(failures),
                    "errors": shown,
                    "retry_s": retry_s,
                },
            )
            try:
                async with asyncio.timeout(retry_s):
                    await self._due.wait()
            except TimeoutError:
                self._due.set()

    async def _round(self) -> list[str]:
        """What failed."""
        try:
            made = await self._work()
        except FenceLost:
            raise
        except (StoreError, ResourceError) as error:
            return [str(error)]
        for operation, count in made.writes.items():
            self._metrics.writes.labels(self.name, operation).inc(count)
        if made.writes:
            log.info("written", extra={"controller": self.name, **made.writes, "state": made.detail})
        self._health.report(detail=made.detail)
        self._again_s = made.again_s
        return [f"{what}: {why}" for what, why in made.failures.items()]
