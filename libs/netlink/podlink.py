"""The pair of devices of a pod, from nothing to usable, in well under a millisecond: veth, or netkit where the kernel
has it and it is wished for.

Host end `cali…` with MAC ee:ee:ee:ee:ee:ee and therefore link-local address fe80::ecee:eeff:feee:eeee; container end
with /32 and /128 addresses and default routes by way of 169.254.1.1 and that link-local address, which the host end
answers for (proxy ARP). A route per address leads to the host end. Setting up again what is there gives the same
result; a failure leaves nothing behind.
"""

from __future__ import annotations

import errno
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_interface,
    ip_network,
)
from pathlib import Path

from libs.netlink.addresses import address_request, list_addresses
from libs.netlink.codec import NetlinkError, ObjectExists, error_for
from libs.netlink.links import (
    Link,
    VethEnd,
    create_netkit,
    create_veth,
    delete_link,
    get_link,
    link_change,
)
from libs.netlink.netns import NamespaceError, in_netns, open_netns
from libs.netlink.routes import (
    LEARNED,
    PROTOCOL_BOOT,
    PROTOCOL_FELIX,
    TABLE_MAIN,
    Request,
    Route,
    device_route,
    gateway_route,
    list_routes,
    lookup,
    put_request,
    replace_routes,
)
from libs.netlink.rules import SourceRule, list_source_rules, rule_request
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from libs.netlink.sysctl import read_sysctl, write_sysctl

HOST_MAC = "ee:ee:ee:ee:ee:ee"
GATEWAY4 = IPv4Address("169.254.1.1")
GATEWAY6 = IPv6Address("fe80::ecee:eeff:feee:eeee")  # EUI-64 of HOST_MAC
VETH, NETKIT = "veth", "netkit"
PAIRS = (VETH, NETKIT)
DEFAULT4 = IPv4Network("0.0.0.0/0")
DEFAULT6 = IPv6Network("::/0")


class PodLinkError(Exception):
    """Why a pod could not be plugged in; nothing was left behind."""


class InterfaceTaken(PodLinkError):
    """A name is in use by something that is not ours to delete."""


class AddressTaken(PodLinkError):
    """Another interface of this host has a route for the address already."""

    def __init__(self, address: IPv4Address | IPv6Address, interface: str) -> None:
        super().__init__(f"address {address} is routed to interface {interface} already")
        self.address, self.interface = address, interface


@dataclass(frozen=True, slots=True)
class PodVeth:
    """netns: path of the container's namespace. container_mac None: the kernel chooses one. device: veth or netkit; a
    kernel without netkit makes a veth pair. routes: of the container, by way of the host; None: the default ones of its
    families. own_table: the default ones stand in a table that only packets from these addresses look at, as is right
    for a container whose default routes are those of another interface.

    host_routes: off for a virtual machine that is still migrating here. route_metrics: of IPv4, of IPv6.
    """

    host_name: str
    netns: str | Path
    addresses: tuple[IPv4Address | IPv6Address, ...]
    container_name: str = "eth0"
    mtu_bytes: int = 1500
    host_mac: str = HOST_MAC
    container_mac: str | None = None
    queues: int = 1
    allow_ip_forwarding: bool = False
    host_routes: bool = True
    route_protocol: int = PROTOCOL_FELIX
    route_metrics: tuple[int, int] = (0, 0)
    device: str = VETH
    routes: tuple[IPv4Network | IPv6Network, ...] | None = None
    own_table: bool = False

    @property
    def table(self) -> int:
        return table_of(self.container_name) if self.own_table else TABLE_MAIN

    def has(self, version: int) -> bool:
        return any(address.version == version for address in self.addresses)


@dataclass(frozen=True, slots=True)
class PodPlugged:
    host_index: int
    host_mac: str
    container_index: int
    container_mac: str


def table_of(container_name: str) -> int:
    """Number of the routing table of a container's further interface; well away from those that people choose."""
    return _TABLES + (zlib.crc32(container_name.encode()) & 0xFFFFFF)


_TABLES = 0x43000000
_RULE_PRIORITY = 10000  # before the main table (32766), after what others may want first


def host_interface(address: IPv4Address | IPv6Address) -> IPv4Interface | IPv6Interface:
    """The address as /32 or /128."""
    return ip_interface((address, address.max_prefixlen))


