"""Tells the bus each second that this replica is there, for `calicoctl status`. Nothing depends on it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from random import Random

from libs.bus import subjects, wire
from libs.bus.api import Bus, BusError
from libs.bus.apiserver import ApiserverBeat
from libs.model.storage import rfc3339
from libs.runtime import release
from libs.runtime.health import Aggregator
from libs.runtime.timers import every

log = logging.getLogger(__name__)

PERIOD_S = 1.0


class Heart:
    """revision: up to which the cache has followed etcd, once there is one."""

    def __init__(self, instance: str, health: Aggregator) -> None:
        self._instance, self._health = instance, health
        self._started = rfc3339(datetime.now(UTC))
        self.revision: Callable[[], int] = lambda: 0

    def beat(self) -> ApiserverBeat:
        bad = [f"{name}: {detail or word}" for name, word, detail in self._health.readiness().rows if word != "ok"]
        return ApiserverBeat(
            instance=self._instance,
            started=self._started,
            version=release.version(),
            rev=self.revision(),
            problem="; ".join(bad),
        )

    async def run(self, bus: Bus, random: Random) -> None:
        subject = subjects.apiserver_beat(self._instance)
        async for _ in every(PERIOD_S, random, at_once=True):
            if bus.connected:
                with suppress(BusError):
                    bus.publish(subject, wire.encode(self.beat()))
