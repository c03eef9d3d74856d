"""What happens to transactions whose answer is lost, whose callers are gone, or that arrive too late. One case each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from random import Random

import pytest

from libs.ipam import keys
from libs.ipam.affinity import Owner
from libs.ipam.block import ReleaseOption, decode_block
from libs.ipam.client import IpamClient
from libs.ipam.config import IpamConfig
from libs.ipam.errors import HandleMissing, IpamError, Reason, TooManyConflicts
from libs.ipam.pools import Pool, Reservations
from libs.ipam.requests import AssignIpRequest, AssignRequest, AssignResult
from libs.ipam.source import FixedSource, Inputs
from libs.store.api import Compare, KeyValue, Op, StoreAuthError, StoreUnavailable, TxnResult
from libs.store.memory import MemoryEtcd, MemoryStore

POOL = Pool("p", IPv4Network("10.0.0.0/30"), 30)
TWO = Pool("two", IPv4Network("10.0.0.0/29"), 30)


class LateStore(MemoryStore):
    """Loses transactions on demand and keeps them, to be delivered whenever the test likes."""

    def __init__(self, server: MemoryEtcd) -> None:
        super().__init__(server)
        self.lose = 0
        self.kept: list[tuple[Sequence[Compare], Sequence[Op]]] = []
        self.txns = 0

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        self.txns += 1
        if self.lose and any(op.key.startswith(keys.HANDLES) for op in ops):
            self.lose -= 1
            self.kept.append((compares, ops))
            raise StoreUnavailable("lost on the way")
        return await super().txn(compares, ops)

    async def deliver(self) -> bool:
        compares, ops = self.kept.pop(0)
        return (await super().txn(compares, ops)).succeeded


class World:
    def __init__(self, *pools: Pool, config: IpamConfig | None = None) -> None:
        self.server = MemoryEtcd()
        self.store = LateStore(self.server)
        self.source = FixedSource(Inputs(config or IpamConfig(), pools, Reservations()), {"a": {}, "b": {}})
        self._ns = 1_800_000_000_000_000_000
        self.client = self.another(self.store)

    def another(self, store: MemoryStore | None = None) -> IpamClient:
        async def no_wait(seconds: float) -> None:
            await asyncio.sleep(0)

        return IpamClient(
            store or MemoryStore(self.server), self.source, clock_ns=self._clock, rng=Random(1), sleep=no_wait
        )

    def _clock(self) -> int:
        self._ns += 1_000
        return self._ns

    async def held(self) -> dict[str, str]:
        kvs = (await MemoryStore(self.server).list(keys.blocks(4))).kvs
        return {str(a.address): a.handle or "" for kv in kvs for a in decode_block(kv.value).allocated()}


def pod(handle: str, node: str = "a", num4: int = 1) -> AssignRequest:
    return AssignRequest(handle=handle, node=node, num4=num4)


def addresses(result: AssignResult) -> list[str]:
    return [str(interface.ip) for interface in result.v4]


async def test_lost_answer_of_a_done_assignment_is_found_not_repeated() -> None:
    world = World(POOL)
    await world.client.auto_assign(pod("first"))
    world.store.fail_next(applied=True)
    got = await world.client.auto_assign(pod("h"))
    assert addresses(got) == ["10.0.0.1"]
    assert await world.held() == {"10.0.0.0": "first", "10.0.0.1": "h"}


async def test_lost_request_is_sent_again() -> None:
    world = World(POOL)
    await world.client.auto_assign(pod("first"))
    world.store.fail_next()
    assert addresses(await world.client.auto_assign(pod("h"))) == ["10.0.0.1"]


async def test_lost_answer_of_a_done_release_is_success() -> None:
    world = World(POOL)
    await world.client.auto_assign(pod("h", num4=2))
    world.store.fail_next(applied=True)
    freed = (await world.client.release_by_handle("h")).freed
    assert freed == [(IPv4Address("10.0.0.0"), "h"), (IPv4Address("10.0.0.1"), "h")]
    got = await world.client.auto_assign(pod("g"))
    world.store.fail_next(applied=True)
    option = ReleaseOption(got.v4[0].ip, "g", got.sequences[got.v4[0].ip])
    assert (await world.client.release_ips([option])).freed == [(got.v4[0].ip, "g")]
    assert await world.held() == {}


async def test_late_assignment_is_refused_after_the_second_one() -> None:
    world = World(POOL)
    await world.client.auto_assign(pod("first"))
    world.store.lose = 1
    got = await world.client.auto_assign(pod("h"))
    assert not await world.store.deliver()
    assert await world.held() == {"10.0.0.0": "first", addresses(got)[0]: "h"}


async def test_nothing_is_said_to_be_free_before_a_late_assignment_is_stopped() -> None:
    """The first try is lost; then the pool is switched off. The refusal must not be followed by an address."""
    world = World(POOL)
    await world.client.auto_assign(pod("first"))
    world.store.lose = 1

    async def switch_off(operation: str, key: str) -> None:
        if world.store.kept:
            world.source.current = Inputs(IpamConfig(), (), Reservations())

    world.store.before = switch_off
    with pytest.raises(IpamError) as refused:
        await world.client.auto_assign(pod("h"))
    assert refused.value.reason is Reason.NO_POOLS
    assert not await world.store.deliver()
    assert await world.held() == {"10.0.0.0": "first"}


async def test_late_assignment_that_arrives_before_the_next_try_is_the_answer() -> None:
    world = World(POOL)
    await world.client.auto_assign(pod("first"))
    world.store.lose = 1
    delivered: list[bool] = []

    async def deliver(operation: str, key: str) -> None:
        if operation == "txn" and world.store.kept:
            kept, world.store.before = world.store.kept, None
            delivered.append(await world.store.deliver())
            assert not kept

    world.store.before = deliver
    got = await world.client.auto_assign(pod("h"))
    assert delivered == [True]
    assert await world.held() == {"10.0.0.0": "first", addresses(got)[0]: "h"}


async def test_unreachable_datastore_fails_everybody_and_harms_nobody_later() -> None:
    world = World(POOL)
    await world.client.auto_assign(pod("first"))
    world.store.cut = True
    failed = await asyncio.gather(*(world.client.auto_assign(pod(f"h{n}")) for n in range(3)), return_exceptions=True)
    assert all(isinstance(error, StoreUnavailable) for error in failed)
    world.store.cut = False
    assert addresses(await world.client.auto_assign(pod("h"))) == ["10.0.0.1"]


async def test_refused_credentials_are_told_at_once() -> None:
    world = World(POOL)
    world.store.fail_next(error=StoreAuthError("no"))
    with pytest.raises(StoreAuthError):
        await world.client.auto_assign(pod("h"))


async def test_cancelled_leader_leaves_the_others_served() -> None:
    world = World(TWO)
    await world.client.auto_assign(pod("first"))
    tasks = [asyncio.ensure_future(world.client.auto_assign(pod(f"h{n}"))) for n in range(4)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(done[0], asyncio.CancelledError)
    given = [addresses(result)[0] for result in done[1:] if isinstance(result, AssignResult)]
    assert len(set(given)) == 3


async def test_address_of_a_cancelled_caller_is_given_back() -> None:
    """It waited while another's turn assigned for it, and was gone when the answer came."""
    world = World(TWO)
    await world.client.auto_assign(pod("first"))
    gone: list[asyncio.Task[AssignResult]] = []

    async def cancel(operation: str, key: str) -> None:
        if operation == "txn" and gone:
            gone.pop().cancel()

    leader = asyncio.ensure_future(world.client.auto_assign(pod("leader")))
    follower = asyncio.ensure_future(world.client.auto_assign(pod("follower")))
    third = asyncio.ensure_future(world.client.auto_assign(pod("third")))
    await asyncio.sleep(0)
    gone.append(third)
    world.store.before = cancel
    await asyncio.gather(leader, follower, third, return_exceptions=True)
    await world.client.auto_assign(pod("last"))
    assert sorted(set((await world.held()).values())) == ["first", "follower", "last", "leader"]
    with pytest.raises(HandleMissing):
        await world.client.release_by_handle("third")


