"""v3 rules into rules that a dataplane can apply: selectors, named ports and services become IP set ids.

How selectors compose is part of the data model (facts of the v3 API, section 3.4), and the composed text decides the
set's id, so it is composed as text and parsed once, exactly as Calico does:

    endpoints of a rule   (namespaces) && ((service accounts) && (selector)), absent parts left out
    selector of a policy  (selector) && namespace term, then && each prefixed selector
    negative selector     joins a positive one as `(positive) && (!(negative))`; alone it stays a set of its own, which
                          then also excludes only what it matches, so packets from outside the cluster still match the
                          rule
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from libs import model
from libs.model import selector as sel
from libs.model.selector import NAMESPACE_PREFIX, SERVICE_ACCOUNT_PREFIX, Selector
from libs.policy import nets, sets
from libs.policy.output import (
    Action,
    HttpMatch,
    Icmp,
    PortRange,
    Rule,
    RuleOrigin,
    ServiceAccountMatch,
)
from libs.policy.sets import SetSpec

NAMESPACE_LABEL = "projectcalico.org/namespace"
SERVICE_ACCOUNT_LABEL = "projectcalico.org/serviceaccount"

_ACTIONS = {"Allow": Action.ALLOW, "Deny": Action.DENY, "Pass": Action.PASS, "Log": Action.LOG}
_VERSION_OF_PROTOCOL = {"icmp": 4, "icmpv6": 6}
_NUMERIC_PORT = re.compile(r"([0-9]+)(?::([0-9]+))?")
_PROTOCOL_NUMBERS = {6: "tcp", 17: "udp", 132: "sctp"}
_PROTOCOLS = frozenset({"tcp", "udp", "icmp", "icmpv6", "sctp", "udplite"})


def policy_selector(
    selector: str, namespace: str = "", namespace_selector: str = "", service_account_selector: str = ""
) -> Selector:
    """What a policy selects. Raises SelectorError.

    all() among namespaces means "has a namespace", among service accounts "has a service account"; as in Calico the
    word is then replaced in the user's own selector too.
    """
    text = selector
    if namespace:
        term = f"{NAMESPACE_LABEL} == '{namespace}'"
        text = f"({text}) && {term}" if text else term
    if namespace_selector:
        text = _append_prefixed(text, namespace_selector, NAMESPACE_PREFIX)
        text = text.replace("all()", f"has({NAMESPACE_LABEL})")
    if service_account_selector:
        text = _append_prefixed(text, service_account_selector, SERVICE_ACCOUNT_PREFIX)
        text = text.replace("all()", f"has({SERVICE_ACCOUNT_LABEL})")
    return sel.parse(text)


def _append_prefixed(text: str, selector: str, prefix: str) -> str:
    prefixed = sel.parse(selector).prefixed(prefix).canonical
    return f"({text}) && {prefixed}" if text else prefixed


def entity_selector(entity: model.EntityRule, namespace: str) -> str:
    """The text of what one side of a rule matches, "" for everything. namespace: of the policy, "" for a global one."""
    parts = [part for part in (_service_accounts(entity.service_accounts), entity.selector) if part]
    text = parts[0] if len(parts) == 1 else f"({parts[0]}) && ({parts[1]})" if parts else ""
    if entity.namespace_selector:
        namespaces = sel.parse(entity.namespace_selector).prefixed(NAMESPACE_PREFIX).canonical
        namespaces = namespaces.replace("all()", f"has({NAMESPACE_LABEL})").replace(
            "global()", f"!has({NAMESPACE_LABEL})"
        )
    elif namespace and (text or entity.not_selector):
        namespaces = f"{NAMESPACE_LABEL} == '{namespace}'"
    else:
        return text
    return f"({namespaces}) && ({text})" if text else namespaces


def _service_accounts(match: model.ServiceAccountMatch | None) -> str:
    if match is None:
        return ""
    prefixed = sel.parse(match.selector).prefixed(SERVICE_ACCOUNT_PREFIX).canonical if match.selector else ""
    if not match.names:
        return prefixed
    quoted = ", ".join(f"'{name}'" for name in match.names)
    names = sel.parse(f"{SERVICE_ACCOUNT_LABEL} in {{{quoted}}}").canonical
    return f"({prefixed}) && ({names})" if prefixed else names


class _Side:
    """One side of a rule, taken apart."""

    def __init__(
        self, entity: model.EntityRule | None, namespace: str, port_protocol: str, *, is_destination: bool
    ) -> None:
        self.nets: tuple[str, ...] = ()
        self.not_nets: tuple[str, ...] = ()
        self.ports: tuple[PortRange, ...] = ()
        self.not_ports: tuple[PortRange, ...] = ()
        self.sets: list[SetSpec] = []
        self.not_sets: list[SetSpec] = []
        self.port_sets: list[SetSpec] = []
        self.not_port_sets: list[SetSpec] = []
        self.ip_port_sets: list[SetSpec] = []
        if entity is None:
            return
        self.nets = tuple(map(nets.canonical, entity.nets))
        self.not_nets = tuple(map(nets.canonical, entity.not_nets))
        self.ports, names = split_ports(entity.ports)
        self.not_ports, not_names = split_ports(entity.not_ports)
        positive = entity_selector(entity, namespace)
        negative = entity.not_selector
        if positive and negative:
            positive, negative = f"({positive}) && (!({negative}))", ""
        # Negated ports are limited to the positive selector too: the rule as a whole cannot match outside it.
        within = sel.parse(positive)
        self.port_sets = [sets.named_port_set(within, port_protocol, name) for name in names]
        self.not_port_sets = [sets.named_port_set(within, port_protocol, name) for name in not_names]
        # Named ports alone say all that the selector says; numeric ones do not.
        if positive and (self.ports or not self.port_sets):
            self.sets.append(sets.selector_set(within))
        if negative:
            self.not_sets.append(sets.selector_set(sel.parse(negative)))
        if entity.services is not None:
            service = sets.service_set(
                entity.services.name, entity.services.namespace or namespace, with_ports=is_destination
            )
            (self.ip_port_sets if is_destination else self.sets).append(service)

    def specs(self) -> list[SetSpec]:
        return [*self.sets, *self.not_sets, *self.port_sets, *self.not_port_sets, *self.ip_port_sets]


def compile_rules(rules: Sequence[model.Rule], namespace: str = "") -> tuple[tuple[Rule, ...], dict[str, SetSpec]]:
    """Rules of one direction, and the sets that they refer to, by id. Raises ValueError (SelectorError) for what does
    not parse.
    """
    compiled: list[Rule] = []
    specs: dict[str, SetSpec] = {}
    for rule in rules:
        _check_packet_fields(rule)
        protocol = protocol_of(rule.protocol)
        of_ports = named_port_protocol(protocol)
        source = _Side(rule.source, namespace, of_ports, is_destination=False)
        destination = _Side(rule.destination, namespace, of_ports, is_destination=True)
        for spec in (*source.specs(), *destination.specs()):
            specs[spec.id] = spec
        compiled.append(_rule(rule, protocol, source, destination))
    return tuple(compiled), specs


def _rule(rule: model.Rule, protocol: str | int | None, source: _Side, destination: _Side) -> Rule:
    version = rule.ip_version or (_VERSION_OF_PROTOCOL.get(protocol, 0) if isinstance(protocol, str) else 0)
    return Rule(
        action=action_of(rule),
        ip_version=version,
        protocol=protocol,
        not_protocol=protocol_of(rule.not_protocol),
        icmp=_icmp(rule.icmp),
        not_icmp=_icmp(rule.not_icmp),
        src_nets=source.nets,
        dst_nets=destination.nets,
        not_src_nets=source.not_nets,
        not_dst_nets=destination.not_nets,
        src_ports=source.ports,
        dst_ports=destination.ports,
        not_src_ports=source.not_ports,
        not_dst_ports=destination.not_ports,
        src_named_port_sets=_ids(source.port_sets),
        dst_named_port_sets=_ids(destination.port_sets),
        not_src_named_port_sets=_ids(source.not_port_sets),
        not_dst_named_port_sets=_ids(destination.not_port_sets),
        src_sets=_ids(source.sets),
        dst_sets=_ids(destination.sets),
        not_src_sets=_ids(source.not_sets),
        not_dst_sets=_ids(destination.not_sets),
        dst_ip_port_sets=_ids(destination.ip_port_sets),
        http=_http(rule.http),
        annotations=dict(rule.metadata.annotations) if rule.metadata is not None else {},
        origin=_origin(rule),
    )


def action_of(rule: model.Rule) -> Action:
    """Raises ValueError for an action that does not exist."""
    action = _ACTIONS.get(rule.action)
    if action is None:
        raise ValueError(f"rule action must be one of {', '.join(_ACTIONS)}, not {rule.action!r}")
    return action


def _ids(specs: list[SetSpec]) -> tuple[str, ...]:
    return tuple(spec.id for spec in specs)


def protocol_of(protocol: str | int | None) -> str | int | None:
    """The output form: lower-case names, numbers as they are, also those that came as text."""
    if isinstance(protocol, str):
        return int(protocol) if protocol.isdecimal() else protocol.lower()
    return protocol


def named_port_protocol(protocol: str | int | None) -> str:
    """Which ports of a name count for a rule with this protocol: any when it names none."""
    if protocol is None:
        return sets.ANY_PROTOCOL
    return port_protocol(protocol) or "tcp"


def port_protocol(protocol: str | int) -> str | None:
    """The name of a protocol that has ports, None for another."""
    name = _PROTOCOL_NUMBERS.get(protocol) if isinstance(protocol, int) else protocol
    return name if name in sets.PORT_PROTOCOLS else None


def split_ports(ports: Sequence[int | str]) -> tuple[tuple[PortRange, ...], list[str]]:
    """Numeric ports and ranges, and the names."""
    ranges: list[PortRange] = []
    names: list[str] = []
    for port in ports:
        match = _NUMERIC_PORT.fullmatch(str(port))
        if match is None:
            names.append(str(port))
        else:
            ranges.append(PortRange(int(match[1]), int(match[2] or match[1])))
    return tuple(ranges), names


def _icmp(match: model.ICMPFields | None) -> Icmp | None:
    return None if match is None or match.type is None else Icmp(match.type, match.code)


def _http(match: model.HTTPMatch | None) -> HttpMatch | None:
    if match is None:
        return None
    paths = match.paths
    return HttpMatch(
        methods=tuple(match.methods),
        exact_paths=tuple(path.exact for path in paths if path.exact),
        prefix_paths=tuple(path.prefix for path in paths if path.prefix),
    )


def _origin(rule: model.Rule) -> RuleOrigin | None:
    source, destination = rule.source or model.EntityRule(), rule.destination or model.EntityRule()
    origin = RuleOrigin(
        src_selector=source.selector,
        dst_selector=destination.selector,
        not_src_selector=source.not_selector,
        not_dst_selector=destination.not_selector,
        src_namespace_selector=source.namespace_selector,
        dst_namespace_selector=destination.namespace_selector,
        src_service=source.services.name if source.services is not None else "",
        src_service_namespace=source.services.namespace if source.services is not None else "",
        dst_service=destination.services.name if destination.services is not None else "",
        dst_service_namespace=destination.services.namespace if destination.services is not None else "",
        src_service_accounts=_account_match(source.service_accounts),
        dst_service_accounts=_account_match(destination.service_accounts),
    )
    return None if origin == RuleOrigin() else origin


def _account_match(match: model.ServiceAccountMatch | None) -> ServiceAccountMatch | None:
    return None if match is None else ServiceAccountMatch(match.selector, tuple(match.names))


def check(rules: Sequence[model.Rule], namespace: str) -> None:
    """Raise ValueError for rules that `compile_rules` would not take. Selectors are cached, so asking costs little."""
    for rule in rules:
        action_of(rule)
        _check_packet_fields(rule)
        for entity in (rule.source, rule.destination):
            if entity is not None:
                sel.parse(entity_selector(entity, namespace))
                sel.parse(entity.not_selector)
                for text in (*entity.nets, *entity.not_nets):
                    nets.canonical(text)


def _check_packet_fields(rule: model.Rule) -> None:
    """Raise ValueError for a protocol, IP version or ICMP type that no packet can have and no dataplane can express."""
    for protocol in (protocol_of(rule.protocol), protocol_of(rule.not_protocol)):
        if isinstance(protocol, str) and protocol not in _PROTOCOLS:
            raise ValueError(f"{protocol!r} is no protocol")
    if rule.ip_version not in (None, 0, 4, 6):
        raise ValueError(f"ipVersion must be 4 or 6, not {rule.ip_version}")
    for match in (rule.icmp, rule.not_icmp):
        if match is not None and not (0 <= (match.type or 0) <= 254 and 0 <= (match.code or 0) <= 255):
            raise ValueError(f"icmp: type {match.type} and code {match.code} cannot be")
