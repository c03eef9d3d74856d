"""Server-side apply, and who owns which field after any other write.

    apply    a manager says what it wants; others' fields stay, what it wanted before and no longer wants goes, and what
             another one owns and would change is a conflict, unless it is forced
    update   anything else that writes an object: what changed belongs to the writer from now on

Whole objects as decoded JSON, as clients get them; the arguments are not changed. Source: k8s.io/apimachinery,
pkg/util/managedfields, and sigs.k8s.io/structured-merge-diff, package merge; checked against these two by
tests/properties/test_apply_oracle.py.

Beyond Kubernetes: values are compared as the store writes them (`90s` is `1m30s`, `natOutgoing: false` is the same as
none), so that two managers who write one value in two ways do not get in each other's way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from libs.model import codec
from libs.model.base import API_VERSION
from libs.model.kinds import Kind
from services.apiserver.core import owners
from services.apiserver.core.fieldset import FieldSet, Path, path_text
from services.apiserver.core.listtypes import Fields, shape_of
from services.apiserver.core.merging import (
    Comparison,
    ShapeError,
    check,
    compare,
    drop_nulls,
    fields_of,
    fitted,
    merge,
    remove,
    same,
    with_named_fields,
)
from services.apiserver.core.owners import APPLY, Managed, ManagedFieldsError, Owned, Owner
from services.apiserver.core.request import WITH_STATUS
from services.apiserver.core.status import ApiError, Cause, JsonObject

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_KUBECTL = "kubectl"
"""Its server-side apply takes over what its client-side apply owned."""
_MAX_ANNOTATIONS_BYTES = 256 * 1024
_NEVER_OWNED = FieldSet.of(
    ("f:apiVersion",),
    ("f:kind",),
    ("f:metadata",),
    *(
        ("f:metadata", f"f:{name}")
        for name in (
            *("name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation"),
            *("managedFields", "resourceVersion"),
        )
    ),
)
_STATUS = FieldSet.of(("f:status",))
_ALL_BUT_STATUS = FieldSet.of(("f:metadata",), ("f:spec",))


class ApplyRefused(ValueError):
    """The applied configuration is not one (400). field: path of the fault, "" for the whole."""

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.message, self.field = message, field

    def api_error(self) -> ApiError:
        causes = [Cause("FieldValueInvalid", self.message, self.field)] if self.field else []
        return ApiError(400, "BadRequest", self.message, causes=causes)


class ApplyConflict(Exception):
    """Others own fields that would change. conflicts: (owner, path), sorted."""

    def __init__(self, conflicts: Iterable[tuple[Owner, Path]]) -> None:
        self.conflicts = sorted(conflicts, key=lambda conflict: conflict[0])
        super().__init__(self._message())

    def _message(self) -> str:
        if len(self.conflicts) == 1:
            owner, path = self.conflicts[0]
            return f"Apply failed with 1 conflict: conflict with {owner}: {path_text(path)}"
        lines = []
        for owner in dict.fromkeys(owner for owner, _ in self.conflicts):
            lines.append(f"conflicts with {owner}:")
            lines += [f"- {path_text(path)}" for other, path in self.conflicts if other == owner]
        return f"Apply failed with {len(self.conflicts)} conflicts: " + "\n".join(lines)

    def api_error(self) -> ApiError:
        causes = [
            Cause("FieldManagerConflict", f"conflict with {owner}", path_text(path)) for owner, path in self.conflicts
        ]
        return ApiError(409, "Conflict", str(self), causes=causes)


@dataclass(frozen=True, slots=True)
class _Write:
    """What one operation works with. ignored: what requests of this kind cannot write."""

    kind: Kind
    shape: Fields
    owner: Owner
    ignored: FieldSet
    now: str


def apply(
    live: JsonObject | None,
    wanted: JsonObject,
    *,
    kind: Kind,
    manager: str,
    force: bool,
    now: str,
    subresource: str = "",
) -> JsonObject:
    """The object after `manager` applied `wanted`, managedFields included; equal to `live` when nothing changes.

    live None: it is created. subresource "status": all but status stays as it is (and live is not None). now: RFC 3339.
    Nulls in `wanted` own their fields and empty them. Defaults are set afterwards and belong to nobody; use `settled`
    again after that. Raises ApplyConflict, ApplyRefused.
    """
    assert live is not None or not subresource
    _check_wanted(wanted, kind)
    write = _write(kind, owners.applier(manager, subresource), now)
    wanted = drop_nulls(wanted, write.shape, inside_atomic=True)
    try:
        managed = owners.decode(_managed_fields(live))
    except ManagedFieldsError as error:
        raise ApplyRefused(f"{error}; to start over, update the object with managedFields [{{}}]") from error
    before = _without_managed(live) if live is not None else {"apiVersion": API_VERSION, "kind": kind.kind}
    managed = _served(managed, write.shape)
    if not managed.owned:
        first = replace(write, owner=owners.updater(owners.BEFORE_FIRST_APPLY, subresource))
        _record_update({}, before, managed, first)
    try:
        after, managed = _applied(before, wanted, managed, write, force)
    except ApplyConflict as conflict:
        if manager != _KUBECTL or not (own := _last_applied_fields(before, write)):
            raise
        if left := [(owner, path) for owner, path in conflict.conflicts if path not in own]:
            raise ApplyConflict(left) from None
        after, managed = _applied(before, wanted, managed, write, force=True)
    if manager == _KUBECTL:
        after = _with_last_applied(after, wanted)
    return settled(live, _with_managed(after, managed))


def update(
    live: JsonObject | None,
    new: JsonObject,
    *,
    kind: Kind,
    manager: str,
    now: str,
    subresource: str = "",
) -> JsonObject:
    """`new` with the managedFields that it has after `manager` wrote it; live None: it was created.

    new: defaulted, and as it will be stored. Its own managedFields count when they can be read (a client may change
    them); absent or unreadable ones are taken from `live`, and `[]` or `[{}]` forgets them all. Objects without managed
    fields stay without until the first apply. Raises ShapeError for lists of owned elements that cannot be told apart.
    """
    write = _write(kind, owners.updater(manager, subresource), now)
    managed = _served(_managed_of_update(live, new, subresource), write.shape)
    after = _without_managed(new)
    if managed.owned or live is None:
        before = _without_managed(live) if live is not None else {"apiVersion": API_VERSION, "kind": kind.kind}
        _record_update(before, after, managed, write)
        owners.cap_updaters(managed)
    return settled(live, _with_managed(after, managed))


def settled(live: JsonObject | None, new: JsonObject) -> JsonObject:
    """`new` as it is to be stored: with the times that `live` has, if times in managedFields are all that differs. What
    then equals `live` need not be written.
    """
    if live is None:
        return new
    mine, theirs = _managed_fields(new) or [], _managed_fields(live) or []
    if mine == theirs or not same([_timeless(entry) for entry in mine], [_timeless(entry) for entry in theirs]):
        return new
    if not same(_comparable(new), _comparable(live)):
        return new
    return {**new, "metadata": {**new["metadata"], "managedFields": theirs}}


def _timeless(entry: Any) -> Any:
    return {name: value for name, value in entry.items() if name != "time"} if isinstance(entry, dict) else entry


def _comparable(value: JsonObject) -> JsonObject:
    ignored = ("managedFields", "resourceVersion")
    metadata = {name: member for name, member in (value.get("metadata") or {}).items() if name not in ignored}
    return {**value, "metadata": metadata}


def _write(kind: Kind, owner: Owner, now: str) -> _Write:
    ignored = FieldSet()
    if owner.subresource:
        ignored = _ALL_BUT_STATUS
    elif kind.kind in WITH_STATUS:
        ignored = _STATUS
    return _Write(kind, shape_of(kind), owner, ignored, now)


def _check_wanted(wanted: JsonObject, kind: Kind) -> None:
    version, name = wanted.get("apiVersion"), wanted.get("kind")
    if (version, name) != (API_VERSION, kind.kind):
        raise ApplyRefused(f"invalid object type: {version}, Kind={name}; expected {API_VERSION}, Kind={kind.kind}")
    metadata = wanted.get("metadata")
    if isinstance(metadata, dict) and metadata.get("managedFields") is not None:
        raise ApplyRefused("metadata.managedFields must be nil", "metadata.managedFields")
    try:
        check(wanted, shape_of(kind))
    except ShapeError as error:
        of = f"{_name(wanted)}; {API_VERSION}, Kind={kind.kind}"
        raise ApplyRefused(f"failed to create typed patch object ({of}): {error}", error.path.lstrip(".")) from error


def _name(wanted: JsonObject) -> str:
    metadata = wanted.get("metadata")
    of = metadata if isinstance(metadata, dict) else {}
    return f"{of.get('namespace') or ''}/{of.get('name') or ''}"


def _managed_fields(value: JsonObject | None) -> Any:
    metadata = (value or {}).get("metadata")
    return metadata.get("managedFields") if isinstance(metadata, dict) else None


def _without_managed(value: JsonObject) -> JsonObject:
    if _managed_fields(value) is None:
        return value
    return {**value, "metadata": {name: of for name, of in value["metadata"].items() if name != "managedFields"}}


def _with_managed(value: JsonObject, managed: Managed) -> JsonObject:
    if not managed.owned:
        return value
    return {**value, "metadata": {**(value.get("metadata") or {}), "managedFields": owners.encode(managed)}}


def _managed_of_update(live: JsonObject | None, new: JsonObject, subresource: str) -> Managed:
    sent = None if subresource else _managed_fields(new)
    if sent in ([], [{}]):
        return Managed()
    try:
        managed = owners.decode(sent)
    except ManagedFieldsError:
        managed = Managed()
    if managed.owned:
        return managed
    try:
        return owners.decode(_managed_fields(live))
    except ManagedFieldsError:
        return Managed()


def _served(managed: Managed, shape: Fields) -> Managed:
    """Without the entries of versions that are not served, whose fields cannot be told; the others in today's shape."""
    return Managed(
        {
            owner: Owned(fitted(owned.fields, shape), owned.api_version, owned.time)
            for owner, owned in managed.owned.items()
            if owned.api_version == API_VERSION
        }
    )


