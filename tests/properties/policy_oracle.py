"""The policy calculation written the plain way: everything from scratch, from the facts of the data model, with no
index, no counts and no memory. It knows the resources, the selector's tree and the published values, and nothing else
of the product.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import math

from libs import model
from libs.model import selector as sel
from libs.policy.changes import NodeView
from libs.policy.output import (
    Action,
    Host,
    IPSet,
    IPSetType,
    Policy,
    PolicyKey,
    PortRange,
    Profile,
    Rule,
    RuleOrigin,
    ServiceAccountMatch,
    Tier,
    Workload,
    WorkloadKey,
)

NS = "projectcalico.org/namespace"
SA = "projectcalico.org/serviceaccount"
DENY = (Rule(action=Action.DENY),)
ALLOW = (Rule(action=Action.ALLOW),)


def truth(node: sel.Node, labels: dict[str, str]) -> bool:
    """Section 4 of the data model, operator by operator."""
    match node:
        case sel.All() | sel.Global():
            return True
        case sel.Has(key):
            return key in labels
        case sel.Equal(key, value):
            return key in labels and labels[key] == value
        case sel.NotEqual(key, value):
            return key not in labels or labels[key] != value
        case sel.In(key, values):
            return key in labels and labels[key] in values
        case sel.NotIn(key, values):
            return key not in labels or labels[key] not in values
        case sel.Contains(key, value):
            return key in labels and value in labels[key]
        case sel.StartsWith(key, value):
            return key in labels and labels[key].startswith(value)
        case sel.EndsWith(key, value):
            return key in labels and labels[key].endswith(value)
        case sel.Not(operand):
            return not truth(operand, labels)
        case sel.And(operands):
            return all(truth(operand, labels) for operand in operands)
        case sel.Or(operands):
            return any(truth(operand, labels) for operand in operands)


def hashed(prefix: str, text: str) -> str:
    digest = hashlib.sha224(f"{prefix}:{text}".encode()).digest()
    return f"{prefix}:{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def select(text: str, labels: dict[str, str]) -> bool:
    return truth(sel.parse(text).root, labels)


def net(text: str) -> str:
    return str(ipaddress.ip_network(text, strict=False))


class Item:
    """An endpoint or network set."""

    def __init__(
        self, labels: dict[str, str], parents: list[str], nets: list[str], ports: list[tuple[str, str, int]]
    ) -> None:
        self.labels = labels
        self.parents = parents
        self.nets = nets
        self.ports = ports


class Oracle:
    def __init__(self, resources: dict[str, model.Resource], asked: set[str]) -> None:
        self.resources = list(resources.values())
        self.profiles = {r.metadata.name: r for r in self.resources if isinstance(r, model.Profile)}
        self.tiers = {r.metadata.name: r.spec for r in self.resources if isinstance(r, model.Tier)}
        self.endpoints: list[tuple[str, WorkloadKey | str, model.Resource, Item]] = []
        self.items: list[Item] = []
        for resource in self.resources:
            self.add_item(resource)
        for item in self.items:
            for parent in item.parents:
                inherited = self.profiles[parent].spec.labels_to_apply if parent in self.profiles else {}
                item.labels = {**inherited, **item.labels}
        self.policies = {
            PolicyKey(r.kind, r.metadata.name, r.metadata.namespace): r.spec
            for r in self.resources
            if isinstance(
                r,
                model.NetworkPolicy
                | model.GlobalNetworkPolicy
                | model.StagedNetworkPolicy
                | model.StagedGlobalNetworkPolicy,
            )
            and getattr(r.spec, "staged_action", "") != "Delete"
        }
        named = {r.metadata.name for r in self.resources if isinstance(r, model.Node)}
        self.nodes = asked | named | {node for node, _, _, _ in self.endpoints}

    def add_item(self, r: model.Resource) -> None:
        meta = r.metadata
        if isinstance(r, model.WorkloadEndpoint) and r.spec.ip_networks:
            labels = {k: v for k, v in meta.labels.items() if not k.startswith(("pcns.", "pcsa."))}
            labels[NS] = meta.namespace
            if r.spec.service_account_name:
                labels[SA] = r.spec.service_account_name
            key: WorkloadKey | str = WorkloadKey("k8s", f"{meta.namespace}/{r.spec.pod}", r.spec.endpoint)
            nets, ports = r.spec.ip_networks, r.spec.ports
        elif isinstance(r, model.HostEndpoint):
            labels, key, nets, ports = dict(meta.labels), meta.name, r.spec.expected_ips, r.spec.ports
        elif isinstance(r, model.NetworkSet):
            labels = {**meta.labels, NS: meta.namespace}
            self.items.append(Item(labels, [f"kns.{meta.namespace}"], [net(one) for one in r.spec.nets], []))
            return
        elif isinstance(r, model.GlobalNetworkSet):
            self.items.append(Item(dict(meta.labels), [], [net(one) for one in r.spec.nets], []))
            return
        else:
            return
        named = [(port.name, port.protocol.lower(), port.port) for port in ports]
        # Labels of the first profile win over those of later ones: inherit from the last to the first.
        item = Item(labels, list(r.spec.profiles), [net(one) for one in nets], named)
        self.items.append(item)
        self.endpoints.append((r.spec.node, key, r, item))

    # --- selectors ---

    def policy_text(self, key: PolicyKey) -> str:
        spec = self.policies[key]
        text = spec.selector
        if key.namespace:
            text = f"({text}) && {NS} == '{key.namespace}'" if text else f"{NS} == '{key.namespace}'"
        for other, prefix, has in (
            (getattr(spec, "namespace_selector", ""), "pcns.", NS),
            (spec.service_account_selector, "pcsa.", SA),
        ):
            if other:
                prefixed = self.prefixed(other, prefix)
                text = f"({text}) && {prefixed}" if text else prefixed
                text = text.replace("all()", f"has({has})")
        return text

    @staticmethod
    def prefixed(text: str, prefix: str) -> str:
        """Only for what the strategies make: has(x), x == 'y' and all()."""
        if text == "all()":
            return text
        if text.startswith("has("):
            return text.replace("has(", f"has({prefix}")
        key, _, value = text.partition(" == ")
        return f'{prefix}{key} == "{value[1:-1]}"'

    def entity_text(self, entity: model.EntityRule, namespace: str) -> str:
        parts = []
        if entity.service_accounts is not None:
            names = ", ".join(f"'{name}'" for name in entity.service_accounts.names)
            parts.append(f"{SA} in {{{names}}}")
        if entity.selector:
            parts.append(entity.selector)
        text = parts[0] if len(parts) == 1 else "" if not parts else f"({parts[0]}) && ({parts[1]})"
        outer = ""
        if entity.namespace_selector == "global()":
            outer = f"!has({NS})"
        elif entity.namespace_selector == "all()":
            outer = f"has({NS})"
        elif entity.namespace_selector:
            outer = self.prefixed(entity.namespace_selector, "pcns.")
        elif namespace and (text or entity.not_selector):
            outer = f"{NS} == '{namespace}'"
        if outer:
            text = f"({outer}) && ({text})" if text else outer
        return text

    # --- rules and sets ---

    def rules(self, rules: list[model.Rule], namespace: str, sets: dict[str, IPSet]) -> tuple[Rule, ...]:
        return tuple(self.rule(one, namespace, sets) for one in rules)

    def rule(self, one: model.Rule, namespace: str, sets: dict[str, IPSet]) -> Rule:
        fields: dict[str, object] = {}
        words: dict[str, object] = {}
        protocol = one.protocol.lower() if one.protocol is not None else None
        for side, entity in (("src", one.source), ("dst", one.destination)):
            entity = entity or model.EntityRule()
            text, negative = self.entity_text(entity, namespace), entity.not_selector
            if text and negative:
                text, negative = f"({text}) && (!({negative}))", ""
            numbers, names = [], []
            for port in entity.ports:
                (names if port.is_name else numbers).append(port)
            fields[f"{side}_nets"] = tuple(entity.nets)
            fields[f"not_{side}_nets"] = tuple(entity.not_nets)
            fields[f"{side}_ports"] = tuple(PortRange(port.min, port.max) for port in numbers)
            fields[f"{side}_named_port_sets"] = tuple(self.port_set(text, protocol or "any", n, sets) for n in names)
            if text and (numbers or not names):
                fields[f"{side}_sets"] = (self.net_set(text, sets),)
            if negative:
                fields[f"not_{side}_sets"] = (self.net_set(negative, sets),)
            words[f"{side}_selector"] = entity.selector
            words[f"not_{side}_selector"] = entity.not_selector
            words[f"{side}_namespace_selector"] = entity.namespace_selector
            if entity.service_accounts is not None:
                words[f"{side}_service_accounts"] = ServiceAccountMatch("", tuple(entity.service_accounts.names))
        origin = RuleOrigin(**words)
        actions = {"Allow": Action.ALLOW, "Deny": Action.DENY, "Pass": Action.PASS, "Log": Action.LOG}
        return Rule(
            action=actions[one.action],
            protocol=protocol,
            origin=None if origin == RuleOrigin() else origin,
            **fields,
        )

    def net_set(self, text: str, sets: dict[str, IPSet]) -> str:
        set_id = hashed("s", sel.parse(text).canonical)
        members = {one for item in self.items if select(text, item.labels) for one in item.nets}
        networks = {one: ipaddress.ip_network(one) for one in members}
        visible = {
            one
            for one in members
            if not any(
                one != other and networks[one].version == cover.version and networks[one].subnet_of(cover)
                for other, cover in networks.items()
            )
        }
        sets[set_id] = IPSet(IPSetType.NET, frozenset(visible))
        return set_id

    def port_set(self, text: str, protocol: str, name: str, sets: dict[str, IPSet]) -> str:
        set_id = hashed("n", f"{hashed('s', sel.parse(text).canonical)},{protocol},{name}")
        sets[set_id] = IPSet(
            IPSetType.IP_PORT,
            frozenset(
                f"{one.split('/')[0]},{port_protocol}:{number}"
                for item in self.items
                if select(text, item.labels)
                for one in item.nets
                for port_name, port_protocol, number in item.ports
                if port_name == name and protocol in ("any", port_protocol)
            ),
        )
        return set_id

    # --- one node ---

    def view(self, node: str) -> NodeView:
        workloads: dict[WorkloadKey, Workload] = {}
        hosts: dict[str, Host] = {}
        active: set[PolicyKey] = set()
        used: set[str] = set()
        if node in self.nodes:
            active |= {k for k, spec in self.policies.items() if "AssumeNeededOnEveryNode" in spec.performance_hints}
        for where, key, resource, item in self.endpoints:
            if where != node:
                continue
            matching = {k for k in self.policies if select(self.policy_text(k), item.labels)}
            active |= matching
            used |= set(resource.spec.profiles)
            if isinstance(key, WorkloadKey):
                workloads[key] = self.workload(resource, item, matching)
            else:
                hosts[key] = self.host(resource, matching)
        sets: dict[str, IPSet] = {}
        policies = {key: self.policy(key, sets) for key in active}
        profiles = {name: self.profile(name, sets) for name in used}
        return NodeView(workloads=workloads, hosts=hosts, policies=policies, profiles=profiles, ipsets=sets)

    def policy(self, key: PolicyKey, sets: dict[str, IPSet]) -> Policy:
        spec = self.policies[key]
        return Policy(
            tier=spec.tier or "default",
            namespace=key.namespace,
            inbound=self.rules(spec.ingress, key.namespace, sets),
            outbound=self.rules(spec.egress, key.namespace, sets),
            selector=sel.parse(self.policy_text(key)).canonical,
            untracked=getattr(spec, "do_not_track", False),
            pre_dnat=getattr(spec, "pre_dnat", False),
            performance_hints=tuple(spec.performance_hints),
        )

    def profile(self, name: str, sets: dict[str, IPSet]) -> Profile:
        if name in self.profiles:
            spec = self.profiles[name].spec
            return Profile(inbound=self.rules(spec.ingress, "", sets), outbound=self.rules(spec.egress, "", sets))
        rules = ALLOW if name == "projectcalico-default-allow" else DENY
        return Profile(inbound=rules, outbound=rules)

    def workload(self, r: model.WorkloadEndpoint, item: Item, matching: set[PolicyKey]) -> Workload:
        own = {k: v for k, v in r.metadata.labels.items() if not k.startswith(("pcns.", "pcsa."))}
        own[NS] = r.metadata.namespace
        if r.spec.service_account_name:
            own[SA] = r.spec.service_account_name
        return Workload(
            name=r.spec.interface_name,
            profiles=tuple(r.spec.profiles),
            nets4=tuple(one for one in item.nets if ":" not in one),
            nets6=tuple(one for one in item.nets if ":" in one),
            tiers=self.arranged(matching, "normal"),
            labels=own,
        )

    def host(self, r: model.HostEndpoint, matching: set[PolicyKey]) -> Host:
        return Host(
            name=r.spec.interface_name,
            profiles=tuple(r.spec.profiles),
            expected4=tuple(one for one in r.spec.expected_ips if ":" not in one),
            expected6=tuple(one for one in r.spec.expected_ips if ":" in one),
            tiers=self.arranged(matching, "normal"),
            untracked_tiers=self.arranged(matching, "untracked"),
            pre_dnat_tiers=self.arranged(matching, "pre_dnat"),
            forward_tiers=self.arranged(matching, "forward"),
        )

    def arranged(self, matching: set[PolicyKey], part: str) -> tuple[Tier, ...]:
        chosen = {}
        for key in matching:
            spec = self.policies[key]
            untracked, pre_dnat = getattr(spec, "do_not_track", False), getattr(spec, "pre_dnat", False)
            forward = getattr(spec, "apply_on_forward", False)
            belongs = {
                "normal": not untracked and not pre_dnat,
                "forward": not untracked and not pre_dnat and forward,
                "untracked": untracked,
                "pre_dnat": pre_dnat and not untracked,
            }
            if belongs[part]:
                chosen[key] = spec
        found = []
        for name in sorted({spec.tier or "default" for spec in chosen.values()}, key=self.tier_key):
            inside = [key for key, spec in chosen.items() if (spec.tier or "default") == name]
            inside.sort(
                key=lambda key: (
                    math.inf if chosen[key].order is None else chosen[key].order,
                    f"{key.name}/{key.namespace}/{key.kind}",
                )
            )
            ingress = tuple(key for key in inside if "Ingress" in chosen[key].types)
            egress = tuple(key for key in inside if "Egress" in chosen[key].types) if part != "pre_dnat" else ()
            action = self.tiers[name].default_action if name in self.tiers else "Deny"
            if part in ("untracked", "pre_dnat"):
                action = "Pass"
            if ingress or egress:
                found.append(Tier(name=name, default_action=action, ingress=ingress, egress=egress))
        return tuple(found)

    def tier_key(self, name: str) -> tuple[bool, float, str]:
        order = self.tiers[name].order if name in self.tiers else None
        return (name not in self.tiers, math.inf if order is None else order, name)
