"""Two readers of one node, felix and its speaker: each has its own commits, its own place, its own life."""

from __future__ import annotations

from typing import Any

import pytest

from libs.bus import subjects, wire
from libs.bus.subjects import Role
from libs.policy.bgp_output import BgpNode, LocalWorkload, ServiceRoutes
from services.typha.core.publisher import LAG_S, READER_TIMEOUT_S
from tests.unit.services.typha.samples import EPOCH, Writer, endpoint, policy, value


def node(name: str, address: str) -> tuple[str, bytes]:
    return value("Node", name, {"bgp": {"ipv4Address": address}})


@pytest.fixture
def writer() -> Writer:
    made = Writer(node("node1", "192.0.2.1/24"), node("node2", "192.0.2.2/24"), policy("web", "web", "db"))
    for name in ("node1", "node2"):
        for role in Role:
            made.publisher.snapshot(name, 0.0, role)
    return made


def report(name: str, seq: int) -> wire.Applied:
    return wire.Applied(node=name, epoch=EPOCH, rev=1, seq=seq)


def commits(sent: list[Any]) -> dict[str, wire.Commit]:
    return {stream: message for stream, message in sent if isinstance(message, wire.Commit)}


def test_a_request_of_felix_is_on_the_wire_as_before() -> None:
    assert wire.encode(wire.SnapshotRequest(node="n")) == b'{"node":"n"}'
    assert wire.encode(wire.SnapshotRequest(node="n", role=Role.BGP)) == b'{"node":"n","role":"bgp"}'


def test_snapshot_holds_what_the_role_follows(writer: Writer) -> None:
    writer.publish(endpoint("node1", "p1", "web", 1))
    felix, speaker = (writer.publisher.snapshot("node1", 1.0, role) for role in Role)
    assert set(speaker.streams) == {
        "route.nodes", "route.pools", "route.services", "config.bgp", "local.node1",
    }  # fmt: skip
    assert speaker.workloads == {}
    assert set(felix.streams) >= {*subjects.SHARED_BY_ALL, "policy.gnp/web"}
    assert list(felix.workloads) == ["k8s/ns1/p1/eth0"]
    assert "config.bgp" not in felix.streams


def test_an_endpoint_concerns_its_felix_alone(writer: Writer) -> None:
    sent = writer.publish(endpoint("node1", "p1", "web", 1))
    assert set(commits(sent)) == {"node.node1"}
    assert writer.publisher.concerns(writer.rev, ("node1", "node2")).speakers == []


def test_a_table_of_both_goes_out_once_and_is_needed_by_all_readers(writer: Writer) -> None:
    sent = writer.publish(node("node2", "192.0.2.9/24"))
    assert [stream for stream, _ in sent].count("route.nodes") == 1
    found = commits(sent)
    assert set(found) == {"node.node1", "node.node2", "bgp.node1", "bgp.node2"}
    assert {message.needs["route.nodes"] for message in found.values()} == {2}
    reply = writer.publisher.concerns(writer.rev, ("node2",))
    assert (reply.nodes, reply.speakers) == (["node1", "node2"], ["node2"])


def test_a_table_of_speakers_concerns_no_felix(writer: Writer) -> None:
    writer.calculator.bgp.put_entry("node/node1", BgpNode(cluster_id="1.0.0.1"))
    writer.calculator.bgp.put_services("ns1/web", ServiceRoutes(addresses=("10.96.0.1/32",)))
    sent = writer.publish()
    assert [stream for stream, _ in sent][:2] == ["config.bgp", "route.services"]
    assert {stream: set(message.needs) for stream, message in commits(sent).items()} == {
        "bgp.node1": {"config.bgp", "route.services"},
        "bgp.node2": {"config.bgp", "route.services"},
    }
    reply = writer.publisher.concerns(writer.rev, ("node1", "node2"))
    assert (reply.nodes, reply.speakers) == ([], ["node1", "node2"])


