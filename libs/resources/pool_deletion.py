"""The first half of an IPPool's end, done by whoever deletes it: it serves nobody any more, its blocks are given back.

The second half, for a pool with finalizers, is its controller's (`libs.resources.pool_lifecycle`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from libs.ipam.poolstate import terminating
from libs.model.pools import IPPool
from libs.resources import codec
from libs.resources.errors import Conflict, NotFound
from libs.store import api as store_api
from libs.store.api import KeyValue, Store

POOL_REST_S = 0.5
"""Between disabling a pool and releasing its blocks, so that allocations under way with the old pool finish first."""


class PoolRelease(Protocol):
    """What IPAM does when a pool goes."""

    async def release_pool(self, cidr: str) -> None: ...

    async def finish_pool(self, name: str) -> None: ...


Sleep = Callable[[float], Awaitable[None]]


async def retire(store: Store, found: KeyValue, release: PoolRelease | None, sleep: Sleep) -> KeyValue:
    """Disable a pool and give its blocks back; returns it as stored then. Raises Conflict, NotFound."""
    pool = codec.from_kv("IPPool", found)
    assert isinstance(pool, IPPool)
    identity = codec.identity(pool)
    if not pool.spec.disabled:
        spec = msgspec.structs.replace(pool.spec, disabled=True)
        await _swap(store, msgspec.structs.replace(pool, spec=spec), found)
        if release is not None:
            await sleep(POOL_REST_S)
    if release is not None:
        await release.release_pool(pool.spec.cidr)
    latest = await store.get(codec.key(identity))
    if latest is None:
        raise NotFound(identity)
    return latest


async def terminate(
    store: Store, pool: IPPool, found: KeyValue, release: PoolRelease | None, now: str, sleep: Sleep
) -> KeyValue | None:
    """Mark a pool with finalizers as terminating; returns what is left of it. Who cannot release addresses only marks
    it; its controller does the rest. Raises Conflict.
    """
    identity = codec.identity(pool)
    if not pool.metadata.deletion_timestamp:
        await _swap(store, terminating(pool, now), found)
    if release is not None:
        await sleep(POOL_REST_S)
        await release.finish_pool(identity.name)
    return await store.get(codec.key(identity))


async def _swap(store: Store, pool: IPPool, found: KeyValue) -> None:
    key, value = codec.to_storage(pool)
    try:
        await store.update(key, value, mod_revision=found.mod_revision)
    except store_api.Conflict as conflict:
        raise Conflict(codec.identity(pool), str(found.mod_revision)) from conflict
