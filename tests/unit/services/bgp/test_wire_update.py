"""UPDATE: what RFC 7606 does with each wrong attribute, RFC 6793, 4760, 8950, 7911, 4724. Octets written by hand."""

from __future__ import annotations

import struct

import pytest

from services.bgp.core.paths import Attributes, Change, EndOfRib, Family, Origin, Reach, SegmentType, Unreach
from services.bgp.core.wire.context import Context
from services.bgp.core.wire.encode import encode_attributes, encode_reach
from services.bgp.core.wire.errors import BgpError
from services.bgp.core.wire.update import UpdateDecoder, decode_update

INTERNAL = Context(internal=True)
EXTERNAL = Context(internal=False)
OLD = Context(internal=False, as4=False)  # a peer with AS numbers of two octets

ORIGIN = "400101 00"
AS_PATH = "400206 0201 0000fde8"  # AS 65000
NEXT_HOP = "400304 0a000001"
LOCAL_PREF = "400504 00000064"
GOOD = f"{ORIGIN} {AS_PATH} {NEXT_HOP} {LOCAL_PREF}"
PREFIX = "18 c0a801"  # 192.168.1.0/24
KEY = bytes.fromhex("18c0a801")
V6_HOST = "20010db8" + "00" * 11 + "01"
V6_REACH = f"800e1e 0002 01 10 {V6_HOST} 00 40 20010db800010000".replace(" ", "")
V6_KEY = bytes.fromhex("4020010db800010000")


def update(attributes: str = "", announced: str = "", withdrawn: str = "") -> bytes:
    parts = [bytes.fromhex(text.replace(" ", "")) for text in (withdrawn, attributes, announced)]
    return struct.pack("!H", len(parts[0])) + parts[0] + struct.pack("!H", len(parts[1])) + parts[1] + parts[2]


def one(body: bytes, context: Context = INTERNAL) -> Change:
    [change] = decode_update(body, context)
    return change


def attributes_of(text: str, context: Context = INTERNAL) -> Attributes:
    change = one(update(text, PREFIX), context)
    assert isinstance(change, Reach), change
    return change.attributes


def test_a_plain_update() -> None:
    change = one(update(GOOD, PREFIX))
    path = ((SegmentType.SEQUENCE, (65000,)),)
    assert change == Reach(Family.IPV4, Attributes(Origin.IGP, path, b"\x0a\0\0\1", local_pref=100), [KEY])


def test_withdrawals_come_first() -> None:
    assert [type(change) for change in decode_update(update(GOOD, PREFIX, "18 c0a802"), INTERNAL)] == [Unreach, Reach]


def test_host_bits_are_cleared_so_that_one_prefix_is_one_key() -> None:
    """RFC 4271 section 4.3: the value of trailing bits is irrelevant. Alone, and between prefixes of other lengths."""
    for announced in ("17 c0a8ff", "17 c0a8ff 08 0a", "08 0a 17 c0a8ff"):
        change = one(update(GOOD, announced))
        assert isinstance(change, Reach)
        assert bytes.fromhex("17c0a8fe") in change.prefixes


# --- treat as withdraw: RFC 7606 sections 3 and 7 ---

