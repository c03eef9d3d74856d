"""Changes of a block that assign and release nothing. Jobs for the engine."""

from __future__ import annotations

from collections.abc import Mapping

from libs.ipam import keys
from libs.ipam.block import set_owner_attributes
from libs.ipam.draft import Cache
from libs.ipam.engine import Engine, Job, Round
from libs.ipam.errors import IpamError, Reason, StaleRelease
from libs.ipam.pools import pool_of
from libs.ipam.wire import Address, Network


class _Repeatable(Job):
    """What may be written twice without harm: when an answer gets lost it is simply planned again."""

    def succeeded(self) -> None:
        self.done = True

    def refused(self) -> None:
        """Planned again."""

    def lost(self) -> None:
        """Planned again."""

    def settle(self, cache: Cache, *, again: bool) -> bool:
        return True

    def doubts(self) -> tuple[set[Network], set[str]]:
        return set(), set()


class CollectJob(_Repeatable):
    """Free the addresses of a block whose rest is over, and delete it when nothing and nobody is left."""

    def __init__(self, cidr: Network) -> None:
        super().__init__()
        self._cidr = cidr

    async def plan(self, engine: Engine, round_: Round) -> bool:
        await engine.fetch_blocks([self._cidr])
        known = engine.cache.block(self._cidr)
        block = round_.draft.block(self._cidr)
        if known is None or block is None or (block == known.value and not block.superfluous):
            self.done = True
            return False
        round_.draft.put_block(block)
        return True


class AttributesJob(_Repeatable):
    def __init__(
        self,
        address: Address,
        handle: str,
        owner: Mapping[str, str],
        alternate: Mapping[str, str],
        was: tuple[Mapping[str, str], Mapping[str, str]] | None,
    ) -> None:
        super().__init__()
        self._was = was
        self._address = address
        self._handle = handle
        self._owner = owner
        self._alternate = alternate

    async def plan(self, engine: Engine, round_: Round) -> bool:
        if self.abandoned:
            self.done = True
            return False
        cidr = await self._find(engine, round_)
        block = round_.draft.block(cidr) if cidr else None
        present = block.allocation(self._address) if block else None
        if block is None or present is None or present.released_at is not None:
            raise IpamError(Reason.NOT_ASSIGNED, f"{self._address} is not assigned")
        if present.handle != self._handle:
            raise StaleRelease(f"{self._address} belongs to handle {present.handle!r}, not {self._handle!r}")
        seen = dict(present.attrs), dict(present.alternate)
        if self._was is not None and seen != self._was:
            if seen == (self._owner, self._alternate):  # by an earlier transaction of ours, whose answer got lost
                self.done = True
                return False
            raise StaleRelease(f"{self._address} has other owners by now")
        round_.draft.put_block(set_owner_attributes(block, self._address, self._owner, self._alternate))
        return True

    async def _find(self, engine: Engine, round_: Round) -> Network | None:
        pool = pool_of(round_.inputs.pools, self._address)
        if pool is not None:
            cidr = pool.block_of(self._address)
            await engine.fetch_blocks([cidr])
            if round_.draft.block(cidr) is not None:
                return cidr
        listing = await engine.shell.store.list(keys.blocks(self._address.version), keys_only=True)
        for kv in listing.kvs:
            found = keys.cidr_of(kv.key)
            if found is not None and self._address in found:
                await engine.fetch_blocks([found])
                return found
        return None
