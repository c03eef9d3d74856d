"""One block of path attributes, read: RFC 4271 section 5, and what to do with a wrong one: RFC 7606.

A wrong attribute seldom costs the session. Of the approaches of RFC 7606 section 2 two appear here as values, "treat as
withdraw" (`Block.problem`) and "attribute discard" (`Block.discarded`); the third, session reset, is a `BgpError`.
MP_REACH_NLRI and MP_UNREACH_NLRI are taken out before (`split`), so that one block serves many UPDATEs.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from services.bgp.core.paths import Attributes, Origin
from services.bgp.core.wire import as_path
from services.bgp.core.wire.codes import AS_TRANS, EXTENDED_LENGTH, OPTIONAL, PARTIAL, TRANSITIVE, AttributeType
from services.bgp.core.wire.context import Context
from services.bgp.core.wire.errors import BgpError, ErrorCode, UpdateError

_T = AttributeType
_FLAGS: Final[dict[int, int]] = {
    _T.ORIGIN: TRANSITIVE,
    _T.AS_PATH: TRANSITIVE,
    _T.NEXT_HOP: TRANSITIVE,
    _T.MULTI_EXIT_DISC: OPTIONAL,
    _T.LOCAL_PREF: TRANSITIVE,
    _T.ATOMIC_AGGREGATE: TRANSITIVE,
    _T.AGGREGATOR: OPTIONAL | TRANSITIVE,
    _T.COMMUNITIES: OPTIONAL | TRANSITIVE,
    _T.ORIGINATOR_ID: OPTIONAL,
    _T.CLUSTER_LIST: OPTIONAL,
    _T.MP_REACH_NLRI: OPTIONAL,
    _T.MP_UNREACH_NLRI: OPTIONAL,
    _T.EXTENDED_COMMUNITIES: OPTIONAL | TRANSITIVE,
    _T.AS4_PATH: OPTIONAL | TRANSITIVE,
    _T.AS4_AGGREGATOR: OPTIONAL | TRANSITIVE,
    _T.LARGE_COMMUNITIES: OPTIONAL | TRANSITIVE,
}
# What counts between routers of one AS only: from others it is discarded, whatever it holds (RFC 7606 7.5, 7.9, 7.10).
_INTERNAL_ONLY: Final = frozenset({_T.LOCAL_PREF, _T.ORIGINATOR_ID, _T.CLUSTER_LIST})
# Discarded also when only its flags are right but its content is not (RFC 7606 7.6, 7.7; RFC 6793 section 6).
_DISCARDED: Final = frozenset({_T.ATOMIC_AGGREGATE, _T.AGGREGATOR, _T.AS4_PATH, _T.AS4_AGGREGATOR})
_NAMES: Final = {int(kind): kind.name for kind in AttributeType}


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the routes of an UPDATE are treated as withdrawn. subcode, data: for the NOTIFICATION, should it come to
    one."""

    text: str
    subcode: int
    data: bytes = b""

    def error(self) -> BgpError:
        return BgpError(ErrorCode.UPDATE, self.subcode, self.data, self.text)


@dataclass(frozen=True, slots=True)
class Block:
    """attributes: with what could be read. problem: treat what the UPDATE announces as withdrawn. missing: a
    mandatory one that is not there (this counts only when something is announced). next_hop_problem: the same for
    NEXT_HOP, which only prefixes outside MP_REACH_NLRI need. discarded: attributes that were left out, and why.
    empty: not one attribute."""

    attributes: Attributes
    problem: Problem | None = None
    missing: Problem | None = None
    next_hop_problem: Problem | None = None
    discarded: tuple[str, ...] = ()
    empty: bool = False


@dataclass(slots=True)
class Split:
    """rest: the block without the MP attributes, which are `reach` and `unreach` (their values)."""

    rest: bytes
    reach: bytes | None = None
    unreach: bytes | None = None
    problem: Problem | None = None


def _header(block: bytes, at: int) -> tuple[int, int, int, int] | None:
    """(flags, type, start of the value, its end) of the attribute at `at`; None when it runs over the end."""
    if at + 3 > len(block):
        return None
    flags, kind = block[at], block[at + 1]
    if flags & EXTENDED_LENGTH:
        if at + 4 > len(block):
            return None
        start = at + 4
        end = start + (block[at + 2] << 8 | block[at + 3])
    else:
        start = at + 3
        end = start + block[at + 2]
    return (flags, kind, start, end) if end <= len(block) else None


