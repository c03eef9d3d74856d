"""One writer per process: callers' jobs are gathered into transactions, conflicts and lost answers are dealt with
once for all.

Every job (assign, release …) queues up; whoever finds the engine idle works for all that wait, then passes it on.
While one transaction is on its way the next jobs gather, and all of them share the next transaction: fifty pods
starting at once on a node cost a few writes of the node's block, not fifty that make each other fail.

A transaction holds the handles and the blocks together, so no crash can separate them (docs/adr/0006-ipam-
transactions.md). It demands that everything it relied on is unchanged. When it is refused the answer brings the
present objects, and the jobs plan again on those. When the answer is lost it may or may not have happened, now or a
moment later: each job remembers what it would have written and looks for it before it plans again; any newer write of
the same handle or block stops a late one.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeVar

from libs.ipam import keys
from libs.ipam.affinity import AffinityState, Owner, decode_affinity
from libs.ipam.block import Block, decode_block
from libs.ipam.claims import MAX_TRIES, Claims, Shell, reclaimable
from libs.ipam.draft import Cache, Draft, Known
from libs.ipam.errors import BlockClaimed, BlockCorrupt, IpamError, Reason, TooManyConflicts
from libs.ipam.handles import Handle
from libs.ipam.pools import Pool, first_block
from libs.ipam.source import Inputs, Source
from libs.ipam.wire import Network
from libs.store.api import Compare, Delete, StoreError, StoreUnavailable

log = logging.getLogger(__name__)

GATHER = 64  # reads on their way at once
BORROW_FROM = 32  # blocks of others that one round looks into
LOSSES_PER_LISTING = 8  # blocks that turned out to be taken since the listing; then it is worth a new one


class Claim(Enum):
    WON = auto()
    LOOK_AGAIN = auto()
    NONE_FREE = auto()


@dataclass(slots=True)
class Round:
    """One attempt at a transaction, and what was found out on the way to it, so that its jobs share that too."""

    inputs: Inputs
    draft: Draft
    listed: set[tuple[Owner, int]] = field(default_factory=set)  # owners whose blocks were read anew
    exhausted: dict[tuple[Owner, tuple[str, ...]], Reason] = field(default_factory=dict)  # no more blocks there
    blocks: dict[int, list[Known[Block]]] = field(default_factory=dict)  # every block of an IP version
    borrowable: dict[tuple[Owner, tuple[str, ...]], list[Network]] = field(default_factory=dict)
    outdated: bool = False  # a job doubts the inputs: it plans again on fresh ones


class Job(ABC):
    """One caller's wish. `plan` adds it to the round's draft; after the transaction exactly one of the others is
    called.
    """

    def __init__(self) -> None:
        self.done = False
        self.error: Exception | None = None
        self.abandoned = False  # the caller was cancelled: undo what happens to be done

    @abstractmethod
    async def plan(self, engine: Engine, round_: Round) -> bool:
        """True: the draft holds something of this job. Sets `done` when there is nothing to write."""

    @abstractmethod
    def succeeded(self) -> None:
        """The transaction happened."""

    @abstractmethod
    def refused(self) -> None:
        """The transaction did not happen."""

    @abstractmethod
    def lost(self) -> None:
        """The transaction may have happened, or may still arrive as long as nothing that it demands has changed."""

    @abstractmethod
    def settle(self, cache: Cache, *, again: bool) -> bool:
        """The cache has the objects of `doubts` as they are: find out what of the lost transactions happened.

        False: half of one seems to have happened. It arrived between two of the reads; read and call once more, with
        `again`.
        """

    @abstractmethod
    def doubts(self) -> tuple[set[Network], set[str]]:
        """Blocks and handles of transactions of which it is still unknown whether they happened."""

    def abandon(self) -> bool:
        """The caller is gone. True: the job is done, and has to be planned once more for that reason."""
        self.abandoned = True
        return False

    def fail(self, error: Exception) -> None:
        self.error = error
        self.done = True


JobT = TypeVar("JobT", bound=Job)


class Engine:
    def __init__(self, shell: Shell, source: Source) -> None:
        self.shell = shell
        self.source = source
        self.cache = Cache()
        self.claims = Claims(shell, self.cache)
        self.lock = asyncio.Lock()  # held by whoever writes
        self._waiting: list[Job] = []
        self._own: dict[tuple[Owner, int], dict[Network, AffinityState]] = {}  # in order of key

    async def run(self, job: JobT) -> JobT:
        """Returns when the job is done. Raises its error: IpamError, StoreUnavailable (it may have happened),
        StoreAuthError.
        """
        self._waiting.append(job)
        try:
            async with self.lock:
                if not job.done:
                    await self._serve()
        except asyncio.CancelledError:
            if job.abandon():
                self._waiting.append(job)  # whoever is served next cleans up after it
            raise
        if job.error is not None:
            raise job.error
        return job

    async def _serve(self) -> None:
        batch, self._waiting = self._waiting, []
        try:
            await self._work(batch)
        except (StoreError, IpamError) as error:
            for job in batch:
                if not job.done:
                    job.fail(error)
        finally:
            self._waiting[:0] = [job for job in batch if not job.done]  # cancelled on the way: the next one goes on

    async def _work(self, batch: list[Job]) -> None:
        lost = 0
        while live := [job for job in batch if not job.done]:
            if lost >= MAX_TRIES:
                if any(any(job.doubts()) for job in live):
                    raise StoreUnavailable(f"no answer, and {lost} attempts to find out in vain")
                raise TooManyConflicts("address assignment", lost)
            await self._look_again(live)
            inputs = await self.source.inputs()
            round_ = Round(inputs, Draft(self.cache, self.shell.now(), inputs.config.cooldown_s))
            planned = []
            for job in live:
                if round_.draft.full:
                    break
                if job.done:
                    continue
                mark = round_.draft.mark()
                try:
                    if await job.plan(self, round_):
                        planned.append(job)
                except (IpamError, StoreError) as error:
                    round_.draft.restore(mark)
                    job.fail(error)
            if planned and not await self._commit(round_.draft, planned):
                lost += 1
                await self.shell.jitter(lost)
            elif not planned and not round_.outdated and not any(job.done for job in live):
                raise RuntimeError("no job of this round has anything to write, yet none is done")

    async def _commit(self, draft: Draft, jobs: list[Job]) -> bool:
        compares, ops = draft.transaction()
        try:
            result = await self.shell.store.txn(compares, ops)
        except (StoreUnavailable, asyncio.CancelledError) as error:
            # What is cancelled is the caller who happens to work for all, not the transaction that he has sent.
            for job in jobs:
                job.lost()
            if isinstance(error, asyncio.CancelledError):
                raise
            return False
        if result.succeeded:
            draft.committed(result.revision)
            for job in jobs:
                job.succeeded()
            return True
        if draft.refused(result.current):
            self.source.invalidate()
        for job in jobs:
            job.refused()
        return False

    async def _look_again(self, jobs: list[Job]) -> None:
        """Fresh reads for the jobs that have a transaction in doubt.

        Handles first: when one arrives between the reads, either the blocks show it, or the handle that the next
        transaction demands is the one from before.
        """
        for again in (False, True):
            doubts = [job.doubts() for job in jobs]
            cidrs = {cidr for some, _ in doubts for cidr in some}
            handles = {handle for _, some in doubts for handle in some}
            if not cidrs and not handles:
                return
            # All jobs are settled on the same reads: what one of them learns later another must not plan on.
            await self.fetch_handles(handles)
            await self.fetch_blocks(cidrs)
            settled = [job.settle(self.cache, again=again) for job in jobs]
            if all(settled):
                return

    async def fetch_blocks(self, cidrs: Iterable[Network]) -> None:
        """Read blocks into the cache. Raises BlockCorrupt."""
        wanted = list(cidrs)
        for at in range(0, len(wanted), GATHER):
            part = wanted[at : at + GATHER]
            found = await asyncio.gather(*(self.shell.store.get(keys.block(cidr)) for cidr in part))
            for cidr, kv in zip(part, found, strict=True):
                self.cache.learn_block(cidr, kv)

    async def fetch_handles(self, identities: Iterable[str]) -> None:
        wanted = list(identities)
        for at in range(0, len(wanted), GATHER):
            part = wanted[at : at + GATHER]
            found = await asyncio.gather(*(self.shell.store.get(keys.handle(identity)) for identity in part))
            for identity, kv in zip(part, found, strict=True):
                self.cache.learn_handle(identity, kv)

    async def known_block(self, cidr: Network) -> Known[Block]:
        known = self.cache.block(cidr)
        if known is None:
            await self.fetch_blocks([cidr])
            known = self.cache.block(cidr)
        return known or Known(None, 0)

    async def known_handle(self, identity: str) -> Known[Handle]:
        known = self.cache.handle(identity)
        if known is None:
            await self.fetch_handles([identity])
            known = self.cache.handle(identity)
        return known or Known(None, 0)

    def own_blocks(self, owner: Owner, version: int) -> dict[Network, AffinityState]:
        """The owner's blocks as last listed, in the order of their keys."""
        return self._own.get((owner, version), {})

    async def list_own(self, owner: Owner, version: int, inputs: Inputs) -> None:
        """Read the owner's affinities and their blocks anew; tidy up what no longer belongs to it."""
        listing = await self.shell.store.list(keys.affinities(owner, version))
        own = {cidr: decode_affinity(kv.value) for kv in listing.kvs if (cidr := keys.cidr_of(kv.key)) is not None}
        try:
            await self.fetch_blocks(own)
        except BlockCorrupt:
            await self._fetch_readable(own)
        for kv in listing.kvs:
            cidr = keys.cidr_of(kv.key)
            block = self.cache.block(cidr) if cidr in own else None
            if cidr and block and block.value and block.value.owner != owner:
                # Somebody else's by now: the affinity promises nothing.
                del own[cidr]
                await self.shell.store.txn(
                    [Compare(kv.key, kv.mod_revision), Compare(keys.block(cidr), block.revision)], [Delete(kv.key)]
                )
        self._own[owner, version] = own
        await self._drop_unselected(owner, own, inputs)

    async def _fetch_readable(self, own: dict[Network, AffinityState]) -> None:
        """Read the blocks one by one and leave out those that no reader understands."""
        for cidr in list(own):
            try:
                await self.fetch_blocks([cidr])
            except BlockCorrupt as error:
                log.error("block unreadable, skipped", extra={"block": str(cidr), "error": str(error)})
                self.cache.forget_block(cidr)
                del own[cidr]

    async def _drop_unselected(self, owner: Owner, own: dict[Network, AffinityState], inputs: Inputs) -> None:
        """Give up empty blocks of pools that do not select the host any more."""
        if owner.kind != "host":
            return
        labels = await self.source.node_labels(owner.name)
        for cidr in list(own):
            known = self.cache.block(cidr)
            pool = next((pool for pool in inputs.pools if cidr.network_address in pool.cidr), None)
            if labels is None or pool is None or known is None or known.value is None:
                continue
            if known.value.empty and not pool.selects_node(labels):
                try:
                    await self.claims.release(owner, cidr, cooldown_s=inputs.config.cooldown_s, must_be_empty=True)
                except IpamError:
                    continue  # in use again, or fought over
                del own[cidr]

    async def revive_own(self, owner: Owner, version: int, pools: list[Pool], round_: Round) -> bool:
        """Finish a claim of our own that was left half-way, or make a lost block again. True when that gave a block."""
        for cidr, state in list(self.own_blocks(owner, version).items()):
            known = self.cache.block(cidr)
            whole = state is AffinityState.CONFIRMED and known is not None and known.value is not None
            if whole or not any(cidr.network_address in pool.cidr for pool in pools):
                continue
            try:
                await self.claims.claim(owner, cidr, cooldown_s=round_.inputs.config.cooldown_s)
            except BlockClaimed:
                self._own[owner, version].pop(cidr, None)
                continue
            self.add_own(owner, cidr)
            return True
        return False

    async def claim_new(self, owner: Owner, version: int, pools: list[Pool], round_: Round) -> bool:
        """Claim a block that nobody has, else an empty one that another host has left idle. False: there is none."""
        while (got := await self._claim_free(owner, version, pools, round_)) is not Claim.NONE_FREE:
            if got is Claim.WON:
                return True
        now = self.shell.now()
        for known in await self.all_blocks(version, round_):
            block = round_.draft.collected(known.value) if known.value else None
            if (
                block is not None
                and block.cidr not in self.own_blocks(owner, version)  # taken over earlier in this round
                and any(block.cidr.network_address in pool.cidr for pool in pools)
                and reclaimable(block, owner, now)
                and await self._try_claim(owner, block.cidr, round_, may_take=True)
            ):
                log.info("took over an idle block", extra={"block": str(block.cidr), "from": str(block.owner)})
                return True
        return False

    async def _claim_free(self, owner: Owner, version: int, pools: list[Pool], round_: Round) -> Claim:
        """One listing's worth of attempts. There is no limit on how often others may be faster: each time one of them
        got a block, so it ends at the latest when there is none left.
        """
        listing = await self.shell.store.list(keys.blocks(version), keys_only=True)
        taken = [cidr for kv in listing.kvs if (cidr := keys.cidr_of(kv.key)) is not None]
        lost = 0
        for pool in pools:
            for cidr in pool.free_blocks(str(owner), taken):
                if round_.inputs.reservations.covers_all(cidr):
                    continue
                if await self._try_claim(owner, cidr, round_, fresh=True):
                    return Claim.WON
                lost += 1
                if lost == LOSSES_PER_LISTING:
                    return Claim.LOOK_AGAIN
        return Claim.NONE_FREE

    async def _try_claim(
        self, owner: Owner, cidr: Network, round_: Round, *, fresh: bool = False, may_take: bool = False
    ) -> bool:
        cooldown_s = round_.inputs.config.cooldown_s
        try:
            await self.claims.claim(owner, cidr, cooldown_s=cooldown_s, fresh=fresh, may_take=may_take)
        except BlockClaimed:
            return False
        self.add_own(owner, cidr)
        return True

    async def all_blocks(self, version: int, round_: Round) -> list[Known[Block]]:
        """Every readable block of the IP version, read once per round. They do not enter the cache: there may be
        thousands.
        """
        if version not in round_.blocks:
            found = []
            for kv in (await self.shell.store.list(keys.blocks(version))).kvs:
                try:
                    found.append(Known(decode_block(kv.value), kv.mod_revision))
                except BlockCorrupt as error:
                    log.error("block unreadable, skipped", extra={"block": kv.key, "error": str(error)})
            round_.blocks[version] = found
        return round_.blocks[version]

    async def borrowable(self, owner: Owner, version: int, pools: list[Pool], round_: Round) -> list[Network]:
        """Others' blocks of these pools that have free addresses, in the owner's order; the first few, ready in the
        cache.
        """
        key = (owner, tuple(pool.name for pool in pools))
        if key not in round_.borrowable:
            reserved = round_.inputs.reservations.covers
            chosen = []
            for pool in pools:
                start = int(pool.nth_block(first_block(pool, str(owner))).network_address)
                inside = [
                    known
                    for known in await self.all_blocks(version, round_)
                    if known.value
                    and known.value.owner != owner
                    and known.value.cidr.network_address in pool.cidr
                    and round_.draft.collected(known.value).free_count(reserved)
                ]
                inside.sort(key=lambda known: _distance(known, start, pool.cidr))
                chosen += inside
            for known in chosen[:BORROW_FROM]:
                cached = self.cache.block(known.value.cidr) if known.value else None
                if known.value and (cached is None or cached.revision < known.revision):
                    self.cache.set_block(known.value.cidr, known)
            round_.borrowable[key] = [known.value.cidr for known in chosen[:BORROW_FROM] if known.value]
        return round_.borrowable[key]

    def add_own(self, owner: Owner, cidr: Network) -> None:
        own = {**self.own_blocks(owner, cidr.version), cidr: AffinityState.CONFIRMED}
        self._own[owner, cidr.version] = dict(sorted(own.items(), key=lambda item: keys.block(item[0])))

    def forget_own(self, owner: Owner) -> None:
        for version in (4, 6):
            self._own.pop((owner, version), None)


def _distance(known: Known[Block], start: int, pool: Network) -> int:
    """How far the block is from where the owner begins, going up and around the end of the pool."""
    at = int(known.value.cidr.network_address) if known.value else 0
    return (at - start) % pool.num_addresses
