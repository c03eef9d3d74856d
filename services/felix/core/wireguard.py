"""WireGuard between nodes: which peers, routes and rule one address family wants. Pure.

    nodes, blocks, pools, settings, key of our device ──► Wanted: device, peers with their networks, routing table, rule

Every packet that does not carry our mark is looked up in a table of our own first (rule 99: `not fwmark`). That table
leads what belongs to a node with a key into the device, and throws everything else back to the main table; packets that
WireGuard itself made carry the mark and so go by the main table at once (facts/felix.md section 6).

Keys. The private key lives in the device alone. The public one is told to all by our Node's status; we send through the
tunnel only once we hear our own key from there, since before that no peer would understand us. When WireGuard is
switched off the key goes first: the device stays, and with it what peers still send us, until we hear that it is gone.
Two nodes that say one key cannot be told apart, so neither is a peer.

A node without a usable key is reached in clear text, as in Calico. With `encrypt_or_drop` (ours) what belongs to a
pool is never sent in clear text: ranges of such nodes, and whatever of a pool nobody has, are unreachable. Addresses of
nodes themselves stay reachable, or no node could ever tell its key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network

from libs.netlink.wireguard import IPAddress, WgPeer, parse_key
from libs.policy.output import Block, NodeInfo, Pool

Network = IPv4Network | IPv6Network
TABLE = 1  # the first of Calico's RouteTableRange
OVERHEAD_BYTES = {4: 60, 6: 80}  # IP, UDP and WireGuard's own headers
MARK_BIT = 5  # of those of the mask, from the lowest: where Calico has it


class Way(Enum):
    """Where a route of our table leads."""

    TUNNEL = "tunnel"
    THROW = "throw"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class FamilySettings:
    """mtu_bytes: 0 is what the underlay leaves."""

    enabled: bool = False
    interface: str = "wireguard.cali"
    port: int = 51820
    mtu_bytes: int = 0


@dataclass(frozen=True, slots=True)
class WireguardSettings:
    """Of FelixConfiguration. keepalive_s 0: off."""

    v4: FamilySettings = FamilySettings()
    v6: FamilySettings = FamilySettings(interface="wg-v6.cali", port=51821)
    priority: int = 99
    keepalive_s: int = 0
    threading: bool = False
    host_encryption: bool = False
    encrypt_or_drop: bool = False
    metrics: bool = True

    def family(self, version: int) -> FamilySettings:
        return self.v4 if version == 4 else self.v6

    def ports(self, version: int) -> frozenset[int]:
        """On which encrypted packets of this family come in."""
        return frozenset({self.family(version).port} if self.family(version).enabled else ())


def mark_of(mask: int) -> int:
    """The bit that WireGuard's own packets carry: Calico's where the mask has as many, else its highest."""
    bits = [1 << bit for bit in range(32) if mask >> bit & 1]
    return bits[min(MARK_BIT, len(bits) - 1)]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Of one family, while its device is to be there. addresses: of this node on the device. routes: empty while we
    must not send through it. problems: by object, what cannot be encrypted and why.
    """

    interface: str
    listen_port: int
    fwmark: int
    priority: int
    mtu_bytes: int = 0
    threading: bool = False
    addresses: frozenset[IPAddress] = frozenset()
    peers: dict[bytes, WgPeer] = field(default_factory=dict)
    routes: dict[Network, Way] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Peer:
    """A node as this family sees it. key: None when it has none that can be used."""

    endpoint: IPAddress | None
    key: bytes | None
    tunnels: tuple[IPAddress, ...]


