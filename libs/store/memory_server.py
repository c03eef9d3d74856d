"""The server half of `memory`: what etcd itself would do with each call, in a dictionary and without waiting."""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from libs.store.api import (
    Compacted,
    Compare,
    Delete,
    Event,
    FutureRevision,
    KeyValue,
    LeaseLost,
    Listing,
    Op,
    Page,
    Put,
    StoreError,
    Summary,
    TxnResult,
)
from libs.store.codec import decode_key, encode_key

MAX_TXN_OPS = 128  # etcd's default of --max-txn-ops


@dataclass(slots=True)
class _Lease:
    ttl_s: int
    expires_at: float
    keeper: object | None  # who keeps it alive
    keys: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Image:
    """What a backup holds."""

    current: dict[str, KeyValue]
    revision: int


class Stream:
    """A watch's connection: the events that the server has sent and nobody has read yet."""

    def __init__(self, server: MemoryEtcd, prefix: str, last: int, is_open: Callable[[], bool]) -> None:
        self._server = server
        self._prefix = prefix
        self._last = last
        self._is_open = is_open
        self._sent: list[Event] = []

    def fill(self) -> None:
        if self._is_open() and not self._server.down:
            self._sent += self._server.events_after(self._prefix, self._last)
            self._last = self._server.revision

    def take(self) -> list[Event]:
        self.fill()
        sent, self._sent = self._sent, []
        return sent


