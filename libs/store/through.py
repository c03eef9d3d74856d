"""What a store over another one passes on as it is: everything but writes."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from libs.store.api import KeyValue, Listing, Page, ServerStatus, Store, Summary, WatchBatch


class ReadsThrough:
    """Reads, watches, leases and compaction go to `store`, which is not closed."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        return await self._store.get(key, revision=revision)

    async def list(self, prefix: str, *, revision: int = 0, keys_only: bool = False) -> Listing:
        return await self._store.list(prefix, revision=revision, keys_only=keys_only)

    async def page(self, prefix: str, *, limit: int, after: str = "", revision: int = 0) -> Page:
        return await self._store.page(prefix, limit=limit, after=after, revision=revision)

    async def summary(self, prefix: str, *, after: int) -> Summary:
        return await self._store.summary(prefix, after=after)

    def watch(
        self, prefix: str, *, revision: int, known: dict[str, int] | None = None
    ) -> AsyncGenerator[WatchBatch, None]:
        return self._store.watch(prefix, revision=revision, known=known)

    async def lease_grant(self, ttl_s: int) -> int:
        return await self._store.lease_grant(ttl_s)

    async def lease_revoke(self, lease: int) -> None:
        await self._store.lease_revoke(lease)

    def lease_left_s(self, lease: int) -> float:
        return self._store.lease_left_s(lease)

    async def status(self) -> ServerStatus:
        return await self._store.status()

    async def compact(self, revision: int) -> None:
        await self._store.compact(revision)

    async def close(self) -> None:
        """The store below belongs to whoever made it."""
