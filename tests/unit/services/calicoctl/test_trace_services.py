"""Services as kube-proxy sees them, and a trace to each of their backends, by what the datastore keeps of services."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import pytest

from libs import model
from libs.bus import wire
from libs.bus.explain import Answer, KernelRule, KernelVerdict, TraceReply, TraceRequest, Verb, subject
from libs.bus.memory import MemoryBroker
from libs.model import keys
from libs.model.base import Resource
from libs.policy.path import HostRules, Side, allowed, walk
from libs.policy.trace import Packet
from libs.resources import codec
from libs.store.api import KeyValue
from libs.store.memory import MemoryStore
from services.calicoctl.explain import cluster as reading
from services.calicoctl.explain import endpoints, ends, services
from services.calicoctl.explain.cluster import Cluster
from services.calicoctl.explain.endpoints import Backend, Chosen, NoBackends
from services.calicoctl.explain.ends import End, EndProblem
from services.calicoctl.explain.packet import PacketProblem
from services.calicoctl.explain.services import Front
from tests.unit.libs.policy import build
from tests.unit.services.calicoctl.ctl import Ctl

TCP, UDP, SCTP = 6, 17, 132
HTTP = ("http", "TCP", 8080)
METRICS = ("metrics", "TCP", 9090)
DNS = ("dns", "UDP", 5353)
Stored = tuple[str, dict[str, Any]]


def service(name: str = "web", *addresses: str, namespace: str = "ns1", **spec: Any) -> Stored:
    """lb: of the load balancer."""
    ingress = [{"ip": one} for one in spec.pop("lb", ())]
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


def cluster(*stored: Stored) -> Cluster:
    return reading.of_listing((KeyValue(key, json.dumps(value).encode(), 1, 1, 1) for key, value in stored), 1)


FRONT = Front("ns1", "web", services.CLUSTER_IP, {4: "10.96.0.10", 6: "fd00:96::10"})


def chosen(*stored: Stored, port: str = "http", protocol: int = TCP, family: int = 4) -> Chosen:
    return endpoints.choose(FRONT, family, protocol, port, cluster(*stored))


def places(found: Chosen) -> list[str]:
    return [one.shown for one in found.backends]


# --- which endpoints --------------------------------------------------------------------------------------------------


def test_ready_endpoints_of_all_slices_are_the_backends() -> None:
    found = chosen(
        piece("a", [endpoint("10.0.0.2"), endpoint("10.0.0.10", None, "n2")]),
        piece("b", [endpoint("10.0.0.1", node=None)]),
        piece("other", [endpoint("10.0.0.7")], of="api"),
        piece("elsewhere", [endpoint("10.0.0.8")], namespace="ns2"),
        piece("six", [endpoint("fd00::1")], family="IPv6"),
        piece("names", [endpoint("example.org")], family="FQDN"),
    )
    assert found.backends == (
        Backend("10.0.0.1", 8080), Backend("10.0.0.2", 8080, "n1"), Backend("10.0.0.10", 8080, "n2"),
    )  # fmt: skip
    assert (found.idle, found.notes) == (0, ())


def test_endpoints_that_are_not_ready_are_left_out_and_counted() -> None:
    found = chosen(piece("a", [endpoint("10.0.0.1", False), endpoint("10.0.0.2"), endpoint("10.0.0.3", False)]))
    assert (places(found), found.idle) == (["10.0.0.2:8080"], 2)


def test_an_endpoint_in_two_slices_is_one_backend_and_ready_when_one_says_so() -> None:
    found = chosen(
        piece("a", [endpoint("10.0.0.1", False), endpoint("10.0.0.2", node=None), endpoint("10.0.0.3", node="n3")]),
        piece("b", [endpoint("10.0.0.1"), endpoint("10.0.0.2", node="n2"), endpoint("10.0.0.3", node=None)]),
    )
    assert found.backends == (
        Backend("10.0.0.1", 8080, "n1"), Backend("10.0.0.2", 8080, "n2"), Backend("10.0.0.3", 8080, "n3"),
    )  # fmt: skip
    assert found.idle == 0


def test_only_the_first_address_of_an_endpoint_counts() -> None:
    two = {"addresses": ["10.0.0.1", "10.0.0.2"]}
    found = chosen(piece("a", [two, {"addresses": []}, endpoint("10.0.0.300")]))
    assert places(found) == ["10.0.0.1:8080"]
    assert list(found.notes) == [
        "'' in slice a is no IPv4 address: left out", "'10.0.0.300' in slice a is no IPv4 address: left out",
    ]  # fmt: skip


def test_a_port_may_have_another_number_on_other_pods() -> None:
    found = chosen(
        piece("a", [endpoint("10.0.0.1")], [HTTP, METRICS]),
        piece("b", [endpoint("10.0.0.2")], [("http", "TCP", 8081)]),
        piece("c", [endpoint("10.0.0.3")], [METRICS]),
    )
    assert places(found) == ["10.0.0.1:8080", "10.0.0.2:8081"]
    assert found.port.targets == (8080, 8081)


def test_ipv6_has_its_own_slices() -> None:
    stored = (
        piece("a", [endpoint("10.0.0.1")]),
        piece("b", [endpoint("fd00:0::2"), endpoint("fd00::1"), endpoint("10.0.0.9")], family="IPv6"),
    )
    found = chosen(*stored, family=6)
    assert places(found) == ["[fd00::1]:8080", "[fd00::2]:8080"]
    assert list(found.notes) == ["'10.0.0.9' in slice b is no IPv6 address: left out"]


@pytest.mark.parametrize(
    ("ports", "protocol", "port", "expected", "assumed"),
    [
        ([HTTP, METRICS, DNS], TCP, "metrics", 9090, False),
        ([HTTP, METRICS, DNS], UDP, "dns", 5353, False),
        ([HTTP, METRICS, DNS], UDP, "53", 5353, True),
        ([(None, None, 8080)], TCP, "80", 8080, True),
        ([("", "TCP", 8080), ("none", "TCP", None)], TCP, "80", 8080, True),
        ([("x", "SCTP", 7)], SCTP, "x", 7, False),
        ([("dns", "TCP", 53), ("dns", "UDP", 5353)], UDP, "dns", 5353, False),
    ],
)
def test_the_port_that_is_meant(ports: Any, protocol: int, port: str, expected: int, assumed: bool) -> None:
    found = chosen(piece("a", [endpoint("10.0.0.1")], ports), protocol=protocol, port=port)
    assert places(found) == [f"10.0.0.1:{expected}"]
    assert [note for note in found.notes if "is taken for its only" in note] == list(found.notes)
    assert bool(found.notes) is assumed


@pytest.mark.parametrize(
    ("protocol", "port", "says"),
    [
        (
            TCP,
            "https",
            "--port: service ns1/web has no tcp port 'https'; it has http (tcp, 8080 at its endpoints), metr",
        ),
        (TCP, "dns", "has no tcp port 'dns'; it has http (tcp, 8080 at its endpoints), metrics (tcp, 9090 at"),
        (TCP, "80", "so it does not tell which of them is 80: give its name; it has http (tcp"),
        (TCP, "8080", "--port: the numbers of service ns1/web's ports are not in the datastore (an older"),
        (SCTP, "80", "--port: service ns1/web has no sctp port; it has"),
        (TCP, "", "--port: which port of service ns1/web? it has http (tcp, 8080 at its endpoints)"),
        (UDP, "0", "--port: 0 is not within 1 to 65535"),
        (1, "", "--protocol: icmp is none of services' protocols: sctp, tcp, udp"),
        (47, "", "--protocol: 47 is none of services' protocols"),
    ],
)
def test_a_port_that_cannot_be_meant_is_said_with_those_there_are(protocol: int, port: str, says: str) -> None:
    with pytest.raises(PacketProblem) as problem:
        chosen(piece("a", [endpoint("10.0.0.1")], [HTTP, METRICS, DNS]), protocol=protocol, port=port)
    assert says in str(problem.value)


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        ([], "service ns1/web has no endpoints on IPv4: kube-proxy refuses connections to it"),
        ([piece("a", [], [])], "has no endpoints on IPv4: kube-proxy refuses"),
        ([piece("a", [])], "has no endpoints on IPv4 for http (tcp, 8080 at its endpoints): kube-proxy refuses"),
        ([piece("a", [endpoint("10.0.0.1", False)])], "no ready endpoint on IPv4 for http (tcp, 8080 at its endpoints):"
         " 1 not ready. kube-proxy refuses connections to it, unless some of these are terminating"),
        ([piece("a", [endpoint("fd00::1")], family="IPv6")], "has no endpoints on IPv4"),
    ],
)  # fmt: skip
def test_no_backend_is_said_with_what_kube_proxy_makes_of_it(stored: list[Stored], says: str) -> None:
    with pytest.raises(NoBackends) as problem:
        chosen(*stored)
    assert says in str(problem.value)


def test_a_slice_that_nobody_can_read_is_told_as_perhaps_missing() -> None:
    broken = keys.resource_key("KubernetesEndpointSlice", "broken", "ns1"), {"kind": "EndpointSlice", "endpoints": 3}
    far = keys.resource_key("KubernetesEndpointSlice", "broken", "ns2"), {"kind": "EndpointSlice", "endpoints": 3}
    found = chosen(piece("a", [endpoint("10.0.0.1")]), broken, far)
    assert list(found.notes) == ["slice broken cannot be read, and may be this service's"]


# --- with what kube_controllers stores of ports and conditions --------------------------------------------------------

PORTS = [port("http", 80, node=30080, to=8080), port("metrics", 9100, to=9090), port("dns", 53, "UDP", to="dns"),
         port("http", 80, "SCTP")]  # fmt: skip
SLICE_PORTS = [HTTP, METRICS, DNS, ("http", "SCTP", 7)]


def through(
    text: str, *stored: Stored, port: str = "80", protocol: int = TCP, family: int = 4, sender: str = ""
) -> Chosen:
    known = cluster(*stored)
    found = services.target(text, known, "ns1", port, protocol)
    assert not isinstance(found, End), found
    (front,) = found
    return endpoints.choose(front, family, protocol, port, known, sender)


@pytest.mark.parametrize(
    ("protocol", "port_", "expected"),
    [
        (TCP, "80", 8080), (TCP, "http", 8080), (TCP, "9100", 9090), (TCP, "metrics", 9090), (UDP, "53", 5353),
        (UDP, "dns", 5353), (SCTP, "80", 7), (SCTP, "http", 7),
    ],
)  # fmt: skip
def test_a_port_of_the_service_is_the_slices_port_of_its_name(protocol: int, port_: str, expected: int) -> None:
    stored = service("web", ports=PORTS), piece("a", [endpoint("10.0.0.1")], SLICE_PORTS)
    found = through("10.96.0.10", *stored, protocol=protocol, port=port_)
    assert (places(found), found.notes) == ([f"10.0.0.1:{expected}"], ())


@pytest.mark.parametrize("name", [None, ""])
def test_a_port_without_name_is_the_slices_port_without_name(name: str | None) -> None:
    stored = service("web", ports=[port("", 80)]), piece("a", [endpoint("10.0.0.1")], [HTTP, (name, "TCP", 81)])
    found = through("service:web", *stored)
    assert (places(found), found.port.shown) == (["10.0.0.1:81"], "80/tcp (81 at its endpoints)")


def test_a_port_that_the_service_does_not_have_is_refused_with_those_it_has() -> None:
    """Also where slices know one of that number or name, and where there is no endpoint at all."""
    of = service("web", type="NodePort", ports=PORTS)
    stored = of, piece("a", [endpoint("10.0.0.1")], [*SLICE_PORTS, ("old", "TCP", 82)])
    has = "; it has 80/tcp (http), 9100/tcp (metrics), 53/udp (dns), 80/sctp (http)"
    for text, shown in (("8080", "8080"), ("53", "53"), ("old", "'old'"), ("dns", "'dns'")):
        for there in (stored, (of,)):
            with pytest.raises(PacketProblem) as problem:
                through("10.96.0.10", *there, port=text)
            assert str(problem.value) == f"--port: service ns1/web has no tcp port {shown}{has}"
    with pytest.raises(PacketProblem, match=r"30080 is the node port of 80/tcp \(http\): trace to a node with it"):
        through("10.96.0.10", *stored, port="30080")
    with pytest.raises(PacketProblem, match=r"which port of service ns1/web\? it has 80/tcp \(http\), 9100"):
        through("10.96.0.10", *stored, port="")
    with pytest.raises(PacketProblem, match="70000 is not within"):
        through("10.96.0.10", *stored, port="70000")


def test_a_port_behind_which_nothing_is_has_no_endpoints() -> None:
    of, others = service("web", ports=PORTS), piece("a", [endpoint("10.0.0.1")], [HTTP])
    with pytest.raises(NoBackends) as problem:
        through("service:web", of, others, port="dns", protocol=UDP)
    assert str(problem.value) == (
        "service ns1/web has no endpoints on IPv4 for 53/udp (dns), whose targetPort 'dns' none of its pods has:"
        " kube-proxy refuses connections to it"
    )
    with pytest.raises(NoBackends, match=r"no endpoints on IPv4 for 80/tcp \(http\): kube-proxy refuses"):
        through("service:web", of)


READY = {"ready": True, "serving": True, "terminating": False}
DOWN = {"ready": False, "serving": False, "terminating": False}
LEAVING = {"ready": False, "serving": True, "terminating": True}
LEFT = {"ready": False, "serving": False, "terminating": True}
TERMINATE = "those that terminate and still serve get its connections"


@pytest.mark.parametrize(
    ("conditions", "expected", "idle", "noted"),
    [
        ([READY, LEAVING, DOWN], [1], 2, False),
        ([DOWN, LEAVING, LEFT, LEAVING], [2, 4], 2, True),
        ([{"ready": False, "terminating": True}, DOWN], [1], 1, True),  # serving: when not said it does
        ([{"terminating": True}], [1], 0, False),  # ready: when not said it is
    ],
)
def test_terminating_endpoints_that_serve_count_when_none_is_ready(
    conditions: list[dict[str, bool]], expected: list[int], idle: int, noted: bool
) -> None:
    ends = [endpoint(f"10.0.0.{at}", one) for at, one in enumerate(conditions, 1)]
    found = through("service:web", service("web", ports=PORTS), piece("a", ends))
    assert ([one.address for one in found.backends], found.idle) == ([f"10.0.0.{at}" for at in expected], idle)
    assert list(found.notes) == ([f"no endpoint is ready: {TERMINATE}"] if noted else [])


@pytest.mark.parametrize("conditions", [[DOWN], [LEFT], [DOWN, LEFT], [{"ready": False, "serving": True, "terminating":
                                                                      False}]])  # fmt: skip
def test_endpoints_that_do_not_serve_or_do_not_terminate_are_no_backends(conditions: list[dict[str, bool]]) -> None:
    ends = [endpoint(f"10.0.0.{at}", one) for at, one in enumerate(conditions, 1)]
    with pytest.raises(NoBackends) as problem:
        through("service:web", service("web", ports=PORTS), piece("a", ends))
    assert str(problem.value).endswith(f"{len(ends)} not ready. kube-proxy refuses connections to it")


LOCAL = service("web", type="LoadBalancer", ports=PORTS, internalTrafficPolicy="Local", lb=["203.0.113.9"])
BOTH = service("web", type="LoadBalancer", ports=PORTS, externalTrafficPolicy="Local", lb=["203.0.113.9"])
SPREAD = piece("a", [endpoint("10.0.0.1"), endpoint("10.0.0.2", node="n2"), endpoint("10.0.0.3", LEAVING, "n2"),
                     endpoint("10.0.0.4", LEAVING, "n3"), endpoint("10.0.0.5", False, "n4"),
                     endpoint("10.0.0.6", node=None)])  # fmt: skip


@pytest.mark.parametrize(
    ("of", "text", "sender", "expected"),
    [
        (LOCAL, "service:web", "n1", [1]), (LOCAL, "service:web", "n2", [2]), (LOCAL, "10.96.0.10", "n3", [4]),
        (LOCAL, "service:web", "", [1, 2, 4, 6]),  # each node by itself
        (LOCAL, "203.0.113.9", "n1", [1, 2, 6]), (LOCAL, "203.0.113.9", "", [1, 2, 6]),
        (BOTH, "service:web", "n1", [1, 2, 6]), (BOTH, "203.0.113.9", "n3", [1, 2, 6]),
        (BOTH, "203.0.113.9", "", [1, 2, 4, 6]),
    ],
)  # fmt: skip
def test_a_policy_local_leaves_each_node_its_own_endpoints(
    of: Stored, text: str, sender: str, expected: list[int]
) -> None:
    found = through(text, of, SPREAD, sender=sender)
    assert [one.address for one in found.backends] == [f"10.0.0.{at}" for at in expected]
    on = f" on {sender or 'n3'}"
    assert (f"no endpoint is ready{on}: {TERMINATE}" in found.notes) is (4 in expected)


def test_a_policy_local_without_own_endpoints_is_said() -> None:
    for node in ("n4", "n5"):
        with pytest.raises(NoBackends) as problem:
            through("service:web", LOCAL, SPREAD, sender=node)
        assert str(problem.value) == (
            f"service ns1/web has no ready endpoint on {node} on IPv4 for 80/tcp (http; 8080 at its endpoints), and"
            " internalTrafficPolicy is Local: kube-proxy there drops what is sent to it, whatever the 5 on other nodes"
        )
    with pytest.raises(NoBackends, match=r"1 not ready\. kube-proxy refuses"):
        through("service:web", LOCAL, piece("a", [endpoint("10.0.0.1", DOWN, "n2")]), sender="n1")


def test_slices_call_nodes_as_kubernetes_does() -> None:
    spec = {"orchRefs": [{"nodeName": "n1", "orchestrator": "k8s"}], "bgp": {"ipv4Address": "192.0.2.1/24"}}
    node = keys.resource_key("Node", "calico-n1"), {"kind": "Node", "metadata": {"name": "calico-n1"}, "spec": spec}
    found = through("service:web", LOCAL, SPREAD, node, sender="calico-n1")
    assert places(found) == ["10.0.0.1:8080"]
    assert list(found.notes) == ["internalTrafficPolicy Local: 4 on other nodes than calico-n1 get nothing of it"]


# --- which service ----------------------------------------------------------------------------------------------------

MANY = (
    service("web", "10.96.0.10", "fd00:96::10"),
    service("shop", "10.96.0.11", type="LoadBalancer", externalTrafficPolicy="Local", externalIPs=["198.51.100.7"],
            lb=["203.0.113.9", "2001:DB8::9"]),
    service("shared", "10.96.0.12", type="LoadBalancer", lb=["203.0.113.9"]),
    service("db", "None"),
    service("outside", "", type="ExternalName", externalIPs=["198.51.100.8"]),
    service("pending", ""),
    service("bare", "None", externalIPs=["198.51.100.9"]),
    service("web", "10.96.0.20", namespace="ns2"),
    piece("db", [endpoint("10.0.0.5"), endpoint("10.0.0.6", False)], of="db"),
    piece("db6", [endpoint("fd00::5")], of="db", family="IPv6"),
)  # fmt: skip


def fronts(text: str, namespace: str = "ns1") -> list[tuple[str, str, dict[int, str], bool]]:
    found = services.target(text, cluster(*MANY), namespace)
    assert not isinstance(found, End), found
    return [(f"{one.namespace}/{one.name}", one.kind, dict(one.addresses), one.local) for one in found]


def test_a_service_by_its_name_is_its_cluster_ips() -> None:
    both = ("ns1/web", "cluster IP", {4: "10.96.0.10", 6: "fd00:96::10"}, False)
    assert fronts("service:web") == fronts("svc:ns1/web") == fronts(" service:ns1/web ", "other") == [both]
    assert fronts("service:ns2/web") == [("ns2/web", "cluster IP", {4: "10.96.0.20"}, False)]
    assert fronts("service:shop")[0][3] is False  # the policy of outside traffic is none of cluster IPs'


def test_a_service_by_any_of_its_addresses() -> None:
    assert fronts("10.96.0.10") == fronts("ip:10.96.0.10") == [("ns1/web", "cluster IP", {4: "10.96.0.10"}, False)]
    assert fronts("FD00:96:0::10") == [("ns1/web", "cluster IP", {6: "fd00:96::10"}, False)]
    assert fronts("10.96.0.11") == [("ns1/shop", "cluster IP", {4: "10.96.0.11"}, False)]
    assert fronts("198.51.100.7") == [("ns1/shop", "external IP", {4: "198.51.100.7"}, True)]
    assert fronts("2001:db8::9") == [("ns1/shop", "load balancer's address", {6: "2001:db8::9"}, True)]
    assert [one[0] for one in fronts("203.0.113.9")] == ["ns1/shared", "ns1/shop"]


@pytest.mark.parametrize("address", ["198.51.100.8", "198.51.100.9", "198.51.100.10"])
def test_addresses_that_kube_proxy_does_not_serve_stay_outside_addresses(address: str) -> None:
    assert services.target(address, cluster(*MANY)) == ends.resolve(address, cluster())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("service:ns1/wep", "no service 'ns1/wep'; did you mean ns1/web or"),
        ("service:", "no service 'ns1/'"),
        ("service:ns1/db", "service ns1/db is headless: it has no address, clients reach its endpoints directly. Its"
         " name resolves to 10.0.0.5, fd00::5; trace to one of these"),
        ("service:bare", "resolves to nothing: no endpoint is ready"),
        ("service:outside", "service ns1/outside is an ExternalName"),
        ("service:pending", "service ns1/pending has no cluster IP yet"),
        ("ns1/web", "no pod or node 'ns1/web'; the service is written service:ns1/web"),
        ("service/ns2/web", "no pod or node 'service/ns2/web'; the service is written service:ns2/web"),
    ],
)  # fmt: skip
def test_what_is_no_service_to_trace_to_is_said(text: str, says: str) -> None:
    with pytest.raises(EndProblem) as problem:
        services.target(text, cluster(*MANY), "ns1")
    assert says in str(problem.value)


def test_a_service_cannot_be_the_sender_and_one_that_cannot_be_read_is_told_as_such() -> None:
    with pytest.raises(EndProblem, match="a service sends nothing"):
        ends.resolve("service:ns1/web", cluster(*MANY))
    broken = keys.resource_key("KubernetesService", "web", "ns1"), {"kind": "Service", "spec": 3}
    with pytest.raises(EndProblem, match="service ns1/web cannot be read: "):
        services.target("service:web", cluster(broken), "ns1")
    with pytest.raises(EndProblem, match="the datastore has no services at all"):
        services.target("service:web", cluster(), "ns1")


def test_without_services_every_end_is_what_it_was() -> None:
    for text in ("10.96.0.10", "fd00::1"):
        assert services.target(text, cluster(), port="30080") == ends.resolve(text, cluster())


# --- the command ------------------------------------------------------------------------------------------------------

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


@pytest.fixture
def ctl() -> Ctl:
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
        store(made, resource)
    addresses = (4, "10.0.0.", "IPv4"), (6, "fd00::", "IPv6")
    for family, base, kind in addresses:
        put(made, piece(f"web-{family}", [endpoint(f"{base}{number}", node=f"n{number % 2 + 1}")
                                         for number in range(WEBS)], [HTTP, DNS], family=kind))  # fmt: skip
    put(made, service("web", "10.96.0.10", "fd00:96::10", type="LoadBalancer", lb=["203.0.113.9"]))
    made.apply(POLICY)
    return made


def store(ctl: Ctl, resource: Resource) -> None:
    value = model.to_storage(resource, now=datetime(2026, 1, 1, tzinfo=UTC), uid="x")
    ctl.run(MemoryStore(ctl.server).put(codec.key(codec.identity(resource)), value))


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


def test_each_backend_has_its_trace_as_if_asked_for_by_itself(ctl: Ctl) -> None:
    found = traced(ctl, "ns1/client", "service:ns1/web", "--port", "80")
    assert len(found) == 2 * WEBS
    for told in found:
        assert told.pop("service")["backends"] == WEBS
        assert "80 is taken for its only tcp port" in told["notes"].pop(0)
        (straight,) = traced(ctl, "ns1/client", told["packet"]["dst"], "--port", "8080")
        assert told == straight
    denied = {one["packet"]["dst"] for one in found if one["verdict"] == "deny"}
    assert denied == {f"{base}{number}" for base in ("10.0.0.", "fd00::") for number in (3, 13, 23)}


def test_json_says_which_service_and_which_of_its_addresses(ctl: Ctl) -> None:
    few(ctl, 0)
    (told,) = traced(ctl, "ns1/client", "203.0.113.9", "--port", "http")
    assert told["service"] == {
        "namespace": "ns1", "name": "web", "address": "203.0.113.9", "kind": "load balancer's address",
        "protocol": "tcp", "port": "http", "backends": 1, "idle": 0,
    }  # fmt: skip
    assert told["to"] == "10.0.0.0 of pod ns1/web-0"
    assert told["packet"]["dst_port"] == 8080


def test_the_text_says_once_what_is_alike_and_loses_no_verdict(ctl: Ctl) -> None:
    text = ctl.good("trace", "ns1/client", "10.96.0.10", "--port", "http", "--datastore-only")
    first, *rest = text.splitlines()
    assert first == (
        "service ns1/web, cluster IP 10.96.0.10, port http (tcp, 8080 at its endpoints):"
        " one of 30 backends: 27 ALLOWED, 3 DENIED"
    )
    heads = [line for line in rest if line.startswith("pod ")]
    assert len(heads) == 3  # allowed on either node (the client's is n2), denied on n2
    assert sum("ALLOWED" in head for head in heads) == 2
    same = [line for line in rest if "the same for" in line]
    assert same == [
        "  the same for 14 other backends of service ns1/web:",  # n1: even ones
        "  the same for 11 other backends of service ns1/web:",
        "  the same for 2 other backends of service ns1/web:",
    ]
    members = [line.split(",")[0].strip() for line in rest if line.startswith("    10.0.0.")]
    assert len(members) == len(set(members)) == 14 + 11 + 2
    assert "    10.0.0.13:8080, 10.0.0.13 of pod ns1/web-13 on n2" in rest


def test_the_same_verdict_by_another_rule_is_told_apart(ctl: Ctl) -> None:
    few(ctl, 1, 3, 5)
    text = ctl.good("trace", "ns1/client", "10.96.0.10", "--protocol", "udp", "--port", "dns", "--datastore-only")
    assert "one of 3 backends: 3 DENIED" in text
    assert "denied by tier default, policy np/ns1/odd, rule 0" in text
    assert "denied at the end of tier default" in text
    assert "the same for 1 other backend of service ns1/web:\n    10.0.0.5:5353" in text


def test_the_senders_own_node_is_told_apart_from_an_address_outside(ctl: Ctl) -> None:
    """Both meet the sender's egress policy and no other."""
    ctl.apply(
        "{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default},"
        " spec: {defaultEndpointToHostAction: Accept}}"
    )
    put(ctl, piece("web-4", [endpoint("192.0.2.2", node="n2"), endpoint("198.51.100.9", node=None)]))
    text = ctl.good("trace", "ns1/client", "10.96.0.10", "--port", "http", "--datastore-only")
    assert "n2 (both ends)" in text
    assert "n2 (sender's node)" in text
    assert "the same for" not in text


