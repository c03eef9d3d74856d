"""A pod's addresses, from Calico's IPAM."""

from __future__ import annotations

import contextlib
import time

from libs.ipam.client import IpamClient
from libs.ipam.errors import HandleMissing
from libs.ipam.pools import Use
from libs.ipam.requests import AssignIpRequest, AssignRequest
from libs.resources.client import ResourceClient
from libs.resources.errors import NotFound
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.request import Request
from services.felix.core.routing import Address


class Addresses:
    def __init__(self, node: str, resources: ResourceClient, ipam: IpamClient) -> None:
        self._node = node
        self._resources = resources
        self._ipam = ipam

    async def assign(self, request: Request) -> tuple[Address, ...]:
        """All that are wanted, or none. Raises CniError, IpamError."""
        num4, num6 = request.wants()
        fixed = request.fixed_addresses()
        if fixed:
            return await self._assign_fixed(request, fixed)
        wanted = AssignRequest(
            handle=request.handle,
            node=self._node,
            num4=num4,
            num6=num6,
            attrs=self._attributes(request),
            pools4=request.config.ipam.ipv4_pools,
            pools6=request.config.ipam.ipv6_pools,
            namespace_labels=await self._namespace_labels(request),
            max_per_handle=1,
        )
        result = await self._ipam.auto_assign(wanted)
        if not result.complete:
            why = ", ".join(f"IPv{version}: {reason}" for version, reason in result.reasons.items())
            await self.release(request.handle)
            raise CniError(Code.NO_ADDRESS, f"no address for the pod on node {self._node}: {why}")
        return (*(given.ip for given in result.v4), *(given.ip for given in result.v6))

    async def release(self, handle: str) -> None:
        """Having none is fine."""
        with contextlib.suppress(HandleMissing):
            await self._ipam.release_by_handle(handle)

    async def held(self, handle: str) -> bool:
        try:
            await self._ipam.ips_by_handle(handle)
        except HandleMissing:
            return False
        return True

    async def _assign_fixed(self, request: Request, fixed: tuple[Address, ...]) -> tuple[Address, ...]:
        for address in fixed:
            await self._ipam.assign_ip(
                AssignIpRequest(
                    address=address,
                    handle=request.handle,
                    node=self._node,
                    attrs=self._attributes(request),
                    use=Use.WORKLOAD,
                    max_per_handle=1,
                )
            )
        return fixed

    def _attributes(self, request: Request) -> dict[str, str]:
        now = time.time_ns()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now // 10**9))
        attributes = {
            "namespace": request.namespace,
            "node": self._node,
            "pod": request.pod,
            "timestamp": f"{stamp}.{now % 10**9:09d} +0000 UTC",
        }
        return {name: value for name, value in attributes.items() if value}

    async def _namespace_labels(self, request: Request) -> dict[str, str] | None:
        """Labels of the pod's namespace, as its profile passes them on (pcns.…)."""
        if not request.is_kubernetes:
            return None
        try:
            profile = await self._resources.get("Profile", f"kns.{request.namespace}")
        except NotFound:
            return {}
        labels: dict[str, str] = getattr(profile.spec, "labels_to_apply", None) or {}
        return {name.removeprefix("pcns."): value for name, value in labels.items() if name.startswith("pcns.")}
