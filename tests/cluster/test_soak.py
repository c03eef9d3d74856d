"""Ten minutes (SOAK_S) of random faults and changes under load; only `./dev hunt` runs it."""

from __future__ import annotations

import os
import time
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random

import pytest

from libs.testkit.cluster import Cluster
from libs.testkit.traffic import Load
from tests.cluster.conftest import open_world
from tests.cluster.test_kill import POLICY, handles, kill, routes, start

PARTS = ("felix", "typha", "nats", "etcd")


@pytest.mark.hunt
@pytest.mark.timeout(7200)
async def test_random_faults_for_a_long_time_lose_nothing(crash_etcd: Path) -> None:
    seed = int(os.environ.get("SOAK_SEED", time.time_ns()))
    print(f"SOAK_SEED={seed}")
    chance = Random(seed)
    async with AsyncExitStack() as stack:
        cluster = Cluster.create(nodes=2, tcp_ports=(8080,), udp_ports=(8080,), etcd_binary=crash_etcd)
        world = await open_world(stack, cluster)
        await cluster.add_namespace("ns1")
        server = await cluster.add_pod("node1", "server", namespace="ns1", labels={"role": "server"})
        client = await cluster.add_pod("node2", "client", namespace="ns1", labels={"role": "client"})
        stranger = await cluster.add_pod("node2", "stranger", namespace="ns1", labels={"role": "other"})
        await world.apply(POLICY)
        before = handles(world), routes(world)
        allowed = [cluster.flow(client, server, 8080, family=family) for family in (4, 6)]
        udp = [cluster.flow(client, server, 8080, "udp", family=family) for family in (4, 6)]
        denied = [cluster.flow(stranger, server, 8080, family=family) for family in (4, 6)]
        until = time.monotonic() + float(os.environ.get("SOAK_S", "600"))
        rounds = 0
        with Load(udp=udp, tcp=allowed, streams=allowed, denied=denied) as load:
            while time.monotonic() < until:
                part = chance.choice(PARTS)
                kill(world, part)
                await start(world, part)
                await cluster.wait_ready()
                pod = await cluster.add_pod(f"node{chance.randint(1, 2)}", f"pod{rounds}", namespace="ns1", probe=False)
                await world.apply(POLICY.replace("front", "other").replace("'server'", "'nobody'"), timeout_s=60)
                await cluster.remove_pod(pod)
                await world.delete("GlobalNetworkPolicy", "other", timeout_s=60)
                rounds += 1
        assert load.result.lost_nothing, load.result
        assert load.result.denied_passed == 0, load.result
        assert rounds > 3
        assert (handles(world), routes(world)) == before
