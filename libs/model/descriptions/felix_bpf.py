"""FelixConfiguration's fields of the eBPF dataplane, by Python name."""

from __future__ import annotations

BPF: dict[str, str] = {
    "bpf_enabled": "Whether the eBPF dataplane is used. Default: false.",
    "bpf_overlay_host_source_ip": "Source address of what the host sends through an overlay. Default: TunnelAddress.",
    "bpf_disable_unprivileged": "Whether unprivileged users are kept from using eBPF. Default: true.",
    "bpf_jit_hardening": "Whether hardening of the eBPF compiler is relaxed where it costs much. Default: Auto.",
    "bpf_log_level": "What eBPF programs log. Default: Off.",
    "bpf_conntrack_log_level": "What the clean-up of tracked connections logs. Default: Off.",
    "bpf_conntrack_mode": "Where tracked connections are cleaned up. Default: Auto.",
    "bpf_conntrack_timeouts": "How long connections are remembered, by state.",
    "bpf_ip_frag_timeout": "How long fragments of a packet are remembered. Default: 0s.",
    "bpf_log_filters": "Filters (in pcap's language) by interface, for what bpfLogLevel Debug logs.",
    "bpf_ctlb_log_filter": "all: connect-time load balancing logs as bpfLogLevel says.",
    "bpf_data_iface_pattern": "Regular expression of the interfaces that lead to other hosts.",
    "bpf_l3_iface_pattern": "Regular expression of further interfaces without link-layer addresses.",
    "bpf_connect_time_load_balancing_enabled": "Older form of bpfConnectTimeLoadBalancing.",
    "bpf_connect_time_load_balancing": "Which connections of hosts and pods to services are balanced when they are "
    "opened. TCP is stored when absent.",
    "bpf_host_networked_nat_without_ctlb": "Whether hosts reach services without connect-time load balancing. Enabled "
    "is stored when absent.",
    "bpf_external_service_mode": "How packets for services come back from another node: Tunnel, through the node that "
    "they came in by; DSR, directly. Default: Tunnel.",
    "bpf_dsr_optout_cidrs": "Networks of clients that DSR is not used for.",
    "bpf_ext_to_service_connmark": "Connection mark of traffic from outside to services. Default: 0.",
    "bpf_kube_proxy_iptables_cleanup_enabled": "Whether rules of kube-proxy are removed. Default: true.",
    "bpf_kube_proxy_min_sync_period": "Least time between two updates of services. Default: 1s.",
    "bpf_kube_proxy_healthz_port": "Port of the health report of services; 0 for none. Default: 10256.",
    "bpf_psnat_ports": "Source ports for connections whose own are taken: a number or a range. Default: 20000:29999.",
    "bpf_map_size_nat_frontend": "Entries for services' addresses and ports. Default: 65536.",
    "bpf_map_size_nat_backend": "Entries for services' endpoints. Default: 262144.",
    "bpf_map_size_nat_affinity": "Entries for session affinity. Default: 65536.",
    "bpf_map_size_route": "Entries for routes. Default: 262144.",
    "bpf_map_size_conntrack": "Entries for connections. Default: 512000.",
    "bpf_map_size_per_cpu_conntrack": "Entries for connections for each CPU, instead of bpfMapSizeConntrack. "
    "Default: 0.",
    "bpf_map_size_conntrack_scaling": "What is done when the entries for connections run out. Default: DoubleIfFull.",
    "bpf_map_size_conntrack_cleanup_queue": "Entries for the clean-up of connections. Default: 100000.",
    "bpf_map_size_ip_sets": "Entries for IP sets. Default: 1048576.",
    "bpf_map_size_if_state": "Entries for interfaces. Default: 1000.",
    "bpf_host_conntrack_bypass": "Whether the kernel's connection tracking is bypassed. Default: false.",
    "bpf_ip_fragment_reassembly_enabled": "Whether fragments are put together before policy. Default: true.",
    "bpf_enforce_rpf": "Check of source addresses against routes. Default: Loose.",
    "bpf_policy_debug_enabled": "Whether what policy programs are made of is kept for people to read. Default: true.",
    "bpf_force_track_packets_from_ifaces": "Interfaces whose packets go through the kernel's connection tracking; + at "
    "the end stands for anything. Default: docker+.",
    "bpf_disable_gro_for_ifaces": "Regular expression of interfaces on which generic receive offload is switched off.",
    "bpf_exclude_cidrs_from_nat": "Networks whose addresses are no services for eBPF, such as a node-local DNS cache.",
    "bpf_export_buffer_size_mb": "Size in MB of the buffer by which eBPF tells of flows. Default: 1.",
    "bpf_redirect_to_peer": "Whether packets are handed straight into the pod's namespace. Default: Enabled.",
    "bpf_attach_type": "How programs are attached to interfaces. Default: Netkit.",
    "bpf_profiling": "Whether programs count how long they take. Default: Disabled.",
    "bpf_maglev_max_endpoints_per_service": "Most endpoints of a service with consistent hashing. Default: 100.",
    "bpf_maglev_max_services": "Most services with consistent hashing. Default: 100.",
}
