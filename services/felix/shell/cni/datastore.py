"""What the plugin asks the datastore, besides addresses."""

from __future__ import annotations

import contextlib

from libs import model
from libs.resources.client import ResourceClient
from libs.resources.errors import AlreadyExists, Conflict, NotFound
from services.felix.core.cni.endpoint import Place, network_profile
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.request import Request

DELETE_ATTEMPTS = 6


class Datastore:
    def __init__(self, resources: ResourceClient, place: Place) -> None:
        self._resources = resources
        self._place = place

    async def check_unlocked(self) -> None:
        """Raises CniError while the datastore is locked, as during a migration."""
        try:
            info = await self._resources.get("ClusterInformation", "default")
        except NotFound:
            return
        if getattr(info.spec, "datastore_ready", True) is False:
            raise CniError(Code.TRY_AGAIN, "the datastore is locked (ClusterInformation.datastoreReady is false)")

    async def check_node(self) -> None:
        """Without its Node, others would neither find a way to the pods here nor see whose their addresses are."""
        try:
            await self._resources.get("Node", self._place.node)
        except NotFound:
            text = f"there is no Node {self._place.node} in the datastore; is this node's name right?"
            raise CniError(Code.INVALID_CONFIG, text) from None

    async def endpoint(self, request: Request) -> model.WorkloadEndpoint | None:
        return await self.endpoint_named(self._place.endpoint_name(request), request.namespace)

    async def endpoint_named(self, name: str, namespace: str) -> model.WorkloadEndpoint | None:
        try:
            found = await self._resources.get("WorkloadEndpoint", name, namespace)
        except NotFound:
            return None
        assert isinstance(found, model.WorkloadEndpoint)
        return found

    async def store(self, endpoint: model.WorkloadEndpoint, found: model.WorkloadEndpoint | None) -> int:
        """In place of the one that was found; the revision of that. Raises ResourceError."""
        if found is None:
            return (await self._resources.create(endpoint)).revision
        return (await self._resources.update(endpoint)).revision

    async def delete(self, name: str, namespace: str, container: str) -> int | None:
        """The endpoint, if it is that container's: the revision of that, 0 when it was gone. None when it has become
        another's.

        Others (controllers that copy labels) may change it meanwhile: then it is looked at again.
        """
        for attempt in range(1, DELETE_ATTEMPTS + 1):
            found = await self.endpoint_named(name, namespace)
            if found is None:
                return 0
            if found.spec.container_id and found.spec.container_id != container:
                return None
            try:
                version = found.metadata.resource_version
                return (await self._resources.delete("WorkloadEndpoint", name, namespace, version)).revision
            except NotFound:
                return 0
            except Conflict:
                if attempt == DELETE_ATTEMPTS:
                    raise
        return 0

    async def own_endpoints(self) -> list[model.WorkloadEndpoint]:
        """Of this node, those that a container has."""
        items = (await self._resources.list("WorkloadEndpoint")).items
        endpoints = [item for item in items if isinstance(item, model.WorkloadEndpoint)]
        return [one for one in endpoints if one.spec.node == self._place.node and one.spec.container_id]

    async def ensure_profile(self, request: Request) -> None:
        """One that is there already stays as it is."""
        try:
            await self._resources.get("Profile", request.network)
        except NotFound:
            with contextlib.suppress(AlreadyExists):
                await self._resources.create(network_profile(request))
