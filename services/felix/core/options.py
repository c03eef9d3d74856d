"""What the ruleset compiler takes from Felix's configuration, and the constants of the two address families."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from libs.nftables.model import DataType, Field, Table
from libs.nftables.model import Family as NftFamily
from libs.policy.output import NodeInfo, Workload
from services.felix.core.failsafe import DEFAULT_IN, DEFAULT_OUT, FailsafePort
from services.felix.core.overlay import OverlaySettings

MARK_MASK = 0xFFFF0000  # bits of the packet mark that are ours to use


@dataclass(frozen=True, slots=True)
class Family:
    """IPv4 or IPv6 in the words of nftables."""

    version: int
    bits: int
    table: Table
    address: DataType
    saddr: Field
    daddr: Field
    icmp_protocol: int
    icmp_type: Field
    icmp_code: Field
    port_unreachable: int  # ICMP code of destination-unreachable for a rejected packet

    def mine(self, nets: Iterable[str]) -> frozenset[str]:
        """Those of these networks and addresses that are of this family."""
        return frozenset(net for net in nets if (":" in net) == (self.version == 6))

    def nets(self, workload: Workload) -> tuple[str, ...]:
        return workload.nets4 if self.version == 4 else workload.nets6

    def addresses(self, nodes: Iterable[NodeInfo]) -> frozenset[str]:
        """Of the nodes that have one."""
        found = (node.ipv4 if self.version == 4 else node.ipv6 for node in nodes)
        return frozenset(address.partition("/")[0] for address in found if address)


V4 = Family(
    version=4,
    bits=32,
    table=Table(NftFamily.IP, "calico"),
    address=DataType.IPV4,
    saddr=Field.IP_SADDR,
    daddr=Field.IP_DADDR,
    icmp_protocol=1,
    icmp_type=Field.ICMP_TYPE,
    icmp_code=Field.ICMP_CODE,
    port_unreachable=3,
)
V6 = Family(
    version=6,
    bits=128,
    table=Table(NftFamily.IP6, "calico"),
    address=DataType.IPV6,
    saddr=Field.IP6_SADDR,
    daddr=Field.IP6_DADDR,
    icmp_protocol=58,
    icmp_type=Field.ICMPV6_TYPE,
    icmp_code=Field.ICMPV6_CODE,
    port_unreachable=4,
)


@dataclass(frozen=True, slots=True)
class NatOptions:
    """Masquerading of traffic that leaves the pools (pools with natOutgoing)."""

    exclude_hosts: bool = False  # NATOutgoingExclusions=IPPoolsAndHostIPs: nor towards the cluster's own nodes
    ports: tuple[int, int] | None = None  # NATPortRange, inclusive
    address: dict[int, str] = field(default_factory=dict)  # NATOutgoingAddress by family; none: the interface's own
    out_interface: str = ""  # only when leaving by this interface; a final * stands for any end
    floating_ips: bool = False  # FloatingIPs=Enabled


@dataclass(frozen=True, slots=True)
class RulesetOptions:
    """Felix's configuration as far as it shapes the ruleset; names of the FelixConfiguration fields in the comments."""

    interface_prefixes: tuple[str, ...] = ("cali",)  # InterfacePrefix
    endpoint_to_host: str = "Drop"  # DefaultEndpointToHostAction: Drop | Accept | Return
    deny_action: str = "Drop"  # NftablesFilterDenyAction: Drop | Reject (answers with port unreachable)
    check_invalid: bool = True  # not DisableConntrackInvalidCheck
    allow_source_spoofing: bool = False  # WorkloadSourceSpoofing=Any: honour the workloads' allowed prefixes
    overlay: OverlaySettings = field(default_factory=OverlaySettings)
    external_nodes: tuple[str, ...] = ()  # ExternalNodesCIDRList: may send packets of overlays, as nodes may
    allow_vxlan_from_workloads: bool = False
    allow_ipip_from_workloads: bool = False
    log_prefix: str = "calico-packet"  # LogPrefix; %t tier, %k kind, %n name, %p namespace/name
    log_rate: tuple[int, str] | None = None  # LogActionRateLimit: (10, "minute")
    log_burst: int = 5  # LogActionRateLimitBurst
    loop_prevention: str = "Drop"  # ServiceLoopPrevention: Drop | Reject | Disabled
    failsafe_in: tuple[FailsafePort, ...] = DEFAULT_IN  # FailsafeInboundHostPorts
    failsafe_out: tuple[FailsafePort, ...] = DEFAULT_OUT  # FailsafeOutboundHostPorts
    mark_mask: int = MARK_MASK  # NftablesMarkMask: its lowest bits, as in Calico: two, with IPVS three
    nat: NatOptions = field(default_factory=NatOptions)
    wireguard_ports: dict[int, int] = field(default_factory=dict)  # IP version -> where encrypted packets come in
    wireguard_devices: dict[int, str] = field(default_factory=dict)  # IP version -> device that hosts masquerade into
    wireguard_mark: int = 0  # set on these when hosts' own traffic is encrypted; 0: not
    wireguard_bit: int = 0  # that its own packets leave with; 0: it is off
    ipvs: bool = False  # kube-proxy is in its mode IPVS (ipvs.py)
    skip_blocks: bool = True  # no setting of Calico's: without them the benchmarks and proofs have what to compare with

    def __post_init__(self) -> None:
        if not self.interface_prefixes or not all(self.interface_prefixes):
            raise ValueError("InterfacePrefix must not be empty: workload interfaces could not be told from others")
        if self.mark_mask.bit_count() < 2 or not 0 <= self.mark_mask < 1 << 32:
            raise ValueError(f"NftablesMarkMask is {self.mark_mask:#x}: 32 bits, of which at least two are needed")
        for name, value, choices in (
            ("DefaultEndpointToHostAction", self.endpoint_to_host, ("Drop", "Accept", "Return")),
            ("NftablesFilterDenyAction", self.deny_action, ("Drop", "Reject")),
            ("ServiceLoopPrevention", self.loop_prevention, ("Drop", "Reject", "Disabled")),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {value!r}, not one of {', '.join(choices)}")

    @property
    def mark_accept(self) -> int:
        """Set means "allowed by untracked or pre-DNAT policy": later stages of host endpoints let it pass."""
        return self.mark_mask & -self.mark_mask

    @property
    def mark_pass(self) -> int:
        """Set means "this tier said Pass"."""
        rest = self.mark_mask & (self.mark_mask - 1)
        return rest & -rest

    @property
    def mark_ipvs(self) -> int:
        """Set means "IPVS may take this packet, or has done so"; 0 without IPVS, or without a bit for it."""
        return self.spare_bit if self.ipvs else 0

    @property
    def spare_bit(self) -> int:
        """The lowest of the mask that nothing else uses; 0: there is none."""
        rest = self.mark_mask & ~(self.mark_accept | self.mark_pass | self.wireguard_bit)
        return rest & -rest