def test_of_many_alike_some_are_named_and_the_rest_counted(ctl: Ctl) -> None:
    few(ctl, *range(0, WEBS, 2))
    ends = [endpoint(f"10.0.0.{number}", node="n1") for number in range(0, WEBS, 2)]
    for number in range(100, 112):
        pod = build.wep(f"web-{number}", "n1", labels={"app": "web"}, nets=(f"10.0.0.{number}/32",))
        store(ctl, pod)
        ends.append(endpoint(f"10.0.0.{number}"))
    put(ctl, piece("web-4", ends))
    text = ctl.good("trace", "ns1/client", "service:ns1/web", "--port", "http", "--family", "4", "--datastore-only")
    assert "the same for 26 other backends" in text
    assert "    and 6 more (all with --output json)\n" in text


def test_a_family_without_ready_endpoints_is_said_beside_the_other_and_is_exit_status_1(ctl: Ctl) -> None:
    few(ctl, 0, 1, ready=False)
    few(ctl, 0, family=6)
    lacking, told = traced(ctl, "ns1/client", "service:ns1/web", "--port", "http", status=1)
    assert "no ready endpoint on IPv4" in lacking["error"]
    assert lacking["service"]["backends"] == 0
    assert told["verdict"] == "allow"
    done = ctl("trace", "ns1/client", "service:ns1/web", "--port", "http", "--datastore-only")
    assert done.exit_code == 1
    assert "service ns1/web, cluster IP 10.96.0.10: service ns1/web has no ready endpoint on IPv4" in done.stdout
    assert "service ns1/web, cluster IP fd00:96::10, port http" in done.stdout
    assert "its only backend: 1 ALLOWED" in done.stdout
    traced(ctl, "ns1/client", "service:ns1/web", "--port", "http", "--family", "6")
    said = ctl.bad("trace", "ns1/client", "10.96.0.10", "--port", "http", "--datastore-only")
    assert "2 not ready. kube-proxy refuses connections to it" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ns1/client", "203.0.113.9", "--port", "http", "--family", "6"), "service ns1/web has no IPv6 address"),
        (("ns1/client", "service:ns1/web", "--icmp-type", "8"), "--protocol: icmp is none of services' protocols"),
        (("ns1/client", "service:ns1/web"), "--port: which port of service ns1/web?"),
        (("service:ns1/web", "ns1/client", "--port", "80"), "a service sends nothing"),
        (("198.51.100.1", "service:ns1/web", "--port", "http", "--family", "6"), "198.51.100.1 has no IPv6 address"),
    ],
)
def test_what_cannot_be_traced_to_a_service_is_said(ctl: Ctl, arguments: tuple[str, ...], says: str) -> None:
    assert says in ctl.bad("trace", *arguments, "--datastore-only")


