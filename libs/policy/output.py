"""What the calculation says and every consumer reads: typha publishes these values, felix programs them, the judge
prints them.

Field names and meaning follow Felix's dataplane messages (facts/felix.md section 2.9), so that a reader who knows
Calico finds his way; only the containers differ. All values are immutable and carry no clock, no revision and no I/O.
Addresses and networks are strings in canonical form (`10.0.0.0/8`, `fd00::/64`, always with a prefix length) because
they go to the wire unchanged.
"""

from __future__ import annotations

from enum import IntFlag, StrEnum

import msgspec


class PolicyKey(msgspec.Struct, frozen=True, order=True, omit_defaults=True):
    """Identity of a policy. `kind` is the v3 kind (NetworkPolicy, GlobalNetworkPolicy, Staged…)."""

    kind: str
    name: str
    namespace: str = ""

    def __str__(self) -> str:
        """`np/ns1/web`, `gnp/block`: the id used on the bus and in chain names (facts/felix.md section 2.3)."""
        short = SHORT_KINDS[self.kind]
        return f"{short}/{self.namespace}/{self.name}" if self.namespace else f"{short}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> PolicyKey:
        """Inverse of `str()`. Raises KeyError for an unknown short kind."""
        short, *rest = text.split("/")
        return cls(LONG_KINDS[short], rest[-1], rest[0] if len(rest) > 1 else "")


SHORT_KINDS = {
    "NetworkPolicy": "np",
    "GlobalNetworkPolicy": "gnp",
    "StagedNetworkPolicy": "snp",
    "StagedGlobalNetworkPolicy": "sgnp",
    "StagedKubernetesNetworkPolicy": "sknp",
    "KubernetesNetworkPolicy": "knp",
    "KubernetesClusterNetworkPolicy": "kcnp",
}
LONG_KINDS = {short: kind for kind, short in SHORT_KINDS.items()}
STAGED_KINDS = frozenset(kind for kind in SHORT_KINDS if kind.startswith("Staged"))


class Action(StrEnum):
    ALLOW = "allow"
    DENY = "deny"
    PASS = "pass"  # Felix's wire name is next-tier
    LOG = "log"


class PortRange(msgspec.Struct, frozen=True, order=True, array_like=True):
    """Inclusive range of L4 ports; a single port has first == last."""

    first: int
    last: int


class Icmp(msgspec.Struct, frozen=True, omit_defaults=True):
    type: int
    code: int | None = None


class HttpMatch(msgspec.Struct, frozen=True, omit_defaults=True):
    methods: tuple[str, ...] = ()
    exact_paths: tuple[str, ...] = ()
    prefix_paths: tuple[str, ...] = ()


class ServiceAccountMatch(msgspec.Struct, frozen=True, omit_defaults=True):
    selector: str = ""
    names: tuple[str, ...] = ()


class RuleOrigin(msgspec.Struct, frozen=True, omit_defaults=True):
    """The user's own words, for explanations and flow logs; has no effect on the verdict."""

    src_selector: str = ""
    dst_selector: str = ""
    not_src_selector: str = ""
    not_dst_selector: str = ""
    src_namespace_selector: str = ""
    dst_namespace_selector: str = ""
    src_service: str = ""
    src_service_namespace: str = ""
    dst_service: str = ""
    dst_service_namespace: str = ""
    src_service_accounts: ServiceAccountMatch | None = None
    dst_service_accounts: ServiceAccountMatch | None = None


