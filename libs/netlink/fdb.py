"""Forwarding entries of VXLAN devices (linux/neighbour.h, family AF_BRIDGE): at which host a MAC address is found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from libs.netlink.codec import NLM_F_CREATE, NLM_F_REPLACE, NetlinkError, ObjectNotFound, attr, attrs
from libs.netlink.links import format_mac, parse_mac
from libs.netlink.neighbours import (
    NDMSG,
    NUD_PERMANENT,
    RTM_DELNEIGH,
    RTM_GETNEIGH,
    RTM_NEWNEIGH,
)
from libs.netlink.socket import NetlinkSocket

AF_BRIDGE = 7
_REACHABLE = 0x02  # NUD_REACHABLE: known for now
NTF_SELF = 0x02  # of the device itself, not of a bridge above it
_DST, _LLADDR = 1, 2


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """Frames to `mac` leave the VXLAN device of that index towards `remote`. Only the MAC of zeros, which
    stands for all unknown ones, may have several remotes.
    """

    index: int
    mac: str
    remote: IPv4Address | IPv6Address
    permanent: bool = True


def decode_fdb(body: bytes) -> FdbEntry | None:
    """Body of RTM_NEWNEIGH or RTM_DELNEIGH; None for what is no VXLAN device's own entry."""
    family, index, state, flags, _ = NDMSG.unpack_from(body)
    found = attrs(body, NDMSG.size)
    if family != AF_BRIDGE or not flags & NTF_SELF or _DST not in found or _LLADDR not in found:
        return None
    mac = format_mac(found[_LLADDR])
    return FdbEntry(index, mac, ip_address(found[_DST]), bool(state & NUD_PERMANENT))


def list_fdb(netlink: NetlinkSocket, index: int) -> list[FdbEntry]:
    """Of one device."""
    replies = netlink.dump(RTM_GETNEIGH, NDMSG.pack(AF_BRIDGE, index, 0, 0, 0), f"forwarding entries of link {index}")
    entries = [decode_fdb(reply) for kind, reply in replies if kind == RTM_NEWNEIGH]
    return [entry for entry in entries if entry is not None and entry.index == index]


def fdb_request(entry: FdbEntry, *, delete: bool = False) -> tuple[int, int, bytes]:
    """For NetlinkSocket.batch. An entry for a MAC that has another remote takes its place."""
    state = NUD_PERMANENT if entry.permanent else _REACHABLE
    body = NDMSG.pack(AF_BRIDGE, entry.index, state, NTF_SELF, 0)
    body += attr(_DST, entry.remote.packed) + attr(_LLADDR, parse_mac(entry.mac))
    return (RTM_DELNEIGH, 0, body) if delete else (RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, body)


def replace_fdb(netlink: NetlinkSocket, entries: Sequence[FdbEntry]) -> dict[FdbEntry, NetlinkError]:
    """Create or overwrite; what was refused, with the reason."""
    failed = netlink.batch([fdb_request(entry) for entry in entries])
    return {entries[i]: error for i, error in failed.items()}


def delete_fdb(netlink: NetlinkSocket, entries: Sequence[FdbEntry]) -> dict[FdbEntry, NetlinkError]:
    """Entries that are gone already count as deleted."""
    failed = netlink.batch([fdb_request(entry, delete=True) for entry in entries])
    return {entries[i]: error for i, error in failed.items() if not isinstance(error, ObjectNotFound)}