WITHDRAWS = {
    "3.c flags: ORIGIN said to be optional": GOOD.replace("400101", "c00101"),
    "3.c flags: MED said to be transitive": f"{GOOD} c00404 00000001",
    "3.c flags: COMMUNITIES said not to be transitive": f"{GOOD} 800804 00000001",
    "3.c flags: ATOMIC_AGGREGATE said to be optional": f"{GOOD} c00600",
    "3.d no ORIGIN": GOOD.replace(ORIGIN, ""),
    "3.d no AS_PATH": GOOD.replace(AS_PATH, ""),
    "3.d no NEXT_HOP": GOOD.replace(NEXT_HOP, ""),
    "4 the last attribute runs over the end": GOOD[:-2],
    "4 two octets behind the last attribute": f"{GOOD} 4005",
    "4 extended length without its second octet": f"{GOOD} d00801",
    "7.1 ORIGIN of two octets": GOOD.replace(ORIGIN, "400102 0000"),
    "7.1 ORIGIN 3": GOOD.replace(ORIGIN, "400101 03"),
    "7.2 AS_PATH: segment type 7": GOOD.replace(AS_PATH, "400206 0701 0000fde8"),
    "7.2 AS_PATH: an empty segment": GOOD.replace(AS_PATH, "400202 0200"),
    "7.2 AS_PATH: a segment that runs over": GOOD.replace(AS_PATH, "400206 0202 0000fde8"),
    "7.2 AS_PATH: one octet behind it": GOOD.replace(AS_PATH, "400207 0201 0000fde8 02"),
    "RFC 7607: AS 0 in AS_PATH": GOOD.replace(AS_PATH, "400206 0201 00000000"),
    "7.3 NEXT_HOP of five octets": GOOD.replace(NEXT_HOP, "400305 0a00000100"),
    "RFC 4271 6.3: NEXT_HOP is multicast": GOOD.replace(NEXT_HOP, "400304 e0000001"),
    "RFC 4271 6.3: NEXT_HOP is 0.0.0.0": GOOD.replace(NEXT_HOP, "400304 00000000"),
    "7.4 MED of three octets": f"{GOOD} 800403 000001",
    "7.5 LOCAL_PREF of three octets": GOOD.replace(LOCAL_PREF, "400503 000001"),
    "7.8 COMMUNITIES of six octets": f"{GOOD} c00806 000000010002",
    "7.8 COMMUNITIES of none": f"{GOOD} c00800",
    "7.9 ORIGINATOR_ID of three octets": f"{GOOD} 800903 000001",
    "7.10 CLUSTER_LIST of five octets": f"{GOOD} 800a05 0000000100",
    "7.10 CLUSTER_LIST of none": f"{GOOD} 800a00",
    "7.14 EXTENDED COMMUNITIES of seven octets": f"{GOOD} c01007 00020003000400",
    "RFC 8092: LARGE_COMMUNITY of eleven octets": f"{GOOD} c0200b 0000000100000002000003",
    "RFC 8092: LARGE_COMMUNITY of none": f"{GOOD} c02000",
}


@pytest.mark.parametrize("case", WITHDRAWS)
def test_treated_as_withdraw(case: str) -> None:
    """The prefixes go, the session stays, and the reason says which attribute it was."""
    decoder = UpdateDecoder(INTERNAL)
    [change] = decoder.decode(update(WITHDRAWS[case], PREFIX))
    assert isinstance(change, Unreach)
    assert change.prefixes == [KEY]
    assert change.reason
    assert (decoder.withdrawn, decoder.last_problem) == (1, change.reason)
    assert decoder.decode(update(GOOD, PREFIX)), "the next UPDATE is not concerned"


@pytest.mark.parametrize("case", [case for case in WITHDRAWS if "NEXT_HOP" not in case])
def test_treated_as_withdraw_in_ipv6(case: str) -> None:
    """The same for what MP_REACH_NLRI announces; NEXT_HOP does not concern it."""
    change = one(update(V6_REACH + WITHDRAWS[case]))
    assert isinstance(change, Unreach)
    assert change.prefixes == [V6_KEY]


@pytest.mark.parametrize("case", [case for case in WITHDRAWS if not case.startswith("3.d") and "NEXT_HOP" not in case])
def test_an_error_without_any_prefix_ends_the_session(case: str) -> None:
    """RFC 7606 section 5.2: nobody can say what was to be withdrawn."""
    no_prefix = f"800e15 0002 01 10 {V6_HOST} 00"
    for multiprotocol in ("", "800f0c 0002 01 40 20010db800010000", no_prefix):
        with pytest.raises(BgpError) as raised:
            decode_update(update(f"{multiprotocol} {WITHDRAWS[case]}"), INTERNAL)
        assert raised.value.notification.code == 3


def test_next_hop_is_ignored_where_mp_reach_has_its_own() -> None:
    """RFC 4760 section 3."""
    for next_hop in ("", "400305 0a00000100", NEXT_HOP):
        change = one(update(V6_REACH + GOOD.replace(NEXT_HOP, next_hop)))
        assert isinstance(change, Reach)
        assert change.attributes.next_hop == bytes.fromhex(V6_HOST)


# --- attribute discard ---

