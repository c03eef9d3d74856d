"""Which kernel routes this node wants, from its workloads and from what the cluster's ranges are
(libs/policy/routes.py).

Pure: values in, values out. Three kinds:
- a local workload's address: to its interface, link scope;
- another node's block (or a borrowed address) in a pool without encapsulation, when that node is in our own subnet: by
  way of its address. Ranges that are reached through an overlay or a routing daemon are not ours to program here;
- our own block: a blackhole, so that packets to addresses that are not in use do not bounce between router and node.
"""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)

import msgspec

from libs.policy.output import Block, NodeInfo, Pool, RouteType, Workload, WorkloadKey
from libs.policy.routes import PoolType, Route, RouteResolver

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address


class WantedRoute(msgspec.Struct, frozen=True):
    """Exactly one of interface (local workload), via (another node) or neither (blackhole)."""

    interface: str = ""
    via: Address | None = None


class Routing:
    """Keeps `wanted` in step with what it is told. `put_*` are cheap; `flush()` returns the ranges that changed."""

    def __init__(self, node: str, *, program_cluster_routes: bool) -> None:
        self.wanted: dict[Network, WantedRoute] = {}
        self._node = node
        self._cluster = program_cluster_routes
        self._resolver = RouteResolver(node)
        self._nodes: dict[str, NodeInfo] = {}
        self._local: dict[Network, dict[WorkloadKey, str]] = {}
        self._workloads: dict[WorkloadKey, Workload] = {}
        self._dirty: set[str] = set()
        self._subnets: tuple[Network, ...] = ()

    def put_pool(self, key: str, pool: Pool | None) -> None:
        self._resolver.put_pool(key, pool)

    def put_block(self, key: str, block: Block | None) -> None:
        self._resolver.put_block(key, block)

    def put_node(self, name: str, info: NodeInfo | None) -> None:
        if info is None:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = info
        self._resolver.put_node(name, info)
        if name == self._node:
            addresses = (info.ipv4, info.ipv6) if info is not None else ()
            self._subnets = tuple(_interface(text).network for text in addresses if text)
            self._dirty |= self._resolver.routes.keys()

    def put_workload(self, key: WorkloadKey, workload: Workload | None) -> None:
        old = self._workloads.pop(key, None)
        for text in (*old.nets4, *old.nets6) if old is not None else ():
            claims = self._local.get(ip_network(text), {})
            claims.pop(key, None)
            if not claims:
                self._local.pop(ip_network(text), None)
            self._dirty.add(text)
        networks: tuple[str, ...] | None = None
        if workload is not None:
            self._workloads[key] = workload
            networks = (*workload.nets4, *workload.nets6)
            for text in networks:
                self._local.setdefault(ip_network(text), {})[key] = workload.name
                self._dirty.add(text)
        self._resolver.put_workload(str(key), self._node, networks)

    def flush(self) -> dict[Network, WantedRoute | None]:
        changed: dict[Network, WantedRoute | None] = {}
        for text in self._dirty | self._resolver.flush().keys():
            network = ip_network(text)
            wanted = self._want(network, self._resolver.routes.get(text))
            if wanted is None:
                if self.wanted.pop(network, None) is not None:
                    changed[network] = None
            elif self.wanted.get(network) != wanted:
                self.wanted[network] = changed[network] = wanted
        self._dirty.clear()
        return changed

    def _want(self, network: Network, route: Route | None) -> WantedRoute | None:
        claims = self._local.get(network)
        if claims:
            # Two endpoints with one address: the lowest id has it, as everywhere (facts/felix.md section 3.11).
            return WantedRoute(interface=claims[min(claims)])
        if route is None or not self._cluster:
            return None
        direct = route.pool_type is PoolType.NO_ENCAP or route.same_subnet
        # An address that we borrowed is ours even before its workload is known: never by way of ourselves.
        elsewhere = route.types & RouteType.REMOTE_WORKLOAD and route.dst_node != self._node
        if elsewhere and direct and route.dst_node_ip:
            via = ip_address(route.dst_node_ip)
            return WantedRoute(via=via) if self._on_link(via) else None
        is_block = network.prefixlen < network.max_prefixlen
        if route.types & RouteType.LOCAL_WORKLOAD and is_block and route.pool_type is not PoolType.NONE:
            return WantedRoute()
        return None

    def _on_link(self, address: Address) -> bool:
        return any(address.version == subnet.version and address in subnet for subnet in self._subnets)


def _interface(text: str) -> IPv4Interface | IPv6Interface:
    return ip_interface(text)
