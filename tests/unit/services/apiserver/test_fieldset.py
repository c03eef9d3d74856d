"""FieldsV1: reading, writing, order, algebra, and what is refused."""

from __future__ import annotations

import json

import pytest

from services.apiserver.core.fieldset import (
    MAX_DEPTH,
    FieldsError,
    FieldSet,
    field_element,
    index_element,
    key_element,
    path_text,
    value_element,
)

A, B, C = ("f:a",), ("f:a", "f:b"), ("f:c",)


def test_members_and_what_lies_below_are_told_apart() -> None:
    written = {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:order": {}}}
    found = FieldSet.from_json(written)
    assert ("f:metadata", "f:labels") in found
    assert ("f:metadata", "f:labels", "f:app") in found
    assert ("f:metadata",) not in found
    assert ("f:spec", "f:order", "f:x") not in found
    assert () not in found
    assert len(found) == 3
    assert found.to_json() == written


def test_written_in_kubernetes_order() -> None:
    """Fields, then elements by keys, by value (numbers before text before booleans), by index."""
    elements = [
        index_element(10),
        index_element(9),
        value_element(True),
        value_element("b"),
        value_element(2),
        value_element(10),
        key_element({"uid": "b"}),
        key_element({"port": 1, "name": "z"}),
        field_element("b"),
        field_element("B"),
    ]
    found = FieldSet({*elements}).to_json()
    assert list(found) == [
        *("f:B", "f:b", 'k:{"name":"z","port":1}', 'k:{"uid":"b"}', "v:2", "v:10", 'v:"b"', "v:true", "i:9", "i:10")
    ]


def test_the_element_itself_comes_before_what_lies_below() -> None:
    found = FieldSet.of(("f:a",), ("f:a", "f:b"))
    assert json.dumps(found.to_json()) == '{"f:a": {".": {}, "f:b": {}}}'


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ('k:{ "b": 1, "a": 2.0 }', 'k:{"a":2,"b":1}'),
        ("v:1.0", "v:1"),
        ("v:1.5", "v:1.5"),
        ('v:"a\\u0062"', 'v:"ab"'),
        ('v:"<é&>"', 'v:"\\u003cé\\u0026\\u003e"'),  # as Go's encoder escapes
        ("i: 3", "i:3"),
        ("f:", "f:"),
    ],
)
def test_elements_become_canonical(written: str, canonical: str) -> None:
    assert list(FieldSet.from_json({written: {}}).to_json()) == [canonical]


def test_two_spellings_of_one_element_are_one() -> None:
    found = FieldSet.from_json({'k:{"uid":"a"}': {"f:x": {}}, 'k:{ "uid":"a"}': {".": {}, "f:y": {}}})
    assert found.to_json() == {'k:{"uid":"a"}': {".": {}, "f:x": {}, "f:y": {}}}


def test_kinds_of_elements_of_a_later_day_are_left_out() -> None:
    assert FieldSet.from_json({"f:a": {"z:new": {"f:b": {}}}}) == FieldSet.of(A)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ([], "fieldsV1: expected an object"),
        ({"f:a": {"f:b": 1}}, "fieldsV1.a.b: expected an object"),
        ({"f:a": {"b": {}}}, "fieldsV1.a: 'b' is no path element"),
        ({"": {}}, "is no path element"),
        ({"v:": {}}, "not JSON"),
        ({"v:{}": {}}, "expected a scalar"),
        ({"v:[1]": {}}, "expected a scalar"),
        ({"v:NaN": {}}, "not JSON"),
        ({"v:1e999": {}}, "no value that JSON can hold"),
        ({'v:"\\ud800"': {}}, "no value that JSON can hold"),
        ({"v:" + "[" * 100_000: {}}, "not JSON"),
        ({"v:" + "9" * 10_000: {}}, "not JSON"),
        ({'k:["a"]': {}}, "expected an object of scalars"),
        ({'k:{"a":{}}': {}}, "expected an object of scalars"),
        ({'k:{"a":1': {}}, "not JSON"),
        ({"i:1.5": {}}, "expected a whole number"),
        ({"i:true": {}}, "expected a whole number"),
    ],
)
def test_bad_fields_are_refused_with_the_place(written: object, said: str) -> None:
    with pytest.raises(FieldsError) as caught:
        FieldSet.from_json(written)
    assert said in str(caught.value)
    assert len(str(caught.value)) < 300


def test_depth_is_bounded() -> None:
    deep: dict[str, object] = {}
    for _ in range(MAX_DEPTH + 2):
        deep = {"f:a": deep}
    with pytest.raises(FieldsError, match="nested more than"):
        FieldSet.from_json(deep)


def test_algebra_goes_member_by_member() -> None:
    both = FieldSet.of(A, B, C)
    assert FieldSet.of(A, B) | FieldSet.of(C) == both
    assert both & FieldSet.of(A, C, ("f:d",)) == FieldSet.of(A, C)
    assert both - FieldSet.of(A) == FieldSet.of(B, C)  # what lies below stays
    assert both.without(FieldSet.of(A)) == FieldSet.of(C)
    assert not both - both
    assert both - FieldSet.of(A, B, C) == FieldSet()


def test_paths_read_as_in_messages() -> None:
    path = ("f:metadata", "f:ownerReferences", key_element({"uid": 'a"b', "n": 1}), "f:name")
    assert path_text(path) == '.metadata.ownerReferences[n=1,uid="a\\"b"].name'
    assert path_text(("f:spec", "f:nets", value_element("10.0.0.0/8"))) == '.spec.nets[="10.0.0.0/8"]'
    assert path_text(("f:a", index_element(3))) == ".a[3]"
