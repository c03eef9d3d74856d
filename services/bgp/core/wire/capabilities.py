"""Capabilities of an OPEN: RFC 5492 and, for each, the document that defines it.

Address families are numbers here, (AFI, SAFI): a peer may announce ones we do not speak. A capability whose value has
an impossible length is kept as unknown, so the session works without it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from services.bgp.core.wire.codes import CapabilityCode
from services.bgp.core.wire.errors import BgpError, ErrorCode, OpenError

AfiSafi: TypeAlias = tuple[int, int]

_RESTARTING: Final = 0x8000
_NOTIFICATION: Final = 0x4000
_FORWARDING: Final = 0x80
_MOST_TIME: Final = 0x0FFF
ADD_PATH_RECEIVE: Final = 1
ADD_PATH_SEND: Final = 2


@dataclass(frozen=True, slots=True)
class GracefulRestart:
    """RFC 4724 section 3. restarting: "Restart State", we came back. notification: RFC 8538's N, NOTIFICATIONs are
    survived too. time_s: 0 to 4095. families: with "Forwarding State", whether it was preserved; empty: can help, has
    nothing to keep."""

    time_s: int
    restarting: bool = False
    notification: bool = False
    families: tuple[tuple[AfiSafi, bool], ...] = ()


@dataclass(frozen=True, slots=True)
class LongLived:
    """One family of RFC 9494 section 3.1. time_s: 24 bits."""

    family: AfiSafi
    time_s: int
    forwarding: bool = False


@dataclass(frozen=True, slots=True)
class Capabilities:
    """families: None when multiprotocol was not announced at all, which means IPv4 unicast (RFC 4760 section 8).
    extended_next_hop: (family, AFI of the next hop). add_path: (family, 1 receive | 2 send | 3 both). as4: its AS
    number. long_lived: None without the capability. unknown: (code, value)."""

    families: tuple[AfiSafi, ...] | None = None
    route_refresh: bool = False
    enhanced_refresh: bool = False
    extended_message: bool = False
    extended_next_hop: tuple[tuple[AfiSafi, int], ...] = ()
    as4: int | None = None
    add_path: tuple[tuple[AfiSafi, int], ...] = ()
    graceful_restart: GracefulRestart | None = None
    long_lived: tuple[LongLived, ...] | None = None
    hostname: str = ""
    domain: str = ""
    unknown: tuple[tuple[int, bytes], ...] = ()


def encode_capabilities(capabilities: Capabilities) -> bytes:
    """The value of one optional parameter of type 2, in order of code; unknown ones last."""
    return b"".join(bytes((code, len(value))) + value for code, value in _values(capabilities))


def _values(said: Capabilities) -> Iterator[tuple[int, bytes]]:
    code = CapabilityCode
    for afi, safi in said.families or ():
        yield code.MULTIPROTOCOL, struct.pack("!HBB", afi, 0, safi)
    if said.route_refresh:
        yield code.ROUTE_REFRESH, b""
    if said.extended_next_hop:
        packed = (struct.pack("!HHH", afi, safi, next_hop) for (afi, safi), next_hop in said.extended_next_hop)
        yield code.EXTENDED_NEXT_HOP, b"".join(packed)
    if said.extended_message:
        yield code.EXTENDED_MESSAGE, b""
    restart = said.graceful_restart
    if restart is not None:
        flags = (_RESTARTING if restart.restarting else 0) | (_NOTIFICATION if restart.notification else 0)
        head = struct.pack("!H", flags | min(restart.time_s, _MOST_TIME))
        yield (
            code.GRACEFUL_RESTART,
            head
            + b"".join(
                struct.pack("!HBB", afi, safi, _FORWARDING if kept else 0) for (afi, safi), kept in restart.families
            ),
        )
    if said.as4 is not None:
        yield code.FOUR_OCTET_AS, struct.pack("!I", said.as4)
    if said.add_path:
        yield code.ADD_PATH, b"".join(struct.pack("!HBB", afi, safi, mode) for (afi, safi), mode in said.add_path)
    if said.enhanced_refresh:
        yield code.ENHANCED_ROUTE_REFRESH, b""
    if said.long_lived is not None:
        yield (
            code.LONG_LIVED_GRACEFUL_RESTART,
            b"".join(
                struct.pack("!HBB", *one.family, _FORWARDING if one.forwarding else 0) + one.time_s.to_bytes(3, "big")
                for one in said.long_lived
            ),
        )
    if said.hostname or said.domain:
        name, domain = (text.encode()[:64] for text in (said.hostname, said.domain))
        yield code.FQDN, bytes((len(name),)) + name + bytes((len(domain),)) + domain
    yield from said.unknown


def decode_capabilities(value: bytes, known: Capabilities | None = None) -> Capabilities:
    """value: of one parameter of type 2; `known`: what parameters before it said, to which this is added.

    A code may stand there several times (RFC 5492 section 4): families add up, of the rest the last counts. Raises
    BgpError 2/0 when a capability runs over the end.
    """
    said = known or Capabilities()
    at = 0
    while at < len(value):
        if at + 2 > len(value) or at + 2 + value[at + 1] > len(value):
            raise BgpError(ErrorCode.OPEN, OpenError.UNSPECIFIC, text="a capability runs over the end")
        code, start = value[at], at + 2
        at = start + value[at + 1]
        said = _add(said, code, value[start:at])
    return said


def _add(said: Capabilities, code: int, value: bytes) -> Capabilities:
    reader = _READERS.get(code)
    if reader is not None:
        try:
            return reader(said, value)
        except ValueError:
            pass
    return replace(said, unknown=(*said.unknown, (code, value)))


def _expect(right: bool) -> None:
    if not right:
        raise ValueError


def _multiprotocol(said: Capabilities, value: bytes) -> Capabilities:
    _expect(len(value) == 4)
    afi, _, safi = struct.unpack("!HBB", value)
    families = said.families or ()
    return said if (afi, safi) in families else replace(said, families=(*families, (afi, safi)))


def _route_refresh(said: Capabilities, value: bytes) -> Capabilities:
    _expect(not value)
    return replace(said, route_refresh=True)


def _enhanced(said: Capabilities, value: bytes) -> Capabilities:
    _expect(not value)
    return replace(said, enhanced_refresh=True)


def _extended_message(said: Capabilities, value: bytes) -> Capabilities:
    _expect(not value)
    return replace(said, extended_message=True)


def _extended_next_hop(said: Capabilities, value: bytes) -> Capabilities:
    _expect(len(value) % 6 == 0)
    found = tuple(((afi, safi), next_hop) for afi, safi, next_hop in struct.iter_unpack("!HHH", value))
    return replace(said, extended_next_hop=tuple(dict.fromkeys(said.extended_next_hop + found)))


def _graceful_restart(said: Capabilities, value: bytes) -> Capabilities:
    _expect(len(value) % 4 == 2)
    head = int.from_bytes(value[:2], "big")
    families = {(afi, safi): bool(flags & _FORWARDING) for afi, safi, flags in struct.iter_unpack("!HBB", value[2:])}
    restart = GracefulRestart(
        head & _MOST_TIME, bool(head & _RESTARTING), bool(head & _NOTIFICATION), tuple(families.items())
    )
    return replace(said, graceful_restart=restart)


def _four_octet_as(said: Capabilities, value: bytes) -> Capabilities:
    _expect(len(value) == 4)
    return replace(said, as4=int.from_bytes(value, "big"))


def _add_path(said: Capabilities, value: bytes) -> Capabilities:
    """Modes other than 1 to 3 are ignored (RFC 7911 section 4); of one family's several the last counts."""
    _expect(len(value) % 4 == 0)
    modes = dict(said.add_path)
    modes.update({(afi, safi): mode for afi, safi, mode in struct.iter_unpack("!HBB", value) if mode in (1, 2, 3)})
    return replace(said, add_path=tuple(modes.items()))


