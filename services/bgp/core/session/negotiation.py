"""What we say in our OPEN, whether the peer's is acceptable, and what both together come to."""

from __future__ import annotations

from dataclasses import dataclass

from services.bgp.core.paths import Family
from services.bgp.core.settings import PeerSettings
from services.bgp.core.wire.capabilities import (
    ADD_PATH_RECEIVE,
    ADD_PATH_SEND,
    AfiSafi,
    Capabilities,
    GracefulRestart,
    LongLived,
    encode_capabilities,
)
from services.bgp.core.wire.codes import AS_TRANS, MAX_EXTENDED_MESSAGE, MAX_MESSAGE, SAFI_UNICAST
from services.bgp.core.wire.context import Context
from services.bgp.core.wire.errors import BgpError, ErrorCode, OpenError
from services.bgp.core.wire.open import Open


def afi_safi(family: Family) -> AfiSafi:
    return (int(family), SAFI_UNICAST)


def wanted_families(settings: PeerSettings) -> tuple[Family, ...]:
    return settings.families or (Family.IPV4 if settings.address.version == 4 else Family.IPV6,)


@dataclass(frozen=True, slots=True)
class Restart:
    """Our side of RFC 4724. restarting: we are just back ("Restart State"). preserved: families whose routes stayed
    in the kernel meanwhile ("Forwarding State")."""

    restarting: bool = False
    preserved: frozenset[Family] = frozenset(Family)


