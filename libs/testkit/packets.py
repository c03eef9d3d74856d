"""Packets made by hand: one frame that opens a flow of any protocol that policy can tell apart, with a tag in it.

What leaves here is what a connection tracker takes for the first packet of a new flow, checksums included: a TCP SYN, a
UDP datagram, an SCTP INIT, an ICMP request. The tag is eight octets and is carried where no protocol cares: in the
payload, in an SCTP INIT as initiate tag and receiver window.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

TCP, UDP, ICMP, GRE, ICMPV6, SCTP, UDPLITE = 6, 17, 1, 47, 58, 132, 136
WITH_PORTS = frozenset((TCP, UDP, SCTP, UDPLITE))
TAG_BYTES = 8
_MARK = b"\xc5\x1eFq"  # no zero octets: a tag is found by searching for this
_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_TTL = 64
_SYN, _WINDOW = 0x02, 64240


@dataclass(frozen=True, slots=True)
class Packet:
    """The first packet of a flow. sport, dport: 0 where the protocol has none. icmp_type, icmp_code: for ICMP only."""

    src: IPv4Address | IPv6Address
    dst: IPv4Address | IPv6Address
    protocol: int
    sport: int = 0
    dport: int = 0
    icmp_type: int | None = None
    icmp_code: int | None = None

    @property
    def version(self) -> int:
        return self.src.version


def tag_of(number: int) -> bytes:
    """A tag that carries a number below 2**32."""
    return _MARK + struct.pack("!I", number)


def read_tag(frame: bytes) -> int | None:
    """The number of the tag in a frame or IP packet; None when there is none."""
    at = frame.find(_MARK)
    return None if at < 0 or len(frame) < at + TAG_BYTES else int(struct.unpack_from("!I", frame, at + len(_MARK))[0])


def frame(packet: Packet, tag: bytes, mac_to: bytes, mac_from: bytes) -> bytes:
    """The Ethernet frame of a packet."""
    return mac_to + mac_from + struct.pack("!H", _ETHERTYPE[packet.version]) + datagram(packet, tag)


def datagram(packet: Packet, tag: bytes) -> bytes:
    """The IP packet, header first. Raises ValueError when the addresses are not of one family."""
    if packet.src.version != packet.dst.version:
        raise ValueError(f"{packet.src} and {packet.dst} are of two families")
    body = _body(packet, tag)
    if packet.version == 6:
        head = struct.pack("!IHBB", 6 << 28, len(body), packet.protocol, _TTL)
        return head + packet.src.packed + packet.dst.packed + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, _TTL, packet.protocol, 0)
    head += packet.src.packed + packet.dst.packed
    return head[:10] + struct.pack("!H", internet_checksum(head)) + head[12:] + body


def _body(packet: Packet, tag: bytes) -> bytes:
    ports = struct.pack("!HH", packet.sport, packet.dport)
    match packet.protocol:
        case 6:
            head = ports + struct.pack("!IIBBHHH", 0, 0, 5 << 4, _SYN, _WINDOW, 0, 0)
            return _summed(packet, head + tag, 16)
        case 17:
            return _summed(packet, ports + struct.pack("!HH", 8 + len(tag), 0) + tag, 6)
        case 136:  # RFC 3828: the length field holds the coverage, 0 for all
            return _summed(packet, ports + struct.pack("!HH", 0, 0) + tag, 6)
        case 132:  # RFC 9260 section 3.3.2: INIT with no parameters, in a packet with verification tag 0
            init = struct.pack("!BBH", 1, 0, 20) + tag + struct.pack("!HHI", 1, 1, 1)
            checksum = struct.pack("<I", crc32c(ports + bytes(8) + init))
            return ports + bytes(4) + checksum + init
        case 1 | 58:  # the tag is in the identifier too, which tells flows of pings apart
            head = struct.pack("!BBH", packet.icmp_type or 0, packet.icmp_code or 0, 0)
            return _summed(packet, head + tag[6:8] + tag[4:6] + tag, 2)
        case 47:  # RFC 2784: no options, payload IPv4
            return struct.pack("!HH", 0, 0x0800) + tag
        case _:
            return tag


def _summed(packet: Packet, body: bytes, at: int) -> bytes:
    """`body` with the checksum at this offset, over the pseudo-header where the protocol has one."""
    pseudo = b""
    if packet.protocol != ICMP:
        pseudo = packet.src.packed + packet.dst.packed + struct.pack("!IBBBB", len(body), 0, 0, 0, packet.protocol)
    checksum = internet_checksum(pseudo + body) or 0xFFFF  # 0 says "no checksum" in UDP
    return body[:at] + struct.pack("!H", checksum) + body[at + 2 :]


def internet_checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC32C = _crc32c_table()


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC, as SCTP uses it (RFC 9260 appendix A). Written to the wire in little-endian order."""
    value = 0xFFFFFFFF
    for octet in data:
        value = value >> 8 ^ _CRC32C[(value ^ octet) & 0xFF]
    return value ^ 0xFFFFFFFF
