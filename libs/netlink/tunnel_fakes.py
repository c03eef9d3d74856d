"""A pretend kernel for libs/netlink/tunnel_drivers.py: the same three drivers, refusing what the kernel refuses."""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable
from itertools import count

from libs.netlink.codec import error_for
from libs.netlink.fdb import FdbEntry
from libs.netlink.neighbours import Neighbour
from libs.netlink.tunnel_drivers import NeighbourKey, neighbour_key
from libs.netlink.tunnels import WORDS, Ipip, TunnelDevice, Unsupported, Vxlan
from libs.reconcile import Diff


class FakeTunnelKernel:
    """parents: MTU of the interfaces that can carry tunnels, by index. kinds: that the kernel has modules for."""

    def __init__(self, parents: dict[int, int], kinds: Collection[str] = ("vxlan", "ipip")) -> None:
        self.parents = parents
        self.kinds = set(kinds)
        self.devices: dict[str, TunnelDevice] = {}
        self.indexes: dict[str, int] = {}
        self.made: list[str] = []  # every creation
        self.fdb: set[FdbEntry] = set()
        self.neighbours: dict[NeighbourKey, Neighbour] = {}
        self._next = count(100)

    def put(self, device: TunnelDevice) -> int:
        """Raises OSError."""
        have = self.devices.get(device.name)
        if have is not None and have.kind != device.kind:
            self.drop(device.name)
            have = None
        kind = "vxlan" if isinstance(device.kind, Vxlan) else "ipip" if isinstance(device.kind, Ipip) else ""
        if have is None:
            if kind not in self.kinds:
                module = f"this kernel has no {WORDS[kind]} tunnels (module {kind} is not available)"
                raise Unsupported(errno.EOPNOTSUPP, device.name, module)
            self._check(device)
            self.indexes[device.name] = next(self._next)
            self.made.append(device.name)
        else:
            self._check(device)
        self.devices[device.name] = device
        return self.indexes[device.name]

    def _check(self, device: TunnelDevice) -> None:
        if isinstance(device.kind, Vxlan):
            mtu_bytes = self.parents.get(device.kind.parent)
            if mtu_bytes is None:
                raise error_for(errno.ENODEV, f"link {device.name}")
            version = 4 if device.kind.local is None else device.kind.local.version
            if device.mtu_bytes > mtu_bytes - (50 if version == 4 else 70):
                raise error_for(errno.EINVAL, f"link {device.name}")

    def drop(self, name: str) -> None:
        self.devices.pop(name, None)
        index = self.indexes.pop(name, 0)
        self.fdb = {entry for entry in self.fdb if entry.index != index}
        self.neighbours = {key: entry for key, entry in self.neighbours.items() if entry.index != index}

    def refusal(self, index: int) -> OSError | None:
        return None if index in self.indexes.values() else error_for(errno.ENODEV, f"link {index}")


class FakeTunnels:
    def __init__(self, kernel: FakeTunnelKernel, names: Collection[str]) -> None:
        self.indexes: dict[str, int] = {}
        self._kernel, self._names = kernel, tuple(names)

    async def read(self) -> dict[str, TunnelDevice]:
        have = {name: device for name, device in self._kernel.devices.items() if name in self._names}
        self.indexes = {name: self._kernel.indexes[name] for name in have}
        return have

    async def apply(self, todo: Diff[str, TunnelDevice]) -> dict[str, Exception]:
        failed: dict[str, Exception] = {}
        for name, device in todo.put.items():
            try:
                self.indexes[name] = self._kernel.put(device)
            except OSError as error:
                failed[name] = error
        for name in todo.drop:
            self._kernel.drop(name)
            self.indexes.pop(name, None)
        return failed


class FakeFdb:
    def __init__(self, kernel: FakeTunnelKernel) -> None:
        self.devices: frozenset[int] = frozenset()
        self._kernel = kernel

    async def read(self) -> dict[FdbEntry, FdbEntry]:
        return {entry: entry for entry in self._kernel.fdb if entry.index in self.devices and entry.permanent}

    async def apply(self, todo: Diff[FdbEntry, FdbEntry]) -> dict[FdbEntry, Exception]:
        failed: dict[FdbEntry, Exception] = {}
        for entry in todo.put:
            refusal = self._kernel.refusal(entry.index)
            if refusal is not None:
                failed[entry] = refusal
                continue
            same = [one for one in self._kernel.fdb if (one.index, one.mac) == (entry.index, entry.mac)]
            self._kernel.fdb -= set(same[:1])
            self._kernel.fdb.add(entry)
        self._kernel.fdb -= todo.drop
        return failed


class FakeNeighbours:
    def __init__(self, kernel: FakeTunnelKernel) -> None:
        self.devices: frozenset[int] = frozenset()
        self._kernel = kernel

    async def read(self) -> dict[NeighbourKey, Neighbour]:
        held: Iterable[Neighbour] = self._kernel.neighbours.values()
        return {neighbour_key(entry): entry for entry in held if entry.index in self.devices and entry.permanent}

    async def apply(self, todo: Diff[NeighbourKey, Neighbour]) -> dict[NeighbourKey, Exception]:
        failed: dict[NeighbourKey, Exception] = {}
        for key, entry in todo.put.items():
            refusal = self._kernel.refusal(entry.index)
            if refusal is not None:
                failed[key] = refusal
            else:
                self._kernel.neighbours[key] = entry
        for key in todo.drop:
            self._kernel.neighbours.pop(key, None)
        return failed
