"""Routes of this node, and the interfaces they lead to.

The desired routes come as ranges with an interface name or another node's address (services/felix/core/routing.py);
which kernel interface that is, is found here, from link and address events. A workload's route waits until its
interface is there and up, and goes back to waiting when that goes down or away. Each pod makes a few events, so those
of workloads' interfaces are taken as they are; after others everything is listed again. Routes to workloads carry the
protocol and metric of the settings, all others protocol 80, which is ours alone: what has it and is not wanted goes,
and so does what leads to workloads' interfaces without being wanted (docs/design/ownership.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from ipaddress import ip_address

from libs.netlink.addresses import Address as InterfaceAddress
from libs.netlink.addresses import list_addresses
from libs.netlink.codec import NetlinkError
from libs.netlink.conntrack import delete_connections
from libs.netlink.drivers import Ours, RouteDriver
from libs.netlink.links import Link, list_links
from libs.netlink.monitor import ADDRESSES, LINKS, ROUTES, RULES, Changed, Event, Lost, Monitor
from libs.netlink.routes import (
    PROTOCOL_FELIX,
    TABLE_MAIN,
    Route,
    RouteKey,
    blackhole_route,
    device_route,
    gateway_route,
)
from libs.netlink.rules import RuleInto
from libs.netlink.socket import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket
from libs.netlink.sysctl import SysctlError, write_sysctl
from libs.policy.output import Workload, WorkloadKey
from libs.reconcile import Reconciler
from services.felix.core import ipvs
from services.felix.core.interface_exclude import InterfaceExclude
from services.felix.core.mtu import PATTERN, host_mtu_bytes
from services.felix.core.overlay import Address
from services.felix.core.route_settings import RouteSettings
from services.felix.core.routing import TUNNELLED, Network, Routing, WantedRoute
from services.felix.core.wireguard import TABLE
from services.felix.drivers.workload_sysctls import WorkloadSysctls

log = logging.getLogger(__name__)

STRAY_S = 1.0


class InterfaceDriver:
    def __init__(self, interface_prefixes: tuple[str, ...], *, ipv6: bool = True) -> None:
        self._prefixes = interface_prefixes
        self._ipv6 = ipv6
        self._links: dict[str, Link] = {}
        self._addresses: list[InterfaceAddress] = []
        self._holders: dict[Address, int] = {}  # address -> interface that has it
        self._driver = RouteDriver()
        self._reconciler: Reconciler[RouteKey, Route] = Reconciler(self._driver)
        self._routes: dict[Network, Route] = {}
        self._waiting: dict[Network, str] = {}  # range -> why it cannot be programmed yet
        self._unlisted = True  # links and addresses must be listed again
        self._stale = True  # routes must be resolved and compared with the kernel again
        self._changed: Callable[[], None] = lambda: None
        self._links_changed: Callable[[], None] = lambda: None
        self._encryption_changed: Callable[[], None] = lambda: None
        self._mtu_pattern = PATTERN
        self._settings = RouteSettings()
        self._encryption_table = TABLE
        self._exclude = InterfaceExclude()
        self._excluded: frozenset[int] = frozenset()  # interfaces that these are
        self._sources: dict[int, Address] = {}
        self._owners: dict[Network, str] = {}  # local workloads' addresses -> interface whose connections may be known
        self._sysctls = WorkloadSysctls()
        self._plugged = False  # an interface came up since the last step: routes that wait may go there
        self._unplugged: set[Network] = set()  # the kernel took these routes away
        self._strays: set[RouteKey] = set()  # routes of ours that were not wanted when they came
        self._overwritten: set[RouteKey] = set()  # routes of ours in whose place somebody wrote another
        self._look_again: asyncio.TimerHandle | None = None

    def forward(self) -> None:
        """Switch the host's forwarding on, for both families. A kernel without one of them is no reason to stop."""
        for path in ("net/ipv4/ip_forward", *(("net/ipv6/conf/all/forwarding",) if self._ipv6 else ())):
            try:
                write_sysctl(path, 1)
            except SysctlError as error:
                log.warning("forwarding not enabled", extra={"error": str(error)})

    def configure(
        self,
        mtu_pattern: str,
        spoofing: bool,
        routes: RouteSettings,
        encryption_table: int = TABLE,
        exclude: InterfaceExclude | None = None,
    ) -> None:
        """Settings that may change while running; the caller wakes the dataplane. spoofing: workloads may use sources
        that are not their own, so the kernel's own check of them must go. encryption_table: WireGuard's. exclude:
        interfaces whose addresses and MTU count for nothing; None: those of a default configuration.
        """
        self._exclude = InterfaceExclude() if exclude is None else exclude
        self._encryption_table = encryption_table
        self._settings = routes
        self._sources = {version: ip_address(text) for version, text in routes.sources.items()}
        self._mtu_pattern = mtu_pattern
        self._sysctls.allow_spoofing = spoofing
        self._sysctls.look_again()
        self._list_again()

    def underlay_mtu_bytes(self) -> int:
        """Of the interfaces that the pattern names and that are up: the smallest. As known before when they cannot be
        listed, which `step` reports; raises OSError while nothing is known.
        """
        try:
            self._refresh()
        except OSError:
            if not self._links:
                raise
        counted = [link for link in self._links.values() if link.index not in self._excluded]
        return host_mtu_bytes(counted, self._mtu_pattern)

    def running(self) -> frozenset[str]:
        """Interfaces that can carry packets, as far as events have told."""
        return frozenset(name for name in self._links if self._runs(name))

    def resync(self) -> None:
        """Compare everything with the kernel, settings of interfaces too."""
        self._list_again()
        self._sysctls.look_again()

    def resync_interfaces(self) -> None:
        """Compare interfaces, their addresses and settings with the kernel; routes only if these are others."""
        self._unlisted = True
        self._sysctls.look_again()

    def _list_again(self) -> None:
        self._unlisted = self._stale = True

    def host_addresses(self) -> dict[str, frozenset[str]]:
        """Addresses of each interface that is neither a workload's nor excluded, link-local ones apart. Raises
        OSError.
        """
        self._refresh()
        names = {link.index: name for name, link in self._links.items() if not name.startswith(self._prefixes)}
        found: dict[str, set[str]] = {}
        for address in self._addresses:
            if address.index in names and not address.interface.ip.is_link_local:
                found.setdefault(names[address.index], set()).add(str(address.interface.ip))
        return {name: frozenset(addresses) for name, addresses in found.items()}

    def ipvs(self) -> bool:
        """Whether kube-proxy leads packets to services by IPVS here. Raises OSError."""
        self._refresh()
        return ipvs.LINK in self._links

    async def step(self, routing: Routing, workloads: dict[WorkloadKey, Workload]) -> dict[str, str]:
        """Make the kernel's routes match `routing`; range -> reason for those that the kernel refused."""
        try:
            return await self._step(routing, workloads)
        except OSError as error:  # a listing: everything is compared again, so what `routing` told is not lost
            self._list_again()
            return {"routes": str(error)}

    async def _step(self, routing: Routing, workloads: dict[WorkloadKey, Workload]) -> dict[str, str]:
        self._refresh()
        changed: dict[Network, WantedRoute | None] = routing.flush()
        stale = self._stale
        if stale:
            self._stale = False
            self._reconciler.resync()
            changed = {**dict.fromkeys((*self._routes, *self._waiting, *self._owners)), **routing.wanted}
        again = self._unplugged if not self._plugged else {*self._waiting, *self._unplugged}
        self._plugged, self._unplugged = False, set()
        for network in again:
            if network in routing.wanted:
                changed.setdefault(network, routing.wanted[network])
        if not changed and not stale and not self._sysctls.due and self._reconciler.in_sync:
            return {}
        failures = self._sysctls.repair(workloads.values(), self._links)
        await self._forget_connections(changed, failures)
        for network, wanted in changed.items():
            old = self._routes.pop(network, None)
            if old is not None:
                self._reconciler.drop(old.key)
            self._waiting.pop(network, None)
            own = routing.own_address(network.version)
            route = self._resolve(network, wanted, own) if wanted is not None else None
            if route is not None:
                self._routes[network] = route
                self._reconciler.put(route.key, route)
        if stale or self._driver.ours.device_protocol != self._settings.protocol:  # which may be new since this began
            self._driver.ours = self._ours()
        self._reconciler.in_sync = True
        if not self._settings.sync:
            self._stale = True
            return failures
        failed = await self._reconciler.step()
        if failed:
            self._list_again()  # an interface may have gone meanwhile
        return failures | {f"route {key.dst}": str(error) for key, error in failed.items()}

    async def watch(
        self,
        changed: Callable[[], None],
        links_changed: Callable[[], None] = lambda: None,
        encryption_changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Calls back when interfaces, addresses or our routes changed other than by us; links_changed: when that needs
        no comparison with the kernel, but `running` may tell something else; encryption_changed: when what leads into
        WireGuard's tunnel may have gone.
        """
        self._changed, self._links_changed, self._encryption_changed = changed, links_changed, encryption_changed
        monitor = Monitor(self._event, (*LINKS, *ADDRESSES, *ROUTES, *RULES))
        self.resync()
        monitor.start()
        try:
            await asyncio.Event().wait()
        finally:
            monitor.stop()

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._driver.close)

    # --- inside ---

    async def _forget_connections(
        self, changed: Mapping[Network, WantedRoute | None], failures: dict[str, str]
    ) -> None:
        """Of addresses that left an interface: whoever has them next must not inherit what was allowed before.

        The new policy is in the kernel by now, so the old pod cannot make new ones.
        """
        moved: list[Address] = []
        for network, wanted in changed.items():
            interface = wanted.interface if wanted is not None else ""
            old = self._owners.get(network, "")
            if network.prefixlen == network.max_prefixlen and old != interface:
                if old:
                    moved.append(network.network_address)
                if interface:
                    self._owners[network] = interface
                else:
                    self._owners.pop(network, None)
        if not moved:
            return
        try:
            count = await asyncio.get_running_loop().run_in_executor(None, _delete_connections, moved)
        except (NetlinkError, OSError) as error:
            log.error("connections not forgotten", extra={"addresses": moved, "error": str(error)})
            failures["conntrack"] = str(error)
        else:
            log.debug("connections forgotten", extra={"addresses": moved, "count": count})

    def _event(self, event: Event) -> None:
        if isinstance(event, Lost):
            self._encryption_changed()
        if isinstance(event, Changed):
            match event.object:
                case Link() as link if link.name.startswith(self._prefixes) and not self._is_renamed(link):
                    ran = self._runs(link.name)
                    if self._take(link, gone=event.gone):
                        self._changed()
                    if ran != self._runs(link.name):
                        self._links_changed()
                    return
                case RuleInto() as rule:
                    if rule.table == self._encryption_table:
                        self._encryption_changed()
                    return
                case Route() as route if route.table != TABLE_MAIN:
                    if event.gone and route.table == self._encryption_table and route.protocol == PROTOCOL_FELIX:
                        self._encryption_changed()
                    return
                case Route() as route:
                    wanted = self._reconciler.desired.get(route.key)
                    if wanted is None:
                        if not event.gone and self._driver.ours.has(route):
                            self._strays.add(route.key)
                            self._look_later()
                        return
                    if not event.gone and route != wanted:
                        self._overwritten.add(route.key)
                        self._look_later()
                    if event.gone and route.protocol == wanted.protocol:
                        self._is_lost(route.dst, route.key)
                        self._changed()
                    return
            if not self._matters(event):
                return
        self._list_again()
        self._changed()

    def _runs(self, name: str) -> bool:
        link = self._links.get(name)
        return link is not None and link.carries

    def _is_renamed(self, link: Link) -> bool:
        return link.name not in self._links and any(known.index == link.index for known in self._links.values())

    def _take(self, link: Link, *, gone: bool) -> bool:
        """A workload's interface as it is now. False: nobody has to do anything about it."""
        known = self._links.get(link.name)
        if gone:
            if known is None or known.index != link.index:
                return False
            del self._links[link.name]
        else:
            self._links[link.name] = link
            if known is None or known.index != link.index:
                self._driver.ours = replace(self._driver.ours, links=self._driver.ours.links | {link.index})
        is_up = link.up and not gone
        if known is not None and known.up:
            if is_up and known.index == link.index:
                return known.mtu_bytes != link.mtu_bytes  # which bandwidth limits depend on
            for network, route in self._routes.items():
                if route.hops and route.hops[0].oif == known.index:
                    self._is_lost(network, route.key)
        self._plugged |= is_up
        return bool(self._unplugged or (self._plugged and self._waiting))

    def _is_lost(self, network: Network, key: RouteKey) -> None:
        """The kernel does not tell of all the routes that it takes away with an interface."""
        self._reconciler.lost(key)
        self._unplugged.add(network)

    def _look_later(self) -> None:
        """At a stray, which may be the plugin's just before its endpoint is known; and at what was overwritten, so that
        two who both want the place do not fight at the speed of events.
        """
        if self._look_again is None:
            self._look_again = asyncio.get_running_loop().call_later(STRAY_S, self._look_at_strays)

    def _look_at_strays(self) -> None:
        self._look_again = None
        strays, self._strays = self._strays, set()
        overwritten, self._overwritten = self._overwritten, set()
        desired = self._reconciler.desired.keys()
        for key in overwritten & desired:
            self._is_lost(key.dst, key)
        self._stale |= bool(strays - desired)
        if strays - desired or overwritten & desired:
            self._changed()

    def _matters(self, event: Changed) -> bool:
        match event.object:
            case Link() as link:
                known = self._links.get(link.name)
                if event.gone:
                    return known is not None and known.index == link.index
                return known is None or _standing(known) != _standing(link)
            case InterfaceAddress() as address:
                return _leads_somewhere(address) and address.index not in self._excluded
            case _:
                return False

    def _refresh(self) -> None:
        """List links and addresses, if they may be others. What must be compared is not compared by that, but where
        they are others, routes must be resolved again.
        """
        if not self._unlisted:
            return
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            links = {link.name: link for link in list_links(netlink)}
            addresses = list_addresses(netlink)
        excluded = frozenset(link.index for name, link in links.items() if self._exclude.excludes(name))
        counted = [address for address in addresses if _leads_somewhere(address) and address.index not in excluded]
        standing = {name: _standing(link) for name, link in links.items()}
        if counted != self._addresses or standing != {name: _standing(link) for name, link in self._links.items()}:
            self._stale = True
        self._links, self._addresses, self._excluded = links, counted, excluded
        self._holders = {one.interface.ip: one.index for one in reversed(self._addresses)}
        self._unlisted = False

    def _resolve(self, network: Network, wanted: WantedRoute, own: Address | None) -> Route | None:
        """own: this node's address of that family."""
        if wanted.interface:
            link = self._links.get(wanted.interface)
            if link is None or not link.up:
                self._waiting[network] = f"interface {wanted.interface} is not up"
                return None
            if wanted.kind not in TUNNELLED:
                protocol, metric = self._settings.protocol, self._settings.priorities[network.version]
                route = device_route(network, link.index, protocol=protocol, metric=metric)
                return replace(route, source=self._sources.get(network.version))
            if wanted.via is None:
                return device_route(network, link.index, mtu_bytes=link.mtu_bytes)
            return gateway_route(network, wanted.via, link.index, onlink=True, mtu_bytes=link.mtu_bytes)
        if wanted.via is not None:
            index = self._carrier(wanted.via, own)
            if index is None:
                self._waiting[network] = f"no interface of ours has {own} or is in the subnet of {wanted.via}"
                return None
            route = gateway_route(network, wanted.via, index, onlink=True)
            return replace(route, source=self._sources.get(network.version))
        return blackhole_route(network)

    def _ours(self) -> Ours:
        """What is read from now on. With its own protocol number each route of ours can be told from others'; those
        with a former one lead to a workload's address by the workload's own interface.
        """
        return Ours(
            device_protocol=self._settings.protocol,
            links=frozenset(link.index for name, link in self._links.items() if name.startswith(self._prefixes)),
            places=frozenset((route.dst, hop.oif) for route in self._routes.values() for hop in route.hops),
            all=self._settings.remove_external,
        )

    def index_of(self, address: Address) -> int | None:
        """The interface that has it."""
        self._refresh()
        return self._holders.get(address)

    def _carrier(self, via: Address, own: Address | None) -> int | None:
        """The interface with our own address; where the node's object does not tell, one in the neighbour's subnet."""
        found = None if own is None else self.index_of(own)
        return found if found is not None else self._towards(via)

    def _towards(self, via: Address) -> int | None:
        for address in self._addresses:
            if address.interface.version == via.version and via in address.interface.network:
                return address.index
        return None


def _leads_somewhere(address: InterfaceAddress) -> bool:
    """Not one that IPv6 gives each interface by itself, some time after it came up: no route goes by these."""
    return address.interface.version == 4 or not address.interface.ip.is_link_local


def _standing(link: Link) -> tuple[int, bool, bool, int]:
    """What routes go by."""
    return link.index, link.up, link.lower_up, link.mtu_bytes


def _delete_connections(addresses: list[Address]) -> int:
    with NetlinkSocket(NETLINK_NETFILTER) as netlink:
        return sum(delete_connections(netlink, address) for address in addresses)
