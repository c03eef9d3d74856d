"""`calicoctl trace` to Kubernetes' services against real packets, IPv4 and IPv6, on two nodes: straight to
backends, and to the service's addresses, which a rule of nftables translates as kube-proxy would.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import pytest_asyncio

from libs.model import keys
from libs.testkit.cluster import Pod
from libs.testkit.reach import Flow, Verdict
from tests.cluster.conftest import ALLOW, DENY, World, verdicts
from tests.cluster.test_explain import ctl, name, traced

pytestmark = pytest.mark.asyncio(loop_scope="module")

CLUSTER_IPS = {4: "10.96.0.10", 6: "fd00:96::10"}
BALANCED = {4: "203.0.113.9", 6: "2001:db8:9::9"}
PORTS = [{"name": "http", "protocol": "TCP", "port": 8080}, {"name": "metrics", "protocol": "TCP", "port": 9090}]
ONLY_HTTP = PORTS[:1]
POLICIES = """
kind: NetworkPolicy
metadata: {name: backends, namespace: ns1}
spec:
  order: 10
  selector: app == 'web'
  types: [Ingress]
  ingress:
  - {action: Deny, protocol: TCP, destination: {selector: odd == 'yes', ports: [8080]}}
  - {action: Allow, protocol: TCP, source: {selector: app == 'client'}, destination: {ports: [8080]}}
  - {action: Allow, protocol: TCP, destination: {selector: odd == 'yes', ports: [9090]}}
---
kind: NetworkPolicy
metadata: {name: senders, namespace: ns1}
spec:
  order: 10
  selector: app == 'stranger'
  types: [Egress]
  egress:
  - {action: Deny, destination: {selector: odd == 'yes'}}
  - {action: Allow}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(world: World) -> dict[str, Pod]:
    """near and odd on node1; far on node2, with client and stranger."""
    await world.cluster.add_namespace("ns1")
    labels = {
        "near": {"app": "web"}, "odd": {"app": "web", "odd": "yes"}, "far": {"app": "web"}, "idle": {"app": "web"},
        "client": {"app": "client"}, "stranger": {"app": "stranger"},
    }  # fmt: skip
    return {
        one: await world.cluster.add_pod(
            "node1" if one in ("near", "odd") else "node2", one, namespace="ns1", labels=of
        )
        for one, of in labels.items()
    }


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def clean(world: World, pods: dict[str, Pod]) -> AsyncIterator[None]:
    yield
    await world.clean()


NUMBERS = {"http": 80, "metrics": 9100}
NODE_PORTS = {"http": 30080, "metrics": 30900}


async def store(
    world: World, backends: list[Pod], *, idle: Pod | None = None, ports: Any = PORTS, numbered: bool = True,
    **more: str,
) -> None:  # fmt: skip
    """The service `shop` and its slices, as kube_controllers writes them. numbered: not as an older one does, without
    the service's own ports. more: of the service's spec.
    """
    spec: dict[str, Any] = {
        "type": "LoadBalancer",
        "clusterIP": CLUSTER_IPS[4],
        "clusterIPs": list(CLUSTER_IPS.values()),
    }
    spec |= more
    if numbered:
        spec["ports"] = [
            {"name": name, "protocol": "TCP", "port": NUMBERS[name], "nodePort": NODE_PORTS[name]}
            for name in (one["name"] for one in ports)
        ]
    ingress = [{"ip": one} for one in BALANCED.values()]
    value: dict[str, Any] = {
        "kind": "Service", "metadata": {"name": "shop", "namespace": "ns1"}, "spec": spec,
        "status": {"loadBalancer": {"ingress": ingress}},
    }  # fmt: skip
    await world.store.put(keys.resource_key("KubernetesService", "shop", "ns1"), json.dumps(value).encode())
    for family in (4, 6):
        ends = [(pod, True) for pod in backends] + ([(idle, False)] if idle else [])
        value = {
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"shop-{family}", "namespace": "ns1", "labels": {"kubernetes.io/service-name": "shop"},
            },
            "addressType": f"IPv{family}",
            "endpoints": [
                {"addresses": [str(pod.address(family))], "conditions": {"ready": ready}, "nodeName": pod.node}
                for pod, ready in ends
            ],
            "ports": ports,
        }  # fmt: skip
        await world.store.put(keys.resource_key("KubernetesEndpointSlice", f"shop-{family}", "ns1"),
                              json.dumps(value).encode())  # fmt: skip


