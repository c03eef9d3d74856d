"""What a store promises when etcd goes away, comes back, has forgotten, or is another one: in memory and for real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from libs.store import Compacted, Event, Put, Store, StoreUnavailable
from libs.store.watch import Watch
from libs.testkit.servers import EtcdServer
from tests.contract.store_backends import FAST_LEASES, Backend, EtcdBackend, eventually_get, open_backend, take


@pytest.fixture(scope="module")
def etcd_server(crash_etcd: Path) -> Iterator[EtcdServer]:
    with EtcdServer(binary=crash_etcd, extra_args=FAST_LEASES) as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.servers)])
async def backend(request: pytest.FixtureRequest) -> AsyncGenerator[Backend, None]:
    async with open_backend(request.param, lambda: request.getfixturevalue("etcd_server")) as made:
        yield made


@pytest.fixture
async def etcd_backend(etcd_server: EtcdServer) -> AsyncGenerator[EtcdBackend, None]:
    async with open_backend("etcd", lambda: etcd_server) as made:
        assert isinstance(made, EtcdBackend)
        yield made


def replay(state: dict[str, bytes], events: list[Event]) -> dict[str, bytes]:
    for event in events:
        if event.kv is None:
            assert event.key in state, f"{event.key} was deleted though nobody knew it"
            del state[event.key]
        else:
            state[event.key] = event.kv.value
    return state


async def contents(store: Store, prefix: str) -> dict[str, bytes]:
    return {kv.key: kv.value for kv in (await store.list(prefix)).kvs}


async def test_write_without_a_server_is_unavailable_within_its_time(backend: Backend) -> None:
    store = backend.store()
    await store.put(backend.prefix + "a", b"1")
    await backend.cut()
    loop = asyncio.get_running_loop()
    begin = loop.time()
    with pytest.raises(StoreUnavailable):
        await store.put(backend.prefix + "a", b"2")
    with pytest.raises(StoreUnavailable):
        await store.get(backend.prefix + "a")
    assert loop.time() - begin < 25  # five seconds each, on a machine that may stand still
    await backend.mend()
    found = await eventually_get(store, backend.prefix + "a")
    assert found == b"1", "the write was sent later after all"


def ends_with(revision: int) -> Callable[[list[Event]], bool]:
    return lambda events: bool(events) and events[-1].revision == revision


async def test_watch_misses_nothing_when_the_server_is_killed_again_and_again(backend: Backend) -> None:
    store, writer, prefix = backend.store(), backend.other(), backend.prefix
    begin = await writer.put(prefix + "counter", b"0")
    written = [begin]
    batches = store.watch(prefix, revision=begin)
    seen: list[Event] = await take(batches, lambda events: len(events) == 1)
    for round_number in range(3):
        written += [await writer.put(prefix + "counter", b"%d" % number) for number in range(20)]
        if round_number == 1:  # once with the watch caught up, otherwise with events on their way
            seen += await take(batches, ends_with(written[-1]))
        await backend.stop_server()
        waiting = asyncio.create_task(anext(batches))
        await backend.start_server()
        assert await eventually_get(writer, prefix + "counter") == b"19"
        written.append(await writer.put(prefix + "counter", b"after"))
        async with asyncio.timeout(20):
            seen += (await waiting).events
    seen += await take(batches, lambda events: (events or seen)[-1].revision == written[-1])
    await batches.aclose()
    assert [event.revision for event in seen] == written


async def test_compaction_while_cut_off_becomes_one_batch_of_what_differs(backend: Backend) -> None:
    store, other, prefix = backend.store(), backend.other(), backend.prefix
    for name in ("kept", "changed", "deleted", "recreated"):
        await other.put(prefix + name, b"old")
    listing = await store.list(prefix)
    known = {kv.key: kv.mod_revision for kv in listing.kvs}
    state = {kv.key: kv.value for kv in listing.kvs}
    async with aclosing(store.watch(prefix, revision=listing.revision + 1, known=known)) as batches:
        await other.put(prefix + "told", b"live")  # known only because the watch itself told it
        await other.put(prefix + "told and gone", b"live")
        await other.delete(prefix + "told and gone")
        replay(state, await take(batches, lambda events: len(events) == 3))
        await backend.cut()
        waiting = asyncio.create_task(anext(batches))
        await other.put(prefix + "changed", b"new")
        await other.delete(prefix + "deleted")
        await other.delete(prefix + "recreated")
        await other.put(prefix + "recreated", b"new")
        await other.put(prefix + "brief", b"")
        await other.delete(prefix + "brief")
        await other.delete(prefix + "told")
        last = await other.put(prefix + "added", b"new")
        await other.compact(last)
        await backend.mend()
        async with asyncio.timeout(20):
            batch = await waiting
        assert batch.resync
        assert batch.revision >= last
        assert {(event.key.removeprefix(prefix), event.kv is None) for event in batch.events} == {
            ("changed", False),
            ("deleted", True),
            ("recreated", False),
            ("told", True),
            ("added", False),
        }, "a resync must tell what differs and nothing else"
        assert replay(state, batch.events) == await contents(other, prefix)
        await other.put(prefix + "kept", b"later")
        await other.delete(prefix + "added")
        events = await take(batches, lambda found: len(found) == 2)
        assert replay(state, events) == await contents(other, prefix)


async def test_second_compaction_is_compared_with_the_first_resync(backend: Backend) -> None:
    store, other, prefix = backend.store(), backend.other(), backend.prefix
    first = await other.put(prefix + "a", b"1")
    async with aclosing(store.watch(prefix, revision=first + 1, known={prefix + "a": first})) as batches:
        waiting = asyncio.create_task(anext(batches))
        for value in (b"2", b"3"):
            await backend.cut()
            await other.put(prefix + "b", value)
            await other.compact(await other.put(prefix + "c", value))
            await backend.mend()
            async with asyncio.timeout(20):
                batch = await waiting
            assert batch.resync
            assert {event.key for event in batch.events} == {prefix + "b", prefix + "c"}
            waiting = asyncio.create_task(anext(batches))
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_compaction_without_known_keys_is_an_error(backend: Backend) -> None:
    store, other, prefix = backend.store(), backend.other(), backend.prefix
    begin = await other.put(prefix + "a", b"1")
    batches = store.watch(prefix, revision=begin)
    await take(batches, lambda events: len(events) == 1)
    await backend.cut()
    waiting = asyncio.create_task(anext(batches))
    await other.put(prefix + "a", b"2")
    compacted = await other.put(prefix + "a", b"3")
    await other.compact(compacted)
    await backend.mend()
    with pytest.raises(Compacted) as refused:
        async with asyncio.timeout(20):
            await waiting
    assert refused.value.revision == compacted


async def test_another_etcd_in_the_same_place_is_told_as_a_resync(backend: Backend) -> None:
    store, prefix = backend.store(), backend.prefix
    for number in range(20):
        begin = await store.put(f"{prefix}{number}", b"1")
    listing = await store.list(prefix)
    known = {kv.key: kv.mod_revision for kv in listing.kvs}
    async with aclosing(store.watch(prefix, revision=begin + 1, known=known)) as batches:
        waiting = asyncio.create_task(anext(batches))
        await backend.replace_history()
        async with asyncio.timeout(20):
            batch = await waiting
        assert batch.resync
        assert batch.revision < begin
        assert {event.key for event in batch.events if event.kv is None} == set(known)
        await store.put(prefix + "new", b"1")
        (event,) = await take(batches, lambda events: len(events) == 1)
        assert event.key == prefix + "new"


@pytest.mark.servers
async def test_an_etcd_put_back_between_the_look_and_the_stream_is_noticed(
    etcd_backend: EtcdBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id is the same, so only the revision tells; nothing more would ever be heard on that stream."""
    store, prefix = etcd_backend.store(), etcd_backend.prefix
    for number in range(20):
        begin = await store.put(f"{prefix}{number}", b"1")
    listing = await store.list(prefix)
    known = {kv.key: kv.mod_revision for kv in listing.kvs}
    look = Watch._check_history
    ids = [(await store.status()).cluster_id]

    async def looked(self: Watch) -> None:
        await look(self)
        if len(ids) == 1:
            await etcd_backend.replace_history(same_id=True)
            ids.append((await store.status()).cluster_id)

    monkeypatch.setattr(Watch, "_check_history", looked)
    async with aclosing(store.watch(prefix, revision=begin + 1, known=known)) as batches:
        async with asyncio.timeout(20):
            batch = await anext(batches)
        assert ids[0] == ids[1]
        assert batch.resync
        assert batch.revision < begin
        assert {event.key for event in batch.events if event.kv is None} == set(known)
        await store.put(prefix + "new", b"1")
        (event,) = await take(batches, lambda events: len(events) == 1)
        assert event.key == prefix + "new"


