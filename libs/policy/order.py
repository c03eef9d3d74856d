"""The order of tiers and of policies in them, and the split of what applies to an endpoint by how it applies.

Tiers: existing ones first, then order ascending, none given last, then name. Policies in a tier: order ascending, none
given last, ties by the text `name/namespace/kind`. A policy whose tier does not exist is kept, in a tier sorted after
all others. Untracked and pre-DNAT policies never appear among the normal tiers; applyOnForward ones appear in both
lists.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec

from libs.policy.output import PolicyKey, Tier


class TierSpec(msgspec.Struct, frozen=True):
    order: float | None
    default_action: str


class PolicyOrder(msgspec.Struct, frozen=True):
    """What ordering and splitting need to know of a policy: a change in any of these re-evaluates its endpoints."""

    key: PolicyKey
    tier: str
    order: float | None
    ingress: bool
    egress: bool
    untracked: bool = False
    pre_dnat: bool = False
    apply_on_forward: bool = False

    def sort_key(self) -> tuple[float, str]:
        name = f"{self.key.name}/{self.key.namespace}/{self.key.kind}"
        return (math.inf if self.order is None else self.order, name)


class EndpointTiers(msgspec.Struct, frozen=True):
    """Everything that applies to one endpoint. A workload uses `normal` alone."""

    normal: tuple[Tier, ...] = ()
    untracked: tuple[Tier, ...] = ()
    pre_dnat: tuple[Tier, ...] = ()
    forward: tuple[Tier, ...] = ()


def tier_sort_key(name: str, tiers: Mapping[str, TierSpec]) -> tuple[bool, float, str]:
    spec = tiers.get(name)
    order = None if spec is None else spec.order
    return (spec is None, math.inf if order is None else order, name)


def arrange(policies: Iterable[PolicyOrder], tiers: Mapping[str, TierSpec]) -> EndpointTiers:
    """The ordered tiers of an endpoint that `policies` select."""
    by_tier: dict[str, list[PolicyOrder]] = {}
    for policy in policies:
        by_tier.setdefault(policy.tier, []).append(policy)
    normal: list[Tier] = []
    untracked: list[Tier] = []
    pre_dnat: list[Tier] = []
    forward: list[Tier] = []
    for name in sorted(by_tier, key=lambda tier: tier_sort_key(tier, tiers)):
        members = sorted(by_tier[name], key=PolicyOrder.sort_key)
        action = tiers[name].default_action if name in tiers else "Deny"
        tracked = [policy for policy in members if not policy.untracked and not policy.pre_dnat]
        _append(normal, name, action, tracked)
        _append(forward, name, action, [policy for policy in tracked if policy.apply_on_forward])
        _append(untracked, name, "Pass", [policy for policy in members if policy.untracked])
        _append(
            pre_dnat,
            name,
            "Pass",
            [policy for policy in members if policy.pre_dnat and not policy.untracked],
            egress=False,
        )
    return EndpointTiers(tuple(normal), tuple(untracked), tuple(pre_dnat), tuple(forward))


def _append(tiers: list[Tier], name: str, action: str, policies: list[PolicyOrder], *, egress: bool = True) -> None:
    inbound = tuple(policy.key for policy in policies if policy.ingress)
    outbound = tuple(policy.key for policy in policies if policy.egress and egress)
    if inbound or outbound:
        tiers.append(Tier(name=name, default_action=action, ingress=inbound, egress=outbound))
