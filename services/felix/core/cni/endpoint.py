"""The WorkloadEndpoint of an attachment (facts/cni-typha-node-bgp-ctl.md section 1.3, kubernetes-conversion.md
section 6). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Literal

from libs import model
from libs.model.names import NamePartError, workload_endpoint_name
from libs.model.qos import PREFIX as QOS_PREFIX
from libs.model.qos import qos_controls
from libs.policy.output import WorkloadKey
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.pod import FLOATING_IPS, NETWORK, PodFacts, listed_addresses, source_prefixes
from services.felix.core.cni.request import Request
from services.felix.core.journal import Delegation, Entry
from services.felix.core.overlay import Address


@dataclass(frozen=True, slots=True)
class Place:
    """Where pods are plugged in: this node, and what names of host interfaces begin with."""

    node: str
    interface_prefix: str

    def host_interface(self, request: Request) -> str:
        return request.host_interface(self.interface_prefix)

    def endpoint_name(self, request: Request) -> str:
        """Raises CniError for a name that no endpoint can have."""
        spec = model.WorkloadEndpointSpec(
            orchestrator=request.orchestrator,
            node=self.node,
            container_id=request.container,
            pod=request.pod,
            endpoint=request.ifname,
        )
        try:
            return workload_endpoint_name(spec)
        except NamePartError as error:
            where = {"endpoint": "CNI_IFNAME", "pod": "K8S_POD_NAME"}.get(error.field, error.field)
            raise CniError(Code.INVALID_ENVIRONMENT, f"{where}: {error.reason}") from error

    def entry(self, verb: Literal["ADD", "DEL"], request: Request, delegation: Delegation | None = None) -> Entry:
        """What the journal says of the request."""
        return Entry(
            network=request.network,
            delegation=delegation,
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
    facts: PodFacts,
    place: Place,
    mac: str,
    addresses: tuple[Address, ...],
    found: model.WorkloadEndpoint | None,
) -> tuple[model.WorkloadEndpoint, list[str]]:
    """The endpoint, in place of the one that was found; and what of the annotations could not be used.

    Raises CniError for annotations that decide who may talk to whom: a pod without them would be another pod.
    """
    labels = {
        **facts.labels,
        "projectcalico.org/namespace": request.namespace,
        "projectcalico.org/orchestrator": request.orchestrator,
    }
    if facts.service_account and len(facts.service_account) < 63:
        labels["projectcalico.org/serviceaccount"] = facts.service_account
    controls, problems = qos_controls({**_bandwidth(request), **facts.annotations})
    spec = model.WorkloadEndpointSpec(
        orchestrator=request.orchestrator,
        node=place.node,
        container_id=request.container,
        pod=request.pod,
        endpoint=request.ifname,
        service_account_name=facts.service_account,
        ip_networks=[str(ip_network(address)) for address in addresses],
        ip_nats=_floating(request, facts, addresses),
        profiles=request.profiles(facts.service_account),
        interface_name=place.host_interface(request),
        mac=mac,
        ports=[
            model.WorkloadEndpointPort(
                name=port.name, protocol=model.Protocol(port.protocol), port=port.port, host_port=port.host_port
            )
            for port in facts.ports
        ],
        allow_spoofed_source_prefixes=[str(prefix) for prefix in source_prefixes(facts)],
        qos_controls=controls,
    )
    metadata = model.ObjectMeta(
        name=place.endpoint_name(request),
        generate_name=facts.generate_name,
        namespace=request.namespace,
        labels=labels,
        annotations={NETWORK: request.network},
    )
    if found is not None:
        metadata.uid = found.metadata.uid
        metadata.creation_timestamp = found.metadata.creation_timestamp
        metadata.resource_version = found.metadata.resource_version
    return model.WorkloadEndpoint(metadata=metadata, spec=spec), problems


def _bandwidth(request: Request) -> dict[str, str]:
    """Capability `bandwidth`, which runtimes fill from the annotations of Kubernetes, in the words of Calico's, which
    come before it where the pod has them.
    """
    limits = request.config.runtime.bandwidth
    named = {
        "ingressBandwidth": limits.ingress_rate,
        "ingressBurst": limits.ingress_burst,
        "egressBandwidth": limits.egress_rate,
        "egressBurst": limits.egress_burst,
    }
    return {QOS_PREFIX + name: str(value) for name, value in named.items() if value}


def _floating(request: Request, facts: PodFacts, addresses: tuple[Address, ...]) -> list[model.IPNAT]:
    """Other addresses by which the pod can be reached, each led to its own address of the same family."""
    nats = []
    for external in listed_addresses(facts, FLOATING_IPS, one_each=False):
        if not request.config.feature_control.floating_ips:
            text = f"annotation {FLOATING_IPS}: not allowed here (feature_control.floating_ips is false)"
            raise CniError(Code.INVALID_CONFIG, text)
        internal = next((address for address in addresses if address.version == external.version), None)
        if internal is None:
            text = f"annotation {FLOATING_IPS}: {external}, and the pod has no IPv{external.version} address"
            raise CniError(Code.INVALID_CONFIG, text)
        nats.append(model.IPNAT(internal_ip=str(internal), external_ip=str(external)))
    return nats


def network_profile(request: Request) -> model.Profile:
    """What pods of a network without Kubernetes' policies have: all may leave; from outside none but their own kind may
    come, or all where Kubernetes runs (facts/cni-typha-node-bgp-ctl.md section 1.2, policy.type).
    """
    source = model.EntityRule() if request.is_kubernetes else model.EntityRule(selector=f"has({request.network})")
    spec = model.ProfileSpec(
        ingress=[model.Rule(action="Allow", source=source)],
        egress=[model.Rule(action="Allow")],
        labels_to_apply={request.network: ""},
    )
    return model.Profile(metadata=model.ObjectMeta(name=request.network), spec=spec)


def addresses_of(endpoint: model.WorkloadEndpoint) -> tuple[Address, ...]:
    return tuple(ip_network(network).network_address for network in endpoint.spec.ip_networks or ())
