"""From what a client sent and what is stored, to what is to be stored: create, update, patch and apply. Pure.

Each takes plain JSON as the client wrote it and returns a typed resource with its defaults and managed fields, which
`libs.resources.client` then checks and writes. Faults are ApiError, or what `core.managed` and `libs.resources` raise.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from libs.model.base import Resource
from libs.resources import codec
from libs.resources.errors import ValidationError
from libs.resources.patch import PatchError, PatchTooLarge, PatchType, apply_patch
from services.apiserver.core import documents, managed, objects
from services.apiserver.core.faults import undecodable
from services.apiserver.core.managed import ShapeError
from services.apiserver.core.negotiation import PatchKind
from services.apiserver.core.options import WriteQuery
from services.apiserver.core.request import Target
from services.apiserver.core.status import ApiError, Cause, JsonObject, bad_request, invalid, too_large

MAX_OPERATIONS = 10_000
"""Of a JSON patch, as kube-apiserver allows."""
_PATCH_TYPES = {
    PatchKind.JSON: PatchType.JSON,
    PatchKind.MERGE: PatchType.MERGE,
    PatchKind.STRATEGIC: PatchType.STRATEGIC,
}


@dataclass(frozen=True, slots=True)
class Write:
    """What a request writes to, as whom and when. now: RFC 3339."""

    target: Target
    query: WriteQuery
    now: str


def created(value: JsonObject, write: Write, random: Random) -> Resource:
    return _recorded(None, objects.for_create(value, write.target, random), write)


def updated(live: Resource, value: JsonObject, write: Write) -> Resource:
    """value: what the client wants in place of `live`."""
    present = codec.to_json(live)
    return _recorded(present, objects.for_update(value, present, write.target), write)


def patched(live: Resource, patch: object, kind: PatchKind, write: Write) -> tuple[Resource, list[str]]:
    """kind: not APPLY. patch: decoded. The second are warnings."""
    present = codec.to_json(live)
    result = _patch(present, patch, kind, write)
    value, warnings = documents.known_fields(result, write.target.kind, write.query.validation)
    objects.check_names(value, write.target)
    try:
        return _recorded(present, objects.for_update(value, present, write.target), write), warnings
    except ApiError as error:
        raise _of_patch(error, write.target) from error


def applied(live: Resource | None, wanted: JsonObject, write: Write) -> Resource:
    """wanted: its nulls are kept, since they own their fields. live None: it is created."""
    target, query = write.target, write.query
    present = codec.to_json(live) if live is not None else None
    merged = managed.apply(
        present,
        wanted,
        kind=target.kind,
        manager=query.manager,
        force=query.force,
        now=write.now,
        subresource=target.subresource,
    )
    if present is None:
        fresh = objects.for_create(merged, target, Random(0))  # applied objects have a name: nothing is drawn
        resource = _typed(fresh, target)
    else:
        resource = _typed(objects.for_update(merged, present, target), target)
    settled = managed.settled(present, codec.to_json(resource))
    return _with_managed(resource, settled)


# --- parts -----------------------------------------------------------------------------------------------------------


def _recorded(live: JsonObject | None, new: JsonObject, write: Write) -> Resource:
    resource = _typed(new, write.target)
    try:
        known = managed.update(
            live,
            codec.to_json(resource) | _asked_to_forget(new),
            kind=write.target.kind,
            manager=write.query.manager,
            now=write.now,
            subresource=write.target.subresource,
        )
    except ShapeError:
        return resource  # lists whose elements cannot be told apart have no owners; the object may be written
    return _with_managed(resource, known)


def _asked_to_forget(new: JsonObject) -> JsonObject:
    """`managedFields: []` and `[{}]` mean "forget"; a typed resource does not tell the first from nothing said."""
    if new["metadata"].get("managedFields") != []:
        return {}
    return {"metadata": {**new["metadata"], "managedFields": []}}


def _with_managed(resource: Resource, known: JsonObject) -> Resource:
    return codec.with_metadata(resource, managed_fields=known["metadata"].get("managedFields", []))


def _typed(value: JsonObject, target: Target) -> Resource:
    """With its defaults. Raises ApiError 400 for values of a wrong type."""
    try:
        return codec.with_defaults(codec.from_json(value))
    except ValidationError as error:
        raise undecodable(target.kind, error.problems) from error


def _patch(present: JsonObject, patch: object, kind: PatchKind, write: Write) -> JsonObject:
    if kind is PatchKind.JSON:
        _check_operations(patch, write.target)
    elif not isinstance(patch, dict):
        raise bad_request(f"the patch must be an object, not {type(patch).__name__}")
    try:
        return apply_patch(present, patch, _PATCH_TYPES[kind])
    except PatchTooLarge as error:
        raise too_large(str(error)) from error
    except PatchError as error:
        raise _patch_refused(str(error), write.target) from error


def _check_operations(patch: object, target: Target) -> None:
    if not isinstance(patch, list) or not all(isinstance(operation, dict) for operation in patch):
        raise bad_request("the patch must be a list of operations")
    if len(patch) > MAX_OPERATIONS:
        raise too_large(f"The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len(patch)}")


def _patch_refused(message: str, target: Target) -> ApiError:
    return ApiError(422, "Invalid", message, plural=target.kind.plural, name=target.name)


def _of_patch(error: ApiError, target: Target) -> ApiError:
    """A patch whose result is no object of the kind is unprocessable, not unreadable."""
    if error.code != 400 or not error.causes:
        return error
    causes = error.causes or (Cause("FieldValueInvalid", error.message, "patch"),)
    return invalid(target.kind.kind, target.name, causes)
