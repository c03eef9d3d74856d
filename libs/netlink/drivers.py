"""Drivers for libs.reconcile: the kernel's routes, and a fake that refuses what the kernel refuses."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from libs.netlink.codec import error_for
from libs.netlink.routes import (
    PROTOCOL_FELIX,
    TABLE_MAIN,
    UNICAST,
    Route,
    RouteKey,
    delete_routes,
    list_routes,
    replace_routes,
    slices,
)
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from libs.reconcile import Diff

R = TypeVar("R")


class RouteDriver:
    """libs.reconcile.Driver[RouteKey, Route] of the routes with one protocol number in one table.

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
        self._protocol, self._table = protocol, table
        self._netlink = NetlinkSocket(NETLINK_ROUTE, netns)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="routes")

    async def _run(self, call: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._worker, call)

    async def read(self) -> dict[RouteKey, Route]:
        routes = await self._run(lambda: list_routes(self._netlink, protocol=self._protocol, table=self._table))
        return {route.key: route for route in routes}

    async def apply(self, todo: Diff[RouteKey, Route]) -> dict[RouteKey, Exception]:
        failed: dict[RouteKey, Exception] = {}
        direct = [route for route in todo.put.values() if not any(hop.gateway for hop in route.hops)]
        by_others = [route for route in todo.put.values() if any(hop.gateway for hop in route.hops)]
        for routes in (*slices(direct), *slices(by_others)):
            foreign = [route for route in routes if route.protocol != self._protocol or route.table != self._table]
            if foreign:
                raise ValueError(f"route {foreign[0].dst} is not of protocol {self._protocol}, table {self._table}")
            failed |= await self._run(lambda routes=routes: replace_routes(self._netlink, routes))  # type: ignore[misc]
        for keys in slices(todo.drop):
            failed |= await self._run(lambda keys=keys: delete_routes(self._netlink, keys, self._protocol))  # type: ignore[misc]
        return failed

    def close(self) -> None:
        self._worker.shutdown(wait=True)
        self._netlink.close()


class FakeRoutes:
    """The same without a kernel. `links` are the interfaces that are up, by index; `on_link` the networks reachable
    on each.
    """

    def __init__(self, *, protocol: int = PROTOCOL_FELIX, table: int = TABLE_MAIN) -> None:
        self._protocol, self._table = protocol, table
        self.links: dict[int, bool] = {}
        self.routes: dict[RouteKey, Route] = {}  # of all protocols
        self.writes_left: int | None = None  # the kernel "dies" after so many writes

    async def read(self) -> dict[RouteKey, Route]:
        return {
            key: route
            for key, route in self.routes.items()
            if (route.protocol, route.table) == (self._protocol, self._table)
        }

    async def apply(self, todo: Diff[RouteKey, Route]) -> dict[RouteKey, Exception]:
        failed: dict[RouteKey, Exception] = {}
        for key, route in todo.put.items():
            if (route.protocol, route.table) != (self._protocol, self._table):
                raise ValueError(f"route {route.dst} is not of protocol {self._protocol}, table {self._table}")
            code = self._refusal(route)
            if code:
                failed[key] = error_for(code, f"route {route.dst}")
            else:
                self._write()
                self.routes[key] = route
        for key in todo.drop:
            held = self.routes.get(key)
            if held is not None and held.protocol == self._protocol:
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
