"""The policy calculation written the plain way: everything from scratch, from the facts of the data model, with no
index, no counts and no memory. It knows the resources, the selector's tree and the published values, and nothing else
of the product.

    resources by key ─► what means something, one per identity ─► items, policies, profiles, tiers ─► the view of a node

What means nothing counts as absent; of two keys that mean the same thing the smaller one counts.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Hashable, Mapping

from libs import model
from libs.policy.changes import Encapsulation, NodeView
from libs.policy.output import (
    Action,
    Block,
    Host,
    IPSet,
    IPSetType,
    NodeInfo,
    Policy,
    PolicyKey,
    Pool,
    Profile,
    Rule,
    Tier,
    Workload,
    WorkloadKey,
)
from tests.properties import rule_oracle
from tests.properties.kubernetes_oracle import Plain
from tests.properties.resource_oracle import ChosenPolicy, Endpoint, Item, Slice, meaning
from tests.properties.rule_oracle import Sets, WantedSet, net, select

DENY = (Rule(action=Action.DENY),)
ALLOW = (Rule(action=Action.ALLOW),)


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