def test_an_address_of_several_services_is_that_of_the_one_with_the_port(ctl: Ctl) -> None:
    put(ctl, service("api", "10.96.0.11", type="LoadBalancer", lb=["203.0.113.9"]))
    put(ctl, piece("api-4", [endpoint("10.0.0.0")], [("grpc", "TCP", 8080)], of="api"))
    (told,) = traced(ctl, "ns1/client", "203.0.113.9", "--port", "grpc")
    assert told["service"]["name"] == "api"
    said = ctl.bad("trace", "ns1/client", "203.0.113.9", "--port", "80", "--datastore-only")
    assert "may have this port: write service:ns1/api or service:ns1/web" in said
    said = ctl.bad("trace", "ns1/client", "203.0.113.9", "--port", "ssh", "--datastore-only")
    assert "service ns1/api has no tcp port 'ssh'" in said
    assert "service ns1/web has no tcp port 'ssh'" in said


def test_pre_dnat_policy_meets_the_packet_as_it_was_sent(ctl: Ctl) -> None:
    """All else meets it translated: the policy of the pods names their port, that of the host the service's address."""
    ctl.apply(GUARD)
    few(ctl, 0, 1)
    ours, other = traced(ctl, "198.51.100.1", "203.0.113.9", "--port", "80")
    stages = [(step["stage"], step["decision"]["action"]) for step in ours["hops"][0]["steps"]]
    assert stages == [("preDNAT", "allow"), ("normal", "deny")]
    assert ours["packet"]["dst"] == "10.0.0.0"
    assert ours["hops"][0]["steps"][1]["decision"]["tier"] == "default"
    assert [step["stage"] for step in other["hops"][0]["steps"]] == ["normal"]  # n2 has no host endpoint
    ours, _ = traced(ctl, "198.51.100.1", "203.0.113.9", "--port", "81")
    assert ours["hops"][0]["steps"][0]["decision"]["action"] == "deny"
    (straight,) = traced(ctl, "198.51.100.1", "10.0.0.0", "--port", "8080")
    assert straight["hops"][0]["steps"][0]["decision"]["action"] == "deny"
    named, _ = traced(ctl, "198.51.100.1", "203.0.113.9", "--port", "http")
    assert any("the service's own number of the port" in note for note in named["notes"])


