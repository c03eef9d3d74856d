"""Create, read, change and delete v3 resources in the datastore, with the promises that Calico's own client gives.

Flows in: typed resources (`libs.model`). Flows out: the same with what the datastore knows (uid, creation time,
resource version), and the revision of every write. Before a write the resource gets its defaults and is checked; a
fault is a `ResourceError` that names every bad field. Updates are compare-and-swap on the revision that was read.

Checks that need other resources live in `libs.resources.rules`; releasing addresses is the business of IPAM, reached
through `AddressRelease`, so that this module does not depend on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import wraps
from typing import Any, ParamSpec, Protocol
from uuid import uuid4

from libs.model.base import Resource
from libs.model.cluster import ClusterInformation
from libs.model.policy import Tier
from libs.model.pools import IPPool
from libs.resources import codec, pool_deletion, rules, tier_state
from libs.resources.api import Changed
from libs.resources.errors import (
    AlreadyExists,
    Conflict,
    FieldProblem,
    Identity,
    NotFound,
    ValidationError,
)
from libs.resources.options import PLAIN, Preconditions, WriteOptions
from libs.resources.patch import PatchType
from libs.runtime import tracing
from libs.store import api as store_api
from libs.store.api import Compare, KeyValue, Put, Store

P = ParamSpec("P")
trace = tracing.tracer("resources")

MAX_TRIES = 5
"""Times that an update without a given resource version is tried again when somebody else was faster."""

Edit = Callable[[Resource], Awaitable[Resource]]
"""From a resource as it stands to the one to be stored. May be called again when somebody else was faster."""
Approve = Callable[[Resource], Awaitable[None]]
"""Raises when what stands there must not be touched."""


@dataclass(frozen=True, slots=True)
class Written:
    """A resource as it now stands. revision: of the write; of the earlier one when nothing had to change, 0 of a dry
    run. deleted: it is gone (a deletion that waits for finalizers leaves it in place).
    """

    resource: Resource
    revision: int
    created: bool = False
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Listed:
    """Sorted by key (namespace, then name), all at `revision`."""

    items: list[Resource]
    revision: int


class AddressRelease(Protocol):
    """What IPAM has to do when a pool or a node goes."""

    async def release_pool(self, cidr: str) -> None:
        """Give back every block affinity inside the pool."""
        ...

    async def release_node(self, node: str) -> None:
        """Release the node's workload and tunnel addresses, its affinities and its IPAM host record."""
        ...

    async def finish_pool(self, name: str) -> None:
        """Go on with the deletion of a pool that has finalizers, as far as it goes now: without its blocks it ends."""
        ...


def _traced(write: Callable[P, Coroutine[Any, Any, Written]]) -> Callable[P, Coroutine[Any, Any, Written]]:
    """A span around a write that carries the revision it got: what typha and felix do about it carries it as well, so a
    change can be followed across etcd, which passes no trace on.
    """

    @wraps(write)
    async def traced(*args: P.args, **kwargs: P.kwargs) -> Written:
        with trace.span(f"resource.{write.__name__}") as span:
            written = await write(*args, **kwargs)
            span.set("revision", written.revision)
            span.set("kind", written.resource.kind)
            span.set("name", written.resource.metadata.name)
            return written

    return traced


