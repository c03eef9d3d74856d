"""Rules of FelixConfiguration.

Most are one of a few shapes, so they are tables: choices, ranges, durations, patterns. Where Felix itself writes its
choices in one case, any case is taken, as Felix does.
"""

from __future__ import annotations

import re

import msgspec

from libs.model.base import json_name
from libs.model.felixconfig import (
    FelixConfiguration,
    FelixConfigurationSpec,
    HealthTimeoutOverride,
    ProtoPort,
    RouteTableRange,
)
from libs.model.metrics import CLIENT_AUTHS
from libs.model.problems import At
from libs.model.scalars import Duration, Port
from libs.model.validation import checks

_ON_OFF = ("Enabled", "Disabled")
_LOG_LEVELS = ("Trace", "Debug", "Info", "Warning", "Error", "Fatal")
_ALLOW = ("Accept", "Return")
_DENY = ("Drop", "Reject")

# Choices that Felix compares without case.
CHOICES_ANY_CASE: dict[str, tuple[str, ...]] = {
    "iptables_backend": ("Legacy", "NFT", "Auto"),
    "chain_insert_mode": ("Insert", "Append"),
    "default_endpoint_to_host_action": ("Drop", "Return", "Accept"),
    "iptables_filter_allow_action": _ALLOW,
    "iptables_mangle_allow_action": _ALLOW,
    "nftables_filter_allow_action": _ALLOW,
    "nftables_mangle_allow_action": _ALLOW,
    "iptables_filter_deny_action": _DENY,
    "nftables_filter_deny_action": _DENY,
    "log_severity_file": _LOG_LEVELS,
    "log_severity_screen": _LOG_LEVELS,
    "log_severity_sys": _LOG_LEVELS,
    "bpf_log_level": ("Off", "Info", "Debug"),
    "bpf_conntrack_log_level": ("Off", "Debug"),
    "bpf_external_service_mode": ("Tunnel", "DSR"),
    "bpf_ctlb_log_filter": ("all",),
}

CHOICES: dict[str, tuple[str, ...]] = {
    "prometheus_metrics_client_auth": CLIENT_AUTHS,
    "nat_outgoing_exclusions": ("IPPoolsOnly", "IPPoolsAndHostIPs"),
    "program_cluster_routes": ("Enabled", "Disabled", "EnabledIPIPOnly", "EnabledNoEncapOnly"),
    "ip_forwarding": _ON_OFF,
    "nftables_mode": ("Enabled", "Disabled", "Auto"),
    "nftables_flow_table_offload": ("All", "Disabled"),
    "bpf_overlay_host_source_ip": ("TunnelAddress", "HostAddress"),
    "bpf_jit_hardening": ("Auto", "Strict"),
    "bpf_conntrack_mode": ("Auto", "Userspace", "BPFProgram"),
    "bpf_connect_time_load_balancing": ("TCP", "Enabled", "Disabled"),
    "bpf_host_networked_nat_without_ctlb": _ON_OFF,
    "bpf_map_size_conntrack_scaling": ("Disabled", "DoubleIfFull"),
    "bpf_enforce_rpf": ("Disabled", "Strict", "Loose"),
    "istio_ambient_mode": _ON_OFF,
    "flow_logs_policy_evaluation_mode": ("None", "Continuous"),
    "flow_logs_local_reporter": _ON_OFF,
    "bpf_redirect_to_peer": ("Disabled", "Enabled", "L2Only"),
    "bpf_attach_type": ("Netkit", "TCX", "TC"),
    "bpf_profiling": _ON_OFF,
    "route_source": ("WorkloadIPs", "CalicoIPAM"),
    "aws_src_dst_check": ("DoNothing", "Enable", "Disable"),
    "service_loop_prevention": ("Drop", "Reject", "Disabled"),
    "workload_source_spoofing": ("Disabled", "Any"),
    "floating_ips": _ON_OFF,
    "local_subnet_l2_reachability": ("Disabled", "PodsAndLoadBalancers"),
    "windows_manage_firewall_rules": _ON_OFF,
}

_UINT32 = (0, 2**32 - 1)
_PORT = (0, 65535)