async def test_lease_survives_a_short_outage(backend: Backend) -> None:
    store, other, key = backend.store(), backend.other(), backend.prefix + "a"
    lease = await store.lease_grant(8)
    await store.put(key, b"1", lease=lease)
    await backend.cut()
    await backend.mend()
    await backend.pass_time(9.0)
    assert await eventually_get(other, key) == b"1"


async def test_state_followed_through_every_kind_of_trouble_stays_true(backend: Backend) -> None:
    """One follower applies batches while a writer writes and the network, the server and history go away in turn."""
    store, writer, prefix = backend.store(), backend.other(), backend.prefix
    await writer.put(prefix + "0", b"first")
    listing = await store.list(prefix)
    state = {kv.key: kv.value for kv in listing.kvs}
    known = {kv.key: kv.mod_revision for kv in listing.kvs}
    stop_at = asyncio.get_running_loop().create_future()

    async def follow() -> None:
        async with aclosing(store.watch(prefix, revision=listing.revision + 1, known=known)) as batches:
            async for batch in batches:
                replay(state, batch.events)
                if prefix + "end" in state:
                    stop_at.set_result(batch.revision)
                    return

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        tasks.create_task(follow())
        number = 0
        for trouble in ("none", "cut", "compact", "kill", "cut", "compact", "kill"):
            if trouble == "kill":
                await backend.stop_server()
                await backend.start_server()
                await eventually_get(writer, prefix)
            elif trouble != "none":
                await backend.cut()
            for _ in range(25):
                number += 1
                key = f"{prefix}{number % 7}"
                if number % 3:
                    await writer.txn([], [Put(key, b"%d" % number), Put(f"{prefix}x{number % 5}", b"%d" % number)])
                else:
                    await writer.delete(key)
            if trouble == "compact":
                await writer.compact((await writer.list(prefix)).revision)
            await backend.mend()
        await writer.put(prefix + "end", b"")
        await stop_at
    assert state == await contents(writer, prefix)