def split(block: bytes) -> Split:
    """Take MP_REACH_NLRI and MP_UNREACH_NLRI out. Raises BgpError 3/1 when one of them stands there twice (7606
    3.g)."""
    found = Split(block)
    kept: list[bytes] = []
    at = since = 0
    while at < len(block):
        header = _header(block, at)
        if header is None:
            break  # the tail stays in the rest, where reading it says so
        flags, kind, start, end = header
        if kind in (_T.MP_REACH_NLRI, _T.MP_UNREACH_NLRI):
            reach = kind == _T.MP_REACH_NLRI
            if (found.reach if reach else found.unreach) is not None:
                raise BgpError(
                    ErrorCode.UPDATE, UpdateError.MALFORMED_ATTRIBUTE_LIST, text=f"{_NAMES[kind]} stands there twice"
                )
            if flags & (OPTIONAL | TRANSITIVE) != OPTIONAL:
                text = f"{_NAMES[kind]} with flags {flags:#04x}"
                found.problem = Problem(text, UpdateError.ATTRIBUTE_FLAGS, block[at:end])
            if reach:
                found.reach = block[start:end]
            else:
                found.unreach = block[start:end]
            kept.append(block[since:at])
            since = end
        at = end
    if since:
        found.rest = b"".join((*kept, block[since:]))
    return found


class _Wrong(Exception):
    """Raised by a reader of one attribute: (subcode, words)."""

    def __init__(self, text: str, subcode: int = UpdateError.ATTRIBUTE_LENGTH) -> None:
        super().__init__(text)
        self.text = text
        self.subcode = subcode


def _exactly(value: bytes, octets: int) -> bytes:
    if len(value) != octets:
        raise _Wrong(f"{len(value)} octets instead of {octets}")
    return value


def _some(value: bytes, octets: int) -> bytes:
    """Communities and the like: not nothing, and a multiple."""
    if not value or len(value) % octets:
        raise _Wrong(f"{len(value)} octets, not a multiple of {octets} above 0")
    return value


def _number(value: bytes, _: Context) -> int:
    return int.from_bytes(_exactly(value, 4), "big")


def _numbers(value: bytes, _: Context) -> tuple[int, ...]:
    return struct.unpack(f"!{len(value) // 4}I", _some(value, 4))


def _origin(value: bytes, _: Context) -> Origin:
    number = _exactly(value, 1)[0]
    if number > Origin.INCOMPLETE:
        raise _Wrong(f"undefined value {number}", UpdateError.INVALID_ORIGIN)
    return Origin(number)


def _as_path(value: bytes, context: Context) -> Any:
    try:
        path = as_path.decode_as_path(value, 4 if context.as4 else 2)
    except ValueError as error:
        raise _Wrong(str(error), UpdateError.MALFORMED_AS_PATH) from None
    if not context.internal and as_path.has_confederation(path):
        raise _Wrong("confederation segments from outside (RFC 5065 section 5)", UpdateError.MALFORMED_AS_PATH)
    return path


def _as4_path(value: bytes, _: Context) -> Any:
    try:
        if not value:
            raise ValueError("no segment")
        return as_path.decode_as_path(value, 4)
    except ValueError as error:
        raise _Wrong(str(error), UpdateError.MALFORMED_AS_PATH) from None


def _next_hop(value: bytes, _: Context) -> bytes:
    _exactly(value, 4)
    if not is_host(value):
        raise _Wrong(f"{'.'.join(map(str, value))} is not an address of a host", UpdateError.INVALID_NEXT_HOP)
    return value


def is_host(address: bytes) -> bool:
    """May it be a next hop (RFC 4271 section 6.3)? IPv4: not 0/8, 127/8, multicast, reserved. IPv6: not ::1,
    multicast."""
    if len(address) == 4:
        return 0 < address[0] < 224 and address[0] != 127
    return address[0] != 0xFF and address not in (bytes(16), bytes(15) + b"\1")


def _aggregator(value: bytes, context: Context) -> tuple[int, bytes]:
    return _aggregator_of(_exactly(value, 8 if context.as4 else 6))


def _as4_aggregator(value: bytes, _: Context) -> tuple[int, bytes]:
    return _aggregator_of(_exactly(value, 8))


def _aggregator_of(value: bytes) -> tuple[int, bytes]:
    number = int.from_bytes(value[:-4], "big")
    if number == 0:
        raise _Wrong("AS 0 (RFC 7607)", UpdateError.OPTIONAL_ATTRIBUTE)
    return number, value[-4:]


def _atomic_aggregate(value: bytes, _: Context) -> bool:
    _exactly(value, 0)
    return True


def _extended(value: bytes, _: Context) -> tuple[bytes, ...]:
    _some(value, 8)
    return tuple(value[at : at + 8] for at in range(0, len(value), 8))


def _large(value: bytes, _: Context) -> tuple[tuple[int, int, int], ...]:
    """Duplicates are dropped, as RFC 8092 section 3 asks for."""
    return tuple(dict.fromkeys(struct.iter_unpack("!III", _some(value, 12))))


_READERS: Final[dict[int, tuple[str, Callable[[bytes, Context], Any]]]] = {
    _T.ORIGIN: ("origin", _origin),
    _T.AS_PATH: ("as_path", _as_path),
    _T.NEXT_HOP: ("next_hop", _next_hop),
    _T.MULTI_EXIT_DISC: ("med", _number),
    _T.LOCAL_PREF: ("local_pref", _number),
    _T.ATOMIC_AGGREGATE: ("atomic_aggregate", _atomic_aggregate),
    _T.AGGREGATOR: ("aggregator", _aggregator),
    _T.COMMUNITIES: ("communities", _numbers),
    _T.ORIGINATOR_ID: ("originator_id", _number),
    _T.CLUSTER_LIST: ("cluster_list", _numbers),
    _T.EXTENDED_COMMUNITIES: ("extended", _extended),
    _T.LARGE_COMMUNITIES: ("large", _large),
    _T.AS4_PATH: ("as4_path", _as4_path),
    _T.AS4_AGGREGATOR: ("as4_aggregator", _as4_aggregator),
}


