"""What an nftables table should hold, as immutable values: chains of rules, sets, maps.

A rule is exactly its expressions, in order; they are nft's own, so a reader who knows `nft` finds his way. Values
inside matches and set elements are text in nft's form ("10.0.0.0/8", "80-90", "tcp", "cali*", "10.0.0.1 . tcp . 80")
or integers. Anonymous sets do not exist here: five thousand of them load thirteen times slower than one shared named
set.

Nothing here encodes or talks to the kernel: see codec.py, text.py, reconcile.py.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from enum import StrEnum
from typing import TypeAlias

import msgspec

NAME_MAX = 255  # NFT_NAME_MAXLEN less the NUL: tables, chains, sets
COMMENT_MAX = 127  # bytes; nft reserves 128 with the NUL (NFTNL_UDATA_COMMENT_MAXLEN)
LOG_PREFIX_MAX = 127  # NF_LOG_PREFIXLEN less the NUL
IFNAME_MAX = 15

_SAFE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9/_.\-]*")
_UNSAFE_CHAR = re.compile(r"[^A-Za-z0-9/_.\-]")
_HASH_LEN = 10  # base32 characters: 50 bits


def safe_name(text: str, max_len: int = NAME_MAX) -> str:
    """A name that the kernel takes, `nft` lists and can load again: letters, digits, `/ _ . -`, a letter or `_` first.

    A text that is one already comes back unchanged. Any other, or one longer than max_len, becomes
    `<readable part>..<hash>`; a text that holds `..` is hashed as well, so two texts never meet in one name. Prefix
    what you pass (`cali-`, `pi-`): `nft` rejects its own keywords (`fwd`, `drop`, …) as names, and no keyword has a
    prefix.
    """
    if len(text) <= max_len and ".." not in text and _SAFE_NAME.fullmatch(text):
        return text
    digest = base64.b32encode(hashlib.sha256(text.encode()).digest()).decode().lower()[:_HASH_LEN]
    readable = _UNSAFE_CHAR.sub("_", text).replace("..", "._")
    if not readable or not (readable[0].isalpha() or readable[0] == "_"):
        readable = "_" + readable
    keep = max_len - _HASH_LEN - 2
    if keep < 1:
        raise ValueError(f"max_len {max_len} leaves no room for a readable part")
    return f"{readable[:keep]}..{digest}"


class Family(StrEnum):
    IP = "ip"
    IP6 = "ip6"
    INET = "inet"
    ARP = "arp"


class Table(msgspec.Struct, frozen=True, order=True, cache_hash=True):
    family: Family
    name: str

    def __str__(self) -> str:
        return f"{self.family} {self.name}"


class Hook(StrEnum):
    PREROUTING = "prerouting"
    INPUT = "input"
    FORWARD = "forward"
    OUTPUT = "output"
    POSTROUTING = "postrouting"


class ChainType(StrEnum):
    FILTER = "filter"
    NAT = "nat"
    ROUTE = "route"


class Policy(StrEnum):
    ACCEPT = "accept"
    DROP = "drop"


DSTNAT = -100
"""Priority at which destinations are translated (linux/netfilter_ipv4.h, NF_IP_PRI_NAT_DST)."""


class Base(msgspec.Struct, frozen=True):
    """Where a base chain hangs. priority: smaller is earlier (raw -300, mangle -150, dstnat -100, filter 0, srcnat
    100).
    """

    hook: Hook
    type: ChainType = ChainType.FILTER
    priority: int = 0
    policy: Policy = Policy.ACCEPT


# --- fields and data types ------------------------------------------------------------------------------------------


class DataType(StrEnum):
    """Type of one part of a set's key, by nft's name."""

    IPV4 = "ipv4_addr"
    IPV6 = "ipv6_addr"
    PROTO = "inet_proto"
    PORT = "inet_service"
    IFNAME = "ifname"
    MARK = "mark"
    CT_STATE = "ct_state"
    ICMP_TYPE = "icmp_type"
    ICMP_CODE = "icmp_code"
    ICMPV6_TYPE = "icmpv6_type"
    ICMPV6_CODE = "icmpv6_code"
    NFPROTO = "nf_proto"
    CT_STATUS = "ct_status"
    ARP_OP = "arp_op"


class Field(StrEnum):
    """Something of a packet that can be matched or looked up, by nft's name."""

    IIFNAME = "iifname"
    OIFNAME = "oifname"
    IP_SADDR = "ip saddr"
    IP_DADDR = "ip daddr"
    IP6_SADDR = "ip6 saddr"
    IP6_DADDR = "ip6 daddr"
    NFPROTO = "meta nfproto"
    L4PROTO = "meta l4proto"
    SPORT = "th sport"  # matches any protocol whose header starts with ports: put an L4PROTO match first
    DPORT = "th dport"
    ICMP_TYPE = "icmp type"
    ICMP_CODE = "icmp code"
    ICMPV6_TYPE = "icmpv6 type"
    ICMPV6_CODE = "icmpv6 code"
    MARK = "meta mark"
    CT_STATE = "ct state"
    CT_STATUS = "ct status"
    CT_MARK = "ct mark"
    ARP_OPERATION = "arp operation"
    ARP_SADDR_IP = "arp saddr ip"
    ARP_DADDR_IP = "arp daddr ip"


