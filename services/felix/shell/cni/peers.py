"""Waiting until the nodes whose policy selects a new pod have its address.

A pod's own policy is in the kernel when ADD returns, but other nodes hear of its address at the same time as it starts:
what it sends first may be refused there. Who asks for it (core/cni/peers.py) waits for them as well.
"""

from __future__ import annotations

import logging

from libs.bus import Bus, BusError
from libs.bus.applied import WaitProblem, listening

log = logging.getLogger(__name__)


class Peers:
    def __init__(self, bus: Bus, node: str) -> None:
        self._bus = bus
        self._node = node

    async def wait(self, rev: int, timeout_s: float) -> bool:
        """Until every other node that revision `rev` concerns, and that reports, has it in its kernel. Afterwards the
        pod is let go all the same: a node that is stuck must not keep pods from starting elsewhere.
        """
        try:
            async with listening(self._bus, timeout_s) as waiter:
                await waiter.until_reached([rev], leave_out=(self._node,), only_alive=True)
        except (WaitProblem, BusError) as problem:
            log.warning("a pod's peers may not know it yet", extra={"revision": rev, "problem": str(problem)})
            return False
        return True
