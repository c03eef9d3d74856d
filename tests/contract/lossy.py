"""A bus with holes, for readers that must not mind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from libs.bus.api import Bus, Msg


class Lossy:
    """A bus on which chosen messages to one subscriber are lost."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.lose: Callable[[Msg], bool] = lambda msg: False
        self.lost: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    def subscribe(self, subject: str, callback: Callable[[Msg], None], queue: str | None = None) -> Any:
        def deliver(msg: Msg) -> None:
            if self.lose(msg):
                self.lost.append(msg.subject)
            else:
                callback(msg)

        return self._bus.subscribe(subject, deliver, queue)
