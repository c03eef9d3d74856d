"""The ruleset compiler: a node's desired state in, nftables objects out, one table for each address family.

The setters take policies, profiles, IP sets, workloads, pools and nodes in any order and do no more than mark what is
touched; `apply_to` then compiles what is marked and hands each changed object to the two tables. What it costs is in
proportion to the change: a new pod is two short chains, two map elements and its addresses; a new member of an IP set
is one element. The result depends on the current state only, never on the way there.

Fail closed: a policy or profile that is unknown, or whose rules cannot be programmed (`refused`), denies what meets it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from libs.nftables.model import Table
from libs.nftables.state import TableState
from libs.policy.output import (
    STAGED_KINDS,
    Host,
    IPSet,
    IPSetType,
    NodeInfo,
    Policy,
    PolicyKey,
    Pool,
    Profile,
    Workload,
    WorkloadKey,
)
from services.felix.core import ipvs
from services.felix.core.family import FamilyRuleset
from services.felix.core.ipsets import parse_members
from services.felix.core.options import V4, V6, RulesetOptions
from services.felix.core.sink import GuardedSink, TableSink
from services.felix.core.state import Owner, State

__all__ = ["RulesetBuilder", "TableSink"]


class RulesetBuilder:
    """Pure and synchronous; one instance for the life of the process, and always the same two tables in `apply_to`."""

    def __init__(self, options: RulesetOptions | None = None) -> None:
        options = options or RulesetOptions()
        self._state = State()
        self._set_types: dict[str, IPSetType] = {}
        self._families = (FamilyRuleset(V4, options), FamilyRuleset(V6, options))
        self._configured = self._options = options
        self._new_options: RulesetOptions | None = None
        self.ipvs = False  # as set_ipvs() was told
        self.unwritten: dict[str, str] = {}  # chains, sets and maps that the last apply_to() could not hand on

    @staticmethod
    def tables() -> tuple[Table, Table]:
        """`ip calico` and `ip6 calico`: all that is in them is ours (docs/design/ownership.md)."""
        return V4.table, V6.table

    @property
    def refused(self) -> dict[Owner, str]:
        """Policies, and profiles by name, that deny everything as their rules cannot be programmed; with the reason."""
        return {owner: reason for family in self._families for owner, reason in family.refused.items()}

    @property
    def refused_interfaces(self) -> Mapping[str, str]:
        """Interfaces of workloads that are closed as something of theirs cannot be programmed; with the reason."""
        return self._state.refused_interfaces

    @property
    def refused_hosts(self) -> Mapping[str, str]:
        """Host endpoints that deny everything but failsafe ports for the same reason."""
        return self._state.refused_hosts

    def owner_of(self, interface: str) -> WorkloadKey | None:
        """The workload that has an interface which several may name."""
        return self._state.owner_of(interface)

    def interfaces_of_hosts(self) -> dict[str, set[str]]:
        """Host endpoint -> interfaces that it acts on, as of the last apply_to(); `*` for all that have none."""
        found: dict[str, set[str]] = {}
        for interface, host in self._state.host_endpoints.items():
            found.setdefault(host.name, set()).add(interface)
        return found

    def refuse(self, name: str, reason: str) -> bool:
        """The kernel will not have the chain, set or map `name`: whoever it belongs to is denied from the next
        apply_to() on, until it changes. False when that is nobody, or did not help before.
        """
        found = False
        for family in self._families:
            found |= self._state.refuse(family.culprits(name, self._state), reason)
        return found

    def try_again(self) -> None:
        """What was refused is wanted as it is, from the next apply_to() on: the kernel may be another by now."""
        self._state.try_again()

    def set_policy(self, key: PolicyKey, policy: Policy | None) -> None:
        """Staged policies are ignored: they never act, and what they would do is worked out elsewhere."""
        if key.kind not in STAGED_KINDS:
            self._state.set_policy(key, policy)

    def set_profile(self, name: str, profile: Profile | None) -> None:
        self._state.set_profile(name, profile)

    def set_ipset(self, set_id: str, ipset: IPSet | None) -> None:
        """Raises ValueError, changing nothing, when a member cannot be parsed."""
        self._state.try_again(self._state.set_users.get(set_id, ()))
        if ipset is None:
            for family in self._families:
                family.ip_sets.remove(set_id)
            self._set_types.pop(set_id, None)
            return
        members = parse_members(ipset.type, ipset.members)
        for family in self._families:
            family.ip_sets.replace(set_id, ipset.type, members)
        self._set_types[set_id] = ipset.type

    def change_ipset(self, set_id: str, added: Iterable[str], removed: Iterable[str]) -> None:
        """Adds what is not there, removes what is. Raises KeyError for an unknown set, ValueError as set_ipset does."""
        type_ = self._set_types[set_id]
        self._state.try_again(self._state.set_users.get(set_id, ()))
        more, less = parse_members(type_, added), parse_members(type_, removed)
        for family in self._families:
            family.ip_sets.change(set_id, type_, more, less)

    def set_workload(self, key: WorkloadKey, workload: Workload | None) -> None:
        self._state.set_workload(key, workload)

    def set_host(self, name: str, host: Host | None) -> None:
        """A host endpoint of this node. It acts on the interface that it names or whose address it expects."""
        self._state.set_host(name, host)

    @property
    def expects_addresses(self) -> bool:
        """True while a host endpoint must be found by an interface's addresses: then set_host_addresses matters."""
        return self._state.expects_addresses

    def set_host_addresses(self, addresses: Mapping[str, frozenset[str]]) -> bool:
        """Addresses of each interface of this host that is no workload's. True when there is something to apply."""
        return self._state.set_host_addresses(addresses)

    def set_pool(self, cidr: str, pool: Pool | None) -> None:
        if pool is None:
            self._state.pools.pop(cidr, None)
        else:
            self._state.pools[cidr] = pool
        self._state.dirty.nat = True

    def set_node(self, name: str, node: NodeInfo | None) -> None:
        """Nodes of the cluster: they may send packets of overlays, and see the pods' own addresses with
        NATOutgoingExclusions=IPPoolsAndHostIPs.
        """
        self._state.set_node(name, node)

    def set_service_cidrs(self, cidrs: Iterable[str]) -> None:
        """Networks of services, for loop prevention."""
        self._state.set_service_cidrs(cidrs)

    def set_options(self, options: RulesetOptions) -> bool:
        """Another configuration, from the next apply_to() on. True when there is something to apply."""
        self._configured = options
        wanted = ipvs.adapted(options) if self.ipvs else options
        self._new_options = wanted if wanted != self._options else None
        return self._new_options is not None

    def set_ipvs(self, present: bool) -> bool:
        """Whether kube-proxy is in its mode IPVS here, from the next apply_to() on. True when there is something to
        apply.
        """
        self.ipvs = present
        return self.set_options(self._configured)

    @property
    def problems(self) -> tuple[str, ...]:
        """What of the configuration cannot be while IPVS is here."""
        return ipvs.problems(self._configured) if self.ipvs else ()

    def apply_to(self, table4: TableSink, table6: TableSink) -> None:
        """Hands everything that changed since the last call to the two tables' desired state. What these refuse is
        denied (`refused` and the like); where that cannot be, it stays as it was and is in `unwritten`.
        """
        if self._new_options is not None:
            self._state.try_again()
        while True:
            guards = GuardedSink(table4), GuardedSink(table6)
            dirty = self._state.resolve()
            if self._new_options is not None:
                self._start_again(self._new_options, guards)
            else:
                for family, guard in zip(self._families, guards, strict=True):
                    family.flush(self._state, dirty, guard)
            self.unwritten = {name: reason for guard in guards for name, reason in guard.refused.items()}
            again = False
            for name, reason in self.unwritten.items():
                again |= self.refuse(name, reason)
            if not again:
                return

    def _start_again(self, options: RulesetOptions, tables: tuple[GuardedSink, GuardedSink]) -> None:
        """Everything anew as a process with these options would make it; the tables take what differs."""
        old = self._families
        self._families = (
            FamilyRuleset(V4, options, old[0].ip_sets),
            FamilyRuleset(V6, options, old[1].ip_sets),
        )
        self._options, self._new_options = options, None
        everything = self._state.everything()
        for family, table, definition in zip(self._families, tables, self.tables(), strict=True):
            fresh = TableState(definition)
            guard = GuardedSink(fresh)
            family.flush(self._state, everything, guard)
            table.refused |= guard.refused
            table.replace(fresh.ruleset())