class CtState:
    """Bits of `ct state` (linux/netfilter/nf_conntrack_common.h through nft_ct)."""

    INVALID = 1
    ESTABLISHED = 2
    RELATED = 4
    NEW = 8
    UNTRACKED = 64


CT_STATUS_SNAT = 0x10
CT_STATUS_DNAT = 0x20
NFPROTO_IPV4 = 2
NFPROTO_IPV6 = 10


# --- expressions ----------------------------------------------------------------------------------------------------


class Match(msgspec.Struct, frozen=True, cache_hash=True):
    """`field == value`, or `!=` when negate.

    value: an integer or text in the field's form. Text may be a prefix ("10.0.0.0/8"), an inclusive range ("80-90",
    "10.0.0.1-10.0.0.9"), a protocol name or number, or an interface name with a final `*` for "any that starts so".
    """

    field: Field
    value: str | int
    negate: bool = False


class Bits(msgspec.Struct, frozen=True, cache_hash=True):
    """`field & mask == value`, or `!=` when negate. Fields: MARK, CT_MARK, CT_STATE, CT_STATUS."""

    field: Field
    mask: int
    value: int = 0
    negate: bool = False


class InSet(msgspec.Struct, frozen=True, cache_hash=True):
    """`field . field … @set`, or `!= @set` when negate. The fields' types must be those of the set's key."""

    fields: tuple[Field, ...]
    set: str
    negate: bool = False


class Vmap(msgspec.Struct, frozen=True, cache_hash=True):
    """`field . field … vmap @map`: the verdict found, or the next rule when there is none."""

    fields: tuple[Field, ...]
    map: str


class FibResult(StrEnum):
    OIF = "oif"  # interface index, 0 when there is no route
    TYPE = "type"  # RTN_*: unicast 1, local 2, broadcast 3, blackhole 6 …


class Fib(msgspec.Struct, frozen=True, cache_hash=True):
    """A routing lookup: `fib saddr . mark . iif oif 0` is the reverse-path test, `fib daddr type local` "is it ours",
    `fib saddr . oif type local` "is it an address of the interface that it leaves by".

    by: "saddr" or "daddr". value: an interface index for OIF, an RTN_* number for TYPE.
    """

    by: str
    result: FibResult
    value: int
    mark: bool = False
    iif: bool = False
    oif: bool = False
    negate: bool = False


class SetMark(msgspec.Struct, frozen=True, cache_hash=True):
    """`meta mark set (meta mark & keep) ^ xor`; with keep 0 the mark becomes xor. field: MARK or CT_MARK."""

    keep: int
    xor: int
    field: Field = Field.MARK


