"""Label and field selectors as Kubernetes reads them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.model import kinds
from libs.model.base import ObjectMeta
from libs.model.policy import NetworkPolicy, NetworkPolicySpec
from services.apiserver.core import selectors
from services.apiserver.core.selectors import Requirement, Selection, parse_fields, parse_labels, tiers_named
from services.apiserver.core.status import ApiError

POLICY = kinds.kind("NetworkPolicy")


def code(call: Callable[[], object]) -> int:
    """Of the error that it raises, 0 for none."""
    try:
        call()
    except ApiError as error:
        return error.code
    return 0


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", ()),
        ("a", (Requirement("a", "exists"),)),
        ("!a", (Requirement("a", "!"),)),
        (" a = b ", (Requirement("a", "in", ("b",)),)),
        ("a==b,c!=d", (Requirement("a", "in", ("b",)), Requirement("c", "notin", ("d",)))),
        ("a in (b, c),d notin (e)", (Requirement("a", "in", ("b", "c")), Requirement("d", "notin", ("e",)))),
        ("a=", (Requirement("a", "in", ("",)),)),
        ("a=,b", (Requirement("a", "in", ("",)), Requirement("b", "exists"))),
        ("a in ()", (Requirement("a", "in", ("",)),)),
        ("a in (,b)", (Requirement("a", "in", ("", "b")),)),
        ("in in (in),notin", (Requirement("in", "in", ("in",)), Requirement("notin", "exists"))),
        ("x.io/y>1,z<2", (Requirement("x.io/y", "gt", ("1",)), Requirement("z", "lt", ("2",)))),
    ],
)
def test_label_selectors_are_read(text: str, wanted: tuple[Requirement, ...]) -> None:
    assert parse_labels(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["=b", "a b", "a,,b", "a,", "a in b", "a in (b", "a in (b c)", "a=b=c", "!", "!a=b", "-a", "a=-", "a>x", "x/"],
)  # fmt: skip
def test_what_is_no_label_selector_is_a_bad_request(text: str) -> None:
    with pytest.raises(ApiError) as refused:
        parse_labels(text)
    assert refused.value.code == 400


@pytest.mark.parametrize(
    ("text", "labels", "wanted"),
    [
        ("a", {"a": ""}, True),
        ("a!=b", {}, True),
        ("a notin (b,c)", {"a": "c"}, False),
        ("!a", {"a": "x"}, False),
        ("a=", {}, False),
        ("a=", {"a": ""}, True),
        ("a>5", {"a": "6"}, True),
        ("a>5", {"a": "5"}, False),
        ("a<5", {"a": "x"}, False),
        ("a<5", {}, False),
        ("a,b=c", {"a": "1", "b": "d"}, False),
    ],
)
def test_label_selectors_match(text: str, labels: dict[str, str], wanted: bool) -> None:
    policy = NetworkPolicy(metadata=ObjectMeta(name="x", labels=labels))
    assert Selection(labels=parse_labels(text)).keep(policy) is wanted


def test_fields_are_those_of_the_kind() -> None:
    policy = NetworkPolicy(metadata=ObjectMeta(name="a,b", namespace="n"), spec=NetworkPolicySpec(tier="sec"))
    for text, wanted in (
        (r"metadata.name=a\,b", True),
        (r"metadata.name==a\,b,spec.tier=sec", True),
        ("metadata.namespace!=n", False),
        ("spec.tier!=sec", False),
        ("", True),
    ):
        assert Selection(fields=parse_fields(text, POLICY)).keep(policy) is wanted, text
    for kind, field in (("Tier", "metadata.namespace"), ("NetworkSet", "spec.tier"), ("NetworkPolicy", "spec.order")):
        with pytest.raises(ApiError, match=f"field label not supported: {field}"):
            parse_fields(f"{field}=x", kinds.kind(kind))


def test_tiers_are_named_by_label_before_field() -> None:
    def named(labels: str, fields: str = "") -> object:
        return tiers_named(parse_labels(labels), parse_fields(fields, POLICY))

    assert named("projectcalico.org/tier=a", "spec.tier=b") == ("a",)
    assert named("projectcalico.org/tier in (a,b)") == ("a", "b")
    assert named("projectcalico.org/tier!=a", "spec.tier=b") == ("b",)
    assert named("app=x", "spec.tier!=b") is None


def test_a_policy_without_a_tier_is_in_default() -> None:
    policy = NetworkPolicy(metadata=ObjectMeta(name="a"))
    assert Selection(tiers=frozenset({"default"})).keep(policy)
    assert not Selection(tiers=frozenset({"sec"})).keep(policy)


@given(st.text(alphabet="ab=!(), <>intx./-é\\", max_size=30))
def test_any_text_is_a_selector_or_a_bad_request(text: str) -> None:
    for parse in (parse_labels, lambda each: selectors.parse_fields(each, POLICY)):
        assert code(lambda parse=parse: parse(text)) in (0, 400)
