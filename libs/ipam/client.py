"""Address management for everybody who needs addresses: the one object that services talk to.

    ipam = IpamClient(store)
    got = await ipam.auto_assign(AssignRequest(handle="k8s-pod-network.<id>", node="node1", num4=1))
    await ipam.release_by_handle("k8s-pod-network.<id>")

Every call may raise StoreUnavailable: the datastore did not answer, and what was asked for may or may not have
happened. After such an assignment release the handle as soon as possible; what even that misses, garbage collection
finds by the handle. One client per process: concurrent calls share transactions. Several clients, also of other
makes, may work on the same data.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from random import Random

from libs.ipam import keys
from libs.ipam.affinity import AffinityState, Owner
from libs.ipam.assign import AssignIpJob, AssignJob
from libs.ipam.block import Allocation, Block, ReleaseOption, collect, decode_block
from libs.ipam.claims import Shell
from libs.ipam.config import IpamConfig, decode_config, encode_config
from libs.ipam.draft import Draft
from libs.ipam.engine import Engine, Round
from libs.ipam.errors import BlockCorrupt, BlockNotEmpty, HandleMissing, IpamError, Reason, TooManyConflicts
from libs.ipam.handles import clean_handle
from libs.ipam.pools import Use, pool_of, select_pools
from libs.ipam.release import ReleaseHandleJob, ReleaseJob
from libs.ipam.requests import AssignIpRequest, AssignRequest, AssignResult, ReleaseResult
from libs.ipam.source import Inputs, Source, StoreSource
from libs.ipam.update import AttributesJob, CollectJob
from libs.ipam.usage import AddressInfo, PoolUsage, address_info, usage
from libs.ipam.wire import Address, Network
from libs.store.api import Compare, Put, Store


class IpamClient:
    def __init__(
        self,
        store: Store,
        source: Source | None = None,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        rng: Random | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """source: pools and settings; read from the store at most once a second unless given."""
        self._store = store
        self._source: Source = source or StoreSource(store, time.monotonic)
        chance = rng or random.Random()
        self._engine = Engine(Shell(store, clock_ns, chance, sleep), self._source)

    # --- addresses ---------------------------------------------------------------------------------------------------

    async def auto_assign(self, request: AssignRequest) -> AssignResult:
        """Free addresses from the pools that serve the request; maybe fewer than wanted, then with reasons.

        Raises IpamError when nothing could be tried: NO_POOLS, UNKNOWN_POOL, USE_NOT_ALLOWED, NODE_MISSING,
        CONFIG_INVALID.
        """
        return (await self._engine.run(AssignJob(request))).result()

    async def assign_ip(self, request: AssignIpRequest) -> None:
        """This address. Raises AddressInUse, IpamError: NOT_IN_POOL, USE_NOT_ALLOWED, STRICT_AFFINITY."""
        await self._engine.run(AssignIpJob(request))

    async def release_ips(self, options: Iterable[ReleaseOption]) -> ReleaseResult:
        """Give addresses up. A wrong handle or sequence number refuses all of the same block, and only those."""
        result = (await self._engine.run(ReleaseJob(options))).result()
        await self._drop_unselected(result.blocks)
        return result

    async def release_by_handle(self, handle: str) -> ReleaseResult:
        """Give up all the handle holds. Raises HandleMissing."""
        result = (await self._engine.run(ReleaseHandleJob(handle))).result()
        await self._drop_unselected(result.blocks)
        return result

    async def ips_by_handle(self, handle: str) -> list[Allocation]:
        """What the handle holds, IPv4 first. Raises HandleMissing."""
        async with self._engine.lock:
            await self._engine.fetch_handles([clean_handle(handle)])
            known = await self._engine.known_handle(clean_handle(handle))
            if known.value is None:
                raise HandleMissing(handle)
            await self._engine.fetch_blocks(known.value.blocks)
            blocks = [(await self._engine.known_block(cidr)).value for cidr in known.value.blocks]
        found = [a for block in blocks if block for a in block.allocated() if a.handle == clean_handle(handle)]
        return sorted(found, key=lambda a: (a.address.version, int(a.address)))

    async def set_attributes(
        self,
        address: Address,
        handle: str,
        owner: Mapping[str, str],
        alternate: Mapping[str, str],
        *,
        was: tuple[Mapping[str, str], Mapping[str, str]] | None = None,
    ) -> None:
        """Rewrite who uses an address (a VM that migrates). was: owner and alternate owner that it must have still.

        Raises IpamError(NOT_ASSIGNED), StaleRelease for another handle or other owners than `was`.
        """
        await self._engine.run(AttributesJob(address, clean_handle(handle), owner, alternate, was))

    # --- blocks ------------------------------------------------------------------------------------------------------

    async def claim_affinity(self, node: str, cidr: Network) -> list[Network]:
        """Make the node own every block of a network inside one pool. Raises BlockClaimed at the first that is
        another's.
        """
        inputs = await self._source.inputs()
        pool = pool_of((pool for pool in inputs.pools if not pool.disabled), cidr.network_address)
        if pool is None:
            raise IpamError(Reason.NOT_IN_POOL, f"{cidr} is in no enabled pool")
        owner = Owner.host(node)
        blocks: list[Network] = [cidr]
        if cidr.prefixlen < pool.block_size:
            blocks = list(cidr.subnets(new_prefix=pool.block_size))
        if cidr.prefixlen > pool.block_size:
            raise IpamError(Reason.NOT_IN_POOL, f"{cidr} is smaller than a block of pool {pool.name}")
        async with self._engine.lock:
            self._engine.forget_own(owner)
            for block in blocks:
                await self._engine.claims.claim(owner, block, cooldown_s=inputs.config.cooldown_s)
        return blocks

    async def release_affinity(self, owner: Owner | str, cidr: Network, *, must_be_empty: bool = False) -> None:
        """The block is deleted when empty, else it stays without an owner. Raises BlockNotEmpty."""
        who = Owner.host(owner) if isinstance(owner, str) else owner
        cooldown_s = (await self._source.inputs()).config.cooldown_s
        async with self._engine.lock:
            self._engine.forget_own(who)
            await self._engine.claims.release(who, cidr, cooldown_s=cooldown_s, must_be_empty=must_be_empty)

    async def release_host_affinities(self, node: str, *, must_be_empty: bool = False) -> list[Network]:
        """Give up all blocks of a host; returns those that are kept because they are not empty."""
        owner, kept = Owner.host(node), []
        for version in (4, 6):
            for kv in (await self._store.list(keys.affinities(owner, version))).kvs:
                cidr = keys.cidr_of(kv.key)
                if cidr is None:
                    continue
                try:
                    await self.release_affinity(owner, cidr, must_be_empty=must_be_empty)
                except BlockNotEmpty:
                    kept.append(cidr)
        return kept

    async def release_pool_affinities(self, pool: Network) -> None:
        """Give up every block of a pool, whoever owns it, and claims without a block: before the pool is deleted.

        Blocks that nobody can read stay as they are.
        """
        owned = {
            (block.owner, block.cidr)
            for block in await self.blocks()
            if block.owner is not None and block.cidr.network_address in pool
        }
        for prefix in (keys.HOSTS, keys.VIRTUAL):
            for kv in (await self._store.list(prefix, keys_only=True)).kvs:
                affinity = keys.parse_affinity(kv.key)
                if affinity is not None and affinity[1].network_address in pool:
                    owned.add(affinity)
        for owner, cidr in sorted(owned, key=str):
            await self.release_affinity(owner, cidr)
        await self.collect_cooled()  # and what nobody owned before

    async def remove_host(self, node: str) -> list[Network]:
        """A node is gone: give up its empty blocks and its marker. Returns the blocks that still hold addresses."""
        kept = await self.release_host_affinities(node, must_be_empty=True)
        await self._store.delete(keys.host(node))
        return kept

    async def ensure_block(self, node: str, version: int, use: Use = Use.WORKLOAD) -> Network:
        """A block of the node with a free address, claimed when it has none. Raises IpamError like `auto_assign`."""
        owner = Owner.host(node)
        labels = await self._source.node_labels(node)
        inputs = await self._source.inputs()
        pools = select_pools(inputs.pools, version=version, use=use, node_labels=labels, namespace_labels=None)
        async with self._engine.lock:
            engine = self._engine
            round_ = Round(inputs, Draft(engine.cache, engine.shell.now(), inputs.config.cooldown_s))
            await engine.list_own(owner, version, inputs)
            for _ in range(2):
                for cidr, state in engine.own_blocks(owner, version).items():
                    if state is not AffinityState.CONFIRMED:
                        continue
                    block = round_.draft.block(cidr)
                    inside = pool_of(pools, cidr.network_address)
                    if inside and block and block.owner == owner and block.free_count(inputs.reservations.covers):
                        return cidr
                if len(engine.own_blocks(owner, version)) >= inputs.config.block_limit():
                    raise IpamError(Reason.BLOCK_LIMIT, f"node {node} owns as many blocks as it may")
                if not await engine.revive_own(owner, version, pools, round_):
                    await engine.claim_new(owner, version, pools, round_)
        raise IpamError(Reason.NO_FREE_ADDRESSES, f"no free IPv{version} block for node {node}")

    async def collect_cooled(self) -> list[Network]:
        """Free every address whose rest is over, also in blocks nobody writes any more, and delete empty blocks that
        nobody owns. Returns those blocks.
        """
        config, now = (await self._source.inputs()).config, self._engine.shell.now()
        due = [
            block.cidr
            for block in await self.blocks()
            if block.superfluous or collect(block, now, config.cooldown_s) != block
        ]
        await asyncio.gather(*(self._engine.run(CollectJob(cidr)) for cidr in due))
        return due

    # --- settings and reports ----------------------------------------------------------------------------------------

    async def get_config(self) -> IpamConfig:
        kv = await self._store.get(keys.CONFIG)
        return decode_config(kv.value if kv else None)

    async def set_config(self, **changes: bool | int) -> IpamConfig:
        """Change some fields of IpamConfig. Raises IpamError(CONFIG_INVALID), TooManyConflicts."""
        for _ in range(10):
            kv = await self._store.get(keys.CONFIG)
            config = replace(decode_config(kv.value if kv else None), **changes)  # type: ignore[arg-type]
            config.check()
            if await self._swap_config(config, kv.mod_revision if kv else 0):
                self._source.invalidate()
                return config
        raise TooManyConflicts("IPAM configuration", 10)

    async def inputs(self) -> Inputs:
        return await self._source.inputs()

    async def blocks(self) -> list[Block]:
        """Every readable block."""
        found = []
        for version in (4, 6):
            for kv in (await self._store.list(keys.blocks(version))).kvs:
                try:
                    found.append(decode_block(kv.value))
                except BlockCorrupt:
                    continue  # `ipam check` reads the raw values and reports it
        return found

    async def usage(self) -> list[PoolUsage]:
        inputs = await self._source.inputs()
        return usage(inputs.pools, await self.blocks(), inputs.reservations)

    async def address_info(self, address: Address) -> AddressInfo:
        inputs = await self._source.inputs()
        return address_info(address, inputs.pools, await self.blocks(), inputs.reservations)

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _swap_config(self, config: IpamConfig, revision: int) -> bool:
        value = encode_config(config)
        result = await self._store.txn([Compare(keys.CONFIG, revision)], [Put(keys.CONFIG, value)])
        return result.succeeded

    async def _drop_unselected(self, cidrs: Iterable[Network]) -> None:
        """After a release: a host keeps no block of a pool that does not select it any more."""
        inputs = await self._source.inputs()
        for cidr in cidrs:
            pool = pool_of(inputs.pools, cidr.network_address)
            if pool is None or pool.node_selector in ("", "all()"):
                continue
            known = self._engine.cache.block(cidr)
            owner = known.value.owner if known and known.value else None
            if owner is None or owner.kind != "host":
                continue
            labels = await self._source.node_labels(owner.name)
            if labels is not None and not pool.selects_node(labels):
                await self.release_affinity(owner, cidr)