def test_what_a_pod_sends_reaches_the_other_node_translated(ctl: Ctl) -> None:
    ctl.apply(GUARD)
    few(ctl, 0)
    (told,) = traced(ctl, "ns1/client", "203.0.113.9", "--port", "80")
    early = told["hops"][1]["steps"][0]
    assert (early["stage"], early["decision"]["action"], early["decision"]["rule"]) == ("preDNAT", "deny", 2)


def test_traffic_policies_of_what_comes_from_outside(ctl: Ctl) -> None:
    few(ctl, 0, 1)
    found = traced(ctl, "198.51.100.1", "203.0.113.9", "--port", "http")
    assert all(any("by another one it gets that node's address" in note for note in one["notes"]) for one in found)
    local = service("web", "10.96.0.10", type="LoadBalancer", lb=["203.0.113.9"], externalTrafficPolicy="Local")
    put(ctl, local)
    put(ctl, piece("web-4", [endpoint("10.0.0.0"), endpoint("10.0.0.1", node=None)], [HTTP]))
    own, nowhere = traced(ctl, "198.51.100.1", "203.0.113.9", "--port", "http")
    assert any("a backend gets what comes in by its own node" in note for note in own["notes"])
    assert "only its own would serve it" in nowhere["error"]
    text = ctl.good("trace", "198.51.100.1", "203.0.113.9", "--port", "http", "--datastore-only")
    assert "one of 2 backends: 1 DENIED, 1 without a trace" in text
    assert "no trace to 10.0.0.1:8080: its slice names no node" in text
    inside = traced(ctl, "ns1/client", "203.0.113.9", "--port", "http")
    assert [one["packet"]["dst"] for one in inside] == ["10.0.0.0", "10.0.0.1"]
    assert any("inside, every backend is one" in note for note in inside[0]["notes"])


