"""The policy calculation written the plain way: everything from scratch, from the facts of the data model, with no
index, no counts and no memory. It knows the resources, the selector's tree and the published values, and nothing else
of the product.

    resources by key ─► what means something, one per identity ─► items, policies, profiles, tiers ─► the view of a node

What means nothing counts as absent; of two keys that mean the same thing the smaller one counts.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Hashable, Mapping
from typing import NamedTuple

from libs import model
from libs.model.kubernetes import KubernetesClusterNetworkPolicy, KubernetesEndpointSlice
from libs.policy.changes import Encapsulation, NodeView
from libs.policy.output import (
    Action,
    Block,
    Host,
    IPSet,
    IPSetType,
    Nat,
    NodeInfo,
    Policy,
    PolicyKey,
    Pool,
    Profile,
    Qos,
    Rule,
    Tier,
    Workload,
    WorkloadKey,
)
from tests.properties import kubernetes_oracle, rule_oracle
from tests.properties.kubernetes_oracle import Plain
from tests.properties.rule_oracle import NS, SA, WITH_PORTS, Sets, WantedSet, address, net, policy_text, select

DENY = (Rule(action=Action.DENY),)
ALLOW = (Rule(action=Action.ALLOW),)
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


class Oracle:
    """asked: nodes that were asked for."""

    def __init__(self, resources: Mapping[str, model.Resource], asked: set[str]) -> None:
        found: dict[str, dict[Hashable, object]] = {}
        self.refused: set[str] = set()
        for key in sorted(resources):
            try:
                meant = meaning(resources[key])
            except ValueError:
                self.refused.add(key)
                continue
            for table, identity, value in meant:
                found.setdefault(table, {}).setdefault(identity, value)
        self.profiles: dict[str, model.ProfileSpec] = found.get("profile", {})
        self.tiers: dict[str, model.TierSpec] = found.get("tier", {})
        self.policies: dict[PolicyKey, ChosenPolicy] = found.get("policy", {})
        self.slices: list[Slice] = list(found.get("slice", {}).values())
        self.node_infos: dict[str, NodeInfo] = found.get("node", {})
        self.pools: dict[str, Pool] = found.get("pool", {})
        self.blocks: dict[str, Block] = found.get("block", {})
        self.endpoints: list[Endpoint] = list(found.get("endpoint", {}).values())
        self.items = [*(one.item for one in self.endpoints), *found.get("set", {}).values()]
        self.nodes = asked | self.node_infos.keys() | {one.node for one in self.endpoints}

    def labels(self, item: Item) -> dict[str, str]:
        """Its own labels win over inherited ones, those of an earlier profile over those of a later one."""
        labels: dict[str, str] = {}
        for parent in reversed(item.parents):
            labels |= self.profiles[parent].labels_to_apply if parent in self.profiles else {}
        return labels | item.labels

    # --- one node -----------------------------------------------------------------------------------------------------

    def view(self, node: str) -> NodeView:
        workloads: dict[WorkloadKey, Workload] = {}
        hosts: dict[str, Host] = {}
        active: set[PolicyKey] = set()
        used: set[str] = set()
        if node in self.nodes:
            hint = "AssumeNeededOnEveryNode"
            active |= {key for key, policy in self.policies.items() if hint in policy.plain.performance_hints}
        for where, key, item, bare in self.endpoints:
            if where != node:
                continue
            labels = self.labels(item)
            matching = {one for one, policy in self.policies.items() if select(policy.text, labels)}
            active |= matching
            used |= set(bare.profiles)
            if isinstance(bare, Workload):
                workloads[key] = with_fields(bare, tiers=self.arranged(matching, "normal"))
            else:
                hosts[key] = with_fields(
                    bare,
                    tiers=self.arranged(matching, "normal"),
                    untracked_tiers=self.arranged(matching, "untracked"),
                    pre_dnat_tiers=self.arranged(matching, "pre_dnat"),
                    forward_tiers=self.arranged(matching, "forward"),
                )
        sets: Sets = {}
        policies = {key: self.policy(key, sets) for key in active}
        profiles = {name: self.profile(name, sets) for name in used}
        return NodeView(
            workloads=workloads,
            hosts=hosts,
            policies=policies,
            profiles=profiles,
            ipsets={set_id: self.members(wanted) for set_id, wanted in sets.items()},
        )

    def policy(self, key: PolicyKey, sets: Sets) -> Policy:
        plain, text = self.policies[key]
        return Policy(
            tier=plain.tier,
            namespace=key.namespace,
            inbound=rule_oracle.rules(plain.ingress, key.namespace, sets),
            outbound=rule_oracle.rules(plain.egress, key.namespace, sets),
            selector=text,
            untracked=plain.do_not_track,
            pre_dnat=plain.pre_dnat,
            performance_hints=tuple(plain.performance_hints),
        )

    def profile(self, name: str, sets: Sets) -> Profile:
        """One that is missing, or whose rules mean nothing, denies everything."""
        if name not in self.profiles:
            rules = ALLOW if name == "projectcalico-default-allow" else DENY
            return Profile(inbound=rules, outbound=rules)
        spec, wanted = self.profiles[name], Sets()
        try:
            made = Profile(
                inbound=rule_oracle.rules(spec.ingress, "", wanted), outbound=rule_oracle.rules(spec.egress, "", wanted)
            )
        except ValueError:
            return Profile(inbound=DENY, outbound=DENY)
        sets |= wanted
        return made

    # --- sets ---------------------------------------------------------------------------------------------------------

    def members(self, wanted: WantedSet) -> IPSet:
        if wanted.service:
            slices = [one for one in self.slices if one.service == wanted.service]
            if not wanted.with_ports:
                return IPSet(IPSetType.NET, frozenset(net(one) for part in slices for one in part.addresses))
            members = {
                f"{one},{protocol}:{number}"
                for part in slices
                for one in part.addresses
                for protocol, number in part.ports
            }
            return IPSet(IPSetType.IP_PORT, frozenset(members))
        chosen = [item for item in self.items if select(wanted.selector, self.labels(item))]
        if wanted.port:
            members = {
                f"{one.partition('/')[0]},{protocol}:{number}"
                for item in chosen
                for one in item.nets
                if one.endswith("/128" if ":" in one else "/32")  # a port is of an address, not of a network
                for name, protocol, number in item.ports
                if name == wanted.port and wanted.protocol in ("any", protocol)
            }
            return IPSet(IPSetType.IP_PORT, frozenset(members))
        return IPSet(IPSetType.NET, uncovered({one for item in chosen for one in item.nets}))

    # --- order --------------------------------------------------------------------------------------------------------

    def arranged(self, matching: set[PolicyKey], part: str) -> tuple[Tier, ...]:
        chosen = {key: self.policies[key].plain for key in matching if part in parts(self.policies[key].plain)}
        found = []
        for name in sorted({plain.tier for plain in chosen.values()}, key=self.tier_key):
            inside = [key for key, plain in chosen.items() if plain.tier == name]
            inside.sort(key=lambda key: (ascending(chosen[key].order), f"{key.name}/{key.namespace}/{key.kind}"))
            ingress = tuple(key for key in inside if "Ingress" in chosen[key].types)
            egress = tuple(key for key in inside if "Egress" in chosen[key].types) if part != "pre_dnat" else ()
            if part in ("untracked", "pre_dnat"):
                action = "Pass"
            else:
                action = (self.tiers[name].default_action or "Deny") if name in self.tiers else "Deny"
            if ingress or egress:
                found.append(Tier(name=name, default_action=action, ingress=ingress, egress=egress))
        return tuple(found)

    def tier_key(self, name: str) -> tuple[bool, float, str]:
        order = self.tiers[name].order if name in self.tiers else None
        return (name not in self.tiers, ascending(order), name)

    # --- what every node reads ----------------------------------------------------------------------------------------

    @property
    def encapsulation(self) -> Encapsulation:
        pools = self.pools.values()
        return Encapsulation(
            ipip=any(pool.ipip_mode != "Never" for pool in pools),
            vxlan=any(pool.vxlan_mode != "Never" and ":" not in pool.cidr for pool in pools),
            vxlan_v6=any(pool.vxlan_mode != "Never" and ":" in pool.cidr for pool in pools),
        )

    @property
    def namespaces(self) -> dict[str, dict[str, str]]:
        return {
            name.removeprefix("kns."): unprefixed(spec.labels_to_apply, "pcns.")
            for name, spec in self.profiles.items()
            if name.startswith("kns.")
        }

    @property
    def service_accounts(self) -> dict[tuple[str, str], dict[str, str]]:
        found = {}
        for name, spec in self.profiles.items():
            start, *rest = name.split(".", 2)
            if start == "ksa" and len(rest) == 2:
                found[rest[0], rest[1]] = unprefixed(spec.labels_to_apply, "pcsa.")
        return found


def unprefixed(labels: dict[str, str], prefix: str) -> dict[str, str]:
    return {name.removeprefix(prefix): value for name, value in labels.items() if name.startswith(prefix)}


def with_fields(bare: Workload | Host, **fields: object) -> Workload | Host:
    given = {name: getattr(bare, name) for name in bare.__struct_fields__}
    return type(bare)(**(given | fields))


def ascending(order: float | None) -> float:
    return math.inf if order is None else order


def parts(plain: Plain) -> set[str]:
    """The lists of a host endpoint that a policy stands in."""
    if plain.do_not_track:
        return {"untracked"}
    if plain.pre_dnat:
        return {"pre_dnat"}
    return {"normal", "forward"} if plain.apply_on_forward else {"normal"}


def uncovered(members: set[str]) -> frozenset[str]:
    """Without those that lie in another one."""
    networks = {one: ipaddress.ip_network(one) for one in members}
    return frozenset(
        one
        for one in members
        if not any(
            one != other and networks[one].version == cover.version and networks[one].subnet_of(cover)
            for other, cover in networks.items()
        )
    )


# --- what a resource means --------------------------------------------------------------------------------------------

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
    """What is no address is not there."""
    spec, bgp = r.spec, r.spec.bgp or model.NodeBGPSpec()

    def known(text: str) -> str:
        try:
            net(text)
        except ValueError:
            return ""
        return text

    tunnel = spec.wireguard
    return NodeInfo(
        ipv4=known(bgp.ipv4_address),
        ipv6=known(bgp.ipv6_address),
        as_number="" if bgp.as_number is None else str(int(bgp.as_number)),
        labels=r.metadata.labels,
        vxlan_ipv4=known(spec.ipv4_vxlan_tunnel_addr),
        vxlan_mac=spec.vxlan_tunnel_mac_addr,
        vxlan_ipv6=known(spec.ipv6_vxlan_tunnel_addr),
        vxlan_mac6=spec.vxlan_tunnel_mac_addr_v6,
        ipip_ipv4=known(bgp.ipv4_ipip_tunnel_addr),
        wireguard_ipv4="" if tunnel is None else known(tunnel.interface_ipv4_address),
        wireguard_key=r.status.wireguard_public_key,
        wireguard_ipv6="" if tunnel is None else known(tunnel.interface_ipv6_address),
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