DISCARDS = {
    "3.g ORIGIN twice: the first counts": (INTERNAL, f"{GOOD} 400101 02"),
    "3.g an unknown one twice": (INTERNAL, f"{GOOD} c06301 aa c06301 bb"),
    "7.5 LOCAL_PREF from another AS": (EXTERNAL, GOOD),
    "7.5 LOCAL_PREF from another AS, also a wrong one": (EXTERNAL, GOOD.replace(LOCAL_PREF, "400501 00")),
    "7.6 ATOMIC_AGGREGATE of one octet": (INTERNAL, f"{GOOD} 400601 00"),
    "7.7 AGGREGATOR of six octets": (INTERNAL, f"{GOOD} c00706 fde80a000001"),
    "7.7 AGGREGATOR of eight octets in two-octet AS numbers": (OLD, f"{GOOD} c00708 0000fde80a000001"),
    "RFC 7607: AGGREGATOR with AS 0": (INTERNAL, f"{GOOD} c00708 000000000a000001"),
    "7.9 ORIGINATOR_ID from another AS": (EXTERNAL, f"{GOOD} 800904 00000001"),
    "7.10 CLUSTER_LIST from another AS": (EXTERNAL, f"{GOOD} 800a04 00000001"),
    "RFC 6793: AS4_PATH from a peer that speaks four octets": (INTERNAL, f"{GOOD} c01106 0201 0000fde8"),
    "RFC 6793 section 6: AS4_AGGREGATOR of six octets": (OLD, f"{GOOD} c01206 00000000fde8"),
    "RFC 6793 section 6: AS4_PATH with an empty segment": (OLD, f"{GOOD} c01102 0200"),
    "RFC 6793 section 6: AS4_PATH with AS 0": (OLD, f"{GOOD} c01106 0201 00000000"),
}


@pytest.mark.parametrize("case", DISCARDS)
def test_discarded(case: str) -> None:
    """The route stays, without the attribute; it is counted, also when the block is known from before."""
    context, text = DISCARDS[case]
    if context is OLD:
        text = text.replace(AS_PATH, "400204 0201 fde8")
    decoder = UpdateDecoder(context)
    for times in (1, 2):
        [change] = decoder.decode(update(text, PREFIX))
        assert isinstance(change, Reach)
        assert change.attributes.origin is Origin.IGP
        assert not change.attributes.atomic_aggregate
        assert change.attributes.aggregator is None
        assert change.attributes.originator_id is None
        assert change.attributes.cluster_list == ()
        assert change.attributes.as_path == ((SegmentType.SEQUENCE, (65000,)),)
        assert change.attributes.local_pref == (100 if context.internal else None)
        assert change.attributes.unknown in ((), ((0xC0, 0x63, b"\xaa"),))
        assert decoder.discarded >= times
        assert decoder.last_problem


# --- session reset ---

RESETS = {
    "withdrawn routes run over the end (3/1)": (bytes.fromhex("0009 0000".replace(" ", "")), 1),
    "attributes run over the end (3/1)": (bytes.fromhex("0000 0009 00".replace(" ", "")), 1),
    "RFC 4271 6.3: well-known and unknown (3/2)": (update(f"{GOOD} 406300", PREFIX), 2),
    "3.g MP_REACH_NLRI twice (3/1)": (update(V6_REACH * 2 + GOOD), 1),
    "3.g MP_UNREACH_NLRI twice (3/1)": (update("800f03000201" * 2 + GOOD), 1),
    "3.j prefix of 33 bits (3/10)": (update(GOOD, "21 c0a8010000"), 10),
    "3.j prefix runs over the end (3/10)": (update(GOOD, "18 c0a8"), 10),
    "3.i the same in what is withdrawn": (update(GOOD, "", "21 c0a8010000"), 10),
    "3.i withdrawn prefix runs over": (update("", "", "18 c0a8"), 10),
    "5.3 IPv6 prefix of 129 bits": (update(f"{GOOD} 800e17 0002 01 10 {V6_HOST} 00 8100"), 10),
    "7.11 MP_REACH_NLRI of four octets": (update(GOOD + "800e04 00020110"), 9),
    "7.11 IPv6 next hop of five octets": (update(GOOD + "800e0a 0002 01 05 2001000001 00"), 9),
    "7.11 next hop runs over": (update(GOOD + "800e06 0002 01 10 2000"), 9),
    "7.11 IPv6 with an IPv4 next hop": (update(GOOD + "800e09 0002 01 04 0a000001 00"), 9),
    "RFC 8950 not negotiated: IPv4 with an IPv6 next hop": (update(f"800e19 0001 01 10 {V6_HOST} 00 {PREFIX}"), 9),
    "7.12 MP_UNREACH_NLRI of two octets": (update("800f02 0002"), 9),
}  # fmt: skip


