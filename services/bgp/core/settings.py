"""What a speaker is asked to do: made from the cluster's resources by `plan.py`, compared by value when it changes.

Values only; secrets are named here, never held.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from services.bgp.core.paths import Attributes, Family, IPAddress, IPNetwork, Nlri


class PeerKind(StrEnum):
    """As CalicoNodeStatus and `calicoctl node status` name them; the value begins the peer's name."""

    MESH = "Mesh"
    GLOBAL = "Global"
    NODE = "Node"
    LOCAL_WORKLOAD = "Local_Workload"


class NextHopMode(StrEnum):
    AUTO = "Auto"
    SELF = "Self"
    KEEP = "Keep"


@dataclass(frozen=True, slots=True)
class SecretRef:
    """One key of a Kubernetes secret, or of a directory that holds `<name>/<key>`."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """One session. Two of the same `address` and `port` never stand in one plan.

    remote_as 0: whatever the peer says (never from resources). passive: wait for the peer to connect. prefix: take any
    address inside it (dynamic peers; then `address` is its network address). source: bind to it; None lets the kernel
    choose. ttl_security: number of hops (RFC 5082), None is off. restart_time_s: advertised (RFC 4724), None turns
    graceful restart off for it. hold_time_s: 0 means no keepalives. rr_client_cluster: set when the peer is a
    route-reflector client. allowed_local_as: how often our own AS may stand in what it sends. filters: names, in order.
    gateway: reached by way of it (`reachableBy`). interface: of a local workload. add_path_receive: take several paths
    of a prefix (RFC 7911), as Calico's BIRD does. long_lived_time_s: advertised (RFC 9494), None is off.
    """

    name: str
    kind: PeerKind
    address: IPAddress
    remote_as: int
    local_as: int
    port: int = 179
    passive: bool = False
    prefix: IPNetwork | None = None
    source: IPAddress | None = None
    password: SecretRef | None = None
    ttl_security: int | None = None
    restart_time_s: int | None = 120
    hold_time_s: int = 90
    keepalive_time_s: int | None = None  # None: a third of the negotiated hold time
    next_hop_mode: NextHopMode = NextHopMode.AUTO
    keep_ebgp_next_hop: bool = False  # the older keepOriginalNextHop
    rr_client_cluster: int | None = None
    allowed_local_as: int = 0
    filters: tuple[str, ...] = ()
    gateway: IPAddress | None = None
    interface: str = ""
    resource: str = ""  # name of the BGPPeer that it comes from; none: the mesh
    families: tuple[Family, ...] = ()  # empty: that of the address
    add_path_receive: bool = True
    add_path_send: bool = False
    long_lived_time_s: int | None = None
    delay_open_s: float = 0  # wait that long for the peer's OPEN before ours (RFC 4271 section 8.1.1, DelayOpen)

    @property
    def internal(self) -> bool:
        return self.remote_as == self.local_as


@dataclass(frozen=True, slots=True)
class FilterRule:
    """One rule of a BGPFilter, parsed; conditions are AND-ed, an absent one matches (facts section 4.4)."""

    action: str  # Accept | Reject
    network: IPNetwork | None = None
    match_operator: str = ""  # Equal | NotEqual | In | NotIn
    min_length: int | None = None
    max_length: int | None = None
    source: str = ""  # RemotePeers
    interface: str = ""  # `*` and `?` as wildcards
    peer_type: str = ""  # eBGP | iBGP
    communities: tuple[tuple[int, ...], ...] = ()  # two numbers: standard, three: large
    as_path_prefix: tuple[int, ...] = ()
    priority: int | None = None
    add_communities: tuple[tuple[int, ...], ...] = ()
    prepend: tuple[int, ...] = ()
    set_priority: int | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """A BGPFilter: the first rule that matches decides; none: the next filter, at last the default."""

    imports: dict[Family, tuple[FilterRule, ...]] = field(default_factory=dict)
    exports: dict[Family, tuple[FilterRule, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Originated:
    """A prefix that this node announces by itself: a block, a service, or a route of the kernel (of a local workload).

    attributes: communities and the like; the next hop is filled in for each peer. priority: metric of the route in the
    kernel, None is the normal one. interface: where the kernel's route goes out; empty for blocks and services.
    """

    family: Family
    prefix: Nlri
    attributes: Attributes
    block: bool = False
    service: bool = False
    priority: int | None = None
    interface: str = ""


@dataclass(frozen=True, slots=True)
class PoolExport:
    """A pool: what lies inside is ours to tell, or is not to leave (`disableBGPExport`); its overlay says who routes
    it.

    ipip_mode: Never | Always | CrossSubnet. vxlan: in any of its modes.
    """

    network: IPNetwork
    export: bool = True
    ipip_mode: str = "Never"
    vxlan: bool = False


@dataclass(frozen=True, slots=True)
class SpeakerSettings:
    """All of it for one node. problems: what in the resources could not be used, by resource; the rest stands."""

    node: str
    router_id: int
    local_as: int
    listen_port: int = 179
    bind: tuple[IPAddress, ...] = ()  # empty: all addresses
    addresses: tuple[IPAddress, ...] = ()  # this node's own, next hops of what it announces
    peers: tuple[PeerSettings, ...] = ()
    filters: dict[str, Filter] = field(default_factory=dict)
    originated: tuple[Originated, ...] = ()
    pools: tuple[PoolExport, ...] = ()
    own_blocks: tuple[IPNetwork, ...] = ()
    subnets: tuple[IPNetwork, ...] = ()  # of this node's own addresses: IPIP across subnets only
    reject: tuple[IPNetwork, ...] = ()  # never into the kernel: ranges of services
    reflect: tuple[IPNetwork, ...] = ()  # a reflector passes these on: external and load balancer ranges of services
    encrypted: tuple[IPAddress, ...] = ()  # next hops that WireGuard serves on both ends: not into the kernel
    advertisements: tuple[tuple[IPNetwork, tuple[tuple[int, ...], ...]], ...] = ()  # communities for what lies inside
    local_peering: tuple[IPAddress, ...] = ()  # where workloads find their node, on their interfaces
    ignored_interfaces: tuple[str, ...] = ()
    normal_priority: dict[Family, int] = field(default_factory=lambda: {Family.IPV4: 1024, Family.IPV6: 1024})
    route_reflector: bool = False
    cluster_id: int = 0
    program_cluster_routes: str = "EnabledNoEncapOnly"
    log_level: str = ""
    problems: dict[str, str] = field(default_factory=dict)
