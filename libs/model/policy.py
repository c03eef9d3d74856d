"""Policy kinds: Tier, NetworkPolicy, GlobalNetworkPolicy, their staged forms, Profile, and the rules inside them.

`order` and the defaults that are not of the zero value (tier, types) are filled in by `libs.model.defaults`.
"""

from __future__ import annotations

from typing import ClassVar

from msgspec import field

from libs.model.base import Condition, Resource, V3Struct, always
from libs.model.scalars import Port, Protocol

BUILT_IN_TIERS = {
    "default": (1_000_000.0, "Deny"),
    "kube-admin": (1_000.0, "Pass"),
    "kube-baseline": (10_000_000.0, "Pass"),
}
"""(order, default action) of the tiers that every cluster has."""


class ICMPFields(V3Struct):
    """type 0-254, code 0-255; a code needs a type."""

    type: int | None = None
    code: int | None = None


class ServiceMatch(V3Struct):
    name: str = ""
    namespace: str = ""


class ServiceAccountMatch(V3Struct):
    """Both must match when both are given."""

    names: list[str] = field(default_factory=list)
    selector: str = ""


class EntityRule(V3Struct):
    """One side of a rule. All criteria present must hold; entries of a list are alternatives."""

    nets: list[str] = field(default_factory=list)
    selector: str = ""
    namespace_selector: str = ""
    services: ServiceMatch | None = None
    ports: list[Port] = field(default_factory=list)
    not_nets: list[str] = field(default_factory=list)
    not_selector: str = ""
    not_ports: list[Port] = field(default_factory=list)
    service_accounts: ServiceAccountMatch | None = None


class HTTPPath(V3Struct):
    """Exactly one of the two."""

    exact: str = ""
    prefix: str = ""


class HTTPMatch(V3Struct):
    methods: list[str] = field(default_factory=list)
    paths: list[HTTPPath] = field(default_factory=list)


class RuleMetadata(V3Struct):
    annotations: dict[str, str] = field(default_factory=dict)


class Rule(V3Struct):
    """action: Allow, Deny, Log or Pass. An empty source or destination is the same as none and becomes None."""

    action: str = always("")
    ip_version: int | None = None
    protocol: Protocol | None = None
    icmp: ICMPFields | None = None
    not_protocol: Protocol | None = None
    not_icmp: ICMPFields | None = None
    source: EntityRule | None = None
    destination: EntityRule | None = None
    http: HTTPMatch | None = None
    metadata: RuleMetadata | None = None

    def __post_init__(self) -> None:
        if self.source is not None and self.source == _ANY:
            self.source = None
        if self.destination is not None and self.destination == _ANY:
            self.destination = None


_ANY = EntityRule()


class TierSpec(V3Struct):
    """order: None sorts last. default_action: Deny or Pass, what ends a tier that selected the endpoint."""

    order: float | None = None
    default_action: str | None = None


class TierStatus(V3Struct):
    conditions: list[Condition] = field(default_factory=list)


class Tier(Resource):
    kind: ClassVar[str] = "Tier"
    spec: TierSpec = field(default_factory=TierSpec)
    status: TierStatus = field(default_factory=TierStatus)


class NetworkPolicySpec(V3Struct):
    tier: str = ""
    order: float | None = None
    ingress: list[Rule] = field(default_factory=list)
    egress: list[Rule] = field(default_factory=list)
    selector: str = ""
    types: list[str] = field(default_factory=list)
    service_account_selector: str = ""
    performance_hints: list[str] = field(default_factory=list)


class NetworkPolicy(Resource):
    kind: ClassVar[str] = "NetworkPolicy"
    spec: NetworkPolicySpec = field(default_factory=NetworkPolicySpec)


class GlobalNetworkPolicySpec(V3Struct):
    tier: str = ""
    order: float | None = None
    ingress: list[Rule] = field(default_factory=list)
    egress: list[Rule] = field(default_factory=list)
    selector: str = ""
    types: list[str] = field(default_factory=list)
    do_not_track: bool = False
    pre_dnat: bool = False
    apply_on_forward: bool = False
    service_account_selector: str = ""
    namespace_selector: str = ""
    performance_hints: list[str] = field(default_factory=list)


