"""The selector language: what parses, to which canonical text and id, and what matches."""

from __future__ import annotations

import pytest

from libs.model.selector import Restriction, SelectorError, combine, parse, unique_id


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", "all()"),
        (" \t", "all()"),
        ("all( )", "all()"),
        ("global()", "global()"),
        ("has( a )", "has(a)"),
        ("a=='b'", 'a == "b"'),
        ('a != "it\'s"', 'a != "it\'s"'),
        ("a == '\"'", "a == '\"'"),
        ("a in {'c', \"b\",'c',}", 'a in {"b", "c"}'),
        ("a in{}", "a in {}"),
        ("a notin {'b'}", 'a not in {"b"}'),
        ("a not  in {'b'}", 'a not in {"b"}'),
        ("a startswith 'b'", 'a starts with "b"'),
        ("a ends\twith 'b'", 'a ends with "b"'),
        ("a contains ''", 'a contains ""'),
        ("a == 'b' && b == 'c' && has(d)", '(a == "b" && b == "c" && has(d))'),
        ("(a == 'b' && b == 'c') && has(d)", '((a == "b" && b == "c") && has(d))'),
        ("has(a) || has(b) && has(c)", "(has(a) || (has(b) && has(c)))"),
        ("! ! ! has(a)", "!has(a)"),
        ("!!has(a)", "has(a)"),
        ("!(!has(a))", "!!has(a)"),
        ("((has(a)))", "has(a)"),
        ("has == 'x' && in in {'y'} && all != 'z'", '(has == "x" && in in {"y"} && all != "z")'),
        ("projectcalico.org/name == 'x'", 'projectcalico.org/name == "x"'),
    ],
)
def test_text_has_canonical_form(text: str, canonical: str) -> None:
    assert parse(text).canonical == canonical


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("a", 1),
        ("a = 'b'", 2),
        ("a == b", 5),
        ("a == 'b", 5),
        ("has(a", 5),
        ("has()", 4),
        ("all(", 4),
        ("has(a) & has(b)", 7),
        ("has(a) |", 7),
        ("has(a) has(b)", 7),
        ("(has(a)", 7),
        ("has(a))", 6),
        ("a in {'b' 'c'}", 10),
        ("a in {,}", 6),
        ("a in 'b'", 5),
        ("a starts", 2),
        ("a inside {'b'}", 2),
        ("&& has(a)", 0),
        ("é == 'b'", 0),
        ("a\n== 'b'", 1),
        ("x" * 513 + " == 'b'", 0),
    ],
)
def test_error_tells_where(text: str, position: int) -> None:
    with pytest.raises(SelectorError) as caught:
        parse(text)
    assert caught.value.position == position
    assert str(position) in str(caught.value)


def test_endless_nesting_is_an_error_and_no_crash() -> None:
    with pytest.raises(SelectorError, match="nested too deeply"):
        parse("(" * 100_000)


@pytest.mark.parametrize(
    ("text", "set_id"),
    [
        ("all()", "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug"),
        ("a == 'b'", "s:flMh0m0X_BowkAK_W3j3MgH8oQOsj3WxGDoXCQ"),
    ],
)
def test_id_is_what_calico_calls_the_set(text: str, set_id: str) -> None:
    assert parse(text).id == set_id


def test_named_port_id_hashes_the_selector_id_the_protocol_and_the_name() -> None:
    assert unique_id("n", f"{parse('all()').id},udp,dns") == "n:wBUuGT_s8isCYKpah3eXsbdmUcK81NRtDXrUEA"


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("a == 'b'", {"a": "b"}, True),
        ("a == 'b'", {}, False),
        ("a != 'b'", {}, True),
        ("a in {'b', 'c'}", {"a": "c"}, True),
        ("a in {}", {"a": ""}, False),
        ("a not in {'b'}", {}, True),
        ("a not in {'b'}", {"a": "b"}, False),
        ("a contains 'x'", {"a": "axa"}, True),
        ("a contains ''", {}, False),
        ("a starts with 'x'", {"a": "xa"}, True),
        ("a ends with 'x'", {"a": "xa"}, False),
        ("has(a)", {"a": ""}, True),
        ("!has(a)", {"a": ""}, False),
        ("global()", {}, True),
        ("has(a) && has(b) && has(c)", {"a": "", "b": "", "c": ""}, True),
        ("has(a) || has(b) || has(c)", {"c": ""}, True),
        ("!(has(a) || has(b))", {"b": ""}, False),
    ],
)
def test_match(text: str, labels: dict[str, str], expected: bool) -> None:
    assert parse(text).matches(labels) is expected


@pytest.mark.parametrize(
    ("text", "restrictions"),
    [
        ("all()", {}),
        ("a == 'b'", {"a": Restriction(("b",))}),
        ("a != 'b'", {}),
        ("has(a) && a in {'c', 'b'}", {"a": Restriction(("b", "c"))}),
        ("a == 'b' && a == 'c'", {"a": Restriction(())}),
        ("!has(a) && has(a)", {"a": Restriction(())}),
        ("a == 'b' || a in {'c'}", {"a": Restriction(("b", "c"))}),
        ("a == 'b' || has(b)", {}),
        ("a starts with 'b' || a == 'c'", {"a": Restriction()}),
        ("!has(a) || !has(a)", {"a": Restriction(absent=True)}),
        ("!(a not in {'b'})", {"a": Restriction(("b",))}),
    ],
)
def test_restrictions_are_what_every_match_needs(text: str, restrictions: dict[str, Restriction]) -> None:
    assert dict(parse(text).restrictions) == restrictions


def test_prefix_goes_before_every_key_and_leaves_values_alone() -> None:
    prefixed = parse("a == 'a' && !(b in {'b'}) || has(c) || all()").prefixed("pcns.")
    assert prefixed.canonical == '((pcns.a == "a" && !pcns.b in {"b"}) || has(pcns.c) || all())'


def test_combined_selectors_are_one_conjunction() -> None:
    assert combine(parse("has(a)"), parse("has(b)")).canonical == parse("(has(a)) && (has(b))").canonical


def test_parsing_is_cached() -> None:
    assert parse("has(cached)") is parse("has(cached)")
