"""One shape for everything that makes the world match a wish: desired, actual, diff, apply, retry, resync.

The caller says what is desired (`put`, `drop`, or all of it at once) and calls `step()`. The reconciler reads the
world when it does not know it, writes only what differs, and forgets what it knew after an error or a cancellation.
Nothing is written before `in_sync`: deleting earlier could remove state that we were simply not told about yet.
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
    """Brings one kind of kernel object to its desired state. Only this object calls the driver.

    A step costs as much as there is to change, but for the first one and those after `resync`, an error, or an
    assignment to `desired`: these compare everything.
    """

    def __init__(self, driver: Driver[K, V]) -> None:
        self.in_sync = False
        self._driver = driver
        self._desired: dict[K, V] = {}
        self._actual: dict[K, V] | None = None  # None: unknown, read before writing
        self._stale = False
        self._touched: dict[K, None] | None = None  # keys that may differ, in order; None: all of them
        self._lost: set[K] = set()

    @property
    def desired(self) -> Mapping[K, V]:
        return self._desired

    @desired.setter
    def desired(self, wanted: Mapping[K, V]) -> None:
        self._desired, self._touched = dict(wanted), None

    def put(self, key: K, value: V) -> None:
        self._desired[key] = value
        self._touch(key)

    def drop(self, key: K) -> None:
        """Also one that is not desired."""
        if self._desired.pop(key, None) is not None:
            self._touch(key)

    def lost(self, key: K) -> None:
        """The world is known to have it no more; if it is wanted, the next step puts it back."""
        self._lost.add(key)
        self._touch(key)

    def resync(self) -> None:
        self._stale = True  # counts even when called while step() is writing

    async def step(self) -> dict[K, Exception]:
        if not self.in_sync:
            return {}
        actual = None if self._stale else self._actual
        touched, lost = self._touched, self._lost
        self._actual, self._stale = None, False  # unknown while writing; stays so on error or cancellation
        self._touched, self._lost = {}, set()
        if actual is None:
            actual, touched = await self._driver.read(), None
        else:
            for key in lost:
                actual.pop(key, None)
        if touched is None:
            todo = diff(self._desired, actual)
        else:
            todo = Diff(
                put={k: v for k in touched if (v := self._desired.get(k)) is not None and actual.get(k) != v},
                drop={k for k in touched if k not in self._desired and k in actual},
            )
        failed = await self._driver.apply(todo) if todo else {}
        if not failed:
            actual.update(todo.put)
            for key in todo.drop:
                del actual[key]
            self._actual = actual
        return failed

    def _touch(self, key: K) -> None:
        if self._touched is not None:
            self._touched[key] = None
