"""What a user may ask about a session."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from services.bgp.core.session.negotiation import Negotiated
from services.bgp.core.session.states import State


@dataclass(slots=True)
class Counters:
    """received, sent: messages by type (`UPDATE` …). connects: TCP connections begun by us. established: how often.
    collisions: connections given up in favour of another one of the same peer."""

    received: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    connects: int = 0
    established: int = 0
    collisions: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """since: when the state began, on the caller's clock, like all times. last_error: why the last attempt or session
    ended, with whether we or the peer said so. next_attempt: when we connect (or listen) again. stale: families kept
    for the peer. problems of UPDATEs (RFC 7606) of the session that is up, or was: discarded attributes, withdrawn
    and ignored ones."""

    state: State
    since: float
    last_error: str
    last_error_at: float | None
    last_sent: str
    last_received: str
    next_attempt: float | None
    negotiated: Negotiated | None
    counters: Counters
    discarded_attributes: int
    withdrawn_updates: int
    ignored_families: int
    last_update_problem: str
