"""What is done to an overlay looks as if it had been done to the store below, and the store below does not change."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from libs.store import Compare, Conflict, Delete, KeyExists, Put, Store
from libs.store.memory import MemoryStore
from libs.store.overlay import OverlayStore

KEYS = ("/a/1", "/a/2", "/b/1")
Step = tuple[str, str, bytes]
STEP = st.tuples(
    st.sampled_from(["create", "update", "stale", "put", "delete", "guarded", "txn", "failing"]),
    st.sampled_from(KEYS), st.binary(min_size=1, max_size=3),
)  # fmt: skip


async def do(store: Store, step: Step) -> str:
    """What happened, without revisions: those of an overlay are its own."""
    verb, key, value = step
    current = await store.get(key)
    revision = current.mod_revision if current else 0
    wanted = revision or 1_000_000  # of a key that is not there: none that it can have
    try:
        match verb:
            case "create":
                await store.create(key, value)
            case "update":
                await store.update(key, value, mod_revision=wanted)
            case "stale":
                await store.update(key, value, mod_revision=wanted + 1)
            case "put":
                await store.put(key, value)
            case "delete":
                return str(await store.delete(key) is not None)
            case "guarded":
                return str(await store.delete(key, mod_revision=wanted) is not None)
            case "txn":
                done = await store.txn([Compare(key, revision)], [Put("/b/1", value), Delete("/a/1")])
                return f"{done.succeeded} {done.current}"
            case "failing":
                done = await store.txn([Compare(key, revision + 1)], [Put("/b/1", value)])
                return f"{done.succeeded} {[(k, kv and kv.value) for k, kv in done.current.items()]}"
    except (Conflict, KeyExists) as error:
        return type(error).__name__
    return "done"


async def seen(store: Store) -> list[object]:
    found: list[object] = []
    for prefix in ("/", "/a/", "/b/"):
        listing = await store.list(prefix)
        found.append([(kv.key, kv.value, kv.version) for kv in listing.kvs])
        assert all(kv.mod_revision <= listing.revision for kv in listing.kvs)
    for key in KEYS:
        kv = await store.get(key)
        found.append(kv and (kv.value, kv.version))
    return found


@given(st.lists(STEP, max_size=6), st.lists(STEP, max_size=12))
def test_an_overlay_behaves_as_the_store_does(before: list[Step], steps: list[Step]) -> None:
    async def run() -> None:
        real, under = MemoryStore(), MemoryStore()
        for step in before:
            assert await do(real, step) == await do(under, step)
        kept = under.server.snapshot()
        overlay = OverlayStore(under)
        for step in steps:
            assert await do(overlay, step) == await do(real, step), step
            assert await seen(overlay) == await seen(real)
        assert under.server.snapshot() == kept

    asyncio.run(run())