def pod_routes(pod: PodVeth, host_index: int) -> list[Route]:
    """What leads from the host to the pod."""
    return [
        device_route(
            ip_network(address),
            host_index,
            protocol=pod.route_protocol,
            metric=pod.route_metrics[address.version == 6],
        )
        for address in pod.addresses
    ]


def setup_veth(host: NetlinkSocket, pod: PodVeth) -> PodPlugged:
    """Plug a pod in.

    host: a route socket in the host's namespace, which must be the calling thread's too. A veth that has the host
    name is deleted first, whatever it was connected to.
    Raises NamespaceError for a bad namespace path, InterfaceTaken, AddressTaken, PodLinkError for the rest.
    """
    with open_netns(pod.netns) as container_fd:
        _remove_former(host, pod.host_name)
        try:
            _create(host, pod, container_fd)
        except ObjectExists as error:
            raise InterfaceTaken(f"interface {pod.container_name} exists in {pod.netns} already") from error
        except (NetlinkError, ValueError) as error:
            raise PodLinkError(f"cannot create {pod.host_name}: {error}") from error
        try:
            link = _require(host, pod.host_name)
            _write_all(_host_sysctls(pod))
            _all(host, _host_requests(pod, link.index), "host end")
            inside = _setup_container(container_fd, pod)
            if pod.host_routes:
                _add_host_routes(host, pod, link.index)
        except NamespaceError:
            delete_link(host, pod.host_name)
            raise
        except OSError as error:
            delete_link(host, pod.host_name)
            raise PodLinkError(f"cannot set up {pod.host_name}: {error}") from error
        except BaseException:
            delete_link(host, pod.host_name)
            raise
    return PodPlugged(link.index, link.mac, inside.index, inside.mac)


def _create(host: NetlinkSocket, pod: PodVeth, container_fd: int) -> None:
    end = VethEnd(pod.host_name, pod.host_mac, pod.mtu_bytes, pod.queues)
    peer = VethEnd(pod.container_name, pod.container_mac, pod.mtu_bytes, pod.queues, container_fd)
    if pod.device == NETKIT:
        try:
            create_netkit(host, end, peer)
            return
        except NetlinkError as error:
            if error.errno != errno.EOPNOTSUPP:  # no such kind of device, or not with a MAC of ours (until Linux 6.10)
                raise
    create_veth(host, end, peer)


def _remove_former(host: NetlinkSocket, name: str) -> None:
    former = get_link(host, name)
    if former is None:
        return
    if former.kind not in PAIRS:
        raise InterfaceTaken(f"interface {name} exists and is no veth ({former.kind or 'physical'})")
    delete_link(host, former.index)


def _require(netlink: NetlinkSocket, name: str) -> Link:
    link = get_link(netlink, name)
    if link is None:
        raise error_for(errno.ENODEV, f"interface {name}")
    return link


def _all(netlink: NetlinkSocket, requests: Sequence[Request], what: str) -> None:
    for _, error in sorted(netlink.batch(requests).items()):
        raise error_for(error.errno or errno.EIO, what, error.message)


def _host_sysctls(pod: PodVeth) -> list[tuple[str, int]]:
    """What Felix would set, so that the pod works before Felix has seen it (Felix sets rp_filter as well)."""
    name, wanted = pod.host_name, []
    if pod.has(4):
        wanted += [(f"net/ipv4/conf/{name}/{key}", 1) for key in ("route_localnet", "proxy_arp", "forwarding")]
        wanted.append((f"net/ipv4/neigh/{name}/proxy_delay", 0))
    if pod.has(6):
        wanted.append((f"net/ipv6/conf/{name}/disable_ipv6", 0))
        for key, value in (("accept_dad", 0), ("accept_ra", 0), ("proxy_ndp", 1), ("forwarding", 1)):
            wanted.append((f"net/ipv6/conf/{name}/{key}", value))
    return wanted


def _container_sysctls(pod: PodVeth) -> list[tuple[str, int]]:
    forwarding, wanted = int(pod.allow_ip_forwarding), []
    if pod.has(4):
        wanted.append(("net/ipv4/ip_forward", forwarding))
    if pod.has(6):
        places = ("all", "default", "lo", pod.container_name)
        wanted += [(f"net/ipv6/conf/{where}/disable_ipv6", 0) for where in places]
        wanted.append((f"net/ipv6/conf/{pod.container_name}/accept_dad", 0))
        wanted.append(("net/ipv6/conf/all/forwarding", forwarding))
    return wanted


