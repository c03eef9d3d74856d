"""A router outside the cluster, with a speaker of ours as its BGP: it learns blocks and service addresses from the
nodes, and packets from there reach pods and services.

What kube-proxy does to packets for a service is done here by one rule of nftables on every node.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from libs.model import keys
from libs.testkit.cluster import Cluster, Pod
from libs.testkit.http_probe import http_get
from libs.testkit.processes import Process
from services.bgp.core.settings import PeerKind, PeerSettings, SpeakerSettings
from services.bgp.core.settings_file import encode_settings
from tests.cluster.conftest import World, open_world, until
from tests.cluster.test_bgp import blocks

pytestmark = pytest.mark.asyncio(loop_scope="module")

AS = 65000
# Without the mesh: as with BIRD, nodes of a mesh tell an eBGP peer each other's blocks too, with equal paths.
CONFIGURATION = """\
kind: BGPConfiguration
metadata: {name: default}
spec:
  nodeToNodeMeshEnabled: false
  serviceClusterIPs: [{cidr: 10.96.0.0/16}]
  serviceExternalIPs: [{cidr: 192.0.2.0/24}]
  serviceLoadBalancerIPs: [{cidr: 198.51.100.0/24}]
---
kind: BGPPeer
metadata: {name: outside}
spec: {peerIP: 172.31.0.1, asNumber: 65000}
"""


def outside(cluster: Cluster, directory: Path) -> Process:
    """A speaker in the fabric, which peers with every node; started."""
    nodes = tuple(
        PeerSettings(node.name, PeerKind.GLOBAL, IPv4Address(str(node.ipv4.ip)), 64512, AS) for node in cluster.nodes
    )
    settings = SpeakerSettings(
        node="outside", router_id=int(cluster.ipv4.ip), local_as=AS, addresses=(cluster.ipv4.ip,), peers=nodes
    )
    (directory / "outside.json").write_text(encode_settings(settings))
    router = Process(
        "speaker outside",
        [sys.executable, "-m", "services.bgp", "--settings", str(directory / "outside.json"), "--control-socket",
         str(directory / "outside.sock")],
        netns=cluster.fabric, log_path=directory / "outside.log", env=dict(os.environ),
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    router.start()
    return router


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    directory = tmp_path_factory.mktemp("outside")
    async with AsyncExitStack() as stack:
        cluster = Cluster.create(nodes=2, daemons=("bgp",))
        made = await open_world(stack, cluster)
        await made.apply(CONFIGURATION)
        stack.callback(outside(cluster, directory).stop)
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(world: World) -> dict[str, Pod]:
    made = {name: await world.cluster.add_pod(f"node{name[1]}", name) for name in ("p1", "p2")}
    have = await blocks(world)

    async def known() -> bool:
        routes = learned(world)
        return all(cidr in routes for cidrs in have.values() for cidr in cidrs if "." in cidr)

    await until(known, 60, "blocks at the router outside")
    return made


def learned(world: World) -> dict[str, set[str]]:
    """Destination -> gateways, in the kernel of the router outside."""
    told = subprocess.run(
        ["ip", "-n", world.cluster.fabric.name, "-j", "route", "show", "proto", "81"],
        capture_output=True, text=True, check=True, timeout=30,
    ).stdout  # fmt: skip
    return {
        one["dst"]: {hop["gateway"] for hop in one.get("nexthops", [one]) if "gateway" in hop}
        for one in json.loads(told)
    }


def address(world: World, *nodes: str) -> set[str]:
    return {str(world.cluster.node(node).ipv4.ip) for node in nodes}


async def route(world: World, destination: str, gateways: set[str] | None) -> None:
    """Wait until the router outside goes there by exactly these, or not at all."""

    async def so() -> bool:
        return learned(world).get(destination) == gateways

    try:
        await until(so, 60, f"{destination} by {gateways}")
    except AssertionError as error:
        raise AssertionError(f"{error}; it has {learned(world)}") from error


async def service(world: World, name: str, *, cluster_ip: str, policy: str, external: str = "", vip: str = "") -> None:
    spec: dict[str, Any] = {
        "type": "LoadBalancer", "clusterIP": cluster_ip, "clusterIPs": [cluster_ip], "externalTrafficPolicy": policy,
        "externalIPs": [external] if external else [],
    }  # fmt: skip
    status = {"loadBalancer": {"ingress": [{"ip": vip}] if vip else []}}
    metadata = {"name": name, "namespace": "default"}
    await put(world, {"kind": "KubernetesService", "metadata": metadata, "spec": spec, "status": status})


async def put(world: World, value: dict[str, Any]) -> None:
    """As the Kubernetes controllers will write it."""
    key = keys.resource_key(value["kind"], value["metadata"]["name"], value["metadata"].get("namespace", ""))
    await world.store.put(key, json.dumps(value).encode())


async def endpoints(world: World, name: str, *where: Pod) -> None:
    value = {
        "kind": "KubernetesEndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": f"{name}-4", "namespace": "default", "labels": {"kubernetes.io/service-name": name},
        },
        "endpoints": [
            {"addresses": [str(pod.address(4))], "nodeName": pod.node, "conditions": {"ready": True}} for pod in where
        ],
    }  # fmt: skip
    await put(world, value)


def proxy(world: World, node: str, vip: str, pod: Pod) -> None:
    """kube-proxy's part: what is sent to the address goes to the pod."""
    world.run(
        node, "nft",
        "add table ip proxy; add chain ip proxy services { type nat hook prerouting priority dstnat; };"
        f" add rule ip proxy services ip daddr {vip} tcp dport 80 dnat to {pod.address(4)}:8080",
    )  # fmt: skip


