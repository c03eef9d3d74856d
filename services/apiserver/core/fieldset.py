"""Sets of fields of an object, as `metadata.managedFields` holds them (Kubernetes' FieldsV1).

    {"f:metadata": {"f:labels": {".": {}, "f:app": {}}, "f:finalizers": {"v:\\"a/b\\"": {}}},
     "f:spec": {"f:order": {}}, "f:status": {"f:conditions": {"k:{\\"type\\":\\"Ready\\"}": {".": {}, "f:status": {}}}}}

A path is a tuple of elements, each in FieldsV1's own text: `f:NAME` a field or a map's key, `k:{…}` the element of a
list of objects by its keys, `v:…` an element of a set by its value, `i:N` by index. `.` says that the element above it
is itself in the set. Elements are always in canonical form (keys sorted, no blanks, whole numbers without a fraction),
so that equal ones are equal texts. Source: sigs.k8s.io/structured-merge-diff, package fieldpath.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

JsonObject = dict[str, Any]
Path = tuple[str, ...]

MAX_DEPTH = 100
"""Of FieldsV1 that a client sent. Calico's objects are less than ten deep."""
_SELF = "."
_LARGEST_WHOLE = 1e15


class FieldsError(ValueError):
    """Not FieldsV1; the text says where and why."""


class FieldSet:
    """members: elements at this level that are in the set. children: elements with something of the set below them,
    never empty. Operations make new sets; parts may be shared, so a set that is in use is not changed any more.
    """

    __slots__ = ("children", "members")

    def __init__(self, members: set[str] | None = None, children: dict[str, FieldSet] | None = None) -> None:
        self.members: set[str] = members if members is not None else set()
        self.children: dict[str, FieldSet] = children if children is not None else {}

    @classmethod
    def of(cls, *paths: Path) -> FieldSet:
        made = cls()
        for path in paths:
            made.insert(path)
        return made

    def insert(self, path: Path) -> None:
        """The empty path stands for the whole object, which nobody owns: nothing happens."""
        if not path:
            return
        here = self
        for element in path[:-1]:
            here = here.children.setdefault(element, FieldSet())
        here.members.add(path[-1])

    def __bool__(self) -> bool:
        return bool(self.members or self.children)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FieldSet):
            return NotImplemented
        return self.members == other.members and self.children == other.children

    __hash__ = None  # type: ignore[assignment]

    def __contains__(self, path: Path) -> bool:
        here: FieldSet | None = self
        for element in path[:-1]:
            here = here.children.get(element) if here else None
        return bool(path) and here is not None and path[-1] in here.members

    def __len__(self) -> int:
        return len(self.members) + sum(len(child) for child in self.children.values())

    def __or__(self, other: FieldSet) -> FieldSet:
        children = dict(self.children)
        for element, theirs in other.children.items():
            mine = children.get(element)
            children[element] = mine | theirs if mine else theirs
        return FieldSet(self.members | other.members, children)

    def __and__(self, other: FieldSet) -> FieldSet:
        children = {
            element: both
            for element, mine in self.children.items()
            if element in other.children and (both := mine & other.children[element])
        }
        return FieldSet(self.members & other.members, children)

    def __sub__(self, other: FieldSet) -> FieldSet:
        """Member by member: what lies below a member of `other` stays."""
        children = {}
        for element, mine in self.children.items():
            theirs = other.children.get(element)
            if left := mine - theirs if theirs else mine:
                children[element] = left
        return FieldSet(self.members - other.members, children)

    def without(self, other: FieldSet) -> FieldSet:
        """Like `-`, and with everything that lies below a member of `other`."""
        children = {}
        for element, mine in self.children.items():
            if element in other.members:
                continue
            theirs = other.children.get(element)
            if left := mine.without(theirs) if theirs else mine:
                children[element] = left
        return FieldSet(self.members - other.members, children)

    def below(self, element: str) -> FieldSet:
        return self.children.get(element) or FieldSet()

    def paths(self) -> Iterator[Path]:
        """In order: members before what lies below, each sorted."""
        for element in ordered(self.members):
            yield (element,)
        for element in ordered(self.children):
            for path in self.children[element].paths():
                yield (element, *path)

    def to_json(self) -> JsonObject:
        """In FieldsV1's order."""
        found: JsonObject = {}
        for element in ordered(self.members | self.children.keys()):
            child = self.children.get(element)
            inner: JsonObject = {_SELF: {}} if child and element in self.members else {}
            found[element] = inner | (child.to_json() if child else {})
        return found

    @classmethod
    def from_json(cls, value: object) -> FieldSet:
        """Raises FieldsError. Elements of kinds that FieldsV1 may get in future are left out, as Kubernetes does."""
        found, _ = _read(value, ())
        return found

    def __repr__(self) -> str:
        return f"FieldSet({', '.join(path_text(path) for path in self.paths())})"


