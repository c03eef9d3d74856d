"""Controllers that keep the datastore in order, on the store in memory and on a real etcd: the end of tiers and pools,
etcd's history, garbage by datastore alone with its figures.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from random import Random

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from libs import model
from libs.ipam.client import IpamClient
from libs.ipam.poolstate import FINALIZER as POOL_FINALIZER
from libs.ipam.source import StoreSource
from libs.model.base import Resource
from libs.resources import codec, tier_state
from libs.resources.client import ResourceClient
from libs.resources.errors import NotFound, NotSupported
from libs.resources.mirror import Mirror
from libs.resources.options import WriteOptions
from libs.resources.pool_lifecycle import PoolLifecycle
from libs.store.api import Compacted
from libs.store.compactor import KEY, Compactor
from services.kube_controllers.core.settings import Environment, default_configuration, running
from services.kube_controllers.ipam_metrics import IpamMetrics
from services.kube_controllers.shell.compaction import Compaction
from services.kube_controllers.shell.ipam_garbage import IpamGarbage
from services.kube_controllers.shell.pools import Pools
from services.kube_controllers.shell.tiers import Tiers
from tests.contract.ipam_stage import Cluster, of_pod

SETTINGS = running(default_configuration().spec, Environment())
LIKE_THE_APISERVER = WriteOptions(generation=True, finalizers=True)


def resource(kind: str, name: str, **spec: object) -> Resource:
    return codec.from_json(
        {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": {"name": name}, "spec": spec}
    )


class Upkeep:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.store = cluster.store
        self.resources = ResourceClient(cluster.store)
        self.mirror = Mirror(cluster.store, Tiers.reads | IpamGarbage.reads, lambda kinds: None, Random(1))
        self.tiers = Tiers(self.mirror, cluster.store)

    async def tend(self) -> None:
        """A round of the tier controller that knows everything so far."""
        await self.mirror.reached(
            (await self.store.get(codec.key(codec.identity_of("Tier", "mark"))) or _NONE).mod_revision
        )
        await self.tiers.round(SETTINGS)

    async def settled(self) -> None:
        """The controller has seen what is there now, and has nothing left to do."""
        await self.store.delete(codec.key(codec.identity_of("Tier", "mark")))
        await self.resources.create(resource("Tier", "mark"))
        await self.tend()

    async def tier(self, name: str) -> model.Tier:
        found = await self.resources.get("Tier", name)
        assert isinstance(found, model.Tier)
        return found


class _None:
    mod_revision = 0


_NONE = _None()


@pytest.fixture
async def upkeep(cluster: Cluster) -> AsyncIterator[Upkeep]:
    made = Upkeep(cluster)
    await made.resources.ensure_initialized()
    following = asyncio.create_task(made.mirror.run())
    await made.mirror.reached(1)
    yield made
    following.cancel()


@pytest.mark.parametrize("options", [WriteOptions(), LIKE_THE_APISERVER], ids=["calicoctl", "apiserver"])
async def test_k04_tier_with_policies_stays_pending_says_so_and_goes_with_the_last(
    upkeep: Upkeep, options: WriteOptions
) -> None:
    await upkeep.resources.create(resource("Tier", "sec", order=5))
    await upkeep.settled()
    assert (await upkeep.tier("sec")).metadata.finalizers == [tier_state.FINALIZER]
    for name in ("p", "q"):
        await upkeep.resources.create(resource("GlobalNetworkPolicy", name, tier="sec"))
    written = await upkeep.resources.delete("Tier", "sec", options=options)
    assert not written.deleted
    pending = await upkeep.tier("sec")
    assert pending.metadata.deletion_timestamp
    (condition,) = pending.status.conditions
    assert (condition.type, condition.status, condition.reason) == ("Ready", "False", "Terminating")
    assert "2 policies still reference this tier" in condition.message
    with pytest.raises(NotSupported, match="tier sec is being deleted"):
        await upkeep.resources.create(resource("GlobalNetworkPolicy", "late", tier="sec"))
    await upkeep.resources.delete("GlobalNetworkPolicy", "p")
    await upkeep.settled()
    assert "1 policies" in (await upkeep.tier("sec")).status.conditions[0].message
    assert not (await upkeep.resources.delete("Tier", "sec", options=options)).deleted  # a second time changes nothing
    await upkeep.resources.delete("GlobalNetworkPolicy", "q")
    await upkeep.settled()
    with pytest.raises(NotFound):
        await upkeep.tier("sec")


async def test_k04_empty_tier_goes_at_once_and_one_without_controller_is_refused(upkeep: Upkeep) -> None:
    await upkeep.resources.create(resource("Tier", "empty"))
    await upkeep.settled()
    assert (await upkeep.resources.delete("Tier", "empty")).deleted
    await upkeep.resources.create(resource("Tier", "alone"))
    await upkeep.resources.create(resource("GlobalNetworkPolicy", "p", tier="alone"))
    with pytest.raises(NotSupported, match="not empty"):
        await upkeep.resources.delete("Tier", "alone")
    with pytest.raises(NotSupported, match="built-in"):
        await upkeep.resources.delete("Tier", "default")
    assert (await upkeep.tier("default")).metadata.finalizers == []


async def test_k04_policy_that_nobody_can_read_keeps_its_tier(upkeep: Upkeep) -> None:
    await upkeep.resources.create(resource("Tier", "sec"))
    await upkeep.settled()
    await upkeep.resources.create(resource("GlobalNetworkPolicy", "p", tier="sec"))
    await upkeep.resources.delete("Tier", "sec")
    key = codec.key(codec.identity_of("GlobalNetworkPolicy", "p"))
    await upkeep.store.put(key, b'{"spec": 7}')
    await upkeep.settled()
    assert (await upkeep.tier("sec")).metadata.deletion_timestamp
    await upkeep.store.delete(key)
    await upkeep.settled()
    with pytest.raises(NotFound):
        await upkeep.tier("sec")


async def test_i21_pool_controller_gives_finalizers_and_ends_a_deleted_pool_with_its_last_block(upkeep: Upkeep) -> None:
    cluster = upkeep.cluster
    await cluster.pool("p", "10.65.0.0/28", 30)
    pools = Pools(PoolLifecycle(cluster.store, ipam=cluster.client()))
    await pools.round(SETTINGS)
    assert (await upkeep.resources.get("IPPool", "p")).metadata.finalizers == [POOL_FINALIZER]
    client = cluster.client()
    await client.auto_assign(of_pod("a"))
    await upkeep.resources.delete("IPPool", "p")
    found = await pools.round(SETTINGS)
    assert (found.detail, found.again_s) == ("terminating: p with 1 blocks", 5.0)
    await client.release_by_handle("k8s-pod-network.a")
    await pools.round(SETTINGS)
    with pytest.raises(NotFound):
        await upkeep.resources.get("IPPool", "p")


async def test_k06_history_older_than_a_period_goes_once_for_all_who_compact_and_watches_go_on(
    cluster: Cluster,
) -> None:
    store = cluster.store
    first, second = Compactor(store), Compactor(cluster.backend.store())
    await store.delete(KEY)
    written = [await store.put("/t/a", str(n).encode()) for n in range(3)]
    seen: list[bytes] = []

    async def watch() -> None:
        async with aclosing(store.watch("/t/", revision=written[-1])) as batches:
            async for batch in batches:
                seen.extend(event.kv.value for event in batch.events if event.kv is not None)

    async def until_seen(value: bytes) -> None:
        async with asyncio.timeout(20):
            while value not in seen:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    watching = asyncio.create_task(watch())
    try:
        await until_seen(b"2")  # a watch that is not open yet would begin before what is kept
        assert (await first.step(), await second.step()) == (None, None)  # they look first
        looked = (await store.status()).revision
        written.append(await store.put("/t/a", b"young"))
        assert await first.step() == looked
        assert await second.step() is None, "it was done in this period"
        with pytest.raises(Compacted):
            await store.get("/t/a", revision=written[0])
        kept = await store.get("/t/a", revision=looked)
        assert kept is not None
        assert kept.value == b"2", "nothing younger than a period goes"
        raised = await store.get(KEY)
        assert raised is not None
        assert (raised.value, raised.version) == (str(looked).encode(), 1)
        done = [await second.step(), await first.step()]
        assert [bool(one) for one in done].count(True) == 1
        await store.put("/t/a", b"last")
        await until_seen(b"last")
        assert seen == [b"2", b"young", b"last"]
    finally:
        watching.cancel()


async def test_k06_rounds_that_come_early_compact_nothing(cluster: Cluster) -> None:
    await cluster.store.delete(KEY)
    now_s = 0.0
    controller = Compaction(cluster.store, lambda: now_s)
    period_s = SETTINGS.upkeep.compaction_s
    assert (await controller.round(SETTINGS)).again_s == period_s
    now_s = period_s - 1
    assert (await controller.round(SETTINGS)).again_s == 1
    assert await cluster.store.get(KEY) is None
    now_s = period_s
    assert "compacted up to revision" in (await controller.round(SETTINGS)).detail
    none = default_configuration().spec
    none.etcdv3_compaction_period = model.scalars.Duration("0s")
    assert not controller.wanted(running(none, Environment()))


async def test_k08_figures_of_address_management_have_calicos_names_and_labels(upkeep: Upkeep) -> None:
    cluster = upkeep.cluster
    await cluster.pool("four", "10.65.0.0/28", 30)
    await cluster.put("IPReservation", "ipreservations", "r", {"reservedCIDRs": ["10.65.0.15/32"]})
    ipam = IpamClient(cluster.store, StoreSource(cluster.store, asyncio.get_running_loop().time, 0.0))
    got = await ipam.auto_assign(of_pod("lost"))
    registry = CollectorRegistry()
    now_s = 0.0
    metrics = IpamMetrics(registry)
    controller = IpamGarbage(upkeep.mirror, cluster.store, ipam, metrics, None, lambda: now_s)
    assert b"ipam" not in generate_latest(registry)
    await upkeep.settled()
    await controller.round(SETTINGS)
    text = generate_latest(registry).decode()
    for line in (
        'ipam_allocations_in_use{ippool="four",node="node1"} 1.0',
        'ipam_allocations_in_use{ippool="four",node="node2"} 0.0',
        'ipam_allocations_borrowed{ippool="four",node="node1"} 0.0',
        'ipam_allocations_gc_candidates{ippool="four",node="node1"} 1.0',
        'ipam_blocks{ippool="four",node="node1"} 1.0',
        'ipam_ippool_size{ippool="four"} 16.0',
        'ipam_ippool_reserved{ippool="four"} 1.0',
        'ipam_allocations_per_node{node="node1"} 1.0',
        'ipam_allocations_borrowed_per_node{node="node1"} 0.0',
        'ipam_blocks_per_node{node="node1"} 1.0',
    ):
        assert line in text.splitlines(), text
    assert SETTINGS.upkeep.leak_grace_s == 900
    now_s = 900.0
    await controller.round(SETTINGS)
    text = generate_latest(registry).decode()
    assert 'ipam_allocations_gc_reclamations{ippool="four",node="node1"} 1.0' in text
    assert 'ipam_allocations_in_use{ippool="four",node="node1"} 0.0' in text
    assert (await ipam.address_info(got.v4[0].ip)).allocation is None


async def test_nothing_is_collected_while_the_datastore_is_locked(upkeep: Upkeep) -> None:
    cluster = upkeep.cluster
    await cluster.pool("four", "10.65.0.0/28", 30)
    ipam = cluster.client()
    await ipam.auto_assign(of_pod("lost"))
    await cluster.put("ClusterInformation", "clusterinformations", "default", {"datastoreReady": False})
    await upkeep.settled()
    now_s = 0.0
    controller = IpamGarbage(upkeep.mirror, cluster.store, ipam, IpamMetrics(CollectorRegistry()), None, lambda: now_s)
    for _ in range(3):
        assert "locked" in (await controller.round(SETTINGS)).detail
        now_s += 10_000
    await cluster.store.put("/calico/resources/v3/projectcalico.org/clusterinformations/default", b"{damaged")
    await upkeep.settled()
    assert "locked" in (await controller.round(SETTINGS)).detail
    assert len([a for block in await ipam.blocks() for a in block.allocated()]) == 1
