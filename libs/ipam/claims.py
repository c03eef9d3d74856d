"""Who owns a block: claiming, taking over, giving up. Each is a loop of read, decide, compare-and-swap.

A claim announces itself first (affinity pending), so that the host's other processes count it against the limit and a
crash leaves a trace that the next claim continues from; block and confirmation are then written in one transaction.
Deciding is a pure function of the two objects as they are, so it does not matter whether an earlier write whose
answer was lost did happen, or which client left the affinity half-way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from random import Random

from libs.ipam import keys
from libs.ipam.affinity import (
    TRANSITIONS,
    AffinityEvent,
    AffinityState,
    Owner,
    decode_affinity,
    encode_affinity,
)
from libs.ipam.block import Block, collect, encode_block, new_block, with_owner, written
from libs.ipam.draft import Cache, Known
from libs.ipam.errors import BlockClaimed, BlockNotEmpty, TooManyConflicts
from libs.ipam.wire import Network, parse_rfc3339
from libs.store.api import Compare, Delete, KeyValue, Op, Put, Store, StoreUnavailable

MAX_TRIES = 100  # lost compare-and-swaps before giving up
RECLAIM_AGE = timedelta(minutes=1)  # an empty block may be taken from its owner when its claim is this old

Affinity = Known[AffinityState]


class Step(Enum):
    ANNOUNCE = auto()  # write the affinity as pending
    CREATE = auto()  # write the block and confirm the affinity
    CONFIRM = auto()  # write the block unchanged, so that whoever is giving it up fails, and confirm
    TAKE_OVER = auto()  # move the other's empty block and confirm
    DONE = auto()
    LOST = auto()  # the block is another's; remove the affinity if there is one


def claim_step(state: AffinityState | None, block: Block | None, owner: Owner, *, may_take: bool) -> Step:
    """What a claim does next. may_take: the other owner's block may be taken over (`reclaimable`)."""
    if block is not None and block.owner != owner and not may_take:
        return Step.LOST
    if state is None or state is AffinityState.PENDING_DELETION:
        return Step.ANNOUNCE
    if block is None:
        return Step.CREATE
    if block.owner != owner:
        return Step.TAKE_OVER
    return Step.DONE if state is AffinityState.CONFIRMED else Step.CONFIRM


def reclaimable(block: Block, owner: Owner, now: datetime) -> bool:
    """May this owner take the block from its present host? Only empty ones whose claim is old enough not to be in use
    yet.
    """
    if block.owner is None or block.owner == owner or block.owner.kind != "host" or not block.empty:
        return False
    return not block.claimed_at or parse_rfc3339(block.claimed_at) + RECLAIM_AGE <= now


@dataclass(frozen=True, slots=True)
class Shell:
    """The outside world, handed in: the datastore, the clock in nanoseconds since the epoch, chance, waiting."""

    store: Store
    clock_ns: Callable[[], int]
    rng: Random
    sleep: Callable[[float], Awaitable[object]]

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock_ns() / 1e9, UTC)

    async def jitter(self, tries: int) -> None:
        """Wait a little longer after each lost compare-and-swap, 32 ms at most: the winner is done in a few."""
        await self.sleep(self.rng.uniform(0, 0.001 * 2 ** min(tries, 5)))


