"""Whose a route of the kernel is, and why it is there, as far as this node's own knowledge tells
(docs/design/ownership.md; linux/rtnetlink.h, RTPROT_*)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_network

from libs.bus.explain import NodeRoute
from libs.netlink.routes import (
    BLACKHOLE,
    KERNEL_OR_BGP,
    LOCAL,
    PROHIBIT,
    PROTOCOL_BGP,
    PROTOCOL_FELIX,
    TABLE_LOCAL,
    TABLE_MAIN,
    THROW,
    UNICAST,
    UNREACHABLE,
    IPNetwork,
    Route,
)
from libs.policy import nets
from libs.policy.output import Block, NodeInfo, Workload, WorkloadKey
from services.felix.core.overlay import TUNL, VXLAN, VXLAN6

PROTOCOLS = {
    1: "redirect", 2: "kernel", 3: "boot", 4: "static", 8: "gated", 9: "ra", 10: "mrt", 11: "zebra", 12: "bird",
    13: "dnrouted", 14: "xorp", 15: "ntk", 16: "dhcp", 17: "mrouted", 18: "keepalived", 42: "babel", 99: "openr",
    186: "bgp (FRR)", 187: "isis", 188: "ospf", 189: "rip", 192: "eigrp",
    PROTOCOL_FELIX: "felix", PROTOCOL_BGP: "bgp",
}  # fmt: skip
TYPES = {UNICAST: "unicast", LOCAL: "local", 3: "broadcast", 4: "anycast", 5: "multicast", BLACKHOLE: "blackhole",
         UNREACHABLE: "unreachable", PROHIBIT: "prohibit", THROW: "throw"}  # fmt: skip
TABLES = {TABLE_MAIN: "main", TABLE_LOCAL: "local", 253: "default"}
TUNNELS = frozenset((VXLAN, VXLAN6, TUNL))


class RouteReasons:
    """What this node knows, ready for many routes."""

    def __init__(
        self,
        node: str,
        workloads: Mapping[WorkloadKey, Workload],
        blocks: Mapping[str, Block],
        nodes: Mapping[str, NodeInfo],
        interfaces: Mapping[int, str],
    ) -> None:
        self._node = node
        self._interfaces = interfaces
        self._workloads = {
            (ip_network(text), one.name): key for key, one in workloads.items() for text in (*one.nets4, *one.nets6)
        }
        self._blocks: dict[IPNetwork, Block] = {ip_network(cidr): block for cidr, block in blocks.items()}
        self._borrowed = {
            ip_network(address): node for block in blocks.values() for address, node in block.borrowed.items()
        }
        self._nodes: dict[str, str] = {}
        self._tunnels: dict[str, str] = {}
        for name, info in nodes.items():
            for text in (info.ipv4, info.ipv6):
                self._nodes[nets.address(text)] = name
            for text in (info.vxlan_ipv4, info.vxlan_ipv6, info.ipip_ipv4, info.wireguard_ipv4, info.wireguard_ipv6):
                self._tunnels[nets.address(text)] = name

    def tell(self, route: Route) -> NodeRoute:
        names = tuple(self._interfaces.get(hop.oif, str(hop.oif)) for hop in route.hops)
        return NodeRoute(
            destination=str(route.dst),
            table=_table(route),
            type=TYPES.get(route.type, str(route.type)),
            gateways=tuple("" if hop.gateway is None else str(hop.gateway) for hop in route.hops),
            interfaces=names,
            metric=route.metric,
            owner="felix" if self._workload(route, names) else _maker(route.protocol),
            reason=self._reason(route, names),
        )

    def _workload(self, route: Route, names: tuple[str, ...]) -> WorkloadKey | None:
        """That this route leads to: it is ours then, of whatever protocol (`deviceRouteProtocol`)."""
        if route.type != UNICAST or route.table != TABLE_MAIN or len(names) != 1 or route.protocol in KERNEL_OR_BGP:
            return None
        return self._workloads.get((route.dst, names[0]))

    def _reason(self, route: Route, names: tuple[str, ...]) -> str:
        if (workload := self._workload(route, names)) is not None:
            return f"workload endpoint {workload}"
        if route.protocol == PROTOCOL_FELIX:
            return self._ours(route, names)
        if route.protocol == PROTOCOL_BGP:
            owner = self._owner_of(route)
            return f"learned by BGP{f': {owner}' if owner else ''}"
        if route.table == TABLE_LOCAL:
            return f"address of {names[0]}" if route.type == LOCAL and names else ""
        if route.protocol == 2 and names and not any(hop.gateway for hop in route.hops):
            return f"on the link of {names[0]}"
        return ""

    def _ours(self, route: Route, names: tuple[str, ...]) -> str:
        if route.type == BLACKHOLE:
            return "block of this node: addresses that are not in use" if route.dst in self._blocks else "blackhole"
        if _is_wireguards(route):
            return f"WireGuard: {'not encrypted' if route.type == THROW else self._owner_of(route) or 'encrypted'}"
        owner, tunnel = self._owner_of(route), next((name for name in names if name in TUNNELS), "")
        through = f" by way of the tunnel {tunnel}" if tunnel else ""
        if not owner and (end := self._tunnels.get(str(route.dst.network_address))):
            return f"end of node {end}'s tunnel{through}"
        return f"{owner or 'another node'}{through}"

    def _owner_of(self, route: Route) -> str:
        """Which node a remote range belongs to, by its block, or by who the gateway is."""
        if (borrower := self._borrowed.get(route.dst)) is not None:
            return f"address that node {borrower} borrowed"
        block = self._blocks.get(route.dst)
        if block is not None and block.node:
            return f"block of node {block.node}"
        for hop in route.hops:
            gateway = "" if hop.gateway is None else str(hop.gateway)
            if gateway and (name := self._nodes.get(gateway) or self._tunnels.get(gateway)):
                return f"node {name}"
        return ""


def _is_wireguards(route: Route) -> bool:
    """Of a table that felix leads packets to (`routeTableRanges`): it writes in no other but main."""
    return route.protocol == PROTOCOL_FELIX and route.table != TABLE_MAIN


def _table(route: Route) -> str:
    return TABLES.get(route.table, f"wireguard ({route.table})" if _is_wireguards(route) else str(route.table))


def _maker(protocol: int) -> str:
    return PROTOCOLS.get(protocol, f"protocol {protocol}")


def in_order(routes: Iterable[Route]) -> list[Route]:
    """Main first, then by number of the table; by family, then by network and metric."""
    return sorted(
        routes,
        key=lambda one: (
            one.table != TABLE_MAIN, one.table, one.dst.version, int(one.dst.network_address), one.dst.prefixlen,
            one.metric,
        ),
    )  # fmt: skip
