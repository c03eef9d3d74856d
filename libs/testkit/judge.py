"""The project behind the JSON-lines interface of the recorded-behaviour comparison: `python -m libs.testkit.judge`.

One request a line on stdin, answers on stdout:

    {"op":"selector","expr":TEXT,"labels":[{},…]}   -> {"canonical","id","match":[bool,…]} or {"error":TEXT}
    {"op":"validate","type":TYPE,"input":{…}}       -> {"valid":bool} with "error" when false; {"unknown":true}
    {"op":"reset","hostname":NAME,…}, {"op":"put","key","value"}, {"op":"del","key"}, {"op":"insync"}    no answer
    {"op":"flush"}                                  -> {"kind","msg"} per dataplane message, then {"flushed":N}

It judges nothing itself: selectors, validation and calculation are the product's own functions, and what they say is
only put into the words of Felix's dataplane messages.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import msgspec

from libs import model
from libs.model import selector, validation
from libs.policy.calculator import Calculator
from libs.policy.changes import Encapsulation, NodeView
from libs.policy.output import (
    Host,
    Icmp,
    IPSet,
    Nat,
    NodeInfo,
    Policy,
    PolicyKey,
    Pool,
    PortRange,
    Profile,
    Qos,
    Rule,
    ServiceAccountMatch,
    Tier,
    Workload,
    WorkloadKey,
)
from libs.policy.routes import Route, RouteResolver, Vtep, vteps_for

Message = dict[str, Any]

_ACTIONS = {"pass": "next-tier"}
_POOL_MODES = {"Always": "always", "CrossSubnet": "cross-subnet"}
_IP_VERSIONS = {4: "IPV4", 6: "IPV6"}
_BGP_DEFAULT = model.resource_key("BGPConfiguration", "default")


def main() -> None:
    judge = Judge()
    for line in sys.stdin:
        for answer in judge.answer(json.loads(line)):
            print(json.dumps(answer), flush=True)


class Judge:
    def __init__(self) -> None:
        self._calculation = _Calculation("")

    def answer(self, request: Message) -> Iterator[Message]:
        match request["op"]:
            case "selector":
                yield judge_selector(request["expr"], request["labels"])
            case "validate":
                yield judge_object(request["type"], request["input"])
            case "reset":
                self._calculation = _Calculation(request["hostname"])
            case "put":
                self._calculation.put(request["key"], request["value"])
            case "del":
                self._calculation.delete(request["key"])
            case "insync":
                self._calculation.in_sync = True
            case "flush":
                messages = self._calculation.flush()
                yield from messages
                yield {"flushed": len(messages)}
            case op:
                yield {"error": f"unknown op {op}"}


def judge_selector(expression: str, labels: list[dict[str, str]]) -> Message:
    try:
        parsed = selector.parse(expression)
    except selector.SelectorError as error:
        return {"error": str(error)}
    return {"canonical": parsed.canonical, "id": parsed.id, "match": [parsed.matches(one) for one in labels]}


def judge_object(type_name: str, value: object) -> Message:
    try:
        valid, error = validation.validate_typed(type_name, value)
    except validation.UnknownType:
        return {"unknown": True}
    return {"valid": True} if valid else {"valid": False, "error": error}


class _Calculation:
    """The calculation as one node sees it. Messages are the difference between two views of that node."""

    def __init__(self, hostname: str) -> None:
        self.hostname = hostname
        self.in_sync = False
        self._calculator = Calculator()
        self._calculator.know_node(hostname)
        self._routes = RouteResolver(hostname)
        self._told: dict[str, dict[str, Message]] = {}
        self._told_encapsulation: Message | None = None
        self._told_bgp: Message = {}
        self._tiers_seen: set[str] = set()

    def put(self, key: str, value: str) -> None:
        """A value that cannot be read counts as absent, as in typha."""
        try:
            self._calculator.update(key, model.from_storage(key, value.encode(), 0))
        except model.DecodeError:
            self._calculator.update(key, None)

    def delete(self, key: str) -> None:
        self._calculator.update(key, None)

    def flush(self) -> list[Message]:
        if not self.in_sync:
            return []
        calculator = self._calculator
        changes = calculator.flush()
        view = calculator.view(self.hostname)
        for cidr, pool in changes.pools.items():
            self._routes.put_pool(cidr, pool)
        for cidr, block in changes.blocks.items():
            self._routes.put_block(cidr, block)
        for node, info in changes.node_infos.items():
            self._routes.put_node(node, info)
        node_change = changes.nodes.get(self.hostname)
        for key, workload in (node_change.workloads if node_change is not None else {}).items():
            networks = None if workload is None else (*workload.nets4, *workload.nets6)
            self._routes.put_workload(str(key), self.hostname, networks)
        self._routes.flush()
        return self._tell(view)

    def _tell(self, view: NodeView) -> list[Message]:
        calculator = self._calculator
        # Of a tier that was deleted Felix keeps the default action while policies are left in it.
        self._tiers_seen = (self._tiers_seen & calculator.tiers_in_use) | calculator.tiers.keys()
        tell = _Teller(self._tiers_seen)
        state: dict[str, dict[str, Message]] = {
            "ipset": {set_id: _ipset(set_id, one) for set_id, one in view.ipsets.items()},
            "active_policy": _keyed(
                view.policies, lambda key, one: {"id": _policy_id(key), "policy": tell.policy(one)}
            ),
            "active_profile": _keyed(
                view.profiles, lambda key, one: {"id": {"name": key}, "profile": tell.profile(one)}
            ),
            "workload_endpoint": _keyed(
                view.workloads, lambda key, one: {"id": _workload_id(key), "endpoint": tell.workload(one)}
            ),
            "host_endpoint": _keyed(
                view.hosts, lambda key, one: {"id": {"endpoint_id": key}, "endpoint": tell.host(one)}
            ),
            "route": _keyed(self._routes.routes, lambda _, one: _route(one)),
            "vtep": _keyed(vteps_for(calculator.node_infos), lambda _, one: _vtep(one)),
            "host_metadata": _keyed(calculator.node_infos, _host_metadata),
            "ipam_pool": _keyed(calculator.pools, _pool),
            "namespace": _keyed(calculator.namespaces, lambda key, one: _short({"id": {"name": key}, "labels": one})),
            "service_account": _keyed(
                calculator.service_accounts,
                lambda key, one: _short({"id": {"namespace": key[0], "name": key[1]}, "labels": one}),
            ),
        }
        messages = [
            message for kind, now in state.items() for message in _differences(kind, self._told.get(kind, {}), now)
        ]
        self._told = state
        encapsulation = _encapsulation(calculator.encapsulation)
        if encapsulation != self._told_encapsulation:
            self._told_encapsulation = encapsulation
            messages.append({"kind": "encapsulation", "msg": encapsulation})
        bgp = _bgp(calculator.passthrough.get(_BGP_DEFAULT))
        if bgp != self._told_bgp:
            self._told_bgp = bgp
            messages.append({"kind": "global_bgp_config_update", "msg": bgp})
        return messages


def _limits(qos: Qos) -> Message:
    return {name: value for name, value in msgspec.structs.asdict(qos).items() if name != "dscp"}


def _marks(workload: Workload) -> list[Message]:
    if workload.qos is None or workload.qos.dscp is None:
        return []
    return [{"dscp": workload.qos.dscp}]


def _keyed(values: Mapping[Any, Any], tell: Callable[[Any, Any], Message]) -> dict[str, Message]:
    return {str(key): tell(key, value) for key, value in values.items()}


def _differences(kind: str, before: dict[str, Message], now: dict[str, Message]) -> Iterator[Message]:
    for key, message in now.items():
        if before.get(key) != message:
            yield {"kind": f"{kind}_update", "msg": message}
    for key, message in before.items():
        if key not in now:
            names = {"route": "dst", "vtep": "node", "host_metadata": "hostname"}
            name = names.get(kind, "id")
            yield {"kind": f"{kind}_remove", "msg": {name: message[name]}}


def _short(message: Message) -> Message:
    """Protobuf's JSON leaves out what is empty."""
    return {name: value for name, value in message.items() if value not in (None, "", 0, False, [], {})}


