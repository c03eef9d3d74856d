"""Routes of this node, and the interfaces they lead to.

The desired routes come as ranges with an interface name or another node's address (services/felix/core/routing.py);
which kernel interface that is, is found here, from link and address events. A workload's route waits until its
interface is there and up. All routes carry protocol 80, which is ours alone: what has it and is not wanted goes
(docs/design/ownership.md).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from libs.netlink.addresses import Address as InterfaceAddress
from libs.netlink.addresses import list_addresses
from libs.netlink.codec import NetlinkError
from libs.netlink.conntrack import delete_connections
from libs.netlink.drivers import RouteDriver
from libs.netlink.links import Link, list_links
from libs.netlink.monitor import ADDRESSES, LINKS, ROUTES, Changed, Event, Monitor
from libs.netlink.routes import (
    PROTOCOL_FELIX,
    Route,
    RouteKey,
    blackhole_route,
    device_route,
    gateway_route,
)
from libs.netlink.socket import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket
from libs.netlink.sysctl import SysctlError, write_sysctl
from libs.policy.output import Workload, WorkloadKey
from libs.reconcile import Reconciler
from services.felix.core.mtu import PATTERN, host_mtu_bytes
from services.felix.core.routing import Address, Network, Routing, WantedRoute
from services.felix.drivers.workload_sysctls import WorkloadSysctls

log = logging.getLogger(__name__)

STRAY_S = 1.0


class InterfaceDriver:
    def __init__(self, interface_prefixes: tuple[str, ...], *, ipv6: bool = True) -> None:
        self._prefixes = interface_prefixes
        self._ipv6 = ipv6
        self._links: dict[str, Link] = {}
        self._addresses: list[InterfaceAddress] = []
        self._driver = RouteDriver()
        self._reconciler: Reconciler[RouteKey, Route] = Reconciler(self._driver)
        self._routes: dict[Network, Route] = {}
        self._waiting: dict[Network, str] = {}  # range -> why it cannot be programmed yet
        self._unlisted = True  # links and addresses must be listed again
        self._stale = True  # everything must be compared with the kernel again
        self._changed: Callable[[], None] = lambda: None
        self._links_changed: Callable[[], None] = lambda: None
        self._mtu_pattern = PATTERN
        self._route_sync = True
        self._owners: dict[Network, str] = {}  # local workloads' addresses -> interface whose connections may be known
        self._sysctls = WorkloadSysctls()
        self._plugged = False  # an interface came up since the last step: routes that wait may go there
        self._stray: asyncio.TimerHandle | None = None

    def prepare_host(self) -> None:
        """Forwarding, for both families. A kernel without one of them is no reason to stop."""
        for path in ("net/ipv4/ip_forward", *(("net/ipv6/conf/all/forwarding",) if self._ipv6 else ())):
            try:
                write_sysctl(path, 1)
            except SysctlError as error:
                log.warning("forwarding not enabled", extra={"error": str(error)})

    def configure(self, mtu_pattern: str, spoofing: bool, route_sync: bool) -> None:
        """Settings that may change while running; the caller wakes the dataplane. spoofing: workloads may use sources
        that are not their own, so the kernel's own check of them must go. route_sync: no route is written or removed
        otherwise.
        """
        self._route_sync = route_sync
        self._mtu_pattern = mtu_pattern
        self._sysctls.allow_spoofing = spoofing
        self._stale = True

    def underlay_mtu_bytes(self) -> int:
        """Of the interfaces that the pattern names and that are up: the smallest."""
        self._refresh()
        return host_mtu_bytes(self._links.values(), self._mtu_pattern)

    def running(self) -> frozenset[str]:
        """Interfaces that can carry packets, as far as events have told."""
        return frozenset(name for name, link in self._links.items() if link.up and link.lower_up)

    def resync(self) -> None:
        self._unlisted = self._stale = True

    def host_addresses(self) -> dict[str, frozenset[str]]:
        """Addresses of each interface that is no workload's, link-local ones apart."""
        self._refresh()
        names = {link.index: name for name, link in self._links.items() if not name.startswith(self._prefixes)}
        found: dict[str, set[str]] = {}
        for address in self._addresses:
            if address.index in names and not address.interface.ip.is_link_local:
                found.setdefault(names[address.index], set()).add(str(address.interface.ip))
        return {name: frozenset(addresses) for name, addresses in found.items()}

    async def step(self, routing: Routing, workloads: dict[WorkloadKey, Workload]) -> dict[str, str]:
        """Make the kernel's routes match `routing`; range -> reason for those that the kernel refused."""
        changed: dict[Network, WantedRoute | None] = routing.flush()
        if self._stale:
            self._refresh()
            self._stale = False
            self._sysctls.look_again()
            self._reconciler.resync()
            changed = {**dict.fromkeys(self._routes), **routing.wanted}
        elif not changed and self._reconciler.in_sync and not (self._waiting and self._plugged):
            return {}
        if self._plugged:
            self._plugged = False
            for network in [network for network in self._waiting if network in routing.wanted]:
                changed.setdefault(network, routing.wanted[network])
        failures = self._sysctls.repair(workloads.values(), self._links)
        await self._forget_connections(changed, failures)
        for network, wanted in changed.items():
            old = self._routes.pop(network, None)
            if old is not None:
                self._reconciler.desired.pop(old.key, None)
            self._waiting.pop(network, None)
            route = self._resolve(network, wanted) if wanted is not None else None
            if route is not None:
                self._routes[network] = route
                self._reconciler.desired[route.key] = route
        self._reconciler.in_sync = True
        if not self._route_sync:
            self._stale = True
            return failures
        failed = await self._reconciler.step()
        if failed:
            self.resync()  # an interface may have gone meanwhile
        return failures | {f"route {key.dst}": str(error) for key, error in failed.items()}

    async def watch(self, changed: Callable[[], None], links_changed: Callable[[], None] = lambda: None) -> None:
        """Calls back when interfaces, addresses or our routes changed other than by us; links_changed: when that needs
        no comparison with the kernel, but `running` may tell something else.
        """
        self._changed, self._links_changed = changed, links_changed
        monitor = Monitor(self._event, (*LINKS, *ADDRESSES, *ROUTES))
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
        if isinstance(event, Changed):
            if not self._matters(event):
                return
            match event.object:
                case Link() as link if self._is_plugged(link, event.gone):
                    # Each new pod makes a few of these: taken as they are, without listing everything again.
                    self._links[link.name] = link
                    self._plugged = True
                    if self._waiting:
                        self._changed()
                    self._links_changed()
                    return
                case Route() as route if not event.gone and route.key not in self._reconciler.desired:
                    self._look_again_soon()
                    return
        self.resync()
        self._changed()

    def _is_plugged(self, link: Link, gone: bool) -> bool:
        """A workload's interface that is new, or as it was but for its flags, and up."""
        known = self._links.get(link.name)
        same = known is None or known.index == link.index
        return not gone and link.up and same and link.name.startswith(self._prefixes)

    def _look_again_soon(self) -> None:
        """A route of our protocol that nobody wants: the plugin's, just before its endpoint is known, or a stray."""
        if self._stray is None:
            self._stray = asyncio.get_running_loop().call_later(STRAY_S, self._look_again)

    def _look_again(self) -> None:
        self._stray = None
        self._stale = True
        self._changed()

    def _matters(self, event: Changed) -> bool:
        match event.object:
            case Link() as link:
                known = self._links.get(link.name)
                if event.gone:
                    return known is not None and known.index == link.index
                # A workload's interface matters once it is wanted; its coming up is what a waiting route waits for.
                return known is None or (known.index, known.up, known.lower_up, known.mtu_bytes) != (
                    link.index, link.up, link.lower_up, link.mtu_bytes,
                )  # fmt: skip
            case Route() as route:
                if route.protocol != PROTOCOL_FELIX:
                    return False
                wanted = self._reconciler.desired.get(route.key)
                return (wanted is not None) if event.gone else wanted != route
            case InterfaceAddress() as address:
                return not address.interface.ip.is_link_local
            case _:
                return False

    def _refresh(self) -> None:
        """List links and addresses, if they may be others. What must be compared is not compared by that."""
        if not self._unlisted:
            return
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            self._links = {link.name: link for link in list_links(netlink)}
            self._addresses = list_addresses(netlink)
        self._unlisted = False

    def _resolve(self, network: Network, wanted: WantedRoute) -> Route | None:
        if wanted.interface:
            link = self._links.get(wanted.interface)
            if link is None or not link.up:
                self._waiting[network] = f"interface {wanted.interface} is not up"
                return None
            return device_route(network, link.index)
        if wanted.via is not None:
            index = self._towards(wanted.via)
            if index is None:
                self._waiting[network] = f"no interface of ours is in the subnet of {wanted.via}"
                return None
            return gateway_route(network, wanted.via, index)
        return blackhole_route(network)

    def _towards(self, via: Address) -> int | None:
        for address in self._addresses:
            if address.interface.version == via.version and via in address.interface.network:
                return address.index
        return None


def _delete_connections(addresses: list[Address]) -> int:
    with NetlinkSocket(NETLINK_NETFILTER) as netlink:
        return sum(delete_connections(netlink, address) for address in addresses)
