"""Which learned routes this speaker puts into the kernel, and how: Calico's `calico_kernel_programming`.

Ranges of services never (they would loop), VXLAN pools never (felix), IPIP and plain pools as `programClusterRoutes`
says, everything outside pools always.
"""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

from services.bgp.core.paths import Family, IPNetwork
from services.bgp.core.prefixes import Regions, inside_any
from services.bgp.core.settings import PoolExport, SpeakerSettings


class KernelVerdict(Enum):
    REJECT = "reject"
    PLAIN = "plain"
    IPIP = "ipip"
    IPIP_CROSS_SUBNET = "ipip-cross-subnet"  # plain where the next hop is in the node's subnet


KernelFilter: TypeAlias = Regions[KernelVerdict, KernelVerdict]
"""`get` and `many` say what to do with prefixes."""


def kernel_filter(settings: SpeakerSettings, family: Family) -> KernelFilter:
    """Pools do not overlap; a range of services inside one of them goes before it."""
    return Regions(
        (
            *((pool.network, _verdict(pool, settings.program_cluster_routes)) for pool in settings.pools),
            *((cidr, KernelVerdict.REJECT) for cidr in settings.reject),
        ),
        family,
        _first,
    )


def _first(verdicts: tuple[KernelVerdict, ...]) -> KernelVerdict:
    if KernelVerdict.REJECT in verdicts:
        return KernelVerdict.REJECT
    return verdicts[0] if verdicts else KernelVerdict.PLAIN


def _verdict(pool: PoolExport, owner: str) -> KernelVerdict:
    if pool.vxlan:
        return KernelVerdict.REJECT
    if pool.ipip_mode in ("Always", "CrossSubnet"):
        if owner not in ("Enabled", "EnabledIPIPOnly"):
            return KernelVerdict.REJECT
        return KernelVerdict.IPIP if pool.ipip_mode == "Always" else KernelVerdict.IPIP_CROSS_SUBNET
    return KernelVerdict.PLAIN if owner in ("Enabled", "EnabledNoEncapOnly") else KernelVerdict.REJECT


def by_tunnel(verdict: KernelVerdict, next_hop: bytes, subnets: tuple[IPNetwork, ...], family: Family) -> bool:
    """Does a route of this verdict go through tunl0."""
    if verdict is KernelVerdict.IPIP:
        return True
    if verdict is not KernelVerdict.IPIP_CROSS_SUBNET:
        return False
    return not inside_any(subnets, family)(bytes((8 * len(next_hop),)) + next_hop)