def _read(value: object, at: Path) -> tuple[FieldSet, bool]:
    """(what lies below, whether the element itself is a member)."""
    if not isinstance(value, dict):
        raise FieldsError(f"{_where(at)}: expected an object, not {json.dumps(value)[:40]}")
    if len(at) > MAX_DEPTH:
        raise FieldsError(f"{_where(at[:3])}…: nested more than {MAX_DEPTH} deep")
    found = FieldSet()
    for text, inner in value.items():
        if text == _SELF:
            continue
        element = _element(text, at)
        if element is None:
            continue
        child, member = _read(inner, (*at, element))
        if member:
            found.members.add(element)
        if child:
            found.children[element] = found.below(element) | child
    return found, _SELF in value or not found


def _where(at: Path) -> str:
    return f"fieldsV1{path_text(at)}"


def _element(text: str, at: Path) -> str | None:
    """Canonical; None for a kind of element that is not known."""
    if len(text) < 2 or text[1] != ":":
        raise FieldsError(f"{_where(at)}: {text[:60]!r} is no path element (f:NAME, k:{{…}}, v:VALUE or i:INDEX)")
    kind, rest = text[0], text[2:]
    if kind == "f":
        return text
    if kind not in "kvi":
        return None
    try:
        value = json.loads(rest, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise FieldsError(f"{_where(at)}: {text[:60]!r}: what follows the colon is not JSON") from None
    if kind == "i":
        if isinstance(value, bool) or not isinstance(value, int):
            raise FieldsError(f"{_where(at)}: {text[:60]!r}: expected a whole number")
        return index_element(value)
    scalars = list(value.values()) if kind == "k" and isinstance(value, dict) else [value]
    if (kind == "k" and not isinstance(value, dict)) or any(isinstance(scalar, (dict, list)) for scalar in scalars):
        expected = "an object of scalars" if kind == "k" else "a scalar"
        raise FieldsError(f"{_where(at)}: {text[:60]!r}: expected {expected}")
    try:
        element = f"{kind}:{_canonical(value)}"
        element.encode()
    except ValueError:  # Infinity, which 1e999 becomes, or half of a surrogate pair
        raise FieldsError(f"{_where(at)}: {text[:60]!r}: no value that JSON can hold") from None
    return element


def _no_constant(name: str) -> object:
    raise ValueError(name)


def field_element(name: str) -> str:
    return "f:" + name


def index_element(index: int) -> str:
    return f"i:{index}"


def value_element(value: object) -> str:
    return "v:" + _canonical(value)


def key_element(keys: Mapping[str, object]) -> str:
    return "k:" + _canonical(keys)


def _canonical(value: object) -> str:
    """Compact, keys sorted, whole numbers as integers, and the characters escaped that Go's encoder escapes."""
    text = json.dumps(_whole(value), ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        if char in text:
            text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _whole(value: object) -> object:
    if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_WHOLE:
        return int(value)
    return {name: _whole(member) for name, member in value.items()} if isinstance(value, Mapping) else value


def ordered(elements: set[str] | dict[str, FieldSet]) -> list[str]:
    """Fields by name, then list elements by keys, then by value, then by index."""
    return sorted(elements, key=_order)


@lru_cache(maxsize=4096)
def _order(element: str) -> tuple[Any, ...]:
    kind, rest = element[0], element[2:]
    if kind == "f":
        return (0, rest)
    value = json.loads(rest)
    if kind == "k":
        return (1, [(name, _rank(member)) for name, member in value.items()])
    return (2, _rank(value)) if kind == "v" else (3, value)


def _rank(value: object) -> tuple[Any, ...]:
    """Numbers before text, booleans, null; comparable among all of them."""
    if isinstance(value, bool):
        return (2, value)
    if isinstance(value, (int, float)):
        return (0, value)
    return (1, value) if isinstance(value, str) else (3,)


def path_text(path: Sequence[str]) -> str:
    """As in messages on conflicts: `.spec.order`, `.status.conditions[type="Ready"]`, `.spec.nets[="10.0.0.0/8"]`."""
    return "".join(_element_text(element) for element in path)


def _element_text(element: str) -> str:
    kind, rest = element[0], element[2:]
    if kind == "f":
        return "." + rest
    if kind == "i":
        return f"[{rest}]"
    value = json.loads(rest)
    if kind == "v":
        return f"[={_value_text(value)}]"
    return "[" + ",".join(f"{name}={_value_text(member)}" for name, member in value.items()) + "]"


def _value_text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
