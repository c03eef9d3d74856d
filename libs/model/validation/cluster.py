"""Rules of nodes and of kube-controllers' configuration."""

from __future__ import annotations

import base64
import binascii

from libs.model.cluster import (
    AutoHostEndpointConfig,
    ControllersConfig,
    HostEndpointTemplate,
    KubeControllersConfiguration,
    KubeControllersConfigurationSpec,
    LoadBalancerControllerConfig,
    MigrationControllerConfig,
    NamespaceControllerConfig,
    NodeControllerConfig,
    PolicyControllerConfig,
    ServiceAccountControllerConfig,
    WorkloadEndpointControllerConfig,
)
from libs.model.node import Node, NodeBGPSpec, NodeSpec, NodeStatus
from libs.model.problems import At
from libs.model.scalars import Duration
from libs.model.validation import checks

LOG_LEVELS = ("None", "Debug", "Info", "Warning", "Error", "Fatal", "Panic")
_ON_OFF = ("Enabled", "Disabled")
_KEY_BYTES = 32


def check_node(at: At, resource: Node) -> None:
    check_node_spec(at.field("spec"), resource.spec)
    check_node_status(at.field("status"), resource.status)


def check_node_spec(at: At, spec: NodeSpec) -> None:
    if spec.bgp is not None:
        check_node_bgp(at.field("bgp"), spec.bgp)
    for name, text, version in (
        ("ipv4VXLANTunnelAddr", spec.ipv4_vxlan_tunnel_addr, 4),
        ("ipv6VXLANTunnelAddr", spec.ipv6_vxlan_tunnel_addr, 6),
    ):
        if text:
            checks.ip(at.field(name), text, version)
    for name, text in (
        ("vxlanTunnelMACAddr", spec.vxlan_tunnel_mac_addr),
        ("vxlanTunnelMACAddrV6", spec.vxlan_tunnel_mac_addr_v6),
    ):
        if text:
            checks.mac(at.field(name), text)
    for index, reference in enumerate(spec.orch_refs):
        if not reference.orchestrator:
            at.field("orchRefs").item(index).field("orchestrator").refuse("must name the orchestrator")
    if spec.wireguard is not None:
        for name, text, version in (
            ("interfaceIPv4Address", spec.wireguard.interface_ipv4_address, 4),
            ("interfaceIPv6Address", spec.wireguard.interface_ipv6_address, 6),
        ):
            if text:
                checks.ip(at.field("wireguard", name), text, version)
    for index, address in enumerate(spec.addresses):
        place = at.field("addresses").item(index)
        checks.any_net(place.field("address"), address.address)
        checks.optional_one_of(place.field("type"), address.type, ("CalicoNodeIP", "InternalIP", "ExternalIP"))


def check_node_bgp(at: At, bgp: NodeBGPSpec) -> None:
    if bgp == NodeBGPSpec():
        at.refuse("must not be empty: leave it out instead")
    for name, text, version in (("ipv4Address", bgp.ipv4_address, 4), ("ipv6Address", bgp.ipv6_address, 6)):
        if text:
            checks.any_net(at.field(name), text, version)
    if bgp.ipv4_ipip_tunnel_addr:
        checks.ip(at.field("ipv4IPIPTunnelAddr"), bgp.ipv4_ipip_tunnel_addr, 4)
    if bgp.route_reflector_cluster_id:
        checks.ip(at.field("routeReflectorClusterID"), bgp.route_reflector_cluster_id, 4)


def check_node_status(at: At, status: NodeStatus) -> None:
    for name, key in (
        ("wireguardPublicKey", status.wireguard_public_key),
        ("wireguardPublicKeyV6", status.wireguard_public_key_v6),
    ):
        if key and not _is_public_key(key):
            at.field(name).refuse(f"must be {_KEY_BYTES} bytes in base64", key)
    for index, cidr in enumerate(status.pod_cidrs):
        checks.any_net(at.field("podCIDRs").item(index), cidr)


def _is_public_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        return False


# --- kube-controllers -------------------------------------------------------------------------------------------------