@pytest.mark.parametrize("case", RESETS)
def test_ends_the_session(case: str) -> None:
    body, subcode = RESETS[case]
    with pytest.raises(BgpError) as raised:
        decode_update(body, INTERNAL)
    assert (raised.value.notification.code, raised.value.notification.subcode) == (3, subcode)


def test_the_unknown_well_known_attribute_is_quoted() -> None:
    """RFC 4271 section 6.3: the data is the attribute, type, length and value."""
    with pytest.raises(BgpError) as raised:
        decode_update(update(f"{GOOD} 406302 abcd", PREFIX), INTERNAL)
    assert raised.value.notification.data == bytes.fromhex("406302abcd")


def test_flags_of_mp_attributes_withdraw() -> None:
    """RFC 7606 3.c; an UPDATE that only withdraws is understood all the same."""
    change = one(update(V6_REACH.replace("800e", "c00e") + GOOD))
    assert isinstance(change, Unreach)
    assert change.reason
    assert isinstance(one(update("c00f0c 0002 01 40 20010db800010000".replace(" ", ""))), Unreach)


# --- families ---


def test_families_that_were_not_negotiated_are_ignored() -> None:
    """RFC 4760 section 6: also others than unicast, and next hops of any form in them."""
    only_v4 = Context(internal=True, families=frozenset({Family.IPV4}))
    decoder = UpdateDecoder(only_v4)
    assert [type(change) for change in decoder.decode(update(V6_REACH + GOOD, PREFIX))] == [Reach]
    assert decoder.decode(update("800e0c 0001 80 03 aabbcc 00 18c0a801" + GOOD)) == []
    assert decoder.decode(update("800f06 4004 47 112233")) == []
    assert decoder.ignored == 3
    assert decode_update(update(GOOD, PREFIX), Context(internal=True, families=frozenset({Family.IPV6}))) == []


def test_end_of_rib() -> None:
    """RFC 4724 section 2: an UPDATE of nothing, or one that withdraws nothing of a family, and holds nothing else."""
    assert one(bytes(4)) == EndOfRib(Family.IPV4)
    assert one(update("800f03 000201")) == EndOfRib(Family.IPV6)
    assert one(update("900f0003 000201")) == EndOfRib(Family.IPV6)
    assert one(update("800f03 000101")) == EndOfRib(Family.IPV4)
    assert decode_update(update("800f03 000201", "", "18 c0a801"), INTERNAL) == [Unreach(Family.IPV4, [KEY])]


def test_ipv6_next_hops() -> None:
    """RFC 2545 section 3: one address, or a global and a link-local one; BIRD writes :: when it has no global one."""
    link_local = "fe80" + "00" * 13 + "05"

    def next_hop(raw: str) -> Attributes:
        change = one(
            update(f"800e{5 + len(raw) // 2 + 9:02x} 0002 01 {len(raw) // 2:02x} {raw} 00 {V6_KEY.hex()}" + GOOD)
        )
        assert isinstance(change, Reach)
        return change.attributes

    glob, local = bytes.fromhex(V6_HOST), bytes.fromhex(link_local)
    assert (next_hop(V6_HOST).next_hop, next_hop(V6_HOST).link_local) == (glob, b"")
    assert (next_hop(V6_HOST + link_local).next_hop, next_hop(V6_HOST + link_local).link_local) == (glob, local)
    assert next_hop("00" * 16 + link_local).next_hop == local
    assert next_hop(V6_HOST + "20" * 16).link_local == b""
    with pytest.raises(AssertionError):
        next_hop("ff02" + "00" * 14)  # multicast: treated as withdraw


def test_ipv4_over_ipv6_next_hop() -> None:
    """RFC 8950, in and out."""
    context = Context(internal=True, extended_next_hop=True)
    attributes = Attributes(next_hop=bytes.fromhex(V6_HOST), local_pref=1)
    [message] = encode_reach(
        encode_attributes(attributes, Family.IPV4, context), attributes, Family.IPV4, [KEY], context
    )
    assert bytes.fromhex("800e" if message[23] == 0x80 else "900e") == message[23:25]
    assert one(message[19:], context) == Reach(Family.IPV4, attributes, [KEY])


