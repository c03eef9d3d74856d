"""The kernel's share of what was learned: routes with protocol number 81, written in slices from a worker thread.

What is there at the start is adopted: a route that is still right is not touched, one that nobody tells any more goes
only when the caller says so (after End-of-RIB). Where another program has a route of the same destination and metric,
its route stays, ours waits, and that is reported; but what the BIRD of an earlier Calico left becomes ours in place,
wherever it led: nobody is there who would correct it, and peers say now where it goes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from libs.netlink.bird import bird_runs
from libs.netlink.codec import NetlinkError, ObjectExists
from libs.netlink.fib import FibWriter
from libs.netlink.routes import PROTOCOL_BGP, PROTOCOL_BIRD, NextHop, Route, list_routes
from services.bgp.core.paths import Family, Nlri, network, nlri
from services.bgp.core.rib.fib import FibChange, FibRoute, Hop

log = logging.getLogger(__name__)

AF = {Family.IPV4: 2, Family.IPV6: 10}
T = TypeVar("T")


class Written(NamedTuple):
    """A route as the kernel has it from us."""

    metric: int
    hops: tuple[NextHop, ...]


class KernelFib:
    """kernel_hop: the way to a next hop, None while there is none (shell/nexthops.py)."""

    def __init__(self, kernel_hop: Callable[[Hop], NextHop | None], netns: int | str | Path | None = None) -> None:
        self.held: dict[Family, dict[Nlri, Written]] = {family: {} for family in Family}
        self.blocked: dict[tuple[Family, Nlri], str] = {}  # wanted, and not there: why
        self.writes = 0
        self._kernel_hop = kernel_hop
        self._writer = FibWriter(netns=netns)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="fib")
        self._shared: dict[FibRoute, Written | None] = {}

    @property
    def port(self) -> int:
        """Of the socket that writes, for the monitor."""
        return self._writer.port

    async def adopt(self) -> None:
        """Take what the kernel has of ours as written by us. At the start, and when in doubt what it has."""
        found: dict[Family, dict[Nlri, Written]] = {family: {} for family in Family}
        routes = await self._run(lambda: list_routes(self._writer.netlink, protocol=PROTOCOL_BGP))
        twice: dict[tuple[Family, int], list[Nlri]] = {}  # a change of metric that was cut short: the lower one counts
        for route in routes:
            family = Family.IPV4 if route.dst.version == 4 else Family.IPV6
            prefix, here = nlri(route.dst), Written(route.metric, route.hops)
            other = found[family].get(prefix)
            if other is not None:
                here, other = sorted((here, other), key=lambda one: one.metric)
                twice.setdefault((family, other.metric), []).append(prefix)
            found[family][prefix] = here
        self.held = found
        for (family, metric), prefixes in twice.items():
            await self._drop(family, metric, prefixes)

    def hops_changed(self) -> None:
        """Next hops are reached in another way: what was worked out for routes does not hold any more."""
        self._shared.clear()

    async def apply(self, changes: Iterable[FibChange], under_way: asyncio.Event | None = None) -> None:
        """One slice. What the kernel refuses stands in `blocked`. under_way: set once the kernel is at it, so that this
        thread may compute: before, the one that writes would wait for the interpreter's lock.
        """
        try:
            await self._apply(changes, under_way)
        finally:
            if under_way is not None:  # there may have been nothing to write
                under_way.set()

    async def _apply(self, changes: Iterable[FibChange], under_way: asyncio.Event | None) -> None:
        fresh: dict[tuple[Family, int], list[tuple[Nlri, tuple[NextHop, ...]]]] = {}
        again: dict[tuple[Family, int], list[tuple[Nlri, tuple[NextHop, ...]]]] = {}
        gone: dict[tuple[Family, int], list[Nlri]] = {}
        shared, last, last_wants = self._shared, None, None
        for family, prefix, route, _ in changes:
            held = self.held[family]
            has = held.get(prefix)
            if self.blocked:
                self.blocked.pop((family, prefix), None)
            wants: Written | None = None
            if route is not None:
                if route is not last:  # neighbours mostly have the same, and a hash of addresses is slow
                    if route not in shared:
                        shared[route] = self._written(route)
                    last, last_wants = route, shared[route]
                wants = last_wants
                if wants is None:
                    self.blocked[family, prefix] = "no way to its next hop"
            if has == wants:
                continue
            if wants is not None:
                same_place = has is not None and has.metric == wants.metric
                (again if same_place else fresh).setdefault((family, wants.metric), []).append((prefix, wants.hops))
                held[prefix] = wants
            if has is not None and (wants is None or has.metric != wants.metric):
                gone.setdefault((family, has.metric), []).append(prefix)
                if wants is None:
                    del held[prefix]
        for (family, metric), routes in fresh.items():
            await self._put(family, metric, routes, exclusive=True, under_way=under_way)
        for (family, metric), routes in again.items():
            await self._put(family, metric, routes, exclusive=False, under_way=under_way)
        for (family, metric), prefixes in gone.items():
            await self._drop(family, metric, prefixes, under_way)

    async def sweep(self, family: Family, wanted: Mapping[Nlri, FibRoute]) -> int:
        """Take out what is ours and not wanted; how many."""
        left: dict[int, list[Nlri]] = {}
        for prefix, has in list(self.held[family].items()):
            if prefix not in wanted:
                left.setdefault(has.metric, []).append(prefix)
                del self.held[family][prefix]
        for metric, prefixes in left.items():
            await self._drop(family, metric, prefixes)
        return sum(map(len, left.values()))

    async def _put(
        self, family: Family, metric: int, routes: list[tuple[Nlri, tuple[NextHop, ...]]], *, exclusive: bool,
        under_way: asyncio.Event | None,
    ) -> None:  # fmt: skip
        self.writes += len(routes)
        tell = _teller(under_way)
        failed = await self._run(
            lambda: self._writer.put(AF[family], routes, metric, exclusive=exclusive, sending=tell)
        )
        if exclusive and any(isinstance(error, ObjectExists) for error in failed.values()):
            failed = await self._inherit(family, metric, routes, failed)
        for index, error in failed.items():
            prefix = routes[index][0]
            self.held[family].pop(prefix, None)
            self.blocked[family, prefix] = _reason(error)
        if failed and not exclusive:  # ours of before is still there, and leads where nothing should go any more
            await self._drop(family, metric, [routes[index][0] for index in failed])
        if failed:
            log.warning(
                "routes not installed",
                extra={"count": len(failed), "example": self._example(family, routes[next(iter(failed))][0])},
            )

    async def _inherit(
        self, family: Family, metric: int, routes: list[tuple[Nlri, tuple[NextHop, ...]]],
        failed: Mapping[int, NetlinkError],
    ) -> dict[int, NetlinkError]:  # fmt: skip
        """Replace routes that BIRD left; what fails all the same."""
        left = {nlri(route.dst) for route in await self._left_by_bird(family) if route.metric == metric}
        same = [index for index in failed if routes[index][0] in left]
        inherited = [routes[index] for index in same]
        again = await self._run(lambda: self._writer.put(AF[family], inherited, metric, exclusive=False))
        self.writes += len(same)
        rest = {index: error for index, error in failed.items() if index not in set(same)}
        return rest | {same[index]: error for index, error in again.items()}

    async def _left_by_bird(self, family: Family) -> list[Route]:
        """None while one runs: then they are its own."""
        version = 4 if family is Family.IPV4 else 6

        def left() -> list[Route]:
            if bird_runs():
                return []
            return list_routes(self._writer.netlink, protocol=PROTOCOL_BIRD, families=(version,))

        return await self._run(left)

    async def predecessor(self) -> frozenset[Family]:
        """Families in which the BIRD of an earlier Calico left routes: its peers kept theirs to us meanwhile."""
        return frozenset([family for family in Family if await self._left_by_bird(family)])

    async def _drop(
        self, family: Family, metric: int, prefixes: list[Nlri], under_way: asyncio.Event | None = None
    ) -> None:
        self.writes += len(prefixes)
        tell = _teller(under_way)
        failed = await self._run(lambda: self._writer.drop(AF[family], prefixes, metric, tell))
        for index, error in failed.items():
            log.warning(
                "route not removed", extra={"route": str(network(family, prefixes[index])), "error": str(error)}
            )

    def _written(self, route: FibRoute) -> Written | None:
        """Next hops without a way are left out while there is another one; no next hops at all are a blackhole."""
        hops = tuple(dict.fromkeys(hop for one in route.hops if (hop := self._kernel_hop(one)) is not None))
        return Written(route.metric, hops) if hops or not route.hops else None

    def _example(self, family: Family, prefix: Nlri) -> str:
        return f"{network(family, prefix)}: {self.blocked[family, prefix]}"

    async def _run(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, call)

    def close(self) -> None:
        self._worker.shutdown(wait=True)
        self._writer.close()


def _teller(under_way: asyncio.Event | None) -> Callable[[], object] | None:
    """Sets it from the thread that writes."""
    if under_way is None:
        return None
    return partial(asyncio.get_running_loop().call_soon_threadsafe, under_way.set)


def _reason(error: NetlinkError) -> str:
    if isinstance(error, ObjectExists):
        return "another program has a route of this destination and metric"
    return str(error)
