"""What users see of BGP: `calicoctl node status` and CalicoNodeStatus, with real speakers and the node service."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
import yaml

from libs import model
from libs.testkit.cluster import Cluster
from tests.cluster.conftest import World, open_world, until
from tests.cluster.test_calicoctl import ctl

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        made = await open_world(stack, Cluster.create(nodes=2, daemons=("bgp", "node")))
        await made.cluster.add_pod("node1", "one", probe=False)
        await made.cluster.add_pod("node2", "two", probe=False)
        yield made


async def established(world: World) -> bool:
    done = await ctl(world, "node", "status", "node1", "-o", "json")
    (told,) = json.loads(done.out or "[{}]")
    peers = told.get("bgp", {}).get("peers", [])  # a speaker that does not answer yet is not there
    return len(peers) == 2 and {peer["state"] for peer in peers} == {"Established"}


async def test_g21_node_status_shows_the_mesh_in_both_families(world: World) -> None:
    await until(lambda: established(world), 60, "both sessions of node1 are established")
    done = await ctl(world, "node", "status")
    assert done.status == 0, done
    two = world.cluster.node("node2")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.out.splitlines() if "mesh" in line]
    shown = {(row[0], row[1]): row[2:5] for row in rows}
    for address in (two.ipv4.ip, two.ipv6.ip):
        assert shown["node1", str(address)] == ["node-to-node mesh", "64512", "Established"]
    assert len(rows) == 4
    in_yaml = yaml.safe_load((await ctl(world, "node", "status", "-o", "yaml")).out)
    assert [(one["node"], one["status"], one["bgp"]["ready"]) for one in in_yaml] == [
        ("node1", "up to date", True), ("node2", "up to date", True),
    ]  # fmt: skip


async def test_g21_calico_node_status_tells_agent_sessions_and_routes_and_a_dead_speaker_is_not_ready(
    world: World,
) -> None:
    await world.apply("""
kind: CalicoNodeStatus
metadata: {name: node1}
spec: {node: node1, classes: [Agent, BGP, Routes], updatePeriodSeconds: 1}
""")
    await until(lambda: established(world), 60, "sessions are up")

    async def status() -> model.CalicoNodeStatusStatus:
        found = await world.resources.get("CalicoNodeStatus", "node1")
        assert isinstance(found, model.CalicoNodeStatus)
        return found.status or model.CalicoNodeStatusStatus()

    async def all_told() -> bool:
        told = await status()
        return (
            told.agent is not None
            and told.agent.bird_v4 is not None
            and told.agent.bird_v4.state == "Ready"
            and told.bgp is not None
            and (told.bgp.number_established_v4, told.bgp.number_established_v6) == (1, 1)
            and told.routes is not None
            and any(route.type == "FIB" for route in told.routes.routes_v4)
            and any(route.type == "FIB" for route in told.routes.routes_v6)
        )

    await until(all_told, 60, "the status is complete")
    told = await status()
    assert told.bgp is not None
    two = world.cluster.node("node2")
    assert [(peer.peer_ip, peer.type, peer.state) for peer in (*told.bgp.peers_v4, *told.bgp.peers_v6)] == [
        (str(two.ipv4.ip), "NodeMesh", "Established"), (str(two.ipv6.ip), "NodeMesh", "Established"),
    ]  # fmt: skip
    assert told.routes is not None
    learned = [route for route in told.routes.routes_v4 if route.learned_from and route.learned_from.peer_ip]
    assert {(route.gateway, route.learned_from.source_type) for route in learned if route.learned_from} == {
        (str(two.ipv4.ip), "NodeMesh")
    }
    world.cluster.node("node1").daemons["bgp"].kill()

    async def not_ready() -> bool:
        agent = (await status()).agent
        return agent is not None and agent.bird_v4 is not None and agent.bird_v4.state == "NotReady"

    await until(not_ready, 30, "NotReady once the speaker is dead")
    assert (await status()).bgp is None
