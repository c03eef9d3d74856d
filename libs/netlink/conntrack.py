"""Connections as the kernel tracks them: listing and forgetting them (linux/netfilter/nfnetlink_conntrack.h).

An address that moves to another pod must not inherit the verdicts of connections of the former one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from libs.netlink.addresses import FAMILIES
from libs.netlink.codec import ObjectNotFound, attr, attrs, nest, u32
from libs.netlink.socket import NetlinkSocket

_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
CT_GET, CT_DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_ORIGINAL, _REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_STATUS, _PROTOINFO, _TIMEOUT, _MARK = 3, 4, 7, 8
_SEEN_REPLY = 1 << 1  # enum ip_conntrack_status
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
# enum tcp_conntrack
TCP_STATES = (
    "none", "syn_sent", "syn_recv", "established", "fin_wait", "close_wait", "last_ack", "time_wait", "close",
    "syn_sent2",
)  # fmt: skip
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


@dataclass(frozen=True, slots=True)
class Tuple:
    """One direction of a connection. Ports are 0 for protocols without; of ICMP type and code."""

    src: IPv4Address | IPv6Address
    dst: IPv4Address | IPv6Address
    protocol: int
    src_port: int = 0
    dst_port: int = 0
    icmp_type: int | None = None
    icmp_code: int | None = None


@dataclass(frozen=True, slots=True)
class Connection:
    """original: as its first packet was sent; reply: as answers come, so its source is where translation led.

    state: of TCP, "" for others. expires_s: when it is forgotten unless something comes; 0 where that is not said.
    """

    original: Tuple
    reply: Tuple
    state: str = ""
    replied: bool = False
    expires_s: int = 0
    mark: int = 0
    zone: int = 0


def list_connections(netlink: NetlinkSocket, families: Iterable[int] = (4, 6)) -> Iterator[Connection]:
    """Every tracked connection; netlink as above. Those of which the kernel does not say both directions are left
    out."""
    for version in families:
        head = bytes((FAMILIES[version], 0, 0, 0))
        for _, body in netlink.dump(CT_GET, head, "connections"):
            connection = decode_connection(body)
            if connection is not None:
                yield connection


def decode_connection(body: bytes) -> Connection | None:
    """Body of a message of conntrack (enum ctattr_type)."""
    found = attrs(body, 4)
    original, reply = _decode_tuple(found.get(_ORIGINAL, b"")), _decode_tuple(found.get(_REPLY, b""))
    if original is None or reply is None:
        return None
    status = int.from_bytes(found.get(_STATUS, b""), "big")
    tcp = attrs(attrs(found.get(_PROTOINFO, b"")).get(1, b"")).get(1, b"")
    return Connection(
        original,
        reply,
        state=TCP_STATES[tcp[0]] if tcp and tcp[0] < len(TCP_STATES) else "",
        replied=bool(status & _SEEN_REPLY),
        expires_s=int.from_bytes(found.get(_TIMEOUT, b""), "big"),
        mark=int.from_bytes(found.get(_MARK, b""), "big"),
        zone=int.from_bytes(found.get(_ZONE, b""), "big"),
    )


def _decode_tuple(data: bytes) -> Tuple | None:
    found = attrs(data)
    ends, protocol = attrs(found.get(_TUPLE_IP, b"")), attrs(found.get(_TUPLE_PROTOCOL, b""))
    source, destination = ends.get(1) or ends.get(3), ends.get(2) or ends.get(4)
    if not source or not destination or 1 not in protocol:
        return None

    def number(*kinds: int) -> int | None:
        return next((int.from_bytes(protocol[kind], "big") for kind in kinds if kind in protocol), None)

    return Tuple(
        ip_address(source),
        ip_address(destination),
        protocol[1][0],
        src_port=number(2) or 0,
        dst_port=number(3) or 0,
        icmp_type=number(5, 8),
        icmp_code=number(6, 9),
    )
