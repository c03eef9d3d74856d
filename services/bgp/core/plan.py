"""From the tables that typha publishes to what this node's speaker is asked to do. A pure function: same tables, same
settings, in the same order.

    tables ──► node and cluster settings ──► router id, AS, ports ─┐
      ├──► plan_peers: mesh, BGPPeers, their reverse ─────────────┼──► SpeakerSettings, with problems by resource
      └──► plan_routes: blocks, services, pools, communities ─────┘

Facts: facts/cni-typha-node-bgp-ctl.md sections 4 and 11. One resource that cannot be used never takes others down: it
is named in `problems`. What typha could not make sense of at all is kept at its last good version before (`hold.py`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from libs.policy.bgp_output import BgpFilter, BgpNode, BgpPeer, BgpSettings, node_key, settings_key
from libs.policy.output import NodeInfo
from services.bgp.core.paths import Family, IPAddress
from services.bgp.core.settings import SpeakerSettings
from services.bgp.core.tables import Tables

DEFAULT_AS = 64512
BGP_PORT = 179
NORMAL_PRIORITY = 1024
PROGRAM_CLUSTER_ROUTES = "EnabledNoEncapOnly"
ALWAYS_IGNORED = ("cali*", "kube-ipvs*")
HASH = "hash"
FAMILIES = (Family.IPV4, Family.IPV6)


@dataclass(slots=True)
class View:
    """The tables as seen from one node, looked up once."""

    node: str
    tables: Tables
    problems: dict[str, str] = field(default_factory=dict)
    cluster: BgpSettings = field(init=False)
    own: BgpSettings = field(init=False)
    peers: dict[str, BgpPeer] = field(init=False)
    filters: dict[str, BgpFilter] = field(init=False)
    addresses: dict[Family, IPAddress] = field(init=False)
    as_number: int = field(init=False)

    def __post_init__(self) -> None:
        bgp = self.tables.bgp
        self.cluster = self._settings("default")
        self.own = self._settings(f"node.{self.node}")
        self.peers = {key.partition("/")[2]: entry for key, entry in sorted(bgp.items()) if isinstance(entry, BgpPeer)}
        self.filters = {
            key.partition("/")[2]: entry for key, entry in sorted(bgp.items()) if isinstance(entry, BgpFilter)
        }
        self.addresses = self.addresses_of(self.node)
        self.as_number = self.as_of(self.node)

    def _settings(self, name: str) -> BgpSettings:
        entry = self.tables.bgp.get(settings_key(name))
        if not isinstance(entry, BgpSettings):
            return BgpSettings()
        if entry.problem:
            self.report("BGPConfiguration", name, entry.problem)
        return entry

    def report(self, kind: str, name: str, problem: str) -> None:
        key = f"{kind}({name})"
        known = self.problems.get(key)
        if known is None:
            self.problems[key] = problem
        elif problem not in known.split("; "):
            self.problems[key] = f"{known}; {problem}"

    # --- nodes ---

    def part_of(self, node: str) -> BgpNode:
        entry = self.tables.bgp.get(node_key(node))
        return entry if isinstance(entry, BgpNode) else BgpNode()

    def addresses_of(self, node: str) -> dict[Family, IPAddress]:
        """By family, without those that it does not have."""
        return addresses_of(self.tables.nodes.get(node) or NodeInfo())

    def as_of(self, node: str) -> int:
        info = self.tables.nodes.get(node)
        if info is not None and info.as_number:
            return int(info.as_number)
        return self.cluster.as_number or DEFAULT_AS

    def listen_port_of(self, node: str) -> int:
        """0: nothing is said, so the usual one."""
        entry = self.tables.bgp.get(settings_key(f"node.{node}"))
        own = entry.listen_port if isinstance(entry, BgpSettings) else None
        return own or self.cluster.listen_port or 0


def addresses_of(info: NodeInfo) -> dict[Family, IPAddress]:
    texts = {Family.IPV4: info.ipv4, Family.IPV6: info.ipv6}
    return {family: parse_address(text.partition("/")[0]) for family, text in texts.items() if text}


@lru_cache(maxsize=65536)
def parse_address(text: str) -> IPAddress:
    return ip_address(text)


def family_of(address: IPAddress) -> Family:
    return Family.IPV4 if isinstance(address, IPv4Address) else Family.IPV6


def plan(node: str, tables: Tables, *, router_id: str = "") -> SpeakerSettings:
    """router_id: CALICO_ROUTER_ID, an IPv4 address or `hash`; "": the node's address. Never raises for what is in the
    tables.
    """
    # The parts know View, which is defined here.
    from services.bgp.core import plan_filters, plan_peers, plan_routes

    view = View(node, tables)
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
        reject=plan_routes.rejected(view),
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
        normal_priority={
            Family.IPV4: own.priority4 or cluster.priority4 or NORMAL_PRIORITY,
            Family.IPV6: own.priority6 or cluster.priority6 or NORMAL_PRIORITY,
        },
        route_reflector=bool(part.cluster_id),
        cluster_id=plan_peers.cluster_id(view, node),
        program_cluster_routes=own.program_cluster_routes or cluster.program_cluster_routes or PROGRAM_CLUSTER_ROUTES,
        log_level=own.log_severity or cluster.log_severity,
        problems=dict(sorted(view.problems.items())),
    )


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


def single(address: IPAddress) -> int:
    """Length of a prefix that holds this address alone."""
    return 128 if isinstance(address, IPv6Address) else 32
