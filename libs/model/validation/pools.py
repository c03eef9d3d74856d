"""Rules of IP pools, reservations, IPAM settings and block affinities."""

from __future__ import annotations

import ipaddress

from libs.model.defaults import default_block_size
from libs.model.pools import BlockAffinitySpec, IPAMConfigurationSpec, IPPoolSpec, IPReservationSpec
from libs.model.problems import At
from libs.model.validation import checks
from libs.model.validation.checks import Network

MODES = ("Never", "Always", "CrossSubnet")
USES = ("Workload", "Tunnel", "LoadBalancer")
ASSIGNMENT_MODES = ("Automatic", "Manual")
BLOCK_SIZES = {4: (20, 32), 6: (116, 128)}
MAX_CIDR_CHARS = 48
MAX_USES = 10
LINK_LOCAL: tuple[Network, ...] = (ipaddress.ip_network("169.254.0.0/16"), ipaddress.ip_network("fe80::/10"))


def check_pool_spec(at: At, spec: IPPoolSpec) -> None:
    checks.optional_one_of(at.field("vxlanMode"), spec.vxlan_mode, MODES)
    checks.optional_one_of(at.field("ipipMode"), spec.ipip_mode, MODES)
    vxlan, ipip = spec.vxlan_mode not in ("", "Never"), spec.ipip_mode not in ("", "Never")
    if vxlan and ipip:
        at.field("vxlanMode").refuse("vxlanMode and ipipMode cannot both be on", spec.vxlan_mode)
    if len(spec.cidr) > MAX_CIDR_CHARS:
        at.field("cidr").refuse(f"must be at most {MAX_CIDR_CHARS} characters, not {len(spec.cidr)}")
    elif (network := checks.masked_cidr(at.field("cidr"), spec.cidr)) is not None:
        _pool_network(at, spec, network)
    for name, text in (("nodeSelector", spec.node_selector), ("namespaceSelector", spec.namespace_selector)):
        if "global(" in text:
            at.field(name).refuse("global() means nothing here", text)
        else:
            checks.selector(at.field(name), text)
    checks.one_of(at.field("assignmentMode"), spec.assignment_mode, ASSIGNMENT_MODES)
    _uses(at, spec, encapsulated=vxlan or ipip)


def _pool_network(at: At, spec: IPPoolSpec, network: Network) -> None:
    for link_local in LINK_LOCAL:
        if network.version == link_local.version and network.overlaps(link_local):
            at.field("cidr").refuse(f"must not overlap the link local range {link_local}", spec.cidr)
    if network.version == 6 and spec.ipip_mode not in ("", "Never"):
        at.field("ipipMode").refuse("IPIP is not supported on IPv6 pools", spec.ipip_mode)
    low, high = BLOCK_SIZES[network.version]
    size = spec.block_size or default_block_size(spec.cidr)
    checks.within(at.field("blockSize"), size, low, high)
    if network.prefixlen > size and not spec.disabled:
        at.field("cidr").refuse(f"must be at least as large as a block (/{size}) unless disabled", spec.cidr)


def _uses(at: At, spec: IPPoolSpec, *, encapsulated: bool) -> None:
    place = at.field("allowedUses")
    checks.at_most(place, spec.allowed_uses, MAX_USES)
    for index, use in enumerate(spec.allowed_uses):
        checks.one_of(place.item(index), use, USES)
    if "Tunnel" in spec.allowed_uses and spec.namespace_selector:
        at.field("namespaceSelector").refuse("cannot be set on a pool with the allowed use Tunnel")
    if "LoadBalancer" not in spec.allowed_uses:
        return
    if set(spec.allowed_uses) & {"Workload", "Tunnel"}:
        place.refuse("LoadBalancer cannot be combined with other uses")
    if encapsulated:
        place.refuse("a LoadBalancer pool cannot have IPIP or VXLAN on")
    if spec.disable_bgp_export:
        at.field("disableBGPExport").refuse("cannot be true on a LoadBalancer pool")
    if spec.node_selector not in ("", "all()"):
        at.field("nodeSelector").refuse("must be all() on a LoadBalancer pool", spec.node_selector)


def check_reservation_spec(at: At, spec: IPReservationSpec) -> None:
    checks.unique(at.field("reservedCIDRs"), spec.reserved_cidrs)
    for index, text in enumerate(spec.reserved_cidrs):
        checks.any_net(at.field("reservedCIDRs").item(index), text)


def check_ipam_configuration_spec(at: At, spec: IPAMConfigurationSpec) -> None:
    checks.within(at.field("maxBlocksPerHost"), spec.max_blocks_per_host, 0, 1_000_000)
    checks.within(at.field("ipCooldownSeconds"), spec.ip_cooldown_seconds, 0, 1200)
    checks.one_of(
        at.field("kubeVirtVMAddressPersistence"), spec.kube_virt_vm_address_persistence, ("Enabled", "Disabled")
    )


def check_block_affinity_spec(at: At, spec: BlockAffinitySpec) -> None:
    checks.optional_one_of(at.field("state"), spec.state, ("confirmed", "pending", "pendingDeletion"))
    checks.optional_one_of(at.field("type"), spec.type, ("host", "virtual"))
    if spec.cidr:
        checks.any_net(at.field("cidr"), spec.cidr)
    if spec.deleted:
        at.field("deleted").refuse("must not be true", spec.deleted)
