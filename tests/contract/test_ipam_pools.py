"""Deleting pools that are in use, on the store in memory and on a real etcd."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from libs.ipam import keys
from libs.ipam.errors import IpamError, Reason
from libs.ipam.poolstate import FINALIZER, allocatable
from libs.ipam.requests import AssignIpRequest
from libs.model.pools import IPPool
from libs.resources.client import ResourceClient
from libs.resources.errors import NotFound
from libs.resources.pool_lifecycle import PoolLifecycle
from libs.resources.release import IpamRelease
from tests.contract.ipam_stage import Cluster, of_pod


class Stage:
    def __init__(self, cluster: Cluster) -> None:
        async def at_once(seconds: float) -> None:
            await asyncio.sleep(0)

        self.cluster = cluster
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        release = IpamRelease(cluster.store)
        self.resources = ResourceClient(cluster.store, release=release, now=lambda: self.now, sleep=at_once)
        self.lifecycle = PoolLifecycle(cluster.store, now=lambda: self.now)

    async def create(self, name: str, cidr: str, **more: object) -> None:
        await self.cluster.pool(name, cidr, 30, **more)
        await self.lifecycle.round()

    async def pool(self, name: str) -> IPPool:
        found = await self.resources.get("IPPool", name)
        assert isinstance(found, IPPool)
        return found

    async def condition(self, name: str) -> tuple[str, str]:
        found = allocatable(await self.pool(name))
        assert found is not None
        return found.status, found.reason


@pytest.fixture
def stage(cluster: Cluster) -> Stage:
    return Stage(cluster)


async def test_pool_in_use_waits_for_its_last_address_and_gives_none(stage: Stage) -> None:
    await stage.create("p", "10.65.0.0/28")
    client = stage.cluster.client()
    await client.auto_assign(of_pod("a"))
    await client.auto_assign(of_pod("b", "node2"))
    await stage.resources.delete("IPPool", "p")
    assert await stage.condition("p") == ("False", "Terminating")
    assert (await stage.pool("p")).metadata.deletion_timestamp
    with pytest.raises(IpamError) as refused:
        await client.auto_assign(of_pod("c"))
    assert refused.value.reason is Reason.NO_POOLS
    for wish in ("p", "10.65.0.0/28"):
        with pytest.raises(IpamError) as refused:
            await client.auto_assign(of_pod("d", pools4=[wish]))
        assert refused.value.reason is Reason.UNKNOWN_POOL
    address = next(iter(await client.ips_by_handle("k8s-pod-network.a"))).address + 1
    with pytest.raises(IpamError) as refused:
        await client.assign_ip(AssignIpRequest(address=address, handle="e", node="node1"))
    assert refused.value.reason is Reason.NOT_IN_POOL
    assert await stage.cluster.affinities() == {}  # nobody owns blocks of it any more
    assert (await stage.lifecycle.round()).waiting == {"p": 2}
    await client.release_by_handle("k8s-pod-network.a")
    assert (await stage.lifecycle.round()).waiting == {"p": 1}
    await client.release_by_handle("k8s-pod-network.b")
    assert (await stage.lifecycle.round()).removed == ["p"]
    assert await stage.cluster.blocks() == {}
    with pytest.raises(NotFound):
        await stage.pool("p")


async def test_pool_of_idle_blocks_goes_at_once_also_without_a_controller(stage: Stage) -> None:
    await stage.create("p", "10.65.0.0/28")
    await stage.cluster.client().ensure_block("node1", 4)
    await stage.resources.delete("IPPool", "p")
    with pytest.raises(NotFound):
        await stage.pool("p")
    assert (await stage.cluster.store.list(keys.PREFIX)).kvs == []


async def test_cooling_addresses_keep_a_pool_until_they_are_cold(stage: Stage) -> None:
    await stage.create("p", "10.65.0.0/28")
    client = stage.cluster.client()
    await client.set_config(cooldown_s=30)
    await client.auto_assign(of_pod("a"))
    await client.release_by_handle("k8s-pod-network.a")
    lifecycle = PoolLifecycle(stage.cluster.store, ipam=client, now=lambda: stage.now)
    await ResourceClient(stage.cluster.store).delete("IPPool", "p")  # only marks it
    assert (await stage.pool("p")).metadata.deletion_timestamp
    assert (await lifecycle.round()).waiting == {"p": 1}
    stage.cluster.ahead_ns += 32_000_000_000
    assert (await lifecycle.round()).removed == ["p"]


async def test_begun_deletion_survives_the_users_file_and_a_second_delete(stage: Stage) -> None:
    await stage.create("p", "10.65.0.0/28")
    await stage.cluster.client().auto_assign(of_pod("a"))
    await stage.resources.delete("IPPool", "p")
    before = (await stage.pool("p")).metadata.deletion_timestamp
    stage.now = datetime(2027, 1, 1, tzinfo=UTC)
    again = IPPool(spec=(await stage.pool("p")).spec)
    again.metadata.name = "p"
    await stage.resources.apply(again)
    await stage.resources.delete("IPPool", "p")
    pool = await stage.pool("p")
    assert pool.metadata.deletion_timestamp == before
    assert pool.metadata.finalizers == [FINALIZER]
    assert await stage.condition("p") == ("False", "Terminating")


async def test_foreign_finalizer_keeps_the_object_after_ours_is_gone(stage: Stage) -> None:
    await stage.create("p", "10.65.0.0/28")
    pool = await stage.pool("p")
    pool.metadata.finalizers = ["example.org/mine", *pool.metadata.finalizers]
    await stage.resources.update(pool)
    await stage.resources.delete("IPPool", "p")
    assert (await stage.pool("p")).metadata.finalizers == ["example.org/mine"]
    assert (await stage.lifecycle.round()).removed == []


async def test_conditions_tell_why_no_address_can_be_had(stage: Stage) -> None:
    await stage.create("a-first", "10.65.0.0/28")
    await stage.create("b-off", "10.66.0.0/28", disabled=True)
    await stage.create("c-over", "10.65.0.8/29")  # written past the check, as two clients at the same moment could
    assert await stage.condition("a-first") == ("True", "OK")
    assert await stage.condition("b-off") == ("False", "PoolDisabled")
    assert await stage.condition("c-over") == ("False", "CIDROverlap")
    got = await stage.cluster.client().auto_assign(of_pod("a", num4=30))
    assert len(got.v4) == 16
    written = await stage.lifecycle.round()
    assert (written.written, written.failures) == ([], {})  # settled: nothing is written twice
    since = allocatable(await stage.pool("a-first"))
    stage.now = datetime(2027, 1, 1, tzinfo=UTC)
    pool = await stage.pool("a-first")
    pool.spec.disabled = True
    await stage.resources.update(pool)
    await stage.lifecycle.round()
    changed = allocatable(await stage.pool("a-first"))
    assert changed is not None
    assert since is not None
    assert changed.last_transition_time > since.last_transition_time


async def test_pool_without_finalizer_is_deleted_at_once_as_by_calico(stage: Stage) -> None:
    await stage.cluster.pool("p", "10.65.0.0/28", 30)
    await stage.cluster.client().auto_assign(of_pod("a"))
    await stage.resources.delete("IPPool", "p")
    with pytest.raises(NotFound):
        await stage.pool("p")
    (block,) = (await stage.cluster.blocks()).values()
    assert block.owner is None  # the address stays its pod's, and the block goes with it
    await stage.cluster.client().release_by_handle("k8s-pod-network.a")
    assert await stage.cluster.blocks() == {}


async def test_claim_left_half_way_does_not_outlive_its_pool(stage: Stage) -> None:
    await stage.create("p", "10.65.0.0/28")
    await stage.cluster.store.put(
        keys.PREFIX + "host/node1/ipv4/block/10.65.0.0-30", b'{"state":"pending","deleted":false}'
    )
    await stage.resources.delete("IPPool", "p")
    assert (await stage.cluster.store.list(keys.PREFIX)).kvs == []


async def test_pools_that_overlap_are_refused_at_creation(stage: Stage) -> None:
    from libs.resources.errors import ValidationError

    await stage.create("p", "10.65.0.0/28")
    other = IPPool()
    other.metadata.name, other.spec.cidr = "q", "10.65.0.0/24"
    with pytest.raises(ValidationError, match="overlap"):
        await stage.resources.create(other)
    pool = await stage.pool("p")
    pool.spec.block_size = 29
    with pytest.raises(ValidationError, match="blockSize"):
        await stage.resources.update(pool)
