"""Services as kube-proxy sees them: whose address one is, and which endpoints are behind a port."""

from __future__ import annotations

from typing import Any

import pytest

from libs.model import keys
from services.calicoctl.explain import endpoints, ends, services
from services.calicoctl.explain.endpoints import Backend, Chosen, NoBackends
from services.calicoctl.explain.ends import End, EndProblem
from services.calicoctl.explain.packet import PacketProblem
from services.calicoctl.explain.services import Front
from tests.unit.services.calicoctl.service_lab import (
    DNS,
    HTTP,
    METRICS,
    PORTS,
    SCTP,
    SLICE_PORTS,
    TCP,
    UDP,
    Stored,
    cluster,
    endpoint,
    piece,
    port,
    service,
)

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
            " (in its mode IPVS it takes these)"
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
    service("shop", "10.96.0.11", "fd00:96::11", type="LoadBalancer", externalTrafficPolicy="Local",
            externalIPs=["198.51.100.7"], lb=["203.0.113.9", "2001:DB8::9"]),
    service("shared", "10.96.0.12", type="LoadBalancer", lb=["203.0.113.9", "2001:db8::10"]),
    service("proxied", "10.96.0.13", type="LoadBalancer", lb=[{"ip": "203.0.113.10", "ipMode": "Proxy"}]),
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


@pytest.mark.parametrize("address", ["198.51.100.8", "198.51.100.9", "198.51.100.10", "2001:db8::10", "203.0.113.10"])
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
