"""Brings stored objects to what Kubernetes' objects say: one engine for every translation (`core/translation.py`).

    informer (Kubernetes) ──┐                              ┌─► create, update, delete in etcd
                            ├─► queue of objects ─► work ──┤
    mirror (etcd) ──────────┘   one at a time each         └─► again later, with backoff

Both sides are looked at together and before anything is written both are complete. A change of either side puts the
object into the queue, so what somebody damages in etcd is put right at once; every object is looked at again each
period. The queue holds names only: what is compared is what both sides hold when its turn comes.

What cannot be read is not what is absent. A Kubernetes object that cannot be read keeps what is stored of it. A stored
value that cannot be read is written over when its object says what it should be, and never deleted. Before a deletion
the API server is asked whether the object is really gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import uuid4

from libs.kube.api import KubeError
from libs.kube.objects import Key
from libs.model import storage
from libs.model.base import Resource
from libs.model.keys import ResourceKey, resource_key
from libs.resources import codec
from libs.resources.client import ResourceClient
from libs.resources.errors import NotFound, ResourceError, ValidationError
from libs.resources.mirror import Mirror
from libs.runtime.backoff import Backoff
from libs.runtime.health import Reporter
from libs.runtime.keyed_queue import KeyedQueue
from libs.store import api as store_api
from libs.store.api import FenceLost, StoreError
from services.kube_controllers.core.settings import Sync
from services.kube_controllers.core.translation import Translation
from services.kube_controllers.metrics import Metrics
from services.kube_controllers.shell.kubernetes import Shared

log = logging.getLogger(__name__)

RETRY_CAP_S = 60.0
_EVERYTHING = 1 << 40  # keys in a queue: as many as there are objects
_SHOWN = 3


class StillThere(Exception):
    """Our informer does not have it, the API server does."""


@dataclass(slots=True)
class _Trouble:
    backoff: Backoff
    text: str = ""


class Synchronizer:
    """For one run. store: what `resources` writes to; all writes are fenced."""

    def __init__(
        self,
        name: str,
        translation: Translation[Any],
        shared: Shared[Any],
        resources: ResourceClient,
        settings: Sync,
        metrics: Metrics,
        health: Reporter,
        random: Random,
    ) -> None:
        self.name = name
        self._translation = translation
        self._shared = shared
        self._resources = resources
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._random = random
        self._mirror = Mirror(
            resources.store, {translation.kind.kind}, lambda kinds: self._listed.set(), random,
            keep=self._is_ours, touched=self._on_stored,
        )  # fmt: skip
        self._listed = asyncio.Event()
        self._queue: KeyedQueue[Key, None] = KeyedQueue(_EVERYTHING)
        self._open = False
        self._owner_of: dict[ResourceKey, Key] = {}
        self._owned: dict[Key, set[ResourceKey]] = {}
        self._trouble: dict[Key, _Trouble] = {}
        self._said: dict[Key, tuple[str, ...]] = {}
        self._outage = Backoff(random, first_s=0.2, cap_s=5.0)

    async def run(self) -> None:
        """For ever. Raises FenceLost, in a group."""
        unsubscribe = self._shared.subscribe(self._on_source)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._mirror.run(), name=f"{self.name} mirror")
                self._health.report(detail="waiting for Kubernetes and the datastore")
                await self._shared.synced()
                await self._listed.wait()
                self._open = True
                tasks.create_task(self._queue.run(self._work, parallel=self._settings.workers), name=self.name)
                tasks.create_task(self._reconcile_forever(), name=f"{self.name} reconcile")
        finally:
            self._open = False
            unsubscribe()

    # --- what there is to do ---------------------------------------------------------------------------------------

    def _is_ours(self, resource: Resource) -> bool:
        key = ResourceKey(resource.kind, resource.metadata.name, resource.metadata.namespace)
        return self._translation.owner(key, resource) is not None

    def _on_source(self, keys: frozenset[Key]) -> None:
        self._put(keys)

    def _on_stored(self, keys: frozenset[ResourceKey]) -> None:
        unreadable = self._mirror.unreadable(self._translation.kind)
        for at in keys:
            before = self._owner_of.pop(at, None)
            if before is not None:
                self._owned[before].discard(at)
                if not self._owned[before]:
                    del self._owned[before]
                self._put([before])
            stored = self._mirror.get(at)
            owner = self._translation.owner(at, stored)
            if owner is None:
                continue
            if stored is not None or at in unreadable:
                self._owner_of[at] = owner
                self._owned.setdefault(owner, set()).add(at)
            self._put([owner])  # also of one that came and went between two looks of ours

    def _put(self, keys: Iterable[Key]) -> None:
        if self._open:
            for key in keys:
                self._queue.put_nowait(key, None)

    async def _reconcile_forever(self) -> None:
        """Everything, now and each period; 0: now only. The period begins when the work is done."""
        while True:
            began_s = asyncio.get_running_loop().time()
            self._put(self._shared.objects.keys() | self._shared.unreadable.keys() | self._owned.keys())
            await self._queue.join()
            took_s = asyncio.get_running_loop().time() - began_s
            self._metrics.rounds.labels(self.name).inc()
            self._metrics.reconcile_s.labels(self.name).set(took_s)
            log.debug("everything looked at", extra={"controller": self.name, "took_s": round(took_s, 3)})
            self._report()
            if not self._settings.period_s:
                return
            await asyncio.sleep(self._settings.period_s)

    # --- doing it --------------------------------------------------------------------------------------------------

    async def _work(self, key: Key, _: None) -> None:
        try:
            revision = await self._bring(key)
            if revision:
                await self._mirror.reached(revision)  # or the next look would do it all again
        except FenceLost:
            raise
        except StoreError as error:  # nothing can be written now, of any object: this worker waits
            self._failed(key, str(error))
            self._queue.put_nowait(key, None)
            await asyncio.sleep(self._outage.next_s())
            return
        except (ResourceError, KubeError, StillThere) as error:
            trouble = self._failed(key, str(error))
            pause_s = trouble.backoff.next_s()
            if isinstance(error, KubeError):
                pause_s = error.pause_s(pause_s)
            asyncio.get_running_loop().call_later(pause_s, self._put, (key,))
            return
        self._outage.reset()
        if self._trouble.pop(key, None) is not None:
            self._report()

    async def _bring(self, key: Key) -> int:
        """The revision of the last write, 0 when nothing had to be written."""
        kind = self._translation.kind
        owned = sorted(self._owned.get(key, ()), key=lambda at: (at.namespace, at.name))
        stored = {at: resource for at in owned if (resource := self._mirror.get(at)) is not None}
        damaged = {at: why for at, why in self._mirror.unreadable(kind).items() if at in owned}
        if (why := self._shared.unreadable.get(key)) is not None:
            self._say(key, (f"cannot be read, so what is stored of it stays: {why}",))
            return 0
        found = self._shared.objects.get(key)
        if found is None:
            self._say(key, tuple(f"{at.name} is damaged and stays: {why}" for at, why in damaged.items()))
            return await self._remove(key, stored) if stored and self._translation.deletes else 0
        try:
            desired = self._translation.desired(key, found, stored)
        except ValueError as error:
            self._say(key, (f"cannot be used, so what is stored of it stays: {error}",))
            return 0
        self._say(key, desired.problems)
        revision = 0
        for at, resource in desired.resources.items():
            ready = codec.with_defaults(resource)
            if at in damaged:
                revision = await self._repair(at, ready)
            elif at not in stored:
                if self._translation.creates:
                    revision = (await self._resources.create(ready)).revision
                    self._wrote("create", at, revision)
            elif ready != stored[at]:
                revision = (await self._resources.update(ready)).revision
                self._wrote("update", at, revision)
        return revision

    async def _remove(self, key: Key, stored: dict[ResourceKey, Resource]) -> int:
        if not await self._shared.gone(key):
            raise StillThere(f"{self._shared.source.kind} {key} is not known here, and the API server has it")
        revision = 0
        for at, resource in stored.items():
            with suppress(NotFound):  # somebody was faster
                version = resource.metadata.resource_version
                done = await self._resources.delete(at.kind, at.name, at.namespace, resource_version=version)
                revision = done.revision
                self._wrote("delete", at, revision)
        return revision

    async def _repair(self, at: ResourceKey, ready: Resource) -> int:
        """What nobody can read is replaced as it stands; of its uid and age nothing is known."""
        if problems := codec.problems(ready):
            raise ValidationError(codec.identity(ready), problems)
        path = resource_key(at.kind, at.name, at.namespace)
        there = await self._resources.store.get(path)
        if there is None:
            raise NotFound(codec.identity(ready))
        fresh = codec.with_metadata(ready, uid="", creation_timestamp="")
        value = storage.to_storage(fresh, now=datetime.now(UTC), uid=str(uuid4()))
        try:
            revision = await self._resources.store.update(path, value, mod_revision=there.mod_revision)
        except store_api.Conflict as conflict:
            raise NotFound(codec.identity(ready)) from conflict  # looked at again
        self._wrote("update", at, revision)
        return revision

    # --- telling ---------------------------------------------------------------------------------------------------

    def _wrote(self, operation: str, at: ResourceKey, revision: int) -> None:
        self._metrics.writes.labels(self.name, operation).inc()
        name = f"{at.namespace}/{at.name}" if at.namespace else at.name
        log.info(
            "written",
            extra={"controller": self.name, "operation": operation, "kind": at.kind, "key": name, "rev": revision},
        )

    def _failed(self, key: Key, text: str) -> _Trouble:
        self._metrics.failures.labels(self.name).inc()
        trouble = self._trouble.setdefault(key, _Trouble(Backoff(self._random, first_s=0.1, cap_s=RETRY_CAP_S)))
        if trouble.text != text:
            trouble.text = text
            log.warning("not done, trying again", extra={"controller": self.name, "key": str(key), "error": text})
            self._report()
        return trouble

    def _say(self, key: Key, problems: tuple[str, ...]) -> None:
        """Each once, until it has gone."""
        known = self._said.get(key, ())
        if problems:
            self._said[key] = problems
        else:
            self._said.pop(key, None)
        kind = self._shared.source.kind
        for problem in problems:
            if problem not in known:
                log.warning(
                    "object not used as it is",
                    extra={"controller": self.name, "kind": kind, "key": str(key), "problem": problem},
                )
        self._metrics.problems.labels(self.name).set(len(self._said))

    def _report(self) -> None:
        """On the health page. Ready all the same: another replica would fail too."""
        detail = f"{len(self._shared.objects)} objects, {len(self._owner_of)} stored"
        if self._trouble:
            shown = "; ".join(f"{key}: {one.text}" for key, one in list(self._trouble.items())[:_SHOWN])
            detail = f"{len(self._trouble)} failed: {shown}"
        self._health.report(detail=detail)
