"""Address management against a plain model, in trouble.

Several clients and a two-step peer work on one datastore; calls fail before or after taking effect, transactions arrive
late, callers are cancelled, processes die between two writes; between such storms settings, reservations and pools
change (split, closed), single addresses are asked for, services and tunnels get theirs, pods vanish and their garbage
is collected. The model is a dictionary of who was told to have which address. Whatever happens, nobody is told an
address that somebody else has, nothing that was told is taken away, and after releasing every handle all addresses are
free again.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network
from random import Random
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from libs.ipam import keys
from libs.ipam.affinity import AffinityState, Owner, decode_affinity
from libs.ipam.block import Block, ReleaseOption, allocate, decode_block, encode_block, problems, release, written
from libs.ipam.client import IpamClient
from libs.ipam.collector import GarbageCollector
from libs.ipam.config import IpamConfig
from libs.ipam.errors import HandleMissing, IpamError, Reason
from libs.ipam.handles import Handle, decode_handle, encode_handle
from libs.ipam.pools import Pool, Reservations, Use
from libs.ipam.requests import AssignIpRequest, AssignRequest
from libs.ipam.source import FixedSource, Inputs
from libs.ipam.wire import Address, Network
from libs.store.api import Compare, Delete, KeyValue, Listing, Op, Put, StoreError, StoreUnavailable, TxnResult
from libs.store.memory import MemoryEtcd, MemoryStore

T = TypeVar("T")

POOLS = (
    Pool("small", IPv4Network("10.0.0.0/28"), 30),  # 4 blocks of 4
    Pool("six", IPv6Network("fd00::/124"), 126),
)
RESERVED = Reservations([IPv4Network("10.0.0.4/31")])
NODES = ["a", "b", "c"]
BALANCERS = Pool("balancers", IPv4Network("10.1.0.0/30"), 31, uses=frozenset({Use.LOAD_BALANCER}))
HALVES = tuple(
    replace(POOLS[0], name=f"half-{n}", cidr=half) for n, half in enumerate(IPv4Network("10.0.0.0/28").subnets())
)
LAYOUTS = [  # of the IPv4 pool for pods: whole, split, closed, half closed
    (POOLS[0],), HALVES, (replace(POOLS[0], disabled=True),), (HALVES[0], replace(HALVES[1], disabled=True))
]  # fmt: skip
ALWAYS = (POOLS[1], BALANCERS)


class Died(StoreError):
    """The process that made the call is no more."""


class World:
    """Chance and the transactions that are still on their way, shared by all clients."""

    def __init__(self, server: MemoryEtcd) -> None:
        self.rng = Random(0)
        self.trouble = 0.0  # probability that a call goes wrong
        self.direct = MemoryStore(server)
        self.late: list[tuple[list[Compare], list[Op]]] = []
        self.now_ns = 1_800_000_000_000_000_000
        self.taboo: Callable[[Address], bool] = RESERVED.covers  # addresses that nobody may be given unasked

    def clock(self) -> int:
        self.now_ns += 1_000
        return self.now_ns

    async def arrive(self) -> None:
        """Some of what was sent long ago reaches the server only now."""
        while self.late and self.rng.random() < 0.5:
            compares, ops = self.late.pop(self.rng.randrange(len(self.late)))
            await self.direct.txn(compares, ops)


class TroubledStore(MemoryStore):
    """A client whose network loses requests and answers, delays them, and whose process may die at any call."""

    def __init__(self, server: MemoryEtcd, world: World) -> None:
        super().__init__(server)
        self.world = world
        self.calls_to_live: int | None = None

    async def step(self) -> None:
        for _ in range(self.world.rng.randrange(4)):
            await asyncio.sleep(0)
        await self.world.arrive()
        if self.calls_to_live is not None:
            self.calls_to_live -= 1
            if self.calls_to_live < 0:
                raise Died
        if self.world.rng.random() < self.world.trouble / 4:
            raise StoreUnavailable("request lost")

    async def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        await self.step()
        return await super().get(key, revision=revision)

    async def list(self, prefix: str, *, revision: int = 0, keys_only: bool = False) -> Listing:
        await self.step()
        return await super().list(prefix, revision=revision, keys_only=keys_only)

    async def txn(self, compares: object, ops: object) -> TxnResult:
        await self.step()
        sent = list(compares), list(ops)  # type: ignore[call-overload]
        if self.world.rng.random() < self.world.trouble:
            match self.world.rng.randrange(4):
                case 0:
                    await super().txn(*sent)
                case 1 | 2:
                    self.world.late.append(sent)
            raise StoreUnavailable("answer lost")
        return await super().txn(*sent)


class TwoStepPeer:
    """Another make of client: handle up, then block; block, then handle down, each a compare-and-swap of its own.

    It may die between the two, which leaves a handle that counts too much, and never an address without a handle.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = world.direct

    async def assign(self, handle: str, node: str, *, dies: bool) -> Address | None:
        for kv in (await self.store.list(keys.blocks(4))).kvs:
            block = decode_block(kv.value)
            changed, got = allocate(block, 1, handle, {"node": node}, self.world.taboo)
            if not got:
                continue
            for _ in range(self.world.rng.randrange(3)):
                await asyncio.sleep(0)
            if not await self.change_handle(handle, block.cidr, 1):
                return None
            for _ in range(self.world.rng.randrange(5)):
                await asyncio.sleep(0)
            if dies:
                return None
            new = Put(kv.key, encode_block(written(changed)))
            if (await self.store.txn([Compare(kv.key, kv.mod_revision)], [new])).succeeded:
                return got[0]
            while not await self.change_handle(handle, block.cidr, -1):
                pass
        return None

    async def release(self, address: Address, handle: str) -> bool:
        for kv in (await self.store.list(keys.blocks(address.version))).kvs:
            block = decode_block(kv.value)
            if address not in block.cidr:
                continue
            present = block.allocation(address)
            if present is None or present.handle != handle:
                return False
            released = release(block, [ReleaseOption(address, handle)], self.now(), 0)
            if released.block.empty and released.block.owner is None:
                op: Op = Delete(kv.key)
            else:
                op = Put(kv.key, encode_block(written(released.block)))
            if not (await self.store.txn([Compare(kv.key, kv.mod_revision)], [op])).succeeded:
                return False
            await asyncio.sleep(0)
            while not await self.change_handle(handle, block.cidr, -1):
                pass
            return True
        return False

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.world.now_ns / 1e9, UTC)

    async def change_handle(self, identity: str, cidr: Network, by: int) -> bool:
        key = keys.handle(identity)
        kv = await self.store.get(key)
        handle = decode_handle(kv.value) if kv else Handle()
        if by < 0 and cidr not in handle.blocks:
            return True
        handle = handle.add(cidr, by) if by > 0 else handle.remove(cidr, -by)
        op: Op = Put(key, encode_handle(handle)) if handle.blocks else Delete(key)
        return (await self.store.txn([Compare(key, kv.mod_revision if kv else 0)], [op])).succeeded


