"""Structured merge: what an applied configuration owns, what differs between two objects, and one merged into another.

Everything here walks plain JSON values along a shape (core/listtypes.py). A member that is absent and one that is null
are different things, as they are for Kubernetes: an applied null owns its field and empties it. Objects that are read
from the store hold no nulls. Source: sigs.k8s.io/structured-merge-diff, package typed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from libs.model import codec
from services.apiserver.core.fieldset import FieldSet, Path, field_element, key_element, path_text, value_element
from services.apiserver.core.listtypes import Atomic, Fields, ListOf, MapOf, Scalar, Shape


class _Absent(Enum):
    ABSENT = "absent"


ABSENT: Final = _Absent.ABSENT


class ShapeError(ValueError):
    """An applied configuration that does not fit its kind. The text begins with the field's path."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path_text(path)}: {problem}" if path else problem)
        self.path, self.problem = path_text(path), problem


@dataclass(frozen=True, slots=True)
class Comparison:
    """A field is in one of the three at most; all empty: equal."""

    added: FieldSet = field(default_factory=FieldSet)
    modified: FieldSet = field(default_factory=FieldSet)
    removed: FieldSet = field(default_factory=FieldSet)

    def without(self, ignored: FieldSet) -> Comparison:
        if not ignored:
            return self
        return Comparison(self.added.without(ignored), self.modified.without(ignored), self.removed.without(ignored))

    @property
    def written(self) -> FieldSet:
        return self.added | self.modified


def check(value: Any, shape: Shape, path: Path = ()) -> None:
    """Raises ShapeError for what cannot be merged: fields that the kind does not have, a list where an object belongs,
    elements of a list of objects without their key, two equal elements.
    """
    if value is None:
        return
    match shape:
        case Scalar():
            if isinstance(value, (dict, list)):
                raise ShapeError(path, f"expected a scalar, got {_kind_of(value)}")
        case Atomic(of):
            if not isinstance(value, of):
                raise ShapeError(path, f"expected {_EXPECTED[of]}, got {_kind_of(value)}")
        case Fields() | MapOf():
            if not isinstance(value, dict):
                raise ShapeError(path, f"expected an object, got {_kind_of(value)}")
            for name, member in value.items():
                here = (*path, field_element(name))
                inner = _member(shape, name)
                if inner is None:
                    raise ShapeError(here, "field not declared in schema")
                check(member, inner, here)
        case ListOf():
            if not isinstance(value, list):
                raise ShapeError(path, f"expected a list, got {_kind_of(value)}")
            seen = set()
            for index, item in enumerate(value):
                element = _list_element(item, shape, path, index)
                if element in seen:
                    raise ShapeError(path, f"duplicate entries for key {path_text((element,))}")
                seen.add(element)
                check(item, shape.element, (*path, element))


_EXPECTED: dict[type, str] = {list: "a list", dict: "an object"}