class _Teller:
    """Puts values into Felix's words.

    tiers: those whose default action Felix knows. Of another it leaves the action out, and then treats it as Deny.
    """

    def __init__(self, tiers: Collection[str]) -> None:
        self._tiers = tiers

    def policy(self, policy: Policy) -> Message:
        return _short(
            {
                "namespace": policy.namespace,
                "inbound_rules": list(map(_rule, policy.inbound)),
                "outbound_rules": list(map(_rule, policy.outbound)),
                "untracked": policy.untracked,
                "pre_dnat": policy.pre_dnat,
                "original_selector": policy.selector,
                "perf_hints": list(policy.performance_hints),
                "tier": policy.tier,
            }
        )

    def profile(self, profile: Profile) -> Message:
        return _short(
            {"inbound_rules": list(map(_rule, profile.inbound)), "outbound_rules": list(map(_rule, profile.outbound))}
        )

    def workload(self, workload: Workload) -> Message:
        return _short(
            {
                "state": workload.state,
                "name": workload.name,
                "mac": workload.mac,
                "profile_ids": list(workload.profiles),
                "ipv4_nets": list(workload.nets4),
                "ipv6_nets": list(workload.nets6),
                "tiers": self._tier_list(workload.tiers),
                "ipv4_nat": list(map(_nat, workload.nat4)),
                "ipv6_nat": list(map(_nat, workload.nat6)),
                "allow_spoofed_source_prefixes": list(workload.allowed_source_prefixes),
                "qos_controls": {} if workload.qos is None else _short(_limits(workload.qos)),
                "qos_policies": _marks(workload),
            }
        )

    def host(self, host: Host) -> Message:
        return _short(
            {
                "name": host.name,
                "profile_ids": list(host.profiles),
                "tiers": self._tier_list(host.tiers),
                "untracked_tiers": self._tier_list(host.untracked_tiers, unknown="Pass"),
                "pre_dnat_tiers": self._tier_list(host.pre_dnat_tiers, unknown="Pass"),
                "forward_tiers": self._tier_list(host.forward_tiers),
                "expected_ipv4_addrs": list(host.expected4),
                "expected_ipv6_addrs": list(host.expected6),
            }
        )

    def _tier_list(self, tiers: tuple[Tier, ...], *, unknown: str = "") -> list[Message]:
        return [
            _short(
                {
                    "name": tier.name,
                    "ingress_policies": list(map(_policy_id, tier.ingress)),
                    "egress_policies": list(map(_policy_id, tier.egress)),
                    "default_action": tier.default_action if tier.name in self._tiers else unknown,
                }
            )
            for tier in tiers
        ]


