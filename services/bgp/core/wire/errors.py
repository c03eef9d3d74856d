"""NOTIFICATION: its codes, its text, and the exception that asks for one to be sent.

Sources: RFC 4271 sections 4.5 and 6, RFC 4486 and 9003 (Cease, administrative shutdown communication), RFC 5492
(unsupported capability), RFC 6608 (FSM errors), RFC 7313 (ROUTE-REFRESH errors), RFC 8538 (hard reset).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from services.bgp.core.wire.codes import HEADER_OCTETS, MARKER, MessageType


class ErrorCode(IntEnum):
    MESSAGE_HEADER = 1
    OPEN = 2
    UPDATE = 3
    HOLD_TIMER_EXPIRED = 4
    FSM = 5
    CEASE = 6
    ROUTE_REFRESH = 7
    SEND_HOLD_TIMER_EXPIRED = 8  # RFC 9687


class HeaderError(IntEnum):
    NOT_SYNCHRONIZED = 1
    BAD_LENGTH = 2
    BAD_TYPE = 3


class OpenError(IntEnum):
    UNSPECIFIC = 0
    UNSUPPORTED_VERSION = 1
    BAD_PEER_AS = 2
    BAD_BGP_IDENTIFIER = 3
    UNSUPPORTED_OPTIONAL_PARAMETER = 4
    UNACCEPTABLE_HOLD_TIME = 6
    UNSUPPORTED_CAPABILITY = 7


class UpdateError(IntEnum):
    MALFORMED_ATTRIBUTE_LIST = 1
    UNRECOGNIZED_WELL_KNOWN = 2
    MISSING_WELL_KNOWN = 3
    ATTRIBUTE_FLAGS = 4
    ATTRIBUTE_LENGTH = 5
    INVALID_ORIGIN = 6
    INVALID_NEXT_HOP = 8
    OPTIONAL_ATTRIBUTE = 9
    INVALID_NETWORK_FIELD = 10
    MALFORMED_AS_PATH = 11


class FsmError(IntEnum):
    """RFC 6608: a message that this state does not expect; its type is the data."""

    UNSPECIFIED = 0
    IN_OPEN_SENT = 1
    IN_OPEN_CONFIRM = 2
    IN_ESTABLISHED = 3


class Cease(IntEnum):
    UNSPECIFIC = 0
    MAXIMUM_PREFIXES = 1
    ADMINISTRATIVE_SHUTDOWN = 2
    PEER_DECONFIGURED = 3
    ADMINISTRATIVE_RESET = 4
    CONNECTION_REJECTED = 5
    CONFIGURATION_CHANGE = 6
    COLLISION_RESOLUTION = 7
    OUT_OF_RESOURCES = 8
    HARD_RESET = 9


class RefreshError(IntEnum):
    INVALID_LENGTH = 1


_CODES: Final = {
    ErrorCode.MESSAGE_HEADER: "message header error",
    ErrorCode.OPEN: "OPEN message error",
    ErrorCode.UPDATE: "UPDATE message error",
    ErrorCode.HOLD_TIMER_EXPIRED: "hold timer expired",
    ErrorCode.FSM: "finite state machine error",
    ErrorCode.CEASE: "cease",
    ErrorCode.ROUTE_REFRESH: "ROUTE-REFRESH message error",
    ErrorCode.SEND_HOLD_TIMER_EXPIRED: "send hold timer expired",
}
_SUBCODES: Final[dict[int, type[IntEnum]]] = {
    ErrorCode.MESSAGE_HEADER: HeaderError,
    ErrorCode.OPEN: OpenError,
    ErrorCode.UPDATE: UpdateError,
    ErrorCode.FSM: FsmError,
    ErrorCode.CEASE: Cease,
    ErrorCode.ROUTE_REFRESH: RefreshError,
}
COMMUNICATION_OCTETS: Final = 255  # RFC 9003 section 2


@dataclass(frozen=True, slots=True)
class Notification:
    """A NOTIFICATION message; data as RFC 4271 section 6 says for each code."""

    code: int
    subcode: int = 0
    data: bytes = b""

    def encode(self) -> bytes:
        """The whole message. Data beyond 4,075 octets is cut: it only quotes what was wrong."""
        body = bytes((self.code, self.subcode)) + self.data[: 4096 - HEADER_OCTETS - 2]
        return MARKER + struct.pack("!HB", HEADER_OCTETS + len(body), MessageType.NOTIFICATION) + body

    @property
    def hard_reset(self) -> bool:
        """RFC 8538: routes are not to be kept."""
        return self.code == ErrorCode.CEASE and self.subcode == Cease.HARD_RESET

    @property
    def inner(self) -> Notification | None:
        """What a hard reset carries as its reason (RFC 8538 section 3.1)."""
        return decode_notification(self.data) if self.hard_reset and len(self.data) >= 2 else None

    @property
    def communication(self) -> str:
        """Text of RFC 9003, of a hard reset too; empty when there is none or it is not well formed. Control characters
        are replaced: it goes to logs and terminals."""
        if self.hard_reset:
            return self.inner.communication if self.inner else ""
        if self.code != ErrorCode.CEASE or self.subcode not in (
            Cease.ADMINISTRATIVE_SHUTDOWN,
            Cease.ADMINISTRATIVE_RESET,
        ):
            return ""
        if not self.data or self.data[0] > len(self.data) - 1:
            return ""
        text = self.data[1 : 1 + self.data[0]].decode("utf-8", "replace")
        return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)

    def __str__(self) -> str:
        name = _CODES.get(ErrorCode(self.code), "") if self.code in _CODES else f"error code {self.code}"
        kinds = _SUBCODES.get(self.code)
        if kinds is not None and self.subcode in list(kinds):
            sub = kinds(self.subcode).name.lower().replace("_", " ")
            name = f"{name}: {sub}" if self.subcode else name
        elif self.subcode:
            name = f"{name}: subcode {self.subcode}"
        name = f"{name} ({self.code}/{self.subcode})"
        if self.hard_reset and self.inner and not self.inner.hard_reset:
            return f"{name}, {self.inner}"
        if self.communication:
            return f"{name}, {self.communication!r}"
        return f"{name}, data {self.data[:32].hex()}" if self.data else name


def administrative(subcode: Cease, text: str = "") -> Notification:
    """Cease of an administrator, with words for the other side: cut at 255 octets, between characters (RFC 9003)."""
    raw = text.encode("utf-8", "replace")[:COMMUNICATION_OCTETS]
    raw = raw.decode("utf-8", "ignore").encode()
    return Notification(ErrorCode.CEASE, subcode, bytes((len(raw),)) + raw if raw else b"")


def hard_reset(reason: Notification) -> Notification:
    """The same reason, in the form that tells a peer with RFC 8538 not to keep our routes."""
    return Notification(ErrorCode.CEASE, Cease.HARD_RESET, bytes((reason.code, reason.subcode)) + reason.data)


class BgpError(Exception):
    """The peer broke the protocol in a way that ends the session; `notification` is what it is told."""

    def __init__(self, code: int, subcode: int = 0, data: bytes = b"", text: str = "") -> None:
        self.notification = Notification(code, subcode, data)
        super().__init__(f"{self.notification}: {text}" if text else str(self.notification))


def decode_notification(body: bytes) -> Notification:
    """body: code(1) subcode(1) data. Raises BgpError 1/2 when it is shorter, which the framing does not let through."""
    if len(body) < 2:
        raise BgpError(ErrorCode.MESSAGE_HEADER, HeaderError.BAD_LENGTH, text=f"NOTIFICATION of {len(body)} octets")
    return Notification(body[0], body[1], body[2:])
