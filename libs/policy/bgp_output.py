"""What speakers are told: BGP resources in their plainest form, with every selector already turned into names.

    config.bgp      configurations, peers, filters, and each node's part in them    BgpEntry by `kind/name`
    route.services  services that are announced one by one                ServiceRoutes by `namespace/name/IPv4|IPv6`
    local.<node>    that node's own blocks, workloads it peers with                           LocalEntry by `kind/name`

Who is selected stands with the node, not with the peer: when one node's label changes, one small entry changes, however
many nodes the peer selects. A resource that means nothing keeps its entry, with `problem`, so that speakers can tell it
from a deleted one, go on with the last good version, and report it.
"""

from __future__ import annotations

import msgspec


class BgpSecret(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One key of a Kubernetes secret. What is in it never travels."""

    name: str
    key: str


class Advertisement(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Communities for what lies inside `cidr`: names of `communities`, or values."""

    cidr: str
    communities: tuple[str, ...] = ()


class BgpSettings(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag_field="kind", tag="settings"):
    """A BGPConfiguration: `configuration/default` for all, `configuration/node.<name>` for one node. None and "": not
    set. Times in seconds.
    """

    mesh: bool | None = None
    as_number: int | None = None
    log_severity: str = ""
    listen_port: int | None = None
    bind_mode: str = ""
    cluster_ips: tuple[str, ...] = ()
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    load_balancer_aggregation: str = ""
    communities: dict[str, str] = {}
    advertisements: tuple[Advertisement, ...] = ()
    mesh_password: BgpSecret | None = None
    mesh_restart_time_s: int | None = None
    ignored_interfaces: tuple[str, ...] = ()
    local_peering_ipv4: str = ""
    local_peering_ipv6: str = ""
    program_cluster_routes: str = ""
    priority4: int | None = None
    priority6: int | None = None
    problem: str = ""


class BgpPeer(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag_field="kind", tag="peer"):
    """A BGPPeer, under `peer/<name>`.

    all_nodes: neither `node` nor `nodeSelector` is given; else the nodes that have it name it in `BgpNode.peers`.
    by_selector: whom it connects to are the nodes that name it in `BgpNode.targets`. local_workloads: the workloads in
    `local.<node>`. With neither, `address` (IPv4, IPv6) and `port` (0: the usual one). Times in seconds.
    """

    all_nodes: bool = False
    by_selector: bool = False
    local_workloads: bool = False
    address: str = ""
    port: int = 0
    as_number: int | None = None
    local_as_number: int | None = None
    keep_original_next_hop: bool = False
    next_hop_mode: str = ""
    password: BgpSecret | None = None
    source_address: str = ""
    restart_time_s: int | None = None
    keepalive_time_s: int | None = None
    allowed_local_as: int = 0
    ttl_security: int | None = None
    reachable_by: str = ""
    filters: tuple[str, ...] = ()
    reverse_peering: str = ""
    problem: str = ""


class BgpFilterRule(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    cidr: str = ""
    match_operator: str = ""
    min_length: int | None = None
    max_length: int | None = None
    source: str = ""
    interface: str = ""
    peer_type: str = ""
    communities: tuple[str, ...] = ()
    as_path_prefix: tuple[int, ...] = ()
    priority: int | None = None
    action: str = ""
    add_communities: tuple[str, ...] = ()
    prepend: tuple[int, ...] = ()
    set_priority: int | None = None


class BgpFilter(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag_field="kind", tag="filter"):
    """A BGPFilter, under `filter/<name>`."""

    export4: tuple[BgpFilterRule, ...] = ()
    export6: tuple[BgpFilterRule, ...] = ()
    import4: tuple[BgpFilterRule, ...] = ()
    import6: tuple[BgpFilterRule, ...] = ()
    problem: str = ""


class BgpNode(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag_field="kind", tag="node"):
    """A node's part, under `node/<name>`; addresses, AS number and labels stand in `NodeInfo`.

    peers: BGPPeers that it has, other than those of all nodes. targets: BGPPeers whose peerSelector selects it.
    kubernetes_name: as endpoint slices call it, when that is another name.
    """

    cluster_id: str = ""
    kubernetes_name: str = ""
    peers: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()


class FelixPart(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag_field="kind", tag="felix"):
    """What of a FelixConfiguration speakers go by, under `felix/default` and `felix/node.<name>`: which routes felix
    programs ("": nothing is said), and the metric of those to workloads. Where the speaker's own part is not set, it
    takes the others.
    """

    program_cluster_routes: str  # always written: without it an older speaker would not read the rest
    priority4: int | None = None
    priority6: int | None = None


BgpEntry = BgpSettings | BgpPeer | BgpFilter | BgpNode | FelixPart


class ServiceRoutes(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Addresses of one service and family that speakers announce as /32 or /128. nodes: those with a ready endpoint of
    their own, by their Kubernetes names; None: all nodes.
    """

    addresses: tuple[str, ...] = ()
    nodes: tuple[str, ...] | None = None


class OwnBlock(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag_field="kind", tag="block"):
    """An IPAM block of this node, its affinity confirmed. Key: `block/<cidr>`."""

    cidr: str


class LocalWorkload(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag_field="kind", tag="workload"):
    """A workload that peers with its node. peer: name of the BGPPeer; nets: its addresses, as /32 and /128. Key:
    `workload/<workload endpoint>`.
    """

    peer: str
    interface: str
    nets: tuple[str, ...] = ()


LocalEntry = OwnBlock | LocalWorkload


def peer_key(name: str) -> str:
    return f"peer/{name}"


def filter_key(name: str) -> str:
    return f"filter/{name}"


def node_key(name: str) -> str:
    return f"node/{name}"


def felix_key(name: str) -> str:
    return f"felix/{name}"


def settings_key(name: str) -> str:
    return f"configuration/{name}"
