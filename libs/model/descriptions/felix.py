"""FelixConfiguration. Choices and limits come from the rules; the defaults that texts name are Felix's own, which it
uses when nobody sets the field (facts/datamodel.md section 12).
"""

from __future__ import annotations

from libs.model import felixconfig as m
from libs.model.descriptions.felix_bpf import BPF
from libs.model.descriptions.notes import About, Abouts, Note
from libs.model.validation import checks
from libs.model.validation import felix as rules

_REFRESH = "How often {} is compared with what it should be; 0: never."

_TEXTS: dict[str, str] = {
    # Which nodes, and Felix itself.
    "node_selector": "Nodes that the configuration is for, by their labels. Needed unless the name is default or "
    "node.<name>, and only then allowed. Of several that select a node the oldest counts.",
    "use_internal_dataplane_driver": "False runs dataplaneDriver instead of the driver within Felix. Default: true.",
    "dataplane_driver": "Program that is run as dataplane driver. Default: calico-iptables-plugin.",
    "dataplane_watchdog_timeout": "How long the dataplane may be silent before Felix reports itself unhealthy. "
    "Default: 90s.",
    "ipv6_support": "Whether IPv6 is programmed. Default: true.",
    "feature_detect_override": "Kernel features that are taken as present or absent whatever is detected: "
    "key=true,key=false.",
    "feature_gates": "Experimental features by name: key=value,key=value.",
    "netlink_timeout": "How long the kernel may take to answer over netlink. Default: 10s.",
    "go_gc_threshold": "Garbage collection threshold of Felix in percent, -1 for none. Default: 40.",
    "go_memory_limit_mb": "Soft memory limit of Felix in MB, -1 for none. Default: -1.",
    "go_max_procs": "How many CPUs Felix uses at once, -1 for all. Default: -1.",
    # Refresh intervals.
    "route_refresh_interval": _REFRESH.format("the kernel's routing table") + " Default: 90s.",
    "interface_refresh_interval": _REFRESH.format("the list of interfaces") + " Default: 90s.",
    "iptables_refresh_interval": _REFRESH.format("the iptables ruleset") + " Default: 180s.",
    "ipsets_refresh_interval": _REFRESH.format("the content of IP sets") + " Default: 90s.",
    "xdp_refresh_interval": _REFRESH.format("the state of XDP") + " Default: 90s.",
    "nftables_refresh_interval": _REFRESH.format("the nftables ruleset") + " Default: 180s.",
    # Workloads and their host.
    "metadata_addr": "Address of the metadata service for virtual machines; None for none. Default: 127.0.0.1.",
    "metadata_port": "Port of the metadata service. Default: 8775.",
    "openstack_region": "OpenStack region of this host, a DNS label, when several share one datastore.",
    "interface_prefix": "Interfaces of workloads begin with one of these prefixes, given with commas between. "
    "Default: cali.",
    "interface_exclude": "Interfaces that are left alone: names, or regular expressions between slashes, with commas "
    "between. Default: kube-ipvs0.",
    "default_endpoint_to_host_action": "What happens to packets from a workload to its own host once its egress policy "
    "allows them. Default: Drop.",
    "workload_source_spoofing": "Any lets workloads use source addresses that their annotation allows. "
    "Default: Disabled.",
    "allow_vxlan_packets_from_workloads": "Whether workloads may send VXLAN packets. Default: false.",
    "allow_ipip_packets_from_workloads": "Whether workloads may send IP in IP packets. Default: false.",
    "sidecar_acceleration_enabled": "Experimental acceleration of sidecars. Default: false.",
    "floating_ips": "Whether annotations may give workloads floating addresses. Default: Disabled.",
    "policy_sync_path_prefix": "Directory of the sockets by which programs beside workloads learn their policy.",
    "mtu_iface_pattern": "Regular expression of the interfaces whose smallest MTU is the host's.",
    "require_mtu_file": "Whether Felix stops when it cannot write the file with the MTU. Default: false.",
    "cgroup_v2_path": "Where the cgroup v2 hierarchy is mounted.",
    "istio_ambient_mode": "Whether pods of Istio's ambient mesh are supported. Default: Disabled.",
    "istio_dscp_mark": "DSCP mark of the mesh's packets: a number or a name such as AF11. Default: 23.",
    "windows_manage_firewall_rules": "Whether Felix manages the firewall of Windows hosts. Default: Disabled.",
    # Rules: iptables and nftables.
    "iptables_backend": "Which iptables is used. Default: Auto.",
    "iptables_post_write_check_interval": "When the ruleset is read back after a write, to find the changes of others. "
    "Default: 5s.",
    "iptables_lock_probe_interval": "How often a held iptables lock is tried again. Default: 50ms.",
    "chain_insert_mode": "Whether Felix's rules go before those of others or behind them. Default: Insert.",
    "iptables_filter_allow_action": "What happens to packets that policy allows: Accept them at once, or Return them "
    "to the host's own rules. Default: Accept.",
    "iptables_mangle_allow_action": "The same for packets that pre-DNAT policy allows. Default: Accept.",
    "iptables_filter_deny_action": "What happens to packets that policy denies. Default: Drop.",
    "iptables_mark_mask": "Bits of the packet mark that Felix may use. Default: 0xffff0000.",
    "iptables_nat_outgoing_interface_filter": "Only traffic that leaves by these interfaces is masqueraded; + at the "
    "end stands for anything.",
    "nftables_mode": "Whether rules are written as nftables instead of iptables. Default: Auto.",
    "nftables_flow_table_offload": "Whether established connections bypass the rules by a flow table.",
    "nftables_flow_table_data_iface_pattern": "Regular expression of the interfaces that the flow table covers.",
    "nftables_filter_allow_action": "What happens to packets that policy allows: Accept, or Return. Default: Accept.",
    "nftables_mangle_allow_action": "The same for packets that pre-DNAT policy allows. Default: Accept.",
    "nftables_filter_deny_action": "What happens to packets that policy denies. Default: Drop.",
    "nftables_mark_mask": "Bits of the packet mark that Felix may use. Default: 0xffff0000.",
    "max_ipset_size": "Most entries that an IP set may have. Default: 1048576.",
    "disable_conntrack_invalid_check": "Packets that belong to no connection are not dropped before policy. "
    "Default: false.",
    "xdp_enabled": "Whether untracked deny rules run in XDP where they can. Default: true.",
    "generic_xdp_enabled": "Whether XDP is used on devices without support of their own, which is slow. "
    "Default: false.",
    "service_loop_prevention": "What happens to packets to service addresses that nobody serves. Default: Drop.",
    "failsafe_inbound_host_ports": "Ports of host endpoints that no policy can close; an empty list for none. "
    "Default: tcp:22, udp:68, tcp:179, tcp:2379, tcp:2380, tcp:5473, tcp:6443, tcp:6666, tcp:6667.",
    "failsafe_outbound_host_ports": "Ports that hosts can always reach; an empty list for none. Default: udp:53, "
    "udp:67, tcp:179, tcp:2379, tcp:2380, tcp:5473, tcp:6443, tcp:6666, tcp:6667.",
    "kube_node_port_ranges": "Ports of Kubernetes services on nodes: numbers or ranges. Default: 30000:32767.",
    "nat_port_range": "Source ports of masqueraded connections: a number or a range.",
    "nat_outgoing_address": "IPv4 source address of masqueraded connections, instead of the interface's.",
    "nat_outgoing_exclusions": "Destinations that are not masqueraded: pools, or the addresses of hosts as well. "
    "Default: IPPoolsOnly.",
    # Logs.
    "log_prefix": "Beginning of the log lines of Log rules; %t is the tier, %k the kind, %n the name and %p the "
    "namespace and name of the policy. Default: calico-packet.",
    "log_action_rate_limit": "Most log lines of each Log rule, as 10/minute; no limit when absent.",
    "log_action_rate_limit_burst": "How many lines pass before logActionRateLimit bites. Default: 5.",
    "log_file_path": "Felix's log file; none for none. Default: /var/log/calico/felix.log.",
    "log_severity_file": "Least severity of what goes to the log file. Default: Info.",
    "log_severity_screen": "Least severity of what goes to standard output. Default: Info.",
    "log_severity_sys": "Least severity of what goes to syslog. Default: Info.",
    "log_debug_filename_regex": "Regular expression of source files whose debug lines are kept.",
    # Overlays and routes.
    "ipip_enabled": "Whether IP in IP devices are made, whatever the pools say; when absent, if a pool needs them.",
    "ipip_mtu": "MTU of the IP in IP device; 0: found by itself. Default: 0.",
    "vxlan_enabled": "Whether VXLAN devices are made, whatever the pools say; when absent, if a pool needs them.",
    "vxlan_mtu": "MTU of the IPv4 VXLAN device; 0: found by itself. Default: 0.",
    "vxlan_mtu_v6": "MTU of the IPv6 VXLAN device; 0: found by itself. Default: 0.",
    "vxlan_port": "UDP port of VXLAN. Default: 4789.",
    "vxlan_vni": "Network identifier of VXLAN. Default: 4096.",
    "device_route_source_address": "IPv4 source address of what the host sends on Felix's routes.",
    "device_route_source_address_ipv6": "IPv6 source address of what the host sends on Felix's routes.",
    "device_route_protocol": "Protocol number that marks Felix's routes in the kernel. Default: 3.",
    "remove_external_routes": "Whether routes of others through workloads' interfaces are removed. Default: true.",
    "program_cluster_routes": "Which routes to other nodes' workloads Felix writes to the kernel; BGPConfiguration has "
    "the counterpart. Default: EnabledIPIPOnly.",
    "ip_forwarding": "Whether Felix switches IP forwarding on. Default: Enabled.",
    "external_nodes_list": "Networks (IPv4) of hosts that may send overlay packets without being nodes.",
    "route_source": "Where routes between nodes come from: address management, or the workloads themselves. "
    "Default: CalicoIPAM.",
    "route_table_ranges": "Kernel routing tables that Felix may use. Excludes routeTableRange.",
    "route_table_range": "Older form of routeTableRanges: one range, up to table 250.",
    "route_sync_disabled": "Whether Felix leaves routes to others. Default: false.",
    "ipv4_normal_route_priority": "Metric of IPv4 routes. Default: 1024.",
    "ipv4_elevated_route_priority": "Metric of IPv4 routes to a virtual machine that moves here. Default: 512.",
    "ipv6_normal_route_priority": "Metric of IPv6 routes. Default: 1024.",
    "ipv6_elevated_route_priority": "Metric of IPv6 routes to a virtual machine that moves here. Default: 512.",
    "live_migration_route_convergence_time": "How long both routes of a moved virtual machine are kept. Default: 30s.",
    "local_subnet_l2_reachability": "Whether the host answers ARP and neighbour solicitations for workloads and load "
    "balancers in its own subnet. Default: Disabled.",
    "local_subnet_l2_reachability_refresh_interval": "How often neighbours are told of such addresses. Default: 120s.",
    "aws_src_dst_check": "What is done with AWS' check of source and destination on the host's interfaces. "
    "Default: DoNothing.",
    # WireGuard.
    "wireguard_enabled": "Whether IPv4 traffic between nodes is encrypted. Default: false.",
    "wireguard_enabled_v6": "Whether IPv6 traffic between nodes is encrypted. Default: false.",
    "wireguard_threading_enabled": "Whether the device works in threads of its own. Default: false.",
    "wireguard_listening_port": "UDP port of WireGuard over IPv4. Default: 51820.",
    "wireguard_listening_port_v6": "UDP port of WireGuard over IPv6. Default: 51821.",
    "wireguard_routing_rule_priority": "Priority of the rule that leads to WireGuard's routes. Default: 99.",
    "wireguard_interface_name": "Name of the IPv4 device. Default: wireguard.cali.",
    "wireguard_interface_name_v6": "Name of the IPv6 device. Default: wg-v6.cali.",
    "wireguard_mtu": "MTU of the IPv4 device; 0: found by itself. Default: 0.",
    "wireguard_mtu_v6": "MTU of the IPv6 device; 0: found by itself. Default: 0.",
    "wireguard_host_encryption_enabled": "Whether the hosts' own traffic is encrypted too. Default: false.",
    "wireguard_keep_alive": "How often an idle peer is sent a packet; 0: never. Default: 0s.",
    # Reports, health and metrics.
    "reporting_interval": "How often Felix reports that it is alive; 0: never. Default: 30s.",
    "reporting_ttl": "How long such a report holds. Default: 90s.",
    "endpoint_reporting_enabled": "Whether the status of endpoints is written to the datastore. Default: false.",
    "endpoint_reporting_delay": "How long status changes are gathered before they are written. Default: 1s.",
    "endpoint_status_path_prefix": "Directory in which a file stands for each endpoint that is up; none for none. "
    "Default: /var/run/calico.",
    "usage_reporting_enabled": "Whether Felix sends anonymous figures to the project. Default: true.",
    "usage_reporting_initial_delay": "How long after its start the first figures are sent. Default: 300s.",
    "usage_reporting_interval": "How often figures are sent. Default: 86400s.",
    "health_enabled": "Whether health reports are served. Default: false.",
    "health_host": "Address of health reports. Default: localhost.",
    "health_port": "Port of health reports. Default: 9099.",
    "health_timeout_overrides": "Other deadlines for single components of Felix.",
    "prometheus_metrics_enabled": "Whether metrics are served. Default: false.",
    "prometheus_metrics_host": "Address of metrics.",
    "prometheus_metrics_port": "Port of metrics. Default: 9091.",
    "prometheus_go_metrics_enabled": "Whether metrics of the runtime are among them. Default: true.",
    "prometheus_process_metrics_enabled": "Whether metrics of the process are among them. Default: true.",
    "prometheus_wire_guard_metrics_enabled": "Whether metrics of WireGuard are among them. Default: true.",
    "prometheus_metrics_ca_file": "CA that certificates of readers of metrics are checked against.",
    "prometheus_metrics_cert_file": "Certificate of the metrics server; with a key, metrics are served by TLS.",
    "prometheus_metrics_key_file": "Key of the metrics server.",
    "prometheus_metrics_client_auth": "Whether readers of metrics need a certificate. Default: NoClientCert.",
    "flow_logs_policy_evaluation_mode": "Whether flows are judged again when policy changes. Default: Continuous.",
    "flow_logs_flush_interval": "How often flow logs are sent. Default: 300s.",
    "flow_logs_collector_debug_trace": "Whether the collector of flow logs writes debug lines. Default: false.",
    "flow_logs_goldmane_server": "Address that flow logs are sent to.",
    "flow_logs_local_reporter": "Whether flow logs are also served on a local socket. Default: Disabled.",
    # For debugging.
    "debug_memory_profile_path": "File for a memory profile.",
    "debug_disable_log_dropping": "Whether log lines wait instead of being dropped under load. Default: false.",
    "debug_simulate_calc_graph_hang_after": "For tests: the calculation hangs after this time; 0: never.",
    "debug_simulate_dataplane_hang_after": "For tests: the dataplane hangs after this time; 0: never.",
    "debug_simulate_dataplane_apply_delay": "For tests: every write to the dataplane takes this longer.",
    "debug_host": "Address of profiling data. Default: localhost.",
    "debug_port": "Port of profiling data; none when absent.",
}


