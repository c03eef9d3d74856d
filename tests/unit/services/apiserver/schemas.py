"""Walks schemas and makes objects that have every field, to hold the schemas against the rules."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from msgspec import inspect

from libs.model import scalars
from libs.model.kinds import Kind
from services.apiserver.core import schema
from services.apiserver.core.status import JsonObject

Path = tuple[str | int, ...]
_REF = "#/components/schemas/"
_SCALARS: dict[type, object] = {
    scalars.Protocol: scalars.Protocol("TCP"),
    scalars.Port: scalars.Port(80),
    scalars.ASNumber: scalars.ASNumber(64512),
    scalars.DSCP: scalars.DSCP("EF"),
    scalars.Duration: scalars.Duration("90s"),
}


def standalone(kind: Kind) -> JsonObject:
    """A JSON schema that needs no other document."""
    reference = {"$ref": _REF + schema.component_name(kind.struct)}
    return reference | {"components": {"schemas": schema.components()}}


def resolve(value: JsonObject) -> JsonObject:
    """The schema with what it refers to in its place; its own words win."""
    while "$ref" in value or "allOf" in value:
        target = value.get("$ref") or value["allOf"][0]["$ref"]
        rest = {key: member for key, member in value.items() if key not in ("$ref", "allOf")}
        value = schema.components()[target.removeprefix(_REF)] | rest
    return value


def walk(value: JsonObject, path: Path = (), above: tuple[str, ...] = ()) -> Iterator[tuple[Path, JsonObject]]:
    """Every place below a schema, lists by their first entry, maps not entered; each resolved."""
    whole = resolve(value)
    yield path, whole
    for name, member in whole.get("properties", {}).items():
        target = member.get("$ref") or member.get("allOf", [{}])[0].get("$ref", "")
        if not target or target not in above:
            yield from walk(member, (*path, name), (*above, target))
    if whole.get("type") == "array":
        yield from walk(whole["items"], (*path, 0), above)


def places(kind: Kind) -> Iterator[tuple[Path, JsonObject]]:
    """Every place of the kind's spec."""
    yield from walk(schema.schema_of(kind)["properties"]["spec"], ("spec",))


def whole(of: inspect.Type) -> Any:
    """A value with every field set and one entry in every list; not an acceptable one."""
    match of:
        case inspect.StructType():
            return of.cls(**{field.name: whole(field.type) for field in of.fields})
        case inspect.ListType():
            return [whole(of.item_type)]
        case inspect.DictType():
            return {"key": whole(of.value_type)}
        case inspect.UnionType():
            return whole(next(one for one in of.types if not isinstance(one, inspect.NoneType)))
        case inspect.CustomType():
            return _SCALARS[of.cls]
        case inspect.BoolType():
            return True
        case inspect.IntType():
            return 1
        case inspect.FloatType():
            return 1.0
    return "x"


def get(document: Any, path: Path) -> Any:
    for step in path:
        document = document[step]
    return document


def changed(document: JsonObject, path: Path, value: Any) -> JsonObject:
    """A copy with another value at the path; without it when that is `...`."""
    found = copy.deepcopy(document)
    place = get(found, path[:-1])
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return found


def written(path: Path) -> str:
    """As problems have it: `spec.ingress[0].action`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def related(one: str, other: str) -> bool:
    """Whether one place is the other, or within it."""
    short, long = sorted((one, other), key=len)
    return long.startswith(short) and long[len(short) : len(short) + 1] in ("", ".", "[")
