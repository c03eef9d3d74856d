"""One prefix, watched for ever: over broken streams, other endpoints, compaction, and etcd restored from a backup.

Flows in: WatchResponses, some of them fragments. Flows out: WatchBatches, whole revisions in order, nothing twice and
nothing left out. `last` is the revision up to which everything has been told; a new stream begins after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from libs.store.api import Compacted, Event, Listing, StoreAuthError, StoreError, StoreUnavailable, WatchBatch
from libs.store.codec import event, pb, prefix_range
from libs.store.connection import Connection
from libs.store.resync import note, resync_batch

log = logging.getLogger(__name__)


class _HistoryLost(Exception):
    """The stream cannot continue after `last`. oldest: the first revision still kept, 0 when the history is another
    one.
    """

    def __init__(self, oldest: int) -> None:
        super().__init__(oldest)
        self.oldest = oldest


class Fragments:
    """Joins the fragments of one response, so that a batch never ends inside a revision."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def add(self, response: Any) -> list[Event] | None:
        """All events once the last fragment is there, None until then."""
        self._events += map(event, response.events)
        if response.fragment:
            return None
        events, self._events = self._events, []
        return events


class Watch:
    def __init__(
        self,
        connection: Connection,
        prefix: str,
        revision: int,
        known: dict[str, int] | None,
        list_prefix: Callable[[str], Awaitable[Listing]],
    ) -> None:
        if revision < 1:
            raise ValueError("a watch begins at revision 1 or later")
        self._connection = connection
        self._prefix = prefix
        self._last = revision - 1
        self._known = None if known is None else dict(known)
        self._list = list_prefix
        self._cluster_id: int | None = connection.cluster_id
        self._failures = 0

    async def batches(self) -> AsyncGenerator[WatchBatch, None]:
        while True:
            try:
                async with contextlib.aclosing(self._stream()) as stream:
                    async for batch in stream:
                        yield batch
            except _HistoryLost as lost:
                if self._known is None:
                    raise Compacted(lost.oldest) from None
                yield await self._resync(self._known)
            except StoreUnavailable as error:
                if self._connection.closed:
                    raise
                await self._pause(error)

    async def _resync(self, known: dict[str, int]) -> WatchBatch:
        while True:
            try:
                listing = await self._list(self._prefix)
                break
            except StoreUnavailable as error:
                if self._connection.closed:
                    raise
                await self._pause(error)
        self._last = listing.revision
        self._cluster_id = self._connection.cluster_id
        batch = resync_batch(known, listing)
        log.info(
            "watch compared with a new list",
            extra={"prefix": self._prefix, "revision": listing.revision, "changes": len(batch.events)},
        )
        return batch

    async def _pause(self, error: Exception) -> None:
        self._failures += 1
        level = logging.WARNING if self._failures == 1 else logging.DEBUG
        log.log(level, "watch interrupted", extra={"prefix": self._prefix, "last": self._last, "error": str(error)})
        await asyncio.sleep(self._connection.backoff_s(self._failures))

    async def _stream(self) -> AsyncGenerator[WatchBatch, None]:
        """One stream on one endpoint. Raises StoreUnavailable when it broke, _HistoryLost when nothing continues it."""
        await self._check_history()
        loop = asyncio.get_running_loop()
        timeout_s = self._connection.config.request_timeout_s
        endpoint = await self._connection.ready_endpoint(loop.time() + timeout_s)
        token = self._connection.token
        call = endpoint.watch.Watch(metadata=self._connection.stream_metadata())
        fragments = Fragments()
        async with self._connection.stream(call):
            try:
                async with asyncio.timeout(timeout_s):
                    await call.write(pb.WatchRequest(create_request=self._create_request()))
                    response = await call.read()
                while response is not grpc.aio.EOF:
                    self._failures = 0
                    if (batch := self._batch(response, fragments)) is not None:
                        note(self._known, batch.events)
                        self._last = batch.revision
                        yield batch
                    response = await call.read()
            except grpc.aio.AioRpcError as error:
                if await self._connection.renew_after(error, token):
                    raise StoreUnavailable("the auth token was renewed") from error
                self._connection.failed(endpoint)
                raise self._connection.translate(error, endpoint) from error
            except asyncio.CancelledError:
                self._connection.raise_if_closed()
                raise
            except (TimeoutError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
                self._connection.failed(endpoint)
                raise StoreUnavailable(f"{endpoint.url}: watch broke: {error}") from error
        self._connection.failed(endpoint)
        raise StoreUnavailable(f"{endpoint.url}: watch ended")

    def _create_request(self) -> Any:
        key, range_end = prefix_range(self._prefix)
        return pb.WatchCreateRequest(
            key=key,
            range_end=range_end,
            # One earlier than needed: a compaction exactly at `last + 1` has already thrown away that revision's
            # deletions, but etcd would begin there without a word. Asking for `last` makes it say "compacted". Old
            # events are dropped below.
            start_revision=max(1, self._last),
            prev_kv=True,
            fragment=True,
            progress_notify=True,
        )

    def _batch(self, response: Any, fragments: Fragments) -> WatchBatch | None:
        if response.compact_revision:
            raise _HistoryLost(response.compact_revision)
        if response.canceled:
            if "permission" in response.cancel_reason or "auth" in response.cancel_reason:
                raise StoreAuthError(f"watch of {self._prefix}: {response.cancel_reason}")
            raise StoreUnavailable(f"etcd cancelled the watch: {response.cancel_reason}")
        if response.created:
            if self._cluster_id not in (None, response.header.cluster_id):
                # Replaced between the look at its history and this stream, which would wait in silence for a revision
                # that the new one has not reached.
                raise _HistoryLost(0)
            if response.header.revision < self._last:
                # The same may have been put back from a backup, which keeps its id. Or it is a member that is behind,
                # which a look at the history tells apart: etcd answers that when the member has caught up.
                raise StoreUnavailable(f"etcd is at revision {response.header.revision}, the watch at {self._last}")
            return None
        events = fragments.add(response)
        if events is None:
            return None
        if not events:
            # Progress that the server sent by itself, in order with the events. We never ask for it: old servers
            # answer such a request before events that are already due (etcd 15220).
            return WatchBatch([], response.header.revision) if response.header.revision > self._last else None
        fresh = [found for found in events if found.revision > self._last]
        # The header may be ahead of the events while the server catches up, so it does not say how far we are.
        return WatchBatch(fresh, fresh[-1].revision) if fresh else None

    async def _check_history(self) -> None:
        """Is it still the etcd that `last` came from? A restored one may have another id, or a revision in the past."""
        key, range_end = prefix_range(self._prefix)
        request = pb.RangeRequest(key=key, range_end=range_end, limit=1, keys_only=True)
        try:
            reply = await self._connection.read(lambda at: at.kv.Range, request)
        except (StoreUnavailable, StoreAuthError):
            raise
        except StoreError as error:
            raise StoreUnavailable(str(error)) from error
        same = self._cluster_id in (None, reply.header.cluster_id)
        self._cluster_id = reply.header.cluster_id
        if not same or reply.header.revision < self._last:
            log.warning(
                "etcd's history is another one now",
                extra={"cluster_id": reply.header.cluster_id, "revision": reply.header.revision, "last": self._last},
            )
            raise _HistoryLost(0)
