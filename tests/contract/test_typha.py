"""A real typha between a real etcd and a real NATS. Names of tests say which capability they show."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from random import Random

import pytest
import pytest_asyncio

from libs.bus import subjects, wire
from libs.policy.output import WorkloadKey
from tests.contract.typha_stage import Agent, Stage, Typha, eventually
from tests.unit.services.typha.samples import endpoint, many_nets, network_set, policy, value

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("typha")]

METRICS = (
    "breadcrumb_block", "breadcrumb_non_block", "breadcrumb_seq_number", "breadcrumb_size", "cache_size",
    "client_latency_secs", "client_snapshot_send_secs", "client_write_latency_secs", "connections_accepted",
    "connections_active", "connections_dropped", "connections_grace_used", "connections_streaming", "kvs_per_msg",
    "log_errors", "logs_dropped", "next_breadcrumb_latency_secs", "ping_latency", "snapshot_compressed_bytes",
    "snapshot_raw_bytes", "snapshots_generated", "snapshots_reused", "updates_skipped", "updates_total",
)  # fmt: skip


def node(name: str, number: int) -> tuple[str, bytes]:
    return value("Node", name, {"bgp": {"ipv4Address": f"192.0.{number // 250}.{number % 250 + 1}/16"}})


def sets_of(agent: Agent) -> dict[str, frozenset[str]]:
    return {name: frozenset(held.members) for name, held in agent.feed.state.sets.items()}


async def reached(agents: Sequence[Agent], revision: int, timeout_s: float = 30.0) -> None:
    await eventually(
        lambda: all(agent.following and agent.feed.rev >= revision for agent in agents),
        timeout_s,
        f"revision {revision}; {[(a.node, a.feed.phase, a.feed.rev) for a in agents if a.feed.rev < revision][:5]}",
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with Stage(tmp_path_factory.mktemp("typha")) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def typha(stage: Stage) -> Typha:
    await stage.put(node("node1", 1), endpoint("node1", "p1", "web", 1), policy("web", "web", "db"))
    return await stage.typha().ready()


@pytest_asyncio.fixture(loop_scope="module")
async def own_stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with Stage(tmp_path) as made:
        await made.put(
            node("node1", 1), node("node2", 2), endpoint("node1", "p1", "web", 1), endpoint("node2", "p2", "db", 2),
            policy("web", "web", "db"),
        )  # fmt: skip
        yield made


@pytest.mark.usefixtures("patient_readers")
async def test_t01_five_hundred_agents_cost_etcd_no_watcher_and_all_converge(stage: Stage, typha: Typha) -> None:
    async with asyncio.timeout(20):
        # typha is ready a moment before it watches
        while not (before := await stage.watchers()):  # noqa: ASYNC110 - another process's state has no event to wait for
            await asyncio.sleep(0.02)
    async with stage.agents(500, per_connection=50) as agents:
        await eventually(lambda: all(agent.following for agent in agents), 60, "500 agents follow")
        assert await stage.watchers() == before
        started = time.monotonic()
        last = await stage.put(*(node(f"n{number}", number + 10) for number in range(20)))
        await reached(agents, last, 60)
        print(f"500 agents converged on 20 changes after {time.monotonic() - started:.2f} s, {before} watchers")
        wanted = {"node1", *(f"n{number}" for number in range(20))}
        assert all(agent.feed.state.nodes.keys() == wanted for agent in agents)
        assert all(agent.feed.snapshots == 1 for agent in agents)
        assert await stage.watchers() == before


@pytest.mark.usefixtures("patient_readers")
async def test_t02_snapshot_then_deltas_and_nothing_is_lost_between(stage: Stage, typha: Typha) -> None:
    done = asyncio.Event()
    random = Random(1)

    async def churn() -> None:
        for number in range(100_000):
            host = random.randrange(10, 60)
            pod = endpoint("late", f"pod{random.randrange(20)}", random.choice(("web", "db")), host)
            other = endpoint("elsewhere", f"pod{random.randrange(20)}", random.choice(("web", "db")), host + 60)
            await stage.put(pod if number % 5 else (pod[0], None), other)
            if done.is_set():
                break

    writing = asyncio.create_task(churn())
    agents = []
    for _ in range(8):
        agent = await stage.agent("late")
        agents.append(agent)
        await eventually(lambda agent=agent: len(agent.applies) > 3, 20, "snapshot and some deltas")  # type: ignore[misc]
    done.set()
    await writing
    revision = await stage.put(endpoint("late", "last", "web", 70))  # a node hears of revisions that concern it
    fresh = await stage.agent("late")
    await eventually(lambda: fresh.following)
    for agent in (*agents, fresh):
        await reached([agent], revision)
    for agent in agents:
        assert agent.feed.snapshots == 1  # what came after the snapshot continued it
        assert agent.feed.state == fresh.feed.state
    assert fresh.feed.state.workloads


@pytest.mark.usefixtures("patient_readers")
async def test_t02_large_set_change_comes_in_bounded_messages_and_snapshots_are_compressed(
    stage: Stage, typha: Typha
) -> None:
    await stage.put(endpoint("big", "p1", "big", 3), policy("big", "big", "bad"))
    bus = await stage.recording_bus("felix-big")
    agent = await stage.agent("big", bus)
    await eventually(lambda: agent.following)
    nets = many_nets(20_000)
    revision = await stage.put(network_set("bad", "bad", nets))
    await reached([agent], revision)
    assert set(nets) in [set(members) for members in sets_of(agent).values()]
    pieces = [size for subject, size in bus.delivered if ".ipset." in subject]
    assert len(pieces) >= 3
    assert max(pieces) < 400_000
    assert agent.feed.snapshots == 1
    again = await stage.agent("big")
    await eventually(lambda: again.following)
    assert again.feed.state == agent.feed.state
    raw = await typha.metric("typha_snapshot_raw_bytes")
    packed = await typha.metric("typha_snapshot_compressed_bytes")
    print(f"snapshot {raw:.0f} bytes, {packed:.0f} compressed")
    assert raw > 300_000
    assert packed < raw / 3


@pytest.mark.usefixtures("patient_readers")
async def test_t04_a_reader_that_stands_still_holds_up_nobody(tmp_path: Path) -> None:
    async with Stage(tmp_path, nats_config='write_deadline: "5s"\nmax_pending: 2MB') as stage:
        names = [f"agent{number}" for number in range(20)]
        await stage.put(
            *(endpoint(name, f"p{n}", "web", n + 5) for n, name in enumerate([*names, "slow"])),
            policy("web", "web", "bad"), network_set("bad", "bad", many_nets(4000)),
        )  # fmt: skip
        await stage.typha().ready()
        heard: list[wire.Applied] = []
        watcher = await stage.bus("watcher")
        watcher.subscribe(
            subjects.applied("slow"), lambda msg: heard.append(wire.decoder(wire.Applied).decode(msg.data))
        )
        child = stage.agent_process("slow")
        await eventually(lambda: bool(heard), 20, "the slow one reports")
        async with stage.agents(20, per_connection=5) as agents:
            await eventually(lambda: all(agent.following for agent in agents))

            halves, turns = (many_nets(8000)[4000:], many_nets(4000)), itertools.count()

            async def latencies(count: int) -> list[float]:
                took: list[float] = []
                for _ in range(count):
                    nets = halves[next(turns) % 2]  # 8,000 members change each time
                    started = time.monotonic()
                    await reached(agents, await stage.put(network_set("bad", "bad", nets)))
                    took.append(time.monotonic() - started)
                return took

            await latencies(3)
            before = await latencies(15)
            os.kill(child.process.pid, signal.SIGSTOP)
            try:
                during = await latencies(30)
                reports = len(heard)
            finally:
                os.kill(child.process.pid, signal.SIGCONT)
            print(f"median {statistics.median(before):.4f} s before, {statistics.median(during):.4f} s during")
            # Who is held up is so by every change, who shares a machine only by some.
            assert statistics.quantiles(during, n=4)[0] < 4 * statistics.median(before)
            assert all(agent.feed.snapshots == 1 for agent in agents)
            last = agents[0].feed.rev
            await eventually(lambda: heard[-1].rev >= last, 30, "the slow one converges")
            assert len(heard) > reports


@pytest.mark.usefixtures("patient_readers")
async def test_t08_a_node_receives_only_what_is_its_own(own_stage: Stage) -> None:
    stage = own_stage
    await stage.typha().ready()
    buses = {name: await stage.recording_bus(f"felix-{name}") for name in ("node1", "node2")}
    agents = {name: await stage.agent(name, bus) for name, bus in buses.items()}
    await eventually(lambda: all(agent.following for agent in agents.values()))
    last = await stage.put(
        endpoint("node2", "p3", "db", 7),
        policy("db", "db", "web"),
        policy("db", "db", "ops", order=3),
        policy("web", "web", "ops"),
        network_set("ops", "ops", ["192.0.2.0/24"]),
        network_set("unused", "nobody", ["192.0.2.0/24"]),
        policy("nowhere", "nobody", "web"),
        value("FelixConfiguration", "default", {"logSeverityScreen": "Warning"}),
        value("IPPool", "pool", {"cidr": "10.65.0.0/16", "blockSize": 26}),
        endpoint("node2", "p3", "db", 8),
    )
    await stage.put(node("node9", 9))
    await reached(list(agents.values()), last + 1)
    for name, other in (("node1", "node2"), ("node2", "node1")):
        agent, bus = agents[name], buses[name]
        streams = {
            subjects.stream_of(subject)
            for subject, _ in bus.delivered
            if subject.startswith("calico.typha.") and not subject.endswith(".beat")
        }
        active = {subjects.policy_stream(str(key)) for key in agent.feed.state.policies}
        active |= {subjects.policy_stream(f"pro/{profile}") for profile in agent.feed.state.profiles}
        ever = {subjects.ipset_stream(name) for apply in agent.applies for name in apply.delta.sets}
        assert streams <= active | ever | {f"node.{name}", *subjects.SHARED_BY_ALL}
        assert {f"node.{name}", "config.felix", "route.pools", "route.nodes"} <= streams
        assert f"node.{other}" not in streams
        assert {key.name for key in agent.feed.state.policies} == {"web" if name == "node1" else "db"}
        assert agent.feed.snapshots == 1
    assert not ever_received(buses["node1"], "policy.gnp/db")
    assert not ever_received(buses["node2"], "policy.gnp/web")


def ever_received(bus: object, stream: str) -> bool:
    delivered: list[tuple[str, int]] = bus.delivered  # type: ignore[attr-defined]
    return any(subject.startswith("calico.typha.") and subjects.stream_of(subject) == stream
               for subject, _ in delivered if not subject.endswith(".beat"))  # fmt: skip


async def test_t09_metrics_have_calicos_names_and_readiness_means_in_sync(tmp_path: Path) -> None:
    async with Stage(tmp_path) as stage:
        await stage.put(node("node1", 1))
        stage.etcd.stop()
        typha = await stage.typha().ready(False)
        assert (await typha.get("/liveness"))[0] == 200
        await stage.etcd.start_async()
        await typha.ready()
        agent = await stage.agent("node1")
        await eventually(lambda: agent.following)
        _, text = await typha.get("/metrics")
        names = {line.partition("{")[0].partition(" ")[0] for line in text.splitlines() if not line.startswith("#")}
        missing = [name for name in METRICS if not {f"typha_{name}", f"typha_{name}_count"} & names]
        assert not missing, f"missing: {missing}"
        assert 'typha_updates_total{syncer="felix"}' in text
        assert await typha.metric("typha_snapshots_generated") == 1
        assert await typha.metric("typha_cache_size") == 1


PERMISSIONS = """
authorization { users = [
  {user: typha, password: t}
  {user: node1, password: n, permissions: {
    publish: ["calico.felix.node1.>", "calico.typha.snapshot.node1", "calico.typha.*.snapshot.node1",
              "calico.typha.rpc.mark", "_INBOX.felix-node1.>"]
    subscribe: ["_INBOX.felix-node1.>", "calico.typha.*.node.node1", "calico.typha.*.beat", "calico.typha.*.policy.*",
                "calico.typha.*.ipset.*", "calico.typha.*.route.*", "calico.typha.*.config.*"]
  }}
] }
"""


async def test_a_node_needs_no_more_than_its_own_subjects_and_cannot_speak_for_another(tmp_path: Path) -> None:
    async with Stage(tmp_path, PERMISSIONS, typha_env={"NATS_USER": "typha", "NATS_PASSWORD": "t"}) as stage:
        await stage.put(node("node1", 1), endpoint("node1", "p1", "web", 1), policy("web", "web", "db"))
        await stage.typha().ready()
        heard: list[str] = []
        watcher = await stage.bus("watcher", NATS_USER="typha", NATS_PASSWORD="t")
        watcher.subscribe(subjects.ALL_APPLIED, lambda msg: heard.append(msg.subject))
        own = await stage.bus("felix-node1", NATS_USER="node1", NATS_PASSWORD="n")
        agent = await stage.agent("node1", own)
        await eventually(lambda: agent.following and bool(heard))
        lie = wire.encode(wire.Applied(node="node2", epoch=agent.feed.epoch, rev=99, seq=99))
        own.publish(subjects.applied("node2"), lie)
        await reached([agent], await stage.put(endpoint("node1", "p2", "web", 2)))
        await eventually(lambda: len(heard) >= 2)
        assert set(heard) == {subjects.applied("node1")}
        foreign: list[str] = []
        own.subscribe("calico.typha.*.node.node2", lambda msg: foreign.append(msg.subject))
        other = await stage.bus("felix-node2", NATS_USER="typha", NATS_PASSWORD="t")
        second = await stage.agent("node2", other)
        await eventually(lambda: second.following)
        await reached([second, agent], await stage.put(node("node9", 9)))
        assert foreign == []


@pytest.mark.parametrize("same_cluster", [False, True], ids=["other cluster id", "same cluster id"])
async def test_typha_ends_when_etcd_went_back_and_readers_follow_the_next_one(
    own_stage: Stage, same_cluster: bool
) -> None:
    stage = own_stage
    typha = await stage.typha().ready()
    await stage.put(*(node(f"n{number}", number) for number in range(30)))
    revision = await stage.put(endpoint("node1", "late", "web", 40))
    agent = await stage.agent("node1")
    await eventually(lambda: agent.feed.rev >= revision)
    count = len(agent.applies)
    await stage.replace_etcd(same_cluster=same_cluster)
    await stage.put(node("node1", 1), endpoint("node1", "p1", "web", 1), policy("web", "web", "db"))
    assert await typha.status() == 1
    assert all(apply.delta.workloads == {} for apply in agent.applies[count:])  # it stands by what it has
    await stage.typha().ready()
    await eventually(lambda: agent.feed.rev < revision and agent.following, 20, "the lower revision is accepted")
    assert agent.feed.state.workloads.keys() == {WorkloadKey("k8s", "ns1/p1", "eth0")}
    assert set(agent.feed.state.nodes) == {"node1"}
    assert agent.applies[count].delta.policies == {}  # equal content does not flap
    last = await stage.put(endpoint("node1", "p5", "web", 5))
    await reached([agent], last)


async def test_reader_of_a_killed_replica_moves_and_nothing_changes_in_its_kernel(own_stage: Stage) -> None:
    stage = own_stage
    typhas = [await stage.typha().ready(), await stage.typha().ready()]
    agents = [await stage.agent(name) for name in ("node1", "node2")]
    await eventually(lambda: all(agent.following for agent in agents))
    pinned = agents[0].feed.instance
    before = [agent.feed.instance for agent in agents]
    counts = [len(agent.applies) for agent in agents]
    next(typha for typha in typhas if typha.instance == pinned).kill()
    moved = [agent for agent, name in zip(agents, before, strict=True) if name == pinned]
    await eventually(lambda: all(a.following and a.feed.instance != pinned for a in moved), 20, "moved")
    revision = await stage.put(endpoint("node1", "p5", "web", 5), endpoint("node2", "p6", "db", 6))
    await reached(agents, revision)
    for agent, count in zip(agents, counts, strict=True):
        changes = [apply.delta for apply in agent.applies[count:] if apply.delta]
        touched = {key for delta in changes for key in delta.workloads}
        assert touched <= {WorkloadKey("k8s", "ns1/p5", "eth0"), WorkloadKey("k8s", "ns1/p6", "eth0")}
        assert not any(delta.policies or delta.sets or delta.nodes for delta in changes)
    assert moved[0].feed.snapshots == 2
