"""BGP as configured, and the status that nodes report of it."""

from __future__ import annotations

from libs.model import bgp as m
from libs.model.descriptions.notes import About, Abouts, Note
from libs.model.validation import bgp as rules
from libs.model.validation import checks

_ON_OFF = ("Enabled", "Disabled")
_COMMUNITY = "aa:nn (two numbers of 16 bits) or, as a large community, aa:nn:mm (three of 32 bits)"
_ONLY_DEFAULT = "Only in the configuration named default."
_DAEMON = "What was observed of the BGP daemon for IPv{}."

BGP: Abouts = {
    m.BGPConfiguration: About(
        "Settings of BGP: of the cluster when named default, of one node when named node.<name>.", {}
    ),
    m.BGPConfigurationSpec: About(
        "What nodes tell each other and others by BGP.",
        {
            "log_severity_screen": Note(
                "Least severity of what the BGP daemon logs.", choices=rules.LOG_LEVELS, any_case=True, default="Info"
            ),
            "node_to_node_mesh_enabled": Note(
                f"All nodes peer with each other. True when absent. {_ONLY_DEFAULT}"
            ),
            "as_number": Note(
                "AS number of nodes that have none of their own: a number or, dotted, \"1.10\". 64512 when absent. "
                f"{_ONLY_DEFAULT}"
            ),
            "service_load_balancer_ips": Note(
                f"Networks of load balancers' addresses that are told to BGP peers. {_ONLY_DEFAULT}"
            ),
            "service_external_ips": Note(
                f"Networks of services' external addresses that are told to BGP peers. {_ONLY_DEFAULT}"
            ),
            "service_cluster_ips": Note(
                f"Networks of services' cluster addresses that are told to BGP peers. {_ONLY_DEFAULT}"
            ),
            "service_load_balancer_aggregation": Note(
                "Enabled: peers are told whole networks of load balancers. Disabled: single addresses.",
                choices=_ON_OFF, default="Enabled",
            ),
            "communities": Note(
                "Names for BGP communities, for use in prefixAdvertisements.", most=rules.MAX_COMMUNITIES
            ),
            "prefix_advertisements": Note(
                "Communities that routes of certain networks are told with.", most=rules.MAX_COMMUNITIES
            ),
            "listen_port": Note("TCP port that BGP listens on; 179 when absent.", low=1, high=65535),
            "node_mesh_password": Note(f"Password of the sessions between nodes. {_ONLY_DEFAULT}"),
            "node_mesh_max_restart_time": Note(
                "How long routes of a node stay in use after its session went, for sessions between nodes; 120s when "
                f"absent. {_ONLY_DEFAULT}"
            ),
            "bind_mode": Note(
                "Where BGP listens: None is all addresses, NodeIP the node's own.", choices=("None", "NodeIP")
            ),
            "ignored_interfaces": Note(
                "Interfaces that BGP leaves alone, by name; * stands for any characters, but not alone."
            ),
            "local_workload_peering_ipv4": Note("IPv4 address that workloads on a node peer with."),
            "local_workload_peering_ipv6": Note("IPv6 address that workloads on a node peer with."),
            "program_cluster_routes": Note(
                "Which routes to other nodes' workloads BGP writes to the kernel: all, none, or only those of IP in "
                "IP pools or of pools without encapsulation. EnabledNoEncapOnly when absent; Felix has the "
                "counterpart.",
                choices=rules.CLUSTER_ROUTES,
            ),
            "ipv4_normal_route_priority": Note(
                "Metric of IPv4 routes in the kernel; 1024 when absent.", low=1, high=checks.MAX_ROUTE_PRIORITY
            ),
            "ipv6_normal_route_priority": Note(
                "Metric of IPv6 routes in the kernel; 1024 when absent.", low=1, high=checks.MAX_ROUTE_PRIORITY
            ),
        },
    ),
    m.ServiceClusterIPBlock: About("One network.", {"cidr": Note("The network, as a CIDR without host bits.")}),
    m.ServiceExternalIPBlock: About("One network.", {"cidr": Note("The network, as a CIDR without host bits.")}),
    m.ServiceLoadBalancerIPBlock: About("One network.", {"cidr": Note("The network, as a CIDR without host bits.")}),
    m.Community: About(
        "A BGP community with a name.",
        {
            "name": Note("What prefixAdvertisements call it.", required=True),
            "value": Note(f"The community: {_COMMUNITY}.", required=True),
        },
    ),
    m.PrefixAdvertisement: About(
        "Communities of the routes of a network.",
        {
            "cidr": Note("The network, as a CIDR without host bits.", required=True),
            "communities": Note(
                f"Names of communities, or values: {_COMMUNITY}.", fewest=1, most=rules.MAX_ADVERTISED_COMMUNITIES,
                required=True,
            ),
        },
    ),
    m.BGPPassword: About("Where a password is kept.", {"secret_key_ref": Note("The secret and the key in it.")}),
    m.SecretKeySelector: About(
        "One key of a Kubernetes secret.",
        {
            "name": Note("Name of the secret."),
            "key": Note("The key in the secret whose value is meant.", required=True),
            "optional": Note("Whether the secret or the key may be missing."),
        },
    ),
    m.BGPPeer: About("Somebody whom nodes peer with by BGP.", {}),
    m.BGPPeerSpec: About(
        "Which nodes peer with whom, and how.",
        {
            "node": Note(
                "The one node that has this peer. With neither node nor nodeSelector, all have.",
                longest=checks.MAX_NAME_CHARS,
            ),
            "node_selector": Note(
                "Nodes that have this peer, by their labels; excludes node.", longest=checks.MAX_SELECTOR_CHARS
            ),
            "peer_ip": Note(
                "The peer's address, with a port if it is not 179: 192.0.2.1, 192.0.2.1:1179, [2001:db8::1]:1179.",
                longest=rules.MAX_PEER_IP_CHARS,
            ),
            "as_number": Note(
                "The peer's AS number: a number or, dotted, \"1.10\". Must be absent with peerSelector."
            ),
            "local_as_number": Note("AS number that the node shows this peer instead of its own."),
            "peer_selector": Note(
                "The peers are nodes, by their labels; excludes peerIP and asNumber.",
                longest=checks.MAX_SELECTOR_CHARS,
            ),
            "keep_original_next_hop": Note(
                "Routes are passed on with the next hop that they came with. Older form of nextHopMode Keep, and "
                "excludes it."
            ),
            "next_hop_mode": Note(
                "The next hop of what the peer is told: Auto (as BGP has it), Self (always the node), Keep (as it "
                "came).",
                choices=("Auto", "Self", "Keep"),
            ),
            "password": Note("Password of the sessions with this peer (TCP MD5)."),
            "source_address": Note(
                "Source address of the session: the node's, or None to leave it to routing. UseNodeIP when absent.",
                choices=("UseNodeIP", "None"),
            ),
            "max_restart_time": Note("How long the peer's routes stay in use after its session went; 120s if absent."),
            "keepalive_time": Note("How often keepalives are sent; a third of the hold time when absent."),
            "num_allowed_local_as_numbers": Note(
                "How often the node's own AS number may stand in the path of a route that is accepted.",
                low=0, high=2**31 - 1,
            ),
            "ttl_security": Note(
                "Packets of the peer must come from at most this many hops away (RFC 5082); 0 or absent: no check.",
                low=0, high=255,
            ),
            "reachable_by": Note(
                "Address of the gateway behind which the peer is, of the same IP version as peerIP."
            ),
            "filters": Note("Names of BGPFilters for the routes to and from this peer, in this order."),
            "local_workload_selector": Note(
                "The peers are workloads on the node itself, by their labels; needs asNumber, excludes peerIP and "
                "peerSelector.",
                longest=checks.MAX_SELECTOR_CHARS,
            ),
            "reverse_peering": Note(
                "Whether nodes that peerSelector selects peer back: Auto, or Manual when other BGPPeers say so. Auto "
                "when absent.",
                choices=("Auto", "Manual"),
            ),
        },
    ),
    m.BGPFilter: About("Rules for the routes that BGP peers tell and are told.", {}),
    m.BGPFilterSpec: About(
        "Rules by direction and IP version; the first that matches a route decides.",
        {
            "export_v4": Note("Rules for IPv4 routes that the peer is told."),
            "import_v4": Note("Rules for IPv4 routes that the peer tells."),
            "export_v6": Note("Rules for IPv6 routes that the peer is told."),
            "import_v6": Note("Rules for IPv6 routes that the peer tells."),
        },
    ),
    m.BGPFilterRule: About(
        "One rule for routes. Everything it names must match.",
        {
            "cidr": Note("Network that the route is compared with; needs matchOperator."),
            "prefix_length": Note("Limits of the route's prefix length; needs cidr."),
            "source": Note(
                "Matches routes by where they came from: RemotePeers is other nodes.", choices=("RemotePeers",)
            ),
            "interface": Note("Matches routes that leave by this interface; * stands for any characters.", longest=15),
            "match_operator": Note(
                "How the route must relate to cidr: the same network, another, within it, not within it.",
                choices=rules.MATCH_OPERATORS,
            ),
            "peer_type": Note("Matches routes of peers in other ASes, or in the same.", choices=("eBGP", "iBGP")),
            "communities": Note("Matches routes with a community."),
            "as_path_prefix": Note("Matches routes whose AS path begins with these numbers."),
            "priority": Note("Matches routes with this metric.", low=1, high=checks.MAX_ROUTE_PRIORITY),
            "action": Note("What happens to a route that matches.", choices=("Accept", "Reject"), required=True),
            "operations": Note("What is changed in an accepted route, in this order.", most=rules.MAX_OPERATIONS),
        },
    ),
    m.BGPFilterPrefixLength: About(
        "Limits of a prefix length, both included.",
        {
            "min": Note("Shortest prefix length.", low=0, high=128),
            "max": Note("Longest prefix length.", low=0, high=128),
        },
    ),
    m.BGPFilterCommunities: About(
        "A community that routes must have.",
        {"values": Note(f"Exactly one community: {_COMMUNITY}.", fewest=1, most=1, required=True)},
    ),
    m.BGPFilterOperation: About(
        "One change of a route; exactly one of the fields.",
        {
            "add_community": Note("Adds a community."),
            "prepend_as_path": Note("Puts AS numbers before the route's path."),
            "set_priority": Note("Sets the route's metric."),
        },
    ),
    m.BGPFilterAddCommunity: About(
        "Adds a community.", {"value": Note(f"The community: {_COMMUNITY}.", required=True)}
    ),
    m.BGPFilterPrependASPath: About(
        "Puts AS numbers before a route's path.",
        {"prefix": Note("The numbers; the first stands first.", fewest=1, most=rules.MAX_PREPENDED, required=True)},
    ),
    m.BGPFilterSetPriority: About(
        "Sets a route's metric.",
        {"value": Note("The metric.", low=1, high=checks.MAX_ROUTE_PRIORITY, required=True)},
    ),
    m.CalicoNodeStatus: About("A request for the status of a node, which the node answers in it.", {}),
    m.CalicoNodeStatusSpec: About(
        "Of which node, what and how often.",
        {
            "node": Note("The node's name.", required=True),
            "classes": Note(
                "What is reported: Agent (the BGP daemons), BGP (sessions), Routes.",
                choices=("Agent", "BGP", "Routes"), unique=True, fewest=1, required=True,
            ),
            "update_period_seconds": Note("How often the node writes its status; 0 stops it.", low=0, high=86400),
        },
    ),
    m.CalicoNodeStatusStatus: About(
        "What the node reports.",
        {
            "last_updated": Note("When the node wrote this, RFC 3339."),
            "agent": Note("State of the BGP daemons."),
            "bgp": Note("State of the BGP sessions."),
            "routes": Note("Routes that the BGP daemons know."),
        },
    ),
    m.CalicoNodeAgentStatus: About(
        "State of the BGP daemons of a node.",
        {"bird_v4": Note(_DAEMON.format(4)), "bird_v6": Note(_DAEMON.format(6))},
    ),
    m.BGPDaemonStatus: About(
        "State of a BGP daemon.",
        {
            "state": Note("Ready or NotReady."),
            "version": Note("Version of the daemon."),
            "router_id": Note("BGP identifier."),
            "last_boot_time": Note("When the daemon started, as it prints it."),
            "last_reconfiguration_time": Note("When its configuration last changed, as it prints it."),
        },
    ),
    m.CalicoNodeBGPStatus: About(
        "BGP sessions of a node.",
        {
            "number_established_v4": Note("IPv4 sessions that are established."),
            "number_not_established_v4": Note("IPv4 sessions that are not."),
            "number_established_v6": Note("IPv6 sessions that are established."),
            "number_not_established_v6": Note("IPv6 sessions that are not."),
            "peers_v4": Note("The IPv4 sessions."),
            "peers_v6": Note("The IPv6 sessions."),
        },
    ),
    m.CalicoNodePeer: About(
        "One BGP session.",
        {
            "peer_ip": Note("Address of the peer."),
            "type": Note("Why there is a session: NodeMesh, NodePeer or GlobalPeer."),
            "state": Note("Idle, Connect, Active, OpenSent, OpenConfirm, Established or Close."),
            "since": Note("When the state was entered, as the daemon prints it."),
        },
    ),
    m.CalicoNodeRouteStatus: About(
        "Routes of a node.", {"routes_v4": Note("The IPv4 routes."), "routes_v6": Note("The IPv6 routes.")}
    ),
    m.CalicoNodeRoute: About(
        "One route.",
        {
            "type": Note("FIB: packets are forwarded by it. RIB: it is only known."),
            "destination": Note("Where it leads."),
            "gateway": Note("The next hop."),
            "interface": Note("The interface."),
            "learned_from": Note("Where it came from."),
        },
    ),
    m.CalicoNodeRouteLearnedFrom: About(
        "Where a route came from.",
        {
            "source_type": Note("Kernel, Static, Direct, NodeMesh or BGPPeer."),
            "peer_ip": Note("The peer that told it, for NodeMesh and BGPPeer."),
        },
    ),
}  # fmt: skip
