"""What a change of settings can touch: so that only that is judged again, while sessions stay."""

from __future__ import annotations

from services.bgp.core.paths import Family, IPNetwork, network
from services.bgp.core.settings import SpeakerSettings


def export_touched(before: SpeakerSettings, after: SpeakerSettings, family: Family) -> list[IPNetwork] | None:
    """Where export policy differs: networks, or None when it may be anywhere."""
    if (before.advertisements, before.program_cluster_routes, before.normal_priority) != (
        after.advertisements,
        after.program_cluster_routes,
        after.normal_priority,
    ):
        return None
    return [network for _, network in _export_networks(before, family) ^ _export_networks(after, family)]


def _export_networks(settings: SpeakerSettings, family: Family) -> set[tuple[str, IPNetwork]]:
    """What export policy is made of, each with its part in it."""
    reflected = settings.reflect if settings.route_reflector else ()
    return {
        *(("pool" if pool.export else "closed pool", pool.network) for pool in settings.pools),
        *(("block", block) for block in settings.own_blocks),
        *(("service", network(o.family, o.prefix)) for o in settings.originated if o.service and o.family is family),
        *(("reflected", cidr) for cidr in reflected),
    }


def kernel_part(settings: SpeakerSettings) -> tuple[object, ...]:
    return (
        settings.reject,
        tuple((pool.network, pool.ipip_mode, pool.vxlan) for pool in settings.pools),
        settings.program_cluster_routes,
        settings.subnets,
        settings.encrypted,
        settings.normal_priority,
        tuple((peer.address, peer.gateway) for peer in settings.peers if peer.gateway is not None),
    )
