"""Overlays with real packets: three nodes, of which node3 is in another subnet, behind a router that knows no pods."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
import pytest_asyncio

from libs.ipam.client import IpamClient
from libs.resources.client import ResourceClient
from libs.resources.tunnel_addresses import ensure_tunnel_addresses
from libs.testkit.cluster import Cluster, Pod
from libs.testkit.reach import Verdict
from libs.testkit.sniff import Seen, Sniffer
from tests.cluster.conftest import ALLOW, World, open_world, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAMILIES = (4, 6)
POOLS = {4: ("default-ipv4-ippool", "10.65.0.0/16", 26), 6: ("default-ipv6-ippool", "fd00:65::/48", 122)}
DEVICES = {4: "vxlan.calico", 6: "vxlan-v6.calico"}
RECOVER_S = 30.0  # what the feature table allows for a change of encapsulation
HEAL_S = 10.0  # through events; the period of comparing is 90 s


@dataclass(frozen=True)
class Pods:
    """One on each node; far stands behind the router."""

    one: Pod
    two: Pod
    far: Pod


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield await open_world(stack, Cluster.create(nodes=3, far=("node3",), udp_ports=(8080,)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(world: World) -> Pods:
    await world.cluster.add_namespace("ns1")
    add = world.cluster.add_pod
    return Pods(*[await add(f"node{i}", name, namespace="ns1") for i, name in ((1, "one"), (2, "two"), (3, "far"))])


async def give_tunnel_addresses(world: World) -> None:
    """What the node service does when pools change."""
    resources, ipam = ResourceClient(world.store), IpamClient(world.store)
    for node in world.cluster.nodes:
        done = await ensure_tunnel_addresses(resources, ipam, node.name)
        assert not done.failures, done.failures


async def set_mode(world: World, vxlan: str = "Never", ipip: str = "Never") -> None:
    for family, (name, cidr, size) in POOLS.items():
        await world.apply(f"""
kind: IPPool
metadata: {{name: {name}}}
spec: {{cidr: "{cidr}", blockSize: {size}, vxlanMode: {vxlan}, ipipMode: {ipip if family == 4 else "Never"}}}
""")
    await give_tunnel_addresses(world)


async def reachable(world: World, *pairs: tuple[Pod, Pod], timeout_s: float = RECOVER_S) -> None:
    for family in FAMILIES:
        for protocol in ("tcp", "udp"):
            questions = [(a, b, 8080, protocol) for a, b in pairs]
            await world.cluster.eventually(questions, ALLOW, family=family, timeout_s=timeout_s)  # type: ignore[arg-type]


def between(seen: list[Seen], a: Pod, b: Pod, family: int) -> list[Seen]:
    ends = {a.address(family), b.address(family)}
    return [packet for packet in seen if {packet.source, packet.target} == ends]


async def ways(world: World, a: Pod, b: Pod, family: int) -> tuple[int, int]:
    """(packets of the pair seen without a tunnel, in a VXLAN packet) at the second one's node, of one exchange."""
    with Sniffer(world.cluster.fabric, b.node) as wire:
        await world.cluster.eventually([(a, b, 8080, "tcp")], ALLOW, family=family)
        seen = wire.packets()
    inner = [packet.inner() for packet in seen if packet.is_vxlan()]
    return len(between(seen, a, b, family)), len(between([one for one in inner if one is not None], a, b, family))


def links(world: World, node: str) -> set[str]:
    return {line.split()[0].split("@")[0] for line in world.run(node, "ip", "-br", "link").splitlines()}


def route(world: World, node: str, pod: Pod, family: int) -> str:
    return world.run(node, "ip", f"-{family}", "route", "get", str(pod.address(family)))


# --- O01, O02, O04 ----------------------------------------------------------------------------------------------------


async def test_o04_nodes_of_one_subnet_need_no_tunnel_and_no_routing_daemon(world: World, pods: Pods) -> None:
    await set_mode(world)
    await reachable(world, (pods.one, pods.two), (pods.two, pods.one))
    for family in FAMILIES:
        plain, tunnelled = await ways(world, pods.one, pods.two, family)
        assert plain, family
        assert not tunnelled, family
    assert not links(world, "node1") & set(DEVICES.values())
    flows = [(pods.one, pods.far, 8080, "tcp")]
    assert await world.cluster.reach(flows) == [Verdict.DENY], "the router between the subnets knows no pods"  # type: ignore[arg-type]


async def test_o01_o02_vxlan_always_carries_everything_between_nodes(world: World, pods: Pods) -> None:
    await set_mode(world, vxlan="Always")
    pairs = [(a, b) for a in (pods.one, pods.two, pods.far) for b in (pods.one, pods.two, pods.far) if a is not b]
    await reachable(world, *pairs)
    for family in FAMILIES:
        for target in (pods.two, pods.far):
            plain, tunnelled = await ways(world, pods.one, target, family)
            assert tunnelled, (family, target.name)
            assert not plain, (family, target.name)
    node1 = world.cluster.node("node1")
    for family, device in DEVICES.items():
        shown = world.run("node1", "ip", "-d", "-o", "link", "show", device)
        local = (node1.ipv4 if family == 4 else node1.ipv6).ip
        assert "vxlan id 4096 " in shown
        assert f"local {local} dev eth0" in shown
        assert "dstport 4789 nolearning" in shown
        assert f"mtu {1450 if family == 4 else 1430} " in shown
        assert "link/ether 66:" in shown
        assert world.run("node1", "bridge", "fdb", "show", "dev", device).count("self permanent") == 2
    gotten = route(world, "node1", pods.two, 4)
    assert "dev vxlan.calico" in gotten
    assert "mtu 1450" in gotten


async def test_o01_crosssubnet_uses_the_tunnel_for_the_other_subnet_alone(world: World, pods: Pods) -> None:
    await set_mode(world, vxlan="CrossSubnet")
    await reachable(world, (pods.one, pods.two), (pods.one, pods.far), (pods.far, pods.two))

    async def settled() -> bool:
        return all("dev eth0" in route(world, node, pod, family) for family in FAMILIES
                   for node, pod in (("node1", pods.two), ("node2", pods.one)))  # fmt: skip

    await until(settled, RECOVER_S, "direct routes within the subnet")
    for family in FAMILIES:
        plain, tunnelled = await ways(world, pods.one, pods.two, family)
        assert plain, family
        assert not tunnelled, family
        plain, tunnelled = await ways(world, pods.one, pods.far, family)
        assert tunnelled, family
        assert not plain, family
