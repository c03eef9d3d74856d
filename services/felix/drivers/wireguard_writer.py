"""Brings one family's WireGuard to what is wanted: device, peers, our routing table, the rule that leads to it.

Order: a peer is put in before a route leads to it, and leaves after it; the rule comes with the first route and goes
with the last. Everything is read before it is written and only what differs is written, so a restart changes nothing:
keys and sessions live on in the device. Ownership: the device by its name, routes by protocol in any table but main,
the rule by its table (docs/design/ownership.md). Another table is filled and led to before the one of before is left.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_interface
from pathlib import Path

from libs.netlink.addresses import address_request, list_addresses
from libs.netlink.codec import NetlinkError, ObjectExists, ObjectNotFound
from libs.netlink.links import Link, delete_link, get_link, link_change
from libs.netlink.routes import (
    PROTOCOL_FELIX,
    SCOPE_LINK,
    TABLE_MAIN,
    THROW,
    UNREACHABLE,
    NextHop,
    Route,
    RouteKey,
    delete_routes,
    list_routes,
    replace_routes,
    slices,
)
from libs.netlink.rules import MarkRule, list_mark_rules, mark_rule_request
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from libs.netlink.sysctl import read_sysctl, write_sysctl
from libs.netlink.wireguard import WgChange, WgDevice
from libs.netlink.wireguard_keys import clamp
from libs.reconcile import diff
from services.felix.core.wireguard import TABLE, Network, Wanted, Way
from services.felix.drivers.wireguard import FirstOf, WireguardError

log = logging.getLogger(__name__)

SRC_VALID_MARK = "net/ipv4/conf/all/src_valid_mark"
NAPI_THREADS = Path("/sys/class/net")


@dataclass(frozen=True, slots=True)
class DeviceState:
    """A device as read, for metrics."""

    interface: str
    device: WgDevice


class FamilyWriter:
    """Of one family. Calls are synchronous, for one worker thread."""

    def __init__(self, version: int, devices: FirstOf, *, random: Callable[[int], bytes] = os.urandom) -> None:
        self._version = version
        self._devices = devices
        self._random = random
        self._tables: set[int] | None = None  # with routes of ours; None: not looked for yet

    def ensure(self, name: str, *, make: bool) -> bytes | None:
        """The public key of the device of that name; it is made when it is not there, and given a key when it has none.

        make False: only if it is there. Raises WireguardError; NetlinkError, OSError.
        """
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            link = get_link(netlink, name)
        if link is not None and not self._devices.found(name, link.kind):
            raise WireguardError(f"{name} is there already and is no WireGuard device but {link.kind or 'physical'}")
        if link is None:
            if not make:
                return None
            self._devices.create(name)
            log.info("WireGuard device made", extra={"interface": name})
        device = self._devices.read(name)
        if device.public_key is None:
            self._devices.change(name, WgChange(private_key=clamp(self._random(32))))
            device = self._devices.read(name)
            log.info("WireGuard key made", extra={"interface": name})
        return device.public_key

    def index(self, name: str) -> int:
        """Of the link of that name; 0: there is none that is a device of ours and up. Raises NetlinkError, OSError."""
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            link = get_link(netlink, name)
        return link.index if link is not None and link.up and self._devices.found(name, link.kind) else 0

    def used(self) -> str:
        """Name of the device that our routes lead to, which may be that of before a restart; empty for none. Raises
        NetlinkError, OSError.
        """
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            for index in {hop.oif for route in self._all_routes(netlink) for hop in route.hops}:
                link = get_link(netlink, index)
                if link is not None and self._devices.found(link.name, link.kind):
                    return link.name
        return ""

    def read(self, name: str) -> DeviceState | None:
        """None when there is no such device. Raises as `ensure`."""
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            link = get_link(netlink, name)
        if link is None or not self._devices.found(name, link.kind):
            return None
        return DeviceState(name, self._devices.read(name))

    def remove(self, name: str) -> None:
        """The device, routes and rule; one of another kind that has our name stays. Raises NetlinkError, OSError."""
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            self._leave(netlink, {TABLE, *self._known(netlink)})
            link = get_link(netlink, name)
            if link is not None and self._devices.found(name, link.kind):
                delete_link(netlink, link.index)
                log.info("WireGuard device removed", extra={"interface": name})

    def apply(self, wanted: Wanted, mtu_bytes: int) -> dict[str, str]:
        """What could not be done, by object; the rest is. mtu_bytes: when `wanted` does not say. Routes that keep
        traffic from leaving in clear text are written whether there is a device or not.
        """
        failures: dict[str, str] = {}
        gone: tuple[bytes, ...] = ()
        index: int | None = None
        with NetlinkSocket(NETLINK_ROUTE) as netlink:
            link = get_link(netlink, wanted.interface)
            if link is not None and self._devices.found(wanted.interface, link.kind):
                index = link.index  # what is not as wanted may work all the same, and nothing leaves in clear text
                try:
                    gone = self._write_device(netlink, link, wanted, wanted.mtu_bytes or mtu_bytes)
                except (WireguardError, NetlinkError, OSError) as error:
                    failures[f"WireGuard {wanted.interface}"] = str(error)
            known = self._known(netlink)
            known.add(wanted.table)
            refused = self._write_routes(netlink, wanted.table, wanted.routes, index)
            failures |= {f"WireGuard route {key.dst}": str(error) for key, error in refused.items()}
            rule = _rule(self._version, wanted) if wanted.routes else None
            self._write_rules(netlink, wanted.table, rule)
            if not refused:
                self._leave(netlink, known - {wanted.table})
        if gone:
            self._devices.change(wanted.interface, WgChange(drop=gone))
        if wanted.threading and index is not None:
            try:
                self._thread(wanted.interface)
            except OSError as error:
                failures[f"WireGuard threads of {wanted.interface}"] = f"not switched on: {error}"
        return failures

    # --- inside ---

    def _all_routes(self, netlink: NetlinkSocket) -> list[Route]:
        """Ours of this family that may be WireGuard's: in the main table felix has others."""
        found = list_routes(netlink, protocol=PROTOCOL_FELIX, table=0, families=(self._version,))
        return [route for route in found if route.table != TABLE_MAIN]

    def _known(self, netlink: NetlinkSocket) -> set[int]:
        if self._tables is None:
            self._tables = {route.table for route in self._all_routes(netlink)}
        return self._tables

    def _leave(self, netlink: NetlinkSocket, tables: set[int]) -> None:
        """Rules first: should we end in between, the routes still tell which tables were ours."""
        for table in tables:
            self._write_rules(netlink, table, None)
            self._write_routes(netlink, table, {}, None)
        self._known(netlink).difference_update(tables)

    def _write_device(self, netlink: NetlinkSocket, link: Link, wanted: Wanted, mtu_bytes: int) -> tuple[bytes, ...]:
        """Keys of peers that must go once no route leads to them."""
        device = self._devices.read(wanted.interface)
        todo = diff(wanted.peers, device.peers)
        change = WgChange(
            listen_port=wanted.listen_port if device.listen_port != wanted.listen_port else None,
            fwmark=wanted.fwmark if device.fwmark != wanted.fwmark else None,
            put=tuple(todo.put.values()),
        )
        if change:
            self._devices.change(wanted.interface, change)
        held = {one.interface.ip: one for one in list_addresses(netlink, link.index)}
        requests = [
            address_request(one.interface, link.index, delete=True)
            for address, one in held.items()
            if address not in wanted.addresses and not address.is_link_local and address.version == self._version
        ]
        requests += [address_request(ip_interface(one), link.index) for one in wanted.addresses if one not in held]
        if link.mtu_bytes != mtu_bytes or not link.up:
            requests.insert(0, link_change(link.index, up=True, mtu_bytes=mtu_bytes))
        for error in netlink.batch(requests).values():
            raise error
        self._greet(wanted, device)
        return tuple(todo.drop)

    def _greet(self, wanted: Wanted, before: WgDevice) -> None:
        """Begin a handshake with each new peer. It may have tried before it was one of ours, and would not try again
        for five seconds; whoever of two comes second begins one that the other understands. A device does so when a
        peer's keepalive is switched on.
        """
        new = [peer for key, peer in wanted.peers.items() if key not in before.peers and not peer.keepalive_s]
        if new:
            self._devices.change(wanted.interface, WgChange(put=tuple(replace(one, keepalive_s=1) for one in new)))
            self._devices.change(wanted.interface, WgChange(put=tuple(new)))

    def _thread(self, name: str) -> None:
        """NAPI in threads of its own, so that a core that decrypts does not starve others (net/core/net-sysfs.c).
        Raises OSError.
        """
        path = NAPI_THREADS / name / "threaded"
        if path.read_text().strip() != "1":
            path.write_text("1\n")

    def _write_routes(
        self, netlink: NetlinkSocket, table: int, wanted: dict[Network, Way], index: int | None
    ) -> dict[RouteKey, NetlinkError]:
        routes = {}
        for network, way in wanted.items():
            route = _route(network, table, way, index)
            routes[route.key] = route
        present = list_routes(netlink, protocol=PROTOCOL_FELIX, table=table, families=(self._version,))
        todo = diff(routes, {route.key: route for route in present})
        failed: dict[RouteKey, NetlinkError] = {}
        # What leads into the tunnel or stops comes before what throws back: no packet slips out in between.
        for some in slices(sorted(todo.put.values(), key=lambda route: route.type == THROW)):
            refused = replace_routes(netlink, some)
            failed |= refused
            # A device that does not come up takes no routes: then these ranges are shut, not sent in clear text.
            shut = [key.dst for key in refused if wanted[key.dst] is Way.TUNNEL]
            replace_routes(netlink, [_route(network, table, Way.UNREACHABLE, None) for network in shut])
        for keys in slices(todo.drop):
            failed |= delete_routes(netlink, keys, PROTOCOL_FELIX)
        return failed

    def _write_rules(self, netlink: NetlinkSocket, table: int, wanted: MarkRule | None) -> None:
        present = [rule for rule in list_mark_rules(netlink, {table}, self._version) if _is_ours(rule)]
        if wanted is not None and wanted not in present:
            for error in netlink.batch([mark_rule_request(wanted)]).values():
                if not isinstance(error, ObjectExists):
                    raise error
        surplus = [mark_rule_request(rule, delete=True) for rule in present if rule != wanted]
        for error in netlink.batch(surplus).values():
            if not isinstance(error, ObjectNotFound):
                raise error


def _is_ours(rule: MarkRule) -> bool:
    """`not fwmark M/M lookup TABLE`, of whatever mark and priority: settings may have been others."""
    return rule.negate and rule.mark == rule.mask


def _rule(version: int, wanted: Wanted) -> MarkRule:
    return MarkRule(version, wanted.fwmark, wanted.fwmark, wanted.table, wanted.priority, negate=True)


def _route(network: Network, table: int, way: Way, index: int | None) -> Route:
    if way is Way.TUNNEL and index is not None:
        scope = SCOPE_LINK if network.version == 4 else 0
        return Route(network, (NextHop(index),), table=table, scope=scope)
    # Without a device nothing is told to go there; should it have gone this moment, nothing leaves in clear text.
    return Route(network, type=THROW if way is Way.THROW else UNREACHABLE, table=table)


def allow_marked_sources() -> None:
    """The kernel's check of source addresses looks at marks (IPv4 has it, IPv6 has no such check). Raises OSError."""
    if read_sysctl(SRC_VALID_MARK) != "1":
        write_sysctl(SRC_VALID_MARK, 1)
