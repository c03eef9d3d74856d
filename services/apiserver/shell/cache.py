"""All objects of all kinds the API serves, in memory, kept equal to etcd: what lists read and watches are fed from.

One watch of etcd covers all kinds. It costs what one for each kind would cost, except for endpoints and nodes, whose
events pass by unread; in return each kind's revision moves with any write to any of them, changes of two kinds are
never seen out of step, and there is one position to resume from.

    list, then watch ──→ Window of each kind ──→ CacheWatch (a position), any number of
           ↑ compacted: list again, tell what differs; another history: end every watch

Two things need a revision that the watch may not have told of yet, and no notice of progress that is asked of etcd may
be trusted with it (etcd issue 15220: it may overtake events). A consistent list asks whether the kind was changed after
what is known (`Store.summary`); if not, what is known is the state at the summary's revision, too. Bookmarks of kinds
at rest move to such a revision once the watch has told nothing new for a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from random import Random
from typing import Protocol

from libs.model import keys
from libs.model.base import Resource
from libs.model.codec import encode
from libs.model.kinds import Kind
from libs.resources import rules
from libs.runtime.backoff import Backoff
from libs.runtime.timers import every
from libs.store.api import Compacted, Store, StoreError, WatchBatch
from services.apiserver.core.ports import Change, Snapshot, Stored
from services.apiserver.core.request import SERVED
from services.apiserver.core.status import ApiError, expired, internal, revision_in_future, unavailable
from services.apiserver.core.window import Edit, Expired, Window, edit, read
from services.apiserver.shell.replay import Replay, begin_at

log = logging.getLogger(__name__)

_TIER = "Tier"
_YIELD_EVERY = 200
"""Objects decoded before other tasks get their turn."""


class CacheMetrics(Protocol):
    """What the cache counts; kind as in NetworkPolicy."""

    def watchers(self, kind: str, now: int) -> None: ...
    def window(self, kind: str, changes: int, size_bytes: int) -> None: ...
    def events(self, kind: str, changes: int) -> None: ...
    def expired(self, kind: str) -> None: ...
    def lag(self, revisions: int) -> None:
        """How far the cache was behind etcd when somebody looked; revisions of other keys count."""
        ...


class NoMetrics:
    def watchers(self, kind: str, now: int) -> None: ...
    def window(self, kind: str, changes: int, size_bytes: int) -> None: ...
    def events(self, kind: str, changes: int) -> None: ...
    def expired(self, kind: str) -> None: ...
    def lag(self, revisions: int) -> None: ...


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """max_changes, max_bytes: of each kind's window. max_batch: changes a watcher gets at once.

    first_wait_s: for the first listing. wait_s: for a revision that was asked for (as kube-apiserver waits).
    progress_s: how often a kind at rest is compared with etcd; hold_s: how long nothing may come after that before
    bookmarks use it. replays: of a kind at once. replay_slack: revisions.
    """

    max_changes: int = 4_096
    max_bytes: int = 16 * 2**20
    max_batch: int = 500
    first_wait_s: float = 10.0
    wait_s: float = 3.0
    progress_s: float = 20.0
    hold_s: float = 5.0
    replays: int = 16
    replay_slack: int = 1_000


class _Held:
    """One kind: its window, and who reads it."""

    def __init__(self, kind: Kind, settings: CacheSettings) -> None:
        self.kind = kind
        built_in = [_built_in(rules.default_allow_profile())] if kind.kind == "Profile" else []
        self.window = Window(max_changes=settings.max_changes, max_bytes=settings.max_bytes, built_in=built_in)
        self.moved = asyncio.Event()
        self.proving = asyncio.Lock()
        self.proof = (0, 0)  # (window.edits, revision): what the window held after so many edits is true then, too
        self.watches: set[CacheWatch] = set()
        self.replays: list[Replay] = []

    @property
    def revision(self) -> int:
        """The newest at which the objects are known to be as they are here."""
        edits, revision = self.proof
        return max(self.window.log.revision, revision if edits == self.window.edits else 0)

    def wake(self) -> None:
        for event in (self.moved, *(replay.moved for replay in self.replays)):
            event.set()
            event.clear()

    def end(self, *, until: int | None = None, error: ApiError | None = None) -> None:
        for watch in self.watches:
            watch.end(until, error)
        self.wake()


def _built_in(profile: Resource) -> Stored:
    key = keys.resource_key(profile.kind, profile.name)
    return Stored(key, profile, encode(profile), int(profile.metadata.resource_version))


class EtcdCache:
    """`ports.Cache` over a store. `run` is a task of the service; `close` ends all watches at once.

    eager: list at once instead of when the first reader comes.
    """

    def __init__(
        self,
        store: Store,
        random: Random,
        *,
        kinds: Iterable[Kind] = tuple(SERVED.values()),
        settings: CacheSettings | None = None,
        metrics: CacheMetrics | None = None,
        eager: bool = False,
    ) -> None:
        self._store, self._random = store, random
        self._settings = settings or CacheSettings()
        self._metrics = metrics or NoMetrics()
        self._held = {kind.kind: _Held(kind, self._settings) for kind in kinds}
        self._revision = 0
        self._known = 0  # the newest revision that etcd is known to have had
        self._cluster_id: int | None = None
        self._tiers_at = 0  # when a tier came or went last
        self._wanted, self._loaded = asyncio.Event(), asyncio.Event()
        if eager:
            self._wanted.set()
        self._closed = False
        self._tasks: asyncio.TaskGroup | None = None

    @property
    def revision(self) -> int:
        return self._revision

    # --- reading -----------------------------------------------------------------------------------------------------

    async def latest(self) -> int:
        try:
            status = await self._store.status()
        except StoreError as error:
            raise unavailable(f"etcd does not answer: {error}") from error
        self._saw(status.revision)
        return status.revision

    async def list(self, kind: Kind, *, at_least: int = 0) -> Snapshot:
        held = await self._ready(kind)
        loop = asyncio.get_running_loop()
        deadline, pause_s = loop.time() + self._settings.wait_s, 0.01
        while held.revision < at_least:
            if self._known < at_least:
                await self.latest()
            if self._known >= at_least:
                await self._prove(held, at_least)
            if held.revision >= at_least:
                break
            if loop.time() + pause_s > deadline:
                raise revision_in_future(at_least, held.revision)
            try:
                async with asyncio.timeout(pause_s):
                    await held.moved.wait()
            except TimeoutError:
                pause_s = min(0.5, pause_s * 2)
        self._check_open()
        return Snapshot(held.window.items(), held.revision)

    def has(self, kind: Kind, key: str, revision: int) -> Stored | None:
        return self._held[kind.kind].window.has(key, revision)

    async def watch(self, kind: Kind, *, since: int, decided_at: int | None = None) -> CacheWatch:
        held = await self._ready(kind)
        decided = self._revision if decided_at is None else decided_at
        if since > max(self._known, held.revision) and since > await self.latest():
            # A revision that etcd never had comes from another history: its reader must begin anew.
            raise self._expired(kind)
        replay = None if since >= held.window.log.floor else await self._replay(held, since)
        watch = CacheWatch(self, held, since, replay)
        if self._closed or (kind.policy and self._tiers_at > decided):
            watch.end(since, None)
        held.watches.add(watch)
        self._metrics.watchers(kind.kind, len(held.watches))
        return watch

    async def _ready(self, kind: Kind) -> _Held:
        self._wanted.set()
        if not self._loaded.is_set():
            try:
                async with asyncio.timeout(self._settings.first_wait_s):
                    await self._loaded.wait()
            except TimeoutError:
                raise unavailable("the objects have not been read from etcd yet") from None
        self._check_open()
        return self._held[kind.kind]

    def _check_open(self) -> None:
        if self._closed:
            raise unavailable("the server shuts down")

    def _expired(self, kind: Kind) -> ApiError:
        self._metrics.expired(kind.kind)
        return expired()

    async def _replay(self, held: _Held, since: int) -> Replay:
        if (found := _usable(held, since)) is not None:
            return found
        try:
            begin = await begin_at(self._store, held.kind, since, self._settings.replay_slack)
        except StoreError as error:
            raise unavailable(f"etcd does not answer: {error}") from error
        if (found := _usable(held, since)) is not None:  # somebody else began one meanwhile
            return found
        if begin is None or len(held.replays) >= self._settings.replays:
            raise self._expired(held.kind)
        self._check_open()
        if self._tasks is None:
            raise internal("the cache does not run")
        settings = self._settings
        replay = Replay(self._store, held.kind, begin, max_changes=settings.max_changes, max_bytes=settings.max_bytes)
        held.replays.append(replay)
        replay.readers += 1
        replay.task = self._tasks.create_task(replay.run(), name=f"replay {held.kind.plural} from {begin}")
        return replay

    def _left(self, held: _Held, replay: Replay) -> None:
        replay.readers -= 1
        if not replay.readers:
            held.replays.remove(replay)
            replay.fail()

    def _gone(self, held: _Held, watch: CacheWatch) -> None:
        held.watches.discard(watch)
        self._metrics.watchers(held.kind.kind, len(held.watches))

    # --- revisions that the watch has not told of --------------------------------------------------------------------

    def _saw(self, revision: int) -> None:
        self._known = max(self._known, revision)
        self._metrics.lag(max(0, revision - self._revision))

    async def _prove(self, held: _Held, at_least: int) -> None:
        """Try to show that the kind did not change up to a newer revision. Raises ApiError 503.

        What was there at the window's revision and is not any more is missing in the count; what came after is touched,
        or went again. So an untouched prefix with as many keys as before is the same state.
        """
        async with held.proving:
            if held.revision >= at_least:
                return  # whoever was before us in the queue has shown it
            window = held.window
            edits, count, after = window.edits, window.keys, window.log.revision
            try:
                found = await self._store.summary(keys.resource_prefix(held.kind.kind), after=after)
            except StoreError as error:
                raise unavailable(f"etcd does not answer: {error}") from error
            self._saw(found.revision)
            if not found.touched and found.keys == count and held.window.edits == edits:
                held.proof = (edits, found.revision)

    async def _progress(self) -> None:
        """Moves the bookmarks of kinds at rest, so that their watchers could come back after a compaction."""
        async for _ in every(self._settings.progress_s, self._random):
            resting = [held for held in self._held.values() if held.watches]
            if not resting:
                continue
            try:
                latest = await self.latest()
                resting = [held for held in resting if held.window.log.revision < latest]
                for held in resting:
                    await self._prove(held, latest)
            except ApiError as error:
                log.debug("bookmarks stay where they are", extra={"error": str(error)})
                continue
            # Objects that came and went again may still be on their way to us; give their events time to be told.
            proofs = [(held, held.proof) for held in resting]
            await asyncio.sleep(self._settings.hold_s)
            for held, proof in proofs:
                if proof == held.proof and proof[0] == held.window.edits:
                    held.window.log.advance(proof[1])

    # --- following etcd ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """For ever. When it ends all watches do."""
        try:
            await self._wanted.wait()
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                tasks.create_task(self._follow_for_ever(), name="cache follows etcd")
                tasks.create_task(self._progress(), name="cache bookmarks")
        finally:
            self._tasks = None
            self.close()

    def close(self) -> None:
        """Every watch ends as if it had come to its time; its client comes again, here or elsewhere."""
        self._closed = True
        for held in self._held.values():
            held.end(until=0)
            for replay in held.replays:
                replay.fail()

    async def _follow_for_ever(self) -> None:
        backoff = Backoff(self._random, first_s=0.1, cap_s=5.0)
        other = False
        while True:
            try:
                await self._list(other=other)
                other = False
                backoff.reset()
                await self._follow()
            except Compacted as lost:
                other = lost.revision == 0
            except StoreError as error:
                log.warning("etcd is not followed, trying again", extra={"error": str(error), "rev": self._revision})
                await asyncio.sleep(backoff.next_s())

    async def _list(self, *, other: bool) -> None:
        """Everything at one revision. other: the history may be another one than what is known came from."""
        cluster_id = (await self._store.status()).cluster_id
        revision = 0
        listed: dict[str, list[Edit]] = {}
        for name, held in self._held.items():
            listing = await self._store.list(keys.resource_prefix(name), revision=revision)
            revision = revision or listing.revision
            edits = listed[name] = []
            for number, kv in enumerate(listing.kvs):
                if isinstance(keys.parse_key(kv.key), keys.ResourceKey):
                    stored = held.window.has(kv.key, kv.mod_revision) if not other else None
                    edits.append(Edit(kv.key, kv.mod_revision, kv.create_revision, stored or read(held.kind, kv)))
                if number % _YIELD_EVERY == _YIELD_EVERY - 1:
                    await asyncio.sleep(0)
        begun = self._loaded.is_set()
        same = begun and not other and cluster_id == self._cluster_id and revision >= self._revision
        self._cluster_id = cluster_id
        if same:
            changed = {name: held.window.resync(listed[name], revision) for name, held in self._held.items()}
            self._told(changed, revision)
        else:
            if begun:
                log.warning("etcd has another history now, all watches end", extra={"rev": revision})
            for name, held in self._held.items():
                held.window.reset(listed[name], revision)
                held.proof = (0, 0)
                held.end(error=expired("etcd was restored or replaced: list again"))
                for replay in held.replays:
                    replay.fail()
            self._known = self._revision = revision
            self._tiers_at = revision if begun else 0
        log.info("objects listed", extra={"rev": revision, "objects": sum(map(len, listed.values())), "again": begun})
        self._loaded.set()

    async def _follow(self) -> None:
        async with aclosing(self._store.watch(keys.RESOURCES, revision=self._revision + 1)) as batches:
            async for batch in batches:
                self._take(batch)

    def _take(self, batch: WatchBatch) -> None:
        edits: dict[str, list[Edit]] = {}
        for event in batch.events:
            parsed = keys.parse_key(event.key)
            if isinstance(parsed, keys.ResourceKey) and (held := self._held.get(parsed.kind)) is not None:
                edits.setdefault(parsed.kind, []).append(edit(held.kind, event.key, event.kv, event.revision))
        changed = {name: held.window.apply(edits.get(name, ()), batch.revision) for name, held in self._held.items()}
        self._told(changed, batch.revision)

    def _told(self, changed: Mapping[str, Sequence[Change]], revision: int) -> None:
        self._revision = revision
        self._known = max(self._known, revision)
        for tier in changed.get(_TIER, ()):
            if tier.before is None or tier.after is None:
                self._end_for_tiers(tier.revision)
        for name, changes in changed.items():
            if changes:
                held = self._held[name]
                held.wake()
                self._metrics.events(name, len(changes))
                self._metrics.window(name, len(held.window.log), held.window.log.bytes)

    def _end_for_tiers(self, revision: int) -> None:
        """Which policies a reader may see was decided with the tiers of before (facts/cni-typha-node-bgp-ctl.md 6.3).

        Its watch tells all up to the change and nothing after, so that its client, coming again from there with the
        tiers of now, misses nothing.
        """
        self._tiers_at = revision
        for held in self._held.values():
            if held.kind.policy:
                held.end(until=revision)


def _usable(held: _Held, since: int) -> Replay | None:
    for replay in held.replays:
        if not replay.failed and replay.log.floor <= since:
            replay.readers += 1
            return replay
    return None


class CacheWatch:
    """`ports.Watch`: a position in a window, or in a replay until that has come to where the window begins."""

    def __init__(self, cache: EtcdCache, held: _Held, position: int, replay: Replay | None) -> None:
        self._cache, self._held = cache, held
        self._position = position
        self._replay = replay
        self._until: int | None = None
        self._error: ApiError | None = None
        self._closed = False

    def end(self, until: int | None, error: ApiError | None) -> None:
        """With an error at once; else after what happened up to `until`."""
        self._error = self._error or error
        if until is not None:
            self._until = until if self._until is None else min(self._until, until)

    @property
    def revision(self) -> int:
        if not self._closed and self._error is None:
            with suppress(Expired):
                changes, reached = self._more(1)
                if not changes:
                    self._position = reached
        return self._position

    def __aiter__(self) -> AsyncIterator[Sequence[Change]]:
        return self

    async def __anext__(self) -> Sequence[Change]:
        while not self._closed:
            if self._error is not None:
                raise self._error
            try:
                changes, self._position = self._more(self._cache._settings.max_batch)
            except Expired:
                raise self._cache._expired(self._held.kind) from None
            if changes:
                return changes
            if self._until is not None:
                break
            source = self._replay or self._held
            if isinstance(source, Replay) and source.failed:
                raise self._cache._expired(self._held.kind)
            await source.moved.wait()
        raise StopAsyncIteration

    def _more(self, limit: int) -> tuple[Sequence[Change], int]:
        """The next changes, and the position after them. Raises Expired."""
        if self._replay is not None and self._position >= self._held.window.log.floor:
            self._leave_replay()
        source = self._held.window.log if self._replay is None else self._replay.log
        until = self._until
        if until is not None and self._position >= until:
            return (), self._position
        changes, reached = source.since(self._position, limit)
        if until is None or reached <= until:
            return changes, reached
        return [change for change in changes if change.revision <= until], until

    def _leave_replay(self) -> None:
        if self._replay is not None:
            replay, self._replay = self._replay, None
            self._cache._left(self._held, replay)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._leave_replay()
            self._cache._gone(self._held, self)