def _long_lived(said: Capabilities, value: bytes) -> Capabilities:
    _expect(len(value) % 7 == 0)
    families = {
        (afi, safi): LongLived((afi, safi), int.from_bytes(time, "big"), bool(flags & _FORWARDING))
        for afi, safi, flags, time in struct.iter_unpack("!HBB3s", value)
    }
    return replace(said, long_lived=tuple(families.values()))


def _fqdn(said: Capabilities, value: bytes) -> Capabilities:
    _expect(len(value) >= 2 and len(value) >= 2 + value[0])
    rest = value[1 + value[0] :]
    _expect(len(rest) == 1 + rest[0])
    hostname, domain = (_printable(text) for text in (value[1 : 1 + value[0]], rest[1:]))
    return replace(said, hostname=hostname, domain=domain)


def _printable(raw: bytes) -> str:
    text = raw.decode("utf-8", "strict")  # UnicodeDecodeError is a ValueError
    _expect(text.isprintable())
    return text


_READERS: Final[dict[int, Callable[[Capabilities, bytes], Capabilities]]] = {
    CapabilityCode.MULTIPROTOCOL: _multiprotocol,
    CapabilityCode.ROUTE_REFRESH: _route_refresh,
    CapabilityCode.EXTENDED_NEXT_HOP: _extended_next_hop,
    CapabilityCode.EXTENDED_MESSAGE: _extended_message,
    CapabilityCode.GRACEFUL_RESTART: _graceful_restart,
    CapabilityCode.FOUR_OCTET_AS: _four_octet_as,
    CapabilityCode.ADD_PATH: _add_path,
    CapabilityCode.ENHANCED_ROUTE_REFRESH: _enhanced,
    CapabilityCode.LONG_LIVED_GRACEFUL_RESTART: _long_lived,
    CapabilityCode.FQDN: _fqdn,
}
