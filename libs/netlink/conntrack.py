"""Forgetting connections (linux/netfilter/nfnetlink_conntrack.h).

An address that moves to another pod must not inherit the verdicts of connections of the former one.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from libs.netlink.addresses import FAMILIES
from libs.netlink.codec import ObjectNotFound, attr, attrs, nest, u32
from libs.netlink.socket import NetlinkSocket

_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
CT_GET, CT_DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_ORIGINAL, _REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_TUPLE_IP = 1
_SOURCE = {4: 1, 6: 3}
_DESTINATION = {4: 2, 6: 4}
_FILTER_SOURCE = 1  # CTA_FILTER_FLAG_CTA_IP_SRC
_SLICE = 500


def delete_connections(netlink: NetlinkSocket, address: IPv4Address | IPv6Address) -> int:
    """Delete every connection from or to the address (after translation, if any); how many there were.

    netlink: a socket for NETLINK_NETFILTER. The kernel (5.8 and later) picks the candidates, so a large table costs
    no large copy.
    """
    head = bytes((FAMILIES[address.version], 0, 0, 0))
    requests: dict[bytes, tuple[int, int, bytes]] = {}
    source = attr(_SOURCE[address.version], address.packed)
    for direction in (_ORIGINAL, _REPLY):  # what a pod opens has it as original source, what it accepts as reply source
        wanted = nest(
            _FILTER, u32(1, _FILTER_SOURCE * (direction == _ORIGINAL)), u32(2, _FILTER_SOURCE * (direction == _REPLY))
        )
        body = head + nest(direction, nest(_TUPLE_IP, source)) + wanted
        for _, reply in netlink.dump(CT_GET, body, f"connections of {address}"):
            found = attrs(reply, 4)
            if not _concerns(found, address):  # kernels without the filter list everything
                continue
            name = nest(_ORIGINAL, found[_ORIGINAL]) + attr(_ID, found[_ID])
            if _ZONE in found:
                name += attr(_ZONE, found[_ZONE])
            requests[found[_ID] + found[_ORIGINAL]] = (CT_DELETE, 0, head + name)
    todo = list(requests.values())
    for start in range(0, len(todo), _SLICE):
        for error in netlink.batch(todo[start : start + _SLICE]).values():
            if not isinstance(error, ObjectNotFound):
                raise error
    return len(todo)


def _concerns(found: dict[int, bytes], address: IPv4Address | IPv6Address) -> bool:
    for direction in (_ORIGINAL, _REPLY):
        ends = attrs(attrs(found.get(direction, b"")).get(_TUPLE_IP, b""))
        if address.packed in (ends.get(_SOURCE[address.version]), ends.get(_DESTINATION[address.version])):
            return True
    return False
