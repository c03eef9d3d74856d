"""Three nodes, of which node3 is in another subnet, behind a router that knows no pods; a pod on each."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from libs.testkit.cluster import Cluster
from libs.testkit.netns import kernel_makes
from tests.cluster.conftest import World, open_world
from tests.cluster.overlays.lab import Overlay, Pods


@pytest.fixture
def overlay(request: pytest.FixtureRequest) -> Overlay:
    found: Overlay = request.param
    if not kernel_makes(found.kind):
        pytest.skip("this kernel has no IP-in-IP tunnels")
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield await open_world(stack, Cluster.create(nodes=3, far=("node3",), daemons=("node",), udp_ports=(8080,)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(world: World) -> Pods:
    await world.cluster.add_namespace("ns1")
    add = world.cluster.add_pod
    return Pods(*[await add(f"node{i}", name, namespace="ns1") for i, name in ((1, "one"), (2, "two"), (3, "far"))])
