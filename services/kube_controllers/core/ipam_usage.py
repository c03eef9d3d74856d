"""Figures of address management for monitoring: what `ipam_*` metrics say, from blocks and pools. Pure.

Labels are Calico's (facts/ipam.md section 10): by pool and node; a block outside every pool counts to `no_ippool`, one
without a host to `no_affinity`, an allocation that does not say its node to `unknown_node`. Pools that exist have a
zero for every node, so that a quotient of two series is never without a value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from libs.ipam.block import Block
from libs.ipam.handles import WINDOWS_RESERVED
from libs.ipam.pools import Pool, Reservations, pool_of
from libs.ipam.wire import Address

NO_POOL, NO_AFFINITY, UNKNOWN_NODE = "no_ippool", "no_affinity", "unknown_node"

PerNode = Mapping[tuple[str, str], int]  # pool, node -> count


@dataclass(frozen=True, slots=True)
class Figures:
    in_use: PerNode = field(default_factory=dict)
    borrowed: PerNode = field(default_factory=dict)
    candidates: PerNode = field(default_factory=dict)
    blocks: PerNode = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)  # pool -> addresses
    reserved: Mapping[str, int] = field(default_factory=dict)


def figures(
    pools: Sequence[Pool],
    blocks: Iterable[Block],
    reservations: Reservations,
    nodes: Collection[str],
    suspected: Collection[Address],
) -> Figures:
    """suspected: addresses that garbage collection has its eye on."""
    zeros = {(pool.name, node): 0 for pool in pools for node in nodes}
    in_use, borrowed, candidates = Counter(zeros), Counter(zeros), Counter(zeros)
    owned: Counter[tuple[str, str]] = Counter()
    for block in blocks:
        inside = pool_of(pools, block.cidr.network_address)
        pool = inside.name if inside is not None else NO_POOL
        owner = block.owner.name if block.owner is not None and block.owner.kind == "host" else NO_AFFINITY
        owned[pool, owner] += 1
        for allocation in block.allocated():
            if allocation.released_at is not None or allocation.handle in (None, WINDOWS_RESERVED):
                continue
            node = allocation.attrs.get("node") or UNKNOWN_NODE
            in_use[pool, node] += 1
            borrowed[pool, node] += node not in (UNKNOWN_NODE, owner)
            candidates[pool, node] += allocation.address in suspected
    return Figures(
        in_use,
        borrowed,
        candidates,
        owned,
        {pool.name: pool.cidr.num_addresses for pool in pools},
        {pool.name: reservations.count_in(pool.cidr) for pool in pools},
    )


def by_node(found: PerNode) -> dict[str, int]:
    """All pools together, as Calico's older metrics have it."""
    total: Counter[str] = Counter()
    for (_, node), count in found.items():
        total[node] += count
    return dict(total)
