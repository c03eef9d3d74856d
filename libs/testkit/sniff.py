"""What packets pass an interface: a packet socket in its namespace, read when asked.

with Sniffer(cluster.fabric, "node2") as wire:
    ... traffic ...
    seen = wire.packets()
assert any(packet.is_vxlan() for packet in seen)
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import TracebackType
from typing import Self

from libs.testkit.topology import Namespace

_ETH_P_ALL = 3  # linux/if_ether.h
_HEADER = 14
UDP, IPIP = 17, 4


@dataclass(frozen=True, slots=True)
class Seen:
    """The outermost IP header of a frame, and for UDP and TCP the ports."""

    source: IPv4Address | IPv6Address
    target: IPv4Address | IPv6Address
    protocol: int
    source_port: int = 0
    target_port: int = 0
    payload: bytes = b""

    def is_vxlan(self, port: int = 4789) -> bool:
        return self.protocol == UDP and self.target_port == port

    def inner(self) -> Seen | None:
        """What a VXLAN or IP-in-IP packet carries."""
        return parse_ip(self.payload) if self.protocol == IPIP else parse(self.payload[8:])


def parse(frame: bytes) -> Seen | None:
    """An Ethernet frame; None when it carries neither IPv4 nor IPv6."""
    return parse_ip(frame[_HEADER:]) if frame[12:14] in (b"\x08\x00", b"\x86\xdd") else None


def parse_ip(packet: bytes) -> Seen | None:
    """A packet of either family, header first; None when it is none."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        body, protocol = packet[(packet[0] & 15) * 4 :], packet[9]
        source, target = ip_address(packet[12:16]), ip_address(packet[16:20])
    elif version == 6 and len(packet) >= 40:
        body, protocol = packet[40:], packet[6]
        source, target = ip_address(packet[8:24]), ip_address(packet[24:40])
    else:
        return None
    if protocol not in (6, UDP) or len(body) < 8:
        return Seen(source, target, protocol, payload=body)
    ports = int.from_bytes(body[:2], "big"), int.from_bytes(body[2:4], "big")
    return Seen(source, target, protocol, *ports, payload=body[8:])


class Sniffer:
    def __init__(self, space: Namespace, interface: str) -> None:
        self._space, self._interface = space, interface

    def __enter__(self) -> Self:
        self._socket = self._space.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.bind((self._interface, _ETH_P_ALL))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._socket.close()

    def packets(self) -> list[Seen]:
        """Of both directions, since the last call."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                seen = parse(self._socket.recv(65536))
                if seen is not None:
                    found.append(seen)
        return found