@contextmanager
def proxy(world: World, node: str, addresses: dict[int, str], pod: Pod, ports: dict[int, int]) -> Iterator[None]:
    """kube-proxy's part on a node: the service's addresses lead to this backend. ports: the service's → the pod's. What
    goes on to another node has this node's address as its source.
    """
    try:
        for family, table in ((4, "ip"), (6, "ip6")):
            backend = str(pod.address(family)) if family == 4 else f"[{pod.address(family)}]"
            rules = "".join(
                f"add rule {table} services pre {table} daddr {addresses[family]} tcp dport {port}"
                f" dnat to {backend}:{to};"
                for port, to in ports.items()
            )
            chain = f"add chain {table} services pre {{ type nat hook prerouting priority dstnat; }};"
            chain += f"add chain {table} services post {{ type nat hook postrouting priority srcnat; }};"
            masked = f'add rule {table} services post iifname "eth0" oifname != "cali*" ct status dnat masquerade;'
            world.run(node, "nft", f"add table {table} services; {chain} {rules} {masked}")
        yield
    finally:
        for table in ("ip", "ip6"):
            world.run(node, "nft", f"add table {table} services; delete table {table} services")


async def test_each_backends_verdict_is_that_of_packets_straight_to_it_and_through_the_service(
    world: World, pods: dict[str, Pod]
) -> None:
    await world.apply(POLICIES)
    backends = [pods["near"], pods["odd"], pods["far"]]
    await store(world, backends, idle=pods["idle"])
    seen = set()
    for source in (pods["client"], pods["stranger"]):
        for port, number in (("http", 8080), ("metrics", 9090)):
            service_port = NUMBERS[port]
            told = await traced(world, name(source), "service:ns1/shop", "--port", str(service_port))
            assert len(told) == 2 * len(backends)
            by_address = {ip_address(one["packet"]["dst"]): one for one in told}
            assert all(one["service"]["idle"] == 1 for one in told)
            for backend in backends:
                with proxy(world, source.node, CLUSTER_IPS, backend, {service_port: number}):
                    for family in (4, 6):
                        one = by_address[backend.address(family)]
                        straight = world.cluster.flow(source, backend, number, family=family)
                        through = world.cluster.flow(source, CLUSTER_IPS[family], service_port)
                        found = await verdicts([straight, through], wanted=[told_verdict(one)] * 2)
                        really = [verdict == ALLOW for verdict in found]
                        seen.add(really[0])
                        assert [one["verdict"] == "allow"] * 2 == really, one
                        assert all(hop["kernel"]["agrees"] for hop in one["hops"]), one
                        assert all(hop["kernel"]["accepted"] for hop in one["hops"]) is really[0], one
    assert seen == {True, False}


async def test_each_backend_has_the_counters_of_its_own_node(world: World, pods: dict[str, Pod]) -> None:
    await world.apply(POLICIES)
    await store(world, [pods["near"], pods["far"]], ports=ONLY_HTTP)

    async def counted(family: int) -> dict[str, int]:
        told = await traced(world, name(pods["client"]), CLUSTER_IPS[family], "--port", "80")
        return {one["hops"][-1]["node"]: _last(one["hops"][-1]["kernel"]) for one in told}

    for family in (4, 6):
        before = await counted(family)
        assert before.keys() == {"node1", "node2"}
        flows = [world.cluster.flow(pods["client"], pods[one], 8080, family=family) for one in ("near", "near", "far")]
        assert await verdicts(flows, tries=1, wanted=[ALLOW] * 3) == [ALLOW] * 3
        assert await counted(family) == {"node1": before["node1"] + 2, "node2": before["node2"] + 1}
        done = await ctl(world, "trace", name(pods["client"]), CLUSTER_IPS[family], "--port", "http")
        assert done.exit_code == 0, done.output
        assert "one of 2 backends: 2 ALLOWED" in done.stdout
        assert done.stdout.count("kernel: agrees") == 3  # two hops to the one, one to the other on the sender's node