def _kind_of(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _member(shape: Fields | MapOf, name: str) -> Shape | None:
    return shape.value if isinstance(shape, MapOf) else shape.fields.get(name)


def _list_element(item: object, shape: ListOf, path: Path = (), index: int = 0) -> str:
    """Raises ShapeError."""
    if not shape.keys:
        if item is None or isinstance(item, (dict, list)):
            raise ShapeError(path, f"element {index}: expected a scalar, got {_kind_of(item)}")
        return value_element(item)
    if not isinstance(item, dict):
        raise ShapeError(path, f"element {index}: expected an object, got {_kind_of(item)}")
    keys = {key: item[key] for key in shape.keys if key in item}
    if not keys or any(isinstance(value, (dict, list)) for value in keys.values()):
        raise ShapeError(path, f"element {index}: needs {' and '.join(shape.keys)}, which tells it from the others")
    return key_element(keys)


def _elements(items: list[Any], shape: ListOf) -> dict[str, list[Any]]:
    """In order of first appearance. Of lists that were written without apply, equal elements come together."""
    found: dict[str, list[Any]] = {}
    for item in items:
        found.setdefault(_list_element(item, shape), []).append(item)
    return found


def fields_of(value: Any, shape: Shape) -> FieldSet:
    """What a manager owns who applies `value`: all leaves, elements of lists and maps themselves, and empty objects."""
    found = FieldSet()
    _collect(value, shape, (), found)
    return found


def _collect(value: Any, shape: Shape, path: Path, found: FieldSet) -> None:
    match shape:
        case Scalar() | Atomic():
            found.insert(path)
        case Fields() | MapOf() if isinstance(value, dict):
            for name, member in value.items():
                here = (*path, field_element(name))
                inner = _member(shape, name)
                if inner is not None:
                    _collect(member, inner, here, found)
                if inner is None or isinstance(shape, MapOf) or member is None or member == {}:
                    found.insert(here)
        case ListOf() if isinstance(value, list):
            for element, items in _elements(value, shape).items():
                here = (*path, element)
                if len(items) == 1:
                    _collect(items[0], shape.element, here, found)
                found.insert(here)


def same(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 and 1.0 are, 1 and true are not."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def compare(old: Any, new: Any, shape: Shape) -> Comparison:
    found = Comparison()
    _compare(old, new, shape, (), found)
    return found


def _compare(old: Any, new: Any, shape: Shape, path: Path, found: Comparison) -> None:
    if _is_leaf(old, new, shape):
        if old is ABSENT:
            found.added.insert(path)
        elif new is ABSENT:
            found.removed.insert(path)
        elif not same(old, new):
            found.modified.insert(path)
        return
    if isinstance(shape, ListOf):
        _compare_lists(old, new, shape, path, found)
    elif isinstance(shape, (Fields, MapOf)):
        mine, theirs = _object(old), _object(new)
        for name in mine.keys() | theirs.keys():
            inner = _member(shape, name)
            here = (*path, field_element(name))
            _compare(mine.get(name, ABSENT), theirs.get(name, ABSENT), inner or Scalar(), here, found)
    if old is ABSENT:
        found.added.insert(path)
    elif new is ABSENT:
        found.removed.insert(path)


def _compare_lists(old: Any, new: Any, shape: ListOf, path: Path, found: Comparison) -> None:
    mine, theirs = _elements(_list(old), shape), _elements(_list(new), shape)
    for element in mine | theirs:
        here = (*path, element)
        before, after = mine.get(element, []), theirs.get(element, [])
        if len(before) <= 1 and len(after) <= 1:
            one, other = before[0] if before else ABSENT, after[0] if after else ABSENT
            _compare(one, other, shape.element, here, found)
        elif len(before) >= 2 and len(after) >= 2:  # elements that come more than once are owned as one
            if not same(before, after):
                found.modified.insert(here)
        elif len(before) >= 2:
            if after:
                _compare(ABSENT, after[0], shape.element, here, found)
            found.removed.insert(here)
        else:
            if before:
                _compare(before[0], ABSENT, shape.element, here, found)
            found.added.insert(here)


def _is_leaf(old: Any, new: Any, shape: Shape) -> bool:
    """Scalars, what is atomic, and what is empty or null on both sides, so that these are told from each other."""
    if isinstance(shape, (Scalar, Atomic)):
        return True
    return not (_list(old) or _list(new)) if isinstance(shape, ListOf) else not (_object(old) or _object(new))


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def merge(live: Any, wanted: Any, shape: Shape) -> Any:
    """`wanted` laid over `live`. Lists with owned elements keep the order of `wanted`, with the rest of `live` where it
    stood between them.
    """
    if _is_leaf(live, wanted, shape):
        return live if wanted is ABSENT else wanted
    if isinstance(shape, ListOf):
        return _merge_lists(_list(live), _list(wanted), shape)
    assert isinstance(shape, (Fields, MapOf))
    mine, theirs = _object(live), _object(wanted)
    return {
        name: merge(mine.get(name, ABSENT), theirs.get(name, ABSENT), _member(shape, name) or Scalar())
        for name in (*mine, *(name for name in theirs if name not in mine))
    }


def _merge_lists(live: list[Any], wanted: list[Any], shape: ListOf) -> list[Any]:
    mine, theirs = [_list_element(item, shape) for item in live], [_list_element(item, shape) for item in wanted]
    # An element that comes more than once in `live` is not merged with: what is wanted replaces it.
    once = {element: items[0] if len(items) == 1 else None for element, items in _elements(live, shape).items()}
    values = dict(zip(theirs, wanted, strict=True))
    shared = [element for element in theirs if element in once]  # those of both, in the order that is wanted
    merged: list[Any] = []
    done: set[str] = set()

    def take(element: str) -> None:
        merged.append(merge(once.get(element, ABSENT), values[element], shape.element))
        done.add(element)
        if shared and shared[0] == element:
            shared.pop(0)

    left = right = 0
    while left < len(mine) or right < len(theirs):
        if left < len(mine):
            element = mine[left]
            if right < len(theirs) and element == theirs[right]:
                take(element)
                left, right = left + 1, right + 1
                continue
            if element not in values:
                merged.append(live[left])
                left += 1
                continue
            if element in done or (right < len(theirs) and shared and shared[0] != element):
                left += 1  # taken already, or comes later where it is wanted
                continue
        if right < len(theirs):
            take(theirs[right])
            right += 1
    return merged


def remove(value: Any, gone: FieldSet, shape: Shape) -> Any:
    """Without the members of `gone`. What is left empty by it becomes null, as does an atomic part of which only some
    is to go.
    """
    match shape:
        case Scalar():
            return value
        case Fields() | MapOf() if isinstance(value, dict):
            kept = {}
            for name, member in value.items():
                element = field_element(name)
                if element in gone.members:
                    continue
                below = gone.children.get(element)
                kept[name] = remove(member, below, _member(shape, name) or Scalar()) if below else member
            return kept or None
        case ListOf() if isinstance(value, list):
            items = []
            for item in value:
                element = _list_element(item, shape)
                if element in gone.members:
                    continue
                below = gone.children.get(element)
                items.append(remove(item, below, shape.element) if below else item)
            return items or None
    return None


def with_named_fields(owned: FieldSet, shape: Shape | None) -> FieldSet:
    """Structures count as owned with what is in them (`.spec` with `.spec.order`), which sets otherwise do not say."""
    members = set(owned.members)
    children = {}
    for element, child in owned.children.items():
        inner = None if shape is None or element.startswith("v:") else _below(shape, element)
        if isinstance(shape, Fields) and inner is not None:
            members.add(element)
        children[element] = with_named_fields(child, inner)
    return FieldSet(members, children)


def _below(shape: Shape, element: str) -> Shape | None:
    """The shape of what an element of a set stands for, None where there is no such thing."""
    if element.startswith("f:") and isinstance(shape, (Fields, MapOf)):
        return _member(shape, element[2:])
    return shape.element if not element.startswith("f:") and isinstance(shape, ListOf) else None


def fitted(owned: FieldSet, shape: Shape) -> FieldSet:
    """A set that was written when parts were granular that are atomic now: its owner then owns the whole part."""
    members = set(owned.members)
    children = {}
    for element, child in owned.children.items():
        inner = _below(shape, element)
        if isinstance(inner, Atomic):
            members.add(element)
        else:
            children[element] = fitted(child, inner) if inner is not None else child
    return FieldSet(members, children)


def drop_nulls(value: Any, shape: Shape, *, inside_atomic: bool = False) -> Any:
    """The same without null members of objects: for a reader, null is the same as absent. inside_atomic: only there,
    where a null says nothing on ownership.
    """
    if isinstance(shape, Atomic):
        return codec.drop_nulls(value)
    if isinstance(value, dict) and isinstance(shape, (Fields, MapOf)):
        return {
            name: drop_nulls(member, _member(shape, name) or Scalar(), inside_atomic=inside_atomic)
            for name, member in value.items()
            if member is not None or inside_atomic
        }
    if isinstance(value, list) and isinstance(shape, ListOf):
        return [drop_nulls(item, shape.element, inside_atomic=inside_atomic) for item in value]
    return value
