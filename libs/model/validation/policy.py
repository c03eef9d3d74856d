"""Rules of tiers, policies in all their forms, profiles, and the rules inside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from libs.model.policy import (
    BUILT_IN_TIERS,
    EntityRule,
    GlobalNetworkPolicySpec,
    HTTPMatch,
    ICMPFields,
    KubernetesIPBlock,
    KubernetesPeer,
    KubernetesPort,
    LabelSelector,
    NetworkPolicySpec,
    ProfileSpec,
    Rule,
    ServiceAccountMatch,
    StagedGlobalNetworkPolicySpec,
    StagedKubernetesNetworkPolicySpec,
    StagedNetworkPolicySpec,
    Tier,
    TierSpec,
)
from libs.model.problems import At
from libs.model.validation import checks
from libs.model.validation.checks import Network

MAX_RULES = 1024
MAX_NETS = 256
MAX_PORTS = 50
MAX_HTTP = 20
MAX_HTTP_PATH_CHARS = 1024

ACTIONS = ("Allow", "Deny", "Log", "Pass")
TYPES = ("Ingress", "Egress")
STAGED_ACTIONS = ("Set", "Delete", "Learn", "Ignore")
PERFORMANCE_HINTS = ("AssumeNeededOnEveryNode",)

_ICMP = {"ICMP": 4, "ICMPv6": 6, "1": 4, "58": 6}

GlobalSpec: TypeAlias = GlobalNetworkPolicySpec | StagedGlobalNetworkPolicySpec
StagedSpec: TypeAlias = StagedNetworkPolicySpec | StagedGlobalNetworkPolicySpec
PolicySpec: TypeAlias = NetworkPolicySpec | GlobalSpec | StagedSpec


def check_tier_spec(at: At, spec: TierSpec) -> None:
    _order(at.field("order"), spec.order)
    checks.one_of(at.field("defaultAction"), spec.default_action, ("Deny", "Pass"))


def check_tier(at: At, tier: Tier) -> None:
    check_tier_spec(at.field("spec"), tier.spec)
    if (fixed := BUILT_IN_TIERS.get(tier.metadata.name)) is None:
        return
    order, action = fixed
    if tier.spec.order is not None and tier.spec.order != order:
        at.field("spec", "order").refuse(f"the order of tier {tier.metadata.name} must be {order:.0f}", tier.spec.order)
    if tier.spec.default_action not in (None, action):
        at.field("spec", "defaultAction").refuse(
            f"the default action of tier {tier.metadata.name} must be {action}", tier.spec.default_action
        )


def _order(at: At, order: float | None) -> None:
    if order is not None and not math.isfinite(order):
        at.refuse("must be a finite number: JSON has no other", order)


# --- policies ---------------------------------------------------------------------------------------------------------


def check_policy_spec(at: At, spec: PolicySpec) -> None:
    """Any policy of Calico's own shape, staged or not."""
    is_global = isinstance(spec, (GlobalNetworkPolicySpec, StagedGlobalNetworkPolicySpec))
    _order(at.field("order"), spec.order)
    check_rules(at, spec.ingress, spec.egress, is_global=is_global)
    checks.selector(at.field("selector"), spec.selector)
    checks.selector(at.field("serviceAccountSelector"), spec.service_account_selector)
    _types(at.field("types"), spec.types)
    _hints(at.field("performanceHints"), spec.performance_hints)
    if isinstance(spec, (GlobalNetworkPolicySpec, StagedGlobalNetworkPolicySpec)):
        checks.selector(at.field("namespaceSelector"), spec.namespace_selector)
        _untracked_and_pre_dnat(at, spec)


def check_staged_spec(at: At, spec: StagedSpec) -> None:
    checks.optional_one_of(at.field("stagedAction"), spec.staged_action, STAGED_ACTIONS)
    check_policy_spec(at, spec)
    if spec.staged_action == "Delete":
        _only_names_its_policy(at, spec, keep=("staged_action", "tier"))


def _only_names_its_policy(at: At, spec: msgspec.Struct, keep: tuple[str, ...]) -> None:
    empty = type(spec)()
    for info in msgspec.structs.fields(spec):
        if info.name not in keep and getattr(spec, info.name) != getattr(empty, info.name):
            at.field(info.encode_name).refuse("must be empty when stagedAction is Delete")


