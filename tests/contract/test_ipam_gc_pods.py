"""Garbage collection that asks Kubernetes, on the store in memory and on a real etcd: the endpoint of a lost CNI DEL
goes after the grace and its address with it; a pod that is there, or may be, loses nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime

from libs.ipam.collector import GarbageCollector
from libs.ipam.pods import ClusterUnknown, ClusterView, Pod, PodView
from libs.ipam.wire import Address
from tests.contract.ipam_stage import Cluster, of_pod
from tests.contract.test_ipam_gc import held, start

GRACE_S = 900.0


class Pods:
    """An API server, and an informer that may be behind it, away from it, or not started."""

    def __init__(self, *nodes: str) -> None:
        self.now: dict[Pod, PodView] = {}
        self.heard: ClusterView | None = None
        self.nodes = set(nodes)
        self.away = False
        self.asked = 0

    def hear(self, unreadable: frozenset[Pod] = frozenset()) -> None:
        self.heard = ClusterView(dict(self.now), unreadable, frozenset(self.nodes))

    def view(self) -> ClusterView | None:
        return self.heard

    async def pod(self, pod: Pod) -> PodView | None:
        self.asked += 1
        if self.away:
            raise ClusterUnknown("the API server is away")
        return self.now.get(pod)

    async def node_exists(self, node: str) -> bool:
        if self.away:
            raise ClusterUnknown("the API server is away")
        return node in self.nodes


class Stage:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.pods = Pods("node1", "node2")
        self.now_s = 0.0
        self.collector = GarbageCollector(
            cluster.store, cluster.client(), grace_s=GRACE_S, kubernetes=self.pods, monotonic=lambda: self.now_s,
            wall=lambda: datetime.fromtimestamp(cluster.clock() / 1e9, UTC),
        )  # fmt: skip

    async def pod(self, name: str, node: str = "node1", num6: int = 1) -> list[Address]:
        addresses = await start(self.cluster, name, node, num6=num6)
        self.pods.now["ns", name] = PodView(node, frozenset(addresses))
        self.pods.hear()
        return addresses

    async def after(self, seconds: float) -> set[Address]:
        """What a round after so long releases."""
        await self.collector.round()
        self.now_s += seconds
        return set((await self.collector.round()).released)

    async def endpoints(self) -> set[str]:
        listing = await self.cluster.store.list("/calico/resources/v3/projectcalico.org/workloadendpoints/")
        return {kv.key.rsplit("/", 1)[1] for kv in listing.kvs}


async def stage(cluster: Cluster) -> Stage:
    await cluster.pool("four", "10.65.0.0/24", 28)
    await cluster.pool("six", "fd00:65::/112", 124)
    return Stage(cluster)


async def test_i13_pod_deleted_and_its_del_lost_endpoint_and_addresses_go_after_the_grace(cluster: Cluster) -> None:
    made = await stage(cluster)
    lost, live = await made.pod("lost"), await made.pod("live")
    del made.pods.now["ns", "lost"]
    made.pods.hear()
    assert await made.after(GRACE_S - 1) == set()
    assert await made.endpoints() == {"node1-k8s-live-eth0", "node1-k8s-lost-eth0"}
    assert await made.after(1) == set(lost)
    assert await made.endpoints() == {"node1-k8s-live-eth0"}
    assert await held(cluster.client()) == set(live)
    assert await made.after(GRACE_S * 100) == set()


async def test_pod_that_is_there_keeps_all_of_its_addresses_also_those_kubernetes_does_not_list(
    cluster: Cluster,
) -> None:
    made = await stage(cluster)
    first = await made.pod("p")
    second = await cluster.client().auto_assign(of_pod("p"))  # another network's, that only the endpoint lists
    await cluster.endpoint("node1", "p", *first, second.v4[0].ip)
    assert await made.after(GRACE_S * 10) == set()
    await cluster.no_endpoint("node1", "p")  # damage: the pod lives and has its address by Kubernetes' word
    made.pods.now["ns", "p"] = PodView("node1")  # …also before it has one
    made.pods.hear()
    assert await made.after(GRACE_S * 10) == set()


async def test_pod_of_another_sandbox_does_not_keep_the_address_of_the_one_before(cluster: Cluster) -> None:
    """A StatefulSet's pod: the same name, made anew on the same node, with another address."""
    made = await stage(cluster)
    (old,) = await made.pod("db-0", num6=0)
    request = of_pod("db-0")
    new = (await cluster.client().auto_assign(type(request)(handle="k8s-pod-network.new", node="node1", num4=1,
                                                           attrs=request.attrs))).v4[0].ip  # fmt: skip
    await cluster.endpoint("node1", "db-0", new)
    made.pods.now["ns", "db-0"] = PodView("node1", frozenset({new}))
    made.pods.hear()
    assert await made.after(GRACE_S) == {old}
    assert await held(cluster.client()) == {new}


