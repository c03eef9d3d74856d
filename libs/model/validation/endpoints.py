"""Rules of workload endpoints, host endpoints, network sets and live migrations."""

from __future__ import annotations

import re
from collections.abc import Sequence

from libs.model import names
from libs.model.base import ObjectMeta, Resource
from libs.model.endpoints import (
    IPNAT,
    EndpointPort,
    GlobalNetworkSetSpec,
    HostEndpoint,
    HostEndpointSpec,
    LiveMigrationSpec,
    NetworkSetSpec,
    QoSControls,
    WorkloadEndpoint,
    WorkloadEndpointPort,
    WorkloadEndpointSpec,
)
from libs.model.problems import At
from libs.model.scalars import DSCP
from libs.model.validation import checks
from libs.model.validation.checks import Network

NAMESPACE_LABEL = "projectcalico.org/namespace"
DSCP_ANNOTATION = "qos.projectcalico.org/dscp"
_CONTAINER_ID = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?")

_KILO, _PETA = 1_000, 10**15
_MAX_BURST = 34_359_738_360
# JSON name -> smallest and largest value; 0 is not set.
QOS_LIMITS = {
    "Bandwidth": (_KILO, _PETA),
    "Burst": (_KILO, _MAX_BURST),
    "Peakrate": (1_010, 1_010_000_000_000_000),
    "Minburst": (_KILO, 100_000_000),
    "PacketRate": (1, 10_000),
    "PacketBurst": (1, 10_000),
    "MaxConnections": (1, 4_294_967_295),
}


def check_network_set_spec(at: At, spec: NetworkSetSpec | GlobalNetworkSetSpec) -> None:
    for index, net in enumerate(spec.nets):
        checks.any_net(at.field("nets").item(index), net)


def check_no_namespace_label(at: At, resource: Resource) -> None:
    """Network sets get this label from Calico; a user's own would let a set pretend to be of another namespace."""
    if NAMESPACE_LABEL in resource.metadata.labels:
        at.field("metadata", "labels").item(NAMESPACE_LABEL).refuse("this label is reserved")


# --- host endpoints ---------------------------------------------------------------------------------------------------


def check_host_endpoint(at: At, resource: HostEndpoint) -> None:
    check_host_endpoint_spec(at.field("spec"), resource.spec)
    check_dscp_annotation(at, resource.metadata)


def check_dscp_annotation(at: At, metadata: ObjectMeta) -> None:
    if (value := metadata.annotations.get(DSCP_ANNOTATION)) is not None:
        checks.dscp(at.field("metadata", "annotations").item(DSCP_ANNOTATION), DSCP(value))


def check_host_endpoint_spec(at: At, spec: HostEndpointSpec) -> None:
    if not spec.node:
        at.field("node").refuse("must name the node")
    elif len(spec.node) > checks.MAX_NAME_CHARS:
        at.field("node").refuse(f"must be at most {checks.MAX_NAME_CHARS} characters")
    if not spec.interface_name and not spec.expected_ips:
        at.refuse("at least one of interfaceName and expectedIPs must be given")
    if spec.interface_name and spec.interface_name != "*":
        checks.interface(at.field("interfaceName"), spec.interface_name)
    for index, address in enumerate(spec.expected_ips):
        checks.ip(at.field("expectedIPs").item(index), address)
    _profiles(at.field("profiles"), spec.profiles)
    for index, port in enumerate(spec.ports):
        check_endpoint_port(at.field("ports").item(index), port)


def check_endpoint_port(at: At, port: EndpointPort) -> None:
    checks.port_name(at.field("name"), port.name)
    checks.protocol_with_ports(at.field("protocol"), port.protocol)
    checks.within(at.field("port"), port.port, 1, 65535)


def _profiles(at: At, profiles: Sequence[str]) -> None:
    for index, name in enumerate(profiles):
        checks.dns_name(at.item(index), name)


# --- workload endpoints -----------------------------------------------------------------------------------------------


def check_workload_endpoint(at: At, resource: WorkloadEndpoint) -> None:
    check_workload_endpoint_spec(at.field("spec"), resource.spec)


def check_workload_endpoint_name(at: At, resource: WorkloadEndpoint) -> None:
    """The name is made of the spec; Calico's readers refuse any other."""
    try:
        wanted = names.workload_endpoint_name(resource.spec)
    except names.NamePartError as error:
        at.field("spec", error.field).refuse(error.reason)
        return
    if resource.metadata.name != wanted:
        at.field("metadata", "name").refuse(f"must be {wanted!r}, as the spec's fields make it", resource.metadata.name)


