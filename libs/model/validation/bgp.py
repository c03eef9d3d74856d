"""Rules of BGP configurations, peers, filters and node status requests."""

from __future__ import annotations

import re
from collections.abc import Collection

from libs.model.bgp import (
    BGPConfiguration,
    BGPConfigurationSpec,
    BGPFilterOperation,
    BGPFilterRule,
    BGPFilterSpec,
    BGPPassword,
    BGPPeerSpec,
    CalicoNodeStatusSpec,
)
from libs.model.problems import At
from libs.model.validation import checks

LOG_LEVELS = ("Trace", "Debug", "Info", "Warning", "Error", "Fatal")
CLUSTER_ROUTES = ("Enabled", "Disabled", "EnabledIPIPOnly", "EnabledNoEncapOnly")
MATCH_OPERATORS = ("Equal", "NotEqual", "In", "NotIn")
MAX_COMMUNITIES = 500
MAX_ADVERTISED_COMMUNITIES = 50
MAX_OPERATIONS = 10
MAX_PREPENDED = 10
MAX_PEER_IP_CHARS = 64

_COMMUNITY = re.compile(r"([0-9]{1,10}):([0-9]{1,10})(?::([0-9]{1,10}))?")
_IGNORED_INTERFACE = re.compile(r"[a-zA-Z0-9_.*-]{1,15}")
_FILTER_INTERFACE = re.compile(r"[a-zA-Z0-9_.*-]{1,15}")
_PEER_IP = re.compile(r"(?:\[([^\]]*)\]|([^:\[\]]*)):([0-9]+)")


# --- BGPConfiguration -------------------------------------------------------------------------------------------------


def check_configuration(at: At, resource: BGPConfiguration) -> None:
    spec = resource.spec
    check_configuration_spec(at.field("spec"), spec)
    if resource.metadata.name in ("", "default"):
        return
    cluster_wide = {
        "nodeToNodeMeshEnabled": spec.node_to_node_mesh_enabled is not None,
        "asNumber": spec.as_number is not None,
        "serviceClusterIPs": bool(spec.service_cluster_ips),
        "serviceExternalIPs": bool(spec.service_external_ips),
        "serviceLoadBalancerIPs": bool(spec.service_load_balancer_ips),
        "nodeMeshPassword": spec.node_mesh_password is not None,
        "nodeMeshMaxRestartTime": spec.node_mesh_max_restart_time is not None,
    }
    for name, is_set in cluster_wide.items():
        if is_set:
            at.field("spec", name).refuse("can only be set on the BGPConfiguration named default")


def check_configuration_spec(at: At, spec: BGPConfigurationSpec) -> None:
    checks.optional_one_of(at.field("logSeverityScreen"), spec.log_severity_screen, LOG_LEVELS, any_case=True)
    for name, cidrs in (
        ("serviceClusterIPs", [block.cidr for block in spec.service_cluster_ips]),
        ("serviceExternalIPs", [block.cidr for block in spec.service_external_ips]),
        ("serviceLoadBalancerIPs", [block.cidr for block in spec.service_load_balancer_ips]),
    ):
        for index, cidr in enumerate(cidrs):
            checks.masked_net(at.field(name).item(index).field("cidr"), cidr)
    checks.one_of(
        at.field("serviceLoadBalancerAggregation"), spec.service_load_balancer_aggregation, ("Enabled", "Disabled")
    )
    if spec.listen_port:
        checks.within(at.field("listenPort"), spec.listen_port, 1, 65535)
    _mesh(at, spec)
    _advertisements(at, spec)
    checks.one_of(at.field("bindMode"), spec.bind_mode, ("None", "NodeIP"))
    for index, pattern in enumerate(spec.ignored_interfaces):
        if pattern == "*" or not _IGNORED_INTERFACE.fullmatch(pattern):
            at.field("ignoredInterfaces").item(index).refuse(
                "must be 1 to 15 letters, digits, '_', '.', '-' or '*', and not '*' alone", pattern
            )
    for name, address, version in (
        ("localWorkloadPeeringIPV4", spec.local_workload_peering_ipv4, 4),
        ("localWorkloadPeeringIPV6", spec.local_workload_peering_ipv6, 6),
    ):
        if address:
            checks.ip(at.field(name), address, version)
    checks.one_of(at.field("programClusterRoutes"), spec.program_cluster_routes, CLUSTER_ROUTES)
    for name, priority in (
        ("ipv4NormalRoutePriority", spec.ipv4_normal_route_priority),
        ("ipv6NormalRoutePriority", spec.ipv6_normal_route_priority),
    ):
        checks.within(at.field(name), priority, 1, checks.MAX_ROUTE_PRIORITY)


def _mesh(at: At, spec: BGPConfigurationSpec) -> None:
    check_password(at.field("nodeMeshPassword"), spec.node_mesh_password)
    if spec.node_mesh_max_restart_time is not None:
        checks.duration(at.field("nodeMeshMaxRestartTime"), spec.node_mesh_max_restart_time)
    if spec.node_to_node_mesh_enabled is not False:
        return
    for name, value in (
        ("nodeMeshPassword", spec.node_mesh_password),
        ("nodeMeshMaxRestartTime", spec.node_mesh_max_restart_time),
    ):
        if value is not None:
            at.field(name).refuse("cannot be set when nodeToNodeMeshEnabled is false")