def test_backends_that_no_policy_stands_before(ctl: Ctl) -> None:
    """A process of the sending node itself; the other is a process of the other node."""
    put(ctl, piece("web-4", [endpoint("192.0.2.1"), endpoint("192.0.2.2", node="n2")], [HTTP]))
    here, there = sorted(traced(ctl, "n1", "10.96.0.10", "--port", "http"), key=lambda one: "error" not in one)
    assert here["error"] == "both ends are node n1 itself: nothing stands between them"
    assert [hop["role"] for hop in there["hops"]] == ["sender's node", "receiver's node"]
    put(ctl, piece("web-4", [endpoint("192.0.2.1")], [HTTP]))
    said = ctl.bad("trace", "n1", "10.96.0.10", "--port", "http", "--datastore-only")
    assert said == "both ends are node n1 itself: nothing stands between them\n"
    put(ctl, piece("web-4", [endpoint("10.0.1.1", node="n2")], [HTTP]))
    (itself,) = traced(ctl, "ns1/client", "10.96.0.10", "--port", "http")
    assert [hop["role"] for hop in itself["hops"]] == ["both ends"]


def test_an_address_of_a_node_or_a_pod_stays_what_it_is_and_says_that_it_is_a_services_too(ctl: Ctl) -> None:
    put(ctl, service("web", "10.96.0.10", type="LoadBalancer", lb=["192.0.2.1"], externalIPs=["10.0.0.0"]))
    (host,) = traced(ctl, "ns1/client", "192.0.2.1", "--port", "80")
    assert host["to"] == "192.0.2.1 of node n1"
    assert any("is service ns1/web's load balancer's address as well" in note for note in host["notes"])
    (pod,) = traced(ctl, "ns1/client", "10.0.0.0", "--port", "8080")
    assert pod["to"] == "10.0.0.0 of pod ns1/web-0"
    assert any("trace to service:ns1/web for its ports" in note for note in pod["notes"])
    found = traced(ctl, "ns1/client", "n1", "--port", "30080", "--family", "4")
    assert any("30080 may be the node port of a service that an older" in note for note in found[0]["notes"])
    found = traced(ctl, "ns1/client", "n1", "--port", "8080", "--family", "4")
    assert not any("node port" in note for note in found[0]["notes"])


