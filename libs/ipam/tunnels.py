"""Tunnel addresses of a node: which it needs, from which pools, and where its Node object says them. Pure.

    pools, node ──► wanted() ──► kind of tunnel → pools that may give its address
    addresses   ──► with_addresses() ──► node

Order and rules are those of Calico's `allocate-tunnel-addrs` (facts/ipam.md, section 8). Each kind has one handle per
node, `<kind>-tunnel-addr-<node>`, and the attributes `node` and `type`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address, ip_interface

import msgspec

from libs.ipam.block import Allocation
from libs.ipam.pools import Pool, Use
from libs.ipam.source import pool_from_resource
from libs.ipam.wire import Address
from libs.model.node import Node, NodeBGPSpec, NodeWireguardSpec
from libs.model.pools import IPPool

OFF = ("", "Never")


class Tunnel(Enum):
    """In the order in which they are served. Values: name in handles, `type` attribute, IP version."""

    WIREGUARD = ("wireguard", "wireguardTunnelAddress", 4)
    WIREGUARD_V6 = ("wireguard-v6", "wireguardV6TunnelAddress", 6)
    IPIP = ("ipip", "ipipTunnelAddress", 4)
    VXLAN = ("vxlan", "vxlanTunnelAddress", 4)
    VXLAN_V6 = ("vxlan-v6", "vxlanV6TunnelAddress", 6)

    @property
    def type(self) -> str:
        return self.value[1]

    @property
    def version(self) -> int:
        return self.value[2]

    def handle(self, node: str) -> str:
        return f"{self.value[0]}-tunnel-addr-{node}"

    def attributes(self, node: str) -> dict[str, str]:
        return {"node": node, "type": self.type}


@dataclass(frozen=True, slots=True)
class Choice:
    """What a node does about one tunnel. keep: an address that its handle has already. ask: an address to ask for
    first, because the node is known by it. release: what its handle has too much.
    """

    keep: Address | None = None
    ask: Address | None = None
    release: tuple[Allocation, ...] = ()


def wanted(pools: Iterable[IPPool], node: Node, *, host_encryption: bool = False) -> dict[Tunnel, list[Pool]]:
    """Tunnels that the node needs. host_encryption: WireGuard between the hosts themselves, which takes no address."""
    labels = node.metadata.labels
    found: dict[Tunnel, list[Pool]] = {}
    for resource in pools:
        try:
            pool = pool_from_resource(resource)
        except ValueError:
            continue  # as every reader skips it
        if pool.disabled or pool.manual or Use.TUNNEL not in pool.uses or not pool.selects_node(labels):
            continue
        for tunnel in Tunnel:
            if tunnel.version == pool.cidr.version and _uses(tunnel, resource, node, host_encryption):
                found.setdefault(tunnel, []).append(pool)
    return {tunnel: found[tunnel] for tunnel in Tunnel if tunnel in found}


def _uses(tunnel: Tunnel, pool: IPPool, node: Node, host_encryption: bool) -> bool:
    match tunnel:
        case Tunnel.IPIP:
            return pool.spec.ipip_mode not in OFF
        case Tunnel.VXLAN | Tunnel.VXLAN_V6:
            return pool.spec.vxlan_mode not in OFF
        case Tunnel.WIREGUARD:
            return bool(node.status.wireguard_public_key) and not host_encryption
        case Tunnel.WIREGUARD_V6:
            return bool(node.status.wireguard_public_key_v6) and not host_encryption


def choose(
    tunnel: Tunnel, node: str, told: Address | None, held: Sequence[Allocation], pools: Sequence[Pool]
) -> Choice:
    """told: the address in the Node object. held: what the handle has. pools: that may give it; none: it goes."""
    good = [
        one
        for one in held
        if any(one.address in pool.cidr for pool in pools)
        and one.attrs.get("node", node) == node
        and one.attrs.get("type", tunnel.type) == tunnel.type
    ]
    kept = next((one for one in good if one.address == told), good[0] if good else None)
    rest = tuple(one for one in held if one is not kept)
    if kept is not None:
        return Choice(kept.address, release=rest)
    inside = told is not None and any(told in pool.cidr for pool in pools)
    return Choice(ask=told if inside else None, release=rest)


def told_addresses(node: Node) -> dict[Tunnel, Address]:
    """What the Node object says; an address that cannot be read is none."""
    spec = node.spec
    texts = {
        Tunnel.WIREGUARD: spec.wireguard.interface_ipv4_address if spec.wireguard else "",
        Tunnel.WIREGUARD_V6: spec.wireguard.interface_ipv6_address if spec.wireguard else "",
        Tunnel.IPIP: spec.bgp.ipv4_ipip_tunnel_addr if spec.bgp else "",
        Tunnel.VXLAN: spec.ipv4_vxlan_tunnel_addr,
        Tunnel.VXLAN_V6: spec.ipv6_vxlan_tunnel_addr,
    }
    found: dict[Tunnel, Address] = {}
    for tunnel, text in texts.items():
        try:
            found[tunnel] = ip_interface(text).ip
        except ValueError:
            continue
    return found


def with_addresses(node: Node, addresses: Mapping[Tunnel, Address]) -> Node:
    """The node with these tunnel addresses and no others. Parts that would be empty are left out."""

    def text(tunnel: Tunnel) -> str:
        return str(ip_address(addresses[tunnel])) if tunnel in addresses else ""

    bgp = msgspec.structs.replace(node.spec.bgp or NodeBGPSpec(), ipv4_ipip_tunnel_addr=text(Tunnel.IPIP))
    wireguard = msgspec.structs.replace(
        node.spec.wireguard or NodeWireguardSpec(),
        interface_ipv4_address=text(Tunnel.WIREGUARD),
        interface_ipv6_address=text(Tunnel.WIREGUARD_V6),
    )
    spec = msgspec.structs.replace(
        node.spec,
        bgp=bgp if bgp != NodeBGPSpec() else None,
        wireguard=wireguard if wireguard != NodeWireguardSpec() else None,
        ipv4_vxlan_tunnel_addr=text(Tunnel.VXLAN),
        ipv6_vxlan_tunnel_addr=text(Tunnel.VXLAN_V6),
    )
    return msgspec.structs.replace(node, spec=spec)
