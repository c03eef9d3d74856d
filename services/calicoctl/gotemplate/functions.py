"""Values as Go's templates see them, and the functions that templates may call."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from services.calicoctl.columns import go_float


class TemplateProblem(Exception):
    """The template cannot be read, or does not fit the resources."""


def true(value: Any) -> bool:
    """Go's truth: not zero, not empty, not nil. A struct is always true."""
    return isinstance(value, msgspec.Struct) or bool(value)


def show(value: Any) -> str:
    match value:
        case None:
            return "<nil>"
        case bool():
            return "true" if value else "false"
        case float():
            return go_float(value)
        case str() | int():
            return str(value)
        case Mapping():
            return "map[" + " ".join(f"{key}:{show(value[key])}" for key in sorted(value)) + "]"
        case msgspec.Struct():
            return "{" + " ".join(show(getattr(value, name)) for name in value.__struct_fields__) + "}"
        case Sequence():
            return "[" + " ".join(show(item) for item in value) + "]"
    return str(value)


def member(value: Any, name: str) -> Any:
    """`.Name` of a value. Raises TemplateProblem where there is none."""
    if isinstance(value, Mapping):
        return value.get(name)
    if isinstance(value, msgspec.Struct):
        if (wanted := name.lower()) in ("kind", "apiversion"):
            return value.kind if wanted == "kind" else value.api_version  # type: ignore[attr-defined]
        if wanted in ("objectmeta", "listmeta"):
            return value.metadata  # type: ignore[attr-defined]
        for attribute, encoded in zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True):
            if encoded.lower() == wanted:
                return getattr(value, attribute)
        if (metadata := getattr(value, "metadata", None)) is not None:
            with suppress(TemplateProblem):
                return member(metadata, name)
        raise TemplateProblem(f"can't evaluate field {name} in type {type(value).__name__}")
    if value is None:
        raise TemplateProblem(f"nil pointer evaluating field {name}")
    raise TemplateProblem(f"can't evaluate field {name} in type {type(value).__name__}")


LAZY = ("and", "or")
"""Decided by the first argument that settles it; the others are not looked at."""


def _join(items: Any, separator: str, limit: int = 0) -> str:
    if items is None:
        return ""
    if isinstance(items, Mapping):
        items = sorted(f"{key}={show(value)}" for key, value in items.items())
    if isinstance(items, str) or not isinstance(items, Sequence):
        items = [items]
    joined = separator.join(show(item) for item in items)
    return joined[: limit - 3] + "..." if limit and len(joined) > limit else joined


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key, "") if isinstance(value, Mapping) else value[key]
    return value


_VERB = re.compile(r"%([-+# 0]*)(\d*)(?:\.(\d+))?([vdsqfgexXtT%])")


def _printf(form: str, *values: Any) -> str:
    left = list(values)

    def one(match: re.Match[str]) -> str:
        flags, width, precision, verb = match.groups()
        if verb == "%":
            return "%"
        if not left:
            return f"%!{verb}(MISSING)"
        value = left.pop(0)
        digits = f".{precision}" if precision else ""
        match verb:
            case "q":
                shown = json.dumps(show(value), ensure_ascii=False)
            case "d" | "x" | "X":
                shown = f"{int(value):{verb}}"
            case "f" | "g" | "e":
                shown = f"{float(value):{digits}{verb}}"
            case _:
                shown = show(value)[: int(precision)] if precision else show(value)
        size = int(width or 0)
        if "-" in flags:
            return shown.ljust(size)
        return shown.rjust(size, "0" if "0" in flags and verb not in "sqv" else " ")

    text = _VERB.sub(one, form)
    return text + (f"%!(EXTRA {', '.join(show(value) for value in left)})" if left else "")


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "config": lambda name: name,  # bound to the cluster by Template
    "eq": lambda first, *others: any(first == other for other in others),
    "ge": lambda one, two: one >= two,
    "gt": lambda one, two: one > two,
    "index": _index,
    "join": _join,
    "joinAndTruncate": _join,
    "le": lambda one, two: one <= two,
    "len": len,
    "lt": lambda one, two: one < two,
    "ne": lambda one, two: one != two,
    "not": lambda value: not true(value),
    "print": lambda *values: "".join(show(value) for value in values),
    "printf": _printf,
    "println": lambda *values: " ".join(show(value) for value in values) + "\n",
}
