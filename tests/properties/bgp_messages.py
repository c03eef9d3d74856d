"""What Hypothesis and the fuzzer draw BGP messages from."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network
from random import Random

from hypothesis import strategies as st

from services.bgp.core.paths import Attributes, EndOfRib, Family, Nlri, Origin, Reach, SegmentType, Unreach, nlri
from services.bgp.core.wire.capabilities import Capabilities, GracefulRestart, LongLived
from services.bgp.core.wire.codes import AttributeType
from services.bgp.core.wire.context import Context
from services.bgp.core.wire.open import Open

U16, U32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
ASNS = st.one_of(st.integers(1, 0xFFFF), st.integers(1, 0xFFFFFFFF))
FAMILIES = st.sampled_from(Family)
KNOWN = frozenset(AttributeType)


def contexts() -> st.SearchStrategy[Context]:
    some = st.frozensets(FAMILIES)
    return st.builds(
        lambda internal, as4, ids, families, next_hop, long: Context(
            internal, as4, families, ids & families, ids & families, next_hop, 65535 if long else 4096
        ),
        st.booleans(),
        st.booleans(),
        some,
        st.frozensets(FAMILIES, min_size=1),
        st.booleans(),
        st.booleans(),
    )


def prefixes(family: Family) -> st.SearchStrategy[Nlri]:
    bits = family.octets * 8
    whole = st.integers(0, 2**bits - 1)
    return st.builds(
        lambda address, length: nlri(
            ip_network((address.to_bytes(family.octets, "big"), length), strict=False)  # bytes and length
        ),
        whole,
        st.integers(0, bits),
    )


SEGMENTS = st.tuples(
    st.sampled_from([SegmentType.SEQUENCE, SegmentType.SET]), st.lists(ASNS, min_size=1, max_size=6).map(tuple)
)
UNKNOWN = st.tuples(st.just(0xE0), st.integers(20, 255).filter(lambda kind: kind not in KNOWN), st.binary(max_size=300))
HOSTS4 = st.binary(min_size=4, max_size=4).filter(lambda raw: 0 < raw[0] < 224 and raw[0] != 127)
HOSTS6 = st.binary(min_size=15, max_size=15).map(lambda raw: b"\x20" + raw)
LINK_LOCALS = st.one_of(st.just(b""), st.binary(min_size=14, max_size=14).map(lambda raw: b"\xfe\x80" + raw))
_T = AttributeType
PASSED_ON = (_T.AGGREGATOR, _T.COMMUNITIES, _T.EXTENDED_COMMUNITIES, _T.LARGE_COMMUNITIES)


@st.composite
def attributes(draw: st.DrawFn, family: Family, context: Context) -> Attributes:
    """Such as survive a round trip in this context: what goes to no other AS is not there for one."""
    internal = context.internal
    next_hop, link_local = draw(HOSTS4), b""
    if family is Family.IPV6 or (context.extended_next_hop and draw(st.booleans())):
        next_hop, link_local = draw(HOSTS6), draw(LINK_LOCALS)
    extended = st.binary(min_size=8, max_size=8).filter(lambda one: internal or not one[0] & 0x40)
    found = Attributes(
        origin=draw(st.sampled_from(Origin)),
        as_path=tuple(draw(st.lists(SEGMENTS, max_size=3))),
        next_hop=next_hop,
        link_local=link_local,
        med=draw(st.none() | U32),
        local_pref=draw(U32) if internal else None,
        atomic_aggregate=draw(st.booleans()),
        aggregator=draw(st.none() | st.tuples(ASNS, st.binary(min_size=4, max_size=4))),
        communities=tuple(draw(st.lists(U32, max_size=70))),
        extended=tuple(draw(st.lists(extended, max_size=3))),
        large=tuple(draw(st.lists(st.tuples(U32, U32, U32), max_size=3, unique=True))),
        originator_id=draw(st.none() | U32) if internal else None,
        cluster_list=tuple(draw(st.lists(U32, max_size=3))) if internal else (),
        unknown=tuple(draw(st.lists(UNKNOWN, max_size=2, unique_by=lambda one: one[1]))),
    )
    there = {
        AttributeType.AGGREGATOR: found.aggregator is not None,
        AttributeType.COMMUNITIES: bool(found.communities),
        AttributeType.EXTENDED_COMMUNITIES: bool(found.extended),
        AttributeType.LARGE_COMMUNITIES: bool(found.large),
    }
    partial = tuple(kind for kind in PASSED_ON if there[kind] and draw(st.booleans()))
    return Attributes(**(vars(found) | {"partial": tuple(int(kind) for kind in partial)}))


@st.composite
def changes(draw: st.DrawFn, context: Context) -> Reach | Unreach | EndOfRib:
    family = draw(st.sampled_from(sorted(context.families)))
    some = draw(st.lists(prefixes(family), min_size=1, max_size=40))
    ids = draw(st.lists(U32, min_size=len(some), max_size=len(some))) if family in context.add_path_send else None
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return EndOfRib(family)
    if kind == 1:
        return Unreach(family, some, ids)
    return Reach(family, draw(attributes(family, context)), some, ids)


AFI_SAFIS = st.tuples(U16, st.integers(0, 255))
TEXTS = st.text(st.characters(whitelist_categories=["L", "N"]), max_size=15)


@st.composite
def capabilities(draw: st.DrawFn) -> Capabilities:
    unique = st.lists(AFI_SAFIS, unique=True, max_size=4)
    graceful = st.builds(
        GracefulRestart,
        st.integers(0, 4095),
        st.booleans(),
        st.booleans(),
        unique.flatmap(lambda found: st.tuples(*(st.tuples(st.just(one), st.booleans()) for one in found))),
    )
    long_lived = unique.flatmap(
        lambda found: st.tuples(
            *(st.builds(LongLived, st.just(one), st.integers(0, 2**24 - 1), st.booleans()) for one in found)
        )
    )
    families = draw(st.none() | unique.map(tuple))
    return Capabilities(
        families=families or None,
        route_refresh=draw(st.booleans()),
        enhanced_refresh=draw(st.booleans()),
        extended_message=draw(st.booleans()),
        extended_next_hop=tuple(draw(st.lists(st.tuples(st.tuples(U16, U16), U16), unique=True, max_size=3))),
        as4=draw(st.none() | ASNS),
        add_path=tuple((one, draw(st.integers(1, 3))) for one in draw(unique)),
        graceful_restart=draw(st.none() | graceful),
        long_lived=draw(st.none() | long_lived),
        hostname=draw(TEXTS),
        domain=draw(TEXTS),
        unknown=tuple(draw(st.lists(st.tuples(st.integers(100, 255), st.binary(max_size=255)), max_size=3))),
    )


@st.composite
def opens(draw: st.DrawFn) -> Open:
    said = draw(st.none() | capabilities())
    asn = draw(ASNS) if said is None or said.as4 is None else said.as4
    if said is None or said.as4 is None:
        asn = 1 + asn % 0xFFFF
    return Open(asn, draw(U16.filter(lambda seconds: seconds not in (1, 2))), draw(st.integers(1, 2**32 - 1)), said)


def mutated(raw: bytes, random: Random, others: Sequence[bytes]) -> bytes:
    """What a broken router makes of it: octets changed, lengths off by a little, pieces lost, doubled, swapped."""
    data = bytearray(raw)
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        at = random.randrange(len(data) + 1)
        match random.randrange(8):
            case 0 if at < len(data):
                data[at] = random.randrange(256)
            case 1 if at < len(data):
                data[at] = (data[at] + random.choice((-1, 1, -2, 2, 16, -16, 128))) % 256
            case 2 if at < len(data):
                data[at] ^= 1 << random.randrange(8)
            case 3:
                del data[at : at + random.randrange(1, 9)]
            case 4:
                data[at:at] = random.randbytes(random.randrange(1, 9))
            case 5:
                piece = data[at : at + random.randrange(1, 33)]
                data[at:at] = piece
            case 6:
                other = random.choice(others)
                start = random.randrange(len(other) + 1)
                data[at:at] = other[start : start + random.randrange(1, 65)]
            case _:
                del data[at:]
        if not data:
            data = bytearray(b"\0")
    return bytes(data)
