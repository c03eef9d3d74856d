"""Walks a packet through a table as the kernel would, in plain Python: the judge of compilers that write rulesets.

Knows the expressions that decide about a packet (matches, sets, verdict maps, marks, verdicts) and records what a
rule that fired would have logged or translated. Left out: time (`limit` always passes, `ct count` never does) and
routing (`fib` is refused).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from libs.nftables import model as nft
from libs.nftables.model import (
    Bits,
    Chain,
    Field,
    Hook,
    InSet,
    Map,
    Match,
    Rule,
    Ruleset,
    Set,
    Verdict,
    VerdictKind,
    Vmap,
)
from libs.nftables.types import FIELD_TYPES, TYPES, parse_part

JUMP_LIMIT = 16  # nf_tables.h, NFT_JUMP_STACK_SIZE


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet at a hook. Protocols without ports: sport and dport are the first four octets of their header."""

    src: IPv4Address | IPv6Address
    dst: IPv4Address | IPv6Address
    protocol: int = 6
    sport: int = 0
    dport: int = 0
    iif: str = ""
    oif: str = ""
    ct_state: int = nft.CtState.NEW
    ct_status: int = 0
    mark: int = 0

    @property
    def icmp_type(self) -> int:
        return self.sport >> 8

    @property
    def icmp_code(self) -> int:
        return self.sport & 0xFF


@dataclass(slots=True)
class Outcome:
    """accepted: by every base chain of the hook. fired: the rules that ran to their end, jumps apart, as (chain,
    rule)."""

    accepted: bool
    mark: int
    fired: list[tuple[str, Rule]] = field(default_factory=list)

    @property
    def decided_by(self) -> str:
        """Comment of the last rule that fired; empty when a base chain's policy decided."""
        return self.fired[-1][1].comment if self.fired else ""

    @property
    def logged(self) -> list[str]:
        return [expr.prefix for _, rule in self.fired for expr in rule.exprs if isinstance(expr, nft.Log)]


Value = int | str
Getter = Callable[[Packet], Value]
_GETTERS: dict[Field, Getter] = {
    Field.IIFNAME: lambda p: p.iif,
    Field.OIFNAME: lambda p: p.oif,
    Field.IP_SADDR: lambda p: int(p.src),
    Field.IP_DADDR: lambda p: int(p.dst),
    Field.IP6_SADDR: lambda p: int(p.src),
    Field.IP6_DADDR: lambda p: int(p.dst),
    Field.NFPROTO: lambda p: nft.NFPROTO_IPV4 if p.src.version == 4 else nft.NFPROTO_IPV6,
    Field.L4PROTO: lambda p: p.protocol,
    Field.SPORT: lambda p: p.sport,
    Field.DPORT: lambda p: p.dport,
    Field.ICMP_TYPE: lambda p: p.icmp_type,
    Field.ICMP_CODE: lambda p: p.icmp_code,
    Field.ICMPV6_TYPE: lambda p: p.icmp_type,
    Field.ICMPV6_CODE: lambda p: p.icmp_code,
    Field.CT_STATE: lambda p: p.ct_state,
    Field.CT_STATUS: lambda p: p.ct_status,
}


def _bounds(data_type: nft.DataType, text: str | int) -> tuple[Value, Value]:
    if data_type is nft.DataType.IFNAME:
        return str(text), str(text)
    order = "little" if TYPES[data_type].little else "big"
    low, high = parse_part(data_type, text)
    return int.from_bytes(low, order), int.from_bytes(high, order)  # type: ignore[arg-type]


