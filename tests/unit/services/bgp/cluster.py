"""A cluster as resources, and what typha's calculation and a node's plan make of it."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec

from libs import model
from libs.model import keys
from libs.policy.bgp_services import cluster_ranges
from libs.policy.calculator import Calculator
from services.bgp.core.plan import plan
from services.bgp.core.settings import PeerSettings, SpeakerSettings
from services.bgp.core.tables import Tables


class Cluster:
    """Resources by key; every method replaces. nodes: that many, `node1` with 172.17.0.1 and so on. cluster_ips: of the
    environment, typha's as well.
    """

    def __init__(self, nodes: int = 0, cluster_ips: tuple[str, ...] = ()) -> None:
        self.calculator = Calculator(cluster_ranges(cluster_ips)[0])
        self._cluster_ips = cluster_ips
        for number in range(1, nodes + 1):
            self.node(f"node{number}", ipv4=f"172.17.0.{number}/24")

    def put(
        self, kind: str, name: str, spec: dict[str, Any] | None, namespace: str = "", labels: Any = None, **rest: Any
    ) -> None:
        """spec None: delete."""
        key = keys.resource_key(kind, name, namespace)
        if spec is None:
            self.calculator.update(key, None)
            return
        metadata = {"name": name, "namespace": namespace, "labels": labels or {}}
        data = msgspec.json.encode({"kind": kind, "metadata": metadata, "spec": spec, **rest})
        self.raw(key, data)

    def raw(self, key: str, data: bytes) -> None:
        """As typha reads it: what cannot be decoded is a problem."""
        try:
            self.calculator.update(key, model.from_storage(key, data, 1))
        except model.DecodeError as error:
            self.calculator.update(key, None, str(error))

    def node(
        self,
        name: str,
        *,
        ipv4: str = "",
        ipv6: str = "",
        as_number: int | None = None,
        cluster_id: str = "",
        labels: Any = None,
        key: str = "",
        kubernetes: str = "",
    ) -> None:
        bgp: dict[str, Any] = {"ipv4Address": ipv4, "ipv6Address": ipv6, "routeReflectorClusterID": cluster_id}
        if as_number is not None:
            bgp["asNumber"] = as_number
        refs = [{"orchestrator": "k8s", "nodeName": kubernetes}] if kubernetes else []
        status = {"wireguardPublicKey": key}
        self.put("Node", name, {"bgp": bgp, "orchRefs": refs}, labels=labels, status=status)

    def config(self, name: str = "default", **spec: Any) -> None:
        self.put("BGPConfiguration", name, spec)

    def peer(self, name: str, **spec: Any) -> None:
        self.put("BGPPeer", name, spec)

    def filter(self, name: str, **spec: Any) -> None:
        self.put("BGPFilter", name, spec)

    def pool(self, name: str, cidr: str, **spec: Any) -> None:
        self.put("IPPool", name, {"cidr": cidr, **spec})

    def block(self, cidr: str, node: str, state: str = "confirmed") -> None:
        network = ipaddress.ip_network(cidr)
        body = {"cidr": cidr, "affinity": f"host:{node}", "allocations": [], "unallocated": [], "attributes": []}
        self.raw(keys.BlockKey(network).path, msgspec.json.encode(body))
        self.affinity(cidr, node, state)

    def affinity(self, cidr: str, node: str, state: str) -> None:
        self.raw(keys.AffinityKey("host", node, ipaddress.ip_network(cidr)).path, msgspec.json.encode({"state": state}))

    def workload(self, node: str, pod: str, *addresses: str, **labels: str) -> None:
        spec = {
            "orchestrator": "k8s", "node": node, "pod": pod, "endpoint": "eth0", "containerID": "c",
            "ipNetworks": [ipaddress.ip_network(one).with_prefixlen for one in addresses], "profiles": [],
            "interfaceName": f"cali{pod}",
        }  # fmt: skip
        forced = {"projectcalico.org/namespace": "ns1", "projectcalico.org/orchestrator": "k8s"}
        self.put("WorkloadEndpoint", f"{node}-k8s-{pod}-eth0", spec, "ns1", labels={**labels, **forced})

    def service(self, name: str, cluster: list[str], *, policy: str = "Cluster", **rest: Any) -> None:
        """rest: external, balanced: addresses."""
        spec = {
            "type": "LoadBalancer", "clusterIP": cluster[0], "clusterIPs": cluster, "externalTrafficPolicy": policy,
            "externalIPs": rest.get("external", []),
        }  # fmt: skip
        ingress = [{"ip": address} for address in rest.get("balanced", [])]
        self.put("KubernetesService", name, spec, "ns1", status={"loadBalancer": {"ingress": ingress}})

    def endpoints(self, service: str, *where: tuple[str, bool | None], version: int = 4) -> None:
        """where: node and whether ready."""
        base = "10.65.0." if version == 4 else "fd65::"
        self.put(
            "KubernetesEndpointSlice",
            f"{service}-{version}",
            {},
            "ns1",
            {"kubernetes.io/service-name": service},
            addressType=f"IPv{version}",
            endpoints=[
                {"addresses": [f"{base}{number}"], "nodeName": node, "conditions": {"ready": ready}}
                for number, (node, ready) in enumerate(where, 1)
            ],
        )

    # --- what comes of it ---

    def tables(self, node: str) -> Tables:
        calculator = self.calculator
        calculator.flush()
        bgp = calculator.bgp
        return Tables(
            dict(calculator.node_infos),
            dict(calculator.pools),
            dict(bgp.entries),
            dict(bgp.services),
            dict(bgp.local.get(node, {})),
        )

    def plan(self, node: str = "node1", router_id: str = "") -> SpeakerSettings:
        return plan(node, self.tables(node), router_id=router_id, cluster_ips=self._cluster_ips)

    def peers(self, node: str = "node1") -> dict[str, PeerSettings]:
        return {peer.name: peer for peer in self.plan(node).peers}

    def peer_of(self, node: str, name: str) -> PeerSettings:
        return self.peers(node)[name]
