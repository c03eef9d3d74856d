"""Which rule decides about a packet: the judgement of packets in software, for explanations and what-if questions.

Works on what the calculation says of a node (`NodeView`) and follows the evaluation order of the dataplane:

    tiers in order; a tier takes part if one of its policies in this direction is enforced
      first matching rule: Allow and Deny end it, Pass goes on to the next tier, Log is noted and goes on
      no rule matches: the tier's default action; Deny ends it
    then the endpoint's profiles in order; no match: deny

HTTP matches are not looked at, as in the dataplane. Established connections are never judged again; that is not asked
here.
"""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from functools import lru_cache

import msgspec

from libs.policy import nets
from libs.policy.changes import NodeView
from libs.policy.nets import Net
from libs.policy.output import (
    STAGED_KINDS,
    Action,
    Host,
    Icmp,
    IPSet,
    IPSetType,
    Policy,
    PolicyKey,
    PortRange,
    Profile,
    Rule,
    Tier,
    Workload,
)

_PROTOCOL_NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132, "udplite": 136}
_PROTOCOL_NAMES = {number: name for name, number in _PROTOCOL_NUMBERS.items()}
_STAGED = "Staged"


class Direction(StrEnum):
    """As the endpoint sees it: ingress is traffic to it."""

    INGRESS = "ingress"
    EGRESS = "egress"


class Reason(StrEnum):
    POLICY_RULE = "a rule of a policy matched"
    TIER_DEFAULT = "no rule of the tier matched, and the tier denies by default"
    PROFILE_RULE = "a rule of a profile matched"
    NO_PROFILE_MATCHED = "no policy decided, and no profile's rule matched"


class Packet(msgspec.Struct, frozen=True, kw_only=True):
    """protocol: name in lower case or number. Ports are 0 for protocols without."""

    src: str
    dst: str
    protocol: str | int = "tcp"
    src_port: int = 0
    dst_port: int = 0
    icmp_type: int | None = None
    icmp_code: int | None = None


class Logged(msgspec.Struct, frozen=True):
    """A Log rule that the packet met on its way. policy is None for a profile's rule."""

    policy: PolicyKey | None
    profile: str
    rule: int


class Visit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one tier made of the packet: `passed` by a rule or by its default action, or where it `ended`.

    policy and rule: whose rule it was; None where no rule matched. asked: how many enforced policies were.
    """

    tier: str
    ended: bool
    policy: PolicyKey | None = None
    rule: int | None = None
    asked: int = 0


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """action: ALLOW or DENY. tier, policy or profile, and rule (its index in that direction) say who decided; rule is
    None where an end of a tier or of all profiles did. `policy` at the end of a tier is the tier's last policy."""

    action: Action
    reason: Reason
    tier: str = ""
    policy: PolicyKey | None = None
    profile: str = ""
    rule: int | None = None
    logged: tuple[Logged, ...] = ()


def decide(
    endpoint: Workload | Host, view: NodeView, packet: Packet, direction: Direction, *, staged: bool = False
) -> Verdict:
    """What the endpoint's tiers and profiles make of a new connection's packet.

    staged: as if staged policies were enforced; one then takes the place of the policy that it would replace.
    Raises KeyError when `view` lacks a policy, profile or set that the endpoint refers to: it is not of the same flush.
    """
    return decide_tiers(endpoint.tiers, endpoint.profiles, view, packet, direction, staged=staged)


def decide_tiers(
    tiers: tuple[Tier, ...],
    profiles: tuple[str, ...],
    view: NodeView,
    packet: Packet,
    direction: Direction,
    *,
    staged: bool = False,
    visits: list[Visit] | None = None,
) -> Verdict:
    """visits: is given an entry for each tier that took part."""
    match = _Matcher(view, packet)
    logged: list[Logged] = []
    visited = [] if visits is None else visits
    for tier in tiers:
        policies = enforced(tier.ingress if direction is Direction.INGRESS else tier.egress, staged)
        verdict = _decide_tier(tier, policies, view, match, direction, logged, visited)
        if verdict is not None:
            return verdict
    for name in profiles:
        profile = view.profiles[name]
        rules = profile.inbound if direction is Direction.INGRESS else profile.outbound
        index, action, met = match.first(rules)
        logged.extend(Logged(None, name, one) for one in met)
        if action in (Action.ALLOW, Action.DENY):
            return Verdict(action=action, reason=Reason.PROFILE_RULE, profile=name, rule=index, logged=tuple(logged))
    return Verdict(action=Action.DENY, reason=Reason.NO_PROFILE_MATCHED, logged=tuple(logged))


