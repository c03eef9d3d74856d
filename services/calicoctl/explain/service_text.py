"""Traces to a service's backends, for people, who read what is alike once, and for programs, which get each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from services.calicoctl.documents import Json
from services.calicoctl.explain import trace_text
from services.calicoctl.explain.backends import ServiceTrace, groups
from services.calicoctl.explain.endpoints import Backend
from services.calicoctl.explain.packet import NUMBERS
from services.calicoctl.explain.services import NODE_PORT
from services.calicoctl.explain.trace import Trace

LISTED = 20  # backends of a group that are named beside the one that is shown


def text(service: ServiceTrace) -> str:
    return "".join(f"{line}\n" for line in _lines(service))


def _lines(service: ServiceTrace) -> Iterator[str]:
    front, staged = service.front, service.asked.staged
    yield f"{_front(service)}: {_many(service)}"
    yield from (f"  note: {note}" for note in service.notes)
    for members in groups(service, lambda one: trace_text.kernel_words(one, staged=staged)):
        (_, first), *others = members
        yield ""
        yield from trace_text.text(first, staged=staged).splitlines()
        if others:
            yield f"  the same for {len(others)} other backend{'' if len(others) == 1 else 's'} of {front.shown}:"
        yield from (f"    {_other(backend, one)}" for backend, one in others[:LISTED])
        if len(others) > LISTED:
            yield f"    and {len(others) - LISTED} more (all with --output json)"
    reasons: dict[str, list[Backend]] = {}
    for backend, why in service.untraced.items():
        reasons.setdefault(why, []).append(backend)
    for why, backends in reasons.items():
        more = f" and {len(backends) - LISTED} more" if len(backends) > LISTED else ""
        yield ""
        yield f"no trace to {', '.join(one.shown for one in backends[:LISTED])}{more}: {why}"


def _front(service: ServiceTrace) -> str:
    front = service.front
    port = "" if service.chosen is None else f", port {service.chosen.port.shown}"
    address = front.addresses[service.family]
    if front.kind == NODE_PORT:
        address = f"{Backend(address, front.ports[0].node_port).shown} of {front.entry}"
    return f"{front.shown}, {front.kind} {address}{port}"


def _many(service: ServiceTrace) -> str:
    if service.chosen is None:
        return service.problem
    backends = len(service.chosen.backends)
    each = "its only backend" if backends == 1 else f"one of {backends} backends"
    counts = [
        f"{count} {word}"
        for count, word in (
            (sum(one.allowed for one in service.traces), "ALLOWED"),
            (sum(not one.allowed for one in service.traces), "DENIED"),
            (len(service.untraced), "without a trace"),
        )
        if count
    ]
    idle = f"; {service.chosen.idle} not ready, left out" if service.chosen.idle else ""
    return f"{each}: {', '.join(counts)}{idle}"


def _other(backend: Backend, one: Trace) -> str:
    counted, node = trace_text.counted(one), one.target.node
    where = f"{backend.shown}, {one.target.shown}" + (f" on {node}" if node and not one.target.host else "")
    return where + (f": {counted}" if counted else "")


def document(found: Sequence[ServiceTrace]) -> Json:
    """An entry for each backend, as for any other end and with `service`; of one that has no trace with `error`."""
    entries: list[Json] = []
    for service in found:
        if service.chosen is None:
            entries.append({"from": service.source.shown, "service": _about(service), "error": service.problem})
            continue
        for one in service.traces:
            notes: list[Json] = [*service.notes, *one.notes]
            entries.append({**trace_text.entry(one), "notes": notes, "service": _about(service)})
        entries += [
            {"from": service.source.shown, "to": backend.shown, "service": _about(service), "error": why}
            for backend, why in service.untraced.items()
        ]
    return entries


def _about(service: ServiceTrace) -> Json:
    """port: its name. number: the service's, where it is known. idle: endpoints that are not ready and get nothing."""
    front, chosen = service.front, service.chosen
    told: dict[str, Json] = {
        "namespace": front.namespace,
        "name": front.name,
        "address": front.addresses[service.family],
        "kind": front.kind,
        "protocol": NUMBERS[service.asked.protocol],
        "backends": 0 if chosen is None else len(chosen.backends),
    }
    if chosen is not None:
        told["port"] = chosen.port.name
        if chosen.port.number:
            told["number"] = chosen.port.number
        told["idle"] = chosen.idle
    if front.kind == NODE_PORT:
        told["nodePort"] = front.ports[0].node_port
        told["node"] = front.entry
    return told
