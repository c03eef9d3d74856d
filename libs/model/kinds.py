"""The registry of kinds: what each is called in JSON, in etcd keys and on the command line, and its struct."""

from __future__ import annotations

from dataclasses import dataclass

from libs.model import bgp, cluster, endpoints, felixconfig, kubernetes, node, policy, pools
from libs.model.base import Resource


@dataclass(frozen=True, slots=True)
class Kind:
    """plural: as in etcd keys and REST paths. short_names: of the CRD. aliases: what calicoctl takes besides.

    policy: lives in a tier and carries the tier label. internal: no CRD, libcalico's own API.
    """

    kind: str
    plural: str
    struct: type[Resource]
    namespaced: bool = False
    short_names: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    policy: bool = False
    internal: bool = False
    singleton: bool = False

    @property
    def singular(self) -> str:
        return self.kind.lower()


_ALL = (
    Kind("BGPConfiguration", "bgpconfigurations", bgp.BGPConfiguration, short_names=("bgpconfig", "bgpconfigs")),
    Kind("BGPFilter", "bgpfilters", bgp.BGPFilter, aliases=("bgpf", "bf")),
    Kind("BGPPeer", "bgppeers", bgp.BGPPeer, aliases=("bgpp", "bgpps", "bp", "bps")),
    Kind("BlockAffinity", "blockaffinities", pools.BlockAffinity, short_names=("affinity", "affinities")),
    Kind("CalicoNodeStatus", "caliconodestatuses", bgp.CalicoNodeStatus, aliases=("nodestatus", "nodestatuses")),
    Kind(
        "ClusterInformation",
        "clusterinformations",
        cluster.ClusterInformation,
        short_names=("clusterinfo", "clusterinfos"),
        singleton=True,
    ),
    Kind(
        "FelixConfiguration",
        "felixconfigurations",
        felixconfig.FelixConfiguration,
        short_names=("felixconfig", "felixconfigs"),
    ),
    Kind(
        "GlobalNetworkPolicy",
        "globalnetworkpolicies",
        policy.GlobalNetworkPolicy,
        short_names=("gnp", "cgnp"),
        aliases=("gnps",),
        policy=True,
    ),
    Kind(
        "GlobalNetworkSet",
        "globalnetworksets",
        endpoints.GlobalNetworkSet,
        short_names=("gns",),
        aliases=("gnetset", "gnetsets"),
    ),
    Kind("HostEndpoint", "hostendpoints", endpoints.HostEndpoint, short_names=("hep", "heps")),
    Kind("IPAMBlock", "ipamblocks", pools.IPAMBlock),
    Kind(
        "IPAMConfiguration",
        "ipamconfigurations",
        pools.IPAMConfiguration,
        short_names=("ipamconfig", "ipamconfigs"),
        singleton=True,
    ),
    Kind("IPAMHandle", "ipamhandles", pools.IPAMHandle),
    Kind("IPPool", "ippools", pools.IPPool, short_names=("ipp", "ipps", "pool", "pools")),
    Kind("IPReservation", "ipreservations", pools.IPReservation, aliases=("reservation", "reservations")),
    Kind(
        "KubeControllersConfiguration",
        "kubecontrollersconfigurations",
        cluster.KubeControllersConfiguration,
        short_names=("kcc", "kccs", "kcconfig"),
        aliases=("kubecontrollersconfig",),
        singleton=True,
    ),
    Kind("LiveMigration", "livemigrations", endpoints.LiveMigration, namespaced=True, internal=True),
    Kind(
        "NetworkPolicy",
        "networkpolicies",
        policy.NetworkPolicy,
        namespaced=True,
        short_names=("cnp", "caliconetworkpolicy", "caliconetworkpolicies"),
        aliases=("policy", "policies", "np", "pol", "pols"),
        policy=True,
    ),
    Kind(
        "NetworkSet",
        "networksets",
        endpoints.NetworkSet,
        namespaced=True,
        short_names=("netset", "netsets"),
    ),
    Kind("Node", "nodes", node.Node, aliases=("no", "nos"), internal=True),
    Kind("Profile", "profiles", policy.Profile, aliases=("pro", "pros")),
    Kind(
        "StagedGlobalNetworkPolicy",
        "stagedglobalnetworkpolicies",
        policy.StagedGlobalNetworkPolicy,
        short_names=("sgnp",),
        policy=True,
    ),
    Kind(
        "StagedKubernetesNetworkPolicy",
        "stagedkubernetesnetworkpolicies",
        policy.StagedKubernetesNetworkPolicy,
        namespaced=True,
        short_names=("sknp",),
        aliases=("skpol", "stagedkubernetespolicy"),
    ),
    Kind(
        "StagedNetworkPolicy",
        "stagednetworkpolicies",
        policy.StagedNetworkPolicy,
        namespaced=True,
        short_names=("scnp", "snp"),
        aliases=("spol", "stagedpolicy"),
        policy=True,
    ),
    Kind("Tier", "tiers", policy.Tier),
    Kind(
        "WorkloadEndpoint",
        "workloadendpoints",
        endpoints.WorkloadEndpoint,
        namespaced=True,
        aliases=("wep", "weps"),
        internal=True,
    ),
)

# Brought from the Kubernetes API; no part of the v3 API, so users neither see nor write them.
_STORED_ONLY = (
    Kind(
        "KubernetesClusterNetworkPolicy", "kubernetesclusternetworkpolicies", kubernetes.KubernetesClusterNetworkPolicy
    ),
    Kind("KubernetesEndpointSlice", "kubernetesendpointslices", kubernetes.KubernetesEndpointSlice, namespaced=True),
    # Singular, as Calico has registered it (facts/etcd-layout.md section 2).
    Kind("KubernetesService", "kubernetesservice", kubernetes.KubernetesService, namespaced=True),
)

KINDS: dict[str, Kind] = {kind.kind: kind for kind in _ALL}
BY_PLURAL: dict[str, Kind] = {kind.plural: kind for kind in (*_ALL, *_STORED_ONLY)}
BY_STRUCT: dict[type[Resource], Kind] = {kind.struct: kind for kind in (*_ALL, *_STORED_ONLY)}
_BY_KIND: dict[str, Kind] = {kind.kind: kind for kind in (*_ALL, *_STORED_ONLY)}
_BY_ANY_NAME: dict[str, Kind] = {
    name: kind for kind in _ALL for name in (kind.singular, kind.plural, *kind.short_names, *kind.aliases)
}


class UnknownKind(ValueError):
    """No such kind of resource."""

    def __init__(self, name: str) -> None:
        super().__init__(f"unknown kind of resource: {name!r}")
        self.name = name


def kind(name: str | type[Resource]) -> Kind:
    """By exact kind ("NetworkPolicy") or struct. Raises UnknownKind."""
    if isinstance(name, str):
        if found := _BY_KIND.get(name):
            return found
        raise UnknownKind(name)
    return BY_STRUCT[name]


def lookup(name: str) -> Kind | None:
    """By any name a person may type: kind, plural, short name or alias, in any case."""
    return _BY_ANY_NAME.get(name.lower())


def names() -> tuple[str, ...]:
    """Everything `lookup` takes, sorted, for suggestions and completion."""
    return tuple(sorted(_BY_ANY_NAME))
