"""Errors of the layers below, as the Kubernetes API tells them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from libs.model import kinds
from libs.model.kinds import Kind
from libs.model.problems import Problem
from libs.resources.errors import (
    AlreadyExists,
    Conflict,
    Identity,
    NotFound,
    NotSupported,
    PreconditionFailed,
    ResourceError,
    ValidationError,
)
from libs.store.api import Compacted, FutureRevision, StoreAuthError, StoreError, StoreUnavailable
from services.apiserver.core import status
from services.apiserver.core.documents import cannot_handle
from services.apiserver.core.status import ApiError, Cause

MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"
_REQUIRED = ("must be given", "is required", "must not be empty", "must name")
_SHOWN_CHARS = 120


def of_resource(error: ResourceError, kind: Kind, name: str) -> ApiError:
    """kind, name: what the request is about; the error may be about another resource, a policy's tier say."""
    identity = error.identity or Identity(kind.kind, name)
    about = kinds.kind(identity.kind)
    match error:
        case NotFound():
            return status.not_found(about.plural, identity.name)
        case AlreadyExists():
            return status.already_exists(about.plural, identity.name)
        case Conflict():
            return status.conflict(about.plural, identity.name, MODIFIED)
        case PreconditionFailed():
            return status.conflict(about.plural, identity.name, str(error))
        case NotSupported():
            return status.forbidden(about.plural, identity.name, error.reason)
        case ValidationError():
            return status.invalid(about.kind, identity.name, causes(error.problems))
    return status.internal(str(error))


def of_store(error: StoreError) -> ApiError:
    match error:
        case StoreUnavailable():
            return status.unavailable(f"the datastore does not answer: {error}")
        case FutureRevision():
            return status.revision_in_future(error.wanted, error.revision)
        case Compacted():
            return status.expired("The resourceVersion for the provided list is too old.")
        case StoreAuthError():
            return status.internal("the datastore refuses this server's credentials")
    return status.internal(f"datastore: {error}")


def undecodable(kind: Kind, problems: Sequence[Problem]) -> ApiError:
    """400: values of a wrong type, so that there is no object to look at."""
    problems = problems[: status.MAX_CAUSES]
    error = cannot_handle(kind, "; ".join(map(str, problems)))
    error.causes = tuple(causes(problems))
    return error


def causes(problems: Sequence[Problem]) -> list[Cause]:
    found = []
    for problem in problems:
        if problem.value is None and problem.message.startswith(_REQUIRED):
            found.append(Cause("FieldValueRequired", f"Required value: {problem.message}", problem.path))
            continue
        value = "" if problem.value is None else f"{_shown(problem.value)}: "
        found.append(Cause("FieldValueInvalid", f"Invalid value: {value}{problem.message}", problem.path))
    return found


def _shown(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."