def test_path_identifiers() -> None:
    """RFC 7911 section 3, in what is announced and withdrawn."""
    context = Context(internal=True, add_path_receive=frozenset({Family.IPV4}))
    found = decode_update(update(GOOD, "00000007 18c0a801 00000008 18c0a801", "00000009 08 0a"), context)
    assert [change.path_ids for change in found if not isinstance(change, EndOfRib)] == [[9], [7, 8]]
    for broken in ("000000", "00000007", "00000007 18c0a8", "00000007 21c0a8010203"):
        with pytest.raises(BgpError) as raised:
            decode_update(update(GOOD, broken), context)
        assert raised.value.notification.subcode == 10


# --- attributes that are not ours ---


def test_unknown_transitive_attributes_are_passed_on_with_the_partial_bit() -> None:
    """RFC 4271 section 5; OTC (RFC 9234) is one of them. Those that are not transitive end here."""
    attributes = attributes_of(f"{GOOD} c02304 0000fde8 806301 aa")
    assert attributes.unknown == ((0xC0, 35, bytes.fromhex("0000fde8")),)
    block = encode_attributes(attributes, Family.IPV4, INTERNAL)
    assert block.endswith(bytes.fromhex("e023040000fde8"))


def test_the_partial_bit_of_known_attributes_stays() -> None:
    """RFC 4271 section 5: "it cannot be set back to 0 by any other AS"."""
    attributes = attributes_of(f"{GOOD} e00804 00010002")
    assert bytes.fromhex("e0080400010002") in encode_attributes(attributes, Family.IPV4, INTERNAL)


def test_to_another_as_go_no_internal_attributes() -> None:
    """RFC 4271 5.1.5, RFC 4456 section 8, RFC 4360 section 6."""
    attributes = attributes_of(f"{GOOD} 800904 00000001 800a04 00000002 c01010 0002000000000001 4002000000000001")
    block = encode_attributes(attributes, Family.IPV4, EXTERNAL)
    assert attributes_of(block.hex(), EXTERNAL) == Attributes(
        as_path=attributes.as_path, next_hop=attributes.next_hop, extended=(bytes.fromhex("0002000000000001"),)
    )
    assert bytes.fromhex("800904") not in block


def test_local_pref_is_there_for_internal_peers() -> None:
    """RFC 4271 section 5.1.5: SHALL be included."""
    assert bytes.fromhex(LOCAL_PREF.replace(" ", "")) in encode_attributes(
        Attributes(next_hop=b"\x0a\0\0\1"), Family.IPV4, INTERNAL
    )


def test_confederation_segments_from_another_as_are_malformed() -> None:
    """RFC 5065 section 5."""
    text = GOOD.replace(AS_PATH, "400206 0301 0000fde8")
    assert isinstance(one(update(text, PREFIX), EXTERNAL), Unreach)
    assert attributes_of(text).path_length == 0


def test_duplicate_large_communities_are_one() -> None:
    """RFC 8092 section 3."""
    assert attributes_of(f"{GOOD} c02018" + "000000010000000200000003" * 2).large == ((1, 2, 3),)


# --- AS numbers of two octets: RFC 6793 ---

SEQ, SET = SegmentType.SEQUENCE, SegmentType.SET
AS4_CASES = {
    # AS_PATH in two octets, AS4_PATH, what they come to (section 4.2.3)
    "the whole path": ("0202 5ba0 fde8", "0202 000186a0 0000fde8", ((SEQ, (100000, 65000)),)),
    "two-octet routers prepended": ("0203 0001 5ba0 fde8", "0202 000186a0 0000fde8", ((SEQ, (1, 100000, 65000)),)),
    "a set in front counts as one": (
        "0102 0001 0002 0201 5ba0",
        "0201 000186a0",
        ((SET, (1, 2)), (SEQ, (100000,))),
    ),
    "a longer AS4_PATH is ignored": ("0201 5ba0", "0202 000186a0 0000fde8", ((SEQ, (23456,)),)),
    "confederation segments in AS4_PATH are dropped": ("0201 5ba0", "0301 00000009 0201 000186a0", ((SEQ, (100000,)),)),
}


