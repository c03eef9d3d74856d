"""What the speaker tells: its state for the bus, and peers, tables and explanations for people, as plain values."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from heapq import nsmallest
from ipaddress import IPv4Address, ip_address
from typing import Any

import msgspec

from libs.bus import bgp as told
from services.bgp.core.paths import Attributes, Family, IPNetwork, Nlri, Origin, SegmentType, network, nlri
from services.bgp.core.rib.explain import Advertisement, PathExplanation
from services.bgp.core.rib.path import Path
from services.bgp.core.session.negotiation import Negotiated
from services.bgp.core.settings import PeerKind
from services.bgp.shell.peer import Peer
from services.bgp.shell.speaker import Speaker

JSON = Any
FAMILIES = {Family.IPV4: "ipv4", Family.IPV6: "ipv6"}


def state(speaker: Speaker, request: told.StateRequest, *, started: datetime, version: str) -> told.State:
    settings = speaker.settings
    problems = {**settings.problems, **speaker.failures}
    return told.State(
        node=settings.node,
        ready=True,
        version=version,
        router_id=str(IPv4Address(settings.router_id)),
        local_as=settings.local_as,
        started=_text(started),
        reconfigured=_text(speaker.configured_at),
        peers=tuple(peer_state(speaker, peer) for peer in speaker.all_peers()),
        problems=problems,
        route_count={name: len(speaker.rib.prefixes(family)) for family, name in FAMILIES.items()},
        routes=tuple(_routes(speaker, request.limit)) if request.routes else (),
    )


def peer_state(speaker: Speaker, peer: Peer) -> told.Peer:
    settings, status = peer.settings, peer.session.status
    counts = [speaker.rib.counts(peer.name, family) for family in Family]
    return told.Peer(
        name=peer.name,
        kind=told.PeerKind(settings.kind.value),
        address=str(settings.address),
        port=settings.port,
        remote_as=settings.remote_as or (status.negotiated.theirs.asn if status.negotiated else 0),
        local_as=settings.local_as,
        state=told.PeerState.CLOSE if peer.held_down else told.PeerState(status.state.value),
        since=_ago(status.since),
        last_error=status.last_error,
        last_error_at=_ago(status.last_error_at) if status.last_error_at is not None else "",
        detail="" if peer.up else peer.held_down or status.last_error or "not connected yet",
        received=sum(count.received for count in counts),
        accepted=sum(count.accepted for count in counts),
        advertised=sum(count.advertised for count in counts),
        negotiated=_negotiated(status.negotiated) if status.negotiated else None,
        interface=settings.interface,
    )


def _negotiated(agreed: Negotiated) -> told.Negotiated:
    return told.Negotiated(
        router_id=str(IPv4Address(agreed.theirs.router_id)),
        hold_time_s=agreed.hold_time_s,
        keepalive_time_s=round(agreed.keepalive_s),
        families=tuple(FAMILIES[family] for family in agreed.families),
        four_octet_as=agreed.context.as4,
        route_refresh=agreed.route_refresh,
        restart_time_s=agreed.restart_time_s,
        long_lived=bool(agreed.long_lived),
        add_path=tuple(FAMILIES[family] for family in sorted(agreed.context.add_path_receive)),
        extended_message=agreed.context.max_message > 4096,
    )


def _routes(speaker: Speaker, limit: int) -> Iterator[told.Route]:
    for family in Family:
        for prefix in nsmallest(min(limit, told.ROUTES_LIMIT), speaker.rib.prefixes(family), key=_order(family)):
            found = speaker.rib.explain(family, prefix, told=False)
            best = next((path for path in found.paths if path.rejected is None), None)
            if best is not None:
                yield _route(speaker, family, prefix, best)


def _route(speaker: Speaker, family: Family, prefix: Nlri, best: PathExplanation) -> told.Route:
    peer = speaker.peers.get(best.source) or speaker.dynamic.get(best.source)
    written = speaker.kernel.fib.held[family].get(prefix)
    if peer is None:
        origin = told.Origin.KERNEL if best.source == "kernel" else told.Origin.STATIC
    else:
        mesh = peer.settings.kind is PeerKind.MESH
        origin = told.Origin.NODE_MESH if mesh else told.Origin.BGP_PEER
    return told.Route(
        destination=str(network(family, prefix)),
        origin=origin,
        gateway=str(ip_address(best.next_hop)) if best.next_hop else "",
        interface=speaker.kernel.next_hops.names.get(written.hops[0].oif, "") if written and written.hops else "",
        peer=str(peer.settings.address) if peer is not None else "",
        fib=written is not None or origin is told.Origin.KERNEL,
    )


def in_order(family: Family, prefixes: list[Nlri]) -> list[Nlri]:
    return sorted(prefixes, key=_order(family))


def _order(family: Family) -> Callable[[Nlri], tuple[bytes, int]]:
    return lambda prefix: (prefix[1:].ljust(family.octets, b"\0"), prefix[0])


def peers(speaker: Speaker) -> JSON:
    return [
        {
            **_struct(peer_state(speaker, peer)),
            "messages": {
                "received": dict(peer.session.status.counters.received),
                "sent": dict(peer.session.status.counters.sent),
            },
            "last_sent": peer.session.status.last_sent,
            "last_received": peer.session.status.last_received,
        }
        for peer in speaker.all_peers()
    ]


def rib(speaker: Speaker, *, family: Family, table: str, peer: str) -> Iterator[JSON]:
    """table: `loc` every path, `in` those of a peer as received, `out` what a peer was told. Raises KeyError."""
    if table == "loc":
        for prefix in in_order(family, speaker.rib.prefixes(family)):
            for one in speaker.rib.explain(family, prefix, told=False).paths:
                yield {"prefix": str(network(family, prefix)), **_explained(one)}
        return
    if peer not in {one.name for one in speaker.all_peers()}:
        raise KeyError(peer)
    if table == "in":
        found: list[tuple[Nlri, Path]] = sorted(speaker.rib.received(peer, family), key=lambda one: one[0])
        for prefix, path in found:
            yield {
                "prefix": str(network(family, prefix)),
                "path_id": path.path_id,
                "rejected": path.rejected.value if path.rejected else "",
                **attributes(path.received),
            }
    else:
        for prefix, sent in sorted(speaker.rib.advertised(peer, family), key=lambda one: one[0]):
            yield {"prefix": str(network(family, prefix)), **attributes(sent)}


def explain(speaker: Speaker, wanted: IPNetwork) -> JSON:
    """The most specific prefix that covers what was asked for; None when there is none."""
    family = Family.IPV4 if wanted.version == 4 else Family.IPV6
    known = set(speaker.rib.prefixes(family))
    prefix = next((key for length in range(wanted.prefixlen, -1, -1) if (key := _cut(wanted, length)) in known), None)
    if prefix is None:
        return None
    found = speaker.rib.explain(family, prefix)
    written = speaker.kernel.fib.held[family].get(prefix)
    return {
        "prefix": str(network(family, prefix)),
        "paths": [_explained(path) for path in found.paths],
        "kernel": None
        if written is None
        else {
            "metric": written.metric,
            "hops": [
                {"gateway": str(hop.gateway or ""), "interface": speaker.kernel.next_hops.names.get(hop.oif, "")}
                for hop in written.hops
            ],
        },
        "kernel_problem": speaker.kernel.fib.blocked.get((family, prefix), ""),
        "advertised": [_told(one) for one in found.advertised],
    }


def _cut(wanted: IPNetwork, length: int) -> Nlri:
    return nlri(wanted.supernet(new_prefix=length))


def _explained(path: PathExplanation) -> JSON:
    shown = {
        "from": path.source,
        "path_id": path.path_id,
        "next_hop": str(ip_address(path.next_hop)) if path.next_hop else "",
        "reason": path.reason.value,
        "preference": path.preference,
        "stale": path.stale,
        "long_lived_stale": path.llgr_stale,
        "attributes": attributes(path.attributes),
    }
    if path.step is not None:
        shown["step"] = path.step.value
    if path.rejected is not None:
        shown["rejected"] = path.rejected.value
    if path.where:
        shown["where"] = path.where
    return shown


def _told(one: Advertisement) -> JSON:
    if one.attributes is None:
        why = one.withheld.value if one.withheld else "there is no best path"
        return {"peer": one.peer, "advertised": False, "reason": why, "where": one.where}
    return {"peer": one.peer, "advertised": True, "where": one.where, "attributes": attributes(one.attributes)}


def attributes(found: Attributes) -> JSON:
    """In the words of people; what is absent is left out."""
    shown: dict[str, JSON] = {
        "origin": found.origin.name if isinstance(found.origin, Origin) else str(found.origin),
        "as_path": " ".join(_segment(kind, numbers) for kind, numbers in found.as_path),
    }
    if found.next_hop:
        shown["next_hop"] = str(ip_address(found.next_hop))
    if found.link_local:
        shown["link_local"] = str(ip_address(found.link_local))
    for name in ("med", "local_pref"):
        if (value := getattr(found, name)) is not None:
            shown[name] = value
    if found.atomic_aggregate:
        shown["atomic_aggregate"] = True
    if found.aggregator is not None:
        shown["aggregator"] = f"{found.aggregator[0]} {ip_address(found.aggregator[1])}"
    if found.communities:
        shown["communities"] = [f"{one >> 16}:{one & 0xFFFF}" for one in found.communities]
    if found.extended:
        shown["extended_communities"] = [one.hex() for one in found.extended]
    if found.large:
        shown["large_communities"] = [":".join(map(str, one)) for one in found.large]
    if found.originator_id is not None:
        shown["originator_id"] = str(IPv4Address(found.originator_id))
    if found.cluster_list:
        shown["cluster_list"] = [str(IPv4Address(one)) for one in found.cluster_list]
    if found.unknown:
        shown["unknown"] = [
            {"flags": flags, "type": kind, "value": value.hex()} for flags, kind, value in found.unknown
        ]
    return shown


def _segment(kind: SegmentType, numbers: tuple[int, ...]) -> str:
    text = " ".join(map(str, numbers))
    return {
        SegmentType.SEQUENCE: text,
        SegmentType.SET: "{" + text.replace(" ", ",") + "}",
        SegmentType.CONFED_SEQUENCE: f"({text})",
        SegmentType.CONFED_SET: "[" + text.replace(" ", ",") + "]",
    }[kind]


def _struct(value: told.Peer) -> dict[str, JSON]:
    built: dict[str, JSON] = msgspec.to_builtins(value)
    return built


def _ago(monotonic: float) -> str:
    return _text(datetime.now(UTC) - timedelta(seconds=time.monotonic() - monotonic))


def _text(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
