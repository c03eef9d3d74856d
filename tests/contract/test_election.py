"""Leader election, on the store in memory and on a real etcd whose leases live a second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from libs.store import Compare, FenceLost, LeaseLost, Store
from libs.store.election import Election
from libs.store.fenced import FencedStore
from libs.testkit.servers import EtcdServer
from tests.contract.store_backends import FAST_LEASES, Backend, MemoryBackend, eventually, open_backend

Lead = Callable[[Compare], Awaitable[None]]


@pytest.fixture(scope="module")
def etcd_server(crash_etcd: Path) -> Iterator[EtcdServer]:
    with EtcdServer(binary=crash_etcd, extra_args=FAST_LEASES) as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.servers)])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    async with open_backend(request.param, lambda: request.getfixturevalue("etcd_server")) as made:
        yield made


class Candidate:
    """Stands for election; while it leads, `fence` is there and each tenure is in `tenures`."""

    def __init__(self, store: Store, prefix: str, name: str, ttl_s: int = 15) -> None:
        self.store = store
        self.election = Election(store, f"{prefix}leader", holder=name, ttl_s=ttl_s, random=Random(7))
        self.fence: Compare | None = None
        self.tenures: list[Compare] = []

    async def lead(self, fence: Compare) -> None:
        self.fence = fence
        self.tenures.append(fence)
        try:
            await asyncio.Event().wait()
        finally:
            self.fence = None

    @asynccontextmanager
    async def standing(self, lead: Lead | None = None) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.election.run(lead or self.lead), name=self.election.holder)
        try:
            yield task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def write(self, key: str) -> int:
        assert self.fence is not None
        return await FencedStore(self.store, self.fence).put(key, b"x")


async def test_one_leads_and_the_next_takes_over_when_it_resigns(backend: Backend) -> None:
    one, two = Candidate(backend.store(), backend.prefix, "one"), Candidate(backend.other(), backend.prefix, "two")
    async with one.standing() as task:
        await eventually(lambda: one.fence)
        async with two.standing():
            await eventually(lambda: two.election.leader == "one")
            assert two.fence is None
            await one.write(f"{backend.prefix}a")
            old = one.fence
            task.cancel()
            await eventually(lambda: two.fence)  # at once: the memory's clock stands still
            assert not one.election.leading
            assert two.election.leader == "two"
            await two.write(f"{backend.prefix}a")
            assert old is not None
            with pytest.raises(FenceLost):
                await FencedStore(one.store, old).put(f"{backend.prefix}a", b"late")


async def test_a_leader_whose_key_was_taken_away_steps_down_and_takes_part_again(backend: Backend) -> None:
    one, other = Candidate(backend.store(), backend.prefix, "one"), backend.other()
    key = f"{backend.prefix}leader"
    async with one.standing():
        await eventually(lambda: one.fence)
        await other.put(key, b'{"holder":"usurper"}')
        await eventually(lambda: one.election.leader == "usurper")
        assert one.fence is None
        await other.delete(key)
        await eventually(lambda: one.fence)
        assert len(one.tenures) == 2
        assert one.tenures[0] != one.tenures[1]


async def test_a_leader_that_learns_of_it_by_a_refused_write_steps_down(backend: Backend) -> None:
    one = Candidate(backend.store(), backend.prefix, "one")
    refused = 0

    async def lead(fence: Compare) -> None:
        nonlocal refused
        one.tenures.append(fence)
        async with asyncio.TaskGroup() as tasks:  # as a real leader's work: deep inside
            if len(one.tenures) == 1:
                refused += 1
                tasks.create_task(FencedStore(one.store, Compare(fence.key, fence.mod_revision + 999)).put("/x", b""))
            tasks.create_task(asyncio.Event().wait())

    async with one.standing(lead):
        await eventually(lambda: len(one.tenures) == 2)
    assert refused == 1
    assert await backend.other().get("/x") is None


async def test_another_failure_of_the_leaders_work_is_not_hidden_and_frees_the_key(backend: Backend) -> None:
    one = Candidate(backend.store(), backend.prefix, "one")

    async def lead(_fence: Compare) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(ExceptionGroup, match="unhandled"):
        await one.election.run(lead)
    assert await backend.other().get(f"{backend.prefix}leader") is None


async def test_a_leader_cut_off_steps_down_by_its_own_clock_and_another_takes_over(
    backend: Backend,
) -> None:
    """Time in memory stands still, so there the test lets it pass; the one cut off is then told by its lease."""
    ttl_s = 1 if isinstance(backend, MemoryBackend) else 6
    one = Candidate(backend.store(), backend.prefix, "one", ttl_s)
    two = Candidate(backend.other(), backend.prefix, "two", ttl_s)
    async with one.standing():
        await eventually(lambda: one.fence)
        async with two.standing():
            await eventually(lambda: two.election.leader == "one")
            if isinstance(backend, MemoryBackend):
                backend.server.abandon(one.store)  # nobody renews for it any more
            await backend.cut()
            await backend.pass_time(ttl_s + 0.5)
            await eventually(lambda: two.fence)
            await eventually(lambda: one.fence is None)
            await backend.mend()
            await eventually(lambda: one.election.leader == "two", 30.0)
            assert two.fence is not None
            assert len(one.tenures) == 1


async def test_the_answer_to_a_campaign_was_lost_and_the_key_is_ours_all_the_same() -> None:
    backend = MemoryBackend()
    store = backend.store()
    one = Candidate(store, backend.prefix, "one")

    async def lose_the_answer(operation: str, _key: str) -> None:
        if operation == "create":
            store.before = None
            store.fail_next(1, applied=True)

    store.before = lose_the_answer
    async with one.standing():
        await eventually(lambda: one.fence)
        found = await backend.other().get(f"{backend.prefix}leader")
        assert found is not None
        assert one.fence == Compare(found.key, found.mod_revision)
        assert found.version == 1


async def test_etcd_that_stops_and_comes_back_has_one_leader_again(backend: Backend) -> None:
    candidates = [Candidate(backend.store(), backend.prefix, name, 6) for name in ("one", "two")]
    async with candidates[0].standing(), candidates[1].standing():
        await eventually(lambda: any(one.fence for one in candidates))
        await backend.stop_server()
        if not isinstance(backend, MemoryBackend):
            await eventually(lambda: not any(one.fence for one in candidates))
        await backend.start_server()
        await eventually(lambda: any(one.fence for one in candidates), 40.0)
        leader = next(one for one in candidates if one.fence)
        await leader.write(f"{backend.prefix}a")
        assert sum(one.election.leading for one in candidates) == 1


async def test_a_lease_tells_how_long_it_lives_at_least(backend: Backend) -> None:
    store = backend.store()
    lease = await store.lease_grant(30)
    assert 0 < store.lease_left_s(lease) <= 30
    await store.lease_revoke(lease)
    assert store.lease_left_s(lease) == 0
    assert store.lease_left_s(12345) == 0
    with pytest.raises(LeaseLost):
        await store.put(f"{backend.prefix}a", b"1", lease=lease)
