"""Carries out `libs.ipam.poolstate`: finalizers, conditions and the end of IPPools. For a controller, and for who
deletes a pool while none runs.

Every write is a compare-and-swap on what was read; a round may be cut short and repeated anywhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_network
from uuid import uuid4

from libs.ipam import keys
from libs.ipam.client import IpamClient
from libs.ipam.errors import IpamError
from libs.ipam.poolstate import Drain, Remove, Step, Write, plan
from libs.ipam.wire import Network
from libs.model.pools import IPPool
from libs.resources import codec
from libs.store.api import Conflict, Store

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Settled:
    """written: finalizer or condition. waiting: terminating pools with the number of their blocks."""

    written: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    waiting: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


class PoolLifecycle:
    """Raises StoreError when the datastore is away."""

    def __init__(
        self,
        store: Store,
        *,
        ipam: IpamClient | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._ipam = ipam or IpamClient(store)
        self._now = now

    async def round(self, only: str = "") -> Settled:
        """Everything that is missing; of one pool where `only` names it."""
        done = Settled()
        for step in await self._steps(only):
            if not isinstance(step, Drain):
                await self._carry_out(step, done)
                continue
            try:
                await self._ipam.release_pool_affinities(ip_network(step.pool.spec.cidr, strict=False))
            except IpamError as error:
                done.failures[step.pool.metadata.name] = str(error)
        for step in await self._steps(only):  # a pool whose last block went just now need not wait for the next round
            if isinstance(step, Drain):
                done.waiting[step.pool.metadata.name] = step.blocks
            elif isinstance(step, Remove):
                await self._carry_out(step, done)
        return done

    async def _steps(self, only: str) -> list[Step]:
        listing = await self._store.list(codec.prefix("IPPool"))
        pools = [pool for kv in listing.kvs if isinstance(pool := codec.readable("IPPool", kv), IPPool)]
        # Blocks are read after the pools. A claim that was left half-way, without a block, counts as one.
        blocks: set[Network] = set()
        for prefix in (keys.blocks(4), keys.blocks(6), keys.HOSTS, keys.VIRTUAL):
            found = await self._store.list(prefix, keys_only=True)
            blocks |= {cidr for kv in found.kvs if (cidr := keys.cidr_of(kv.key)) is not None}
        steps = plan(pools, blocks, codec.timestamp(self._now()))
        return [step for step in steps if not only or step.pool.metadata.name == only]

    async def _carry_out(self, step: Write | Remove, done: Settled) -> None:
        name = step.pool.metadata.name
        key, value = self._stored(step.pool)
        revision = int(step.pool.metadata.resource_version)
        try:
            if isinstance(step, Remove):
                await self._store.delete(key, mod_revision=revision)
                done.removed.append(name)
                log.info("pool deleted, its last block is gone", extra={"pool": name})
            else:
                await self._store.update(key, value, mod_revision=revision)
                done.written.append(name)
        except Conflict:
            done.failures[name] = "was changed meanwhile"

    def _stored(self, pool: IPPool) -> tuple[str, bytes]:
        """Key and value; what every resource has is added where some other writer left it out."""
        created = pool.metadata.creation_timestamp or codec.timestamp(self._now())
        return codec.to_storage(
            codec.with_metadata(pool, uid=pool.metadata.uid or str(uuid4()), creation_timestamp=created)
        )
