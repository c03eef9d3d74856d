"""Rows M15 and X06: a node of a real Calico and one of ours on the same etcd, then its move to ours and back under
traffic (docs/install/migration.md). `calico_node` tells what stands for the real one.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from libs.resources.patch import PatchType
from libs.testkit.cluster import Cluster, Pod
from libs.testkit.reach import Flow
from libs.testkit.routers.peer import RouterMissing
from libs.testkit.routers.peer import program as router_program
from libs.testkit.traffic import Load, LoadResult
from tests.cluster.calico_node import BLOCKS, CalicoNode, hand_back, write_cluster
from tests.cluster.conftest import ALLOW, DENY, open_world, until
from tests.cluster.test_node_supervised import Stage

pytestmark = pytest.mark.asyncio(loop_scope="module")

RESOURCES = "/calico/resources/v3/projectcalico.org/"
POLICY = """\
kind: NetworkPolicy
metadata: {{name: only-friends, namespace: default}}
spec:
  selector: app == '{app}'
  ingress:
    - {{action: Allow, protocol: TCP, source: {{selector: friend == '{friend}'}}, destination: {{ports: [8080]}}}}
"""


class Both:
    """node1 is ours from the start. node2 is Calico's; `pods` of both by name."""

    def __init__(self, stage: Stage, calico: CalicoNode) -> None:
        self.stage, self.world, self.cluster, self.calico = stage, stage.world, stage.cluster, calico
        self.pods: dict[str, Pod] = {}
        self.at_first: dict[str, bytes] = {}

    async def contents(self) -> dict[str, bytes]:
        return {kv.key: kv.value for kv in (await self.world.store.list("/calico/")).kvs}

    def flows(self, *pairs: tuple[str, str], port: int = 8080) -> list[Flow]:
        return [
            self.cluster.flow(self.pods[a], self.pods[b], port, "tcp", family=family)
            for a, b in pairs for family in (4, 6)
        ]  # fmt: skip

    def load(self, *pairs: tuple[str, str]) -> Load:
        udp = [
            self.cluster.flow(self.pods[a], self.pods[b], 8080, "udp", family=family)
            for a, b in pairs for family in (4, 6)
        ]  # fmt: skip
        return Load(udp=udp, tcp=self.flows(*pairs), streams=self.flows(*pairs), udp_per_s=200, tcp_per_s=20,
                    stream_per_s=20)  # fmt: skip

    def routes(self, node: str, protocol: str) -> set[str]:
        """Destinations of routes to elsewhere of that protocol, both families."""
        found: set[str] = set()
        for family in ("-4", "-6"):
            told = json.loads(self.world.run(node, "ip", "-j", family, "route", "show", "proto", protocol))
            found |= {one["dst"] for one in told if "gateway" in one or "nexthops" in one}
        return found

    async def move(self) -> None:
        """node2 becomes ours, unless it is."""
        if self.stage.nodes["node2"].running:
            return
        self.calico.bird.kill()  # as the kubelet ends calico-node: no grace
        self.stage.nodes["node2"].start()
        await self.stage.ready("node2")

        async def taken_over() -> bool:
            return not self.routes("node2", "bird") and bool(self.routes("node2", "81"))

        await until(taken_over, 60, "routes of BIRD give way to ours")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both() -> AsyncIterator[Both]:
    try:
        router_program("bird")
    except RouterMissing:
        pytest.skip("routing daemons are not here")
    async with AsyncExitStack() as stack:
        cluster = Cluster.create(nodes=2, services=False, daemons=("bgp",), fill=write_cluster)
        world = await open_world(stack, cluster)
        stage = Stage(world)
        made = Both(stage, CalicoNode(cluster, cluster.node("node2")))
        for process in stage.nodes.values():
            stack.callback(process.kill)
        await made.calico.write(world.store)
        for name, labels in (("friend", {"friend": "yes"}), ("other", {}), ("spare", {})):
            made.pods[name] = await made.calico.plug(world.store, name, labels)
        stack.callback(made.calico.bird.close)
        made.calico.bird.start()
        made.at_first = await made.contents()
        for typha in cluster.typhas:
            typha.start()
        stage.nodes["node1"].start()
        await stage.ready("node1")
        made.pods["web"] = await cluster.add_pod("node1", "web", labels={"app": "web"})
        yield made


EVERY_WAY = (("web", "friend"), ("friend", "web"))


def lossless(result: LoadResult) -> None:
    assert result.udp_received > 0
    assert result.tcp_ok > 0
    assert result.streams
    assert result.lost_nothing, result


async def test_a_calico_node_and_ours_are_one_network(both: Both) -> None:
    """Blocks over BGP both ways, both families, and pods reach each other."""
    pairs = [(a, b, 8080, "tcp", ALLOW) for a, b in (*EVERY_WAY, ("web", "other"), ("other", "web"))]
    for family in (4, 6):
        questions = [(both.pods[a], both.pods[b], port, "tcp") for a, b, port, *_ in pairs]
        await both.cluster.eventually(questions, ALLOW, family=family, timeout_s=60)  # type: ignore[arg-type]
    assert both.routes("node1", "81") == set(BLOCKS.values())
    ours = {cidr for cidr in both.routes("node2", "bird") if cidr not in BLOCKS.values()}
    assert len(ours) == 2


