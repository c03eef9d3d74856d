"""What users write, into typed resources: every unknown field and every wrong type is named by its path.

The shape is checked against the structs first, so that all faults come at once; only a value without any is converted.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from libs.model import codec, kinds
from libs.model.base import API_VERSION, Resource
from libs.model.problems import At, ValidationError
from libs.model.scalars import decode_scalar

S = TypeVar("S", bound=msgspec.Struct)

OUTER_FIELDS = ("kind", "apiVersion")


def decode_user(value: object, *, kind: str = "") -> Resource:
    """A resource from decoded JSON or YAML. kind: what it must be, "" to go by its own word.

    null counts as absent. Defaults are not filled in and nothing but the shape is checked. Raises ValidationError.
    """
    at = At()
    if not isinstance(value, Mapping):
        at.refuse(f"expected a resource, not {_name(value)}")
        raise ValidationError(at.problems)
    entry = _kind(at, value, kind)
    version = value.get("apiVersion")
    if version != API_VERSION:
        at.field("apiVersion").refuse(f"must be {API_VERSION}", version)
    if entry is None:
        raise ValidationError(at.problems)
    return _decode(at, value, entry.struct)


def decode_part(value: object, struct: type[S]) -> S:
    """Any struct of the model, equally strictly. Raises ValidationError."""
    return _decode(At(), value, struct)


def _decode(at: At, value: object, struct: type[S]) -> S:
    try:
        _check(at, value, type_of(struct))
        if not at.problems:
            return codec.convert(struct, codec.drop_nulls(value))
    except RecursionError:
        at.refuse("nested too deeply")
    except codec.DecodeError as error:
        at.refuse(str(error))
    raise ValidationError(at.problems)


def _kind(at: At, value: Mapping[str, Any], wanted: str) -> kinds.Kind | None:
    name = value.get("kind")
    if not isinstance(name, str) or not name:
        if wanted:
            return kinds.kind(wanted)
        at.field("kind").refuse("must name the kind of resource, as in 'NetworkPolicy'")
        return None
    if wanted and name != wanted:
        at.field("kind").refuse(f"must be {wanted}", name)
        return kinds.KINDS.get(wanted)
    entry = kinds.KINDS.get(name)
    if entry is None:
        at.field("kind").refuse(f"unknown kind of resource{_suggestion(name, list(kinds.KINDS))}", name)
    return entry


@cache
def type_of(struct: type) -> inspect.Type:
    return inspect.type_info(struct)


def _check(at: At, value: Any, wanted: inspect.Type) -> None:
    match wanted:
        case inspect.StructType():
            _struct(at, value, wanted)
        case inspect.ListType():
            if not isinstance(value, list):
                at.refuse(f"expected a list, not {_name(value)}", value)
                return
            for index, item in enumerate(value):
                _check(at.item(index), item, wanted.item_type)
        case inspect.DictType():
            if not isinstance(value, Mapping):
                at.refuse(f"expected a map, not {_name(value)}", value)
                return
            for key, member in value.items():
                if not isinstance(key, str):
                    at.refuse(f"expected text as key, not {_name(key)}; put it in quotes", key)
                elif member is not None:
                    _check(at.item(key), member, wanted.value_type)
        case inspect.UnionType():
            _union(at, value, wanted)
        case inspect.CustomType():
            try:
                decode_scalar(wanted.cls, value)
            except (TypeError, ValueError) as error:
                at.refuse(str(error), value)
        case inspect.StrType():
            if not isinstance(value, str):
                quotes = "" if isinstance(value, (Mapping, list)) else "; put it in quotes"
                at.refuse(f"expected text, not {_name(value)}{quotes}", value)
        case inspect.BoolType():
            if not isinstance(value, bool):
                at.refuse(f"expected true or false, not {_name(value)}", value)
        case inspect.IntType():
            if isinstance(value, bool) or not isinstance(value, int):
                at.refuse(f"expected a whole number, not {_name(value)}", value)
            elif not -(2**63) <= value < 2**63:
                at.refuse("expected a whole number of at most 64 bits", value)
        case inspect.FloatType():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                at.refuse(f"expected a number, not {_name(value)}", value)


def _struct(at: At, value: Any, wanted: inspect.StructType) -> None:
    if not isinstance(value, Mapping):
        at.refuse(f"expected an object, not {_name(value)}", value)
        return
    known = {field.encode_name: field.type for field in wanted.fields}
    outer = OUTER_FIELDS if issubclass(wanted.cls, Resource) else ()
    for name, member in value.items():
        if not isinstance(name, str):
            at.refuse(f"expected text as field name, not {_name(name)}", name)
        elif name in known:
            if member is not None:
                _check(at.field(name), member, known[name])
        elif name not in outer:
            at.field(name).refuse(f"unknown field{_suggestion(name, [*known, *outer])}")


def _union(at: At, value: Any, wanted: inspect.UnionType) -> None:
    """One type or None everywhere but where Kubernetes takes a number or text; there the first that fits decides."""
    if value is None and any(isinstance(option, inspect.NoneType) for option in wanted.types):
        return
    options = [option for option in wanted.types if not isinstance(option, inspect.NoneType)]
    attempts: list[At] = []
    for option in options:
        attempt = At(at.path)
        _check(attempt, value, option)
        if not attempt.problems:
            return
        attempts.append(attempt)
    at.problems.extend(attempts[-1].problems)


def _suggestion(name: str, known: list[str]) -> str:
    lower = {word.lower(): word for word in known}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return f"; did you mean {lower[close[0]]!r}?" if close else ""


def _name(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case Mapping():
            return "an object"
    return f"a {type(value).__name__}"
