"""WireGuard devices: values, and how the kernel's generic netlink family `wireguard` says them (linux/wireguard.h).

A device with many peers does not fit in one message, because a nested attribute holds 64 KiB at most: what is written
is cut into several messages, and what is read comes in several, of which a later one may go on with the last peer of
the one before. Private keys go one way only, from here into the device; nothing here keeps or prints one.
"""

from __future__ import annotations

import base64
import binascii
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from libs.netlink.codec import attr, attr_items, attrs, nest, text, to_u32, u8, u32

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network

GENL_NAME, GENL_VERSION = "wireguard", 1
CMD_GET_DEVICE, CMD_SET_DEVICE = 0, 1
KEY_BYTES = 32

DEVICE_IFINDEX, DEVICE_IFNAME, DEVICE_PRIVATE_KEY, DEVICE_PUBLIC_KEY = 1, 2, 3, 4
DEVICE_FLAGS, DEVICE_LISTEN_PORT, DEVICE_FWMARK, DEVICE_PEERS = 5, 6, 7, 8
PEER_PUBLIC_KEY, PEER_PRESHARED_KEY, PEER_FLAGS, PEER_ENDPOINT, PEER_KEEPALIVE = 1, 2, 3, 4, 5
PEER_LAST_HANDSHAKE, PEER_RX_BYTES, PEER_TX_BYTES, PEER_ALLOWED_IPS, PEER_PROTOCOL_VERSION = 6, 7, 8, 9, 10
ALLOWED_FAMILY, ALLOWED_ADDRESS, ALLOWED_MASK = 1, 2, 3
PEER_F_REMOVE_ME, PEER_F_REPLACE_ALLOWED_IPS = 1, 2

SOCKADDR_IN = struct.Struct("=H2s4s8x")  # family, port and address in network order
SOCKADDR_IN6 = struct.Struct("=H2sI16sI")  # family, port, flow, address, scope
TIMESPEC = struct.Struct("=qq")  # struct __kernel_timespec
_NEST_BYTES = 60_000  # of one message's peers: below the 65,535 that an attribute's length can say
_ALLOWED_CHUNK = 1000  # of one peer in one message: 28 octets each at most, so two of these fit


@dataclass(frozen=True, slots=True)
class WgPeer:
    """endpoint: where it was last heard from, or is to be sought. keepalive_s: 0 is off."""

    public_key: bytes
    endpoint: tuple[IPAddress, int] | None = None
    allowed: frozenset[IPNetwork] = frozenset()
    keepalive_s: int = 0


@dataclass(frozen=True, slots=True)
class WgStats:
    """handshake_s: Unix time of the last one, 0 for none yet."""

    handshake_s: float = 0.0
    received_bytes: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class WgDevice:
    """As read. public_key: None while it has no private key."""

    public_key: bytes | None
    listen_port: int
    fwmark: int
    peers: dict[bytes, WgPeer] = field(default_factory=dict)
    stats: dict[bytes, WgStats] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WgChange:
    """What is None stays. put: each replaces all that the device knew of that peer. drop: public keys."""

    private_key: bytes | None = field(default=None, repr=False)
    listen_port: int | None = None
    fwmark: int | None = None
    put: tuple[WgPeer, ...] = ()
    drop: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.put or self.drop) or (self.private_key, self.listen_port, self.fwmark) != (None, None, None)


def parse_key(encoded: str) -> bytes:
    """A key in base64, as users and Node objects write it. Raises ValueError."""
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"no key in base64: {error}") from None
    if len(raw) != KEY_BYTES or not any(raw):
        raise ValueError(f"a key has {KEY_BYTES} octets that are not all zero, this one {len(raw)}")
    return raw


