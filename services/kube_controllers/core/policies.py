"""Network policies of Kubernetes: converted to Calico's, or, for those of the cluster, stored as they are. Pure.

    NetworkPolicy ns/web              → NetworkPolicy ns/knp.default.web
    ClusterNetworkPolicy admin        → KubernetesClusterNetworkPolicy admin (the calculation converts it)

Both sides of a bad rule: a Kubernetes policy isolates the pods that it selects and every rule of it only allows. So a
rule that means nothing is left out and the rest is written: that closes more than was meant, never less, and the log
says so. When the selector means nothing nobody knows whom to isolate: what was written for the policy before stays, and
nothing new is written. (Calico's controller does that with any bad rule, and so keeps what an edited policy allowed
before; facts/kubernetes-conversion.md section 3.)
"""

from __future__ import annotations

from collections.abc import Mapping

from libs import model
from libs.kube import objects
from libs.kube.objects import Key
from libs.model.base import Resource
from libs.model.keys import ResourceKey
from libs.model.kubernetes import KubernetesClusterNetworkPolicy
from libs.policy import kubernetes
from services.kube_controllers.core.translation import Desired, metadata_for

PREFIX = "knp.default."


class Policies:
    source = objects.NETWORK_POLICIES
    kind = model.NetworkPolicy
    creates = deletes = True

    def owner(self, key: ResourceKey, stored: Resource | None) -> Key | None:
        name = key.name.removeprefix(PREFIX)
        return Key(key.namespace, name) if name and name != key.name else None

    def desired(self, key: Key, found: objects.NetworkPolicy, stored: Mapping[ResourceKey, Resource]) -> Desired:
        at = ResourceKey(self.kind.kind, PREFIX + key.name, key.namespace)
        converted = kubernetes.network_policy(found.spec)
        assert isinstance(converted.spec, model.NetworkPolicySpec)
        made = model.NetworkPolicy(metadata=metadata_for(at, stored), spec=converted.spec)
        return Desired({at: made}, tuple(f"left out, closed instead: {problem}" for problem in converted.problems))


class ClusterPolicies:
    source = objects.CLUSTER_NETWORK_POLICIES
    kind = KubernetesClusterNetworkPolicy
    creates = deletes = True

    def owner(self, key: ResourceKey, stored: Resource | None) -> Key | None:
        return Key("", key.name)

    def desired(self, key: Key, found: objects.ClusterNetworkPolicy, stored: Mapping[ResourceKey, Resource]) -> Desired:
        at = ResourceKey(self.kind.kind, key.name)
        made = KubernetesClusterNetworkPolicy(metadata=metadata_for(at, stored), spec=found.spec)
        try:
            problems = tuple(kubernetes.cluster_network_policy(found.spec).problems)
        except ValueError as error:
            problems = (f"has no effect: {error}",)
        return Desired({at: made}, problems)
