"""Kubernetes' policies in Calico's words, case by case from the tables of the conversion's facts.

Both kinds become a `Plain` policy. Where a part means nothing, an allowing rule goes and a denying or passing one
denies; ValueError is for what must count as absent.
"""

from __future__ import annotations

from typing import NamedTuple

from libs import model
from libs.model.kubernetes import ClusterPolicyPeer, ClusterPolicyRule, ClusterPolicySpec
from libs.model.policy import KubernetesPeer, KubernetesPort, LabelSelector, StagedKubernetesNetworkPolicySpec
from tests.properties.rule_oracle import net

PODS = "projectcalico.org/orchestrator == 'k8s'"


class Plain(NamedTuple):
    """Of a policy, what the calculation needs."""

    tier: str
    order: float | None
    selector: str
    ingress: list[model.Rule]
    egress: list[model.Rule]
    types: list[str]
    namespace_selector: str = ""
    service_account_selector: str = ""
    performance_hints: tuple[str, ...] = ()
    do_not_track: bool = False
    pre_dnat: bool = False
    apply_on_forward: bool = False


def terms(selector: LabelSelector) -> list[str]:
    found = [f"{key} == '{selector.match_labels[key]}'" for key in sorted(selector.match_labels)]
    for one in selector.match_expressions:
        values = ", ".join(f"'{value}'" for value in one.values)
        if one.operator not in ("In", "NotIn", "Exists", "DoesNotExist"):
            raise ValueError(one.operator)
        found.append(
            {
                "In": f"{one.key} in {{ {values} }}",
                "NotIn": f"{one.key} not in {{ {values} }}",
                "Exists": f"has({one.key})",
                "DoesNotExist": f"! has({one.key})",
            }[one.operator]
        )
    return found


def pods(selector: LabelSelector | None) -> str:
    return " && ".join([PODS, *(terms(selector) if selector is not None else [])])


def namespaces(selector: LabelSelector | None) -> str:
    if selector is None:
        return ""
    return " && ".join(terms(selector)) or "all()"


# --- NetworkPolicy ----------------------------------------------------------------------------------------------------


def network_policy(spec: StagedKubernetesNetworkPolicySpec) -> Plain:
    directions: dict[str, list[model.Rule]] = {"ingress": [], "egress": []}
    for name, listed in (("ingress", spec.ingress), ("egress", spec.egress)):
        for rule in listed:
            peers = rule.from_ if name == "ingress" else rule.to
            try:
                made = [
                    model.Rule(action="Allow", protocol=protocol, **ends(name, entity, ports))
                    for protocol, ports in protocols(rule.ports)
                    for entity in ([peer(one) for one in peers] or [{}])
                ]
            except ValueError:
                continue  # the whole rule goes, the others stay
            directions[name] += made
    return Plain("default", 1000.0, pods(spec.pod_selector), **directions, types=spec.policy_types or ["Ingress"])


def ends(direction: str, entity: dict[str, object], ports: list[model.Port]) -> dict[str, model.EntityRule]:
    """The peer is the source of what comes in and the destination of what goes out; ports are always of the latter."""
    if direction == "ingress":
        return {"source": model.EntityRule(**entity), "destination": model.EntityRule(ports=ports)}
    return {"destination": model.EntityRule(**entity, ports=ports)}


def peer(one: KubernetesPeer) -> dict[str, object]:
    if one.ip_block is not None:
        return {"nets": [net(one.ip_block.cidr)], "not_nets": [net(cidr) for cidr in one.ip_block.except_]}
    return {"selector": pods(one.pod_selector), "namespace_selector": namespaces(one.namespace_selector)}


def protocols(listed: list[KubernetesPort]) -> list[tuple[model.Protocol | None, list[model.Port]]]:
    if not listed:
        return [(None, [])]
    names = sorted({entry.protocol or "TCP" for entry in listed})
    found = []
    for name in names:
        mine = [entry for entry in listed if (entry.protocol or "TCP") == name]
        ports = [port(entry.port, entry.end_port) for entry in mine if entry.port is not None]
        if len(ports) < len(mine):
            ports = []  # one entry stands for all ports
        found.append((model.Protocol(name), simplified(ports)))
    return found


