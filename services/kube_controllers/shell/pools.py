"""The controller of IP pools: finalizers, the condition `Allocatable`, and the end of those that are deleted."""

from __future__ import annotations

from libs.resources.pool_lifecycle import PoolLifecycle
from services.kube_controllers.core.controller import Round
from services.kube_controllers.core.settings import Running

WAITING_S = 5.0
"""While a pool waits for its last block: blocks are no resources, so nothing tells that they go."""
QUIET_S = 300.0


class Pools:
    name = "pools"
    reads = frozenset({"IPPool"})

    def __init__(self, lifecycle: PoolLifecycle) -> None:
        self._lifecycle = lifecycle

    def wanted(self, settings: Running) -> bool:
        return settings.upkeep.pools

    async def round(self, settings: Running) -> Round:
        done = await self._lifecycle.round()
        writes = {"update": len(done.written), "delete": len(done.removed)}
        waiting = ", ".join(f"{name} with {left} blocks" for name, left in done.waiting.items())
        return Round(
            f"terminating: {waiting}" if waiting else "nothing terminating",
            {operation: count for operation, count in writes.items() if count},
            done.failures,
            again_s=WAITING_S if waiting else QUIET_S,
        )
