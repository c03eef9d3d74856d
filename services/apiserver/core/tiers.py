"""Tier RBAC: what is asked about a policy besides the policy itself, and how a refusal is worded.

Allowed when the user may get the tier, and has the verb on the pseudo-resource `tier.<plural>` for the policy's name or
for all of the tier's policies (`<tier>.*`). Facts: cni-typha-node-bgp-ctl.md section 6.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.apiserver.core.attributes import Attributes, quoted
from services.apiserver.core.ports import Decision
from services.apiserver.core.request import VERSION, Target
from services.apiserver.core.status import GROUP, ApiError, forbidden

DEFAULT = "default"
"""Tier of policies that name none."""


@dataclass(frozen=True, slots=True)
class Questions:
    """What must be asked: `tier` and one of the others must be allowed."""

    tier: Attributes
    policy: Attributes
    wildcard: Attributes

    def allowed(self, tier: Decision, policy: Decision, wildcard: Decision) -> bool:
        return tier.allowed and (policy.allowed or wildcard.allowed)


def questions(verb: str, target: Target, tier: str) -> Questions:
    plural = f"tier.{target.kind.plural}"

    def on(name: str) -> Attributes:
        return Attributes(verb, GROUP, VERSION, plural, target.subresource, target.namespace, name)

    return Questions(Attributes("get", GROUP, VERSION, "tiers", name=tier), on(target.name), on(f"{tier}.*"))


def refusal(user: str, verb: str, target: Target, tier: str, may_get_tier: bool) -> ApiError:
    resource = f"{target.kind.plural}.{GROUP}" + (f"/{target.subresource}" if target.subresource else "")
    text = f"User {quoted(user)} cannot {verb} {resource} in tier {quoted(tier)}"
    if target.namespace:
        text += f" and namespace {quoted(target.namespace)}"
    if not may_get_tier:
        text += " (user cannot get tier)"
    return forbidden(target.kind.plural, target.name, text)
