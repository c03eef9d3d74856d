"""Rules that one resource alone cannot break: they need others to compare with, which the caller has read.

All are functions of given lists and find problems; none reads anything. Names are those of `libs.model.validation`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from libs.model.bgp import BGPPeer
from libs.model.pools import IPPool
from libs.model.validation.checks import Network, is_within, parse_cidr
from libs.model.validation.problems import Problem


def overlapping_pools(pool: IPPool, others: Iterable[IPPool]) -> list[Problem]:
    """A new pool must not share an address with any other, disabled or not. The pool itself may be among `others`."""
    mine = _network(pool.spec.cidr)
    if mine is None:
        return []
    return [
        Problem("spec.cidr", f"overlaps with IP pool {other.metadata.name}, {other.spec.cidr}", pool.spec.cidr)
        for other in others
        if other.metadata.name != pool.metadata.name
        and (theirs := _network(other.spec.cidr)) is not None
        and overlaps(mine, theirs)
    ]


def blocks_of_other_size(pool: IPPool, blocks: Iterable[Network]) -> list[Problem]:
    """Blocks left from an earlier pool keep their size; a new pool over them has to have the same."""
    mine = _network(pool.spec.cidr)
    if mine is None or not pool.spec.block_size:
        return []
    wrong = sorted(str(block) for block in blocks if is_within(block, mine) and block.prefixlen != pool.spec.block_size)
    if not wrong:
        return []
    shown = ", ".join(wrong[:3]) + (", …" if wrong[3:] else "")
    return [Problem("spec.blockSize", f"must be the size of the pool's existing blocks: {shown}", pool.spec.block_size)]


def missing_filters(peer: BGPPeer, filters: Collection[str]) -> list[Problem]:
    """Filters that a peer names must exist. filters: names."""
    return [
        Problem(f"spec.filters[{index}]", f"resource does not exist: BGPFilter({name})", name)
        for index, name in enumerate(peer.spec.filters)
        if name not in filters
    ]


def overlaps(one: Network, other: Network) -> bool:
    return is_within(one, other) or is_within(other, one)


def _network(cidr: str) -> Network | None:
    parsed = parse_cidr(cidr)
    return None if parsed is None else parsed[1]
