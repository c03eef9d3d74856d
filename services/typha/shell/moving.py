"""Moves readers between typhas, as `core/balance.py` decides: one each second while it runs, all of them before it
ends.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from libs.bus import subjects, wire
from libs.bus.api import Bus, Msg
from libs.bus.subjects import Role
from services.typha.core.balance import PACE_S, Balance, Move, Party
from services.typha.core.publisher import Outgoing, Publisher
from services.typha.metrics import Metrics

log = logging.getLogger(__name__)

LOOK_S = 0.1
USED = 0.8  # of the time that a stop may take


class Mover:
    """Give it every report (`heard`), call `tick` each second, and `hand_over` before the end."""

    def __init__(
        self,
        bus: Bus,
        publisher: Publisher,
        send: Callable[[list[Outgoing]], None],
        metrics: Metrics,
        *,
        even: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.leaving = False
        self._bus, self._publisher, self._send, self._metrics = bus, publisher, send, metrics
        self._even, self._clock = even, clock
        self._balance = Balance(publisher.epoch.instance, clock())

    def start(self) -> None:
        self._bus.subscribe(subjects.ALL_BEATS, self._on_beat)

    def _on_beat(self, msg: Msg) -> None:
        try:
            beat = wire.decoder(wire.Beat).decode(msg.data)
        except msgspec.DecodeError as error:
            log.debug("beat not understood", extra={"subject": msg.subject, "error": str(error)})
        else:
            self._balance.beat(beat, self._clock())

    def heard(self, role: Role, report: wire.Applied) -> None:
        if report.epoch is not None:
            self._balance.report((role, report.node), report.epoch.instance, self._clock())

    def tick(self) -> None:
        now = self._clock()
        gauge = self._metrics.readers
        counts = self._balance.counts(now)
        gauge.clear()  # of typhas that are gone
        for instance in {self._publisher.epoch.instance, *self._balance.able(now), *counts}:
            gauge.labels(instance).set(counts.get(instance, 0))
        if self._even and not self.leaving and self._publisher.rev:
            move = self._balance.even_out(self._own(), now)
            if move is not None:
                self._move(move, "balance")

    async def hand_over(self, grace_s: float) -> None:
        """Returns when no reader is left that another typha could take, or most of the grace is used."""
        self.leaving = True
        started = self._clock()
        budget_s = grace_s * USED
        readers = self._own()
        pause_s = min(PACE_S, budget_s * USED / max(1, len(readers)))
        if readers and (able := self._balance.able(started)):
            log.info("handing readers over", extra={"readers": len(readers), "to": able})
        while readers and (now := self._clock()) < started + budget_s and self._balance.able(now):
            move = self._balance.hand_over(readers, now)
            if move is not None:
                self._move(move, "shutdown")
            elif not self._balance.pending(readers, now):
                break  # those that stay do not move
            await asyncio.sleep(pause_s if move is not None else LOOK_S)
            readers = self._own()
        if readers:
            log.warning("readers left, they look for another typha themselves", extra={"readers": len(readers)})

    def _own(self) -> list[Party]:
        return [(reader.role, node) for node, reader in self._publisher.all_readers()]

    def _move(self, move: Move, reason: str) -> None:
        role, node = move.party
        self._metrics.moves.labels(reason).inc()
        log.info("reader moves", extra={"node": node, "role": str(role), "to": move.target, "reason": reason})
        self._send(self._publisher.move(node, role, move.target))
