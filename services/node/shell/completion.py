"""The end of a start: once felix and bgp are well, Kubernetes may send pods here (NetworkUnavailable is False).

A node that is not well after five minutes is told to be available all the same, as Calico does: it may be well enough,
and its readiness says that it is not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from random import Random

from libs.kube.api import KubeApi, KubeError
from libs.runtime.backoff import Backoff
from libs.runtime.health import Reporter
from services.node.shell.kubernetes import set_network_unavailable

log = logging.getLogger(__name__)

POLL_S = 1.0


async def complete_start(
    api: KubeApi, node: str, probes: Sequence[Callable[[], str]], wait_s: float, random: Random, health: Reporter
) -> None:
    """probes: each gives "" when all is well, else what is not. Returns when the condition is set."""
    said = await _wait_well(probes, wait_s, health)
    if said:
        log.warning("not well in time, going on", extra={"waited_s": wait_s, "reason": said})
    backoff = Backoff(random, first_s=0.5, cap_s=30.0)
    while True:
        try:
            await set_network_unavailable(api, node, False)
        except KubeError as error:
            pause_s = error.pause_s(backoff.next_s())
            health.report(ready=False, detail=f"NetworkUnavailable not set: {error}")
            log.error("condition not set, trying again", extra={"error": str(error), "retry_s": round(pause_s, 2)})
            await asyncio.sleep(pause_s)
        else:
            health.report(detail="NetworkUnavailable is False")
            return


async def _wait_well(probes: Sequence[Callable[[], str]], wait_s: float, health: Reporter) -> str:
    """What is not well in the end; "" when all is."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    while True:
        found = await asyncio.gather(*(asyncio.to_thread(probe) for probe in probes))
        said = "; ".join(one for one in found if one)
        if not said or loop.time() >= deadline:
            return said
        health.report(detail=f"waiting: {said}")
        await asyncio.sleep(POLL_S)
