"""A fenced store: with its fence it is like the store below; without it, it writes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

import pytest

from libs.store import Compare, Conflict, Delete, FenceLost, KeyExists, LeaseLost, Put, Store
from libs.store.fenced import FencedStore
from libs.testkit.servers import EtcdServer
from tests.contract.store_backends import open_backend


@pytest.fixture(scope="module")
def etcd_server() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@dataclass
class Stage:
    plain: Store
    fenced: FencedStore
    prefix: str
    key: str  # of the fence
    a: int  # revision of `<prefix>a`


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.servers)])
async def stage(request: pytest.FixtureRequest) -> AsyncIterator[Stage]:
    async with open_backend(request.param, lambda: request.getfixturevalue("etcd_server")) as backend:
        store = backend.store()
        key = f"{backend.prefix}leader"
        fenced = FencedStore(store, Compare(key, await store.create(key, b"me")))
        yield Stage(backend.other(), fenced, backend.prefix, key, await store.create(f"{backend.prefix}a", b"1"))


Write = Callable[[Stage], Awaitable[object]]
WRITES: dict[str, Write] = {
    "create": lambda s: s.fenced.create(s.prefix + "new", b"x"),
    "create of what exists": lambda s: s.fenced.create(s.prefix + "a", b"x"),
    "update": lambda s: s.fenced.update(s.prefix + "a", b"x", mod_revision=s.a),
    "update of an old revision": lambda s: s.fenced.update(s.prefix + "a", b"x", mod_revision=1),
    "put": lambda s: s.fenced.put(s.prefix + "a", b"x"),
    "delete": lambda s: s.fenced.delete(s.prefix + "a"),
    "delete of a revision": lambda s: s.fenced.delete(s.prefix + "a", mod_revision=s.a),
    "txn": lambda s: s.fenced.txn([Compare(s.prefix + "a", s.a)], [Put(s.prefix + "b", b"x"), Delete(s.prefix + "a")]),
    "txn that fails anyway": lambda s: s.fenced.txn([Compare(s.prefix + "a", 0)], [Put(s.prefix + "b", b"x")]),
}


@pytest.mark.parametrize("how", ["gone", "of another", "touched"])
@pytest.mark.parametrize("name", WRITES)
async def test_without_its_fence_nothing_is_written(stage: Stage, name: str, how: str) -> None:
    if how != "touched":
        await stage.plain.delete(stage.key)
    if how != "gone":
        await stage.plain.put(stage.key, b"you")
    before = await stage.plain.list(stage.prefix)
    with pytest.raises(FenceLost, match="leader"):
        await WRITES[name](stage)
    assert (await stage.plain.list(stage.prefix)).kvs == before.kvs


async def test_with_its_fence_it_writes_and_refuses_like_the_store_below(stage: Stage) -> None:
    store, new = stage.fenced, stage.prefix + "new"
    first = await store.create(new, b"1")
    with pytest.raises(KeyExists) as exists:
        await store.create(new, b"2")
    assert exists.value.current.mod_revision == first
    second = await store.update(new, b"2", mod_revision=first)
    with pytest.raises(Conflict) as conflict:
        await store.update(new, b"3", mod_revision=first)
    assert conflict.value.current is not None
    assert conflict.value.current.mod_revision == second
    with pytest.raises(Conflict):
        await store.delete(new, mod_revision=first)
    third = await store.put(new, b"3")
    assert (await store.get(new)) == (await stage.plain.get(new))
    assert await store.delete(new, mod_revision=third) == third + 1
    assert await store.delete(new) is None
    with pytest.raises(Conflict) as gone:
        await store.update(new, b"4", mod_revision=third)
    assert gone.value.current is None
    await store.put(new, b"5")
    assert await store.delete(new) is not None
    assert await stage.plain.get(new) is None


@pytest.mark.parametrize("how", ["gone", "of another"])
async def test_who_leads_is_told_and_who_does_not_too(stage: Stage, how: str) -> None:
    await stage.fenced.confirm()
    await stage.plain.delete(stage.key)
    if how != "gone":
        await stage.plain.put(stage.key, b"you")
    with pytest.raises(FenceLost):
        await stage.fenced.confirm()


async def test_a_transaction_that_fails_tells_of_its_own_keys_alone(stage: Stage) -> None:
    result = await stage.fenced.txn([Compare(stage.prefix + "a", 0)], [Put(stage.prefix + "b", b"x")])
    assert not result.succeeded
    assert set(result.current) == {stage.prefix + "a"}


async def test_a_lease_that_went_with_the_fence_reads_as_its_loss(stage: Stage) -> None:
    lease = await stage.plain.lease_grant(60)
    await stage.plain.lease_revoke(lease)
    with pytest.raises(LeaseLost):  # of somebody else: the fence still holds
        await stage.fenced.put(stage.prefix + "b", b"x", lease=lease)
    await stage.plain.delete(stage.key)
    with pytest.raises(FenceLost):
        await stage.fenced.put(stage.prefix + "b", b"x", lease=lease)
