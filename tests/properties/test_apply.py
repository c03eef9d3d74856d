"""Server-side apply against a model of a few lines: every leaf has a value and a set of owners.

The model knows neither trees nor FieldsV1. It holds for objects without empty parts, whose only lists are sets; what is
special about empty parts, nulls and keyed lists is compared with Kubernetes itself (test_apply_oracle.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.model import kinds
from services.apiserver.core.fieldset import FieldsError, FieldSet
from services.apiserver.core.managed import ApplyConflict, apply, settled, update
from services.apiserver.core.owners import ManagedFieldsError, decode, encode
from tests.properties.apply_objects import MANAGERS

JsonObject = dict[str, Any]
Leaf = tuple[str, ...]

KIND = kinds.kind("NetworkPolicy")
TOP = {"apiVersion": "projectcalico.org/v3", "kind": "NetworkPolicy"}
LEAVES: dict[Leaf, tuple[Any, ...]] = {
    ("metadata", "labels", "a"): ("1", "2"),
    ("metadata", "labels", "b"): ("1", "2"),
    ("metadata", "annotations", "c"): ("1", "2"),
    ("spec", "order"): (1.5, 10),
    ("spec", "selector"): ("all()", "a == 'b'"),
    ("spec", "ingress"): ([{"action": "Allow"}], [{"action": "Deny"}, {"action": "Allow"}]),
    ("spec", "types", "=Ingress"): (True,),  # elements of a set: there or not
    ("spec", "types", "=Egress"): (True,),
    ("metadata", "finalizers", "=f/1"): (True,),
    ("metadata", "finalizers", "=f/2"): (True,),
}
PATHS = {tuple(f'v:"{name[1:]}"' if name.startswith("=") else f"f:{name}" for name in leaf): leaf for leaf in LEAVES}
Values = dict[Leaf, Any]


def nested(values: Values) -> JsonObject:
    found: JsonObject = {**TOP, "metadata": {"name": "n"}}
    for leaf, value in sorted(values.items()):
        here = found
        for name in leaf[:-2]:
            here = here.setdefault(name, {})
        if leaf[-1].startswith("="):
            here.setdefault(leaf[-2], []).append(leaf[-1][1:])
        else:
            here.setdefault(leaf[-2], {})[leaf[-1]] = value
    return found


def flat(value: JsonObject) -> Values:
    found: Values = {}
    for leaf in LEAVES:
        here: Any = value
        for name in leaf[:-1]:
            here = here.get(name, {}) if isinstance(here, dict) else {}
        if leaf[-1].startswith("="):
            if leaf[-1][1:] in here:
                found[leaf] = True
        elif leaf[-1] in here:
            found[leaf] = here[leaf[-1]]
    return found


def owned_leaves(value: JsonObject) -> dict[tuple[str, str], set[Leaf]]:
    found = {}
    for entry in value["metadata"].get("managedFields", ()):
        fields = FieldSet.from_json(entry["fieldsV1"])
        leaves = {leaf for path, leaf in PATHS.items() if path in fields}
        found[entry["manager"], entry["operation"]] = leaves
    return {owner: leaves for owner, leaves in found.items() if leaves}


@dataclass
class Model:
    values: Values = field(default_factory=dict)
    owners: dict[tuple[str, str], set[Leaf]] = field(default_factory=dict)

    def apply(self, manager: str, wanted: Values, force: bool) -> bool:
        """False: a conflict, and nothing happened."""
        me = (manager, "Apply")
        differs = {leaf for leaf, value in wanted.items() if self.values.get(leaf) != value}
        others = {owner: leaves for owner, leaves in self.owners.items() if owner != me}
        if not force and any(leaves & differs for leaves in others.values()):
            return False
        dropped = self.owners.get(me, set()) - wanted.keys()
        for leaf in dropped - set().union(*others.values()):
            self.values.pop(leaf, None)
        self.values |= wanted
        self.owners = {owner: leaves - differs for owner, leaves in others.items()} | {me: set(wanted)}
        self._tidy()
        return True

    def update(self, manager: str, new: Values) -> None:
        me = (manager, "Update")
        written = {leaf for leaf, value in new.items() if self.values.get(leaf) != value}
        gone = self.values.keys() - new.keys()
        self.owners = {owner: leaves - written - gone for owner, leaves in self.owners.items()}
        self.owners[me] = self.owners.get(me, set()) | written
        self.values = dict(new)
        self._tidy()

    def _tidy(self) -> None:
        self.owners = {owner: leaves for owner, leaves in self.owners.items() if leaves}


VALUES = st.fixed_dictionaries({}, optional={leaf: st.sampled_from(values) for leaf, values in LEAVES.items()})
STEPS = st.lists(
    st.tuples(st.sampled_from(("apply", "apply", "force", "update")), st.sampled_from(MANAGERS), VALUES),
    min_size=1,
    max_size=10,
)


def tried(
    live: JsonObject | None, wanted: JsonObject, manager: str, now: str, *, force: bool
) -> tuple[JsonObject | None, set[Leaf]]:
    """(the object, no paths) or (None, those of the conflicts)."""
    try:
        return apply(live, wanted, kind=KIND, manager=manager, force=force, now=now), set()
    except ApplyConflict as conflict:
        return None, {path for _, path in conflict.conflicts}


@given(STEPS)
def test_random_writes_of_three_managers_do_as_the_model_says(steps: list[tuple[str, str, Values]]) -> None:
    model, live = Model(), None
    for number, (op, manager, values) in enumerate(steps):
        now = f"2026-11-28T01:00:{number:02}Z"
        wanted = nested(values)
        if op == "update":
            metadata = {**(live or {}).get("metadata", {"name": "n"})}
            entries = {"managedFields": metadata["managedFields"]} if metadata.get("managedFields") else {}
            if live is not None and not entries:
                continue  # objects that lost all owners are tracked from the next apply on
            new = {**wanted, "metadata": {**wanted["metadata"], **entries}}
            model.update(manager, values)
            live = update(live, new, kind=KIND, manager=manager, now=now)
        else:
            if live is not None and not live["metadata"].get("managedFields") and flat(live):
                continue  # `before-first-apply` would own what is there
            found, conflicts = tried(live, wanted, manager, now, force=op == "force")
            if conflicts and not conflicts & PATHS.keys():
                continue  # the map itself, left without members: the model knows members alone
            assert model.apply(manager, values, force=op == "force") == (found is not None)
            if found is None:
                continue
            again = apply(found, wanted, kind=KIND, manager=manager, force=False, now="2026-11-28T02:00:00Z")
            assert again == found, "applying again changed something"
            live = found
        assert flat(live) == model.values
        assert owned_leaves(live) == model.owners
        assert settled(live, live) == live


@given(VALUES, VALUES, st.sampled_from(MANAGERS))
def test_updates_never_lose_fields(before: Values, after: Values, manager: str) -> None:
    live = update(None, nested(before), kind=KIND, manager="ann", now="2026-11-28T01:00:00Z")
    new = nested(after)
    new["metadata"]["managedFields"] = live["metadata"].get("managedFields")
    found = update(live, new, kind=KIND, manager=manager, now="2026-11-28T01:00:01Z")
    for part in (found, new):
        part["metadata"].pop("managedFields", None)
    assert found == new


# --- fuzz: whatever a client sends as FieldsV1 or managedFields is read or refused ---

JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
ELEMENTS = st.one_of(
    st.text(max_size=10),
    st.tuples(st.sampled_from(("f:", "v:", "k:", "i:", "z:", ".")), st.text(max_size=10) | JUNK.map(json.dumps)).map(
        "".join
    ),
)
TREES: st.SearchStrategy[Any] = st.recursive(
    st.just({}) | JUNK, lambda inner: st.dictionaries(ELEMENTS, inner, max_size=4), max_leaves=12
)


Read = TypeVar("Read")


def read(reader: Callable[[Any], Read], written: object) -> tuple[Read | None, str]:
    """(what it is, "") or (None, why it was refused)."""
    try:
        return reader(written), ""
    except (FieldsError, ManagedFieldsError) as error:
        return None, str(error)


@given(TREES)
def test_any_fields_are_read_and_written_back_the_same_or_refused(written: object) -> None:
    found, refused = read(FieldSet.from_json, written)
    if found is None:
        assert refused.startswith("fieldsV1")
        return
    text = json.dumps(found.to_json()).encode()
    assert FieldSet.from_json(json.loads(text)) == found
    assert list(found.paths()) == list(FieldSet.of(*found.paths()).paths())


ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "manager": st.text(max_size=5) | JUNK,
        "operation": st.sampled_from(("Apply", "Update")) | JUNK,
        "apiVersion": st.sampled_from(("projectcalico.org/v3", "v1")) | JUNK,
        "time": st.just("2026-11-28T01:00:00Z") | JUNK,
        "fieldsType": st.just("FieldsV1") | JUNK,
        "fieldsV1": TREES,
        "subresource": st.just("status") | JUNK,
    },
)


@given(JUNK | st.lists(ENTRIES | JUNK, max_size=3))
def test_any_managed_fields_are_read_or_refused_and_updates_go_on(written: Any) -> None:
    managed, refused = read(decode, written)
    if managed is None:
        assert refused.startswith("metadata.managedFields")
    else:
        assert decode(encode(managed)) == managed
    live = update(None, nested({("spec", "order"): 10}), kind=KIND, manager="ann", now="2026-11-28T01:00:00Z")
    new = {**nested({("spec", "order"): 1.5}), "metadata": {"name": "n", "managedFields": written}}
    found = update(live, new, kind=KIND, manager="bob", now="2026-11-28T01:00:01Z")
    assert json.loads(json.dumps(found).encode())["spec"] == {"order": 1.5}
    decode(found["metadata"].get("managedFields"))


def field_sets() -> st.SearchStrategy[FieldSet]:
    names = st.sampled_from(("f:a", "f:b", "v:1", 'k:{"u":"x"}'))
    return st.lists(st.lists(names, min_size=1, max_size=3).map(tuple), max_size=8).map(
        lambda paths: FieldSet.of(*paths)
    )


@given(field_sets(), field_sets())
def test_sets_of_fields_are_sets_of_paths(one: FieldSet, other: FieldSet) -> None:
    mine, theirs = set(one.paths()), set(other.paths())
    assert set((one | other).paths()) == mine | theirs
    assert set((one & other).paths()) == mine & theirs
    assert set((one - other).paths()) == mine - theirs
    below = {path for path in mine if any(path[: len(top)] == top for top in theirs)}
    assert set(one.without(other).paths()) == mine - below
    assert len(one) == len(mine)
    assert bool(one) == bool(mine)
    assert (one == other) == (mine == theirs)
    assert all(path in one for path in mine)
    assert FieldSet.from_json(one.to_json()) == one


def test_the_fuzz_reaches_both_ends() -> None:
    """A fuzz that never reads or never refuses anything proves nothing."""
    assert FieldSet.from_json({"f:a": {}, "z:": {}}) == FieldSet.of(("f:a",))
    with pytest.raises(FieldsError):
        FieldSet.from_json({"q": {}})
