"""Resources reduced to what the calculation uses, so that a change that does not matter is recognised by comparing two
values.

This is the only place that knows the v3 shapes (besides the rules themselves) and the places where one object of the
API becomes something else: labels that are added or taken away, host addresses made networks, names that carry a
meaning (`kns.`, `ksa.`). `reduce` raises ValueError for a resource that must be treated as absent, because a part of it
means nothing (a selector that does not parse). Such a resource would have been refused by the API; it can only come
from a raw write.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

import msgspec

from libs import model
from libs.model.kubernetes import (
    SERVICE_NAME_LABEL,
    KubernetesClusterNetworkPolicy,
    KubernetesEndpointSlice,
    KubernetesService,
)
from libs.model.selector import NAMESPACE_PREFIX, SERVICE_ACCOUNT_PREFIX, Selector
from libs.model.validation.endpoints import DSCP_ANNOTATION
from libs.policy import bgp_services, kubernetes, nets, rules
from libs.policy.order import PolicyOrder, TierSpec
from libs.policy.output import Block, Host, Nat, NodeInfo, PolicyKey, Pool, Qos, Workload, WorkloadKey
from libs.policy.sets import Contributor, NamedPort

EVERY_NODE_HINT = "AssumeNeededOnEveryNode"
DEFAULT_TIER = "default"
PASSTHROUGH_KINDS = frozenset({"BGPConfiguration", "BGPFilter", "BGPPeer", "ClusterInformation", "FelixConfiguration"})
NAMESPACE_PROFILE = "kns."
IPAM = "/calico/ipam/"
SERVICE_ACCOUNT_PROFILE = "ksa."
_INTERFACE = re.compile(r"[a-zA-Z0-9_.-]{1,15}")  # what the API admits; the kernel has room for no more


class EndpointInput(msgspec.Struct, frozen=True):
    """A workload or host endpoint. `base` is what is published, without tiers; `key` a WorkloadKey or the host
    endpoint's name.
    """

    node: str
    key: WorkloadKey | str
    labels: dict[str, str]
    profiles: tuple[str, ...]
    contributor: Contributor
    base: Workload | Host

    @property
    def identity(self) -> Hashable:
        return (self.node, self.key) if isinstance(self.key, WorkloadKey) else self.key


class NetworkSetInput(msgspec.Struct, frozen=True):
    identity: str
    labels: dict[str, str]
    parents: tuple[str, ...]
    contributor: Contributor


class PolicyInput(msgspec.Struct, frozen=True):
    order: PolicyOrder
    selector: Selector
    ingress: tuple[model.Rule, ...]
    egress: tuple[model.Rule, ...]
    hints: tuple[str, ...]

    @property
    def identity(self) -> PolicyKey:
        return self.order.key


class ProfileInput(msgspec.Struct, frozen=True):
    identity: str
    labels: dict[str, str]
    ingress: tuple[model.Rule, ...]
    egress: tuple[model.Rule, ...]


class TierInput(msgspec.Struct, frozen=True):
    identity: str
    spec: TierSpec


class NodeInput(msgspec.Struct, frozen=True):
    """cluster_id: of a route reflector. kubernetes_name: when it differs."""

    identity: str
    info: NodeInfo
    cluster_id: str = ""
    kubernetes_name: str = ""


class PoolInput(msgspec.Struct, frozen=True):
    identity: str  # the CIDR
    pool: Pool


class BlockInput(msgspec.Struct, frozen=True):
    identity: str  # the CIDR
    block: Block


class AffinityInput(msgspec.Struct, frozen=True):
    """A node's claim to a block that holds."""

    node: str
    cidr: str

    @property
    def identity(self) -> Hashable:
        return self.node, self.cidr


class ServiceInput(msgspec.Struct, frozen=True):
    identity: str  # namespace/name
    service: bgp_services.Service


class SliceInput(msgspec.Struct, frozen=True):
    """An endpoint slice: addresses and ports of a service, and where its ready endpoints are. Policies ask for the
    former, whether ready or not.
    """

    identity: str  # namespace/name
    service: str  # namespace/name
    members: frozenset[str]  # "10.0.0.1,tcp:80"
    addresses: frozenset[str]  # "10.0.0.1/32"
    endpoints: bgp_services.Endpoints


