"""The node service: starts a host up, runs its programs, and the daemons that are neither felix nor bgp.

calico-node run               daemons: tunnel addresses, CalicoNodeStatus, addresses, NetworkUnavailable
calico-node run --supervise   start-up, then the daemons, felix, bgp and the CNI installer
calico-node startup, …        one part of it (`__main__`)
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from libs.kube.api import KubeApi, KubeError
from libs.resources.client import ResourceClient
from libs.resources.errors import ResourceError
from libs.runtime import contact
from libs.runtime.backends import open_bus, open_store
from libs.runtime.exits import ServiceExit
from libs.runtime.service import Service
from libs.store.api import Store, StoreError
from libs.trust import own
from services.node.config import NodeConfig
from services.node.core.programs import BIRD, Program, programs
from services.node.metrics import Metrics
from services.node.shell.addresses import watch_addresses
from services.node.shell.completion import complete_start
from services.node.shell.kubernetes import open_kube, set_network_unavailable
from services.node.shell.node_resource import NodeResource, SettingError
from services.node.shell.probes import bgp_ready_problem, http_problem
from services.node.shell.startup import start_up
from services.node.shell.status import StatusReporter
from services.node.shell.supervisor import Supervised
from services.node.shell.takeover import pools_of, take_over
from services.node.shell.tunnels import TunnelAddresses
from services.node.startup_config import StartupConfig

log = logging.getLogger(__name__)

GOODBYE_S = 5.0
CHILD_GRACE_S = 20.0


async def run(config: NodeConfig, service: Service) -> None:
    """All daemons and, where asked for, all programs, until told to stop."""
    random = Random()
    await _has_own_files(config)
    start = service.health.register("Start", liveness=False)  # or we were ready before anybody could say otherwise
    start.report(ready=False, detail="starting up")
    async with open_store() as store, open_kube(config.kubernetes()) as kube:
        if config.supervise:
            await _started(start_up(config, store, kube, random), service)
        if service.stop.is_set():
            return
        node = config.node_name()
        async with open_bus(f"node-{node}") as bus:
            _tunnels(config, service, store, node, random)
            reporter = StatusReporter(store, bus, node, random, bgp_timeout_s=config.bgp_timeout_s)
            service.spawn(reporter.run(service.health.register("NodeStatus")), name="node status")
            service.spawn(_contact_forever(store, service), name="contact")
            _addresses(config, service, store, kube)
            if config.supervise:
                _programs(config, service, store, node, random)
            completion = None
            if kube is not None:
                completion = service.spawn(_complete(config, service, kube, random), name="completion")
            start.report(detail="all is started")
            service.ready()
            await service.stop.wait()
            if completion is not None:
                completion.cancel()  # it must not say that the network is there after we said that it goes
                await asyncio.wait({completion})
            if config.supervise and kube is not None:
                await _say_goodbye(kube, config.kubernetes_name())


async def _has_own_files(config: StartupConfig) -> None:
    """Raises ServiceExit when the certificate is another node's, or is not there."""
    try:
        shared = await own.check(config.node_name(), os.environ)
    except (own.NotOwn, TimeoutError) as error:
        raise ServiceExit(2, str(error) or "the certificate could not be read in time") from error
    if shared:
        log.warning("the certificate names no node: whoever holds it is all of them", extra={"common_name": shared})
    if exposed := own.exposed(os.environ):
        log.warning("every user of this host can read the key: chmod 0600, its directory 0700", extra={"keys": exposed})


async def _started(work: Coroutine[Any, Any, object], service: Service) -> None:
    """Waits for the start-up, which may take for ever, or for the signal to stop."""
    task = asyncio.ensure_future(work)
    stop = asyncio.ensure_future(service.stop.wait())
    try:
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        for one in (task, stop):
            one.cancel()
        await asyncio.gather(task, stop, return_exceptions=True)


def _tunnels(config: NodeConfig, service: Service, store: Store, node: str, random: Random) -> None:
    metrics = Metrics(service.registry)
    tunnels = service.health.register("TunnelAddresses")
    if config.use_pod_cidr:
        tunnels.report(detail="idle: addresses come from the pod CIDR")
        return
    addresses = TunnelAddresses(
        store, node, random, host_encryption=config.wireguard_host_encryption, observe=metrics.observe_tunnels
    )
    tunnels.report(detail="not looked yet")
    service.spawn(addresses.run(tunnels, config.tunnel_refresh_s), name="tunnel addresses")


def _addresses(config: StartupConfig, service: Service, store: Store, kube: KubeApi | None) -> None:
    try:
        watched = NodeResource(config, ResourceClient(store), kube)
    except SettingError as error:
        raise ServiceExit(2, str(error)) from error
    if watched.watched and config.autodetect_poll_s:
        health = service.health.register("Addresses")
        service.spawn(watch_addresses(watched, config.autodetect_poll_s, health), name="addresses")


