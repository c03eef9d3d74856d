"""What the plugin asks the datastore, besides addresses."""

from __future__ import annotations

from libs import model
from libs.resources.client import ResourceClient
from libs.resources.errors import NotFound
from services.felix.core.cni.endpoint import Place
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.request import Request


class Datastore:
    def __init__(self, resources: ResourceClient, place: Place) -> None:
        self._resources = resources
        self._place = place

    async def check_unlocked(self) -> None:
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
        try:
            found = await self._resources.get("WorkloadEndpoint", self._place.endpoint_name(request), request.namespace)
        except NotFound:
            return None
        assert isinstance(found, model.WorkloadEndpoint)
        return found

    async def store(self, endpoint: model.WorkloadEndpoint, found: model.WorkloadEndpoint | None) -> int:
        if found is None:
            return (await self._resources.create(endpoint)).revision
        return (await self._resources.update(endpoint)).revision

    async def own_endpoints(self) -> list[model.WorkloadEndpoint]:
        """Of this node, those that a container has."""
        items = (await self._resources.list("WorkloadEndpoint")).items
        endpoints = [item for item in items if isinstance(item, model.WorkloadEndpoint)]
        return [one for one in endpoints if one.spec.node == self._place.node and one.spec.container_id]
