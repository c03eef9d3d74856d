"""Routes (linux/rtnetlink.h): values, listing by protocol, replacing and deleting in slices.

Ownership is by protocol number (80: felix, 81: bgp), and for workloads' routes by their interface, so a restarted
process finds its own routes and leaves all others alone. Requests are mostly constant from one route to the next: the
part without the destination is encoded once.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from itertools import islice
from typing import NamedTuple, TypeAlias, TypeVar

from libs.netlink.addresses import FAMILIES
from libs.netlink.codec import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NetlinkError,
    ObjectNotFound,
    attr,
    attr_items,
    attrs,
    nest,
    to_u32,
    u32,
)
from libs.netlink.socket import NetlinkSocket

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network
Request: TypeAlias = tuple[int, int, bytes]

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
_PROTOCOL_AT = 5
RTMSG = struct.Struct("=BBBBBBBBI")  # struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
_DST, _OIF, _GATEWAY, _PRIORITY, _PREFSRC, _METRICS, _MULTIPATH, _TABLE, _VIA = 1, 4, 5, 6, 7, 8, 9, 15, 18
_RTAX_MTU = 2
_NEXTHOP = struct.Struct("=HBBi")  # struct rtnexthop: length, flags, weight - 1, interface
RTNH_F_ONLINK = 4
RTM_F_CLONED = 0x200
RTM_F_FIB_MATCH = 0x2000

TABLE_MAIN = 254
TABLE_LOCAL = 255
PROTOCOL_REDIRECT, PROTOCOL_KERNEL, PROTOCOL_BOOT, PROTOCOL_RA = 1, 2, 3, 9  # boot: of `ip route add`
PROTOCOL_BIRD = 12  # linux/rtnetlink.h: what a Calico node of its own kind speaks BGP with
PROTOCOL_FELIX = 80
PROTOCOL_BGP = 81
PROTOCOL_FRR_BGP = 186
LEARNED = frozenset((PROTOCOL_BIRD, PROTOCOL_BGP, PROTOCOL_FRR_BGP))
"""By BGP, from other nodes and routers."""
KERNEL_OR_BGP = LEARNED | {PROTOCOL_REDIRECT, PROTOCOL_KERNEL, PROTOCOL_RA}
"""On a workload's interface: what the kernel makes by itself, and what the workload told as a BGP peer."""
SCOPE_GLOBAL, SCOPE_LINK, SCOPE_NOWHERE = 0, 253, 255
UNICAST, LOCAL, BLACKHOLE, UNREACHABLE, PROHIBIT, THROW = 1, 2, 6, 7, 8, 9
IPV6_DEFAULT_METRIC = 1024  # what the kernel makes of metric 0
SLICE = 2000

# answers of a lookup: no route, unreachable, blackhole, prohibited
_NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES, errno.ESRCH}

T = TypeVar("T")


class RouteKey(NamedTuple):
    """Two routes with one key cannot both be in the kernel."""

    dst: IPNetwork
    table: int
    metric: int


class NextHop(NamedTuple):
    """oif: index of the interface. onlink: take the gateway as reachable there, whatever the addresses say."""

    oif: int
    gateway: IPAddress | None = None
    onlink: bool = False
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Route:
    """hops: none for blackhole and its kind, several for ECMP. metric: lower wins; 0 means 1024 for IPv6, as in the
    kernel.

    scope: SCOPE_LINK for what is directly on a link (IPv4 only; IPv6 knows no scopes and holds 0 here).
    """

    dst: IPNetwork
    hops: tuple[NextHop, ...] = ()
    type: int = UNICAST
    protocol: int = PROTOCOL_FELIX
    metric: int = 0
    table: int = TABLE_MAIN
    scope: int = SCOPE_GLOBAL
    mtu_bytes: int = 0  # 0: the interface's
    source: IPAddress | None = None
    key: RouteKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.dst.version == 6:
            object.__setattr__(self, "scope", SCOPE_GLOBAL)
            if not self.metric:
                object.__setattr__(self, "metric", IPV6_DEFAULT_METRIC)
        object.__setattr__(self, "key", RouteKey(self.dst, self.table, self.metric))


def device_route(
    dst: IPNetwork, oif: int, *, protocol: int = PROTOCOL_FELIX, metric: int = 0, mtu_bytes: int = 0
) -> Route:
    """`dst dev oif scope link`."""
    return Route(dst, (NextHop(oif),), protocol=protocol, metric=metric, scope=SCOPE_LINK, mtu_bytes=mtu_bytes)