async def test_one_bad_request_does_not_spoil_the_others() -> None:
    world = World(POOL)
    good, bad = await asyncio.gather(
        world.client.auto_assign(pod("good")),
        world.client.auto_assign(AssignRequest(handle="bad", node="a", num4=1, pools4=["nowhere"])),
        return_exceptions=True,
    )
    assert isinstance(good, AssignResult)
    assert isinstance(bad, IpamError)
    assert await world.held() == {"10.0.0.0": "good"}


async def test_one_family_missing_writes_nothing_of_the_other() -> None:
    world = World(POOL)
    with pytest.raises(IpamError):
        await world.client.auto_assign(AssignRequest(handle="h", node="a", num4=1, num6=1))
    assert await world.held() == {}
    world = World(POOL, Pool("six", IPv6Network("fd00::/126"), 126))
    got = await world.client.auto_assign(AssignRequest(handle="h", node="a", num4=1, num6=1))
    assert (len(got.v4), len(got.v6)) == (1, 1)


async def test_endless_conflict_ends() -> None:
    world = World(POOL)
    other = MemoryStore(world.server)
    await world.client.auto_assign(pod("first"))
    block = keys.block(POOL.cidr)

    async def disturb(operation: str, key: str) -> None:
        if operation == "txn":
            kv = await other.get(block)
            assert kv
            await other.put(block, kv.value)

    world.store.before = disturb
    world.store.txns = 0
    with pytest.raises(TooManyConflicts):
        await world.client.auto_assign(pod("h"))
    assert world.store.txns == 100


