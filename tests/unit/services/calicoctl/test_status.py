"""`node status` against a bus in memory, with nodes that answer marks, are behind, fail, or are silent."""

from __future__ import annotations

import asyncio

import pytest

from libs.bus import Msg, subjects, wire
from libs.bus.memory import MemoryBroker
from services.calicoctl.status import gather, show


def report(node: str, rev: int, *, warnings: tuple[str, ...] = (), **failures: str) -> wire.Applied:
    return wire.Applied(node=node, epoch=None, rev=rev, seq=1, failures=failures, warnings=warnings)


@pytest.mark.asyncio
async def test_nodes_that_are_marked_report_and_the_others_are_missing() -> None:
    broker = MemoryBroker()
    bus, felix = broker.connect("calicoctl"), broker.connect("felix")
    marked: list[list[str]] = []

    def mark(message: Msg) -> None:
        request = wire.decoder(wire.MarkRequest).decode(message.data)
        marked.append(list(request.nodes))
        for node, rev in (("a", 7), ("b", 5), ("elsewhere", 9)):
            felix.publish(subjects.applied(node), wire.encode(report(node, rev)))
        felix.publish(subjects.applied("a"), wire.encode(report("a", 6)))  # an older one, late
        felix.publish(subjects.applied("c"), b"{")

    felix.subscribe(subjects.TYPHA_MARK, mark)
    found = await gather(bus, ["a", "b", "c"], 0.2)
    assert {node: one.rev for node, one in found.items()} == {"a": 7, "b": 5}
    assert marked[0] == ["a", "b", "c"]
    assert marked[-1] == ["b", "c"] or len(marked) == 1
    assert (await gather(bus, ["a"], 30))["a"].rev == 7  # returns with the last report, not with the time


@pytest.mark.asyncio
async def test_nodes_that_report_one_after_another_are_asked_once() -> None:
    broker = MemoryBroker()
    bus, felix = broker.connect("calicoctl"), broker.connect("felix")
    nodes = [f"n{number}" for number in range(20)]
    marked: list[str] = []
    waiting: list[asyncio.Task[None]] = []

    async def answer() -> None:
        for node in nodes:
            await asyncio.sleep(0.002)
            felix.publish(subjects.applied(node), wire.encode(report(node, 7)))

    def mark(message: Msg) -> None:
        marked.extend(wire.decoder(wire.MarkRequest).decode(message.data).nodes)
        waiting.append(asyncio.create_task(answer()))

    felix.subscribe(subjects.TYPHA_MARK, mark)
    assert len(await gather(bus, nodes, 30)) == 20
    assert sorted(marked) == sorted(nodes)
    await asyncio.gather(*waiting)


def test_table_names_what_failed_and_what_has_no_effect() -> None:
    reports = {
        "a": report("a", 7, warnings=("bpfEnabled",)),
        "b": report("b", 5),
        "c": report("c", 7, **{"np/ns/x": "IP set s:1 is not known"}),
    }
    text, good = show(["d", "c", "b", "a"], reports)
    assert not good
    assert text.splitlines()[3:] == [
        "| a    | up to date |        7 |          |",
        "| b    | behind     |        5 |          |",
        "| c    | failing    |        7 |        1 |",
        "| d    | no report  |          |          |",
        "+------+------------+----------+----------+",
        "a: without effect: bpfEnabled",
        "c: np/ns/x: IP set s:1 is not known",
    ]
    assert show(["a"], reports)[1]