class PassthroughInput(msgspec.Struct, frozen=True):
    """Configuration and BGP kinds: not calculated with, handed on as they are."""

    identity: str
    resource: model.Resource


Input = (
    EndpointInput
    | NetworkSetInput
    | PolicyInput
    | ProfileInput
    | TierInput
    | NodeInput
    | PoolInput
    | BlockInput
    | AffinityInput
    | ServiceInput
    | SliceInput
    | PassthroughInput
)


def reduce(key: str, resource: model.Resource) -> Input | None:
    """What the calculation needs of a resource; None when it has no part in it. Raises ValueError (see above)."""
    match resource:
        case model.WorkloadEndpoint():
            return _workload(resource)
        case model.HostEndpoint():
            return _host(resource)
        case model.NetworkPolicy() | model.GlobalNetworkPolicy():
            return _policy(resource, resource.spec)
        case model.StagedNetworkPolicy() | model.StagedGlobalNetworkPolicy():
            # A staged deletion concerns the policy that it would delete, which goes on unchanged.
            return None if resource.spec.staged_action == "Delete" else _policy(resource, resource.spec)
        case model.StagedKubernetesNetworkPolicy():
            if resource.spec.staged_action == "Delete":
                return None
            return _policy(resource, kubernetes.network_policy(resource.spec).spec)
        case KubernetesClusterNetworkPolicy():
            if not resource.spec.ingress and not resource.spec.egress:
                return None  # only directions with rules count, and no types at all would mean both
            return _policy(resource, kubernetes.cluster_network_policy(resource.spec).spec)
        case KubernetesEndpointSlice():
            return _slice(resource)
        case KubernetesService():
            return _service(resource)
        case model.NetworkSet() | model.GlobalNetworkSet():
            return _network_set(resource)
        case model.Profile():
            spec = resource.spec
            return ProfileInput(_name(resource), dict(spec.labels_to_apply), tuple(spec.ingress), tuple(spec.egress))
        case model.Tier():
            return TierInput(_name(resource), TierSpec(resource.spec.order, resource.spec.default_action or "Deny"))
        case model.Node():
            return _node_input(resource)
        case model.IPPool():
            return _pool(resource)
        case model.IPAMBlock():
            return _block(resource)
        case model.BlockAffinity():
            return _affinity(key, resource)
        case _:
            return PassthroughInput(key, resource) if resource.kind in PASSTHROUGH_KINDS else None


def _name(resource: model.Resource) -> str:
    return resource.metadata.name


def _workload(resource: model.WorkloadEndpoint) -> EndpointInput | None:
    spec, namespace = resource.spec, resource.metadata.namespace
    networks = tuple(map(nets.canonical, spec.ip_networks))
    if not networks:
        return None
    if not _INTERFACE.fullmatch(spec.interface_name):
        raise ValueError(f"interfaceName: {spec.interface_name!r} cannot be the name of an interface")
    labels = {
        label: value
        for label, value in resource.metadata.labels.items()
        if not label.startswith((NAMESPACE_PREFIX, SERVICE_ACCOUNT_PREFIX))
    }
    if namespace:
        labels[rules.NAMESPACE_LABEL] = namespace
    if spec.service_account_name:
        labels[rules.SERVICE_ACCOUNT_LABEL] = spec.service_account_name
    third = {"k8s": spec.pod, "cni": spec.container_id, "libnetwork": "libnetwork"}.get(
        spec.orchestrator, spec.workload
    )
    nat = [_nat(entry) for entry in spec.ip_nats]
    profiles = tuple(spec.profiles)
    return EndpointInput(
        node=spec.node,
        key=WorkloadKey(spec.orchestrator, f"{namespace}/{third}", spec.endpoint),
        labels=labels,
        profiles=profiles,
        contributor=Contributor(networks, _ports(spec.ports)),
        base=Workload(
            name=spec.interface_name,
            mac=spec.mac,
            profiles=profiles,
            nets4=_family(networks, 4),
            nets6=_family(networks, 6),
            nat4=tuple(entry for entry in nat if nets.version_of(entry.internal) == 4),
            nat6=tuple(entry for entry in nat if nets.version_of(entry.internal) == 6),
            allowed_source_prefixes=tuple(map(nets.canonical, spec.allow_spoofed_source_prefixes)),
            labels=labels,
            qos=_qos(spec.qos_controls),
        ),
    )


