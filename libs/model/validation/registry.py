"""Which check belongs to which struct, for whole resources and for their parts."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

from libs.model import bgp as m_bgp
from libs.model import cluster as m_cluster
from libs.model import endpoints as m_endpoints
from libs.model import felixconfig as m_felix
from libs.model import kinds
from libs.model import node as m_node
from libs.model import policy as m_policy
from libs.model import pools as m_pools
from libs.model.base import ObjectMeta, Resource, V3Struct
from libs.model.problems import At
from libs.model.validation import bgp, checks, cluster, endpoints, felix, policy, pools

Check: TypeAlias = Callable[[At, Any], None]

# Specs; the check of a resource is its spec's unless RESOURCES has one.
SPECS: dict[type[V3Struct], Check] = {
    m_bgp.BGPConfigurationSpec: bgp.check_configuration_spec,
    m_bgp.BGPFilterSpec: bgp.check_filter_spec,
    m_bgp.BGPPeerSpec: bgp.check_peer_spec,
    m_bgp.CalicoNodeStatusSpec: bgp.check_node_status_spec,
    m_cluster.KubeControllersConfigurationSpec: cluster.check_kube_controllers_spec,
    m_endpoints.GlobalNetworkSetSpec: endpoints.check_network_set_spec,
    m_endpoints.HostEndpointSpec: endpoints.check_host_endpoint_spec,
    m_endpoints.LiveMigrationSpec: endpoints.check_live_migration_spec,
    m_endpoints.NetworkSetSpec: endpoints.check_network_set_spec,
    m_endpoints.WorkloadEndpointSpec: endpoints.check_workload_endpoint_spec,
    m_felix.FelixConfigurationSpec: felix.check_felix_spec,
    m_node.NodeSpec: cluster.check_node_spec,
    m_policy.GlobalNetworkPolicySpec: policy.check_policy_spec,
    m_policy.NetworkPolicySpec: policy.check_policy_spec,
    m_policy.ProfileSpec: policy.check_profile_spec,
    m_policy.StagedGlobalNetworkPolicySpec: policy.check_staged_spec,
    m_policy.StagedKubernetesNetworkPolicySpec: policy.check_staged_kubernetes_spec,
    m_policy.StagedNetworkPolicySpec: policy.check_staged_spec,
    m_policy.TierSpec: policy.check_tier_spec,
    m_pools.BlockAffinitySpec: pools.check_block_affinity_spec,
    m_pools.IPAMConfigurationSpec: pools.check_ipam_configuration_spec,
    m_pools.IPPoolSpec: pools.check_pool_spec,
    m_pools.IPReservationSpec: pools.check_reservation_spec,
}

# Where more than the spec decides.
RESOURCES: dict[type[Resource], Check] = {
    m_bgp.BGPConfiguration: bgp.check_configuration,
    m_endpoints.HostEndpoint: endpoints.check_host_endpoint,
    m_felix.FelixConfiguration: felix.check_felix,
    m_node.Node: cluster.check_node,
    m_policy.Tier: policy.check_tier,
}

# Parts that may be checked alone.
PARTS: dict[type[V3Struct], Check] = {
    m_bgp.BGPFilterOperation: bgp.check_filter_operation,
    m_cluster.AutoHostEndpointConfig: cluster.check_auto_host_endpoint,
    m_cluster.ControllersConfig: cluster.check_controllers,
    m_cluster.HostEndpointTemplate: cluster.check_template,
    m_cluster.LoadBalancerControllerConfig: cluster.check_load_balancer_controller,
    m_cluster.MigrationControllerConfig: cluster.check_migration_controller,
    m_cluster.NamespaceControllerConfig: cluster.check_periodic_controller,
    m_cluster.NodeControllerConfig: cluster.check_node_controller,
    m_cluster.PolicyControllerConfig: cluster.check_periodic_controller,
    m_cluster.ServiceAccountControllerConfig: cluster.check_periodic_controller,
    m_cluster.WorkloadEndpointControllerConfig: cluster.check_periodic_controller,
    m_endpoints.EndpointPort: endpoints.check_endpoint_port,
    m_endpoints.IPNAT: endpoints.check_ip_nat,
    m_endpoints.QoSControls: endpoints.check_qos,
    m_endpoints.WorkloadEndpointPort: endpoints.check_workload_port,
    m_felix.HealthTimeoutOverride: felix.check_health_override,
    m_felix.ProtoPort: felix.check_proto_port,
    m_node.NodeBGPSpec: cluster.check_node_bgp,
    m_node.NodeStatus: cluster.check_node_status,
    m_policy.EntityRule: policy.check_entity,
    m_policy.HTTPMatch: policy.check_http,
    m_policy.ICMPFields: policy.check_icmp,
    m_policy.Rule: policy.check_rule,
    m_policy.ServiceAccountMatch: policy.check_service_accounts,
}

_POLICY_NAME = re.compile(rf"({checks.LABEL}\.)?{checks.LABEL}")
_TIER_NAME = re.compile(checks.LABEL)
_KUBERNETES_POLICY_NAME = re.compile(rf"(knp|ossg)\.default\.{checks.SUBDOMAIN}")
_MAX_TIER_NAME_CHARS = 63
_NAMESPACED_POLICIES = ("NetworkPolicy", "StagedNetworkPolicy")
_OWN_NAMES = ("WorkloadEndpoint", "IPAMBlock", "IPAMHandle", "BlockAffinity")


def check_resource(at: At, resource: Resource) -> None:
    """Metadata and contents, whatever the kind. Not whether name and namespace are there: see `check_identity`."""
    check_metadata(at.field("metadata"), resource.kind, resource.metadata)
    if isinstance(resource, (m_endpoints.NetworkSet, m_endpoints.GlobalNetworkSet)):
        endpoints.check_no_namespace_label(at, resource)
    if check := RESOURCES.get(type(resource)):
        check(at, resource)
    elif check := SPECS.get(type(resource.spec)):
        check(at.field("spec"), resource.spec)


def check_metadata(at: At, kind: str, metadata: ObjectMeta) -> None:
    if metadata.name:
        _name(at.field("name"), kind, metadata.name)
    checks.label_map(at.field("labels"), metadata.labels)
    checks.annotation_map(at.field("annotations"), metadata.annotations)


def _name(at: At, kind: str, name: str) -> None:
    if kind == "Tier":
        if len(name) > _MAX_TIER_NAME_CHARS or not _TIER_NAME.fullmatch(name):
            at.refuse(
                f"must be lower case letters, digits or '-', begin and end with a letter or digit, at most "
                f"{_MAX_TIER_NAME_CHARS} characters",
                name,
            )
    elif kinds.kind(kind).policy:
        known = kind in _NAMESPACED_POLICIES and _KUBERNETES_POLICY_NAME.fullmatch(name)
        if len(name) > checks.MAX_NAME_CHARS or not (known or _POLICY_NAME.fullmatch(name)):
            at.refuse(
                "must be lower case letters, digits or '-', with at most one '.' after the tier's name, at most "
                f"{checks.MAX_NAME_CHARS} characters",
                name,
            )
    elif kind not in _OWN_NAMES:
        checks.dns_name(at, name)


def check_identity(at: At, resource: Resource) -> None:
    """What a resource needs besides good contents before it can be stored under a key."""
    metadata, entry = resource.metadata, kinds.kind(type(resource))
    place = at.field("metadata")
    if not metadata.name:
        generate = "; generateName is not supported" if metadata.generate_name else ""
        place.field("name").refuse(f"must be given{generate}")
    if entry.namespaced:
        if metadata.namespace:
            checks.dns_name(place.field("namespace"), metadata.namespace)
        else:
            place.field("namespace").refuse(f"must be given: {entry.kind} is namespaced")
    elif metadata.namespace:
        place.field("namespace").refuse(f"must be empty: {entry.kind} is not namespaced", metadata.namespace)
    if entry.singleton and metadata.name not in ("", "default"):
        place.field("name").refuse(f"the only {entry.kind} is named 'default'", metadata.name)
    if isinstance(resource, m_endpoints.WorkloadEndpoint):
        endpoints.check_workload_endpoint_name(at, resource)
    if isinstance(resource, m_felix.FelixConfiguration):
        own = metadata.name in ("", "default") or metadata.name.startswith("node.")
        if not own and not resource.spec.node_selector:
            at.field("spec", "nodeSelector").refuse("must be given: the name is neither 'default' nor 'node.<name>'")
