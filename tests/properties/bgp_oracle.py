"""What speakers are told, written the plain way: everything from all resources, from the facts, with no memory.

It uses the product's own reduction of single resources (`reduce_bgp`, whose rules have unit tests) and the selector's
tree; everything that spans resources is done here again.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from libs import model
from libs.model.kubernetes import SERVICE_NAME_LABEL, KubernetesEndpointSlice, KubernetesService
from libs.model.selector import parse
from libs.policy import bgp_inputs
from libs.policy.bgp_output import (
    BgpEntry,
    BgpNode,
    BgpSettings,
    LocalEntry,
    LocalWorkload,
    OwnBlock,
    ServiceRoutes,
)


class Tables:
    """unreadable: key -> problem, for keys that have no resource here."""

    def __init__(self, resources: Mapping[str, model.Resource], unreadable: Mapping[str, str]) -> None:
        self.resources = resources
        self.entries: dict[str, BgpEntry] = {}
        self.services: dict[str, ServiceRoutes] = {}
        self.local: dict[str, dict[str, LocalEntry]] = {}
        self.peers: dict[str, model.BGPPeerSpec] = {}
        for key, problem in unreadable.items():
            kind, name = key.split("/")[5], key.rpartition("/")[2]
            kind = {"bgppeers": "BGPPeer", "bgpfilters": "BGPFilter", "bgpconfigurations": "BGPConfiguration"}[kind]
            self.entries[bgp_inputs.entry_key(kind, name)] = bgp_inputs.unreadable(kind, problem)
        for resource in resources.values():
            if resource.kind in bgp_inputs.BGP_KINDS:
                self.bgp_resource(resource)
        self.all(model.Node, self.node)
        self.all(model.WorkloadEndpoint, self.workload)
        self.all(model.IPAMBlock, self.block)
        self.all(KubernetesService, self.service)

    def all(self, kind, do) -> None:  # type: ignore[no-untyped-def]
        for resource in self.resources.values():
            if isinstance(resource, kind):
                do(resource)

    def bgp_resource(self, resource: model.Resource) -> None:
        key = bgp_inputs.entry_key(resource.kind, resource.name)
        try:
            self.entries[key] = bgp_inputs.reduce_bgp(resource)
        except ValueError as error:
            self.entries[key] = bgp_inputs.unreadable(resource.kind, str(error))
        else:
            if isinstance(resource, model.BGPPeer):
                self.peers[resource.name] = resource.spec

    def node_has(self, name: str, spec: model.BGPPeerSpec) -> bool:
        if spec.node or not spec.node_selector:
            return spec.node in ("", name)
        return any(
            isinstance(one, model.Node) and one.name == name and parse(spec.node_selector).matches(one.metadata.labels)
            for one in self.resources.values()
        )

    def node(self, node: model.Node) -> None:
        bgp = node.spec.bgp
        kubernetes = next((ref.node_name for ref in node.spec.orch_refs if ref.orchestrator == "k8s"), "")
        labels = node.metadata.labels
        made = BgpNode(
            cluster_id=bgp.route_reflector_cluster_id if bgp else "",
            kubernetes_name="" if kubernetes == node.name else kubernetes,
            peers=tuple(
                sorted(
                    name
                    for name, spec in self.peers.items()
                    if (spec.node or spec.node_selector) and self.node_has(node.name, spec)
                )
            ),
            targets=tuple(
                sorted(
                    name
                    for name, spec in self.peers.items()
                    if spec.peer_selector and parse(spec.peer_selector).matches(labels)
                )
            ),
        )
        if made != BgpNode():
            self.entries[f"node/{node.name}"] = made

    def workload(self, endpoint: model.WorkloadEndpoint) -> None:
        labels: dict[str, str] = {}
        for profile in reversed(endpoint.spec.profiles):
            for one in self.resources.values():
                if isinstance(one, model.Profile) and one.name == profile:
                    labels |= one.spec.labels_to_apply
        labels |= endpoint.metadata.labels
        spec, node = endpoint.spec, endpoint.spec.node
        for name, peer in sorted(self.peers.items()):
            chosen = peer.local_workload_selector and parse(peer.local_workload_selector).matches(labels)
            if chosen and self.node_has(node, peer):
                key = f"workload/k8s/{endpoint.namespace}/{spec.pod}/{spec.endpoint}"
                self.local.setdefault(node, {})[key] = LocalWorkload(
                    peer=name,
                    interface=spec.interface_name,
                    nets=tuple(sorted(spec.ip_networks, key=lambda n: ":" in n)),
                )
                return

    def block(self, block: model.IPAMBlock) -> None:
        cidr, owner = block.spec.cidr, (block.spec.affinity or "").removeprefix("host:")
        for one in self.resources.values():
            if (
                isinstance(one, model.BlockAffinity)
                and (one.spec.node, one.spec.cidr, one.spec.state) == (owner, cidr, "confirmed")
                and owner
            ):
                self.local.setdefault(owner, {})[f"block/{cidr}"] = OwnBlock(cidr=cidr)

    def service(self, service: KubernetesService) -> None:
        settings = self.entries.get("configuration/default")
        if not isinstance(settings, BgpSettings) or settings.problem or service.spec.cluster_ip in ("", "None"):
            return
        name = f"{service.namespace}/{service.name}"
        for version in (4, 6):
            nodes = {
                endpoint.node_name or ""
                for one in self.resources.values()
                if isinstance(one, KubernetesEndpointSlice)
                and f"{one.namespace}/{one.metadata.labels.get(SERVICE_NAME_LABEL)}" == name
                and one.address_type == f"IPv{version}"
                for endpoint in one.endpoints
                if endpoint.conditions.ready is not False
            }
            balanced = [entry.ip for entry in service.status.load_balancer.ingress]
            if service.spec.external_traffic_policy == "Local":
                nodes -= {""}
                found = service.spec.cluster_ips if settings.cluster_ips else []
                found = [*found, *inside(service.spec.external_ips, settings.external_ips)]
                found += inside(balanced, settings.load_balancer_ips)
            elif settings.load_balancer_aggregation == "Disabled":
                found = inside(balanced, settings.load_balancer_ips)
            else:
                found = inside(balanced, [one for one in settings.load_balancer_ips if one.endswith(("/32", "/128"))])
            found = [one for one in found if ipaddress.ip_address(one).version == version]
            if found and nodes:
                local = service.spec.external_traffic_policy == "Local"
                self.services[f"{name}/IPv{version}"] = ServiceRoutes(
                    addresses=tuple(sorted({f"{one}/{32 if version == 4 else 128}" for one in found})),
                    nodes=tuple(sorted(nodes)) if local else None,
                )


def inside(addresses: list[str], ranges: tuple[str, ...] | list[str]) -> list[str]:
    return [one for one in addresses if any(ipaddress.ip_address(one) in ipaddress.ip_network(wide) for wide in ranges)]
