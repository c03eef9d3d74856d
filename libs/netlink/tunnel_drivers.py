"""Drivers for libs.reconcile of what an overlay is made of: tunnel devices, forwarding entries, neighbours."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TypeAlias, TypeVar

from libs.netlink.fdb import FdbEntry, delete_fdb, list_fdb, replace_fdb
from libs.netlink.neighbours import Neighbour, delete_neighbours, list_neighbours, replace_neighbours
from libs.netlink.netns import in_netns
from libs.netlink.routes import slices
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from libs.netlink.tunnels import Ipip, TunnelDevice, drop_tunnel, get_tunnel, put_tunnel
from libs.reconcile import Diff

R = TypeVar("R")


class Worker:
    """A netlink socket and a control socket of one namespace, used in one thread."""

    def __init__(self, netns: int | str | Path | None = None) -> None:
        self.netlink = NetlinkSocket(NETLINK_ROUTE, netns)
        with in_netns(netns):
            self.control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tunnels")

    async def run(self, call: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self.netlink.close()
        self.control.close()


class TunnelDriver:
    """libs.reconcile.Driver[str, TunnelDevice] of the devices with these names. `indexes`: of those that are there."""

    def __init__(self, worker: Worker, names: Collection[str]) -> None:
        self.indexes: dict[str, int] = {}
        self._worker, self._names = worker, tuple(names)

    async def read(self) -> dict[str, TunnelDevice]:
        return await self._worker.run(self._read)

    def _read(self) -> dict[str, TunnelDevice]:
        have: dict[str, TunnelDevice] = {}
        self.indexes = {}
        for name in self._names:
            found = get_tunnel(self._worker.netlink, self._worker.control, name)
            if found is None or _is_idle(found[1]):
                continue
            self.indexes[name], have[name] = found
        return have

    async def apply(self, todo: Diff[str, TunnelDevice]) -> dict[str, Exception]:
        return await self._worker.run(lambda: self._apply(todo))

    def _apply(self, todo: Diff[str, TunnelDevice]) -> dict[str, Exception]:
        failed: dict[str, Exception] = {}
        for name, device in todo.put.items():
            try:
                self.indexes[name] = put_tunnel(self._worker.netlink, self._worker.control, device)
            except OSError as error:
                failed[name] = error
        for name in todo.drop:
            try:
                drop_tunnel(self._worker.netlink, self._worker.control, name)
            except OSError as error:
                failed[name] = error
            else:
                self.indexes.pop(name, None)
        return failed


def _is_idle(device: TunnelDevice) -> bool:
    """The tunl0 that the kernel's module makes in every namespace."""
    return isinstance(device.kind, Ipip) and not device.up and not device.addresses


class FdbDriver:
    """libs.reconcile.Driver[FdbEntry, FdbEntry] of the permanent entries of `devices`, given by index."""

    def __init__(self, worker: Worker) -> None:
        self.devices: frozenset[int] = frozenset()
        self._worker = worker

    async def read(self) -> dict[FdbEntry, FdbEntry]:
        return await self._worker.run(self._read)

    def _read(self) -> dict[FdbEntry, FdbEntry]:
        entries = [entry for index in self.devices for entry in list_fdb(self._worker.netlink, index)]
        return {entry: entry for entry in entries if entry.permanent}

    async def apply(self, todo: Diff[FdbEntry, FdbEntry]) -> dict[FdbEntry, Exception]:
        failed: dict[FdbEntry, Exception] = {}
        netlink = self._worker.netlink
        for some in slices(todo.put):  # takes the place of the MAC's other remote, if it has one
            failed |= await self._worker.run(lambda some=some: replace_fdb(netlink, some))  # type: ignore[misc]
        for some in slices(todo.drop):
            failed |= await self._worker.run(lambda some=some: delete_fdb(netlink, some))  # type: ignore[misc]
        return failed


NeighbourKey: TypeAlias = tuple[int, IPv4Address | IPv6Address]  # index of the interface, address


class NeighbourDriver:
    """libs.reconcile.Driver[NeighbourKey, Neighbour] of the permanent entries of `devices`, given by index."""

    def __init__(self, worker: Worker) -> None:
        self.devices: frozenset[int] = frozenset()
        self._worker = worker

    async def read(self) -> dict[NeighbourKey, Neighbour]:
        return await self._worker.run(self._read)

    def _read(self) -> dict[NeighbourKey, Neighbour]:
        entries = [entry for index in self.devices for entry in list_neighbours(self._worker.netlink, index)]
        return {neighbour_key(entry): entry for entry in entries if entry.permanent}

    async def apply(self, todo: Diff[NeighbourKey, Neighbour]) -> dict[NeighbourKey, Exception]:
        failed: dict[NeighbourKey, Exception] = {}
        netlink = self._worker.netlink
        for some in slices(todo.put.values()):
            refused = await self._worker.run(lambda some=some: replace_neighbours(netlink, some))  # type: ignore[misc]
            failed |= {neighbour_key(entry): error for entry, error in refused.items()}
        for some in slices([Neighbour(address, index) for index, address in todo.drop]):
            refused = await self._worker.run(lambda some=some: delete_neighbours(netlink, some))  # type: ignore[misc]
            failed |= {neighbour_key(entry): error for entry, error in refused.items()}
        return failed


def neighbour_key(entry: Neighbour) -> NeighbourKey:
    return entry.index, entry.address
