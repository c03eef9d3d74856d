"""Garbage collection against a plain model that remembers every round and decides from the whole history.

Rounds at drawn times over drawn changes: pods come, go and move, endpoints lose addresses or cannot be read, nodes go
and come back, addresses are given anew. The model says in its own words what is leaked; both must name the same
addresses, and beside that three promises are checked by themselves: no address that an endpoint lists, no part of a
handle, nothing that does not say whose it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.ipam.affinity import Owner
from libs.ipam.block import Block, ReleaseOption, allocate_exact, new_block, release
from libs.ipam.gc import VM_GRACE_S, Memory, decide
from libs.ipam.view import NodeView, Users, Workload

START = datetime(2026, 1, 1, tzinfo=UTC)
NODES = ("a", "b")
CIDRS = (IPv4Network("10.0.0.0/30"), IPv4Network("10.0.0.4/30"))
ADDRESSES = [address for cidr in CIDRS for address in cidr]
PODS = ("p", "q")
GRACE_S = 100.0

KINDS = ("pod", "pod", "pod", "vm", "tunnel", "nobody", "service")

Change = tuple[str, int, int, int]
Past = list[tuple[float, dict[tuple[IPv4Address, int], bool]]]  # per round: which allocations were unused
changes = st.tuples(
    st.sampled_from(["assign", "assign", "assign", "free", "endpoint", "endpoint", "no-endpoint", "node", "blind"]),
    st.integers(0, 7),
    st.integers(0, 7),
    st.integers(0, len(KINDS) - 1),
)
histories = st.lists(
    st.tuples(st.lists(changes, max_size=4), st.sampled_from([0, 1, 50, 99, 100, 150, 301])), min_size=1, max_size=8
)


@dataclass
class World:
    blocks: dict[IPv4Network, Block] = field(
        default_factory=lambda: {
            cidr: new_block(cidr, Owner.host(n), START, 1) for cidr, n in zip(CIDRS, NODES, strict=True)
        }
    )
    nodes: set[str] = field(default_factory=lambda: set(NODES))
    endpoints: dict[str, tuple[str, frozenset[IPv4Address]]] = field(default_factory=dict)  # pod -> node, addresses
    blind: bool = False

    def block_of(self, address: IPv4Address) -> Block:
        return next(block for cidr, block in self.blocks.items() if address in cidr)

    def do(self, change: Change) -> None:
        what, x, y, kind = change
        address, node, pod = ADDRESSES[x], NODES[y % 2], PODS[(y // 2) % 2]
        block = self.block_of(address)
        present = block.allocation(address)
        match what:
            case "assign" if present is None:
                attrs = {"node": node, "namespace": "ns", "pod": pod}
                handle = f"{pod}.{y % 3}"
                match KINDS[kind]:
                    case "vm":
                        attrs["vmi-name"] = "vm"
                    case "tunnel":
                        attrs, handle = {"node": node, "type": "vxlanTunnelAddress"}, f"vxlan-tunnel-addr-{node}"
                    case "nobody":
                        attrs, handle = {"node": node}, "somebody"
                    case "service":
                        attrs, handle = {"service": "s", "namespace": "ns", "type": "LoadBalancer"}, "lb"
                changed = allocate_exact(block, address, handle, attrs)
                self.blocks[block.cidr] = replace(changed, sequence=changed.sequence + 1)
            case "free" if present is not None:
                after = release(block, [ReleaseOption(address)], START, 60).block
                self.blocks[block.cidr] = replace(after, sequence=after.sequence + 1)
            case "endpoint":
                held = [a.address for one in self.blocks.values() for a in one.allocated() if a.released_at is None]
                listed = held[x % len(held)] if held and kind > 1 else address  # else hardly ever an assigned one
                self.endpoints[pod] = node, frozenset({listed} if kind else ())  # type: ignore[arg-type]
            case "no-endpoint":
                self.endpoints.pop(pod, None)
            case "node":
                self.nodes ^= {node}
            case "blind":
                self.blind = not self.blind

    def users(self) -> Users:
        pods = {("ns", pod): (Workload(f"ns/{pod}", node, frozenset(a)),) for pod, (node, a) in self.endpoints.items()}
        return Users({node: NodeView() for node in self.nodes}, pods, frozenset({"ns"} if self.blind else ()))

    def unused(self, address: IPv4Address) -> bool:
        """The model's words: nobody lists it, it says which pod it is for, and that pod is not being made there."""
        attrs = self.block_of(address).allocation(address).attrs  # type: ignore[union-attr]
        if any(address in addresses for _, addresses in self.endpoints.values()):
            return False
        if "pod" not in attrs or self.blind:
            return False
        node, addresses = self.endpoints.get(attrs["pod"], ("", frozenset([address])))
        return not (node == attrs["node"] and not addresses)


