"""Kubernetes' own field manager (main.go) as an oracle for server-side apply, over a pipe.

`./dev test` builds it where Go reaches its module proxy. It gets the kinds as OpenAPI, made from the same structs and
list types that the code under test uses; everything that is done with them is Kubernetes'.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from libs.model import kinds
from services.apiserver.core.listtypes import Atomic, Fields, ListOf, MapOf, Scalar, Shape, shape_of
from services.apiserver.core.request import WITH_STATUS

BINARY = Path(__file__).resolve().parents[3] / ".cache" / "apply_oracle" / "apply_oracle"
_SCALAR = {"type": "string", "format": "int-or-string"}  # any scalar will do

JsonObject = dict[str, Any]


class Oracle:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(
        self,
        kind: str,
        op: str,
        live: JsonObject | None,
        new: JsonObject,
        *,
        manager: str,
        force: bool = False,
        subresource: str = "",
    ) -> JsonObject:
        """`object` without nulls, or `conflicts` (sorted pairs of owner and path) with `message`, or `error`."""
        reset: Sequence[Sequence[str]] = ()
        if subresource:
            reset = (["metadata"], ["spec"])
        elif kind in WITH_STATUS:
            reset = (["status"],)
        asked = {
            "kind": kind, "op": op, "live": live, "object": new, "manager": manager, "force": force,
            "subresource": subresource, "reset": reset,
        }  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the oracle ended"
        answer: JsonObject = json.loads(line)
        if "conflicts" in answer:
            answer["conflicts"] = sorted(tuple(pair) for pair in answer["conflicts"])
        return answer


@contextmanager
def oracle(*names: str) -> Iterator[Oracle]:
    """For these kinds. Raises pytest.skip: not here."""
    if not BINARY.exists():
        pytest.skip("Kubernetes' field manager is not here")
    definitions = {}
    for name in names:
        schema = _schema(shape_of(kinds.kind(name)))
        schema["x-kubernetes-group-version-kind"] = [{"group": "projectcalico.org", "version": "v3", "kind": name}]
        definitions[f"v3.{name}"] = schema
    with subprocess.Popen([BINARY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(definitions) + "\n")
        process.stdin.flush()
        try:
            yield Oracle(process)
        finally:
            process.stdin.close()
            process.wait(10)


def _schema(shape: Shape) -> JsonObject:
    free = {"x-kubernetes-preserve-unknown-fields": True}
    match shape:
        case Scalar():
            return dict(_SCALAR)
        case Atomic(of) if of is list:
            return {"type": "array", "items": free, "x-kubernetes-list-type": "atomic"}
        case Atomic():
            return {"type": "object", "x-kubernetes-map-type": "atomic", **free}
        case Fields(fields):
            return {"type": "object", "properties": {name: _schema(member) for name, member in fields.items()}}
        case MapOf(value):
            return {"type": "object", "additionalProperties": _schema(value)}
        case ListOf(element, ()):
            return {"type": "array", "items": _schema(element), "x-kubernetes-list-type": "set"}
        case ListOf(element, keys):
            marks = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}
            return {"type": "array", "items": _schema(element), **marks}