def _types(at: At, types: Sequence[str]) -> None:
    for index, direction in enumerate(types):
        checks.one_of(at.item(index), direction, TYPES)
    checks.unique(at, types)


def _hints(at: At, hints: Sequence[str]) -> None:
    for index, hint in enumerate(hints):
        checks.one_of(at.item(index), hint, PERFORMANCE_HINTS)
    checks.unique(at, hints)


def _untracked_and_pre_dnat(at: At, spec: GlobalSpec) -> None:
    if spec.pre_dnat and spec.do_not_track:
        at.field("preDNAT").refuse("preDNAT and doNotTrack cannot both be true")
    if spec.pre_dnat and spec.egress:
        at.field("egress").refuse("a preDNAT policy cannot have any egress rules")
    if spec.pre_dnat and "Egress" in spec.types:
        at.field("types").refuse("a preDNAT policy cannot have type Egress")
    if (spec.pre_dnat or spec.do_not_track) and not spec.apply_on_forward:
        at.field("applyOnForward").refuse("must be true if preDNAT or doNotTrack is true")


def check_profile_spec(at: At, spec: ProfileSpec) -> None:
    check_rules(at, spec.ingress, spec.egress, is_global=True)
    checks.label_map(at.field("labelsToApply"), spec.labels_to_apply)


# --- rules ------------------------------------------------------------------------------------------------------------


def check_rules(at: At, ingress: Sequence[Rule], egress: Sequence[Rule], *, is_global: bool) -> None:
    for direction, rules in (("ingress", ingress), ("egress", egress)):
        checks.at_most(at.field(direction), rules, MAX_RULES)
        for index, rule in enumerate(rules):
            place = at.field(direction).item(index)
            check_rule(place, rule)
            _services(place, rule, direction, is_global=is_global)


def _services(at: At, rule: Rule, direction: str, *, is_global: bool) -> None:
    """What depends on where a rule stands: services are a peer, the far side of the policy's own endpoints."""
    if direction == "egress" and rule.http is not None:
        at.field("http").refuse("not allowed in an egress rule")
    near, far = ("destination", "source") if direction == "ingress" else ("source", "destination")
    for side in (near, far):
        entity: EntityRule | None = getattr(rule, side)
        if entity is None or entity.services is None:
            continue
        place = at.field(side, "services")
        if side == near:
            place.refuse(f"not allowed in the {side} of an {direction} rule")
        if is_global and not entity.services.namespace:
            place.field("namespace").refuse("must name the service's namespace in a policy without one")


def check_rule(at: At, rule: Rule) -> None:
    """Everything that holds for a rule wherever it stands."""
    checks.one_of(at.field("action"), rule.action, ACTIONS)
    if rule.ip_version not in (None, 4, 6):
        at.field("ipVersion").refuse("must be 4 or 6", rule.ip_version)
    for name, protocol in (("protocol", rule.protocol), ("notProtocol", rule.not_protocol)):
        if protocol is not None:
            checks.protocol(at.field(name), protocol)
            version = _ICMP.get(protocol) if not protocol.isdecimal() else None
            if version and rule.ip_version not in (None, version):
                at.field(name).refuse(f"protocol {protocol} requires ipVersion {version}", rule.ip_version)
    for name, icmp in (("icmp", rule.icmp), ("notICMP", rule.not_icmp)):
        if icmp is not None:
            check_icmp(at.field(name), icmp)
            if rule.protocol is None or rule.protocol not in _ICMP:
                at.field(name).refuse("needs protocol ICMP or ICMPv6", rule.protocol)
    for name, entity in (("source", rule.source), ("destination", rule.destination)):
        if entity is not None:
            check_entity(at.field(name), entity)
            _ports_fit_protocol(at.field(name), entity, rule)
    if rule.destination is not None and rule.destination.services is not None:
        for name, ports in (("ports", rule.destination.ports), ("notPorts", rule.destination.not_ports)):
            if ports:
                at.field("destination", name).refuse("cannot be combined with services, which bring their own ports")
    _one_family(at, rule)
    if rule.http is not None:
        check_http(at.field("http"), rule.http)
        if rule.protocol is not None and rule.protocol not in ("TCP", "6"):
            at.field("http").refuse("needs protocol TCP or none", str(rule.protocol))
        if rule.action != "Allow":
            at.field("http").refuse("only allowed with action Allow", rule.action)
    if rule.metadata is not None:
        checks.annotation_map(at.field("metadata", "annotations"), rule.metadata.annotations)


