"""UPDATE, written: attributes once, then as many prefixes behind them as a message holds.

RFC 4271 sections 4.3 and 5, RFC 4760, RFC 6793 section 4.2.2, RFC 7606 section 5.1 (MP attributes first), RFC 8950.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from services.bgp.core.paths import Attributes, Change, EndOfRib, Family, Nlri, Reach
from services.bgp.core.wire import as_path
from services.bgp.core.wire.codes import (
    AS_TRANS,
    EXTENDED_LENGTH,
    HEADER_OCTETS,
    OPTIONAL,
    PARTIAL,
    SAFI_UNICAST,
    TRANSITIVE,
    AttributeType,
    MessageType,
)
from services.bgp.core.wire.context import Context
from services.bgp.core.wire.framing import frame
from services.bgp.core.wire.nlri import encode_with_ids

_T = AttributeType
_BOTH = OPTIONAL | TRANSITIVE
_FIXED = HEADER_OCTETS + 4  # header and the two lengths of an UPDATE
_MP_HEADER = 4  # of an attribute with extended length
DEFAULT_LOCAL_PREF = 100
_NON_TRANSITIVE_COMMUNITY = 0x40  # RFC 4360 section 2


def attribute(flags: int, kind: int, value: bytes) -> bytes:
    if len(value) > 255:
        return struct.pack("!BBH", flags | EXTENDED_LENGTH, kind, len(value)) + value
    return bytes((flags, kind, len(value))) + value


def encode_attributes(attributes: Attributes, family: Family, context: Context) -> bytes:
    """The block that goes in front of any number of `attributes`' prefixes of one family, in order of type.

    NEXT_HOP is in it when the prefixes are IPv4 and so is the next hop; else `encode_reach` puts it before the
    prefixes. To another AS go neither LOCAL_PREF nor what reflectors add, nor extended communities that are not
    transitive.
    """
    parts = [
        attribute(TRANSITIVE, _T.ORIGIN, bytes((attributes.origin,))),
        attribute(TRANSITIVE, _T.AS_PATH, as_path.encode_as_path(attributes.as_path, 4 if context.as4 else 2)),
    ]
    if not _in_reach(attributes, family):
        parts.append(attribute(TRANSITIVE, _T.NEXT_HOP, attributes.next_hop))
    if attributes.med is not None:
        parts.append(attribute(OPTIONAL, _T.MULTI_EXIT_DISC, struct.pack("!I", attributes.med)))
    if context.internal:
        preference = DEFAULT_LOCAL_PREF if attributes.local_pref is None else attributes.local_pref
        parts.append(attribute(TRANSITIVE, _T.LOCAL_PREF, struct.pack("!I", preference)))
    if attributes.atomic_aggregate:
        parts.append(attribute(TRANSITIVE, _T.ATOMIC_AGGREGATE, b""))
    parts += _optional(attributes, context)
    return b"".join(parts)


def _optional(attributes: Attributes, context: Context) -> Iterator[bytes]:
    def passed_on(kind: int, value: bytes) -> bytes:
        # "Once set to 1, the Partial bit cannot be set back to 0 by any other AS" (RFC 4271 section 5).
        return attribute(_BOTH | PARTIAL if kind in attributes.partial else _BOTH, kind, value)

    if attributes.aggregator is not None:
        number, router = attributes.aggregator
        if context.as4:
            yield passed_on(_T.AGGREGATOR, struct.pack("!I", number) + router)
        else:
            yield passed_on(_T.AGGREGATOR, struct.pack("!H", number if number <= 0xFFFF else AS_TRANS) + router)
    if attributes.communities:
        yield passed_on(_T.COMMUNITIES, _packed(attributes.communities))
    if context.internal and attributes.originator_id is not None:
        yield attribute(OPTIONAL, _T.ORIGINATOR_ID, struct.pack("!I", attributes.originator_id))
    if context.internal and attributes.cluster_list:
        yield attribute(OPTIONAL, _T.CLUSTER_LIST, _packed(attributes.cluster_list))
    extended = [one for one in attributes.extended if context.internal or not one[0] & _NON_TRANSITIVE_COMMUNITY]
    if extended:
        yield passed_on(_T.EXTENDED_COMMUNITIES, b"".join(extended))
    if not context.as4:
        yield from _four_octets(attributes)
    if attributes.large:
        yield passed_on(_T.LARGE_COMMUNITIES, b"".join(struct.pack("!III", *one) for one in attributes.large))
    for flags, kind, value in attributes.unknown:
        yield attribute(flags | PARTIAL, kind, value)  # we pass on what we do not know (RFC 4271 section 5)


def _four_octets(attributes: Attributes) -> Iterator[bytes]:
    """What two octets cannot say (RFC 6793 section 4.2.2): only when there is such a thing."""
    path = as_path.without_confederation(attributes.as_path)
    if as_path.path_needs_four_octets(path):
        yield attribute(_BOTH, _T.AS4_PATH, as_path.encode_as_path(path, 4))
    if attributes.aggregator is not None and attributes.aggregator[0] > 0xFFFF:
        number, router = attributes.aggregator
        yield attribute(_BOTH, _T.AS4_AGGREGATOR, struct.pack("!I", number) + router)


def _packed(numbers: tuple[int, ...]) -> bytes:
    return struct.pack(f"!{len(numbers)}I", *numbers)


def _in_reach(attributes: Attributes, family: Family) -> bool:
    """Do next hop and prefixes go into MP_REACH_NLRI?"""
    return family is Family.IPV6 or len(attributes.next_hop) != 4


def _chunks(prefixes: Sequence[bytes], room: int) -> Iterator[bytes]:
    """Joined, at most `room` octets each; one that is larger alone is a mistake of the caller."""
    if sum(map(len, prefixes)) <= room:
        if prefixes:
            yield b"".join(prefixes)
        return
    start = used = 0
    for at, prefix in enumerate(prefixes):
        used += len(prefix)
        if used > room:
            yield b"".join(prefixes[start:at])
            start, used = at, len(prefix)
    yield b"".join(prefixes[start:])


_MAPPED = bytes(10) + b"\xff\xff"
_LARGEST_PREFIX = 4 + 17  # path identifier, an IPv6 host


def encode_reach(
    block: bytes,
    attributes: Attributes,
    family: Family,
    prefixes: Sequence[Nlri],
    context: Context,
    path_ids: Sequence[int] | None = None,
) -> list[bytes]:
    """The fewest whole UPDATE messages that announce these prefixes. block: `encode_attributes` of the same attributes.

    When the attributes leave no room for a prefix (they came in a longer message than this peer takes), the prefixes
    are withdrawn instead: the peer must not keep an older route (RFC 8654 section 4).
    """
    items = _items(prefixes, path_ids, family, context)
    if not _in_reach(attributes, family):
        room = context.max_message - _FIXED - len(block)
        if room < _LARGEST_PREFIX:
            return encode_unreach(family, prefixes, context, path_ids)
        head = struct.pack("!HH", 0, len(block)) + block
        return [frame(MessageType.UPDATE, head + chunk) for chunk in _chunks(items, room)]
    next_hop = attributes.next_hop + attributes.link_local
    if len(next_hop) == 4:  # an IPv6 prefix by way of an IPv4 router: the mapped form, as BIRD writes it
        next_hop = _MAPPED + next_hop
    start = struct.pack("!HBB", family, SAFI_UNICAST, len(next_hop)) + next_hop + b"\0"
    room = context.max_message - _FIXED - len(block) - _MP_HEADER - len(start)
    if room < _LARGEST_PREFIX:
        return encode_unreach(family, prefixes, context, path_ids)
    messages = []
    for chunk in _chunks(items, room):
        reach = (
            struct.pack("!BBH", OPTIONAL | EXTENDED_LENGTH, _T.MP_REACH_NLRI, len(start) + len(chunk)) + start + chunk
        )
        messages.append(frame(MessageType.UPDATE, struct.pack("!HH", 0, len(reach) + len(block)) + reach + block))
    return messages


def encode_unreach(
    family: Family, prefixes: Sequence[Nlri], context: Context, path_ids: Sequence[int] | None = None
) -> list[bytes]:
    """The fewest whole UPDATE messages that withdraw these prefixes."""
    items = _items(prefixes, path_ids, family, context)
    if family is Family.IPV4:
        return [
            frame(MessageType.UPDATE, struct.pack("!H", len(chunk)) + chunk + b"\0\0")
            for chunk in _chunks(items, context.max_message - _FIXED)
        ]
    head = struct.pack("!HB", family, SAFI_UNICAST)
    attributes = (
        _mp_attribute(_T.MP_UNREACH_NLRI, head + chunk)
        for chunk in _chunks(items, context.max_message - _FIXED - _MP_HEADER - len(head))
    )
    return [frame(MessageType.UPDATE, struct.pack("!HH", 0, len(one)) + one) for one in attributes]


def _mp_attribute(kind: AttributeType, value: bytes) -> bytes:
    return struct.pack("!BBH", OPTIONAL | EXTENDED_LENGTH, kind, len(value)) + value


def encode_end_of_rib(family: Family) -> bytes:
    """RFC 4724 section 2."""
    if family is Family.IPV4:
        return frame(MessageType.UPDATE, b"\0\0\0\0")
    return frame(
        MessageType.UPDATE, struct.pack("!HHBBBHB", 0, 6, OPTIONAL, _T.MP_UNREACH_NLRI, 3, family, SAFI_UNICAST)
    )


def encode_change(change: Change, context: Context) -> list[bytes]:
    """One `Change` as whole messages; who sends many prefixes to many peers keeps the block and uses the parts."""
    if isinstance(change, EndOfRib):
        return [encode_end_of_rib(change.family)]
    if isinstance(change, Reach):
        block = encode_attributes(change.attributes, change.family, context)
        return encode_reach(block, change.attributes, change.family, change.prefixes, context, change.path_ids)
    return encode_unreach(change.family, change.prefixes, context, change.path_ids)


def _items(
    prefixes: Sequence[Nlri], path_ids: Sequence[int] | None, family: Family, context: Context
) -> Sequence[bytes]:
    if family not in context.add_path_send:
        return prefixes
    return encode_with_ids(prefixes, path_ids if path_ids is not None else [0] * len(prefixes))
