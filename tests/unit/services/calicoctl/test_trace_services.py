"""`calicoctl trace` to a service: a trace to each of its backends, by the datastore and by the nodes' answers."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from libs.bus import wire
from libs.bus.explain import Answer, KernelRule, KernelVerdict, TraceReply, TraceRequest, Verb, subject
from libs.bus.memory import MemoryBroker
from libs.model import keys
from libs.policy.path import HostRules, Side, allowed, walk
from libs.policy.trace import Packet
from libs.store.memory import MemoryStore
from services.calicoctl.explain import cluster as reading
from tests.unit.libs.policy import build
from tests.unit.services.calicoctl.ctl import Ctl
from tests.unit.services.calicoctl.service_lab import (
    GUARD,
    HTTP,
    WEBS,
    endpoint,
    few,
    filled,
    piece,
    put,
    service,
    traced,
)


@pytest.fixture
def ctl() -> Ctl:
    return filled()


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
        ctl.store(pod)
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
