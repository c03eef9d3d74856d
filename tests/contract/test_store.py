"""What every store promises, tried on the one in memory and on a real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

import pytest

from libs.store import (
    Compacted,
    Compare,
    Conflict,
    Delete,
    FutureRevision,
    KeyExists,
    LeaseLost,
    Put,
    StoreError,
)
from libs.testkit.servers import EtcdServer
from tests.contract.store_backends import FAST_LEASES, Backend, MemoryBackend, open_backend, take


@pytest.fixture(scope="module")
def etcd_server() -> Iterator[EtcdServer]:
    with EtcdServer(extra_args=FAST_LEASES) as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.servers)])
async def backend(request: pytest.FixtureRequest) -> AsyncGenerator[Backend, None]:
    async with open_backend(request.param, lambda: request.getfixturevalue("etcd_server")) as made:
        yield made


# --- one key ---------------------------------------------------------------------------------------------------------


async def test_created_key_reads_back_with_its_revisions(backend: Backend) -> None:
    store, key = backend.store(), backend.prefix + "a"
    revision = await store.create(key, b"1")
    found = await store.get(key)
    assert found is not None
    assert (found.key, found.value, found.version, found.lease) == (key, b"1", 1, 0)
    assert found.mod_revision == found.create_revision == revision


async def test_absent_key_reads_as_none(backend: Backend) -> None:
    assert await backend.store().get(backend.prefix + "nothing") is None


async def test_create_of_an_existing_key_says_what_is_there(backend: Backend) -> None:
    store, key = backend.store(), backend.prefix + "a"
    revision = await store.create(key, b"1")
    with pytest.raises(KeyExists) as refused:
        await store.create(key, b"2")
    assert (refused.value.current.value, refused.value.current.mod_revision) == (b"1", revision)


async def test_update_replaces_exactly_the_revision_named(backend: Backend) -> None:
    store, key = backend.store(), backend.prefix + "a"
    first = await store.create(key, b"1")
    second = await store.update(key, b"2", mod_revision=first)
    assert second > first
    with pytest.raises(Conflict) as refused:
        await store.update(key, b"3", mod_revision=first)
    assert refused.value.current is not None
    assert refused.value.current.value == b"2"
    found = await store.get(key)
    assert found is not None
    assert (found.version, found.create_revision, found.mod_revision) == (2, first, second)


async def test_update_of_an_absent_key_is_a_conflict_with_nothing(backend: Backend) -> None:
    store, key = backend.store(), backend.prefix + "a"
    with pytest.raises(Conflict) as refused:
        await store.update(key, b"2", mod_revision=7)
    assert refused.value.current is None


@pytest.mark.parametrize("revision", [0, -1])
async def test_update_and_delete_refuse_a_revision_that_cannot_be(backend: Backend, revision: int) -> None:
    store = backend.store()
    with pytest.raises(ValueError):
        await store.update(backend.prefix + "a", b"", mod_revision=revision)
    with pytest.raises(ValueError):
        await store.delete(backend.prefix + "a", mod_revision=revision)


async def test_put_writes_whatever_is_there(backend: Backend) -> None:
    store, key = backend.store(), backend.prefix + "a"
    first = await store.put(key, b"1")
    second = await store.put(key, b"1")
    assert second == first + 1, "the same value again is a change all the same"


async def test_delete_tells_whether_there_was_something(backend: Backend) -> None:
    store, key = backend.store(), backend.prefix + "a"
    created = await store.create(key, b"1")
    assert await store.delete(key) == created + 1
    assert await store.delete(key) is None
    assert await store.get(key) is None


async def test_delete_with_a_revision_removes_only_that(backend: Backend) -> None:
    store, key = backend.store(), backend.prefix + "a"
    first = await store.create(key, b"1")
    second = await store.put(key, b"2")
    with pytest.raises(Conflict) as refused:
        await store.delete(key, mod_revision=first)
    assert refused.value.current is not None
    assert refused.value.current.mod_revision == second
    assert await store.delete(key, mod_revision=second) == second + 1
    with pytest.raises(Conflict) as gone:
        await store.delete(key, mod_revision=second)
    assert gone.value.current is None


async def test_recreated_key_starts_its_version_anew(backend: Backend) -> None:
    store, key = backend.store(), backend.prefix + "a"
    await store.put(key, b"1")
    await store.put(key, b"2")
    await store.delete(key)
    revision = await store.create(key, b"3")
    found = await store.get(key)
    assert found is not None
    assert (found.version, found.create_revision) == (1, revision)


async def test_any_text_is_a_key_and_any_bytes_a_value(backend: Backend) -> None:
    store, value = backend.store(), bytes(range(256))
    for name in ("ns%2fpod", "with space", "é", "名前", "a\x7fb", "…/…"):
        await store.create(backend.prefix + name, value)
        found = await store.get(backend.prefix + name)
        assert found is not None
        assert (found.key, found.value) == (backend.prefix + name, value)


async def test_get_at_a_revision_shows_the_past(backend: Backend) -> None:
    store, key = backend.store(), backend.prefix + "a"
    first = await store.create(key, b"1")
    await store.put(key, b"2")
    gone = await store.delete(key)
    assert gone is not None
    found = await store.get(key, revision=first)
    assert found is not None
    assert found.value == b"1"
    assert await store.get(key, revision=gone) is None
    with pytest.raises(StoreError):
        await store.get(key, revision=gone + 1_000_000)


# --- many keys -------------------------------------------------------------------------------------------------------


async def test_list_is_sorted_by_key_and_stays_within_the_prefix(backend: Backend) -> None:
    store, prefix = backend.store(), backend.prefix
    for name in ("b/2", "b/10", "b/1", "b", "ba", "c/1", "b0", "b/é"):
        await store.put(prefix + name, name.encode())
    listing = await store.list(prefix + "b/")
    assert [kv.key for kv in listing.kvs] == [prefix + name for name in ("b/1", "b/10", "b/2", "b/é")]
    assert [kv.value for kv in listing.kvs] == [b"b/1", b"b/10", b"b/2", "b/é".encode()]
    assert (await store.list(prefix + "x/")).kvs == []


async def test_list_at_a_revision_shows_the_past(backend: Backend) -> None:
    store, prefix = backend.store(), backend.prefix
    await store.put(prefix + "a", b"1")
    then = await store.put(prefix + "b", b"2")
    await store.delete(prefix + "a")
    await store.put(prefix + "b", b"3")
    await store.put(prefix + "c", b"4")
    past = await store.list(prefix, revision=then)
    assert past.revision == then
    assert [(kv.key, kv.value) for kv in past.kvs] == [(prefix + "a", b"1"), (prefix + "b", b"2")]


async def test_list_without_values_has_the_rest(backend: Backend) -> None:
    store, key = backend.store(), backend.prefix + "a"
    revision = await store.put(key, b"1")
    (kv,) = (await store.list(backend.prefix, keys_only=True)).kvs
    assert (kv.key, kv.value, kv.mod_revision) == (key, b"", revision)


async def test_pages_at_one_revision_are_one_listing(backend: Backend) -> None:
    store, prefix = backend.store(), backend.prefix
    names = [f"{prefix}{number}" for number in range(10)]
    for name in names:
        await store.put(name, b"x")
    first = await store.page(prefix, limit=4)
    assert ([kv.key for kv in first.kvs], first.remaining) == (names[:4], 6)
    await store.delete(names[5])
    await store.put(prefix + "55", b"new")
    second = await store.page(prefix, limit=4, after=names[3], revision=first.revision)
    third = await store.page(prefix, limit=4, after=names[7], revision=first.revision)
    assert [kv.key for kv in (*first.kvs, *second.kvs, *third.kvs)] == names
    assert (second.remaining, third.remaining) == (2, 0)
    assert first.revision == second.revision == third.revision
    assert [kv.key for kv in (await store.page(prefix, limit=9, after=names[4])).kvs] == [prefix + "55", *names[6:]]
    newest = (await store.list(prefix)).revision
    with pytest.raises(FutureRevision) as refused:
        await store.page(prefix, limit=1, revision=newest + 1000)
    assert refused.value.revision >= newest
    await store.compact(newest)
    with pytest.raises(Compacted):
        await store.page(prefix, limit=1, after=names[0], revision=first.revision)


async def test_list_of_more_keys_than_a_page_is_one_revision(backend: Backend) -> None:
    store, prefix = backend.store(), backend.prefix
    names = [f"{prefix}{number:05}" for number in range(12_034)]
    for first in range(0, len(names), 128):
        await store.txn([], [Put(name, b"x") for name in names[first : first + 128]])
    before = await store.list(prefix)
    assert [kv.key for kv in before.kvs] == names

    async def shrink() -> None:
        for name in names[::-1][:300]:
            await store.delete(name)

    shrinking = asyncio.create_task(shrink())
    during = await store.list(prefix)
    await shrinking
    removed = during.revision - before.revision
    assert [kv.key for kv in during.kvs] == names[: len(names) - removed], "pages of different revisions were mixed"


async def test_of_many_creators_one_wins(backend: Backend) -> None:
    stores, key = [backend.store() for _ in range(4)], backend.prefix + "a"
    results = await asyncio.gather(
        *(store.create(key, str(number).encode()) for number, store in enumerate(stores * 5)), return_exceptions=True
    )
    winners = [number for number, result in enumerate(results) if isinstance(result, int)]
    assert len(winners) == 1
    losers = [result for result in results if isinstance(result, KeyExists)]
    assert len(losers) == 19
    assert {loser.current.value for loser in losers} == {str(winners[0]).encode()}


async def test_no_increment_is_lost_under_compare_and_swap(backend: Backend) -> None:
    stores, key = [backend.store() for _ in range(4)], backend.prefix + "a"
    await stores[0].create(key, b"0")

    async def add(number: int) -> None:
        store = stores[number % 4]
        for _ in range(10):
            found = await store.get(key)
            while True:
                assert found is not None
                try:
                    await store.update(key, b"%d" % (int(found.value) + 1), mod_revision=found.mod_revision)
                    break
                except Conflict as conflict:
                    found = conflict.current

    await asyncio.gather(*map(add, range(8)))
    found = await stores[0].get(key)
    assert found is not None
    assert found.value == b"80"


# --- transactions ----------------------------------------------------------------------------------------------------


async def test_txn_happens_whole_at_one_revision(backend: Backend) -> None:
    store, prefix = backend.store(), backend.prefix
    first = await store.create(prefix + "a", b"1")
    await store.create(prefix + "d", b"1")
    result = await store.txn(
        [Compare(prefix + "a", first), Compare(prefix + "b", 0)],
        [Put(prefix + "a", b"2"), Put(prefix + "b", b"2"), Delete(prefix + "d")],
    )
    assert result.succeeded
    assert {kv.key: (kv.value, kv.mod_revision) for kv in (await store.list(prefix)).kvs} == {
        prefix + "a": (b"2", result.revision),
        prefix + "b": (b"2", result.revision),
    }


async def test_refused_txn_changes_nothing_and_shows_what_it_compared(backend: Backend) -> None:
    store, prefix = backend.store(), backend.prefix
    first = await store.create(prefix + "a", b"1")
    result = await store.txn(
        [Compare(prefix + "a", first), Compare(prefix + "b", 5), Compare(prefix + "a", first)],
        [Put(prefix + "a", b"2"), Put(prefix + "c", b"2")],
    )
    assert not result.succeeded
    assert set(result.current) == {prefix + "a", prefix + "b"}
    found = result.current[prefix + "a"]
    assert found is not None
    assert found.mod_revision == first
    assert result.current[prefix + "b"] is None
    assert await store.get(prefix + "c") is None


async def test_txn_that_changes_nothing_makes_no_revision(backend: Backend) -> None:
    store, prefix = backend.store(), backend.prefix
    revision = await store.put(prefix + "a", b"1")
    result = await store.txn([], [Delete(prefix + "nothing")])
    assert (result.succeeded, result.revision) == (True, revision)


async def test_txn_takes_128_operations_and_says_when_there_are_more(backend: Backend) -> None:
    store, prefix = backend.store(), backend.prefix
    puts = [Put(f"{prefix}{number:03}", b"x") for number in range(129)]
    with pytest.raises(StoreError, match="too many operations"):
        await store.txn([], puts)
    result = await store.txn([Compare(put.key, 0) for put in puts[:128]], puts[:128])
    assert result.succeeded
    assert {kv.mod_revision for kv in (await store.list(prefix)).kvs} == {result.revision}


async def test_txn_must_not_name_a_key_twice(backend: Backend) -> None:
    store, key = backend.store(), backend.prefix + "a"
    for ops in ([Put(key, b"1"), Put(key, b"2")], [Put(key, b"1"), Delete(key)]):
        with pytest.raises(StoreError, match="duplicate key"):
            await store.txn([], ops)
    assert await store.get(key) is None


# --- watch -----------------------------------------------------------------------------------------------------------


async def test_summary_counts_keys_and_tells_whether_one_was_written_since(backend: Backend) -> None:
    store, prefix = backend.store(), backend.prefix
    for name in "abc":
        last = await store.put(prefix + name, b"1")
    await store.put(f"{prefix[:-1]}0", b"of another prefix")
    found = await store.summary(prefix, after=last)
    assert (found.keys, found.touched) == (3, False)
    assert found.revision > last
    assert (await store.summary(prefix, after=last - 1)).touched
    await store.delete(prefix + "c")
    found = await store.summary(prefix, after=last)
    assert (found.keys, found.touched) == (2, False)
    revision = await store.put(prefix + "a", b"2")
    found = await store.summary(prefix, after=last)
    assert (found.keys, found.touched, found.revision) == (2, True, revision)


async def test_watch_tells_history_from_its_revision_on_and_then_what_happens(backend: Backend) -> None:
    store, prefix = backend.store(), backend.prefix
    await store.put(prefix + "a", b"0")
    begin = await store.put(prefix + "a", b"1")
    gone = await store.delete(prefix + "a")
    async with aclosing(store.watch(prefix, revision=begin)) as batches:
        events = await take(batches, lambda seen: len(seen) == 2)
        assert [(e.key, e.revision, e.kv and e.kv.value) for e in events] == [
            (prefix + "a", begin, b"1"),
            (prefix + "a", gone, None),
        ]
        assert [e.previous and e.previous.value for e in events] == [b"0", b"1"]
        again = await backend.other().create(prefix + "a", b"2")
        (event,) = await take(batches, lambda seen: len(seen) == 1)
        assert event.kv is not None
        assert (event.kv.value, event.kv.version, event.revision, event.previous) == (b"2", 1, again, None)


async def test_watch_stays_within_its_prefix(backend: Backend) -> None:
    store, prefix = backend.store(), backend.prefix
    begin = await store.put(prefix + "a/1", b"")
    async with aclosing(store.watch(prefix + "a/", revision=begin)) as batches:
        for name in ("a", "a0", "b/1", "a/2"):
            await store.put(prefix + name, b"")
        events = await take(batches, lambda seen: len(seen) == 2)
    assert [event.key for event in events] == [prefix + "a/1", prefix + "a/2"]


async def test_watch_gives_a_large_transaction_as_one_batch(backend: Backend) -> None:
    """Old and new values together exceed a gRPC message as etcd sends them: it comes in fragments."""
    store, prefix = backend.store(), backend.prefix
    for value in (b"a" * 11_000, b"b" * 11_000):
        result = await store.txn([], [Put(f"{prefix}{number:03}", value) for number in range(128)])
    async with aclosing(store.watch(prefix, revision=result.revision)) as batches:
        async with asyncio.timeout(10):
            batch = await anext(batches)
        assert len(batch.events) == 128
        assert {event.revision for event in batch.events} == {batch.revision} == {result.revision}
        live = await store.txn([], [Put(f"{prefix}{number:03}", b"c" * 11_000) for number in range(128)])
        async with asyncio.timeout(10):
            batch = await anext(batches)
        assert len(batch.events) == 128
        assert batch.revision == live.revision


async def test_watch_that_catches_up_never_claims_more_than_it_told(backend: Backend) -> None:
    """etcd sends old events a thousand revisions at a time, under a header that is at the newest already."""
    store, prefix = backend.store(), backend.prefix
    written: list[int] = []
    for _ in range(10):  # 2,500 at once are more than a loaded machine answers in time
        written += await asyncio.gather(*(store.put(prefix + "a", b"%d" % number) for number in range(250)))
    await store.put(backend.prefix[:-1] + "-elsewhere", b"")
    told: list[int] = []
    async with aclosing(store.watch(prefix, revision=min(written))) as batches, asyncio.timeout(20):
        while len(told) < len(written):
            batch = await anext(batches)
            told += [event.revision for event in batch.events]
            assert told == [revision for revision in sorted(written) if revision <= batch.revision]


async def test_two_watches_do_not_disturb_each_other(backend: Backend) -> None:
    store, prefix = backend.store(), backend.prefix
    begin = await store.put(prefix + "a", b"1")
    first = store.watch(prefix, revision=begin)
    second = store.watch(prefix, revision=begin)
    await take(first, lambda seen: len(seen) == 1)
    await first.aclose()
    await store.put(prefix + "a", b"2")
    assert len(await take(second, lambda seen: len(seen) == 2)) == 2
    await second.aclose()


async def test_watch_can_be_cancelled_while_it_waits(backend: Backend) -> None:
    store, prefix = backend.store(), backend.prefix
    begin = await store.put(prefix + "a", b"1")
    batches = store.watch(prefix, revision=begin)
    await take(batches, lambda seen: len(seen) == 1)
    waiting = asyncio.create_task(anext(batches))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_closing_the_store_ends_its_watches_with_an_error(backend: Backend) -> None:
    store, prefix = backend.store(), backend.prefix
    begin = await store.put(prefix + "a", b"1")
    batches = store.watch(prefix, revision=begin)
    await take(batches, lambda seen: len(seen) == 1)
    waiting = asyncio.create_task(anext(batches))
    await asyncio.sleep(0)
    await store.close()
    with pytest.raises(StoreError):
        async with asyncio.timeout(10):
            await waiting


async def test_revisions_before_a_compaction_are_refused(backend: Backend) -> None:
    store, prefix = backend.store(), backend.prefix
    first = await store.put(prefix + "a", b"1")
    second = await store.put(prefix + "a", b"2")
    third = await store.put(prefix + "a", b"3")
    await store.compact(third)
    await store.compact(second)  # no news is good news
    for ask in (store.get(prefix + "a", revision=second), store.list(prefix, revision=second)):
        with pytest.raises(Compacted) as refused:
            await ask
        assert refused.value.revision == third
    found = await store.get(prefix + "a", revision=third)
    assert found is not None
    with pytest.raises(Compacted) as refused:
        await anext(store.watch(prefix, revision=first))
    assert refused.value.revision == third


async def test_deletion_at_the_compacted_revision_is_not_missed(backend: Backend) -> None:
    """etcd drops tombstones of the very revision it compacts, and would let a watch begin there without a word."""
    store, prefix = backend.store(), backend.prefix
    created = await store.put(prefix + "a", b"1")
    gone = await store.delete(prefix + "a")
    assert gone is not None
    await store.compact(gone)
    await backend.pass_time(0.5)  # etcd compacts in the background; until it has, the deletion is still to be seen
    async with aclosing(store.watch(prefix, revision=gone, known={prefix + "a": created})) as batches:
        (event,) = await take(batches, lambda seen: len(seen) == 1)
    assert (event.key, event.kv) == (prefix + "a", None)


async def test_watch_right_after_the_compacted_revision_goes_on(backend: Backend) -> None:
    store, prefix = backend.store(), backend.prefix
    now = await store.put(prefix + "a", b"1")
    await store.compact(now)
    async with aclosing(store.watch(prefix, revision=now + 1)) as batches:
        await store.put(prefix + "a", b"2")
        (event,) = await take(batches, lambda seen: len(seen) == 1)
    assert event.revision == now + 1


# --- leases and status -----------------------------------------------------------------------------------------------


async def test_lease_lives_while_its_store_does_and_takes_its_keys_along(backend: Backend) -> None:
    store, other, key = backend.store(), backend.other(), backend.prefix + "a"
    ttl_s = 6
    lease = await store.lease_grant(ttl_s)
    begin = await store.create(key, b"1", lease=lease)
    await backend.pass_time(ttl_s + 1.5)
    found = await other.get(key)
    assert found is not None, "the lease was not kept alive"
    assert found.lease == lease
    await store.close()
    if isinstance(backend, MemoryBackend):  # the other's end is waited for below
        await backend.pass_time(ttl_s + 1.5)
    async with aclosing(other.watch(backend.prefix, revision=begin + 1)) as batches:
        (event,) = await take(batches, lambda seen: len(seen) == 1)
    assert (event.key, event.kv) == (key, None)


async def test_revoked_lease_takes_its_keys_and_no_new_ones(backend: Backend) -> None:
    store, prefix = backend.store(), backend.prefix
    lease = await store.lease_grant(60)
    await store.txn([], [Put(prefix + "a", b"1", lease), Put(prefix + "b", b"1", lease), Put(prefix + "c", b"1")])
    await store.put(prefix + "b", b"2")  # without the lease: does not hang on it any more
    await store.lease_revoke(lease)
    assert [kv.key for kv in (await store.list(prefix)).kvs] == [prefix + "b", prefix + "c"]
    await store.lease_revoke(lease)
    with pytest.raises(LeaseLost):
        await store.put(prefix + "a", b"2", lease=lease)
    with pytest.raises(LeaseLost):
        await store.create(prefix + "a", b"2", lease=lease)


async def test_status_shows_the_newest_revision(backend: Backend) -> None:
    store = backend.store()
    revision = await backend.other().put(backend.prefix + "a", b"1")
    status = await store.status()
    assert status.revision == revision
    assert status.cluster_id == store.cluster_id  # type: ignore[attr-defined]
    assert status.version
