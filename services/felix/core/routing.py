"""Which kernel routes this node wants, from its workloads and from what the cluster's ranges are
(libs/policy/routes.py).

Pure: values in, values out. A range may be reached in one way only; where several are possible the first counts
(`RouteClass`, facts/felix.md section 5). Routes to other nodes are ours or a routing daemon's, by encapsulation:

    pool               same subnet, or no encapsulation      else
    VXLAN              by the node's address                 by the node's tunnel address, on vxlan.calico   always ours
    IP in IP           by the node's address                 by the node's address, on tunl0                 `ipip`
    no encapsulation   by the node's address                 somebody else's                                 `no_encap`

Our own blocks are blackholes, so that packets to addresses that are not in use do not bounce between router and node.
"""

from __future__ import annotations

from enum import IntEnum
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network

import msgspec

from libs.policy import nets
from libs.policy.output import Block, NodeInfo, Pool, RouteType, Workload, WorkloadKey
from libs.policy.routes import PoolType, Route, RouteResolver
from services.felix.core.overlay import TUNL, VXLAN, VXLAN6, Address, ClusterRoutes, Overlays, OverlaySettings

Network = IPv4Network | IPv6Network


class RouteClass(IntEnum):
    """Of two ways to one range the lower class has it."""

    LOCAL_WORKLOAD = 0
    VXLAN_SAME_SUBNET = 1
    VXLAN_TUNNEL = 2
    IPIP_SAME_SUBNET = 3
    IPIP_TUNNEL = 4
    NO_ENCAP = 5
    BLACKHOLE_VXLAN = 6
    BLACKHOLE_IPIP = 7
    BLACKHOLE_NO_ENCAP = 8


TUNNELLED = frozenset((RouteClass.VXLAN_TUNNEL, RouteClass.IPIP_TUNNEL))
_SAME_SUBNET = {
    PoolType.VXLAN: RouteClass.VXLAN_SAME_SUBNET,
    PoolType.IPIP: RouteClass.IPIP_SAME_SUBNET,
    PoolType.NO_ENCAP: RouteClass.NO_ENCAP,
}
_BLACKHOLE = {
    PoolType.VXLAN: RouteClass.BLACKHOLE_VXLAN,
    PoolType.IPIP: RouteClass.BLACKHOLE_IPIP,
    PoolType.NO_ENCAP: RouteClass.BLACKHOLE_NO_ENCAP,
}


class WantedRoute(msgspec.Struct, frozen=True):
    """interface alone: directly there (a workload, or a tunnel address); via alone: by another node, on the interface
    that has our own address; both: by way of a tunnel device; none: blackhole.
    """

    kind: RouteClass
    interface: str = ""
    via: Address | None = None


