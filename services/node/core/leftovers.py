"""Which routes of a real Calico are left over once ours are there, and what in the kernel is ours. Pure.

A real Felix gives its routes protocol 80 or 3 (boot), BIRD 12; ours have 80 and 81, but for those of workloads, of
which felix itself takes over what is on their interfaces. An old route goes when one of ours leads to the same place;
of BIRD's also those by way of tunl0 and its blackholes of blocks, which lie in a pool and which nobody else makes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from ipaddress import IPv4Interface, IPv6Interface

from libs.netlink.routes import (
    BLACKHOLE,
    KERNEL_OR_BGP,
    PROTOCOL_BGP,
    PROTOCOL_BIRD,
    PROTOCOL_BOOT,
    PROTOCOL_FELIX,
    IPNetwork,
    Route,
)

IPInterface = IPv4Interface | IPv6Interface
TUNL = "tunl0"
OVERLAYS = ("vxlan.calico", "vxlan-v6.calico", "wireguard.cali", "wg-v6.cali")
IFB = "bwcali"
IPSETS = ("cali40", "cali60", "cali4t", "cali6t")
NFT_TABLES = (("ip", "calico"), ("ip6", "calico"))
NFT_ARP = ("arp", "calico-arp")
WIREGUARD_TABLE = 1


def old_routes(
    routes: Iterable[Route], names: Mapping[int, str], pools: Collection[IPNetwork], *, bird_runs: bool
) -> list[Route]:
    """routes: all of the main table. names: of interfaces, by index. bird_runs: somebody's BIRD is on this host, so its
    routes are no leftovers.
    """
    routes = list(routes)
    ours = {route.dst for route in routes if route.protocol in (PROTOCOL_FELIX, PROTOCOL_BGP)}
    ours |= {route.dst for route in routes if route.protocol not in KERNEL_OR_BGP and _to_workload(route, names)}
    found = []
    for route in routes:
        devices = {names.get(hop.oif, "") for hop in route.hops}
        if route.protocol == PROTOCOL_BOOT:
            if route.dst in ours and devices and devices <= {*OVERLAYS, TUNL}:
                found.append(route)
        elif route.protocol == PROTOCOL_BIRD and not bird_runs:
            if not any(pool.version == route.dst.version and route.dst.subnet_of(pool) for pool in pools):  # type: ignore[arg-type]
                continue
            if route.dst in ours or _by_tunnel(route, names) or route.type == BLACKHOLE:
                found.append(route)
    return found


def _to_workload(route: Route, names: Mapping[int, str]) -> bool:
    return bool(route.hops) and all(names.get(hop.oif, "").startswith("cali") for hop in route.hops)


def tunnel_addresses(
    addresses: Iterable[IPInterface], routes: Iterable[Route], names: Mapping[int, str]
) -> list[IPInterface]:
    """Those on tunl0 that a Calico put there. The kernel makes the device, so others may use it, too; ours is a single
    address in a block for which there is a blackhole of Calico's (of this node), or a route by way of tunl0 (one that
    was borrowed). routes: of all tables. names: of interfaces, by index.
    """
    blocks = [
        route.dst
        for route in routes
        if route.protocol in (PROTOCOL_FELIX, PROTOCOL_BGP, PROTOCOL_BIRD)
        and (route.type == BLACKHOLE or _by_tunnel(route, names))
    ]
    return [
        one
        for one in addresses
        if one.network.prefixlen == one.max_prefixlen and any(one.ip in block for block in blocks)
    ]


def _by_tunnel(route: Route, names: Mapping[int, str]) -> bool:
    return {names.get(hop.oif, "") for hop in route.hops} == {TUNL}


def is_ours(name: str, prefixes: Collection[str] = ("cali",)) -> bool:
    """An interface of pods or of an overlay."""
    return name.startswith((*prefixes, IFB)) or name in (*OVERLAYS, TUNL)


def is_ipset(name: str) -> bool:
    return name.startswith(IPSETS)
