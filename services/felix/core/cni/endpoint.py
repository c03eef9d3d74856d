"""The WorkloadEndpoint of an attachment (facts/cni-typha-node-bgp-ctl.md section 1.3, kubernetes-conversion.md
section 6). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Literal

from libs import model
from libs.model.names import workload_endpoint_name
from libs.model.qos import qos_controls
from libs.policy.output import WorkloadKey
from services.felix.core.cni.request import Request
from services.felix.core.journal import Entry
from services.felix.core.routing import Address


@dataclass(frozen=True, slots=True)
class Place:
    """Where pods are plugged in: this node, and what names of host interfaces begin with."""

    node: str
    interface_prefix: str

    def host_interface(self, request: Request) -> str:
        return request.host_interface(self.interface_prefix)

    def endpoint_name(self, request: Request) -> str:
        spec = model.WorkloadEndpointSpec(
            orchestrator=request.orchestrator,
            node=self.node,
            container_id=request.container,
            pod=request.pod,
            endpoint=request.ifname,
        )
        return workload_endpoint_name(spec)

    def entry(self, verb: Literal["ADD", "DEL"], request: Request) -> Entry:
        """What the journal says of the request."""
        return Entry(
            verb=verb,
            container=request.container,
            ifname=request.ifname,
            host_interface=self.host_interface(request),
            handle=request.handle,
            namespace=request.namespace,
            wep=self.endpoint_name(request),
            netns=request.netns,
        )


def endpoint_key(request: Request) -> WorkloadKey:
    """How the calculation calls it."""
    workload = f"{request.namespace}/{request.pod if request.is_kubernetes else request.container}"
    return WorkloadKey(request.orchestrator, workload, request.ifname)


def make_endpoint(
    request: Request,
    place: Place,
    mac: str,
    addresses: tuple[Address, ...],
    found: model.WorkloadEndpoint | None,
) -> tuple[model.WorkloadEndpoint, list[str]]:
    """The endpoint, in place of the one that was found; and what of the annotations could not be used."""
    facts = request.config.args.cni
    account = facts.service_account or request.args.get("K8S_POD_SERVICE_ACCOUNT", "")
    labels = {
        **facts.label_map(),
        "projectcalico.org/namespace": request.namespace,
        "projectcalico.org/orchestrator": request.orchestrator,
    }
    if account and len(account) < 63:
        labels["projectcalico.org/serviceaccount"] = account
    controls, problems = qos_controls(facts.annotations)
    spec = model.WorkloadEndpointSpec(
        orchestrator=request.orchestrator,
        node=place.node,
        container_id=request.container,
        pod=request.pod,
        endpoint=request.ifname,
        service_account_name=account,
        ip_networks=[str(ip_network(address)) for address in addresses],
        profiles=request.profiles(),
        interface_name=place.host_interface(request),
        mac=mac,
        ports=[
            model.WorkloadEndpointPort(
                name=port.name, protocol=model.Protocol(port.protocol), port=port.port, host_port=port.host_port
            )
            for port in facts.ports
        ],
        qos_controls=controls,
    )
    metadata = model.ObjectMeta(name=place.endpoint_name(request), namespace=request.namespace, labels=labels)
    if found is not None:
        metadata.uid = found.metadata.uid
        metadata.creation_timestamp = found.metadata.creation_timestamp
        metadata.resource_version = found.metadata.resource_version
    return model.WorkloadEndpoint(metadata=metadata, spec=spec), problems


def addresses_of(endpoint: model.WorkloadEndpoint) -> tuple[Address, ...]:
    return tuple(ip_network(network).network_address for network in endpoint.spec.ip_networks or ())
