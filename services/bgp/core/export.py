"""What a node tells its BGP peers when no BGPFilter has decided: Calico's `calico_export_to_bgp_peers`.

In order: nothing of pools that are not to leave; to peers of our AS nothing that goes out by an overlay's device;
nothing of the eBPF dataplane's devices; of this node's own blocks the block, and inside it only what is more urgent
than normal (a virtual machine that has just moved here); services; what a reflector passes on; what lies inside
pools. Nothing else: so the default route never leaves, whoever told us of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from fnmatch import fnmatchcase

from services.bgp.core.paths import Family, Nlri, network, nlri
from services.bgp.core.prefixes import PrefixTest, Regions, inside, of_family
from services.bgp.core.settings import SpeakerSettings

Communities = tuple[tuple[int, ...], ...]

TUNNELS = ("*.cali", "*.calico")
LOCAL_DEVICES = "bpf*.cali"
FELIX_OWNS_IPIP = ("EnabledNoEncapOnly", "Disabled")


class _Part(Enum):
    """What a network is to export policy."""

    CLOSED = auto()  # a pool that is not to leave
    BLOCK = auto()  # of this node
    TOLD = auto()  # a pool, a service, what a reflector passes on


_OWN: Communities = ((-1,),)
"""Inside a block of this node: it depends on the prefix and the route."""


def _judge(parts: tuple[_Part, ...]) -> Communities | None:
    if _Part.CLOSED in parts:
        return None
    if _Part.BLOCK in parts:
        return _OWN
    return () if parts else None


class ExportPolicy:
    """One family of one node. It judges prefixes: the communities to add, or None for "not told"."""

    def __init__(self, settings: SpeakerSettings, family: Family) -> None:
        self._ipip_devices = ("tunl0",) if settings.program_cluster_routes in FELIX_OWNS_IPIP else ()
        services = [network(family, o.prefix) for o in settings.originated if o.service and o.family is family]
        reflected = settings.reflect if settings.route_reflector else ()
        self._regions: Regions[_Part, Communities | None] = Regions(
            (
                *((pool.network, _Part.TOLD if pool.export else _Part.CLOSED) for pool in settings.pools),
                *((block, _Part.BLOCK) for block in settings.own_blocks),
                *((cidr, _Part.TOLD) for cidr in (*services, *reflected)),
            ),
            family,
            _judge,
        )
        self._blocks = frozenset(nlri(block) for block in settings.own_blocks if of_family(block, family))
        self._communities: tuple[tuple[PrefixTest, Communities], ...] = tuple(
            (inside(cidr), added) for cidr, added in settings.advertisements if of_family(cidr, family)
        )

    def by_interface(self, interface: str, internal: bool) -> bool:
        """May a route by this interface be told at all."""
        if fnmatchcase(interface, LOCAL_DEVICES):
            return False
        return not (internal and any(fnmatchcase(interface, name) for name in (*TUNNELS, *self._ipip_devices)))

    def verdict(self, prefix: Nlri, urgent: bool) -> Communities | None:
        return self.verdicts((prefix,), urgent)[0]

    def verdicts(self, prefixes: Sequence[Nlri], urgent: bool) -> list[Communities | None]:
        """urgent: the route's metric is below the normal one."""
        found = self._regions.many(prefixes)
        if found.count(()) == len(found) and not self._communities:
            return found  # mostly: all of them inside pools
        if self._blocks:
            blocks = self._blocks
            for at, communities in enumerate(found):
                if communities is _OWN:
                    found[at] = () if urgent or prefixes[at] in blocks else None
        if self._communities:
            return [
                self._added(prefix) if add is not None else None for prefix, add in zip(prefixes, found, strict=True)
            ]
        return found

    def _added(self, prefix: Nlri) -> Communities:
        return tuple(community for test, added in self._communities if test(prefix) for community in added)