def _qos(controls: model.QoSControls | None) -> Qos | None:
    """None when nothing is limited or marked. Raises ValueError for a DSCP that is none."""
    if controls is None:
        return None
    values = {name: getattr(controls, name) for name in Qos.__struct_fields__ if name != "dscp"}
    if any(value < 0 for value in values.values()):
        raise ValueError("qosControls: limits cannot be negative")
    dscp = None
    if controls.dscp is not None and (dscp := controls.dscp.number) is None:
        raise ValueError(f"qosControls.dscp: {controls.dscp!r} is no code point")
    qos = Qos(**values, dscp=dscp)
    return None if qos == Qos() else qos


def _nat(entry: model.IPNAT) -> Nat:
    internal, external = nets.canonical_address(entry.internal_ip), nets.canonical_address(entry.external_ip)
    if nets.version_of(internal) != nets.version_of(external):
        raise ValueError(f"ipNATs: {external} and {internal} are of two families")
    return Nat(external, internal)


def _host(resource: model.HostEndpoint) -> EndpointInput:
    spec = resource.spec
    if spec.interface_name not in ("", "*") and not _INTERFACE.fullmatch(spec.interface_name):
        raise ValueError(f"interfaceName: {spec.interface_name!r} cannot be the name of an interface")
    networks = tuple(map(nets.canonical, spec.expected_ips))
    profiles = tuple(spec.profiles)
    return EndpointInput(
        node=spec.node,
        key=_name(resource),
        labels=dict(resource.metadata.labels),
        profiles=profiles,
        contributor=Contributor(networks, _ports(spec.ports)),
        base=Host(
            name=spec.interface_name,
            profiles=profiles,
            expected4=tuple(map(nets.address, _family(networks, 4))),
            expected6=tuple(map(nets.address, _family(networks, 6))),
            dscp=_host_dscp(resource),
        ),
    )


def _host_dscp(resource: model.HostEndpoint) -> int | None:
    """A value that is none is no reason to leave a host without protection."""
    text = resource.metadata.annotations.get(DSCP_ANNOTATION)
    return None if text is None else model.DSCP(text).number


def _ports(ports: Sequence[model.EndpointPort | model.WorkloadEndpointPort]) -> tuple[NamedPort, ...]:
    """Named ports of an endpoint; those without a name or of a protocol without ports are of no use here. Protocol 0
    is none, and stands for TCP.
    """
    found = []
    for port in ports:
        given = rules.protocol_of(port.protocol)
        protocol = "tcp" if given is None or given == 0 else rules.port_protocol(given)
        _check_port(port.port)
        if port.name and protocol is not None:
            found.append(NamedPort(port.name, protocol, port.port))
    return tuple(found)


def _network_set(resource: model.NetworkSet | model.GlobalNetworkSet) -> NetworkSetInput:
    namespace = resource.metadata.namespace
    labels = dict(resource.metadata.labels)
    if namespace:
        labels[rules.NAMESPACE_LABEL] = namespace
    return NetworkSetInput(
        identity=f"{namespace}/{_name(resource)}",
        labels=labels,
        parents=(f"{NAMESPACE_PROFILE}{namespace}",) if namespace else (),
        contributor=Contributor(tuple(map(nets.canonical, resource.spec.nets))),
    )


def _check_port(number: int) -> None:
    if not 0 <= number <= 65535:
        raise ValueError(f"port must be between 0 and 65535, not {number}")


PolicySpec = (
    model.NetworkPolicySpec
    | model.GlobalNetworkPolicySpec
    | model.StagedNetworkPolicySpec
    | model.StagedGlobalNetworkPolicySpec
)


