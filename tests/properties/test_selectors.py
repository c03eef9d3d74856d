"""Selectors and the label index against the plain meaning of the language."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.model import selector as sel
from libs.model.selector import Selector, SelectorError, parse
from libs.policy.index import Entry, LabelIndex
from tests.properties.rule_oracle import truth

KEYS = st.sampled_from(("a", "b", "has", "in", "k8s.io/x"))
VALUES = st.sampled_from(("", "x", "y", "xy", "it's", 'say "x"', "é"))
LABELS = st.dictionaries(KEYS, VALUES, max_size=4)
SETS = st.lists(VALUES, max_size=3, unique=True).map(lambda values: tuple(sorted(values)))
LEAVES = st.one_of(
    st.just(sel.All()),
    st.just(sel.Global()),
    st.builds(sel.Has, KEYS),
    st.builds(sel.Equal, KEYS, VALUES),
    st.builds(sel.NotEqual, KEYS, VALUES),
    st.builds(sel.In, KEYS, SETS),
    st.builds(sel.NotIn, KEYS, SETS),
    st.builds(sel.Contains, KEYS, VALUES),
    st.builds(sel.StartsWith, KEYS, VALUES),
    st.builds(sel.EndsWith, KEYS, VALUES),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(sel.Not, inner),
        st.lists(inner, min_size=2, max_size=3).map(lambda nodes: sel.And(tuple(nodes))),
        st.lists(inner, min_size=2, max_size=3).map(lambda nodes: sel.Or(tuple(nodes))),
    ),
    max_leaves=6,
)
EXAMPLES = settings(max_examples=max(300, settings().max_examples))


@EXAMPLES
@given(TREES, LABELS)
def test_matcher_means_what_the_tree_says(tree: sel.Node, labels: dict[str, str]) -> None:
    assert Selector(tree).matches(labels) is truth(tree, labels)


@EXAMPLES
@given(TREES, LABELS)
def test_canonical_text_parses_to_the_same_meaning_and_stays(tree: sel.Node, labels: dict[str, str]) -> None:
    parsed = parse(str(tree))
    assert parsed.matches(labels) is truth(tree, labels)
    assert parse(parsed.canonical).matches(labels) is truth(tree, labels)


@EXAMPLES
@given(TREES, LABELS)
def test_restrictions_are_necessary(tree: sel.Node, labels: dict[str, str]) -> None:
    if truth(tree, labels):
        for key, restriction in Selector(tree).restrictions.items():
            assert (key in labels) is not restriction.absent
            assert restriction.values is None or labels[key] in restriction.values


@EXAMPLES
@given(st.text(alphabet="ab('\")!&|={}, \tinothsal", max_size=40))
def test_any_text_parses_or_says_where_it_does_not(text: str) -> None:
    position = 0
    try:
        parse(text)
    except SelectorError as error:
        position = error.position
    assert 0 <= position <= len(text)


ITEMS = st.integers(0, 4)
PARENTS = st.lists(st.sampled_from("pq"), max_size=2, unique=True).map(tuple)
STEPS = st.one_of(
    st.tuples(st.just("put"), ITEMS, LABELS, PARENTS),
    st.tuples(st.just("put"), ITEMS, LABELS, PARENTS),
    st.tuples(st.just("drop"), ITEMS),
    st.tuples(st.just("parent"), st.sampled_from("pq"), LABELS),
    st.tuples(st.just("select"), TREES),
    st.tuples(st.just("select"), TREES),
    st.tuples(st.just("unselect"), st.integers(0, 3)),
    st.tuples(st.just("look")),
)


@EXAMPLES
@given(st.lists(STEPS, min_size=5, max_size=30), TREES)
def test_index_holds_and_reports_what_each_selector_matches(steps: list[tuple], late: sel.Node) -> None:
    index = LabelIndex()
    items: dict[int, tuple[dict[str, str], tuple[str, ...]]] = {}
    parents: dict[str, dict[str, str]] = {}
    entries: list[Entry] = []
    seen: dict[Entry, set[int]] = {}

    def labels_of(number: int) -> dict[str, str]:
        own, inherits = items[number]
        merged: dict[str, str] = {}
        for parent in reversed(inherits):
            merged.update(parents.get(parent, {}))
        return {**merged, **own}

    for step, *arguments in steps:
        match step, arguments:
            case "put", [number, labels, inherits]:
                items[number] = (labels, inherits)
                index.put_item(number, labels, inherits)
            case "drop", [number]:
                items.pop(number, None)
                index.drop_item(number)
            case "parent", [name, labels]:
                parents[name] = labels
                index.put_parent(name, labels)
            case "select", [tree]:
                entry = index.add_selector(Selector(tree))
                entries.append(entry)
                seen.setdefault(entry, set(entry.matched) ^ set(entry.flipped))
            case "unselect", [which] if which < len(entries):
                entry = entries.pop(which)
                index.drop_selector(entry)
                if entry not in entries:
                    del seen[entry]
            case "look", _:
                for entry in index.take_changes():
                    seen[entry] ^= set(entry.flipped)
                    entry.flipped.clear()
        for entry in entries:
            wanted = {number for number in items if truth(entry.selector.root, labels_of(number))}
            assert set(entry.matched) == wanted
            assert seen[entry] ^ set(entry.flipped) == wanted
    for number in items:
        assert index.labels_of(number) == labels_of(number)
        assert set(index.entries_of(number)) == {entry for entry in entries if number in entry.matched}
    assert set(index.evaluate(late)) == {number for number in items if truth(late, labels_of(number))}
    assert set(index.add_selector(Selector(late)).matched) == set(index.evaluate(late))