@pytest.mark.parametrize("case", AS4_CASES)
def test_as4_path_is_merged(case: str) -> None:
    two, four, expected = AS4_CASES[case]
    two, four = two.replace(" ", ""), four.replace(" ", "")
    text = f"{ORIGIN} 4002{len(two) // 2:02x}{two} {NEXT_HOP} c011{len(four) // 2:02x}{four}"
    assert attributes_of(text, OLD).as_path == expected


def test_as4_aggregator() -> None:
    """RFC 6793 section 4.2.3: it counts when AGGREGATOR says AS_TRANS; else both AS4 attributes are stale."""
    base = f"{ORIGIN} 400204 0201 5ba0 {NEXT_HOP} c01106 0201 000186a0 c01208 000186a0 0a000009"
    attributes = attributes_of(f"{base} c00706 5ba0 0a000009", OLD)
    assert attributes.aggregator == (100000, b"\x0a\0\0\x09")
    assert attributes.first_as == 100000
    attributes = attributes_of(f"{base} c00706 fde8 0a000008", OLD)
    assert attributes.aggregator == (65000, b"\x0a\0\0\x08")
    assert attributes.first_as == 23456
    alone = f"{ORIGIN} 400204 0201 5ba0 {NEXT_HOP} c01106 0201 000186a0 c00706 fde8 0a000008"
    assert attributes_of(alone, OLD).first_as == 100000  # its number fits into two octets: nothing is stale


def test_to_a_two_octet_peer() -> None:
    """RFC 6793 section 4.2.2: AS_TRANS and the AS4 attributes, these only when they say more."""
    big = Attributes(as_path=((SEQ, (100000, 65000)),), next_hop=b"\x0a\0\0\1", aggregator=(100000, b"\x0a\0\0\1"))
    block = encode_attributes(big, Family.IPV4, OLD)
    assert bytes.fromhex("40020602025ba0fde8") in block
    assert bytes.fromhex("c0110a0202000186a00000fde8") in block
    assert attributes_of(block.hex(), OLD) == big
    small = Attributes(as_path=((SEQ, (65000,)),), next_hop=b"\x0a\0\0\1", aggregator=(65000, b"\x0a\0\0\1"))
    block = encode_attributes(small, Family.IPV4, OLD)
    assert b"\xc0\x11" not in block
    assert b"\xc0\x12" not in block


def test_long_paths_are_split_into_segments() -> None:
    """A segment counts its numbers in one octet."""
    path = ((SEQ, tuple(range(1, 301))),)
    attributes = attributes_of(
        encode_attributes(Attributes(as_path=path, next_hop=b"\x0a\0\0\1"), Family.IPV4, INTERNAL).hex()
    )
    assert [len(numbers) for _, numbers in attributes.as_path] == [255, 45]
    assert attributes.path_length == 300


def test_attributes_too_long_for_the_peer_withdraw() -> None:
    """RFC 8654 section 4: came in a long message, goes to a peer without; it must not keep an older route."""
    attributes = Attributes(next_hop=b"\x0a\0\0\1", communities=tuple(range(1100)))
    for family, key in ((Family.IPV4, KEY), (Family.IPV6, V6_KEY)):
        [message] = encode_reach(encode_attributes(attributes, family, INTERNAL), attributes, family, [key], INTERNAL)
        assert one(message[19:]) == Unreach(family, [key])
        long = Context(internal=True, max_message=65535)
        [message] = encode_reach(encode_attributes(attributes, family, long), attributes, family, [key], long)
        change = one(message[19:], long)
        assert isinstance(change, Reach)
        assert change.attributes.next_hop[-4:] == b"\x0a\0\0\1"


def test_memory_for_attributes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer may send a different block each time."""
    monkeypatch.setattr("services.bgp.core.wire.update._CACHED", 10)
    decoder = UpdateDecoder(INTERNAL)
    for med in range(100):
        decoder.decode(update(f"{GOOD} 800404 {med:08x}", PREFIX))
        decoder.decode(update(f"{V6_REACH}{GOOD} 800404 {med:08x}"))
    assert len(decoder._blocks) <= 10
    assert len(decoder._multiprotocol) <= 10
    decoder.decode(update(f"{GOOD} d008 0800" + "00" * 2048, PREFIX))
    assert max(map(len, decoder._blocks)) < 1024
