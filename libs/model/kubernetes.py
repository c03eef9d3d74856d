"""Kubernetes objects that are needed and that the v3 API has no counterpart for: cluster network policies, services,
slices.

They lie in the datastore under the plurals that Calico's key table has for them (facts/etcd-layout.md section 2), in
Kubernetes' own shape; a controller brings them from the Kubernetes API. Users do not write them with calicoctl, so they
are no kinds of `libs.model.KINDS`. Only the fields that are used are declared; others are skipped when read.
"""

from __future__ import annotations

from typing import ClassVar

from msgspec import field

from libs.model.base import Resource, V3Struct
from libs.model.policy import LabelSelector

CLUSTER_POLICY_API = "policy.networking.k8s.io/v1alpha2"
DISCOVERY_API = "discovery.k8s.io/v1"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"


class SliceConditions(V3Struct):
    """None counts as true of ready and serving, as false of terminating. Slices that an older release stored tell of
    ready alone.
    """

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class SliceEndpoint(V3Struct):
    addresses: list[str] = field(default_factory=list)
    conditions: SliceConditions = field(default_factory=SliceConditions)
    node_name: str | None = None


class SlicePort(V3Struct):
    """port: None stands for every port, as in headless services without ports."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class KubernetesEndpointSlice(Resource):
    """Belongs to the service of its label `kubernetes.io/service-name`."""

    kind: ClassVar[str] = "KubernetesEndpointSlice"
    api_version: ClassVar[str] = DISCOVERY_API

    address_type: str = ""
    endpoints: list[SliceEndpoint] = field(default_factory=list)
    ports: list[SlicePort] = field(default_factory=list)


class ServicePort(V3Struct):
    """name: that of the slices' port as well; "" for the only port of a service. node_port: 0 where there is none."""

    name: str = ""
    protocol: str = ""
    port: int = 0
    target_port: int | str | None = None
    node_port: int = 0


class ServiceSpec(V3Struct):
    """cluster_ips: one of each family, the first also as `cluster_ip`; "None" for a headless service. ports: a service
    with a cluster IP has some, so none at all means that an older release stored it.
    """

    type: str = ""
    cluster_ip: str = ""
    cluster_ips: list[str] = field(default_factory=list)
    external_ips: list[str] = field(default_factory=list)
    external_traffic_policy: str = ""
    internal_traffic_policy: str = ""
    load_balancer_source_ranges: list[str] = field(default_factory=list)
    ports: list[ServicePort] = field(default_factory=list)


class LoadBalancerIngress(V3Struct):
    """ip_mode: "Proxy" where packets go by the load balancer itself, and kube-proxy leaves the address alone."""

    ip: str = ""
    ip_mode: str = ""


class LoadBalancerStatus(V3Struct):
    ingress: list[LoadBalancerIngress] = field(default_factory=list)


class ServiceStatus(V3Struct):
    load_balancer: LoadBalancerStatus = field(default_factory=LoadBalancerStatus)


class KubernetesService(Resource):
    kind: ClassVar[str] = "KubernetesService"
    api_version: ClassVar[str] = "v1"

    spec: ServiceSpec = field(default_factory=ServiceSpec)
    status: ServiceStatus = field(default_factory=ServiceStatus)


class NamespacedPods(V3Struct):
    namespace_selector: LabelSelector = field(default_factory=LabelSelector)
    pod_selector: LabelSelector = field(default_factory=LabelSelector)


class ClusterPolicySubject(V3Struct):
    """Exactly one of the two."""

    namespaces: LabelSelector | None = None
    pods: NamespacedPods | None = None


class ClusterPolicyPeer(V3Struct):
    """Exactly one; networks in egress rules only."""

    namespaces: LabelSelector | None = None
    pods: NamespacedPods | None = None
    networks: list[str] = field(default_factory=list)


class PortSpan(V3Struct):
    start: int = 0
    end: int = 0


class ClusterPolicyPort(V3Struct):
    """A number or a range."""

    number: int | None = None
    range: PortSpan | None = None


class ClusterPolicyTransport(V3Struct):
    destination_port: ClusterPolicyPort | None = None


class ClusterPolicyProtocol(V3Struct):
    """Exactly one."""

    tcp: ClusterPolicyTransport | None = None
    udp: ClusterPolicyTransport | None = None
    sctp: ClusterPolicyTransport | None = None
    destination_named_port: str = ""


class ClusterPolicyRule(V3Struct):
    """action: Accept, Deny or Pass."""

    name: str = ""
    action: str = ""
    from_: list[ClusterPolicyPeer] = field(default_factory=list)
    to: list[ClusterPolicyPeer] = field(default_factory=list)
    protocols: list[ClusterPolicyProtocol] = field(default_factory=list)


class ClusterPolicySpec(V3Struct):
    """tier: Admin or Baseline. priority: 0 to 1000, lower first."""

    tier: str = ""
    priority: int = 0
    subject: ClusterPolicySubject = field(default_factory=ClusterPolicySubject)
    ingress: list[ClusterPolicyRule] = field(default_factory=list)
    egress: list[ClusterPolicyRule] = field(default_factory=list)


class KubernetesClusterNetworkPolicy(Resource):
    kind: ClassVar[str] = "KubernetesClusterNetworkPolicy"
    api_version: ClassVar[str] = CLUSTER_POLICY_API

    spec: ClusterPolicySpec = field(default_factory=ClusterPolicySpec)
