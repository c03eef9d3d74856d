"""Messages of the kernel's WireGuard family, octet by octet as a C program writes them from linux/wireguard.h."""

from __future__ import annotations

import struct
import subprocess
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from libs.netlink.codec import attrs
from libs.netlink.rules import MarkRule, mark_rule_request
from libs.netlink.wireguard import WgChange, WgPeer, decode_device, format_key, get_request, parse_key, set_messages
from libs.netlink.wireguard_fake import FakeWireguard
from libs.netlink.wireguard_keys import clamp, public_key

HEADER = Path("/usr/include/linux/wireguard.h")
PROGRAM = r"""
#include <arpa/inet.h>
#include <linux/netlink.h>
#include <linux/wireguard.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static unsigned char out[4096];
static size_t used;

static struct nlattr *open_attr(int type) {
    struct nlattr *made = (struct nlattr *)(out + used);
    made->nla_type = type;
    used += NLA_HDRLEN;
    return made;
}
static void close_attr(struct nlattr *made) {
    made->nla_len = (unsigned char *)(out + used) - (unsigned char *)made;
    used = NLA_ALIGN(used);
}
static void put(int type, const void *data, size_t size) {
    struct nlattr *made = open_attr(type);
    memcpy(out + used, data, size);
    used += size;
    close_attr(made);
}
static void allowed(uint16_t family, const char *text, uint8_t length) {
    unsigned char raw[16];
    struct nlattr *one = open_attr(0 | NLA_F_NESTED);
    inet_pton(family, text, raw);
    put(WGALLOWEDIP_A_FAMILY, &family, sizeof family);
    put(WGALLOWEDIP_A_IPADDR, raw, family == AF_INET ? 4 : 16);
    put(WGALLOWEDIP_A_CIDR_MASK, &length, sizeof length);
    close_attr(one);
}
int main(void) {
    unsigned char secret[WG_KEY_LEN], a[WG_KEY_LEN], b[WG_KEY_LEN], c[WG_KEY_LEN];
    uint16_t port = 51820, keepalive = 25, none = 0;
    uint32_t mark = 0x200000, replace = WGPEER_F_REPLACE_ALLOWEDIPS, removed = WGPEER_F_REMOVE_ME;
    struct sockaddr_in in4 = {.sin_family = AF_INET, .sin_port = htons(51820)};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(51821)};
    struct nlattr *peers, *peer, *networks;
    memset(secret, 1, sizeof secret); memset(a, 2, sizeof a); memset(b, 3, sizeof b); memset(c, 4, sizeof c);
    inet_pton(AF_INET, "192.0.2.2", &in4.sin_addr);
    inet_pton(AF_INET6, "2001:db8::2", &in6.sin6_addr);
    put(WGDEVICE_A_IFNAME, "wireguard.cali", sizeof "wireguard.cali");
    put(WGDEVICE_A_PRIVATE_KEY, secret, sizeof secret);
    put(WGDEVICE_A_LISTEN_PORT, &port, sizeof port);
    put(WGDEVICE_A_FWMARK, &mark, sizeof mark);
    peers = open_attr(WGDEVICE_A_PEERS | NLA_F_NESTED);
    peer = open_attr(0 | NLA_F_NESTED);
    put(WGPEER_A_PUBLIC_KEY, c, sizeof c);
    put(WGPEER_A_FLAGS, &removed, sizeof removed);
    close_attr(peer);
    peer = open_attr(0 | NLA_F_NESTED);
    put(WGPEER_A_PUBLIC_KEY, a, sizeof a);
    put(WGPEER_A_FLAGS, &replace, sizeof replace);
    put(WGPEER_A_ENDPOINT, &in4, sizeof in4);
    put(WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, &keepalive, sizeof keepalive);
    networks = open_attr(WGPEER_A_ALLOWEDIPS | NLA_F_NESTED);
    allowed(AF_INET, "10.65.1.0", 26);
    allowed(AF_INET, "10.65.9.7", 32);
    close_attr(networks);
    close_attr(peer);
    peer = open_attr(0 | NLA_F_NESTED);
    put(WGPEER_A_PUBLIC_KEY, b, sizeof b);
    put(WGPEER_A_FLAGS, &replace, sizeof replace);
    put(WGPEER_A_ENDPOINT, &in6, sizeof in6);
    put(WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, &none, sizeof none);
    networks = open_attr(WGPEER_A_ALLOWEDIPS | NLA_F_NESTED);
    allowed(AF_INET6, "fd00:65::", 122);
    close_attr(networks);
    close_attr(peer);
    close_attr(peers);
    for (size_t i = 0; i < used; i++) printf("%02x", out[i]);
    printf("\n%s %d %d %d\n", WG_GENL_NAME, WG_GENL_VERSION, WG_CMD_GET_DEVICE, WG_CMD_SET_DEVICE);
    return 0;
}
"""
A, B, C = b"\2" * 32, b"\3" * 32, b"\4" * 32
CHANGE = WgChange(
    private_key=b"\1" * 32,
    listen_port=51820,
    fwmark=0x200000,
    put=(
        WgPeer(A, (ip_address("192.0.2.2"), 51820), frozenset(map(ip_network, ("10.65.9.7/32", "10.65.1.0/26"))), 25),
        WgPeer(B, (ip_address("2001:db8::2"), 51821), frozenset({ip_network("fd00:65::/122")})),
    ),
    drop=(C,),
)