class Routing:
    """Keeps `wanted` in step with what it is told. `put_*` are cheap; `flush()` returns the ranges that changed."""

    def __init__(self, node: str, owner: ClusterRoutes = ClusterRoutes.IPIP_ONLY) -> None:
        self.wanted: dict[Network, WantedRoute] = {}
        self.overlays = Overlays(node)
        self._node = node
        self._owner = owner
        self._enabled: frozenset[str] = frozenset()  # tunnel devices that routes were made for
        self._resolver = RouteResolver(node)
        self._local: dict[Network, dict[WorkloadKey, str]] = {}
        self._workloads: dict[WorkloadKey, Workload] = {}
        self._dirty: set[str] = set()
        self._moved: set[str] = set()  # nodes with another tunnel end: routes to them are looked for once, in flush()
        self._subnets: tuple[Network, ...] = ()
        self._addresses: dict[int, Address] = {}

    def configure(self, owner: ClusterRoutes, settings: OverlaySettings) -> bool:
        """True when something is different."""
        changed = self.overlays.configure(settings)
        if owner is not self._owner:
            self._owner, changed = owner, True
            self._dirty |= self._resolver.routes.keys()
        return changed

    def own_address(self, version: int) -> Address | None:
        """Of this node."""
        return self._addresses.get(version)

    def put_pool(self, key: str, pool: Pool | None) -> None:
        self.overlays.put_pool(key, pool)
        self._resolver.put_pool(key, pool)

    def put_block(self, key: str, block: Block | None) -> None:
        self._resolver.put_block(key, block)

    def put_node(self, name: str, info: NodeInfo | None) -> None:
        before = self.overlays.vteps.get(name)
        self.overlays.put_node(name, info)
        self._resolver.put_node(name, info)
        if self.overlays.vteps.get(name) != before:
            self._moved.add(name)
        if name == self._node:
            addresses = (info.ipv4, info.ipv6) if info is not None else ()
            interfaces = [ip_interface(text) for text in addresses if text]
            self._subnets = tuple(one.network for one in interfaces)
            self._addresses = {one.version: one.ip for one in interfaces}
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
        if self.overlays.enabled != self._enabled:
            self._enabled = self.overlays.enabled
            self._dirty |= self._resolver.routes.keys()
        self._dirty |= self._resolver.flush().keys()
        if self._moved:
            self._dirty |= {text for text, route in self._resolver.routes.items() if route.dst_node in self._moved}
            self._moved.clear()
        for text in self._dirty:
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
            return WantedRoute(RouteClass.LOCAL_WORKLOAD, claims[min(claims)])
        if route is None or not self._is_ours(route.pool_type, network.version):
            return None
        # An address that we borrowed is ours even before its workload is known: never by way of ourselves.
        if route.types & RouteType.REMOTE_WORKLOAD and route.dst_node != self._node:
            return self._remote(network, route)
        if _is_gateway(network, route):
            return self._remote(network, route)
        is_block = network.prefixlen < network.max_prefixlen
        if route.types & RouteType.LOCAL_WORKLOAD and is_block:
            return WantedRoute(_BLACKHOLE[route.pool_type])
        return None

    def _is_ours(self, pool: PoolType, version: int) -> bool:
        match pool:
            case PoolType.VXLAN:
                return (VXLAN if version == 4 else VXLAN6) in self._enabled
            case PoolType.IPIP:
                return self._owner.ipip and TUNL in self._enabled
            case PoolType.NO_ENCAP:
                return self._owner.no_encap
            case _:
                return False

    def _remote(self, network: Network, route: Route) -> WantedRoute | None:
        """None as well while the other node's address is not known."""
        node = ip_address(route.dst_node_ip) if route.dst_node_ip else None
        if node is not None and (route.pool_type is PoolType.NO_ENCAP or route.same_subnet):
            return WantedRoute(_SAME_SUBNET[route.pool_type], via=node) if self._on_link(node) else None
        if route.pool_type is PoolType.IPIP:
            return None if node is None else WantedRoute(RouteClass.IPIP_TUNNEL, TUNL, node)
        if route.pool_type is not PoolType.VXLAN:
            return None
        device = VXLAN if network.version == 4 else VXLAN6
        if _is_gateway(network, route):
            return WantedRoute(RouteClass.VXLAN_TUNNEL, device)
        vtep = self.overlays.vteps.get(route.dst_node)
        end = "" if vtep is None else vtep.ipv4 if network.version == 4 else vtep.ipv6
        return WantedRoute(RouteClass.VXLAN_TUNNEL, device, ip_address(nets.address(end))) if end else None

    def _on_link(self, address: Address) -> bool:
        return any(address.version == subnet.version and address in subnet for subnet in self._subnets)


def _is_gateway(network: Network, route: Route) -> bool:
    """Another node's tunnel address that must be directly on the device, as the gateway of other routes: a borrowed
    one and one that is a block by itself, to which no block's route leads; and each of IPv6, whose kernel refuses a
    gateway as long as it knows a way to it on another link, such as the block's own route without a tunnel.
    """
    if not route.types & RouteType.REMOTE_TUNNEL:
        return False
    alone = route.borrowed or bool(route.types & RouteType.REMOTE_WORKLOAD)
    return alone or (network.version == 6 and route.tunnel_vxlan and not route.same_subnet)
