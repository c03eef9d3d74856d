"""Who uses addresses, as far as the datastore tells: nodes with their tunnel addresses, and workload endpoints.

Read at one revision together with the blocks, so that an endpoint and its allocation are never seen half-way. In etcd
the workload endpoints are the pods: an endpoint is written before its pod runs and deleted with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_interface

import msgspec

from libs.ipam import keys
from libs.ipam.affinity import Owner
from libs.ipam.block import Block, decode_block
from libs.ipam.errors import IpamError
from libs.ipam.handles import Handle, decode_handle
from libs.ipam.wire import Address, Network
from libs.store.api import KeyValue, Store

Pod = tuple[str, str]  # namespace, name


@dataclass(frozen=True, slots=True)
class Workload:
    """One endpoint. addresses: empty while it has none yet."""

    name: str  # namespace/name of the endpoint
    node: str
    addresses: frozenset[Address]


@dataclass(frozen=True, slots=True)
class NodeView:
    """Tunnel addresses by what they are for, as the node's spec has them: `ipip`, `vxlan` …"""

    tunnels: Mapping[str, Address] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Users:
    """blind: namespaces with an endpoint that cannot be read, so that nobody knows which addresses it has."""

    nodes: Mapping[str, NodeView] = field(default_factory=dict)
    pods: Mapping[Pod, tuple[Workload, ...]] = field(default_factory=dict)
    blind: frozenset[str] = frozenset()

    def live(self) -> dict[Address, str]:
        """Every address that an endpoint lists, with the endpoint's name."""
        return {a: workload.name for found in self.pods.values() for workload in found for a in workload.addresses}


@dataclass(frozen=True, slots=True)
class Ledger:
    """All that address management has stored, at one revision. unreadable: keys of values that are not what they
    should be.
    """

    blocks: tuple[Block, ...]
    affinities: frozenset[tuple[Owner, Network]]
    hosts: frozenset[str]  # that have a marker or blocks
    handles: Mapping[str, tuple[Handle, KeyValue]]
    unreadable: tuple[str, ...]
    revision: int


async def read_users(store: Store, revision: int = 0) -> Users:
    nodes = await store.list(keys.resource("nodes"), revision=revision)
    endpoints = await store.list(keys.resource("workloadendpoints"), revision=revision or nodes.revision)
    pods: dict[Pod, tuple[Workload, ...]] = {}
    blind = set()
    for kv in endpoints.kvs:
        namespace = kv.key.split("/")[-2]
        try:
            raw = msgspec.json.decode(kv.value, type=_Endpoint)
            name = f"{namespace}/{raw.metadata.name}"
            addresses = frozenset(ip_interface(text).ip for text in raw.spec.networks or ())
        except ValueError:  # msgspec's own errors are ValueErrors too
            blind.add(namespace)
            continue
        pod = namespace, raw.spec.pod or raw.spec.workload or raw.metadata.name
        pods[pod] = (*pods.get(pod, ()), Workload(name, raw.spec.node, addresses))
    return Users({kv.key.rsplit("/", 1)[1]: _node(kv) for kv in nodes.kvs}, pods, frozenset(blind))


async def read_ledger(store: Store) -> Ledger:
    listing = await store.list(keys.PREFIX)
    blocks, unreadable, affinities, hosts = [], [], set(), set()
    handles: dict[str, tuple[Handle, KeyValue]] = {}
    for kv in listing.kvs:
        try:
            if kv.key.startswith((keys.blocks(4), keys.blocks(6))):
                blocks.append(decode_block(kv.value))
            elif kv.key.startswith(keys.HANDLES):
                handles[kv.key.removeprefix(keys.HANDLES)] = decode_handle(kv.value), kv
        except IpamError:
            unreadable.append(kv.key)
        if kv.key.startswith(keys.HOSTS):
            hosts.add(kv.key.removeprefix(keys.HOSTS).split("/", 1)[0])
        if (affinity := keys.parse_affinity(kv.key)) is not None:
            affinities.add(affinity)
    return Ledger(tuple(blocks), frozenset(affinities), frozenset(hosts), handles, tuple(unreadable), listing.revision)


class _Meta(msgspec.Struct):
    name: str = ""


class _EndpointSpec(msgspec.Struct):
    node: str = ""
    pod: str = ""
    workload: str = ""
    networks: list[str] | None = msgspec.field(name="ipNetworks", default=None)


class _Endpoint(msgspec.Struct):
    metadata: _Meta
    spec: _EndpointSpec


class _Bgp(msgspec.Struct):
    ipip: str = msgspec.field(name="ipv4IPIPTunnelAddr", default="")


class _Wireguard(msgspec.Struct):
    four: str = msgspec.field(name="interfaceIPv4Address", default="")
    six: str = msgspec.field(name="interfaceIPv6Address", default="")


class _NodeSpec(msgspec.Struct):
    bgp: _Bgp | None = None
    vxlan: str = msgspec.field(name="ipv4VXLANTunnelAddr", default="")
    vxlan6: str = msgspec.field(name="ipv6VXLANTunnelAddr", default="")
    wireguard: _Wireguard | None = None


class _Node(msgspec.Struct):
    spec: _NodeSpec


def _node(kv: KeyValue) -> NodeView:
    """A node that cannot be read is there all the same."""
    try:
        spec = msgspec.json.decode(kv.value, type=_Node).spec
    except ValueError:
        return NodeView()
    texts = {
        "vxlan": spec.vxlan,
        "vxlan-v6": spec.vxlan6,
        "ipip": spec.bgp.ipip if spec.bgp else "",
        "wireguard": spec.wireguard.four if spec.wireguard else "",
        "wireguard-v6": spec.wireguard.six if spec.wireguard else "",
    }
    found = {}
    for kind, text in texts.items():
        try:
            found[kind] = ip_interface(text).ip
        except ValueError:
            continue
    return NodeView(found)
