"""What tests of address management share: a datastore in memory or a real etcd, with the few resources that matter."""

from __future__ import annotations

import asyncio
import json
from uuid import uuid4

from libs.ipam import keys
from libs.ipam.affinity import AffinityState, decode_affinity
from libs.ipam.block import Block, decode_block
from libs.ipam.client import IpamClient
from libs.ipam.handles import decode_handle
from libs.ipam.requests import AssignRequest
from libs.ipam.source import StoreSource
from libs.ipam.wire import Network
from libs.model.endpoints import WorkloadEndpointSpec
from libs.model.names import workload_endpoint_name
from libs.store.api import Store
from tests.contract.store_backends import Backend


class Cluster:
    """An empty datastore with the few resources that matter, and a clock that a test may move."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.store: Store = backend.store()
        self.ahead_ns = 0
        self._ns = 1_800_000_000_000_000_000

    def clock(self) -> int:
        self._ns += 1_000
        return self._ns + self.ahead_ns

    def client(self, max_age_s: float = 0.0) -> IpamClient:
        """A process of its own, that knows nothing yet."""
        store = self.backend.store()
        source = StoreSource(store, asyncio.get_running_loop().time, max_age_s)
        return IpamClient(store, source, clock_ns=self.clock)

    async def pool(self, name: str, cidr: str, block_size: int, **spec: object) -> None:
        full = {"cidr": cidr, "blockSize": block_size, "nodeSelector": "all()", "allowedUses": ["Workload", "Tunnel"]}
        await self.put("IPPool", "ippools", name, {**full, **spec})

    async def node(self, name: str, **labels: str) -> None:
        await self.put("Node", "nodes", name, {}, labels)

    async def put(
        self, kind: str, plural: str, name: str, spec: dict[str, object], labels: dict[str, str] | None = None
    ) -> None:
        document = {
            "kind": kind,
            "apiVersion": "projectcalico.org/v3",
            "metadata": {
                "name": name,
                "labels": labels or {},
                "uid": str(uuid4()),
                "creationTimestamp": "2025-12-31T23:00:00Z",
            },
            "spec": spec,
        }
        await self.store.put(keys.resource(plural, name), json.dumps(document).encode())

    async def endpoint(self, node: str, pod: str, *addresses: object, namespace: str = "ns") -> None:
        """The workload endpoint of a pod, as its CNI ADD writes it."""
        name = workload_endpoint_name(WorkloadEndpointSpec(orchestrator="k8s", node=node, pod=pod, endpoint="eth0"))
        networks = [f"{address}/{'128' if ':' in str(address) else '32'}" for address in addresses]
        spec = {"orchestrator": "k8s", "node": node, "pod": pod, "endpoint": "eth0", "ipNetworks": networks}
        await self.put("WorkloadEndpoint", f"workloadendpoints/{namespace}", name, spec)

    async def no_endpoint(self, node: str, pod: str, namespace: str = "ns") -> None:
        name = workload_endpoint_name(WorkloadEndpointSpec(orchestrator="k8s", node=node, pod=pod, endpoint="eth0"))
        await self.store.delete(keys.resource(f"workloadendpoints/{namespace}", name))

    async def blocks(self, version: int = 4) -> dict[Network, Block]:
        found = [decode_block(kv.value) for kv in (await self.store.list(keys.blocks(version))).kvs]
        return {block.cidr: block for block in found}

    async def affinities(self) -> dict[tuple[str, Network], AffinityState]:
        found = {}
        for kv in (await self.store.list(keys.HOSTS)).kvs:
            parsed = keys.parse_affinity(kv.key)
            assert parsed
            found[parsed[0].name, parsed[1]] = decode_affinity(kv.value)
        return found

    async def handle(self, identity: str) -> dict[str, int] | None:
        kv = await self.store.get(keys.handle(identity))
        return {str(c): n for c, n in decode_handle(kv.value).blocks.items()} if kv else None


async def wipe(store: Store) -> None:
    for kv in (await store.list("/calico/", keys_only=True)).kvs:
        await store.delete(kv.key)


def pod(handle: str, node: str = "node1", num4: int = 1, num6: int = 0, **more: object) -> AssignRequest:
    return AssignRequest(handle=handle, node=node, num4=num4, num6=num6, attrs={"node": node}, **more)  # type: ignore[arg-type]


def of_pod(name: str, node: str = "node1", num4: int = 1, num6: int = 0, **more: object) -> AssignRequest:
    """The request of a pod `ns/<name>`, with the attributes that its CNI ADD gives."""
    attrs = {"namespace": "ns", "node": node, "pod": name}
    return AssignRequest(
        handle=f"k8s-pod-network.{name}",
        node=node,
        num4=num4,
        num6=num6,
        attrs=attrs,
        **more,  # type: ignore[arg-type]
    )
