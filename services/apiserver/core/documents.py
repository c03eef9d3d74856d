"""Bodies of requests: bytes in, plain JSON values of a known kind out, with what Kubernetes says about fields that are
unknown or given twice (`fieldValidation`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import msgspec

from libs.model import codec, kinds, yamltext
from libs.model.base import API_VERSION
from libs.model.kinds import Kind
from libs.model.validation.unknown import without_unknown
from services.apiserver.core.options import FieldValidation
from services.apiserver.core.status import ApiError, JsonObject, bad_request

VERSION = API_VERSION.partition("/")[2]
_WARNINGS_CHARS = 4096
_MAX_FAULTS = 100
"""Of one object's unknown and duplicate fields, as Kubernetes tells them."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """value: anything JSON has; faults: `duplicate field "spec.tier"`, found only where they were looked for."""

    value: Any
    faults: tuple[str, ...] = ()


def decode(raw: bytes, *, yaml: bool, duplicates: bool = True) -> Decoded:
    """Raises ValueError with what is wrong."""
    found: list[str] = []
    if yaml:
        try:
            value: Any = yamltext.load(raw.decode("utf-8-sig"), found)
        except UnicodeDecodeError as error:
            raise ValueError(f"not UTF-8 text (byte {error.start})") from error
        except yamltext.SyntaxProblem as problem:
            place = f"line {problem.position.line}"
            raise ValueError(f"error converting YAML to JSON: yaml: {place}: {problem.message}") from problem
    else:
        try:
            value = msgspec.json.decode(raw)
            if duplicates:
                _duplicates(json.loads(raw, object_pairs_hook=_Pairs), "", found)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        except msgspec.DecodeError as error:
            raise ValueError(f"json parse error: {error}") from error
    return Decoded(value, tuple(f'duplicate field "{path}"' for path in found))


class _Pairs(list[tuple[str, Any]]):
    """An object with all its members, those of the same name too."""


def _duplicates(value: Any, path: str, found: list[str]) -> None:
    if isinstance(value, _Pairs):
        seen: set[str] = set()
        for name, member in value:
            here = f"{path}.{name}" if path else name
            if name in seen:
                found.append(here)
            seen.add(name)
            _duplicates(member, here, found)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _duplicates(item, f"{path}[{index}]", found)


def read(
    raw: bytes, *, yaml: bool, kind: Kind, validation: FieldValidation, nulls: bool = False
) -> tuple[JsonObject, list[str]]:
    """An object of the kind as the client wrote it, known fields alone, and warnings. nulls: are kept.

    Raises ApiError 400: no object, of another kind or version, or with faults under strict validation.
    """
    if not raw.strip():
        raise bad_request(f"the object provided is unrecognized (must be of type {kind.kind}): the body is empty")
    try:
        decoded = decode(raw, yaml=yaml, duplicates=validation is not FieldValidation.IGNORE)
    except ValueError as error:
        raise bad_request(
            f"the object provided is unrecognized (must be of type {kind.kind}): couldn't get version/kind; {error}"
        ) from error
    if not isinstance(decoded.value, dict):
        name = type(decoded.value).__name__
        raise bad_request(
            f"the object provided is unrecognized (must be of type {kind.kind}): expected an object, not {name}"
        )
    return known_fields(decoded.value, kind, validation, decoded.faults, nulls=nulls)


def known_fields(
    value: JsonObject,
    kind: Kind,
    validation: FieldValidation,
    faults: tuple[str, ...] = (),
    *,
    nulls: bool = False,
) -> tuple[JsonObject, list[str]]:
    """The object with apiVersion and kind, without unknown fields, and warnings. Raises ApiError 400."""
    check_kind(value, kind)
    kept, unknown = without_unknown(value, kind)
    found = [*(f'unknown field "{path}"' for path in unknown), *faults][:_MAX_FAULTS]
    if found and validation is FieldValidation.STRICT:
        raise cannot_handle(kind, f"strict decoding error: {', '.join(found)}")
    whole = {**kept, "apiVersion": API_VERSION, "kind": kind.kind}
    plain: JsonObject = whole if nulls else codec.drop_nulls(whole)
    return plain, found if validation is FieldValidation.WARN else []


def check_kind(value: JsonObject, kind: Kind) -> None:
    """Absent ones are taken to be right. Raises ApiError 400."""
    version, name = (value.get(field, "") for field in ("apiVersion", "kind"))
    if not isinstance(version, str) or not isinstance(name, str):
        raise bad_request("apiVersion and kind must be text")
    version, name = version or API_VERSION, name or kind.kind
    if version != API_VERSION:
        raise bad_request(
            f"the API version in the data ({version}) does not match the expected API version ({API_VERSION})"
        )
    if name == kind.kind:
        return
    if name not in kinds.KINDS:
        raise bad_request(f'no kind "{name}" is registered for version "{API_VERSION}"')
    raise bad_request(f'{name} in version "{VERSION}" cannot be handled as a {kind.kind}: the kind does not match')


def cannot_handle(kind: Kind, message: str) -> ApiError:
    return bad_request(f'{kind.kind} in version "{VERSION}" cannot be handled as a {kind.kind}: {message}')


def warning_headers(warnings: list[str]) -> list[str]:
    """Values of Warning headers (RFC 7234 section 5.5, code 299), those that fit."""
    values: list[str] = []
    size = 0
    for text in dict.fromkeys(warnings):
        printable = "".join(letter if letter.isprintable() else "?" for letter in text)
        escaped = printable.replace("\\", "\\\\").replace('"', '\\"')
        size += len(escaped)
        if size > _WARNINGS_CHARS:
            break
        values.append(f'299 - "{escaped}"')
    return values


__all__ = ["Decoded", "cannot_handle", "check_kind", "decode", "known_fields", "read", "warning_headers"]
