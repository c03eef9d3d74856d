"""CHECK: is an attachment as ADD left it? STATUS: could a pod be connected now?"""

from __future__ import annotations

from libs.store.api import StoreError
from services.felix.core.cni.endpoint import Place, addresses_of, endpoint_key
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.request import Request
from services.felix.shell.cni.datastore import Datastore
from services.felix.shell.cni.protocols import NO_POLICY, Enforcement, PodLinks


class Check:
    def __init__(self, place: Place, datastore: Datastore, links: PodLinks, enforcement: Enforcement) -> None:
        self._place = place
        self._datastore = datastore
        self._links = links
        self._enforcement = enforcement

    async def check(self, request: Request) -> None:
        """Raises CniError with everything that is wrong."""
        found = await self._datastore.endpoint(request)
        if found is None:
            raise CniError(Code.UNKNOWN_CONTAINER, f"no endpoint for container {request.container} in the datastore")
        problems: list[str] = []
        if found.spec.container_id != request.container:
            problems.append(f"the endpoint belongs to container {found.spec.container_id}")
        host = self._place.host_interface(request)
        addresses = addresses_of(found)
        problems += self._links.check(host, request.netns, request.ifname, addresses, found.spec.mac)
        if not self._enforcement.enforced(endpoint_key(request)):
            problems.append(f"policy of {host} is not in the kernel")
        if problems:
            raise CniError(Code.CHECK_FAILED, "; ".join(problems))

    async def status(self) -> None:
        """Raises CniError."""
        if not self._enforcement.ready():
            raise CniError(Code.NOT_AVAILABLE, NO_POLICY)
        try:
            await self._datastore.check_unlocked()
        except (CniError, StoreError) as error:
            raise CniError(Code.NOT_AVAILABLE, "no pod can be connected now", str(error)) from error