class CopyMark(msgspec.Struct, frozen=True, cache_hash=True):
    """`ct mark set meta mark` (to is CT_MARK) or `meta mark set ct mark` (to is MARK)."""

    to: Field


class Counter(msgspec.Struct, frozen=True, cache_hash=True):
    """Counts packets and bytes. What it has counted is the kernel's, never part of the model."""


class Limit(msgspec.Struct, frozen=True, cache_hash=True):
    """`limit rate [over] rate/unit burst N packets`; with over, the match is the excess."""

    rate: int
    unit: str = "second"  # second, minute, hour, day, week
    burst: int = 5
    over: bool = False


class ConnLimit(msgspec.Struct, frozen=True, cache_hash=True):
    """`ct count [over] count`: the number of connections this rule has seen and that are still alive."""

    count: int
    over: bool = True


class Log(msgspec.Struct, frozen=True, cache_hash=True):
    """`log prefix "…"` to the kernel log at `level` (emerg … debug), or with `group` to NFLOG.

    snaplen: bytes of the packet handed to NFLOG, 0 for all.
    """

    prefix: str
    level: str = "warn"
    group: int | None = None
    snaplen: int = 0


class VerdictKind(StrEnum):
    ACCEPT = "accept"
    DROP = "drop"
    RETURN = "return"
    CONTINUE = "continue"
    JUMP = "jump"
    GOTO = "goto"


class Verdict(msgspec.Struct, frozen=True, cache_hash=True):
    kind: VerdictKind
    chain: str = ""  # for JUMP and GOTO

    def __str__(self) -> str:
        return f"{self.kind} {self.chain}" if self.chain else str(self.kind)


class RejectKind(StrEnum):
    TCP_RESET = "tcp reset"
    ICMP = "icmp"
    ICMPV6 = "icmpv6"
    ICMPX = "icmpx"  # the right one of the two above, in inet tables


class Reject(msgspec.Struct, frozen=True, cache_hash=True):
    """code: for ICMP and ICMPV6 the protocol's own code; for ICMPX no-route 0, port 1, host 2, admin-prohibited 3."""

    kind: RejectKind
    code: int = 0


class Masquerade(msgspec.Struct, frozen=True, cache_hash=True):
    ports: tuple[int, int] | None = None  # inclusive
    fully_random: bool = False


class Nat(msgspec.Struct, frozen=True, cache_hash=True):
    """`snat to addr[:ports]` (source) or `dnat to …`; the address's family decides the packets' family."""

    source: bool
    addr: str
    ports: tuple[int, int] | None = None
    fully_random: bool = False


class NoTrack(msgspec.Struct, frozen=True, cache_hash=True):
    pass


class SetDscp(msgspec.Struct, frozen=True, cache_hash=True):
    """Writes the six DSCP bits of an IPv4 or IPv6 header (checksum mended)."""

    family: Family
    value: int


Expr: TypeAlias = (
    Match | Bits | InSet | Vmap | Fib | SetMark | CopyMark | Counter | Limit | ConnLimit | Log | Verdict | Reject
    | Masquerade | Nat | NoTrack | SetDscp
)  # fmt: skip

ACCEPT = Verdict(VerdictKind.ACCEPT)
DROP = Verdict(VerdictKind.DROP)
RETURN = Verdict(VerdictKind.RETURN)
CONTINUE = Verdict(VerdictKind.CONTINUE)
COUNTER = Counter()
RPF_FAILED = Fib("saddr", FibResult.OIF, 0, iif=True)
RPF_FAILED_BY_MARK = Fib("saddr", FibResult.OIF, 0, mark=True, iif=True)
RTN_LOCAL = 2  # linux/rtnetlink.h
TO_LOCAL_ADDRESS = Fib("daddr", FibResult.TYPE, RTN_LOCAL)
FROM_LOCAL_ADDRESS = Fib("saddr", FibResult.TYPE, RTN_LOCAL)
FROM_FOREIGN_ADDRESS = Fib("saddr", FibResult.TYPE, RTN_LOCAL, negate=True)