def _write_all(sysctls: Sequence[tuple[str, int]]) -> None:
    for path, value in sysctls:
        write_sysctl(path, value)


def _sysctl_problems(sysctls: Sequence[tuple[str, int]], whose: str) -> list[str]:
    return [
        f"{whose} setting {path.replace('/', '.')} is {found}, not {value}"
        for path, value in sysctls
        if (found := read_sysctl(path)) != str(value)
    ]


def _host_requests(pod: PodVeth, index: int) -> list[Request]:
    """The link-local address is set by hand: the kernel makes another one where stable privacy addresses are
    configured.
    """
    requests = [link_change(index, up=True)]
    if pod.has(6):
        requests.append(address_request(IPv6Interface((GATEWAY6, 64)), index))
    return requests


def _setup_container(container_fd: int, pod: PodVeth) -> Link:
    with in_netns(container_fd), NetlinkSocket(NETLINK_ROUTE) as netlink:
        link = _require(netlink, pod.container_name)
        _write_all(_container_sysctls(pod))
        requests = [link_change(link.index, up=True)]
        requests += [address_request(host_interface(address), link.index) for address in pod.addresses]
        requests += [put_request(route) for route in _container_routes(pod, link.index)]
        _all(netlink, requests, f"interface {pod.container_name} in {pod.netns}")
        if pod.own_table:
            _remove_rules(netlink, pod.container_name)  # of a former one of that name, which went without a word
            _all(netlink, [rule_request(rule) for rule in _rules(pod)], f"rules of {pod.container_name}")
        return link


def _container_routes(pod: PodVeth, index: int) -> list[Route]:
    """Of families that the pod has no address of there are none. The gateway's own route comes first."""
    usual = [dst for dst in (DEFAULT4, DEFAULT6) if pod.has(dst.version)]
    wished = [dst for dst in dict.fromkeys(pod.routes or ()) if pod.has(dst.version) and dst != ip_network(GATEWAY4)]
    routes = [device_route(ip_network(GATEWAY4), index, protocol=PROTOCOL_BOOT)] if pod.has(4) else []
    if not pod.own_table:
        return routes + [_by_host(dst, index) for dst in (usual if pod.routes is None else wished)]
    routes += [_by_host(dst, index) for dst in usual]
    # Those that were wished for are for every packet; the gateway's and the default route are another interface's.
    shared = [_by_host(dst, index, onlink=dst.version == 4) for dst in wished if dst.prefixlen]
    return [replace(route, table=pod.table) for route in routes] + shared


def _by_host(dst: IPv4Network | IPv6Network, index: int, *, onlink: bool = False) -> Route:
    return gateway_route(dst, GATEWAY4 if dst.version == 4 else GATEWAY6, index, onlink=onlink, protocol=PROTOCOL_BOOT)


def _rules(pod: PodVeth) -> list[SourceRule]:
    if not pod.own_table:
        return []
    return [SourceRule(ip_network(address), pod.table, _RULE_PRIORITY) for address in pod.addresses]


def _remove_rules(netlink: NetlinkSocket, container_name: str) -> None:
    """Routes go with their interface, rules do not."""
    left = list_source_rules(netlink, table_of(container_name))
    netlink.batch([rule_request(rule, delete=True) for rule in left])


def _add_host_routes(host: NetlinkSocket, pod: PodVeth, index: int) -> None:
    routes = pod_routes(pod, index)
    for at, error in sorted(host.batch([put_request(route, exclusive=True) for route in routes]).items()):
        if not isinstance(error, ObjectExists):
            raise _refusal(routes[at], error)
        held = lookup(host, pod.addresses[at])
        if held is not None and held.protocol in LEARNED:  # of another node that had the address: it will be withdrawn
            for refused in replace_routes(host, [routes[at]]).values():
                raise _refusal(routes[at], refused)
            continue
        other = next((hop.oif for hop in held.hops if hop.oif != index), 0) if held is not None else 0
        if held is None or other:
            link = get_link(host, other) if other else None
            raise AddressTaken(pod.addresses[at], link.name if link is not None else "none (blackhole)")


