"""What `get` prints is read back as it was, and no bytes make the reader do anything but answer."""

from __future__ import annotations

import json

from hypothesis import example, given
from hypothesis import strategies as st

from libs.model import yamltext
from libs.model.places import Json
from libs.model.yamltext import dump_yaml
from services.calicoctl.documents import Broken, Document
from services.calicoctl.files import parse

# Texts that some YAML takes for a number, a truth value, a date or a mark.
TRICKY_WORDS = """y n yes no on off true False null ~ 1 08 010 0o17 0x1f 0b1 1e3 1_000 1. .5 -1 +1 22:53 1:20 << =
--- ... 2026-01-02 2026-01-02T03:04:05Z 11:22:33:44:55:06 - # : {} [] & * ! | > % @ ` ' .inf .nan"""
TRICKY = st.sampled_from(TRICKY_WORDS.split())
TEXT = st.one_of(
    TRICKY, st.text(st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"], exclude_characters="\ufeff\u2028\u2029"))
)
SCALARS = st.one_of(
    TEXT, st.booleans(), st.none(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=12,
)
RESOURCES = st.dictionaries(TEXT, VALUES, min_size=1, max_size=5).filter(
    lambda value: not str(value.get("kind", "")).endswith("List")
)


@given(RESOURCES)
@example({"a": "0o17", "b": "1e3", "y": "n", "c": "22:53", "d": 1e22, "e": 1e-7})
def test_yaml_that_we_print_is_read_back_as_it_was(resource: dict[str, object]) -> None:
    (found,) = parse(dump_yaml(resource), "x.yaml")  # type: ignore[arg-type]
    assert isinstance(found, Document), found
    assert found.value == resource
    assert json.dumps(found.value, sort_keys=True) == json.dumps(resource, sort_keys=True)


ASCII = st.one_of(TRICKY, st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=60))
ASCII_VALUES = st.recursive(
    st.one_of(ASCII, st.booleans(), st.none(), st.integers(), st.floats(allow_nan=False), st.just("two\nlines\n")),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(ASCII, inner, max_size=4)),
    max_leaves=12,
)


@given(st.dictionaries(ASCII, ASCII_VALUES, min_size=1, max_size=4))
def test_the_fast_writer_of_yaml_writes_what_the_other_one_does(value: dict[str, Json]) -> None:
    slow = yamltext._dumped(value, yamltext._Dumper)
    assert yamltext._dumped(value, yamltext._FastDumper) == slow
    assert dump_yaml(value) == slow


@given(RESOURCES)
def test_json_that_we_print_is_read_back_as_it_was(resource: dict[str, object]) -> None:
    (found,) = parse(json.dumps(resource, indent=2, ensure_ascii=False), "x.json")
    assert isinstance(found, Document), found
    assert found.value == resource


@given(st.lists(RESOURCES, min_size=1, max_size=4), st.integers(0, 3))
def test_one_broken_document_leaves_the_others_alone(resources: list[dict[str, object]], at: int) -> None:
    texts = [dump_yaml(resource) for resource in resources]  # type: ignore[arg-type]
    at = min(at, len(texts))
    texts.insert(at, "broken: [\n")
    found = list(parse("---\n".join(texts), "x.yaml"))
    assert [isinstance(document, Broken) for document in found] == [index == at for index in range(len(texts))]
    assert [document.number for document in found] == list(range(1, len(texts) + 1))


@given(st.text())
@example("{{{{[[[[")
@example("? a\n? b\n: - c")
@example("\x00")
@example("- - - - &a *a")
def test_any_text_is_answered(text: str) -> None:
    for document in parse(text, "x.yaml"):
        assert document.number >= 1
        assert (document.start if isinstance(document, Document) else document.position).line >= 1
