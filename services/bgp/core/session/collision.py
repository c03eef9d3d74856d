"""Which of two connections to one peer stays: RFC 4271 section 6.8, RFC 6286 section 2.3, RFC 4724 section 5."""

from __future__ import annotations

from services.bgp.core.session.connection import Connection


def loser(
    new: Connection, old: Connection, ours: tuple[int, int], theirs: tuple[int, int], now: float, window_s: float
) -> Connection:
    """`new` has just got its OPEN, `old` has had its own. ours, theirs: (router ID, AS number).

    Both sides come to the same answer. Begun by the same side: the newer stays, who began them knows best. When the
    older is established for longer than the window, the two were not begun at the same time: with graceful restart
    the peer lost the older one, without it the older stays. Else the higher identifier says whose attempt stays.
    """
    if new.incoming == old.incoming:
        return old
    if old.established_at is not None and now - old.established_at > window_s:
        restarted = old.negotiated is not None and old.negotiated.restart_time_s is not None
        return old if restarted else new
    ours_stays = ours > theirs
    return new if new.incoming == ours_stays else old