def check_workload_endpoint_spec(at: At, spec: WorkloadEndpointSpec) -> None:
    if spec.container_id and not _CONTAINER_ID.fullmatch(spec.container_id):
        at.field("containerID").refuse(
            "must be letters, digits or '-', begin and end with a letter or digit", spec.container_id
        )
    if spec.service_account_name:
        checks.dns_name(at.field("serviceAccountName"), spec.service_account_name)
    checks.interface(at.field("interfaceName"), spec.interface_name)
    networks: list[Network] = []
    for index, text in enumerate(spec.ip_networks):
        place = at.field("ipNetworks").item(index)
        network = checks.any_net(place, text)
        if network is not None and network.prefixlen != network.max_prefixlen:
            place.refuse("must be a single address: /32 or /128", text)
        elif network is not None:
            networks.append(network)
    for index, nat in enumerate(spec.ip_nats):
        place = at.field("ipNATs").item(index)
        check_ip_nat(place, nat)
        internal = checks.parse_ip(nat.internal_ip)
        if internal is not None and not any(internal == network.network_address for network in networks):
            place.field("internalIP").refuse("must be one of the endpoint's ipNetworks", nat.internal_ip)
    for name, text, version in (("ipv4Gateway", spec.ipv4_gateway, 4), ("ipv6Gateway", spec.ipv6_gateway, 6)):
        if text:
            checks.ip(at.field(name), text, version)
    _profiles(at.field("profiles"), spec.profiles)
    if spec.mac:
        checks.mac(at.field("mac"), spec.mac)
    for index, port in enumerate(spec.ports):
        check_workload_port(at.field("ports").item(index), port)
    for index, prefix in enumerate(spec.allow_spoofed_source_prefixes):
        checks.any_net(at.field("allowSpoofedSourcePrefixes").item(index), prefix)
    if spec.qos_controls is not None:
        check_qos(at.field("qosControls"), spec.qos_controls)


def check_ip_nat(at: At, nat: IPNAT) -> None:
    internal = checks.ip(at.field("internalIP"), nat.internal_ip)
    external = checks.ip(at.field("externalIP"), nat.external_ip)
    if internal is not None and external is not None and internal.version != external.version:
        at.field("externalIP").refuse(f"must be IPv{internal.version} like internalIP", nat.external_ip)


def check_workload_port(at: At, port: WorkloadEndpointPort) -> None:
    if port.name:
        checks.port_name(at.field("name"), port.name)
    elif not port.host_port:
        at.field("name").refuse("must be given unless hostPort is")
    checks.protocol_with_ports(at.field("protocol"), port.protocol)
    checks.within(at.field("port"), port.port, 1, 65535)
    checks.within(at.field("hostPort"), port.host_port, 0, 65535)
    if port.host_ip:
        checks.ip(at.field("hostIP"), port.host_ip)


def check_qos(at: At, qos: QoSControls) -> None:
    values = {
        "ingressBandwidth": qos.ingress_bandwidth,
        "ingressBurst": qos.ingress_burst,
        "ingressPeakrate": qos.ingress_peakrate,
        "ingressMinburst": qos.ingress_minburst,
        "ingressPacketRate": qos.ingress_packet_rate,
        "ingressPacketBurst": qos.ingress_packet_burst,
        "ingressMaxConnections": qos.ingress_max_connections,
        "egressBandwidth": qos.egress_bandwidth,
        "egressBurst": qos.egress_burst,
        "egressPeakrate": qos.egress_peakrate,
        "egressMinburst": qos.egress_minburst,
        "egressPacketRate": qos.egress_packet_rate,
        "egressPacketBurst": qos.egress_packet_burst,
        "egressMaxConnections": qos.egress_max_connections,
    }
    for name, value in values.items():
        low, high = QOS_LIMITS[name.removeprefix("ingress").removeprefix("egress")]
        if value:
            checks.within(at.field(name), value, low, high)
    if qos.dscp is not None:
        checks.dscp(at.field("dscp"), qos.dscp)


def check_live_migration_spec(at: At, spec: LiveMigrationSpec) -> None:
    source, target = spec.source, spec.target
    if source is None or (source.workload is None) == (source.workload_endpoint is None):
        at.field("source").refuse("exactly one of workload and workloadEndpoint must be given")
    if target is None or (target.selector is None) == (target.workload_endpoint is None):
        at.field("target").refuse("exactly one of selector and workloadEndpoint must be given")
    elif isinstance(target.selector, str):
        checks.selector(at.field("target", "selector"), target.selector)