def _refusal(route: Route, error: NetlinkError) -> NetlinkError:
    return error_for(error.errno or errno.EIO, f"route to {route.dst}", error.message)


def teardown_veth(
    host: NetlinkSocket, pod_netns: str | Path | None, host_name: str, container_name: str = "eth0"
) -> bool:
    """Unplug: both ends, their addresses and routes go together. False when nothing was there.

    pod_netns may be gone already, or None. An interface of that name in the container that is no veth stays.
    """
    found = False
    link = get_link(host, host_name)
    if link is not None and link.kind in PAIRS:
        found = delete_link(host, link.index)
    if pod_netns is None:
        return found
    try:
        with open_netns(pod_netns) as fd, in_netns(fd), NetlinkSocket(NETLINK_ROUTE) as netlink:
            inside = get_link(netlink, container_name)
            if inside is not None and inside.kind in PAIRS:
                found |= delete_link(netlink, inside.index)
            _remove_rules(netlink, container_name)
    except NamespaceError:
        pass  # the namespace went first and took the pair with it
    return found


def check_veth(host: NetlinkSocket, pod: PodVeth) -> list[str]:
    """What is wrong, one sentence each; empty when the pod is plugged in as setup_veth leaves it. mtu_bytes 0 does not
    matter, as long as both ends have the same. Raises NamespaceError.
    """
    problems = []
    link = get_link(host, pod.host_name)
    if link is None:
        problems.append(f"host interface {pod.host_name} is missing")
    else:
        if not link.up:
            problems.append(f"host interface {pod.host_name} is down")
        if link.mac != pod.host_mac:
            problems.append(f"host interface {pod.host_name} has MAC {link.mac}, not {pod.host_mac}")
        if pod.mtu_bytes and link.mtu_bytes != pod.mtu_bytes:
            problems.append(f"host interface {pod.host_name} has MTU {link.mtu_bytes}, not {pod.mtu_bytes}")
        pod = pod if pod.mtu_bytes else replace(pod, mtu_bytes=link.mtu_bytes)
        gateways = {one.interface.ip for one in list_addresses(host, link.index)}
        if pod.has(6) and GATEWAY6 not in gateways:
            problems.append(f"host interface {pod.host_name} lacks address {GATEWAY6}, the container's gateway")
        if pod.host_routes:
            problems += _host_route_problems(host, pod, link.index)
        problems += _sysctl_problems(_host_sysctls(pod), "host")
    with open_netns(pod.netns) as fd, in_netns(fd), NetlinkSocket(NETLINK_ROUTE) as netlink:
        return problems + _container_problems(netlink, pod)


def _host_route_problems(host: NetlinkSocket, pod: PodVeth, index: int) -> list[str]:
    problems = []
    for address in pod.addresses:
        held = lookup(host, address)
        if held is None or held.dst != ip_network(address) or all(hop.oif != index for hop in held.hops):
            problems.append(f"the host has no route to {address} by way of {pod.host_name}")
    return problems


def _container_problems(netlink: NetlinkSocket, pod: PodVeth) -> list[str]:
    name = pod.container_name
    link = get_link(netlink, name)
    if link is None:
        return [f"container interface {name} is missing"]
    problems = [] if link.up else [f"container interface {name} is down"]
    if pod.container_mac is not None and link.mac != pod.container_mac.lower():
        problems.append(f"container interface {name} has MAC {link.mac}, not {pod.container_mac.lower()}")
    if pod.mtu_bytes and link.mtu_bytes != pod.mtu_bytes:
        problems.append(f"container interface {name} has MTU {link.mtu_bytes}, not {pod.mtu_bytes}")
    held = {address.interface.ip for address in list_addresses(netlink, link.index)}
    problems += [f"container interface {name} lacks address {a}" for a in pod.addresses if a not in held]
    tables = {TABLE_MAIN, pod.table}
    routes = {(route.table, route.dst, route.hops) for table in tables for route in list_routes(netlink, table=table)}
    for route in _container_routes(pod, link.index):
        if (route.table, route.dst, route.hops) not in routes:
            problems.append(f"the container lacks its route to {route.dst}")
    rules = set(list_source_rules(netlink, pod.table)) if pod.own_table else set()
    problems += [f"the container lacks its rule for {rule.source}" for rule in _rules(pod) if rule not in rules]
    return problems + _sysctl_problems(_container_sysctls(pod), "container")