@pytest.mark.skipif(not HEADER.exists(), reason="linux/wireguard.h is not here")
def test_a_change_is_what_the_header_says(tmp_path: Path) -> None:
    source, program = tmp_path / "wg.c", tmp_path / "wg"
    source.write_text(PROGRAM)
    subprocess.run(["gcc", "-o", str(program), str(source)], check=True, capture_output=True)
    message, constants = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.split("\n")[
        :2
    ]
    (ours,) = set_messages("wireguard.cali", CHANGE)
    assert ours.hex() == message
    assert constants == "wireguard 1 0 1"


def test_a_request_names_the_device() -> None:
    assert get_request("wg0") == struct.pack("=HH4s", 8, 2, b"wg0")


def test_an_empty_change_is_no_message_and_every_message_names_its_device() -> None:
    assert list(set_messages("wg0", WgChange())) == []
    networks = frozenset(ip_network((n << 8, 24)) for n in range(9000))
    messages = list(set_messages("wg0", WgChange(fwmark=1, put=(WgPeer(A, None, networks),))))
    assert len(messages) > 3
    for message in messages:
        assert attrs(message)[2] == b"wg0\0"
    assert [7 in attrs(message) for message in messages] == [True, *[False] * (len(messages) - 1)]


def test_a_listing_in_pieces_is_one_device() -> None:
    fake = FakeWireguard(piece=2)
    fake.make("wg0")
    networks = frozenset(ip_network(f"10.0.{n}.0/24") for n in range(5))
    one = WgPeer(A, (ip_address("192.0.2.2"), 51820), networks, 25)
    for message in set_messages("wg0", WgChange(put=(one, WgPeer(B)))):
        fake.request(1, message)
    pieces = fake.dump(0, get_request("wg0"))
    assert len(pieces) == 4
    device = decode_device(pieces)
    assert device.peers == {A: one, B: WgPeer(B)}
    assert device.public_key is None


def test_statistics_are_read() -> None:
    raw = bytes.fromhex("2400 0100".replace(" ", "")) + A  # WGPEER_A_PUBLIC_KEY
    raw += struct.pack("=HHqq", 20, 6, 1_800_000_000, 500_000_000)
    raw += struct.pack("=HHQ", 12, 7, 1 << 40) + struct.pack("=HHQ", 12, 8, 7)
    nested = struct.pack("=HH", 4 + len(raw), 0x8000) + raw
    stats = decode_device([struct.pack("=HH", 4 + len(nested), 0x8008) + nested]).stats[A]
    assert (stats.handshake_s, stats.received_bytes, stats.sent_bytes) == (1_800_000_000.5, 1 << 40, 7)


@pytest.mark.parametrize("text", ["", "AAAA", "not base64!", "A" * 43 + "=", "A" * 44])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="key"):
        parse_key(text)


def test_keys_in_text_and_back() -> None:
    assert parse_key(format_key(A)) == A


def test_public_keys_are_those_of_rfc_7748() -> None:
    """Section 6.1, Bob's."""
    private = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert public_key(private).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    assert public_key(clamp(private)) == public_key(private)


def test_a_private_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 octets"):
        clamp(b"short")


def test_a_mark_rule_is_what_iproute2_would_send() -> None:
    kind, _, body = mark_rule_request(MarkRule(4, 0x200000, 0x200000, 1, 99, negate=True))
    assert kind == 32
    assert body[:12] == struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 1, 0, 0, 1, 2)
    assert {key: struct.unpack("=I", raw)[0] for key, raw in attrs(body, 12).items()} == {
        6: 99, 10: 0x200000, 15: 1, 16: 0x200000,
    }  # fmt: skip
