"""The controller of tiers: finalizers, and the end of those that are deleted while they hold policies."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime

from libs.model.policy import Tier
from libs.resources import codec, tier_state
from libs.resources.mirror import Mirror
from libs.resources.rules import TIERED
from libs.resources.tier_state import Remove, Write
from libs.store.api import Conflict, Store
from services.kube_controllers.core.controller import Round
from services.kube_controllers.core.settings import Running

log = logging.getLogger(__name__)


class Tiers:
    """The mirror has tiers and policies of one revision, so a tier that is seen terminating and empty stays empty."""

    name = "tiers"
    reads = frozenset({"Tier", *(kind.kind for kind in TIERED)})

    def __init__(self, mirror: Mirror, store: Store, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._mirror = mirror
        self._store = store
        self._now = now

    def wanted(self, settings: Running) -> bool:
        return settings.upkeep.tiers

    async def round(self, settings: Running) -> Round:
        policies = [policy for kind in TIERED for policy in self._mirror.of(kind) if isinstance(policy, TIERED)]
        count = Counter(policy.spec.tier or "default" for policy in policies)
        unreadable = sum(len(self._mirror.unreadable(kind)) for kind in TIERED)
        tiers = self._mirror.of(Tier)
        if unreadable:  # of whichever tier they are: none is taken for empty
            count.update({tier.metadata.name: unreadable for tier in tiers})
        writes: Counter[str] = Counter()
        failures: dict[str, str] = {}
        revision = 0
        for step in tier_state.plan(tiers, count, codec.timestamp(self._now())):
            name = step.tier.metadata.name
            try:
                revision = max(revision, await self._carry_out(step))
            except Conflict:
                failures[name] = "was changed meanwhile"
                continue
            writes["update" if isinstance(step, Write) else "delete"] += 1
        await self._mirror.reached(revision)
        waiting = [
            tier.metadata.name for tier in tiers if tier.metadata.deletion_timestamp and count[tier.metadata.name]
        ]
        return Round(f"terminating: {', '.join(waiting)}" if waiting else "nothing terminating", dict(writes), failures)

    async def _carry_out(self, step: Write | Remove) -> int:
        key, value = codec.to_storage(step.tier)
        revision = int(step.tier.metadata.resource_version)
        if isinstance(step, Write):
            return await self._store.update(key, value, mod_revision=revision)
        log.info("tier deleted, its last policy is gone", extra={"tier": step.tier.metadata.name})
        return await self._store.delete(key, mod_revision=revision) or 0
