"""What a session asks its shell to do, and what it tells the routing tables. In the order they are to happen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from services.bgp.core.paths import Change, Family
from services.bgp.core.session.negotiation import Negotiated
from services.bgp.core.wire.errors import Notification


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a TCP connection to the peer; then `connected` or `closed` with this number."""

    connection: int


@dataclass(frozen=True, slots=True)
class Send:
    connection: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """Give up the connection, or the attempt, after what was sent on it. Nothing is to be reported of it any more."""

    connection: int


@dataclass(frozen=True, slots=True)
class Established:
    """Announce everything now, with an End-of-RIB behind each family."""

    connection: int
    negotiated: Negotiated


@dataclass(frozen=True, slots=True)
class Received:
    changes: list[Change]


@dataclass(frozen=True, slots=True)
class RefreshRequested:
    """Announce this family again; between marks of begin and end when enhanced refresh is negotiated (RFC 7313)."""

    family: Family


@dataclass(frozen=True, slots=True)
class BeginRefresh:
    """The peer announces this family again: mark what is there as stale."""

    family: Family


@dataclass(frozen=True, slots=True)
class EndRefresh:
    """Remove what is still marked."""

    family: Family


@dataclass(frozen=True, slots=True)
class Down:
    """An established session ended. kept: families whose routes stay, marked as stale (RFC 4724); the others go now.
    sent, received: NOTIFICATIONs, if there were any."""

    reason: str
    sent: Notification | None = None
    received: Notification | None = None
    kept: tuple[Family, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """An attempt ended before it was established. Nothing changes for routes; for the log."""

    reason: str
    sent: Notification | None = None
    received: Notification | None = None


Action: TypeAlias = (
    Connect | Send | Close | Established | Received | RefreshRequested | BeginRefresh | EndRefresh | Down | Failed
)