def check_kube_controllers(at: At, resource: KubeControllersConfiguration) -> None:
    check_kube_controllers_spec(at.field("spec"), resource.spec)


def check_kube_controllers_spec(at: At, spec: KubeControllersConfigurationSpec) -> None:
    checks.optional_one_of(at.field("logSeverityScreen"), spec.log_severity_screen, LOG_LEVELS)
    checks.optional_one_of(at.field("healthChecks"), spec.health_checks, _ON_OFF)
    _period(at.field("etcdV3CompactionPeriod"), spec.etcdv3_compaction_period)
    checks.within(at.field("prometheusMetricsPort"), spec.prometheus_metrics_port, 0, 65535)
    checks.within(at.field("debugProfilePort"), spec.debug_profile_port, 0, 65535)
    check_controllers(at.field("controllers"), spec.controllers)


def _period(at: At, period: Duration | None) -> None:
    if period is not None:
        checks.duration(at, period)


def check_controllers(at: At, controllers: ControllersConfig) -> None:
    if controllers.node is not None:
        check_node_controller(at.field("node"), controllers.node)
    for name, controller in (
        ("policy", controllers.policy),
        ("workloadEndpoint", controllers.workload_endpoint),
        ("serviceAccount", controllers.service_account),
        ("namespace", controllers.namespace),
    ):
        if controller is not None:
            check_periodic_controller(at.field(name), controller)
    if controllers.load_balancer is not None:
        check_load_balancer_controller(at.field("loadBalancer"), controllers.load_balancer)
    if controllers.migration is not None:
        check_migration_controller(at.field("migration"), controllers.migration)


def check_periodic_controller(
    at: At,
    controller: PolicyControllerConfig
    | WorkloadEndpointControllerConfig
    | ServiceAccountControllerConfig
    | NamespaceControllerConfig,
) -> None:
    _period(at.field("reconcilerPeriod"), controller.reconciler_period)


def check_load_balancer_controller(at: At, controller: LoadBalancerControllerConfig) -> None:
    checks.optional_one_of(at.field("assignIPs"), controller.assign_ips, ("AllServices", "RequestedServicesOnly"))


def check_migration_controller(at: At, controller: MigrationControllerConfig) -> None:
    checks.optional_one_of(at.field("policyNameMigrator"), controller.policy_name_migrator, _ON_OFF)


def check_node_controller(at: At, controller: NodeControllerConfig) -> None:
    _period(at.field("reconcilerPeriod"), controller.reconciler_period)
    _period(at.field("leakGracePeriod"), controller.leak_grace_period)
    checks.optional_one_of(at.field("syncLabels"), controller.sync_labels, _ON_OFF)
    if controller.host_endpoint is not None:
        check_auto_host_endpoint(at.field("hostEndpoint"), controller.host_endpoint)


def check_auto_host_endpoint(at: At, config: AutoHostEndpointConfig) -> None:
    checks.optional_one_of(at.field("autoCreate"), config.auto_create, _ON_OFF)
    checks.optional_one_of(at.field("createDefaultHostEndpoint"), config.create_default_host_endpoint, _ON_OFF)
    seen: set[str] = set()
    for index, template in enumerate(config.templates):
        place = at.field("templates").item(index)
        check_template(place, template)
        if not template.interface_cidrs and not template.interface_pattern:
            place.refuse("must have interfaceCIDRs or interfacePattern")
        if template.generate_name in seen:
            place.field("generateName").refuse("must be different in every template", template.generate_name)
        seen.add(template.generate_name)


def check_template(at: At, template: HostEndpointTemplate) -> None:
    if template.generate_name:
        checks.dns_name(at.field("generateName"), template.generate_name)
    for index, cidr in enumerate(template.interface_cidrs):
        checks.any_net(at.field("interfaceCIDRs").item(index), cidr)
    if template.interface_pattern:
        checks.regexp(at.field("interfacePattern"), template.interface_pattern)
    checks.label_map(at.field("labels"), template.labels)
    checks.annotation_map(at.field("annotations"), template.annotations)
    checks.selector(at.field("nodeSelector"), template.node_selector)
