"""Start-up of a node, in Calico's order (cni-typha-node-bgp-ctl.md section 3.3 of the facts): its resource with its
addresses, default pools, cluster information, configuration, and last the file with its name, which tells the CNI
plugin that all of this is there.

Every step may find that another node, or an earlier start that was cut short, did it already: nodes start together.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path
from random import Random
from typing import NoReturn
from uuid import uuid4

import msgspec

from libs.kube.api import KubeApi, KubeError
from libs.model import FelixConfiguration, IPPool, Node
from libs.model.base import ObjectMeta
from libs.model.felixconfig import FelixConfigurationSpec
from libs.model.scalars import Duration
from libs.resources import codec, version_guard
from libs.resources.client import ResourceClient
from libs.resources.errors import AlreadyExists, Identity, ResourceError
from libs.runtime.backoff import Backoff
from libs.runtime.exits import ServiceExit
from libs.runtime.files import write_atomically
from libs.runtime.release import version
from libs.store.api import Conflict, KeyExists, Store, StoreAuthError, StoreError
from services.node.core.addresses import AddressError
from services.node.core.autodetect import Network
from services.node.core.default_pools import PoolError, needed, pool
from services.node.shell.interfaces import host_interfaces
from services.node.shell.kubernetes import kubeadm_subnets
from services.node.shell.node_resource import NodeResource, SettingError
from services.node.startup_config import StartupConfig

log = logging.getLogger(__name__)

ANSWER_S = 5.0
RETRY_S = 1.0
TO_HOST = "Return"
IPV6 = Path("/proc/sys/net/ipv6")


async def start_up(config: StartupConfig, store: Store, kube: KubeApi | None, random: Random) -> Node:
    """All steps; the node as it stands. Raises ServiceExit: 2 for a setting that is no good, 78 for data of a later
    release, 1 for the rest.
    """
    try:
        await wait_for_datastore(store, patient=config.wait_for_datastore, random=random)
        await version_guard.check(store)
        resources = ResourceClient(store)
        node, _ = await NodeResource(config, resources, kube).update(first=True)
        families = await _families(config, resources)
        subnets = await _kubeadm(kube, needed=bool(families))
        await _pools(config, resources, families, subnets or [], random)
        types = config.cluster_type.split(",") + (["kubeadm"] if subnets is not None else [])
        release = version()
        await resources.ensure_initialized(
            release if release != "unknown" else "", ",".join(part.strip() for part in types if part.strip())
        )
        await _felix_configuration(resources, node.metadata.name)
        config.nodename_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(config.nodename_file, node.metadata.name.encode(), mode=0o644)
        os.utime(config.nodename_file)  # its age is the time since this start, also when it had the name already
    except (SettingError, PoolError) as error:
        raise ServiceExit(2, str(error)) from error
    except (AddressError, StoreError, ResourceError, KubeError, OSError) as error:
        raise ServiceExit(1, f"start-up failed: {error}") from error
    bgp = node.spec.bgp
    log.info(
        "node started up",
        extra={
            "node": node.metadata.name,
            "ipv4": bgp.ipv4_address if bgp else "",
            "ipv6": bgp.ipv6_address if bgp else "",
            "backend": config.backend,
        },
    )
    return node


async def wait_for_datastore(store: Store, *, patient: bool, random: Random) -> None:
    """Until it answers. Raises StoreAuthError at once, and what went wrong when not patient."""
    backoff = Backoff(random, first_s=RETRY_S, cap_s=RETRY_S)
    while True:
        try:
            async with asyncio.timeout(ANSWER_S):
                await store.get("/calico/resources/v3/projectcalico.org/clusterinformations/default")
            return
        except StoreAuthError:
            raise
        except (StoreError, TimeoutError) as error:
            said = str(error) or f"no answer within {ANSWER_S:g} s"
            if not patient:
                _unreachable(said)
            log.warning("waiting for the datastore", extra={"error": said})
            await asyncio.sleep(backoff.next_s())


def _unreachable(said: str) -> NoReturn:
    raise ServiceExit(1, f"the datastore does not answer: {said} (WAIT_FOR_DATASTORE=true waits for it)")


async def _kubeadm(kube: KubeApi | None, *, needed: bool) -> list[Network] | None:
    """Where no pool is to be made an API that does not answer is no obstacle: policy must go on without it."""
    if kube is None:
        return None
    try:
        return await kubeadm_subnets(kube)
    except KubeError as error:
        if needed:
            raise
        log.warning("Kubernetes does not tell of kubeadm, going on", extra={"error": str(error)})
        return None


async def _families(config: StartupConfig, resources: ResourceClient) -> list[int]:
    """Those that get a default pool."""
    listed = await resources.list("IPPool")
    existing = [one for one in listed.items if isinstance(one, IPPool)]
    ipv6 = config.ipv6_support and _ipv6_here()
    return needed(config.pool_variables(), no_default_pools=config.no_default_pools, existing=existing, ipv6=ipv6)


async def _pools(
    config: StartupConfig, resources: ResourceClient, families: list[int], subnets: Iterable[Network], random: Random
) -> None:
    if not families:
        return
    variables = config.pool_variables()
    host: list[Network] = [
        ip_network(address.network)
        for one in await asyncio.to_thread(host_interfaces)
        for address in one.addresses
        if not address.is_loopback
    ]
    for family in families:
        wanted = pool(family, variables[family], kubeadm=subnets, host=host, random=random)
        try:
            await resources.create(wanted)
        except AlreadyExists:
            log.info("another node made the pool", extra={"pool": wanted.metadata.name})
        else:
            log.info("pool made", extra={"pool": wanted.metadata.name, "cidr": wanted.spec.cidr})


def _ipv6_here() -> bool:
    return IPV6.exists()


async def _felix_configuration(resources: ResourceClient, node: str) -> None:
    """What Calico's nodes write, so that a real Felix on the same datastore finds what it expects.

    Packets of pods to their own host are left to the host's own rules, unless somebody decided otherwise. The node's
    own resource is written without the defaults of its other fields, which would hide what `default` says of them.
    """
    spec = FelixConfigurationSpec(log_severity_screen="Info", reporting_interval=Duration("0s"))
    with contextlib.suppress(AlreadyExists):
        await resources.create(FelixConfiguration(metadata=ObjectMeta(name="default"), spec=spec))
    identity = Identity(FelixConfiguration.kind, f"node.{node}")
    while True:
        found = await resources.store.get(codec.key(identity))
        own = FelixConfiguration(metadata=ObjectMeta(name=identity.name))
        if found is not None:
            read = codec.from_kv(identity.kind, found)
            assert isinstance(read, FelixConfiguration)
            if read.spec.default_endpoint_to_host_action:
                return
            own = read
        told = msgspec.structs.replace(own.spec, default_endpoint_to_host_action=TO_HOST)
        stamped = codec.with_metadata(
            msgspec.structs.replace(own, spec=told),
            uid=own.metadata.uid or str(uuid4()),
            creation_timestamp=own.metadata.creation_timestamp or codec.timestamp(datetime.now(UTC)),
        )
        key, value = codec.to_storage(stamped)
        with contextlib.suppress(KeyExists, Conflict):
            if found is None:
                await resources.store.create(key, value)
            else:
                await resources.store.update(key, value, mod_revision=found.mod_revision)
            return
