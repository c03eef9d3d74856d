"""WireGuard between nodes: which peers, routes and rule one address family wants. Pure.

    nodes, blocks, pools, settings, key of our device ──► Wanted: device, peers with their networks, routing table, rule

Every packet that does not carry our mark is looked up in a table of our own first (rule 99: `not fwmark`). That table
leads what belongs to a node with a key into the device, and throws everything else back to the main table; packets that
WireGuard itself made carry the mark and so go by the main table at once (facts/felix.md section 6).

Keys. The private key lives in the device alone. The public one is told to all by our Node's status; we send through the
tunnel only once we hear our own key from there, since before that no peer would understand us. When WireGuard is
switched off the key goes first: device and routes stay, and with them what peers still send us, until we hear that it
is gone.
Two nodes that say one key cannot be told apart, so neither is a peer.

A node without a usable key is reached in clear text, as in Calico. With `encrypt_or_drop` (ours) what belongs to a
pool is never sent in clear text: ranges of such nodes, and whatever of a pool nobody has, are unreachable. Addresses of
nodes themselves stay reachable, or no node could ever tell its key.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from ipaddress import IPv4Network, IPv6Network, ip_network

from libs.netlink.wireguard import IPAddress, WgPeer
from libs.policy.encryption import address_of, holders, key_text, told_key
from libs.policy.output import Block, NodeInfo, Pool

Network = IPv4Network | IPv6Network
TABLE = 1  # the first of those that felix may use by default (`routeTableRanges`)
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
    """Of FelixConfiguration. keepalive_s 0: off. table: of routes, one number for both families."""

    v4: FamilySettings = FamilySettings()
    v6: FamilySettings = FamilySettings(interface="wg-v6.cali", port=51821)
    priority: int = 99
    table: int = TABLE
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
    table: int = TABLE
    mtu_bytes: int = 0
    threading: bool = False
    addresses: frozenset[IPAddress] = frozenset()
    peers: dict[bytes, WgPeer] = field(default_factory=dict)
    routes: dict[Network, Way] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Node:
    """A node as this family sees it. key: None when it has none that can be used; fault: why it cannot. tunnel: its
    address on the WireGuard device. ends: addresses of all its tunnels, as networks; host: its own.
    """

    endpoint: IPAddress | None
    key: bytes | None
    fault: str
    tunnel: IPAddress | None
    ends: tuple[Network, ...]
    host: Network | None


@dataclass(frozen=True, slots=True)
class _Block:
    """own: the block itself and its node; lent: addresses in it that other nodes use."""

    own: tuple[Network, str] | None
    lent: tuple[tuple[Network, str], ...]


class Wireguard:
    """One family, told by `put_*`, which read what they are told. What is wanted is worked out anew when something
    changed: some 40 ms for a thousand nodes with five blocks each, and nothing while WireGuard is off.
    """

    def __init__(self, node: str, version: int) -> None:
        self.version = version
        self.dirty = True  # something changed since the caller last cleared this
        self.told_key = ""  # what our own Node says, as others hear it
        self._node = node
        self._settings = WireguardSettings()
        self._mark = 0
        self._infos: dict[str, NodeInfo] = {}
        self._nodes: dict[str, _Node] = {}
        self._blocks: dict[str, _Block] = {}
        self._pools: dict[str, Network] = {}  # those that pods and tunnels get addresses from

    def configure(self, settings: WireguardSettings, mark: int) -> None:
        self.dirty |= (settings, mark) != (self._settings, self._mark)
        self._settings, self._mark = settings, mark

    @property
    def settings(self) -> FamilySettings:
        return self._settings.family(self.version)

    def put_node(self, name: str, info: NodeInfo | None) -> None:
        if info == self._infos.get(name):
            return
        self.dirty = True
        if name == self._node:
            self.told_key = key_text(info, self.version) if info is not None else ""
        if info is None:
            del self._infos[name], self._nodes[name]
        else:
            self._infos[name], self._nodes[name] = info, self._read(info)

    def put_block(self, cidr: str, block: Block | None) -> None:
        if not self._is_ours(cidr):
            return
        self.dirty = True
        self._blocks.pop(cidr, None)
        if block is not None:
            own = (ip_network(block.cidr), block.node) if block.node else None
            lent = tuple((ip_network(address), node) for address, node in block.borrowed.items() if node)
            self._blocks[cidr] = _Block(own, lent)

    def put_pool(self, cidr: str, pool: Pool | None) -> None:
        if not self._is_ours(cidr):
            return
        self.dirty = True
        self._pools.pop(cidr, None)
        if pool is not None and (not pool.allowed_uses or {"Workload", "Tunnel"} & set(pool.allowed_uses)):
            self._pools[cidr] = ip_network(cidr)

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
        told = own is not None and own.endpoint is not None and own.key is not None and own.key == own_key
        # Switched off, until the key has gone: others, as bgp, take over only then. Not where hosts encrypt as well:
        # a host that dropped us as a peer could not be reached any more, be it the one that brings us the news.
        goes_on = told and (mine.enabled or not self._settings.host_encryption)
        if goes_on or (mine.enabled and self._settings.encrypt_or_drop):
            ready = {name for name, peer in nodes.items() if peer.key in peers and told}
            routes = dict(self._routes(networks, ready))
        tunnel = own.tunnel if own is not None and not self._settings.host_encryption else None
        return Wanted(
            interface=mine.interface,
            listen_port=mine.port,
            fwmark=self._mark,
            priority=self._settings.priority,
            table=self._settings.table,
            mtu_bytes=mine.mtu_bytes,
            threading=self._settings.threading,
            addresses=frozenset(() if tunnel is None else (tunnel,)),
            peers=peers,
            routes=routes,
            problems=problems,
        )

    # --- inside ---

    def _is_ours(self, cidr: str) -> bool:
        return (":" in cidr) == (self.version == 6)

    def _read(self, info: NodeInfo) -> _Node:
        v4 = self.version == 4
        tunnels = (
            (info.wireguard_ipv4, info.ipip_ipv4, info.vxlan_ipv4) if v4 else (info.wireguard_ipv6, info.vxlan_ipv6)
        )
        wireguard, *others = (address_of(text) for text in tunnels)
        endpoint = address_of(info.ipv4 if v4 else info.ipv6)
        key, fault = told_key(info, self.version)
        ends = tuple(ip_network(one) for one in (wireguard, *others) if one is not None)
        return _Node(endpoint, key, fault, wireguard, ends, None if endpoint is None else ip_network(endpoint))

    def _usable(self, own_key: bytes | None, problems: dict[str, str]) -> dict[str, _Node]:
        """Nodes, with those keys that can be used; why the others cannot goes to `problems`."""
        found = dict(self._nodes)
        for name, node in found.items():
            if node.fault:
                problems[self._object(name)] = f"not encrypted: {node.fault}"
        keys = [(name, node.key) for name, node in found.items() if node.key is not None]
        if own_key is not None:
            keys.append((self._node, own_key))  # ours as well before, or without, being told
        for key, names in holders(keys).items():
            for name in sorted(names) if len(names) > 1 else ():
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
        found = dict(block.own for block in self._blocks.values() if block.own is not None)
        for block in self._blocks.values():
            found.update(block.lent)
        lengths = sorted({net.prefixlen for net in found}, reverse=True)
        for name, node in self._nodes.items():
            host = (node.host,) if node.host is not None and self._settings.host_encryption else ()
            for net in (*node.ends, *host):
                if net not in found and _holder(net, found, lengths) != name:
                    found[net] = name
        return found

    def _routes(self, networks: dict[Network, str], ready: set[str]) -> Iterator[tuple[Network, Way]]:
        strict = self._settings.encrypt_or_drop
        hosts = {node.host for node in self._nodes.values()} if strict else set()
        if strict:
            yield from ((pool, Way.UNREACHABLE) for pool in self._pools.values())
            yield from ((host, Way.THROW) for host in hosts if host is not None)
        for net, owner in networks.items():
            if owner == self._node:
                yield net, Way.THROW
            elif owner in ready:
                yield net, Way.TUNNEL
            else:
                yield net, Way.UNREACHABLE if strict and net not in hosts else Way.THROW


def _holder(net: Network, networks: dict[Network, str], lengths: list[int]) -> str | None:
    """Of the smallest network around this one. lengths: of all prefixes, longest first."""
    for length in lengths:
        if length <= net.prefixlen and (owner := networks.get(net.supernet(new_prefix=length))) is not None:
            return owner
    return None
