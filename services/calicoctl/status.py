"""`calicoctl node status`: how far the nodes are, what they could not program, which settings have no effect on them,
and the sessions of their BGP speakers.

The nodes are asked by way of typha, which marks them; each then reports what its kernel holds (wire.Applied). Speakers
are asked one by one (libs/bus/bgp.py). A node without one is no fault: many clusters have none.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping

import msgspec

from libs.bus import Bus, BusError, Msg, subjects, wire
from libs.bus.bgp import Peer, PeerKind, PeerState, State, StateRequest, state_subject
from services.calicoctl.documents import Json
from services.calicoctl.output import boxed

HEADINGS = ["NODE", "STATUS", "REVISION", "PROBLEMS"]
BGP_HEADINGS = ["NODE", "PEER ADDRESS", "PEER TYPE", "AS", "STATE", "SINCE", "IN", "USED", "OUT", "INFO"]
PEER_TYPES = {
    PeerKind.MESH: "node-to-node mesh",
    PeerKind.GLOBAL: "global",
    PeerKind.NODE: "node specific",
    PeerKind.LOCAL_WORKLOAD: "local workload",
}
BGP_PORT = 179
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
            rows.append([node, _status(report, newest), "", ""])
            continue
        status = _status(report, newest)
        good &= status == "up to date"
        rows.append([node, status, str(report.rev), str(len(report.failures) or "")])
        lines += [f"{node}: {name}: {reason}" for name, reason in sorted(report.failures.items())]
        lines += [f"{node}: without effect: {warning}" for warning in report.warnings]
    text = boxed(rows, right=frozenset({2, 3}))
    return text + "".join(f"{line}\n" for line in lines), good


async def ask_bgp(bus: Bus, node: str, timeout_s: float, *, routes: bool = False) -> State | None:
    """What the node's speaker tells; None when it is not there, or does not answer in time."""
    try:
        answer = await bus.request(state_subject(node), wire.encode(StateRequest(routes=routes)), timeout_s)
        state: State = wire.decoder(State).decode(answer.data)
    except (BusError, msgspec.MsgspecError):
        return None
    return state


async def gather_bgp(bus: Bus, nodes: Collection[str], timeout_s: float) -> dict[str, State]:
    """What the speakers of these nodes tell; those that do not answer are not in it."""
    names = sorted(nodes)
    states = await asyncio.gather(*(ask_bgp(bus, name, timeout_s) for name in names))
    return {name: state for name, state in zip(names, states, strict=True) if state is not None}


def show_bgp(nodes: Collection[str], states: Mapping[str, State]) -> tuple[str, bool]:
    """(what to print, whether every speaker that answered works with its settings). A session that is down is told and
    is no fault of the node.
    """
    if not states:
        return "", True
    text, good = "", True
    for family, mark in (("IPv4", False), ("IPv6", True)):
        rows = [
            [node, *_peer_cells(peer)]
            for node, state in sorted(states.items())
            for peer in sorted(state.peers, key=lambda one: one.name)
            if (":" in peer.address) is mark
        ]
        if rows:
            text += f"\n{family} BGP\n" + boxed([BGP_HEADINGS, *rows], right=frozenset({3, 6, 7, 8}))
        else:
            text += f"\n{family} BGP: no peers\n"
    for node, state in sorted(states.items()):
        if not state.ready:
            good = False
            text += f"{node}: the BGP speaker is not ready{': ' if state.detail else ''}{state.detail}\n"
        for name, reason in sorted(state.problems.items()):
            good = False
            text += f"{node}: BGP: {name}: {reason}\n"
    if silent := sorted(set(nodes) - states.keys()):
        text += f"no BGP speaker answers: {', '.join(silent)}\n"
    return text, good


def _peer_cells(peer: Peer) -> list[str]:
    up = peer.state is PeerState.ESTABLISHED
    address = peer.address
    if peer.port != BGP_PORT:
        address = f"[{address}]:{peer.port}" if ":" in address else f"{address}:{peer.port}"
    counts = [str(peer.received), str(peer.accepted), str(peer.advertised)] if up else ["", "", ""]
    info = peer.detail or ("" if up else peer.last_error)
    return [address, PEER_TYPES[peer.kind], str(peer.remote_as or ""), str(peer.state), peer.since, *counts, info]


def document(nodes: Collection[str], reports: Mapping[str, wire.Applied], states: Mapping[str, State]) -> Json:
    """The same for programs. A node that did not report has no revision, one without a speaker no `bgp`."""
    found: list[Json] = []
    newest = max((report.rev for report in reports.values()), default=0)
    for node in sorted(nodes):
        report, state = reports.get(node), states.get(node)
        one: dict[str, Json] = {"node": node, "status": _status(report, newest)}
        if report is not None:
            one["revision"] = report.rev
            one["failures"] = dict(sorted(report.failures.items()))
            one["warnings"] = list(report.warnings)
        if state is not None:
            told = msgspec.to_builtins(state)
            told.pop("node")
            one["bgp"] = {"ready": state.ready, "peers": [], **told}
        found.append(one)
    return found


def _status(report: wire.Applied | None, newest: int) -> str:
    if report is None:
        return "no report"
    return "failing" if report.failures else "behind" if report.rev < newest else "up to date"
