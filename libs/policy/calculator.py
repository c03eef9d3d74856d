"""The calculation for all nodes at once: resources in, what each node enforces out.

    update ──► inputs.reduce ──► Claims ──► LabelIndex ──► endpoints' policies ──► order ──► Workload / Host by node
                                               │                    │
                                               └──► SetTable ◄── RuleBook (policies, profiles that are active somewhere)

Everything is a function of the current resources: any order, duplication, coalescing or replay of updates ends in the
same state. `update` only notes the newest value of a key; `flush` works out what it means, touching no more than what
changed, and tells it. Routes are not calculated here: they are different on every node and cheap, so each node makes
its own (`routes.py`) from the pools, blocks and nodes told here.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from pyroaring import BitMap

from libs import model
from libs.policy import inputs, rules
from libs.policy.bgp import BgpCalculation, BgpTables
from libs.policy.bgp_inputs import BGP_KINDS
from libs.policy.changes import Changes, Encapsulation, NodeView
from libs.policy.claims import Claims
from libs.policy.index import Entry, LabelIndex
from libs.policy.inputs import (
    AffinityInput,
    BlockInput,
    EndpointInput,
    Input,
    NetworkSetInput,
    NodeInput,
    PassthroughInput,
    PolicyInput,
    PoolInput,
    ProfileInput,
    ServiceInput,
    SliceInput,
    TierInput,
)
from libs.policy.order import EndpointTiers, TierSpec, arrange
from libs.policy.output import (
    Action,
    Block,
    Host,
    IPSet,
    NodeInfo,
    Policy,
    PolicyKey,
    Pool,
    Profile,
    Rule,
    Workload,
    WorkloadKey,
)
from libs.policy.report import Report
from libs.policy.rulebook import RuleBook, SetUse
from libs.policy.sets import SetSpec, SetTable
from libs.policy.tables import SharedTables

T = TypeVar("T")

DEFAULT_ALLOW_PROFILE = "projectcalico-default-allow"
_DENY = (Rule(action=Action.DENY),)
_ALLOW = (Rule(action=Action.ALLOW),)
# What an endpoint gets for a profile that does not exist: it fails closed.
MISSING_PROFILE = Profile(inbound=_DENY, outbound=_DENY)
BUILT_IN_PROFILES = {DEFAULT_ALLOW_PROFILE: Profile(inbound=_ALLOW, outbound=_ALLOW)}


class _Applied(msgspec.Struct, frozen=True):
    """What a combination of matching selectors means for an endpoint; shared by all endpoints with that combination."""

    policies: frozenset[PolicyKey]
    tiers: EndpointTiers


_NOTHING = _Applied(frozenset(), EndpointTiers())


class _Endpoint:
    """An endpoint as it was last published."""

    __slots__ = ("applied", "profiles", "value")

    def __init__(self) -> None:
        self.applied = _NOTHING
        self.profiles: tuple[str, ...] = ()
        self.value: Workload | Host | None = None


class Calculator:
    """See the module. One instance, one thread; nothing here waits."""

    def __init__(self, cluster_ips: Iterable[str] = ()) -> None:
        """cluster_ips: ranges of services' cluster addresses, where the BGPConfiguration has none."""
        self._pending: dict[str, model.Resource | None] = {}
        self._problems: dict[str, str] = {}  # of those that are None
        self._inputs: dict[str, Input] = {}
        self._claims: dict[Any, Claims[Any]] = {kind: Claims() for kind in _APPLY_ORDER}
        self._index = LabelIndex()
        self._table = SetTable(self._index)
        self._uses = SetUse(self._table)
        self._policy_book: RuleBook[PolicyKey, Policy] = RuleBook(self._compile_policy, self._uses)
        self._profile_book: RuleBook[str, Profile] = RuleBook(self._compile_profile, self._uses)
        # items: endpoints and network sets under small dense numbers, as the index wants them
        self._numbers: dict[Hashable, int] = {}
        self._free: list[int] = []
        self._next = 0
        self._endpoint_inputs: dict[int, EndpointInput] = {}
        self._endpoints: dict[int, _Endpoint] = {}
        self._endpoint_map = BitMap()
        self._dirty = BitMap()
        # policies
        self._tiers: dict[str, TierSpec] = {}
        self._policy_inputs: dict[PolicyKey, PolicyInput] = {}
        self._policy_entries: dict[PolicyKey, Entry] = {}
        self._policies_of: dict[Entry, set[PolicyKey]] = {}
        self._policies_in: dict[str, set[PolicyKey]] = {}  # by tier
        self._changed_policies: dict[PolicyKey, PolicyInput | None] = {}
        self._everywhere: set[PolicyKey] = set()
        self._arranged: dict[frozenset[Entry], _Applied] = {}
        self._profile_inputs: dict[str, ProfileInput] = {}
        # nodes
        self._workloads: dict[str, dict[WorkloadKey, Workload]] = {}
        self._hosts: dict[str, dict[str, Host]] = {}
        self._known: dict[str, int] = {}  # node -> reasons to know it
        self._asked_for: set[str] = set()
        self._tables = SharedTables()
        self._bgp = BgpCalculation(self._index, cluster_ips)
        self._report = Report()

    # --- input --------------------------------------------------------------------------------------------------------

    def update(self, key: str, resource: model.Resource | None, problem: str = "") -> None:
        """Note the newest value under a datastore key; None: gone, or it cannot be read, for `problem`. Calculated at
        the next `flush`.
        """
        self._pending[key] = resource
        if resource is None:
            self._problems[key] = problem

    def know_node(self, node: str) -> None:
        """Policies assumed needed on every node are then active on this one too, endpoints or not. Idempotent."""
        if node not in self._asked_for:
            self._asked_for.add(node)
            self._learn(node)

    # --- reading ------------------------------------------------------------------------------------------------------

    @property
    def policies(self) -> Mapping[PolicyKey, Policy]:
        return self._policy_book.active

    @property
    def profiles(self) -> Mapping[str, Profile]:
        return self._profile_book.active

    @property
    def tiers(self) -> Mapping[str, TierSpec]:
        """Tiers that exist."""
        return self._tiers

    @property
    def tiers_in_use(self) -> frozenset[str]:
        """Tiers that have policies, whether they exist or not."""
        return frozenset(self._policies_in)

    @property
    def pools(self) -> Mapping[str, Pool]:
        return self._tables.pools

    @property
    def blocks(self) -> Mapping[str, Block]:
        return self._tables.blocks

    @property
    def node_infos(self) -> Mapping[str, NodeInfo]:
        return self._tables.node_infos

    @property
    def namespaces(self) -> Mapping[str, dict[str, str]]:
        return self._tables.namespaces

    @property
    def service_accounts(self) -> Mapping[tuple[str, str], dict[str, str]]:
        return self._tables.service_accounts

    @property
    def passthrough(self) -> Mapping[str, model.Resource]:
        return self._tables.passthrough

    @property
    def encapsulation(self) -> Encapsulation:
        return self._tables.encapsulation

    @property
    def bgp(self) -> BgpTables:
        """What speakers are told."""
        return self._bgp

    @property
    def nodes(self) -> frozenset[str]:
        """Every node known: by a Node, by an endpoint, or asked for."""
        return frozenset(self._known)

    def ipset(self, set_id: str) -> IPSet | None:
        return self._table.get(set_id)

    def ipset_ids(self) -> Iterable[str]:
        return iter(self._table)

    def nodes_of_policy(self, key: PolicyKey) -> frozenset[str]:
        return frozenset(self._policy_book.activity.nodes_of(key))

    def workloads(self) -> Iterable[tuple[str, WorkloadKey, Workload]]:
        """All workload endpoints of the cluster: node, key, value."""
        for node, workloads in self._workloads.items():
            for key, workload in workloads.items():
                yield node, key, workload

    def view(self, node: str) -> NodeView:
        """All that `node` needs, as of the last flush."""
        found = {set_id: self._table.get(set_id) for set_id in self._uses.on_nodes.on(node)}
        return NodeView(
            workloads=dict(self._workloads.get(node, {})),
            hosts=dict(self._hosts.get(node, {})),
            policies={key: self._policy_book.active[key] for key in self._policy_book.activity.on(node)},
            profiles={key: self._profile_book.active[key] for key in self._profile_book.activity.on(node)},
            ipsets={set_id: ipset for set_id, ipset in found.items() if ipset is not None},
        )

    # --- flush --------------------------------------------------------------------------------------------------------

    def flush(self) -> Changes:
        """Calculate everything updated since the last flush; returns what is different now."""
        self._take_pending()
        changed_entries = self._index.take_changes()
        for entry in changed_entries:
            if entry in self._policies_of:
                self._dirty |= entry.flipped & self._endpoint_map
        self._apply_policies()
        self._evaluate_endpoints()
        deltas = self._table.refresh(changed_entries)
        for key, problem in self._bgp.flush(changed_entries).items():
            self._report.refused(key, problem)
        for entry in changed_entries:
            entry.flipped.clear()
        tables = self._tables.take() | self._bgp.take()
        changes = self._report.finish(self._policy_book, self._profile_book, self._uses, deltas, tables)
        self._report = Report()
        return changes

    def _take_pending(self) -> None:
        """Reduce what was updated, settle who holds which identity, and apply everything but policies."""
        dirty: dict[Any, set[Hashable]] = {kind: set() for kind in _APPLY_ORDER}
        for key, resource in self._pending.items():
            self._bgp.put_problem(key, self._problems.get(key, "") if resource is None else "")
            new: Input | None = None
            if resource is not None:
                try:
                    new = inputs.reduce(key, resource)
                except ValueError as error:
                    self._report.refused(key, str(error))
            old = self._inputs.get(key)
            if old == new:
                continue
            if old is not None:
                self._claims[type(old)].release(old.identity, key)
                dirty[type(old)].add(old.identity)
                del self._inputs[key]
            if new is not None:
                self._claims[type(new)].claim(new.identity, key, new)
                dirty[type(new)].add(new.identity)
                self._inputs[key] = new
        self._pending.clear()
        self._problems.clear()
        for kind in _APPLY_ORDER:
            claims, apply = self._claims[kind], _APPLY_ORDER[kind]
            for identity in dirty[kind]:
                apply(self, identity, claims.get(identity))

    # --- items --------------------------------------------------------------------------------------------------------

    def _number(self, identity: Hashable) -> int:
        number = self._numbers.get(identity)
        if number is None:
            if self._free:
                number = self._free.pop()
            else:
                number = self._next
                self._next += 1
            self._numbers[identity] = number
        return number

    def _drop_item(self, identity: Hashable) -> int | None:
        number = self._numbers.pop(identity, None)
        if number is not None:
            self._index.drop_item(number)
            self._table.drop_item(number)
            self._free.append(number)
        return number

    def _apply_network_set(self, identity: Hashable, new: NetworkSetInput | None) -> None:
        item = ("set", identity)
        if new is None:
            self._drop_item(item)
            return
        number = self._number(item)
        self._index.put_item(number, new.labels, new.parents)
        self._table.put_item(number, new.contributor)

    def _apply_endpoint(self, identity: Hashable, new: EndpointInput | None) -> None:
        item = ("endpoint", identity)
        number = self._numbers.get(item)
        old = None if number is None else self._endpoint_inputs[number]
        if number is not None and old is not None and (new is None or new.node != old.node):
            self._publish(number, old, None, _NOTHING)
            self._forget(old.node)
        if new is None:
            if number is not None:
                if isinstance(old, EndpointInput) and isinstance(old.base, Workload):
                    self._bgp.workloads.drop_endpoint(number)
                self._drop_item(item)
                del self._endpoint_inputs[number]
                self._endpoints.pop(number, None)
                self._endpoint_map.discard(number)
                self._dirty.discard(number)
            return
        number = self._number(item)
        if old is None or old.node != new.node:
            self._learn(new.node)
        self._endpoint_inputs[number] = new
        self._endpoint_map.add(number)
        self._dirty.add(number)
        self._index.put_item(number, new.labels, new.profiles)
        self._table.put_item(number, new.contributor)
        if isinstance(new.key, WorkloadKey) and isinstance(new.base, Workload):
            self._bgp.workloads.put_endpoint(number, new.node, new.key, new.base)

    def _apply_profile(self, identity: Hashable, new: ProfileInput | None) -> None:
        name = str(identity)
        labels = {} if new is None else new.labels
        self._index.put_parent(name, labels)
        if new is None:
            self._profile_inputs.pop(name, None)
        else:
            self._profile_inputs[name] = new
        self._profile_book.touch(name)
        self._tables.apply_profile_labels(name, None if new is None else labels)

    # --- nodes --------------------------------------------------------------------------------------------------------

    def _apply_node(self, identity: Hashable, new: NodeInput | None) -> None:
        name = str(identity)
        known = name in self._tables.node_infos
        self._tables.apply_node(name, None if new is None else new.info)
        if new is None:
            self._bgp.put_node(name, None)
        else:
            self._bgp.put_node(name, new.info.labels, new.cluster_id, new.kubernetes_name)
        if new is not None and not known:
            self._learn(name)
        elif new is None and known:
            self._forget(name)

    def _learn(self, node: str) -> None:
        count = self._known.get(node, 0)
        self._known[node] = count + 1
        if not count:
            self._policy_book.activity.add(node, self._everywhere)

    def _forget(self, node: str) -> None:
        count = self._known[node] - 1
        if count:
            self._known[node] = count
            return
        del self._known[node]
        self._policy_book.activity.drop(node, self._everywhere)

    def _apply_pool(self, identity: Hashable, new: PoolInput | None) -> None:
        self._tables.apply_pool(identity, new)

    def _apply_block(self, identity: Hashable, new: BlockInput | None) -> None:
        self._tables.apply_block(identity, new)
        self._bgp.blocks.put_block(str(identity), None if new is None else new.block)

    def _apply_affinity(self, identity: tuple[str, str], new: AffinityInput | None) -> None:
        node, cidr = identity
        self._bgp.blocks.put_affinity(node, cidr, confirmed=new is not None)

    def _apply_service(self, identity: Hashable, new: ServiceInput | None) -> None:
        self._bgp.service_table.put_service(str(identity), None if new is None else new.service)

    def _apply_slice(self, identity: Hashable, new: SliceInput | None) -> None:
        self._bgp.service_table.put_slice(str(identity), None if new is None else new.endpoints)
        if new is None:
            self._table.drop_slice(str(identity))
        else:
            self._table.put_slice(new.identity, new.service, new.members, new.addresses)

    def _apply_passthrough(self, identity: Hashable, new: PassthroughInput | None) -> None:
        self._tables.apply_passthrough(identity, new)
        resource = None if new is None else new.resource
        if resource is None or resource.kind in (*BGP_KINDS, model.FelixConfiguration.kind):
            self._bgp.put_resource(str(identity), resource)

    # --- tiers and policies -------------------------------------------------------------------------------------------

    def _apply_tier(self, identity: Hashable, new: TierInput | None) -> None:
        name = str(identity)
        if new is None:
            self._tiers.pop(name, None)
        else:
            self._tiers[name] = new.spec
        for key in self._policies_in.get(name, ()):
            self._reorder(self._policy_entries[key])

    def _reorder(self, entry: Entry) -> None:
        """What this selector means for endpoints is different now."""
        self._arranged.clear()
        self._dirty |= entry.matched & self._endpoint_map

    def _note_policy(self, identity: Hashable, new: PolicyInput | None) -> None:
        """Policies are applied after the index told what changed by items, so that no membership change is counted
        twice.
        """
        assert isinstance(identity, PolicyKey)
        self._changed_policies[identity] = new

    def _apply_policies(self) -> None:
        for key, new in self._changed_policies.items():
            self._apply_policy(key, new)
        self._changed_policies.clear()

    def _apply_policy(self, key: PolicyKey, new: PolicyInput | None) -> None:
        old = self._policy_inputs.get(key)
        if old == new:
            return
        self._policy_book.touch(key)
        if old is None or new is None or old.order != new.order or old.selector != new.selector:
            old_entry = self._policy_entries.pop(key, None)
            new_entry = None if new is None else self._index.add_selector(new.selector)
            if new is not None and new_entry is not None:
                self._policy_entries[key] = new_entry
                self._policies_of.setdefault(new_entry, set()).add(key)
                self._policies_in.setdefault(new.order.tier, set()).add(key)
                self._reorder(new_entry)
            if old is not None and old_entry is not None:
                self._reorder(old_entry)
                if old_entry is not new_entry:
                    _discard(self._policies_of, old_entry, key)
                if new is None or new.order.tier != old.order.tier:
                    _discard(self._policies_in, old.order.tier, key)
                self._index.drop_selector(old_entry)
        if new is None:
            del self._policy_inputs[key]
        else:
            self._policy_inputs[key] = new
        self._assume_everywhere(key, new is not None and inputs.EVERY_NODE_HINT in new.hints)

    def _assume_everywhere(self, key: PolicyKey, assumed: bool) -> None:
        if assumed is (key in self._everywhere):
            return
        if assumed:
            self._everywhere.add(key)
        else:
            self._everywhere.discard(key)
        for node in self._known:
            if assumed:
                self._policy_book.activity.add(node, (key,))
            else:
                self._policy_book.activity.drop(node, (key,))

    def _compile_policy(self, key: PolicyKey) -> tuple[Policy, dict[str, SetSpec]] | None:
        policy = self._policy_inputs.get(key)
        if policy is None:
            return None
        inbound, specs = rules.compile_rules(policy.ingress, key.namespace)
        outbound, more = rules.compile_rules(policy.egress, key.namespace)
        value = Policy(
            tier=policy.order.tier,
            namespace=key.namespace,
            inbound=inbound,
            outbound=outbound,
            selector=policy.selector.canonical,
            untracked=policy.order.untracked,
            pre_dnat=policy.order.pre_dnat,
            performance_hints=policy.hints,
        )
        return value, specs | more

    def _compile_profile(self, name: str) -> tuple[Profile, dict[str, SetSpec]]:
        profile = self._profile_inputs.get(name)
        if profile is None:
            return BUILT_IN_PROFILES.get(name, MISSING_PROFILE), {}
        try:
            inbound, specs = rules.compile_rules(profile.ingress)
            outbound, more = rules.compile_rules(profile.egress)
        except ValueError:
            return MISSING_PROFILE, {}
        return Profile(inbound=inbound, outbound=outbound), specs | more

    # --- endpoints ----------------------------------------------------------------------------------------------------

    def _evaluate_endpoints(self) -> None:
        for number in self._dirty:
            endpoint = self._endpoint_inputs[number]
            applied = self._applied_to(number)
            self._publish(number, endpoint, _with_tiers(endpoint.base, applied.tiers), applied)
        self._dirty.clear()

    def _applied_to(self, number: int) -> _Applied:
        entries = frozenset(entry for entry in self._index.entries_of(number) if entry in self._policies_of)
        applied = self._arranged.get(entries)
        if applied is None:
            keys = frozenset(key for entry in entries for key in self._policies_of[entry])
            applied = _Applied(keys, arrange((self._policy_inputs[key].order for key in keys), self._tiers))
            self._arranged[entries] = applied
        return applied

    def _publish(self, number: int, endpoint: EndpointInput, value: Workload | Host | None, applied: _Applied) -> None:
        """Replace what is published of an endpoint on its node; None withdraws it."""
        node = endpoint.node
        state = self._endpoints.get(number)
        if state is None:
            state = self._endpoints[number] = _Endpoint()
        old_policies, new_policies = state.applied.policies, applied.policies
        if old_policies is not new_policies:
            self._policy_book.activity.add(node, new_policies - old_policies)
            self._policy_book.activity.drop(node, old_policies - new_policies)
        profiles = () if value is None else value.profiles
        if profiles != state.profiles:
            old_profiles, new_profiles = set(state.profiles), set(profiles)
            self._profile_book.activity.add(node, new_profiles - old_profiles)
            self._profile_book.activity.drop(node, old_profiles - new_profiles)
        if value != state.value:
            self._publish_value(node, endpoint.key, value)
        state.applied, state.profiles, state.value = applied, profiles, value

    def _publish_value(self, node: str, key: WorkloadKey | str, value: Workload | Host | None) -> None:
        if isinstance(key, WorkloadKey):
            assert not isinstance(value, Host)
            _put(self._workloads.setdefault(node, {}), key, value)
            self._report.workload(node, key, value)
        else:
            assert not isinstance(value, Workload)
            _put(self._hosts.setdefault(node, {}), key, value)
            self._report.host(node, key, value)