# --- node ports -------------------------------------------------------------------------------------------------------


def with_ports(ctl: Ctl, *addresses: str, **spec: Any) -> None:
    put(
        ctl,
        service("web", *(addresses or ("10.96.0.10", "fd00:96::10")), **{"type": "NodePort", "ports": PORTS, **spec}),
    )


def hops_of(told: dict[str, Any]) -> list[tuple[str, str]]:
    return [(hop["node"], hop["role"]) for hop in told["hops"]]


def test_a_node_port_is_its_service_entered_by_that_node(ctl: Ctl) -> None:
    with_ports(ctl)
    few(ctl, 0, 1)
    for to in ("192.0.2.1", "node:n1", "n1", "hep:n1-eth0"):
        near, far = traced(ctl, "198.51.100.1", to, "--port", "30080", "--family", "4")
        assert near["service"] == {
            "namespace": "ns1", "name": "web", "address": "192.0.2.1", "kind": "node port", "protocol": "tcp",
            "backends": 2, "port": "http", "number": 80, "idle": 0, "nodePort": 30080, "node": "n1",
        }  # fmt: skip
        assert (near["packet"]["dst"], near["packet"]["dst_port"]) == ("10.0.0.0", 8080)
        assert hops_of(near) == [("n1", "receiver's node")]
        assert hops_of(far) == [("n1", "node port's node"), ("n2", "receiver's node")]
        assert "beyond n1 the source is its address 192.0.2.1, or that of its tunnel (kube-proxy)" in far["notes"]
        assert not any("trace from that node too" in note for note in (*near["notes"], *far["notes"]))
    (six,) = traced(ctl, "2001:db8::99", "2001:db8::1", "--port", "30080")[:1]
    assert six["service"]["address"] == "2001:db8::1"
    text = ctl.good("trace", "198.51.100.1", "192.0.2.1", "--port", "30080", "--datastore-only")
    assert text.startswith(
        "service ns1/web, node port 192.0.2.1:30080 of n1, port 80/tcp (http; 8080 at its endpoints): one of 2 backends"
    )
    text = ctl.good("trace", "2001:db8::99", "2001:db8::1", "--port", "30080", "--datastore-only")
    assert "node port [2001:db8::1]:30080 of n1, port 80/tcp" in text


