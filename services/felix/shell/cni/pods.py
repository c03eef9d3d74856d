"""Where facts about pods come from: the request and the datastore; where there is a Kubernetes API, kubernetes.py."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from typing import Protocol

from libs import model
from libs.resources.client import ResourceClient
from libs.resources.errors import NotFound
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.pod import PodFacts, facts_of
from services.felix.core.cni.request import Request


class PodSource(Protocol):
    async def facts(self, request: Request) -> PodFacts:
        """Raises CniError."""
        ...

    async def pod_cidrs(self, node: str) -> dict[int, str]:
        """What Kubernetes gave a node for its pods, by IP version. Raises CniError."""
        ...


class RequestPods:
    """What the request says of the pod, and the pod CIDRs of the Node's status."""

    def __init__(self, resources: ResourceClient) -> None:
        self._resources = resources

    async def facts(self, request: Request) -> PodFacts:
        return facts_of(request)

    async def pod_cidrs(self, node: str) -> dict[int, str]:
        try:
            found = await self._resources.get("Node", node)
        except NotFound:
            raise CniError(Code.INVALID_CONFIG, f"there is no Node {node} in the datastore") from None
        assert isinstance(found, model.Node)
        return cidrs_by_version(node, found.status.pod_cidrs)


def cidrs_by_version(node: str, texts: Iterable[str]) -> dict[int, str]:
    """Raises CniError when there are several of a family."""
    cidrs = [ip_network(text) for text in texts]
    by_version: dict[int, str] = {cidr.version: str(cidr) for cidr in cidrs}
    if len(by_version) != len(cidrs):
        listed = ", ".join(map(str, cidrs))
        raise CniError(Code.INVALID_CONFIG, f"Node {node} has several pod CIDRs of a family: {listed}")
    return by_version
