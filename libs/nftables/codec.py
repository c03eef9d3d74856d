"""Rules as the kernel's expression lists, in the very bytes in which the kernel lists them back.

A rule is recognised by these bytes and its comment. So attributes stand in the order of the kernel's own dump functions
(net/netfilter/nft_*.c), nests carry no NLA_F_NESTED flag, and defaults that the kernel adds are written out. Only
counters change by themselves; `normalise` sets them to zero before a comparison.

Two things are added that nft adds as well: in an inet table a match on an IPv4 or IPv6 header is preceded by a test of
`meta nfproto`, and a match on an ICMP header by one of `meta l4proto`, unless the rule has that test before.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import ip_address
from typing import NamedTuple, assert_never

from libs.netlink.codec import attr, be32, be64, text, u8
from libs.nftables.model import (
    COMMENT_MAX,
    LOG_PREFIX_MAX,
    Bits,
    ConnLimit,
    CopyMark,
    Counter,
    DataType,
    Expr,
    Family,
    Fib,
    FibResult,
    Field,
    InSet,
    Limit,
    Log,
    Masquerade,
    Match,
    Nat,
    NoTrack,
    Reject,
    RejectKind,
    Rule,
    SetDscp,
    SetMark,
    Verdict,
    VerdictKind,
    Vmap,
)
from libs.nftables.types import FIELD_TYPES, PROTOCOLS, TYPES, ElementError, pack_int, padded, parse_part

FAMILY_NUMBERS = {Family.INET: 1, Family.IP: 2, Family.ARP: 3, Family.IP6: 10}  # NFPROTO_*
VERDICT_CODES = {
    VerdictKind.DROP: 0,
    VerdictKind.ACCEPT: 1,
    VerdictKind.CONTINUE: -1,
    VerdictKind.JUMP: -3,
    VerdictKind.GOTO: -4,
    VerdictKind.RETURN: -5,
}
_VERDICT_KINDS = {code & 0xFFFFFFFF: kind for kind, code in VERDICT_CODES.items()}
LOG_LEVELS = ("emerg", "alert", "crit", "err", "warn", "notice", "info", "debug")
SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800}

_CMP_EQ, _CMP_NEQ, _CMP_LTE, _CMP_GTE = 0, 1, 3, 5  # enum nft_cmp_ops
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2  # enum nft_payload_bases
_RANDOM_FULLY, _MAP_ADDRESS, _PORTS_GIVEN = 0x10, 0x01, 0x02  # linux/netfilter/nf_nat.h

# field → (header, offset); lengths come from the field's type
_PAYLOAD = {
    Field.IP_SADDR: (_NETWORK_HEADER, 12),
    Field.IP_DADDR: (_NETWORK_HEADER, 16),
    Field.IP6_SADDR: (_NETWORK_HEADER, 8),
    Field.IP6_DADDR: (_NETWORK_HEADER, 24),
    Field.SPORT: (_TRANSPORT_HEADER, 0),
    Field.DPORT: (_TRANSPORT_HEADER, 2),
    Field.ICMP_TYPE: (_TRANSPORT_HEADER, 0),
    Field.ICMP_CODE: (_TRANSPORT_HEADER, 1),
    Field.ICMPV6_TYPE: (_TRANSPORT_HEADER, 0),
    Field.ICMPV6_CODE: (_TRANSPORT_HEADER, 1),
    Field.ARP_OPERATION: (_NETWORK_HEADER, 6),
    Field.ARP_SADDR_IP: (_NETWORK_HEADER, 14),
    Field.ARP_DADDR_IP: (_NETWORK_HEADER, 24),
}
_META = {Field.MARK: 3, Field.IIFNAME: 6, Field.OIFNAME: 7, Field.NFPROTO: 15, Field.L4PROTO: 16}  # enum nft_meta_keys
_CT = {Field.CT_STATE: 0, Field.CT_STATUS: 2, Field.CT_MARK: 3}  # enum nft_ct_keys

_NEEDS_NFPROTO = {
    Field.IP_SADDR: 2,
    Field.IP_DADDR: 2,
    Field.IP6_SADDR: 10,
    Field.IP6_DADDR: 10,
}
_NEEDS_L4PROTO = {
    Field.ICMP_TYPE: PROTOCOLS["icmp"],
    Field.ICMP_CODE: PROTOCOLS["icmp"],
    Field.ICMPV6_TYPE: PROTOCOLS["icmpv6"],
    Field.ICMPV6_CODE: PROTOCOLS["icmpv6"],
}


class WireRule(NamedTuple):
    """What identifies a rule in the kernel: its expression list and its user data (the comment)."""

    expressions: bytes
    userdata: bytes


# --- building blocks ------------------------------------------------------------------------------------------------


def _expression(name: str, *attributes: bytes) -> bytes:
    """One NFTA_LIST_ELEM of a rule's expressions: NFTA_EXPR_NAME, NFTA_EXPR_DATA."""
    data = attr(2, b"".join(attributes)) if attributes else b""
    return attr(1, text(1, name) + data)


