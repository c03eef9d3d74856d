"""`calicoctl node connections`: what nodes track, and what today's policy makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from libs.bus import Bus
from libs.bus import explain as asked
from libs.bus.explain import Connection, ConnectionsReply, ConnectionsRequest
from libs.policy.path import Decision, Step, allowed
from libs.policy.trace import Packet
from services.calicoctl.documents import Json
from services.calicoctl.explain import asking
from services.calicoctl.output import boxed

HEADINGS = ["NODE", "PROTOCOL", "SOURCE", "DESTINATION", "STATE", "TODAY", "BY"]


async def gather(
    bus: Bus, nodes: Sequence[str], request: ConnectionsRequest, timeout_s: float
) -> tuple[list[ConnectionsReply], dict[str, str]]:
    """The answers by node, and why others gave none."""

    async def one(node: str) -> ConnectionsReply | str:
        reply = await asking.ask(bus, node, asked.Verb.CONNECTIONS, request, ConnectionsReply, timeout_s)
        return reply.error or reply

    return await asking.gather(nodes, one)


async def live_packets(bus: Bus, nodes: Sequence[str], timeout_s: float) -> tuple[list[Packet], dict[str, str]]:
    """The first packets of all tracked connections, each once though two nodes may know it; and who did not answer."""
    answers, silent = await gather(bus, nodes, ConnectionsRequest(), timeout_s)
    found: dict[Packet, None] = {}
    for answer in answers:
        for one in answer.connections:
            if one.protocol in ("icmp", "icmpv6"):
                continue  # their type is that of the request, and nobody opens a connection with it
            found[
                Packet(
                    src=one.src,
                    dst=one.translated_dst or one.dst,
                    protocol=int(one.protocol) if one.protocol.isdecimal() else one.protocol,
                    src_port=one.src_port,
                    dst_port=one.translated_dst_port or one.dst_port,
                )
            ] = None
        if answer.total > len(answer.connections):
            silent[answer.node] = f"{answer.total - len(answer.connections)} more than fit in an answer"
    return list(found), silent


def text(answers: Sequence[ConnectionsReply], silent: Mapping[str, str]) -> str:
    rows = [HEADINGS]
    for answer in answers:
        rows += [_row(answer.node, one) for one in answer.connections]
    lines = [boxed(rows)] if len(rows) > 1 else []
    for answer in answers:
        shown = len(answer.connections)
        more = f", {shown} of them shown" if shown < answer.total else ""
        lines.append(
            f"{answer.node}: {answer.total} connection(s) of its workloads asked for{more}; {answer.tracked} tracked "
            f"in all; judged by today's policy at revision {answer.rev}\n"
        )
    lines += [f"{node}: not asked: {why}\n" for node, why in sorted(silent.items())]
    return "".join(lines)


def _row(node: str, one: Connection) -> list[str]:
    state = one.state or ("replied" if one.replied else "unreplied")
    return [
        node,
        one.protocol,
        _end(one.source, one.src, one.src_port),
        _end(one.destination, one.dst, one.dst_port, one.translated_dst, one.translated_dst_port),
        state,
        "allowed" if allowed(one.steps) else "DENIED",
        "; ".join(f"{step.direction} {_by(step)}" for step in one.steps),
    ]


def _end(workload: str, address: str, port: int, translated: str = "", translated_port: int = 0) -> str:
    place = f"[{address}]:{port}" if port and ":" in address else f"{address}:{port}" if port else address
    if translated:
        place += f" => {translated}" + (f":{translated_port}" if translated_port else "")
    return f"{workload} {place}".strip()


def _by(step: Step) -> str:
    decision: Decision = step.decision
    if decision.policy:
        return f"{decision.policy}/{decision.rule}"
    if decision.profile:
        return f"profile {decision.profile}/{decision.rule}"
    return f"end of tier {decision.tier}" if decision.tier else decision.reason


def document(answers: Sequence[ConnectionsReply], silent: Mapping[str, str]) -> Json:
    found: list[Json] = []
    for answer in answers:
        value = msgspec.to_builtins(answer)
        for one, told in zip(answer.connections, value.get("connections", []), strict=True):
            told["verdict"] = "allow" if allowed(one.steps) else "deny"
        found.append({"connections": [], "total": 0, **value})
    for node, why in sorted(silent.items()):
        found.append({"node": node, "error": why})
    return found
