"""Roles of etcd: which prefixes each identity may read and write (facts/etcd-layout.md section 12, and our own keys).

etcd knows prefixes, not owners: a node's role lets it write every node's endpoints and blocks (docs/design/trust.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from libs.trust import identities

ALL = "/calico/"
IPAM = "/calico/ipam/v2/"
RESOURCES = "/calico/resources/v3/projectcalico.org/"
FELIX = ("/calico/felix/v1/", "/calico/felix/v2/")
ELECTION = "/calico/election/v1/"


@dataclass(frozen=True, slots=True)
class Role:
    """Prefixes. What is written may be read."""

    name: str
    writes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


def _kinds(*plurals: str) -> tuple[str, ...]:
    return tuple(f"{RESOURCES}{plural}/" for plural in plurals)


_POLICIES = ("globalnetworkpolicies", "globalnetworksets", "networkpolicies", "networksets", "profiles")
_STAGED = ("stagedglobalnetworkpolicies", "stagedkubernetesnetworkpolicies", "stagednetworkpolicies")

NODE = Role(
    identities.NODE,
    (*FELIX, IPAM, *_kinds("felixconfigurations", "nodes", "workloadendpoints", "clusterinformations", "ippools",
                           "caliconodestatuses")),
    (RESOURCES,),
)  # fmt: skip
TYPHA = Role(identities.TYPHA, (), (ALL,))
APISERVER = Role(identities.APISERVER, (IPAM, RESOURCES), ())
KUBE_CONTROLLERS = Role(
    identities.KUBE_CONTROLLERS,
    (IPAM, ELECTION, *_kinds("profiles", "networkpolicies", "globalnetworkpolicies", *_STAGED, "nodes",
                             "clusterinformations", "hostendpoints", "kubecontrollersconfigurations",
                             "workloadendpoints", "tiers", "ippools")),
    (ALL,),
)  # fmt: skip
READER = Role(identities.READER, (), (IPAM, RESOURCES, ELECTION))
POLICY_EDITOR = Role(identities.POLICY_EDITOR, _kinds(*_POLICIES), (IPAM, RESOURCES, ELECTION))
OPERATOR = Role(identities.OPERATOR, (IPAM, RESOURCES), (ALL,))

ROLES = (NODE, TYPHA, APISERVER, KUBE_CONTROLLERS, READER, POLICY_EDITOR, OPERATOR)


def users(nodes: Iterable[str]) -> Mapping[str, str]:
    """User (a certificate's common name) -> its role. Raises IdentityError."""
    named = {role.name: role.name for role in ROLES if role is not NODE}
    return named | {identities.node(name): NODE.name for name in sorted(set(nodes))}
