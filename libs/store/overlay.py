"""A store that looks as if it were written to and is not: reads go through, writes stay here and later reads see them.

For `--dry-run=server`: what a command would do is tried against the datastore as it is, conflicts included, and one
document of a file sees what those before it would have made (a tier, and then a policy in it). Revisions of what was
written here are above every one of the real store and mean nothing elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from libs.store.api import (
    Compare,
    Conflict,
    KeyExists,
    KeyValue,
    Listing,
    Op,
    Page,
    Put,
    ServerStatus,
    Store,
    Summary,
    TxnResult,
    WatchBatch,
)

_AHEAD = 1 << 40
"""Own revisions begin here: beyond any that an etcd reaches."""


class OverlayStore:
    """`written`: each key in order of its first write, with its value now, None when it would be deleted."""

    def __init__(self, under: Store) -> None:
        self.written: dict[str, KeyValue | None] = {}
        self._under = under
        self._revision = _AHEAD

    # --- reading -----------------------------------------------------------------------------------------------------

    async def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        if revision or key not in self.written:
            return await self._under.get(key, revision=revision)
        return self.written[key]

    async def list(self, prefix: str, *, revision: int = 0, keys_only: bool = False) -> Listing:
        listing = await self._under.list(prefix, revision=revision, keys_only=keys_only)
        if revision:
            return listing
        found = {kv.key: kv for kv in listing.kvs}
        for key, kv in self.written.items():
            if key.startswith(prefix):
                found.pop(key, None)
                if kv is not None:
                    found[key] = kv
        return Listing([found[key] for key in sorted(found)], max(listing.revision, self._seen(prefix)))

    async def page(self, prefix: str, *, limit: int, after: str = "", revision: int = 0) -> Page:
        if revision:
            return await self._under.page(prefix, limit=limit, after=after, revision=revision)
        listing = await self.list(prefix)
        rest = [kv for kv in listing.kvs if kv.key > after]
        return Page(rest[:limit], listing.revision, max(0, len(rest) - limit))

    async def summary(self, prefix: str, *, after: int) -> Summary:
        listing = await self.list(prefix)
        return Summary(len(listing.kvs), any(kv.mod_revision > after for kv in listing.kvs), listing.revision)

    def _seen(self, prefix: str) -> int:
        return max((kv.mod_revision for key, kv in self.written.items() if kv and key.startswith(prefix)), default=0)

    def watch(
        self, prefix: str, *, revision: int, known: dict[str, int] | None = None
    ) -> AsyncGenerator[WatchBatch, None]:
        return self._under.watch(prefix, revision=revision, known=known)

    async def status(self) -> ServerStatus:
        return await self._under.status()

    # --- writing -----------------------------------------------------------------------------------------------------

    async def create(self, key: str, value: bytes, *, lease: int = 0) -> int:
        if (current := await self.get(key)) is not None:
            raise KeyExists(current)
        return self._put(key, value, None)

    async def update(self, key: str, value: bytes, *, mod_revision: int, lease: int = 0) -> int:
        current = await self.get(key)
        if current is None or current.mod_revision != mod_revision:
            raise Conflict(key, current)
        return self._put(key, value, current)

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        return self._put(key, value, await self.get(key))

    async def delete(self, key: str, *, mod_revision: int | None = None) -> int | None:
        current = await self.get(key)
        if mod_revision is not None and (current is None or current.mod_revision != mod_revision):
            raise Conflict(key, current)
        if current is None:
            return None
        self._revision += 1
        self.written[key] = None
        return self._revision

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        current = {compare.key: await self.get(compare.key) for compare in compares}
        held = all(
            (kv.mod_revision if (kv := current[compare.key]) else 0) == compare.mod_revision for compare in compares
        )
        if held:
            for op in ops:
                await (self.put(op.key, op.value) if isinstance(op, Put) else self.delete(op.key))
        return TxnResult(held, self._revision, {} if held else current)

    def _put(self, key: str, value: bytes, before: KeyValue | None) -> int:
        self._revision += 1
        created = before.create_revision if before else self._revision
        version = before.version + 1 if before else 1
        self.written[key] = KeyValue(key, value, self._revision, created, version)
        return self._revision

    # --- what has no sense here --------------------------------------------------------------------------------------

    async def lease_grant(self, ttl_s: int) -> int:
        return 0

    async def lease_revoke(self, lease: int) -> None:
        return

    def lease_left_s(self, lease: int) -> float:
        return 0.0

    async def compact(self, revision: int) -> None:
        return

    async def close(self) -> None:
        """The store below is somebody else's."""
