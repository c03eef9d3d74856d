"""Sessions of one node: the mesh, BGPPeers that it has, and the other ends of BGPPeers that others have to it.

Order of preference for one address and port: BGPPeers of all nodes, those of this node, reverse ones, the mesh; among
equals the first by name. Names are those that Calico's BIRD configuration has, for people and for `calicoctl`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TypeAlias

from libs.policy.bgp_output import BgpPeer, BgpSecret, LocalWorkload
from services.bgp.core.paths import Family, IPAddress
from services.bgp.core.settings import NextHopMode, PeerKind, PeerSettings, SecretRef
from services.bgp.core.view import BGP_PORT, FAMILIES, View, family_of, parse_address

DEFAULT_RESTART_TIME_S = 120

ByAddress: TypeAlias = dict[bytes, list[str]]
"""Nodes by their packed addresses: these are cheaper keys than the addresses themselves, and there are many."""


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to connect to. port 0: the usual one. node: name, when it is one of the cluster's."""

    address: IPAddress
    as_number: int
    port: int = 0
    node: str = ""


def peers(view: View) -> tuple[PeerSettings, ...]:
    """Sorted by name; no two of one address and port, none of this node's own addresses."""
    by_address = _nodes_by_address(view)
    found: dict[tuple[IPAddress, int], PeerSettings] = {}
    for made in (*_explicit(view, by_address), *_reverse(view, by_address), *_mesh(view)):
        if made.address not in view.addresses.values():
            found.setdefault((made.address, made.port), made)
    return tuple(sorted(found.values(), key=lambda peer: (peer.name, peer.port)))


def cluster_id(view: View, node: str) -> int:
    """Of a route reflector; 0: it is none. One that is no IPv4 address is taken for none, and reported."""
    text = view.part_of(node).cluster_id
    try:
        return int(IPv4Address(text)) if text else 0
    except ValueError:
        view.report("Node", node, f"spec.bgp.routeReflectorClusterID: must be an IPv4 address (is {text!r})")
        return 0


def _nodes_by_address(view: View) -> ByAddress:
    found: ByAddress = {}
    for node in sorted(view.tables.nodes):
        for address in view.addresses_of(node).values():
            found.setdefault(address.packed, []).append(node)
    return found


# --- mesh ------------------------------------------------------------------------------------------------------------


def _mesh(view: View) -> Iterator[PeerSettings]:
    cluster = view.cluster
    if cluster.mesh is False or view.part_of(view.node).cluster_id:
        return
    for node in view.tables.nodes:
        if node == view.node or view.part_of(node).cluster_id:
            continue
        for family, address in view.addresses_of(node).items():
            own = view.addresses.get(family)
            if own is None:
                continue
            yield PeerSettings(
                name=_name(PeerKind.MESH, address),
                kind=PeerKind.MESH,
                address=address,
                remote_as=view.as_of(node),
                local_as=view.as_number,
                port=view.listen_port_of(node) or BGP_PORT,
                # One side connects, so that no second connection disturbs a graceful restart. Compared as text, as
                # Calico does: both ends must come to the same answer, whichever software they run.
                passive=str(address) > str(own),
                source=own,
                password=_secret(cluster.mesh_password),
                restart_time_s=_restart_time_s(cluster.mesh_restart_time_s),
            )


# --- BGPPeers --------------------------------------------------------------------------------------------------------


def _explicit(view: View, by_address: ByAddress) -> Iterator[PeerSettings]:
    mine = set(view.part_of(view.node).peers)
    for all_nodes in (True, False):
        for name, spec in view.peers.items():
            if spec.problem:
                view.report("BGPPeer", name, spec.problem)
            elif spec.all_nodes is all_nodes and (all_nodes or name in mine):
                if spec.local_workloads:
                    yield from _local(view, name, spec)
                    continue
                kind = PeerKind.GLOBAL if all_nodes else PeerKind.NODE
                for target in _targets(view, name, spec, by_address):
                    made = _session(view, name, spec, kind, target)
                    yield from () if made is None else (made,)


def _targets(view: View, name: str, spec: BgpPeer, by_address: ByAddress) -> Iterator[Target]:
    if spec.by_selector:
        for node in sorted(view.tables.nodes):
            if name in view.part_of(node).targets:
                yield from _node_targets(view, node, FAMILIES)
        return
    address = parse_address(spec.address)
    nodes = _nodes_with(view, spec, by_address)
    as_number = spec.as_number
    if as_number is None and address.packed in by_address:
        as_number = view.as_of(by_address[address.packed][0])
    if as_number is None:
        view.report("BGPPeer", name, f"spec.asNumber: must be set, as {address} is no node of this cluster")
        return
    port = spec.port or (view.listen_port_of(nodes[0]) if nodes else 0)
    yield Target(address, as_number, port, by_address.get(address.packed, [""])[0])