def test_a_backend_on_another_node_sees_the_address_of_the_node_port_s(ctl: Ctl) -> None:
    """So a policy that lets the client's address in does not count there, but does on the node itself."""
    source = "{nets: [198.51.100.0/24]}"
    ctl.apply(POLICY.replace("{selector: app == 'client'}", source, 1))
    with_ports(ctl)
    few(ctl, 0, 1)
    near, far = traced(ctl, "198.51.100.1", "n1", "--port", "30080", "--family", "4")
    assert (near["verdict"], far["verdict"]) == ("allow", "deny")
    ctl.apply(POLICY.replace("{selector: app == 'client'}", "{nets: [192.0.2.1/32]}", 1))
    near, far = traced(ctl, "198.51.100.1", "n1", "--port", "30080", "--family", "4")
    assert (near["verdict"], far["verdict"]) == ("deny", "allow")


def test_pre_dnat_policy_of_the_node_port_s_node_alone_meets_the_node_port(ctl: Ctl) -> None:
    store(ctl, build.hep("n2-eth0", "n2", {"guard": "yes"}))
    ctl.apply(GUARD.replace("203.0.113.9/32", "192.0.2.1/32").replace("[81]", "[30080]"))
    with_ports(ctl)
    few(ctl, 0, 1)
    near, far = traced(ctl, "198.51.100.1", "n1", "--port", "30080", "--family", "4")
    assert [step["decision"]["rule"] for step in near["hops"][0]["steps"] if step["stage"] == "preDNAT"] == [0]
    assert [step["decision"]["rule"] for step in far["hops"][0]["steps"] if step["stage"] == "preDNAT"] == [0]
    assert [step["decision"]["rule"] for step in far["hops"][1]["steps"] if step["stage"] == "preDNAT"] == [2]


EGRESS = """
apiVersion: projectcalico.org/v3
kind: NetworkPolicy
metadata: {name: out, namespace: ns1}
spec:
  selector: app == 'client'
  types: [Egress]
  egress: [{action: Allow, protocol: TCP, destination: {%s}}]
"""


def test_a_pods_own_policy_meets_the_node_port_of_another_node_and_the_backend_behind_its_own(ctl: Ctl) -> None:
    with_ports(ctl)
    few(ctl, 0, 1)
    ctl.apply(EGRESS % "nets: [192.0.2.0/24], ports: [30080]")
    near, far = traced(ctl, "ns1/client", "n1", "--port", "30080", "--family", "4")
    assert hops_of(near) == [("n2", "sender's node"), ("n1", "receiver's node")]
    assert hops_of(far) == [("n2", "sender's node"), ("n1", "node port's node"), ("n2", "receiver's node")]
    assert near["verdict"] == "allow"
    assert [hop["allowed"] for hop in far["hops"]] == [True, True, False]  # it comes back as from n1
    own = traced(ctl, "ns1/client", "n2", "--port", "30080", "--family", "4")
    assert [hops_of(one) for one in own] == [
        [("n2", "sender's node"), ("n1", "receiver's node")], [("n2", "both ends")],
    ]  # fmt: skip
    assert {one["verdict"] for one in own} == {"deny"}
    ctl.apply(EGRESS % "nets: [10.0.0.0/24], ports: [8080]")
    assert traced(ctl, "ns1/client", "n1", "--port", "30080", "--family", "4")[0]["verdict"] == "deny"
    own = traced(ctl, "ns1/client", "n2", "--port", "30080", "--family", "4")
    assert {one["verdict"] for one in own} == {"allow"}


def test_nat_outgoing_on_the_way_to_a_node_port(ctl: Ctl) -> None:
    """The backend on the node of the node port sees the address of the sender's node."""
    with_ports(ctl)
    few(ctl, 0)
    store(ctl, build.pool("pods", "10.0.0.0/16", nat_outgoing=True))
    (told,) = traced(ctl, "ns1/client", "n1", "--port", "30080", "--family", "4")
    assert "natOutgoing: beyond n2 the source is the node's address 192.0.2.2" in told["notes"]
    assert told["verdict"] == "deny"
    ctl.apply(POLICY.replace("{selector: app == 'client'}", "{nets: [192.0.2.2/32]}", 1))
    (told,) = traced(ctl, "ns1/client", "n1", "--port", "30080", "--family", "4")
    assert told["verdict"] == "allow"


def test_an_external_traffic_policy_local_leaves_a_node_port_the_nodes_own_backends(ctl: Ctl) -> None:
    with_ports(ctl, externalTrafficPolicy="Local")
    few(ctl, 0, 1)
    (outside,) = traced(ctl, "198.51.100.1", "n1", "--port", "30080", "--family", "4")
    assert outside["packet"]["dst"] == "10.0.0.0"
    assert "externalTrafficPolicy Local: n1 serves its node port by its own backends" in outside["notes"]
    (pod,) = traced(ctl, "ns1/client", "n1", "--port", "30080", "--family", "4")
    assert any("own backends; of pods' own addresses also by others" in note for note in pod["notes"])
    inside = traced(ctl, "ns1/client", "n2", "--port", "30080", "--family", "4")
    assert [one["packet"]["dst"] for one in inside] == ["10.0.0.0", "10.0.0.1"]
    assert any("inside, every backend is one" in note for note in inside[0]["notes"])
    few(ctl, 0)
    said = ctl.bad("trace", "198.51.100.1", "192.0.2.2", "--port", "30080", "--datastore-only")
    assert "no ready endpoint on n2 on IPv4" in said
    assert "and externalTrafficPolicy is Local: kube-proxy there drops what is sent to it" in said


@pytest.mark.parametrize(
    ("spec", "arguments"),
    [
        ({"type": "ClusterIP"}, ()), ({"type": "ExternalName"}, ()), ({}, ("--protocol", "udp")),
        ({"clusterIPs": ["None"]}, ()), ({"clusterIPs": ["fd00:96::10"], "clusterIP": "fd00:96::10"}, ()),
    ],
)  # fmt: skip
def test_what_is_no_node_port_is_the_node_itself(ctl: Ctl, spec: dict[str, Any], arguments: tuple[str, ...]) -> None:
    with_ports(ctl, **spec)
    (told,) = traced(ctl, "ns1/client", "192.0.2.1", "--port", "30080", *arguments)
    assert "service" not in told
    assert told["packet"]["dst"] == "192.0.2.1"
    assert not any("node port" in note for note in told["notes"])