def _rule(rule: Rule) -> Message:
    origin = msgspec.to_builtins(rule.origin) if rule.origin is not None else {}
    return _short(
        {
            "action": _ACTIONS.get(rule.action, str(rule.action)),
            "ip_version": _IP_VERSIONS.get(rule.ip_version, ""),
            "protocol": _protocol(rule.protocol),
            "not_protocol": _protocol(rule.not_protocol),
            **_icmp("icmp", rule.icmp),
            **_icmp("not_icmp", rule.not_icmp),
            "src_net": list(rule.src_nets),
            "dst_net": list(rule.dst_nets),
            "not_src_net": list(rule.not_src_nets),
            "not_dst_net": list(rule.not_dst_nets),
            "src_ports": list(map(_port_range, rule.src_ports)),
            "dst_ports": list(map(_port_range, rule.dst_ports)),
            "not_src_ports": list(map(_port_range, rule.not_src_ports)),
            "not_dst_ports": list(map(_port_range, rule.not_dst_ports)),
            "src_named_port_ip_set_ids": list(rule.src_named_port_sets),
            "dst_named_port_ip_set_ids": list(rule.dst_named_port_sets),
            "not_src_named_port_ip_set_ids": list(rule.not_src_named_port_sets),
            "not_dst_named_port_ip_set_ids": list(rule.not_dst_named_port_sets),
            "src_ip_set_ids": list(rule.src_sets),
            "dst_ip_set_ids": list(rule.dst_sets),
            "not_src_ip_set_ids": list(rule.not_src_sets),
            "not_dst_ip_set_ids": list(rule.not_dst_sets),
            "dst_ip_port_set_ids": list(rule.dst_ip_port_sets),
            "original_src_selector": origin.get("src_selector"),
            "original_dst_selector": origin.get("dst_selector"),
            "original_not_src_selector": origin.get("not_src_selector"),
            "original_not_dst_selector": origin.get("not_dst_selector"),
            "original_src_namespace_selector": origin.get("src_namespace_selector"),
            "original_dst_namespace_selector": origin.get("dst_namespace_selector"),
            "original_src_service": origin.get("src_service"),
            "original_src_service_namespace": origin.get("src_service_namespace"),
            "original_dst_service": origin.get("dst_service"),
            "original_dst_service_namespace": origin.get("dst_service_namespace"),
            "src_service_account_match": _accounts(rule.origin.src_service_accounts if rule.origin else None),
            "dst_service_account_match": _accounts(rule.origin.dst_service_accounts if rule.origin else None),
            "http_match": _http(rule),
        }
    )


