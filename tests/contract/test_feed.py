"""FeedRunner with the real publisher and server behind it, on the bus's fake and on NATS: the same promises on both."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from random import Random
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from libs.bus import subjects, wire
from libs.bus.api import Bus
from libs.bus.config import BusConfig
from libs.bus.memory import MemoryBroker
from libs.bus.nats import connect
from libs.feed import feed as core
from libs.feed import runner as shell
from libs.feed.feed import Apply, Phase
from libs.feed.runner import FeedRunner
from libs.policy.output import WorkloadKey
from libs.testkit.servers import NatsServer
from services.typha.metrics import Metrics
from services.typha.shell import serve
from services.typha.shell.serve import Contact, Server
from tests.contract.lossy import Lossy
from tests.contract.typha_stage import eventually
from tests.unit.libs.bus.grown import grown
from tests.unit.services.typha.samples import Writer, endpoint, many_nets, network_set, policy


class Pair:
    """One typha and one felix without a kernel."""

    def __init__(self, own: Bus, bus: Bus, node: str = "node1") -> None:
        self.writer = Writer(endpoint(node, "p1", "web", 1), policy("web", "web", "db"))
        self.own, self.bus = own, Lossy(bus)
        self.server = Server(
            own, self.writer.publisher, Contact(), Metrics(CollectorRegistry()), lambda node: None, self.send
        )
        self.server.start()
        self.applies: list[Apply] = []
        self.node = node
        self.beat_s = 1.0
        self.runner = FeedRunner(self.bus, node, lambda apply, _: self.applies.append(apply), Random(1))
        self._tasks = asyncio.gather(self.runner.run(), self.beat())

    async def beat(self) -> None:
        publisher = self.writer.publisher
        while True:
            beat = wire.Beat(epoch=publisher.epoch, rev=publisher.rev, etcd_age_s=0.0, head=publisher.rev)
            self.own.publish(subjects.beat(publisher.epoch.instance), wire.encode(beat))
            await asyncio.sleep(self.beat_s)

    def send(self, out: list[tuple[str, bytes]]) -> None:
        for subject, data in out:
            self.own.publish(subject, data)

    def publish(self, *changes: tuple[str, bytes | None]) -> int:
        writer = self.writer
        for key, data in changes:
            writer.put(key, data)
        writer.rev += 1
        self.send(writer.publisher.publish(writer.calculator.flush(), {}, writer.rev, 0.0))
        return writer.rev

    async def reached(self, rev: int, timeout_s: float = 40.0) -> None:
        feed = self.runner.feed
        await eventually(lambda: feed.phase is Phase.FOLLOWING and feed.rev >= rev, timeout_s, f"revision {rev}")
        state, view = feed.state, self.writer.calculator.view(self.node)
        assert state.workloads == view.workloads
        assert state.policies == view.policies
        assert {n: frozenset(s.members) for n, s in state.sets.items()} == {
            n: s.members for n, s in view.ipsets.items()
        }

    async def stop(self) -> None:
        self._tasks.cancel()
        await asyncio.gather(self._tasks, return_exceptions=True)


Make = Callable[..., Any]


@pytest_asyncio.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.servers)])
async def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    monkeypatch.setattr(core, "MISSED_BEATS_S", 60.0)  # nobody falls silent here, but the machine may stand still
    async with AsyncExitStack() as stack:

        async def make(node: str = "node1") -> Pair:
            if request.param == "memory":
                broker = MemoryBroker()
                buses: list[Bus] = [broker.connect("typha"), broker.connect("felix")]
            else:
                nats = await stack.enter_async_context(NatsServer())
                buses = [await connect(BusConfig((nats.url,)), name=name, timeout_s=10) for name in ("typha", "felix")]
            for bus in buses:
                stack.push_async_callback(bus.close)
            made = Pair(buses[0], buses[1], node)
            stack.push_async_callback(made.stop)
            await made.reached(1)
            return made

        yield make


async def test_follows_changes_in_order(pair: Make) -> None:
    made = await pair()
    for host in range(10, 40):
        rev = made.publish(endpoint("node2", "p2", "db", host), endpoint("node1", "p3", "web", host + 100))
    await made.reached(rev)
    assert [apply.rev for apply in made.applies] == sorted(apply.rev for apply in made.applies)
    assert made.runner.feed.snapshots == 1


async def test_lost_content_is_fetched_long_before_the_next_beat_is_due(pair: Make) -> None:
    made = await pair()
    # Only what is subscribed to can be lost; the runner does so a turn after the snapshot that calls for it.
    await eventually(lambda: any(".ipset." in subject for subject in made.runner._subscriptions))
    await made.bus.barrier()  # the server knows of it
    made.bus.lose = lambda msg: ".ipset." in msg.subject
    made.beat_s = 30.0  # 30 ms are what it takes
    for host in range(10, 13):
        await made.reached(made.publish(endpoint("node2", "p2", "db", host)), timeout_s=29.0)
    # what was fetched may be there before the message that it replaces has come to be lost
    await eventually(lambda: len(made.bus.lost) == 3)
    assert made.runner.feed.snapshots == 1


async def test_lost_commit_is_found_by_the_next_one(pair: Make) -> None:
    made = await pair()
    made.bus.lose = lambda msg: ".node." in msg.subject
    made.publish(endpoint("node1", "p3", "web", 9))
    await eventually(lambda: len(made.bus.lost) == 1)
    made.bus.lose = lambda msg: False
    await made.reached(made.publish(endpoint("node1", "p4", "web", 10)))
    assert made.runner.feed.snapshots == 2


async def test_malformed_message_leads_to_a_snapshot(pair: Make) -> None:
    made = await pair()
    made.own.publish(subjects.node_stream("t1", "node1"), b"{")
    await eventually(lambda: made.runner.feed.snapshots == 2)
    assert not made.applies[-1].delta


async def test_large_snapshot_comes_in_chunks_while_changes_go_on(pair: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "CHUNK_BYTES", 1000)
    made = await pair()
    await made.reached(made.publish(network_set("big", "db", many_nets(4000))))
    made.runner._reconnected()
    for host in range(10, 30):
        rev = made.publish(endpoint("node1", "p3", "web", host))
        await asyncio.sleep(0.001)
    await made.reached(rev)
    assert made.runner.feed.snapshots == 2


async def test_node_may_be_called_like_a_part_of_the_protocol(pair: Make) -> None:
    for name in ("beat", "a.beat"):
        made = await pair(name)
        await made.reached(made.publish(endpoint(name, "p3", "web", 9)))
        assert made.runner.feed.snapshots == 1


async def test_unanswered_request_is_made_again(pair: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "REQUEST_TIMEOUT_S", 0.1)
    made = await pair()
    answers = made.server._answer
    refused = wire.SnapshotReply(epoch=made.writer.publisher.epoch, rev=1, etcd_age_s=0, head=1, error="not now")
    made.server._answer = lambda request: refused
    made.runner._reconnected()
    made.publish(endpoint("node1", "p3", "web", 9))
    await eventually(lambda: made.runner.feed.phase is Phase.DISCOVERING)
    made.server._answer = answers
    await made.reached(2)


# --- T07: releases that differ ---------------------------------------------------------------------------------------


async def test_t07_all_that_a_later_release_adds_to_messages_is_skipped(
    pair: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways: typha's messages have fields that the reader does not know, its requests some that typha does not."""
    random = Random(7)
    monkeypatch.setattr(wire, "encode", lambda message: grown(message, random))
    made = await pair()
    for host in range(10, 20):
        rev = made.publish(endpoint("node2", "p2", "db", host), endpoint("node1", "p3", "web", host + 100))
    await made.reached(rev)
    assert made.runner.feed.snapshots == 1
    made.bus.lose = lambda msg: ".node." in msg.subject
    made.publish(endpoint("node1", "p3", "web", 9))
    await eventually(lambda: len(made.bus.lost) == 1)
    made.bus.lose = lambda msg: False
    await made.reached(made.publish(policy("web", "web", "ops"), network_set("ops", "ops", ["192.0.2.1/32"])))
    assert made.runner.feed.snapshots == 2


