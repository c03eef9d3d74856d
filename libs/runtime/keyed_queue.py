"""Work by key: one at a time for a key, several keys at once, the latest value wins, and the memory is bounded.

The queue holds at most one waiting value for each key. A key that is being worked on is not handed out again before
`done`; what arrives for it meanwhile waits, coalesced. So a worker always sees the newest wish and never two workers
the same object.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class KeyedQueueFull(Exception):
    """`put_nowait` of a new key while `max_keys` are waiting."""


class KeyedQueueClosed(Exception):
    """The queue takes nothing more; `get` raises it once everything waiting has been handed out."""


class KeyedQueue(Generic[K, V]):
    """For one event loop.

    max_keys: how many keys may wait; a value for a key that waits already is always taken. merge(old, new): what
    remains of two values of one key that both wait; the newer by default.
    """

    def __init__(self, max_keys: int = 10_000, *, merge: Callable[[V, V], V] | None = None) -> None:
        if max_keys < 1:
            raise ValueError("max_keys must be at least 1")
        self._max = max_keys
        self._merge = merge
        self._waiting: dict[K, V] = {}  # every key with something to do
        self._ready: dict[K, None] = {}  # of those, the ones nobody works on, in order of arrival
        self._busy: set[K] = set()
        self._closed = False
        self._waiters: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        """Keys that wait, those being worked on not included."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        return len(self._busy)

    def put_nowait(self, key: K, value: V) -> None:
        """Raises KeyedQueueFull, KeyedQueueClosed."""
        if self._closed:
            raise KeyedQueueClosed
        if key in self._waiting:
            old = self._waiting[key]
            self._waiting[key] = value if self._merge is None else self._merge(old, value)
            return
        if len(self._waiting) >= self._max:
            raise KeyedQueueFull(f"{self._max} keys are waiting")
        self._waiting[key] = value
        if key not in self._busy:
            self._ready[key] = None
        self._wake()

    async def put(self, key: K, value: V) -> None:
        """Waits for room. Raises KeyedQueueClosed."""
        while True:
            try:
                self.put_nowait(key, value)
                return
            except KeyedQueueFull:
                await self._wait(lambda: self._closed or key in self._waiting or len(self._waiting) < self._max)

    async def get(self) -> tuple[K, V]:
        """The key that has waited longest. The caller owns it until `done(key)`. Raises KeyedQueueClosed at the end."""
        while not self._ready:
            if self._closed and not self._waiting:
                raise KeyedQueueClosed
            await self._wait(lambda: bool(self._ready) or (self._closed and not self._waiting))
        key = next(iter(self._ready))
        del self._ready[key]
        value = self._waiting.pop(key)
        self._busy.add(key)
        self._wake()
        return key, value

    def done(self, key: K) -> None:
        """The work is finished, well or badly. A value that came meanwhile goes to the end of the queue."""
        self._busy.remove(key)
        if key in self._waiting:
            self._ready[key] = None
        self._wake()

    def retry(self, key: K, value: V) -> None:
        """Like `done`, but the value is wanted again, unless something newer came. Never refused for lack of room."""
        if key not in self._waiting:
            self._waiting[key] = value
        self.done(key)

    def close(self) -> None:
        """Refuse new work; what waits is still handed out."""
        self._closed = True
        self._wake()

    async def join(self) -> None:
        """Until nothing waits and nothing is being worked on."""
        await self._wait(lambda: not self._waiting and not self._busy)

    async def run(self, work: Callable[[K, V], Awaitable[None]], *, parallel: int = 1) -> None:
        """Work until the queue is closed and empty, `parallel` keys at a time. An exception of `work` ends it."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(parallel):
                tasks.create_task(self._worker(work), name=f"keyed-queue-{number}")

    async def _worker(self, work: Callable[[K, V], Awaitable[None]]) -> None:
        while True:
            try:
                key, value = await self.get()
            except KeyedQueueClosed:
                return
            try:
                await work(key, value)
            finally:
                self.done(key)

    async def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def _wake(self) -> None:
        # All of them: each checks its own condition, and a waiter that was cancelled after being woken loses nobody's
        # turn.
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