async def test_our_node_changed_nothing_that_is_not_its_own(both: Both) -> None:
    after = await both.contents()
    changed = {key for key, value in both.at_first.items() if after.get(key) != value}
    assert changed == {f"{RESOURCES}clusterinformations/default"}
    before, now = (json.loads(found[changed.copy().pop()])["spec"] for found in (both.at_first, after))
    assert {name for name in now if now[name] != before.get(name)} == {"calicoVersion"}
    made = after.keys() - both.at_first.keys()
    strange = [key for key in made if "node1" not in key and "k8s-pod-network." not in key and "/block/" not in key]
    assert not strange
    for key in made:
        if "/assignment/" in key:
            assert json.loads(after[key])["affinity"] == "host:node1"


async def test_our_policy_knows_calicos_pods(both: Both) -> None:
    await both.world.apply(POLICY.format(app="web", friend="yes"))
    pods = both.pods
    await both.world.check([
        (pods["friend"], pods["web"], 8080, "tcp", ALLOW), (pods["other"], pods["web"], 8080, "tcp", DENY),
        (pods["friend"], pods["web"], 8081, "tcp", DENY), (pods["web"], pods["other"], 8080, "tcp", ALLOW),
    ])  # fmt: skip
    await both.world.clean()


async def test_the_node_moves_to_ours_under_traffic(both: Both) -> None:
    before = await both.contents()
    load = both.load(*EVERY_WAY)
    with load:
        await both.move()
    lossless(load.result)
    after = await both.contents()
    kept = (
        "/workloadendpoints/",
        "/calico/ipam/",
        "/profiles/",
        "/ippools/",
        "/tiers/",
        "/felixconfigurations/default",
    )
    for key, value in before.items():
        if any(part in key for part in kept):
            assert after.get(key) == value, key
    node = json.loads(after[f"{RESOURCES}nodes/node2"])
    assert node["metadata"]["uid"] == json.loads(before[f"{RESOURCES}nodes/node2"])["metadata"]["uid"]
    assert node["spec"]["orchRefs"] == [{"nodeName": "node2", "orchestrator": "k8s"}]


async def test_pods_of_the_moved_node_are_under_policy_and_addresses_go_on(both: Both) -> None:
    """Pods that Calico plugged are filtered by us, deleted by us; a new one gets the next address of Calico's block."""
    await both.move()
    pods, cluster = both.pods, both.cluster
    await both.world.resources.patch(
        "WorkloadEndpoint", "node2-k8s-friend-eth0", {"metadata": {"labels": {"app": "moved"}}}, PatchType.MERGE,
        namespace="default",
    )  # fmt: skip
    await both.world.apply(POLICY.format(app="moved", friend="nobody"))
    await both.world.check([
        (pods["web"], pods["friend"], 8080, "tcp", DENY), (pods["web"], pods["other"], 8080, "tcp", ALLOW),
        (pods["friend"], pods["web"], 8080, "tcp", ALLOW),
    ])  # fmt: skip
    await both.world.clean()
    late = await cluster.add_pod("node2", "late")
    assert [str(late.address(family)) for family in (4, 6)] == ["10.65.202.67", "fd00:65:0:7::43"]
    await both.world.check([(pods["web"], late, 8080, "tcp", ALLOW), (late, pods["web"], 8080, "tcp", ALLOW)])
    spare = pods["spare"]
    await cluster.remove_pod(spare)
    left = [key for key in await both.contents() if spare.container_id in key or "-spare-" in key]
    assert left == []
    await cluster.remove_pod(late)


async def test_the_node_goes_back_under_traffic(both: Both) -> None:
    await both.move()
    load = both.load(*EVERY_WAY)
    with load:
        assert both.stage.nodes["node2"].stop(40) == 0
        hand_back(both.cluster.node("node2"))
        both.calico.bird.start()
        for address in (both.cluster.node("node1").ipv4.ip, both.cluster.node("node1").ipv6.ip):
            both.calico.bird.wait_up(str(address))

        async def handed_back() -> bool:
            return not both.routes("node2", "81") and both.routes("node1", "81") == set(BLOCKS.values())

        await until(handed_back, 60, "BIRD has the routes")
    lossless(load.result)
    for family in (4, 6):
        questions = [(both.pods[a], both.pods[b], 8080, "tcp") for a, b in EVERY_WAY]
        assert await both.cluster.passes(questions, family=family)
    both.world.run("node2", "nft", "delete", "table", "ip", "calico")
    both.world.run("node2", "nft", "delete", "table", "ip6", "calico")
    assert await both.cluster.passes([(both.pods["web"], both.pods["other"], 8080, "tcp")])
