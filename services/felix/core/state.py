"""What a node was told, with the indices that keep a change small; shared by the two address families."""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from libs.policy.output import (
    Host,
    Nat,
    NodeInfo,
    Policy,
    PolicyKey,
    Pool,
    Profile,
    Rule,
    Workload,
    WorkloadKey,
)
from libs.policy.routes import Vtep, vteps_for
from services.felix.core import hosts
from services.felix.core.dispatch import TierList, tier_lists
from services.felix.core.hosts import HostEndpoint
from services.felix.core.rules import Subject

Owner: TypeAlias = PolicyKey | str  # whose rules: a policy, or a profile by its name


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A workload that owns its interface, reduced to what its chains say."""

    workload: Workload
    up: bool
    inbound: tuple[TierList, ...]
    outbound: tuple[TierList, ...]


@dataclass(slots=True)
class Culprits:
    """To whom something in the table belongs."""

    owners: set[Owner] = field(default_factory=set)
    interfaces: set[str] = field(default_factory=set)  # of workloads
    hosts: set[str] = field(default_factory=set)  # names of host endpoints

    def __bool__(self) -> bool:
        return bool(self.owners or self.interfaces or self.hosts)


@dataclass(slots=True)
class Dirty:
    """What changed since the last flush, before it is known what that means for each family."""

    owners: set[Owner] = field(default_factory=set)
    lists: set[TierList] = field(default_factory=set)
    interfaces: set[str] = field(default_factory=set)
    nat: bool = False
    hosts: bool = False
    qos: bool = False
    services: bool = False


class State:
    def __init__(self) -> None:
        self.policies: dict[PolicyKey, Policy] = {}
        self.profiles: dict[str, Profile] = {}
        self.workloads: dict[WorkloadKey, Workload] = {}
        self.endpoints: dict[str, Endpoint] = {}  # by interface, as of the last resolve()
        self.hosts: dict[str, Host] = {}
        self.host_endpoints: dict[str, HostEndpoint] = {}  # by interface, as of the last resolve()
        self.host_marks: dict[int, frozenset[str]] = {}  # DSCP → addresses of this host that send with it
        self.limited: dict[str, Workload] = {}  # those of `endpoints` that are up and have limits or a DSCP mark
        self.pools: dict[str, Pool] = {}
        self.nodes: dict[str, NodeInfo] = {}
        self.vteps: dict[str, Vtep] = {}  # of those of `nodes` that take part in VXLAN
        self.service_cidrs: frozenset[str] = frozenset()
        self.set_users: dict[str, set[Owner]] = {}  # IP set id → who mentions it
        self.list_users: Counter[TierList] = Counter()
        self.lists_of: dict[PolicyKey, set[TierList]] = {}
        self.profile_users: Counter[str] = Counter()
        self.dirty = Dirty()
        # What the kernel refused, with its words, until it changes or is tried again: it denies everything meanwhile.
        self.refused_owners: dict[Owner, str] = {}
        self.refused_interfaces: dict[str, str] = {}  # of workloads
        self.refused_hosts: dict[str, str] = {}  # host endpoints
        self._by_interface: dict[str, list[WorkloadKey]] = {}
        self._host_addresses: dict[str, frozenset[str]] = {}

    def set_policy(self, key: PolicyKey, policy: Policy | None) -> None:
        old = self.policies.get(key)
        if old == policy:
            return
        self._index_sets(key, old, policy)
        self.refused_owners.pop(key, None)
        if policy is None:
            del self.policies[key]
        else:
            self.policies[key] = policy
        self.dirty.owners.add(key)

    def set_profile(self, name: str, profile: Profile | None) -> None:
        old = self.profiles.get(name)
        if old == profile:
            return
        self._index_sets(name, old, profile)
        self.refused_owners.pop(name, None)
        if profile is None:
            del self.profiles[name]
        else:
            self.profiles[name] = profile
        self.dirty.owners.add(name)

    def set_workload(self, key: WorkloadKey, workload: Workload | None) -> None:
        old = self.workloads.get(key)
        if old == workload:
            return
        for changed in (old, workload):
            if changed is not None:
                self.refused_interfaces.pop(changed.name, None)
        if old is not None and (workload is None or workload.name != old.name):
            keys = self._by_interface[old.name]
            keys.remove(key)
            if not keys:
                del self._by_interface[old.name]
            self.dirty.interfaces.add(old.name)
        if workload is None:
            del self.workloads[key]
        else:
            if old is None or old.name != workload.name:
                insort(self._by_interface.setdefault(workload.name, []), key)
            self.workloads[key] = workload
            self.dirty.interfaces.add(workload.name)

    def set_host(self, name: str, host: Host | None) -> None:
        if self.hosts.get(name) == host:
            return
        self.refused_hosts.pop(name, None)
        if host is None:
            del self.hosts[name]
        else:
            self.hosts[name] = host
        self.dirty.hosts = True

    def set_node(self, name: str, node: NodeInfo | None) -> None:
        self.vteps.pop(name, None)
        if node is None:
            self.nodes.pop(name, None)
        else:
            self.nodes[name] = node
            self.vteps |= vteps_for({name: node})
        self.dirty.nat = True

    @property
    def expects_addresses(self) -> bool:
        return hosts.expects_addresses(self.hosts)

    def set_host_addresses(self, addresses: Mapping[str, frozenset[str]]) -> bool:
        if self._host_addresses != addresses:
            self._host_addresses = dict(addresses)
            self.dirty.hosts |= self.expects_addresses
        return self.dirty.hosts

    def resolve(self) -> Dirty:
        """Works out who owns each touched interface and what its chains need; returns all there is to write anew."""
        if self.dirty.hosts:
            self._resolve_hosts()
        for interface in self.dirty.interfaces:
            old, new = self.endpoints.get(interface), self._endpoint(interface)
            self._use_workload(new, 1)
            self._use_workload(old, -1)
            if new is None:
                self.endpoints.pop(interface, None)
            else:
                self.endpoints[interface] = new
            self.dirty.nat |= _floating(old) != _floating(new)
            self._limit(interface, new)
        done, self.dirty = self.dirty, Dirty()
        return done

    def refuse(self, culprits: Culprits, reason: str) -> bool:
        """False when they were all refused before: then denying them does not help."""
        new = Culprits(
            culprits.owners - self.refused_owners.keys(),
            culprits.interfaces - self.refused_interfaces.keys(),
            culprits.hosts - self.refused_hosts.keys(),
        )
        self.refused_owners.update(dict.fromkeys(new.owners, reason))
        self.refused_interfaces.update(dict.fromkeys(new.interfaces, reason))
        self.refused_hosts.update(dict.fromkeys(new.hosts, reason))
        self._touch(new)
        return bool(new)

    def try_again(self, owners: Iterable[Owner] | None = None) -> None:
        """What was refused is wanted as it is, once more; owners: these alone."""
        if owners is None:
            self._touch(Culprits(set(self.refused_owners), set(self.refused_interfaces), set(self.refused_hosts)))
            self.refused_owners, self.refused_interfaces, self.refused_hosts = {}, {}, {}
            return
        for owner in owners:
            if self.refused_owners.pop(owner, None) is not None:
                self.dirty.owners.add(owner)

    def _touch(self, culprits: Culprits) -> None:
        self.dirty.owners |= culprits.owners
        self.dirty.interfaces |= culprits.interfaces
        self.dirty.hosts |= bool(culprits.hosts)

    def owner_of(self, interface: str) -> WorkloadKey | None:
        """The workload that has an interface which several may name."""
        keys = self._by_interface.get(interface)
        return keys[0] if keys else None

    def set_service_cidrs(self, cidrs: Iterable[str]) -> None:
        cidrs = frozenset(cidrs)
        self.dirty.services |= cidrs != self.service_cidrs
        self.service_cidrs = cidrs

    def everything(self) -> Dirty:
        """All that there is to write, for a ruleset that starts from nothing. Call resolve() first."""
        mentioned = {key for tier_list in self.list_users for key in tier_list.policies}
        return Dirty(
            owners={*self.policies, *self.profiles, *self.profile_users, *mentioned},
            lists=set(self.list_users),
            interfaces=set(self.endpoints),
            nat=True,
            hosts=True,
            qos=True,
            services=True,
        )

    def rules(self, owner: Owner, inbound: bool) -> tuple[Rule, ...] | None:
        """None: not known."""
        known = self.profiles.get(owner) if isinstance(owner, str) else self.policies.get(owner)
        return None if known is None else known.inbound if inbound else known.outbound

    def wanted(self, owner: Owner) -> bool:
        """True when the owner must have chains: it is known, or somebody jumps to it."""
        if isinstance(owner, str):
            return owner in self.profiles or self.profile_users[owner] > 0
        return owner in self.policies or bool(self.lists_of.get(owner))

    def subject(self, owner: Owner) -> Subject:
        if isinstance(owner, str):
            return Subject(id=f"pro/{owner}", name=owner)
        id_ = str(owner)
        policy = self.policies.get(owner)
        return Subject(
            id=id_,
            tier=policy.tier if policy is not None else "",
            kind=id_.partition("/")[0],
            namespace=owner.namespace,
            name=owner.name,
            untracked=policy is not None and policy.untracked,
            pre_dnat=policy is not None and policy.pre_dnat,
        )

    def _endpoint(self, interface: str) -> Endpoint | None:
        """The lowest key wins an interface that several workloads name; the others wait for it to go."""
        keys = self._by_interface.get(interface)
        if not keys:
            return None
        workload = self.workloads[keys[0]]
        up = workload.state == "active" and interface not in self.refused_interfaces
        return Endpoint(workload, up, tier_lists(workload.tiers, True), tier_lists(workload.tiers, False))

    def _resolve_hosts(self) -> None:
        before = self.host_endpoints
        self.host_endpoints = {
            interface: hosts.endpoint(name, self._enforceable(name), wildcard=interface == hosts.ANY)
            for interface, name in hosts.resolve(self.hosts, self._host_addresses).items()
        }
        for endpoints, count in ((self.host_endpoints, 1), (before, -1)):
            for endpoint in endpoints.values():
                self._use(endpoint.tier_lists(), endpoint.profiles, count)
        marks = hosts.marks(self.hosts, self._host_addresses, self.refused_hosts.keys())
        self.dirty.qos |= marks != self.host_marks
        self.host_marks = marks

    def _enforceable(self, name: str) -> Host:
        """Of one that the kernel refused no more than that it closes the host."""
        return Host() if name in self.refused_hosts else self.hosts[name]

    def _limit(self, interface: str, endpoint: Endpoint | None) -> None:
        old = self.limited.pop(interface, None)
        new = endpoint.workload if endpoint is not None and endpoint.up and endpoint.workload.qos is not None else None
        if new is not None:
            self.limited[interface] = new
        self.dirty.qos |= _limited(old) != _limited(new)

    def _use_workload(self, endpoint: Endpoint | None, count: int) -> None:
        if endpoint is not None and endpoint.up:
            self._use((*endpoint.inbound, *endpoint.outbound), endpoint.workload.profiles, count)

    def _use(self, lists: Iterable[TierList], profiles: Iterable[str], count: int) -> None:
        for tier_list in lists:
            self.list_users[tier_list] += count
            if self.list_users[tier_list] == (1 if count > 0 else 0):
                self._list_appeared_or_went(tier_list, count > 0)
        for profile in profiles:
            self.profile_users[profile] += count
            if profile not in self.profiles:
                self.dirty.owners.add(profile)
            if not self.profile_users[profile]:
                del self.profile_users[profile]

    def _list_appeared_or_went(self, tier_list: TierList, appeared: bool) -> None:
        self.dirty.lists.add(tier_list)
        if not appeared:
            del self.list_users[tier_list]
        for key in tier_list.policies:
            lists = self.lists_of.setdefault(key, set())
            if appeared:
                lists.add(tier_list)
            else:
                lists.discard(tier_list)
                if not lists:
                    del self.lists_of[key]
            if key not in self.policies:
                self.dirty.owners.add(key)

    def _index_sets(self, owner: Owner, old: Policy | Profile | None, new: Policy | Profile | None) -> None:
        before = old.set_ids() if old is not None else set()
        after = new.set_ids() if new is not None else set()
        for set_id in before - after:
            users = self.set_users[set_id]
            users.discard(owner)
            if not users:
                del self.set_users[set_id]
        for set_id in after - before:
            self.set_users.setdefault(set_id, set()).add(owner)


def _limited(workload: Workload | None) -> object:
    return None if workload is None else (workload.qos, workload.nets4, workload.nets6)


def _floating(endpoint: Endpoint | None) -> tuple[Nat, ...]:
    return (*endpoint.workload.nat4, *endpoint.workload.nat6) if endpoint is not None and endpoint.up else ()
