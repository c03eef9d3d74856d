"""The life of an IPPool after its creation: what its controller writes so that it can be deleted safely. Pure.

    pools, blocks that exist, the clock ──► plan() ──► steps

A pool carries the finalizer `projectcalico.org/ippool-finalizer`, so that whoever deletes it only sets its
deletionTimestamp. From then on nothing is assigned from it (`Pool.disabled`), its blocks lose their owners, an empty
block is deleted, one in use goes with its last address; with the last block the finalizer goes, and with the last
finalizer the pool. Until then its addresses keep what a pool gives them: routes, encapsulation, NAT.

The condition `Allocatable` says whether addresses may be taken, and why not: Terminating, PoolDisabled, CIDROverlap.
Of two overlapping pools the older one is served.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from ipaddress import ip_network

import msgspec

from libs.ipam.wire import Network
from libs.model.base import Condition
from libs.model.pools import IPPool, IPPoolStatus

FINALIZER = "projectcalico.org/ippool-finalizer"
ALLOCATABLE = "Allocatable"
_MESSAGES = {
    "OK": "IP pool is available for allocation",
    "PoolDisabled": "IP pool is disabled",
    "Terminating": "IP pool is being deleted",
    "CIDROverlap": "IP pool overlaps with the older pool {other}",
}


@dataclass(frozen=True, slots=True)
class Write:
    """Store the pool so, provided that it is still at its resource version."""

    pool: IPPool


@dataclass(frozen=True, slots=True)
class Drain:
    """Take the owners off the pool's blocks: empty ones go, the others go with their last address."""

    pool: IPPool
    blocks: int  # that are left


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete the pool's object, provided that it is still at its resource version."""

    pool: IPPool


Step = Write | Drain | Remove


def plan(pools: Iterable[IPPool], blocks: Collection[Network], now: str) -> list[Step]:
    """What is missing, in order of name. pools: as stored, with resource versions; now: RFC 3339."""
    known = sorted((pool for pool in pools if _cidr(pool) is not None), key=_age)
    steps: list[Step] = []
    for number, pool in enumerate(known):
        older = next((other for other in known[:number] if _overlap(pool, other)), None)
        wanted = _with_condition(pool, *_reason(pool, older), now)
        if not pool.metadata.deletion_timestamp:
            wanted = _with_finalizers(wanted, [*pool.metadata.finalizers, FINALIZER])
        elif left := sum(_inside(cidr, pool) for cidr in blocks):
            steps.append(Drain(pool, left))
        elif FINALIZER in pool.metadata.finalizers:
            others = [name for name in pool.metadata.finalizers if name != FINALIZER]
            wanted = _with_finalizers(wanted, others)
            if not others:
                steps.append(Remove(pool))
                continue
        elif not pool.metadata.finalizers:
            steps.append(Remove(pool))
            continue
        if wanted != pool:
            steps.append(Write(wanted))
    return sorted(steps, key=lambda step: step.pool.metadata.name)


def terminating(pool: IPPool, now: str) -> IPPool:
    """The pool as a deletion leaves it while it has finalizers."""
    metadata = msgspec.structs.replace(pool.metadata, deletion_timestamp=pool.metadata.deletion_timestamp or now)
    return _with_condition(msgspec.structs.replace(pool, metadata=metadata), "Terminating", "", now)


def allocatable(pool: IPPool) -> Condition | None:
    conditions = pool.status.conditions if pool.status else []
    return next((one for one in conditions if one.type == ALLOCATABLE), None)


def _reason(pool: IPPool, older: IPPool | None) -> tuple[str, str]:
    if pool.metadata.deletion_timestamp:
        return "Terminating", ""
    if pool.spec.disabled:
        return "PoolDisabled", ""
    return ("CIDROverlap", older.metadata.name) if older else ("OK", "")


def _with_condition(pool: IPPool, reason: str, other: str, now: str) -> IPPool:
    """The time of transition changes with the status only, as for every condition of Kubernetes."""
    present = allocatable(pool)
    status = "True" if reason == "OK" else "False"
    since = present.last_transition_time if present and present.status == status else now
    message = _MESSAGES[reason].format(other=other)
    wanted = Condition(type=ALLOCATABLE, status=status, last_transition_time=since, reason=reason, message=message)
    if present is not None:
        wanted.observed_generation = present.observed_generation
    if wanted == present:
        return pool
    rest = [one for one in (pool.status.conditions if pool.status else []) if one.type != ALLOCATABLE]
    return msgspec.structs.replace(pool, status=IPPoolStatus(conditions=[*rest, wanted]))


def _with_finalizers(pool: IPPool, finalizers: list[str]) -> IPPool:
    unique = list(dict.fromkeys(finalizers))
    if unique == pool.metadata.finalizers:
        return pool
    return msgspec.structs.replace(pool, metadata=msgspec.structs.replace(pool.metadata, finalizers=unique))


def _age(pool: IPPool) -> tuple[str, str]:
    return pool.metadata.creation_timestamp, pool.metadata.name


def _cidr(pool: IPPool) -> Network | None:
    """None for one that nobody can use; validation lets no such in."""
    try:
        return ip_network(pool.spec.cidr, strict=False)
    except ValueError:
        return None


def _overlap(one: IPPool, other: IPPool) -> bool:
    a, b = _cidr(one), _cidr(other)
    return a is not None and b is not None and a.version == b.version and (a[0] in b or b[0] in a)


def _inside(block: Network, pool: IPPool) -> bool:
    cidr = _cidr(pool)
    return cidr is not None and block.version == cidr.version and block[0] in cidr
