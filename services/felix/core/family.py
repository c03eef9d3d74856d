"""One address family's half of the ruleset compiler: what is dirty becomes chains, sets and elements of one table."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from libs.nftables import model as nft
from libs.nftables.model import Chain, Map, Set, Verdict
from libs.policy.output import PolicyKey
from services.felix.core import dispatch, hosts, names, nat, qos
from services.felix.core.blocks import Block
from services.felix.core.dispatch import Sources, TierList
from services.felix.core.host_family import HostRuleset
from services.felix.core.ipsets import IpSets
from services.felix.core.lists import Holder, ListChains
from services.felix.core.options import Family, RulesetOptions
from services.felix.core.qos import QosRuleset
from services.felix.core.rules import Compiled, RuleCompiler, UnknownSet
from services.felix.core.service_loop import ServiceLoop
from services.felix.core.sink import Section, TableSink
from services.felix.core.state import Culprits, Dirty, Owner, State
from services.felix.core.tunnel_rules import TunnelRules
from services.felix.core.wireguard_rules import mark_chains


def change_elements(sink: TableSink, name: str, add: Collection[str], remove: Collection[str]) -> None:
    if remove:
        sink.remove_elements(name, remove)
    if add:
        sink.add_elements(name, add)


@dataclass(slots=True)
class Uses:
    """Sets that the chains of one policy, profile, list or block look into."""

    ip_sets: dict[str, str] = field(default_factory=dict)  # kernel set → IP set id
    shared: dict[str, Set] = field(default_factory=dict)


@dataclass(slots=True)
class Written:
    """What the table holds for one interface."""

    up: bool
    sources: Sources


class FamilyRuleset:
    def __init__(self, family: Family, options: RulesetOptions, ip_sets: IpSets | None = None) -> None:
        """ip_sets: those of the ruleset that this one takes over from, when options change."""
        self.ip_sets = ip_sets or IpSets(family)
        self.ip_sets.forget_unions()
        self.refused: dict[Owner, str] = {}  # why a policy's or profile's chains deny everything
        self._family = family
        self._options = options
        self._compiler = RuleCompiler(family, options, self.ip_sets.halves)
        self._lists = ListChains(family, options, self.ip_sets, self._compiler.deny)
        self._hosts = HostRuleset(family, options, self._compiler.deny)
        self._qos = QosRuleset(family, options)
        self._loop = ServiceLoop(family, options)
        self._tunnels = TunnelRules(family, options)
        self._uses: dict[Owner | Holder, Uses] = {}
        self._set_users: dict[str, set[Owner | Holder]] = {}  # kernel set → whose chains look into it
        self._in_table: set[str] = set()  # those of these sets that the table has
        self._interfaces: dict[str, Written] = {}
        self._down: set[str] = set()
        self._with_prefixes: set[str] = set()
        self._fixed: tuple[bool, bool] | None = None  # the flags that the fixed chains were built for
        self._nat = Section()

    def flush(self, state: State, dirty: Dirty, sink: TableSink) -> None:
        first = self._fixed is None
        if first:
            for value in dispatch.fixed_sets(self._family, frozenset(), frozenset()):
                sink.put_set(value)
            for name in (dispatch.FROM_WL, dispatch.TO_WL):
                sink.put_map(Map(name, (nft.DataType.IFNAME,)))
            for chain in mark_chains(self._options, self._family.version):
                sink.set_chain(chain)
        owners = set(dirty.owners)
        for set_id in self.ip_sets.reshaped:
            owners |= state.set_users.get(set_id, set())
        touched: dict[str, Set | str] = {}  # kernel set → itself, or the id of the IP set that it is part of
        for owner in owners:
            self._write_owner(owner, state, sink, touched)
        policies = [owner for owner in owners if not isinstance(owner, str)]
        looks = self._lists.flush(state, dirty.lists, policies, self.refused.__contains__, sink)
        for holder, ip_sets in looks.items():
            self._use_sets(holder, Uses(ip_sets), touched)
        self._write_sets(touched, sink)
        self._write_interfaces(dirty.interfaces, state, sink)
        other_tunnels = (dirty.nat or first) and self._write_tunnels(state, sink)
        if dirty.hosts or other_tunnels:
            self._hosts.flush(state.host_endpoints, sink, tunnels=bool(self._tunnels.devices))
        if dirty.qos or (dirty.nat and (state.limited or state.host_marks)):
            self._qos.flush(state.limited, state.host_marks, state.pools, state.nodes, sink)
        if dirty.services:
            self._loop.flush(state.service_cidrs, sink)
        flags = (bool(self._down), bool(self._with_prefixes))
        if flags != self._fixed:
            self._write_fixed(flags, sink)
        if dirty.nat or first:
            self._write_nat(state, sink)

    def culprits(self, name: str, state: State) -> Culprits:
        """Whose the chain, set or map `name` is; nobody's when it is one of those that are always there."""
        found = Culprits()
        users = self._set_users.get(name, set())
        found.owners |= {user for user in users if isinstance(user, (str, PolicyKey))}
        if not found.owners:  # a set that only skip blocks look into
            for user in users:
                if isinstance(user, (TierList, Block)):
                    found.owners |= self._lists.behind(user, self._uses[user].ip_sets[name])
        for key in state.policies:
            if name in (names.policy_chain(key, True), names.policy_chain(key, False)):
                found.owners.add(key)
        for profile in state.profiles:
            if name in (names.profile_chain(profile, True), names.profile_chain(profile, False)):
                found.owners.add(profile)
        for interface in state.endpoints:
            chains = (names.workload_chain(interface, True), names.workload_chain(interface, False))
            if name in (*chains, names.spoof_chain(interface), *qos.interface_chains(interface)):
                found.interfaces.add(interface)
        found.interfaces |= qos.users(name, state.limited)
        if qos.is_of_marks(name):
            found.hosts |= {endpoint for endpoint, wanted in state.hosts.items() if wanted.dscp is not None}
        for interface, host in state.host_endpoints.items():
            for stage in host.lists:
                bases = (entry.base for entry in hosts.entries(stage, self._options))
                if name in (hosts.chain_name(stage, interface), stage.map, *bases):
                    found.hosts.add(host.name)
        return found

    def _write_owner(self, owner: Owner, state: State, sink: TableSink, touched: dict[str, Set | str]) -> None:
        uses = Uses()
        self.refused.pop(owner, None)
        for inbound in (True, False):
            name = names.profile_chain(owner, inbound) if isinstance(owner, str) else names.policy_chain(owner, inbound)
            if not state.wanted(owner):
                sink.del_chain(name)
                continue
            compiled = self._compile(owner, inbound, state)
            uses.ip_sets |= compiled.ip_sets
            uses.shared |= compiled.shared
            sink.set_chain(Chain(name, tuple(compiled.rules)))
        self._use_sets(owner, uses, touched)

    def _use_sets(self, user: Owner | Holder, uses: Uses, touched: dict[str, Set | str]) -> None:
        """`user`'s chains look into these from now on."""
        old = self._uses.pop(user, None) or Uses()
        if uses.ip_sets or uses.shared:
            self._uses[user] = uses
        for name in (*old.ip_sets, *old.shared):
            self._set_users[name].discard(user)
        for name in (*uses.ip_sets, *uses.shared):
            self._set_users.setdefault(name, set()).add(user)
        for both in (old, uses):
            touched.update(both.ip_sets)
            touched.update(both.shared)

    def _compile(self, owner: Owner, inbound: bool, state: State) -> Compiled:
        subject = state.subject(owner)
        if owner in state.refused_owners:
            self.refused[owner] = state.refused_owners[owner]
            return Compiled([self._compiler.deny(f"{subject.id} refused by the kernel")])
        rules = state.rules(owner, inbound)
        if rules is None:
            return Compiled([self._compiler.deny(f"{subject.id} is not known")])
        try:
            return self._compiler.compile(rules, subject)
        except UnknownSet as error:
            reason = f"IP set {error} is not known"
        except ValueError as error:
            reason = str(error)
        self.refused[owner] = reason
        return Compiled([self._compiler.deny(f"{subject.id} refused: {reason}")])

    def _write_sets(self, touched: Mapping[str, Set | str], sink: TableSink) -> None:
        """Brings the sets that rules look into in line: new, unused, replaced, changed by elements."""
        fresh = set()
        for name, what in touched.items():
            if self._set_users[name]:
                if name not in self._in_table:
                    sink.put_set(what if isinstance(what, Set) else self.ip_sets.kernel_set(what, name))
                    self._in_table.add(name)
                    fresh.add(name)
                elif name in self.ip_sets.replaced and isinstance(what, str):
                    sink.put_set(self.ip_sets.kernel_set(what, name))
                    fresh.add(name)
            else:
                del self._set_users[name]
                if name in self._in_table:
                    self._in_table.discard(name)
                    sink.del_set(name)
        for name, change in self.ip_sets.changes.items():
            if name in self._in_table and name not in fresh:
                change_elements(sink, name, change.add, change.remove)
        self.ip_sets.written()

    def _write_interfaces(self, interfaces: Iterable[str], state: State, sink: TableSink) -> None:
        verdicts: dict[bool, dict[str, Verdict]] = {True: {}, False: {}}
        gone: list[str] = []
        add_sources: set[str] = set()
        drop_sources: set[str] = set()
        down_before = set(self._down)
        for interface in interfaces:
            endpoint = state.endpoints.get(interface)
            old = self._interfaces.pop(interface, None)
            new = None
            self._down.discard(interface)
            if endpoint is not None:
                new = Written(endpoint.up, Sources())
                self._interfaces[interface] = new
                if endpoint.up:
                    new.sources = dispatch.sources(endpoint.workload, self._family, self._options)
                else:
                    self._down.add(interface)
            for inbound in (True, False):
                chain = names.workload_chain(interface, inbound)
                if endpoint is not None and endpoint.up:
                    lists = endpoint.inbound if inbound else endpoint.outbound
                    deny = self._compiler.deny("no profile allowed it")
                    profiles = endpoint.workload.profiles
                    sink.set_chain(dispatch.workload_chain(interface, inbound, lists, profiles, deny))
                    if old is None or not old.up:
                        verdicts[inbound][interface] = nft.goto(chain)
                else:
                    if old is not None and old.up:
                        sink.del_chain(chain)
                    if endpoint is not None and (old is None or old.up):
                        verdicts[inbound][interface] = nft.goto(dispatch.WORKLOAD_DOWN)
            if old is not None and endpoint is None:
                gone.append(interface)
            before = {f"{interface} . {a}" for a in old.sources.addresses} if old else set()
            after = {f"{interface} . {a}" for a in new.sources.addresses} if new else set()
            add_sources |= after - before
            drop_sources |= before - after
            self._write_prefixes(
                interface, old.sources.prefixes if old else (), new.sources.prefixes if new else (), sink
            )
        for inbound, name in ((True, dispatch.TO_WL), (False, dispatch.FROM_WL)):
            if gone:
                sink.remove_verdicts(name, gone)
            if verdicts[inbound]:
                sink.put_verdicts(name, verdicts[inbound])
        change_elements(sink, dispatch.ADDRESSES, add_sources, drop_sources)
        change_elements(sink, dispatch.WORKLOAD_DOWN, self._down - down_before, down_before - self._down)

    def _write_prefixes(self, interface: str, old: tuple[str, ...], new: tuple[str, ...], sink: TableSink) -> None:
        if new == old:
            return
        if not self._with_prefixes:
            sink.put_map(Map(dispatch.SPOOF_ALLOWED, (nft.DataType.IFNAME,)))
        chain = names.spoof_chain(interface)
        if new:
            self._with_prefixes.add(interface)
            sink.set_chain(dispatch.spoof_chain(interface, new, self._family))
            if not old:
                sink.put_verdicts(dispatch.SPOOF_ALLOWED, {interface: nft.goto(chain)})
            return
        self._with_prefixes.discard(interface)
        sink.remove_verdicts(dispatch.SPOOF_ALLOWED, (interface,))
        sink.del_chain(chain)
        if not self._with_prefixes:
            sink.del_map(dispatch.SPOOF_ALLOWED)

    def _write_fixed(self, flags: tuple[bool, bool], sink: TableSink) -> None:
        for chain in dispatch.fixed_chains(self._family, self._options, *flags):
            sink.set_chain(chain)
        self._fixed = flags

    def _nat_pools(self, state: State) -> frozenset[str]:
        return frozenset(cidr for cidr in self._family.mine(state.pools) if state.pools[cidr].nat_outgoing)

    def _write_tunnels(self, state: State, sink: TableSink) -> bool:
        hosts_used = self._options.nat.exclude_hosts and bool(self._nat_pools(state))
        return self._tunnels.flush(state.pools, state.nodes, state.vteps, sink, hosts_used=hosts_used)

    def _write_nat(self, state: State, sink: TableSink) -> None:
        family, options = self._family, self._options.nat
        pools, with_nat = family.mine(state.pools), self._nat_pools(state)
        floating = [
            pair
            for endpoint in state.endpoints.values()
            if endpoint.up and options.floating_ips
            for pair in (endpoint.workload.nat4 if family.version == 4 else endpoint.workload.nat6)
        ]
        sets: list[Set] = []
        if with_nat:
            key = (family.address,)
            sets = [Set(nat.ALL_POOLS, key, pools, interval=True), Set(nat.NAT_POOLS, key, with_nat, interval=True)]
        tunnels = self._tunnels.masquerades()
        self._nat.write(sink, nat.chains(family, options, bool(with_nat), floating, tunnels), sets)