class Wireguard:
    """One family, told by `put_*`. Everything is worked out anew when something changed: that costs milliseconds for a
    thousand nodes, and nothing while WireGuard is off.
    """

    def __init__(self, node: str, version: int) -> None:
        self.version = version
        self.dirty = True  # something changed since the caller last cleared this
        self._node = node
        self._settings = WireguardSettings()
        self._mark = 0
        self._nodes: dict[str, NodeInfo] = {}
        self._blocks: dict[str, Block] = {}
        self._pools: dict[str, Pool] = {}

    def configure(self, settings: WireguardSettings, mark: int) -> None:
        self.dirty |= (settings, mark) != (self._settings, self._mark)
        self._settings, self._mark = settings, mark

    @property
    def settings(self) -> FamilySettings:
        return self._settings.family(self.version)

    @property
    def told_key(self) -> str:
        """What our own Node says, as others hear it."""
        return self._key_of(self._nodes.get(self._node, NodeInfo()))

    def put_node(self, name: str, info: NodeInfo | None) -> None:
        if info is None:
            self.dirty |= self._nodes.pop(name, None) is not None
        elif self._nodes.get(name) != info:
            self._nodes[name] = info
            self.dirty = True

    def put_block(self, cidr: str, block: Block | None) -> None:
        if self._is_ours(cidr):
            self._blocks.pop(cidr, None)
            if block is not None:
                self._blocks[cidr] = block
            self.dirty = True

    def put_pool(self, cidr: str, pool: Pool | None) -> None:
        if self._is_ours(cidr):
            self._pools.pop(cidr, None)
            if pool is not None:
                self._pools[cidr] = pool
            self.dirty = True

    def wanted(self, own_key: bytes | None) -> Wanted | None:
        """own_key: public key of our device; None: there is none yet. None: no device."""
        mine = self.settings
        if not mine.enabled and not self.told_key:
            return None
        problems: dict[str, str] = {}
        nodes = self._usable(own_key, problems)
        own = nodes.pop(self._node, None)
        networks = self._networks()
        peers: dict[bytes, WgPeer] = {}
        allowed: dict[str, set[Network]] = {}
        for network, owner in networks.items():
            allowed.setdefault(owner, set()).add(network)
        for name, peer in nodes.items():
            if peer.key is not None and peer.endpoint is not None:
                endpoint = (peer.endpoint, mine.port)
                found = frozenset(allowed.get(name, ()))
                peers[peer.key] = WgPeer(peer.key, endpoint, found, self._settings.keepalive_s)
        routes: dict[Network, Way] = {}
        told = own is not None and own.key is not None and own.key == own_key
        if mine.enabled and (told or self._settings.encrypt_or_drop):
            ready = {name for name, peer in nodes.items() if peer.key in peers and told}
            routes = dict(self._routes(networks, ready))
        addresses = own.tunnels if own is not None and not self._settings.host_encryption else ()
        return Wanted(
            interface=mine.interface,
            listen_port=mine.port,
            fwmark=self._mark,
            priority=self._settings.priority,
            mtu_bytes=mine.mtu_bytes,
            threading=self._settings.threading,
            addresses=frozenset(addresses),
            peers=peers,
            routes=routes,
            problems=problems,
        )

    # --- inside ---

    def _is_ours(self, cidr: str) -> bool:
        return (":" in cidr) == (self.version == 6)

    def _key_of(self, info: NodeInfo) -> str:
        return info.wireguard_key if self.version == 4 else info.wireguard_key6

    def _usable(self, own_key: bytes | None, problems: dict[str, str]) -> dict[str, _Peer]:
        """Nodes, with those keys that can be used; why the others cannot goes to `problems`."""
        found: dict[str, _Peer] = {}
        for name, info in sorted(self._nodes.items()):
            told = self._key_of(info)
            key = None
            if told:
                try:
                    key = parse_key(told)
                except ValueError as error:
                    problems[self._object(name)] = f"not encrypted: its key {told!r} cannot be used: {error}"
            text = info.ipv4 if self.version == 4 else info.ipv6
            tunnel = info.wireguard_ipv4 if self.version == 4 else info.wireguard_ipv6
            endpoint = ip_interface(text).ip if text else None
            if key is not None and endpoint is None and name != self._node:
                problems[self._object(name)] = f"not encrypted: it has a key and no IPv{self.version} address"
            tunnels = (ip_address(tunnel.partition("/")[0]),) if tunnel else ()
            found[name] = _Peer(endpoint, key, tunnels)
        holders: dict[bytes, set[str]] = {}
        for name, peer in found.items():
            if peer.key is not None:
                holders.setdefault(peer.key, set()).add(name)
        if own_key is not None:
            holders.setdefault(own_key, set()).add(self._node)  # ours as well before, or without, being told
        for key, names in holders.items():
            for name in names if len(names) > 1 else ():
                others = ", ".join(sorted(names - {name}))
                problems[self._object(name)] = f"not encrypted: {others} has the same key"
                if name in found and found[name].key == key:
                    found[name] = replace(found[name], key=None)
        return found

    def _object(self, node: str) -> str:
        return f"WireGuard IPv{self.version} node {node}"

    def _networks(self) -> dict[Network, str]:
        """Network → node that has it: blocks, addresses lent to another node, and tunnel addresses outside of both.
        With host encryption, nodes' own addresses too.
        """
        found: dict[Network, str] = {}
        lent: dict[Network, str] = {}
        for block in self._blocks.values():
            if block.node:
                found[ip_network(block.cidr)] = block.node
            lent.update((ip_network(address), node) for address, node in block.borrowed.items() if node)
        found |= lent
        lengths = {net.prefixlen for net in found}
        for name, info in self._nodes.items():
            for address in self._addresses_of(info):
                net = ip_network(address)
                if net not in found and self._holder(net, found, lengths) != name:
                    found[net] = name
        return found

    def _addresses_of(self, info: NodeInfo) -> Iterator[str]:
        own = "" if not self._settings.host_encryption else info.ipv4 if self.version == 4 else info.ipv6
        if self.version == 4:
            texts = (info.wireguard_ipv4, info.ipip_ipv4, info.vxlan_ipv4, own)
        else:
            texts = (info.wireguard_ipv6, "", info.vxlan_ipv6, own)
        for text in texts:
            if text:
                yield text.partition("/")[0]

    @staticmethod
    def _holder(net: Network, networks: dict[Network, str], lengths: set[int]) -> str | None:
        for length in sorted(lengths, reverse=True):
            if length <= net.prefixlen and (owner := networks.get(net.supernet(new_prefix=length))) is not None:
                return owner
        return None

    def _routes(self, networks: dict[Network, str], ready: set[str]) -> Iterator[tuple[Network, Way]]:
        strict = self._settings.encrypt_or_drop
        hosts = {ip_network(text.partition("/")[0]) for text in self._host_texts()}
        if strict:
            for cidr, pool in self._pools.items():
                if not pool.allowed_uses or {"Workload", "Tunnel"} & set(pool.allowed_uses):
                    yield ip_network(cidr), Way.UNREACHABLE
            for net in hosts:
                yield net, Way.THROW
        for net, owner in networks.items():
            if owner == self._node:
                yield net, Way.THROW
            elif owner in ready:
                yield net, Way.TUNNEL
            else:
                yield net, Way.UNREACHABLE if strict and net not in hosts else Way.THROW

    def _host_texts(self) -> Iterator[str]:
        for info in self._nodes.values():
            text = info.ipv4 if self.version == 4 else info.ipv6
            if text:
                yield text
