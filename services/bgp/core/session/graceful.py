"""Whose routes stay when a session ends: the helper's side of RFC 4724 section 4.2, RFC 8538, RFC 9494.

How long they stay, and what replaces or removes them, is for the routing tables, which have them.
"""

from __future__ import annotations

from services.bgp.core.paths import Family
from services.bgp.core.session.negotiation import Negotiated
from services.bgp.core.wire.errors import Notification


def kept_families(
    negotiated: Negotiated, *, sent: Notification | None, received: Notification | None
) -> tuple[Family, ...]:
    """Families whose routes stay when a session ends this way.

    A family that only the long-lived capability lists has a restart time of 0 (RFC 9494 section 4.2).

    Without RFC 8538: only when the connection just went. With it: after NOTIFICATIONs too, that of our hold timer
    among them, but not after a hard reset, whoever sent it.
    """
    told = [message for message in (sent, received) if message is not None]
    if any(message.hard_reset for message in told):
        return ()
    if told and not negotiated.notifications_kept:
        return ()
    long_lived = dict(negotiated.long_lived)
    return tuple(
        family
        for family in negotiated.families
        if long_lived.get(family) or (family in negotiated.kept_families and negotiated.restart_time_s)
    )
