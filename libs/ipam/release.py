"""Releasing addresses, one by one or all of a handle. Jobs for the engine.

The block decides what is assigned; the handle follows it in the same transaction. What the cache says is enough to
release, since the transaction checks it; only a refusal, or "nobody has it", is never told from the cache but from a
fresh read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from libs.ipam import keys
from libs.ipam.block import Block, ReleaseOption, release
from libs.ipam.draft import Cache, Draft
from libs.ipam.engine import Engine, Job, Round
from libs.ipam.errors import HandleMissing, IpamError, StaleRelease
from libs.ipam.handles import Handle, clean_handle
from libs.ipam.pools import pool_of
from libs.ipam.requests import ReleaseResult
from libs.ipam.wire import Address, Network


@dataclass(frozen=True, slots=True)
class _Freeing:
    address: Address
    cidr: Network
    handle: str | None
    sequence: int | None


class _Releasing(Job):
    def __init__(self) -> None:
        super().__init__()
        self._freed: list[_Freeing] = []
        self._planned: list[_Freeing] = []
        self._in_doubt: list[list[_Freeing]] = []
        self._fresh: set[Network] = set()  # blocks read for this job

    def refused(self) -> None:
        self._planned = []

    def lost(self) -> None:
        if self._planned:
            self._in_doubt.append(self._planned)
        self._planned = []

    def settle(self, cache: Cache, *, again: bool) -> bool:
        gone = {item: None for attempt in self._in_doubt for item in attempt if not _still_held(cache, item)}
        if any(gone.keys() >= set(attempt) for attempt in self._in_doubt):
            self._freed += gone
            self._in_doubt = []
            self.happened(list(gone))
            return True
        return again or not gone

    def succeeded(self) -> None:
        attempt, self._planned, self._in_doubt = self._planned, [], []
        self._freed += attempt
        self.happened(attempt)

    def happened(self, attempt: list[_Freeing]) -> None:
        """These are released now, by this job's transaction."""

    def doubts(self) -> tuple[set[Network], set[str]]:
        items = [item for attempt in self._in_doubt for item in attempt]
        return {item.cidr for item in items}, {item.handle for item in items if item.handle is not None}

    async def present_block(self, engine: Engine, draft: Draft, cidr: Network, *, fresh: bool) -> Block | None:
        if fresh and cidr not in self._fresh:
            await engine.fetch_blocks([cidr])
            self._fresh.add(cidr)
        else:
            await engine.known_block(cidr)
        return draft.block(cidr)

    def free(self, draft: Draft, before: Block, after: Block, freed: Iterable[tuple[Address, str | None]]) -> None:
        """Put a block with released addresses into the draft, and take them off their handles."""
        draft.put_block(after)
        for address, handle in freed:
            sequence = before.sequence_for.get(before.ordinal(address))
            self._planned.append(_Freeing(address, before.cidr, handle, sequence))
            if handle is not None:
                held = draft.handle(handle)
                # A block that holds nothing more of the handle clears the whole entry, also one that counted too much.
                count = 1 if after.held_by(handle) else held.blocks.get(before.cidr, 0)
                draft.put_handle(handle, held.remove(before.cidr, count))


