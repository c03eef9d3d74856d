"""The kernel beside the tables: routes out, next hops and local workloads in.

Felix puts a local workload's route into the kernel when its policy is there, and takes it out when the workload goes.
So what the kernel says is what is announced of workloads: never one that is not ready, and no second opinion.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from libs.netlink.links import Link
from libs.netlink.monitor import ADDRESSES, LINKS, ROUTES, Event, Lost, Monitor
from libs.netlink.routes import KERNEL_OR_BGP, PROTOCOL_BGP, TABLE_MAIN, UNICAST, Route, list_routes
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from libs.runtime.garbage import give_back
from services.bgp.core.paths import Attributes, Family, Nlri, nlri
from services.bgp.core.rib.fib import FibChange
from services.bgp.core.rib.rib import Rib
from services.bgp.core.settings import Originated, SpeakerSettings
from services.bgp.shell.fib import KernelFib
from services.bgp.shell.gateways import Gateways
from services.bgp.shell.nexthops import NextHops

log = logging.getLogger(__name__)

SLICE = 2000  # routes in one request to the kernel
SETTLE_S = 0.05  # changes in the kernel come in bursts
RESYNC_S = 90.0  # as felix's route refresh
RETRY_S = 10.0
AFTER_FAILURE_S = 1.0
SWEEP_AFTER_S = 5.0  # from the moment when all routes should be known again to the removal of what nobody told
BURST = 20_000  # routes in one go after which memory is given back


class Owner(Protocol):
    def wake(self) -> None: ...


class Kernel:
    """prefixes: how the names of workload interfaces begin."""

    def __init__(
        self, *, interface_prefixes: tuple[str, ...] = ("cali",), netns: int | str | Path | None = None
    ) -> None:
        self.next_hops = NextHops(netns)
        self.fib = KernelFib(self.next_hops.kernel_hop, netns)
        self.failures: dict[str, str] = {}
        self.on_routes: list[Callable[[list[FibChange]], None]] = []  # slices that were written
        self._prefixes = interface_prefixes
        self._netlink = NetlinkSocket(NETLINK_ROUTE, netns)
        self._monitor = Monitor(self._event, (*ROUTES, *LINKS, *ADDRESSES), netns, ignore_port=self.fib.port)
        self._rib: Rib | None = None
        self._owner: Owner | None = None
        self._workloads: dict[tuple[Family, Nlri], Originated] = {}
        self._work = asyncio.Event()
        self._settle: asyncio.TimerHandle | None = None
        self._look = False  # at next hops
        self._resync = False  # at everything of ours
        self._unplaced: dict[str, str] = {}
        self._relist = False  # at workloads
        self._gateways = Gateways(netns)
        self._swept: set[Family] = set()
        self._sweep_at: dict[Family, float] = {}
        self._ignored: tuple[str, ...] = ()

    async def start(self, owner: Owner) -> bool:
        """True when routes of an earlier life are there."""
        self._owner = owner
        self._monitor.start()
        await self.fib.adopt()
        self.next_hops.links_changed()
        return any(self.fib.held.values())

    def attach(self, rib: Rib) -> None:
        self._rib = rib
        self._workloads.clear()  # what came while there were no tables yet is listed again
        self.configure(rib.settings)
        self._list_workloads()

    def configure(self, settings: SpeakerSettings) -> None:
        self.next_hops.by_gateway = frozenset(
            peer.address.packed for peer in settings.peers if peer.gateway is not None
        )
        if settings.ignored_interfaces != self._ignored:
            self._ignored = settings.ignored_interfaces
            self._relist = True
        self._later()  # for the addresses that workloads peer with

    def wake(self) -> None:
        self._work.set()

    async def write_forever(self) -> None:
        """The only task that writes. What fails unexpectedly is reported, and everything is compared anew."""
        while True:
            try:
                await self._write_forever()
            except Exception as error:
                log.exception("kernel routes not written")
                self.failures = {**self.failures, "kernel routes": f"not written: {error}"}
                self._resync = True
                await asyncio.sleep(AFTER_FAILURE_S)
                self._work.set()

    async def _write_forever(self) -> None:
        """Slices, so that the loop and the tables' other work go on in between."""
        clock = asyncio.get_running_loop().time
        resync_at, retry_at = clock() + RESYNC_S, clock() + RETRY_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(resync_at, retry_at if self.fib.blocked else resync_at)):
                    await self._work.wait()
            self._work.clear()
            assert self._rib is not None
            if clock() >= retry_at:
                retry_at = clock() + RETRY_S
                await self._again([*self.fib.blocked])
            if self._resync or clock() >= resync_at:
                resync_at = clock() + RESYNC_S
                self._resync = False
                await self._compare()
            taken = await self._write_waiting()
            for family in Family:
                if family not in self._swept and self._may_sweep(family):
                    self._swept.add(family)
                    gone = await self.fib.sweep(family, self._rib.fib(family))
                    if gone:
                        log.info("stale routes removed", extra={"family": family.name, "count": gone})
            self._report()
            if taken > BURST:
                give_back()

    async def _write_waiting(self) -> int:
        """What waits in the tables; how many. A slice is taken out while the kernel writes the one before."""
        assert self._rib is not None
        taken = 0
        writing: asyncio.Task[None] | None = None
        before: list[FibChange] = []
        try:
            while True:
                changes = self._rib.take_fib(SLICE)
                if writing is not None:
                    await writing
                    self._slice_written(before)
                if not changes:
                    return taken
                taken += len(changes)
                under_way = asyncio.Event()
                writing, before = asyncio.create_task(self.fib.apply(changes, under_way)), changes
                await under_way.wait()
        finally:
            if writing is not None and not writing.done():
                writing.cancel()

    def _slice_written(self, changes: list[FibChange]) -> None:
        if self.next_hops.by_gateway and any(one.prefix[1:] in self.next_hops.by_gateway for one in changes):
            self._look = True
            self._later()
        for tell in self.on_routes:
            tell(changes)

    async def stop(self) -> None:
        if self._settle is not None:
            self._settle.cancel()
        self._monitor.stop()
        self._netlink.close()
        self._gateways.close()
        self.next_hops.close()
        self.fib.close()

    def _may_sweep(self, family: Family) -> bool:
        """Peers without graceful restart send no End-of-RIB: they get a moment to tell what they have."""
        assert self._rib is not None
        if not self._rib.sweep_allowed(family):
            return False
        now = time.monotonic()
        if family not in self._sweep_at:
            self._sweep_at[family] = now + SWEEP_AFTER_S
            asyncio.get_running_loop().call_later(SWEEP_AFTER_S, self._work.set)
        return now >= self._sweep_at[family] and not self._rib.fib_waiting()

    # --- what the kernel tells ---

    def _event(self, event: Event) -> None:
        if isinstance(event, Lost):
            self._look = self._resync = self._relist = True
        elif isinstance(event.object, Link):
            self.next_hops.link_changed(event.object.index, "" if event.gone else event.object.name)
            if event.gone or not event.object.up:  # its routes are gone, those of IPv4 without a word
                for place in [p for p, one in self._workloads.items() if one.interface == event.object.name]:
                    self._drop_workload(place)
            self._look = True
            # Links of workloads carry none of ours, but where one is a peer: then its next hop moves.
            self._resync |= not event.object.name.startswith(self._prefixes)
        elif isinstance(event.object, Route):
            self._route_changed(event.object, event.gone)
        else:
            self._look = True
        self._later()

    def _route_changed(self, route: Route, gone: bool) -> None:
        if route.table != TABLE_MAIN:
            return
        if route.protocol == PROTOCOL_BGP:
            self._resync |= gone  # somebody took a route of ours away
            return
        family = _family(route)
        place = (family, nlri(route.dst))
        workload, old = self._workload(route), self._workloads.get(place)
        if workload is not None and not gone:
            if workload != old:
                self._put_workload(place, workload)
        elif old is not None and old.priority == (route.metric or None):  # gone, or another way in its place
            self._drop_workload(place)
            self._relist = True  # the same destination with another metric may be left
        if workload is None:
            self._look = True
        if place in self.fib.blocked or place[1] in self.fib.held[family]:
            self._resync = True  # in the way of ours, or not any more

    def _workload(self, route: Route) -> Originated | None:
        """What is announced of a kernel route: that of a workload on this node, whatever protocol felix gives it
        (`deviceRouteProtocol`).
        """
        if route.protocol in KERNEL_OR_BGP or route.type != UNICAST or len(route.hops) != 1:
            return None
        name = self.next_hops.names.get(route.hops[0].oif, "")
        if not name.startswith(self._prefixes) or name in self._ignored:
            return None
        return Originated(_family(route), nlri(route.dst), Attributes(), priority=route.metric or None, interface=name)

    def _put_workload(self, place: tuple[Family, Nlri], workload: Originated) -> None:
        self._workloads[place] = workload
        if self._rib is not None and self._owner is not None:
            self._rib.originate([workload])
            self._owner.wake()

    def _drop_workload(self, place: tuple[Family, Nlri]) -> None:
        if self._workloads.pop(place, None) is not None and self._rib is not None and self._owner is not None:
            self._rib.withdraw_originated([place])
            self._owner.wake()

    def _list_workloads(self) -> None:
        self.next_hops.links_changed()
        found: dict[tuple[Family, Nlri], Originated] = {}
        for route in list_routes(self._netlink, without=KERNEL_OR_BGP):
            if (workload := self._workload(route)) is not None:
                found[workload.family, workload.prefix] = workload
        for place in self._workloads.keys() - found.keys():
            self._drop_workload(place)
        for place, workload in found.items():
            if self._workloads.get(place) != workload:
                self._put_workload(place, workload)

    def _later(self) -> None:
        if self._settle is None:
            self._settle = asyncio.get_running_loop().call_later(SETTLE_S, self._settled)

    def _settled(self) -> None:
        self._settle = None
        try:
            self._take_up()
        except OSError as error:  # a listing that was disturbed once too often
            log.warning("kernel not read, again soon", extra={"error": str(error)})
            self._look = self._relist = True
            self._settle = asyncio.get_running_loop().call_later(AFTER_FAILURE_S, self._settled)
        self._work.set()

    def _take_up(self) -> None:
        self._place_gateways()
        if self._relist:
            self._relist = False
            self._list_workloads()
        if self._look and self._rib is not None and self._owner is not None:
            self._look = False
            states, moved = self.next_hops.look_again(self._rib.next_hops())
            if moved or self.next_hops.tunnel_moved:
                self.next_hops.tunnel_moved = False
                self.fib.hops_changed()
                self._resync = True
            if states:
                self._rib.next_hops_changed(states)
                self._owner.wake()

    def _place_gateways(self) -> None:
        if self._rib is None:
            return
        workloads = {index: name for index, name in self.next_hops.names.items() if name.startswith(self._prefixes)}
        self._unplaced = self._gateways.step(self._rib.settings, workloads)

    # --- ours ---

    async def _compare(self) -> None:
        """Read what the kernel has of ours, and put right what differs from what was handed out."""
        assert self._rib is not None
        await self.fib.adopt()
        for family in Family:
            await self._again([(family, prefix) for prefix in self._rib.fib(family)])
            if family in self._swept:
                await self.fib.sweep(family, self._rib.fib(family))

    async def _again(self, places: list[tuple[Family, Nlri]]) -> None:
        assert self._rib is not None
        for start in range(0, len(places), SLICE):
            changes = [
                FibChange(family, prefix, self._rib.fib(family).get(prefix), None)
                for family, prefix in places[start : start + SLICE]
            ]
            await self.fib.apply(changes)
            await asyncio.sleep(0)  # also when there was nothing to write

    def _report(self) -> None:
        blocked = self.fib.blocked
        routes = {"kernel routes": f"{len(blocked)} not installed"} if blocked else {}
        self.failures = {**routes, **self._unplaced}


def _family(route: Route) -> Family:
    return Family.IPV4 if route.dst.version == 4 else Family.IPV6