def _note(name: str, text: str) -> Note:
    """The text and what the rules say of the field."""
    low, high = rules.RANGES.get(name, (None, None))
    any_case = name in rules.CHOICES_ANY_CASE
    choices = rules.CHOICES_ANY_CASE[name] if any_case else rules.CHOICES.get(name, ())
    return Note(
        text, choices, any_case, low, high, longest=_LONGEST.get(name), most=_MOST.get(name),
        default=_STORED.get(name),
    )  # fmt: skip


_LONGEST = {"node_selector": checks.MAX_SELECTOR_CHARS, "openstack_region": rules.MAX_REGION_CHARS}
_MOST = {"kube_node_port_ranges": rules.MAX_NODE_PORT_RANGES}
# Stored when absent; all others are left to Felix.
_STORED = {
    "nftables_mode": "Auto",
    "nftables_flow_table_offload": "Disabled",
    "floating_ips": "Disabled",
}

_TIMEOUT = "How long a connection is remembered in this state: a duration, or Auto for the kernel's own. Default: {}."

FELIX: Abouts = {
    m.FelixConfiguration: About(
        "Settings of Felix: of all nodes when named default, of one when named node.<name>, else of those that "
        "nodeSelector matches. The closer one wins, field by field.",
        {},
    ),
    m.FelixConfigurationSpec: About(
        "Settings of Felix. What is absent is left to the next wider configuration.",
        {name: _note(name, text) for name, text in (_TEXTS | BPF).items()},
    ),
    m.ProtoPort: About(
        "A port that stays open.",
        {
            "protocol": Note("TCP, UDP or SCTP, or its number.", required=True),
            "port": Note("The port's number.", low=0, high=65535),
            "net": Note("Only for addresses in this network; for all when absent."),
        },
    ),
    m.HealthTimeoutOverride: About(
        "Another deadline for one component of Felix.",
        {
            "name": Note("The component, as health reports call it.", required=True),
            "timeout": Note("How long it may be silent; 0 switches its watchdog off."),
        },
    ),
    m.RouteTableRange: About(
        "Kernel routing tables, both ends included.",
        {"min": Note("First table.", low=1, required=True), "max": Note("Last table.", required=True)},
    ),
    m.BPFConntrackTimeouts: About(
        "How long eBPF remembers connections.",
        {
            "creation_grace_period": Note(_TIMEOUT.format("10s")),
            "tcp_syn_sent": Note(_TIMEOUT.format("20s")),
            "tcp_established": Note(_TIMEOUT.format("1h")),
            "tcp_fins_seen": Note(_TIMEOUT.format("Auto")),
            "tcp_reset_seen": Note(_TIMEOUT.format("40s")),
            "udp_timeout": Note(_TIMEOUT.format("60s")),
            "generic_timeout": Note(_TIMEOUT.format("10m")),
            "icmp_timeout": Note(_TIMEOUT.format("5s")),
        },
    ),
}