def _with_tiers(base: Workload | Host, tiers: EndpointTiers) -> Workload | Host:
    if isinstance(base, Workload):
        return msgspec.structs.replace(base, tiers=tiers.normal) if tiers.normal else base
    return msgspec.structs.replace(
        base,
        tiers=tiers.normal,
        untracked_tiers=tiers.untracked,
        pre_dnat_tiers=tiers.pre_dnat,
        forward_tiers=tiers.forward,
    )


def _put(known: dict[T, Any], key: T, value: object | None) -> None:
    if value is None:
        known.pop(key, None)
    else:
        known[key] = value


def _discard(groups: dict[T, set[PolicyKey]], group: T, key: PolicyKey) -> None:
    groups[group].discard(key)
    if not groups[group]:
        del groups[group]


# Inherited labels before those who inherit, so that an item is indexed once.
_APPLY_ORDER: dict[Any, Any] = {
    TierInput: Calculator._apply_tier,
    ProfileInput: Calculator._apply_profile,
    EndpointInput: Calculator._apply_endpoint,
    NetworkSetInput: Calculator._apply_network_set,
    PolicyInput: Calculator._note_policy,
    NodeInput: Calculator._apply_node,
    PoolInput: Calculator._apply_pool,
    BlockInput: Calculator._apply_block,
    AffinityInput: Calculator._apply_affinity,
    ServiceInput: Calculator._apply_service,
    SliceInput: Calculator._apply_slice,
    PassthroughInput: Calculator._apply_passthrough,
}