async def test_moved_and_finished_pods_count_as_gone_and_unscheduled_ones_as_there(cluster: Cluster) -> None:
    made = await stage(cluster)
    moved, failed, waits = await made.pod("moved"), await made.pod("failed"), await made.pod("waits")
    made.pods.now["ns", "moved"] = PodView("node2")
    made.pods.now["ns", "failed"] = PodView("node1", frozenset(failed), finished=True)
    made.pods.now["ns", "waits"] = PodView()
    made.pods.hear()
    assert await made.after(GRACE_S) == {*moved, *failed}
    assert await held(cluster.client()) == set(waits)


async def test_node_deleted_releases_at_once_what_its_pods_had(cluster: Cluster) -> None:
    made = await stage(cluster)
    gone, live = await made.pod("gone", "node2"), await made.pod("live")
    made.pods.nodes.discard("node2")
    made.pods.now.pop(("ns", "gone"))
    made.pods.hear()
    await cluster.store.delete("/calico/resources/v3/projectcalico.org/nodes/node2")
    found = await made.collector.round()
    assert set(found.released) == set(gone)
    assert await held(cluster.client()) == set(live)
    await made.collector.round()
    assert [node for node, _ in await cluster.affinities() if node == "node2"] == []


async def test_nothing_goes_while_nobody_answers_or_not_all_is_known(cluster: Cluster) -> None:
    made = await stage(cluster)
    everything = {*await made.pod("lost"), *await made.pod("there")}
    made.pods.now.pop(("ns", "lost"))
    made.pods.heard = None  # not in sync yet
    found = await made.collector.round()
    assert (found.released, list(found.failures)) == ([], ["kubernetes"])
    made.pods.hear()
    made.pods.away = True
    assert await made.after(GRACE_S * 2) == set()
    assert (await made.collector.round()).failures["kubernetes"] == "the API server is away"
    assert made.pods.asked > 0
    made.pods.nodes.clear()  # as if the informer had been told of an empty cluster
    made.pods.heard = ClusterView()
    await cluster.store.delete("/calico/resources/v3/projectcalico.org/nodes/node1")
    assert await made.after(GRACE_S * 2) == set()
    assert await held(cluster.client()) == everything
    assert len(await made.endpoints()) == 2


async def test_api_server_has_the_last_word_over_what_was_heard(cluster: Cluster) -> None:
    made = await stage(cluster)
    mine = await made.pod("p")
    made.pods.heard = ClusterView(nodes=frozenset({"node1", "node2"}))  # the informer missed it
    assert await made.after(GRACE_S * 2) == set()
    assert await made.endpoints() == {"node1-k8s-p-eth0"}
    assert await held(cluster.client()) == set(mine)


async def test_pod_that_nobody_can_read_counts_as_there(cluster: Cluster) -> None:
    made = await stage(cluster)
    mine = await made.pod("p")
    made.pods.now.clear()
    made.pods.hear(frozenset({("ns", "p")}))
    assert await made.after(GRACE_S * 2) == set()
    assert await held(cluster.client()) == set(mine)


async def test_grace_of_zero_deletes_nothing_for_its_age(cluster: Cluster) -> None:
    made = await stage(cluster)
    await made.pod("p")
    made.pods.now.clear()
    made.pods.hear()
    made.collector.grace_s = 0
    assert await made.after(GRACE_S * 100) == set()
    assert len(await made.endpoints()) == 1