class Rule(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One rule with every reference resolved to an IP set id. All present matches are ANDed; inside a tuple entries are
    ORed, except IP set ids, which are ANDed. `*_ports` and `*_named_port_sets` of one side and sign are ORed with each
    other.

    protocol: a lower-case name (tcp udp icmp icmpv6 sctp udplite) or a number. ip_version: 4, 6 or 0 for both.
    """

    action: Action
    ip_version: int = 0
    protocol: str | int | None = None
    not_protocol: str | int | None = None
    icmp: Icmp | None = None
    not_icmp: Icmp | None = None
    src_nets: tuple[str, ...] = ()
    dst_nets: tuple[str, ...] = ()
    not_src_nets: tuple[str, ...] = ()
    not_dst_nets: tuple[str, ...] = ()
    src_ports: tuple[PortRange, ...] = ()
    dst_ports: tuple[PortRange, ...] = ()
    not_src_ports: tuple[PortRange, ...] = ()
    not_dst_ports: tuple[PortRange, ...] = ()
    src_named_port_sets: tuple[str, ...] = ()
    dst_named_port_sets: tuple[str, ...] = ()
    not_src_named_port_sets: tuple[str, ...] = ()
    not_dst_named_port_sets: tuple[str, ...] = ()
    src_sets: tuple[str, ...] = ()
    dst_sets: tuple[str, ...] = ()
    not_src_sets: tuple[str, ...] = ()
    not_dst_sets: tuple[str, ...] = ()
    dst_ip_port_sets: tuple[str, ...] = ()
    http: HttpMatch | None = None
    annotations: dict[str, str] = {}
    origin: RuleOrigin | None = None

    def set_ids(self) -> set[str]:
        """Every IP set this rule refers to."""
        return {
            *self.src_sets, *self.dst_sets, *self.not_src_sets, *self.not_dst_sets,
            *self.src_named_port_sets, *self.dst_named_port_sets,
            *self.not_src_named_port_sets, *self.not_dst_named_port_sets, *self.dst_ip_port_sets,
        }  # fmt: skip


class Policy(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    tier: str
    namespace: str = ""
    inbound: tuple[Rule, ...] = ()
    outbound: tuple[Rule, ...] = ()
    selector: str = ""  # what it selects: namespace and service account terms included, in canonical form
    untracked: bool = False
    pre_dnat: bool = False
    performance_hints: tuple[str, ...] = ()

    def set_ids(self) -> set[str]:
        return set().union(*(rule.set_ids() for rule in (*self.inbound, *self.outbound)))


class Profile(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A profile's rules. A missing profile is published as one Deny in both directions (facts/felix.md section 2.2)."""

    inbound: tuple[Rule, ...] = ()
    outbound: tuple[Rule, ...] = ()

    def set_ids(self) -> set[str]:
        return set().union(*(rule.set_ids() for rule in (*self.inbound, *self.outbound)))


class IPSetType(StrEnum):
    NET = "NET"  # members "10.0.0.1/32", "10.0.0.0/8", both families in one set
    IP_PORT = "IP_AND_PORT"  # members "10.0.0.1,tcp:80", protocols tcp, udp, sctp


class IPSet(msgspec.Struct, frozen=True):
    type: IPSetType
    members: frozenset[str]


class Tier(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A tier as one endpoint sees it: only policies that select it, in order of evaluation."""

    name: str
    default_action: str = "Deny"  # Deny | Pass
    ingress: tuple[PolicyKey, ...] = ()
    egress: tuple[PolicyKey, ...] = ()


class WorkloadKey(msgspec.Struct, frozen=True, order=True):
    """orchestrator "k8s", workload "ns1/pod1", endpoint "eth0" (etcd-layout.md section 6)."""

    orchestrator: str
    workload: str
    endpoint: str

    def __str__(self) -> str:
        return f"{self.orchestrator}/{self.workload}/{self.endpoint}"

    @classmethod
    def parse(cls, text: str) -> WorkloadKey:
        """Inverse of `str()`; the workload part may itself hold a slash (`ns1/pod1`)."""
        orchestrator, _, rest = text.partition("/")
        workload, _, endpoint = rest.rpartition("/")
        return cls(orchestrator, workload, endpoint)


class Nat(msgspec.Struct, frozen=True):
    external: str
    internal: str


class Qos(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Limits of a workload; 0 is no limit. Ingress is what goes to it. Bandwidth and peak rate in bit/s, burst in bits,
    minburst in bytes, packet rates in packets/s, packet bursts in packets. dscp: None leaves packets as they are.
    """

    ingress_bandwidth: int = 0
    ingress_burst: int = 0
    ingress_peakrate: int = 0
    ingress_minburst: int = 0
    egress_bandwidth: int = 0
    egress_burst: int = 0
    egress_peakrate: int = 0
    egress_minburst: int = 0
    ingress_packet_rate: int = 0
    ingress_packet_burst: int = 0
    egress_packet_rate: int = 0
    egress_packet_burst: int = 0
    ingress_max_connections: int = 0
    egress_max_connections: int = 0
    dscp: int | None = None


class Workload(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A workload endpoint on one node. `name` is the host-side interface."""

    name: str
    state: str = "active"
    mac: str = ""
    profiles: tuple[str, ...] = ()
    nets4: tuple[str, ...] = ()
    nets6: tuple[str, ...] = ()
    tiers: tuple[Tier, ...] = ()
    nat4: tuple[Nat, ...] = ()
    nat6: tuple[Nat, ...] = ()
    allowed_source_prefixes: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    qos: Qos | None = None

    def policy_keys(self) -> set[PolicyKey]:
        return {key for tier in self.tiers for key in (*tier.ingress, *tier.egress)}


class Host(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A host endpoint on one node. `name` is an interface, `*`, or empty when found by expected address. dscp: of what
    the host sends out of the cluster; None leaves it as it is.
    """

    name: str = ""
    profiles: tuple[str, ...] = ()
    expected4: tuple[str, ...] = ()
    expected6: tuple[str, ...] = ()
    tiers: tuple[Tier, ...] = ()
    untracked_tiers: tuple[Tier, ...] = ()
    pre_dnat_tiers: tuple[Tier, ...] = ()
    forward_tiers: tuple[Tier, ...] = ()
    dscp: int | None = None

    def policy_keys(self) -> set[PolicyKey]:
        tiers = (*self.tiers, *self.untracked_tiers, *self.pre_dnat_tiers, *self.forward_tiers)
        return {key for tier in tiers for key in (*tier.ingress, *tier.egress)}


class RouteType(IntFlag):
    """Bit values of Felix's RouteUpdate.types (facts/felix.md section 2.9)."""

    CIDR_INFO = 0
    REMOTE_WORKLOAD = 1
    REMOTE_HOST = 2
    LOCAL_WORKLOAD = 4
    LOCAL_HOST = 8
    REMOTE_TUNNEL = 16
    LOCAL_TUNNEL = 32


class NodeInfo(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What every node must know of another node. ipv4, ipv6: its address with the prefix length of its subnet."""

    ipv4: str = ""
    ipv6: str = ""
    as_number: str = ""
    labels: dict[str, str] = {}
    vxlan_ipv4: str = ""
    vxlan_mac: str = ""
    vxlan_ipv6: str = ""
    vxlan_mac6: str = ""
    ipip_ipv4: str = ""
    wireguard_ipv4: str = ""
    wireguard_key: str = ""
    wireguard_ipv6: str = ""
    wireguard_key6: str = ""


class Pool(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An IP pool as the dataplane needs it; keyed by its CIDR."""

    cidr: str
    nat_outgoing: bool = False
    ipip_mode: str = "Never"
    vxlan_mode: str = "Never"
    allowed_uses: tuple[str, ...] = ()
    disabled: bool = False
    disable_bgp_export: bool = False


class Block(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An IPAM block reduced to routing: who owns it, and which addresses inside another node uses (borrowed).

    Republished only when this reduction changes, not at each allocation: `borrowed` maps address to node.
    """

    cidr: str
    node: str = ""  # empty: no affinity to a host
    borrowed: dict[str, str] = {}