def _record_update(before: JsonObject, after: JsonObject, managed: Managed, write: _Write) -> None:
    comparison = compare(before, after, write.shape).without(write.ignored)
    _take(managed, comparison)
    if written := comparison.written - _NEVER_OWNED:
        own = managed.owned.get(write.owner)
        managed.set(write.owner, written | own.fields if own else written, time=write.now)


def _take(managed: Managed, comparison: Comparison) -> None:
    """What changed belongs to nobody, until the writer gets it."""
    gone = comparison.written | comparison.removed
    for owner, owned in list(managed.owned.items()):
        managed.set(owner, owned.fields - gone)


def _applied(
    before: JsonObject, wanted: JsonObject, managed: Managed, write: _Write, force: bool
) -> tuple[JsonObject, Managed]:
    """(the object without managedFields, who owns it then). Raises ApplyConflict."""
    shape, owner, managed = write.shape, write.owner, managed.copy()
    last = managed.owned.get(owner)
    own = fields_of(wanted, shape).without(write.ignored)
    time = last.time if last else ""
    managed.owned[owner] = Owned(own, API_VERSION, time)
    merged = merge(before, wanted, shape)
    if last is not None:
        merged = _pruned(merged, last.fields, managed, shape)
    after = _only_written(before, drop_nulls(merged, shape), write)
    comparison = compare(before, merged, shape).without(write.ignored)
    unchanged = same(before, merged)
    stored = _as_stored(before, write.kind), _as_stored(after, write.kind)
    if stored[0] is not None and stored[1] is not None and "metadata" in before:
        seen = compare(*stored, shape)
        changed = seen.written | seen.removed
        comparison = replace(comparison, added=comparison.added & changed, modified=comparison.modified & changed)
        unchanged = same(*stored)
    conflicts = [
        (other, path)
        for other, owned in managed.owned.items()
        if other != owner
        for path in (owned.fields & comparison.written).paths()
    ]
    if conflicts and not force:
        raise ApplyConflict(conflicts)
    _take(managed, comparison)
    managed.set(owner, own - _NEVER_OWNED, time=time if unchanged else write.now)
    return after, managed


