"""Callers that share a transaction: what one of them does, or what becomes of him, is not the others' loss."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network

import pytest

from libs.ipam import keys
from libs.ipam.block import decode_block
from libs.ipam.client import IpamClient
from libs.ipam.pools import Pool
from libs.ipam.requests import AssignIpRequest, AssignRequest
from libs.ipam.source import FixedSource, Inputs
from libs.store.api import Compare, Op, StoreAuthError, TxnResult
from libs.store.memory import MemoryEtcd, MemoryStore

POOL = Pool("p", IPv4Network("10.0.0.0/29"), 29)


class GatedStore(MemoryStore):
    """Keeps the answers of address transactions while `gate` is closed; they have happened all the same."""

    def __init__(self, server: MemoryEtcd) -> None:
        super().__init__(server)
        self.gate = asyncio.Event()
        self.gate.set()
        self.applied = asyncio.Event()
        self.refuse: Exception | None = None
        self.answering: Callable[[], object] = lambda: None

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        if not any(op.key.startswith(keys.HANDLES) for op in ops):
            return await super().txn(compares, ops)
        if self.refuse:
            raise self.refuse
        result = await super().txn(compares, ops)
        self.applied.set()
        await self.gate.wait()
        self.answering()
        return result


class World:
    def __init__(self) -> None:
        self.store = GatedStore(MemoryEtcd())
        self.client = IpamClient(self.store, FixedSource(Inputs(pools=(POOL,)), {"a": {}}))

    def assign(self, handle: str, **more: int) -> asyncio.Task[object]:
        request = AssignRequest(handle=handle, node="a", num4=1, **more)
        return asyncio.get_running_loop().create_task(self.client.auto_assign(request), name=handle)

    def assign_ip(self, handle: str, address: str) -> asyncio.Task[None]:
        request = AssignIpRequest(address=IPv4Address(address), handle=handle, node="a")
        return asyncio.get_running_loop().create_task(self.client.assign_ip(request), name=handle)

    async def together(self, *starts: Callable[[], asyncio.Task[object]]) -> list[asyncio.Task[object]]:
        """Callers whose wishes are gathered while another's transaction is on its way; the first does the work for
        all, and its transaction's answer is being kept.
        """
        self.store.gate.clear()
        first = self.assign("first")
        await self.store.applied.wait()
        self.store.applied.clear()
        tasks = [start() for start in starts]
        await asyncio.sleep(0)
        self.store.gate.set()
        await first
        self.store.gate.clear()
        return tasks

    async def held(self) -> list[str]:
        blocks = [decode_block(kv.value) for kv in (await MemoryStore(self.store.server).list(keys.blocks(4))).kvs]
        return sorted(a.handle or "" for block in blocks for a in block.allocated())


async def test_caller_cancelled_while_his_transaction_is_on_its_way_costs_the_others_nothing() -> None:
    world = World()
    leader, other = await world.together(lambda: world.assign("leader"), lambda: world.assign("other"))
    await world.store.applied.wait()
    leader.cancel()
    world.store.gate.set()
    await other
    with pytest.raises(asyncio.CancelledError):
        await leader
    assert await world.held() == ["first", "other"]


async def test_caller_cancelled_when_another_has_just_assigned_for_him_keeps_nothing() -> None:
    world = World()
    leader, other = await world.together(lambda: world.assign("leader"), lambda: world.assign("other"))
    await world.store.applied.wait()
    world.store.answering = other.cancel
    world.store.gate.set()
    await leader
    with pytest.raises(asyncio.CancelledError):
        await other
    world.store.answering = lambda: None
    await world.assign("next")
    assert await world.held() == ["first", "leader", "next"]


async def test_two_calls_at_once_for_a_handle_that_may_have_one_address_get_the_same() -> None:
    world = World()

    def once() -> asyncio.Task[object]:
        return world.assign("vm", max_per_handle=1)

    one, two = await world.together(once, once)
    world.store.gate.set()
    assert (await one).v4 == (await two).v4  # type: ignore[attr-defined]
    assert await world.held() == ["first", "vm"]


async def test_address_is_not_called_used_because_of_an_assignment_that_has_not_happened() -> None:
    world = World()
    await world.assign("before")
    one, two = await world.together(
        lambda: world.assign_ip("one", "10.0.0.5"),  # type: ignore[arg-type,return-value]
        lambda: world.assign_ip("two", "10.0.0.5"),  # type: ignore[arg-type,return-value]
    )
    world.store.refuse = StoreAuthError("no permission")
    world.store.gate.set()
    for task in (one, two):
        with pytest.raises(StoreAuthError):
            await task
    assert await world.held() == ["before", "first"]