def test_a_node_port_is_any_number_and_of_the_services_families_only(ctl: Ctl) -> None:
    with_ports(ctl, "10.96.0.10", ports=[port("http", 80, node=8080)])
    few(ctl, 0)
    (told,) = traced(ctl, "ns1/client", "n1", "--port", "8080")
    assert told["service"]["nodePort"] == 8080
    assert "service ns1/web has no IPv6: there 8080 is no node port" in told["notes"]


def test_the_senders_node_alone_counts_for_an_internal_traffic_policy_local(ctl: Ctl) -> None:
    with_ports(ctl, internalTrafficPolicy="Local")
    few(ctl, 0, 1)
    (told,) = traced(ctl, "ns1/client", "service:ns1/web", "--port", "80", "--family", "4")
    assert told["packet"]["dst"] == "10.0.0.1"
    assert "internalTrafficPolicy Local: 1 on other nodes than n2 get nothing of it" in told["notes"]
    few(ctl, 0)
    few(ctl, 1, family=6)
    lacking, told = traced(ctl, "ns1/client", "service:ns1/web", "--port", "80", status=1)
    assert "internalTrafficPolicy is Local: kube-proxy there drops" in lacking["error"]
    assert told["packet"]["dst"] == "fd00::1"
    assert "kube-proxy there drops" in ctl.bad("trace", "ns1/client", "10.96.0.10", "--port", "80", "--datastore-only")
    outside = traced(ctl, "198.51.100.1", "10.96.0.10", "--port", "80")
    assert any("internalTrafficPolicy Local: a backend gets what comes in by its own" in n for n in outside[0]["notes"])


def test_pre_dnat_policy_meets_the_services_number_also_of_a_port_by_name(ctl: Ctl) -> None:
    ctl.apply(GUARD)
    with_ports(ctl, type="LoadBalancer", lb=["203.0.113.9"], ports=[port("http", 81)])
    few(ctl, 0)
    (told,) = traced(ctl, "198.51.100.1", "203.0.113.9", "--port", "http")
    assert told["hops"][0]["steps"][0]["decision"]["rule"] == 0
    assert not any("number" in note for note in told["notes"])


def test_an_address_of_several_services_is_that_of_the_one_whose_port_it_is(ctl: Ctl) -> None:
    with_ports(ctl, type="LoadBalancer", lb=["203.0.113.9"])
    few(ctl, 0)
    put(ctl, service("api", "10.96.0.11", type="LoadBalancer", lb=["203.0.113.9"], ports=[port("http", 81)]))
    put(ctl, piece("api-4", [endpoint("10.0.0.2")], of="api"))
    for number, name in (("80", "web"), ("81", "api")):
        assert [one["service"]["name"] for one in traced(ctl, "ns1/client", "203.0.113.9", "--port", number)] == [name]
    put(ctl, service("api", "10.96.0.11", type="LoadBalancer", lb=["203.0.113.9"]))  # as it was before an upgrade
    (told,) = traced(ctl, "ns1/client", "203.0.113.9", "--port", "80")
    assert told["service"]["name"] == "web"


def last_octet(address: str) -> int:
    return ip_address(address).packed[-1]


class Nodes:
    """Answer by the datastore; their kernels do so as well, but for backends in `wrong`."""

    def __init__(self, ctl: Ctl, *wrong: str) -> None:
        ctl.broker = MemoryBroker()
        kvs = ctl.run(MemoryStore(ctl.server).list(keys.RESOURCES)).kvs
        self._known = reading.of_listing(kvs, ctl.server.revision)
        self._wrong = wrong
        self.asked: list[str] = []
        self._bus = ctl.broker.connect("felix")
        for node in ("n1", "n2"):
            self._bus.subscribe(subject(node, Verb.TRACE), lambda message, node=node: self._answer(node, message))

    def _answer(self, node: str, message: Any) -> None:
        request = wire.decoder(TraceRequest).decode(message.data)
        self.asked.append(node)
        answers = tuple(self._one(node, question.packet, question) for question in request.questions)
        message.respond(wire.encode(TraceReply(node=node, rev=9, answers=answers)))

    def _one(self, node: str, packet: Packet, question: Any) -> Answer:
        view = self._known.view(node)
        by_name = {str(key): key for key in view.workloads}
        ends = [
            Side(workload=by_name[place.workload]) if place.workload else Side(here=place.here)
            for place in (question.sender, question.receiver)
        ]
        steps = walk(view, packet, ends[0], ends[1], HostRules())
        accepted = allowed(steps) is not (packet.dst in self._wrong and bool(question.receiver.workload))
        rules = tuple(KernelRule(chain="c", comment="r", packets=last_octet(packet.dst)) for _ in steps)
        verdict = KernelVerdict(accepted=accepted, rules=rules, deciders=tuple(range(len(steps))))
        return Answer(steps=tuple(steps), kernel=verdict)


def test_nodes_are_asked_about_every_backend_and_each_has_its_counters(ctl: Ctl) -> None:
    nodes = Nodes(ctl)
    text = ctl.good("trace", "ns1/client", "10.96.0.10", "--port", "http")
    assert sorted(nodes.asked) == ["n1", "n2"]
    assert "    10.0.0.4:8080, 10.0.0.4 of pod ns1/web-4 on n1: 4 packets so far" in text.splitlines()
    found = traced(ctl, "ns1/client", "service:ns1/web", "--port", "http")
    assert len(found) == 2 * WEBS
    for one in found:
        assert all(hop["kernel"]["agrees"] for hop in one["hops"])
        kernel = one["hops"][-1]["kernel"]
        assert kernel["rules"][kernel["deciders"][-1]]["packets"] == last_octet(one["packet"]["dst"])


def test_one_kernel_that_disagrees_is_not_lost_among_those_that_agree(ctl: Ctl) -> None:
    Nodes(ctl, "10.0.0.14")
    done = ctl("trace", "ns1/client", "10.96.0.10", "--port", "http")
    assert done.exit_code == 1
    assert done.stdout.count("DISAGREES: it drops the packet") == 1
    assert "-> 10.0.0.14 of pod ns1/web-14 (10.0.0.14), tcp/8080: ALLOWED" in done.stdout
    assert "the same for 13 other backends" in done.stdout