@pytest.mark.parametrize("stream", ["node", "policy.gnp/web", "route.nodes"])
async def test_t07_kinds_of_messages_that_a_later_release_adds_are_skipped_and_cost_no_snapshot(
    pair: Make, stream: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = await pair()
    await eventually(lambda: any(".policy." in subject for subject in made.runner._subscriptions))
    await made.bus.barrier()
    subject = subjects.node_stream("t1", "node1") if stream == "node" else subjects.of_stream("t1", stream)
    caplog.set_level("INFO")
    for number in range(20):
        made.own.publish(subject, b'{"kind":"hint","epoch":["t1",1,7],"value":%d}' % number)
    await made.reached(made.publish(endpoint("node1", "p3", "web", 9)))
    assert made.runner.feed.snapshots == 1
    assert len([one for one in caplog.records if "unknown kind" in one.message]) == 1


async def test_t07_sequenced_message_of_an_unknown_kind_is_replaced_by_what_it_amounted_to(pair: Make) -> None:
    """As a later release could say a policy's change in another way: its content is what all can read."""
    made = await pair()
    await eventually(lambda: any(".policy." in subject for subject in made.runner._subscriptions))
    await made.bus.barrier()
    send = made.send

    def differently(out: list[tuple[str, bytes]]) -> None:
        send([(subject, data.replace(b'"kind":"policy"', b'"kind":"patch"', 1)) for subject, data in out])

    made.send = differently
    for order in range(2, 6):
        await made.reached(made.publish(policy("web", "web", "db", order=order), policy("web", "web", f"db{order}")))
    assert made.runner.feed.snapshots == 1


@pytest.mark.parametrize("way", ["protocol", "content", "refuses"])
async def test_t07_typha_of_a_release_that_is_not_understood_changes_nothing_here_and_is_retried(
    pair: Make, way: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(core, "REFUSED_RETRY_S", (0.2, 0.3))
    made = await pair()
    answers = made.server._answer
    asked: list[wire.SnapshotRequest] = []

    def later(request: wire.SnapshotRequest) -> wire.SnapshotReply:
        asked.append(request)
        reply = answers(request)
        if way == "protocol":
            reply.protocol, reply.version = 2, "v9.0.0"
        elif way == "refuses":
            reply.refused, reply.error, reply.chunks, reply.data = True, "not with you", 0, b""
        elif not request.hello:
            data = zlib.decompress(reply.data).replace(b'"kind":"policy"', b'"kind":"graph"')
            reply.data = zlib.compress(data)
        return reply

    made.server._answer = later
    feed = made.runner.feed
    before, applies = dict(feed.state.policies), len(made.applies)
    made.runner._reconnected()
    await eventually(lambda: bool(feed.refusal) and len(asked) >= 4)
    rev = made.publish(policy("web", "web", "ops"))
    assert {"protocol": "protocol 2", "content": "policy.gnp/web", "refuses": "not with you"}[way] in feed.standing
    assert len(made.applies) == applies
    assert feed.state.workloads.keys() == {WorkloadKey("k8s", "ns1/p1", "eth0")}
    assert feed.state.policies == before
    made.server._answer = answers  # upgraded
    await made.reached(rev)
    assert feed.standing == "following"
    assert made.applies[applies].delta.workloads == {}
    errors = [one for one in caplog.records if one.levelname == "ERROR"]
    assert [one.message for one in errors] == ["no typha can be followed, what was applied last stays"]


async def test_t07_a_reader_of_a_later_protocol_is_told_by_typha(pair: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await pair()
    request = msgspec.json.encode({"node": "node1", "protocol": 2, "version": "v9.0.0", "wants": ["graph"]})
    answer = await made.bus.request(subjects.any_snapshot("node1"), request, 5.0)
    reply = wire.decoder(wire.SnapshotReply).decode(answer.data)
    assert reply.refused
    assert "felix on node1 (v9.0.0) speaks protocol 2" in reply.error
