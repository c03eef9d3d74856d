"""Which of two connections to one peer stays: RFC 4271 section 6.8, RFC 6286 section 2.3, RFC 4724 section 5."""

from __future__ import annotations

from enum import Enum

from services.bgp.core.session.connection import Connection


class Verdict(Enum):
    OLD_GOES = "old goes"
    NEW_GOES = "new goes"
    WAIT = "wait"


def judge(
    new: Connection, old: Connection, ours: tuple[int, int], theirs: tuple[int, int], now: float, window_s: float
) -> Verdict:
    """`new` has just got its OPEN, `old` has had its own. ours, theirs: (router ID, AS number).

    Begun by the same side: the newer stays, who began them knows best. The older is established for longer than the
    window, so the two were not begun at the same time: with graceful restart the peer lost the older one, without it
    the older stays. Else it is the connection that the higher identifier began which stays, and here the RFC's two
    rules, the other being that an established one stays, can be at odds: we may be established on the older one while
    the peer is not yet and gives it up, or the other way round. So a newer one that ought to stay waits for what the
    older one comes to.
    """
    if new.incoming == old.incoming:
        return Verdict.OLD_GOES
    if old.established_at is not None and now - old.established_at > window_s:
        restarts = old.negotiated is not None and old.negotiated.restart_time_s is not None
        return Verdict.OLD_GOES if restarts else Verdict.NEW_GOES
    ours_stays = ours > theirs
    return Verdict.NEW_GOES if new.incoming == ours_stays else Verdict.WAIT
