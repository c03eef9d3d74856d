"""What an operator meets: servers that go away and come back, health, log levels, values that nobody can read.

Two nodes, IPv4 and IPv6. Names of tests say which capability they show.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from libs.bus import BusError, subjects, wire
from libs.testkit.cluster import Cluster, Pod
from libs.testkit.reach import Verdict
from libs.testkit.traffic import Load
from tests.cluster.conftest import ALLOW, DENY, World, open_world, until
from tests.cluster.kernel_state import handles, routes, written

pytestmark = pytest.mark.asyncio(loop_scope="module")

RESOURCES = "/calico/resources/v3/projectcalico.org"
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


@dataclass(frozen=True)
class Pods:
    server: Pod
    near: Pod
    far: Pod
    stranger: Pod

    def wanted(self) -> list[tuple[Pod, Pod, int, str, Verdict]]:
        return [
            (self.near, self.server, 8080, "tcp", ALLOW),
            (self.far, self.server, 8080, "tcp", ALLOW),
            (self.far, self.server, 9090, "tcp", DENY),
            (self.stranger, self.server, 8080, "tcp", DENY),
        ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(world: World) -> Pods:
    add = world.cluster.add_pod
    made = Pods(
        await add("node1", "server", namespace="ns1", labels={"role": "server"}),
        await add("node1", "near", namespace="ns1", labels={"role": "client"}),
        await add("node2", "far", namespace="ns1", labels={"role": "client"}),
        await add("node2", "stranger", namespace="ns1", labels={"role": "other"}),
    )
    await world.apply(POLICY)
    return made


NODES = ("node1", "node2")


def load(world: World, pods: Pods) -> Load:
    flow = world.cluster.flow
    allowed = [flow(a, pods.server, 8080, family=family) for a in (pods.near, pods.far) for family in (4, 6)]
    udp = [flow(a, pods.server, 8080, "udp", family=family) for a in (pods.near, pods.far) for family in (4, 6)]
    denied = [flow(pods.stranger, pods.server, 8080, family=family) for family in (4, 6)]
    return Load(udp=udp, tcp=allowed, streams=allowed, denied=denied)


async def changes_arrive(world: World, pods: Pods) -> None:
    """The whole way works: a change of policy takes effect, and its end too."""
    await world.apply(POLICY.replace("[8080]", "[9090]"), timeout_s=40)
    await world.check([(pods.far, pods.server, 9090, "tcp", ALLOW), (pods.far, pods.server, 8080, "tcp", DENY)])
    await world.apply(POLICY)
    await world.check(pods.wanted())


@pytest.mark.parametrize("part", ["typha", "nats"])
async def test_t03_restart_of_typha_or_nats_writes_nothing_to_any_kernel(world: World, pods: Pods, part: str) -> None:
    before = handles(world, *NODES), routes(world, *NODES), await written(world, *NODES)
    with load(world, pods) as running:
        if part == "typha":
            world.cluster.kill_typha()
            await world.cluster.start_typha()
        else:
            world.cluster.nats.kill()
            await world.cluster.nats.start_async()
        await world.cluster.wait_ready()
        await world.bus.wait_connected(20)
        # Both felixes follow again, from a new snapshot or where they were, and report a revision later than the fault.
        await until(lambda: typha_answers(world), 20, "typha is back on the bus")
        await world.apply("kind: GlobalNetworkSet\nmetadata: {name: later}\nspec: {nets: []}\n", timeout_s=40)
        for node in NODES:
            await until(lambda node=node: following(world, node), 20, f"{node} follows typha")  # type: ignore[misc]
    assert (handles(world, *NODES), routes(world, *NODES), await written(world, *NODES)) == before
    assert running.result.lost_nothing, running.result
    assert running.result.denied_passed == 0, running.result
    await changes_arrive(world, pods)


async def typha_answers(world: World) -> bool:
    """Does typha hear questions? It is ready for a moment longer than it is connected."""
    request = wire.ConcernsRequest(rev=1, timeout_s=2)
    try:
        await world.bus.request(subjects.TYPHA_CONCERNS, wire.encode(request), 2)
    except BusError:
        return False
    return True


async def following(world: World, node: str) -> bool:
    return await world.metric(node, "felix_resync_state") == 3


async def test_d12_without_etcd_nats_and_typha_traffic_and_policy_stay_and_felix_catches_up(
    world: World, pods: Pods
) -> None:
    before = handles(world, *NODES), routes(world, *NODES)
    with load(world, pods) as running:
        world.cluster.etcd.kill()
        world.cluster.nats.kill()
        world.cluster.kill_typha()
        await world.check(pods.wanted())

        async def noticed() -> bool:
            return (await world.cluster.felix_get("node1", "/liveness")).text.count("not connected") == 1

        await until(noticed, 15, "felix notices")
        assert all(node.felix.running for node in world.cluster.nodes)
        await world.check(pods.wanted())
        assert (handles(world, *NODES), routes(world, *NODES)) == before
        await world.cluster.etcd.start_async()
        await world.cluster.nats.start_async()
        # A change that nobody could be told about while the parts come back.
        stored = await world.resources.get("GlobalNetworkPolicy", "front")
        assert stored.metadata.name == "front"
        await world.cluster.start_typha()
        await world.cluster.wait_ready()
    assert running.result.lost_nothing, running.result
    assert running.result.denied_passed == 0, running.result
    await world.bus.wait_connected(20)
    await until(lambda: typha_answers(world), 20, "typha is back on the bus")
    await changes_arrive(world, pods)


async def test_d12_what_changed_while_felix_was_cut_off_is_caught_up(world: World, pods: Pods) -> None:
    world.cluster.nats.kill()
    try:
        await world.resources.delete("GlobalNetworkPolicy", "front")
        await world.check(pods.wanted())  # nobody heard
    finally:
        await world.cluster.nats.start_async()
    await world.cluster.eventually([(pods.stranger, pods.server, 8080, "tcp")], ALLOW, timeout_s=20)
    await world.bus.wait_connected(20)
    await until(lambda: typha_answers(world), 20, "typha is back on the bus")
    await world.apply(POLICY, timeout_s=40)
    await world.check(pods.wanted())


def reporters(table: str) -> dict[str, str]:
    """Reporter -> word, of the answer to a probe."""
    return {line.split()[0]: line.split()[1] for line in table.splitlines()[1:] if line.strip()}


async def test_v03_health_lists_its_reporters(world: World, pods: Pods) -> None:
    for path, names in (
        ("/liveness", {"CalculationGraph", "InternalDataplaneMainLoop", "Bus"}),
        ("/readiness", {"CalculationGraph", "InternalDataplaneMainLoop"}),
    ):
        answer = await world.cluster.felix_get("node1", path)
        assert answer.status in (200, 204)
        found = reporters((await world.cluster.felix_get("node1", path)).text)
        assert names <= set(found)
        assert set(found.values()) == {"ok"}
    assert (await world.cluster.typha_get("/readiness")).status in (200, 204)


async def test_v03_readiness_flips_while_felix_has_no_typha_and_liveness_stays(world: World, pods: Pods) -> None:
    world.cluster.kill_typha()
    try:
        world.cluster.kill_felix("node2")
        world.cluster.node("node2").felix.start()

        async def answers() -> bool:
            try:
                return (await world.cluster.felix_get("node2", "/liveness")).status in (200, 204)
            except OSError:
                return False

        await until(answers, 20, "felix answers")
        answer = await world.cluster.felix_get("node2", "/readiness")
        assert answer.status == 503
        assert reporters(answer.text)["CalculationGraph"] == "bad"
        await world.check(pods.wanted())  # the kernel keeps what the last felix wrote
    finally:
        await world.cluster.start_typha()
        await world.cluster.wait_ready()
    assert (await world.cluster.felix_get("node2", "/readiness")).status in (200, 204)


def log_lines(world: World, node: str, offset: int = 0) -> list[dict[str, Any]]:
    text = world.cluster.node(node).felix.log_path.read_bytes()[offset:].decode()
    return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]


async def test_v09_log_level_of_a_felix_configuration_takes_effect_at_once_and_ends_with_it(
    world: World, pods: Pods
) -> None:
    config = "kind: FelixConfiguration\nmetadata: {name: %s}\nspec: {logSeverityScreen: %s}\n"

    def size(node: str) -> int:
        return world.cluster.node(node).felix.log_path.stat().st_size

    def levels(node: str, offset: int) -> set[str]:
        return {str(line.get("level", "")).lower() for line in log_lines(world, node, offset)}

    async def debugs(node: str, offset: int) -> bool:
        return "debug" in levels(node, offset)

    marks = {node: size(node) for node in NODES}
    assert "debug" not in levels("node1", 0)
    await world.apply(config % ("node.node1", "Debug"))
    victim = await world.cluster.add_pod("node1", "noise", namespace="ns1")  # gives it something to say
    await world.cluster.remove_pod(victim)
    await until(lambda: debugs("node1", marks["node1"]), 10, "debug lines of node1")
    assert "debug" not in levels("node2", marks["node2"])  # the layer of another node
    await world.resources.delete("FelixConfiguration", "node.node1")

    async def changed_back() -> bool:
        changes = [line for line in log_lines(world, "node1") if line.get("level") and "log level" in str(line)]
        return bool(changes) and "info" in str(changes[-1])

    await until(changed_back, 10, "the level of the environment applies again")
    mark = size("node1")
    other = await world.cluster.add_pod("node1", "noise", namespace="ns1")
    await world.cluster.remove_pod(other)
    found = levels("node1", mark)
    assert "info" in found
    assert "debug" not in found


CORRUPT = [
    (f"{RESOURCES}/globalnetworkpolicies/broken", b"{", "not JSON"),
    (f"{RESOURCES}/globalnetworkpolicies/broken", b"\xff\xfe\x00", "not text"),
    (
        f"{RESOURCES}/globalnetworkpolicies/broken",
        b'{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"broken"},'
        b'"spec":{"order":"first","selector":"all()","types":["Ingress"]}}',
        "a wrong type",
    ),
    (
        f"{RESOURCES}/globalnetworkpolicies/broken",
        b'{"kind":"GlobalNetworkPolicy","apiVersion":"projectcalico.org/v3","metadata":{"name":"broken"},'
        b'"spec":{"order":1,"selector":"role ==","types":["Ingress"],"ingress":[{"action":"Deny"}]}}',
        "a selector that does not parse",
    ),
    (f"{RESOURCES}/workloadendpoints/ns1/node1-k8s-x-eth0", b'{"spec": 7}', "an endpoint of another shape"),
    (f"{RESOURCES}/ippools/broken", b'{"spec": {"cidr": "10.300.0.0/16"}}', "a network that is none"),
    ("/calico/ipam/v2/assignment/ipv4/block/10.65.250.0-26", b"[]", "a block that is none"),
]


@pytest.mark.parametrize(("key", "value", "what"), CORRUPT, ids=[what for _, _, what in CORRUPT])
async def test_corrupt_value_is_logged_with_its_key_and_counts_as_absent(
    world: World, pods: Pods, key: str, value: bytes, what: str
) -> None:
    typha = world.cluster.typhas[0]
    mark = typha.log_path.stat().st_size
    await world.store.put(key, value)
    try:

        async def logged() -> bool:
            return key in typha.log_path.read_bytes()[mark:].decode()

        await until(logged, 30, f"typha names {key}")
        await world.check(pods.wanted())
        await changes_arrive(world, pods)  # the others go on
        assert typha.running
    finally:
        await world.store.delete(key)
    await world.check(pods.wanted())


async def test_corrupt_value_over_a_good_one_takes_the_good_one_away_until_it_is_repaired(
    world: World, pods: Pods
) -> None:
    key = f"{RESOURCES}/globalnetworkpolicies/front"
    stored = await world.store.get(key)
    assert stored is not None
    await world.store.put(key, stored.value[:-9])
    try:
        await world.cluster.eventually([(pods.stranger, pods.server, 8080, "tcp")], ALLOW)
    finally:
        await world.store.put(key, stored.value)
    await world.cluster.eventually([(pods.stranger, pods.server, 8080, "tcp")], DENY)
    await world.check(pods.wanted())
