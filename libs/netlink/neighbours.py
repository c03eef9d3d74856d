"""Neighbour entries (linux/neighbour.h): permanent ARP and NDP entries, and proxy entries."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from libs.netlink.addresses import FAMILIES
from libs.netlink.codec import NLM_F_CREATE, NLM_F_REPLACE, NetlinkError, ObjectNotFound, attr, attrs
from libs.netlink.links import format_mac, parse_mac
from libs.netlink.socket import NetlinkSocket

RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
NDMSG = struct.Struct("=BxxxiHBB")  # struct ndmsg: family, interface, state, flags, type
_DST, _LLADDR = 1, 2
NUD_PERMANENT = 0x80
NTF_PROXY = 0x08


@dataclass(frozen=True, slots=True)
class Neighbour:
    """mac is empty for a proxy entry ("answer for this address here") and for one that is not resolved."""

    address: IPv4Address | IPv6Address
    index: int
    mac: str = ""
    permanent: bool = True
    proxy: bool = False


def decode_neighbour(body: bytes) -> Neighbour | None:
    """Body of RTM_NEWNEIGH; None for entries of bridges and VXLAN devices (fdb.py), and for those with no address."""
    family, index, state, flags, _ = NDMSG.unpack_from(body)
    found = attrs(body, NDMSG.size)
    if family not in FAMILIES.values() or _DST not in found:
        return None
    mac = format_mac(found[_LLADDR]) if _LLADDR in found else ""
    return Neighbour(ip_address(found[_DST]), index, mac, bool(state & NUD_PERMANENT), bool(flags & NTF_PROXY))


def list_neighbours(netlink: NetlinkSocket, index: int = 0, *, proxy: bool = False) -> list[Neighbour]:
    """Ordinary entries, or the proxy ones; of all interfaces or of one."""
    found = []
    for family in FAMILIES.values():
        body = NDMSG.pack(family, 0, 0, NTF_PROXY if proxy else 0, 0)
        for kind, reply in netlink.dump(RTM_GETNEIGH, body, "neighbours"):
            entry = decode_neighbour(reply) if kind == RTM_NEWNEIGH else None
            if entry is not None and index in (0, entry.index) and entry.proxy == proxy:
                found.append(entry)
    return found


def neighbour_request(entry: Neighbour, *, delete: bool = False) -> tuple[int, int, bytes]:
    flags = NTF_PROXY if entry.proxy else 0
    state = NUD_PERMANENT if entry.permanent else 0
    body = NDMSG.pack(FAMILIES[entry.address.version], entry.index, state, flags, 0) + attr(_DST, entry.address.packed)
    if entry.mac:
        body += attr(_LLADDR, parse_mac(entry.mac))
    return (RTM_DELNEIGH, 0, body) if delete else (RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def replace_neighbours(netlink: NetlinkSocket, entries: Sequence[Neighbour]) -> dict[Neighbour, NetlinkError]:
    """Create or overwrite; what was refused, with the reason."""
    failed = netlink.batch([neighbour_request(entry) for entry in entries])
    return {entries[i]: error for i, error in failed.items()}


def delete_neighbours(netlink: NetlinkSocket, entries: Sequence[Neighbour]) -> dict[Neighbour, NetlinkError]:
    """Entries that are gone already count as deleted."""
    failed = netlink.batch([neighbour_request(entry, delete=True) for entry in entries])
    return {entries[i]: error for i, error in failed.items() if not isinstance(error, ObjectNotFound)}
