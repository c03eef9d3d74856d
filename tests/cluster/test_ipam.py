"""Addresses of pods where pools are small, for some namespaces only, or being deleted: with traffic across nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any

import pytest
import pytest_asyncio

from libs.ipam.client import IpamClient
from libs.ipam.poolstate import FINALIZER
from libs.resources.errors import NotFound
from libs.resources.patch import PatchType
from libs.resources.pool_lifecycle import PoolLifecycle
from libs.testkit.cluster import CniError, Pod
from tests.cluster.conftest import ALLOW, World

pytestmark = pytest.mark.asyncio(loop_scope="module")

POOL = """
kind: IPPool
metadata: {{name: {name}}}
spec: {{cidr: "{cidr}", blockSize: {size}, {more}}}
"""


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def clean(world: World) -> AsyncIterator[None]:
    yield
    for pod in world.cluster.pods():
        await world.cluster.remove_pod(pod)


def from_pools(four: str, six: str) -> dict[str, Any]:
    return {
        "ipam": {
            "type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true",
            "ipv4_pools": [four], "ipv6_pools": [six],
        }
    }  # fmt: skip


async def connected(world: World, *pods: Pod) -> None:
    """Every pod reaches every other one, both families and protocols."""
    pairs = [(a, b) for a in pods for b in pods if a is not b]
    await world.check([(a, b, 8080, protocol, ALLOW) for a, b in pairs for protocol in ("tcp", "udp")])


async def test_i08_addresses_borrowed_from_another_nodes_block_are_reached(world: World) -> None:
    """One block in all: the second node uses the first one's, and each address has a route of its own."""
    await world.apply(POOL.format(name="small4", cidr="10.201.0.0/29", size=29, more="assignmentMode: Manual"))
    await world.apply(POOL.format(name="small6", cidr="fd00:201::/125", size=125, more="assignmentMode: Manual"))
    config = from_pools("small4", "small6")
    owner = await world.cluster.add_pod("node1", "owner", config=config)
    borrower = await world.cluster.add_pod("node2", "borrower", config=config)
    mate = await world.cluster.add_pod("node2", "mate", config=config)
    for version, pool in ((4, "10.201.0.0/29"), (6, "fd00:201::/125")):
        assert all(pod.address(version) in ip_network(pool) for pod in (owner, borrower, mate))
        blocks = [b for b in await IpamClient(world.store).blocks() if b.cidr == ip_network(pool)]
        assert [str(block.owner) for block in blocks] == ["host:node1"]
    await connected(world, owner, borrower, mate)
    # The address comes home: its next pod runs on the block's own node, and the other node must find it there.
    address = borrower.address(4)
    await world.cluster.remove_pod(borrower)
    later: list[Pod] = []
    for n in range(8):
        later.append(await world.cluster.add_pod("node1", f"later{n}", config=config))
        if later[-1].address(4) == address:
            break
    assert later[-1].address(4) == address
    await connected(world, later[-1], mate, owner)


async def test_i08_strict_affinity_borrows_nothing(world: World) -> None:
    await world.apply(POOL.format(name="strict4", cidr="10.202.0.0/29", size=29, more="assignmentMode: Manual"))
    await world.apply(POOL.format(name="strict6", cidr="fd00:202::/125", size=125, more="assignmentMode: Manual"))
    config = from_pools("strict4", "strict6")
    ipam = IpamClient(world.store)
    await ipam.set_config(strict_affinity=True)
    try:
        await world.cluster.add_pod("node1", "one", config=config)
        with pytest.raises(CniError, match="no address"):
            await world.cluster.add_pod("node2", "two", config=config)
        assert {a.attrs["node"] for b in await ipam.blocks() for a in b.allocated()} == {"node1"}
    finally:
        await ipam.set_config(strict_affinity=False)


async def test_i05_pool_of_a_namespace_serves_its_pods_and_no_others(world: World) -> None:
    await world.cluster.add_namespace("team-x", labels={"team": "x"})
    await world.cluster.add_namespace("team-y", labels={"team": "y"})
    more = "allowedUses: [Workload], namespaceSelector: \"team == 'x'\""
    await world.apply(POOL.format(name="a-team4", cidr="10.203.0.0/28", size=29, more=more))
    await world.apply(POOL.format(name="a-team6", cidr="fd00:203::/124", size=125, more=more))
    everybody = ("default-ipv4-ippool", "default-ipv6-ippool")
    theirs = {"spec": {"namespaceSelector": "!has(team) || team != 'x'", "allowedUses": ["Workload"]}}
    for name in everybody:
        await world.resources.patch("IPPool", name, theirs, PatchType.MERGE)
    try:
        mine = await world.cluster.add_pod("node1", "mine", namespace="team-x")
        other = await world.cluster.add_pod("node2", "other", namespace="team-y")
        nobody = await world.cluster.add_pod("node2", "nobody")
    finally:
        for name in everybody:
            plain = {"spec": {"namespaceSelector": None, "allowedUses": ["Workload", "Tunnel"]}}
            await world.resources.patch("IPPool", name, plain, PatchType.MERGE)
    for version, pool in ((4, "10.203.0.0/28"), (6, "fd00:203::/124")):
        assert mine.address(version) in ip_network(pool)
        assert other.address(version) not in ip_network(pool)
        assert nobody.address(version) not in ip_network(pool)
    await connected(world, mine, other)


async def test_i21_pool_in_use_is_deleted_after_its_last_pod(world: World) -> None:
    await world.apply(POOL.format(name="going4", cidr="10.204.0.0/28", size=29, more="assignmentMode: Manual"))
    await world.apply(POOL.format(name="going6", cidr="fd00:204::/124", size=125, more="assignmentMode: Manual"))
    config = from_pools("going4", "going6")
    lifecycle = PoolLifecycle(world.store)
    await lifecycle.round()
    pods = [await world.cluster.add_pod(node, f"pod-{node}", config=config) for node in ("node1", "node2")]
    for name in ("going4", "going6"):
        assert (await world.resources.get("IPPool", name)).metadata.finalizers == [FINALIZER]
        await world.resources.delete("IPPool", name)
    with pytest.raises(CniError, match="going"):
        await world.cluster.add_pod("node1", "late", config=config)
    await connected(world, *pods)  # those that run keep their addresses, routes and traffic
    assert set((await lifecycle.round()).waiting) == {"going4", "going6"}
    for pod in pods:
        await world.cluster.remove_pod(pod)
    assert (await lifecycle.round()).removed == ["going4", "going6"]
    for name in ("going4", "going6"):
        with pytest.raises(NotFound):
            await world.resources.get("IPPool", name)
