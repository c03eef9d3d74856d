"""Policy routing rules (linux/fib_rules.h) of the form `from ADDRESS lookup TABLE`."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network

from libs.netlink.addresses import FAMILIES
from libs.netlink.codec import NLM_F_CREATE, NLM_F_EXCL, attr, attrs, to_u32, u32
from libs.netlink.socket import NetlinkSocket

RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
_HEADER = struct.Struct("=BBBBBBBBI")  # struct fib_rule_hdr: family, dst_len, src_len, tos, table, 0, 0, action, flags
_SRC, _PRIORITY, _TABLE = 2, 6, 15
_TO_TABLE = 1  # FR_ACT_TO_TBL


@dataclass(frozen=True, slots=True)
class SourceRule:
    """`from source lookup table`; the smaller the priority, the earlier it is looked at."""

    source: IPv4Network | IPv6Network
    table: int
    priority: int


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
            _, _, length, _, short, _, _, action, _ = _HEADER.unpack_from(reply)
            parts = attrs(reply, _HEADER.size)
            leads_to = to_u32(parts[_TABLE]) if _TABLE in parts else short
            if action == _TO_TABLE and leads_to == table and _SRC in parts:
                source = ip_network((parts[_SRC], length))
                found.append(SourceRule(source, table, to_u32(parts.get(_PRIORITY, bytes(4)))))
    return found