def of_pod(handle: str, node: str) -> dict[str, str]:
    return {"node": node, "namespace": "ns", "pod": handle}


class IpamMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.server = MemoryEtcd()
        self.world = World(self.server)
        self.held: dict[Address, str] = {}  # what somebody was told to have
        self.doubtful: set[str] = set()  # handles whose caller got no answer
        self.freed_at: dict[Address, int] = {}
        self.sequences: dict[Network, int] = {}
        self.stale: list[tuple[Address, str, int]] = []  # allocations that were released since
        self.issued: dict[Address, tuple[str, int]] = {}
        self.number = 0
        self.owners: dict[Network, tuple[Owner | None, set[tuple[Address, str | None]]]] = {}
        self.must_rest: dict[Address, int] = {}  # seconds from freed_at on; the least that held since

    def run(self, work: Coroutine[object, object, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize(cooldown=st.sampled_from([0, 0, 60]), strict=st.booleans())
    def start(self, cooldown: int, strict: bool) -> None:
        config = IpamConfig(strict_affinity=strict, cooldown_s=cooldown)
        self.source = FixedSource(Inputs(config, (POOLS[0], *ALWAYS), RESERVED), {node: {} for node in NODES})
        self.stores = [TroubledStore(self.server, self.world) for _ in NODES]
        self.clients = [self.client(store) for store in self.stores]
        self.peer = TwoStepPeer(self.world)
        self.world.taboo = lambda address: self.source.current.reservations.covers(address) or not self.enabled(address)

    def client(self, store: TroubledStore) -> IpamClient:
        async def pause(seconds: float) -> None:
            await asyncio.sleep(0)

        return IpamClient(store, self.source, clock_ns=self.world.clock, rng=Random(1), sleep=pause)

    @property
    def cooldown(self) -> int:
        return self.source.current.config.cooldown_s

    def all4(self) -> set[Address]:
        """What pods may have of the IPv4 pool."""
        return {address for address in POOLS[0].cidr if not self.world.taboo(address)}

    def freed(self, address: Address) -> None:
        self.held.pop(address, None)
        self.freed_at[address] = self.world.now_ns
        self.must_rest[address] = self.cooldown

    def handle(self) -> str:
        self.number += 1
        return f"h{self.number}"

    # --- what may happen ---------------------------------------------------------------------------------------------

    @rule(
        seed=st.integers(0, 2**32),
        trouble=st.sampled_from([0.0, 0.0, 0.2, 0.5]),
        assigns=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 2)), max_size=5),
        releases=st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=3),
        peers=st.lists(st.booleans(), max_size=2),
        peer_releases=st.integers(0, 1),
        twins=st.booleans(),
        cancels=st.lists(st.integers(0, 12), max_size=2),
        death=st.one_of(st.none(), st.tuples(st.integers(0, 2), st.integers(0, 10))),
    )
    def at_once(
        self,
        seed: int,
        trouble: float,
        assigns: list[tuple[int, int, int]],
        releases: list[tuple[int, bool]],
        peers: list[bool],
        peer_releases: int,
        twins: bool,
        cancels: list[int],
        death: tuple[int, int] | None,
    ) -> None:
        self.world.rng, self.world.trouble = Random(seed), trouble
        if death:
            self.stores[death[0]].calls_to_live = death[1]
        handles = sorted(set(self.held.values()) - self.doubtful)
        self.world.rng.shuffle(handles)
        released: set[Address] = set()
        gained: dict[Address, str] = {}
        used_by: dict[Address, str] = {}
        unanswered: Counter[str] = Counter()

        async def assign(client: IpamClient, node: str, handle: str, num4: int, num6: int) -> None:
            unanswered[handle] += 1
            self.doubtful.add(handle)
            request = AssignRequest(handle=handle, node=node, num4=num4, num6=num6, attrs=of_pod(handle, node))
            try:
                got = await client.auto_assign(request)
            except IpamError:
                if num4 and not any(self.enabled(address) for address in POOLS[0].cidr):
                    return  # refused; whatever was written before its answer got lost stays doubtful
                raise
            unanswered[handle] -= 1
            if not unanswered[handle]:
                self.doubtful.discard(handle)
            for address, sequence in got.sequences.items():
                assert address not in gained, f"{address} given to {handle} and {gained[address]}"
                gained[address] = handle
                used_by[address] = node
                self.issued[address] = handle, sequence
            assert {interface.ip for interface in got.v4} | {interface.ip for interface in got.v6} == set(got.sequences)
            assert got.complete or got.reasons

        async def give_back(client: IpamClient, handle: str, by_handle: bool) -> None:
            mine = {address for address, owner in self.held.items() if owner == handle}
            self.doubtful.add(handle)
            released.update(mine)  # from now on it may be gone at any moment
            if by_handle:
                result = await client.release_by_handle(handle)
            else:
                result = await client.release_ips(ReleaseOption(a, handle, self.issued[a][1]) for a in mine)
            assert not result.refused
            freed = {address for address, _ in result.freed}
            assert freed == mine, f"{handle} had {mine}, released {freed} by handle {by_handle}: {result}"
            self.doubtful.discard(handle)

        async def peer_assign(handle: str, dies: bool) -> None:
            self.doubtful.add(handle)
            address = await self.peer.assign(handle, "c", dies=dies)
            if address is not None:
                self.doubtful.discard(handle)
                assert address not in gained, f"{address} given to the peer's {handle} and {gained[address]}"
                gained[address] = handle

        async def peer_release(handle: str) -> None:
            mine = [address for address, owner in self.held.items() if owner == handle]
            self.doubtful.add(handle)
            released.update(mine)
            if all([await self.peer.release(address, handle) for address in mine]):
                self.doubtful.discard(handle)

        async def everything() -> None:
            work: list[Coroutine[object, object, None]] = []
            handle = self.handle()
            for node, num4, num6 in assigns:
                handle = handle if twins else self.handle()  # twins: several hosts write the same handle
                work.append(assign(self.clients[node], NODES[node], handle, num4, num6))
            for node, by_handle in releases:
                if handles:
                    handle = handles.pop()
                    mine = [address for address, owner in self.held.items() if owner == handle]
                    known = all(self.issued.get(address, ("", 0))[0] == handle for address in mine)
                    work.append(give_back(self.clients[node], handle, by_handle or not known))
            work += [peer_assign(self.handle(), dies) for dies in peers]
            if self.cooldown == 0:
                work += [peer_release(handles.pop()) for _ in range(peer_releases) if handles]
            self.world.rng.shuffle(work)
            tasks = [asyncio.ensure_future(item) for item in work]
            for at in cancels:
                for _ in range(at):
                    await asyncio.sleep(0)
                if tasks:
                    tasks[at % len(tasks)].cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            for error in outcomes:
                if error and not isinstance(error, StoreUnavailable | Died | asyncio.CancelledError):
                    raise error

        self.run(everything())
        now_s = self.world.now_ns / 1e9
        for address, handle in gained.items():
            owner = self.held.get(address)
            assert owner is None or address in released, f"{address} of {owner} given to {handle}"
            assert not self.source.current.reservations.covers(address), f"reserved {address} given to {handle}"
            assert self.enabled(address), f"{address} of a disabled pool given to {handle}"
            rested = now_s - self.freed_at.get(address, 0) / 1e9
            assert rested >= self.must_rest.get(address, 0), f"{address} rested only {rested} s"
        if self.source.current.config.strict_affinity:
            for cidr, block in self.blocks().items():
                for address in cidr:
                    assert address not in used_by or block.owner == Owner.host(used_by[address])
        for address in released:
            old = self.issued.get(address)
            if address not in gained:
                if old and old[0] not in self.doubtful:
                    self.stale.append((address, *old))
                    del self.issued[address]
                self.freed(address)
            self.held.pop(address, None)
        self.held.update(gained)
        if death and self.stores[death[0]].calls_to_live is not None:
            self.stores[death[0]] = TroubledStore(self.server, self.world)  # a new process knows nothing
            self.clients[death[0]] = self.client(self.stores[death[0]])

    @rule(seconds=st.sampled_from([1, 59, 61, 600]))
    def time_passes(self, seconds: int) -> None:
        self.world.now_ns += seconds * 1_000_000_000

    @precondition(lambda self: self.stale)
    @rule(which=st.integers(0, 100), client=st.integers(0, 2))
    def old_release_comes_late(self, which: int, client: int) -> None:
        """Also when the address has a new owner, or the same handle's name again: the sequence number tells."""
        self.world.trouble = 0.0
        address, handle, sequence = self.stale[which % len(self.stale)]
        result = self.run(self.clients[client].release_ips([ReleaseOption(address, None, sequence)]))
        assert not result.freed, f"a release of {handle}'s old {address} took it from {self.held.get(address)}"

    @rule(node=st.integers(0, 2))
    def host_gives_up_its_blocks(self, node: int) -> None:
        self.world.trouble = 0.0
        self.run(self.clients[node].release_host_affinities(NODES[node]))

    @rule(client=st.integers(0, 2))
    def all_that_is_free_can_be_had(self, client: int) -> None:
        self.settle_doubts()
        if self.source.current.config.strict_affinity or self.cooldown or not self.enabled(POOLS[0].cidr[0]):
            return
        held = {address for address in self.held if address in POOLS[0].cidr} & self.all4()
        request = AssignRequest(handle=self.handle(), node=NODES[client], num4=99)
        got = self.run(self.clients[client].auto_assign(request))
        # Blocks that others own and that are empty can be borrowed from as well, so really all must come.
        assert {interface.ip for interface in got.v4} == self.all4() - held
        assert got.reasons[4] is Reason.NO_FREE_ADDRESSES
        if got.v4:
            self.run(self.clients[client].release_by_handle(request.handle))

    # --- settings, pools, other uses, garbage ------------------------------------------------------------------------

    @rule(
        cooldown=st.sampled_from([0, 60]), strict=st.booleans(),
        reserved=st.sampled_from([RESERVED, Reservations(), Reservations([IPv4Network("10.0.0.8/30")])]),
    )  # fmt: skip
    def settings_change(self, cooldown: int, strict: bool, reserved: Reservations) -> None:
        self.settle_doubts()
        config = IpamConfig(strict_affinity=strict, cooldown_s=cooldown)
        self.source.current = replace(self.source.current, config=config, reservations=reserved)
        self.must_rest = {address: min(rest, cooldown) for address, rest in self.must_rest.items()}

    @rule(pools=st.sampled_from(LAYOUTS))
    def pools_change(self, pools: tuple[Pool, ...]) -> None:
        """Whole, split, closed, half closed. Who has an address keeps it."""
        self.settle_doubts()
        self.source.current = replace(self.source.current, pools=(*pools, *ALWAYS))

    def enabled(self, address: Address) -> bool:
        return any(address in pool.cidr and not pool.disabled for pool in self.source.current.pools)

    @rule(client=st.integers(0, 2), ordinal=st.integers(0, 15), same=st.booleans())
    def one_address_is_asked_for(self, client: int, ordinal: int, same: bool) -> None:
        """Given exactly when it is free, rested, and in an open pool; reservations do not matter, affinity does."""
        self.settle_doubts()
        address, node = POOLS[0].cidr[ordinal], NODES[client]
        owner = self.held.get(address)
        handle = owner if same and owner else self.handle()
        request = AssignIpRequest(
            address=address, handle=handle, node=node, attrs=of_pod(handle, node), max_per_handle=1
        )
        block = next((b for b in self.blocks().values() if address in b.cidr), None)
        foreign = self.source.current.config.strict_affinity and block is not None and block.owner != Owner.host(node)
        try:
            self.run(self.clients[client].assign_ip(request))
        except IpamError as refusal:
            match refusal.reason:
                case Reason.NOT_IN_POOL:
                    assert not self.enabled(address)
                case Reason.STRICT_AFFINITY:
                    assert foreign
                case Reason.ADDRESS_IN_USE:
                    assert owner not in (None, handle)
                case Reason.ADDRESS_COOLING:
                    assert self.world.now_ns - self.freed_at[address] <= self.cooldown * 10**9 + 10**9
                case other:
                    raise AssertionError(other) from refusal
            return
        assert self.enabled(address)
        assert not foreign
        assert owner in (None, handle)
        if owner is None:
            held = next(a for a in self.run(self.clients[client].ips_by_handle(handle)) if a.address == address)
            assert held.sequence is not None
            self.held[address], self.issued[address] = handle, (handle, held.sequence)

    @rule(client=st.integers(0, 2), use=st.sampled_from([Use.LOAD_BALANCER, Use.TUNNEL]))
    def another_use(self, client: int, use: Use) -> None:
        """Services' addresses come from their pool and from blocks that no host owns; tunnels' from those of hosts."""
        self.settle_doubts()
        handle, node = self.handle(), NODES[client]
        attrs = {"node": node, "type": "vxlanTunnelAddress"} if use is Use.TUNNEL else {"type": "LoadBalancer"}
        request = AssignRequest(handle=handle, node=node, num4=1, attrs=attrs, use=use)
        if use is Use.TUNNEL and not any(self.enabled(address) for address in POOLS[0].cidr):
            with pytest.raises(IpamError, match=r"no enabled|allows the use"):
                self.run(self.clients[client].auto_assign(request))
            return
        got = self.run(self.clients[client].auto_assign(request))
        for address, sequence in got.sequences.items():
            assert address not in self.held
            assert (address in BALANCERS.cidr) is (use is Use.LOAD_BALANCER)
            owner = next(b.owner for b in self.blocks().values() if address in b.cidr)
            assert (owner == Owner.load_balancer()) is (use is Use.LOAD_BALANCER)
            self.held[address], self.issued[address] = handle, (handle, sequence)

    @rule(picks=st.sets(st.integers(0, 9), max_size=4), gone=st.sampled_from([None, None, "b"]))
    def garbage_is_collected(self, picks: set[int], gone: str | None) -> None:
        """Some pods vanish, maybe a node with them: their addresses are freed, and no other one."""
        self.settle_doubts()
        direct = self.world.direct
        handles = sorted(set(self.held.values()))
        blocks = self.blocks()
        found = {a.address: a for b in blocks.values() for a in b.allocated() if a.released_at is None}
        pods = [h for h in handles if all("pod" in found[a].attrs for a, owner in self.held.items() if owner == h)]
        lost = {handle for number, handle in enumerate(pods) if number in picks}
        for node in NODES:
            if node != gone:
                self.run(direct.put(keys.resource("nodes", node), b'{"metadata":{},"spec":{}}'))
        for handle in set(pods) - lost:
            mine = [f"{a}/{a.max_prefixlen}" for a, owner in self.held.items() if owner == handle]
            spec = {"node": "a", "pod": handle, "ipNetworks": mine}
            value = json.dumps({"metadata": {"name": handle}, "spec": spec}).encode()
            self.run(direct.put(keys.resource("workloadendpoints/ns", handle), value))
        clock = [0.0]
        cleaner = self.client(TroubledStore(self.server, self.world))
        wall = datetime.fromtimestamp(self.world.now_ns / 1e9, UTC)
        collector = GarbageCollector(direct, cleaner, monotonic=lambda: clock[0], wall=lambda: wall)
        first = self.run(collector.round()).released
        clock[0] = 900.0
        second = self.run(collector.round()).released
        expected = {address for address, owner in self.held.items() if owner in lost}
        tunnels = {a for a in self.held if found[a].attrs.get("type") == "vxlanTunnelAddress"}
        assert set(first + second) - tunnels == expected
        assert all(found[address].attrs["node"] == gone for address in set(first + second) & tunnels)
        for address in first + second:
            self.stale.append((address, *self.issued.pop(address)))
            self.freed(address)
        for prefix in (keys.resource("nodes"), keys.resource("workloadendpoints")):
            for kv in self.run(direct.list(prefix)).kvs:
                self.run(direct.delete(kv.key))

    # --- what must hold ----------------------------------------------------------------------------------------------

    def settle_doubts(self) -> None:
        """After trouble: everything late arrives, and doubtful handles are released, as an undo or GC does."""
        self.world.trouble = 0.0
        for compares, ops in self.world.late:
            self.run(self.world.direct.txn(compares, ops))
        self.world.late.clear()
        cleaner = self.client(TroubledStore(self.server, self.world))
        for handle in sorted(self.doubtful):
            with suppress(HandleMissing):
                for address, _ in self.run(cleaner.release_by_handle(handle)).freed:
                    self.freed(address)
            self.held = {address: owner for address, owner in self.held.items() if owner != handle}
        self.doubtful.clear()

    def blocks(self) -> dict[Network, Block]:
        found = {}
        for version in (4, 6):
            for kv in self.run(self.world.direct.list(keys.blocks(version))).kvs:
                block = decode_block(kv.value)
                found[block.cidr] = block
        return found

    @invariant()
    def store_is_sound(self) -> None:
        blocks = self.blocks()
        for address, handle in self.held.items():
            if handle in self.doubtful:
                continue
            present = next((b.allocation(address) for b in blocks.values() if address in b.cidr), None)
            assert present is not None, f"{address} of {handle} is free"
            assert present.handle == handle, f"{address} of {handle} went to {present.handle}"
        counts: dict[tuple[str, Network], int] = {}
        for cidr, block in blocks.items():
            assert problems(block) == []
            assert encode_block(decode_block(encode_block(block))) == encode_block(block)
            assert block.sequence >= self.sequences.get(cidr, 0), "a sequence number came again"
            self.sequences[cidr] = block.sequence
            for allocation in block.allocated():
                if allocation.handle is not None:
                    key = allocation.handle, cidr
                    counts[key] = counts.get(key, 0) + 1
        for (handle, cidr), count in counts.items():
            kv = self.run(self.world.direct.get(keys.handle(handle)))
            assert kv is not None, f"{handle} has addresses but no handle object"
            assert decode_handle(kv.value).blocks.get(cidr, 0) >= count, f"handle {handle} counts too little"

    @invariant()
    def block_in_use_passes_to_nobody_else(self) -> None:
        before, self.owners = self.owners, {}
        for cidr, block in self.blocks().items():
            self.owners[cidr] = block.owner, {(a.address, a.handle) for a in block.allocated() if a.handle}
            owner, users = before.get(cidr, (None, set()))
            if users & self.owners[cidr][1]:
                assert block.owner in (owner, None), f"block {cidr} went from {owner} to {block.owner}"

    @invariant()
    def confirmed_affinity_means_ownership(self) -> None:
        blocks = self.blocks()
        for kv in self.run(self.world.direct.list(keys.HOSTS)).kvs:
            parsed = keys.parse_affinity(kv.key)
            assert parsed is not None
            owner, cidr = parsed
            if decode_affinity(kv.value) is AffinityState.CONFIRMED:
                assert cidr in blocks, f"{owner} confirmed, but no block {cidr}"
                assert blocks[cidr].owner == owner

    def teardown(self) -> None:
        try:
            if not hasattr(self, "clients"):
                return
            self.settle_doubts()
            cleaner = self.client(TroubledStore(self.server, self.world))
            for handle in set(self.held.values()):
                self.run(cleaner.release_by_handle(handle))
            assert self.run(self.world.direct.list(keys.HANDLES)).kvs == []
            for block in self.blocks().values():
                assert all(allocation.released_at for allocation in block.allocated())
            self.world.now_ns += 3_600_000_000_000
            for node in NODES:
                self.run(cleaner.release_host_affinities(node))
            self.source.current = Inputs(IpamConfig(), (POOLS[0], *ALWAYS), RESERVED)
            got = self.run(cleaner.auto_assign(AssignRequest(handle="all", node="a", num4=99, num6=99)))
            assert {interface.ip for interface in got.v4} == self.all4()
            assert len(got.v6) == 16
        finally:
            self.loop.close()


TestIpam = pytest.mark.timeout(600)(IpamMachine.TestCase)  # a minute of work, more beside others
# Some of the traps need three coincidences; 60 examples do not always meet them.
TestIpam.settings = settings(max_examples=max(200, settings().max_examples), stateful_step_count=20)
