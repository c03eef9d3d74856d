"""Address management, endpoints of hosts, and sets of networks."""

from __future__ import annotations

from libs.model import endpoints as m_endpoints
from libs.model import pools as m
from libs.model.descriptions.notes import About, Abouts, Note
from libs.model.descriptions.policy import SELECTOR
from libs.model.validation import checks
from libs.model.validation import pools as rules

_NETS = Note(
    "The networks of the set: CIDRs or single addresses, IPv4 and IPv6 together if wanted. Rules select the set by its "
    "labels."
)

ADDRESSES: Abouts = {
    m.IPPool: About("A range of addresses for workloads, tunnels or load balancers.", {}),
    m.IPPoolSpec: About(
        "Which addresses, for whom, and how they are routed.",
        {
            "cidr": Note(
                "The range, as a CIDR without host bits; must not overlap another pool. It cannot be changed.",
                longest=rules.MAX_CIDR_CHARS, required=True,
            ),
            "vxlan_mode": Note(
                "Whether traffic between nodes goes through VXLAN: Never, Always, or CrossSubnet (only where the "
                "nodes' own networks differ). Excludes ipipMode. Never when absent.",
                choices=rules.MODES,
            ),
            "ipip_mode": Note(
                "Whether traffic between nodes goes through IP in IP: Never, Always, or CrossSubnet. IPv4 only; "
                "excludes vxlanMode. Never when absent.",
                choices=rules.MODES,
            ),
            "nat_outgoing": Note(
                "Traffic from this pool to addresses outside of all pools leaves with the node's own address."
            ),
            "disabled": Note("No new addresses are assigned from the pool; those in use stay."),
            "disable_bgp_export": Note("The pool's routes are not told to BGP peers."),
            "block_size": Note(
                "Prefix length of the blocks that nodes take from the pool: 20 to 32 for IPv4 (26 when absent), 116 "
                "to 128 for IPv6 (122 when absent). It cannot be changed.",
                low=20, high=128,
            ),
            "node_selector": Note(
                f"Only nodes whose labels this selector matches take addresses from the pool. {SELECTOR}",
                longest=checks.MAX_SELECTOR_CHARS, default="all()",
            ),
            "namespace_selector": Note(
                "Only pods in namespaces whose labels this selector matches get addresses from the pool, if the node "
                "may use it too. Not for pools with the use Tunnel.",
                longest=checks.MAX_SELECTOR_CHARS,
            ),
            "allowed_uses": Note(
                "What addresses of the pool are for: Workload, Tunnel, or LoadBalancer, which excludes the others. "
                "Workload and Tunnel when absent.",
                choices=rules.USES, most=rules.MAX_USES,
            ),
            "assignment_mode": Note(
                "Automatic: anybody who needs an address may get one from here. Manual: only who asks for this pool or "
                "for an address in it.",
                choices=rules.ASSIGNMENT_MODES, default="Automatic",
            ),
        },
    ),
    m.IPPoolStatus: About(
        "What was observed of a pool.",
        {
            "conditions": Note(
                "Latest observations; Allocatable says whether addresses are assigned, and why not: CIDROverlap, "
                "Terminating, PoolDisabled."
            )
        },
    ),
    m.IPReservation: About("Addresses that are never assigned automatically.", {}),
    m.IPReservationSpec: About(
        "Which addresses are reserved.",
        {"reserved_cidrs": Note("Networks or single addresses that automatic assignment leaves out.", unique=True)},
    ),
    m.IPAMConfiguration: About("Settings of address management; there is one, named default.", {}),
    m.IPAMConfigurationSpec: About(
        "How nodes get blocks of addresses.",
        {
            "strict_affinity": Note("A node never borrows an address from another node's block."),
            "max_blocks_per_host": Note(
                "How many blocks a node may have, of each IP version; 0 or absent: no limit.", low=0, high=1_000_000
            ),
            "auto_allocate_blocks": Note("A node takes a new block when its blocks are full."),
            "kube_virt_vm_address_persistence": Note(
                "Whether a virtual machine keeps its addresses when its pod is replaced. Enabled when absent.",
                choices=("Enabled", "Disabled"),
            ),
            "ip_cooldown_seconds": Note("How long a released address rests before its next use.", low=0, high=1200),
        },
    ),
    m.BlockAffinity: About("Which node a block of addresses belongs to. Written by address management itself.", {}),
    m.BlockAffinitySpec: About(
        "One block and its owner.",
        {
            "state": Note(
                "How far the claim is: pending, confirmed or pendingDeletion.",
                choices=("confirmed", "pending", "pendingDeletion"),
            ),
            "node": Note("The node that owns the block."),
            "type": Note("What the owner is: a host, or virtual for load balancers.", choices=("host", "virtual")),
            "cidr": Note("The block."),
            "deleted": Note("The affinity is going away; must not be true in what users write."),
        },
    ),
    m_endpoints.NetworkSet: About("Networks with labels, for the rules of policies in one namespace.", {}),
    m_endpoints.NetworkSetSpec: About("The networks of a set.", {"nets": _NETS}),
    m_endpoints.GlobalNetworkSet: About("Networks with labels, for the rules of all policies.", {}),
    m_endpoints.GlobalNetworkSetSpec: About("The networks of a set.", {"nets": _NETS}),
    m_endpoints.HostEndpoint: About("An interface of a host, to which policy shall apply.", {}),
    m_endpoints.HostEndpointSpec: About(
        "Which interface, and what policy knows of it.",
        {
            "node": Note("The host's name as node.", longest=checks.MAX_NAME_CHARS, required=True),
            "interface_name": Note(
                "The interface, or * for all traffic of the host. When absent, the interface that has one of "
                "expectedIPs."
            ),
            "expected_ips": Note(
                "Addresses of the interface, IPv4 and IPv6: how it is found when interfaceName is absent, and what "
                "rules of other endpoints take for its addresses."
            ),
            "profiles": Note("Profiles whose rules count after all tiers, in this order."),
            "ports": Note("Ports that rules may call by name."),
        },
    ),
    m_endpoints.EndpointPort: About(
        "A port with a name.",
        {
            "name": Note("What rules call the port.", required=True),
            "protocol": Note("TCP, UDP or SCTP, or its number.", required=True),
            "port": Note("The port's number.", low=1, high=65535, required=True),
        },
    ),
}  # fmt: skip