def told_verdict(trace: dict[str, Any]) -> Verdict:
    return ALLOW if trace["verdict"] == "allow" else DENY


def _last(kernel: dict[str, Any]) -> int:
    rule = kernel["rules"][kernel["deciders"][-1]]
    assert rule["comment"].startswith("np/ns1/backends/1 allow"), rule
    packets: int = rule["packets"]
    return packets


async def test_pre_dnat_policy_meets_the_services_address_and_pods_policy_the_backend(
    world: World, pods: dict[str, Pod]
) -> None:
    """From outside, by the node that has the backend, with a host endpoint on its interface."""
    near, fabric = pods["near"], world.cluster.fabric
    outside = {4: str(world.cluster.ipv4.ip), 6: str(world.cluster.ipv6.ip)}
    node = world.cluster.node("node1")
    gateways = {4: str(node.ipv4.ip), 6: str(node.ipv6.ip)}
    closed = [
        {"action": "Deny", "protocol": "TCP", "destination": {"nets": [str(ip_network(one))], "ports": [81]}}
        for one in BALANCED.values()
    ]
    await store(world, [near], ports=ONLY_HTTP, numbered=False)  # any number is then that of its only port
    await world.apply(
        f"""
kind: GlobalNetworkPolicy
metadata: {{name: early}}
spec:
  selector: guard == 'yes'
  preDNAT: true
  applyOnForward: true
  types: [Ingress]
  ingress: {[*closed, {"action": "Deny", "protocol": "TCP", "destination": {"ports": [8080]}}, {"action": "Allow"}]}
---
kind: NetworkPolicy
metadata: {{name: backends, namespace: ns1}}
spec:
  selector: app == 'web'
  types: [Ingress]
  ingress: [{{action: Allow, protocol: TCP, destination: {{ports: [8080]}}}}]
"""
    )
    guard = "kind: HostEndpoint\nmetadata: {name: node1-eth0, labels: {guard: 'yes'}}\n"
    guard += "spec: {node: node1, interfaceName: eth0}\n"
    for family, gateway in gateways.items():
        fabric.ip([f"route add {BALANCED[family]} via {gateway}"])
    try:
        await world.apply(guard)
        with proxy(world, "node1", BALANCED, near, {80: 8080, 81: 8080}):
            for family in (4, 6):
                for port, early in ((80, "allow"), (81, "deny")):
                    flow = Flow(fabric.path, ip_address(BALANCED[family]), port, "tcp")
                    (one,) = await traced(world, outside[family], BALANCED[family], "--port", str(port))
                    (really,) = await verdicts([flow], wanted=[told_verdict(one)])
                    (hop,) = one["hops"]
                    said = [(step["stage"], step["decision"]["action"]) for step in hop["steps"]]
                    assert said == [("preDNAT", early), ("normal", "allow")]
                    assert (one["verdict"] == "allow") is (really == ALLOW) is (early == "allow"), one
                    assert hop["kernel"]["agrees"], one
                    assert hop["kernel"]["accepted"] is (really == ALLOW)
                # Straight to the backend the same policy says another thing.
                straight = Flow(fabric.path, near.address(family), 8080, "tcp")
                (one,) = await traced(world, outside[family], str(near.address(family)), "--port", "8080")
                assert (one["verdict"] == "allow") is ((await verdicts([straight]))[0] == ALLOW) is False, one
    finally:
        await world.delete("HostEndpoint", "node1-eth0")
        for address in BALANCED.values():
            fabric.ip([f"route del {address}"])