def _http(rule: Rule) -> Message | None:
    if rule.http is None:
        return None
    paths = [{"exact": path} for path in rule.http.exact_paths] + [{"prefix": path} for path in rule.http.prefix_paths]
    return _short({"methods": list(rule.http.methods), "paths": paths})


def _protocol(protocol: str | int | None) -> Message | None:
    if protocol is None:
        return None
    return {"number": protocol} if isinstance(protocol, int) else {"name": protocol}


def _icmp(name: str, match: Icmp | None) -> Message:
    if match is None:
        return {}
    if match.code is None:
        return {f"{name}_type": match.type}
    return {f"{name}_type_code": _short({"type": match.type, "code": match.code})}


def _port_range(ports: PortRange) -> Message:
    return {"first": ports.first, "last": ports.last}


def _accounts(match: ServiceAccountMatch | None) -> Message | None:
    return None if match is None else _short({"selector": match.selector, "names": list(match.names)})


def _nat(nat: Nat) -> Message:
    return {"ext_ip": nat.external, "int_ip": nat.internal}


def _policy_id(key: PolicyKey) -> Message:
    return _short({"name": key.name, "namespace": key.namespace, "kind": key.kind})


def _workload_id(key: WorkloadKey) -> Message:
    return {"orchestrator_id": key.orchestrator, "workload_id": key.workload, "endpoint_id": key.endpoint}


def _ipset(set_id: str, one: IPSet) -> Message:
    return _short({"id": set_id, "members": sorted(one.members), "type": str(one.type)})


def _route(route: Route) -> Message:
    types = int(route.types)
    tunnel = _short({"ipip": route.tunnel_ipip, "vxlan": route.tunnel_vxlan, "wireguard": route.tunnel_wireguard})
    message = _short(
        {
            "types": types if types & (types - 1) else route.types.name,
            "ip_pool_type": "" if route.pool_type == "NONE" else str(route.pool_type),
            "dst": route.dst,
            "dst_node_name": route.dst_node,
            "dst_node_ip": route.dst_node_ip,
            "same_subnet": route.same_subnet,
            "nat_outgoing": route.nat_outgoing,
            "local_workload": route.local_workload,
            "borrowed": route.borrowed,
            "tunnel_type": tunnel,
        }
    )
    if not types:
        message.pop("types", None)
    return message


def _vtep(vtep: Vtep) -> Message:
    return _short(
        {
            "node": vtep.node,
            "mac": vtep.mac,
            "ipv4_addr": vtep.ipv4,
            "parent_device_ip": vtep.parent_device_ipv4,
            "mac_v6": vtep.mac6,
            "ipv6_addr": vtep.ipv6,
            "parent_device_ipv6": vtep.parent_device_ipv6,
        }
    )


def _host_metadata(name: str, info: NodeInfo) -> Message:
    return _short(
        {
            "hostname": name,
            "ipv4_addr": info.ipv4,
            "ipv6_addr": info.ipv6,
            "asnumber": info.as_number,
            "labels": info.labels,
        }
    )


def _pool(cidr: str, pool: Pool) -> Message:
    fields = _short(
        {
            "cidr": pool.cidr,
            "masquerade": pool.nat_outgoing,
            "ipip_mode": _POOL_MODES.get(pool.ipip_mode),
            "vxlan_mode": _POOL_MODES.get(pool.vxlan_mode),
            "allowed_uses": list(pool.allowed_uses),
        }
    )
    return {"id": cidr.replace("/", "-"), "pool": fields}


def _encapsulation(wanted: Encapsulation) -> Message:
    return _short({"ipip_enabled": wanted.ipip, "vxlan_enabled": wanted.vxlan, "vxlan_enabled_v6": wanted.vxlan_v6})


def _bgp(resource: model.Resource | None) -> Message:
    """Addresses of services, and those at which nodes peer with their workloads; nothing without a configuration."""
    if not isinstance(resource, model.BGPConfiguration):
        return {}
    spec = resource.spec
    return _short(
        {
            "service_cluster_cidrs": [block.cidr for block in spec.service_cluster_ips],
            "service_external_cidrs": [block.cidr for block in spec.service_external_ips],
            "service_loadbalancer_cidrs": [block.cidr for block in spec.service_load_balancer_ips],
            "local_workload_peering_ip_v4": spec.local_workload_peering_ipv4,
            "local_workload_peering_ip_v6": spec.local_workload_peering_ipv6,
        }
    )


if __name__ == "__main__":
    main()