def _ports_fit_protocol(at: At, entity: EntityRule, rule: Rule) -> None:
    for name, ports in (("ports", entity.ports), ("notPorts", entity.not_ports)):
        if not ports:
            continue
        if rule.protocol is not None:
            if not rule.protocol.has_ports:
                at.field(name).refuse("rules with ports must set protocol to TCP, UDP or SCTP", str(rule.protocol))
        elif not all(port.is_name for port in ports):
            at.field(name).refuse("rules with numeric ports must set protocol to TCP, UDP or SCTP")


def _one_family(at: At, rule: Rule) -> None:
    """All networks of a rule are of one IP version, the one it names."""
    first: int | None = None
    for side in ("source", "destination"):
        entity: EntityRule | None = getattr(rule, side)
        if entity is None:
            continue
        for name, nets in (("nets", entity.nets), ("notNets", entity.not_nets)):
            for index, text in enumerate(nets):
                parsed = checks.parse_cidr(text)
                if parsed is None:
                    continue
                version = parsed[1].version
                first = version if first is None else first
                place = at.field(side, name).item(index)
                if rule.ip_version is not None and version != rule.ip_version:
                    place.refuse(f"must be IPv{rule.ip_version} as the rule's ipVersion says", text)
                elif version != first:
                    place.refuse("a rule cannot have both IPv4 and IPv6 CIDRs", text)


def check_icmp(at: At, icmp: ICMPFields) -> None:
    checks.within(at.field("type"), icmp.type, 0, 254)
    checks.within(at.field("code"), icmp.code, 0, 255)
    if icmp.code is not None and icmp.type is None:
        at.field("code").refuse("an ICMP code needs an ICMP type", icmp.code)


def check_http(at: At, http: HTTPMatch) -> None:
    checks.at_most(at.field("methods"), http.methods, MAX_HTTP)
    checks.unique(at.field("methods"), http.methods)
    checks.at_most(at.field("paths"), http.paths, MAX_HTTP)
    for index, path in enumerate(http.paths):
        place = at.field("paths").item(index)
        if bool(path.exact) == bool(path.prefix):
            place.refuse("exactly one of exact and prefix must be set")
        for name, text in (("exact", path.exact), ("prefix", path.prefix)):
            if not text:
                continue
            if len(text) > MAX_HTTP_PATH_CHARS:
                place.field(name).refuse(f"must be at most {MAX_HTTP_PATH_CHARS} characters, not {len(text)}")
            if not text.startswith("/") or any(char in text for char in " ?#"):
                place.field(name).refuse("must start with '/' and not contain a space, '?' or '#'", text)


def check_entity(at: At, entity: EntityRule) -> None:
    _nets(at.field("nets"), entity.nets)
    for index, network in enumerate(_nets(at.field("notNets"), entity.not_nets)):
        if network is not None and network.prefixlen == 0:
            at.field("notNets").item(index).refuse("a rule that excludes every address matches nothing", str(network))
    checks.selector(at.field("selector"), entity.selector)
    checks.selector(at.field("notSelector"), entity.not_selector)
    checks.selector(at.field("namespaceSelector"), entity.namespace_selector, allow_global=True)
    for name, ports in (("ports", entity.ports), ("notPorts", entity.not_ports)):
        checks.at_most(at.field(name), ports, MAX_PORTS)
        for index, port in enumerate(ports):
            checks.port(at.field(name).item(index), port)
    if entity.service_accounts is not None:
        check_service_accounts(at.field("serviceAccounts"), entity.service_accounts)
    if entity.services is None:
        return
    if not entity.services.name:
        at.field("services", "name").refuse("must name a service")
    excluded = {
        "selector": entity.selector,
        "notSelector": entity.not_selector,
        "nets": entity.nets,
        "notNets": entity.not_nets,
        "namespaceSelector": entity.namespace_selector,
        "serviceAccounts": entity.service_accounts,
    }
    for name, value in excluded.items():
        if value:
            at.field(name).refuse("cannot be combined with services")