class _Lookup:
    """Elements of a set or map, ready for look-ups; what a key leads to is its verdict, or True in a set."""

    def __init__(self, key: tuple[nft.DataType, ...], elements: dict[str, Verdict | bool], interval: bool) -> None:
        self._exact: dict[tuple[Value, ...], Verdict | bool] = {}
        self._boxes: list[tuple[list[tuple[Value, Value]], Verdict | bool]] = []
        self._starts: list[int] = []
        self._ranges: list[tuple[int, int, Verdict | bool]] = []
        for text, verdict in elements.items():
            bounds = [_bounds(part, value) for part, value in zip(key, text.split(" . "), strict=True)]
            if not interval:
                if any(low != high for low, high in bounds):
                    raise ValueError(f"{text!r} is a range in a set without intervals")
                self._exact[tuple(low for low, _ in bounds)] = verdict
            elif len(key) == 1:
                low, high = bounds[0]
                assert isinstance(low, int)
                assert isinstance(high, int)
                self._ranges.append((low, high, verdict))
            else:
                self._boxes.append((bounds, verdict))
        self._ranges.sort(key=lambda r: (r[0], -r[1]))
        disjoint: list[tuple[int, int, Verdict | bool]] = []
        for low, high, verdict in self._ranges:
            if disjoint and low <= disjoint[-1][1]:  # the model merges overlapping elements of sets
                disjoint[-1] = (disjoint[-1][0], max(high, disjoint[-1][1]), verdict)
            else:
                disjoint.append((low, high, verdict))
        self._ranges, self._starts = disjoint, [low for low, _, _ in disjoint]

    def get(self, key: tuple[Value, ...]) -> Verdict | bool | None:
        if self._exact:
            return self._exact.get(key)
        if self._ranges and isinstance(key[0], int):
            at = bisect_right(self._starts, key[0]) - 1
            return self._ranges[at][2] if at >= 0 and key[0] <= self._ranges[at][1] else None
        for bounds, verdict in self._boxes:
            if all(low <= value <= high for (low, high), value in zip(bounds, key, strict=True)):  # type: ignore[operator]
                return verdict
        return None


class ForeignRule(ValueError):
    """The packet meets a rule whose meaning is not known."""


