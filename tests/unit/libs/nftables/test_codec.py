from __future__ import annotations

import pytest

from libs.nftables.codec import decode_comment, encode_comment, encode_expr, encode_rule, normalise
from libs.nftables.messages import BatchBuilder, decode_elements, decode_rule, decode_set
from libs.nftables.model import (
    ACCEPT,
    COUNTER,
    Base,
    DataType,
    Family,
    Field,
    Hook,
    InSet,
    Match,
    SetDscp,
    Table,
    rule,
)
from libs.nftables.ops import AddElements, DelElements, NewChain, SetSpec
from libs.nftables.types import ElementError, pack_elements

NFPROTO = encode_expr(Match(Field.NFPROTO, "ipv4"))
ICMP = encode_expr(Match(Field.L4PROTO, "icmp"))


def test_inet_rule_tests_the_family_once_before_an_address() -> None:
    one, two = Match(Field.IP_SADDR, "10.0.0.1"), Match(Field.IP_DADDR, "10.0.0.2")
    assert encode_rule(Family.INET, rule(one, two)).expressions == NFPROTO + encode_expr(one) + encode_expr(two)
    assert encode_rule(Family.IP, rule(one)).expressions == encode_expr(one)


def test_icmp_type_is_preceded_by_its_protocol_unless_the_rule_tests_it() -> None:
    kind = Match(Field.ICMP_TYPE, 8)
    assert encode_rule(Family.IP, rule(kind)).expressions == ICMP + encode_expr(kind)
    tested = rule(Match(Field.L4PROTO, "icmp"), kind)
    assert encode_rule(Family.IP, tested).expressions == ICMP + encode_expr(kind)


def test_dscp_is_written_to_headers_of_its_family_only() -> None:
    assert encode_rule(Family.INET, rule(SetDscp(Family.IP, 10))).expressions.startswith(NFPROTO)


def test_counters_are_normalised_wherever_they_stand() -> None:
    counted = encode_expr(COUNTER)
    busy = counted[:24] + b"\1\2\3\4\5\6\7\n" + counted[32:36] + b"\\g<0>\xff\xff\xff"
    lookup = encode_expr(InSet((Field.IP_SADDR,), "s"))
    assert len(busy) == len(counted)
    assert normalise(busy + lookup + busy) == counted + lookup + counted
    assert normalise(lookup) == lookup


@pytest.mark.parametrize("comment", ["cali:abc; policy", "é", ""])
def test_comment_round_trip(comment: str) -> None:
    assert decode_comment(encode_comment(comment)) == comment


def test_long_comment_is_cut_between_characters() -> None:
    assert decode_comment(encode_comment("é" * 100)) == "é" * 63


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (Match(Field.IP_SADDR, "10.0.0.1/8"), "beyond its prefix"),
        (Match(Field.IIFNAME, "*"), "matches everything"),
        (Match(Field.MARK, "1-2"), "cannot|ends before"),
        (Match(Field.DPORT, 70000), "does not fit"),
        (SetDscp(Family.IP, 64), "0 to 63"),
        (InSet((Field.IIFNAME, Field.OIFNAME, Field.IP6_SADDR, Field.IP6_DADDR, Field.DPORT), "s"), "at most 64"),
    ],
)
def test_value_that_does_not_fit_is_refused(bad: Match | SetDscp | InSet, words: str) -> None:
    with pytest.raises(ElementError, match=words):
        encode_expr(bad)


def test_equal_rules_are_equal_bytes_and_others_are_not() -> None:
    one = encode_rule(Family.IP, rule(Match(Field.DPORT, 80), ACCEPT, comment="x"))
    assert one == encode_rule(Family.IP, rule(Match(Field.DPORT, "80"), ACCEPT, comment="x"))
    assert one != encode_rule(Family.IP, rule(Match(Field.DPORT, 80), ACCEPT, comment="y"))


def test_elements_fill_messages_below_the_limit_of_a_nest() -> None:
    spec = SetSpec("s", (DataType.IPV6,), interval=True)
    builder = BatchBuilder(Table(Family.IP6, "cal"))
    elements = sorted(pack_elements(spec.key, [f"fd00:{i:x}::/64" for i in range(5000)], interval=True))
    builder.add(AddElements(spec, elements))
    assert len(builder.messages) > 1
    assert all(len(m.body) < 65_000 for m in builder.messages)
    found: set[bytes] = set()
    for m in builder.messages:
        found |= decode_elements([m.body], spec)[0]
    assert found == set(elements)


def test_element_at_fault_is_found_by_its_offset() -> None:
    spec = SetSpec("s", (DataType.IPV4,))
    builder = BatchBuilder(Table(Family.IP, "cal"))
    elements = sorted(pack_elements(spec.key, [f"10.0.0.{i}" for i in range(9)], interval=False))
    builder.add(DelElements(spec, elements))
    (only,) = builder.messages
    at = 16 + only.body.index(bytes((10, 0, 0, 5))) - 12
    assert only.about(at) == "element 10.0.0.5 of set s"
    assert only.about(None) == "9 elements of set s"


def test_hook_that_the_family_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="no hook forward"):
        BatchBuilder(Table(Family.ARP, "a")).add(NewChain("c", Base(Hook.FORWARD)))


def test_truncated_listings_raise_value_error() -> None:
    builder = BatchBuilder(Table(Family.IP, "cal"))
    builder.add(AddElements(SetSpec("s", (DataType.IPV4,)), [bytes(4)]))
    body = builder.messages[0].body
    with pytest.raises(ValueError, match="claims"):
        decode_rule(body[:-3])
    with pytest.raises(ValueError, match="claims"):
        decode_set(body[:-3])
