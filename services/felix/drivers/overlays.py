"""The overlays of this node in the kernel: tunnel devices, and what VXLAN devices know of other nodes.

A pass has two halves with the routes between them, so that a change of encapsulation loses nothing: `prepare` makes
what is new or different, then the routes are replaced one by one in place, then `finish` removes what nothing leads to
any more. What others do to our devices and entries is seen by events and put right; everything is compared again on a
period (docs/design/overlays.md).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Mapping
from ipaddress import ip_interface
from typing import Protocol

from libs.netlink.addresses import Address as InterfaceAddress
from libs.netlink.fdb import FdbEntry
from libs.netlink.links import Link
from libs.netlink.monitor import ADDRESSES, LINKS, NEIGHBOURS, Changed, Event, Monitor
from libs.netlink.neighbours import Neighbour
from libs.netlink.tunnel_drivers import (
    FdbDriver,
    NeighbourDriver,
    NeighbourKey,
    TunnelDriver,
    Worker,
    neighbour_key,
)
from libs.netlink.tunnels import Ipip, TunnelDevice, Vxlan
from libs.reconcile import Driver, Reconciler, diff
from services.felix.core.mtu import device_mtu_bytes
from services.felix.core.overlay import DEVICES, TUNL, Address, Device, OverlaySettings, WantedOverlays

log = logging.getLogger(__name__)

_CHECKSUM_MENDED = (5, 7)  # kernels before this one send wrong checksums through VXLAN when they leave them to others
LINGER_S = 2.0  # a device that is not wanted any more still takes what nodes send that have not heard of it yet
MIN_MTU_BYTES = 1280  # IPv6's least; below it nothing of a pod's works


class Carriers(Protocol):
    """What the driver of interfaces knows."""

    def index_of(self, address: Address) -> int | None:
        """The interface that has it."""
        ...

    def underlay_mtu_bytes(self) -> int: ...


class Tunnels(Driver[str, TunnelDevice], Protocol):
    indexes: dict[str, int]


class Entries(Driver[FdbEntry, FdbEntry], Protocol):
    devices: frozenset[int]


class Neighbours(Driver[NeighbourKey, Neighbour], Protocol):
    devices: frozenset[int]


class OverlayKeeper:
    """`changed` is set by whoever listens; `step` order: prepare, routes, finish."""

    def __init__(
        self, carriers: Carriers, drivers: tuple[Tunnels, Entries, Neighbours] | None = None, *, release: str = ""
    ) -> None:
        """drivers: of a pretend kernel. release: the kernel's version, as uname tells it."""
        self._carriers = carriers
        self._worker = None if drivers is not None else Worker()
        if drivers is None:
            assert self._worker is not None
            drivers = TunnelDriver(self._worker, DEVICES), FdbDriver(self._worker), NeighbourDriver(self._worker)
        self._tunnels, self._fdb, self._neighbours = drivers
        self._entries: Reconciler[FdbEntry, FdbEntry] = Reconciler(self._fdb)
        self._known: Reconciler[NeighbourKey, Neighbour] = Reconciler(self._neighbours)
        self._entries.in_sync = self._known.in_sync = True  # asked only after the dataplane is
        self._checksum_broken = checksum_broken(release or os.uname().release)
        self._have: dict[str, TunnelDevice] = {}
        self._stale = True  # read the kernel; also set by events while a pass is under way
        self._want: dict[str, TunnelDevice] = {}
        self._told: tuple[WantedOverlays, OverlaySettings] | None = None
        self._dirty = True
        self._unfinished = False
        self._unwanted_since: dict[str, float] = {}
        self._parents: frozenset[int] = frozenset()  # interfaces below our devices
        self.waiting: dict[str, str] = {}  # overlays that are wanted and cannot be made yet, with what they wait for
        self._said: dict[str, str] = {}
        self._changed: Callable[[], None] = lambda: None

    # --- the two halves of a pass ---

    async def prepare(self, wanted: WantedOverlays, settings: OverlaySettings) -> tuple[bool, dict[str, str]]:
        """(whether a device is new or another now, object → reason for what could not be made). Removes nothing."""
        if self._told != (wanted, settings):
            self._told, self._dirty = (wanted, settings), True
        if not self._dirty:
            return False, {}
        self._dirty, self._unfinished = False, True
        try:
            return await self._prepare(wanted, settings)
        except OSError as error:
            self.resync()
            return False, {"overlays": str(error)}
        except BaseException:
            self.resync()
            raise

    async def _prepare(self, wanted: WantedOverlays, settings: OverlaySettings) -> tuple[bool, dict[str, str]]:
        self._want, failed = self._devices(wanted, settings)
        self._parents = frozenset(one.kind.parent for one in self._want.values() if isinstance(one.kind, Vxlan))
        if self._stale:
            self._stale = False
            self._have = await self._tunnels.read()
            self._entries.resync()
            self._known.resync()
        before = dict(self._tunnels.indexes)
        todo = diff(self._want, self._have)
        todo.drop.clear()
        refused = await self._tunnels.apply(todo) if todo else {}
        failed |= {f"overlay {name}": str(error) for name, error in refused.items()}
        self._have |= {name: device for name, device in todo.put.items() if name not in refused}
        indexes = {name: index for name, index in self._tunnels.indexes.items() if name in self._want}
        if todo.put or before != self._tunnels.indexes:
            log.info("tunnel devices", extra={"put": sorted(todo.put.keys() - refused.keys())})
        failed |= await self._write_ends(wanted, indexes, removing=False)
        if failed:
            self.resync()
        self._say(wanted, failed)
        return bool(todo.put), failed

    async def finish(self, wanted: WantedOverlays) -> dict[str, str]:
        """Remove what is not wanted any more; object → reason for what could not be."""
        if not self._unfinished:
            return {}
        self._unfinished = False
        try:
            failed = await self._finish(wanted)
        except OSError as error:
            failed = {"overlays": str(error)}
        if failed:
            self.resync()
        return failed

    async def _finish(self, wanted: WantedOverlays) -> dict[str, str]:
        failed: dict[str, str] = {}
        # One that is wanted and cannot be made as it should be stays: it may still carry what it did before.
        unwanted = self._have.keys() - wanted.enabled
        now = asyncio.get_running_loop().time()
        self._unwanted_since = {name: self._unwanted_since.get(name, now) for name in unwanted}
        gone = {name for name, since in self._unwanted_since.items() if now - since >= LINGER_S}
        if unwanted - gone:
            asyncio.get_running_loop().call_later(LINGER_S, self._look_again)
        if gone:
            todo = diff({name: one for name, one in self._have.items() if name not in gone}, self._have)
            refused = await self._tunnels.apply(todo)
            failed = {f"overlay {name}": str(error) for name, error in refused.items()}
            self._have = {name: one for name, one in self._have.items() if name not in gone or name in refused}
            log.info("tunnel devices", extra={"removed": sorted(gone - refused.keys())})
        indexes = {name: index for name, index in self._tunnels.indexes.items() if name in self._want}
        return failed | await self._write_ends(wanted, indexes, removing=True)

    def _look_again(self) -> None:
        self._unfinished = True
        self._changed()

    def _devices(
        self, wanted: WantedOverlays, settings: OverlaySettings
    ) -> tuple[dict[str, TunnelDevice], dict[str, str]]:
        devices: dict[str, TunnelDevice] = {}
        failed: dict[str, str] = {}
        for name, device in wanted.devices.items():
            mtu_bytes = device_mtu_bytes(name, self._carriers.underlay_mtu_bytes(), settings)
            kind = self._kind(device)
            if kind is None:
                failed[f"overlay {name}"] = f"no interface of this node has its address {device.carrier}"
                continue
            broken = self._checksum_broken if settings.checksum_broken is None else settings.checksum_broken
            address = ip_interface(device.address)  # of full length: nobody else is on the link
            devices[name] = TunnelDevice(
                name, kind, max(mtu_bytes, MIN_MTU_BYTES), frozenset((address,)), device.mac, tx_checksum=not broken
            )
        return devices, failed

    def _kind(self, device: Device) -> Vxlan | Ipip | None:
        if device.carrier is None:
            return Ipip()
        parent = self._carriers.index_of(device.carrier)
        return None if parent is None else Vxlan(device.vni, device.port, device.carrier, parent)

    async def _write_ends(
        self, wanted: WantedOverlays, indexes: Mapping[str, int], *, removing: bool
    ) -> dict[str, str]:
        """Only devices that are wanted are looked at: what others know goes with them."""
        devices = frozenset(index for name, index in indexes.items() if name != TUNL)
        if devices != self._fdb.devices:
            self._fdb.devices = self._neighbours.devices = devices
            self._entries.resync()
            self._known.resync()
        ends = [(end, indexes[end.device]) for end in wanted.ends if end.device in indexes]
        entries = {(one := FdbEntry(index, end.mac, end.host)): one for end, index in ends}
        known = {neighbour_key(one): one for one in (Neighbour(end.address, index, end.mac) for end, index in ends)}
        if not removing:
            macs = {(entry.index, entry.mac) for entry in entries}
            stay = {
                one: one for one in self._entries.desired if one.index in devices and (one.index, one.mac) not in macs
            }
            entries = stay | entries
            known = {key: one for key, one in self._known.desired.items() if one.index in devices} | known
        failed: dict[str, str] = {}
        if entries != self._entries.desired:
            self._entries.desired = entries
        if known != self._known.desired:
            self._known.desired = known
        for entry, error in (await self._entries.step()).items():
            failed[f"forwarding entry {entry.mac}"] = str(error)
        for (_, address), error in (await self._known.step()).items():
            failed[f"neighbour {address}"] = str(error)
        return failed

    def _say(self, wanted: WantedOverlays, failed: Mapping[str, str]) -> None:
        """Each once for as long as it lasts."""
        self.waiting = {f"overlay {name}": reason for name, reason in wanted.missing.items()}
        found = {**self.waiting, **failed}
        for name, reason in found.items():
            if self._said.get(name) != reason:
                log.warning("overlay not in place", extra={"object": name, "error": reason})
        self._said = found

    # --- what others do ---

    def resync(self) -> None:
        """Compare everything with the kernel in the next pass."""
        self._stale = self._dirty = True

    async def watch(self, changed: Callable[[], None]) -> None:
        """Calls back when one of our devices, its addresses or entries changed other than by us, or the interface below
        it."""
        self._changed = changed
        monitor = Monitor(self._event, (*LINKS, *ADDRESSES, *NEIGHBOURS))
        self.resync()
        monitor.start()
        try:
            await asyncio.Event().wait()
        finally:
            monitor.stop()

    def _event(self, event: Event) -> None:
        if not isinstance(event, Changed) or self._matters(event):
            self.resync()
            self._changed()

    def _matters(self, event: Changed) -> bool:
        indexes = self._tunnels.indexes
        match event.object:
            case Link() as link if link.name in self._want:
                want = self._want[link.name]
                is_as_wanted = (link.mtu_bytes, link.up, link.mac if want.mac else "") == (
                    want.mtu_bytes, want.up, want.mac,
                )  # fmt: skip
                return event.gone or not is_as_wanted
            case Link() as link:
                return link.index in self._parents
            case InterfaceAddress() as address if address.index in indexes.values():
                name = next(name for name, index in indexes.items() if index == address.index)
                known = self._want.get(name)
                if known is None or address.interface.ip.is_link_local:
                    return False
                return (address.interface in known.addresses) == event.gone
            case InterfaceAddress() as address:
                told = () if self._told is None else self._told[0].devices.values()
                return any(device.carrier == address.interface.ip for device in told)
            case FdbEntry() as entry if entry.index in self._fdb.devices and entry.permanent:
                return (entry in self._entries.desired) == event.gone
            case Neighbour() as entry if entry.index in self._neighbours.devices:
                wanted = self._known.desired.get(neighbour_key(entry))
                return wanted is not None and (event.gone or wanted != entry)
            case _:
                return False

    async def close(self) -> None:
        if self._worker is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._worker.close)


def checksum_broken(release: str) -> bool:
    """release: "5.4.0-150-generic". One that cannot be read is taken for a new one."""
    found = re.match(r"([0-9]+)\.([0-9]+)", release)
    return found is not None and (int(found[1]), int(found[2])) < _CHECKSUM_MENDED
