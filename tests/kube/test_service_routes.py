"""Row S06, whole: a Service and its EndpointSlices in a real kube-apiserver, kube_controllers, etcd, bgp on two nodes,
and what a router outside the cluster learned. With externalTrafficPolicy Local only nodes with a ready pod attract.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from libs.kube.api import KubeApi
from libs.testkit.cluster import Cluster
from libs.testkit.kube.control_plane import ControlPlane
from libs.testkit.netns import can_make_namespaces
from tests.cluster.conftest import World, open_world
from tests.cluster.test_bgp_outside import CONFIGURATION, address, outside, route
from tests.contract.controllers_stage import Replica

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(240)]

NAMESPACE = "default"
SERVICES = f"/api/v1/namespaces/{NAMESPACE}/services"
SLICES = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"
VIP, EXTERNAL = "198.51.100.9", "192.0.2.9"


class Chain:
    """Kubernetes' end (`api`) and the router's (`world`, see test_bgp_outside)."""

    def __init__(self, world: World, api: KubeApi) -> None:
        self.world, self.api = world, api

    async def service(self, name: str, policy: str, vip: str, external: str) -> None:
        spec = {
            "type": "LoadBalancer", "ports": [{"name": "http", "port": 80}], "externalTrafficPolicy": policy,
            "externalIPs": [external],
        }  # fmt: skip
        metadata = {"name": name, "namespace": NAMESPACE}
        await self.api.create(
            SERVICES, {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
        )  # fmt: skip
        await self.api.patch(f"{SERVICES}/{name}/status", {"status": {"loadBalancer": {"ingress": [{"ip": vip}]}}})

    async def slice(self, name: str, service: str, *endpoints: tuple[str, bool]) -> None:
        """endpoints: (node, ready)."""
        await self.api.create(SLICES, {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}], "endpoints": described(*endpoints),
        })  # fmt: skip

    async def change(self, name: str, *endpoints: tuple[str, bool]) -> None:
        await self.api.patch(f"{SLICES}/{name}", {"endpoints": described(*endpoints)})

    async def attracted_by(self, destination: str, *nodes: str) -> None:
        await route(self.world, f"{destination}", address(self.world, *nodes) or None)


def described(*endpoints: tuple[str, bool]) -> list[dict[str, Any]]:
    return [
        {"addresses": [f"10.65.9.{number}"], "nodeName": node, "conditions": {"ready": ready}}
        for number, (node, ready) in enumerate(endpoints, 1)
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chain(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chain]:
    if not can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    directory = tmp_path_factory.mktemp("chain")
    async with AsyncExitStack() as stack:
        cluster = Cluster.create(nodes=2, daemons=("bgp",))
        world = await open_world(stack, cluster)
        await world.apply(CONFIGURATION)
        stack.callback(outside(cluster, directory).stop)
        environment = {"ETCD_ENDPOINTS": cluster.outside_env()["ETCD_ENDPOINTS"]}
        replica = Replica(environment | {"KUBECONFIG": str(control_plane.admin)}, directory / "controllers.log")
        stack.callback(replica.kill)
        api = await KubeApi.open(control_plane.admin)
        stack.push_async_callback(api.close)
        await replica.until_leading()
        yield Chain(world, api)


async def test_s06_only_nodes_with_ready_pods_attract(chain: Chain) -> None:
    await chain.service("web", "Local", VIP, EXTERNAL)
    await chain.slice("web-1", "web", ("node2", True), ("node1", False))
    for destination in (VIP, EXTERNAL):
        await chain.attracted_by(destination, "node2")
    await chain.change("web-1", ("node2", True), ("node1", True))
    await chain.attracted_by(VIP, "node1", "node2")
    await chain.change("web-1", ("node2", False), ("node1", True))
    await chain.attracted_by(VIP, "node1")
    await chain.slice("web-2", "web", ("node2", True))  # a second slice of the same service counts as well
    await chain.attracted_by(VIP, "node1", "node2")
    await chain.api.delete(f"{SLICES}/web-1", {})
    await chain.attracted_by(EXTERNAL, "node2")
    await chain.change("web-2", ("node2", False))
    for destination in (VIP, EXTERNAL):
        await chain.attracted_by(destination)


async def test_s06_a_change_of_the_policy_moves_the_traffic(chain: Chain) -> None:
    """Cluster: no address by itself, the whole range by all nodes; Local again: its own nodes; deleted: nobody."""
    await chain.service("other", "Local", "198.51.100.10", "192.0.2.10")
    await chain.slice("other-1", "other", ("node1", True))
    await chain.attracted_by("198.51.100.10", "node1")
    await chain.api.patch(f"{SERVICES}/other", {"spec": {"externalTrafficPolicy": "Cluster"}})
    await chain.attracted_by("198.51.100.10")
    await chain.attracted_by("198.51.100.0/24", "node1", "node2")
    await chain.api.patch(f"{SERVICES}/other", {"spec": {"externalTrafficPolicy": "Local"}})
    await chain.attracted_by("198.51.100.10", "node1")
    await chain.api.delete(f"{SERVICES}/other", {})
    await chain.attracted_by("198.51.100.10")
