from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncGenerator
from datetime import UTC, datetime

import msgspec
import pytest

from libs.bus import Msg, subjects, wire
from libs.bus.memory import MemoryBroker
from services.calicoctl import tap

AT = datetime(2026, 11, 23, 12, 40, 24, 5000, tzinfo=UTC)
EPOCH = wire.Epoch("i1", 1, 2)


def line(subject: str, message: msgspec.Struct | bytes) -> str:
    payload = message if isinstance(message, bytes) else wire.encode(message)
    return str(tap.describe(subject, payload, AT))


def snapshot_chunk() -> wire.SnapshotReply:
    content = msgspec.json.encode(wire.Snapshot(rev=7, seq=3, full=True, streams={}))
    return wire.SnapshotReply(epoch=EPOCH, rev=7, etcd_age_s=0.1, head=7, id="x", chunks=1, data=zlib.compress(content))


@pytest.mark.parametrize(
    ("subject", "message", "expected"),
    [
        (
            subjects.beat("i1"),
            wire.Beat(epoch=EPOCH, rev=41, etcd_age_s=0.25, head=42),
            "calico.typha.i1.beat beat 41 head 42; etcd 0.2 s ago",
        ),
        (
            subjects.applied("node.1"),
            wire.Applied(node="node.1", epoch=EPOCH, rev=9, seq=3),
            "calico.felix.node%2E1.applied applied 9 ok",
        ),
        (
            subjects.applied("n"),
            wire.Applied(node="n", epoch=EPOCH, rev=9, seq=3, failures={"ipset s:a": "full"}),
            "calico.felix.n.applied applied 9 1 failed: ipset s:a: full",
        ),
        (
            subjects.endpoint_status("n", "e"),
            wire.EndpointStatus(node="n", endpoint="shop/web", status="up", rev=9),
            "calico.felix.n.status.e status 9 shop/web up",
        ),
        (
            subjects.event("i1", "NetworkPolicy", "shop", "web"),
            wire.EventMsg(rev=12, action="put", key="/calico/x", error="bad selector"),
            "calico.typha.i1.event.NetworkPolicy.shop.web event 12 put /calico/x (ignored: bad selector)",
        ),
        (
            subjects.of_stream("i1", "ipset.s:abc"),
            wire.SetMsg(epoch=EPOCH, rev=5, seq=2, prev=1, added=["10.0.0.1", "10.0.0.2"], removed=["10.0.0.9"]),
            "calico.typha.i1.ipset.s:abc ipset 5 seq 2; +10.0.0.1,10.0.0.2; -10.0.0.9",
        ),
        (
            subjects.of_stream("i1", "route.pools"),
            wire.TableMsg(epoch=EPOCH, rev=5, seq=2, prev=1, pools={"10.0.0.0/8": None}),
            "calico.typha.i1.route.pools table 5 seq 2; pools -10.0.0.0/8",
        ),
        (
            subjects.node_stream("i1", "n"),
            wire.Commit(epoch=EPOCH, rev=5, seq=2, prev=1, needs={"a": 1}, remove=["b"], workloads={"w": None}),
            "calico.typha.i1.node.n commit 5 seq 2; workloads -w; drops b; needs 1",
        ),
        (subjects.node_stream("i1", "n"), wire.Mark(epoch=EPOCH, rev=5, seq=2), "calico.typha.i1.node.n mark 5 seq=2"),
        (
            subjects.any_snapshot("n"),
            wire.SnapshotRequest(node="n", streams={"policy.np/a/b": -1}),
            "calico.typha.snapshot.n snapshot - n asks for streams policy.np/a/b",
        ),
        (
            subjects.TYPHA_CONCERNS,
            wire.ConcernsRequest(rev=5),
            "calico.typha.rpc.concerns concerns 5 timeout_s=10.0",
        ),
        ("calico.flow.n", b"[1, 2, 3]", "calico.flow.n list - 3 entries"),
        ("calico.x", b"\xff\x00", "calico.x data - 2 bytes"),
        ("calico.x", b"", "calico.x empty - 0 bytes"),
        ("calico.x", b"5", "calico.x int - 1 bytes"),
    ],
)
def test_each_message_has_a_readable_line(subject: str, message: msgspec.Struct | bytes, expected: str) -> None:
    assert line(subject, message) == f"12:40:24.005 {expected}"


def test_long_lists_are_cut() -> None:
    message = wire.SetMsg(epoch=EPOCH, rev=5, seq=2, prev=1, added=[f"10.0.0.{n}" for n in range(100)])
    assert line("calico.typha.i.ipset.x", message).endswith("+10.0.0.0,10.0.0.1,10.0.0.2,10.0.0.3 +96")


def test_a_compressed_snapshot_is_opened() -> None:
    shown = line("calico.typha.i1.snapshot.n", snapshot_chunk())
    assert "chunk 1 of 1" in shown
    assert shown.endswith("bytes, compressed: 0 workloads, 0 hosts, 0 streams")


@pytest.mark.parametrize("data", [b"not zlib", zlib.compress(b"x" * 100)[:10]])
def test_a_part_of_a_snapshot_is_told_by_size(data: bytes) -> None:
    reply = wire.SnapshotReply(epoch=EPOCH, rev=7, etcd_age_s=0.1, head=7, chunks=2, data=data)
    assert line("calico.typha.i1.snapshot.n", reply).endswith("bytes, compressed")


def test_raw_is_one_json_object_a_line_without_secrets() -> None:
    payload = json.dumps({"password": "hunter2", "nested": [{"token": "abc"}], "password_ref": {"name": "x"}}).encode()
    shown = json.loads(tap.raw("calico.x", payload, AT))
    assert shown == {
        "time": "2026-11-23T12:40:24.005000+00:00",
        "subject": "calico.x",
        "message": {"password": "***", "nested": [{"token": "***"}], "password_ref": {"name": "x"}},
    }
    assert "hunter2" not in line("calico.x", payload)


def test_raw_text_that_is_no_json_is_shown_as_text() -> None:
    assert json.loads(tap.raw("calico.x", b"plain", AT))["message"] == "plain"


async def test_listening_ends_after_count_messages() -> None:
    broker = MemoryBroker()
    bus, other = broker.connect("ctl"), broker.connect("other")
    got: list[str] = []

    async def read() -> None:
        async for message in tap.listen(bus, ("calico.a", "calico.b"), 2):
            assert isinstance(message, Msg)
            got.append(message.subject)

    task = asyncio.create_task(read(), name="tap")
    await asyncio.sleep(0)
    for subject in ("calico.a", "calico.c", "calico.b", "calico.a"):
        other.publish(subject, b"{}")
    async with asyncio.timeout(30):
        await task
    assert got == ["calico.a", "calico.b"]


async def test_what_a_slow_terminal_loses_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap, "QUEUE", 2)
    broker = MemoryBroker()
    bus, other = broker.connect("ctl"), broker.connect("other")
    stream = tap.listen(bus, ("calico.>",), None)
    assert isinstance(stream, AsyncGenerator)
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    other.publish("calico.first", b"{}")
    await first
    for _ in range(5):
        other.publish("calico.more", b"{}")
    await bus.barrier()
    lost = await anext(stream)
    assert isinstance(lost, tap.Dropped)
    assert lost.count == 3
    await stream.aclose()