def format_key(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


# --- writing --------------------------------------------------------------------------------------------------------


def set_messages(name: str, change: WgChange) -> Iterator[bytes]:
    """Attributes of the WG_CMD_SET_DEVICE messages that make the change, in order; none for an empty one."""
    device = b""
    if change.private_key is not None:
        device += attr(DEVICE_PRIVATE_KEY, change.private_key)
    if change.listen_port is not None:
        device += attr(DEVICE_LISTEN_PORT, struct.pack("=H", change.listen_port))
    if change.fwmark is not None:
        device += u32(DEVICE_FWMARK, change.fwmark)
    batches = list(_batches([*map(_drop, change.drop), *(part for peer in change.put for part in _put(peer))]))
    if not device and not batches:
        return
    for first, batch in enumerate(batches or [[]]):
        head = text(DEVICE_IFNAME, name) + (device if first == 0 else b"")
        yield head + (nest(DEVICE_PEERS, *batch) if batch else b"")


def _batches(peers: Sequence[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for peer in peers:
        if batch and size + len(peer) > _NEST_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(peer)
        size += len(peer)
    if batch:
        yield batch


def _drop(key: bytes) -> bytes:
    return nest(0, attr(PEER_PUBLIC_KEY, key), u32(PEER_FLAGS, PEER_F_REMOVE_ME))


def _put(peer: WgPeer) -> Iterator[bytes]:
    """One element, or several when there are very many allowed networks: only the first replaces those of before."""
    networks = sorted(peer.allowed, key=lambda net: (net.version, net))
    head = attr(PEER_PUBLIC_KEY, peer.public_key)
    first = head + u32(PEER_FLAGS, PEER_F_REPLACE_ALLOWED_IPS)
    if peer.endpoint is not None:
        first += attr(PEER_ENDPOINT, _sockaddr(*peer.endpoint))
    first += attr(PEER_KEEPALIVE, struct.pack("=H", peer.keepalive_s))
    for start in range(0, max(len(networks), 1), _ALLOWED_CHUNK):
        allowed = [_allowed(net) for net in networks[start : start + _ALLOWED_CHUNK]]
        yield nest(0, first if start == 0 else head, nest(PEER_ALLOWED_IPS, *allowed))


def _allowed(net: IPNetwork) -> bytes:
    family = socket.AF_INET if net.version == 4 else socket.AF_INET6
    return nest(
        0,
        attr(ALLOWED_FAMILY, struct.pack("=H", family)),
        attr(ALLOWED_ADDRESS, net.network_address.packed),
        u8(ALLOWED_MASK, net.prefixlen),
    )


def _sockaddr(address: IPAddress, port: int) -> bytes:
    if address.version == 4:
        return SOCKADDR_IN.pack(socket.AF_INET, struct.pack("!H", port), address.packed)
    return SOCKADDR_IN6.pack(socket.AF_INET6, struct.pack("!H", port), 0, address.packed, 0)


# --- reading --------------------------------------------------------------------------------------------------------


def get_request(name: str) -> bytes:
    """Attributes of WG_CMD_GET_DEVICE, which is a dump."""
    return text(DEVICE_IFNAME, name)


def decode_device(messages: Iterable[bytes]) -> WgDevice:
    """messages: attributes of each message of the answer. Raises ValueError when they are malformed."""
    public_key: bytes | None = None
    listen_port = fwmark = 0
    peers: dict[bytes, WgPeer] = {}
    stats: dict[bytes, WgStats] = {}
    for message in messages:
        found = attrs(message)
        if any(found.get(DEVICE_PUBLIC_KEY, b"")):
            public_key = found[DEVICE_PUBLIC_KEY]
        if DEVICE_LISTEN_PORT in found:
            (listen_port,) = struct.unpack("=H", found[DEVICE_LISTEN_PORT])
        if DEVICE_FWMARK in found:
            fwmark = to_u32(found[DEVICE_FWMARK])
        for _, body in attr_items(found.get(DEVICE_PEERS, b"")):
            peer, counted = _decode_peer(body)
            before = peers.get(peer.public_key)
            if before is None:
                peers[peer.public_key], stats[peer.public_key] = peer, counted
            else:  # the last peer of the message before goes on
                allowed = before.allowed | peer.allowed
                peers[peer.public_key] = WgPeer(before.public_key, before.endpoint, allowed, before.keepalive_s)
    return WgDevice(public_key, listen_port, fwmark, peers, stats)


def _decode_peer(body: bytes) -> tuple[WgPeer, WgStats]:
    found = attrs(body)
    keepalive_s = struct.unpack("=H", found[PEER_KEEPALIVE])[0] if PEER_KEEPALIVE in found else 0
    seconds, nanoseconds = TIMESPEC.unpack(found.get(PEER_LAST_HANDSHAKE, bytes(16)))
    received = int.from_bytes(found.get(PEER_RX_BYTES, b""), sys.byteorder)
    sent = int.from_bytes(found.get(PEER_TX_BYTES, b""), sys.byteorder)
    allowed = frozenset(_decode_allowed(one) for _, one in attr_items(found.get(PEER_ALLOWED_IPS, b"")))
    peer = WgPeer(found[PEER_PUBLIC_KEY], _decode_sockaddr(found.get(PEER_ENDPOINT, b"")), allowed, keepalive_s)
    return peer, WgStats(seconds + nanoseconds / 1e9 if seconds else 0.0, received, sent)


def _decode_allowed(body: bytes) -> IPNetwork:
    found = attrs(body)
    return ip_network((found[ALLOWED_ADDRESS], found[ALLOWED_MASK][0]))


def _decode_sockaddr(raw: bytes) -> tuple[IPAddress, int] | None:
    if len(raw) >= SOCKADDR_IN6.size:
        _, port, _, address, _ = SOCKADDR_IN6.unpack_from(raw)
    elif len(raw) >= SOCKADDR_IN.size:
        _, port, address = SOCKADDR_IN.unpack_from(raw)
    else:
        return None
    return ip_address(address), int.from_bytes(port, "big")