RANGES: dict[str, tuple[int, int]] = {
    "metadata_port": _PORT,
    "health_port": _PORT,
    "prometheus_metrics_port": _PORT,
    "debug_port": _PORT,
    "bpf_kube_proxy_healthz_port": _PORT,
    "wireguard_listening_port": (1, 65535),
    "wireguard_listening_port_v6": (1, 65535),
    "wireguard_routing_rule_priority": (1, 32765),
    "log_action_rate_limit_burst": (0, 9999),
    "iptables_mark_mask": _UINT32,
    "nftables_mark_mask": _UINT32,
    "bpf_ext_to_service_connmark": _UINT32,
    "bpf_map_size_conntrack_cleanup_queue": (1, 2**31 - 1),
    "ipv4_normal_route_priority": (1, checks.MAX_ROUTE_PRIORITY),
    "ipv4_elevated_route_priority": (1, checks.MAX_ROUTE_PRIORITY),
    "ipv6_normal_route_priority": (1, checks.MAX_ROUTE_PRIORITY),
    "ipv6_elevated_route_priority": (1, checks.MAX_ROUTE_PRIORITY),
    "go_gc_threshold": (-1, 2**31 - 1),
    "go_memory_limit_mb": (-1, 2**31 - 1),
    "go_max_procs": (-1, 2**31 - 1),
    "bpf_maglev_max_endpoints_per_service": (1, 3000),
    "bpf_maglev_max_services": (1, 3000),
}

PATTERNS = (
    "log_debug_filename_regex",
    "nftables_flow_table_data_iface_pattern",
    "bpf_data_iface_pattern",
    "bpf_l3_iface_pattern",
    "bpf_disable_gro_for_ifaces",
    "mtu_iface_pattern",
)
ADDRESSES = {
    "nat_outgoing_address": 4,
    "device_route_source_address": 4,
    "device_route_source_address_ipv6": 6,
}
DURATIONS = tuple(
    info.name
    for info in msgspec.structs.fields(FelixConfigurationSpec)
    if Duration in getattr(info.type, "__args__", ())
)

MAX_NODE_PORT_RANGES = 7
MAX_REGION_CHARS = 46
MAX_TABLE = 250
MAX_TABLES = 65535

_REGION = re.compile(checks.LABEL)
_HOST = re.compile(r"[a-zA-Z0-9:._+-]{1,64}")
_INTERFACE_FILTER = re.compile(r"[a-zA-Z0-9:._+-]{1,15}")
_HEALTH_NAME = re.compile(r"[a-zA-Z0-9_ -]+")
_RATE = re.compile(r"[1-9][0-9]{0,3}/(second|minute|hour|day)")


def check_felix(at: At, resource: FelixConfiguration) -> None:
    check_felix_spec(at.field("spec"), resource.spec)
    name = resource.metadata.name
    if resource.spec.node_selector and (name == "default" or name.startswith("node.")):
        at.field("spec", "nodeSelector").refuse(f"must not be set on {name!r}, whose name says which nodes it is for")


def check_felix_spec(at: At, spec: FelixConfigurationSpec) -> None:
    for name, choices in CHOICES.items():
        checks.optional_one_of(at.field(json_name(name)), getattr(spec, name), choices)
    for name, choices in CHOICES_ANY_CASE.items():
        checks.optional_one_of(at.field(json_name(name)), getattr(spec, name), choices, any_case=True)
    for name, (low, high) in RANGES.items():
        checks.within(at.field(json_name(name)), getattr(spec, name), low, high)
    for name in DURATIONS:
        if (value := getattr(spec, name)) is not None:
            checks.duration(at.field(json_name(name)), value)
    for name in PATTERNS:
        if value := getattr(spec, name):
            checks.regexp(at.field(json_name(name)), value)
    for name, version in ADDRESSES.items():
        if value := getattr(spec, name):
            checks.ip(at.field(json_name(name)), value, version)
    checks.selector(at.field("nodeSelector"), spec.node_selector)
    _text(at, spec)
    _ports(at, spec)
    _networks(at, spec)
    _route_tables(at, spec)
    for index, override in enumerate(spec.health_timeout_overrides):
        check_health_override(at.field("healthTimeoutOverrides").item(index), override)
    if spec.bpf_conntrack_timeouts is not None:
        for info in msgspec.structs.fields(spec.bpf_conntrack_timeouts):
            timeout = getattr(spec.bpf_conntrack_timeouts, info.name)
            if timeout is not None and timeout != "Auto":
                checks.duration(at.field("bpfConntrackTimeouts", info.encode_name), timeout)
    if spec.istio_dscp_mark is not None:
        checks.dscp(at.field("istioDSCPMark"), spec.istio_dscp_mark)


