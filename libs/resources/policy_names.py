"""Policies that were stored as `default.<name>` move to their own name (`calicoctl datastore migrate-policy-names`).

Clients before Calico v3.32 wrote that prefix; readers take it off again, but a policy cannot be changed under its v3
name until it is stored under it (facts: etcd-layout section 5). Each move is one transaction, so that a reader finds
either the old key or the new one, and it can be done again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import uuid4

from libs import model
from libs.model import storage
from libs.resources import codec
from libs.resources.errors import Identity
from libs.resources.rules import TIERED
from libs.store.api import Compare, Delete, Put, Store

MAX_TRIES = 5


@dataclass(slots=True)
class Moved:
    """problems: policies that stay where they are, and why."""

    policies: list[Identity] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


async def migrate(store: Store) -> Moved:
    moved = Moved()
    for kind in TIERED:
        for kv in (await store.list(codec.prefix(kind.kind))).kvs:
            await _move(store, kind.kind, kv.key, moved)
    return moved


async def _move(store: Store, kind: str, old: str, moved: Moved) -> None:
    for _ in range(MAX_TRIES):
        kv = await store.get(old)
        resource = codec.readable(kind, kv) if kv is not None else None
        if kv is None or resource is None:
            return  # gone meanwhile, or nothing that anybody can read
        identity = codec.identity(resource)
        new = codec.key(identity)
        if new == old:
            return
        if (other := await store.get(new)) is not None:
            if not _same(resource, codec.readable(kind, other)):
                moved.problems.append(
                    f"{identity}: stored at {old} and, with another content, at {new}; delete the one that is not "
                    "wanted and run the command again"
                )
                return
            done = await store.txn([Compare(old, kv.mod_revision), Compare(new, other.mod_revision)], [Delete(old)])
        else:
            value = storage.to_storage(resource, now=datetime.now(UTC), uid=str(uuid4()))
            compares = [Compare(old, kv.mod_revision), Compare(new, 0)]
            done = await store.txn(compares, [Put(new, value), Delete(old)])
        if done.succeeded:
            moved.policies.append(identity)
            return
    moved.problems.append(f"{old}: changed again and again meanwhile; run the command once more")


def _same(one: model.Resource, other: model.Resource | None) -> bool:
    """What they mean, not what they leave to defaults."""
    return other is not None and _spec(one) == _spec(other)


def _spec(resource: model.Resource) -> object:
    return codec.to_json(codec.with_defaults(resource))["spec"]
