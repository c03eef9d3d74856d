"""The kernel's WireGuard family without a kernel: takes and gives the same messages, and refuses what it refuses.

Written from drivers/net/wireguard/netlink.c: peers and allowed networks are changed element by element; a network that
one peer has leaves the other; our own key is no peer; a listing comes in pieces, a peer's networks cut where a piece
ends.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from libs.netlink.codec import attr, attr_items, attrs, cstring, error_for, nest, text, to_u32, u8, u32
from libs.netlink.wireguard import (
    ALLOWED_ADDRESS,
    ALLOWED_FAMILY,
    ALLOWED_MASK,
    CMD_GET_DEVICE,
    CMD_SET_DEVICE,
    DEVICE_FLAGS,
    DEVICE_FWMARK,
    DEVICE_IFNAME,
    DEVICE_LISTEN_PORT,
    DEVICE_PEERS,
    DEVICE_PRIVATE_KEY,
    DEVICE_PUBLIC_KEY,
    KEY_BYTES,
    PEER_ALLOWED_IPS,
    PEER_ENDPOINT,
    PEER_F_REMOVE_ME,
    PEER_F_REPLACE_ALLOWED_IPS,
    PEER_FLAGS,
    PEER_KEEPALIVE,
    PEER_LAST_HANDSHAKE,
    PEER_PUBLIC_KEY,
    PEER_RX_BYTES,
    PEER_TX_BYTES,
    TIMESPEC,
)
from libs.netlink.wireguard_keys import public_key

Allowed = tuple[int, bytes, int]  # family, address, length
_LENGTHS = {2: (4, 32), 10: (16, 128)}


@dataclass(slots=True)
class _Peer:
    endpoint: bytes = b""
    keepalive: int = 0
    allowed: list[Allowed] = field(default_factory=list)


@dataclass(slots=True)
class _Device:
    private: bytes = bytes(KEY_BYTES)
    port: int = 0
    fwmark: int = 0
    peers: dict[bytes, _Peer] = field(default_factory=dict)


class FakeWireguard:
    """piece: allowed networks in one message of a listing. writes: messages that changed something."""

    def __init__(self, *, piece: int = 3) -> None:
        self.devices: dict[str, _Device] = {}
        self.writes = 0
        self._piece = piece

    def make(self, name: str) -> None:
        if name in self.devices:
            raise error_for(errno.EEXIST, f"link {name}")
        self.devices[name] = _Device()

    def request(self, command: int, attributes: bytes, what: str = "") -> None:
        found = attrs(attributes)
        if command != CMD_SET_DEVICE:
            raise error_for(errno.EOPNOTSUPP, what)
        device = self._device(found, what)
        self.writes += 1
        if found.get(DEVICE_FLAGS, bytes(4)) != bytes(4):
            raise error_for(errno.EOPNOTSUPP, what)  # nobody of ours replaces all peers
        if DEVICE_LISTEN_PORT in found:
            (device.port,) = struct.unpack("=H", found[DEVICE_LISTEN_PORT])
        if DEVICE_FWMARK in found:
            device.fwmark = to_u32(found[DEVICE_FWMARK])
        if DEVICE_PRIVATE_KEY in found:
            if len(found[DEVICE_PRIVATE_KEY]) != KEY_BYTES:
                raise error_for(errno.EINVAL, what)
            device.private = found[DEVICE_PRIVATE_KEY]
            device.peers.pop(public_key(device.private), None)
        for _, body in attr_items(found.get(DEVICE_PEERS, b"")):
            self._set_peer(device, attrs(body), what)

    def _set_peer(self, device: _Device, found: dict[int, bytes], what: str) -> None:
        key = found.get(PEER_PUBLIC_KEY, b"")
        if len(key) != KEY_BYTES:
            raise error_for(errno.EINVAL, what)
        flags = to_u32(found.get(PEER_FLAGS, bytes(4)))
        if flags & PEER_F_REMOVE_ME:
            device.peers.pop(key, None)
            return
        if any(device.private) and key == public_key(device.private):
            return
        peer = device.peers.setdefault(key, _Peer())
        if flags & PEER_F_REPLACE_ALLOWED_IPS:
            peer.allowed.clear()
        if PEER_ENDPOINT in found:
            peer.endpoint = found[PEER_ENDPOINT]
        if PEER_KEEPALIVE in found:
            (peer.keepalive,) = struct.unpack("=H", found[PEER_KEEPALIVE])
        for _, body in attr_items(found.get(PEER_ALLOWED_IPS, b"")):
            one = attrs(body)
            (family,) = struct.unpack("=H", one[ALLOWED_FAMILY])
            octets, bits = _LENGTHS.get(family, (0, 0))
            length = one[ALLOWED_MASK][0]
            if len(one[ALLOWED_ADDRESS]) != octets or length > bits:
                raise error_for(errno.EINVAL, what)
            allowed = (family, one[ALLOWED_ADDRESS], length)
            for other in device.peers.values():
                if allowed in other.allowed:
                    other.allowed.remove(allowed)
            peer.allowed.append(allowed)

    def dump(self, command: int, attributes: bytes, what: str = "") -> list[bytes]:
        if command != CMD_GET_DEVICE:
            raise error_for(errno.EOPNOTSUPP, what)
        found = attrs(attributes)
        device, name = self._device(found, what), cstring(found[DEVICE_IFNAME])
        pieces = list(self._pieces(device)) or [b""]
        own = b""
        if any(device.private):
            own = attr(DEVICE_PRIVATE_KEY, device.private) + attr(DEVICE_PUBLIC_KEY, public_key(device.private))
        head = own + attr(DEVICE_LISTEN_PORT, struct.pack("=H", device.port)) + u32(DEVICE_FWMARK, device.fwmark)
        named = text(DEVICE_IFNAME, name)
        return [
            (head if number == 0 else b"") + named + (nest(DEVICE_PEERS, piece) if piece else b"")
            for number, piece in enumerate(pieces)
        ]

    def _pieces(self, device: _Device) -> Iterator[bytes]:
        for key, peer in device.peers.items():
            head = attr(PEER_PUBLIC_KEY, key)
            first = head + attr(PEER_LAST_HANDSHAKE, TIMESPEC.pack(0, 0)) + attr(PEER_RX_BYTES, bytes(8))
            first += attr(PEER_TX_BYTES, bytes(8)) + attr(PEER_KEEPALIVE, struct.pack("=H", peer.keepalive))
            first += attr(PEER_ENDPOINT, peer.endpoint) if peer.endpoint else b""
            for start in range(0, max(len(peer.allowed), 1), self._piece):
                allowed = [
                    nest(0, attr(ALLOWED_FAMILY, struct.pack("=H", family)), attr(ALLOWED_ADDRESS, address),
                         u8(ALLOWED_MASK, length))
                    for family, address, length in peer.allowed[start : start + self._piece]
                ]  # fmt: skip
                networks = nest(PEER_ALLOWED_IPS, *allowed) if allowed else b""
                yield nest(0, first if start == 0 else head, networks)

    def _device(self, found: dict[int, bytes], what: str) -> _Device:
        try:
            return self.devices[cstring(found[DEVICE_IFNAME])]
        except KeyError:
            raise error_for(errno.ENODEV, what) from None
