"""Policy routing rules (linux/fib_rules.h): `from ADDRESS lookup TABLE` and `[not] fwmark MARK lookup TABLE`."""

from __future__ import annotations

import struct
from collections.abc import Container, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from libs.netlink.addresses import FAMILIES
from libs.netlink.codec import NLM_F_CREATE, NLM_F_EXCL, attr, attrs, to_u32, u32
from libs.netlink.socket import NetlinkSocket

RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
_HEADER = struct.Struct("=BBBBBBBBI")  # struct fib_rule_hdr: family, dst_len, src_len, tos, table, 0, 0, action, flags
_SRC, _PRIORITY, _MARK, _TABLE, _MASK = 2, 6, 10, 15, 16
_TO_TABLE = 1  # FR_ACT_TO_TBL
_INVERT = 0x2  # FIB_RULE_INVERT


@dataclass(frozen=True, slots=True)
class SourceRule:
    """`from source lookup table`; the smaller the priority, the earlier it is looked at."""

    source: IPv4Network | IPv6Network
    table: int
    priority: int


@dataclass(frozen=True, slots=True)
class RuleInto:
    """Some rule that leads to this table; 0: to none."""

    table: int


def decode_rule(body: bytes) -> RuleInto:
    """Of RTM_NEWRULE and RTM_DELRULE."""
    return RuleInto(_leads_to(body, attrs(body, _HEADER.size)))


def _leads_to(body: bytes, parts: dict[int, bytes]) -> int:
    _, _, _, _, short, _, _, action, _ = _HEADER.unpack_from(body)
    if action != _TO_TABLE:
        return 0
    return to_u32(parts[_TABLE]) if _TABLE in parts else int(short)


def rule_request(rule: SourceRule, *, delete: bool = False) -> tuple[int, int, bytes]:
    """For NetlinkSocket.batch. A rule that is there already is refused with ObjectExists."""
    family, length = FAMILIES[rule.source.version], rule.source.prefixlen
    body = _HEADER.pack(family, 0, length, 0, min(rule.table, 255), 0, 0, _TO_TABLE, 0)
    body += attr(_SRC, rule.source.network_address.packed) + u32(_PRIORITY, rule.priority) + u32(_TABLE, rule.table)
    return (RTM_DELRULE, 0, body) if delete else (RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, body)


def list_source_rules(netlink: NetlinkSocket, table: int, families: Iterable[int] = (4, 6)) -> list[SourceRule]:
    """Those that lead to the table."""
    found = []
    for version in families:
        body = _HEADER.pack(FAMILIES[version], 0, 0, 0, 0, 0, 0, 0, 0)
        for kind, reply in netlink.dump(RTM_GETRULE, body, "rules"):
            if kind != RTM_NEWRULE:
                continue
            length = _HEADER.unpack_from(reply)[2]
            parts = attrs(reply, _HEADER.size)
            if _leads_to(reply, parts) == table and _SRC in parts:
                source = ip_network((parts[_SRC], length))
                found.append(SourceRule(source, table, to_u32(parts.get(_PRIORITY, bytes(4)))))
    return found


@dataclass(frozen=True, slots=True)
class MarkRule:
    """`[not] fwmark mark/mask lookup table` of one family."""

    version: int
    mark: int
    mask: int
    table: int
    priority: int
    negate: bool = False


def mark_rule_request(rule: MarkRule, *, delete: bool = False) -> tuple[int, int, bytes]:
    """For NetlinkSocket.batch. A rule that is there already is refused with ObjectExists."""
    flags = _INVERT if rule.negate else 0
    body = _HEADER.pack(FAMILIES[rule.version], 0, 0, 0, min(rule.table, 255), 0, 0, _TO_TABLE, flags)
    body += u32(_PRIORITY, rule.priority) + u32(_MARK, rule.mark) + u32(_MASK, rule.mask) + u32(_TABLE, rule.table)
    return (RTM_DELRULE, 0, body) if delete else (RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, body)


def list_mark_rules(netlink: NetlinkSocket, tables: Container[int], version: int) -> list[MarkRule]:
    """Those of one family that look at the mark alone and lead to one of the tables."""
    body = _HEADER.pack(FAMILIES[version], 0, 0, 0, 0, 0, 0, 0, 0)
    found = []
    for kind, reply in netlink.dump(RTM_GETRULE, body, "rules"):
        if kind != RTM_NEWRULE:
            continue
        _, to_length, from_length, _, _, _, _, _, flags = _HEADER.unpack_from(reply)
        parts = attrs(reply, _HEADER.size)
        table = _leads_to(reply, parts)
        if table not in tables or _MARK not in parts or to_length or from_length:
            continue
        mark, mask = to_u32(parts[_MARK]), to_u32(parts.get(_MASK, b"\xff\xff\xff\xff"))
        priority = to_u32(parts.get(_PRIORITY, bytes(4)))
        found.append(MarkRule(version, mark, mask, table, priority, bool(flags & _INVERT)))
    return found
