"""One shape for everything that makes the world match a wish: desired, actual, diff, apply, retry, resync.

The caller edits `desired` freely and calls `step()`. The reconciler reads the world when it does not know it, writes
only what differs, and forgets what it knew after an error or a cancellation. Nothing is written before `in_sync`:
deleting earlier could remove state that we were simply not told about yet.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Diff(Generic[K, V]):
    put: dict[K, V]  # absent or different
    drop: set[K]  # ours, unwanted

    def __bool__(self) -> bool:
        return bool(self.put or self.drop)


def diff(want: Mapping[K, V], have: Mapping[K, V]) -> Diff[K, V]:
    return Diff(
        put={k: v for k, v in want.items() if k not in have or have[k] != v},
        drop={k for k in have if k not in want},
    )


class Driver(Protocol[K, V]):
    async def read(self) -> dict[K, V]:
        """Everything in the kernel that is ours."""
        ...

    async def apply(self, todo: Diff[K, V]) -> dict[K, Exception]:
        """Write what can be written; return failures by key, never stop at the first."""
        ...


class Reconciler(Generic[K, V]):
    """Brings one kind of kernel object to its desired state. Only this object calls the driver."""

    def __init__(self, driver: Driver[K, V]) -> None:
        self.desired: dict[K, V] = {}
        self.in_sync = False
        self._driver = driver
        self._actual: dict[K, V] | None = None  # None: unknown, read before writing
        self._stale = False

    def resync(self) -> None:
        self._stale = True  # counts even when called while step() is writing

    async def step(self) -> dict[K, Exception]:
        if not self.in_sync:
            return {}
        actual = None if self._stale else self._actual
        self._actual, self._stale = None, False  # unknown while writing; stays so on error or cancellation
        if actual is None:
            actual = await self._driver.read()
        want = dict(self.desired)
        todo = diff(want, actual)
        failed = await self._driver.apply(todo) if todo else {}
        if not failed:
            self._actual = want
        return failed