def _policy(resource: model.Resource, spec: PolicySpec) -> PolicyInput:
    """spec: the resource's own, or what it was converted to."""
    namespace = resource.metadata.namespace
    ingress, egress = tuple(spec.ingress), tuple(spec.egress)
    types = spec.types or ("Ingress", "Egress")  # none given means both here; the API fills it in
    namespace_selector = ""
    untracked = pre_dnat = on_forward = False
    if isinstance(spec, model.GlobalNetworkPolicySpec | model.StagedGlobalNetworkPolicySpec):
        namespace_selector = spec.namespace_selector
        untracked, pre_dnat, on_forward = bool(spec.do_not_track), bool(spec.pre_dnat), bool(spec.apply_on_forward)
    order = PolicyOrder(
        key=PolicyKey(resource.kind, _name(resource), namespace),
        tier=spec.tier or DEFAULT_TIER,
        order=spec.order,
        ingress="Ingress" in types,
        egress="Egress" in types,
        untracked=untracked,
        pre_dnat=pre_dnat,
        apply_on_forward=on_forward,
    )
    selector = rules.policy_selector(spec.selector, namespace, namespace_selector, spec.service_account_selector)
    rules.check(ingress, namespace)
    rules.check(egress, namespace)
    return PolicyInput(order, selector, ingress, egress, tuple(spec.performance_hints))


def _node_input(resource: model.Node) -> NodeInput:
    name, bgp = _name(resource), resource.spec.bgp or model.NodeBGPSpec()
    known_as = kubernetes_name(resource)
    return NodeInput(name, _node(resource), bgp.route_reflector_cluster_id, known_as if known_as != name else "")


def kubernetes_name(resource: model.Node) -> str:
    """ "" when it does not say."""
    return next((ref.node_name for ref in resource.spec.orch_refs if ref.orchestrator == "k8s"), "")


def _node(resource: model.Node) -> NodeInfo:
    """What is no MAC, or no address of the field's family, counts as not there: every node would stumble over it."""
    spec, status = resource.spec, resource.status
    bgp = spec.bgp or model.NodeBGPSpec()
    wireguard = spec.wireguard or model.NodeWireguardSpec()
    return NodeInfo(
        ipv4=nets.valid_address(bgp.ipv4_address, 4),
        ipv6=nets.valid_address(bgp.ipv6_address, 6),
        as_number="" if bgp.as_number is None else str(bgp.as_number),
        labels=dict(resource.metadata.labels),
        vxlan_ipv4=nets.valid_address(spec.ipv4_vxlan_tunnel_addr, 4),
        vxlan_mac=nets.valid_mac(spec.vxlan_tunnel_mac_addr),
        vxlan_ipv6=nets.valid_address(spec.ipv6_vxlan_tunnel_addr, 6),
        vxlan_mac6=nets.valid_mac(spec.vxlan_tunnel_mac_addr_v6),
        ipip_ipv4=nets.valid_address(bgp.ipv4_ipip_tunnel_addr, 4),
        wireguard_ipv4=nets.valid_address(wireguard.interface_ipv4_address, 4),
        wireguard_key=status.wireguard_public_key,
        wireguard_ipv6=nets.valid_address(wireguard.interface_ipv6_address, 6),
        wireguard_key6=status.wireguard_public_key_v6,
    )


def _pool(resource: model.IPPool) -> PoolInput:
    spec = resource.spec
    cidr = nets.canonical(spec.cidr)
    return PoolInput(
        cidr,
        Pool(
            cidr=cidr,
            nat_outgoing=bool(spec.nat_outgoing),
            ipip_mode=spec.ipip_mode or "Never",
            vxlan_mode=spec.vxlan_mode or "Never",
            allowed_uses=tuple(spec.allowed_uses),
            disabled=bool(spec.disabled),
            disable_bgp_export=bool(spec.disable_bgp_export),
        ),
    )


