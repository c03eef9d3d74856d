"""What typha answers on the bus, over the bus's fake."""

from __future__ import annotations

import asyncio
import time
import zlib

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from libs.bus import compat, subjects, wire
from libs.bus.api import BusTimeout
from libs.bus.memory import MemoryBroker, MemoryBus
from services.typha.metrics import SYNCER, Metrics
from services.typha.shell import serve
from services.typha.shell.serve import SILENT_S, Contact, Server
from tests.unit.services.typha.samples import EPOCH, Writer, endpoint, many_nets, network_set, policy


class Typha:
    """Publisher and Server on a bus; `bus` is a felix's connection."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.writer = Writer(endpoint("node1", "p1", "web", 1), policy("web", "web", "db"))
        self.own, self.bus = self.broker.connect("typha"), self.broker.connect("felix")
        self.registry = CollectorRegistry()
        self.flushes = 0
        self.contact = Contact(at=-1e9, head=5)
        self.server = Server(
            self.own, self.writer.publisher, self.contact, Metrics(self.registry), self.flush, self.send
        )
        self.server.start()

    def flush(self, node: str) -> None:
        self.flushes += 1

    def send(self, out: list[tuple[str, bytes]]) -> None:
        for subject, data in out:
            self.own.publish(subject, data)

    async def ask(self, request: wire.SnapshotRequest, subject: str = "") -> wire.SnapshotReply:
        subject = subject or subjects.own_snapshot(EPOCH.instance, request.node)
        msg = await self.bus.request(subject, wire.encode(request), 30.0)
        reply: wire.SnapshotReply = wire.decoder(wire.SnapshotReply).decode(msg.data)
        return reply


@pytest.fixture
def typha() -> Typha:
    return Typha()


def unpacked(*parts: bytes) -> wire.Snapshot:
    snapshot: wire.Snapshot = wire.decoder(wire.Snapshot).decode(zlib.decompress(b"".join(parts)))
    return snapshot


def large(typha: Typha) -> None:
    typha.writer.publish(network_set("big", "db", many_nets(5000)))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "CHUNK_BYTES", 2000)


async def test_hello_tells_who_answers_and_registers_nobody(typha: Typha) -> None:
    reply = await typha.ask(wire.SnapshotRequest(node="node1", hello=True), subjects.any_snapshot("node1"))
    assert (reply.epoch, reply.rev, reply.head, reply.chunks) == (EPOCH, 1, 5, 0)
    assert reply.etcd_age_s == 1e6  # never in contact
    assert typha.writer.publisher.readers == {}


async def test_nothing_is_answered_before_the_datastore_was_read(typha: Typha) -> None:
    typha.writer.publisher.rev = 0
    assert (await typha.ask(wire.SnapshotRequest(node="node1", hello=True))).error
    assert (await typha.ask(wire.SnapshotRequest(node="node1"))).error
    assert typha.writer.publisher.readers == {}


async def test_snapshot_registers_its_reader_and_publishes_what_was_read_first(typha: Typha) -> None:
    reply = await typha.ask(wire.SnapshotRequest(node="node1"))
    assert typha.flushes == 1
    assert set(unpacked(reply.data).streams) > {"policy.gnp/web", "route.blocks"}
    assert (reply.id, reply.chunks) == ("", 1)
    assert set(typha.writer.publisher.readers) == {"node1"}
    assert typha.registry.get_sample_value("typha_snapshots_generated", {"syncer": SYNCER}) == 1


async def test_named_streams_only(typha: Typha) -> None:
    await typha.ask(wire.SnapshotRequest(node="node1"))
    reply = await typha.ask(wire.SnapshotRequest(node="node1", streams={"policy.gnp/web": -1, "policy.gnp/x": 3}))
    snapshot = unpacked(reply.data)
    assert (set(snapshot.streams), snapshot.gone, snapshot.full) == ({"policy.gnp/web"}, ["policy.gnp/x"], False)


async def test_large_snapshot_is_pulled_chunk_by_chunk_and_is_of_one_moment(typha: Typha, small_chunks: None) -> None:
    large(typha)
    first = await typha.ask(wire.SnapshotRequest(node="node1"))
    assert first.chunks > 2
    parts = [first.data]
    for chunk in range(1, first.chunks):
        typha.writer.publish(endpoint("node1", f"x{chunk}", "other", chunk + 5))
        part = await typha.ask(wire.SnapshotRequest(node="node1", id=first.id, chunk=chunk))
        assert (part.chunk, part.rev, len(part.data) <= 2000) == (chunk, first.rev, True)
        parts.append(part.data)
    snapshot = unpacked(*parts)
    assert (snapshot.rev, len(snapshot.workloads)) == (2, 1)
    raw = typha.registry.get_sample_value("typha_snapshot_raw_bytes", {"syncer": SYNCER})
    packed = typha.registry.get_sample_value("typha_snapshot_compressed_bytes", {"syncer": SYNCER})
    assert raw is not None
    assert packed == sum(map(len, parts)) < raw / 3


async def test_chunk_of_an_answer_that_is_over_expired_or_unknown_is_refused(
    typha: Typha, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    large(typha)
    first = await typha.ask(wire.SnapshotRequest(node="node1"))
    for chunk in (-1, first.chunks):
        assert (await typha.ask(wire.SnapshotRequest(node="node1", id=first.id, chunk=chunk))).error
    assert not (await typha.ask(wire.SnapshotRequest(node="node1", id=first.id, chunk=1))).error
    clock = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: clock + serve.KEPT_S + 1)
    typha.server.tick()
    assert (await typha.ask(wire.SnapshotRequest(node="node1", id=first.id, chunk=1))).error
    assert (await typha.ask(wire.SnapshotRequest(node="node1", id="nonsense", chunk=0))).error
    again = await typha.ask(wire.SnapshotRequest(node="node1"))
    last = wire.SnapshotRequest(node="node1", id=again.id, chunk=again.chunks - 1)
    assert not (await typha.ask(last)).error
    assert (await typha.ask(last)).error  # the last chunk ends it


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"node": 5}', b"\xff\xfe", b'{"rev": "x"}'])
async def test_malformed_requests_are_answered_with_the_reason(typha: Typha, data: bytes) -> None:
    for subject in (subjects.any_snapshot("node1"), subjects.own_snapshot("t1", "node1")):
        answer = await typha.bus.request(subject, data, 30.0)
        reply = wire.decoder(wire.SnapshotReply).decode(answer.data)
        assert reply.refused
        assert "the request is not understood" in reply.error
    answer = await typha.bus.request(subjects.TYPHA_CONCERNS, data, 30.0)
    assert "not understood" in wire.decoder(wire.ConcernsReply).decode(answer.data).error
    assert typha.writer.publisher.readers == {}
    for subject in (subjects.applied("node1"), subjects.TYPHA_MARK):
        typha.bus.publish(subject, data)
    assert not (await typha.ask(wire.SnapshotRequest(node="node1"))).error


async def test_reader_of_another_protocol_is_told_what_to_upgrade(
    typha: Typha, caplog: pytest.LogCaptureFixture
) -> None:
    newer = wire.SnapshotRequest(node="node1", protocol=compat.PROTOCOL + 1, version="v9.0.0")
    for _ in range(3):
        reply = await typha.ask(newer)
    assert reply.refused
    assert reply.error == "felix on node1 (v9.0.0) speaks protocol 2, this typha protocol 1: upgrade this typha"
    assert reply.protocol == compat.PROTOCOL
    assert typha.writer.publisher.readers == {}
    told = [record.message for record in caplog.records if record.name.startswith("services.")]
    assert told == ["reader refused"]  # not each time
    older = wire.SnapshotRequest(node="node1", protocol=0)
    assert (await typha.ask(older)).error.endswith("upgrade felix on node1")
    assert not (await typha.ask(wire.SnapshotRequest(node="node1"))).error


@pytest.mark.parametrize("data", [b'{"node":5,"protocol":2,"version":"v9"}', b'{"protocol":2,"version":"v9","hi":1}'])
async def test_request_of_a_protocol_that_cannot_be_decoded_is_told_the_protocol(typha: Typha, data: bytes) -> None:
    answer = await typha.bus.request(subjects.any_snapshot("node1"), data, 30.0)
    reply = wire.decoder(wire.SnapshotReply).decode(answer.data)
    assert reply.refused
    assert reply.error == "the sender (v9) speaks protocol 2, this typha protocol 1: upgrade this typha"


async def test_requests_without_a_place_for_the_answer_are_ignored(typha: Typha) -> None:
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
    typha.bus.publish(subjects.own_snapshot("t1", "node1"), wire.encode(wire.SnapshotRequest(node="node1")))
    for rev in (1, 10**6):
        typha.bus.publish(subjects.TYPHA_CONCERNS, wire.encode(wire.ConcernsRequest(rev=rev, timeout_s=0)))
    await typha.bus.barrier()
    await typha.ask(wire.SnapshotRequest(node="node1", hello=True))
    typha.server.tick()
    assert failures == []
    assert typha.writer.publisher.readers == {}


async def test_a_node_cannot_ask_or_report_in_the_name_of_another(typha: Typha) -> None:
    await typha.ask(wire.SnapshotRequest(node="node1"))
    typha.writer.publish(endpoint("node1", "p2", "web", 3))
    request = wire.encode(wire.SnapshotRequest(node="node1"))
    with pytest.raises(BusTimeout):
        await typha.bus.request(subjects.any_snapshot("node2"), request, 0.01)
    lie = wire.Applied(node="node1", epoch=EPOCH, rev=2, seq=1)
    typha.bus.publish(subjects.applied("node2"), wire.encode(lie))
    await typha.ask(wire.SnapshotRequest(node="node1", hello=True))
    assert typha.writer.publisher.readers["node1"].applied_seq < 1
    typha.bus.publish(subjects.applied("node1"), wire.encode(lie))
    await typha.ask(wire.SnapshotRequest(node="node1", hello=True))
    assert typha.writer.publisher.readers["node1"].applied_seq == 1
    count = typha.registry.get_sample_value("typha_client_latency_secs_count", {"syncer": SYNCER})
    assert count == 1


async def concerns(bus: MemoryBus, rev: int, timeout_s: float = 10.0) -> wire.ConcernsReply:
    request = wire.ConcernsRequest(rev=rev, timeout_s=timeout_s)
    msg = await bus.request(subjects.TYPHA_CONCERNS, wire.encode(request), 5.0)
    reply: wire.ConcernsReply = wire.decoder(wire.ConcernsReply).decode(msg.data)
    return reply


async def test_who_is_concerned_is_answered_once_the_revision_was_processed(typha: Typha) -> None:
    await typha.ask(wire.SnapshotRequest(node="node1"))
    waiting = asyncio.ensure_future(concerns(typha.bus, 2))
    await typha.ask(wire.SnapshotRequest(node="node1", hello=True))
    typha.server.advanced()
    assert not waiting.done()
    typha.writer.publish(endpoint("node1", "p2", "web", 3))
    typha.server.advanced()
    assert (await waiting).nodes == ["node1"]


async def test_question_about_a_revision_that_does_not_come_is_answered_with_an_error(typha: Typha) -> None:
    waiting = asyncio.ensure_future(concerns(typha.bus, 99, timeout_s=0.0))
    await typha.ask(wire.SnapshotRequest(node="node1", hello=True))
    await asyncio.sleep(0.002)
    typha.server.tick()
    assert "revision 1" in (await waiting).error


async def test_nodes_that_stopped_reporting_are_told_apart_once_typha_had_time_to_hear(
    typha: Typha, monkeypatch: pytest.MonkeyPatch
) -> None:
    await typha.ask(wire.SnapshotRequest(node="node1"))
    typha.writer.publish(endpoint("node1", "p2", "web", 2), endpoint("node2", "p3", "web", 2))
    assert await concerns(typha.bus, 2) == wire.ConcernsReply(rev=2, nodes=["node1", "node2"])
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + SILENT_S + 1)
    other = wire.Epoch("another", 1, 1)  # whichever typha a node follows
    typha.bus.publish(subjects.applied("node1"), wire.encode(wire.Applied(node="node1", epoch=other, rev=2, seq=1)))
    assert (await concerns(typha.bus, 2)).silent == ["node2"]
    monkeypatch.setattr(time, "monotonic", lambda: began + 2 * SILENT_S + 2)
    assert (await concerns(typha.bus, 2)).silent == ["node1", "node2"]


async def test_mark_is_sent_to_readers_that_are_asked_for(typha: Typha) -> None:
    await typha.ask(wire.SnapshotRequest(node="node1"))
    heard: list[wire.NodeMessage] = []
    decode = msgspec.json.Decoder(wire.NodeMessage)
    typha.bus.subscribe(subjects.node_stream("t1", "node1"), lambda msg: heard.append(decode.decode(msg.data)))
    typha.bus.publish(subjects.TYPHA_MARK, wire.encode(wire.MarkRequest(rev=1, nodes=["node1"])))
    await typha.ask(wire.SnapshotRequest(node="node1", hello=True))
    await typha.bus.barrier()
    assert heard == [wire.Mark(epoch=EPOCH, rev=1, seq=0)]