def _value(kind: int, data: bytes) -> bytes:
    return attr(kind, attr(1, data))  # NFTA_DATA_VALUE


def register(word: int) -> int:
    """The number by which the kernel calls the word-th 32-bit register: whole 16-byte registers by their old names."""
    return 1 + word // 4 if word % 4 == 0 else 8 + word


def _load(field: Field, word: int = 0, length: int | None = None) -> bytes:
    if field in _PAYLOAD:
        header, offset = _PAYLOAD[field]
        size = TYPES[FIELD_TYPES[field]].length if length is None else length
        return _expression("payload", be32(1, register(word)), be32(2, header), be32(3, offset), be32(4, size))
    if field in _META:
        return _expression("meta", be32(2, _META[field]), be32(1, register(word)))
    return _expression("ct", be32(1, register(word)), be32(2, _CT[field]))


def _load_key(fields: tuple[Field, ...]) -> bytes:
    """Load a concatenation into consecutive registers, as a set's key lies in memory."""
    loads, word = [], 0
    for field in fields:
        loads.append(_load(field, word))
        word += padded(TYPES[FIELD_TYPES[field]].length) // 4
    if word > 16:
        raise ElementError(f"{' . '.join(fields)} needs {word * 4} bytes, a key has at most 64")
    return b"".join(loads)


def _cmp(op: int, data: bytes) -> bytes:
    return _expression("cmp", be32(1, 1), be32(2, op), _value(3, data))


def _bitwise(mask: bytes, xor: bytes) -> bytes:
    return _expression(
        "bitwise", be32(1, 1), be32(2, 1), be32(3, len(mask)), be32(6, 0), _value(4, mask), _value(5, xor)
    )


def _immediate(word: int, data: bytes) -> bytes:
    return _expression("immediate", be32(1, register(word)), _value(2, data))


def verdict_data(verdict: Verdict) -> bytes:
    """The content of NFTA_DATA_VERDICT."""
    code = be32(1, VERDICT_CODES[verdict.kind])
    return code + text(2, verdict.chain) if verdict.chain else code


def decode_verdict(code: int, chain: str) -> Verdict | None:
    """None for a verdict that is none of ours (queue, stolen …)."""
    kind = _VERDICT_KINDS.get(code)
    return None if kind is None else Verdict(kind, chain)


def _mark_bytes(value: int) -> bytes:
    return pack_int(DataType.MARK, value)


# --- matches --------------------------------------------------------------------------------------------------------


