"""From a stream of octets to messages: RFC 4271 sections 4.1 and 6.1, RFC 8654 for long ones."""

from __future__ import annotations

import struct
from typing import Final

from services.bgp.core.wire.codes import HEADER_OCTETS, MARKER, MAX_MESSAGE, MessageType
from services.bgp.core.wire.errors import BgpError, ErrorCode, HeaderError

_MINIMUM: Final[dict[int, int]] = {
    MessageType.OPEN: 29,
    MessageType.UPDATE: 23,
    MessageType.NOTIFICATION: 21,
    MessageType.KEEPALIVE: 19,
    MessageType.ROUTE_REFRESH: 23,
}
_LENGTH_AND_TYPE: Final = struct.Struct("!HB")


def frame(kind: MessageType, body: bytes = b"") -> bytes:
    """A whole message. The caller keeps to the peer's limit."""
    return MARKER + _LENGTH_AND_TYPE.pack(HEADER_OCTETS + len(body), kind) + body


KEEPALIVE: Final = frame(MessageType.KEEPALIVE)


class MessageReader:
    """Feed it what arrives, in any pieces; `next()` gives one message at a time.

    One at a time because an OPEN changes what may follow it. `limit`: 4,096, or 65,535 once extended messages are
    negotiated; OPEN and KEEPALIVE stay at 4,096 (RFC 8654 section 4). After an error the reader is of no more use:
    the stream is lost.
    """

    def __init__(self, limit: int = MAX_MESSAGE) -> None:
        self.limit = limit
        self._data = b""
        self._at = 0
        self._later: list[bytes] = []  # joined only when a whole message is there: many small pieces cost no more
        self._have = 0  # octets not yet given out, `_later` included
        self._need = HEADER_OCTETS

    def feed(self, data: bytes) -> None:
        self._later.append(data)
        self._have += len(data)

    @property
    def buffered(self) -> int:
        """Octets of a message that is not complete yet."""
        return self._have

    def next(self) -> tuple[MessageType, bytes] | None:
        """(type, body without the header), or None until more arrives.

        Raises BgpError 1/1 marker, 1/2 length (the data is the length field), 1/3 type (the data is the type).
        """
        if self._have < self._need:
            return None
        if self._later:
            self._data = b"".join((self._data[self._at :], *self._later))
            self._at = 0
            self._later.clear()
        data, at = self._data, self._at
        if data[at : at + 16] != MARKER:
            raise BgpError(ErrorCode.MESSAGE_HEADER, HeaderError.NOT_SYNCHRONIZED, text="marker is not all ones")
        length, kind = _LENGTH_AND_TYPE.unpack_from(data, at + 16)
        if kind not in _MINIMUM:
            raise BgpError(ErrorCode.MESSAGE_HEADER, HeaderError.BAD_TYPE, bytes((kind,)))
        limit = MAX_MESSAGE if kind in (MessageType.OPEN, MessageType.KEEPALIVE) else self.limit
        if length < _MINIMUM[kind] or length > limit or (kind == MessageType.KEEPALIVE and length != HEADER_OCTETS):
            raise BgpError(
                ErrorCode.MESSAGE_HEADER,
                HeaderError.BAD_LENGTH,
                struct.pack("!H", length),
                f"{MessageType(kind).name} of {length} octets",
            )
        if self._have < length:
            self._need = length
            return None
        self._at = at + length
        self._have -= length
        self._need = HEADER_OCTETS
        return MessageType(kind), data[at + HEADER_OCTETS : at + length]
