"""CalicoNodeStatus from what the node's BGP speaker tells. Pure.

One speaker serves both families, so `birdV4` and `birdV6` tell the same of it. What the speaker did not tell is absent,
not zero: nobody should take "no answer" for "no sessions".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from libs.bus.bgp import Peer, PeerKind, PeerState, Route, State
from libs.model.bgp import (
    BGPDaemonStatus,
    CalicoNodeAgentStatus,
    CalicoNodeBGPStatus,
    CalicoNodePeer,
    CalicoNodeRoute,
    CalicoNodeRouteLearnedFrom,
    CalicoNodeRouteStatus,
    CalicoNodeStatusStatus,
)

AGENT, BGP, ROUTES = "Agent", "BGP", "Routes"
READY, NOT_READY = "Ready", "NotReady"
PEER_TYPES = {
    PeerKind.MESH: "NodeMesh",
    PeerKind.GLOBAL: "GlobalPeer",
    PeerKind.NODE: "NodePeer",
    PeerKind.LOCAL_WORKLOAD: "NodePeer",  # the resource knows no word for it, and it is a peer of this node alone
}


def status_of(classes: Collection[str], state: State | None, now: str) -> CalicoNodeStatusStatus:
    """state: None when the speaker did not answer. now: RFC 3339."""
    status = CalicoNodeStatusStatus(last_updated=now)
    if AGENT in classes:
        status.agent = _agent(state)
    if BGP in classes and state is not None:
        status.bgp = _bgp(state.peers)
    if ROUTES in classes and state is not None:
        status.routes = _routes(state.routes)
    return status


def _agent(state: State | None) -> CalicoNodeAgentStatus:
    if state is None:
        return CalicoNodeAgentStatus(BGPDaemonStatus(NOT_READY), BGPDaemonStatus(NOT_READY))
    told = [
        BGPDaemonStatus(
            state=READY if state.ready else NOT_READY,
            version=state.version,
            router_id=state.router_id,
            last_boot_time=state.started,
            last_reconfiguration_time=state.reconfigured,
        )
        for _ in range(2)
    ]
    return CalicoNodeAgentStatus(*told)


def _bgp(peers: Iterable[Peer]) -> CalicoNodeBGPStatus:
    status = CalicoNodeBGPStatus()
    for peer in peers:
        told = CalicoNodePeer(peer_ip=peer.address, type=PEER_TYPES[peer.kind], state=str(peer.state), since=peer.since)
        up = peer.state is PeerState.ESTABLISHED
        if ":" not in peer.address:
            status.peers_v4.append(told)
            status.number_established_v4 += up
            status.number_not_established_v4 += not up
        else:
            status.peers_v6.append(told)
            status.number_established_v6 += up
            status.number_not_established_v6 += not up
    return status


def _routes(routes: Iterable[Route]) -> CalicoNodeRouteStatus:
    status = CalicoNodeRouteStatus()
    for route in routes:
        told = CalicoNodeRoute(
            type="FIB" if route.fib else "RIB",
            destination=route.destination,
            gateway=route.gateway,
            interface=route.interface,
            learned_from=CalicoNodeRouteLearnedFrom(source_type=str(route.origin), peer_ip=route.peer),
        )
        (status.routes_v6 if ":" in route.destination else status.routes_v4).append(told)
    return status
