"""Which of two connections to one peer stays: RFC 4271 section 6.8, RFC 6286 section 2.3, RFC 4724 section 5."""

from __future__ import annotations

from services.bgp.core.session.connection import Connection


def loser(
    new: Connection, old: Connection, ours: tuple[int, int], theirs: tuple[int, int], now: float, window_s: float
) -> Connection:
    """`new` has just got its OPEN, `old` has had its own. ours, theirs: (router ID, AS number).

    Begun by the same side: the newer stays, who began them knows best. The older is established: it stays, unless it
    is so for longer than the window, so that the two were not begun at the same time, and graceful restart is on:
    then the peer lost it. Else the connection that the higher identifier began stays, so that both sides come to the
    same answer.
    """
    if new.incoming == old.incoming:
        return old
    if old.established_at is not None:
        gone = now - old.established_at > window_s
        restarts = old.negotiated is not None and old.negotiated.restart_time_s is not None
        return old if gone and restarts else new
    ours_stays = ours > theirs
    return new if new.incoming == ours_stays else old
