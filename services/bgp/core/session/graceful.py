"""Stale routes of a peer that went away: which are kept, how long, and when they go. RFC 4724 section 4.2, RFC 8538,
RFC 9494.

Helper's side only: the session tells it what happened and it answers with `SweepStale` and `LongLivedStale`; the marks
themselves are with the routes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.bgp.core.paths import Family
from services.bgp.core.session.actions import Action, LongLivedStale, SweepStale
from services.bgp.core.session.negotiation import Negotiated
from services.bgp.core.wire.errors import Notification


def kept_families(
    negotiated: Negotiated, *, hold_timer: bool, sent: Notification | None, received: Notification | None
) -> tuple[Family, ...]:
    """Families whose routes stay when a session ends this way.

    Without RFC 8538: only when the connection just went. With it: after NOTIFICATIONs and our hold timer too, but not
    after a hard reset, whoever sent it.
    """
    told = [message for message in (sent, received) if message is not None]
    if any(message.hard_reset for message in told):
        return ()
    if (told or hold_timer) and not negotiated.notifications_kept:
        return ()
    long_lived = dict(negotiated.long_lived)
    return tuple(
        family
        for family in negotiated.families
        if family in negotiated.kept_families and (negotiated.restart_time_s or long_lived.get(family))
    )


@dataclass(slots=True)
class _Stale:
    until: float
    long_lived_s: int = 0  # still to come after `until`


@dataclass(slots=True)
class StaleRoutes:
    """end_of_rib_s: how long a peer that is back may take until its End-of-RIB."""

    end_of_rib_s: float
    _stale: dict[Family, _Stale] = field(default_factory=dict)

    @property
    def families(self) -> tuple[Family, ...]:
        return tuple(self._stale)

    def deadline(self) -> float | None:
        return min((one.until for one in self._stale.values()), default=None)

    def lost(self, negotiated: Negotiated, kept: Iterable[Family], now: float) -> list[Action]:
        """Call before the marks are set anew: what was stale already goes ("consecutive restarts", RFC 4724 section
        4.2)."""
        actions = self.drop_all("the peer went away again before it had announced everything")
        for family in kept:
            long_lived_s = dict(negotiated.long_lived).get(family, 0)
            self._stale[family] = _Stale(now + (negotiated.restart_time_s or 0), long_lived_s)
        return actions

    def established(self, negotiated: Negotiated, now: float) -> list[Action]:
        """The peer is back: what it did not keep itself goes now, the rest waits for its End-of-RIB."""
        actions: list[Action] = []
        for family in list(self._stale):
            if family in negotiated.forwarding:
                self._stale[family] = _Stale(now + self.end_of_rib_s)
            else:
                actions += self._sweep(family, "the peer is back and did not keep its routes")
        return actions

    def end_of_rib(self, family: Family) -> list[Action]:
        return self._sweep(family, "End-of-RIB") if family in self._stale else []

    def tick(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for family, stale in list(self._stale.items()):
            if stale.until > now:
                continue
            if stale.long_lived_s:
                self._stale[family] = _Stale(stale.until + stale.long_lived_s)
                actions.append(LongLivedStale(family))
            else:
                actions += self._sweep(family, "not announced again in time")
        return actions

    def drop_all(self, reason: str) -> list[Action]:
        return [action for family in list(self._stale) for action in self._sweep(family, reason)]

    def _sweep(self, family: Family, reason: str) -> list[Action]:
        del self._stale[family]
        return [SweepStale(family, reason)]
