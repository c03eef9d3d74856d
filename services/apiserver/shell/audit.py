"""Audit events to the bus, by a bounded buffer: a request never waits for it, and a bus that is away costs the oldest
events, which are counted.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from libs.bus import subjects
from libs.bus.api import Bus, BusError
from services.apiserver.core.status import JsonObject

log = logging.getLogger(__name__)
BUFFERED = 10_000


class Sink(Protocol):
    def write(self, event: JsonObject) -> None: ...


class BusAudit:
    """lost: called for each event that nobody will see."""

    def __init__(self, bus: Bus, instance: str, lost: Callable[[], None], *, buffered: int = BUFFERED) -> None:
        self._bus, self._subject, self._lost, self._size = bus, subjects.audit(instance), lost, buffered
        self._waiting: deque[bytes] = deque()
        bus.on_reconnect.append(self.flush)

    def write(self, event: JsonObject) -> None:
        self._waiting.append(msgspec.json.encode(event))
        while len(self._waiting) > self._size:
            self._waiting.popleft()
            self._lost()
        self.flush()

    def flush(self) -> None:
        while self._waiting and self._bus.connected:
            data = self._waiting.popleft()
            try:
                self._bus.publish(self._subject, data)
            except BusError as error:
                self._lost()
                log.warning("audit event lost", extra={"error": str(error), "bytes": len(data)})

    def __len__(self) -> int:
        return len(self._waiting)
