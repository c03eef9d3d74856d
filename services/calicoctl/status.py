"""`calicoctl node status`: how far the nodes are, what they could not program, which settings have no effect on them.

The nodes are asked by way of typha, which marks them; each then reports what its kernel holds (wire.Applied).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping

import msgspec

from libs.bus import Bus, Msg, subjects, wire
from services.calicoctl.output import boxed

HEADINGS = ["NODE", "STATUS", "REVISION", "PROBLEMS"]
ASK_AGAIN_S = 1.0  # a mark may be lost while a service restarts


async def gather(bus: Bus, nodes: Collection[str], timeout_s: float) -> dict[str, wire.Applied]:
    """The newest report of each of these nodes; returns when none is behind another, or when the time is up.

    The revision to reach is the newest that any of them reports: etcd's own may be of a write that is none of Calico's,
    which nobody reports. A node that said nothing is not in the result. Raises BusError.
    """
    found: dict[str, wire.Applied] = {}
    news = asyncio.Event()

    def heard(message: Msg) -> None:
        try:
            report = wire.decoder(wire.Applied).decode(message.data)
        except msgspec.MsgspecError:
            return  # a felix of another version: it will be named as silent
        if report.node in nodes and report.rev >= getattr(found.get(report.node), "rev", 0):
            found[report.node] = report
            news.set()

    def missing() -> list[str]:
        newest = max((report.rev for report in found.values()), default=0)
        return sorted(node for node in nodes if node not in found or found[node].rev < newest)

    subscription = bus.subscribe(subjects.ALL_APPLIED, heard)
    try:
        await bus.barrier(min(timeout_s, 10.0))
        now = asyncio.get_running_loop().time
        end, ask_at = now() + timeout_s, 0.0
        while missing() and now() < end:
            if now() >= ask_at:  # not at each report: every wish makes all the nodes that it names report
                bus.publish(subjects.TYPHA_MARK, wire.encode(wire.MarkRequest(rev=0, nodes=missing())))
                ask_at = now() + ASK_AGAIN_S
            news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), max(0.0, min(end, ask_at) - now()))
    finally:
        subscription.unsubscribe()
    return found


def show(nodes: Collection[str], reports: Mapping[str, wire.Applied]) -> tuple[str, bool]:
    """(what to print, whether all is well). Settings without effect are told, but nothing is wrong with the node."""
    rows = [HEADINGS]
    lines: list[str] = []
    good = True
    newest = max((report.rev for report in reports.values()), default=0)
    for node in sorted(nodes):
        report = reports.get(node)
        if report is None:
            good = False
            rows.append([node, "no report", "", ""])
            continue
        behind = report.rev < newest
        status = "failing" if report.failures else "behind" if behind else "up to date"
        good &= not report.failures and not behind
        rows.append([node, status, str(report.rev), str(len(report.failures) or "")])
        lines += [f"{node}: {name}: {reason}" for name, reason in sorted(report.failures.items())]
        lines += [f"{node}: without effect: {warning}" for warning in report.warnings]
    text = boxed(rows, right=frozenset({2, 3}))
    return text + "".join(f"{line}\n" for line in lines), good
