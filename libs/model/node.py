"""Node: what Calico knows of a host."""

from __future__ import annotations

from typing import ClassVar

from msgspec import field

from libs.model.base import Resource, V3Struct, always
from libs.model.scalars import ASNumber


class NodeBGPSpec(V3Struct):
    """ipv4_address, ipv6_address: address with the prefix length of its network. Cluster ID: in IPv4 form."""

    as_number: ASNumber | None = None
    ipv4_address: str = ""
    ipv6_address: str = ""
    ipv4_ipip_tunnel_addr: str = ""
    route_reflector_cluster_id: str = ""


class OrchRef(V3Struct):
    """The node's name as an orchestrator knows it."""

    node_name: str = ""
    orchestrator: str = always("")


class NodeWireguardSpec(V3Struct):
    interface_ipv4_address: str = ""
    interface_ipv6_address: str = ""


class NodeAddress(V3Struct):
    """type: CalicoNodeIP, InternalIP or ExternalIP."""

    address: str = always("")
    type: str = ""


class NodeInterface(V3Struct):
    name: str = ""
    addresses: list[str] = field(default_factory=list)


class NodeSpec(V3Struct):
    bgp: NodeBGPSpec | None = None
    ipv4_vxlan_tunnel_addr: str = ""
    vxlan_tunnel_mac_addr: str = ""
    ipv6_vxlan_tunnel_addr: str = ""
    vxlan_tunnel_mac_addr_v6: str = ""
    orch_refs: list[OrchRef] = field(default_factory=list)
    wireguard: NodeWireguardSpec | None = None
    addresses: list[NodeAddress] = field(default_factory=list)
    interfaces: list[NodeInterface] = field(default_factory=list)


class NodeStatus(V3Struct):
    """Public keys in base64."""

    wireguard_public_key: str = ""
    wireguard_public_key_v6: str = ""
    pod_cidrs: list[str] = field(default_factory=list)


class Node(Resource):
    kind: ClassVar[str] = "Node"
    spec: NodeSpec = field(default_factory=NodeSpec)
    status: NodeStatus = field(default_factory=NodeStatus)
