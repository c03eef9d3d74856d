"""The trouble that MemoryStore makes on demand; what it promises otherwise is in tests/contract/test_store.py."""

from __future__ import annotations

import asyncio

import pytest

from libs.store import Conflict, StoreAuthError, StoreUnavailable
from libs.store.memory import MemoryEtcd, MemoryStore


async def test_failed_calls_are_counted_down() -> None:
    store = MemoryStore()
    store.fail_next(2)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.put("a", b"1")
    assert await store.get("a") is None
    await store.put("a", b"1")
    store.fail_next(1, StoreAuthError("no"))
    with pytest.raises(StoreAuthError):
        await store.get("a")


async def test_lost_answer_leaves_the_write_behind() -> None:
    store = MemoryStore()
    store.fail_next(applied=True)
    with pytest.raises(StoreUnavailable):
        await store.create("a", b"1")
    found = await store.get("a")
    assert found is not None
    assert found.value == b"1"


async def test_hook_before_a_call_can_make_it_lose_the_race() -> None:
    server = MemoryEtcd()
    store, other = MemoryStore(server), MemoryStore(server)
    first = await store.create("a", b"1")
    seen: list[tuple[str, str]] = []

    async def overtake(operation: str, key: str) -> None:
        seen.append((operation, key))
        if operation == "update":
            store.before = None
            await other.put(key, b"other")

    store.before = overtake
    with pytest.raises(Conflict) as refused:
        await store.update("a", b"2", mod_revision=first)
    assert refused.value.current is not None
    assert refused.value.current.value == b"other"
    assert seen == [("update", "a")]


async def test_one_client_cut_off_does_not_stop_another() -> None:
    server = MemoryEtcd()
    store, other = MemoryStore(server), MemoryStore(server)
    store.cut = True
    with pytest.raises(StoreUnavailable):
        await store.get("a")
    await other.put("a", b"1")
    store.cut = False
    assert await store.get("a") is not None


async def test_restored_backup_has_its_keys_and_another_cluster_id() -> None:
    server = MemoryEtcd()
    store = MemoryStore(server)
    await store.put("a", b"1")
    image = server.snapshot()
    cluster_id = (await store.status()).cluster_id
    await store.put("a", b"2")
    await store.put("b", b"2")
    server.restore(image)
    assert [(kv.key, kv.value) for kv in (await store.list("")).kvs] == [("a", b"1")]
    status = await store.status()
    assert status.revision == image.revision
    assert status.cluster_id != cluster_id


async def test_leases_expire_only_as_the_clock_is_moved() -> None:
    server = MemoryEtcd()
    store, other = MemoryStore(server), MemoryStore(server)
    await store.put("a", b"1", lease=await store.lease_grant(10))
    server.advance(100)
    await store.close()
    server.advance(9)
    assert await other.get("a") is not None
    server.advance(2)
    assert await other.get("a") is None


async def test_calls_of_tasks_interleave() -> None:
    store = MemoryStore()
    order: list[str] = []

    async def worker(name: str) -> None:
        for _ in range(2):
            await store.get("a")
            order.append(name)

    await asyncio.gather(worker("x"), worker("y"))
    assert order == ["x", "y", "x", "y"]
