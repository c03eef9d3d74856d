"""The three kinds of patch that `calicoctl patch` and the API accept, over plain JSON values.

json       RFC 6902: a list of operations.
merge      RFC 7386: objects merge, null removes, lists are replaced.
strategic  Kubernetes' own. Calico's types carry no merge keys, so it is `merge` plus its directives (`$patch: replace`
           and `$patch: delete` inside an object, `$retainKeys`, `$deleteFromPrimitiveList/<field>`), and the two lists
           of metadata that do merge: finalizers (as a set) and ownerReferences (by uid).
"""

from __future__ import annotations

import copy
from enum import StrEnum
from typing import Any

import msgspec

JsonObject = dict[str, Any]

MAX_COPIED_BYTES = 2**20
"""By all `copy` operations of one json patch, each of which may double the object."""

_DELETE_FROM = "$deleteFromPrimitiveList/"
_ELEMENT_ORDER = "$setElementOrder/"
_MERGED_LISTS = {("metadata", "finalizers"): None, ("metadata", "ownerReferences"): "uid"}


class PatchType(StrEnum):
    STRATEGIC = "strategic"
    MERGE = "merge"
    JSON = "json"


class PatchError(ValueError):
    """The patch is malformed, or does not fit the object."""


class PatchTooLarge(PatchError):
    """Its copies of copies would fill the memory."""


def apply_patch(original: JsonObject, patch: object, kind: PatchType) -> JsonObject:
    """A new object; `original` stays as it is. patch: decoded JSON, a list for `json`, an object for the others.

    Raises PatchError.
    """
    if kind is PatchType.JSON:
        return _json_patch(original, patch)
    if not isinstance(patch, dict):
        raise PatchError(f"a {kind} patch must be an object, not {_name(patch)}")
    merged = merge(original, patch) if kind is PatchType.MERGE else _strategic(original, patch, ())
    if not isinstance(merged, dict):
        raise PatchError("the patch removes the whole object")
    return merged


def merge(target: object, patch: object) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge(result.get(name), value)
    return result


def _strategic(target: object, patch: object, path: tuple[str, ...]) -> Any:
    if not isinstance(patch, dict):
        return patch
    directive = patch.get("$patch", "merge")
    plain = {name: value for name, value in patch.items() if not name.startswith("$")}
    if directive == "delete":
        return None
    if directive == "replace":
        return plain
    if directive != "merge":
        raise PatchError(f"{'.'.join(path) or 'patch'}: unknown directive $patch: {directive}")
    result = dict(target) if isinstance(target, dict) else {}
    if (retain := patch.get("$retainKeys")) is not None:
        if not isinstance(retain, list):
            raise PatchError(f"{'.'.join(path) or 'patch'}: $retainKeys must be a list")
        result = {name: value for name, value in result.items() if name in retain}
    for name, value in patch.items():
        if not name.startswith("$") or name in ("$patch", "$retainKeys"):
            continue
        if name.startswith(_ELEMENT_ORDER):
            continue  # only orders elements of merged lists; ours are sets
        if not name.startswith(_DELETE_FROM) or not isinstance(value, list):
            raise PatchError(f"{'.'.join(path) or 'patch'}: unknown directive {name}")
        field = name.removeprefix(_DELETE_FROM)
        kept = result.get(field)
        if isinstance(kept, list):
            result[field] = [item for item in kept if item not in value]
    for name, value in plain.items():
        here = (*path, name)
        if value is None:
            result.pop(name, None)
            continue
        old = result.get(name)
        if here in _MERGED_LISTS and isinstance(value, list):
            patched: Any = _merged_list(old if isinstance(old, list) else [], value, _MERGED_LISTS[here])
        else:
            patched = _strategic(old, value, here)
        if patched is None:
            result.pop(name, None)
        else:
            result[name] = patched
    return result


def _merged_list(old: list[Any], new: list[Any], key: str | None) -> list[Any]:
    result = list(old)
    for item in new:
        if key is None or not isinstance(item, dict):
            if item not in result:
                result.append(item)
            continue
        same = [
            index for index, there in enumerate(result) if isinstance(there, dict) and there.get(key) == item.get(key)
        ]
        if item.get("$patch") == "delete":
            result = [there for index, there in enumerate(result) if index not in same]
        elif same:
            result[same[0]] = _strategic(result[same[0]], item, ())
        else:
            result.append(_strategic({}, item, ()))
    return result


def _json_patch(original: JsonObject, patch: object) -> JsonObject:
    if not isinstance(patch, list):
        raise PatchError(f"a json patch must be a list of operations, not {_name(patch)}")
    import jsonpatch  # only these need it, and command lines start the faster
    from jsonpointer import JsonPointerException

    result: Any = copy.deepcopy(original)
    copied = 0
    try:
        for operation in patch:
            if isinstance(operation, dict) and operation.get("op") == "copy":
                copied += _size(operation.get("from"), result)
                if copied > MAX_COPIED_BYTES:
                    raise PatchTooLarge(f"the copies of the json patch come to more than {MAX_COPIED_BYTES} bytes")
            result = jsonpatch.apply_patch(result, [operation], in_place=True)
    except (jsonpatch.JsonPatchException, JsonPointerException, TypeError, KeyError) as error:
        raise PatchError(f"json patch does not apply: {error}") from error
    if not isinstance(result, dict):
        raise PatchError("the patch replaces the whole object by something that is none")
    return result


def _size(pointer: object, value: object) -> int:
    if not isinstance(pointer, str):
        return 0  # which the operation itself will refuse
    from jsonpointer import JsonPointer

    return len(msgspec.json.encode(JsonPointer(pointer).resolve(value)))


def _name(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
