"""What the kernel is to have: from best paths to routes, and the difference to what was handed out before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from itertools import islice
from typing import NamedTuple
from weakref import WeakKeyDictionary

from services.bgp.core.filters import MAX_PRIORITY
from services.bgp.core.kernel import KernelVerdict, by_tunnel, kernel_filter
from services.bgp.core.paths import Family, Nlri, nlri
from services.bgp.core.rib.decision import decide, next_hops
from services.bgp.core.rib.path import Path, Preference
from services.bgp.core.rib.table import Entry, Table
from services.bgp.core.settings import SpeakerSettings


class Hop(NamedTuple):
    """address: packed, as BGP says it; the kernel's own routes lead there. tunnel: through tunl0."""

    address: bytes
    tunnel: bool = False


@dataclass(frozen=True, slots=True)
class FibRoute:
    """hops: one, or several of equal cost, in order of address; none: a blackhole. metric: 2147483647 - LOCAL_PREF,
    else the normal one."""

    hops: tuple[Hop, ...]
    metric: int


class FibChange(NamedTuple):
    """route: what is to be there now, None: nothing of ours. before: what this table handed out last."""

    family: Family
    prefix: Nlri
    route: FibRoute | None
    before: FibRoute | None


class Fib:
    """One family. Prefixes that may have changed wait until somebody takes them."""

    def __init__(self, family: Family, settings: SpeakerSettings) -> None:
        self._family = family
        self.installed: dict[Nlri, FibRoute] = {}
        self._dirty: dict[Nlri, None] = {}
        self._by_gateway: dict[Nlri, FibRoute] = {}
        self.configure(settings)

    def configure(self, settings: SpeakerSettings) -> None:
        self._filter = kernel_filter(settings, self._family)
        self._subnets = settings.subnets
        self._encrypted = frozenset(address.packed for address in settings.encrypted)
        self._normal = settings.normal_priority[self._family]
        self._blackhole = FibRoute((), self._normal)
        before, self._by_gateway = (
            self._by_gateway,
            {
                nlri(ip_network(peer.address)): FibRoute((Hop(peer.gateway.packed),), self._normal)
                for peer in settings.peers
                if peer.gateway is not None
                and len(peer.address.packed) == len(peer.gateway.packed) == self._family.octets
            },
        )
        self.mark((*before, *self._by_gateway))
        self._single: WeakKeyDictionary[Path, dict[KernelVerdict, FibRoute | None]] = WeakKeyDictionary()

    def mark(self, prefixes: Iterable[Nlri]) -> None:
        self._dirty.update(dict.fromkeys(prefixes))

    def waiting(self) -> int:
        return len(self._dirty)

    def take(self, table: Table, limit: int) -> list[FibChange]:
        """At most `limit` changes, oldest first."""
        found: list[FibChange] = []
        dirty, installed, family = self._dirty, self.installed, self._family
        blackhole, host, by_gateway = self._blackhole, 8 * family.octets, self._by_gateway
        while dirty and len(found) < limit:
            prefixes = list(islice(dirty, limit - len(found)))
            for prefix in prefixes:
                del dirty[prefix]
            routes = self._routes(map(table.get, prefixes), self._filter.many(prefixes))
            for prefix, route, before in zip(prefixes, routes, map(installed.get, prefixes), strict=True):
                if prefix in by_gateway:
                    route = by_gateway[
                        prefix
                    ]  # to a peer, by way of what `reachableBy` says: before all that is learned
                if route is blackhole and prefix[0] == host:
                    route = None  # a block of one address: the workload's own route, or none
                if route is before or (route is not None and before is not None and route == before):
                    continue
                if route is None:
                    del installed[prefix]
                else:
                    installed[prefix] = route
                found.append(FibChange(family, prefix, route, before))
        if not dirty:
            dirty.clear()  # empty, it would keep the room that it had for all of them
        return found

    def _routes(self, entries: Iterable[Entry | None], verdicts: list[KernelVerdict]) -> Iterator[FibRoute | None]:
        """Neighbours in the queue mostly have the same path."""
        path, judged, route = None, None, None  # of the one before: a hash of a verdict and `usable` are slow
        several: dict[tuple[tuple[Path, ...], KernelVerdict], FibRoute | None] = {}
        for entry, verdict in zip(entries, verdicts, strict=True):
            if isinstance(entry, list):
                competing = (tuple(entry), verdict)
                if competing not in several:
                    several[competing] = self._make(decide(entry), verdict)
                yield several[competing]
            elif entry is None:
                yield None
            else:
                if entry is not path or verdict is not judged:
                    path, judged, routes = entry, verdict, self._single.setdefault(entry, {})
                    if verdict not in routes:
                        routes[verdict] = self._make([entry], verdict)
                    route = routes[verdict] if entry.usable else None
                yield route

    def _make(self, chosen: list[Path], verdict: KernelVerdict) -> FibRoute | None:
        """None: not for the kernel, or there already because it is this node's own. Its blocks are thrown away where no
        workload has a route of its own: else packets to unused addresses would go back and forth between us and a
        router.
        """
        if not chosen or verdict is KernelVerdict.REJECT:
            return None
        if not chosen[0].source.remote:
            return self._blackhole if chosen[0].preference is Preference.STATIC else None
        addresses = sorted(path.next_hop.address for path in next_hops(chosen)[0])
        if not self._encrypted.isdisjoint(addresses):
            return None
        local_pref = chosen[0].attributes.local_pref
        return FibRoute(
            tuple(Hop(address, by_tunnel(verdict, address, self._subnets, self._family)) for address in addresses),
            self._normal if local_pref is None else max(1, MAX_PRIORITY - local_pref),
        )
