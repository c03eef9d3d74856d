"""Objects and lists, from the cache where its revision is good enough and from etcd where it is not.

    resourceVersion absent    the newest: one object from etcd; a list from the cache once it is at etcd's revision
                    0         whatever the cache holds
                    N         the cache, once it is at N or later; exactly N from etcd
    continue                  the next part, from etcd at the revision of the first part

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from libs.model import keys
from libs.model.codec import DecodeError, encode
from libs.model.storage import from_storage
from libs.resources import rules
from libs.store.api import Compacted, KeyValue, Store, StoreError
from services.apiserver.core import continuation, faults
from services.apiserver.core.continuation import NO_REVISION, Continue
from services.apiserver.core.options import ListOptions, Match
from services.apiserver.core.ports import Cache, Stored, TierAccess
from services.apiserver.core.request import Target, User, Verb
from services.apiserver.core.selectors import FieldSelector, LabelSelector, Selection, tier_of, tiers_named
from services.apiserver.core.status import ApiError, internal, not_found

log = logging.getLogger(__name__)

_READ_AT_ONCE = 1_000
"""Keys of one read from etcd: some megabytes at most."""


@dataclass(frozen=True, slots=True)
class Page:
    """A list or a part of it, sorted by key. remaining: how many are left, None when nobody can tell."""

    items: Sequence[Stored]
    revision: int
    continue_: str = ""
    remaining: int | None = None


def stored_of(kv: KeyValue) -> Stored:
    """Raises DecodeError for a value that is no resource of its kind."""
    resource = from_storage(kv.key, kv.value, kv.mod_revision)
    return Stored(kv.key, resource, encode(resource), kv.mod_revision)


def default_allow() -> Stored:
    """The profile that every reader finds and nobody has stored."""
    profile = rules.default_allow_profile()
    return Stored(keys.resource_key(profile.kind, profile.name), profile, encode(profile), 1)


class Reading:
    """Raises ApiError."""

    def __init__(self, store: Store, cache: Cache, tiers: TierAccess) -> None:
        self._store, self._cache, self._tiers = store, cache, tiers

    async def get(self, user: User, verb: str, target: Target, revision: int | None) -> Stored:
        """One object that the user may see. revision: as `options.revision_of` has it."""
        found = await self._newest(target) if revision is None else await self._cached(target, revision)
        if found is None:
            if target.kind.policy:
                await self._tiers.check_absent(user, verb, target)
            raise not_found(target.kind.plural, target.name)
        if target.kind.policy:
            await self._tiers.check(user, verb, target, tier_of(found.resource))
        return found

    async def _newest(self, target: Target) -> Stored | None:
        if rules.is_default_allow(target.kind.kind, target.name):
            return default_allow()
        if "/" in target.name or "/" in target.namespace:
            return None  # no name has one, and some other object's key might
        key = keys.resource_key(target.kind.kind, target.name, target.namespace)
        try:
            kv = await self._store.get(key)
        except StoreError as error:
            raise faults.of_store(error) from error
        try:
            return None if kv is None else stored_of(kv)
        except DecodeError as error:
            raise internal(f"what is stored under {key} is damaged: {error}") from error

    async def _cached(self, target: Target, revision: int) -> Stored | None:
        items = (await self._cache.list(target.kind, at_least=revision)).items
        key = keys.resource_key(target.kind.kind, target.name, target.namespace)
        at = bisect_left(items, key, key=lambda item: item.key)
        return items[at] if at < len(items) and items[at].key == key else None

    # --- collections -------------------------------------------------------------------------------------------------

    async def selection(
        self, user: User, verb: str, target: Target, labels: LabelSelector, fields: FieldSelector
    ) -> Selection:
        """What the request selects, narrowed to the tiers that the user may read."""
        tiers = None
        if target.kind.policy:
            wanted = tiers_named(labels, fields)
            # A watch sees what a list sees; everything else that looks at a collection lists it.
            reading = Verb.WATCH if verb == Verb.WATCH else Verb.LIST
            tiers = await self._tiers.readable(user, reading, target, wanted)
        return Selection(labels, fields, target.namespace, tiers)

    async def list(self, target: Target, options: ListOptions, selection: Selection) -> Page:
        if options.continue_ is not None:
            return await self._from_etcd(target, options, selection, options.continue_)
        if options.match is Match.EXACT and options.revision:
            return await self._from_etcd(target, options, selection, Continue(options.revision, ""))
        try:
            newest = options.revision is None
            at_least = await self._cache.latest() if newest else options.revision or 0
            snapshot = await self._cache.list(target.kind, at_least=at_least)
        except ApiError as error:
            if options.revision is not None or error.code not in (503, 504):
                raise
            log.info("the cache is behind, listing from etcd", extra={"kind": target.kind.kind, "reason": str(error)})
            return await self._from_etcd(target, options, selection, Continue(NO_REVISION, ""))
        items = _selected(snapshot.items, target, selection)
        if not options.limit or len(items) <= options.limit:
            return Page(items, snapshot.revision)
        page, left = items[: options.limit], len(items) - options.limit
        return _part(page, snapshot.revision, target, None if _uncertain(selection) else left)

    async def _from_etcd(self, target: Target, options: ListOptions, selection: Selection, start: Continue) -> Page:
        prefix = keys.resource_prefix(target.kind.kind, target.namespace)
        revision = 0 if start.revision == NO_REVISION else start.revision
        after = prefix + start.last if start.last else ""
        found: list[Stored] = []
        while True:
            wanted = _READ_AT_ONCE
            if options.limit and not _uncertain(selection):
                wanted = min(wanted, options.limit - len(found))
            try:
                page = await self._store.page(prefix, limit=wanted, after=after, revision=revision)
            except Compacted as error:
                raise continuation.too_old(start.last) if options.continue_ else faults.of_store(error) from error
            except StoreError as error:
                raise faults.of_store(error) from error
            revision = page.revision
            batch = [
                item
                for kv in page.kvs  # most have not changed since and are known here, decoded and encoded
                if (item := self._cache.has(target.kind, kv.key, kv.mod_revision) or _readable(kv)) is not None
            ]
            if target.kind.kind == "Profile":
                _put_built_in(batch, after, page.kvs[-1].key if page.remaining else None)
            for number, item in enumerate(batch, start=1):
                if not selection.keep(item.resource):
                    continue
                found.append(item)
                left = page.remaining + len(batch) - number
                if len(found) == options.limit and left:
                    return _part(found, revision, target, None if _uncertain(selection) else left)
            if not page.remaining:
                return Page(found, revision)
            after = page.kvs[-1].key


def _selected(items: Sequence[Stored], target: Target, selection: Selection) -> Sequence[Stored]:
    if target.namespace:
        prefix = keys.resource_prefix(target.kind.kind, target.namespace)
        first = bisect_left(items, prefix, key=lambda item: item.key)
        end = bisect_left(items, prefix[:-1] + "0", key=lambda item: item.key)  # "0" comes right after "/"
        items = items[first:end]
    if not selection.selective and selection.tiers is None:
        return items
    return [item for item in items if selection.keep(item.resource)]


def _uncertain(selection: Selection) -> bool:
    """How many are left was counted before selecting."""
    return selection.selective or selection.tiers is not None


def _part(items: Sequence[Stored], revision: int, target: Target, left: int | None) -> Page:
    last = items[-1].key.removeprefix(keys.resource_prefix(target.kind.kind, target.namespace))
    return Page(items, revision, continuation.encode(Continue(revision, last)), left)


def _readable(kv: KeyValue) -> Stored | None:
    """Values that nobody can read are left out, as Calico does."""
    try:
        return stored_of(kv)
    except DecodeError:
        return None


def _put_built_in(batch: list[Stored], after: str, last: str | None) -> None:
    """The built-in profile at its place, if that is in this part: after `after`, up to `last` (None: the end)."""
    mine = default_allow()
    if mine.key > after and (last is None or mine.key < last):
        batch.insert(bisect_left(batch, mine.key, key=lambda item: item.key), mine)
