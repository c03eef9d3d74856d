"""Tables that strangers fill: what was answered lately, and how fast each user asks. Both have a fixed size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """Answers until they expire; the one that was not used for longest goes when there are too many. Times in seconds
    of the caller's clock.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def get(self, key: K, now: float) -> V | None:
        found = self._kept.get(key)
        if found is None:
            return None
        if found[0] <= now:
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return found[1]

    def put(self, key: K, value: V, until: float) -> None:
        self._kept[key] = until, value
        self._kept.move_to_end(key)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)


@dataclass(slots=True)
class _Bucket:
    left: float
    at: float


class Buckets(Generic[K]):
    """A token bucket for each key: `per_s` on the long run, `burst` at once. A key that is forgotten for want of room
    starts full again, so the table must be larger than the number of those who ask at the same time.
    """

    def __init__(self, per_s: float, burst: float, size: int = 10_000) -> None:
        self._per_s, self._burst, self._size = per_s, burst, size
        self._buckets: OrderedDict[K, _Bucket] = OrderedDict()

    def take(self, key: K, now: float) -> float:
        """0 when the key may go on; else the seconds until it may, and nothing is taken."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(self._burst, now)
        bucket.left = min(self._burst, bucket.left + max(0.0, now - bucket.at) * self._per_s)
        bucket.at = now
        self._buckets.move_to_end(key)
        while len(self._buckets) > self._size:
            self._buckets.popitem(last=False)
        if bucket.left >= 1:
            bucket.left -= 1
            return 0.0
        return (1 - bucket.left) / self._per_s

    def __len__(self) -> int:
        return len(self._buckets)