def _programs(config: NodeConfig, service: Service, store: Store, node: str, random: Random) -> None:
    for program in _wanted(config, node):
        one = Supervised(program, service.health, random, os.environ, CHILD_GRACE_S)
        service.spawn(one.run(), name=program.name)
        service.spawn(one.watch(config.probe_every_s), name=f"probes of {program.name}")
    if config.backend == BIRD:
        service.spawn(_bgp_sessions(config, service), name="BGP sessions")
    if config.take_over and not config.disable_felix:
        service.spawn(_take_over(config, store), name="take-over")


def _wanted(config: NodeConfig, node: str) -> list[Program]:
    return programs(
        node,
        backend=config.backend,
        felix=not config.disable_felix,
        cni=config.runs_cni(),
        felix_health=(config.felix_health_host, config.felix_health_port),
        bgp_health=(config.bgp_health_host, config.bgp_health_port),
    )


def _bgp_problem(config: NodeConfig) -> str:
    return bgp_ready_problem(config.bgp_socket, config.nodename_file, config.bgp_threshold_s)


async def _bgp_sessions(config: NodeConfig, service: Service) -> None:
    health = service.health.register("BGPSessions", liveness=False)
    while True:
        said = await asyncio.to_thread(_bgp_problem, config)
        health.report(ready=not said, detail=said)
        await asyncio.sleep(config.probe_every_s)


async def _take_over(config: NodeConfig, store: Store) -> None:
    """As soon as felix holds the rules; and once more, for routes, when all sessions are up."""
    for probe in probes(config):
        await _until_well(probe, config.probe_every_s)
        try:
            outcome = await asyncio.to_thread(take_over, await pools_of(store))
        except (StoreError, ResourceError, OSError) as error:
            log.warning("nothing taken over from an earlier Calico", extra={"error": str(error)})
            continue
        if outcome.removed:
            log.info("taken over from a real calico-node", extra={"removed": outcome.removed})
        if outcome.left:
            log.warning("of an earlier Calico there may be something left", extra={"left": outcome.left})


async def _until_well(probe: Callable[[], str], every_s: float) -> None:
    while await asyncio.to_thread(probe):  # noqa: ASYNC110  # another process's state
        await asyncio.sleep(every_s)


async def _complete(config: NodeConfig, service: Service, kube: KubeApi, random: Random) -> None:
    health = service.health.register("Completion", liveness=False)
    # Not part of readiness while it waits: a readiness that waits for itself would never come.
    health.report(detail="waiting for felix and bgp")
    await complete_start(kube, config.kubernetes_name(), probes(config), config.ready_wait_s, random, health)


def probes(config: NodeConfig) -> list[Callable[[], str]]:
    """What has to be well before pods may come."""
    found: list[Callable[[], str]] = [
        functools.partial(http_problem, program.health, "readiness")
        for program in _wanted(config, config.node_name())
        if program.health
    ]
    if config.backend == BIRD:
        found.append(functools.partial(_bgp_problem, config))
    return found


async def _say_goodbye(kube: KubeApi, node: str) -> None:
    try:
        async with asyncio.timeout(GOODBYE_S):
            await set_network_unavailable(kube, node, True)
    except (KubeError, TimeoutError) as error:
        log.warning("condition not set at the end", extra={"error": str(error) or "no answer in time"})


# --- parts of it, each a verb -----------------------------------------------------------------------------------------


async def startup(config: StartupConfig, service: Service) -> None:
    """The node's resource, default pools and the rest of a start; then the end."""
    await _has_own_files(config)
    async with open_store() as store, open_kube(config.kubernetes()) as kube:
        await _started(start_up(config, store, kube, Random()), service)


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


async def monitor_addresses(config: NodeConfig, service: Service) -> None:
    async with open_store() as store, open_kube(config.kubernetes()) as kube:
        _addresses(config, service, store, kube)
        service.ready()
        await service.stop.wait()


async def report_status(config: NodeConfig, service: Service) -> None:
    node = config.node_name()
    async with open_store() as store, open_bus(f"node-{node}") as bus:
        reporter = StatusReporter(store, bus, node, Random(), bgp_timeout_s=config.bgp_timeout_s)
        service.spawn(reporter.run(service.health.register("NodeStatus")), name="node status")
        service.ready()
        await service.stop.wait()


async def complete_startup(config: NodeConfig, service: Service) -> None:
    async with open_kube(config.kubernetes()) as kube:
        if kube is None:
            log.info("no Kubernetes API here: no condition to set")
            return
        await _started(_complete(config, service, kube, Random()), service)


async def shutdown(config: NodeConfig, service: Service) -> None:
    """Kubernetes sends no more pods here. For a container's preStop."""
    async with open_kube(config.kubernetes()) as kube:
        if kube is None:
            log.info("no Kubernetes API here: no condition to set")
            return
        try:
            await set_network_unavailable(kube, config.kubernetes_name(), True)
        except KubeError as error:
            raise ServiceExit(1, str(error)) from error


async def _contact_forever(store: Store, service: Service) -> None:
    """Readiness is that the datastore answers."""
    datastore = service.health.register("Datastore", timeout_s=contact.STALE_S)
    while True:
        why = await contact.trouble(store.status(), StoreError)
        datastore.report(ready=not why, detail=why)
        await asyncio.sleep(contact.EVERY_S)
