"""Addresses of interfaces (linux/if_addr.h)."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from libs.netlink.codec import NLM_F_CREATE, NLM_F_REPLACE, attr, attrs, to_u32, u32
from libs.netlink.socket import NetlinkSocket

RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
_IFADDR = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_ADDRESS, _LOCAL, _FLAGS = 1, 2, 8
IFA_F_NODAD = 0x02
IFA_F_DADFAILED = 0x08
IFA_F_TENTATIVE = 0x40
IFA_F_PERMANENT = 0x80
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True)
class Address:
    """An address with the prefix length of its subnet, on the interface of that index."""

    interface: IPv4Interface | IPv6Interface
    index: int
    scope: int = 0
    flags: int = 0


def decode_address(body: bytes) -> Address:
    """Body of RTM_NEWADDR or RTM_DELADDR."""
    _, length, flags, scope, index = _IFADDR.unpack_from(body)
    found = attrs(body, _IFADDR.size)
    raw = found.get(_LOCAL) or found[_ADDRESS]  # on point-to-point links ADDRESS is the other end's
    if _FLAGS in found:
        flags = to_u32(found[_FLAGS])
    return Address(ip_interface((raw, length)), index, scope, flags)


def list_addresses(netlink: NetlinkSocket, index: int = 0) -> list[Address]:
    """All, or those of one interface."""
    body = _IFADDR.pack(0, 0, 0, 0, index)
    replies = netlink.dump(RTM_GETADDR, body, "addresses")
    found = [decode_address(reply) for kind, reply in replies if kind == RTM_NEWADDR]
    return [address for address in found if index in (0, address.index)]


def address_request(
    interface: IPv4Interface | IPv6Interface, index: int, *, delete: bool = False
) -> tuple[int, int, bytes]:
    """For NetlinkSocket.batch. IPv6 addresses skip duplicate detection: a pod's is ours alone and needed at once."""
    raw = interface.ip.packed
    body = _IFADDR.pack(FAMILIES[interface.version], interface.network.prefixlen, 0, 0, index)
    body += attr(_LOCAL, raw) + attr(_ADDRESS, raw)
    if interface.version == 6:
        body += u32(_FLAGS, IFA_F_NODAD)
    return (RTM_DELADDR, 0, body) if delete else (RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body)
