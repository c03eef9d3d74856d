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
from dataclasses import replace
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
from services.felix.core.overlay import DEVICES, TUNL, Address, Device, OverlaySettings, RemoteEnd, WantedOverlays

log = logging.getLogger(__name__)

_CHECKSUM_MENDED = (5, 7)  # kernels before this one send wrong checksums through VXLAN when they leave them to others
LINGER_S = 2.0  # a device that is not wanted any more still takes what nodes send that have not heard of it yet


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
        self._told: tuple[WantedOverlays, OverlaySettings, int] | None = None  # and the host's MTU
        self._ends: set[RemoteEnd] = set()  # that the two reconcilers were told of
        self._indexes: dict[str, int] = {}  # of the devices that they were told for
        self._dirty = True
        self._unfinished = False
        self._unwanted_since: dict[str, float] = {}
        self._parents: frozenset[int] = frozenset()  # interfaces below our devices
        self.waiting: dict[str, str] = {}  # overlays that are wanted and cannot be made yet, with what they wait for
        self._said: dict[str, str] = {}
        self._changed: Callable[[], None] = lambda: None

    # --- the two halves of a pass ---

    async def prepare(self, wanted: WantedOverlays, settings: OverlaySettings) -> tuple[bool, dict[str, str]]:
        """(whether a device is new or another now, or has other addresses, object → reason for what could not be made).
        Removes nothing but addresses.
        """
        try:
            told = wanted, settings, self._carriers.underlay_mtu_bytes() if wanted.devices else 0
            if self._told != told:
                self._told, self._dirty = told, True
            if not self._dirty:
                return False, {}
            self._dirty, self._unfinished = False, True
            return await self._prepare(wanted, settings)
        except (OSError, ValueError) as error:
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
        for name in wanted.missing.keys() & self._have.keys():  # its address was taken back, and may be another's soon
            self._want[name] = replace(self._have[name], addresses=frozenset())
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
        except (OSError, ValueError) as error:
            failed = {"overlays": str(error)}
        if failed:
            self.resync()
        return failed

    async def _finish(self, wanted: WantedOverlays) -> dict[str, str]:
        failed: dict[str, str] = {}
        # One that is wanted and cannot be made as it should be stays: IP in IP needs no address to carry packets.
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
                name, kind, mtu_bytes, frozenset((address,)), device.mac, tx_checksum=not broken
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
        """New ends are made known first, and those that went are forgotten when `removing`. Costs as much as there is
        to change. Only devices that are wanted are looked at: what others know goes with them.
        """
        gone = self._ends - wanted.ends
        added = wanted.ends - self._ends
        if indexes != self._indexes:
            self._indexes = dict(indexes)
            devices = frozenset(index for name, index in indexes.items() if name != TUNL)
            self._fdb.devices = self._neighbours.devices = devices
            entries = [self._entry(end) for end in self._ends]
            neighbours = [self._neighbour(end) for end in self._ends]
            self._entries.desired = {one: one for one in entries if one is not None}
            self._known.desired = {neighbour_key(one): one for one in neighbours if one is not None}
            self._entries.resync()
            self._known.resync()
        hosts = {(end.device, end.mac): end.host for end in wanted.ends} if gone else {}
        taken = {(end.device, end.address) for end in wanted.ends} if gone else set()
        for end in gone:
            entry, neighbour = self._entry(end), self._neighbour(end)
            host = hosts.get((end.device, end.mac))
            if entry is not None and host != end.host and (removing or host is not None):
                self._entries.drop(entry)
            if neighbour is not None and removing and (end.device, end.address) not in taken:
                self._known.drop(neighbour_key(neighbour))
        for end in added:
            entry, neighbour = self._entry(end), self._neighbour(end)
            if entry is not None and neighbour is not None:
                self._entries.put(entry, entry)
                self._known.put(neighbour_key(neighbour), neighbour)
        self._ends |= added
        if removing:
            self._ends -= gone
        failed: dict[str, str] = {}
        for entry, error in (await self._entries.step()).items():
            failed[f"forwarding entry {entry.mac}"] = str(error)
        for (_, address), error in (await self._known.step()).items():
            failed[f"neighbour {address}"] = str(error)
        return failed

    def _entry(self, end: RemoteEnd) -> FdbEntry | None:
        """None while the device is not there."""
        index = self._indexes.get(end.device)
        return None if index is None else FdbEntry(index, end.mac, end.host)

    def _neighbour(self, end: RemoteEnd) -> Neighbour | None:
        index = self._indexes.get(end.device)
        return None if index is None else Neighbour(end.address, index, end.mac)

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
