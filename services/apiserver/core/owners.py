"""Who owns which fields: `metadata.managedFields` to and from values, and the names of managers.

    {"manager": "kubectl", "operation": "Apply", "apiVersion": "projectcalico.org/v3", "time": "2026-11-28T01:00:00Z",
     "fieldsType": "FieldsV1", "fieldsV1": {…}, "subresource": "status"}

One owner is a manager with its operation, its subresource and, for updates, its version: who updates and applies under
one name is two owners. Source: k8s.io/apimachinery, pkg/util/managedfields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from libs.model.base import API_VERSION
from services.apiserver.core.fieldset import FieldsError, FieldSet

JsonObject = dict[str, Any]

APPLY, UPDATE = "Apply", "Update"
BEFORE_FIRST_APPLY = "before-first-apply"
"""Owns what was there when an object that had no managed fields is applied to."""
ANCIENT_CHANGES = "ancient-changes"
MAX_UPDATERS = 10
MAX_MANAGER_BYTES = 128
_FIELDS_TYPE = "FieldsV1"


class ManagedFieldsError(ValueError):
    """No managed fields as Kubernetes writes them; the text says which entry and why."""


@dataclass(frozen=True, slots=True, order=True)
class Owner:
    """api_version: "" for APPLY, since one who applies stays the same one when it goes to another version."""

    manager: str
    operation: str
    api_version: str = ""
    subresource: str = ""

    def __str__(self) -> str:
        """As in messages on conflicts."""
        text = f'"{self.manager}"'
        if self.subresource:
            text += f' with subresource "{self.subresource}"'
        return text + (f" using {self.api_version}" if self.operation == UPDATE else "")


@dataclass(frozen=True, slots=True)
class Owned:
    """time: RFC 3339 text of the last change by this owner, "" when not known."""

    fields: FieldSet
    api_version: str = API_VERSION
    time: str = ""


@dataclass(slots=True)
class Managed:
    """Changed in place by operations, which work on a copy of their own."""

    owned: dict[Owner, Owned] = field(default_factory=dict)

    def copy(self) -> Managed:
        return Managed(dict(self.owned))

    def set(self, owner: Owner, fields: FieldSet, *, time: str | None = None) -> None:
        """An owner of nothing is none. time None: as it was."""
        if not fields:
            self.owned.pop(owner, None)
            return
        before = self.owned.get(owner)
        self.owned[owner] = Owned(fields, time=(before.time if before else "") if time is None else time)

    def all_fields(self) -> FieldSet:
        together = FieldSet()
        for owned in self.owned.values():
            together |= owned.fields
        return together


def updater(manager: str, subresource: str = "") -> Owner:
    return Owner(manager or "unknown", UPDATE, API_VERSION, subresource)


def applier(manager: str, subresource: str = "") -> Owner:
    return Owner(manager or "unknown", APPLY, "", subresource)


def decode(entries: object) -> Managed:
    """Of `metadata.managedFields`; None is the same as none. Raises ManagedFieldsError."""
    if entries is None:
        return Managed()
    if not isinstance(entries, list):
        raise ManagedFieldsError("metadata.managedFields: expected a list")
    managed = Managed()
    for index, entry in enumerate(entries):
        try:
            owner, owned = _decode_entry(entry)
        except ValueError as error:
            raise ManagedFieldsError(f"metadata.managedFields[{index}]: {error}") from error
        managed.owned[owner] = owned
    return managed


def _decode_entry(entry: object) -> tuple[Owner, Owned]:
    """Raises ValueError."""
    if not isinstance(entry, Mapping):
        raise ValueError("expected an object")
    texts = {
        name: entry.get(name) or ""
        for name in ("manager", "operation", "apiVersion", "subresource", "time", "fieldsType")
    }
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{name}: expected text")
    if texts["operation"] not in (APPLY, UPDATE):
        raise ValueError("operation: must be `Apply` or `Update`")
    if not texts["apiVersion"]:
        raise ValueError("apiVersion: must not be empty")
    if texts["fieldsType"] != _FIELDS_TYPE:
        raise ValueError(f"fieldsType: must be `{_FIELDS_TYPE}`")
    if texts["time"]:
        seconds(texts["time"])
    try:
        fields = FieldSet.from_json(entry.get("fieldsV1") or {})
    except FieldsError as error:
        raise ValueError(str(error)) from error
    version = texts["apiVersion"] if texts["operation"] == UPDATE else ""
    owner = Owner(texts["manager"], texts["operation"], version, texts["subresource"])
    return owner, Owned(fields, texts["apiVersion"], texts["time"])


def seconds(time: str) -> int:
    """Of an RFC 3339 text, since 1970; "" is 0. Raises ValueError."""
    if not time:
        return 0
    try:
        moment = datetime.fromisoformat(time)
        if moment.tzinfo is None:
            raise ValueError(time)
        return int(moment.timestamp())
    except (ValueError, OverflowError):
        raise ValueError(f"time: {time[:40]!r} is no time as RFC 3339 writes it") from None


def encode(managed: Managed) -> list[JsonObject]:
    """In Kubernetes' order: appliers before updaters, the oldest first."""

    def order(item: tuple[Owner, Owned]) -> tuple[Any, ...]:
        owner, owned = item
        return owner.operation, seconds(owned.time), owner.manager, owned.api_version, owner.subresource

    return [_encode_entry(owner, owned) for owner, owned in sorted(managed.owned.items(), key=order)]


def _encode_entry(owner: Owner, owned: Owned) -> JsonObject:
    entry: JsonObject = {"manager": owner.manager} if owner.manager else {}
    entry |= {"operation": owner.operation, "apiVersion": owned.api_version}
    if owned.time:
        entry["time"] = owned.time
    entry |= {"fieldsType": _FIELDS_TYPE, "fieldsV1": owned.fields.to_json()}
    return entry | ({"subresource": owner.subresource} if owner.subresource else {})


def cap_updaters(managed: Managed) -> None:
    """Joins the oldest updates into one entry `ancient-changes` of their version, so that MAX_UPDATERS are left."""
    updates = [owner for owner in managed.owned if owner.operation == UPDATE]
    if len(updates) <= MAX_UPDATERS:
        return
    updates.sort(key=lambda owner: (seconds(managed.owned[owner].time), owner))
    excess = len(updates) - MAX_UPDATERS
    first: dict[str, Owner] = {}
    for owner in updates:
        if not excess:
            return
        version = owner.api_version
        bucket = Owner(ANCIENT_CHANGES, UPDATE, version)
        if version not in first:
            first[version] = owner
            continue
        owned = managed.owned.pop(owner)
        if bucket not in managed.owned:
            managed.owned[bucket] = managed.owned.pop(first[version])
        fields = owned.fields | managed.owned[bucket].fields
        managed.owned[bucket] = Owned(fields, version, owned.time)  # the later of both times
        excess -= 1


def manager_problem(manager: str) -> str:
    """Why this is no name for a manager; "" when it is one."""
    if len(manager.encode()) > MAX_MANAGER_BYTES:
        return f"may not be more than {MAX_MANAGER_BYTES} bytes"
    return "" if manager.isprintable() else "should only contain printable characters"


def manager_of_user_agent(agent: str) -> str:
    """What stands before the first `/`, as a manager's name: `kubectl` of `kubectl/v1.34.1 (linux/amd64)`."""
    name = ""
    for char in agent.split("/", 1)[0]:
        if not char.isprintable():
            continue
        if len((name + char).encode()) > MAX_MANAGER_BYTES:
            break
        name += char
    return name or "unknown"
