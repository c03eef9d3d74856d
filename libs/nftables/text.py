"""A table as text that `nft -f` accepts: for golden files, debugging, and the other side of comparisons in tests."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import assert_never

from libs.nftables.model import (
    COMMENT_MAX,
    Base,
    Bits,
    Chain,
    ConnLimit,
    CopyMark,
    Counter,
    Expr,
    Fib,
    FibResult,
    Field,
    InSet,
    Limit,
    Log,
    Map,
    Masquerade,
    Match,
    Nat,
    NoTrack,
    Reject,
    RejectKind,
    Rule,
    Ruleset,
    Set,
    SetDscp,
    SetMark,
    Verdict,
    Vmap,
)
from libs.nftables.types import CT_STATES, FIELD_TYPES, parse_part, unpack_part

_CT_STATUSES = {"expected": 1, "seen-reply": 2, "assured": 4, "confirmed": 8, "snat": 16, "dnat": 32, "dying": 512}
_ADDRESS_TYPES = {
    1: "unicast",
    2: "local",
    3: "broadcast",
    4: "anycast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
}
_ICMPX = {0: "no-route", 1: "port-unreachable", 2: "host-unreachable", 3: "admin-prohibited"}


def print_ruleset(ruleset: Ruleset) -> str:
    lines = [f"table {ruleset.table} {{"]
    for definition in sorted(ruleset.sets, key=lambda s: s.name):
        lines += _set_lines(definition)
    for verdict_map in sorted(ruleset.maps, key=lambda m: m.name):
        lines += _map_lines(verdict_map)
    for chain in ruleset.chains:
        lines += _chain_lines(chain)
    return "\n".join([*lines, "}", ""])


def _set_lines(definition: Set) -> list[str]:
    lines = [f"\tset {definition.name} {{", f"\t\ttype {' . '.join(definition.key)}"]
    flags = [name for name, on in (("constant", definition.constant), ("interval", definition.interval)) if on]
    if flags:
        lines.append(f"\t\tflags {', '.join(flags)}")
    if definition.timeout_s:
        lines.append(f"\t\ttimeout {definition.timeout_s}s")
    return [*lines, *_elements(_quoted(definition, text) for text in sorted(definition.elements)), "\t}", ""]


def _map_lines(definition: Map) -> list[str]:
    lines = [f"\tmap {definition.name} {{", f"\t\ttype {' . '.join(definition.key)} : verdict"]
    if definition.interval:
        lines.append("\t\tflags interval")
    items = (f"{_quoted(definition, text)} : {verdict}" for text, verdict in sorted(definition.elements.items()))
    return [*lines, *_elements(items), "\t}", ""]


def _elements(items: Iterable[str]) -> list[str]:
    listed = list(items)
    return [f"\t\telements = {{ {', '.join(listed)} }}"] if listed else []


def _quoted(definition: Set | Map, text: str) -> str:
    """Interface names need quotes: some are keywords."""
    parts = text.split(" . ") if len(definition.key) > 1 else [text]
    return " . ".join(f'"{p}"' if kind == "ifname" else p for kind, p in zip(definition.key, parts, strict=True))


def _chain_lines(chain: Chain) -> list[str]:
    base = [f"\t\t{print_base(chain.base)}"] if chain.base else []
    return [f"\tchain {chain.name} {{", *base, *(f"\t\t{print_rule(rule)}" for rule in chain.rules), "\t}", ""]


def print_base(base: Base) -> str:
    return f"type {base.type} hook {base.hook} priority {base.priority}; policy {base.policy};"


def print_rule(rule: Rule) -> str:
    words = [print_expr(expr) for expr in rule.exprs]
    if rule.comment:
        comment = rule.comment.encode()[:COMMENT_MAX].decode(errors="ignore")
        words.append(f'comment "{comment}"')
    return " ".join(words)


def print_expr(expr: Expr) -> str:
    match expr:
        case Match(field, value, negate):
            return f"{field} {'!= ' if negate else ''}{_value(field, value)}"
        case Bits():
            return _bits(expr)
        case InSet(fields, set_name, negate):
            return f"{' . '.join(fields)} {'!= ' if negate else ''}@{set_name}"
        case Vmap(fields, map_name):
            return f"{' . '.join(fields)} vmap @{map_name}"
        case Fib():
            return _fib(expr)
        case SetMark():
            return _set_mark(expr)
        case CopyMark(to):
            return f"{to} set {Field.MARK if to is Field.CT_MARK else Field.CT_MARK}"
        case Counter():
            return "counter"
        case Limit(rate, unit, burst, over):
            return f"limit rate {'over ' if over else ''}{rate}/{unit} burst {burst} packets"
        case ConnLimit(number, over):
            return f"ct count {'over ' if over else ''}{number}"
        case Log():
            return _log(expr)
        case Verdict():
            return str(expr)
        case Reject(kind, code):
            if kind is RejectKind.TCP_RESET:
                return "reject with tcp reset"
            return f"reject with {kind} type {_ICMPX.get(code, code) if kind is RejectKind.ICMPX else code}"
        case Masquerade(ports, fully_random):
            range_ = f" to :{_port_range(ports)}" if ports else ""
            return f"masquerade{range_}{' fully-random' if fully_random else ''}"
        case Nat(source, addr, ports, fully_random):
            version = ip_address(addr).version
            text = f"[{addr}]" if version == 6 and ports else addr
            target = f"{text}:{_port_range(ports)}" if ports else text
            kind_text = f"{'snat' if source else 'dnat'} {'ip' if version == 4 else 'ip6'}"
            return f"{kind_text} to {target}{' fully-random' if fully_random else ''}"
        case NoTrack():
            return "notrack"
        case SetDscp(family, value):
            return f"{family} dscp set {value}"
    assert_never(expr)


def _value(field: Field, value: str | int) -> str:
    data_type = FIELD_TYPES[field]
    if field in (Field.IIFNAME, Field.OIFNAME):
        return f'"{value}"'
    return unpack_part(data_type, *parse_part(data_type, value))


def _names(names: dict[str, int], mask: int) -> str | None:
    found = [name for name, bit in names.items() if mask & bit]
    return ",".join(found) if sum(names[name] for name in found) == mask and found else None


def _bits(expr: Bits) -> str:
    known = {Field.CT_STATE: CT_STATES, Field.CT_STATUS: _CT_STATUSES}.get(expr.field)
    if known is not None and expr.value == 0:
        names = _names(known, expr.mask)
        if names is not None:
            return f"{expr.field} {'' if expr.negate else '! '}{names}"
    relation = "!=" if expr.negate else "=="
    return f"{expr.field} & 0x{expr.mask:08x} {relation} 0x{expr.value:08x}"


def _fib(expr: Fib) -> str:
    also = {"mark": expr.mark, "iif": expr.iif, "oif": expr.oif}
    flags = " . ".join([expr.by, *(name for name, used in also.items() if used)])
    value = _ADDRESS_TYPES.get(expr.value, str(expr.value)) if expr.result is FibResult.TYPE else str(expr.value)
    return f"fib {flags} {expr.result} {'!= ' if expr.negate else ''}{value}"


def _set_mark(expr: SetMark) -> str:
    field, keep, xor = expr.field, expr.keep, expr.xor
    if keep == 0:
        return f"{field} set 0x{xor:08x}"
    if xor == 0:
        return f"{field} set {field} & 0x{keep:08x}"
    if keep == 0xFFFFFFFF:
        return f"{field} set {field} ^ 0x{xor:08x}"
    if keep == ~xor & 0xFFFFFFFF:
        return f"{field} set {field} | 0x{xor:08x}"
    return f"{field} set {field} & 0x{keep:08x} ^ 0x{xor:08x}"


def _log(expr: Log) -> str:
    prefix = f' prefix "{expr.prefix}"' if expr.prefix else ""
    if expr.group is None:
        level = "" if expr.level == "warn" else f" level {expr.level}"
        return f"log{prefix}{level}"
    return f"log{prefix} group {expr.group}" + (f" snaplen {expr.snaplen}" if expr.snaplen else "")


def _port_range(ports: tuple[int, int]) -> str:
    return str(ports[0]) if ports[0] == ports[1] else f"{ports[0]}-{ports[1]}"