def port(first: int | str, last: int | None) -> model.Port:
    if isinstance(first, str):
        if last is not None:
            raise ValueError(first)
        return model.Port(first)
    if not 1 <= first <= (first if last is None else last) <= 65535:
        raise ValueError(first)
    return model.Port(f"{first}:{first if last is None else last}")


def simplified(ports: list[model.Port]) -> list[model.Port]:
    """With two numeric entries or more: the names, then the fewest ranges that hold the same numbers."""
    numeric = [one for one in ports if not one.is_name]
    if len(numeric) < 2:
        return ports
    numbers = sorted({number for one in numeric for number in range(one.min, one.max + 1)})
    ranges = [one for one in ports if one.is_name]
    start = numbers[0]
    for number, following in zip(numbers, [*numbers[1:], None], strict=True):
        if following != number + 1:
            ranges.append(model.Port(f"{start}:{number}"))
            start = following or 0
    return ranges


# --- ClusterNetworkPolicy ---------------------------------------------------------------------------------------------


def cluster_policy(spec: ClusterPolicySpec) -> Plain | None:
    """None when it has no rules, so no direction counts."""
    types = [name for name, listed in (("Ingress", spec.ingress), ("Egress", spec.egress)) if listed]
    if not types:
        return None
    tier = {"Admin": "kube-admin", "Baseline": "kube-baseline"}.get(spec.tier)
    subject = spec.subject
    if tier is None or (subject.namespaces is None) == (subject.pods is None):
        raise ValueError(spec.tier)
    chosen = entity_of(subject.namespaces, subject.pods)
    return Plain(
        tier,
        float(spec.priority),
        str(chosen["selector"]),
        [made for rule in spec.ingress for made in cluster_rule(rule, "ingress")],
        [made for rule in spec.egress for made in cluster_rule(rule, "egress")],
        types,
        namespace_selector=str(chosen["namespace_selector"]),
    )


def entity_of(of_namespaces: LabelSelector | None, of_pods: object) -> dict[str, object]:
    if of_pods is None:
        return {"selector": PODS, "namespace_selector": namespaces(of_namespaces)}
    return {
        "selector": pods(of_pods.pod_selector),
        "namespace_selector": namespaces(of_pods.namespace_selector),
    }


def cluster_rule(rule: ClusterPolicyRule, direction: str) -> list[model.Rule]:
    try:
        return list(understood(rule, direction))
    except ValueError:
        return [] if rule.action == "Accept" else [model.Rule(action="Deny")]


def understood(rule: ClusterPolicyRule, direction: str) -> list[model.Rule]:
    action = {"Accept": "Allow", "Deny": "Deny", "Pass": "Pass"}.get(rule.action)
    peers = rule.from_ if direction == "ingress" else rule.to
    if action is None or not peers:
        raise ValueError(rule.action)
    metadata = model.RuleMetadata(annotations={"name": rule.name}) if rule.name else None
    transports: list[tuple[model.Protocol | None, list[model.Port]]] = []
    for one in rule.protocols:
        if one.destination_named_port:
            transports.append((None, [port(one.destination_named_port, None)]))
            continue
        given = [(name, t) for name, t in (("TCP", one.tcp), ("UDP", one.udp), ("SCTP", one.sctp)) if t is not None]
        ((name, transport),) = given  # exactly one
        number = transport.destination_port
        if number is None:
            transports.append((model.Protocol(name), []))
        elif (number.number is None) is (number.range is None):
            raise ValueError(name)
        elif number.range is None:
            transports.append((model.Protocol(name), [port(number.number, None)]))
        else:
            transports.append((model.Protocol(name), [port(number.range.start, number.range.end)]))
    return [
        model.Rule(action=action, protocol=protocol, metadata=metadata, **ends(direction, entity, ports))
        for protocol, ports in transports or [(None, [])]
        for entity in [cluster_peer(one, direction) for one in peers]
    ]


def cluster_peer(one: ClusterPolicyPeer, direction: str) -> dict[str, object]:
    given = [one.namespaces is not None, one.pods is not None, bool(one.networks)]
    if given.count(True) != 1 or (one.networks and direction == "ingress"):
        raise ValueError(given)
    if one.networks:
        return {"nets": [net(cidr) for cidr in one.networks]}
    return entity_of(one.namespaces, one.pods)
