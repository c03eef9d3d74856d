"""OPEN: RFC 4271 sections 4.2 and 6.2, with the long form of optional parameters of RFC 9072."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from services.bgp.core.wire.capabilities import Capabilities, decode_capabilities, encode_capabilities
from services.bgp.core.wire.codes import AS_TRANS, VERSION, MessageType
from services.bgp.core.wire.errors import BgpError, ErrorCode, OpenError
from services.bgp.core.wire.framing import frame

_CAPABILITIES: Final = 2  # RFC 5492
_EXTENDED: Final = 255  # RFC 9072
_FIXED: Final = struct.Struct("!BHHIB")


@dataclass(frozen=True, slots=True)
class Open:
    """asn: of four octets when the peer announced them. router_id: the BGP Identifier as a number. capabilities: None
    when the message has none of the optional parameter that carries them."""

    asn: int
    hold_time_s: int
    router_id: int
    capabilities: Capabilities | None = field(default_factory=Capabilities)


def encode_open(said: Open) -> bytes:
    """The whole message. Without capabilities: the form for a peer that refuses the parameter (RFC 5492 section 3)."""
    parameters = b""
    long = False
    if said.capabilities is not None:
        value = encode_capabilities(said.capabilities)
        long = len(value) > 253
        parameters = struct.pack("!BH" if long else "!BB", _CAPABILITIES, len(value)) + value
    two_octets = said.asn if said.asn <= 0xFFFF else AS_TRANS
    head = _FIXED.pack(VERSION, two_octets, said.hold_time_s, said.router_id, 255 if long else len(parameters))
    if long:
        head += struct.pack("!BH", _EXTENDED, len(parameters))
    return frame(MessageType.OPEN, head + parameters)


def decode_open(body: bytes) -> Open:
    """body: version(1) my AS(2) hold time(2) identifier(4) parameters' length(1) parameters.

    Raises BgpError 2/0 (malformed), 2/1 (version; the data is ours), 2/2 (AS 0), 2/3 (identifier 0, RFC 6286), 2/4
    (unknown optional parameter), 2/6 (hold time of 1 or 2 s). Whether AS and identifier are the expected ones is for
    the session to say.
    """
    if len(body) < _FIXED.size:
        raise _malformed(f"{len(body)} octets")
    version, asn, hold_time_s, router_id, length = _FIXED.unpack_from(body)
    if version != VERSION:
        raise BgpError(ErrorCode.OPEN, OpenError.UNSUPPORTED_VERSION, struct.pack("!H", VERSION), f"version {version}")
    capabilities = _parameters(body, length)
    if capabilities is not None and capabilities.as4 is not None:
        asn = capabilities.as4
    if asn == 0:
        raise BgpError(ErrorCode.OPEN, OpenError.BAD_PEER_AS, text="AS 0 (RFC 7607)")
    if hold_time_s in (1, 2):
        raise BgpError(ErrorCode.OPEN, OpenError.UNACCEPTABLE_HOLD_TIME, text=f"hold time of {hold_time_s} s")
    if router_id == 0:
        raise BgpError(ErrorCode.OPEN, OpenError.BAD_BGP_IDENTIFIER, text="BGP identifier 0.0.0.0")
    return Open(asn, hold_time_s, router_id, capabilities)


def _parameters(body: bytes, length: int) -> Capabilities | None:
    at, head = _FIXED.size, 2
    if length and len(body) > at and body[at] == _EXTENDED:
        if len(body) < at + 3:
            raise _malformed("the optional parameters run over the end")
        length = int.from_bytes(body[at + 1 : at + 3], "big")
        at, head = at + 3, 3
    if at + length != len(body):
        raise _malformed(f"{length} octets of optional parameters, {len(body) - at} are there")
    capabilities: Capabilities | None = None
    while at < len(body):
        if at + head > len(body):
            raise _malformed("an optional parameter runs over the end")
        kind, start = body[at], at + head
        end = start + int.from_bytes(body[at + 1 : start], "big")
        if end > len(body):
            raise _malformed("an optional parameter runs over the end")
        if kind != _CAPABILITIES:
            raise BgpError(
                ErrorCode.OPEN, OpenError.UNSUPPORTED_OPTIONAL_PARAMETER, body[at:end], f"optional parameter {kind}"
            )
        capabilities = decode_capabilities(body[start:end], capabilities)
        at = end
    return capabilities


def _malformed(text: str) -> BgpError:
    return BgpError(ErrorCode.OPEN, OpenError.UNSPECIFIC, text=text)
