"""All resources of some kinds, kept equal to etcd: one listing at one revision, then one watch.

The state held is always that of one revision of the datastore, so that two kinds are never seen out of step (a node's
host endpoint without the node). While etcd is away it stays as it was; when history is lost (compaction, a restored
backup) everything is listed again and replaced at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Set
from contextlib import aclosing
from random import Random
from typing import TypeVar

from libs import model
from libs.model import keys
from libs.model.base import Resource
from libs.runtime.backoff import Backoff
from libs.store.api import Compacted, KeyValue, Store, StoreError

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Resource)


class Mirror:
    """changed: called with the kinds that a batch of changes touched, after it was taken in; the first time with all.
    touched: before that, with the keys of the resources that came, changed or went, readable or not.

    keep: which resources are held, all by default; changes of others are not told.

    A value that cannot be read is not among the resources; `unreadable` tells of it, because "there is one that we do
    not understand" must not lead to what "there is none" leads to.
    """

    def __init__(
        self,
        store: Store,
        kinds: Iterable[str],
        changed: Callable[[frozenset[str]], None],
        random: Random,
        *,
        keep: Callable[[Resource], bool] = lambda resource: True,
        touched: Callable[[frozenset[keys.ResourceKey]], None] = lambda touched: None,
    ) -> None:
        self.kinds = frozenset(kinds)
        self.revision = 0  # up to which everything is in; 0 before the first listing
        self._store = store
        (only,) = self.kinds if len(self.kinds) == 1 else ("",)
        self._prefix = keys.resource_prefix(only) if only else keys.RESOURCES  # one watch for all: one revision
        self._changed = changed
        self._keep = keep
        self._touched = touched
        self._backoff = Backoff(random, first_s=0.2, cap_s=5.0)
        self._held: dict[str, dict[keys.ResourceKey, Resource]] = {kind: {} for kind in self.kinds}
        self._bad: dict[str, dict[keys.ResourceKey, str]] = {kind: {} for kind in self.kinds}
        self._listings = 0
        self._moved = asyncio.Condition()

    @property
    def in_sync(self) -> bool:
        return self.revision > 0

    def of(self, kind: type[R]) -> list[R]:
        """Sorted by namespace and name. Shared: not to be written to."""
        found = self._held[kind.kind]
        return [one for key in sorted(found, key=_order) if isinstance(one := found[key], kind)]

    def get(self, key: keys.ResourceKey) -> Resource | None:
        """None also for one that cannot be read."""
        return self._held[key.kind].get(key)

    def unreadable(self, kind: type[Resource]) -> Mapping[keys.ResourceKey, str]:
        """Why each value of the kind that is there cannot be used."""
        return self._bad[kind.kind]

    async def reached(self, revision: int) -> None:
        """Until what was written at that revision, under a kind held here, is in; or everything was listed again, on
        an etcd that may have gone back.
        """
        before = self._listings
        async with self._moved:
            await self._moved.wait_for(lambda: self.revision >= revision or self._listings != before)

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                await self._list()
                self._backoff.reset()
                await self._follow()
            except Compacted as error:
                log.info("listing again", extra={"reason": str(error)})
            except StoreError as error:
                log.warning("resources not followed, trying again", extra={"error": str(error)})
                await asyncio.sleep(self._backoff.next_s())

    async def _list(self) -> None:
        revision = 0
        listed: list[KeyValue] = []
        for kind in sorted(self.kinds):
            listing = await self._store.list(keys.resource_prefix(kind), revision=revision)
            revision = revision or listing.revision
            listed += listing.kvs
        touched: set[keys.ResourceKey] = set()
        for kind in self.kinds:
            touched |= self._held[kind].keys() | self._bad[kind].keys()
            self._held[kind].clear()
            self._bad[kind].clear()
        touched |= {key for kv in listed if (key := self._take(kv.key, kv))}
        self._listings += 1
        log.info("resources listed", extra={"kinds": sorted(self.kinds), "resources": len(listed), "rev": revision})
        await self._told(revision, self.kinds, touched)

    async def _follow(self) -> None:
        async with aclosing(self._store.watch(self._prefix, revision=self.revision + 1)) as batches:
            async for batch in batches:
                touched = {key for event in batch.events if (key := self._take(event.key, event.kv))}
                await self._told(batch.revision, frozenset(key.kind for key in touched), touched)

    def _take(self, key: str, kv: KeyValue | None) -> keys.ResourceKey | None:
        """What changed, None when it is none of ours, or only what is not held."""
        parsed = keys.parse_key(key)
        if not isinstance(parsed, keys.ResourceKey) or parsed.kind not in self.kinds:
            return None
        held, bad = self._held[parsed.kind], self._bad[parsed.kind]
        touched = held.pop(parsed, None) is not None
        touched |= bad.pop(parsed, None) is not None
        if kv is not None:
            try:
                resource = model.from_storage(key, kv.value, kv.mod_revision)
                if self._keep(resource):
                    held[parsed] = resource
                    touched = True
            except model.DecodeError as error:
                bad[parsed] = str(error)
                touched = True
                log.error("bad value", extra={"key": key, "rev": kv.mod_revision, "error": str(error)})
        return parsed if touched else None

    async def _told(self, revision: int, kinds: frozenset[str], touched: Set[keys.ResourceKey]) -> None:
        async with self._moved:
            self.revision = revision
            self._moved.notify_all()
        if touched:
            self._touched(frozenset(touched))
        if kinds:
            self._changed(kinds)


def _order(key: keys.ResourceKey) -> tuple[str, str]:
    return key.namespace, key.name