def check_service_accounts(at: At, match: ServiceAccountMatch) -> None:
    for index, name in enumerate(match.names):
        checks.dns_name(at.field("names").item(index), name)
    checks.selector(at.field("selector"), match.selector)


def _nets(at: At, nets: Sequence[str]) -> list[Network | None]:
    checks.at_most(at, nets, MAX_NETS)
    checks.unique(at, nets)
    return [checks.masked_cidr(at.item(index), text) for index, text in enumerate(nets)]


# --- staged Kubernetes policies ---------------------------------------------------------------------------------------


def check_staged_kubernetes_spec(at: At, spec: StagedKubernetesNetworkPolicySpec) -> None:
    checks.optional_one_of(at.field("stagedAction"), spec.staged_action, STAGED_ACTIONS)
    _types(at.field("policyTypes"), spec.policy_types)
    check_label_selector(at.field("podSelector"), spec.pod_selector)
    for index, ingress in enumerate(spec.ingress):
        place = at.field("ingress").item(index)
        _kubernetes_peers(place.field("from"), ingress.from_)
        _kubernetes_ports(place.field("ports"), ingress.ports)
    for index, egress in enumerate(spec.egress):
        place = at.field("egress").item(index)
        _kubernetes_peers(place.field("to"), egress.to)
        _kubernetes_ports(place.field("ports"), egress.ports)
    if spec.staged_action == "Delete":
        _only_names_its_policy(at, spec, keep=("staged_action",))


def check_label_selector(at: At, selector: LabelSelector) -> None:
    checks.label_map(at.field("matchLabels"), selector.match_labels)
    for index, term in enumerate(selector.match_expressions):
        place = at.field("matchExpressions").item(index)
        checks.label_map(place, {term.key: ""})
        checks.one_of(place.field("operator"), term.operator, ("In", "NotIn", "Exists", "DoesNotExist"))
        if term.operator in ("In", "NotIn") and not term.values:
            place.field("values").refuse(f"operator {term.operator} needs values")
        if term.operator in ("Exists", "DoesNotExist") and term.values:
            place.field("values").refuse(f"operator {term.operator} takes no values")


def _kubernetes_peers(at: At, peers: Sequence[KubernetesPeer]) -> None:
    for index, peer in enumerate(peers):
        place = at.item(index)
        selectors = (("podSelector", peer.pod_selector), ("namespaceSelector", peer.namespace_selector))
        for name, selector in selectors:
            if selector is not None:
                check_label_selector(place.field(name), selector)
        if peer.ip_block is None:
            if peer.pod_selector is None and peer.namespace_selector is None:
                place.refuse("must have podSelector, namespaceSelector or ipBlock")
            continue
        if peer.pod_selector is not None or peer.namespace_selector is not None:
            place.field("ipBlock").refuse("cannot be combined with selectors")
        _ip_block(place.field("ipBlock"), peer.ip_block)


def _ip_block(at: At, block: KubernetesIPBlock) -> None:
    whole = checks.any_net(at.field("cidr"), block.cidr)
    for index, text in enumerate(block.except_):
        part = checks.any_net(at.field("except").item(index), text)
        if whole is not None and part is not None and not checks.is_within(part, whole):
            at.field("except").item(index).refuse(f"must lie within {whole}", text)


def _kubernetes_ports(at: At, ports: Sequence[KubernetesPort]) -> None:
    for index, port in enumerate(ports):
        place = at.item(index)
        checks.one_of(place.field("protocol"), port.protocol, ("TCP", "UDP", "SCTP"))
        if isinstance(port.port, int):
            checks.within(place.field("port"), port.port, 1, 65535)
        elif port.port is not None:
            checks.port_name(place.field("port"), port.port)
        if port.end_port is not None:
            if not isinstance(port.port, int):
                place.field("endPort").refuse("needs a numeric port")
            else:
                checks.within(place.field("endPort"), port.end_port, port.port, 65535)