def _match(expr: Match) -> bytes:
    field, value = expr.field, expr.value
    data_type = FIELD_TYPES[field]
    equal = _CMP_NEQ if expr.negate else _CMP_EQ
    if data_type is DataType.IFNAME and isinstance(value, str) and value.endswith("*"):
        prefix = value[:-1].encode()
        if not prefix:
            raise ElementError(f"{field} {value!r} matches everything: leave the match out")
        return _load(field) + _cmp(equal, prefix)
    low, high = parse_part(data_type, value)
    if low == high:
        return _load(field) + _cmp(equal, low)
    if TYPES[data_type].little:
        raise ElementError(f"{field} cannot be matched by a range")
    bits = len(low) * 8
    host = int.from_bytes(low, "big") ^ int.from_bytes(high, "big")
    if data_type in (DataType.IPV4, DataType.IPV6) and host & (host + 1) == 0:
        length = bits - host.bit_length()
        if int.from_bytes(low, "big") & host == 0 and length:
            return _prefix(field, low, length, equal)
        if not length:
            return _load(field) + _bitwise(bytes(len(low)), bytes(len(low))) + _cmp(equal, bytes(len(low)))
    if expr.negate:
        return _load(field) + _expression("range", be32(1, 1), be32(2, _CMP_NEQ), _value(3, low), _value(4, high))
    return _load(field) + _cmp(_CMP_GTE, low) + _cmp(_CMP_LTE, high)


