"""`calicoctl node routes`: a node's routes with their owner and reason, by its felix and its BGP speaker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from libs.bus import Bus
from libs.bus import explain as asked
from libs.bus.explain import NodeRoute, RoutesReply, RoutesRequest
from services.calicoctl.documents import Json
from services.calicoctl.explain import asking
from services.calicoctl.output import boxed
from services.calicoctl.status import ask_bgp

HEADINGS = ["DESTINATION", "VIA", "INTERFACE", "METRIC", "TABLE", "OWNER", "REASON"]


async def gather(
    bus: Bus, nodes: Sequence[str], request: RoutesRequest, timeout_s: float
) -> tuple[list[RoutesReply], dict[str, str]]:
    """The answers by node, learned routes with the peer that told them; and why others gave none."""

    async def one(node: str) -> RoutesReply | str:
        reply = await asking.ask(bus, node, asked.Verb.ROUTES, request, RoutesReply, timeout_s)
        if reply.error:
            return reply.error
        if any(route.owner == "bgp" for route in reply.routes):
            reply = with_peers(reply, await _learned(bus, node, timeout_s))
        return reply

    return await asking.gather(nodes, one)


async def _learned(bus: Bus, node: str, timeout_s: float) -> dict[str, str]:
    """destination -> who told the speaker of it; empty when it does not answer."""
    state = await ask_bgp(bus, node, timeout_s, routes=True)
    if state is None:
        return {}
    names = {peer.address: peer.name for peer in state.peers}
    return {route.destination: names.get(route.peer, route.peer) for route in state.routes if route.peer}


def with_peers(reply: RoutesReply, learned: Mapping[str, str]) -> RoutesReply:
    routes = []
    for route in reply.routes:
        peer = learned.get(route.destination) if route.owner == "bgp" else None
        if peer:
            told = route.reason.removeprefix("learned by BGP")
            route = msgspec.structs.replace(route, reason=f"learned by BGP from {peer}{told}")
        routes.append(route)
    return msgspec.structs.replace(reply, routes=tuple(routes))


def text(answers: Sequence[RoutesReply], silent: Mapping[str, str]) -> str:
    parts = []
    for answer in answers:
        rows = [HEADINGS, *(_row(route) for route in answer.routes)]
        shown = len(answer.routes)
        more = f", the first {shown} shown" if shown < answer.total else ""
        parts.append(f"{answer.node}: {answer.total} route(s){more}\n" + boxed(rows, right=frozenset({3})))
    parts += [f"{node}: not asked: {why}\n" for node, why in sorted(silent.items())]
    return "\n".join(parts)


def _row(route: NodeRoute) -> list[str]:
    destination = route.destination if route.type == "unicast" else f"{route.type} {route.destination}"
    return [
        destination,
        ", ".join(gateway or "-" for gateway in route.gateways) if any(route.gateways) else "",
        ", ".join(route.interfaces),
        str(route.metric or ""),
        route.table,
        route.owner,
        route.reason,
    ]


def document(answers: Sequence[RoutesReply], silent: Mapping[str, str]) -> Json:
    found: list[Json] = [{"routes": [], "total": 0, **msgspec.to_builtins(answer)} for answer in answers]
    for node, why in sorted(silent.items()):
        found.append({"node": node, "error": why})
    return found
