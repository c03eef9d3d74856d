"""Several typhas as processes between a real etcd and a real NATS, and readers that they share (T05)."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from libs.bus import subjects
from libs.bus.api import Msg
from libs.policy.output import WorkloadKey
from tests.contract.test_typha import node, reached
from tests.contract.typha_stage import Agent, Stage, Typha, eventually
from tests.unit.services.typha.samples import endpoint, policy

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("typha")]

READERS = 20


async def filled(stage: Stage) -> int:
    """Every agent has an endpoint with a policy; returns the last revision."""
    return await stage.put(
        *(endpoint(f"agent{number}", f"p{number}", "web", number + 1) for number in range(READERS)),
        policy("web", "web", "web"),
    )


def counts(agents: Sequence[Agent]) -> Counter[str]:
    return Counter(agent.feed.instance for agent in agents if agent.following)


def touched(agents: Sequence[Agent], since: Sequence[int]) -> set[WorkloadKey]:
    """Endpoints that were told to change, and nothing but endpoints may have been."""
    found: set[WorkloadKey] = set()
    for agent, count in zip(agents, since, strict=True):
        for apply in agent.applies[count:]:
            delta = apply.delta
            assert not any((delta.policies, delta.profiles, delta.sets, delta.set_changes, delta.nodes, delta.config))
            assert None not in delta.workloads.values(), "deleted"
            found |= delta.workloads.keys()
    return found


class Watch:
    """How many readers are between their request for a snapshot and their report, at most."""

    def __init__(self) -> None:
        self.asking: set[str] = set()
        self.most = self.snapshots = 0

    def asked(self, msg: Msg) -> None:
        if b'"hello"' not in msg.data and b'"streams"' not in msg.data:
            self.asking.add(msg.subject.split(".")[-1])
            self.snapshots += 1
            self.most = max(self.most, len(self.asking))

    def reported(self, msg: Msg) -> None:
        self.asking.discard(msg.subject.split(".")[2])

    async def start(self, stage: Stage) -> None:
        bus = await stage.bus("watch")
        bus.subscribe("calico.typha.*.snapshot.*", self.asked)
        bus.subscribe(subjects.ALL_APPLIED, self.reported)
        await bus.barrier()


async def moved(typha: Typha, reason: str) -> float:
    _, text = await typha.get("/metrics")
    line = next(one for one in text.splitlines() if one.startswith(f'typha_readers_moved_total{{reason="{reason}"}}'))
    return float(line.split()[-1])


async def keep_reporting(agents: Sequence[Agent]) -> None:
    """As felix does each ten seconds."""
    while True:
        for agent in agents:
            agent.report_again()
        await asyncio.sleep(5)


@pytest.mark.usefixtures("patient_readers")
async def test_t05_counts_even_out_when_a_typha_joins_and_nothing_flaps(tmp_path: Path) -> None:
    async with Stage(tmp_path) as stage:
        await filled(stage)
        first = await stage.typha().ready()
        async with stage.agents(READERS, per_connection=5) as agents:
            await eventually(lambda: counts(agents) == {"t1": READERS})
            reporting = asyncio.create_task(keep_reporting(agents))
            watch = Watch()
            await watch.start(stage)
            since = [len(agent.applies) for agent in agents]
            second = await stage.typha().ready()
            await eventually(lambda: counts(agents) == {"t1": 10, "t2": 10}, 60, f"even: {counts(agents)}")
            assert watch.most <= READERS // 4, f"{watch.most} of {READERS} asked at once"  # one a second is asked to
            assert await moved(first, "balance") == 10
            assert touched(agents, since) == set()
            revision = await stage.put(*(endpoint(f"agent{n}", f"q{n}", "web", n + 50) for n in range(READERS)))
            await reached(agents, revision)
            since = [len(agent.applies) for agent in agents]
            third = await stage.typha().ready()
            await eventually(lambda: sorted(counts(agents).values()) == [6, 7, 7], 60, f"even: {counts(agents)}")
            assert await moved(third, "balance") == 0
            assert await moved(first, "balance") + await moved(second, "balance") == 16
            assert {one.feed.snapshots for one in agents} <= {1, 2, 3}
            assert touched(agents, since) == set()
            reporting.cancel()


@pytest.mark.usefixtures("patient_readers")
async def test_t05_rolling_restart_hands_readers_over_one_by_one(tmp_path: Path) -> None:
    """Each typha ends in order and another one starts; every reader follows all the time, and no two typhas' readers
    ask at once for snapshots."""
    async with Stage(tmp_path, typha_env={"TYPHA_SHUTDOWN_GRACE_S": "20"}) as stage:
        await filled(stage)
        typhas = [await stage.typha().ready(), await stage.typha().ready()]
        async with stage.agents(READERS, per_connection=5) as agents:
            await eventually(lambda: sum(counts(agents).values()) == READERS)
            reporting = asyncio.create_task(keep_reporting(agents))
            watch = Watch()
            await watch.start(stage)
            since = [len(agent.applies) for agent in agents]
            for _ in range(2):
                typhas.append(await stage.typha().ready())
                leaver = typhas.pop(0)
                leaver.process.send_signal(signal.SIGTERM)
                assert await leaver.status(40) == 0
                assert leaver.instance not in counts(agents)
                assert sum(counts(agents).values()) == READERS  # none had to look for another one
                assert "readers left" not in leaver.log.read_text()
            assert touched(agents, since) == set()
            assert watch.most <= READERS // 4, f"{watch.most} of {READERS} asked at once"
            print(f"{watch.snapshots} snapshots, at most {watch.most} readers at once")
            revision = await stage.put(*(endpoint(f"agent{n}", f"q{n}", "web", n + 50) for n in range(READERS)))
            await reached(agents, revision)
            reporting.cancel()


async def test_t05_the_last_typha_ends_as_before_and_readers_keep_what_they_have(tmp_path: Path) -> None:
    async with Stage(tmp_path) as stage:
        await stage.put(node("node1", 1), endpoint("node1", "p1", "web", 1), policy("web", "web", "db"))
        typha = await stage.typha().ready()
        agent = await stage.agent("node1")
        await eventually(lambda: agent.following)
        count = len(agent.applies)
        typha.process.send_signal(signal.SIGTERM)
        assert await typha.status() == 0
        assert "handing readers over" not in typha.log.read_text()
        await stage.typha().ready()
        await reached([agent], await stage.put(endpoint("node1", "p5", "web", 5)))
        assert touched([agent], [count]) == {WorkloadKey("k8s", "ns1/p5", "eth0")}
