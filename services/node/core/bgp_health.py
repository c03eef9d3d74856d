"""Is the node's BGP good enough for pods? Pure. The rule is Calico's (cni-typha-node-bgp-ctl.md section 3.4 of the
facts): soon after start-up every session has to be up, so that a roll-out waits for routes; later one will do, or a
single neighbour that is away would take all nodes out of service.
"""

from __future__ import annotations

from collections.abc import Iterable

from libs.bus.bgp import Peer, PeerState


def of_family(peers: Iterable[Peer], version: int) -> list[Peer]:
    return [peer for peer in peers if (":" in peer.address) == (version == 6)]


def problem(peers: Iterable[Peer], *, since_start_s: float, threshold_s: float) -> str:
    """Why it is not ready; "" when it is. Sessions of pods count for nothing: pods come and go."""
    named = {peer.name: peer for peer in peers if not peer.interface}
    down = [name for name, peer in sorted(named.items()) if peer.state is not PeerState.ESTABLISHED]
    if not down or (since_start_s >= threshold_s and len(down) < len(named)):
        return ""
    return f"BGP not established with {', '.join(down)}"
