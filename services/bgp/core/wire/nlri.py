"""Prefixes on the wire: RFC 4271 section 4.3, with path identifiers RFC 7911 section 3.

They stay bytes from here to the kernel. These loops run once per prefix of a full table: keep them bare.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final

from services.bgp.core.paths import Family, Nlri
from services.bgp.core.wire.errors import BgpError, ErrorCode, UpdateError

_BEYOND: Final = 1 << 20  # more than any message: a length that the family does not have
_STEP: Final = {
    family: tuple(1 + (bits + 7) // 8 if bits <= family.octets * 8 else _BEYOND for bits in range(256))
    for family in Family
}
_HOST_BITS: Final = tuple(0xFF >> (bits % 8) if bits % 8 else 0 for bits in range(256))  # in the last octet
_CLEAN: Final = tuple(bytes(octet for octet in range(256) if not octet & mask) for mask in _HOST_BITS)


def _malformed(family: Family, data: bytes, at: int) -> BgpError:
    bits = data[at]
    text = f"{family.name} prefix length {bits}" if bits > family.octets * 8 else "a prefix runs over the end"
    return BgpError(ErrorCode.UPDATE, UpdateError.INVALID_NETWORK_FIELD, text=text)


def decode_prefixes(data: bytes, family: Family) -> list[Nlri]:
    """Raises BgpError 3/10: a length that the family does not have, or a prefix that runs over the end."""
    step, host_bits = _STEP[family], _HOST_BITS
    at, last, end = 0, 0, len(data)
    if not end:
        return []
    size = step[data[0]]
    uniform = end % size == 0 and data[::size].count(data[0]) * size == end  # as blocks and pods are: no loop here
    if uniform and not data[size - 1 :: size].translate(None, _CLEAN[data[0]]):
        return [data[at : at + size] for at in range(0, end, size)]
    found: list[Nlri] = []
    append = found.append
    while at < end:
        bits = data[at]
        last, at = at, at + step[bits]
        key = data[last:at]
        if host_bits[bits] & key[-1]:
            key = key[:-1] + bytes((key[-1] & ~host_bits[bits],))
        append(key)
    if at != end:
        raise _malformed(family, data, last)
    return found


def decode_prefixes_with_ids(data: bytes, family: Family) -> tuple[list[Nlri], list[int]]:
    """The same for a family with add-path: (prefixes, path identifiers)."""
    found: list[Nlri] = []
    ids: list[int] = []
    step, end, at = _STEP[family], len(data), 0
    while at < end:
        if at + 5 > end or at + 4 + step[data[at + 4]] > end:
            if at + 5 > end:
                text = "a path identifier runs over the end"
                raise BgpError(ErrorCode.UPDATE, UpdateError.INVALID_NETWORK_FIELD, text=text)
            raise _malformed(family, data, at + 4)
        bits = data[at + 4]
        ids.append(int.from_bytes(data[at : at + 4], "big"))
        last, at = at + 4, at + 4 + step[bits]
        key = data[last:at]
        if _HOST_BITS[bits] & key[-1]:
            key = key[:-1] + bytes((key[-1] & ~_HOST_BITS[bits],))
        found.append(key)
    return found, ids


def encode_with_ids(prefixes: Iterable[Nlri], ids: Iterable[int]) -> list[bytes]:
    """Each prefix behind its path identifier."""
    return [struct.pack("!I", number) + prefix for prefix, number in zip(prefixes, ids, strict=True)]
