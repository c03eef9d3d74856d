"""ROUTE-REFRESH: RFC 2918, with the marks of begin and end of RFC 7313."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from services.bgp.core.paths import Family
from services.bgp.core.wire.codes import SAFI_UNICAST, MessageType, RefreshSubtype
from services.bgp.core.wire.errors import BgpError, ErrorCode, HeaderError, RefreshError
from services.bgp.core.wire.framing import frame


@dataclass(frozen=True, slots=True)
class RouteRefresh:
    family: Family
    subtype: RefreshSubtype = RefreshSubtype.REQUEST


def encode_refresh(message: RouteRefresh) -> bytes:
    body = struct.pack("!HBB", message.family, message.subtype, SAFI_UNICAST)
    return frame(MessageType.ROUTE_REFRESH, body)


def decode_refresh(body: bytes) -> RouteRefresh | None:
    """body: AFI(2) subtype(1) SAFI(1); None for what is to be ignored: a family that we do not
    speak, a subtype that we do not know, an outbound route filter (RFC 5291), which we never announce.

    Raises BgpError 7/1 when a mark of begin or end has a wrong length (RFC 7313 section 5); its data is the whole
    message.
    """
    if len(body) < 4:
        raise BgpError(ErrorCode.MESSAGE_HEADER, HeaderError.BAD_LENGTH, text=f"ROUTE-REFRESH of {len(body)} octets")
    afi, subtype, safi = struct.unpack_from("!HBB", body)
    if subtype in (RefreshSubtype.BEGIN, RefreshSubtype.END) and len(body) != 4:
        raise BgpError(ErrorCode.ROUTE_REFRESH, RefreshError.INVALID_LENGTH, frame(MessageType.ROUTE_REFRESH, body))
    if subtype not in list(RefreshSubtype) or safi != SAFI_UNICAST or afi not in list(Family) or len(body) != 4:
        return None
    return RouteRefresh(Family(afi), RefreshSubtype(subtype))