def expected(
    past: list[tuple[float, dict[tuple[IPv4Address, int], bool]]], world: World, now: float
) -> set[IPv4Address]:
    """Leaks by the whole history: for each allocation and round, whether it was unused then."""
    leaks: dict[IPv4Address, bool] = {}
    handles: dict[IPv4Address, str | None] = {}
    held = [a for block in world.blocks.values() for a in block.allocated() if a.released_at is None]
    busy = {
        a.attrs.get("node") or world.block_of(a.address).owner.name  # type: ignore[arg-type, union-attr]
        for a in held
        if not world.unused(a.address) and not _orphan_tunnel(a.attrs, a.address, world)  # type: ignore[arg-type]
    }
    for allocation in held:
        address = allocation.address
        assert isinstance(address, IPv4Address)
        handles[address] = allocation.handle
        node = allocation.attrs.get("node", "")
        if _orphan_tunnel(allocation.attrs, address, world):
            leaks[address] = node not in busy
            continue
        key = address, allocation.sequence or 0
        unbroken = now
        for then, unused in reversed(past):
            if not unused.get(key, False):
                break
            unbroken = then
        patience = max(GRACE_S, VM_GRACE_S) if "vmi-name" in allocation.attrs else GRACE_S
        leaks[address] = world.unused(address) and (node not in world.nodes or now - unbroken >= patience)
    return {
        address
        for address, leaked in leaks.items()
        if leaked and all(leaks[other] for other in leaks if handles[other] == handles[address])
    }


def _orphan_tunnel(attrs: dict[str, str], address: IPv4Address, world: World) -> bool:
    listed = any(address in addresses for _, addresses in world.endpoints.values())
    return attrs.get("type") == "vxlanTunnelAddress" and attrs["node"] not in world.nodes and not listed


@settings(max_examples=max(300, settings().max_examples))
@given(histories)
def test_what_is_leaked_is_what_the_whole_history_says(history: list[tuple[list[Change], int]]) -> None:
    world, memory, now = World(), Memory(), 1000.0
    past: Past = []
    for changes_, seconds in history:
        for change in changes_:
            world.do(change)
        now += seconds
        held = [a for block in world.blocks.values() for a in block.allocated() if a.released_at is None]
        past.append(
            (now, {(a.address, a.sequence or 0): world.unused(a.address) for a in held})  # type: ignore[arg-type, misc]
        )
        blocks = list(world.blocks.values())
        decision = decide(
            blocks,
            [(Owner.host(n), c) for c, n in zip(CIDRS, NODES, strict=True)],
            world.users(),
            memory,
            now_s=now,
            now=START + timedelta(seconds=now),
            grace_s=GRACE_S,
            cooldown_s=60,
        )
        leaked = {option.address for option in decision.leaks}
        assert leaked == expected(past, world, now)
        listed = {a for _, addresses in world.endpoints.values() for a in addresses}
        assert not leaked & listed, "an address in use"
        for option in decision.leaks:
            siblings = {a.address for a in held if a.handle == option.handle}
            assert siblings <= leaked, "half of a handle"
            there = world.block_of(option.address).allocation(option.address)  # type: ignore[arg-type]
            assert there is not None
            assert there.attrs.keys() & {"pod", "type"}, "nobody knows whose it is"
            assert (option.handle, option.sequence) == (there.handle, there.sequence)
        for node in decision.gone_nodes:
            assert node not in world.nodes
            assert all(a.address in leaked or world.unused(a.address) for a in held if a.attrs.get("node") == node)
        memory = decision.memory


@given(st.integers(1, 5), st.sets(st.integers(0, 4)), st.integers(0, 3))
def test_idle_blocks_go_and_one_always_stays(count: int, used: set[int], rounds: int) -> None:
    """Whatever is empty: a node that has a block has one afterwards, and nothing in use is given up."""
    cidrs = list(IPv4Network("10.1.0.0/24").subnets(new_prefix=30))[:count]
    blocks = []
    for n, cidr in enumerate(cidrs):
        block = new_block(cidr, Owner.host("a"), START, 1)
        blocks.append(allocate_exact(block, cidr[0], "h", {"node": "a"}) if n in used else block)
    memory, users = Memory(), Users({"a": NodeView()})
    given_up: set[object] = set()
    for n in range(rounds + 1):
        decision = decide(
            blocks, [], users, memory, now_s=n * GRACE_S, now=START, grace_s=GRACE_S, cooldown_s=0
        )  # fmt: skip
        memory, given_up = decision.memory, {cidr for _, cidr in decision.idle_blocks}
    busy = {cidr for n, cidr in enumerate(cidrs) if n in used}
    assert not given_up & busy
    expected_kept = max(len(busy), 1)
    assert len(cidrs) - len(given_up) == (expected_kept if rounds else len(cidrs))