@dataclass(slots=True)
class _Reading:
    fields: dict[str, Any] = field(default_factory=dict)
    unknown: list[tuple[int, int, bytes]] = field(default_factory=list)
    partial: list[int] = field(default_factory=list)
    problem: Problem | None = None
    next_hop_problem: Problem | None = None
    discarded: list[str] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)


def decode_block(block: bytes, context: Context) -> Block:
    """block: path attributes without the MP ones. Raises BgpError 3/2: a well-known attribute that we do not know."""
    reading = _Reading()
    at = 0
    while at < len(block):
        header = _header(block, at)
        if header is None:  # RFC 7606 section 4: the total length is trusted, the rest is not
            text = "the last path attribute runs over the end"
            reading.problem = reading.problem or Problem(text, UpdateError.MALFORMED_ATTRIBUTE_LIST)
            break
        flags, kind, start, end = header
        _read(reading, context, flags, kind, block[start:end], block[at:end])
        at = end
    return _finished(reading, context, empty=not block)


def _read(reading: _Reading, context: Context, flags: int, kind: int, value: bytes, whole: bytes) -> None:
    if kind in reading.seen:
        reading.discarded.append(f"{_NAMES.get(kind, f'attribute {kind}')}: again")
        return
    reading.seen.add(kind)
    if kind not in _READERS:
        _unknown(reading, flags, kind, value, whole)
        return
    name = _NAMES[kind]
    if kind in _INTERNAL_ONLY and not context.internal:
        reading.discarded.append(f"{name}: from another AS")
        return
    if flags & (OPTIONAL | TRANSITIVE) != _FLAGS[kind]:
        reading.problem = reading.problem or Problem(
            f"{name} with flags {flags:#04x}", UpdateError.ATTRIBUTE_FLAGS, whole
        )
        return
    if context.as4 and kind in (_T.AS4_PATH, _T.AS4_AGGREGATOR):
        reading.discarded.append(f"{name}: the peer speaks four octets")
        return
    target, reader = _READERS[kind]
    try:
        reading.fields[target] = reader(value, context)
    except _Wrong as wrong:
        text = f"{name}: {wrong.text}"
        if kind in _DISCARDED:
            reading.discarded.append(text)
        elif kind == _T.NEXT_HOP:
            reading.next_hop_problem = Problem(text, wrong.subcode, whole)
        else:
            reading.problem = reading.problem or Problem(text, wrong.subcode, whole)
        return
    if flags & PARTIAL and flags & OPTIONAL:
        reading.partial.append(kind)


def _unknown(reading: _Reading, flags: int, kind: int, value: bytes, whole: bytes) -> None:
    if not flags & OPTIONAL:
        raise BgpError(ErrorCode.UPDATE, UpdateError.UNRECOGNIZED_WELL_KNOWN, whole, f"well-known attribute {kind}")
    if flags & TRANSITIVE:
        reading.unknown.append((flags & (OPTIONAL | TRANSITIVE | PARTIAL), kind, value))


def _finished(reading: _Reading, context: Context, *, empty: bool) -> Block:
    fields = reading.fields
    as4_path, as4_aggregator = fields.pop("as4_path", None), fields.pop("as4_aggregator", None)
    aggregator = fields.get("aggregator")
    if aggregator is not None and aggregator[0] != AS_TRANS and as4_aggregator is not None:
        # The last to aggregate knew only two octets: what was said in four is older (RFC 6793 section 4.2.3). Without
        # AS4_AGGREGATOR nobody said anything in four: the aggregator's number just fits into two.
        as4_path = as4_aggregator = None
    if aggregator is not None and as4_aggregator is not None:
        fields["aggregator"] = as4_aggregator
    if as4_path is not None and "as_path" in fields:
        fields["as_path"] = as_path.merge_as4_path(fields["as_path"], as4_path)
    missing = next((kind for kind in (_T.ORIGIN, _T.AS_PATH) if kind not in reading.seen), None)
    next_hop_problem = reading.next_hop_problem
    if _T.NEXT_HOP not in reading.seen:
        next_hop_problem = _missing(_T.NEXT_HOP)
    return Block(
        attributes=Attributes(**fields, unknown=tuple(reading.unknown), partial=tuple(reading.partial)),
        problem=reading.problem,
        missing=_missing(missing) if missing is not None else None,
        next_hop_problem=next_hop_problem,
        discarded=tuple(reading.discarded),
        empty=empty,
    )


def _missing(kind: AttributeType) -> Problem:
    return Problem(f"{kind.name} is missing", UpdateError.MISSING_WELL_KNOWN, bytes((kind,)))
