"""Rules that one resource alone cannot break: they need others to compare with, which the caller has read.

All are functions of given lists and find problems; none reads anything. Names are those of `libs.model.validation`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from libs.model import kinds
from libs.model.base import Resource
from libs.model.bgp import BGPPeer
from libs.model.policy import (
    GlobalNetworkPolicy,
    NetworkPolicy,
    StagedGlobalNetworkPolicy,
    StagedNetworkPolicy,
)
from libs.model.pools import IPPool
from libs.model.validation.checks import Network, is_within, parse_cidr
from libs.model.validation.policy import BUILT_IN_TIERS
from libs.model.validation.problems import Problem

DEFAULT_ALLOW_PROFILE = "projectcalico-default-allow"
_TIERED = (NetworkPolicy, GlobalNetworkPolicy, StagedNetworkPolicy, StagedGlobalNetworkPolicy)


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


def missing_tier(policy: Resource, tiers: Collection[str]) -> list[Problem]:
    """On create a policy's tier must exist. tiers: names. Kinds without a tier pass."""
    if not isinstance(policy, _TIERED) or (policy.spec.tier or "default") in tiers:
        return []
    return [Problem("spec.tier", f"resource does not exist: Tier({policy.spec.tier})", policy.spec.tier)]


def policies_in_tier(tier: str, policies: Iterable[Resource]) -> list[Problem]:
    """A tier cannot be deleted while a policy is in it; names the first of each kind."""
    first: dict[str, Problem] = {}
    for policy in policies:
        if isinstance(policy, _TIERED) and (policy.spec.tier or "default") == tier and policy.kind not in first:
            name = "/".join(filter(None, (policy.metadata.namespace, policy.metadata.name)))
            first[policy.kind] = Problem("", f"tier {tier} still holds {policy.kind} {name}")
    return list(first.values())


def protected(kind: str, name: str, operation: str) -> list[Problem]:
    """What nobody may do, whatever their rights. operation: create, update or delete."""
    if kind == "Tier" and operation == "delete" and name in BUILT_IN_TIERS:
        return [Problem("", f"the tier {name} is built in and cannot be deleted")]
    if kind == "Profile" and name == DEFAULT_ALLOW_PROFILE:
        reason = "already exists" if operation == "create" else f"cannot be {operation}d"
        return [Problem("", f"the profile {name} is built in and {reason}")]
    return []


def singleton_name(kind: str, name: str) -> list[Problem]:
    """Some kinds have one object."""
    if not kinds.kind(kind).singleton or name == "default":
        return []
    return [Problem("metadata.name", f"the only {kind} is named 'default'", name)]


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