def jump(chain: str) -> Verdict:
    return Verdict(VerdictKind.JUMP, chain)


def goto(chain: str) -> Verdict:
    return Verdict(VerdictKind.GOTO, chain)


def ct_state(*bits: int) -> Bits:
    """`ct state established,related` is ct_state(CtState.ESTABLISHED, CtState.RELATED)."""
    return Bits(Field.CT_STATE, _union(bits), 0, negate=True)


def ct_status(*bits: int, negate: bool = False) -> Bits:
    """`ct status dnat` is ct_status(CT_STATUS_DNAT); negate: none of the bits."""
    return Bits(Field.CT_STATUS, _union(bits), 0, negate=not negate)


def mark_has(bits: int) -> Bits:
    """All these bits are set."""
    return Bits(Field.MARK, bits, bits)


def mark_lacks(bits: int) -> Bits:
    """None of these bits is set."""
    return Bits(Field.MARK, bits, 0)


def mark_set(value: int, mask: int = 0xFFFFFFFF) -> SetMark:
    """Set the bits under mask to value, leave the others."""
    return SetMark(~mask & 0xFFFFFFFF, value & mask)


def mark_or(bits: int) -> SetMark:
    return SetMark(~bits & 0xFFFFFFFF, bits)


def mark_and(bits: int) -> SetMark:
    return SetMark(bits & 0xFFFFFFFF, 0)


def mark_xor(bits: int) -> SetMark:
    return SetMark(0xFFFFFFFF, bits)


def _union(bits: tuple[int, ...]) -> int:
    mask = 0
    for bit in bits:
        mask |= bit
    return mask


# --- chains, sets, maps ---------------------------------------------------------------------------------------------


class Rule(msgspec.Struct, frozen=True, cache_hash=True):
    """comment: shown by `nft list`, part of the rule's identity, cut to 127 bytes of UTF-8."""

    exprs: tuple[Expr, ...]
    comment: str = ""

    def chains(self) -> Iterator[str]:
        """Chains this rule jumps or goes to."""
        for expr in self.exprs:
            if isinstance(expr, Verdict) and expr.chain:
                yield expr.chain

    def sets(self) -> Iterator[str]:
        """Sets and maps this rule looks up."""
        for expr in self.exprs:
            if isinstance(expr, InSet):
                yield expr.set
            elif isinstance(expr, Vmap):
                yield expr.map


def rule(*exprs: Expr, comment: str = "") -> Rule:
    return Rule(exprs, comment)


class Chain(msgspec.Struct, frozen=True):
    name: str
    rules: tuple[Rule, ...] = ()
    base: Base | None = None


class Set(msgspec.Struct, frozen=True):
    """A named set.

    elements: text in nft's form, parts of a concatenation joined by " . ". With `interval` an element may be a
    prefix or a range; overlapping ones may be given and are merged before the kernel sees them. Without it
    "10.0.0.1/32" is "10.0.0.1" and anything wider is refused. Hash sets (no interval) are four times faster per packet.
    constant: the kernel refuses changes while rules use the set, so a change rewrites those rules as well.
    timeout_s: elements vanish that long after they were added (0: never).
    """

    name: str
    key: tuple[DataType, ...]
    elements: frozenset[str] = frozenset()
    interval: bool = False
    constant: bool = False
    timeout_s: int = 0


class Map(msgspec.Struct, frozen=True):
    """A named verdict map: element text → verdict. Elements have the form of a Set's; intervals must not overlap."""

    name: str
    key: tuple[DataType, ...]
    elements: dict[str, Verdict] = {}
    interval: bool = False


class Ruleset(msgspec.Struct, frozen=True):
    """All that one table holds. A chain that no base chain, rule or map element leads to is legal, but not written."""

    table: Table
    chains: tuple[Chain, ...] = ()
    sets: tuple[Set, ...] = ()
    maps: tuple[Map, ...] = ()
