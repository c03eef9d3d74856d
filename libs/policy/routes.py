"""Routes of one node: what every address range in the cluster is, seen from that node.

In: pools, IPAM blocks, nodes and workloads' addresses. Out: one `Route` per range that one of these names. A range
inherits what the ranges around it say: a pool its encapsulation and NAT, a block its owner. Calculated the same by
Felix for itself and by the judge, for IPv4 and IPv6 alike; the kernel's routes are made from these by the dataplane.

`RouteResolver` keeps the state and resolves only what a change can touch; `resolve_routes` is one call of it from
scratch.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec

from libs.policy import nets
from libs.policy.nets import Net
from libs.policy.output import Block, NodeInfo, Pool, RouteType


class PoolType(StrEnum):
    NONE = "NONE"
    NO_ENCAP = "NO_ENCAP"
    VXLAN = "VXLAN"
    IPIP = "IPIP"


class Tunnel(StrEnum):
    """Order matters: of two references to one address the first of the sorted ones counts."""

    WIREGUARD = "0-wireguard"
    IPIP = "1-ipip"
    VXLAN = "2-vxlan"


class Route(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One range. dst_node_ip: the node's address of the range's family, empty when unknown.

    same_subnet: the pool encapsulates across subnets only, and dst_node is in this node's own subnet.
    borrowed: the address belongs to another node than the block around it.
    """

    dst: str
    types: RouteType = RouteType.CIDR_INFO
    pool_type: PoolType = PoolType.NONE
    dst_node: str = ""
    dst_node_ip: str = ""
    same_subnet: bool = False
    nat_outgoing: bool = False
    local_workload: bool = False
    borrowed: bool = False
    tunnel_ipip: bool = False
    tunnel_vxlan: bool = False
    tunnel_wireguard: bool = False


