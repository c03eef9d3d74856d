"""A node's speaker as a reader of a real typha, between a real etcd and a real NATS."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any, Self

import pytest
import pytest_asyncio

from libs.bus import subjects, wire
from libs.bus.api import Bus
from libs.bus.applied import WaitProblem, listening
from libs.bus.subjects import Role
from libs.feed.feed import Apply
from services.bgp.core.plan import plan
from services.bgp.core.settings import SpeakerSettings
from services.bgp.core.tables import Tables
from services.bgp.shell.feed import TablesFeed
from tests.contract.lossy import Lossy
from tests.contract.typha_stage import Stage, eventually
from tests.unit.services.typha.samples import endpoint, policy, value

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="function"), pytest.mark.xdist_group("typha")]


def node(name: str, number: int, **labels: str) -> tuple[str, bytes]:
    spec = {"bgp": {"ipv4Address": f"192.0.{number // 250}.{number % 250 + 1}/16"}}
    return value("Node", name, spec, labels=labels)


def peer(name: str, **spec: Any) -> tuple[str, bytes]:
    return value("BGPPeer", name, spec)


class Speaker:
    """A speaker without sessions: plans at each step and says that it is done."""

    def __init__(self, bus: Bus, name: str, *, report: bool = True) -> None:
        self.name = name
        self.report = report
        self.revisions: list[int] = []
        self.plans: list[SpeakerSettings] = []
        self.feed = TablesFeed(bus, name, self._step, Random())
        self._task: asyncio.Task[None] | None = None

    def start(self) -> Self:
        self._task = asyncio.create_task(self.feed.runner.run(), name=f"speaker {self.name}")
        return self

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def _step(self, tables: Tables, apply: Apply, traceparent: str | None) -> None:
        self.revisions.append(apply.rev)
        self.plans.append(plan(self.name, tables))
        if self.report:
            self.feed.report(apply, {})

    @property
    def peers(self) -> set[str]:
        return {one.name for one in self.plans[-1].peers} if self.plans else set()

    async def reached(self, revision: int, timeout_s: float = 30.0) -> None:
        feed = self.feed.runner.feed
        await eventually(lambda: self.feed.runner.following and feed.rev >= revision, timeout_s, f"revision {revision}")


@pytest_asyncio.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with Stage(tmp_path) as made:
        await made.put(
            node("node1", 1, rack="a"), node("node2", 2, rack="b"), endpoint("node1", "p1", "web", 1),
            policy("web", "web", "db"),
        )  # fmt: skip
        yield made


@contextlib.asynccontextmanager
async def speaking(stage: Stage, name: str, bus: Any = None, **options: Any) -> AsyncIterator[Speaker]:
    speaker = Speaker(bus or await stage.bus(f"bgp-{name}"), name, **options).start()
    try:
        await eventually(lambda: speaker.feed.runner.following, what="the speaker follows")
        yield speaker
    finally:
        await speaker.stop()


async def test_g02_peers_reach_the_speaker_and_concern_no_felix(stage: Stage) -> None:
    await stage.typha().ready()
    felix = await stage.agent("node1")
    await eventually(lambda: felix.following)
    async with speaking(stage, "node1") as speaker:
        assert speaker.peers == {"Mesh_192_0_0_3"}
        seq = felix.feed.seq
        revision = await stage.put(peer("tor", nodeSelector="rack == 'a'", peerIP="198.51.100.1", asNumber=65001))
        await speaker.reached(revision)
        assert speaker.peers == {"Mesh_192_0_0_3", "Node_198_51_100_1"}
        assert felix.feed.seq == seq
        await speaker.reached(await stage.put(node("node1", 1, rack="c")))
        assert speaker.peers == {"Mesh_192_0_0_3"}
        await eventually(lambda: felix.feed.seq > seq)  # nodes concern both
        assert speaker.feed.runner.feed.state.policies == {}


async def test_wait_for_a_peer_means_the_speakers_that_live(stage: Stage) -> None:
    await stage.typha().ready()
    felix = await stage.agent("node1")
    await eventually(lambda: felix.following)
    ctl = await stage.bus("ctl")
    async with speaking(stage, "node1") as speaker, listening(ctl, 20.0) as waiter:
        revision = await stage.put(peer("tor", peerIP="198.51.100.1", asNumber=65001))
        assert await waiter.until_applied([revision]) == ["node1"]
        assert "Global_198_51_100_1" in speaker.peers
        speaker.report = False
        async with listening(ctl, 8.0) as second:
            revision = await stage.put(peer("tor", peerIP="198.51.100.2", asNumber=65001))
            with pytest.raises(WaitProblem, match=r"node1 \(bgp\): no report"):
                await second.until_applied([revision])
        async with listening(ctl, 10.0) as third:  # CNI asks for felixes only, and a pod concerns no speaker anyway
            revision = await stage.put(endpoint("node1", "p9", "web", 9))
            assert await third.until_applied([revision]) == ["node1"]


async def test_t03_when_its_typha_is_killed_a_speaker_follows_the_other_and_loses_no_peer(stage: Stage) -> None:
    first = await stage.typha().ready()
    await stage.put(*(node(f"n{number}", number + 10) for number in range(30)))
    async with speaking(stage, "node1") as speaker:
        second = await stage.typha().ready()
        await eventually(lambda: len(speaker.peers) == 31)
        assert speaker.feed.runner.feed.instance == first.instance
        count = len(speaker.plans)
        first.kill()
        revision = await stage.put(peer("tor", peerIP="198.51.100.1", asNumber=65001))
        await speaker.reached(revision)
        assert speaker.feed.runner.feed.instance == second.instance
        assert all(len(one.peers) >= 31 for one in speaker.plans[count:])
        assert speaker.revisions == sorted(speaker.revisions)
        assert "Global_198_51_100_1" in speaker.peers


@pytest.mark.parametrize("family", [".config.bgp", ".bgp.node1", ".local.node1"])
async def test_t02_lost_messages_are_noticed_and_fetched(stage: Stage, family: str) -> None:
    await stage.typha().ready()
    bus = Lossy(await stage.bus("bgp-node1"))
    async with speaking(stage, "node1", bus) as speaker:
        bus.lose = lambda msg: family in msg.subject
        vm = peer("vm", localWorkloadSelector="app == 'web'", asNumber=65002)
        revision = await stage.put(peer("tor", peerIP="198.51.100.1", asNumber=65001), vm)
        await eventually(lambda: bool(bus.lost), what=f"a message on {family} is lost")
        bus.lose = lambda msg: False
        await speaker.reached(revision)
        assert speaker.peers == {"Mesh_192_0_0_3", "Global_198_51_100_1", "Local_Workload_10_65_0_1"}
        assert speaker.revisions == sorted(speaker.revisions)


async def test_t03_after_nats_was_away_a_speaker_has_what_it_missed(stage: Stage) -> None:
    await stage.typha().ready()
    async with speaking(stage, "node1") as speaker:
        stage.nats.stop()
        revision = await stage.put(peer("tor", peerIP="198.51.100.1", asNumber=65001))
        await stage.nats.start_async()
        await speaker.reached(revision)
        assert speaker.peers == {"Mesh_192_0_0_3", "Global_198_51_100_1"}


async def test_one_changed_label_is_one_small_message(stage: Stage) -> None:
    nodes = [node(f"n{number}", number + 10, rack="a") for number in range(300)]
    await stage.put(*nodes, peer("tor", nodeSelector="rack == 'a'", peerIP="198.51.100.1", asNumber=65001))
    await stage.typha().ready()
    bus = await stage.recording_bus("bgp-node1")
    async with speaking(stage, "node1", bus) as speaker:
        assert len(speaker.peers) == 302
        bus.delivered.clear()
        await speaker.reached(await stage.put(node("n7", 17, rack="b")))
        sizes = {
            subject: size for subject, size in bus.delivered
            if subject.startswith("calico.typha.") and not subject.endswith(".beat")
        }  # fmt: skip
        assert {subject.split(".", 3)[3] for subject in sizes} == {"config.bgp", "route.nodes", "bgp.node1"}
        assert max(sizes.values()) < 500


PERMISSIONS = """
authorization { users = [
  {user: typha, password: t}
  {user: node1, password: n, permissions: {
    publish: ["calico.bgp.node1.>", "calico.typha.snapshot.node1", "calico.typha.*.snapshot.node1"]
    subscribe: ["_INBOX.bgp-node1.>", "calico.typha.*.bgp.node1", "calico.typha.*.local.node1", "calico.typha.*.beat",
                "calico.typha.*.route.*", "calico.typha.*.config.bgp"]
  }}
] }
"""


async def test_a_speaker_needs_no_more_than_its_own_subjects(tmp_path: Path) -> None:
    async with Stage(tmp_path, PERMISSIONS, typha_env={"NATS_USER": "typha", "NATS_PASSWORD": "t"}) as stage:
        await stage.put(node("node1", 1), node("node2", 2))
        await stage.typha().ready()
        watcher = await stage.bus("watcher", NATS_USER="typha", NATS_PASSWORD="t")
        heard: list[str] = []
        watcher.subscribe(subjects.all_applied(Role.BGP), lambda msg: heard.append(msg.subject))
        watcher.subscribe(subjects.all_applied(Role.FELIX), lambda msg: heard.append(msg.subject))
        own = await stage.bus("bgp-node1", NATS_USER="node1", NATS_PASSWORD="n")
        async with speaking(stage, "node1", own) as speaker:
            lie = wire.encode(wire.Applied(node="node1", epoch=speaker.feed.runner.feed.epoch, rev=99, seq=99))
            own.publish(subjects.applied("node1"), lie)  # in felix's name
            own.publish(subjects.applied("node2", Role.BGP), lie)
            await speaker.reached(await stage.put(peer("tor", peerIP="198.51.100.1", asNumber=65001)))
            await eventually(lambda: len(heard) >= 2)
            assert set(heard) == {subjects.applied("node1", Role.BGP)}
