"""BGP as configured: cluster and node settings, peers, filters; and the status that a node reports."""

from __future__ import annotations

from typing import ClassVar

from msgspec import field

from libs.model.base import Resource, V3Struct, always
from libs.model.scalars import ASNumber, Duration


class SecretKeySelector(V3Struct):
    """One key of a Kubernetes secret."""

    name: str = ""
    key: str = always("")
    optional: bool | None = None


class BGPPassword(V3Struct):
    secret_key_ref: SecretKeySelector | None = None


class ServiceClusterIPBlock(V3Struct):
    cidr: str = ""


class ServiceExternalIPBlock(V3Struct):
    cidr: str = ""


class ServiceLoadBalancerIPBlock(V3Struct):
    cidr: str = ""


class Community(V3Struct):
    """value: aa:nn, or aa:nn:mm for a large community."""

    name: str = ""
    value: str = ""


class PrefixAdvertisement(V3Struct):
    """communities: names from the list of communities, or values."""

    cidr: str = ""
    communities: list[str] = field(default_factory=list)


class BGPConfigurationSpec(V3Struct):
    log_severity_screen: str = ""
    node_to_node_mesh_enabled: bool | None = None
    as_number: ASNumber | None = None
    service_load_balancer_ips: list[ServiceLoadBalancerIPBlock] = field(default_factory=list)
    service_external_ips: list[ServiceExternalIPBlock] = field(default_factory=list)
    service_cluster_ips: list[ServiceClusterIPBlock] = field(default_factory=list)
    service_load_balancer_aggregation: str | None = None
    communities: list[Community] = field(default_factory=list)
    prefix_advertisements: list[PrefixAdvertisement] = field(default_factory=list)
    listen_port: int = 0
    node_mesh_password: BGPPassword | None = None
    node_mesh_max_restart_time: Duration | None = None
    bind_mode: str | None = None
    ignored_interfaces: list[str] = field(default_factory=list)
    local_workload_peering_ipv4: str = ""
    local_workload_peering_ipv6: str = ""
    program_cluster_routes: str | None = None
    ipv4_normal_route_priority: int | None = None
    ipv6_normal_route_priority: int | None = None


class BGPConfiguration(Resource):
    kind: ClassVar[str] = "BGPConfiguration"
    spec: BGPConfigurationSpec = field(default_factory=BGPConfigurationSpec)


class BGPPeerSpec(V3Struct):
    """peer_ip: address, `v4:port` or `[v6]:port`."""

    node: str = ""
    node_selector: str = ""
    peer_ip: str = ""
    as_number: ASNumber | None = None
    local_as_number: ASNumber | None = None
    peer_selector: str = ""
    keep_original_next_hop: bool = False
    next_hop_mode: str | None = None
    password: BGPPassword | None = None
    source_address: str = ""
    max_restart_time: Duration | None = None
    keepalive_time: Duration | None = None
    num_allowed_local_as_numbers: int | None = None
    ttl_security: int | None = None
    reachable_by: str = ""
    filters: list[str] = field(default_factory=list)
    local_workload_selector: str = ""
    reverse_peering: str | None = None


class BGPPeer(Resource):
    kind: ClassVar[str] = "BGPPeer"
    spec: BGPPeerSpec = field(default_factory=BGPPeerSpec)


class BGPFilterPrefixLength(V3Struct):
    min: int | None = None
    max: int | None = None


class BGPFilterCommunities(V3Struct):
    values: list[str] = field(default_factory=list)


class BGPFilterAddCommunity(V3Struct):
    value: str = always("")


class BGPFilterPrependASPath(V3Struct):
    prefix: list[ASNumber] = field(default_factory=list)


class BGPFilterSetPriority(V3Struct):
    value: int | None = None


class BGPFilterOperation(V3Struct):
    """Exactly one of the three."""

    add_community: BGPFilterAddCommunity | None = None
    prepend_as_path: BGPFilterPrependASPath | None = None
    set_priority: BGPFilterSetPriority | None = None


class BGPFilterRule(V3Struct):
    """The first rule that matches decides. IPv4 and IPv6 rules differ only in what their CIDR may be."""

    cidr: str = ""
    prefix_length: BGPFilterPrefixLength | None = None
    source: str = ""
    interface: str = ""
    match_operator: str = ""
    peer_type: str = ""
    communities: BGPFilterCommunities | None = None
    as_path_prefix: list[ASNumber] = field(default_factory=list)
    priority: int | None = None
    action: str = always("")
    operations: list[BGPFilterOperation] = field(default_factory=list)


class BGPFilterSpec(V3Struct):
    export_v4: list[BGPFilterRule] = field(default_factory=list)
    import_v4: list[BGPFilterRule] = field(default_factory=list)
    export_v6: list[BGPFilterRule] = field(default_factory=list)
    import_v6: list[BGPFilterRule] = field(default_factory=list)


class BGPFilter(Resource):
    kind: ClassVar[str] = "BGPFilter"
    spec: BGPFilterSpec = field(default_factory=BGPFilterSpec)


class CalicoNodeStatusSpec(V3Struct):
    """classes: Agent, BGP, Routes. update_period_seconds: 0 stops updates."""

    node: str = ""
    classes: list[str] = field(default_factory=list)
    update_period_seconds: int | None = None


class BGPDaemonStatus(V3Struct):
    """state: Ready or NotReady. Times are as the daemon prints them."""

    state: str = ""
    version: str = ""
    router_id: str = ""
    last_boot_time: str = ""
    last_reconfiguration_time: str = ""


class CalicoNodeAgentStatus(V3Struct):
    bird_v4: BGPDaemonStatus | None = None
    bird_v6: BGPDaemonStatus | None = None


class CalicoNodePeer(V3Struct):
    """type: NodeMesh, NodePeer, GlobalPeer. state: Idle, Connect, Active, OpenSent, OpenConfirm, Established, Close."""

    peer_ip: str = ""
    type: str = ""
    state: str = ""
    since: str = ""


class CalicoNodeBGPStatus(V3Struct):
    number_established_v4: int = always(0)
    number_not_established_v4: int = always(0)
    number_established_v6: int = always(0)
    number_not_established_v6: int = always(0)
    peers_v4: list[CalicoNodePeer] = field(default_factory=list)
    peers_v6: list[CalicoNodePeer] = field(default_factory=list)


class CalicoNodeRouteLearnedFrom(V3Struct):
    """source_type: Kernel, Static, Direct, NodeMesh or BGPPeer."""

    source_type: str = ""
    peer_ip: str = ""


class CalicoNodeRoute(V3Struct):
    """type: FIB or RIB."""

    type: str = ""
    destination: str = ""
    gateway: str = ""
    interface: str = ""
    learned_from: CalicoNodeRouteLearnedFrom | None = None


class CalicoNodeRouteStatus(V3Struct):
    routes_v4: list[CalicoNodeRoute] = field(default_factory=list)
    routes_v6: list[CalicoNodeRoute] = field(default_factory=list)


class CalicoNodeStatusStatus(V3Struct):
    last_updated: str = ""
    agent: CalicoNodeAgentStatus | None = None
    bgp: CalicoNodeBGPStatus | None = None
    routes: CalicoNodeRouteStatus | None = None


class CalicoNodeStatus(Resource):
    kind: ClassVar[str] = "CalicoNodeStatus"
    spec: CalicoNodeStatusSpec = field(default_factory=CalicoNodeStatusSpec)
    status: CalicoNodeStatusStatus | None = None
