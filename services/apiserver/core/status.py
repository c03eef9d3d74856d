"""Errors as Kubernetes writes them: a `Status` object with a code, a reason that programs look at, and a message.

Reasons and codes: k8s.io/apimachinery, pkg/apis/meta/v1/types.go (StatusReason) and pkg/api/errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

GROUP = "projectcalico.org"

JsonObject = dict[str, Any]

MAX_CAUSES = 100
"""That one answer tells: an object of megabytes may have a fault in each of its entries."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One fault of an object. reason: FieldValueInvalid, FieldManagerConflict …; field: its path."""

    reason: str
    message: str
    field: str = ""


class ApiError(Exception):
    """An answer that is not the wanted one. plural: of the resource; retry_after_s: when trying again makes sense."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        plural: str = "",
        name: str = "",
        uid: str = "",
        causes: Sequence[Cause] = (),
        retry_after_s: int = 0,
    ) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message
        self.plural, self.name, self.uid = plural, name, uid
        self.causes, self.retry_after_s = tuple(causes), retry_after_s
        self.continue_token = ""  # of a list whose revision is gone: how to go on all the same

    def status(self) -> JsonObject:
        """The `Status` object (kind Status, apiVersion v1)."""
        details: JsonObject = {}
        if self.name:
            details["name"] = self.name
        if self.plural:
            details |= {"group": GROUP, "kind": self.plural}
        if self.uid:
            details["uid"] = self.uid
        if self.causes:
            details["causes"] = [
                {"reason": cause.reason, "message": cause.message} | ({"field": cause.field} if cause.field else {})
                for cause in self.causes
            ]
        if self.retry_after_s:
            details["retryAfterSeconds"] = self.retry_after_s
        found: JsonObject = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message,
            "reason": self.reason,
        }  # fmt: skip
        if self.continue_token:
            found["metadata"] = {"continue": self.continue_token}
        if details:
            found["details"] = details
        return found | {"code": self.code}


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def unauthorized(message: str = "Unauthorized") -> ApiError:
    return ApiError(401, "Unauthorized", message)


def forbidden(plural: str, name: str, message: str) -> ApiError:
    """message: what comes after `PLURAL.GROUP "NAME" is forbidden: `."""
    of = f' "{name}"' if name else ""
    return ApiError(403, "Forbidden", f"{plural}.{GROUP}{of} is forbidden: {message}", plural=plural, name=name)


def not_found(plural: str, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{plural}.{GROUP} "{name}" not found', plural=plural, name=name)


def not_found_path() -> ApiError:
    return ApiError(404, "NotFound", "the server could not find the requested resource")


def method_not_allowed() -> ApiError:
    return ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def method_not_supported(plural: str, verb: str) -> ApiError:
    """405 for a verb that a resource does not have."""
    message = f'{verb} is not supported on resources of kind "{plural}.{GROUP}"'
    return ApiError(405, "MethodNotAllowed", message, plural=plural)


def already_exists(plural: str, name: str) -> ApiError:
    return ApiError(409, "AlreadyExists", f'{plural}.{GROUP} "{name}" already exists', plural=plural, name=name)


def conflict(plural: str, name: str, message: str, causes: Sequence[Cause] = ()) -> ApiError:
    text = f'Operation cannot be fulfilled on {plural}.{GROUP} "{name}": {message}'
    return ApiError(409, "Conflict", text, plural=plural, name=name, causes=causes)


def invalid(kind: str, name: str, causes: Sequence[Cause]) -> ApiError:
    """422 with every fault named, up to MAX_CAUSES. kind: as in `NetworkPolicy`; Kubernetes puts the kind here."""
    more = len(causes) - MAX_CAUSES
    causes = causes[:MAX_CAUSES]
    faults = [f"{cause.field}: {cause.message}" if cause.field else cause.message for cause in causes]
    if more > 0:
        faults.append(f"and {more} more")
    text = faults[0] if len(faults) == 1 else f"[{', '.join(faults)}]"
    message = f'{kind}.{GROUP} "{name}" is invalid: {text}'
    return ApiError(422, "Invalid", message, plural=kind, name=name, causes=causes)


def expired(message: str = "The resourceVersion for the provided watch is too old.") -> ApiError:
    """410: list again and watch from there."""
    return ApiError(410, "Expired", message)


def too_large(message: str) -> ApiError:
    return ApiError(413, "RequestEntityTooLarge", message)


def unsupported_media_type(message: str) -> ApiError:
    return ApiError(415, "UnsupportedMediaType", message)


def not_acceptable(message: str) -> ApiError:
    return ApiError(406, "NotAcceptable", message)


def too_many_requests(message: str, retry_after_s: int = 1) -> ApiError:
    return ApiError(429, "TooManyRequests", message, retry_after_s=retry_after_s)


def revision_in_future(wanted: int, have: int, retry_after_s: int = 1) -> ApiError:
    """504 as Kubernetes answers it: the cache has not reached the wanted revision in time, or never will."""
    cause = Cause("ResourceVersionTooLarge", "Too large resource version")
    message = f"Too large resource version: {wanted}, current: {have}"
    return ApiError(504, "Timeout", message, causes=[cause], retry_after_s=retry_after_s)


def unavailable(message: str, retry_after_s: int = 1) -> ApiError:
    return ApiError(503, "ServiceUnavailable", message, retry_after_s=retry_after_s)


def internal(message: str) -> ApiError:
    return ApiError(500, "InternalError", f"Internal error occurred: {message}")