def _node_targets(view: View, node: str, families: Iterable[Family], as_number: int | None = None) -> Iterator[Target]:
    addresses = view.addresses_of(node)
    for family in families:
        if family in addresses and node != view.node:
            port = view.listen_port_of(node)
            yield Target(addresses[family], view.as_of(node) if as_number is None else as_number, port, node)


def _nodes_with(view: View, spec: BgpPeer, by_address: ByAddress) -> list[str]:
    """Nodes of the cluster that a peer given by address means: AS number and, when given, port agree."""
    if not spec.address:
        return []
    wanted = spec.as_number or view.cluster.as_number
    return [
        node
        for node in by_address.get(parse_address(spec.address).packed, ())
        if (wanted is None or view.as_of(node) == wanted)
        and (not spec.port or (view.listen_port_of(node) or BGP_PORT) == spec.port)
    ]


def _reverse(view: View, by_address: ByAddress) -> Iterator[PeerSettings]:
    """The other ends of peers that select this node, unless they are to be made by hand."""
    targeted = set(view.part_of(view.node).targets)
    for name, spec in view.peers.items():
        if spec.problem or spec.local_workloads or spec.reverse_peering == "Manual":
            continue
        if spec.by_selector:
            if name not in targeted:
                continue
            families: tuple[Family, ...] = FAMILIES
        else:
            if view.node not in _nodes_with(view, spec, by_address):
                continue
            families = (family_of(parse_address(spec.address)),)
        # Only what both ends must agree on is mirrored. How the one end treats what it sends is its own affair.
        mirrored = BgpPeer(
            password=spec.password,
            source_address=spec.source_address,
            restart_time_s=spec.restart_time_s,
            keepalive_time_s=spec.keepalive_time_s,
            ttl_security=spec.ttl_security,
            filters=spec.filters,
        )
        for node in sorted(view.tables.nodes):
            if spec.all_nodes or name in view.part_of(node).peers:
                for target in _node_targets(view, node, families, spec.local_as_number):
                    made = _session(view, name, mirrored, PeerKind.NODE, target)
                    yield from () if made is None else (made,)


def _local(view: View, name: str, spec: BgpPeer) -> Iterator[PeerSettings]:
    """Workloads of this node; they connect to us."""
    for _, workload in sorted(view.tables.local.items()):
        if not isinstance(workload, LocalWorkload) or workload.peer != name:
            continue
        if spec.as_number is None:
            view.report("BGPPeer", name, "spec.asNumber: must be set when localWorkloadSelector is")
            return
        for net in workload.nets:
            target = Target(parse_address(net.partition("/")[0]), spec.as_number)
            made = _session(view, name, spec, PeerKind.LOCAL_WORKLOAD, target)
            if made is not None:
                yield dataclasses.replace(made, passive=True, source=None, interface=workload.interface)


def _session(view: View, name: str, spec: BgpPeer, kind: PeerKind, target: Target) -> PeerSettings | None:
    family = family_of(target.address)
    own = view.addresses.get(family)
    local_as = view.as_number if spec.local_as_number is None else spec.local_as_number
    internal = target.as_number == local_as
    source = None if spec.source_address == "None" else own
    if own is None and kind is not PeerKind.LOCAL_WORKLOAD and target.node:
        return None  # nodes that have no family in common
    own_cluster = cluster_id(view, view.node)
    theirs = cluster_id(view, target.node) if target.node else 0
    passive = (
        kind is PeerKind.GLOBAL
        and bool(target.node)
        and spec.reverse_peering != "Manual"
        and own is not None
        and str(target.address) > str(own)
    )
    return PeerSettings(
        name=_name(kind, target.address, target.port),
        kind=kind,
        address=target.address,
        remote_as=target.as_number,
        local_as=local_as,
        port=target.port or BGP_PORT,
        passive=passive,
        source=source,
        password=_secret(spec.password),
        ttl_security=spec.ttl_security or None,
        restart_time_s=_restart_time_s(spec.restart_time_s),
        keepalive_time_s=spec.keepalive_time_s,
        next_hop_mode=NextHopMode(spec.next_hop_mode or NextHopMode.AUTO),
        keep_ebgp_next_hop=spec.keep_original_next_hop and not internal,
        rr_client_cluster=own_cluster if own_cluster and internal and theirs != own_cluster else None,
        allowed_local_as=spec.allowed_local_as,
        filters=spec.filters,
        gateway=parse_address(spec.reachable_by) if spec.reachable_by else None,
        resource=name,
    )


def _name(kind: PeerKind, address: IPAddress, port: int = 0) -> str:
    text = f"{kind}_{str(address).replace('.', '_').replace(':', '_')}"
    return f"{text}_port_{port}" if port else text


def _secret(secret: BgpSecret | None) -> SecretRef | None:
    return None if secret is None else SecretRef(secret.name, secret.key)


def _restart_time_s(given: int | None) -> int:
    return DEFAULT_RESTART_TIME_S if given is None else given
