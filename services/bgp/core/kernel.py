"""Which learned routes this speaker puts into the kernel, and how: Calico's `calico_kernel_programming`.

Ranges of services never (they would loop), VXLAN pools never (felix), IPIP and plain pools as `programClusterRoutes`
says, everything outside pools always.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from services.bgp.core.paths import Family, IPNetwork, Nlri
from services.bgp.core.prefixes import inside, inside_any, of_family
from services.bgp.core.settings import PoolExport, SpeakerSettings


class KernelVerdict(Enum):
    REJECT = "reject"
    PLAIN = "plain"
    IPIP = "ipip"
    IPIP_CROSS_SUBNET = "ipip-cross-subnet"  # plain where the next hop is in the node's subnet


KernelFilter = Callable[[Nlri], KernelVerdict]


def kernel_filter(settings: SpeakerSettings, family: Family) -> KernelFilter:
    """For a prefix, what to do. Pools do not overlap, so their order does not matter."""
    rejected = inside_any(settings.reject, family)
    pools = [
        (inside(pool.network), _verdict(pool, settings.program_cluster_routes))
        for pool in settings.pools
        if of_family(pool.network, family)
    ]

    def judge(prefix: Nlri) -> KernelVerdict:
        if rejected(prefix):
            return KernelVerdict.REJECT
        for within, verdict in pools:
            if within(prefix):
                return verdict
        return KernelVerdict.PLAIN

    return judge


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