class ReleaseJob(_Releasing):
    """Some addresses, wherever they lie."""

    def __init__(self, options: Iterable[ReleaseOption]) -> None:
        super().__init__()
        self._open: dict[Address, ReleaseOption] = {option.address: option for option in options}
        self._unallocated: list[Address] = []
        self._refused: dict[Address, IpamError] = {}

    def result(self) -> ReleaseResult:
        return ReleaseResult(
            [(item.address, item.handle) for item in self._freed],
            self._unallocated,
            self._refused,
            frozenset(item.cidr for item in self._freed),
        )

    def happened(self, attempt: list[_Freeing]) -> None:
        for item in attempt:
            self._open.pop(item.address, None)
        self.done = not self._open

    async def plan(self, engine: Engine, round_: Round) -> bool:
        self._planned = []
        groups = await _by_block(engine, round_, self._open.values())
        for address in [a for a in self._open if not any(a in cidr for cidr in groups)]:
            self._unallocated.append(address)
            del self._open[address]
        for cidr, options in groups.items():
            if round_.draft.full:
                break
            await self._plan_block(engine, round_, cidr, options)
        self.done = not self._open
        return bool(self._planned)

    async def _plan_block(self, engine: Engine, round_: Round, cidr: Network, options: list[ReleaseOption]) -> None:
        draft = round_.draft
        changing = cidr in draft.block_cidrs  # by another job of this round: refuse nothing before that has happened
        for fresh in (False, True):
            block = await self.present_block(engine, draft, cidr, fresh=fresh)
            try:
                plan = release(block, options, engine.shell.now(), round_.inputs.config.cooldown_s) if block else None
            except StaleRelease as error:
                if changing:
                    return
                if fresh or cidr in self._fresh:
                    self._close(options, error)
                    return
                continue
            if plan is not None and not plan.unallocated:
                break
            if changing:
                return
            if fresh or cidr in self._fresh:
                break
        if block is None or plan is None:
            self._close(options, None)
            return
        self._close([option for option in options if option.address in plan.unallocated], None)
        if plan.freed:
            unknown = {handle for _, handle in plan.freed if handle is not None and engine.cache.handle(handle) is None}
            await engine.fetch_handles(unknown)
            self.free(draft, block, plan.block, plan.freed)

    def _close(self, options: Iterable[ReleaseOption], error: IpamError | None) -> None:
        mine = {item.address: item for attempt in self._in_doubt for item in attempt}
        for option in options:
            del self._open[option.address]
            if option.address in mine:
                self._freed.append(mine[option.address])  # a transaction without an answer has just arrived
            elif error is None:
                self._unallocated.append(option.address)
            else:
                self._refused[option.address] = error


class ReleaseHandleJob(_Releasing):
    """Everything a handle holds. Raises HandleMissing when there is no such handle."""

    def __init__(self, handle: str) -> None:
        super().__init__()
        self._handle = clean_handle(handle)
        self._had = False  # it was there when first looked at, so its absence later is success

    def result(self) -> ReleaseResult:
        freed = [(item.address, item.handle) for item in self._freed]
        return ReleaseResult(freed, blocks=frozenset(item.cidr for item in self._freed))

    async def plan(self, engine: Engine, round_: Round) -> bool:
        self._planned = []
        draft = round_.draft
        known = await engine.known_handle(self._handle)
        if known.value is None and not self._had:
            await engine.fetch_handles([self._handle])
        present = draft.handle(self._handle)
        if not present.blocks and (await engine.known_handle(self._handle)).value is None:
            if not self._had:
                raise HandleMissing(self._handle)
            self.done = True
            return False
        self._had = True
        left = present
        for cidr in present.blocks:
            if draft.full:
                break
            block = await self.present_block(engine, draft, cidr, fresh=False)
            if block is None or not block.held_by(self._handle):
                block = await self.present_block(engine, draft, cidr, fresh=True)
            left = Handle({c: n for c, n in left.blocks.items() if c != cidr}, left.deleted)
            if block is None:
                continue
            options = [ReleaseOption(address, self._handle) for address in block.held_by(self._handle)]
            plan = release(block, options, engine.shell.now(), round_.inputs.config.cooldown_s)
            self.free(draft, block, plan.block, plan.freed)  # without addresses the write still stops a late assignment
        draft.put_handle(self._handle, left)
        return True


def _still_held(cache: Cache, item: _Freeing) -> bool:
    """Also when the block is not known just now: only what was seen counts as released."""
    known = cache.block(item.cidr)
    if known is None:
        return True
    present = known.value.allocation(item.address) if known.value else None
    return (
        present is not None
        and present.released_at is None
        and present.handle == item.handle
        and present.sequence == item.sequence
    )


async def _by_block(
    engine: Engine, round_: Round, options: Iterable[ReleaseOption]
) -> dict[Network, list[ReleaseOption]]:
    """Options by the block their address lies in. Where the pool is gone, or its block size was changed, the blocks
    tell.
    """
    groups: dict[Network, list[ReleaseOption]] = {}
    lost: list[ReleaseOption] = []
    for option in options:
        pool = pool_of(round_.inputs.pools, option.address)
        cidr = pool.block_of(option.address) if pool else None
        if cidr is not None and (await engine.known_block(cidr)).value is not None:
            groups.setdefault(cidr, []).append(option)
        else:
            lost.append(option)
    for version in {option.address.version for option in lost}:
        listing = await engine.shell.store.list(keys.blocks(version), keys_only=True)
        present = [cidr for kv in listing.kvs if (cidr := keys.cidr_of(kv.key)) is not None]
        for option in lost:
            cidr = next((cidr for cidr in present if option.address in cidr), None)
            if cidr is not None:
                groups.setdefault(cidr, []).append(option)
    return groups