def _block(resource: model.IPAMBlock) -> BlockInput:
    """Who owns the block, and which addresses another node uses. What has no node (a released address too, and one
    whose attribute is not there) routes nowhere.
    """
    spec = resource.spec
    cidr = nets.canonical(spec.cidr)
    kind, _, owner = (spec.affinity or "").partition(":")
    node = owner if kind == "host" else ""
    users = [attribute.secondary.get("node", "") for attribute in spec.attributes]
    borrowed = {
        nets.nth_address(cidr, ordinal): users[index]
        for ordinal, index in enumerate(spec.allocations)
        if index is not None and 0 <= index < len(users) and users[index] and users[index] != node
    }
    return BlockInput(cidr, Block(cidr=cidr, node=node, borrowed=borrowed))


def _affinity(key: str, resource: model.BlockAffinity) -> AffinityInput | None:
    """None for a claim that does not hold, or not yet; of a service; or written by users, which means nothing."""
    spec = resource.spec
    if not key.startswith(IPAM) or spec.type not in ("", "host") or spec.state != "confirmed" or spec.deleted:
        return None
    return AffinityInput(spec.node, nets.canonical(spec.cidr))


def _service(resource: KubernetesService) -> ServiceInput | None:
    """None for one that has no addresses of its own. An address that is none counts as not there."""
    spec = resource.spec
    cluster = _addresses(spec.cluster_ips or [spec.cluster_ip])  # a headless service has the address None
    if spec.type not in bgp_services.TYPES or not cluster:
        return None
    ingress = [entry.ip for entry in resource.status.load_balancer.ingress]
    made = bgp_services.Service(
        local=spec.external_traffic_policy == "Local",
        cluster=cluster,
        external=_addresses(spec.external_ips),
        balanced=_addresses(ingress),
    )
    return ServiceInput(f"{resource.metadata.namespace}/{_name(resource)}", made)


def _addresses(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(nets.canonical_address(text) for text in texts if nets.valid_address(text) and "/" not in text)


def _slice(resource: KubernetesEndpointSlice) -> SliceInput | None:
    """None for one that belongs to no service; ports of a protocol without any are left out. Raises ValueError for an
    address or a port that is none.
    """
    namespace, service = resource.metadata.namespace, resource.metadata.labels.get(SERVICE_NAME_LABEL, "")
    if not service or resource.address_type == "FQDN":
        return None
    found = [nets.canonical_address(text) for endpoint in resource.endpoints for text in endpoint.addresses]
    ports = [(rules.port_protocol((port.protocol or "TCP").lower()), port.port) for port in resource.ports]
    for _, number in ports:
        _check_port(number or 0)
    ready = frozenset(
        one.node_name or "" for one in resource.endpoints if one.addresses and one.conditions.ready is not False
    )
    return SliceInput(
        identity=f"{namespace}/{_name(resource)}",
        service=f"{namespace}/{service}",
        members=frozenset(
            f"{address},{protocol}:{number}"
            for address in found
            for protocol, number in ports
            if protocol is not None and number is not None
        ),
        addresses=frozenset(map(nets.canonical, found)),
        endpoints=bgp_services.Endpoints(f"{namespace}/{service}", 6 if resource.address_type == "IPv6" else 4, ready),
    )


def _family(networks: tuple[str, ...], version: int) -> tuple[str, ...]:
    return tuple(net for net in networks if nets.version_of(net) == version)


def namespace_of_profile(name: str) -> str | None:
    """`kns.<namespace>` stands for a namespace."""
    return name.removeprefix(NAMESPACE_PROFILE) if name.startswith(NAMESPACE_PROFILE) else None


def service_account_of_profile(name: str) -> tuple[str, str] | None:
    """`ksa.<namespace>.<name>` stands for a service account: (namespace, name)."""
    if not name.startswith(SERVICE_ACCOUNT_PROFILE):
        return None
    namespace, dot, account = name.removeprefix(SERVICE_ACCOUNT_PROFILE).partition(".")
    return (namespace, account) if dot else None


def carried_labels(labels: dict[str, str], prefix: str) -> dict[str, str]:
    """The labels of the namespace or service account that a profile carries under `prefix`."""
    return {label.removeprefix(prefix): value for label, value in labels.items() if label.startswith(prefix)}
