"""BGP resources in their plainest form. A resource that breaks a rule of the API is refused as a whole, so that
speakers can go on with the version before it; such a one can only come from a raw write.
"""

from __future__ import annotations

import msgspec

from libs import model
from libs.model import validation
from libs.model.selector import Selector, parse
from libs.model.validation.bgp import peer_address
from libs.policy.bgp_output import (
    Advertisement,
    BgpEntry,
    BgpFilter,
    BgpFilterRule,
    BgpPeer,
    BgpSecret,
    BgpSettings,
    FelixPart,
    filter_key,
    peer_key,
    settings_key,
)

BGP_KINDS = ("BGPConfiguration", "BGPPeer", "BGPFilter")
DEFAULT = "default"
NODE_PREFIX = "node."


class Selection(msgspec.Struct, frozen=True):
    """Whom a BGPPeer is about. node and selector of nodes: at most one is given; neither: all nodes."""

    node: str = ""
    nodes: Selector | None = None
    targets: Selector | None = None
    workloads: Selector | None = None


def entry_key(kind: str, name: str) -> str:
    return {"BGPConfiguration": settings_key, "BGPPeer": peer_key, "BGPFilter": filter_key}[kind](name)


def unreadable(kind: str, problem: str) -> BgpEntry:
    """Stands for a resource that means nothing."""
    made: dict[str, type[BgpSettings] | type[BgpPeer] | type[BgpFilter]] = {
        "BGPConfiguration": BgpSettings,
        "BGPPeer": BgpPeer,
        "BGPFilter": BgpFilter,
    }
    return made[kind](problem=problem)


def reduce_bgp(resource: model.Resource) -> BgpEntry:
    """Raises ValueError, all problems in one text."""
    problems = [str(problem) for problem in validation.validate(resource)]
    name = resource.metadata.name
    match resource:
        case model.BGPConfiguration(spec=spec):
            if name != DEFAULT and not name.startswith(NODE_PREFIX):
                problems.append(f"metadata.name: must be {DEFAULT} or {NODE_PREFIX}<name of a node> (is {name!r})")
            _refuse(problems)
            return _settings(spec)
        case model.BGPPeer(spec=spec):
            if not spec.peer_ip and not spec.peer_selector and not spec.local_workload_selector:
                problems.append("spec: must have one of peerIP, peerSelector and localWorkloadSelector")
            _refuse(problems)
            return _peer(spec)
        case model.BGPFilter(spec=spec):
            _refuse(problems)
            return BgpFilter(
                export4=_rules(spec.export_v4),
                export6=_rules(spec.export_v6),
                import4=_rules(spec.import_v4),
                import6=_rules(spec.import_v6),
            )
    raise TypeError(f"{resource.kind} is no BGP resource")


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ValueError("; ".join(problems))


def selection(spec: model.BGPPeerSpec) -> Selection:
    """Of a peer that `reduce_bgp` takes."""
    return Selection(
        node=spec.node,
        nodes=parse(spec.node_selector) if spec.node_selector else None,
        targets=parse(spec.peer_selector) if spec.peer_selector else None,
        workloads=parse(spec.local_workload_selector) if spec.local_workload_selector else None,
    )


def felix_part(spec: model.FelixConfigurationSpec) -> FelixPart | None:
    """None: it says nothing that speakers go by."""
    part = FelixPart(
        program_cluster_routes=spec.program_cluster_routes or "",
        priority4=spec.ipv4_normal_route_priority,
        priority6=spec.ipv6_normal_route_priority,
    )
    return part if part != FelixPart(program_cluster_routes="") else None


def _settings(spec: model.BGPConfigurationSpec) -> BgpSettings:
    return BgpSettings(
        mesh=spec.node_to_node_mesh_enabled,
        as_number=None if spec.as_number is None else int(spec.as_number),
        log_severity=spec.log_severity_screen,
        listen_port=spec.listen_port or None,
        bind_mode=spec.bind_mode or "",
        cluster_ips=tuple(block.cidr for block in spec.service_cluster_ips),
        external_ips=tuple(block.cidr for block in spec.service_external_ips),
        load_balancer_ips=tuple(block.cidr for block in spec.service_load_balancer_ips),
        load_balancer_aggregation=spec.service_load_balancer_aggregation or "",
        communities={community.name: community.value for community in spec.communities},
        advertisements=tuple(
            Advertisement(cidr=a.cidr, communities=tuple(a.communities)) for a in spec.prefix_advertisements
        ),
        mesh_password=_secret(spec.node_mesh_password),
        mesh_restart_time_s=_seconds(spec.node_mesh_max_restart_time),
        ignored_interfaces=tuple(spec.ignored_interfaces),
        local_peering_ipv4=spec.local_workload_peering_ipv4,
        local_peering_ipv6=spec.local_workload_peering_ipv6,
        program_cluster_routes=spec.program_cluster_routes or "",
        priority4=spec.ipv4_normal_route_priority,
        priority6=spec.ipv6_normal_route_priority,
    )


def _peer(spec: model.BGPPeerSpec) -> BgpPeer:
    address, port = peer_address(spec.peer_ip) or ("", 0)
    return BgpPeer(
        all_nodes=not spec.node and not spec.node_selector,
        by_selector=bool(spec.peer_selector),
        local_workloads=bool(spec.local_workload_selector),
        address=str(address),
        port=port,
        as_number=None if spec.as_number is None else int(spec.as_number),
        local_as_number=None if spec.local_as_number is None else int(spec.local_as_number),
        keep_original_next_hop=spec.keep_original_next_hop,
        next_hop_mode=spec.next_hop_mode or "",
        password=_secret(spec.password),
        source_address=spec.source_address,
        restart_time_s=_seconds(spec.max_restart_time),
        keepalive_time_s=_seconds(spec.keepalive_time),
        allowed_local_as=spec.num_allowed_local_as_numbers or 0,
        ttl_security=spec.ttl_security,
        reachable_by=spec.reachable_by,
        filters=tuple(spec.filters),
        reverse_peering=spec.reverse_peering or "",
    )


def _secret(password: model.BGPPassword | None) -> BgpSecret | None:
    if password is None or password.secret_key_ref is None:
        return None
    return BgpSecret(name=password.secret_key_ref.name, key=password.secret_key_ref.key)


def _seconds(duration: model.Duration | None) -> int | None:
    """Rounded half up, as Calico does."""
    return None if duration is None else int(duration.seconds + 0.5)


def _rules(rules: list[model.BGPFilterRule]) -> tuple[BgpFilterRule, ...]:
    return tuple(
        BgpFilterRule(
            cidr=rule.cidr,
            match_operator=rule.match_operator,
            min_length=None if rule.prefix_length is None else rule.prefix_length.min,
            max_length=None if rule.prefix_length is None else rule.prefix_length.max,
            source=rule.source,
            interface=rule.interface,
            peer_type=rule.peer_type,
            communities=() if rule.communities is None else tuple(rule.communities.values),
            as_path_prefix=tuple(map(int, rule.as_path_prefix)),
            priority=rule.priority,
            action=rule.action,
            add_communities=tuple(o.add_community.value for o in rule.operations if o.add_community is not None),
            prepend=tuple(
                int(number)
                for o in rule.operations
                if o.prepend_as_path is not None
                for number in o.prepend_as_path.prefix
            ),
            set_priority=next(
                (o.set_priority.value for o in reversed(rule.operations) if o.set_priority is not None), None
            ),
        )
        for rule in rules
    )
