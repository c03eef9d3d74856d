"""What the kernel is to have: from best paths to routes, and the difference to what was handed out before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple
from weakref import WeakKeyDictionary

from services.bgp.core.filters import MAX_PRIORITY
from services.bgp.core.kernel import KernelVerdict, by_tunnel, kernel_filter
from services.bgp.core.paths import Family, Nlri
from services.bgp.core.rib.decision import decide, next_hops
from services.bgp.core.rib.path import Path, Preference
from services.bgp.core.rib.table import Entry, Table, paths_of
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


@dataclass(frozen=True, slots=True)
class FibChange:
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
        self.configure(settings)

    def configure(self, settings: SpeakerSettings) -> None:
        self._judge = kernel_filter(settings, self._family)
        self._subnets = settings.subnets
        self._encrypted = frozenset(address.packed for address in settings.encrypted)
        self._normal = settings.normal_priority[self._family]
        self._blackhole = FibRoute((), self._normal)
        self._single: WeakKeyDictionary[Path, dict[KernelVerdict, FibRoute | None]] = WeakKeyDictionary()

    def mark(self, prefixes: Iterable[Nlri]) -> None:
        self._dirty.update(dict.fromkeys(prefixes))

    def waiting(self) -> int:
        return len(self._dirty)

    def take(self, table: Table, limit: int) -> list[FibChange]:
        """At most `limit` changes, oldest first."""
        found: list[FibChange] = []
        dirty, installed, family = self._dirty, self.installed, self._family
        while dirty and len(found) < limit:
            for prefix in list(islice(dirty, limit - len(found))):
                del dirty[prefix]
                route = self.route(prefix, table.get(prefix))
                before = installed.get(prefix)
                if route is before or route == before:
                    continue
                if route is None:
                    del installed[prefix]
                else:
                    installed[prefix] = route
                found.append(FibChange(family, prefix, route, before))
        return found

    def route(self, prefix: Nlri, entry: Entry | None) -> FibRoute | None:
        if entry is None:
            return None
        chosen = [entry] if isinstance(entry, Path) and entry.usable else decide(paths_of(entry))
        if not chosen or not chosen[0].source.remote:
            return self._own(prefix, chosen[0])
        verdict = self._judge(prefix)
        if verdict is KernelVerdict.REJECT:
            return None
        if len(chosen) > 1:
            return self._make(next_hops(chosen)[0], verdict)
        known = self._single.setdefault(chosen[0], {})
        if verdict not in known:
            known[verdict] = self._make(chosen, verdict)
        return known[verdict]

    def _own(self, prefix: Nlri, path: Path) -> FibRoute | None:
        """What this node originates. Its blocks are thrown away where no workload has a route of its own: else packets
        to unused addresses would go back and forth between us and a router. Everything else is in the kernel already.
        """
        if path.preference is not Preference.STATIC or prefix[0] == 8 * self._family.octets:
            return None
        return None if self._judge(prefix) is KernelVerdict.REJECT else self._blackhole

    def _make(self, paths: list[Path], verdict: KernelVerdict) -> FibRoute | None:
        addresses = sorted(path.next_hop.address for path in paths)
        if not self._encrypted.isdisjoint(addresses):
            return None
        local_pref = paths[0].attributes.local_pref
        return FibRoute(
            tuple(Hop(address, by_tunnel(verdict, address, self._subnets, self._family)) for address in addresses),
            self._normal if local_pref is None else MAX_PRIORITY - local_pref,
        )
