"""Assigning addresses: any free ones, or a particular one. Jobs for the engine.

Order of preference: the host's own blocks in the order of their keys; a claim of its own that was left half-way; a
new block; an idle block of another host; addresses borrowed from others' blocks, unless affinity is strict.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from libs.ipam.affinity import AffinityState, Owner
from libs.ipam.block import ReleaseOption, allocate, allocate_exact, release
from libs.ipam.draft import Cache, Draft
from libs.ipam.engine import Engine, Job, Round
from libs.ipam.errors import AddressInUse, BlockClaimed, IpamError, Reason, StaleRelease
from libs.ipam.handles import clean_handle
from libs.ipam.pools import Labels, Pool, pool_of, select_pools
from libs.ipam.requests import AssignIpRequest, AssignRequest, AssignResult
from libs.ipam.source import Inputs
from libs.ipam.wire import Address, Network

# Refusals that rest on pools, settings and nodes, which may be remembered: told only after they were read anew.
FROM_INPUTS = frozenset(
    {Reason.NO_POOLS, Reason.UNKNOWN_POOL, Reason.USE_NOT_ALLOWED, Reason.NODE_MISSING, Reason.NOT_IN_POOL}
)


@dataclass(frozen=True, slots=True)
class Placement:
    """One address given out; `sequence` is the block's number that the ordinal remembers."""

    address: Address
    cidr: Network
    sequence: int


class _Assigning(Job):
    """What both kinds share: keeping handle and block in step, and knowing after a lost answer what was got."""

    def __init__(self, handle: str, owner: Owner, attrs: Mapping[str, str]) -> None:
        super().__init__()
        self.handle = clean_handle(handle)
        self.owner = owner
        self.attrs = attrs
        self.got: list[Placement] = []
        self._planned: list[Placement] = []
        self._undone: list[Placement] = []
        self._in_doubt: list[list[Placement]] = []
        self._fresh_inputs = False

    async def plan(self, engine: Engine, round_: Round) -> bool:
        self._planned, self._undone = [], []
        if self.abandoned:
            return await self._plan_undo(engine, round_)
        mark = round_.draft.mark()
        error: IpamError | None = None
        try:
            if not await self.choose(engine, round_):
                return False
        except IpamError as refusal:
            round_.draft.restore(mark)
            self._planned, error = [], refusal
            if refusal.reason in FROM_INPUTS and not self._fresh_inputs:
                self._fresh_inputs = round_.outdated = True
                engine.source.invalidate()
                return False
        if self._planned or self._fence(round_.draft):
            return True
        if error is not None:
            if not self.got:
                raise error
            self.partial(error)
        self.done = True
        return False

    def _fence(self, draft: Draft) -> bool:
        """Before saying that there is nothing: make sure that no lost transaction still arrives and gives something.

        Any write of one of its blocks does that.
        """
        blocks = [draft.block(attempt[0].cidr) for attempt in self._in_doubt]
        for block in blocks:
            if block is not None:
                draft.put_block(block)
        return any(block is not None for block in blocks)

    @abstractmethod
    async def choose(self, engine: Engine, round_: Round) -> bool:
        """Put addresses into the draft with `record`; none: there is nothing (more) to get. Raises IpamError.

        False, with the draft as it was: what is to be had hangs on what other jobs of the round do, which is not
        certain before their transaction has happened. Plan again then.
        """

    @abstractmethod
    def satisfied(self) -> bool:
        """Whether `got` is all that was asked for."""

    def record(self, round_: Round, pool: Pool, cidr: Network, addresses: list[Address], sequence: int) -> None:
        """Note what the draft's block just gave, and write it down in the handle too."""
        self._planned += [Placement(address, cidr, sequence) for address in addresses]
        draft = round_.draft
        draft.put_handle(self.handle, draft.handle(self.handle).add(cidr, len(addresses)))
        draft.guard(round_.inputs.guards(pool))

    def succeeded(self) -> None:
        gone = set(self._undone)
        self.got = [placement for placement in self.got if placement not in gone] + self._planned
        self._planned, self._undone = [], []
        self._in_doubt = []  # the handle has a new revision: an earlier transaction cannot happen any more
        self.done = not self.got if self.abandoned else self.satisfied()

    @abstractmethod
    def partial(self, error: IpamError) -> None:
        """No further addresses, but an earlier transaction gave some: answer with those."""

    def abandon(self) -> bool:
        self.abandoned = True
        if not self.done or self.error is not None or not self.got:
            return False
        self.done = False  # another caller's turn has assigned for it before it heard of it
        return True

    def refused(self) -> None:
        self._planned, self._undone = [], []

    def lost(self) -> None:
        if self._planned:
            self._in_doubt.append(self._planned)
        self._planned, self._undone = [], []

    def settle(self, cache: Cache, *, again: bool) -> bool:
        # Attempts may share addresses, but only one of them can have happened: all that is there is of that one.
        landed = {p: None for attempt in self._in_doubt for p in attempt if self._holds(cache, p)}
        if landed:
            if not again and not any(landed.keys() >= set(attempt) for attempt in self._in_doubt):
                return False
            self.got += landed
            self._in_doubt = []
            self.done = not self.abandoned and self.satisfied()
        return True

    def doubts(self) -> tuple[set[Network], set[str]]:
        cidrs = {placement.cidr for attempt in self._in_doubt for placement in attempt}
        return cidrs, {self.handle} if cidrs else set()

    def _holds(self, cache: Cache, placement: Placement) -> bool:
        """Attributes count too: another process may assign to the same handle at the same sequence number."""
        known = cache.block(placement.cidr)
        present = known.value.allocation(placement.address) if known and known.value else None
        return (
            present is not None
            and present.released_at is None
            and present.handle == self.handle
            and present.sequence == placement.sequence
            and present.attrs == self.attrs
        )

    async def _plan_undo(self, engine: Engine, round_: Round) -> bool:
        """The caller is gone and will not use what it got: give it back."""
        draft = round_.draft
        for placement in self.got:
            await engine.known_block(placement.cidr)
            await engine.known_handle(self.handle)
            block = draft.block(placement.cidr)
            if block is None:
                continue
            option = ReleaseOption(placement.address, self.handle, placement.sequence)
            try:
                released = release(block, [option], engine.shell.now(), round_.inputs.config.cooldown_s)
            except StaleRelease:
                continue  # released by somebody else, and given away again
            if released.freed:
                draft.put_block(released.block)
                draft.put_handle(self.handle, draft.handle(self.handle).remove(placement.cidr, 1))
                self._undone.append(placement)
        if not self._undone:
            self.done = True
        return bool(self._undone)


