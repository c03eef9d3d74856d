"""Kubernetes network policies as Calico policies (facts/kubernetes-conversion.md sections 3 and 4). Pure.

    NetworkPolicy          one Allow rule for each protocol and peer, isolating by its types; order 1000, tier default
    ClusterNetworkPolicy   tier Admin → kube-admin, Baseline → kube-baseline; order = priority

What cannot be understood fails closed: an allowing rule is left out, a denying or passing one denies everything. The
API server refuses most of it before; what is left out is told in `problems`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from libs import model
from libs.model import kubernetes as k8s
from libs.model.policy import (
    KubernetesEgressRule,
    KubernetesIngressRule,
    KubernetesPeer,
    KubernetesPort,
    LabelSelector,
    StagedKubernetesNetworkPolicySpec,
)
from libs.model.scalars import Port, Protocol
from libs.policy import nets

ORCHESTRATOR = "projectcalico.org/orchestrator == 'k8s'"
ORDER = 1000.0
DEFAULT_TIER = "default"
TIERS = {"Admin": "kube-admin", "Baseline": "kube-baseline"}
ACTIONS = {"Accept": "Allow", "Deny": "Deny", "Pass": "Pass"}
_NAME_ANNOTATION = "name"


@dataclass(slots=True)
class Converted:
    """spec: of a NetworkPolicy, or of a GlobalNetworkPolicy. problems: what was left out or replaced, and why."""

    spec: model.NetworkPolicySpec | model.GlobalNetworkPolicySpec
    problems: list[str] = field(default_factory=list)


class _Malformed(ValueError):
    """A rule that means nothing."""


# --- NetworkPolicy ----------------------------------------------------------------------------------------------------


def network_policy(spec: StagedKubernetesNetworkPolicySpec) -> Converted:
    """spec: of a Kubernetes NetworkPolicy; the staged kind has the same fields. Raises ValueError for a pod selector
    that means nothing: the policy must be treated as absent.
    """
    problems: list[str] = []
    ingress: list[model.Rule] = []
    egress: list[model.Rule] = []
    for index, incoming in enumerate(spec.ingress):
        try:
            ingress += _ingress(incoming)
        except _Malformed as error:
            problems.append(f"ingress[{index}]: {error}")
    for index, outgoing in enumerate(spec.egress):
        try:
            egress += _egress(outgoing)
        except _Malformed as error:
            problems.append(f"egress[{index}]: {error}")
    selector = " && ".join([ORCHESTRATOR, *_terms(spec.pod_selector)])
    types = list(spec.policy_types) or ["Ingress"]
    made = model.NetworkPolicySpec(
        tier=DEFAULT_TIER, order=ORDER, selector=selector, types=types, ingress=ingress, egress=egress
    )
    return Converted(made, problems)


def _ingress(rule: KubernetesIngressRule) -> list[model.Rule]:
    return [
        _allow(protocol, source=peer, destination=_destination(ports))
        for protocol, ports in _ports(rule.ports)
        for peer in _peers(rule.from_)
    ]


def _egress(rule: KubernetesEgressRule) -> list[model.Rule]:
    return [
        _allow(protocol, source=None, destination=_destination(ports, peer))
        for protocol, ports in _ports(rule.ports)
        for peer in _peers(rule.to)
    ]


def _allow(protocol: str | None, source: model.EntityRule | None, destination: model.EntityRule | None) -> model.Rule:
    rule = model.Rule(action="Allow", protocol=None if protocol is None else Protocol(protocol))
    if source is not None:
        rule.source = source
    if destination is not None:
        rule.destination = destination
    return rule


def _destination(ports: list[Port], peer: model.EntityRule | None = None) -> model.EntityRule | None:
    if not ports:
        return peer
    if peer is None:
        return model.EntityRule(ports=ports)
    return model.EntityRule(
        nets=peer.nets,
        not_nets=peer.not_nets,
        selector=peer.selector,
        namespace_selector=peer.namespace_selector,
        ports=ports,
    )


def _peers(peers: Sequence[KubernetesPeer]) -> list[model.EntityRule | None]:
    """None: everybody."""
    return [_peer(peer) for peer in peers] if peers else [None]


def _peer(peer: KubernetesPeer) -> model.EntityRule:
    if peer.ip_block is not None:
        return model.EntityRule(
            nets=[_network(peer.ip_block.cidr)], not_nets=[_network(cidr) for cidr in peer.ip_block.except_]
        )
    return _pods(peer.pod_selector, peer.namespace_selector)


def _pods(pods: LabelSelector | None, namespaces: LabelSelector | None) -> model.EntityRule:
    terms = _terms(pods) if pods is not None else []
    return model.EntityRule(
        selector=" && ".join([ORCHESTRATOR, *terms]),
        namespace_selector="" if namespaces is None else " && ".join(_terms(namespaces)) or "all()",
    )


def _network(cidr: str) -> str:
    try:
        return nets.canonical(cidr)
    except ValueError:
        raise _Malformed(f"{cidr!r} is no network") from None


def _terms(selector: LabelSelector) -> list[str]:
    """matchLabels by key, then matchExpressions as given."""
    terms = [f"{key} == '{value}'" for key, value in sorted(selector.match_labels.items())]
    for one in selector.match_expressions:
        listed = ", ".join(f"'{value}'" for value in one.values)
        match one.operator:
            case "In":
                terms.append(f"{one.key} in {{ {listed} }}")
            case "NotIn":
                terms.append(f"{one.key} not in {{ {listed} }}")
            case "Exists":
                terms.append(f"has({one.key})")
            case "DoesNotExist":
                terms.append(f"! has({one.key})")
            case _:
                raise _Malformed(f"{one.operator!r} is no operator of a label selector")
    return terms


def _ports(ports: Sequence[KubernetesPort]) -> list[tuple[str | None, list[Port]]]:
    """By protocol, sorted; (None, []) for "all protocols". A protocol without a port takes in its other entries."""
    if not ports:
        return [(None, [])]
    grouped: dict[str, list[Port]] = {}
    whole: set[str] = set()
    for entry in ports:
        protocol = entry.protocol or "TCP"
        mine = grouped.setdefault(protocol, [])
        if entry.port is None:
            whole.add(protocol)
        else:
            mine.append(_port(entry.port, entry.end_port))
    return [(protocol, [] if protocol in whole else merge(grouped[protocol])) for protocol in sorted(grouped)]


def _port(port: int | str, end: int | None) -> Port:
    if end is not None and not isinstance(port, int):
        raise _Malformed(f"endPort needs a port that is a number, not {port!r}")
    if isinstance(port, int) and not (0 < port <= 65535 and (end is None or port <= end <= 65535)):
        raise _Malformed(f"bad port {port}" if end is None else f"bad port range {port} to {end}")
    try:
        return Port(port if end is None else f"{port}:{end}")
    except ValueError as error:
        raise _Malformed(str(error)) from None


def merge(ports: Sequence[Port]) -> list[Port]:
    """Neighbouring and overlapping numbers become ranges when there are at least two; then names stand first."""
    spans = sorted(span for port in ports if (span := _span(port)) is not None)
    if len(spans) < 2:
        return list(ports)
    merged: list[tuple[int, int]] = []
    for first, last in spans:
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    named = [port for port in ports if _span(port) is None]
    return [*named, *(Port(first if first == last else f"{first}:{last}") for first, last in merged)]


def _span(port: Port) -> tuple[int, int] | None:
    first, _, last = str(port).partition(":")
    return (int(first), int(last or first)) if first.isdecimal() else None


# --- ClusterNetworkPolicy ---------------------------------------------------------------------------------------------


def cluster_network_policy(spec: k8s.ClusterPolicySpec) -> Converted:
    """Raises ValueError for a policy whose tier or subject means nothing: it must be treated as absent."""
    tier = TIERS.get(spec.tier)
    if tier is None:
        raise ValueError(f"tier must be one of {', '.join(TIERS)}, not {spec.tier!r}")
    subject = spec.subject
    if (subject.namespaces is None) == (subject.pods is None):
        raise ValueError("subject must have exactly one of namespaces and pods")
    pods = subject.pods or k8s.NamespacedPods()
    entity = _pods(pods.pod_selector, subject.namespaces or pods.namespace_selector)
    problems: list[str] = []
    ingress = _cluster_rules("ingress", spec.ingress, problems)
    egress = _cluster_rules("egress", spec.egress, problems)
    types = [name for name, rules in (("Ingress", spec.ingress), ("Egress", spec.egress)) if rules]
    made = model.GlobalNetworkPolicySpec(
        tier=tier,
        order=float(spec.priority),
        selector=entity.selector,
        namespace_selector=entity.namespace_selector,
        types=types,
        ingress=ingress,
        egress=egress,
    )
    return Converted(made, problems)


def _cluster_rules(direction: str, rules: Iterable[k8s.ClusterPolicyRule], problems: list[str]) -> list[model.Rule]:
    out: list[model.Rule] = []
    for index, rule in enumerate(rules):
        try:
            out += _cluster_rule(direction, rule)
        except _Malformed as error:
            problems.append(f"{direction}[{index}]: {error}")
            if rule.action != "Accept":
                out.append(model.Rule(action="Deny"))
    return out


def _cluster_rule(direction: str, rule: k8s.ClusterPolicyRule) -> list[model.Rule]:
    action = ACTIONS.get(rule.action)
    if action is None:
        raise _Malformed(f"action must be one of {', '.join(ACTIONS)}, not {rule.action!r}")
    peers = rule.from_ if direction == "ingress" else rule.to
    if not peers:
        raise _Malformed("no peer is named")
    out = []
    for protocol, ports in _cluster_protocols(rule.protocols):
        for peer in peers:
            entity = _cluster_peer(direction, peer)
            made = _allow(
                protocol,
                source=entity if direction == "ingress" else None,
                destination=_destination(ports, entity if direction == "egress" else None),
            )
            made.action = action
            if rule.name:
                made.metadata = model.RuleMetadata(annotations={_NAME_ANNOTATION: rule.name})
            out.append(made)
    return out


def _cluster_peer(direction: str, peer: k8s.ClusterPolicyPeer) -> model.EntityRule:
    if sum((peer.namespaces is not None, peer.pods is not None, bool(peer.networks))) != 1:
        raise _Malformed("a peer must have exactly one of namespaces, pods and networks")
    if peer.networks:
        if direction == "ingress":
            raise _Malformed("networks are for egress rules")
        return model.EntityRule(nets=[_network(cidr) for cidr in peer.networks])
    pods = peer.pods or k8s.NamespacedPods()
    return _pods(pods.pod_selector, peer.namespaces or pods.namespace_selector)


def _cluster_protocols(protocols: Sequence[k8s.ClusterPolicyProtocol]) -> list[tuple[str | None, list[Port]]]:
    if not protocols:
        return [(None, [])]
    out: list[tuple[str | None, list[Port]]] = []
    for one in protocols:
        if one.destination_named_port:
            out.append((None, [_port(one.destination_named_port, None)]))
            continue
        chosen = [(name, t) for name, t in (("TCP", one.tcp), ("UDP", one.udp), ("SCTP", one.sctp)) if t is not None]
        if len(chosen) != 1:
            raise _Malformed("a protocol must be exactly one of tcp, udp, sctp and a named port")
        name, transport = chosen[0]
        out.append((name, _transport_ports(transport)))
    return out


def _transport_ports(transport: k8s.ClusterPolicyTransport) -> list[Port]:
    port = transport.destination_port
    if port is None:
        return []
    if (port.number is None) == (port.range is None):
        raise _Malformed("a port must be either a number or a range")
    if port.range is not None:
        return [_port(port.range.start, port.range.end)]
    assert port.number is not None
    return [_port(port.number, None)]