def _text(at: At, spec: FelixConfigurationSpec) -> None:
    region = spec.openstack_region
    if region and (len(region) > MAX_REGION_CHARS or not _REGION.fullmatch(region)):
        at.field("openstackRegion").refuse(f"must be a DNS label of at most {MAX_REGION_CHARS} characters", region)
    for name, text in (
        ("featureDetectOverride", spec.feature_detect_override),
        ("featureGates", spec.feature_gates),
    ):
        # Empty entries pass: a comma may end the list.
        if any(item and "=" not in item for item in text.split(",")):
            at.field(name).refuse("must be a list of key=value with commas between", text)
    if spec.log_action_rate_limit and not _RATE.fullmatch(spec.log_action_rate_limit):
        at.field("logActionRateLimit").refuse(
            "must be N/second, N/minute, N/hour or N/day with N from 1 to 9999", spec.log_action_rate_limit
        )
    if spec.prometheus_metrics_host and not _HOST.fullmatch(spec.prometheus_metrics_host):
        at.field("prometheusMetricsHost").refuse("must be a host name or address", spec.prometheus_metrics_host)
    outgoing = spec.iptables_nat_outgoing_interface_filter
    if outgoing and not _INTERFACE_FILTER.fullmatch(outgoing):
        at.field("iptablesNATOutgoingInterfaceFilter").refuse(
            "must be 1 to 15 letters, digits, ':', '.', '_', '+' or '-'", outgoing
        )
    for name, text in (
        ("wireguardInterfaceName", spec.wireguard_interface_name),
        ("wireguardInterfaceNameV6", spec.wireguard_interface_name_v6),
    ):
        if text:
            checks.interface(at.field(name), text)
    for index, text in enumerate(spec.bpf_force_track_packets_from_ifaces or ()):
        if not _INTERFACE_FILTER.fullmatch(text):
            at.field("bpfForceTrackPacketsFromIfaces").item(index).refuse(
                "must be an interface name; a '+' at its end stands for anything", text
            )


def _ports(at: At, spec: FelixConfigurationSpec) -> None:
    for name, failsafe in (
        ("failsafeInboundHostPorts", spec.failsafe_inbound_host_ports),
        ("failsafeOutboundHostPorts", spec.failsafe_outbound_host_ports),
    ):
        for index, proto_port in enumerate(failsafe or ()):
            check_proto_port(at.field(name).item(index), proto_port)
    node_ports = spec.kube_node_port_ranges or []
    checks.at_most(at.field("kubeNodePortRanges"), node_ports, MAX_NODE_PORT_RANGES)
    for index, node_port in enumerate(node_ports):
        _numeric_port(at.field("kubeNodePortRanges").item(index), node_port)
    for name, port in (("natPortRange", spec.nat_port_range), ("bpfPSNATPorts", spec.bpf_psnat_ports)):
        if port is not None:
            _numeric_port(at.field(name), port)


def _numeric_port(at: At, port: Port) -> None:
    if port.is_name:
        at.refuse("must be a port number or range, not a name", str(port))
    checks.port(at, port)


def check_proto_port(at: At, value: ProtoPort) -> None:
    checks.protocol_with_ports(at.field("protocol"), value.protocol)
    checks.within(at.field("port"), value.port, 0, 65535)
    if value.net:
        checks.any_net(at.field("net"), value.net)


def _networks(at: At, spec: FelixConfigurationSpec) -> None:
    for name, texts, version in (
        ("externalNodesList", spec.external_nodes_list, 4),
        ("bpfDSROptoutCIDRs", spec.bpf_dsr_optout_cidrs, None),
        ("bpfExcludeCIDRsFromNAT", spec.bpf_exclude_cidrs_from_nat, None),
    ):
        for index, text in enumerate(texts or ()):
            checks.any_net(at.field(name).item(index), text, version)


def _route_tables(at: At, spec: FelixConfigurationSpec) -> None:
    if spec.route_table_range is not None:
        place = at.field("routeTableRange")
        _table_range(place, spec.route_table_range)
        if spec.route_table_range.max > MAX_TABLE:
            place.field("max").refuse(f"must be at most {MAX_TABLE}", spec.route_table_range.max)
        if spec.route_table_ranges is not None:
            at.field("routeTableRanges").refuse("routeTableRange and routeTableRanges cannot both be set")
    total = 0
    for index, tables in enumerate(spec.route_table_ranges or ()):
        place = at.field("routeTableRanges").item(index)
        _table_range(place, tables)
        if tables.max > _UINT32[1]:
            place.field("max").refuse(f"must be at most {_UINT32[1]}", tables.max)
        total += max(0, tables.max - tables.min + 1)
    if total > MAX_TABLES:
        at.field("routeTableRanges").refuse(f"must be at most {MAX_TABLES} tables together, not {total}")


def _table_range(at: At, tables: RouteTableRange) -> None:
    if tables.min < 1:
        at.field("min").refuse("must be at least 1", tables.min)
    if tables.min > tables.max:
        at.field("max").refuse("must not be less than min", tables.max)


def check_health_override(at: At, override: HealthTimeoutOverride) -> None:
    if not _HEALTH_NAME.fullmatch(override.name):
        at.field("name").refuse("must be letters, digits, spaces, '_' or '-'", override.name)
    if override.timeout.nanoseconds < 0:
        at.field("timeout").refuse("must not be negative", str(override.timeout))
