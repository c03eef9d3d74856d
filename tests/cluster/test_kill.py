"""kill -9 of any one part while pods talk: nothing allowed is lost, nothing denied passes, nothing flaps afterwards.

Load: 1,000 UDP packets a second and 100 new TCP connections a second over allowed flows, long-lived streams, and 50
attempts a second over denied ones, on both nodes and between them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from libs.testkit.cluster import Cluster, Pod
from libs.testkit.traffic import Load
from tests.cluster.conftest import ALLOW, DENY, World, open_world, until
from tests.cluster.kernel_state import routes

pytestmark = pytest.mark.asyncio(loop_scope="module")

POLICY = """
kind: GlobalNetworkPolicy
metadata: {name: front}
spec:
  selector: role == 'server'
  types: [Ingress]
  ingress:
  - {action: Allow, source: {selector: role == 'client'}, destination: {ports: [8080]}, protocol: TCP}
  - {action: Allow, source: {selector: role == 'client'}, destination: {ports: [8080]}, protocol: UDP}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(crash_etcd: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        cluster = Cluster.create(nodes=2, tcp_ports=(8080, 9090), udp_ports=(8080,), etcd_binary=crash_etcd)
        made = await open_world(stack, cluster)
        await cluster.add_namespace("ns1")
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(world: World) -> dict[str, Pod]:
    add = world.cluster.add_pod
    made = {
        "server1": await add("node1", "server1", namespace="ns1", labels={"role": "server"}),
        "server2": await add("node2", "server2", namespace="ns1", labels={"role": "server"}),
        "client1": await add("node1", "client1", namespace="ns1", labels={"role": "client"}),
        "client2": await add("node2", "client2", namespace="ns1", labels={"role": "client"}),
        "stranger": await add("node1", "stranger", namespace="ns1", labels={"role": "other"}),
    }
    await world.apply(POLICY)
    return made


async def written(world: World) -> list[float]:
    """What every felix has written to nftables so far: rules, elements, transactions."""
    names = ("felix_nft_rules_written_total", "felix_nft_elements_written_total", "felix_nft_calls_total")
    return [await world.metric(node.name, name) for node in world.cluster.nodes for name in names]


def handles(world: World) -> list[str]:
    """Both tables of both nodes with handles and without counters: a rule written anew has another handle."""
    return [
        world.run(node.name, "nft", "-a", "-s", "list", "table", family, "calico")
        for node in world.cluster.nodes
        for family in ("ip", "ip6")
    ]


def kill(world: World, part: str) -> None:
    cluster = world.cluster
    {
        "felix": lambda: cluster.kill_felix("node1"),
        "typha": cluster.kill_typha,
        "nats": cluster.nats.kill,
        "etcd": cluster.etcd.kill,
    }[part]()


async def start(world: World, part: str) -> None:
    cluster = world.cluster
    await {
        "felix": lambda: cluster.start_felix("node1"),
        "typha": cluster.start_typha,
        "nats": cluster.nats.start_async,
        "etcd": cluster.etcd.start_async,
    }[part]()


@pytest.mark.parametrize("part", ["felix", "typha", "nats", "etcd"])
async def test_kill_9_under_load_loses_nothing_and_flaps_nothing(world: World, pods: dict[str, Pod], part: str) -> None:
    flow = world.cluster.flow
    pairs = [(a, b) for a in ("client1", "client2") for b in ("server1", "server2")]
    tcp = [flow(pods[a], pods[b], 8080, family=family) for a, b in pairs for family in (4, 6)]
    udp = [flow(pods[a], pods[b], 8080, "udp", family=family) for a, b in pairs for family in (4, 6)]
    denied = [flow(pods["stranger"], pods[b], 8080, family=family) for b in ("server1", "server2") for family in (4, 6)]
    denied += [flow(pods["client1"], pods["server2"], 9090)]
    nodes = [node.name for node in world.cluster.nodes]
    before_rules, before_routes, before_written = handles(world), routes(world, *nodes), await written(world)
    with Load(udp=udp, tcp=tcp, streams=tcp[:4], denied=denied) as load:

        async def another(packets: int) -> None:
            wanted = load.snapshot().udp_sent + packets

            async def sent() -> bool:
                return load.snapshot().udp_sent >= wanted

            await until(sent, 30, f"{packets} more packets")

        await another(500)
        kill(world, part)
        await another(1500)
        await start(world, part)
        await world.cluster.wait_ready()
        # The system works again: a change arrives everywhere, under the same load.
        await world.apply(POLICY.replace("front", f"after-{part}").replace("'server'", "'nobody'"))
        await another(500)
    result = load.result
    assert result.lost_nothing, result
    assert result.denied_passed == 0, result
    assert result.udp_sent > 2500, result
    assert result.tcp_opened > 200, result
    await world.delete("GlobalNetworkPolicy", f"after-{part}")
    assert handles(world) == before_rules
    assert routes(world, *nodes) == before_routes
    if part != "felix":  # its counters begin anew
        assert await written(world) == before_written


async def test_a_pod_comes_and_goes_after_all_that(world: World, pods: dict[str, Pod]) -> None:
    late = await world.cluster.add_pod("node2", "late", namespace="ns1", labels={"role": "client"})
    await world.check([(late, pods["server1"], 8080, "tcp", ALLOW), (late, pods["server1"], 9090, "tcp", DENY)])
    await world.cluster.remove_pod(late)

    async def gone() -> bool:
        return all(str(late.address(4)) not in text for text in handles(world))

    await until(gone, 30, "the pod's address leaves every set")