async def test_conflict_is_retried_on_what_the_refusal_showed() -> None:
    world = World(POOL)
    await world.client.auto_assign(pod("h1"))
    await world.another().auto_assign(pod("h2"))
    calls = world.store.calls
    assert addresses(await world.client.auto_assign(pod("h3"))) == ["10.0.0.2"]
    assert world.store.calls - calls == 2  # a refused transaction and one that holds: no reading in between


async def test_crash_between_the_phases_of_a_claim_is_continued() -> None:
    world = World(POOL)
    calls = 0

    async def die(operation: str, key: str) -> None:
        nonlocal calls
        calls += operation == "txn"
        if calls == 2:
            raise RuntimeError("power cut")

    world.store.before = die
    with pytest.raises(RuntimeError):
        await world.client.auto_assign(pod("h"))
    affinity = await MemoryStore(world.server).get(keys.affinity(Owner.host("a"), POOL.cidr))
    assert affinity
    assert affinity.value == b'{"state":"pending","deleted":false}'
    assert addresses(await world.another().auto_assign(pod("h"))) == ["10.0.0.0"]


async def test_exact_address_after_a_lost_answer_is_not_in_use_by_itself() -> None:
    world = World(POOL)
    wanted = AssignIpRequest(address=IPv4Address("10.0.0.2"), handle="h", node="a")
    await world.client.auto_assign(pod("first"))
    before = world.store.calls
    await world.another().auto_assign(pod("other", "b"))
    assert world.store.calls == before

    async def lose_answer(operation: str, key: str) -> None:
        if operation == "txn":
            world.store.before = None
            world.store.fail_next(applied=True)

    world.store.before = lose_answer
    await world.client.assign_ip(wanted)
    assert (await world.held())["10.0.0.2"] == "h"


async def test_release_that_arrives_while_other_jobs_are_looked_into_is_told_as_freed() -> None:
    """Two releases of one block share a lost transaction, which arrives after the first was found undone."""
    world = World(POOL)
    for handle in ("h1", "h2"):
        await world.client.auto_assign(pod(handle))
    held = await world.held()
    store = world.store
    reads = 0
    get = store.get

    async def arriving(key: str, *, revision: int = 0) -> KeyValue | None:
        nonlocal reads
        if store.kept and key.startswith(keys.blocks(4)):
            reads += 1
            if reads == 2:
                await store.deliver()
        return await get(key, revision=revision)

    store.get = arriving  # type: ignore[method-assign]
    store.lose = 1
    async with world.client._engine.lock:
        tasks = [
            asyncio.ensure_future(world.client.release_ips([ReleaseOption(IPv4Address(a), h)])) for a, h in held.items()
        ]
        await asyncio.sleep(0)
    results = [await task for task in tasks]
    assert [len(result.freed) for result in results] == [1, 1], results
    assert await world.held() == {}
