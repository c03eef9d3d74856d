"""Kubernetes `Status` objects back into the errors that ResourceClient raises, so that callers need not know which of
both they talk to (k8s.io/apimachinery pkg/apis/meta/v1/types.go: reasons, details, causes).
"""

from __future__ import annotations

from typing import Any

import msgspec

from libs.model import kinds
from libs.resources.errors import (
    AlreadyExists,
    Conflict,
    FieldProblem,
    Forbidden,
    Identity,
    NotFound,
    NotSupported,
    ResourceError,
    ValidationError,
)
from libs.store.api import StoreAuthError, StoreError, StoreUnavailable


class _Cause(msgspec.Struct):
    field: str | None = None
    message: str | None = None
    reason: str | None = None


class _Details(msgspec.Struct):
    name: str | None = None
    kind: str | None = None
    causes: list[_Cause] | None = None


class _Status(msgspec.Struct):
    message: str | None = None
    reason: str | None = None
    details: _Details | None = None


class HistoryLost(Exception):
    """410: list again, and watch from there."""


def of_answer(code: int, body: bytes, operation: str, identity: Identity, given: str = "") -> Exception:
    """What to raise. operation: create …; identity: what it was about, name "" for a list; given: resource version."""
    try:
        status = msgspec.json.decode(body, type=_Status)
    except msgspec.MsgspecError:
        status = _Status(message=body.decode(errors="replace").strip()[:300] or None)
    message = status.message or f"HTTP status {code}"
    details = status.details or _Details()
    match code:
        case 400:
            return ValidationError(identity, [FieldProblem("", message)])
        case 401:
            return StoreAuthError(f"{message}: the API server does not know these credentials")
        case 403:
            return Forbidden(message, identity)
        case 404 if details.name:
            return NotFound(_named(details, identity))
        case 404:
            return NotSupported(operation, identity, _unserved(identity))
        case 405:
            return NotSupported(operation, identity, message)
        case 409 if status.reason == "AlreadyExists":
            return AlreadyExists(identity)
        case 409:
            return Conflict(identity, given)
        case 410:
            return HistoryLost(message)
        case 413 | 415 | 422:
            causes = details.causes or [_Cause(message=message)]
            return ValidationError(identity, [FieldProblem(one.field or "", one.message or message) for one in causes])
        case _:
            return _of_server(code, message)


def _named(details: _Details, identity: Identity) -> Identity:
    """What is missing may be another resource than the one asked about: a policy's tier."""
    kind = kinds.lookup((details.kind or "").split(".")[0])
    if kind is None or kind.kind == identity.kind:
        return identity
    return Identity(kind.kind, details.name or "")


def _unserved(identity: Identity) -> str:
    if identity.kind in ("Node", "WorkloadEndpoint", "LiveMigration"):
        return (
            f"{identity.kind} is no part of the API that API servers have; it is in etcd: "
            "set DATASTORE_TYPE=etcdv3 and ETCD_ENDPOINTS"
        )
    return (
        "this API server does not have projectcalico.org/v3; is the APIService there (kubectl get apiservice "
        "v3.projectcalico.org), or is K8S_API_ENDPOINT that of another server?"
    )


def _of_server(code: int, message: str) -> StoreError | ResourceError:
    return StoreUnavailable(f"API server: {message} ({code})")


def decode_status(value: Any) -> bool:
    """Whether a decoded body is a Status instead of a resource."""
    return isinstance(value, dict) and value.get("kind") == "Status"
