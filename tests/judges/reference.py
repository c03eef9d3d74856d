"""The first judge: what policy means, read off the data model and written down the plain way.

It knows the resources and the selector's tree, and nothing else of the product: no compiled rule, no IP set, no order
that somebody else has worked out. What an endpoint makes of a packet is its tiers and profiles, one after the other
(path.py tells which endpoints a packet meets); every criterion of every rule on the way is looked at on its own, which
also tells how often each kind of match was asked.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_network

from libs import model
from libs.model import selector as sel
from libs.model.kubernetes import KubernetesEndpointSlice
from libs.testkit.packets import Packet
from tests.judges.draw import NODE
from tests.judges.path import FORWARD, NORMAL, PRE_DNAT, UNTRACKED
from tests.properties.rule_oracle import truth

Address = IPv4Address | IPv6Address
NAMESPACE, ACCOUNT = "projectcalico.org/namespace", "projectcalico.org/serviceaccount"
NUMBERS = {"ICMP": 1, "TCP": 6, "UDP": 17, "ICMPv6": 58, "SCTP": 132, "UDPLite": 136}
PORT_PROTOCOLS = (6, 17, 132)  # that an endpoint can give names in
ALLOW_PROFILE = "projectcalico-default-allow"
Policy = model.NetworkPolicy | model.GlobalNetworkPolicy
Criterion = tuple[str, bool]  # kind of match ("not …" for the negated ones), whether it holds
Labels = dict[str, str]


@dataclass
class Counters:
    """How often a rule with this kind of match met a packet, how often that match held, and how often the rule matched
    or not by this match alone, all its others being true."""

    asked: Counter[str] = field(default_factory=Counter)
    held: Counter[str] = field(default_factory=Counter)
    decided: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)  # of rules that matched
    verdicts: Counter[str] = field(default_factory=Counter)  # of endpoints, by kind of policy

    def add(self, criteria: Sequence[Criterion]) -> None:
        failed = [kind for kind, holds in criteria if not holds]
        for kind, holds in criteria:
            self.asked[kind] += 1
            self.held[kind] += holds
            self.decided[kind] += not failed or failed == [kind]


@dataclass
class Item:
    """Something that selectors find: an endpoint or a network set, with its effective labels."""

    labels: Labels
    nets: list[str]
    ports: list[tuple[str, int, int]] = field(default_factory=list)  # name, protocol, number

    def has(self, address: Address) -> bool:
        return any(within(address, net) for net in self.nets)


def within(address: Address, net: str) -> bool:
    network = _network(net)
    return address.version == network.version and address in network


_networks: dict[str, object] = {}


def _network(text: str):  # type: ignore[no-untyped-def]
    if text not in _networks:
        _networks[text] = ip_network(text, strict=False)
    return _networks[text]


def matches(text: str, labels: Labels) -> bool:
    return truth(sel.parse(text).root, labels)


def matches_of(prefix: str, presence: str, text: str, labels: Labels) -> bool:
    """A selector over the labels of the namespace or the service account, which items carry under a prefix.

    all() asks whether there is one at all (data model, section 3.4).
    """
    if text == "all()":
        return presence in labels
    return matches(text, carried(prefix, labels))


def carried(prefix: str, labels: Labels) -> Labels:
    return {key.removeprefix(prefix): value for key, value in labels.items() if key.startswith(prefix)}


def number_of(protocol: model.Protocol) -> int:
    text = str(protocol)
    return int(text) if text.isdecimal() else NUMBERS[text]


class Reference:
    """One state of the cluster. `counters` gathers over all packets that are judged."""

    def __init__(self, resources: Iterable[model.Resource], counters: Counters | None = None) -> None:
        everything = list(resources)
        self.counters = counters or Counters()
        self.profiles = {r.metadata.name: r for r in everything if isinstance(r, model.Profile)}
        self.tiers = {r.metadata.name: r.spec for r in everything if isinstance(r, model.Tier)}
        self.policies = [r for r in everything if isinstance(r, Policy)]  # staged ones are never enforced (5.12)
        self.slices = [r for r in everything if isinstance(r, KubernetesEndpointSlice)]
        self.items: list[Item] = []
        self.guarded = False
        self.endpoints: dict[str, tuple[model.WorkloadEndpoint | model.HostEndpoint, Item]] = {}  # of this node
        for resource in everything:
            self._add(resource)
        self._tiers_of: dict[tuple[str, str, str], list[tuple[str, list[Policy]]]] = {}

    def _add(self, r: model.Resource) -> None:
        if isinstance(r, model.WorkloadEndpoint):
            own = {k: v for k, v in r.metadata.labels.items() if not k.startswith(("pcns.", "pcsa."))}
            own[NAMESPACE] = r.metadata.namespace
            if r.spec.service_account_name:
                own[ACCOUNT] = r.spec.service_account_name
            item = Item(self._inherit(own, r.spec.profiles), r.spec.ip_networks, ports_of(r.spec.ports))
            if r.spec.node == NODE:
                self.endpoints[r.spec.pod] = (r, item)
        elif isinstance(r, model.HostEndpoint):
            item = Item(self._inherit(r.metadata.labels, r.spec.profiles), r.spec.expected_ips, ports_of(r.spec.ports))
            if r.spec.node == NODE:
                self.endpoints[r.metadata.name] = (r, item)
                self.guarded = True
        elif isinstance(r, model.NetworkSet):
            own = {**r.metadata.labels, NAMESPACE: r.metadata.namespace}
            item = Item(self._inherit(own, [f"kns.{r.metadata.namespace}"]), r.spec.nets)
        elif isinstance(r, model.GlobalNetworkSet):
            item = Item(dict(r.metadata.labels), r.spec.nets)
        else:
            return
        self.items.append(item)

    def _inherit(self, own: Labels, profiles: list[str]) -> Labels:
        """An item's own labels win over inherited ones, and an earlier profile's over those of a later one."""
        labels = dict(own)
        for name in profiles:
            if name in self.profiles:
                labels = {**self.profiles[name].spec.labels_to_apply, **labels}
        return labels

    # --- which policies, in which order ---

    def selects(self, policy: Policy, labels: Labels) -> bool:
        spec, selector = policy.spec, policy.spec.selector
        namespaces = getattr(spec, "namespace_selector", "")
        # Calico replaces all() in the joined text, and so in the policy's own selector too.
        if namespaces:
            selector = selector.replace("all()", f"has({NAMESPACE})")
        if spec.service_account_selector:
            selector = selector.replace("all()", f"has({ACCOUNT})")
        if policy.metadata.namespace and labels.get(NAMESPACE) != policy.metadata.namespace:
            return False
        if selector and not matches(selector, labels):
            return False
        if namespaces and not matches_of("pcns.", NAMESPACE, namespaces, labels):
            return False
        accounts = spec.service_account_selector
        return not accounts or matches_of("pcsa.", ACCOUNT, accounts, labels)

    def tiers_of(self, endpoint: str, direction: str, kind: str) -> list[tuple[str, list[Policy]]]:
        """Tiers that take part for an endpoint in a direction (Ingress, Egress), each with its policies in order."""
        key = (endpoint, direction, kind)
        if key not in self._tiers_of:
            labels = self.endpoints[endpoint][1].labels
            mine = [p for p in self.policies if direction in p.spec.types and is_of(p, kind)]
            chosen = [p for p in mine if self.selects(p, labels)]
            names = sorted({p.spec.tier or "default" for p in chosen}, key=self._tier_order)
            self._tiers_of[key] = [
                (name, sorted((p for p in chosen if (p.spec.tier or "default") == name), key=policy_order))
                for name in names
            ]
        return self._tiers_of[key]

    def _tier_order(self, name: str) -> tuple[bool, float, str]:
        order = self.tiers[name].order if name in self.tiers else None
        return (name not in self.tiers, math.inf if order is None else order, name)

    # --- a packet ---

    def says(self, packet: Packet, endpoint: str, direction: str, kind: str) -> str:
        """What an endpoint's policy of one kind makes of a packet: Allow, Deny, or "" for neither.

        Only normal policy has profiles and a final drop; tiers of untracked and pre-DNAT policy pass by default (5.9).
        """
        verdict = self._says(packet, endpoint, direction, kind)
        self.counters.verdicts[f"{kind} {verdict or 'no decision'}"] += 1
        return verdict

    def _says(self, packet: Packet, endpoint: str, direction: str, kind: str) -> str:
        for name, policies in self.tiers_of(endpoint, direction, kind):
            rules = [(rule, one.metadata.namespace) for one in policies for rule in rules_of(one, direction)]
            decision = self._first(rules, packet)
            if decision in ("Allow", "Deny"):
                return decision
            if decision == "Pass" or kind in (UNTRACKED, PRE_DNAT):
                continue
            action = self.tiers[name].default_action if name in self.tiers else "Deny"
            if action != "Pass":
                return "Deny"
        if kind != NORMAL:
            return ""
        for name in self.endpoints[endpoint][0].spec.profiles:
            if name not in self.profiles:
                return "Allow" if name == ALLOW_PROFILE else "Deny"  # one that does not exist denies everything
            decision = self._first(((rule, "") for rule in rules_of(self.profiles[name], direction)), packet)
            if decision in ("Allow", "Deny"):
                return decision
        return "Deny"

    def _first(self, rules: Iterable[tuple[model.Rule, str]], packet: Packet) -> str:
        """Action of the first rule that matches and decides; "" when none does."""
        for rule, namespace in rules:
            criteria = list(self.criteria(rule, namespace, packet))
            self.counters.add(criteria)
            if all(holds for _, holds in criteria):
                self.counters.actions[rule.action] += 1
                if rule.action != "Log":
                    return rule.action
        return ""

    def criteria(self, rule: model.Rule, namespace: str, packet: Packet) -> Iterator[Criterion]:
        """namespace: that of the rule's policy, "" for a global one."""
        if rule.ip_version is not None:
            yield "ipVersion", packet.version == rule.ip_version
        if rule.protocol is not None:
            yield protocol_kind(rule.protocol), packet.protocol == number_of(rule.protocol)
        if rule.not_protocol is not None:
            yield f"not {protocol_kind(rule.not_protocol)}", packet.protocol != number_of(rule.not_protocol)
        for wanted, sign in ((rule.icmp, True), (rule.not_icmp, False)):
            if wanted is not None:
                kind = "icmp type" if wanted.code is None else "icmp type and code"
                same = wanted.type == packet.icmp_type and wanted.code in (None, packet.icmp_code)
                yield f"{'' if sign else 'not '}{kind}", same is sign
        for side, entity in (("source", rule.source), ("destination", rule.destination)):
            if entity is not None:
                yield from self._side(side, entity, namespace, packet)

    def _side(self, side: str, entity: model.EntityRule, namespace: str, packet: Packet) -> Iterator[Criterion]:
        address, port = (packet.src, packet.sport) if side == "source" else (packet.dst, packet.dport)
        if entity.nets:
            yield f"{side} nets", any(within(address, net) for net in entity.nets)
        if entity.not_nets:
            # A rule's networks are of one family, and a rule whose networks are of the other family is left out.
            ours = all(_network(net).version == address.version for net in entity.not_nets)
            yield f"not {side} nets", ours and not any(within(address, net) for net in entity.not_nets)
        selected = [item for item in self.items if self._selected(entity, namespace, item)]
        found = any(item.has(address) for item in selected)
        restricted = self._restricts(entity, namespace)
        for present, kind in (
            (entity.selector, "selector"),
            (entity.namespace_selector and entity.namespace_selector != "global()", "namespaceSelector"),
            (entity.namespace_selector == "global()", "global()"),
            (entity.service_accounts is not None and entity.service_accounts.names, "serviceAccounts names"),
            (entity.service_accounts is not None and entity.service_accounts.selector, "serviceAccounts selector"),
        ):
            if present:
                yield f"{side} {kind}", found
        if entity.not_selector:
            # With a positive selector it narrows what that one finds; alone it excludes what it finds itself, so
            # that addresses outside the cluster still match.
            excluded = any(item.has(address) and matches(entity.not_selector, item.labels) for item in self.items)
            yield f"not {side} selector", found if restricted else not excluded
        if entity.ports:
            yield from self._ports(side, "", entity.ports, address, port, packet.protocol, selected)
        if entity.not_ports:
            yield from self._ports(side, "not ", entity.not_ports, address, port, packet.protocol, selected)
        if entity.services is not None:
            where = entity.services.namespace or namespace
            yield f"{side} service", self._service(side, entity.services.name, where, address, port, packet.protocol)

    @staticmethod
    def _restricts(entity: model.EntityRule, namespace: str) -> bool:
        positive = entity.selector or entity.namespace_selector or entity.service_accounts is not None
        return bool(positive or (namespace and entity.not_selector))

    def _selected(self, entity: model.EntityRule, namespace: str, item: Item) -> bool:
        """Whether an item is one that the side of the rule speaks of; every item if it names none."""
        labels, accounts = item.labels, entity.service_accounts
        if entity.selector and not matches(entity.selector, labels):
            return False
        if accounts is not None and accounts.names and labels.get(ACCOUNT) not in accounts.names:
            return False
        # Only a policy's own serviceAccountSelector turns all() into "has a service account".
        if accounts is not None and accounts.selector and not matches(accounts.selector, carried("pcsa.", labels)):
            return False
        if entity.namespace_selector == "global()":
            if NAMESPACE in labels:
                return False
        elif entity.namespace_selector:
            if not matches_of("pcns.", NAMESPACE, entity.namespace_selector, labels):
                return False
        elif namespace and self._restricts(entity, namespace) and labels.get(NAMESPACE) != namespace:
            return False
        narrowed = entity.not_selector and self._restricts(entity, namespace)
        return not (narrowed and matches(entity.not_selector, labels))

    @staticmethod
    def _ports(
        side: str, sign: str, ports: list[model.Port], address: Address, port: int, protocol: int, items: list[Item]
    ) -> Iterator[Criterion]:
        """Numbers, ranges and names are alternatives, so each kind that is there has the same answer."""
        hit, kinds = False, []
        for one in ports:
            text = str(one)
            if text.replace(":", "").isdecimal():
                first, _, last = text.partition(":")
                hit |= int(first) <= port <= int(last or first)
                kinds.append("port range" if last else "port")
            else:
                hit |= any(
                    (name, number) == (text, port) and protocol == of and item.has(address)
                    for item in items
                    for name, of, number in item.ports
                )
                kinds.append("named port")
        for kind in dict.fromkeys(kinds):
            yield f"{sign}{side} {kind}", hit is (sign == "")

    def _service(self, side: str, name: str, namespace: str, address: Address, port: int, protocol: int) -> bool:
        """Source: one of the service's addresses. Destination: also one of its ports, by protocol and number."""
        for one in self.slices:
            labels = one.metadata.labels
            if one.metadata.namespace != namespace or labels.get("kubernetes.io/service-name") != name:
                continue
            if any(within(address, text) for endpoint in one.endpoints for text in endpoint.addresses) and (
                side == "source" or any(NUMBERS[p.protocol or "TCP"] == protocol and p.port == port for p in one.ports)
            ):
                return True
        return False


