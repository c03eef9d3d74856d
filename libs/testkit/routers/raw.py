"""BGP octet by octet, for what no daemon would send, and to see exactly what is sent.

An encoder and a reader of its own, on purpose not the product's: a mistake in one cannot hide the same in the other.
Numbers: RFC 4271 sections 4.1 to 4.5, RFC 4760, RFC 5492, RFC 6793, RFC 2918.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address, ip_network
from types import TracebackType
from typing import Self

from libs.testkit.routers.lab import Site
from libs.testkit.routers.model import Family, Route, family_of

OPEN, UPDATE, NOTIFICATION, KEEPALIVE, ROUTE_REFRESH = 1, 2, 3, 4, 5
MARKER = b"\xff" * 16
OPTIONAL, TRANSITIVE, PARTIAL, EXTENDED = 0x80, 0x40, 0x20, 0x10
ORIGIN, AS_PATH, NEXT_HOP, MED, LOCAL_PREF, ATOMIC, AGGREGATOR, COMMUNITIES, ORIGINATOR, CLUSTERS = range(1, 11)
MP_REACH, MP_UNREACH, EXTENDED_COMMUNITIES, AS4_PATH, AS4_AGGREGATOR, LARGE = 14, 15, 16, 17, 18, 32
AS_TRANS = 23456
_AFI: dict[Family, int] = {"ipv4": 1, "ipv6": 2}


def message(kind: int, body: bytes = b"") -> bytes:
    return MARKER + struct.pack("!HB", 19 + len(body), kind) + body


def capability(code: int, value: bytes = b"") -> bytes:
    return struct.pack("!BB", code, len(value)) + value


def capabilities(asn: int, families: Sequence[Family] = ("ipv4",), *, as4: bool = True, extra: bytes = b"") -> bytes:
    """Multiprotocol for each family, route refresh, 4-octet AS numbers, then `extra` as it is."""
    made = b"".join(capability(1, struct.pack("!HBB", _AFI[family], 0, 1)) for family in families)
    made += capability(2)
    return made + (capability(65, struct.pack("!I", asn)) if as4 else b"") + extra


def open_body(asn: int, hold_time_s: int, router_id: str, optional: bytes, *, version: int = 4) -> bytes:
    """optional: capabilities, which become one optional parameter (RFC 5492)."""
    parameters = struct.pack("!BB", 2, len(optional)) + optional if optional else b""
    two_octets = asn if asn < 65536 else AS_TRANS
    head = struct.pack("!BHH4sB", version, two_octets, hold_time_s, IPv4Address(router_id).packed, len(parameters))
    return head + parameters


def prefix(text: str) -> bytes:
    network = ip_network(text)
    return bytes((network.prefixlen,)) + network.network_address.packed[: (network.prefixlen + 7) // 8]


def attribute(flags: int, kind: int, value: bytes) -> bytes:
    if len(value) > 255 or flags & EXTENDED:
        return struct.pack("!BBH", flags | EXTENDED, kind, len(value)) + value
    return struct.pack("!BBB", flags, kind, len(value)) + value


def as_path(numbers: Iterable[int | frozenset[int]], octets: int = 4) -> bytes:
    made, code = b"", "I" if octets == 4 else "H"
    run: list[int] = []

    def segment(kind: int, members: Sequence[int]) -> bytes:
        return struct.pack(f"!BB{len(members)}{code}", kind, len(members), *members) if members else b""

    for item in numbers:
        if isinstance(item, frozenset):
            made += segment(2, run) + segment(1, sorted(item))
            run = []
        else:
            run.append(item)
    return made + segment(2, run)


def update_body(withdrawn: bytes = b"", attributes: bytes = b"", nlri: bytes = b"") -> bytes:
    return struct.pack("!H", len(withdrawn)) + withdrawn + struct.pack("!H", len(attributes)) + attributes + nlri


def mp_reach(family: Family, next_hop: bytes, nlri: bytes) -> bytes:
    body = struct.pack("!HBB", _AFI[family], 1, len(next_hop)) + next_hop + b"\0" + nlri
    return attribute(OPTIONAL, MP_REACH, body)


def mp_unreach(family: Family, nlri: bytes) -> bytes:
    return attribute(OPTIONAL, MP_UNREACH, struct.pack("!HB", _AFI[family], 1) + nlri)


def end_of_rib(family: Family) -> bytes:
    return message(UPDATE, update_body(attributes=b"" if family == "ipv4" else mp_unreach(family, b"")))


def attributes_of(route: Route, *, octets: int = 4) -> bytes:
    """Everything of a route but its next hop; AS numbers of 4 octets or 2."""
    made = attribute(TRANSITIVE, ORIGIN, bytes((("igp", "egp", "incomplete").index(route.origin),)))
    made += attribute(TRANSITIVE, AS_PATH, as_path(route.as_path, octets))
    if route.med is not None:
        made += attribute(OPTIONAL, MED, struct.pack("!I", route.med))
    if route.local_pref is not None:
        made += attribute(TRANSITIVE, LOCAL_PREF, struct.pack("!I", route.local_pref))
    if route.atomic:
        made += attribute(TRANSITIVE, ATOMIC, b"")
    if route.aggregator:
        number, address = route.aggregator
        value = struct.pack("!I4s" if octets == 4 else "!H4s", number, IPv4Address(address).packed)
        made += attribute(OPTIONAL | TRANSITIVE, AGGREGATOR, value)
    if route.communities:
        value = b"".join(struct.pack("!HH", *pair) for pair in sorted(route.communities))
        made += attribute(OPTIONAL | TRANSITIVE, COMMUNITIES, value)
    if route.originator_id:
        made += attribute(OPTIONAL, ORIGINATOR, IPv4Address(route.originator_id).packed)
    if route.cluster_list:
        made += attribute(OPTIONAL, CLUSTERS, b"".join(IPv4Address(c).packed for c in route.cluster_list))
    if route.extended:
        value = b"".join(extended_community(text) for text in sorted(route.extended))
        made += attribute(OPTIONAL | TRANSITIVE, EXTENDED_COMMUNITIES, value)
    if route.large:
        value = b"".join(struct.pack("!III", *triple) for triple in sorted(route.large))
        made += attribute(OPTIONAL | TRANSITIVE, LARGE, value)
    for kind, text in sorted(route.unknown):
        made += attribute(OPTIONAL | TRANSITIVE, kind, bytes.fromhex(text))
    return made


def extended_community(text: str) -> bytes:
    kind, admin, value = text.split(":")
    return struct.pack("!BBHI", 0, 2 if kind == "rt" else 3, int(admin), int(value))


def announcement(route: Route, next_hop: str, *, octets: int = 4) -> bytes:
    """A whole UPDATE with one route."""
    common, hop = attributes_of(route, octets=octets), ip_address(route.next_hop or next_hop).packed
    if route.family == "ipv4" and len(hop) == 4:
        return message(UPDATE, update_body(b"", common + attribute(TRANSITIVE, NEXT_HOP, hop), prefix(route.prefix)))
    return message(UPDATE, update_body(b"", common + mp_reach(route.family, hop, prefix(route.prefix))))


def withdrawal(*prefixes: str) -> bytes:
    four = b"".join(prefix(text) for text in prefixes if family_of(text) == "ipv4")
    six = b"".join(prefix(text) for text in prefixes if family_of(text) == "ipv6")
    return message(UPDATE, update_body(four, mp_unreach("ipv6", six) if six else b""))


# -- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    kind: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Heard:
    """An UPDATE as it came. attributes: type -> (flags, value); prefixes as text."""

    announced: tuple[str, ...]
    withdrawn: tuple[str, ...]
    attributes: dict[int, tuple[int, bytes]] = field(default_factory=dict)

    def numbers(self, octets: int = 4) -> tuple[int | frozenset[int], ...]:
        """The AS path."""
        return read_path(self.attributes.get(AS_PATH, (0, b""))[1], octets)

    @property
    def next_hop(self) -> str:
        if NEXT_HOP in self.attributes:
            return str(ip_address(self.attributes[NEXT_HOP][1]))
        value = self.attributes[MP_REACH][1]
        return str(ip_address(value[4 : 4 + min(value[3], 16)]))


def read_path(value: bytes, octets: int = 4) -> tuple[int | frozenset[int], ...]:
    found: list[int | frozenset[int]] = []
    at = 0
    while at < len(value):
        kind, count = value[at], value[at + 1]
        members = struct.unpack_from(f"!{count}{'I' if octets == 4 else 'H'}", value, at + 2)
        found.extend([frozenset(members)] if kind == 1 else members)
        at += 2 + count * octets
    return tuple(found)


def read_prefixes(data: bytes, family: Family) -> Iterator[str]:
    at, size = 0, 4 if family == "ipv4" else 16
    while at < len(data):
        octets = (data[at] + 7) // 8
        packed = data[at + 1 : at + 1 + octets].ljust(size, b"\0")
        yield f"{ip_address(packed)}/{data[at]}"
        at += 1 + octets


def read_update(body: bytes) -> Heard:
    length = int.from_bytes(body[:2], "big")
    withdrawn = list(read_prefixes(body[2 : 2 + length], "ipv4"))
    at = 4 + length
    end = at + int.from_bytes(body[2 + length : 4 + length], "big")
    found: dict[int, tuple[int, bytes]] = {}
    while at < end:
        flags, kind = body[at], body[at + 1]
        if flags & EXTENDED:
            size, at = int.from_bytes(body[at + 2 : at + 4], "big"), at + 4
        else:
            size, at = body[at + 2], at + 3
        found[kind] = (flags, body[at : at + size])
        at += size
    announced = list(read_prefixes(body[end:], "ipv4"))
    if MP_REACH in found:
        value = found[MP_REACH][1]
        announced += read_prefixes(value[5 + value[3] :], "ipv6" if value[1] == 2 else "ipv4")
    if MP_UNREACH in found:
        value = found[MP_UNREACH][1]
        withdrawn += read_prefixes(value[3:], "ipv6" if value[1] == 2 else "ipv4")
    return Heard(tuple(announced), tuple(withdrawn), found)


def read_capabilities(body: bytes) -> list[tuple[int, bytes]]:
    """Of an OPEN's body, in order."""
    found, at = [], 10
    while at < len(body):
        kind, size = body[at], body[at + 1]
        value, at = body[at + 2 : at + 2 + size], at + 2 + size
        inner = 0
        while kind == 2 and inner < len(value):
            found.append((value[inner], value[inner + 2 : inner + 2 + value[inner + 1]]))
            inner += 2 + value[inner + 1]
    return found