class Vtep(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A node's end of the VXLAN overlay. parent_device_*: the node's own address that carries the packets."""

    node: str
    mac: str = ""
    ipv4: str = ""
    parent_device_ipv4: str = ""
    mac6: str = ""
    ipv6: str = ""
    parent_device_ipv6: str = ""


class _Range:
    """All that sources say of one range."""

    __slots__ = ("block_node", "hosts", "net", "pool", "tunnels", "workloads")

    def __init__(self, net: Net) -> None:
        self.net = net
        self.pool: Pool | None = None
        self.block_node = ""
        self.hosts: set[str] = set()
        self.tunnels: set[tuple[str, Tunnel]] = set()
        self.workloads: dict[str, int] = {}  # node -> number of workloads there with this address

    def empty(self) -> bool:
        return not (self.pool or self.block_node or self.hosts or self.tunnels or self.workloads)


class RouteResolver:
    """Routes as `node` sees them. Every `put_*` replaces what was known under its key; None removes it."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.routes: dict[str, Route] = {}
        self._ranges: dict[Net, _Range] = {}
        self._ordered: list[Net] = []  # its keys, sorted: what lies inside a range stands together
        self._lengths: dict[int, dict[int, int]] = {4: {}, 6: {}}  # version -> prefix length -> number of ranges
        self._text: dict[Net, str] = {}
        self._pools: dict[str, Pool] = {}
        self._blocks: dict[str, Block] = {}
        self._block_claims: dict[Net, dict[str, str]] = {}  # range -> block that says so -> node
        self._nodes: dict[str, NodeInfo] = {}
        self._workloads: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._dirty: set[Net] = set()
        self._moved: set[str] = set()  # nodes with other addresses: routes to them are looked for once, in flush()

    def put_pool(self, key: str, pool: Pool | None) -> None:
        old = self._pools.pop(key, None)
        if pool is not None:
            self._pools[key] = pool
        if old == pool:
            return
        for changed in (old, pool):
            if changed is not None:
                net = nets.parse(changed.cidr)
                holders = [name for name, known in self._pools.items() if nets.parse(known.cidr) == net]
                self._range(net).pool = self._pools[min(holders)] if holders else None
                self._touch(net, inside=True)

    def put_block(self, key: str, block: Block | None) -> None:
        old = self._blocks.pop(key, None)
        if block is not None:
            self._blocks[key] = block
        if old == block:
            return
        before, after = _block_routes(old), _block_routes(block)
        for net in before.keys() | after.keys():
            if before.get(net) == after.get(net):
                continue
            claims = self._block_claims.setdefault(net, {})
            claims.pop(key, None)
            if net in after:
                claims[key] = after[net]
            self._range(net).block_node = min(claims.items())[1] if claims else ""
            if not claims:
                del self._block_claims[net]
            self._touch(net, inside=True)

    def put_node(self, name: str, info: NodeInfo | None) -> None:
        old = self._nodes.pop(name, None)
        if info is not None:
            self._nodes[name] = info
        if old == info:
            return
        for net, kind in _node_addresses(old).items():
            one = self._range(net)
            one.hosts.discard(name)
            one.tunnels -= {(name, tunnel) for tunnel in kind}
            self._touch(net, inside=False)
        for net, kind in _node_addresses(info).items():
            one = self._range(net)
            if None in kind:
                one.hosts.add(name)
            one.tunnels |= {(name, tunnel) for tunnel in kind if tunnel is not None}
            self._touch(net, inside=False)
        if _addresses(old) != _addresses(info):
            # Routes to this node carry its address; for our own node the subnet decides about all others.
            if name == self.node:
                self._dirty |= self._ranges.keys()
            else:
                self._moved.add(name)

    def put_workload(self, key: str, node: str, networks: Iterable[str] | None) -> None:
        """A workload's addresses. With CalicoIPAM as the source of routes only this node's workloads are told; with
        WorkloadIPs all of them."""
        old = self._workloads.pop(key, None)
        new = None if networks is None else (node, tuple(networks))
        if new is not None:
            self._workloads[key] = new
        if old == new:
            return
        for change, step in ((old, -1), (new, 1)):
            for text in change[1] if change is not None else ():
                net = nets.parse(text)
                workloads = self._range(net).workloads
                owner = change[0] if change is not None else ""
                workloads[owner] = workloads.get(owner, 0) + step
                if not workloads[owner]:
                    del workloads[owner]
                self._touch(net, inside=False)

    def flush(self) -> dict[str, Route | None]:
        """What changed since the last flush, by range; `routes` holds the whole."""
        changes: dict[str, Route | None] = {}
        if self._moved:
            self._dirty |= {nets.parse(text) for text, route in self.routes.items() if route.dst_node in self._moved}
            self._moved.clear()
        for net in self._dirty:
            text = self._text_of(net)
            one = self._ranges.get(net)
            route = None
            if one is not None and one.empty():
                self._forget(net)
            elif one is not None:
                route = self._resolve(net, text)
            if route is None:
                if self.routes.pop(text, None) is not None:
                    changes[text] = None
                self._text.pop(net, None)
            elif self.routes.get(text) != route:
                self.routes[text] = changes[text] = route
        self._dirty.clear()
        return changes

    def _range(self, net: Net) -> _Range:
        one = self._ranges.get(net)
        if one is None:
            one = self._ranges[net] = _Range(net)
            insort(self._ordered, net)
            lengths = self._lengths[net.version]
            lengths[net.length] = lengths.get(net.length, 0) + 1
        return one

    def _forget(self, net: Net) -> None:
        del self._ranges[net]
        del self._ordered[bisect_left(self._ordered, net)]
        lengths = self._lengths[net.version]
        lengths[net.length] -= 1
        if not lengths[net.length]:
            del lengths[net.length]

    def _text_of(self, net: Net) -> str:
        text = self._text.get(net)
        if text is None:
            text = self._text[net] = nets.text(net)
        return text

    def _touch(self, net: Net, *, inside: bool) -> None:
        self._dirty.add(net)
        if inside and not net.is_host:
            after = net.base + (1 << (nets.BITS[net.version] - net.length))
            first = bisect_left(self._ordered, net)
            last = bisect_left(self._ordered, Net(net.version, after, 0))
            self._dirty.update(known for known in self._ordered[first:last] if known.length >= net.length)

    def _resolve(self, net: Net, text: str) -> Route | None:
        if net.base == 0 and net.is_host:
            return None
        types = RouteType.CIDR_INFO
        pool_type, nat_outgoing, cross_subnet = PoolType.NONE, False, False
        node = block_node = ""
        local_workload = borrowed = False
        tunnels: set[Tunnel] = set()
        is_address = bool(self._ranges[net].hosts)
        is_tunnel = bool(self._ranges[net].tunnels)
        bits = nets.BITS[net.version]
        for length in sorted(self._lengths[net.version]):
            if length > net.length:
                break
            shift = bits - length
            one = self._ranges.get(Net(net.version, net.base >> shift << shift, length))
            if one is None:
                continue
            if one.pool is not None:
                pool_type = pool_type_of(one.pool)
                nat_outgoing = nat_outgoing or one.pool.nat_outgoing
                cross_subnet = cross_subnet or "CrossSubnet" in (one.pool.ipip_mode, one.pool.vxlan_mode)
            if one.block_node:
                node = one.block_node
                borrowed = bool(block_node) and node != block_node
                block_node = block_node or node
                if not is_address and (not is_tunnel or one.net == net):
                    types |= RouteType.LOCAL_WORKLOAD if node == self.node else RouteType.REMOTE_WORKLOAD
            if one.net != net:
                continue
            if one.hosts:
                node = min(one.hosts)
                types |= RouteType.LOCAL_HOST if node == self.node else RouteType.REMOTE_HOST
            if one.workloads or one.tunnels:
                references = [*((name, "") for name in one.workloads), *one.tunnels]
                node, kind = min(references)
                local = node == self.node
                if not kind:
                    types |= RouteType.LOCAL_WORKLOAD if local else RouteType.REMOTE_WORKLOAD
                    local_workload = local
                else:
                    types |= RouteType.LOCAL_TUNNEL if local else RouteType.REMOTE_TUNNEL
                tunnels = {tunnel for name, tunnel in one.tunnels if name == node} if kind else set()
                borrowed = bool(block_node) and node != block_node
        info = self._nodes.get(node)
        own_address = (info.ipv4 if net.version == 4 else info.ipv6) if info is not None else ""
        return Route(
            dst=text,
            types=types,
            pool_type=pool_type,
            dst_node=node,
            dst_node_ip=nets.address(own_address),
            same_subnet=cross_subnet and self._in_our_subnet(node, net.version),
            nat_outgoing=nat_outgoing,
            local_workload=local_workload,
            borrowed=borrowed,
            tunnel_ipip=Tunnel.IPIP in tunnels,
            tunnel_vxlan=Tunnel.VXLAN in tunnels,
            tunnel_wireguard=Tunnel.WIREGUARD in tunnels,
        )

    def _in_our_subnet(self, node: str, version: int) -> bool:
        ours, theirs = self._nodes.get(self.node), self._nodes.get(node)
        if ours is None or theirs is None:
            return False
        our_subnet, their_address = (ours.ipv4, theirs.ipv4) if version == 4 else (ours.ipv6, theirs.ipv6)
        if not our_subnet or not their_address:
            return False
        return nets.parse(our_subnet).contains(nets.parse(nets.address(their_address)))


def resolve_routes(
    node: str,
    pools: Mapping[str, Pool],
    blocks: Mapping[str, Block],
    node_infos: Mapping[str, NodeInfo],
    workloads: Mapping[str, tuple[str, tuple[str, ...]]],
) -> dict[str, Route]:
    """All routes of `node`, from scratch. workloads: any key -> (node, its networks); only the local ones for
    CalicoIPAM.
    """
    resolver = RouteResolver(node)
    for key, pool in pools.items():
        resolver.put_pool(key, pool)
    for key, block in blocks.items():
        resolver.put_block(key, block)
    for name, info in node_infos.items():
        resolver.put_node(name, info)
    for key, (owner, networks) in workloads.items():
        resolver.put_workload(key, owner, networks)
    resolver.flush()
    return resolver.routes


def pool_type_of(pool: Pool) -> PoolType:
    if pool.vxlan_mode != "Never":
        return PoolType.VXLAN
    if pool.ipip_mode != "Never":
        return PoolType.IPIP
    return PoolType.NO_ENCAP


def vteps_for(node_infos: Mapping[str, NodeInfo]) -> dict[str, Vtep]:
    """The VXLAN tunnel endpoints: nodes that have an address and a tunnel address of the same family."""
    vteps: dict[str, Vtep] = {}
    for node, info in node_infos.items():
        ipv4 = (
            {"mac": info.vxlan_mac or generated_mac(node), "ipv4": info.vxlan_ipv4}
            if info.vxlan_ipv4 and info.ipv4
            else {}
        )
        ipv6 = (
            {"mac6": info.vxlan_mac6 or generated_mac(f"{node}-v6"), "ipv6": info.vxlan_ipv6}
            if info.vxlan_ipv6 and info.ipv6
            else {}
        )
        if ipv4 or ipv6:
            vteps[node] = Vtep(
                node=node,
                **ipv4,
                **ipv6,
                parent_device_ipv4=nets.address(info.ipv4) if ipv4 else "",
                parent_device_ipv6=nets.address(info.ipv6) if ipv6 else "",
            )
    return vteps


def generated_mac(name: str) -> str:
    """The MAC of a VTEP without a configured one: 0x66 and the first five octets of SHA-1 of the name."""
    return ":".join(f"{octet:02x}" for octet in b"\x66" + hashlib.sha1(name.encode()).digest()[:5])


def _block_routes(block: Block | None) -> dict[Net, str]:
    """Range -> node: the block itself to its owner, and each borrowed address to its user."""
    if block is None:
        return {}
    routes = {nets.parse(address): node for address, node in block.borrowed.items() if node}
    if block.node:
        routes[nets.parse(block.cidr)] = block.node
    return routes


def _node_addresses(info: NodeInfo | None) -> dict[Net, set[Tunnel | None]]:
    """A node's own addresses (None) and its tunnels', as host ranges."""
    found: dict[Net, set[Tunnel | None]] = {}
    if info is None:
        return found
    for address, kind in (
        (info.ipv4, None),
        (info.ipv6, None),
        (info.ipip_ipv4, Tunnel.IPIP),
        (info.vxlan_ipv4, Tunnel.VXLAN),
        (info.vxlan_ipv6, Tunnel.VXLAN),
        (info.wireguard_ipv4, Tunnel.WIREGUARD),
        (info.wireguard_ipv6, Tunnel.WIREGUARD),
    ):
        if address:
            found.setdefault(nets.parse(nets.address(address)), set()).add(kind)
    return found


def _addresses(info: NodeInfo | None) -> tuple[str, str]:
    return ("", "") if info is None else (info.ipv4, info.ipv6)
