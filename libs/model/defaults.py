"""What is filled in before a resource is stored, so that it stands in etcd as Calico would have written it.

Two layers, applied in this order: the client's own (`client_defaults`), then the schema's (`schema_defaults`). Readers
do not default again, so a writer that skips this leaves values that other programs take for zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from libs.model import codec
from libs.model.base import Resource
from libs.model.bgp import BGPConfiguration
from libs.model.cluster import KubeControllersConfiguration
from libs.model.felixconfig import FelixConfiguration
from libs.model.policy import (
    GlobalNetworkPolicy,
    NetworkPolicy,
    Rule,
    StagedGlobalNetworkPolicy,
    StagedKubernetesNetworkPolicy,
    StagedNetworkPolicy,
    Tier,
)
from libs.model.pools import IPPool

R = TypeVar("R", bound=Resource)

DEFAULT_TIER = "default"
DEFAULT_TIER_ORDER = 1_000_000.0
DEFAULT_BLOCK_SIZE = {4: 26, 6: 122}


def apply_defaults(resource: R) -> R:
    """A copy with every default filled in. Doing it twice changes nothing."""
    filled = codec.copy(resource)
    client_defaults(filled)
    schema_defaults(filled)
    return filled


def client_defaults(resource: Resource) -> None:
    """In place: what Calico's client adds before it validates."""
    match resource:
        case StagedNetworkPolicy() | StagedGlobalNetworkPolicy() if resource.spec.staged_action == "Delete":
            pass  # a deletion says nothing but which policy
        case NetworkPolicy() | GlobalNetworkPolicy() | StagedNetworkPolicy() | StagedGlobalNetworkPolicy():
            if not resource.spec.types:
                resource.spec.types = policy_types(resource.spec.ingress, resource.spec.egress)
        case Tier():
            if resource.spec.order is None:
                resource.spec.order = DEFAULT_TIER_ORDER
        case IPPool():
            _pool(resource)
        case FelixConfiguration():
            _felix(resource)


def schema_defaults(resource: Resource) -> None:
    """In place: what the CRD schema adds."""
    match resource:
        case NetworkPolicy() | GlobalNetworkPolicy():
            resource.spec.tier = resource.spec.tier or DEFAULT_TIER
        case StagedNetworkPolicy() | StagedGlobalNetworkPolicy():
            resource.spec.tier = resource.spec.tier or DEFAULT_TIER
            resource.spec.staged_action = resource.spec.staged_action or "Set"
        case StagedKubernetesNetworkPolicy():
            resource.spec.staged_action = resource.spec.staged_action or "Set"
        case Tier():
            if resource.spec.default_action is None:
                resource.spec.default_action = "Deny"
        case IPPool():
            resource.spec.node_selector = resource.spec.node_selector or "all()"
            if resource.spec.assignment_mode is None:
                resource.spec.assignment_mode = "Automatic"
        case BGPConfiguration():
            resource.spec.log_severity_screen = resource.spec.log_severity_screen or "Info"
            if resource.spec.service_load_balancer_aggregation is None:
                resource.spec.service_load_balancer_aggregation = "Enabled"
        case FelixConfiguration():
            resource.spec.nftables_mode = resource.spec.nftables_mode or "Auto"
            resource.spec.nftables_flow_table_offload = resource.spec.nftables_flow_table_offload or "Disabled"
        case KubeControllersConfiguration():
            resource.spec.health_checks = resource.spec.health_checks or "Enabled"
            controllers = resource.spec.controllers
            if controllers.load_balancer is not None:
                controllers.load_balancer.assign_ips = controllers.load_balancer.assign_ips or "AllServices"
            if controllers.migration is not None:
                migrator = controllers.migration.policy_name_migrator
                controllers.migration.policy_name_migrator = migrator or "Enabled"


def policy_types(ingress: Sequence[Rule], egress: Sequence[Rule]) -> list[str]:
    """Directions of a policy that names none: those it has rules for, Ingress when it has no rules at all."""
    if egress:
        return ["Ingress", "Egress"] if ingress else ["Egress"]
    return ["Ingress"]


def default_block_size(cidr: str) -> int:
    """Prefix length of the blocks of a pool that chooses none."""
    return DEFAULT_BLOCK_SIZE[6 if ":" in cidr else 4]


def _pool(pool: IPPool) -> None:
    spec = pool.spec
    spec.vxlan_mode = spec.vxlan_mode or "Never"
    spec.ipip_mode = spec.ipip_mode or "Never"
    spec.block_size = spec.block_size or default_block_size(spec.cidr)
    spec.allowed_uses = spec.allowed_uses or ["Workload", "Tunnel"]


def _felix(config: FelixConfiguration) -> None:
    """The boolean that the two load-balancing fields replaced still decides them where it is set."""
    spec = config.spec
    spec.floating_ips = spec.floating_ips or "Disabled"
    legacy = spec.bpf_connect_time_load_balancing_enabled
    if not spec.bpf_connect_time_load_balancing:
        spec.bpf_connect_time_load_balancing = "TCP" if legacy is None else "Enabled" if legacy else "Disabled"
    if not spec.bpf_host_networked_nat_without_ctlb:
        spec.bpf_host_networked_nat_without_ctlb = "Enabled" if legacy is None else "Disabled"
