"""Which intervals the kernel must hold so that a set means the union of its members.

The kernel refuses overlapping intervals, and letting it or nft merge costs a pass over the whole set per element. So
members are kept here, and each change of a member yields the few kernel intervals to add and to remove.

A member or interval is `low + high`, both packed, big-endian, of equal length, inclusive: plain byte order sorts
them by low, then high. Overlapping members become one interval; merely adjacent ones stay apart, as users wrote them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable

Change = tuple[set[bytes], set[bytes]]  # intervals to add to the kernel, intervals to remove from it


def merge(members: Iterable[bytes]) -> list[bytes]:
    """Sorted disjoint intervals with the same union."""
    merged: list[bytes] = []
    low = high = b""
    for member in sorted(members):
        half = len(member) // 2
        first, last = member[:half], member[half:]
        if high and first <= high:
            high = max(high, last)
            continue
        if high:
            merged.append(low + high)
        low, high = first, last
    if high:
        merged.append(low + high)
    return merged


class Union:
    """Members, and their union as disjoint intervals. Cost of a change: the members below the intervals it touches."""

    def __init__(self) -> None:
        self._members: list[bytes] = []  # sorted, no duplicates
        self._merged: list[bytes] = []  # sorted, disjoint

    def __bool__(self) -> bool:
        return bool(self._members)

    def __contains__(self, member: bytes) -> bool:
        at = bisect_left(self._members, member)
        return at < len(self._members) and self._members[at] == member

    @property
    def members(self) -> list[bytes]:
        return self._members

    @property
    def intervals(self) -> list[bytes]:
        return self._merged

    def load(self, members: Iterable[bytes]) -> None:
        """Replace everything."""
        self._members = sorted(set(members))
        self._merged = merge(self._members)

    def add(self, member: bytes) -> Change:
        if member in self:
            return set(), set()
        insort(self._members, member)
        half = len(member) // 2
        low, high = member[:half], member[half:]
        first, last = self._touched(low, high)
        gone = self._merged[first:last]
        if gone:
            low = min(low, gone[0][:half])
            high = max(high, max(interval[half:] for interval in gone))
        new = [low + high]
        if gone == new:
            return set(), set()
        self._merged[first:last] = new
        return set(new), set(gone)

    def remove(self, member: bytes) -> Change:
        if member not in self:
            return set(), set()
        del self._members[bisect_left(self._members, member)]
        half = len(member) // 2
        at = bisect_right(self._merged, member[:half] + b"\xff" * half) - 1
        around = self._merged[at]
        if around != member and around in self:
            return set(), set()  # another member covers all of it: the usual case of a host below its network
        start = bisect_left(self._members, around[:half])
        end = bisect_right(self._members, around[half:] + b"\xff" * half)
        new = merge(self._members[start:end])
        self._merged[at : at + 1] = new
        return set(new) - {around}, {around} - set(new)

    def _touched(self, low: bytes, high: bytes) -> tuple[int, int]:
        """Slice of the merged intervals that overlap low..high."""
        half = len(low)
        first = bisect_right(self._merged, low + b"\xff" * half)
        if first and self._merged[first - 1][half:] >= low:
            first -= 1
        return first, bisect_right(self._merged, high + b"\xff" * half)


class ConcatUnion:
    """The same for keys of several parts (pipapo sets): members that are equal in all parts but one are merged along
    that one.

    parts: (offset, length) of each part in a packed key; along: index of the part to merge, the address. Members
    that overlap in another way are passed on as they are, and the kernel refuses them.
    """

    def __init__(self, parts: list[tuple[int, int]], along: int) -> None:
        self._size = sum((length + 3) & ~3 for _, length in parts)
        offset, length = parts[along]
        self._from, self._to = offset, offset + length
        self._groups: dict[bytes, Union] = {}

    def __contains__(self, member: bytes) -> bool:
        group, inner = self._split(member)
        return group in self._groups and inner in self._groups[group]

    @property
    def members(self) -> list[bytes]:
        return [self._join(group, inner) for group, union in self._groups.items() for inner in union.members]

    @property
    def intervals(self) -> list[bytes]:
        return [self._join(group, inner) for group, union in self._groups.items() for inner in union.intervals]

    def load(self, members: Iterable[bytes]) -> None:
        groups: dict[bytes, list[bytes]] = {}
        for member in members:
            group, inner = self._split(member)
            groups.setdefault(group, []).append(inner)
        self._groups = {}
        for group, inners in groups.items():
            self._groups[group] = Union()
            self._groups[group].load(inners)

    def add(self, member: bytes) -> Change:
        group, inner = self._split(member)
        return self._joined(group, self._groups.setdefault(group, Union()).add(inner))

    def remove(self, member: bytes) -> Change:
        group, inner = self._split(member)
        union = self._groups.get(group)
        if union is None:
            return set(), set()
        change = self._joined(group, union.remove(inner))
        if not union:
            del self._groups[group]
        return change

    def _split(self, member: bytes) -> tuple[bytes, bytes]:
        size, start, end = self._size, self._from, self._to
        inner = member[start:end] + member[size + start : size + end]
        return member[:start] + member[end : size + start] + member[size + end :], inner

    def _join(self, group: bytes, inner: bytes) -> bytes:
        size, start, width = self._size, self._from, self._to - self._from
        low, high = inner[:width], inner[width:]
        middle = size - width + start  # where the second hole lies once the first is closed
        return group[:start] + low + group[start:middle] + high + group[middle:]

    def _joined(self, group: bytes, change: Change) -> Change:
        add, remove = change
        return {self._join(group, inner) for inner in add}, {self._join(group, inner) for inner in remove}
