"""Hand-made packets: what a receiver would check of them."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address

import pytest

from libs.testkit import packets
from libs.testkit.packets import Packet, crc32c, datagram, internet_checksum, read_tag, tag_of

A4, B4 = ip_address("192.0.2.1"), ip_address("198.51.100.7")
A6, B6 = ip_address("2001:db8::1"), ip_address("2001:db8::2")
SUMMED = (packets.TCP, packets.UDP, packets.UDPLITE, packets.ICMPV6)


def test_crc32c_of_the_usual_check_string() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_internet_checksum_of_rfc_1071_example() -> None:
    assert internet_checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D


@pytest.mark.parametrize("protocol", SUMMED)
def test_checksum_covers_the_pseudo_header(protocol: int) -> None:
    body = datagram(Packet(A6, B6, protocol, 1000, 80, 128, 0), tag_of(7))[40:]
    pseudo = A6.packed + B6.packed + struct.pack("!IBBBB", len(body), 0, 0, 0, protocol)
    assert internet_checksum(pseudo + body) == 0


def test_ipv4_and_icmp_checksums() -> None:
    whole = datagram(Packet(A4, B4, packets.ICMP, icmp_type=8, icmp_code=0), tag_of(7))
    assert internet_checksum(whole[:20]) == 0
    assert internet_checksum(whole[20:]) == 0
    assert (whole[9], whole[20], whole[21]) == (socket.IPPROTO_ICMP, 8, 0)


def test_sctp_init_stands_alone_with_tag_zero_and_its_checksum() -> None:
    body = datagram(Packet(A4, B4, packets.SCTP, 1000, 3868), tag_of(7))[20:]
    sport, dport, verification, checksum = struct.unpack("!HHI", body[:8]) + struct.unpack("<I", body[8:12])
    assert (sport, dport, verification) == (1000, 3868, 0)
    assert crc32c(body[:8] + bytes(4) + body[12:]) == checksum
    assert struct.unpack("!BBH", body[12:16]) == (1, 0, len(body) - 12)


@pytest.mark.parametrize("protocol", [*SUMMED, packets.SCTP, packets.GRE, packets.ICMP, 99])
def test_tag_is_read_back_from_the_frame(protocol: int) -> None:
    packet = Packet(A4, B4, protocol, 1000, 80, 8, 0)
    assert read_tag(packets.frame(packet, tag_of(0x1_0203), b"\x02" * 6, b"\x04" * 6)) == 0x1_0203


def test_no_tag_in_foreign_frames() -> None:
    assert read_tag(b"\0" * 64) is None
    assert read_tag(tag_of(1)[:-1]) is None


def test_two_families_are_refused() -> None:
    with pytest.raises(ValueError, match="two families"):
        datagram(Packet(A4, B6, packets.UDP), tag_of(1))