def gateway_route(
    dst: IPNetwork,
    gateway: IPAddress,
    oif: int,
    *,
    onlink: bool = False,
    protocol: int = PROTOCOL_FELIX,
    metric: int = 0,
    mtu_bytes: int = 0,
) -> Route:
    """`dst via gateway dev oif [onlink]`."""
    hop = NextHop(oif, gateway, onlink)
    return Route(dst, (hop,), protocol=protocol, metric=metric, mtu_bytes=mtu_bytes)


def blackhole_route(dst: IPNetwork, *, protocol: int = PROTOCOL_FELIX, metric: int = 0) -> Route:
    return Route(dst, type=BLACKHOLE, protocol=protocol, metric=metric)


# --- encoding -------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def encode_tail(
    version: int, hops: tuple[NextHop, ...], metric: int, table: int, mtu_bytes: int, source: IPAddress | None
) -> tuple[bytes, int]:
    """(attributes that are the same for all destinations of an IP version, flags)."""
    body, flags = u32(_TABLE, table), 0
    if metric:
        body += u32(_PRIORITY, metric)
    if mtu_bytes:
        body += nest(_METRICS, u32(_RTAX_MTU, mtu_bytes))
    if source is not None:
        body += attr(_PREFSRC, source.packed)
    if len(hops) == 1:
        (hop,) = hops
        body += u32(_OIF, hop.oif)
        body += _gateway(version, hop)
        flags = RTNH_F_ONLINK if hop.onlink else 0
    elif hops:
        body += attr(_MULTIPATH, b"".join(_encode_hop(version, hop) for hop in hops))
    return body, flags


def _gateway(version: int, hop: NextHop) -> bytes:
    """A gateway of the other IP version says so (RTA_VIA, struct rtvia; IPv4 routes only)."""
    if hop.gateway is None:
        return b""
    if hop.gateway.version == version:
        return attr(_GATEWAY, hop.gateway.packed)
    return attr(_VIA, struct.pack("=H", FAMILIES[hop.gateway.version]) + hop.gateway.packed)


def _encode_hop(version: int, hop: NextHop) -> bytes:
    gateway = _gateway(version, hop)
    flags = RTNH_F_ONLINK if hop.onlink else 0
    return _NEXTHOP.pack(_NEXTHOP.size + len(gateway), flags, hop.weight - 1, hop.oif) + gateway


def put_request(route: Route, *, exclusive: bool = False) -> Request:
    """Create or overwrite; exclusive: refuse with ObjectExists when the key is taken."""
    tail, flags = encode_tail(route.dst.version, route.hops, route.metric, route.table, route.mtu_bytes, route.source)
    dst = route.dst
    body = RTMSG.pack(
        FAMILIES[dst.version],
        dst.prefixlen,
        0,
        0,
        min(route.table, 255),
        route.protocol,
        route.scope,
        route.type,
        flags,
    )
    how = NLM_F_EXCL if exclusive else NLM_F_REPLACE
    return RTM_NEWROUTE, NLM_F_CREATE | how, body + attr(_DST, dst.network_address.packed) + tail


def delete_request(key: RouteKey, protocol: int, oif: int = 0) -> Request:
    """oif: only if it leads there; 0: wherever it leads."""
    dst, table, metric = key
    body = RTMSG.pack(FAMILIES[dst.version], dst.prefixlen, 0, 0, min(table, 255), protocol, SCOPE_NOWHERE, 0, 0)
    body += attr(_DST, dst.network_address.packed) + u32(_TABLE, table)
    body += u32(_PRIORITY, metric) if metric else b""
    return RTM_DELROUTE, 0, body + (u32(_OIF, oif) if oif else b"")


# --- decoding -------------------------------------------------------------------------------------------------------


def decode_route(body: bytes) -> Route:
    """Body of RTM_NEWROUTE or RTM_DELROUTE."""
    family, length, _, _, table, protocol, scope, kind, flags = RTMSG.unpack_from(body)
    found = attrs(body, RTMSG.size)
    zero = bytes(4 if family == socket.AF_INET else 16)
    metrics = attrs(found.get(_METRICS, b""))
    hops: tuple[NextHop, ...] = ()
    if kind in (UNICAST, LOCAL):
        if _MULTIPATH in found:
            hops = tuple(_decode_hops(found[_MULTIPATH]))
        elif _OIF in found:
            hops = (_hop(to_u32(found[_OIF]), _way(found), flags, 1),)
    return Route(
        dst=ip_network((found.get(_DST, zero), length)),
        hops=hops,
        type=kind,
        protocol=protocol,
        metric=to_u32(found.get(_PRIORITY, bytes(4))),
        table=to_u32(found[_TABLE]) if _TABLE in found else table,
        scope=scope,
        mtu_bytes=to_u32(metrics.get(_RTAX_MTU, bytes(4))),
        source=ip_address(found[_PREFSRC]) if _PREFSRC in found else None,
    )


