"""CHECK: is an attachment as ADD left it? STATUS: could a pod be connected now?"""

from __future__ import annotations

from dataclasses import replace

from libs import model
from libs.ipam.errors import IpamError
from libs.netlink.podlink import PodVeth, host_interface
from libs.store.api import StoreError
from services.felix.core.cni.addressing import Given, wanted
from services.felix.core.cni.config import CALICO_IPAM
from services.felix.core.cni.endpoint import Place, addresses_of, endpoint_key
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.request import Request
from services.felix.core.cni.result import Result
from services.felix.core.cni.versions import at_least
from services.felix.shell.cni.addresses import Addresses
from services.felix.shell.cni.datastore import Datastore
from services.felix.shell.cni.links import pod_link
from services.felix.shell.cni.pods import PodSource
from services.felix.shell.cni.protocols import NO_POLICY, Enforcement, PodLinks

NOT_NOW = "no pod can be connected now"


class Check:
    def __init__(
        self,
        place: Place,
        datastore: Datastore,
        pods: PodSource,
        addresses: Addresses,
        links: PodLinks,
        enforcement: Enforcement,
    ) -> None:
        self._place = place
        self._datastore = datastore
        self._pods = pods
        self._addresses = addresses
        self._links = links
        self._enforcement = enforcement

    async def check(self, request: Request) -> None:
        """Raises CniError with everything that is wrong; StoreError, IpamError when that cannot be told."""
        found = await self._datastore.endpoint(request)
        if found is None:
            raise CniError(Code.UNKNOWN_CONTAINER, f"no endpoint for container {request.container} in the datastore")
        before = request.previous() or Result()
        host = self._place.host_interface(request)
        problems = self._endpoint_problems(request, found, before)
        problems += self._links.check(self._link(request, found, before))
        unmanaged = wanted(request, await self._pods.facts(request)).unmanaged
        if request.config.ipam.type == CALICO_IPAM and not unmanaged:
            problems += await self._addresses.problems(request, addresses_of(found))
        if not self._enforcement.enforced(endpoint_key(request)):
            problems.append(f"policy of {host} is not in the kernel")
        if problems:
            raise CniError(Code.CHECK_FAILED, "; ".join(problems))
        await self._addresses.forward(request)

    def _endpoint_problems(self, request: Request, found: model.WorkloadEndpoint, before: Result) -> list[str]:
        problems: list[str] = []
        host, addresses = self._place.host_interface(request), addresses_of(found)
        if found.spec.container_id != request.container:
            problems.append(f"the endpoint belongs to container {found.spec.container_id}")
        if found.spec.interface_name != host:
            problems.append(f"the endpoint names interface {found.spec.interface_name}, not {host}")
        # Calico's own result names the host's end alone.
        named = before.interface(request.ifname, request.netns) or any(one.name == host for one in before.interfaces)
        if at_least(request.version, "0.3.0") and not named:
            problems.append(f"prevResult has no interface {request.ifname} in {request.netns}")
        answered = before.addresses_of(request.ifname, request.netns)
        lacking = [str(one) for one in answered if one not in addresses]
        problems += [f"the endpoint in the datastore lacks address {one} of prevResult" for one in lacking]
        gone = [str(one) for one in addresses if answered and one not in answered]
        return problems + [f"prevResult lacks address {one} of the endpoint in the datastore" for one in gone]

    def _link(self, request: Request, found: model.WorkloadEndpoint, before: Result) -> PodVeth:
        """What should be there. Later plugins of a chain may have changed the MAC, and said so in their result."""
        inside = before.interface(request.ifname, request.netns)
        mac = inside.mac if inside is not None and inside.mac else found.spec.mac
        mtu = (inside.mtu if inside is not None else 0) or request.config.mtu
        given = Given(tuple(map(host_interface, addresses_of(found))))
        if request.config.ipam.type != CALICO_IPAM and before.routes:
            given = replace(given, routes=tuple(route.dst for route in before.routes))
        return pod_link(request, self._place.host_interface(request), given, mac, mtu)

    async def status(self, request: Request) -> None:
        """Raises CniError."""
        if not self._enforcement.ready():
            raise CniError(Code.NOT_AVAILABLE, NOT_NOW, NO_POLICY)
        failing = self._enforcement.failing()
        if failing:
            text = "the kernel refuses rules: policy of pods is not up to date and no pod can be connected"
            raise CniError(Code.LIMITED, text, failing)
        if not self._enforcement.following():
            raise CniError(Code.NOT_AVAILABLE, NOT_NOW, "changes of policy do not reach this node; is typha reachable?")
        await self.status_of_addresses(request)

    async def status_of_addresses(self, request: Request) -> None:
        """All that needs no dataplane, which is the whole of it for calico-ipam by itself. Raises CniError."""
        try:
            await self._datastore.check_unlocked()
            await self._datastore.check_node()
            if request.config.ipam.type == CALICO_IPAM:
                await self._addresses.check_pools(request)
            await self._addresses.forward(request)
        except (CniError, StoreError, IpamError) as error:
            if isinstance(error, CniError) and error.code in (Code.NOT_AVAILABLE, Code.LIMITED):
                raise
            raise CniError(Code.NOT_AVAILABLE, NOT_NOW, str(error)) from error
