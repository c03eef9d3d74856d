"""Drivers for libs.reconcile: the kernel's routes, and a fake that refuses what the kernel refuses."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from libs.netlink.codec import error_for
from libs.netlink.routes import (
    KERNEL_OR_BGP,
    PROTOCOL_FELIX,
    TABLE_MAIN,
    UNICAST,
    IPNetwork,
    Route,
    RouteKey,
    delete_places,
    list_routes,
    replace_routes,
    slices,
)
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from libs.reconcile import Diff

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Ours:
    """Which routes of a table are ours: those of `protocol`, wherever they lead. And on our interfaces, `links` (by
    index), those of the protocol `device_protocol`, those that lead to what is wanted there (`places`), and with `all`
    whatever neither the kernel nor BGP put there.
    """

    protocol: int = PROTOCOL_FELIX
    device_protocol: int = PROTOCOL_FELIX
    links: frozenset[int] = frozenset()
    places: frozenset[tuple[IPNetwork, int]] = frozenset()
    all: bool = False

    def has(self, route: Route) -> bool:
        if route.protocol == self.protocol:
            return True
        # What has several next hops leads elsewhere, too.
        if route.type != UNICAST or len(route.hops) != 1 or route.hops[0].oif not in self.links:
            return False
        if route.protocol in KERNEL_OR_BGP:
            return False
        return self.all or route.protocol == self.device_protocol or (route.dst, route.hops[0].oif) in self.places


class RouteDriver:
    """libs.reconcile.Driver[RouteKey, Route] of those routes of one table that are ours, which may be changed at any
    time before everything is read again.

    New and changed routes go in before unwanted ones go out, those that are directly on a link before those by way of
    another host: IPv6 refuses a gateway to which it knows a way on another link. In slices, so that the event loop and
    other users of the kernel's lock get their turn. Calls to the kernel run in a worker thread.
    """

    def __init__(
        self,
        *,
        protocol: int = PROTOCOL_FELIX,
        table: int = TABLE_MAIN,
        netns: int | str | Path | None = None,
    ) -> None:
        self.ours = Ours(protocol, protocol)
        self._table = table
        self._others: dict[RouteKey, tuple[int, int]] = {}  # of another protocol than `ours.protocol`: that, interface
        self._netlink = NetlinkSocket(NETLINK_ROUTE, netns)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="routes")

    async def _run(self, call: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._worker, call)

    async def read(self) -> dict[RouteKey, Route]:
        routes = await self._run(self._read)
        self._others.clear()
        for route in routes:
            self._note(route)
        return {route.key: route for route in routes}

    def _read(self) -> list[Route]:
        """Where no interface is ours, the kernel sorts out the others, of which there may be very many."""
        ours = self.ours
        if not ours.links:
            return list_routes(self._netlink, protocol=ours.protocol, table=self._table)
        without = KERNEL_OR_BGP - {ours.protocol}
        return [one for one in list_routes(self._netlink, without=without, table=self._table) if ours.has(one)]

    def _note(self, route: Route) -> None:
        if route.protocol == self.ours.protocol:
            self._others.pop(route.key, None)
        else:
            self._others[route.key] = route.protocol, route.hops[0].oif

    async def apply(self, todo: Diff[RouteKey, Route]) -> dict[RouteKey, Exception]:
        failed: dict[RouteKey, Exception] = {}
        direct = [route for route in todo.put.values() if not any(hop.gateway for hop in route.hops)]
        by_others = [route for route in todo.put.values() if any(hop.gateway for hop in route.hops)]
        for routes in (*slices(direct), *slices(by_others)):
            for route in routes:
                _check(route, self.ours, self._table)
                self._note(route)
            failed |= await self._run(lambda routes=routes: replace_routes(self._netlink, routes))  # type: ignore[misc]
        for keys in slices(todo.drop):
            gone = [(key, *self._others.pop(key, (self.ours.protocol, 0))) for key in keys]
            failed |= await self._run(lambda gone=gone: delete_places(self._netlink, gone))  # type: ignore[misc]
        return failed

    def close(self) -> None:
        self._worker.shutdown(wait=True)
        self._netlink.close()


def _check(route: Route, ours: Ours, table: int) -> None:
    """Raises ValueError for one that must not be ours."""
    if route.table != table or route.protocol not in (ours.protocol, ours.device_protocol):
        raise ValueError(f"route {route.dst} is not of protocol {ours.protocol}, table {table}")


class FakeRoutes:
    """The same without a kernel. `links` are the interfaces that are up, by index; `on_link` the networks reachable
    on each.
    """

    def __init__(self, *, protocol: int = PROTOCOL_FELIX, table: int = TABLE_MAIN) -> None:
        self.ours = Ours(protocol, protocol)
        self._table = table
        self.links: dict[int, bool] = {}
        self.routes: dict[RouteKey, Route] = {}  # of all protocols
        self.writes_left: int | None = None  # the kernel "dies" after so many writes

    async def read(self) -> dict[RouteKey, Route]:
        return {key: one for key, one in self.routes.items() if one.table == self._table and self.ours.has(one)}

    async def apply(self, todo: Diff[RouteKey, Route]) -> dict[RouteKey, Exception]:
        failed: dict[RouteKey, Exception] = {}
        for key, route in todo.put.items():
            _check(route, self.ours, self._table)
            code = self._refusal(route)
            if code:
                failed[key] = error_for(code, f"route {route.dst}")
            else:
                self._write()
                self.routes[key] = route
        for key in todo.drop:
            held = self.routes.get(key)
            if held is not None and self.ours.has(held):
                self._write()
                del self.routes[key]
        return failed

    def _write(self) -> None:
        if self.writes_left is not None:
            if self.writes_left == 0:
                raise OSError(errno.EIO, "the fake kernel is gone")
            self.writes_left -= 1

    def _refusal(self, route: Route) -> int:
        if route.type == UNICAST and not route.hops:
            return errno.ENODEV
        for hop in route.hops:
            if hop.oif not in self.links:
                return errno.ENODEV
            if not self.links[hop.oif]:
                return errno.ENETDOWN
            if hop.gateway is not None and not hop.onlink and not self._on_link(hop.oif, hop.gateway):
                return errno.ENETUNREACH if route.dst.version == 4 else errno.EHOSTUNREACH
        return 0

    def _on_link(self, index: int, gateway: object) -> bool:
        return any(
            gateway in route.dst and any(hop.oif == index and hop.gateway is None for hop in route.hops)
            for route in self.routes.values()
        )
