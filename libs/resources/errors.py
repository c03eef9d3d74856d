"""What a resource operation can answer instead of the wanted result.

Faults of the request, all `ResourceError`; trouble with the datastore itself stays what `libs.store.api` says it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libs.model.problems import Problem as FieldProblem


@dataclass(frozen=True, slots=True)
class Identity:
    """Names one resource in messages: `NetworkPolicy(shop/web)`."""

    kind: str
    name: str
    namespace: str = ""

    def __str__(self) -> str:
        return f"{self.kind}({f'{self.namespace}/' if self.namespace else ''}{self.name})"


class ResourceError(Exception):
    """Base of all below. `identity` is None when the request named no resource."""

    def __init__(self, message: str, identity: Identity | None = None) -> None:
        super().__init__(message)
        self.identity = identity


class AlreadyExists(ResourceError):
    def __init__(self, identity: Identity) -> None:
        super().__init__(f"resource already exists: {identity}", identity)


class NotFound(ResourceError):
    def __init__(self, identity: Identity) -> None:
        super().__init__(f"resource does not exist: {identity}", identity)


class Conflict(ResourceError):
    """Somebody else changed it since the caller read it. given/latest: resource versions, "" when unknown."""

    def __init__(self, identity: Identity, given: str = "", latest: str = "") -> None:
        detail = f": resource version '{given}' is out of date (latest: {latest or 'gone'})" if given else ""
        super().__init__(f"update conflict: {identity}{detail}; read it again and repeat the change", identity)
        self.given = given
        self.latest = latest


class PreconditionFailed(ResourceError):
    """The resource is there, and not the one that the request was meant for. field: `UID` or `ResourceVersion`."""

    def __init__(self, identity: Identity, field: str, wanted: str, found: str) -> None:
        text = f"Precondition failed: {field} in precondition: {wanted}, {field} in object meta: {found}"
        super().__init__(text, identity)


class NotSupported(ResourceError):
    """Never allowed, whoever asks."""

    def __init__(self, operation: str, identity: Identity, reason: str) -> None:
        super().__init__(f"operation {operation} is not supported on {identity}: {reason}", identity)
        self.operation = operation
        self.reason = reason


class Forbidden(ResourceError):
    """The server knows who asks and does not let them; it says why."""


class ValidationError(ResourceError):
    """The resource is not acceptable: every problem found, not only the first."""

    def __init__(self, identity: Identity | None, problems: Sequence[FieldProblem]) -> None:
        shown = "; ".join(str(problem) for problem in problems)
        super().__init__(f"{f'{identity}: ' if identity else ''}{shown}", identity)
        self.problems = list(problems)


__all__ = [
    "AlreadyExists",
    "Conflict",
    "FieldProblem",
    "Forbidden",
    "Identity",
    "NotFound",
    "NotSupported",
    "PreconditionFailed",
    "ResourceError",
    "ValidationError",
]
