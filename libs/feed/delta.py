"""What changed for this node between two revisions, in the calculation's own values; and the state that such changes
add up to. A reader holds what its role follows; the other tables stay empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from libs.policy.bgp_output import BgpEntry, LocalEntry, ServiceRoutes
from libs.policy.output import (
    Block,
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


@dataclass(slots=True)
class Delta:
    """One atomic change. None values are removals. `sets` holds new and removed sets, `set_changes` members (added,
    removed).
    """

    policies: dict[PolicyKey, Policy | None] = field(default_factory=dict)
    profiles: dict[str, Profile | None] = field(default_factory=dict)
    sets: dict[str, IPSet | None] = field(default_factory=dict)
    set_changes: dict[str, tuple[set[str], set[str]]] = field(default_factory=dict)
    workloads: dict[WorkloadKey, Workload | None] = field(default_factory=dict)
    hosts: dict[str, Host | None] = field(default_factory=dict)
    blocks: dict[str, Block | None] = field(default_factory=dict)
    nodes: dict[str, NodeInfo | None] = field(default_factory=dict)
    pools: dict[str, Pool | None] = field(default_factory=dict)
    config: dict[str, msgspec.Raw | None] = field(default_factory=dict)
    bgp: dict[str, BgpEntry | None] = field(default_factory=dict)
    services: dict[str, ServiceRoutes | None] = field(default_factory=dict)
    local: dict[str, LocalEntry | None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(
            (
                self.policies, self.profiles, self.sets, self.set_changes, self.workloads,
                self.hosts, self.blocks, self.nodes, self.pools, self.config, self.bgp, self.services, self.local,
            )
        )  # fmt: skip

    def change_set(self, set_id: str, added: Iterable[str], removed: Iterable[str]) -> None:
        """Fold one more membership change in; a member that comes and goes inside one delta leaves no trace."""
        plus, minus = self.set_changes.setdefault(set_id, (set(), set()))
        for member in added:
            if member in minus:
                minus.discard(member)
            else:
                plus.add(member)
        for member in removed:
            if member in plus:
                plus.discard(member)
            else:
                minus.add(member)
        if not plus and not minus:
            del self.set_changes[set_id]


@dataclass(slots=True)
class MutableSet:
    type: IPSetType
    members: set[str]


@dataclass(slots=True)
class NodeState:
    """Everything this node was told and has committed: the sum of all deltas."""

    policies: dict[PolicyKey, Policy] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    sets: dict[str, MutableSet] = field(default_factory=dict)
    workloads: dict[WorkloadKey, Workload] = field(default_factory=dict)
    hosts: dict[str, Host] = field(default_factory=dict)
    blocks: dict[str, Block] = field(default_factory=dict)
    nodes: dict[str, NodeInfo] = field(default_factory=dict)
    pools: dict[str, Pool] = field(default_factory=dict)
    config: dict[str, msgspec.Raw] = field(default_factory=dict)
    bgp: dict[str, BgpEntry] = field(default_factory=dict)
    services: dict[str, ServiceRoutes] = field(default_factory=dict)
    local: dict[str, LocalEntry] = field(default_factory=dict)
