"""IP pools as address management sees them: which pool serves whom, where a pool's blocks lie, and what is reserved.
Pure.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network

from libs.ipam.errors import IpamError, Reason
from libs.ipam.wire import Address, Network
from libs.model import selector

Labels = Mapping[str, str]

DEFAULT_BLOCK_SIZE = {4: 26, 6: 122}


class Use(StrEnum):
    WORKLOAD = "Workload"
    TUNNEL = "Tunnel"
    LOAD_BALANCER = "LoadBalancer"


@dataclass(frozen=True, slots=True)
class Pool:
    """One IPPool. `mod_revision` is the stored object's, 0 when unknown: a transaction then cannot check that it still
    holds.
    """

    name: str
    cidr: Network
    block_size: int  # prefix length of a block
    disabled: bool = False  # also while it is being deleted, or its status says it is not allocatable
    node_selector: str = "all()"
    namespace_selector: str = ""
    uses: frozenset[Use] = frozenset({Use.WORKLOAD, Use.TUNNEL})
    manual: bool = False  # assignmentMode Manual: only on explicit request
    mod_revision: int = 0

    @property
    def block_count(self) -> int:
        return 1 << max(0, self.block_size - self.cidr.prefixlen)

    def block_of(self, address: Address) -> Network:
        """The block an address of this pool lies in."""
        if isinstance(address, IPv4Address):
            return IPv4Network((address, self.block_size), strict=False)
        return IPv6Network((address, self.block_size), strict=False)

    def nth_block(self, index: int) -> Network:
        step = 1 << (self.cidr.max_prefixlen - self.block_size)
        first = int(self.cidr.network_address) + index * step
        # By class: ip_network() would take a small number of an IPv6 pool for an IPv4 address.
        return (
            IPv4Network((first, self.block_size)) if self.cidr.version == 4 else IPv6Network((first, self.block_size))
        )

    def free_blocks(self, owner: str, taken: Iterable[Network]) -> Iterator[Network]:
        """Blocks that overlap none of the existing ones (of any size), from the owner's start on, around the end."""
        bases, wide = _bases(self, taken)
        first, step = int(self.cidr.network_address), 1 << (self.cidr.max_prefixlen - self.block_size)
        start, count = first_block(self, owner), self.block_count
        for n in range(count):
            index = (start + n) % count
            if first + index * step not in bases:
                cidr = self.nth_block(index)
                if not any(cidr.network_address in other for other in wide):
                    yield cidr

    def selects_node(self, labels: Labels) -> bool:
        return selector.parse(self.node_selector).matches(labels)

    def selects_namespace(self, labels: Labels | None) -> bool:
        """labels: None when the address is for no namespace; a pool with a selector then does not apply."""
        if not self.namespace_selector:
            return True
        return labels is not None and selector.parse(self.namespace_selector).matches(labels)


def select_pools(
    pools: Sequence[Pool],
    *,
    version: int,
    use: Use,
    requested: Sequence[str] = (),
    node_labels: Labels | None,
    namespace_labels: Labels | None,
) -> list[Pool]:
    """The pools a request may draw from, in the order to try them.

    requested: names or CIDRs; such pools need not select the node or the namespace and may be manual, but must be
    enabled. node_labels: None when the node is not stored. Raises IpamError: UNKNOWN_POOL, NODE_MISSING, NO_POOLS,
    USE_NOT_ALLOWED.
    """
    enabled = [pool for pool in pools if not pool.disabled and pool.cidr.version == version]
    if requested:
        chosen = []
        for wish in requested:
            found = [pool for pool in enabled if wish == pool.name or _cidr(wish) == pool.cidr]
            if not found:
                raise IpamError(Reason.UNKNOWN_POOL, f"{wish!r} is no enabled IPv{version} pool")
            chosen += [pool for pool in found if pool not in chosen]
    else:
        if node_labels is None:
            raise IpamError(Reason.NODE_MISSING, "the node is not in the datastore: its labels choose the pools")
        chosen = [
            pool
            for pool in enabled
            if not pool.manual and pool.selects_node(node_labels) and pool.selects_namespace(namespace_labels)
        ]
        if not chosen:
            raise IpamError(Reason.NO_POOLS, f"no enabled IPv{version} pool selects this node and namespace")
    allowed = [pool for pool in chosen if use in pool.uses]
    if not allowed:
        names = ", ".join(pool.name for pool in chosen)
        raise IpamError(Reason.USE_NOT_ALLOWED, f"no pool of {names} allows the use {use}")
    return allowed


def pool_of(pools: Iterable[Pool], address: Address) -> Pool | None:
    return next((pool for pool in pools if address in pool.cidr), None)


def first_block(pool: Pool, owner: str) -> int:
    """Index of the block where this owner starts to look.

    Spread by a hash, so that hosts rarely meet, and the same each time, so that a host finds its old blocks again.
    Every client may choose its own start: who owns a block is decided by the datastore alone.
    """
    digest = hashlib.blake2b(f"{owner} {pool.cidr}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "big") % pool.block_count


def _bases(pool: Pool, taken: Iterable[Network]) -> tuple[set[int], list[Network]]:
    """Block starts of the pool that existing blocks occupy, and those existing blocks that span several."""
    bases: set[int] = set()
    wide: list[Network] = []
    mask = ~((1 << (pool.cidr.max_prefixlen - pool.block_size)) - 1)
    for cidr in taken:
        if cidr.version == pool.cidr.version:
            if cidr.prefixlen < pool.block_size:
                wide.append(cidr)
            else:
                bases.add(int(cidr.network_address) & mask)
    return bases, wide


class Reservations:
    """The union of all IPReservations: addresses that are never given out unasked."""

    def __init__(self, cidrs: Iterable[Network] = ()) -> None:
        merged: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
        for low, high, version in sorted((int(c[0]), int(c[-1]), c.version) for c in cidrs):
            ranges = merged[version]
            if ranges and low <= ranges[-1][1] + 1:
                ranges[-1] = (ranges[-1][0], max(high, ranges[-1][1]))
            else:
                ranges.append((low, high))
        self._ranges = merged
        self._lows = {version: [low for low, _ in ranges] for version, ranges in merged.items()}

    def __bool__(self) -> bool:
        return any(self._ranges.values())

    def covers(self, address: Address) -> bool:
        at = bisect_right(self._lows[address.version], int(address)) - 1
        return at >= 0 and int(address) <= self._ranges[address.version][at][1]

    def count_in(self, cidr: Network) -> int:
        """How many addresses of a network are reserved."""
        first, last = int(cidr[0]), int(cidr[-1])
        return sum(
            min(high, last) - max(low, first) + 1
            for low, high in self._ranges[cidr.version]
            if low <= last and high >= first
        )

    def covers_all(self, cidr: Network) -> bool:
        return self.count_in(cidr) == cidr.num_addresses


@lru_cache(maxsize=1024)
def _cidr(text: str) -> Network | None:
    try:
        return ip_network(text)
    except ValueError:
        return None