async def test_pods_are_reached_from_outside(world: World, pods: dict[str, Pod]) -> None:
    """G02, G11: blocks whole, at an eBGP peer that the nodes know by a global BGPPeer."""
    for pod in pods.values():
        assert (await http_get(world.cluster.fabric, str(pod.address(4)), 8080, "/")).status
    have = await blocks(world)
    for node, cidrs in have.items():
        for cidr in cidrs:
            if "." in cidr:
                assert learned(world)[cidr] == address(world, node)


async def test_ranges_of_services_come_from_every_node(world: World, pods: dict[str, Pod]) -> None:
    """G13, traffic policy Cluster: the whole ranges, by all nodes at once (G18 at the router)."""
    for cidr in ("10.96.0.0/16", "192.0.2.0/24", "198.51.100.0/24"):
        await route(world, cidr, address(world, "node1", "node2"))


async def test_local_traffic_policy_follows_the_endpoints_and_packets_arrive(
    world: World, pods: dict[str, Pod]
) -> None:
    """G13, S05: /32 from nodes with a ready endpoint only; from outside the address answers."""
    await service(world, "web", cluster_ip="10.96.0.9", policy="Local", external="192.0.2.9", vip="198.51.100.9")
    await endpoints(world, "web", pods["p2"])
    for vip in ("192.0.2.9", "198.51.100.9"):
        await route(world, vip, address(world, "node2"))
    proxy(world, "node2", "198.51.100.9", pods["p2"])
    assert (await http_get(world.cluster.fabric, "198.51.100.9", 80, "/")).status
    await endpoints(world, "web", pods["p1"], pods["p2"])
    await route(world, "198.51.100.9", address(world, "node1", "node2"))
    await endpoints(world, "web", pods["p1"])
    await route(world, "198.51.100.9", address(world, "node1"))
    await endpoints(world, "web")
    await route(world, "198.51.100.9", None)


async def test_label_keeps_a_node_out_of_load_balancing(world: World, pods: dict[str, Pod]) -> None:
    """G13: `node.kubernetes.io/exclude-from-external-load-balancers` ends a node's part in seconds; blocks stay."""
    key = keys.resource_key("Node", "node1", "")
    kv = await world.store.get(key)
    assert kv is not None
    node = json.loads(kv.value)
    excluded = json.loads(kv.value)
    excluded["metadata"]["labels"]["node.kubernetes.io/exclude-from-external-load-balancers"] = "true"
    await put(world, excluded)
    await route(world, "198.51.100.0/24", address(world, "node2"))
    cidr = next(cidr for cidr in (await blocks(world))["node1"] if "." in cidr)
    assert learned(world)[cidr] == address(world, "node1")
    await put(world, node)
    await route(world, "198.51.100.0/24", address(world, "node1", "node2"))


async def test_pool_that_may_not_leave_is_not_told(world: World, pods: dict[str, Pod]) -> None:
    """G12: the peer outside forgets the pool's blocks."""
    cidrs = [cidr for cidrs in (await blocks(world)).values() for cidr in cidrs if "." in cidr]
    spec = "{cidr: 10.65.0.0/16, blockSize: 26, disableBGPExport: true}"
    pool = f"kind: IPPool\nmetadata: {{name: default-ipv4-ippool}}\nspec: {spec}\n"
    await world.apply(pool)
    for cidr in cidrs:
        await route(world, cidr, None)
    await world.apply(pool.replace("true", "false"))
    for cidr in cidrs:

        async def back(cidr: str = cidr) -> bool:
            return cidr in learned(world)

        await until(back, 60, f"{cidr} is told again")
