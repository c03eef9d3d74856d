"""AS_PATH and AGGREGATOR in two and in four octets, and how the two become one: RFC 4271 section 4.3, RFC 5065, RFC
6793."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from services.bgp.core.paths import AsPath, Segment, SegmentType
from services.bgp.core.wire.codes import AS_TRANS

_KINDS: Final = {int(kind): kind for kind in SegmentType}
_CONFEDERATION: Final = (SegmentType.CONFED_SEQUENCE, SegmentType.CONFED_SET)
_MOST: Final = 255  # numbers in one segment


def decode_as_path(value: bytes, octets: int) -> AsPath:
    """value: segments of type(1) count(1) and `count` numbers of `octets` (2 or 4) each.

    Raises ValueError, in words: unknown segment type, empty segment, a segment that runs over, AS 0 (RFC 7607).
    """
    path: list[Segment] = []
    at, end = 0, len(value)
    code = "H" if octets == 2 else "I"
    while at < end:
        if at + 2 > end:
            raise ValueError("one octet behind the last segment")
        kind, count = value[at], value[at + 1]
        if kind not in _KINDS:
            raise ValueError(f"segment type {kind}")
        if count == 0:
            raise ValueError("an empty segment")
        if at + 2 + count * octets > end:
            raise ValueError(f"a segment of {count} numbers runs over the end")
        numbers = struct.unpack_from(f"!{count}{code}", value, at + 2)
        if 0 in numbers:
            raise ValueError("AS 0")
        path.append((_KINDS[kind], numbers))
        at += 2 + count * octets
    return tuple(path)


def has_confederation(path: AsPath) -> bool:
    return any(kind in _CONFEDERATION for kind, _ in path)


def without_confederation(path: AsPath) -> AsPath:
    return tuple(segment for segment in path if segment[0] not in _CONFEDERATION)


def encode_as_path(path: AsPath, octets: int) -> bytes:
    """Numbers that two octets cannot hold become AS_TRANS. Segments of more than 255 numbers are split."""
    parts: list[bytes] = []
    for kind, numbers in path:
        for start in range(0, len(numbers), _MOST):
            some = numbers[start : start + _MOST]
            if octets == 2:
                two = [number if number <= 0xFFFF else AS_TRANS for number in some]
                parts.append(struct.pack(f"!BB{len(two)}H", kind, len(two), *two))
            else:
                parts.append(struct.pack(f"!BB{len(some)}I", kind, len(some), *some))
    return b"".join(parts)


def needs_four_octets(numbers: Iterable[int]) -> bool:
    return any(number > 0xFFFF for number in numbers)


def path_needs_four_octets(path: AsPath) -> bool:
    return any(needs_four_octets(numbers) for _, numbers in path)


def _hops(segment: Segment) -> int:
    """How many hops a segment counts for (RFC 4271 section 9.1.2.2, RFC 5065 section 5.3)."""
    kind, numbers = segment
    if kind is SegmentType.SEQUENCE:
        return len(numbers)
    return 1 if kind is SegmentType.SET else 0


def merge_as4_path(path: AsPath, as4_path: AsPath) -> AsPath:
    """The path of four-octet numbers, from AS_PATH with AS_TRANS in it and AS4_PATH: RFC 6793 section 4.2.3.

    What routers with two-octet numbers prepended stands in AS_PATH only and is kept, with confederation segments that
    lead or follow it. A longer AS4_PATH than AS_PATH is ignored: someone removed hops from the one and not the other.
    """
    as4_path = without_confederation(as4_path)
    ahead = sum(map(_hops, path)) - sum(map(_hops, as4_path))
    if ahead < 0:
        return path
    leading: list[Segment] = []
    for kind, numbers in path:
        if kind in _CONFEDERATION:
            leading.append((kind, numbers))
            continue
        if ahead == 0:
            break
        if kind is SegmentType.SET:
            leading.append((kind, numbers))
            ahead -= 1
            continue
        leading.append((kind, numbers[:ahead]))
        taken = min(ahead, len(numbers))
        ahead -= taken
        if taken < len(numbers):
            break
    return join(tuple(leading), as4_path)


def join(left: AsPath, right: AsPath) -> AsPath:
    """One path after the other; sequences that meet become one when 255 numbers allow it."""
    if left and right and left[-1][0] is SegmentType.SEQUENCE and right[0][0] is SegmentType.SEQUENCE:
        numbers = left[-1][1] + right[0][1]
        if len(numbers) <= _MOST:
            return (*left[:-1], (SegmentType.SEQUENCE, numbers), *right[1:])
    return left + right