def enforced(policies: tuple[PolicyKey, ...], staged: bool) -> list[PolicyKey]:
    """Those that act, in order. staged: staged policies too, each in place of the one that it would replace."""
    if not staged:
        return [key for key in policies if key.kind not in STAGED_KINDS]
    replaced = {
        PolicyKey(key.kind.removeprefix(_STAGED), key.name, key.namespace)
        for key in policies
        if key.kind in STAGED_KINDS
    }
    return [key for key in policies if key not in replaced]


def _decide_tier(
    tier: Tier,
    policies: list[PolicyKey],
    view: NodeView,
    match: _Matcher,
    direction: Direction,
    logged: list[Logged],
    visits: list[Visit],
) -> Verdict | None:
    """None: go on with the next tier."""
    for key in policies:
        policy = view.policies[key]
        rules = policy.inbound if direction is Direction.INGRESS else policy.outbound
        index, action, met = match.first(rules)
        logged.extend(Logged(key, "", one) for one in met)
        if action is not None:
            ended = action is not Action.PASS
            visits.append(Visit(tier=tier.name, ended=ended, policy=key, rule=index, asked=len(policies)))
        if action is Action.PASS:
            return None
        if action is not None:
            return Verdict(
                action=action,
                reason=Reason.POLICY_RULE,
                tier=tier.name,
                policy=key,
                rule=index,
                logged=tuple(logged),
            )
    ended = bool(policies) and tier.default_action != "Pass"
    if policies:
        visits.append(Visit(tier=tier.name, ended=ended, asked=len(policies)))
    if not ended:
        return None
    return Verdict(
        action=Action.DENY, reason=Reason.TIER_DEFAULT, tier=tier.name, policy=policies[-1], logged=tuple(logged)
    )


def narrowed(
    tiers: tuple[Tier, ...],
    profiles: tuple[str, ...],
    view: NodeView,
    packet: Packet,
    direction: Direction,
    *,
    staged: bool = False,
) -> tuple[tuple[Tier, ...], NodeView]:
    """What is left of an endpoint's tiers for all packets between the two addresses of this one: `decide_tiers` with
    these acts alike on any of them, and is faster. Places of rules are other ones. Profiles stay.
    """
    match, inbound = _Matcher(view, packet), direction is Direction.INGRESS
    left: list[Tier] = []
    policies: dict[PolicyKey, Policy] = {}
    for tier in tiers:
        keys = enforced(tier.ingress if inbound else tier.egress, staged)
        kept: list[PolicyKey] = []
        for key in keys:
            policy = view.policies[key]
            rules = tuple(rule for rule in (policy.inbound if inbound else policy.outbound) if match.between(rule))
            if rules:
                kept.append(key)
                policies[key] = Policy(tier=policy.tier, inbound=rules, outbound=rules)
        if keys and not kept:  # the tier takes part all the same
            kept = keys[:1]
            policies[kept[0]] = Policy(tier=tier.name)
        if kept:
            these = tuple(kept)
            left.append(Tier(name=tier.name, default_action=tier.default_action, ingress=these, egress=these))
    reduced = {
        name: Profile(
            inbound=tuple(rule for rule in view.profiles[name].inbound if match.between(rule)),
            outbound=tuple(rule for rule in view.profiles[name].outbound if match.between(rule)),
        )
        for name in profiles
    }
    return tuple(left), NodeView(workloads={}, hosts={}, policies=policies, profiles=reduced, ipsets=view.ipsets)