class Evaluator:
    """A table ready for many packets; of sets and rules only those that a packet meets are made ready. Raises KeyError
    for a jump to a chain, or a look-up in a set, that does not exist.

    foreign: rules that stand in for what could not be read; a packet that meets one raises ForeignRule.
    """

    def __init__(self, ruleset: Ruleset, foreign: Collection[Rule] = ()) -> None:
        self._definitions: dict[str, Set | Map] = {one.name: one for one in ruleset.sets}
        self._definitions |= {one.name: one for one in ruleset.maps}
        self._sets: dict[str, _Lookup] = {}
        self._foreign = frozenset(foreign)
        self._chains = {chain.name: chain for chain in ruleset.chains}
        self._steps = {chain.name: [self._compile(rule) for rule in chain.rules] for chain in ruleset.chains}
        self._base: dict[Hook, list[Chain]] = {}
        for chain in sorted(ruleset.chains, key=lambda c: c.base.priority if c.base else 0):
            if chain.base is not None:
                self._base.setdefault(chain.base.hook, []).append(chain)

    def run(self, hook: Hook, packet: Packet, before: Packet | None = None) -> Outcome:
        """Through all base chains of the hook in order of priority; a drop ends it, an accept ends one base chain.

        before: the packet until its destination is translated, which chains of an earlier priority meet where that is
        done.
        """
        walk = _Walk(packet, packet.mark)
        for chain in self._base.get(hook, []):
            assert chain.base is not None
            early = hook in (Hook.PREROUTING, Hook.OUTPUT) and chain.base.priority < nft.DSTNAT
            walk.packet = before if before is not None and early else packet
            verdict = self._chain(chain.name, walk, 0)
            if verdict is None:
                verdict = chain.base.policy is nft.Policy.ACCEPT
            if not verdict:
                return Outcome(False, walk.mark, walk.fired)
        return Outcome(True, walk.mark, walk.fired)

    def _chain(self, name: str, walk: _Walk, depth: int) -> bool | None:
        """True accepted, False dropped, None: ran off the end or returned."""
        if depth > JUMP_LIMIT:
            raise ValueError(f"jumps nested deeper than {JUMP_LIMIT} at chain {name}")
        for rule, step in zip(self._chains[name].rules, self._steps[name], strict=True):
            verdict = step(walk)
            if verdict is None:
                continue
            if verdict.kind not in (VerdictKind.JUMP, VerdictKind.GOTO):
                walk.fired.append((name, rule))
            match verdict.kind:
                case VerdictKind.ACCEPT:
                    return True
                case VerdictKind.DROP:
                    return False
                case VerdictKind.RETURN:
                    return None
                case VerdictKind.JUMP:
                    result = self._chain(verdict.chain, walk, depth + 1)
                    if result is not None:
                        return result
                case VerdictKind.GOTO:
                    return self._chain(verdict.chain, walk, depth + 1)
                case VerdictKind.CONTINUE:
                    pass
        return None

    def _compile(self, rule: Rule) -> Callable[[_Walk], Verdict | None]:
        """A function that gives None when the rule did not match, else its verdict (CONTINUE when it has none)."""
        steps: list[Callable[[_Walk], bool | Verdict]] | None = None

        def run(walk: _Walk) -> Verdict | None:
            nonlocal steps
            if steps is None:
                if rule in self._foreign:
                    raise ForeignRule(rule.comment)
                steps = [self._expr(expr) for expr in rule.exprs]
            verdict: Verdict | None = _FIRED
            for step in steps:
                result = step(walk)
                if result is False:
                    return None
                if result is not True:
                    verdict = result
            return verdict

        return run

    def _lookup(self, name: str) -> _Lookup:
        if name not in self._sets:
            one = self._definitions[name]
            elements: dict[str, Verdict | bool] = (
                dict(one.elements) if isinstance(one, Map) else dict.fromkeys(one.elements, True)
            )
            self._sets[name] = _Lookup(one.key, elements, one.interval)
        return self._sets[name]

    def _expr(self, expr: nft.Expr) -> Callable[[_Walk], bool | Verdict]:
        match expr:
            case Match():
                return _match(expr)
            case Bits(field_, mask, value, negate):
                if field_ is Field.MARK:
                    return lambda walk: (walk.mark & mask == value) is not negate
                get = _GETTERS[field_]
                return lambda walk: (_int(get(walk.packet)) & mask == value) is not negate
            case InSet(fields, name, negate):
                lookup, getters = self._lookup(name), [_GETTERS[f] for f in fields]
                return lambda walk: (lookup.get(tuple(g(walk.packet) for g in getters)) is not None) is not negate
            case Vmap(fields, name):
                lookup, getters = self._lookup(name), [_GETTERS[f] for f in fields]

                def vmap(walk: _Walk) -> bool | Verdict:
                    found = lookup.get(tuple(g(walk.packet) for g in getters))
                    return False if found is None else found

                return vmap
            case nft.SetMark(keep, xor, Field.MARK):

                def set_mark(walk: _Walk) -> bool:
                    walk.mark = walk.mark & keep ^ xor
                    return True

                return set_mark
            case Verdict():
                return lambda _: expr
            case nft.Reject():
                return lambda _: nft.DROP
            case nft.Masquerade() | nft.Nat():
                return lambda _: nft.ACCEPT
            case nft.ConnLimit():
                return lambda _: False
            case nft.Counter() | nft.Log() | nft.Limit() | nft.NoTrack() | nft.SetDscp():
                return lambda _: True
            case _:
                raise ValueError(f"cannot evaluate {expr}")


@dataclass(slots=True)
class _Walk:
    packet: Packet
    mark: int
    fired: list[tuple[str, Rule]] = field(default_factory=list)


_FIRED = nft.CONTINUE  # the rule matched and says nothing about the packet's way


def _int(value: Value) -> int:
    assert isinstance(value, int)
    return value


def _match(expr: Match) -> Callable[[_Walk], bool]:
    negate = expr.negate
    if expr.field is Field.MARK:
        return lambda walk: (walk.mark == expr.value) is not negate
    get = _GETTERS[expr.field]
    data_type = FIELD_TYPES[expr.field]
    if data_type is nft.DataType.IFNAME and str(expr.value).endswith("*"):
        prefix = str(expr.value)[:-1]
        return lambda walk: str(get(walk.packet)).startswith(prefix) is not negate
    low, high = _bounds(data_type, expr.value)
    return lambda walk: (low <= get(walk.packet) <= high) is not negate  # type: ignore[operator]