def check_password(at: At, password: BGPPassword | None) -> None:
    if password is not None and password.secret_key_ref is not None and not password.secret_key_ref.key:
        at.field("secretKeyRef", "key").refuse("must name the key in the secret")


def _advertisements(at: At, spec: BGPConfigurationSpec) -> None:
    checks.at_most(at.field("communities"), spec.communities, MAX_COMMUNITIES)
    checks.at_most(at.field("prefixAdvertisements"), spec.prefix_advertisements, MAX_COMMUNITIES)
    if spec.communities and not spec.prefix_advertisements:
        at.field("communities").refuse("communities are defined but not used in prefixAdvertisements")
    for index, community in enumerate(spec.communities):
        place = at.field("communities").item(index)
        if not community.name:
            place.field("name").refuse("must not be empty")
        check_community(place.field("value"), community.value)
    names = {community.name for community in spec.communities if community.name}
    for index, advertisement in enumerate(spec.prefix_advertisements):
        place = at.field("prefixAdvertisements").item(index)
        checks.masked_net(place.field("cidr"), advertisement.cidr)
        checks.at_most(place.field("communities"), advertisement.communities, MAX_ADVERTISED_COMMUNITIES)
        if not advertisement.communities:
            place.field("communities").refuse("must have at least one entry")
        for number, text in enumerate(advertisement.communities):
            check_community(place.field("communities").item(number), text, names)


def check_community(at: At, text: str, names: Collection[str] = ()) -> None:
    """aa:nn of 16 bits each, or aa:nn:mm of 32 bits each, or one of `names`."""
    if text in names:
        return
    match = _COMMUNITY.fullmatch(text)
    if match is None:
        also = ", or the name of one of the communities" if names else ""
        at.refuse(f"must be a community aa:nn or aa:nn:mm{also}", text)
        return
    bits = 16 if match[3] is None else 32
    if any(int(part) >= 1 << bits for part in match.groups() if part is not None):
        at.refuse(f"each part of this community must fit in {bits} bits", text)


# --- BGPPeer ----------------------------------------------------------------------------------------------------------


def peer_address(text: str) -> tuple[checks.Address, int] | None:
    """Address and port of `192.0.2.1`, `192.0.2.1:179`, `2001:db8::1` or `[2001:db8::1]:179`; port 0 when none is
    given. None for anything else.
    """
    if (address := checks.parse_ip(text)) is not None:
        return address, 0
    match = _PEER_IP.fullmatch(text)
    if match is None or len(match[3]) > 5 or not 1 <= int(match[3]) <= 65535:
        return None
    address = checks.parse_ip(match[1] or match[2] or "")
    # Brackets are for IPv6 and for nothing else.
    return (
        (address, int(match[3])) if address is not None and (address.version == 6) == (match[1] is not None) else None
    )


def check_peer_spec(at: At, spec: BGPPeerSpec) -> None:
    if len(spec.node) > checks.MAX_NAME_CHARS:
        at.field("node").refuse(f"must be at most {checks.MAX_NAME_CHARS} characters")
    if spec.node and spec.node_selector:
        at.field("nodeSelector").refuse("node and nodeSelector cannot both be set")
    for name, text in (
        ("nodeSelector", spec.node_selector),
        ("peerSelector", spec.peer_selector),
        ("localWorkloadSelector", spec.local_workload_selector),
    ):
        checks.selector(at.field(name), text)
    parsed = peer_address(spec.peer_ip) if spec.peer_ip else None
    address = None if parsed is None else parsed[0]
    if spec.peer_ip and (address is None or len(spec.peer_ip) > MAX_PEER_IP_CHARS):
        at.field("peerIP").refuse(
            "must be an address, or one with a port: 192.0.2.1:179 or [2001:db8::1]:179", spec.peer_ip
        )
    if spec.peer_ip and spec.peer_selector:
        at.field("peerSelector").refuse("peerIP and peerSelector cannot both be set")
    if spec.peer_selector and spec.as_number is not None:
        at.field("asNumber").refuse("must be empty when peerSelector is set", spec.as_number)
    if spec.local_workload_selector:
        if spec.as_number is None:
            at.field("asNumber").refuse("must be set when localWorkloadSelector is")
        for name, text in (("peerIP", spec.peer_ip), ("peerSelector", spec.peer_selector)):
            if text:
                at.field(name).refuse("must be empty when localWorkloadSelector is set", text)
    _peer_session(at, spec)
    if spec.reachable_by:
        gateway = checks.ip(at.field("reachableBy"), spec.reachable_by)
        if not spec.peer_ip:
            at.field("reachableBy").refuse("must be empty when peerIP is empty", spec.reachable_by)
        elif gateway is not None and address is not None and gateway.version != address.version:
            at.field("reachableBy").refuse(f"must be IPv{address.version} like peerIP", spec.reachable_by)