class RawPeer:
    """One TCP connection of a BGP speaker without a mind of its own."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self._buffer = b""
        self.heard: list[Heard] = []

    @classmethod
    def dial(
        cls, site: Site, remote: str, port: int = 179, *, local: str = "", ttl: int | None = None, timeout_s: float = 20
    ) -> Self:
        """Connect from a site, again and again until it is taken. Raises TimeoutError."""
        family = socket.AF_INET6 if ":" in remote else socket.AF_INET
        deadline = time.monotonic() + timeout_s
        while True:
            channel = site.space.socket(family, socket.SOCK_STREAM)
            channel.settimeout(2)
            try:
                if ttl is not None and family == socket.AF_INET6:
                    channel.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, ttl)
                elif ttl is not None:
                    channel.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
                channel.bind((local or site.address("ipv6" if ":" in remote else "ipv4"), 0))
                channel.connect((remote, port))
                return cls(channel)
            except OSError as error:
                channel.close()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{remote} port {port} did not take a connection: {error}") from error
                time.sleep(0.05)

    @classmethod
    def accept(cls, site: Site, family: Family = "ipv4", port: int = 179, timeout_s: float = 30) -> Self:
        """Wait for the other to connect to a site's address."""
        kind = socket.AF_INET6 if family == "ipv6" else socket.AF_INET
        with closing(site.space.socket(kind, socket.SOCK_STREAM)) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((site.address(family), port))
            server.listen()
            server.settimeout(timeout_s)
            channel, _ = server.accept()
            channel.setblocking(True)
            return cls(channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self.channel.close()

    def reset(self) -> None:
        """End with a RST instead of a FIN."""
        self.channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.channel.close()

    def send(self, *messages: bytes) -> None:
        self.channel.settimeout(20)
        self.channel.sendall(b"".join(messages))

    def receive(self, timeout_s: float = 15) -> Message | None:
        """The next message; None when the other end closed. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while True:
            if len(self._buffer) >= 19:
                length = int.from_bytes(self._buffer[16:18], "big")
                if len(self._buffer) >= length:
                    taken, self._buffer = self._buffer[:length], self._buffer[length:]
                    return Message(taken[18], taken[19:])
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.channel], [], [], left)[0]:
                raise TimeoutError(f"nothing came within {timeout_s:g} s")
            try:
                data = self.channel.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._buffer += data

    def expect(self, kind: int, timeout_s: float = 20) -> bytes:
        """The body of the next message of that kind; UPDATEs on the way are kept in `heard`. Raises AssertionError."""
        deadline = time.monotonic() + timeout_s
        while True:
            got = self.receive(max(0.01, deadline - time.monotonic()))
            if got is None:
                raise AssertionError(f"closed while waiting for a message of type {kind}")
            if got.kind == kind:
                return got.body
            if got.kind == UPDATE:
                self.heard.append(read_update(got.body))
            if got.kind == NOTIFICATION:
                raise AssertionError(
                    f"NOTIFICATION {got.body[0]}/{got.body[1]} {got.body[2:]!r} instead of type {kind}"
                )

    def hear(self, timeout_s: float = 20) -> None:
        """Wait for one message; an UPDATE is added to `heard`."""
        got = self.receive(timeout_s)
        if got is not None and got.kind == UPDATE:
            self.heard.append(read_update(got.body))

    def notification(self, timeout_s: float = 20) -> tuple[int, int, bytes]:
        """Code, subcode and data of the NOTIFICATION that ends this connection."""
        body = self.expect(NOTIFICATION, timeout_s)
        return body[0], body[1], body[2:]

    def closed(self, timeout_s: float = 20) -> bool:
        """Whether the other end closes, saying what it likes before."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                if self.receive(left) is None:
                    return True
            except TimeoutError:
                return False
        return False

    def ended(self) -> bool:
        """Whether the other end has closed by now; what it said before is taken away."""
        try:
            while self.receive(0.01) is not None:
                pass
        except TimeoutError:
            return False
        return True

    def handshake(
        self, asn: int, router_id: str, *, hold_time_s: int = 240, families: Sequence[Family] = ("ipv4",),
        as4: bool = True, extra: bytes = b"", timeout_s: float = 20,
    ) -> bytes:  # fmt: skip
        """To Established; the other's OPEN body."""
        own = open_body(asn, hold_time_s, router_id, capabilities(asn, families, as4=as4, extra=extra))
        self.send(message(OPEN, own))
        theirs = self.expect(OPEN, timeout_s)
        self.send(message(KEEPALIVE))
        self.expect(KEEPALIVE, timeout_s)
        return theirs

    def await_update(self, wanted: str, *, withdrawn: bool = False, timeout_s: float = 20) -> Heard:
        """The first UPDATE, heard before or to come, that says (or withdraws) this prefix."""
        deadline = time.monotonic() + timeout_s
        while True:
            for one in self.heard:
                if wanted in (one.withdrawn if withdrawn else one.announced):
                    return one
            self.heard.append(read_update(self.expect(UPDATE, max(0.01, deadline - time.monotonic()))))
