from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from libs.ipam import keys
from libs.ipam.affinity import AffinityState, Owner
from libs.ipam.block import Block, allocate, with_owner
from libs.ipam.claims import Claims, Shell, Step, claim_step, reclaimable
from libs.ipam.draft import Cache
from libs.store.api import KeyValue
from libs.store.memory import MemoryEtcd, MemoryStore
from tests.unit.libs.ipam.test_block import NOW, fresh

ME = Owner.host("node-1")
MINE, OTHERS = fresh(), with_owner(fresh(), Owner.host("node-2"), NOW)
OWNERLESS = with_owner(fresh(), None, NOW)
PENDING, CONFIRMED, GOING = AffinityState.PENDING, AffinityState.CONFIRMED, AffinityState.PENDING_DELETION


@pytest.mark.parametrize(
    ("state", "block", "may_take", "step"),
    [
        (None, None, False, Step.ANNOUNCE),
        (GOING, None, False, Step.ANNOUNCE),
        (PENDING, None, False, Step.CREATE),
        (CONFIRMED, None, False, Step.CREATE),
        (None, MINE, False, Step.ANNOUNCE),
        (GOING, MINE, False, Step.ANNOUNCE),
        (PENDING, MINE, False, Step.CONFIRM),
        (CONFIRMED, MINE, False, Step.DONE),
        (None, OTHERS, False, Step.LOST),
        (PENDING, OTHERS, False, Step.LOST),
        (CONFIRMED, OTHERS, False, Step.LOST),
        (CONFIRMED, OWNERLESS, False, Step.LOST),
        (None, OTHERS, True, Step.ANNOUNCE),
        (PENDING, OTHERS, True, Step.TAKE_OVER),
    ],
)
def test_next_step_of_a_claim(state: AffinityState | None, block: Block | None, may_take: bool, step: Step) -> None:
    assert claim_step(state, block, ME, may_take=may_take) is step


def test_only_old_empty_blocks_of_other_hosts_may_be_taken() -> None:
    later = NOW + timedelta(minutes=1)
    assert reclaimable(OTHERS, ME, later)
    assert reclaimable(replace(OTHERS, claimed_at=""), ME, NOW)
    assert not reclaimable(OTHERS, ME, later - timedelta(seconds=1))
    assert not reclaimable(allocate(OTHERS, 1, "h", {})[0], ME, later)
    assert not reclaimable(MINE, ME, later)
    assert not reclaimable(OWNERLESS, ME, later)
    assert not reclaimable(with_owner(MINE, Owner.load_balancer(), NOW), ME, later)


class Interleaved(MemoryStore):
    """The affinity is read after the block; `between` happens in the meantime, once."""

    between: Callable[[], Awaitable[object]] | None = None

    def __init__(self, server: MemoryEtcd) -> None:
        super().__init__(server)
        self.read = asyncio.Event()

    async def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        if "/assignment/" in key:
            found = await super().get(key, revision=revision)
            self.read.set()
            return found
        if self.between is not None:
            between, self.between = self.between, None
            await self.read.wait()
            await between()
        return await super().get(key, revision=revision)


async def test_giving_up_a_block_that_is_claimed_meanwhile_leaves_no_block_without_affinity() -> None:
    server = MemoryEtcd()
    store, other = Interleaved(server), MemoryStore(server)

    def claims(of: MemoryStore) -> Claims:
        return Claims(Shell(of, time.time_ns, random.Random(1), asyncio.sleep), Cache())

    cidr = MINE.cidr
    store.between = lambda: claims(other).claim(ME, cidr, cooldown_s=0)
    await claims(store).release(ME, cidr, cooldown_s=0, must_be_empty=True)
    assert store.between is None
    assert await other.get(keys.block(cidr)) is None
    assert await other.get(keys.affinity(ME, cidr)) is None
