"""The node service: the daemons of a node that are neither felix nor bgp.

Today tunnel addresses and CalicoNodeStatus. Start-up of a host (addresses, default pools) and supervision get their
modules beside these, and their verbs in `__main__`.
"""

from __future__ import annotations

import asyncio
import logging
from random import Random

from libs.runtime.backends import open_bus, open_store
from libs.runtime.service import Service, ServiceExit
from libs.store.api import Store, StoreError
from services.node.config import NodeConfig
from services.node.metrics import Metrics
from services.node.shell.status import StatusReporter
from services.node.shell.tunnels import TunnelAddresses

log = logging.getLogger(__name__)

CONTACT_EVERY_S = 2.0
CONTACT_TIMEOUT_S = 5.0


async def run(config: NodeConfig, service: Service) -> None:
    """All daemons, until told to stop."""
    node, random = config.node_name(), Random()
    metrics = Metrics(service.registry)
    async with open_store() as store, open_bus(f"node-{node}") as bus:
        tunnels = service.health.register("TunnelAddresses")
        if config.use_pod_cidr:
            tunnels.report(detail="idle: addresses come from the pod CIDR")
        else:
            addresses = TunnelAddresses(
                store, node, random, host_encryption=config.wireguard_host_encryption, observe=metrics.observe_tunnels
            )
            tunnels.report(detail="not looked yet")
            service.spawn(addresses.run(tunnels, config.tunnel_refresh_s), name="tunnel addresses")
        reporter = StatusReporter(store, bus, node, random, bgp_timeout_s=config.bgp_timeout_s)
        statuses = service.health.register("NodeStatus")
        service.spawn(reporter.run(statuses), name="node status")
        service.spawn(_contact_forever(store, service), name="contact")
        service.ready()
        await service.stop.wait()


async def run_once(config: NodeConfig, service: Service) -> None:
    """Tunnel addresses, then the end; status 1 when some could not be had in time."""
    if config.use_pod_cidr:
        log.info("no tunnel addresses: addresses come from the pod CIDR")
        return
    async with open_store() as store:
        addresses = TunnelAddresses(
            store, config.node_name(), Random(), host_encryption=config.wireguard_host_encryption
        )
        done, failed = await addresses.once(config.once_timeout_s)
    if failed:
        raise ServiceExit(1, f"tunnel addresses: {failed}")
    told = {tunnel.value[0]: str(address) for tunnel, address in done.addresses.items()} if done is not None else {}
    log.info("tunnel addresses", extra={"addresses": told})


async def _contact_forever(store: Store, service: Service) -> None:
    """Readiness is that the datastore answers."""
    datastore = service.health.register("Datastore", timeout_s=30.0)
    while True:
        try:
            async with asyncio.timeout(CONTACT_TIMEOUT_S):
                await store.status()
        except (StoreError, TimeoutError) as error:
            datastore.report(ready=False, detail=str(error) or f"no answer within {CONTACT_TIMEOUT_S:g} s")
        else:
            datastore.report()
        await asyncio.sleep(CONTACT_EVERY_S)