def _pruned(merged: JsonObject, last: FieldSet, managed: Managed, shape: Fields) -> JsonObject:
    """Without what the owner applied last time (`last`) and that nobody claims now, itself included."""
    named = with_named_fields(fields_of(merged, shape), shape)
    last = with_named_fields(last, shape)
    left = with_named_fields(fields_of(remove(merged, last, shape), shape), shape)
    claimed = with_named_fields(managed.all_fields(), shape)
    # First without what is claimed by nobody; of that, only what the owner had is its to remove.
    left = with_named_fields(fields_of(remove(merged, named - (left | claimed), shape), shape), shape)
    pruned: JsonObject = remove(merged, (named - left) & last, shape)
    return pruned


def _as_stored(value: JsonObject, kind: Kind) -> JsonObject | None:
    """As the store will have it; None when it is no object of its kind, which validation will say."""
    try:
        return codec.to_dict(codec.convert(kind.struct, codec.drop_nulls(value)))
    except codec.DecodeError:
        return None


def _only_written(before: JsonObject, after: JsonObject, write: _Write) -> JsonObject:
    """Parts that such a request cannot write, as they were."""
    if not write.ignored:
        return after
    if write.owner.subresource:
        kept, status = before, after.get("status")
    else:
        kept, status = after, before.get("status")
    rest = {name: member for name, member in kept.items() if name != "status"}
    return rest if status is None else {**rest, "status": status}


