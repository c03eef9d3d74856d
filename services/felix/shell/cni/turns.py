"""One request at a time for each host interface."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: Counter[str] = Counter()  # who holds a lock, and who waits for it

    @asynccontextmanager
    async def of(self, host_interface: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(host_interface, asyncio.Lock())
        self._users[host_interface] += 1
        try:
            async with lock:
                yield
        finally:
            self._users[host_interface] -= 1
            if not self._users[host_interface]:
                del self._users[host_interface], self._locks[host_interface]
