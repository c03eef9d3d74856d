"""ADD that waits for the pod's peers: when it returns, the nodes whose policy selects the pod have its address."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import pytest
import pytest_asyncio

from libs.testkit.cluster import Cluster, CniError, Pod
from libs.testkit.reach import Verdict
from services.felix.core.cni.peers import ANNOTATION
from tests.cluster.conftest import ALLOW, DENY, World, open_world, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

FROM_CLIENTS = """
kind: NetworkPolicy
metadata: {name: from-clients, namespace: ns1}
spec:
  selector: app == 'server'
  types: [Ingress]
  ingress:
    - {action: Allow, source: {selector: app == 'client'}}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        made = await open_world(stack, Cluster.create(nodes=3, tcp_ports=(8080,), udp_ports=()))
        await made.cluster.add_namespace("ns1")
        await made.apply(FROM_CLIENTS)
        await made.cluster.add_pod("node2", "server", namespace="ns1", labels={"app": "server"})
        made.cluster.on_plugged = None  # it is ADD that is asked here how long it waits
        yield made


@contextmanager
def frozen(world: World, node: str) -> Iterator[None]:
    """A node whose felix does nothing, while its kernel forwards."""
    felix = world.cluster.node(node).felix
    felix.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        felix.signal(signal.SIGCONT)


def plug(world: World, name: str, **how: Any) -> asyncio.Task[Pod]:
    return asyncio.create_task(
        world.cluster.add_pod("node1", name, namespace="ns1", labels={"app": "client"}, **how), name=name
    )


async def meets(world: World, pod: Pod, wanted: Verdict) -> None:
    """One try in each family, at once."""
    server = next(one for one in world.cluster.pods() if one.name == "server")
    await world.check([(pod, server, 8080, "tcp", wanted)])


async def enforced_on_its_own_node(world: World, name: str) -> None:
    directory = world.cluster.node("node1").directory / "endpoint-status"

    async def is_up() -> bool:
        return any(name in file for file in os.listdir(directory))

    await until(is_up, 20, f"{name} is up on its own node")  # typha forgets a silent node after 25 s


async def test_without_the_option_add_does_not_wait_for_others(world: World) -> None:
    with frozen(world, "node2"):
        pod = await plug(world, "eager")
        await meets(world, pod, DENY)


@pytest.mark.parametrize(
    "how",
    [{"config": {"peers_setup_timeout_seconds": 30}}, {"annotations": {ANNOTATION: "30"}}],
    ids=["configuration", "annotation"],
)
async def test_add_returns_once_every_peer_has_the_address(world: World, how: dict[str, Any]) -> None:
    name = f"patient-{next(iter(how))[:4]}"
    with frozen(world, "node2"):
        adding = plug(world, name, **how)
        await enforced_on_its_own_node(world, name)
        assert not adding.done()
    await meets(world, await adding, ALLOW)


async def test_nodes_that_nothing_makes_a_peer_are_not_waited_for(world: World) -> None:
    with frozen(world, "node3"):
        pod = await plug(world, "bystander", config={"peers_setup_timeout_seconds": 30})
    await meets(world, pod, ALLOW)


async def test_after_its_time_add_returns_all_the_same_and_says_so(world: World) -> None:
    with frozen(world, "node2"):
        began = time.monotonic()
        pod = await plug(world, "limited", annotations={ANNOTATION: "0.5"}, config={"peers_setup_timeout_seconds": 60})
        assert time.monotonic() - began >= 0.5
        await meets(world, pod, DENY)
    log = (world.cluster.node("node1").directory / "felix.log").read_text()
    assert "node2: " in log.split("other nodes may not have heard of a pod yet")[1].splitlines()[0]


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "61"])
async def test_a_limit_that_is_none_is_refused_before_anything_is_done(world: World, value: str) -> None:
    with pytest.raises(CniError, match="peersSetupTimeoutSeconds") as caught:
        await plug(world, "unsure", annotations={ANNOTATION: value})
    assert caught.value.code == 7