def _prefix(field: Field, low: bytes, length: int, equal: int) -> bytes:
    """A four-byte load under a mask takes 4 ns, the three-byte load that nft makes of a /24 takes 34. IPv6 has no
    short way, so there the fewer bytes win."""
    if len(low) == 16 and length % 8 == 0:
        return _load(field, length=length // 8) + _cmp(equal, low[: length // 8])
    bits = len(low) * 8
    mask = ((1 << length) - 1) << (bits - length)
    return _load(field) + _bitwise(mask.to_bytes(len(low), "big"), bytes(len(low))) + _cmp(equal, low)


def _bits(expr: Bits) -> bytes:
    data_type = FIELD_TYPES[expr.field]
    mask = pack_int(data_type, expr.mask)
    value = pack_int(data_type, expr.value)
    return _load(expr.field) + _bitwise(mask, bytes(len(mask))) + _cmp(_CMP_NEQ if expr.negate else _CMP_EQ, value)


def _fib(expr: Fib) -> bytes:
    flags = {"saddr": 1, "daddr": 2}.get(expr.by)
    if flags is None:
        raise ElementError(f"fib looks up saddr or daddr, not {expr.by!r}")
    flags |= (4 if expr.mark else 0) | (8 if expr.iif else 0) | (16 if expr.oif else 0)
    result = 1 if expr.result is FibResult.OIF else 3
    value = pack_int(DataType.MARK, expr.value)  # both are 32 bits in the machine's order
    load = _expression("fib", be32(1, 1), be32(2, result), be32(3, flags))
    return load + _cmp(_CMP_NEQ if expr.negate else _CMP_EQ, value)


# --- statements -----------------------------------------------------------------------------------------------------


def _set_mark(expr: SetMark) -> bytes:
    ct = expr.field is Field.CT_MARK
    store = _expression("ct", be32(4, 1), be32(2, 3)) if ct else _expression("meta", be32(2, 3), be32(3, 1))
    if expr.keep == 0:
        return _immediate(0, _mark_bytes(expr.xor)) + store
    return _load(expr.field) + _bitwise(_mark_bytes(expr.keep), _mark_bytes(expr.xor)) + store


def _copy_mark(expr: CopyMark) -> bytes:
    if expr.to is Field.CT_MARK:
        return _load(Field.MARK) + _expression("ct", be32(4, 1), be32(2, 3))
    return _load(Field.CT_MARK) + _expression("meta", be32(2, 3), be32(3, 1))


def _log(expr: Log) -> bytes:
    raw = expr.prefix.encode()[:LOG_PREFIX_MAX].decode(errors="ignore")
    prefix = text(2, raw) if raw else b""
    if expr.group is None:
        return _expression("log", prefix, be32(5, LOG_LEVELS.index(expr.level)))
    snaplen = be32(3, expr.snaplen) if expr.snaplen else b""
    return _expression("log", prefix, attr(1, expr.group.to_bytes(2, "big")), snaplen)


def _reject(expr: Reject) -> bytes:
    if expr.kind is RejectKind.TCP_RESET:
        return _expression("reject", be32(1, 1))
    return _expression("reject", be32(1, 2 if expr.kind is RejectKind.ICMPX else 0), u8(2, expr.code))


def _ports(word: int, ports: tuple[int, int] | None) -> tuple[bytes, int, int]:
    """(expressions that load them, first register, last register)."""
    if ports is None:
        return b"", 0, 0
    low, high = (pack_int(DataType.PORT, port) for port in ports)
    first = register(word)
    if low == high:
        return _immediate(word, low), first, first
    return _immediate(word, low) + _immediate(word + 4, high), first, register(word + 4)


def _masquerade(expr: Masquerade) -> bytes:
    loads, first, last = _ports(0, expr.ports)
    flags = (_PORTS_GIVEN if expr.ports else 0) | (_RANDOM_FULLY if expr.fully_random else 0)
    attributes = (be32(1, flags) if flags else b"") + (be32(2, first) + be32(3, last) if expr.ports else b"")
    return loads + (_expression("masq", attributes) if attributes else attr(1, text(1, "masq") + attr(2, b"")))


def _nat(expr: Nat) -> bytes:
    address = ip_address(expr.addr)
    loads, first, last = _ports(4, expr.ports)
    flags = _MAP_ADDRESS | (_PORTS_GIVEN if expr.ports else 0) | (_RANDOM_FULLY if expr.fully_random else 0)
    return (
        _immediate(0, address.packed)
        + loads
        + _expression(
            "nat",
            be32(1, 0 if expr.source else 1),
            be32(2, 2 if address.version == 4 else 10),
            be32(3, 1),
            be32(4, 1),
            be32(5, first) + be32(6, last) if expr.ports else b"",
            be32(7, flags),
        )
    )


def _set_dscp(expr: SetDscp) -> bytes:
    if not 0 <= expr.value < 64:
        raise ElementError(f"DSCP {expr.value} is not 0 to 63")
    if expr.family is Family.IP:  # version, header length | DSCP, ECN; the header has a checksum at offset 10
        mask, xor, checksum, offset = b"\xff\x03", bytes((0, expr.value << 2)), 1, 10
    else:  # version (4 bits), DSCP (6), ECN (2), flow label
        mask, xor, checksum, offset = b"\xf0\x3f", (expr.value << 6).to_bytes(2, "big"), 0, 0
    load = _expression("payload", be32(1, 1), be32(2, _NETWORK_HEADER), be32(3, 0), be32(4, 2))
    store = _expression(
        "payload", be32(5, 1), be32(2, _NETWORK_HEADER), be32(3, 0), be32(4, 2),
        be32(6, checksum), be32(7, offset), be32(8, 0),
    )  # fmt: skip
    return load + _bitwise(mask, xor) + store


@lru_cache(maxsize=65536)
def encode_expr(expr: Expr) -> bytes:
    """One expression of the model as kernel expressions. Raises ElementError for a value that does not fit."""
    match expr:
        case Match():
            return _match(expr)
        case Bits():
            return _bits(expr)
        case InSet():
            return _load_key(expr.fields) + _expression("lookup", text(1, expr.set), be32(2, 1), be32(5, expr.negate))
        case Vmap():
            return _load_key(expr.fields) + _expression("lookup", text(1, expr.map), be32(2, 1), be32(3, 0), be32(5, 0))
        case Fib():
            return _fib(expr)
        case SetMark():
            return _set_mark(expr)
        case CopyMark():
            return _copy_mark(expr)
        case Counter():
            return _COUNTER
        case Limit():
            return _expression(
                "limit",
                be64(1, expr.rate),
                be64(2, SECONDS[expr.unit]),
                be32(3, expr.burst),
                be32(4, 0),
                be32(5, expr.over),
            )
        case ConnLimit():
            return _expression("connlimit", be32(1, expr.count), be32(2, 1) if expr.over else b"")
        case Log():
            return _log(expr)
        case Verdict():
            return _expression("immediate", be32(1, 0), attr(2, attr(2, verdict_data(expr))))
        case Reject():
            return _reject(expr)
        case Masquerade():
            return _masquerade(expr)
        case Nat():
            return _nat(expr)
        case NoTrack():
            return _expression("notrack")
        case SetDscp():
            return _set_dscp(expr)
    assert_never(expr)


_COUNTER = _expression("counter", be64(1, 0), be64(2, 0))
_COUNTED = re.compile(
    re.escape(_COUNTER[:20]) + re.escape(_COUNTER[20:24]) + b".{8}" + re.escape(_COUNTER[32:36]) + b".{8}", re.DOTALL
)


def normalise(expressions: bytes) -> bytes:
    """An expression list with its counters set to zero."""
    return _COUNTED.sub(_COUNTER.replace(b"\\", b"\\\\"), expressions) if b"counter\0" in expressions else expressions


# --- rules ----------------------------------------------------------------------------------------------------------


def _fields(expr: Expr) -> tuple[Field, ...]:
    if isinstance(expr, Match | Bits):
        return (expr.field,)
    if isinstance(expr, InSet | Vmap):
        return expr.fields
    return ()


def _guards(expr: Expr, family: Family, tested: set[Field]) -> bytes:
    """Tests that must come before `expr` so that it looks at the header it means; notes what the rule tests itself."""
    added = b""
    if isinstance(expr, SetDscp) and family is Family.INET and Field.NFPROTO not in tested:
        added += _load(Field.NFPROTO) + _cmp(_CMP_EQ, bytes((FAMILY_NUMBERS[expr.family],)))
        tested.add(Field.NFPROTO)
    for field in _fields(expr):
        if family is Family.INET and field in _NEEDS_NFPROTO and Field.NFPROTO not in tested:
            added += _load(Field.NFPROTO) + _cmp(_CMP_EQ, bytes((_NEEDS_NFPROTO[field],)))
            tested.add(Field.NFPROTO)
        if field in _NEEDS_L4PROTO and Field.L4PROTO not in tested:
            added += _load(Field.L4PROTO) + _cmp(_CMP_EQ, bytes((_NEEDS_L4PROTO[field],)))
            tested.add(Field.L4PROTO)
        if field in (Field.NFPROTO, Field.L4PROTO):
            tested.add(field)
    return added


@lru_cache(maxsize=131072)
def encode_rule(family: Family, rule: Rule) -> WireRule:
    """Raises ElementError when a value does not fit its field."""
    tested: set[Field] = set()
    parts = []
    for expr in rule.exprs:
        guard = _guards(expr, family, tested)
        if guard:
            parts.append(guard)
        parts.append(encode_expr(expr))
    return WireRule(b"".join(parts), encode_comment(rule.comment))


def encode_comment(comment: str) -> bytes:
    """User data of a rule: one entry type(1) length(1) value, type 0 the comment with its NUL (libnftnl udata.h)."""
    if not comment:
        return b""
    raw = comment.encode()[:COMMENT_MAX].decode(errors="ignore").encode() + b"\0"
    return bytes((0, len(raw))) + raw


def decode_comment(userdata: bytes) -> str:
    at = 0
    while at + 2 <= len(userdata):
        kind, length = userdata[at], userdata[at + 1]
        if kind == 0:
            return userdata[at + 2 : at + 2 + length].rstrip(b"\0").decode(errors="replace")
        at += 2 + length
    return ""
