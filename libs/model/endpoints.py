"""What traffic belongs to: workload endpoints, host endpoints, network sets, and live migrations between workloads."""

from __future__ import annotations

from typing import ClassVar

from msgspec import field

from libs.model.base import Resource, V3Struct, always
from libs.model.policy import LabelSelector
from libs.model.scalars import DSCP, Protocol


class NetworkSetSpec(V3Struct):
    """nets: networks or single addresses, host bits allowed."""

    nets: list[str] = field(default_factory=list)


class NetworkSet(Resource):
    kind: ClassVar[str] = "NetworkSet"
    spec: NetworkSetSpec = field(default_factory=NetworkSetSpec)


class GlobalNetworkSetSpec(V3Struct):
    """nets: networks or single addresses, host bits allowed."""

    nets: list[str] = field(default_factory=list)


class GlobalNetworkSet(Resource):
    kind: ClassVar[str] = "GlobalNetworkSet"
    spec: GlobalNetworkSetSpec = field(default_factory=GlobalNetworkSetSpec)


class EndpointPort(V3Struct):
    """A port of a host endpoint that rules may call by name."""

    name: str = always("")
    protocol: Protocol = always(Protocol(0))
    port: int = always(0)


class HostEndpointSpec(V3Struct):
    """interface_name: a device, "*" for all but workloads', or "" to find it by expected_ips."""

    node: str = ""
    interface_name: str = ""
    expected_ips: list[str] = field(default_factory=list)
    profiles: list[str] = field(default_factory=list)
    ports: list[EndpointPort] = field(default_factory=list)


class HostEndpoint(Resource):
    kind: ClassVar[str] = "HostEndpoint"
    spec: HostEndpointSpec = field(default_factory=HostEndpointSpec)


class IPNAT(V3Struct):
    internal_ip: str = always("")
    external_ip: str = always("")


class WorkloadEndpointPort(V3Struct):
    """Calico writes every field, zero or not. host_port 0: not mapped."""

    name: str = always("")
    protocol: Protocol = always(Protocol(0))
    port: int = always(0)
    host_port: int = always(0)
    host_ip: str = always("")


class QoSControls(V3Struct):
    """Bandwidth and peak rate in bit/s, burst in bits, minburst in bytes, packet rates in packets/s; 0 is no limit."""

    ingress_bandwidth: int = 0
    ingress_burst: int = 0
    ingress_peakrate: int = 0
    ingress_minburst: int = 0
    egress_bandwidth: int = 0
    egress_burst: int = 0
    egress_peakrate: int = 0
    egress_minburst: int = 0
    ingress_packet_rate: int = 0
    ingress_packet_burst: int = 0
    egress_packet_rate: int = 0
    egress_packet_burst: int = 0
    ingress_max_connections: int = 0
    egress_max_connections: int = 0
    dscp: DSCP | None = field(default=None, name="dscp")


class WorkloadEndpointSpec(V3Struct):
    """The metadata's name is made of these fields (`libs.model.names.workload_endpoint_name`)."""

    orchestrator: str = ""
    workload: str = ""
    node: str = ""
    container_id: str = ""
    pod: str = ""
    endpoint: str = ""
    service_account_name: str = ""
    ip_networks: list[str] = field(default_factory=list)
    ip_nats: list[IPNAT] = field(default_factory=list)
    ipv4_gateway: str = ""
    ipv6_gateway: str = ""
    profiles: list[str] = field(default_factory=list)
    interface_name: str = ""
    mac: str = ""
    ports: list[WorkloadEndpointPort] = field(default_factory=list)
    allow_spoofed_source_prefixes: list[str] = field(default_factory=list)
    qos_controls: QoSControls | None = None


class WorkloadEndpoint(Resource):
    kind: ClassVar[str] = "WorkloadEndpoint"
    spec: WorkloadEndpointSpec = field(default_factory=WorkloadEndpointSpec)


class NamespacedName(V3Struct):
    name: str = ""
    namespace: str = ""


class LiveMigrationSource(V3Struct):
    """Exactly one of the two."""

    workload: NamespacedName | None = None
    workload_endpoint: NamespacedName | None = None


class LiveMigrationTarget(V3Struct):
    """Exactly one of the two."""

    selector: LabelSelector | str | None = None
    workload_endpoint: NamespacedName | None = None


class LiveMigrationSpec(V3Struct):
    source: LiveMigrationSource | None = None
    target: LiveMigrationTarget | None = None


class LiveMigration(Resource):
    kind: ClassVar[str] = "LiveMigration"
    spec: LiveMigrationSpec = field(default_factory=LiveMigrationSpec)
