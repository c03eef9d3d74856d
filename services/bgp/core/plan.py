"""From the tables that typha publishes to what this node's speaker is asked to do. A pure function: same tables, same
settings, in the same order.

    tables ──► View: node and cluster settings ──► router id, AS, ports ─┐
                 ├──► plan_peers: mesh, BGPPeers, their reverse ─────────┼──► SpeakerSettings, with problems by resource
                 ├──► plan_filters ──────────────────────────────────────┤
                 └──► plan_routes: blocks, services, pools, communities ─┘

Facts: facts/cni-typha-node-bgp-ctl.md sections 4 and 11. One resource that cannot be used never takes others down: it
is named in `problems`. What typha could not make sense of at all is kept at its last good version before (`hold.py`).
"""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address

from libs.model.conflicts import FELIX_ROUTES, OTHER_OWNER, route_owners
from services.bgp.core import plan_filters, plan_peers, plan_routes
from services.bgp.core.paths import Family
from services.bgp.core.settings import SpeakerSettings
from services.bgp.core.tables import Tables
from services.bgp.core.view import BGP_PORT, FAMILIES, View, parse_address

NORMAL_PRIORITY = 1024
ALWAYS_IGNORED = ("cali*", "kube-ipvs*")
HASH = "hash"


def plan(node: str, tables: Tables, *, router_id: str = "", cluster_ips: tuple[str, ...] = ()) -> SpeakerSettings:
    """router_id: CALICO_ROUTER_ID, an IPv4 address or `hash`; "": the node's address. cluster_ips: ranges of
    CALICO_ADVERTISE_CLUSTER_IPS. Never raises for what is in the tables.
    """
    view = View(node, tables, cluster_ips)
    if node not in tables.nodes:
        view.report("Node", node, "does not exist, so this speaker has no address and no peers by mesh or selector")
    own, cluster = view.own, view.cluster
    part = view.part_of(node)
    bind_mode = own.bind_mode or cluster.bind_mode
    addresses = tuple(view.addresses[family] for family in FAMILIES if family in view.addresses)
    peers = plan_peers.peers(view)
    return SpeakerSettings(
        node=node,
        router_id=_router_id(view, router_id),
        local_as=view.as_number,
        listen_port=view.listen_port_of(node) or BGP_PORT,
        bind=addresses if bind_mode == "NodeIP" else (),
        addresses=addresses,
        peers=peers,
        filters=plan_filters.filters(view, {name for peer in peers for name in peer.filters}),
        originated=plan_routes.originated(view),
        pools=plan_routes.pools(view),
        own_blocks=plan_routes.own_blocks(view),
        subnets=plan_routes.subnets(view),
        reject=plan_routes.rejected(view),
        reflect=plan_routes.reflected(view),
        encrypted=plan_routes.encrypted(view),
        advertisements=plan_routes.advertisements(view),
        local_peering=tuple(
            parse_address(text)
            for text in (
                own.local_peering_ipv4 or cluster.local_peering_ipv4,
                own.local_peering_ipv6 or cluster.local_peering_ipv6,
            )
            if text
        ),
        ignored_interfaces=(*(own.ignored_interfaces or cluster.ignored_interfaces), *ALWAYS_IGNORED),
        normal_priority=_normal_priorities(view),
        route_reflector=bool(part.cluster_id),
        cluster_id=plan_peers.cluster_id(view, node),
        program_cluster_routes=_cluster_routes(view),
        log_level=own.log_severity or cluster.log_severity,
        problems=dict(sorted(view.problems.items())),
    )


def _normal_priorities(view: View) -> dict[Family, int]:
    """The metric that felix gives routes to workloads, unless it is said. Another one than felix's is reported, and
    done: by it workloads count as just moved here, to be told of one by one, or others' routes to them as better.
    """
    name = f"node.{view.node}"
    felix = (view.felix_part(name), view.felix_part("default"))
    bgp = {name: view.own, "default": view.cluster}
    return {
        Family.IPV4: _normal_priority(
            view,
            "ipv4NormalRoutePriority",
            [part.priority4 for part in felix],
            {one: settings.priority4 for one, settings in bgp.items()},
        ),
        Family.IPV6: _normal_priority(
            view,
            "ipv6NormalRoutePriority",
            [part.priority6 for part in felix],
            {one: settings.priority6 for one, settings in bgp.items()},
        ),
    }


def _normal_priority(view: View, field: str, felix: list[int | None], bgp: dict[str, int | None]) -> int:
    """felix, bgp: what their resources say, the strongest first; the latter by name."""
    theirs = next((said for said in felix if said), NORMAL_PRIORITY)
    name, ours = next(((name, said) for name, said in bgp.items() if said), ("", theirs))
    if ours != theirs:
        view.report(
            "BGPConfiguration",
            name,
            f"{field} is {ours}, and FelixConfiguration's {theirs}: it must be the same, or not be set",
        )
    return ours


def _cluster_routes(view: View) -> str:
    """What felix does not program, unless it is said. A pair that leaves holes or overlaps is reported, and done."""
    name = f"node.{view.node}"
    felix = {one: said for one in ("default", name) if (said := view.felix_part(one).program_cluster_routes)}
    given = {"default": view.cluster.program_cluster_routes, name: view.own.program_cluster_routes}
    bgp = {one: said for one, said in given.items() if said}
    for problem in route_owners(felix, bgp):
        view.report("BGPConfiguration", "default", problem)
    theirs = felix.get(name) or felix.get("default") or FELIX_ROUTES
    return bgp.get(name) or bgp.get("default") or OTHER_OWNER.get(theirs, OTHER_OWNER[FELIX_ROUTES])


def _router_id(view: View, wanted: str) -> int:
    """A node without an IPv4 address gets a hash of its name unless told otherwise: 0 is no router id."""
    if wanted and wanted != HASH:
        try:
            return int(IPv4Address(wanted))
        except ValueError:
            view.report("environment", "CALICO_ROUTER_ID", f"must be an IPv4 address or {HASH!r} (is {wanted!r})")
    own = view.addresses.get(Family.IPV4)
    return hashed_router_id(view.node) if wanted == HASH or own is None else int(own)


def hashed_router_id(node: str) -> int:
    """First four octets of the name's SHA-256; the first is brought below 224, as multicast is no router id."""
    first, *rest = hashlib.sha256(node.encode()).digest()[:4]
    return int.from_bytes(bytes((first - 32 if first > 223 else first, *rest)))