async def test_node_ports_from_outside_and_from_a_pod_elsewhere(world: World, pods: dict[str, Pod]) -> None:
    """node1 leads to a backend of its own, and to one on node2, which sees the packet as from node1."""
    near, far, client, fabric = pods["near"], pods["far"], pods["client"], world.cluster.fabric
    node = world.cluster.node("node1")
    gateways = {4: str(node.ipv4.ip), 6: str(node.ipv6.ip)}
    outside = {4: str(world.cluster.ipv4.ip), 6: str(world.cluster.ipv6.ip)}
    await store(world, [near, far], ports=ONLY_HTTP)
    seen = set()
    for senders, sent_to in ((outside, 30080), (gateways, 30080), (None, 30080), (gateways, 8080)):
        sources: list[dict[str, Any]] = [{"nets": [str(ip_network(one))]} for one in (senders or {}).values()]
        allow = {"action": "Allow", "protocol": "TCP", "destination": {"ports": [8080]}}
        rules = [{**allow, "source": one} for one in sources or [{"selector": "app == 'client'"}]]
        await world.apply(
            f"""
kind: NetworkPolicy
metadata: {{name: backends, namespace: ns1}}
spec:
  selector: app == 'web'
  types: [Ingress]
  ingress: {json.dumps(rules)}
---
kind: NetworkPolicy
metadata: {{name: senders, namespace: ns1}}
spec:
  selector: app == 'client'
  types: [Egress]
  egress: [{{action: Allow, protocol: TCP, destination: {{ports: [{sent_to}]}}}}]
"""
        )
        for backend in (near, far):
            with proxy(world, "node1", gateways, backend, {30080: 8080}):
                for family in (4, 6):
                    flows = {
                        outside[family]: Flow(fabric.path, ip_address(gateways[family]), 30080, "tcp"),
                        name(client): world.cluster.flow(client, gateways[family], 30080),
                    }
                    for sender, flow in flows.items():
                        told = await traced(world, sender, gateways[family], "--port", "30080")
                        (one,) = [one for one in told if ip_address(one["packet"]["dst"]) == backend.address(family)]
                        (really,) = await verdicts([flow], wanted=[told_verdict(one)])
                        assert (one["verdict"] == "allow") is (really == ALLOW), (sender, backend.name, one)
                        assert all(hop["kernel"]["agrees"] for hop in one["hops"]), one
                        seen.add((sender, backend.name, really))
    assert len(seen) == 3 * 2 * 2, seen  # either verdict for every sender and backend


async def test_a_node_port_of_local_policy_and_an_internal_one_leave_only_the_nodes_own(
    world: World, pods: dict[str, Pod]
) -> None:
    node = world.cluster.node("node1")
    outside = {4: str(world.cluster.ipv4.ip), 6: str(world.cluster.ipv6.ip)}
    await store(world, [pods["near"], pods["far"]], ports=ONLY_HTTP, externalTrafficPolicy="Local",
                internalTrafficPolicy="Local")  # fmt: skip
    for family, gateway in ((4, node.ipv4.ip), (6, node.ipv6.ip)):
        (one,) = await traced(world, outside[family], str(gateway), "--port", "30080")
        assert ip_address(one["packet"]["dst"]) == pods["near"].address(family)
        (one,) = await traced(world, name(pods["client"]), CLUSTER_IPS[family], "--port", "80")
        assert ip_address(one["packet"]["dst"]) == pods["far"].address(family)
    await store(world, [pods["near"]], ports=ONLY_HTTP, internalTrafficPolicy="Local")
    done = await ctl(world, "trace", name(pods["client"]), "service:ns1/shop", "--port", "80")
    assert done.exit_code == 1
    assert "internalTrafficPolicy is Local: kube-proxy there drops" in done.output