class GlobalNetworkPolicy(Resource):
    kind: ClassVar[str] = "GlobalNetworkPolicy"
    spec: GlobalNetworkPolicySpec = field(default_factory=GlobalNetworkPolicySpec)


class StagedNetworkPolicySpec(V3Struct):
    """staged_action: Set, Delete, Learn or Ignore."""

    staged_action: str = ""
    tier: str = ""
    order: float | None = None
    ingress: list[Rule] = field(default_factory=list)
    egress: list[Rule] = field(default_factory=list)
    selector: str = ""
    types: list[str] = field(default_factory=list)
    service_account_selector: str = ""
    performance_hints: list[str] = field(default_factory=list)


class StagedNetworkPolicy(Resource):
    kind: ClassVar[str] = "StagedNetworkPolicy"
    spec: StagedNetworkPolicySpec = field(default_factory=StagedNetworkPolicySpec)


class StagedGlobalNetworkPolicySpec(V3Struct):
    """staged_action: Set, Delete, Learn or Ignore."""

    staged_action: str = ""
    tier: str = ""
    order: float | None = None
    ingress: list[Rule] = field(default_factory=list)
    egress: list[Rule] = field(default_factory=list)
    selector: str = ""
    types: list[str] = field(default_factory=list)
    do_not_track: bool = False
    pre_dnat: bool = False
    apply_on_forward: bool = False
    service_account_selector: str = ""
    namespace_selector: str = ""
    performance_hints: list[str] = field(default_factory=list)


class StagedGlobalNetworkPolicy(Resource):
    kind: ClassVar[str] = "StagedGlobalNetworkPolicy"
    spec: StagedGlobalNetworkPolicySpec = field(default_factory=StagedGlobalNetworkPolicySpec)


class LabelSelectorRequirement(V3Struct):
    """operator: In, NotIn, Exists or DoesNotExist."""

    key: str = always("")
    operator: str = always("")
    values: list[str] = field(default_factory=list)


class LabelSelector(V3Struct):
    """Kubernetes' metav1.LabelSelector; an empty one selects everything."""

    match_labels: dict[str, str] = field(default_factory=dict)
    match_expressions: list[LabelSelectorRequirement] = field(default_factory=list)


class KubernetesPort(V3Struct):
    """protocol: TCP, UDP or SCTP. port: number or name; end_port makes it a range."""

    protocol: str | None = None
    port: int | str | None = None
    end_port: int | None = None


class KubernetesIPBlock(V3Struct):
    cidr: str = always("")
    except_: list[str] = field(default_factory=list)


class KubernetesPeer(V3Struct):
    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: KubernetesIPBlock | None = field(default=None, name="ipBlock")


class KubernetesIngressRule(V3Struct):
    ports: list[KubernetesPort] = field(default_factory=list)
    from_: list[KubernetesPeer] = field(default_factory=list)


class KubernetesEgressRule(V3Struct):
    ports: list[KubernetesPort] = field(default_factory=list)
    to: list[KubernetesPeer] = field(default_factory=list)


class StagedKubernetesNetworkPolicySpec(V3Struct):
    """A Kubernetes NetworkPolicy's spec in Kubernetes' own shapes, and a staged action."""

    staged_action: str = ""
    pod_selector: LabelSelector = field(default_factory=LabelSelector)
    ingress: list[KubernetesIngressRule] = field(default_factory=list)
    egress: list[KubernetesEgressRule] = field(default_factory=list)
    policy_types: list[str] = field(default_factory=list)


class StagedKubernetesNetworkPolicy(Resource):
    kind: ClassVar[str] = "StagedKubernetesNetworkPolicy"
    spec: StagedKubernetesNetworkPolicySpec = field(default_factory=StagedKubernetesNetworkPolicySpec)


class ProfileSpec(V3Struct):
    ingress: list[Rule] = field(default_factory=list)
    egress: list[Rule] = field(default_factory=list)
    labels_to_apply: dict[str, str] = field(default_factory=dict)


class Profile(Resource):
    kind: ClassVar[str] = "Profile"
    spec: ProfileSpec = field(default_factory=ProfileSpec)
