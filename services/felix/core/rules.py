"""From the rules of a policy to the rules of its nftables chain.

One policy rule becomes none, one or several nft rules with the same verdict: none when it cannot match in this address
family, several when something in it means "or" that one nft rule cannot say: the two halves of an IP set (sets.py),
numbers next to names in a list of ports, the negation of an ICMP type with a code. Such alternatives exclude each other
where it matters, that is for Log, whose rule does not end the walk; every packet is logged once.

Order inside a rule is by cost (docs/adr/0007): protocol, one port, one network, hash sets, interval sets, the counter,
the verdict. Verdicts are final: accept and drop end this stage, Pass sets a mark bit and returns to the tier's list
chain. HTTP matches are left to the application-layer proxy, as in Calico: the rule is applied without them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

from libs.nftables import model as nft
from libs.policy.output import Action, IPSetType, PortRange, Rule
from services.felix.core import names
from services.felix.core.options import Family, RulesetOptions
from services.felix.core.sets import PROTOCOLS, covering, net_text, parse_net

SPORT, DPORT = nft.Field.SPORT, nft.Field.DPORT
INLINE, HASH, INTERVAL = 1, 2, 3  # cost classes; the protocol match has 0
Costed = tuple[int, nft.Expr]
WITH_PORTS = ("tcp", "udp", "sctp", "udplite")


class UnknownSet(LookupError):
    """A rule refers to an IP set that nobody has told us of."""


@dataclass(frozen=True, slots=True)
class Half:
    """A kernel set that holds (part of) an IP set."""

    name: str
    interval: bool


Shapes = Callable[[str, IPSetType], Sequence[Half]]  # IP set id and expected type → its kernel sets; raises UnknownSet


@dataclass(frozen=True, slots=True)
class Subject:
    """Whose rules these are, for comments and log lines. id: `np/ns1/web`, for profiles `pro/kns.ns1`."""

    id: str
    tier: str = ""
    kind: str = "pro"
    namespace: str = ""
    name: str = ""
    untracked: bool = False
    pre_dnat: bool = False


@dataclass(slots=True)
class Compiled:
    """Rules of one chain and the sets they look into."""

    rules: list[nft.Rule] = field(default_factory=list)
    ip_sets: dict[str, str] = field(default_factory=dict)  # kernel set name → IP set id
    shared: dict[str, nft.Set] = field(default_factory=dict)  # sets whose content is in the rules themselves


class RuleCompiler:
    """Compiles for one address family. Holds no state but its configuration."""

    def __init__(self, family: Family, options: RulesetOptions, shapes: Shapes) -> None:
        self._family = family
        self._options = options
        self._shapes = shapes

    def compile(self, rules: Iterable[Rule], subject: Subject) -> Compiled:
        """Raises UnknownSet when a rule that matters in this family needs a set we do not have."""
        out = Compiled()
        for index, rule in enumerate(rules):
            action = self._action(rule, subject)
            text = f"{subject.id}/{index} {rule.action}"
            if rule.annotations:
                text += "; " + ",".join(f"{k}={v}" for k, v in sorted(rule.annotations.items()))
            comment = names.comment(text)
            for matches in self._alternatives(rule, out):
                out.rules.append(nft.Rule((*matches, *action), comment))
        return out

    def deny(self, comment: str) -> nft.Rule:
        return nft.Rule((nft.COUNTER, self._deny()), names.comment(comment))

    def _deny(self) -> nft.Expr:
        return nft.DROP if self._options.deny_action == "Drop" else reject(self._family)

    def _action(self, rule: Rule, subject: Subject) -> tuple[nft.Expr, ...]:
        match rule.action:
            case Action.ALLOW:
                # Before tracking and DNAT an accept ends a stage only; the later ones must know of it.
                untracked = (nft.NoTrack(),) if subject.untracked else ()
                mark = (nft.mark_or(self._options.mark_accept),) if subject.untracked or subject.pre_dnat else ()
                return (nft.COUNTER, *untracked, *mark, nft.ACCEPT)
            case Action.DENY:
                return (nft.COUNTER, self._deny())
            case Action.PASS:
                return (nft.COUNTER, nft.mark_or(self._options.mark_pass), nft.RETURN)
            case Action.LOG:
                log = nft.Log(self._log_prefix(subject), level="info")
                if self._options.log_rate is None:
                    return (nft.COUNTER, log)
                rate, unit = self._options.log_rate
                return (nft.Limit(rate, unit, burst=self._options.log_burst), nft.COUNTER, log)

    def _log_prefix(self, subject: Subject) -> str:
        full = f"{subject.namespace}/{subject.name}" if subject.namespace else subject.name
        text = self._options.log_prefix
        for specifier, value in (("%t", subject.tier), ("%k", subject.kind), ("%n", subject.name), ("%p", full)):
            text = text.replace(specifier, value)
        return names.comment(text)[: nft.LOG_PREFIX_MAX - 2] + ": "

    def _alternatives(self, rule: Rule, out: Compiled) -> Iterator[list[nft.Expr]]:
        """The match expressions of each nft rule that this rule becomes."""
        dimensions = self._dimensions(rule, out)
        if dimensions is None:
            return
        for choice in product(*dimensions):
            parts = sorted((part for parts in choice for part in parts), key=lambda part: part[0])
            yield [expr for _, expr in parts]

    def _dimensions(self, rule: Rule, out: Compiled) -> list[list[list[Costed]]] | None:
        """Independent parts of the match; of each part any one alternative must hold. None: the rule cannot match here.

        Each alternative is a list of expressions that must all hold.
        """
        family = self._family
        if rule.ip_version not in (0, family.version):
            return None
        fixed: list[Costed] = []
        dimensions: list[list[list[Costed]]] = [[fixed]]
        for nets, field_, negate in (
            (rule.src_nets, family.saddr, False),
            (rule.dst_nets, family.daddr, False),
            (rule.not_src_nets, family.saddr, True),
            (rule.not_dst_nets, family.daddr, True),
        ):
            matches = self._nets(nets, field_, negate, out)
            if matches is None:
                return None
            fixed += matches
        if not self._protocol(rule, fixed, out):
            return None
        icmp = self._icmp(rule)
        if icmp:
            dimensions.append(icmp)
        for not_ranges, port in ((rule.not_src_ports, SPORT), (rule.not_dst_ports, DPORT)):
            matches = self._ports(not_ranges, port, True, out) if not_ranges else []
            if matches is None:
                return None
            fixed += matches
        for ids, address, port in (
            (rule.not_src_named_port_sets, family.saddr, SPORT),
            (rule.not_dst_named_port_sets, family.daddr, DPORT),
        ):
            fixed += [self._port_set(set_id, address, port, True, out) for set_id in ids]
        for ranges, ids, address, port in (
            (rule.src_ports, rule.src_named_port_sets, family.saddr, SPORT),
            (rule.dst_ports, rule.dst_named_port_sets, family.daddr, DPORT),
        ):
            if ranges or ids:
                dimensions.append(self._any_port(rule, ranges, ids, address, port, out))
        fixed += [self._port_set(set_id, family.daddr, DPORT, False, out) for set_id in rule.dst_ip_port_sets]
        for set_ids, field_ in ((rule.src_sets, family.saddr), (rule.dst_sets, family.daddr)):
            dimensions += [
                [[_lookup(half, (field_,), False)] for half in self._halves(set_id, IPSetType.NET, out)]
                for set_id in set_ids
            ]
        for set_ids, field_ in ((rule.not_src_sets, family.saddr), (rule.not_dst_sets, family.daddr)):
            for set_id in set_ids:
                fixed += [_lookup(half, (field_,), True) for half in self._halves(set_id, IPSetType.NET, out)]
        return dimensions

    def _protocol(self, rule: Rule, fixed: list[Costed], out: Compiled) -> bool:
        """Adds the protocol matches, the implied ones too; False when they contradict each other."""
        wanted = None if rule.protocol is None else protocol_number(rule.protocol)
        if rule.icmp is not None or rule.not_icmp is not None:
            if wanted not in (None, self._family.icmp_protocol):
                return False
            wanted = self._family.icmp_protocol
        if wanted is not None:
            fixed.append((0, nft.Match(nft.Field.L4PROTO, wanted)))
        elif rule.src_ports or rule.dst_ports or rule.not_src_ports or rule.not_dst_ports:
            # Admission refuses numeric ports without a protocol; were one to get here, the first octets of any other
            # protocol's header must not pass for ports.
            name = "protocols-with-ports"
            out.shared[name] = nft.Set(name, (nft.DataType.PROTO,), frozenset(WITH_PORTS))
            fixed.append((0, nft.InSet((nft.Field.L4PROTO,), name)))
        if rule.not_protocol is not None:
            fixed.append((0, nft.Match(nft.Field.L4PROTO, protocol_number(rule.not_protocol), negate=True)))
        return True

    def _icmp(self, rule: Rule) -> list[list[Costed]]:
        """Raises ValueError for a type or code that does not fit its octet."""
        for fields in (rule.icmp, rule.not_icmp):
            for number in (fields.type, fields.code or 0) if fields is not None else ():
                if not 0 <= number <= 255:
                    raise ValueError(f"bad ICMP type or code {number}")
        type_, code = self._family.icmp_type, self._family.icmp_code
        wanted: list[Costed] = []
        if rule.icmp is not None:
            wanted.append((INLINE, nft.Match(type_, rule.icmp.type)))
            if rule.icmp.code is not None:
                wanted.append((INLINE, nft.Match(code, rule.icmp.code)))
        if rule.not_icmp is None:
            return [wanted] if wanted else []
        other_type = [*wanted, (INLINE, nft.Match(type_, rule.not_icmp.type, negate=True))]
        if rule.not_icmp.code is None:
            return [other_type]
        same_type = (INLINE, nft.Match(type_, rule.not_icmp.type))
        return [other_type, [*wanted, same_type, (INLINE, nft.Match(code, rule.not_icmp.code, negate=True))]]

    def _nets(self, texts: tuple[str, ...], field_: nft.Field, negate: bool, out: Compiled) -> list[Costed] | None:
        """None: cannot match. A rule whose networks are all of the other family is not for this one, negated or not."""
        if not texts:
            return []
        parsed = [parse_net(text) for text in texts]
        ours = covering((net for version, net in parsed if version == self._family.version), self._family.bits)
        if not ours:
            return None
        if ours[0][1] == 0:
            return None if negate else []
        if len(ours) == 1:
            return [(INLINE, nft.Match(field_, net_text(self._family.version, ours[0]), negate))]
        values = [net_text(self._family.version, net) for net in ours]
        interval = any(length != self._family.bits for _, length in ours)
        name = names.content_set("nets", values)
        out.shared[name] = nft.Set(name, (self._family.address,), frozenset(values), interval=interval)
        return [_lookup(Half(name, interval), (field_,), negate)]

    def _ports(
        self, ranges: tuple[PortRange, ...], field_: nft.Field, negate: bool, out: Compiled
    ) -> list[Costed] | None:
        """None: cannot match (the negation of every port)."""
        merged = merge_ports(ranges)
        if merged == [(0, 65535)]:
            return None if negate else []
        values = [str(first) if first == last else f"{first}-{last}" for first, last in merged]
        if len(values) == 1:
            return [(INLINE, nft.Match(field_, values[0], negate))]
        interval = any(first != last for first, last in merged)
        name = names.content_set("ports", [value.replace("-", "_") for value in values])
        out.shared[name] = nft.Set(name, (nft.DataType.PORT,), frozenset(values), interval=interval)
        return [_lookup(Half(name, interval), (field_,), negate)]

    def _any_port(
        self,
        rule: Rule,
        ranges: tuple[PortRange, ...],
        named: tuple[str, ...],
        address: nft.Field,
        port: nft.Field,
        out: Compiled,
    ) -> list[list[Costed]]:
        """Alternatives for "one of these numbers or names"."""
        choices: list[list[Costed]] = []
        earlier: list[Costed] = []  # negations that keep a logged packet out of the later alternatives
        if ranges:
            choices.append(self._ports(ranges, port, False, out) or [])
            rest = self._ports(ranges, port, True, out)
            if rest is None:
                return choices
            earlier += rest
        for set_id in named:
            mine = self._port_set(set_id, address, port, False, out)
            choices.append([mine, *(earlier if rule.action is Action.LOG else ())])
            earlier.append(self._port_set(set_id, address, port, True, out))
        return choices

    def _port_set(self, set_id: str, address: nft.Field, port: nft.Field, negate: bool, out: Compiled) -> Costed:
        (half,) = self._halves(set_id, IPSetType.IP_PORT, out)
        return _lookup(half, (address, nft.Field.L4PROTO, port), negate)

    def _halves(self, set_id: str, type_: IPSetType, out: Compiled) -> Sequence[Half]:
        halves = self._shapes(set_id, type_)
        for half in halves:
            out.ip_sets[half.name] = set_id
        return halves


def _lookup(half: Half, fields: tuple[nft.Field, ...], negate: bool) -> Costed:
    return (INTERVAL if half.interval else HASH, nft.InSet(fields, half.name, negate))


def reject(family: Family) -> nft.Expr:
    """Answers with port unreachable."""
    kind = nft.RejectKind.ICMP if family.version == 4 else nft.RejectKind.ICMPV6
    return nft.Reject(kind, family.port_unreachable)


def protocol_number(protocol: str | int) -> int:
    """Raises ValueError for a name we do not know or a number above 255."""
    number = PROTOCOLS.get(protocol.lower()) if isinstance(protocol, str) else protocol
    if number is None and isinstance(protocol, str) and protocol.isdecimal():
        number = int(protocol)
    if number is None or not 0 <= number <= 255:
        raise ValueError(f"unknown protocol {protocol!r}")
    return number


def merge_ports(ranges: Iterable[PortRange]) -> list[tuple[int, int]]:
    """Sorted, disjoint, not adjacent. Raises ValueError for a range outside 0..65535 or upside down."""
    out: list[tuple[int, int]] = []
    for first, last in sorted((r.first, r.last) for r in ranges):
        if not 0 <= first <= last <= 65535:
            raise ValueError(f"bad port range {first}-{last}")
        if out and first <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(last, out[-1][1]))
        else:
            out.append((first, last))
    return out