class AssignJob(_Assigning):
    def __init__(self, request: AssignRequest) -> None:
        super().__init__(request.handle, request.owner, request.attrs)
        self._request = request
        self._reasons: dict[int, Reason] = {}
        self._had: list[Placement] | None = None  # what the handle had before, where that counts

    def result(self) -> AssignResult:
        all_ = [*(self._had or []), *self.got]
        interfaces = [ip_interface((p.address, p.cidr.prefixlen)) for p in all_]
        return AssignResult(
            [i for i in interfaces if isinstance(i, IPv4Interface)],
            [i for i in interfaces if isinstance(i, IPv6Interface)],
            self._request.num4,
            self._request.num6,
            self._reasons,
            {p.address: p.sequence for p in all_},
        )

    def satisfied(self) -> bool:
        """Also with less, where it is known why there is no more."""
        return all(self._missing(version) == 0 or version in self._reasons for version in (4, 6))

    def partial(self, error: IpamError) -> None:
        self._planned = []
        self._reasons = {version: error.reason for version in (4, 6) if self._missing(version)}

    def _missing(self, version: int) -> int:
        have = [p for p in (*(self._had or []), *self.got, *self._planned) if p.cidr.version == version]
        return max(0, self._request.count(version) - len(have))

    async def choose(self, engine: Engine, round_: Round) -> bool:
        request = self._request
        if request.max_per_handle and not self.got:
            if self.handle in round_.draft.handle_ids:
                return False
            self._had = await _held(engine, self.handle, request.max_per_handle)
        labels: Labels | None = {}
        if self.owner.kind == "host":
            labels = await engine.source.node_labels(self.owner.name)
            if labels is None:
                raise IpamError(Reason.NODE_MISSING, f"node {self.owner.name!r} is not in the datastore")
        self._reasons = {}
        for version in (4, 6):
            if not self._missing(version):
                continue
            pools = select_pools(
                round_.inputs.pools,
                version=version,
                use=request.use,
                requested=request.requested_pools(version),
                node_labels=labels,
                namespace_labels=request.namespace_labels,
            )
            while self._missing(version) and not round_.draft.full:
                self._take_from_own(engine, round_, version, pools)
                if not self._missing(version):
                    break
                reason = await self._more_blocks(engine, round_, version, pools)
                if reason is None:
                    continue
                if not round_.inputs.config.strict_affinity:
                    await self._borrow(engine, round_, version, pools)
                if self._missing(version):
                    self._reasons[version] = reason
                break
        return True

    def _take_from_own(self, engine: Engine, round_: Round, version: int, pools: list[Pool]) -> None:
        for cidr, state in engine.own_blocks(self.owner, version).items():
            if state is AffinityState.CONFIRMED:  # else someone is taking or giving it up: `revive_own` settles that
                self._take(round_, pools, cidr, own=True)

    async def _borrow(self, engine: Engine, round_: Round, version: int, pools: list[Pool]) -> None:
        for cidr in await engine.borrowable(self.owner, version, pools, round_):
            self._take(round_, pools, cidr, own=False)

    def _take(self, round_: Round, pools: list[Pool], cidr: Network, *, own: bool) -> None:
        missing = self._missing(cidr.version)
        pool = pool_of(pools, cidr.network_address)
        block = round_.draft.block(cidr) if missing and pool else None
        if pool is None or block is None or (block.owner == self.owner) is not own:
            return
        reserved = round_.inputs.reservations
        changed, addresses = allocate(block, missing, self.handle, self.attrs, reserved.covers if reserved else None)
        if addresses:
            round_.draft.put_block(changed)
            self.record(round_, pool, cidr, addresses, block.sequence)

    async def _more_blocks(self, engine: Engine, round_: Round, version: int, pools: list[Pool]) -> Reason | None:
        """Own one more block, or know the own ones better. A reason when neither is possible."""
        key = (self.owner, tuple(pool.name for pool in pools))
        if (self.owner, version) not in round_.listed:
            round_.listed.add((self.owner, version))
            await engine.list_own(self.owner, version, round_.inputs)
            return None
        if key in round_.exhausted:
            return round_.exhausted[key]
        config = round_.inputs.config
        if await engine.revive_own(self.owner, version, pools, round_):
            return None
        if not config.auto_allocate_blocks:
            reason = Reason.NO_AUTO_BLOCKS
        elif len(engine.own_blocks(self.owner, version)) >= config.block_limit(self._request.max_blocks_per_host):
            reason = Reason.BLOCK_LIMIT
        elif await engine.claim_new(self.owner, version, pools, round_):
            return None
        else:
            reason = Reason.NO_FREE_ADDRESSES
        round_.exhausted[key] = reason
        return reason