class MemoryEtcd:
    def __init__(self, cluster_id: int = 1) -> None:
        self.cluster_id = cluster_id
        self.revision = 1  # as a new etcd has it
        self.compacted = 0
        self.now = 0.0
        self._down = False
        self._current: dict[str, KeyValue] = {}
        self._sorted: list[bytes] = []  # etcd orders keys by bytes
        self._history: list[Event] = []
        self._revisions: list[int] = []  # of _history, for bisection
        self._leases: dict[int, _Lease] = {}
        self._last_lease = 0
        self._waiters: list[asyncio.Future[None]] = []
        self.streams: set[Stream] = set()

    @property
    def down(self) -> bool:
        return self._down

    @down.setter
    def down(self, value: bool) -> None:
        self._down = value
        self.wake()

    # --- for tests ---------------------------------------------------------------------------------------------------

    def advance(self, seconds: float) -> None:
        """Move the clock. Leases that a store keeps alive are renewed as they would be; others expire, and their keys
        go.
        """
        self.now += seconds
        for lease_id, lease in list(self._leases.items()):
            if lease.keeper is not None and not self.down:
                lease.expires_at = self.now + lease.ttl_s
            elif lease.expires_at <= self.now:
                self.end_lease(lease_id)

    def snapshot(self) -> Image:
        return Image(dict(self._current), self.revision)

    def restore(self, image: Image) -> None:
        """As an operator restores a backup: keys and revision of then, a new cluster id, no older history."""
        self._current = dict(image.current)
        self._sorted = sorted(map(encode_key, self._current))
        self._history, self._revisions = [], []
        self._leases.clear()
        self.revision = self.compacted = image.revision
        self.cluster_id += 1
        self.wake()

    # --- the server's side of each call ------------------------------------------------------------------------------

    def at(self, revision: int) -> dict[str, KeyValue]:
        """All keys as they were at `revision`; 0 is now."""
        if revision in (0, self.revision):
            return self._current
        if revision > self.revision:
            raise StoreError("required revision is a future revision")
        if revision < self.compacted:
            raise Compacted(self.compacted)
        state = dict(self._current)
        for event in reversed(self._history[bisect_left(self._revisions, revision + 1) :]):
            if event.previous is None:
                state.pop(event.key, None)
            else:
                state[event.key] = event.previous
        return state

    def listing(self, prefix: str, revision: int, keys_only: bool) -> Listing:
        state = self.at(revision)
        raw = encode_key(prefix)
        if state is self._current:
            first = bisect_left(self._sorted, raw)
            keys = []
            for key in self._sorted[first:]:
                if not key.startswith(raw):
                    break
                keys.append(key)
        else:
            keys = sorted(key for key in map(encode_key, state) if key.startswith(raw))
        found = [state[decode_key(key)] for key in keys]
        if keys_only:
            found = [KeyValue(kv.key, b"", kv.mod_revision, kv.create_revision, kv.version, kv.lease) for kv in found]
        return Listing(found, revision or self.revision)

    def page(self, prefix: str, limit: int, after: str, revision: int) -> Page:
        if revision > self.revision:
            raise FutureRevision(revision, self.revision)
        listing = self.listing(prefix, revision, keys_only=False)
        later = [kv for kv in listing.kvs if not after or encode_key(kv.key) > encode_key(after)]
        return Page(later[:limit], listing.revision, max(0, len(later) - limit))

    def summary(self, prefix: str, after: int) -> Summary:
        found = self.listing(prefix, 0, keys_only=True)
        return Summary(len(found.kvs), any(kv.mod_revision > after for kv in found.kvs), found.revision)

    def get(self, key: str) -> KeyValue | None:
        return self._current.get(key)

    def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        _check_txn(compares, ops)
        found = {compare.key: self._current.get(compare.key) for compare in compares}
        if any((kv.mod_revision if (kv := found[c.key]) else 0) != c.mod_revision for c in compares):
            return TxnResult(False, self.revision, found)
        for op in ops:
            if isinstance(op, Put) and op.lease and op.lease not in self._leases:
                raise LeaseLost("requested lease not found")
        self.apply(ops)
        return TxnResult(True, self.revision, {})

    def apply(self, ops: Sequence[Op]) -> bool:
        """All of it at one new revision; False, and no new revision, when nothing was there to change."""
        revision = self.revision + 1
        events = []
        for op in ops:
            previous = self._current.get(op.key)
            match op:
                case Put(key, value, lease):
                    created = previous.create_revision if previous else revision
                    kv = KeyValue(key, value, revision, created, previous.version + 1 if previous else 1, lease)
                    events.append(Event(key, kv, revision, previous))
                    if previous is None:
                        insort(self._sorted, encode_key(key))
                    self._current[key] = kv
                    self._attach(key, previous, lease)
                case Delete(key) if previous is not None:
                    events.append(Event(key, None, revision, previous))
                    del self._current[key]
                    del self._sorted[bisect_left(self._sorted, encode_key(key))]
                    self._attach(key, previous, 0)
        if not events:
            return False
        self.revision = revision
        self._history += events
        self._revisions += [revision] * len(events)
        self.wake()
        return True

    def _attach(self, key: str, previous: KeyValue | None, lease: int) -> None:
        if previous is not None and previous.lease in self._leases:
            self._leases[previous.lease].keys.discard(key)
        if lease:
            self._leases[lease].keys.add(key)

    def compact(self, revision: int) -> None:
        if revision > self.revision:
            raise StoreError("required revision is a future revision")
        if revision <= self.compacted:
            return
        for stream in self.streams:
            stream.fill()  # what is on its way to a connected watch no compaction takes back
        self.compacted = revision
        kept = bisect_left(self._revisions, revision + 1)
        del self._history[:kept], self._revisions[:kept]
        self.wake()

    def grant(self, ttl_s: int, keeper: object) -> int:
        if ttl_s < 1:
            raise StoreError("a lease lives a second at least")
        self._last_lease += 1
        self._leases[self._last_lease] = _Lease(ttl_s, self.now + ttl_s, keeper)
        return self._last_lease

    def abandon(self, keeper: object) -> None:
        for lease in self._leases.values():
            if lease.keeper is keeper:
                lease.keeper = None
                lease.expires_at = self.now + lease.ttl_s

    def left_s(self, lease_id: int) -> float:
        lease = self._leases.get(lease_id)
        return 0.0 if lease is None else max(0.0, lease.expires_at - self.now)

    def end_lease(self, lease_id: int) -> None:
        lease = self._leases.pop(lease_id, None)
        if lease is not None:
            self.apply([Delete(key) for key in sorted(lease.keys)])

    # --- watches -----------------------------------------------------------------------------------------------------

    def events_after(self, prefix: str, revision: int) -> list[Event]:
        later = self._history[bisect_left(self._revisions, revision + 1) :]
        return [event for event in later if event.key.startswith(prefix)]

    async def changed(self) -> None:
        """Returns at the next change of anything."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter

    def wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


def _check_txn(compares: Sequence[Compare], ops: Sequence[Op]) -> None:
    """What etcd refuses (etcdserver/api/v3rpc/key.go, checkTxnRequest and checkIntervals)."""
    if max(len(compares), len(ops)) > MAX_TXN_OPS:
        raise StoreError("too many operations in txn request")
    puts = [op.key for op in ops if isinstance(op, Put)]
    deletes = {op.key for op in ops if isinstance(op, Delete)}
    if len(set(puts)) != len(puts) or deletes.intersection(puts):
        raise StoreError("duplicate key given in txn request")
    if any(not compare.key for compare in compares) or any(not op.key for op in ops):
        raise StoreError("key is not provided")
