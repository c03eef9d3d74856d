"""The end of a Tier that still holds policies: what its controller writes, so that it waits for the last one. Pure.

    tiers, policies by tier, the clock ──► plan() ──► steps

A tier carries the finalizer `projectcalico.org/tier-controller` while a controller runs. Whoever deletes it then only
sets its deletionTimestamp, and its condition `Ready` says how many policies are left; no policy can be put into it any
more (`libs.resources.rules`). With the last policy goes the finalizer, and with the last finalizer the tier. A tier
without the finalizer cannot be deleted before it is empty, as Calico's clients on etcd have it: nobody would finish.

The built-in tiers cannot be deleted and get no finalizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from libs.model.base import Condition
from libs.model.policy import BUILT_IN_TIERS, Tier, TierStatus

FINALIZER = "projectcalico.org/tier-controller"
READY = "Ready"
_TERMINATING = (
    "Tier is being deleted. {count} policies still reference this tier and must be removed before deletion can "
    "complete."
)


@dataclass(frozen=True, slots=True)
class Write:
    """Store the tier so, provided that it is still at its resource version."""

    tier: Tier


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete the tier's object, provided that it is still at its resource version."""

    tier: Tier


def plan(tiers: Iterable[Tier], policies: Mapping[str, int], now: str) -> list[Write | Remove]:
    """policies: how many each tier holds, those that nobody can read included. now: RFC 3339."""
    steps: list[Write | Remove] = []
    for tier in tiers:
        name = tier.metadata.name
        if name in BUILT_IN_TIERS:
            continue
        left = policies.get(name, 0)
        if not tier.metadata.deletion_timestamp:
            wanted = with_finalizer(tier)
        elif left:  # a user who applied a file may have taken the finalizer away
            wanted = with_finalizer(terminating(tier, left, now))
        else:
            others = [one for one in tier.metadata.finalizers if one != FINALIZER]
            if not others:
                steps.append(Remove(tier))
                continue
            wanted = _with_finalizers(tier, others)
        if wanted != tier:
            steps.append(Write(wanted))
    return steps


def terminating(tier: Tier, left: int, now: str) -> Tier:
    """The tier as a deletion leaves it while it holds policies. The time of transition changes with the status only."""
    present = next((one for one in tier.status.conditions if one.type == READY), None)
    since = present.last_transition_time if present is not None and present.status == "False" else now
    wanted = Condition(
        type=READY, status="False", reason="Terminating", message=_TERMINATING.format(count=left),
        last_transition_time=since,
    )  # fmt: skip
    metadata = msgspec.structs.replace(tier.metadata, deletion_timestamp=tier.metadata.deletion_timestamp or now)
    rest = [one for one in tier.status.conditions if one.type != READY]
    return msgspec.structs.replace(tier, metadata=metadata, status=TierStatus(conditions=[*rest, wanted]))


def with_finalizer(tier: Tier) -> Tier:
    if FINALIZER in tier.metadata.finalizers:
        return tier
    return _with_finalizers(tier, [*tier.metadata.finalizers, FINALIZER])


def waits(tier: Tier) -> bool:
    """Does somebody finish its deletion once it is empty?"""
    return FINALIZER in tier.metadata.finalizers


def _with_finalizers(tier: Tier, finalizers: list[str]) -> Tier:
    return msgspec.structs.replace(tier, metadata=msgspec.structs.replace(tier.metadata, finalizers=finalizers))
