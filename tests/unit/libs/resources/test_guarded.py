"""Nothing is written before the data's format is known, by whichever way of writing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from libs.resources.guarded import GuardedStore
from libs.store.api import Compare, KeyValue, Put, Store, StoreError, StoreUnavailable
from tests.unit.libs.resources.test_version_guard import stored, value

WRITES: dict[str, Callable[[Store, int], Awaitable[object]]] = {
    "create": lambda store, _: store.create("/new", b"x"),
    "update": lambda store, revision: store.update("/a", b"x", mod_revision=revision),
    "put": lambda store, _: store.put("/a", b"x"),
    "delete": lambda store, _: store.delete("/a"),
    "delete of a revision": lambda store, revision: store.delete("/a", mod_revision=revision),
    "txn": lambda store, revision: store.txn([Compare("/a", revision)], [Put("/b", b"x")]),
}


@pytest.mark.parametrize("name", WRITES)
async def test_data_of_a_later_release_are_read_and_never_written(name: str) -> None:
    store = await stored(value("v9.9.0", "2"))
    revision = await store.put("/a", b"1")
    before = store.server.snapshot()
    guarded = GuardedStore(store)
    for _ in range(2):
        with pytest.raises(StoreError, match="data of format 2") as refused:
            await WRITES[name](guarded, revision)
        assert not isinstance(refused.value, StoreUnavailable), "trying again does not help"
    assert store.server.snapshot() == before
    found = await guarded.get("/a")
    assert found is not None
    assert found.value == b"1"


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("content", [None, value("v3.31.2"), value("v0.1.0", "1")])
async def test_no_write_before_the_answer_and_all_after_it(name: str, content: bytes | None) -> None:
    store, twin = await stored(content), await stored(content)
    revision = await store.put("/a", b"1")
    assert await twin.put("/a", b"1") == revision
    before = store.server.snapshot()
    get, away = store.get, True

    async def asked(key: str, *, revision: int = 0) -> KeyValue | None:
        if away:
            raise StoreUnavailable("away")
        return await get(key, revision=revision)

    store.get = asked  # type: ignore[method-assign]
    guarded = GuardedStore(store)
    with pytest.raises(StoreUnavailable):
        await WRITES[name](guarded, revision)
    assert store.server.snapshot() == before
    away = False
    assert await WRITES[name](guarded, revision) == await WRITES[name](twin, revision)
    assert store.server.snapshot() == twin.server.snapshot() != before
    away = True  # it was asked once and for all
    await guarded.put("/c", b"x")