def _way(found: Mapping[int, bytes]) -> bytes | None:
    return found[_VIA][2:] if _VIA in found else found.get(_GATEWAY)


def _hop(oif: int, gateway: bytes | None, flags: int, weight: int) -> NextHop:
    return NextHop(oif, None if gateway is None else ip_address(gateway), bool(flags & RTNH_F_ONLINK), weight)


def _decode_hops(data: bytes) -> Iterator[NextHop]:
    at = 0
    while at + _NEXTHOP.size <= len(data):
        length, flags, weight, oif = _NEXTHOP.unpack_from(data, at)
        inner = dict(attr_items(data[at + _NEXTHOP.size : at + length]))
        yield _hop(oif, _way(inner), flags, weight + 1)
        at += length + 3 & ~3


# --- the kernel's table ---------------------------------------------------------------------------------------------


def list_routes(
    netlink: NetlinkSocket,
    *,
    protocol: int = 0,
    without: Collection[int] = (),
    table: int = TABLE_MAIN,
    families: Iterable[int] = (4, 6),
) -> list[Route]:
    """Routes of one table (0: of all); protocol 0: of all protocols. The kernel filters where it can: that makes it
    fast. without: protocols whose routes, maybe very many, are not even kept.
    """
    found = []
    for version in families:
        body = RTMSG.pack(FAMILIES[version], 0, 0, 0, min(table, 255), protocol, 0, 0, 0) + u32(_TABLE, table)
        try:
            replies = netlink.dump(
                RTM_GETROUTE, body, f"routes of table {table}", lambda reply: reply[_PROTOCOL_AT] in without
            )
        except ObjectNotFound:  # a table that nobody has put a route in yet
            continue
        for kind, reply in replies:
            if kind != RTM_NEWROUTE or RTMSG.unpack_from(reply)[8] & RTM_F_CLONED:
                continue
            route = decode_route(reply)
            if table in (0, route.table) and protocol in (0, route.protocol):
                found.append(route)
    return found


def list_all_routes(netlink: NetlinkSocket, families: Iterable[int] = (4, 6)) -> list[Route]:
    """Routes of every table and protocol, as the kernel lists them; what is cached only is left out."""
    found = []
    for version in families:
        body = RTMSG.pack(FAMILIES[version], 0, 0, 0, 0, 0, 0, 0, 0)
        for kind, reply in netlink.dump(RTM_GETROUTE, body, "routes of all tables"):
            if kind == RTM_NEWROUTE and not RTMSG.unpack_from(reply)[8] & RTM_F_CLONED:
                found.append(decode_route(reply))
    return found


def lookup(netlink: NetlinkSocket, address: IPAddress) -> Route | None:
    """The route that a packet to this address would take, as it stands in the table; None when there is none."""
    body = RTMSG.pack(FAMILIES[address.version], address.max_prefixlen, 0, 0, 0, 0, 0, 0, RTM_F_FIB_MATCH)
    try:
        (_, reply), *_ = netlink.request(RTM_GETROUTE, 0, body + attr(_DST, address.packed), f"route to {address}")
    except NetlinkError as error:
        if error.errno in _NO_ROUTE:
            return None
        raise
    return decode_route(reply)


def replace_routes(netlink: NetlinkSocket, routes: Sequence[Route]) -> dict[RouteKey, NetlinkError]:
    """Create or overwrite one slice; what was refused, with the reason."""
    failed = netlink.batch([put_request(route) for route in routes])
    return {routes[i].key: error for i, error in failed.items()}


def delete_routes(netlink: NetlinkSocket, keys: Sequence[RouteKey], protocol: int) -> dict[RouteKey, NetlinkError]:
    """Routes that are gone already count as deleted; those of another protocol are never touched."""
    return delete_places(netlink, [(key, protocol, 0) for key in keys])


def delete_places(netlink: NetlinkSocket, places: Sequence[tuple[RouteKey, int, int]]) -> dict[RouteKey, NetlinkError]:
    """The same, each with its protocol and the interface that it leads to (0: any)."""
    failed = netlink.batch([delete_request(*place) for place in places])
    return {places[i][0]: error for i, error in failed.items() if not isinstance(error, ObjectNotFound)}


def slices(items: Iterable[T], size: int = SLICE) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
