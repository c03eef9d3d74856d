"""What is used of Kubernetes' own objects, and where each kind is listed and watched.

Only the fields that somebody reads are declared, so that ten thousand pods fit into little memory. Shapes and names are
those of the Kubernetes API reference (core/v1, networking.k8s.io/v1, discovery.k8s.io/v1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import quote

from msgspec import field

from libs.kube.api import JsonObject
from libs.model import codec
from libs.model.base import V3Struct
from libs.model.kubernetes import (
    CLUSTER_POLICY_API,
    DISCOVERY_API,
    ClusterPolicySpec,
    ServiceSpec,
    ServiceStatus,
    SliceEndpoint,
    SlicePort,
)
from libs.model.policy import StagedKubernetesNetworkPolicySpec

NETWORKING_API = "networking.k8s.io/v1"


class Key(NamedTuple):
    """namespace: "" for what is in none."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Meta(V3Struct):
    """deletion_timestamp: RFC 3339; "" while nobody deletes it."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    finalizers: list[str] = field(default_factory=list)


class KubeObject(V3Struct):
    metadata: Meta = field(default_factory=Meta)


T = TypeVar("T", bound=KubeObject)


class PodSpec(V3Struct):
    node_name: str = ""
    service_account_name: str = ""
    host_network: bool = False


class PodIP(V3Struct):
    ip: str = ""


class PodStatus(V3Struct):
    """phase: Pending, Running, Succeeded, Failed or Unknown. pod_ip: the first of pod_ips."""

    phase: str = ""
    pod_ip: str = ""
    pod_ips: list[PodIP] = field(default_factory=list)


class Pod(KubeObject):
    spec: PodSpec = field(default_factory=PodSpec)
    status: PodStatus = field(default_factory=PodStatus)


class NodeSpec(V3Struct):
    pod_cidr: str = ""
    pod_cidrs: list[str] = field(default_factory=list)
    provider_id: str = ""

    @property
    def cidrs(self) -> list[str]:
        """Of its pods; servers before dual stack told one alone."""
        return self.pod_cidrs or [cidr for cidr in (self.pod_cidr,) if cidr]


class NodeAddress(V3Struct):
    type: str = ""
    address: str = ""


class NodeStatus(V3Struct):
    addresses: list[NodeAddress] = field(default_factory=list)


class Node(KubeObject):
    spec: NodeSpec = field(default_factory=NodeSpec)
    status: NodeStatus = field(default_factory=NodeStatus)


class Namespace(KubeObject):
    pass


class ServiceAccount(KubeObject):
    pass


class NetworkPolicy(KubeObject):
    """The staged kind's spec has the same fields and one more."""

    spec: StagedKubernetesNetworkPolicySpec = field(default_factory=StagedKubernetesNetworkPolicySpec)


class FullServiceSpec(ServiceSpec):
    """What is stored of a service, and what decides on its load balancer's addresses. load_balancer_class: None when it
    is not given.
    """

    load_balancer_class: str | None = None
    load_balancer_ip: str = ""
    ip_families: list[str] = field(default_factory=list)
    ip_family_policy: str = ""


class Service(KubeObject):
    spec: FullServiceSpec = field(default_factory=FullServiceSpec)
    status: ServiceStatus = field(default_factory=ServiceStatus)


class EndpointSlice(KubeObject):
    address_type: str = ""
    endpoints: list[SliceEndpoint] = field(default_factory=list)
    ports: list[SlicePort] = field(default_factory=list)


class ClusterNetworkPolicy(KubeObject):
    spec: ClusterPolicySpec = field(default_factory=ClusterPolicySpec)


@dataclass(frozen=True, slots=True)
class Source(Generic[T]):
    """A kind of object in the Kubernetes API. group_version: "v1", or "group/version". optional: a cluster may be
    without it (a custom resource).
    """

    kind: str
    plural: str
    struct: type[T]
    group_version: str = "v1"
    namespaced: bool = True
    optional: bool = False

    @property
    def root(self) -> str:
        return f"/api/{self.group_version}" if "/" not in self.group_version else f"/apis/{self.group_version}"

    @property
    def path(self) -> str:
        """Of all of them, in all namespaces."""
        return f"{self.root}/{self.plural}"

    def path_of(self, key: Key) -> str:
        """Of one."""
        where = f"namespaces/{quote(key.namespace, safe='')}/" if self.namespaced else ""
        return f"{self.root}/{where}{self.plural}/{quote(key.name, safe='')}"

    @property
    def decode(self) -> Callable[[JsonObject], T]:
        """Raises ValueError."""
        return partial(_decode, self.struct)


def _decode(struct: type[T], document: JsonObject) -> T:
    try:
        return codec.convert(struct, document)
    except codec.DecodeError:
        without = codec.drop_nulls(document)  # Go writes null for an empty list
        if without == document:
            raise
        return codec.convert(struct, without)


PODS = Source("Pod", "pods", Pod)
NODES = Source("Node", "nodes", Node, namespaced=False)
NAMESPACES = Source("Namespace", "namespaces", Namespace, namespaced=False)
SERVICE_ACCOUNTS = Source("ServiceAccount", "serviceaccounts", ServiceAccount)
SERVICES = Source("Service", "services", Service)
ENDPOINT_SLICES = Source("EndpointSlice", "endpointslices", EndpointSlice, DISCOVERY_API)
NETWORK_POLICIES = Source("NetworkPolicy", "networkpolicies", NetworkPolicy, NETWORKING_API)
CLUSTER_NETWORK_POLICIES = Source(
    "ClusterNetworkPolicy", "clusternetworkpolicies", ClusterNetworkPolicy, CLUSTER_POLICY_API,
    namespaced=False, optional=True,
)  # fmt: skip