def _last_applied_fields(live: JsonObject, write: _Write) -> FieldSet:
    """What kubectl's client-side apply owns: of the configuration that it left in its annotation, what still is so."""
    text = _annotations(live).get(LAST_APPLIED)
    try:
        last = json.loads(text) if isinstance(text, str) else None
        if not isinstance(last, dict) or last.get("apiVersion") != API_VERSION:
            return FieldSet()
        check(last, write.shape)
        differs = compare(last, live, write.shape)
    except (ValueError, RecursionError):
        return FieldSet()
    return fields_of(last, write.shape) - (differs.written | differs.removed)


def _annotations(value: JsonObject) -> JsonObject:
    metadata = value.get("metadata")
    annotations = metadata.get("annotations") if isinstance(metadata, dict) else None
    return annotations if isinstance(annotations, dict) else {}


def _with_last_applied(value: JsonObject, wanted: JsonObject) -> JsonObject:
    """The annotation kept up to date, where it is, for a kubectl that goes back to client-side apply."""
    annotations = _annotations(value)
    if not annotations.get(LAST_APPLIED):
        return value
    sent = {name: text for name, text in _annotations(wanted).items() if name != LAST_APPLIED}
    if _annotations(wanted):
        wanted = {**wanted, "metadata": {**wanted["metadata"], "annotations": sent}}
    text = json.dumps(wanted, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    annotations = {**annotations, LAST_APPLIED: text}
    if (
        sum(len(name.encode()) + len(str(value).encode()) for name, value in annotations.items())
        > _MAX_ANNOTATIONS_BYTES
    ):
        del annotations[LAST_APPLIED]
    return {**value, "metadata": {**value["metadata"], "annotations": annotations}}


__all__ = [
    "APPLY",
    "LAST_APPLIED",
    "ApplyConflict",
    "ApplyRefused",
    "ShapeError",
    "apply",
    "settled",
    "update",
]
