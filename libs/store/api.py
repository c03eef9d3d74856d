"""The datastore as the rest of the project sees it: etcd v3's promises and nothing of its wire format.

Two implementations pass one contract suite (tests/contract/test_store.py): `etcd.EtcdStore` and `memory.MemoryStore`.
Keys are text, values bytes. Every write returns the revision etcd gave it; every read tells the revision it reflects.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol


class StoreError(Exception):
    """Anything the datastore can answer that is not the wanted result."""


class StoreUnavailable(StoreError):
    """No endpoint answered in time. A write that ends so may have happened, or still happen: read before writing again,
    and make the next one conditional on what was read.
    """


class StoreAuthError(StoreError):
    """Credentials or permissions refused. Not retried."""


class KeyExists(StoreError):
    """Create found the key present. `current` is what is there."""

    def __init__(self, current: KeyValue) -> None:
        super().__init__(f"{current.key} already exists at revision {current.mod_revision}")
        self.current = current


class Conflict(StoreError):
    """Compare-and-swap found another revision. `current` is None when the key is gone."""

    def __init__(self, key: str, current: KeyValue | None) -> None:
        super().__init__(f"{key} was changed meanwhile" if current else f"{key} does not exist")
        self.key = key
        self.current = current


class Compacted(StoreError):
    """The revision asked for is no longer kept: list again and compare. `revision` is the oldest that is, and 0 when
    the whole history is another one (etcd was restored or replaced).
    """

    def __init__(self, revision: int) -> None:
        super().__init__(f"history before revision {revision} is compacted")
        self.revision = revision


class FutureRevision(StoreError):
    """The revision asked for has not been reached yet; `revision` is the newest that there is."""

    def __init__(self, wanted: int, revision: int) -> None:
        super().__init__(f"revision {wanted} is not reached yet: the newest is {revision}")
        self.wanted = wanted
        self.revision = revision


class LeaseLost(StoreError):
    """The lease expired or was revoked; what hung on it is gone."""


class FenceLost(StoreError):
    """Nothing was written: the key that a write was conditional on (`libs.store.fenced`) is gone or another's."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    key: str
    value: bytes
    mod_revision: int
    create_revision: int
    version: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """Every key under a prefix at one revision, sorted by key."""

    kvs: list[KeyValue]
    revision: int


@dataclass(frozen=True, slots=True)
class Page:
    """Some keys under a prefix at one revision, sorted by key. remaining: how many come after them."""

    kvs: list[KeyValue]
    revision: int
    remaining: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What is under a prefix at `revision`, without reading it. touched: a key that is there was written after the
    revision asked about. Nothing touched and as many keys as before: nothing changed, since what was only deleted is
    missed in `keys`.
    """

    keys: int
    touched: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Event:
    """One change. `kv` is None for a deletion; `previous` is what was there before, where the server still knew it."""

    key: str
    kv: KeyValue | None
    revision: int
    previous: KeyValue | None = None


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """All changes up to and including `revision`: a batch never ends inside a revision (fragments are joined).

    `events` may be empty: then only the revision is news. `resync` marks a batch made by listing again after
    compaction: it holds what differs from what this watch had told before, deletions included, so a consumer applies it
    like any other. Its revision is lower than one told before when etcd was restored from a backup; otherwise revisions
    only grow.
    """

    events: list[Event]
    revision: int
    resync: bool = False


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition of a transaction: `mod_revision` 0 means "does not exist"."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    key: str


Op = Put | Delete


@dataclass(frozen=True, slots=True)
class TxnResult:
    """`succeeded` tells whether all compares held. When they did not, `current` holds the compared keys as they are."""

    succeeded: bool
    revision: int
    current: dict[str, KeyValue | None]


@dataclass(frozen=True, slots=True)
class ServerStatus:
    cluster_id: int
    member_id: int
    revision: int
    version: str


class Store(Protocol):
    """All methods raise StoreUnavailable after their own bounded retries, StoreAuthError when refused."""

    async def get(self, key: str, *, revision: int = 0) -> KeyValue | None: ...

    async def list(self, prefix: str, *, revision: int = 0, keys_only: bool = False) -> Listing:
        """Pages internally at one pinned revision. Raises Compacted when `revision` is no longer kept."""
        ...

    async def page(self, prefix: str, *, limit: int, after: str = "", revision: int = 0) -> Page:
        """At most `limit` keys that come after the key `after`, "" for the first. `revision` of the page before it
        makes several pages one listing. Raises Compacted, FutureRevision.
        """
        ...

    async def summary(self, prefix: str, *, after: int) -> Summary:
        """Linearizable: it tells of every write that had been answered when it was asked. etcd looks at every key under
        the prefix, and sends next to nothing.
        """
        ...

    def watch(
        self, prefix: str, *, revision: int, known: dict[str, int] | None = None
    ) -> AsyncGenerator[WatchBatch, None]:
        """Changes from `revision` (inclusive) on, for ever: reconnects, changes endpoint, resumes by itself.

        known: key -> mod_revision that the caller already holds (from a list at revision - 1); needed to turn a
        compaction into a `resync` batch without false deletes. Without it Compacted is raised instead. The iterator's
        `aclose()` ends the watch.
        """
        ...

    async def create(self, key: str, value: bytes, *, lease: int = 0) -> int:
        """Revision of the write. Raises KeyExists."""
        ...

    async def update(self, key: str, value: bytes, *, mod_revision: int, lease: int = 0) -> int:
        """Compare-and-swap; raises Conflict."""
        ...

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int: ...

    async def delete(self, key: str, *, mod_revision: int | None = None) -> int | None:
        """Revision of the deletion, None when the key was absent and no revision was demanded; raises Conflict
        otherwise.
        """
        ...

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult: ...

    async def lease_grant(self, ttl_s: int) -> int:
        """A lease that this store keeps alive until `lease_revoke` or `close`."""
        ...

    async def lease_revoke(self, lease: int) -> None: ...

    def lease_left_s(self, lease: int) -> float:
        """For how long the lease lives at least, by the last renewal that was answered; 0 when it may have gone."""
        ...

    async def status(self) -> ServerStatus: ...

    async def compact(self, revision: int) -> None: ...

    async def close(self) -> None: ...