def our_open(
    settings: PeerSettings, router_id: int, restart: Restart, *, plain: bool = False, hostname: str = ""
) -> Open:
    """plain: without optional parameters, for a peer that refuses them."""
    if plain:
        return Open(settings.local_as, settings.hold_time_s, router_id, None)
    families = wanted_families(settings)
    over_ipv6 = Family.IPV4 in families and settings.address.version == 6
    mode = (ADD_PATH_RECEIVE if settings.add_path_receive else 0) | (ADD_PATH_SEND if settings.add_path_send else 0)
    graceful = None
    if settings.restart_time_s is not None:
        graceful = GracefulRestart(
            settings.restart_time_s,
            restarting=restart.restarting,
            notification=True,
            families=tuple((afi_safi(family), family in restart.preserved) for family in families),
        )
    long_lived = None
    if graceful is not None and settings.long_lived_time_s is not None:
        time_s = settings.long_lived_time_s
        long_lived = tuple(LongLived(afi_safi(family), time_s, family in restart.preserved) for family in families)
    return Open(
        settings.local_as,
        settings.hold_time_s,
        router_id,
        Capabilities(
            families=tuple(afi_safi(family) for family in families),
            route_refresh=True,
            enhanced_refresh=True,
            extended_message=True,
            extended_next_hop=((afi_safi(Family.IPV4), int(Family.IPV6)),) if over_ipv6 else (),
            as4=settings.local_as,
            add_path=tuple((afi_safi(family), mode) for family in families) if mode else (),
            graceful_restart=graceful,
            long_lived=long_lived,
            hostname=hostname,
        ),
    )


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What holds for one established session; for status too.

    hold_time_s, keepalive_s: 0 for none. restart_time_s: how long the peer wants its routes kept; None without
    graceful restart. kept_families: those it wants that for. forwarding: those whose routes it kept over its own
    restart. peer_restarting: it is just back, and does not wait for our End-of-RIB. notifications_kept: RFC 8538
    holds. long_lived: seconds by family. knows_long_lived: it announced that capability, be it for no family: what is
    long-lived stale may be told to it (RFC 9494 section 4.3). long_lived_forwarding: as `forwarding`, by that
    capability. expects_end_of_rib: it will send one for each family.
    """

    context: Context
    ours: Open
    theirs: Open
    hold_time_s: int
    keepalive_s: float
    families: tuple[Family, ...]
    route_refresh: bool = False
    enhanced_refresh: bool = False
    restart_time_s: int | None = None
    kept_families: frozenset[Family] = frozenset()
    forwarding: frozenset[Family] = frozenset()
    peer_restarting: bool = False
    notifications_kept: bool = False
    long_lived: tuple[tuple[Family, int], ...] = ()
    knows_long_lived: bool = False
    long_lived_forwarding: frozenset[Family] = frozenset()
    expects_end_of_rib: bool = False

    @property
    def internal(self) -> bool:
        return self.context.internal


def check_open(settings: PeerSettings, router_id: int, theirs: Open) -> None:
    """Raises BgpError 2/2 (AS number), 2/3 (identifier: within one AS it must differ, RFC 6286)."""
    if settings.remote_as and theirs.asn != settings.remote_as:
        raise BgpError(
            ErrorCode.OPEN,
            OpenError.BAD_PEER_AS,
            (theirs.asn if theirs.asn <= 0xFFFF else AS_TRANS).to_bytes(2, "big"),
            f"the peer says AS {theirs.asn}, expected is AS {settings.remote_as}",
        )
    if theirs.router_id == router_id and theirs.asn == settings.local_as:
        raise BgpError(
            ErrorCode.OPEN, OpenError.BAD_BGP_IDENTIFIER, text="the peer has our router ID; each router needs its own"
        )


def negotiate(settings: PeerSettings, ours: Open, theirs: Open) -> Negotiated:
    """Raises BgpError 2/7 when no address family is left (its data: the capabilities we need, RFC 5492 section 5)."""
    mine, other = ours.capabilities or Capabilities(), theirs.capabilities or Capabilities()
    their_families = other.families if other.families is not None else (afi_safi(Family.IPV4),)
    families = tuple(family for family in wanted_families(settings) if afi_safi(family) in their_families)
    if not families:
        wanted = Capabilities(families=tuple(afi_safi(family) for family in wanted_families(settings)))
        said = ", ".join(f"{afi}/{safi}" for afi, safi in their_families) or "none"
        raise BgpError(
            ErrorCode.OPEN,
            OpenError.UNSUPPORTED_CAPABILITY,
            encode_capabilities(wanted),
            f"no common address family: we want {', '.join(f.name for f in wanted_families(settings))}, "
            f"the peer has {said} (AFI/SAFI)",
        )
    hold_time_s = min(ours.hold_time_s, theirs.hold_time_s)
    add_path = _add_path(mine, other, families)
    graceful = other.graceful_restart if mine.graceful_restart is not None else None
    context = Context(
        internal=theirs.asn == settings.local_as,
        as4=mine.as4 is not None and other.as4 is not None,
        families=frozenset(families),
        add_path_receive=add_path[0],
        add_path_send=add_path[1],
        extended_next_hop=bool(set(mine.extended_next_hop) & set(other.extended_next_hop)),
        max_message=MAX_EXTENDED_MESSAGE if mine.extended_message and other.extended_message else MAX_MESSAGE,
    )
    return Negotiated(
        context=context,
        ours=ours,
        theirs=theirs,
        hold_time_s=hold_time_s,
        keepalive_s=keepalive_s(settings, hold_time_s),
        families=families,
        route_refresh=mine.route_refresh and other.route_refresh,
        enhanced_refresh=mine.enhanced_refresh and other.enhanced_refresh,
        restart_time_s=graceful.time_s if graceful else None,
        kept_families=_families(graceful, families, only_forwarding=False),
        forwarding=_families(graceful, families, only_forwarding=True),
        peer_restarting=graceful is not None and graceful.restarting,
        notifications_kept=bool(
            graceful and graceful.notification and mine.graceful_restart and mine.graceful_restart.notification
        ),
        long_lived=_long_lived(mine, other, families) if graceful else (),
        knows_long_lived=graceful is not None and other.long_lived is not None,
        long_lived_forwarding=_long_lived_forwarding(mine, other, families) if graceful else frozenset(),
        expects_end_of_rib=graceful is not None,
    )


def keepalive_s(settings: PeerSettings, hold_time_s: int) -> float:
    """A third of the hold time, or what was asked for; never more than half, so that one may be lost."""
    asked = settings.keepalive_time_s
    return min(asked, hold_time_s / 2) if asked else hold_time_s / 3


def _add_path(
    mine: Capabilities, other: Capabilities, families: tuple[Family, ...]
) -> tuple[frozenset[Family], frozenset[Family]]:
    """(receive, send): one side must send what the other takes (RFC 7911 section 4)."""
    ours, theirs = dict(mine.add_path), dict(other.add_path)

    def both(our_mode: int, their_mode: int) -> frozenset[Family]:
        return frozenset(
            family
            for family in families
            if ours.get(afi_safi(family), 0) & our_mode and theirs.get(afi_safi(family), 0) & their_mode
        )

    return both(ADD_PATH_RECEIVE, ADD_PATH_SEND), both(ADD_PATH_SEND, ADD_PATH_RECEIVE)


def _families(
    graceful: GracefulRestart | None, families: tuple[Family, ...], *, only_forwarding: bool
) -> frozenset[Family]:
    listed = dict(graceful.families) if graceful else {}
    return frozenset(
        family
        for family in families
        if afi_safi(family) in listed and (listed[afi_safi(family)] or not only_forwarding)
    )


def _long_lived(
    mine: Capabilities, other: Capabilities, families: tuple[Family, ...]
) -> tuple[tuple[Family, int], ...]:
    ours = {one.family for one in mine.long_lived or ()}
    theirs = {one.family: one.time_s for one in other.long_lived or ()}
    return tuple(
        (family, theirs[afi_safi(family)])
        for family in families
        if afi_safi(family) in ours and theirs.get(afi_safi(family))
    )


def _long_lived_forwarding(mine: Capabilities, other: Capabilities, families: tuple[Family, ...]) -> frozenset[Family]:
    ours = {one.family for one in mine.long_lived or ()}
    theirs = {one.family for one in other.long_lived or () if one.forwarding}
    return frozenset(family for family in families if afi_safi(family) in ours & theirs)
