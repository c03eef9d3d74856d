"""What a node asks and tells the Kubernetes API: its internal addresses, kubeadm's subnets, NetworkUnavailable."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from libs.kube.api import STRATEGIC, KubeApi, KubeError
from libs.model.storage import rfc3339
from libs.runtime.exits import ServiceExit
from services.node.core.autodetect import Network
from services.node.core.kubeadm import pod_subnets

log = logging.getLogger(__name__)

CONDITION = "NetworkUnavailable"
REASONS = {
    False: ("CalicoIsUp", "Calico is running on this node"),
    True: ("CalicoIsDown", "Calico is shutting down on this node"),
}


@asynccontextmanager
async def open_kube(credentials: Path | None) -> AsyncIterator[KubeApi | None]:
    """None where there is no Kubernetes. Credentials that are no good end the service with status 2."""
    if credentials is None:
        yield None
        return
    try:
        api = await KubeApi.open(credentials)
    except ValueError as error:
        raise ServiceExit(2, str(error)) from error
    async with api:
        yield api


async def internal_addresses(api: KubeApi, node: str) -> list[IPv4Address | IPv6Address]:
    """InternalIP of the node's status; what is no address is left out, and told. Raises KubeError."""
    found = await api.get(f"/api/v1/nodes/{node}")
    addresses = []
    for one in (found.get("status") or {}).get("addresses") or []:
        if one.get("type") != "InternalIP":
            continue
        try:
            addresses.append(ip_address(str(one.get("address"))))
        except ValueError as error:
            log.warning("InternalIP of our node left out", extra={"node": node, "error": str(error)})
    return addresses


async def kubeadm_subnets(api: KubeApi) -> list[Network] | None:
    """Pod subnets that kubeadm was given; None where it did not make the cluster, or where we may not know."""
    try:
        return pod_subnets(await api.get("/api/v1/namespaces/kube-system/configmaps/kubeadm-config"))
    except KubeError as error:
        if error.code not in (403, 404):
            raise
        log.info("no kubeadm-config", extra={"reason": str(error)})
        return None
    except ValueError as error:
        log.warning("kubeadm's pod subnets are not used", extra={"error": str(error)})
        return None


async def set_network_unavailable(api: KubeApi, node: str, unavailable: bool) -> bool:
    """The scheduler keeps pods off a node while it is True. False when it was so already. Raises KubeError."""
    path, status = f"/api/v1/nodes/{node}", str(unavailable)
    reason, message = REASONS[unavailable]
    found = await api.get(path)
    for one in (found.get("status") or {}).get("conditions") or []:
        if one.get("type") == CONDITION and one.get("status") == status and one.get("reason") == reason:
            return False
    now = rfc3339(datetime.now(UTC))
    condition = {
        "type": CONDITION, "status": status, "reason": reason, "message": message,
        "lastHeartbeatTime": now, "lastTransitionTime": now,
    }  # fmt: skip
    await api.patch(f"{path}/status", {"status": {"conditions": [condition]}}, STRATEGIC)
    log.info("condition set", extra={"condition": CONDITION, "status": status, "node": node})
    return True