class AssignIpJob(_Assigning):
    def __init__(self, request: AssignIpRequest) -> None:
        super().__init__(request.handle, request.owner, request.attrs)
        self._request = request
        self._read = False

    def satisfied(self) -> bool:
        return bool(self.got)

    def partial(self, error: IpamError) -> None:
        """One address is all or nothing, so there is no such case."""

    async def choose(self, engine: Engine, round_: Round) -> bool:
        request, inputs = self._request, round_.inputs
        pool = _enabled_pool(inputs, request)
        cidr = pool.block_of(request.address)
        if not self._read:
            # A refusal must rest on the present block, so the first look is always a fresh one.
            await engine.fetch_blocks([cidr])
            self._read = True
        block = round_.draft.block(cidr)
        if block is None:
            try:
                block = await engine.claims.claim(self.owner, cidr, cooldown_s=inputs.config.cooldown_s)
                engine.add_own(self.owner, cidr)
            except BlockClaimed:
                await engine.fetch_blocks([cidr])  # somebody was faster; that block may do as well
                block = round_.draft.block(cidr)
        if block is None:
            raise BlockClaimed(f"block {cidr} came and went")
        if inputs.config.strict_affinity and block.owner != self.owner:
            text = f"{request.address} is in block {cidr} of {block.owner}, and affinity is strict"
            raise IpamError(Reason.STRICT_AFFINITY, text)
        try:
            changed = allocate_exact(block, request.address, self.handle, self.attrs)
        except AddressInUse as error:
            if cidr in round_.draft.block_cidrs:
                return False
            if request.max_per_handle and error.handle == self.handle and error.reason is Reason.ADDRESS_IN_USE:
                self.done = True
                return True
            raise
        round_.draft.put_block(changed)
        self.record(round_, pool, cidr, [request.address], block.sequence)
        return True


def _enabled_pool(inputs: Inputs, request: AssignIpRequest) -> Pool:
    pool = pool_of((pool for pool in inputs.pools if not pool.disabled), request.address)
    if pool is None:
        raise IpamError(Reason.NOT_IN_POOL, f"{request.address} is in no enabled pool")
    if request.use is not None and request.use not in pool.uses:
        raise IpamError(Reason.USE_NOT_ALLOWED, f"pool {pool.name} does not allow the use {request.use}")
    return pool


async def _held(engine: Engine, handle: str, at_most: int) -> list[Placement]:
    """Up to `at_most` addresses per IP version that a handle has now."""
    await engine.fetch_handles([handle])
    known = await engine.known_handle(handle)
    cidrs = list(known.value.blocks) if known.value else []
    await engine.fetch_blocks(cidrs)
    found: list[Placement] = []
    for cidr in cidrs:
        block = (await engine.known_block(cidr)).value
        for address in block.held_by(handle) if block else []:
            if block and sum(p.cidr.version == cidr.version for p in found) < at_most:
                sequence = block.sequence_for.get(block.ordinal(address), 0)
                found.append(Placement(address, cidr, sequence))
    return found
