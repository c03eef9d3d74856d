"""Services as kube_controllers stores them, and a small cluster whose pods are behind one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from libs.model import keys
from libs.store.api import KeyValue
from libs.store.memory import MemoryStore
from services.calicoctl.explain import cluster as reading
from services.calicoctl.explain.cluster import Cluster
from tests.unit.libs.policy import build
from tests.unit.services.calicoctl.ctl import Ctl

TCP, UDP, SCTP = 6, 17, 132
HTTP = ("http", "TCP", 8080)
METRICS = ("metrics", "TCP", 9090)
DNS = ("dns", "UDP", 5353)
Stored = tuple[str, dict[str, Any]]
POLICY = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: web, namespace: ns1}
spec:
  selector: app == 'web'
  types: [Ingress]
  ingress: [{action: Allow, protocol: TCP, source: {selector: app == 'client'}, destination: {ports: [8080]}}]
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: odd, namespace: ns1}
spec:
  order: 1
  selector: odd == 'yes'
  types: [Ingress]
  ingress: [{action: Deny}]
"""
GUARD = """
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: guard}
spec:
  selector: guard == 'yes'
  preDNAT: true
  applyOnForward: true
  types: [Ingress]
  ingress:
  - {action: Deny, protocol: TCP, destination: {nets: [203.0.113.9/32], ports: [81]}}
  - {action: Allow, destination: {nets: [203.0.113.9/32]}}
  - {action: Deny}
"""
WEBS = 30


def service(name: str = "web", *addresses: str, namespace: str = "ns1", **spec: Any) -> Stored:
    """lb: addresses of the load balancer, or its entries as they are."""
    ingress = [{"ip": one} if isinstance(one, str) else one for one in spec.pop("lb", ())]
    own = list(addresses or ("10.96.0.10",))
    value = {
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"type": "ClusterIP", "clusterIP": own[0], "clusterIPs": own, **spec},
        "status": {"loadBalancer": {"ingress": ingress}},
    }
    return keys.resource_key("KubernetesService", name, namespace), value


def endpoint(address: str, ready: bool | dict[str, bool] | None = True, node: str | None = "n1") -> dict[str, Any]:
    """ready: or all conditions."""
    conditions = ready if isinstance(ready, dict) else {} if ready is None else {"ready": ready}
    return {"addresses": [address], "conditions": conditions, **({"nodeName": node} if node else {})}


def piece(
    name: str,
    endpoints: Iterable[dict[str, Any]],
    ports: Iterable[tuple[str | None, str | None, int | None]] = (HTTP,),
    *,
    of: str = "web",
    namespace: str = "ns1",
    family: str = "IPv4",
) -> Stored:
    value = {
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": of}},
        "addressType": family,
        "endpoints": list(endpoints),
        "ports": [{"name": n, "protocol": p, "port": number} for n, p, number in ports],
    }
    return keys.resource_key("KubernetesEndpointSlice", name, namespace), value


def port(name: str, number: int, protocol: str = "TCP", node: int = 0, to: int | str = 0) -> dict[str, Any]:
    """Of a service, as Kubernetes has it."""
    made: dict[str, Any] = {"protocol": protocol, "port": number, "targetPort": to or number}
    return made | ({"name": name} if name else {}) | ({"nodePort": node} if node else {})


PORTS = [port("http", 80, node=30080, to=8080), port("metrics", 9100, to=9090), port("dns", 53, "UDP", to="dns"),
         port("http", 80, "SCTP")]  # fmt: skip
SLICE_PORTS = [HTTP, METRICS, DNS, ("http", "SCTP", 7)]


def cluster(*stored: Stored) -> Cluster:
    return reading.of_listing((KeyValue(key, json.dumps(value).encode(), 1, 1, 1) for key, value in stored), 1)


def filled() -> Ctl:
    """web-0 … web-29 by turns on n1 and n2, every tenth odd; the client on n2."""
    made = Ctl()
    mine = ("kns.ns1",)
    pods = [
        build.wep(f"web-{number}", f"n{number % 2 + 1}", nets=(f"10.0.0.{number}/32", f"fd00::{number}/128"),
                  labels={"app": "web", **({"odd": "yes"} if number % 10 == 3 else {})}, profiles=mine)
        for number in range(WEBS)
    ]  # fmt: skip
    others = [
        build.wep("client", "n2", labels={"app": "client"}, nets=("10.0.1.1/32", "fd00:1::1/128"), profiles=mine),
        build.profile("kns.ns1", ingress=[build.rule()], egress=[build.rule()]),
        build.tier("default", 1_000_000),
        build.node("n1", "192.0.2.1/24", "2001:db8::1/64"),
        build.node("n2", "192.0.2.2/24", "2001:db8::2/64"),
        build.hep("n1-eth0", "n1", {"guard": "yes"}),
    ]
    for resource in (*pods, *others):
        made.store(resource)
    addresses = (4, "10.0.0.", "IPv4"), (6, "fd00::", "IPv6")
    for family, base, kind in addresses:
        put(made, piece(f"web-{family}", [endpoint(f"{base}{number}", node=f"n{number % 2 + 1}")
                                         for number in range(WEBS)], [HTTP, DNS], family=kind))  # fmt: skip
    put(made, service("web", "10.96.0.10", "fd00:96::10", type="LoadBalancer", lb=["203.0.113.9"]))
    made.apply(POLICY)
    return made


def put(ctl: Ctl, stored: Stored) -> None:
    key, value = stored
    ctl.run(MemoryStore(ctl.server).put(key, json.dumps(value).encode()))


def few(ctl: Ctl, *numbers: int, ready: bool = True, family: int = 4) -> None:
    """These alone are behind the service; web-3 is odd. On n1 are even ones."""
    base, kind = ("10.0.0.", "IPv4") if family == 4 else ("fd00::", "IPv6")
    ends = [endpoint(f"{base}{number}", ready, f"n{number % 2 + 1}") for number in numbers]
    put(ctl, piece(f"web-{family}", ends, [HTTP, DNS], family=kind))


def traced(ctl: Ctl, *arguments: str, status: int = 0) -> list[dict[str, Any]]:
    done = ctl("trace", *arguments, "-o", "json", *(() if ctl.broker else ("--datastore-only",)))
    assert done.exit_code == status, done.output + repr(done.exception)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found
