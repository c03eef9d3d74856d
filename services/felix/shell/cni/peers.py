"""Waiting until other nodes have heard of a pod that comes or goes.

A pod's own policy is in the kernel when ADD returns, but the nodes whose policy selects it hear of its address at the
same time as it starts: what it sends first may be refused there. Who asks for it (core/cni/peers.py) waits for them as
well. And an address is given up only when they have forgotten it.
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
        """Until every other node that revision `rev` concerns, and that reports, has it in its kernel. After the time
        things go on all the same: a node that is stuck must not hold up others.
        """
        if not self._bus.connected:
            return False
        try:
            async with listening(self._bus, timeout_s) as waiter:
                await waiter.until_reached([rev], leave_out=(self._node,), only_alive=True)
        except (WaitProblem, BusError) as problem:
            log.warning("other nodes may not have heard of a pod yet", extra={"revision": rev, "problem": str(problem)})
            return False
        return True
