"""While the node runs: its addresses are detected again, and its resource follows. Peers follow that by themselves."""

from __future__ import annotations

import asyncio
import logging

from libs.kube.api import KubeError
from libs.resources.errors import ResourceError
from libs.runtime.health import Reporter
from libs.store.api import StoreError
from services.node.core.addresses import AddressError
from services.node.shell.node_resource import NodeResource

log = logging.getLogger(__name__)

TRIES = 3
PAUSE_S = 1.0


async def watch_addresses(node: NodeResource, every_s: float, health: Reporter) -> None:
    """For ever. What fails is tried three times, and again in the next turn: the old address stays until then."""
    health.report(detail="not looked yet")
    while True:
        await asyncio.sleep(every_s)
        for left in reversed(range(TRIES)):
            try:
                _, written = await node.update(first=False)
            except (AddressError, StoreError, ResourceError, KubeError, OSError) as error:
                health.report(detail=f"failed: {error}")
                log.warning("addresses not looked at", extra={"error": str(error), "tries_left": left})
                if left:
                    await asyncio.sleep(PAUSE_S)
                continue
            if written:
                log.info("node updated", extra={"node": node.name})
            health.report(detail="as detected")
            break
