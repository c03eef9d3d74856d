"""etcd in a dictionary: one `MemoryEtcd` (the server), any number of `MemoryStore`s (its clients), and trouble on
demand.

Revisions, history, compaction and leases behave as etcd's do; the contract suite keeps that honest. Time stands still
until a test calls `MemoryEtcd.advance`. Every call lets other tasks run before and after its effect, so that races do
happen in tests.

    store.fail_next(2)                          # the next two calls never reach the server
    store.fail_next(1, applied=True)            # the next one does, but its answer is lost
    store.cut = True                            # this client cannot reach the server; its watches wait
    server.down = True                          # nobody is served; watches wait, and resume when it is False again
    store.before = hook                         # awaited before each call with its name and key, to overtake it
    server.compact(revision); image = server.snapshot(); server.restore(image)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self, TypeVar

from libs.store.api import (
    Compacted,
    Compare,
    Conflict,
    Delete,
    KeyExists,
    KeyValue,
    Listing,
    Op,
    Page,
    Put,
    ServerStatus,
    StoreError,
    StoreUnavailable,
    Summary,
    TxnResult,
    WatchBatch,
)
from libs.store.memory_server import Image, MemoryEtcd, Stream
from libs.store.resync import note, resync_batch

__all__ = ["Image", "MemoryEtcd", "MemoryStore"]

T = TypeVar("T")


class MemoryStore:
    """A client. Without `server` it has one for itself: `store.server`."""

    def __init__(self, server: MemoryEtcd | None = None) -> None:
        self.server = server or MemoryEtcd()
        self.before: Callable[[str, str], Awaitable[None]] | None = None
        self.calls = 0
        self._failures: Sequence[tuple[StoreError, bool]] = []
        self._cut = False
        self._closed = False

    def fail_next(self, times: int = 1, error: StoreError | None = None, *, applied: bool = False) -> None:
        """The next calls raise `error` (StoreUnavailable by default); `applied`: after having taken effect."""
        self._failures = [*self._failures, *[(error or StoreUnavailable("told to fail"), applied)] * times]

    @property
    def _reachable(self) -> bool:
        return not (self.server.down or self._cut)

    @property
    def cut(self) -> bool:
        """This client's network is gone: its calls fail, its watches wait; the server and other clients go on."""
        return self._cut

    @cut.setter
    def cut(self, value: bool) -> None:
        self._cut = value
        self.server.wake()

    @property
    def cluster_id(self) -> int | None:
        return self.server.cluster_id

    # --- reads -------------------------------------------------------------------------------------------------------

    async def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        return await self._call("get", key, lambda: self.server.at(revision).get(key))

    async def list(self, prefix: str, *, revision: int = 0, keys_only: bool = False) -> Listing:
        return await self._call("list", prefix, lambda: self.server.listing(prefix, revision, keys_only))

    async def page(self, prefix: str, *, limit: int, after: str = "", revision: int = 0) -> Page:
        return await self._call("list", prefix, lambda: self.server.page(prefix, limit, after, revision))

    async def summary(self, prefix: str, *, after: int) -> Summary:
        return await self._call("summary", prefix, lambda: self.server.summary(prefix, after))

    def watch(
        self, prefix: str, *, revision: int, known: dict[str, int] | None = None
    ) -> AsyncGenerator[WatchBatch, None]:
        if revision < 1:
            raise ValueError("a watch begins at revision 1 or later")
        return self._watch(prefix, revision - 1, None if known is None else dict(known))

    async def _watch(self, prefix: str, last: int, known: dict[str, int] | None) -> AsyncGenerator[WatchBatch, None]:
        cluster_id = self.server.cluster_id
        while True:
            await self._connected()
            lost = self._history_lost(cluster_id, last)
            if lost is not None:
                if known is None:
                    raise Compacted(lost)
                batch = resync_batch(known, self.server.listing(prefix, 0, keys_only=False))
                cluster_id, last = self.server.cluster_id, batch.revision
                yield batch
            stream = Stream(self.server, prefix, last, lambda: self._reachable)
            self.server.streams.add(stream)
            try:
                while self._reachable and self.server.cluster_id == cluster_id:
                    if events := stream.take():
                        note(known, events)
                        last = events[-1].revision
                        yield WatchBatch(events, last)
                    else:
                        await self.server.changed()
                        self._check_open()
            finally:
                self.server.streams.discard(stream)

    async def _connected(self) -> None:
        await asyncio.sleep(0)
        self._check_open()
        while not self._reachable:
            await self.server.changed()
            self._check_open()

    def _history_lost(self, cluster_id: int, last: int) -> int | None:
        """As `api.Compacted.revision` when events after `last` are not all there, else None."""
        if cluster_id != self.server.cluster_id or last > self.server.revision:
            return 0
        return self.server.compacted if last < self.server.compacted else None

    async def status(self) -> ServerStatus:
        server = self.server
        return await self._call(
            "status", "", lambda: ServerStatus(server.cluster_id, 1, server.revision, "3.5.0-memory")
        )

    # --- writes ------------------------------------------------------------------------------------------------------

    async def create(self, key: str, value: bytes, *, lease: int = 0) -> int:
        result = await self._call("create", key, lambda: self.server.txn([Compare(key, 0)], [Put(key, value, lease)]))
        current = result.current.get(key)
        if current is not None:
            raise KeyExists(current)
        return result.revision

    async def update(self, key: str, value: bytes, *, mod_revision: int, lease: int = 0) -> int:
        if mod_revision < 1:
            raise ValueError("update needs the revision it replaces; use create for a new key")
        compare, put = Compare(key, mod_revision), Put(key, value, lease)
        result = await self._call("update", key, lambda: self.server.txn([compare], [put]))
        if not result.succeeded:
            raise Conflict(key, result.current[key])
        return result.revision

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        return (await self._call("put", key, lambda: self.server.txn([], [Put(key, value, lease)]))).revision

    async def delete(self, key: str, *, mod_revision: int | None = None) -> int | None:
        if mod_revision is None:
            gone = await self._call("delete", key, lambda: (self.server.apply([Delete(key)]), self.server.revision))
            return gone[1] if gone[0] else None
        if mod_revision < 1:
            raise ValueError("delete needs the revision of what it removes, or None")
        compare = Compare(key, mod_revision)
        result = await self._call("delete", key, lambda: self.server.txn([compare], [Delete(key)]))
        if not result.succeeded:
            raise Conflict(key, result.current[key])
        return result.revision

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        key = compares[0].key if compares else ops[0].key if ops else ""
        return await self._call("txn", key, lambda: self.server.txn(compares, ops))

    # --- leases and the rest -----------------------------------------------------------------------------------------

    async def lease_grant(self, ttl_s: int) -> int:
        return await self._call("lease_grant", "", lambda: self.server.grant(ttl_s, self))

    def lease_left_s(self, lease: int) -> float:
        return self.server.left_s(lease)

    async def lease_revoke(self, lease: int) -> None:
        await self._call("lease_revoke", "", lambda: self.server.end_lease(lease))

    async def compact(self, revision: int) -> None:
        await self._call("compact", "", lambda: self.server.compact(revision))

    async def close(self) -> None:
        self._closed = True
        self.server.abandon(self)
        self.server.wake()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    # --- every call --------------------------------------------------------------------------------------------------

    async def _call(self, operation: str, key: str, effect: Callable[[], T]) -> T:
        self._check_open()
        self.calls += 1
        if self.before is not None:
            await self.before(operation, key)
        await asyncio.sleep(0)  # the request travels
        self._check_open()
        if not self._reachable:
            raise StoreUnavailable("etcd cannot be reached")
        error, applied = None, True
        if self._failures:
            (error, applied), *self._failures = self._failures
        result = effect() if applied else None
        await asyncio.sleep(0)  # the answer travels
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # without an error the effect was made

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")