def _peer_session(at: At, spec: BGPPeerSpec) -> None:
    if spec.keep_original_next_hop and spec.next_hop_mode is not None:
        at.field("nextHopMode").refuse(
            "keepOriginalNextHop and nextHopMode cannot both be set; nextHopMode Keep says the same"
        )
    checks.one_of(at.field("nextHopMode"), spec.next_hop_mode, ("Auto", "Self", "Keep"))
    checks.optional_one_of(at.field("sourceAddress"), spec.source_address, ("UseNodeIP", "None"))
    checks.one_of(at.field("reversePeering"), spec.reverse_peering, ("Auto", "Manual"))
    check_password(at.field("password"), spec.password)
    for name, value in (("maxRestartTime", spec.max_restart_time), ("keepaliveTime", spec.keepalive_time)):
        if value is not None:
            checks.duration(at.field(name), value)
    checks.within(at.field("ttlSecurity"), spec.ttl_security, 0, 255)
    checks.within(at.field("numAllowedLocalASNumbers"), spec.num_allowed_local_as_numbers, 0, 2**31 - 1)
    for index, name in enumerate(spec.filters):
        checks.dns_name(at.field("filters").item(index), name)


# --- BGPFilter --------------------------------------------------------------------------------------------------------


def check_filter_spec(at: At, spec: BGPFilterSpec) -> None:
    for name, rules, version in (
        ("exportV4", spec.export_v4, 4),
        ("importV4", spec.import_v4, 4),
        ("exportV6", spec.export_v6, 6),
        ("importV6", spec.import_v6, 6),
    ):
        for index, rule in enumerate(rules):
            check_filter_rule(at.field(name).item(index), rule, version)


def check_filter_rule(at: At, rule: BGPFilterRule, version: int) -> None:
    checks.one_of(at.field("action"), rule.action, ("Accept", "Reject"))
    if rule.cidr:
        checks.masked_net(at.field("cidr"), rule.cidr, version)
    checks.optional_one_of(at.field("matchOperator"), rule.match_operator, MATCH_OPERATORS)
    if bool(rule.cidr) != bool(rule.match_operator):
        at.refuse("cidr and matchOperator must both be set or both be empty")
    if rule.prefix_length is not None:
        bits = 32 if version == 4 else 128
        checks.within(at.field("prefixLength", "min"), rule.prefix_length.min, 0, bits)
        checks.within(at.field("prefixLength", "max"), rule.prefix_length.max, 0, bits)
        if not rule.cidr:
            at.field("prefixLength").refuse("needs a cidr")
    checks.optional_one_of(at.field("source"), rule.source, ("RemotePeers",))
    if rule.interface and not _FILTER_INTERFACE.fullmatch(rule.interface):
        at.field("interface").refuse("must be 1 to 15 letters, digits, '_', '.', '-' or '*'", rule.interface)
    checks.optional_one_of(at.field("peerType"), rule.peer_type, ("eBGP", "iBGP"))
    if rule.communities is not None:
        if len(rule.communities.values) != 1:
            at.field("communities", "values").refuse("must have exactly one entry")
        for index, text in enumerate(rule.communities.values):
            check_community(at.field("communities", "values").item(index), text)
    checks.within(at.field("priority"), rule.priority, 1, checks.MAX_ROUTE_PRIORITY)
    checks.at_most(at.field("operations"), rule.operations, MAX_OPERATIONS)
    if rule.operations and rule.action != "Accept":
        at.field("operations").refuse("only allowed with action Accept")
    for index, operation in enumerate(rule.operations):
        check_filter_operation(at.field("operations").item(index), operation)


def check_filter_operation(at: At, operation: BGPFilterOperation) -> None:
    given = [operation.add_community, operation.prepend_as_path, operation.set_priority]
    if sum(value is not None for value in given) != 1:
        at.refuse("exactly one of addCommunity, prependASPath and setPriority must be set")
    if operation.add_community is not None:
        check_community(at.field("addCommunity", "value"), operation.add_community.value)
    if operation.prepend_as_path is not None and not 1 <= len(operation.prepend_as_path.prefix) <= MAX_PREPENDED:
        at.field("prependASPath", "prefix").refuse(f"must have 1 to {MAX_PREPENDED} AS numbers")
    if operation.set_priority is not None:
        if operation.set_priority.value is None:
            at.field("setPriority", "value").refuse("must be given")
        checks.within(at.field("setPriority", "value"), operation.set_priority.value, 1, checks.MAX_ROUTE_PRIORITY)


# --- CalicoNodeStatus -------------------------------------------------------------------------------------------------


def check_node_status_spec(at: At, spec: CalicoNodeStatusSpec) -> None:
    if not spec.node:
        at.field("node").refuse("must name the node")
    if not spec.classes:
        at.field("classes").refuse("must have at least one entry")
    for index, name in enumerate(spec.classes):
        checks.one_of(at.field("classes").item(index), name, ("Agent", "BGP", "Routes"))
    checks.unique(at.field("classes"), spec.classes)
    checks.within(at.field("updatePeriodSeconds"), spec.update_period_seconds, 0, 86400)
