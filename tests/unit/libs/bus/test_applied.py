"""Waiting for nodes, against a bus in memory: a typha that answers, and nodes that report."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from libs.bus import Msg, subjects, wire
from libs.bus.applied import Progress, WaitProblem, listening
from libs.bus.memory import MemoryBroker, MemoryBus

pytestmark = pytest.mark.virtual_time


def applied(node: str, rev: int, **failures: str) -> wire.Applied:
    return wire.Applied(node=node, epoch=None, rev=rev, seq=1, failures=failures)


def report(bus: MemoryBus, message: wire.Applied) -> None:
    bus.publish(subjects.applied(message.node), wire.encode(message))


def typha(
    broker: MemoryBroker, concerns: dict[int, list[str]], error: str = "", silent: Sequence[str] = ()
) -> list[int]:
    """Answers which nodes a revision concerns; returns the revisions it was asked for, as they come."""
    bus = broker.connect("typha")
    asked: list[int] = []

    def answer(message: Msg) -> None:
        request = wire.decoder(wire.ConcernsRequest).decode(message.data)
        asked.append(request.rev)
        nodes = concerns.get(request.rev, [])
        reply = wire.ConcernsReply(rev=request.rev, nodes=nodes, silent=list(silent), error=error)
        message.respond(wire.encode(reply))

    bus.subscribe(subjects.TYPHA_CONCERNS, answer, queue=subjects.TYPHA_QUEUE)
    return asked


def test_a_node_counts_when_it_reached_its_highest_revision() -> None:
    progress = Progress()
    progress.concern(["a", "b"], 10)
    progress.concern(["b"], 12)
    progress.concern(["b"], 11)
    assert progress.missing() == ["a", "b"]
    progress.heard(applied("a", 11))
    progress.heard(applied("b", 11))
    assert progress.missing() == ["b"]
    progress.heard(applied("b", 12))
    progress.heard(applied("b", 9))  # late
    progress.heard(applied("c", 1))  # of no concern
    assert progress.missing() == []


def test_a_report_before_the_concern_counts() -> None:
    progress = Progress()
    progress.heard(applied("a", 20))
    progress.concern(["a"], 15)
    assert progress.missing() == []


def test_failures_count_only_of_nodes_concerned_and_the_latest_report() -> None:
    progress = Progress()
    progress.concern(["a"], 5)
    progress.heard(applied("a", 5, ipset="full"))
    progress.heard(applied("b", 5, other="bad"))
    assert progress.failed() == ["a: ipset: full"]
    progress.heard(applied("a", 6))
    assert progress.failed() == []


async def test_returns_when_all_nodes_concerned_have_reported() -> None:
    broker = MemoryBroker()
    asked = typha(broker, {7: ["node1", "node2"], 9: ["node2"]})
    nodes = broker.connect("nodes")
    async with listening(broker.connect("ctl"), 5.0) as waiter:
        report(nodes, applied("node1", 7))  # faster than our question
        task = asyncio.create_task(waiter.until_applied([7, 9, 7]), name="wait")
        await asyncio.sleep(0)
        report(nodes, applied("node2", 7))
        await asyncio.sleep(0)
        assert not task.done()
        report(nodes, applied("node2", 9))
        assert await task == ["node1", "node2"]
    assert asked == [7, 9]


async def test_a_change_that_concerns_nobody_returns_at_once() -> None:
    broker = MemoryBroker()
    typha(broker, {})
    async with listening(broker.connect("ctl"), 5.0) as waiter:
        assert await waiter.until_applied([3]) == []
    assert asyncio.get_running_loop().time() == 0.0


async def test_nodes_that_do_not_report_are_named() -> None:
    broker = MemoryBroker()
    typha(broker, {7: ["node1", "node2", "node3"]})
    nodes = broker.connect("nodes")
    async with listening(broker.connect("ctl"), 0.2) as waiter:
        report(nodes, applied("node1", 7))
        report(nodes, applied("node2", 6))
        with pytest.raises(WaitProblem) as caught:
            await waiter.until_applied([7])
    assert "node1" not in str(caught.value)
    assert "node2: has revision 6, needs revision 7" in str(caught.value)
    assert "node3: no report, needs revision 7" in str(caught.value)


async def test_failures_of_a_node_are_told() -> None:
    broker = MemoryBroker()
    typha(broker, {7: ["node1"]})
    nodes = broker.connect("nodes")
    async with listening(broker.connect("ctl"), 5.0) as waiter:
        report(nodes, applied("node1", 7, policy="no space"))
        with pytest.raises(WaitProblem, match="node1: policy: no space"):
            await waiter.until_applied([7])


async def test_without_typha_it_says_so() -> None:
    async with listening(MemoryBroker().connect("ctl"), 5.0) as waiter:
        with pytest.raises(WaitProblem, match="no typha answers"):
            await waiter.until_applied([7])


async def test_an_error_of_typha_is_passed_on() -> None:
    broker = MemoryBroker()
    typha(broker, {}, error="revision not reached in time")
    async with listening(broker.connect("ctl"), 5.0) as waiter:
        with pytest.raises(WaitProblem, match="revision not reached in time"):
            await waiter.until_applied([7])


async def test_reports_that_are_not_understood_are_passed_over() -> None:
    broker = MemoryBroker()
    typha(broker, {7: ["node1"]})
    nodes = broker.connect("nodes")
    async with listening(broker.connect("ctl"), 5.0) as waiter:
        nodes.publish("calico.felix.node1.applied", b'{"version": 2}')
        report(nodes, applied("node1", 7))
        assert await waiter.until_applied([7]) == ["node1"]


async def test_missing_nodes_are_asked_to_report_again_also_after_a_reconnect() -> None:
    broker = MemoryBroker()
    typha(broker, {7: ["node1"]})
    nodes = broker.connect("nodes")
    marks: list[wire.MarkRequest] = []
    asked = asyncio.Event()

    def mark(message: Msg) -> None:
        marks.append(wire.decoder(wire.MarkRequest).decode(message.data))
        asked.set()
        if len(marks) == 2:
            report(nodes, applied("node1", 7))

    nodes.subscribe(subjects.TYPHA_MARK, mark)
    async with listening(broker.connect("ctl"), 5.0) as waiter:
        task = asyncio.create_task(waiter.until_applied([7]), name="wait")
        async with asyncio.timeout(30):
            await asked.wait()
        broker.disconnect("ctl")
        broker.reconnect("ctl")
        assert await task == ["node1"]
    assert [(mark.rev, mark.nodes) for mark in marks] == [(7, ["node1"])] * 2


async def test_the_subscription_ends_with_the_wait() -> None:
    broker = MemoryBroker()
    bus = broker.connect("ctl")
    async with listening(bus, 5.0) as waiter:
        pass
    report(broker.connect("nodes"), applied("node1", 7))
    await bus.barrier()
    assert waiter.progress.reached == {}
    assert bus.on_reconnect == []


async def test_left_out_and_silent_nodes_are_not_waited_for_where_that_is_asked() -> None:
    broker = MemoryBroker()
    typha(broker, {7: ["me", "node1", "node2"]}, silent=["node2"])
    nodes = broker.connect("nodes")
    async with listening(broker.connect("felix"), 5.0) as waiter:
        report(nodes, applied("node1", 7, other="bad"))  # what fails there need not be this
        await waiter.until_reached([7], leave_out=("me",), only_alive=True)
    async with listening(broker.connect("ctl"), 0.1) as waiter:
        report(nodes, applied("node1", 7))
        with pytest.raises(WaitProblem, match="me: no report") as caught:
            await waiter.until_reached([7])
        assert "node2: no report" in str(caught.value)
