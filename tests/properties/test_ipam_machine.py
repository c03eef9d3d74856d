"""Address management against a plain model, in trouble.

Several clients and a two-step peer work on one datastore; calls fail before or after taking effect, transactions arrive
late, callers are cancelled, processes die between two writes. The model is a dictionary of who was told to have which
address. Whatever happens, nobody is told an address that somebody else has, nothing that was told is taken away, and
after releasing every handle all addresses are free again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network
from random import Random
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from libs.ipam import keys
from libs.ipam.affinity import AffinityState, Owner, decode_affinity
from libs.ipam.block import Block, ReleaseOption, allocate, decode_block, encode_block, problems, release, written
from libs.ipam.client import IpamClient
from libs.ipam.config import IpamConfig
from libs.ipam.errors import HandleMissing, Reason
from libs.ipam.handles import Handle, decode_handle, encode_handle
from libs.ipam.pools import Pool, Reservations
from libs.ipam.requests import AssignRequest
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
ALL4 = {address for address in POOLS[0].cidr if not RESERVED.covers(address)}


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
            changed, got = allocate(block, 1, handle, {"node": node}, RESERVED.covers)
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

    def run(self, work: Coroutine[object, object, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize(cooldown=st.sampled_from([0, 0, 60]), strict=st.booleans())
    def start(self, cooldown: int, strict: bool) -> None:
        config = IpamConfig(strict_affinity=strict, cooldown_s=cooldown)
        self.source = FixedSource(Inputs(config, POOLS, RESERVED), {node: {} for node in NODES})
        self.stores = [TroubledStore(self.server, self.world) for _ in NODES]
        self.clients = [self.client(store) for store in self.stores]
        self.peer = TwoStepPeer(self.world)

    def client(self, store: TroubledStore) -> IpamClient:
        async def pause(seconds: float) -> None:
            await asyncio.sleep(0)

        return IpamClient(store, self.source, clock_ns=self.world.clock, rng=Random(1), sleep=pause)

    @property
    def cooldown(self) -> int:
        return self.source.current.config.cooldown_s

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
            request = AssignRequest(handle=handle, node=node, num4=num4, num6=num6, attrs={"node": node})
            got = await client.auto_assign(request)
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
            assert not RESERVED.covers(address), f"reserved {address} given to {handle}"
            rested = now_s - self.freed_at.get(address, 0) / 1e9
            assert rested >= self.cooldown, f"{address} rested only {rested} s"
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
                self.freed_at[address] = self.world.now_ns
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
        if self.source.current.config.strict_affinity or self.cooldown:
            return
        held = sum(address.version == 4 for address in self.held)
        request = AssignRequest(handle=self.handle(), node=NODES[client], num4=99)
        got = self.run(self.clients[client].auto_assign(request))
        # Blocks that others own and that are empty can be borrowed from as well, so really all must come.
        assert len(got.v4) == len(ALL4) - held
        assert got.reasons[4] is Reason.NO_FREE_ADDRESSES
        assert {interface.ip for interface in got.v4} | {a for a in self.held if a.version == 4} == ALL4
        if got.v4:
            self.run(self.clients[client].release_by_handle(request.handle))

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
                    self.freed_at[address] = self.world.now_ns
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
            self.source.current = replace(self.source.current, config=IpamConfig())
            got = self.run(cleaner.auto_assign(AssignRequest(handle="all", node="a", num4=99, num6=99)))
            assert len(got.v4) == len(ALL4)
            assert len(got.v6) == 16
        finally:
            self.loop.close()


TestIpam = IpamMachine.TestCase
# Some of the traps need three coincidences; 60 examples do not always meet them.
TestIpam.settings = settings(max_examples=max(200, settings().max_examples), stateful_step_count=20)
