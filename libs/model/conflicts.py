"""Rules that one resource alone cannot break: they need others to compare with, which the caller has read.

All are functions of given lists and find problems; none reads anything. Names are those of `libs.model.validation`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from libs.model.bgp import BGPPeer
from libs.model.pools import IPPool
from libs.model.problems import Problem
from libs.model.validation.checks import Network, is_within, parse_cidr


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


FELIX_ROUTES = "EnabledIPIPOnly"
"""What felix programs when nothing is said."""
OTHER_OWNER = {
    "EnabledIPIPOnly": "EnabledNoEncapOnly",
    "EnabledNoEncapOnly": "EnabledIPIPOnly",
    "Enabled": "Disabled",
    "Disabled": "Enabled",
}
"""programClusterRoutes of one of felix and bgp -> that of the other: each route to a block has one owner."""


def route_owners(felix: Mapping[str, str], bgp: Mapping[str, str]) -> list[str]:
    """Pairs of which both would program a route, or none. felix, bgp: programClusterRoutes by name of the resource
    (`default`, `node.<name>`), those that are set. Where bgp's is not set it follows felix's, so the pair can be
    changed one resource at a time, felix's first, and is right at each step.
    """
    wrong = []
    for name in sorted({*felix, *bgp, "default"}):
        theirs = felix.get(name) or felix.get("default") or FELIX_ROUTES
        ours = bgp.get(name) or bgp.get("default")
        if ours and ours != OTHER_OWNER.get(theirs):
            said = "" if felix.get(name) or felix.get("default") else ", which is its default"
            wrong.append(
                f"programClusterRoutes of FelixConfiguration({name}) is {theirs}{said}, and of BGPConfiguration({name})"
                f" {ours}: the latter must be {OTHER_OWNER.get(theirs)}, or not be set"
            )
    return wrong


def overlaps(one: Network, other: Network) -> bool:
    return is_within(one, other) or is_within(other, one)


def _network(cidr: str) -> Network | None:
    parsed = parse_cidr(cidr)
    return None if parsed is None else parsed[1]
