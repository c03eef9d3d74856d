"""What a node tells its BGP peers when no BGPFilter has decided: Calico's `calico_export_to_bgp_peers`.

In order: nothing of pools that are not to leave; to peers of our AS nothing that goes out by an overlay's device;
nothing of the eBPF dataplane's devices; of this node's own blocks the block, and inside it only what is more urgent
than normal (a virtual machine that has just moved here); services; what a reflector passes on; what lies inside
pools. Nothing else: so the default route never leaves, whoever told us of it.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase

from services.bgp.core.paths import Family, Nlri, network, nlri
from services.bgp.core.prefixes import PrefixTest, inside, inside_any, of_family
from services.bgp.core.settings import SpeakerSettings

Communities = tuple[tuple[int, ...], ...]

TUNNELS = ("*.cali", "*.calico")
LOCAL_DEVICES = "bpf*.cali"
FELIX_OWNS_IPIP = ("EnabledNoEncapOnly", "Disabled")


class ExportPolicy:
    """One family of one node. `verdict` and `urgent` judge prefixes: the communities to add, or None for "not told"."""

    def __init__(self, settings: SpeakerSettings, family: Family) -> None:
        self._ipip_devices = ("tunl0",) if settings.program_cluster_routes in FELIX_OWNS_IPIP else ()
        services = [network(family, o.prefix) for o in settings.originated if o.service and o.family is family]
        told = [pool.network for pool in settings.pools if pool.export]
        reflected = settings.reflect if settings.route_reflector else ()
        self._disabled = inside_any((pool.network for pool in settings.pools if not pool.export), family)
        self._blocks = frozenset(nlri(block) for block in settings.own_blocks if of_family(block, family))
        self._in_block = inside_any(settings.own_blocks, family)
        self._told = inside_any((*services, *reflected, *told), family)
        self._communities: tuple[tuple[PrefixTest, Communities], ...] = tuple(
            (inside(cidr), added) for cidr, added in settings.advertisements if of_family(cidr, family)
        )
        self.verdict = self._compile(urgent=False)
        self.urgent = self._compile(urgent=True)

    def by_interface(self, interface: str, internal: bool) -> bool:
        """May a route by this interface be told at all."""
        if fnmatchcase(interface, LOCAL_DEVICES):
            return False
        return not (internal and any(fnmatchcase(interface, name) for name in (*TUNNELS, *self._ipip_devices)))

    def _compile(self, urgent: bool) -> Callable[[Nlri], Communities | None]:
        disabled, in_block, blocks, told = self._disabled, self._in_block, self._blocks, self._told
        communities = self._communities

        def verdict(prefix: Nlri) -> Communities | None:
            if disabled(prefix):
                return None
            if in_block(prefix):
                if not urgent and prefix not in blocks:
                    return None
            elif not told(prefix):
                return None
            if not communities:
                return ()
            return tuple(community for test, added in communities if test(prefix) for community in added)

        return verdict
