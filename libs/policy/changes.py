"""What a flush of the calculation reports, and the snapshot of one node. Folding a stream of `Changes` gives the
snapshot.
"""

from __future__ import annotations

import msgspec

from libs import model
from libs.policy.bgp_output import BgpEntry, LocalEntry, ServiceRoutes
from libs.policy.output import Block, Host, IPSet, NodeInfo, Policy, PolicyKey, Pool, Profile, Workload, WorkloadKey


class Encapsulation(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which overlays the pools ask for."""

    ipip: bool = False
    vxlan: bool = False
    vxlan_v6: bool = False


class IPSetChange(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Either `created` with all members, or `deleted`, or members that came and went."""

    created: IPSet | None = None
    added: frozenset[str] = frozenset()
    removed: frozenset[str] = frozenset()
    deleted: bool = False


class NodeChange(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What a flush means for one node. None as a value: gone.

    `*_added` and `*_removed` became active or idle there. `*_changed` were active there before and after, with other
    content; the content is in `Changes`.
    """

    workloads: dict[WorkloadKey, Workload | None] = {}
    hosts: dict[str, Host | None] = {}
    policies_added: frozenset[PolicyKey] = frozenset()
    policies_removed: frozenset[PolicyKey] = frozenset()
    policies_changed: frozenset[PolicyKey] = frozenset()
    profiles_added: frozenset[str] = frozenset()
    profiles_removed: frozenset[str] = frozenset()
    profiles_changed: frozenset[str] = frozenset()
    sets_added: frozenset[str] = frozenset()
    sets_removed: frozenset[str] = frozenset()
    sets_changed: frozenset[str] = frozenset()


class Changes(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Everything that differs from the flush before. None as a value: gone.

    policies, profiles, ipsets: those active on any node. pools and blocks are keyed by CIDR, service accounts by
    (namespace, name), passthrough by the key given to `update`. refused: inputs that are treated as absent, with the
    reason. bgp, services, local (by node): for speakers, keyed as `bgp_output` says.
    """

    policies: dict[PolicyKey, Policy | None] = {}
    profiles: dict[str, Profile | None] = {}
    ipsets: dict[str, IPSetChange] = {}
    nodes: dict[str, NodeChange] = {}
    pools: dict[str, Pool | None] = {}
    blocks: dict[str, Block | None] = {}
    node_infos: dict[str, NodeInfo | None] = {}
    namespaces: dict[str, dict[str, str] | None] = {}
    service_accounts: dict[tuple[str, str], dict[str, str] | None] = {}
    encapsulation: Encapsulation | None = None
    passthrough: dict[str, model.Resource | None] = {}
    refused: dict[str, str] = {}
    bgp: dict[str, BgpEntry | None] = {}
    services: dict[str, ServiceRoutes | None] = {}
    local: dict[str, dict[str, LocalEntry | None]] = {}

    def concerned(self) -> frozenset[str]:
        """Nodes whose endpoints, policies, profiles or sets are different now, those that lose something included."""
        return frozenset(self.nodes)

    def concerns_all(self) -> bool:
        """True when something changed that every node reads: routes, pools, nodes, configuration."""
        return bool(
            self.pools
            or self.blocks
            or self.node_infos
            or self.namespaces
            or self.service_accounts
            or self.encapsulation is not None
            or self.passthrough
        )

    def empty(self) -> bool:
        return self == Changes()


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """All that one node needs of the calculation. Values are shared with the calculator and with other nodes' views."""

    workloads: dict[WorkloadKey, Workload]
    hosts: dict[str, Host]
    policies: dict[PolicyKey, Policy]
    profiles: dict[str, Profile]
    ipsets: dict[str, IPSet]
