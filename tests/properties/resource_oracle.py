"""What each resource means to the calculation, kind by kind, from the tables of the data model: labels, networks and
ports of endpoints and sets, policies in plain form, nodes, pools, blocks and slices.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Hashable
from typing import NamedTuple

from libs import model
from libs.model.kubernetes import KubernetesClusterNetworkPolicy, KubernetesEndpointSlice
from libs.policy.output import Block, Host, Nat, NodeInfo, PolicyKey, Pool, Qos, Workload, WorkloadKey
from tests.properties import kubernetes_oracle, rule_oracle
from tests.properties.kubernetes_oracle import Plain
from tests.properties.rule_oracle import NS, SA, WITH_PORTS, address, net, policy_text

CALICO_POLICIES = (
    model.NetworkPolicy,
    model.GlobalNetworkPolicy,
    model.StagedNetworkPolicy,
    model.StagedGlobalNetworkPolicy,
)


class Item(NamedTuple):
    """An endpoint or network set. labels: its own."""

    labels: dict[str, str]
    parents: list[str]
    nets: list[str]
    ports: list[tuple[str, str, int]]


class Endpoint(NamedTuple):
    node: str
    key: WorkloadKey | str
    item: Item
    bare: Workload | Host


class ChosenPolicy(NamedTuple):
    plain: Plain
    text: str


class Slice(NamedTuple):
    service: str
    addresses: list[str]
    ports: list[tuple[str, int]]


Meant = list[tuple[str, Hashable, object]]


def meaning(r: model.Resource) -> Meant:
    """Table, identity and value; nothing for what has no part in the calculation. Raises ValueError when a part means
    nothing.
    """
    name, namespace = r.metadata.name, r.metadata.namespace
    if isinstance(r, model.WorkloadEndpoint):
        return workload(r)
    if isinstance(r, model.HostEndpoint):
        return host(r)
    if isinstance(r, model.NetworkSet):
        labels = r.metadata.labels | {NS: namespace}
        return [("set", (namespace, name), Item(labels, [f"kns.{namespace}"], [net(one) for one in r.spec.nets], []))]
    if isinstance(r, model.GlobalNetworkSet):
        return [("set", ("", name), Item(r.metadata.labels, [], [net(one) for one in r.spec.nets], []))]
    if isinstance(r, model.Profile):
        return [("profile", name, r.spec)]
    if isinstance(r, model.Tier):
        return [("tier", name, r.spec)]
    if isinstance(r, model.Node):
        return [("node", name, node_info(r))]
    if isinstance(r, model.IPPool):
        return [("pool", net(r.spec.cidr), pool(r.spec))]
    if isinstance(r, model.IPAMBlock):
        return [("block", net(r.spec.cidr), block(r.spec))]
    if isinstance(r, KubernetesEndpointSlice):
        return endpoint_slice(r)
    plain = plain_policy(r)
    if plain is None:
        return []
    text = policy_text(plain.selector, namespace, plain.namespace_selector, plain.service_account_selector)
    for rules in (plain.ingress, plain.egress):
        rule_oracle.rules(rules, namespace, {})
    return [("policy", PolicyKey(r.kind, name, namespace), ChosenPolicy(plain, text))]


def plain_policy(r: model.Resource) -> Plain | None:
    if isinstance(r, KubernetesClusterNetworkPolicy):
        return kubernetes_oracle.cluster_policy(r.spec)
    if getattr(getattr(r, "spec", None), "staged_action", "") == "Delete":
        return None
    if isinstance(r, model.StagedKubernetesNetworkPolicy):
        return kubernetes_oracle.network_policy(r.spec)
    if not isinstance(r, CALICO_POLICIES):
        return None
    known = {field: getattr(r.spec, field) for field in Plain._fields if hasattr(r.spec, field)}
    return Plain(**known | {"tier": r.spec.tier or "default", "types": r.spec.types or ["Ingress", "Egress"]})


def workload(r: model.WorkloadEndpoint) -> Meant:
    spec, namespace = r.spec, r.metadata.namespace
    if not spec.ip_networks:
        return []
    nets = [net(one) for one in spec.ip_networks]
    if not re.fullmatch(r"[a-zA-Z0-9_.-]{1,15}", spec.interface_name):
        raise ValueError(spec.interface_name)
    labels = {name: value for name, value in r.metadata.labels.items() if not name.startswith(("pcns.", "pcsa."))}
    labels[NS] = namespace
    if spec.service_account_name:
        labels[SA] = spec.service_account_name
    third = {"k8s": spec.pod, "cni": spec.container_id, "libnetwork": "libnetwork"}
    key = WorkloadKey(spec.orchestrator, f"{namespace}/{third.get(spec.orchestrator, spec.workload)}", spec.endpoint)
    nats = [Nat(external=address(one.external_ip), internal=address(one.internal_ip)) for one in spec.ip_nats]
    for one in nats:
        if (":" in one.external) is not (":" in one.internal):
            raise ValueError(one)
    bare = Workload(
        name=spec.interface_name,
        mac=spec.mac,
        profiles=tuple(spec.profiles),
        nets4=tuple(one for one in nets if ":" not in one),
        nets6=tuple(one for one in nets if ":" in one),
        nat4=tuple(one for one in nats if ":" not in one.internal),
        nat6=tuple(one for one in nats if ":" in one.internal),
        allowed_source_prefixes=tuple(net(one) for one in spec.allow_spoofed_source_prefixes),
        labels=labels,
        qos=qos(spec.qos_controls),
    )
    item = Item(labels, list(spec.profiles), nets, ports(spec.ports))
    return [("endpoint", (spec.node, key), Endpoint(spec.node, key, item, bare))]


def qos(controls: model.QoSControls | None) -> Qos | None:
    if controls is None:
        return None
    limits = {name: getattr(controls, name) for name in controls.__struct_fields__}
    mark = limits.pop("dscp")
    if any(value < 0 for value in limits.values()) or (mark is not None and mark.number is None):
        raise ValueError(controls)
    made = Qos(**limits, dscp=None if mark is None else mark.number)
    return made if made != Qos() else None


def host(r: model.HostEndpoint) -> Meant:
    spec = r.spec
    if not re.fullmatch(r"\*|[a-zA-Z0-9_.-]{0,15}", spec.interface_name):
        raise ValueError(spec.interface_name)
    nets = [net(one) for one in spec.expected_ips]
    bare = Host(
        name=spec.interface_name,
        profiles=tuple(spec.profiles),
        expected4=tuple(one.partition("/")[0] for one in nets if ":" not in one),
        expected6=tuple(one.partition("/")[0] for one in nets if ":" in one),
    )
    item = Item(r.metadata.labels, list(spec.profiles), nets, ports(spec.ports))
    return [("endpoint", r.metadata.name, Endpoint(spec.node, r.metadata.name, item, bare))]


def ports(listed: list[model.EndpointPort] | list[model.WorkloadEndpointPort]) -> list[tuple[str, str, int]]:
    """Those with a name and a protocol that has ports; protocol 0 is none given, which means TCP."""
    found = []
    for one in listed:
        if not 0 <= one.port < 1 << 16:
            raise ValueError(one.port)
        word = "tcp" if one.protocol == "0" else one.protocol.lower()
        protocol = WITH_PORTS.get(int(word) if word.isdecimal() else word)
        if one.name and protocol is not None:
            found.append((one.name, protocol, one.port))
    return found


def endpoint_slice(r: KubernetesEndpointSlice) -> Meant:
    name = r.metadata.labels.get("kubernetes.io/service-name", "")
    if not name or r.address_type == "FQDN":
        return []
    addresses = [address(one) for endpoint in r.endpoints for one in endpoint.addresses]
    numbered = [((one.protocol or "TCP").lower(), one.port) for one in r.ports if one.port is not None]
    if any(not 0 <= number < 1 << 16 for _, number in numbered):
        raise ValueError(numbered)
    numbered = [one for one in numbered if one[0] in ("tcp", "udp", "sctp")]
    namespace = r.metadata.namespace
    return [("slice", (namespace, r.metadata.name), Slice(f"{namespace}/{name}", addresses, numbered))]


def node_info(r: model.Node) -> NodeInfo:
    """What is no address of its family is not there, nor a MAC that no interface can have."""
    spec, bgp = r.spec, r.spec.bgp or model.NodeBGPSpec()

    def known(text: str, version: int) -> str:
        try:
            found = net(text)
        except ValueError:
            return ""
        return text if (":" in found) == (version == 6) else ""

    def mac(text: str) -> str:
        try:
            octets = bytes.fromhex(re.sub("[:.-]", "", text))
        except ValueError:
            return ""
        return octets.hex(":") if len(octets) == 6 and any(octets) and not octets[0] % 2 else ""

    tunnel = spec.wireguard
    return NodeInfo(
        ipv4=known(bgp.ipv4_address, 4),
        ipv6=known(bgp.ipv6_address, 6),
        as_number="" if bgp.as_number is None else str(int(bgp.as_number)),
        labels=r.metadata.labels,
        vxlan_ipv4=known(spec.ipv4_vxlan_tunnel_addr, 4),
        vxlan_mac=mac(spec.vxlan_tunnel_mac_addr),
        vxlan_ipv6=known(spec.ipv6_vxlan_tunnel_addr, 6),
        vxlan_mac6=mac(spec.vxlan_tunnel_mac_addr_v6),
        ipip_ipv4=known(bgp.ipv4_ipip_tunnel_addr, 4),
        wireguard_ipv4="" if tunnel is None else known(tunnel.interface_ipv4_address, 4),
        wireguard_key=r.status.wireguard_public_key,
        wireguard_ipv6="" if tunnel is None else known(tunnel.interface_ipv6_address, 6),
        wireguard_key6=r.status.wireguard_public_key_v6,
    )


def pool(spec: model.IPPoolSpec) -> Pool:
    return Pool(
        cidr=net(spec.cidr),
        nat_outgoing=bool(spec.nat_outgoing),
        ipip_mode=spec.ipip_mode or "Never",
        vxlan_mode=spec.vxlan_mode or "Never",
        allowed_uses=tuple(spec.allowed_uses),
        disabled=bool(spec.disabled),
    )


def block(spec: model.IPAMBlockSpec) -> Block:
    kind, _, owner = (spec.affinity or "").partition(":")
    node = owner if kind == "host" else ""
    first = ipaddress.ip_network(net(spec.cidr))[0]
    borrowed = {}
    for ordinal, index in enumerate(spec.allocations):
        if index in range(len(spec.attributes)):
            user = spec.attributes[index].secondary.get("node", "")
            if user not in ("", node):
                borrowed[str(first + ordinal)] = user
    return Block(cidr=net(spec.cidr), node=node, borrowed=borrowed)
