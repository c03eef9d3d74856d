"""Consistent lists of a cache whose watch tells nothing: what it shows must be the state of now, or no answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random

import pytest

from libs.model import kinds
from libs.model.base import ObjectMeta
from libs.model.keys import resource_key
from libs.model.storage import to_storage
from libs.store.api import WatchBatch
from libs.store.memory import MemoryStore
from services.apiserver.core.status import ApiError
from services.apiserver.shell.cache import CacheSettings, EtcdCache

KIND = kinds.kind("GlobalNetworkSet")
VALUE = to_storage(KIND.struct(metadata=ObjectMeta(name="a", uid="u", creation_timestamp="2026-01-01T00:00:00Z")))


class Deaf(MemoryStore):
    """Its watches are late for ever."""

    async def _watch(self, prefix: str, last: int, known: dict[str, int] | None) -> AsyncGenerator[WatchBatch, None]:
        await asyncio.Event().wait()
        yield WatchBatch([], last)


def key(name: str) -> str:
    return resource_key(KIND.kind, name)


@asynccontextmanager
async def cache_of(store: Deaf) -> AsyncIterator[EtcdCache]:
    cache = EtcdCache(store, Random(1), settings=CacheSettings(wait_s=0.05))
    running = asyncio.create_task(cache.run())
    try:
        await cache.list(KIND)
        yield cache
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_what_others_wrote_elsewhere_does_not_hold_up_a_list() -> None:
    store = Deaf()
    await store.put(key("a"), VALUE)
    async with cache_of(store) as cache:
        before = cache.revision
        revision = await store.put("/calico/elsewhere", b"1")
        found = await cache.list(KIND, at_least=await cache.latest())
        assert ([item.key for item in found.items], found.revision) == ([key("a")], revision)
        assert cache.revision == before, "watchers may not be told that they have seen everything up to there"


@pytest.mark.parametrize("write", ["change", "create", "delete", "delete and create another"])
async def test_a_state_of_before_is_not_shown_as_that_of_now(write: str) -> None:
    store = Deaf()
    await store.put(key("a"), VALUE)
    async with cache_of(store) as cache:
        if "delete" in write:
            await store.delete(key("a"))
        if write != "delete":
            await store.put(key("a" if write == "change" else "b"), VALUE)
        with pytest.raises(ApiError) as refused:
            await cache.list(KIND, at_least=await cache.latest())
        assert refused.value.code == 504


async def test_an_object_that_came_and_went_unseen_leaves_the_state_as_it_was() -> None:
    store = Deaf()
    await store.put(key("a"), VALUE)
    async with cache_of(store) as cache:
        await store.put(key("b"), VALUE)
        revision = await store.delete(key("b"))
        found = await cache.list(KIND, at_least=await cache.latest())
        assert ([item.key for item in found.items], found.revision) == ([key("a")], revision)