def is_of(policy: Policy, kind: str) -> bool:
    """Whether a policy is of a kind: untracked and pre-DNAT policy is nothing else; some normal policy is for forwarded
    packets too (5.8, 5.9)."""
    spec = policy.spec
    if not isinstance(spec, model.GlobalNetworkPolicySpec):
        return kind == NORMAL
    if spec.do_not_track or spec.pre_dnat:
        return kind == (UNTRACKED if spec.do_not_track else PRE_DNAT)
    return kind == NORMAL or (kind == FORWARD and spec.apply_on_forward)


def rules_of(owner: Policy | model.Profile, direction: str) -> list[model.Rule]:
    return owner.spec.ingress if direction == "Ingress" else owner.spec.egress


def policy_order(policy: Policy) -> tuple[float, str]:
    order, meta = policy.spec.order, policy.metadata
    return (math.inf if order is None else order, f"{meta.name}/{meta.namespace}/{policy.kind}")


def protocol_kind(protocol: model.Protocol) -> str:
    return "protocol number" if str(protocol).isdecimal() else "protocol name"


def ports_of(ports: Iterable[model.EndpointPort | model.WorkloadEndpointPort]) -> list[tuple[str, int, int]]:
    return [(one.name, number_of(one.protocol), one.port) for one in ports if one.name]
