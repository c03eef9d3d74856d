"""Who uses addresses, as far as the datastore tells: nodes with their tunnel addresses, and workload endpoints.

Read at one revision together with the blocks, so that an endpoint and its allocation are never seen half-way. In etcd
the workload endpoints are the pods: an endpoint is written before its pod runs and deleted with it. What Kubernetes
says besides is in `libs.ipam.pods`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_interface

import msgspec

from libs.ipam import keys
from libs.ipam.affinity import Owner
from libs.ipam.block import Block, decode_block
from libs.ipam.errors import IpamError
from libs.ipam.handles import Handle, decode_handle
from libs.ipam.pods import ClusterView, Pod
from libs.ipam.wire import Address, Network
from libs.store.api import KeyValue, Store

KUBERNETES = "k8s"  # orchestrator of endpoints that are pods


@dataclass(frozen=True, slots=True)
class Workload:
    """One endpoint. addresses: empty while it has none yet."""

    name: str  # namespace/name of the endpoint
    node: str
    addresses: frozenset[Address]
    orchestrator: str = ""
    revision: int = 0  # of its key


@dataclass(frozen=True, slots=True)
class NodeView:
    """Tunnel addresses by what they are for, as the node's spec has them: `ipip`, `vxlan` …"""

    tunnels: Mapping[str, Address] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Users:
    """blind: namespaces with an endpoint that cannot be read, so that nobody knows which addresses it has. cluster:
    what Kubernetes says; None where nobody asks it.
    """

    nodes: Mapping[str, NodeView] = field(default_factory=dict)
    pods: Mapping[Pod, tuple[Workload, ...]] = field(default_factory=dict)
    blind: frozenset[str] = frozenset()
    cluster: ClusterView | None = None

    def live(self) -> dict[Address, str]:
        """Every address that an endpoint lists whose pod may be there, with the endpoint's name."""
        return {a: one.name for pod, one in self.workloads() if not self.lost(pod, one) for a in one.addresses}

    def listed(self) -> frozenset[Address]:
        """Every address that any endpoint lists."""
        return frozenset(a for _, workload in self.workloads() for a in workload.addresses)

    def workloads(self) -> Iterator[tuple[Pod, Workload]]:
        return ((pod, workload) for pod, found in self.pods.items() for workload in found)

    def lost(self, pod: Pod, workload: Workload) -> bool:
        """Is it a pod's endpoint, and Kubernetes says that the pod is not on that node any more?"""
        if self.cluster is None or workload.orchestrator != KUBERNETES:
            return False
        return self.cluster.lost(pod, workload.node)

    def node_gone(self, node: str) -> bool:
        """Neither the datastore nor Kubernetes has it."""
        return node not in self.nodes and not (self.cluster is not None and node in self.cluster.nodes)


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
        workload = Workload(name, raw.spec.node, addresses, raw.spec.orchestrator, kv.mod_revision)
        pods[pod] = (*pods.get(pod, ()), workload)
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
    orchestrator: str = ""
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