class ResourceClient:
    """CRUD over one Store. `release` None: pools and nodes are deleted without touching IPAM's own records."""

    def __init__(
        self,
        store: Store,
        *,
        release: AddressRelease | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        new_uid: Callable[[], str] = lambda: str(uuid4()),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.store = store
        self._release = release
        self._now = now
        self._new_uid = new_uid
        self._sleep = sleep
        self.tiers_seen: dict[str, Compare] = {}  # what held of a tier when a policy was last created in it

    # --- reading -----------------------------------------------------------------------------------------------------

    async def get(self, kind: str, name: str, namespace: str = "") -> Resource:
        """Raises NotFound."""
        if rules.is_default_allow(kind, name):
            return rules.default_allow_profile()
        identity = Identity(kind, name, namespace)
        found = await self.store.get(codec.key(identity))
        if found is None:
            raise NotFound(identity)
        return codec.from_kv(kind, found)

    async def list(self, kind: str, namespace: str = "") -> Listed:
        """All of a kind, of one namespace where given. Values that nobody can read are left out, as Calico does."""
        listing = await self.store.list(codec.prefix(kind, namespace))
        items = [resource for kv in listing.kvs if (resource := codec.readable(kind, kv)) is not None]
        if kind == "Profile":
            items.append(rules.default_allow_profile())
        return Listed(items, listing.revision)

    async def follow(self, kind: str, listed: Listed, namespace: str = "") -> AsyncGenerator[Changed, None]:
        """What changes after `listed`, for ever (`api.Resources.follow`)."""
        held = {codec.key(codec.identity(item)): item for item in listed.items if not rules.is_built_in(item)}
        known = {key: int(item.metadata.resource_version) for key, item in held.items()}
        prefix = codec.prefix(kind, namespace)
        async with aclosing(self.store.watch(prefix, revision=listed.revision + 1, known=known)) as batches:
            async for batch in batches:
                for event in batch.events:
                    now = codec.readable(kind, event.kv) if event.kv else None
                    before = held.pop(event.key, None)
                    if now is not None:
                        held[event.key] = now
                        yield Changed(now, event.revision, created=before is None)
                    elif before is not None:
                        yield Changed(before, event.revision, gone=True)

    # --- writing -----------------------------------------------------------------------------------------------------

    @_traced
    async def create(self, resource: Resource, options: WriteOptions = PLAIN) -> Written:
        """Raises AlreadyExists, NotFound (the tier of a policy), ValidationError, NotSupported."""
        identity = codec.identity(resource)
        if rules.is_default_allow(identity.kind, identity.name):
            raise AlreadyExists(identity)
        made = await self._create(resource, identity, options)
        if isinstance(made, KeyValue):
            raise AlreadyExists(identity)
        return made

    async def _create(self, resource: Resource, identity: Identity, options: WriteOptions) -> Written | KeyValue:
        """What is there already, otherwise what is there now."""
        if resource.metadata.resource_version:
            problem = FieldProblem("metadata.resourceVersion", "must be empty when a resource is created")
            raise ValidationError(identity, [problem])
        stamped = codec.with_metadata(
            resource,
            uid=resource.metadata.uid or self._new_uid(),
            creation_timestamp=resource.metadata.creation_timestamp or codec.timestamp(self._now()),
            **({"generation": 1} if options.generation else {}),
        )
        ready = self._checked(stamped)
        key, value = codec.to_storage(ready)
        if not options.dry_run and (seen := rules.seen(self, ready)):
            # All that the rules would look at is in the condition: it fails when it does not hold any more.
            result = await self.store.txn([Compare(key, 0), *seen], [Put(key, value)])
            if result.succeeded:
                return Written(codec.stored(ready, result.revision), result.revision, created=True)
            if there := result.current.get(key):
                return there
        # An existing one is told as such before rules that would trip over it (a pool overlaps itself).
        elif there := await self.store.get(key):
            return there
        if options.dry_run:
            await rules.before_create(self, ready)
            return Written(codec.unstored(ready), 0, created=True)
        if identity.kind == "Node":
            await self.ensure_initialized()
        for _ in range(MAX_TRIES):
            needed = await rules.before_create(self, ready)
            result = await self.store.txn([Compare(key, 0), *needed], [Put(key, value)])
            if result.succeeded:
                await self._settle_overlap(ready, result.revision)
                return Written(codec.stored(ready, result.revision), result.revision, created=True)
            if there := result.current.get(key):
                return there
        raise Conflict(identity)

    @_traced
    async def update(self, resource: Resource) -> Written:
        """Replace all of it; its resource version must be the latest. Raises Conflict, NotFound, ValidationError."""
        identity = codec.identity(resource)
        rules.refuse_default_allow("update", identity)
        given = resource.metadata.resource_version
        if not given:
            raise ValidationError(identity, [FieldProblem("metadata.resourceVersion", "is required for an update")])
        found = await self.store.get(codec.key(identity))
        if found is None:
            raise NotFound(identity)
        if str(found.mod_revision) != given:
            raise Conflict(identity, given, str(found.mod_revision))
        return await self._swap(resource, found)

    @_traced
    async def replace(self, resource: Resource) -> Written:
        """Update what exists. A given resource version must be the latest; without one the latest is taken.

        uid and creation time stay; labels and annotations are added to those that are there (Calico's CLI does not
        remove them: `calicoctl label --remove` does). Raises NotFound, Conflict, ValidationError.
        """
        return await self._replace(resource, None)

    async def _replace(self, resource: Resource, found: KeyValue | None) -> Written:
        """found: what was there a moment ago."""
        identity = codec.identity(resource)
        rules.refuse_default_allow("update", identity)
        given = resource.metadata.resource_version
        for _ in range(MAX_TRIES):
            found = found or await self.store.get(codec.key(identity))
            if found is None:
                raise NotFound(identity)
            if given and given != str(found.mod_revision):
                raise Conflict(identity, given, str(found.mod_revision))
            current = codec.from_kv(identity.kind, found)
            try:
                return await self._swap(codec.with_added_metadata(resource, current), found)
            except Conflict:
                if given:
                    raise
                found = None
        raise Conflict(identity)

    @_traced
    async def apply(self, resource: Resource) -> Written:
        """Create, or replace what exists."""
        identity = codec.identity(resource)
        rules.refuse_default_allow("update", identity)
        made = await self._create(codec.with_metadata(resource, resource_version=""), identity, PLAIN)
        return await self._replace(resource, made) if isinstance(made, KeyValue) else made

    @_traced
    async def patch(self, kind: str, name: str, patch: object, patch_type: PatchType, namespace: str = "") -> Written:
        """Read, patch, write; repeated when somebody else was faster. patch: decoded JSON.

        Raises NotFound, ValidationError (also for a patch that does not fit), Conflict.
        """
        identity = Identity(kind, name, namespace)
        rules.refuse_default_allow("patch", identity)

        async def change(current: Resource) -> Resource:
            return codec.patched(current, patch, patch_type)

        return await self.edit(identity, change)

    @_traced
    async def edit(self, identity: Identity, change: Edit, options: WriteOptions = PLAIN) -> Written:
        """Read, change, write; repeated when somebody else was faster. A resource version that the changed one names
        must be the latest. Raises NotFound, ValidationError, Conflict, what `change` raises.
        """
        rules.refuse_default_allow("update", identity)
        for _ in range(options.tries):
            found = await self.store.get(codec.key(identity))
            if found is None:
                raise NotFound(identity)
            wanted = await change(codec.from_kv(identity.kind, found))
            given = wanted.metadata.resource_version
            if given and given != str(found.mod_revision):
                raise Conflict(identity, given, str(found.mod_revision))
            try:
                return await self._swap(wanted, found, options)
            except Conflict:
                continue
        raise Conflict(identity)

    @_traced
    async def delete(
        self,
        kind: str,
        name: str,
        namespace: str = "",
        resource_version: str = "",
        *,
        approve: Approve | None = None,
        preconditions: Preconditions | None = None,
        options: WriteOptions = PLAIN,
    ) -> Written:
        """What was deleted (only its names, where nothing had to be read), and the revision of that. Raises NotFound,
        Conflict, PreconditionFailed, NotSupported.

        A tier must have no policies; one that its controller holds stays, terminating, until the last one is gone
        (`tier_state`). A pool is disabled first and its blocks released; one with finalizers stays, terminating, until
        its last block is gone (`libs.ipam.poolstate`). A node takes its endpoints, addresses and per-node configuration
        along. approve: is asked about exactly what is then deleted.
        """
        identity = Identity(kind, name, namespace)
        rules.refuse_default_allow("delete", identity)
        if kind not in rules.ENDS and options == PLAIN and not (resource_version or approve or preconditions):
            gone = await self.store.delete(codec.key(identity))
            if gone is None:
                raise NotFound(identity)
            return Written(codec.placeholder(identity), gone, deleted=True)
        for _ in range(options.tries):
            found = await self.store.get(codec.key(identity))
            if found is None:
                raise NotFound(identity)
            if resource_version and resource_version != str(found.mod_revision):
                raise Conflict(identity, resource_version, str(found.mod_revision))
            current = codec.readable(kind, found) or codec.placeholder(identity)
            if preconditions is not None:
                preconditions.check(identity, current.metadata.uid, str(found.mod_revision))
            if approve is not None:
                await approve(current)
            await rules.before_delete(self, identity, current)
            pinned = bool(resource_version or approve or preconditions)
            try:
                return await self._delete(identity, current, found, pinned, options)
            except Conflict:
                if resource_version:
                    raise
        raise Conflict(identity)

    async def _delete(
        self, identity: Identity, current: Resource, found: KeyValue, pinned: bool, options: WriteOptions
    ) -> Written:
        kind, key = identity.kind, codec.key(identity)
        if options.dry_run:
            return Written(current, 0, deleted=not current.metadata.finalizers)
        if isinstance(current, IPPool) and current.metadata.finalizers:
            now = codec.timestamp(self._now())
            left = await pool_deletion.terminate(self.store, current, found, self._release, now, self._sleep)
            if left is None:
                return Written(current, (await self.store.status()).revision, deleted=True)
            return Written(codec.from_kv(kind, left), left.mod_revision)
        if isinstance(current, Tier) and tier_state.waits(current):
            return await self._terminate_tier(current, found)
        if options.finalizers and current.metadata.finalizers:
            return await self._mark_deleted(current, found)
        if kind == "IPPool":
            found = await pool_deletion.retire(self.store, found, self._release, self._sleep)
        elif kind == "Node":
            await self._delete_of_node(identity.name)
        demanded = found.mod_revision if pinned or kind in ("IPPool", "Tier") else None
        try:
            revision = await self.store.delete(key, mod_revision=demanded)
        except store_api.Conflict as conflict:
            latest = str(conflict.current.mod_revision) if conflict.current else ""
            raise Conflict(identity, str(found.mod_revision), latest) from conflict
        if revision is None:
            raise NotFound(identity)
        gone = codec.readable(kind, found) or codec.placeholder(identity)
        return Written(gone, revision, deleted=True)

    async def _mark_deleted(self, current: Resource, found: KeyValue) -> Written:
        """Its finalizers' owners take it from here: who removes the last one ends it (`_swap`)."""
        if current.metadata.deletion_timestamp:
            return Written(current, found.mod_revision)
        marked = codec.with_metadata(
            current, deletion_timestamp=codec.timestamp(self._now()), deletion_grace_period_seconds=0
        )
        return await self._put(marked, found)

    async def _terminate_tier(self, tier: Tier, found: KeyValue) -> Written:
        """The end of a tier that its controller holds: at once when it is empty and nobody else holds it."""
        left = await rules.policies_of(self, tier.metadata.name)
        marked = await self._put(tier_state.terminating(tier, len(left), codec.timestamp(self._now())), found)
        # Since it is marked no policy comes into it, so what is counted from now on only becomes less.
        if tier.metadata.finalizers != [tier_state.FINALIZER] or await rules.policies_of(self, tier.metadata.name):
            return marked
        try:
            revision = await self.store.delete(found.key, mod_revision=marked.revision)
        except store_api.Conflict:
            return marked  # its controller was faster, or a user: what is left to do is the controller's
        return Written(marked.resource, revision or marked.revision, deleted=True)

    # --- initialisation ----------------------------------------------------------------------------------------------

    async def ensure_initialized(self, version: str = "", cluster_type: str = "") -> None:
        """The cluster's information and the built-in tiers exist. Given version and type are merged into the former."""
        await self._cluster_information(version, cluster_type)
        for tier in rules.builtin_tiers():
            try:
                await self.create(tier)
            except AlreadyExists:
                continue

    async def _cluster_information(self, version: str, cluster_type: str) -> None:
        for _ in range(MAX_TRIES):
            found = await self.store.get(codec.key(rules.CLUSTER_INFORMATION))
            try:
                if found is None:
                    await self.create(rules.cluster_information(None, uuid4().hex, version, cluster_type))
                    return
                current = codec.from_kv("ClusterInformation", found)
                assert isinstance(current, ClusterInformation)
                wanted = rules.cluster_information(current, uuid4().hex, version, cluster_type)
                if wanted != current:
                    await self._swap(wanted, found)
                return
            except (AlreadyExists, Conflict):
                continue
        raise Conflict(rules.CLUSTER_INFORMATION)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _checked(self, resource: Resource) -> Resource:
        """With defaults, and valid."""
        ready = codec.with_defaults(resource)
        if problems := codec.problems(ready):
            raise ValidationError(codec.identity(resource), problems)
        return ready

    async def _swap(self, resource: Resource, found: KeyValue, options: WriteOptions = PLAIN) -> Written:
        """Write over `found`, provided that nobody changed it since. Equal content is not written again."""
        identity = codec.identity(resource)
        current = codec.from_kv(identity.kind, found)
        kept = codec.with_metadata(
            resource,
            uid=current.metadata.uid or self._new_uid(),
            creation_timestamp=current.metadata.creation_timestamp or codec.timestamp(self._now()),
            deletion_timestamp=current.metadata.deletion_timestamp,  # a deletion that has begun is not taken back
        )
        if isinstance(kept, IPPool) and isinstance(current, IPPool) and kept.status is None:
            kept.status = current.status  # its controller's, not the user's who applies a file
        ready = self._checked(kept)
        if options.generation:
            changed = ready.spec != current.spec
            ready = codec.with_metadata(ready, generation=current.metadata.generation + changed)
        await rules.before_update(self, ready, current)
        if options.dry_run:
            return Written(codec.stored(ready, found.mod_revision), 0)
        if options.finalizers and ready.metadata.deletion_timestamp and not ready.metadata.finalizers:
            return await self._end(ready, found)
        return await self._put(ready, found)

    async def _end(self, resource: Resource, found: KeyValue) -> Written:
        try:
            revision = await self.store.delete(found.key, mod_revision=found.mod_revision)
        except store_api.Conflict as conflict:
            raise Conflict(codec.identity(resource), str(found.mod_revision)) from conflict
        assert revision is not None, "a deletion at a revision either happens or conflicts"
        return Written(codec.stored(resource, revision), revision, deleted=True)

    async def _put(self, ready: Resource, found: KeyValue) -> Written:
        identity = codec.identity(ready)
        key, value = codec.to_storage(ready)
        if value == found.value:
            return Written(codec.stored(ready, found.mod_revision), found.mod_revision)
        try:
            revision = await self.store.update(key, value, mod_revision=found.mod_revision)
        except store_api.Conflict as conflict:
            if conflict.current is None:
                raise NotFound(identity) from conflict
            raise Conflict(identity, str(found.mod_revision), str(conflict.current.mod_revision)) from conflict
        return Written(codec.stored(ready, revision), revision)

    async def _settle_overlap(self, resource: Resource, revision: int) -> None:
        """Two overlapping pools created at the same moment: each looks again, and the later one gives way."""
        if not isinstance(resource, IPPool):
            return
        identity = codec.identity(resource)
        earlier = await rules.earlier_overlap(self, resource, revision)
        if earlier is None:
            return
        await self.store.delete(codec.key(identity), mod_revision=revision)
        raise ValidationError(identity, [earlier])

    async def _delete_of_node(self, node: str) -> None:
        """What makes no sense without the node, in Calico's order: addresses, endpoints, peers, configuration."""
        if self._release is not None:
            await self._release.release_node(node)
        for identity in await rules.belonging_to_node(self, node):
            await self.store.delete(codec.key(identity))