class Claims:
    def __init__(self, shell: Shell, cache: Cache) -> None:
        self._shell = shell
        self._cache = cache

    async def claim(
        self, owner: Owner, cidr: Network, *, cooldown_s: int, fresh: bool = False, may_take: bool = False
    ) -> Block:
        """Make the owner own the block; continues a claim that was begun. Raises BlockClaimed, TooManyConflicts.

        cooldown_s: how long released addresses rest; one that still does makes a block not empty.
        may_take: also take an idle block from another host.
        fresh: the caller just saw that neither object exists, so reading them can be saved.
        """
        affinity: Affinity = Known(None, 0)
        block: Known[Block] = Known(None, 0)
        if not fresh:
            affinity, block = await self.read(owner, cidr)
        for tries in range(MAX_TRIES):
            now = self._shell.now()
            present = collect(block.value, now, cooldown_s) if block.value else None
            taking = may_take and present is not None and reclaimable(present, owner, now)
            step = claim_step(affinity.value, present, owner, may_take=taking)
            if step is Step.DONE and present is not None:
                return present
            if step is Step.LOST:
                await self._remove_stale(owner, cidr, affinity, block)
                raise BlockClaimed(f"block {cidr} belongs to {present.owner if present else None}")
            compares, ops = await self._claim_txn(step, owner, cidr, affinity, present, block.revision)
            try:
                result = await self._shell.store.txn(compares, ops)
            except StoreUnavailable:
                affinity, block = await self.read(owner, cidr)
                continue
            if not result.succeeded:
                await self._shell.jitter(tries)
            affinity, block = (
                await self.read(owner, cidr)
                if not result.succeeded
                else self._after(ops, owner, cidr, affinity, block, result.revision)
            )
        raise TooManyConflicts(f"claim of block {cidr}", MAX_TRIES)

    async def _claim_txn(
        self, step: Step, owner: Owner, cidr: Network, affinity: Affinity, block: Block | None, revision: int
    ) -> tuple[list[Compare], list[Op]]:
        key = keys.affinity(owner, cidr)
        compares = [Compare(key, affinity.revision)]
        if step is Step.ANNOUNCE:
            return compares, [Put(key, encode_affinity(_next(affinity.value, AffinityEvent.CLAIM)))]
        compares.append(Compare(keys.block(cidr), revision))
        now = self._shell.now()
        ops: list[Op] = [Put(key, encode_affinity(_next(affinity.value, AffinityEvent.OWN_BLOCK)))]
        if block is None:
            block = new_block(cidr, owner, now, self._shell.clock_ns())
            return compares, [Put(keys.block(cidr), encode_block(block)), *ops]
        if step is Step.TAKE_OVER:
            if block.owner is not None:
                previous = keys.affinity(block.owner, cidr)
                kv = await self._shell.store.get(previous)
                compares.append(Compare(previous, kv.mod_revision if kv else 0))
                if kv:
                    ops.append(Delete(previous))
            block = with_owner(block, owner, now)
        return compares, [Put(keys.block(cidr), encode_block(written(block))), *ops]

    def _after(
        self, ops: list[Op], owner: Owner, cidr: Network, affinity: Affinity, block: Known[Block], revision: int
    ) -> tuple[Affinity, Known[Block]]:
        """Both objects after a transaction that succeeded, without reading them again."""
        for op in ops:
            if isinstance(op, Put) and op.key == keys.affinity(owner, cidr):
                affinity = Known(decode_affinity(op.value), revision)
            elif isinstance(op, Put) and op.key == keys.block(cidr):
                block = self._cache.learn_block(cidr, KeyValue(op.key, op.value, revision, revision, 1))
        return affinity, block

    async def release(self, owner: Owner, cidr: Network, *, cooldown_s: int, must_be_empty: bool) -> None:
        """Give the block up: an empty one is deleted, one in use stays without an owner. Nothing to do is success.

        Block and affinity change in one transaction, so pendingDeletion is never seen; one that another client left
        is finished. Raises BlockNotEmpty, TooManyConflicts.
        """
        for tries in range(MAX_TRIES):
            affinity, block = await self.read(owner, cidr)
            key = keys.affinity(owner, cidr)
            # The block is compared also when it is not the owner's: he may have claimed it between the two reads.
            compares = [Compare(key, affinity.revision), Compare(keys.block(cidr), block.revision)]
            ops: list[Op] = [Delete(key)] if affinity.revision else []
            if block.value is not None and block.value.owner == owner:
                present = collect(block.value, self._shell.now(), cooldown_s)
                if must_be_empty and not present.empty:
                    raise BlockNotEmpty(cidr)
                if present.empty:
                    ops.append(Delete(keys.block(cidr)))
                else:
                    ownerless = replace(present, owner=None, claimed_at="")
                    ops.append(Put(keys.block(cidr), encode_block(written(ownerless))))
            if not ops:
                return
            try:
                result = await self._shell.store.txn(compares, ops)
            except StoreUnavailable:
                continue  # reading again tells whether it happened
            self._cache.forget_block(cidr)
            if result.succeeded:
                return
            await self._shell.jitter(tries)
        raise TooManyConflicts(f"release of block {cidr}", MAX_TRIES)

    async def read(self, owner: Owner, cidr: Network) -> tuple[Affinity, Known[Block]]:
        """Both objects now; a block that changes between the two reads is found out by the transaction."""
        affinity, block = await asyncio.gather(
            self._shell.store.get(keys.affinity(owner, cidr)), self._shell.store.get(keys.block(cidr))
        )
        known: Affinity = Known(decode_affinity(affinity.value), affinity.mod_revision) if affinity else Known(None, 0)
        return known, self._cache.learn_block(cidr, block)

    async def _remove_stale(self, owner: Owner, cidr: Network, affinity: Affinity, block: Known[Block]) -> None:
        """Take back an announcement that came to nothing. What fails here, the next listing finds again."""
        key = keys.affinity(owner, cidr)
        for tries in range(MAX_TRIES):
            if not affinity.revision or (block.value is not None and block.value.owner == owner):
                return
            compares = [Compare(key, affinity.revision), Compare(keys.block(cidr), block.revision)]
            if (await self._shell.store.txn(compares, [Delete(key)])).succeeded:
                return
            # The block's new owner has written to it meanwhile, most likely; that repairs nothing of ours.
            await self._shell.jitter(tries)
            affinity, block = await self.read(owner, cidr)


def _next(state: AffinityState | None, event: AffinityEvent) -> AffinityState:
    following = TRANSITIONS[state, event]
    if following is None:
        raise RuntimeError(f"affinity {state} does not survive {event}")
    return following