class _Matcher:
    """One packet against rules."""

    def __init__(self, view: NodeView, packet: Packet) -> None:
        self._ipsets = view.ipsets
        self._packet = packet
        self._src = _address(packet.src)
        self._dst = _address(packet.dst)
        self._protocol = protocol_number(packet.protocol)

    def first(self, rules: tuple[Rule, ...]) -> tuple[int, Action | None, list[int]]:
        """Index and action of the first rule that decides, and the Log rules met before it."""
        met: list[int] = []
        for index, rule in enumerate(rules):
            if self.matches(rule):
                if rule.action is not Action.LOG:
                    return index, rule.action, met
                met.append(index)
        return -1, None, met

    def matches(self, rule: Rule) -> bool:
        return self._about(rule) and self.between(rule)

    def between(self, rule: Rule) -> bool:
        """As far as the rule speaks of the two addresses alone."""
        return (
            rule.ip_version in (0, self._src.version)
            and (not rule.src_nets or _in_any(self._src, rule.src_nets))
            and (not rule.dst_nets or _in_any(self._dst, rule.dst_nets))
            and all(self._has(set_id, self._src) for set_id in rule.src_sets)
            and all(self._has(set_id, self._dst) for set_id in rule.dst_sets)
            and _in_none(self._src, rule.not_src_nets)
            and _in_none(self._dst, rule.not_dst_nets)
            and not any(self._has(set_id, self._src) for set_id in rule.not_src_sets)
            and not any(self._has(set_id, self._dst) for set_id in rule.not_dst_sets)
        )

    def _about(self, rule: Rule) -> bool:
        """The rest: protocol, ports, types of ICMP."""
        src_port, dst_port = self._packet.src_port, self._packet.dst_port
        return (
            (rule.protocol is None or protocol_number(rule.protocol) == self._protocol)
            and (rule.not_protocol is None or protocol_number(rule.not_protocol) != self._protocol)
            and (rule.icmp is None or self._icmp(rule.icmp))
            and (rule.not_icmp is None or not self._icmp(rule.not_icmp))
            and self._one_of(self._src, src_port, rule.src_ports, rule.src_named_port_sets)
            and self._one_of(self._dst, dst_port, rule.dst_ports, rule.dst_named_port_sets)
            and all(self._has_port(set_id, self._dst, dst_port) for set_id in rule.dst_ip_port_sets)
            and not self._port(self._src, src_port, rule.not_src_ports, rule.not_src_named_port_sets)
            and not self._port(self._dst, dst_port, rule.not_dst_ports, rule.not_dst_named_port_sets)
        )

    def _one_of(self, address: Net, port: int, ports: tuple[PortRange, ...], port_sets: tuple[str, ...]) -> bool:
        return not (ports or port_sets) or self._port(address, port, ports, port_sets)

    def _port(self, address: Net, port: int, ports: tuple[PortRange, ...], port_sets: tuple[str, ...]) -> bool:
        return any(one.first <= port <= one.last for one in ports) or any(
            self._has_port(set_id, address, port) for set_id in port_sets
        )

    def _icmp(self, wanted: Icmp) -> bool:
        return wanted.type == self._packet.icmp_type and wanted.code in (None, self._packet.icmp_code)

    def _has(self, set_id: str, address: Net) -> bool:
        return contains(self._ipsets[set_id], address)

    def _has_port(self, set_id: str, address: Net, port: int) -> bool:
        text = nets.address(nets.text(address))
        member = f"{text},{_PROTOCOL_NAMES.get(self._protocol, self._protocol)}:{port}"
        return member in self._ipsets[set_id].members


@lru_cache(maxsize=4096)
def _address(text: str) -> Net:
    return nets.parse(str(ipaddress.ip_address(text)))


def contains(ipset: IPSet, address: Net) -> bool:
    """Whether an address is in a NET set, itself or by a network around it."""
    if ipset.type is not IPSetType.NET:
        return False
    bits = nets.BITS[address.version]
    for length in _lengths(ipset)[address.version]:
        shift = bits - length
        if nets.text(Net(address.version, address.base >> shift << shift, length)) in ipset.members:
            return True
    return False


@lru_cache(maxsize=512)
def _lengths(ipset: IPSet) -> dict[int, list[int]]:
    """By family the prefix lengths that occur: there are few, and each costs a look-up."""
    found: dict[int, set[int]] = {4: set(), 6: set()}
    for member in ipset.members:
        found[nets.version_of(member)].add(int(member.rpartition("/")[2]))
    return {version: sorted(lengths, reverse=True) for version, lengths in found.items()}


def protocol_number(protocol: str | int) -> int:
    """Raises ValueError for a name that is no protocol."""
    if isinstance(protocol, int):
        return protocol
    number = _PROTOCOL_NUMBERS.get(protocol.lower())
    if number is None:
        raise ValueError(f"unknown protocol {protocol!r}")
    return number


def _in_any(address: Net, networks: tuple[str, ...]) -> bool:
    return any(nets.parse(text).contains(address) for text in networks)


def _in_none(address: Net, networks: tuple[str, ...]) -> bool:
    """False too when all networks are of the other family: such a rule is left out of this one's ruleset."""
    if networks and all(nets.version_of(text) != address.version for text in networks):
        return False
    return not _in_any(address, networks)