def test_tables_of_speakers_are_not_sent_when_there_is_none() -> None:
    made = Writer(node("node1", "192.0.2.1/24"))
    made.publisher.snapshot("node1", 0.0)
    made.calculator.bgp.put_entry("node/node1", BgpNode(cluster_id="1.0.0.1"))
    assert made.publish() == []
    state = made.publisher.snapshot("node1", 0.0, Role.BGP).streams["config.bgp"]
    assert wire.decode_content(state.content) == wire.TableContent(bgp={"node/node1": BgpNode(cluster_id="1.0.0.1")})
    assert state.seq == 1


def test_what_concerns_one_speaker_reaches_no_other(writer: Writer) -> None:
    workload = LocalWorkload(peer="tor", interface="cali1", nets=("10.65.0.1/32",))
    writer.calculator.bgp.put_local("node2", "workload/k8s/ns1/p1/eth0", workload)
    (table, commit) = writer.publish()
    assert table[0] == "local.node2"
    assert table[1].local == {"workload/k8s/ns1/p1/eth0": workload}
    assert (commit[0], commit[1].needs) == ("bgp.node2", {"local.node2": 1})
    reply = writer.publisher.concerns(writer.rev, ("node1", "node2"))
    assert (reply.nodes, reply.speakers) == ([], ["node2"])
    writer.calculator.bgp.put_local("node2", "workload/k8s/ns1/p1/eth0", None)
    assert writer.publish()[0][1].local == {"workload/k8s/ns1/p1/eth0": None}
    request = wire.SnapshotRequest(node="node1", role=Role.BGP, streams={"local.node2": -1, "config.bgp": -1})
    answer = writer.publisher.some_streams(request)
    assert (answer.gone, list(answer.streams)) == (["local.node2"], ["config.bgp"])


@pytest.mark.parametrize("dead", Role)
def test_a_reader_that_falls_silent_takes_none_with_it(writer: Writer, dead: Role) -> None:
    (alive,) = set(Role) - {dead}
    for name in ("node1", "node2"):
        writer.publisher.applied(report(name, 0), 40.0, alive)
    writer.publisher.remind(READER_TIMEOUT_S + 1)
    assert writer.publisher.readers_of(dead) == {}
    family = {Role.FELIX: "node", Role.BGP: "bgp"}[alive]
    sent = writer.publish(node("node2", "192.0.2.9/24"))
    assert set(commits(sent)) == {f"{family}.node1", f"{family}.node2"}
    ((stream, mark),) = writer.decoded(writer.publisher.applied(report("node1", 0), 50.0, dead))
    assert (stream.partition(".")[0] != family, mark.seq) == (True, 1)


def test_a_forgotten_speaker_is_told_of_a_place_beyond_the_one_it_had(writer: Writer) -> None:
    for number in range(10, 15):
        writer.publish(node("node2", f"192.0.2.{number}/24"))
    assert writer.publisher.speakers["node1"].seq == 5
    writer.publisher.forget("node1", Role.BGP)
    ((stream, mark),) = writer.decoded(writer.publisher.applied(report("node1", 5), 50.0, Role.BGP))
    assert (stream, mark.seq) == ("bgp.node1", 6)
    assert writer.publisher.snapshot("node1", 50.0, Role.BGP).seq == 6


def test_reports_and_reminders_of_one_role_say_nothing_of_the_other(writer: Writer) -> None:
    writer.publish(node("node2", "192.0.2.9/24"))
    writer.publisher.applied(report("node1", 1), 0.5, Role.BGP)
    late = {stream for stream, _ in writer.decoded(writer.publisher.remind(LAG_S + 0.1))}
    assert late == {"node.node1", "node.node2", "bgp.node2"}


def test_a_mark_goes_to_all_readers_of_a_node(writer: Writer) -> None:
    sent = writer.decoded(writer.publisher.want_mark(1, ["node1"], 0.0))
    assert [stream for stream, _ in sent] == ["node.node1", "bgp.node1"]
    assert len(writer.publisher.want_mark(1, [], 0.0)) == 4
