"""From changes of the calculation to messages."""

from __future__ import annotations

import msgspec
import pytest

from libs.bus import subjects, wire
from libs.bus.subjects import Role
from services.typha.core import publisher as module
from services.typha.core.publisher import LAG_MAX_S, LAG_S, MESSAGE_BYTES, READER_TIMEOUT_S, SET_CHUNK, SINGLE_BYTES
from tests.unit.services.typha.samples import EPOCH, Writer, endpoint, many_nets, network_set, policy, value

WEB, DB = "policy.gnp/web", "policy.gnp/db"


@pytest.fixture
def writer() -> Writer:
    """A web pod on node1, a db pod on node2; policy `web` lets db in. Both nodes read."""
    made = Writer(endpoint("node1", "p1", "web", 1), endpoint("node2", "p2", "db", 2), policy("web", "web", "db"))
    made.publisher.snapshot("node1", 0.0)
    made.publisher.snapshot("node2", 0.0)
    return made


def the_set(writer: Writer, node: str = "node1") -> str:
    return next(name for name in writer.publisher.readers[node].streams if name.startswith("ipset."))


def test_nobody_reads_nothing_is_sent_but_tables() -> None:
    writer = Writer(endpoint("node1", "p1", "web", 1))
    assert writer.publish(policy("web", "web", "db"), endpoint("node1", "p3", "web", 3)) == []


def test_only_nodes_that_a_change_concerns_get_a_commit(writer: Writer) -> None:
    sent = writer.publish(endpoint("node2", "p2", "db", 9))
    ipset = the_set(writer)
    assert next(stream for stream, _ in sent) == ipset  # contents go before the commits that need them
    commits = {stream: message for stream, message in sent if stream.startswith("node.")}
    assert commits["node.node1"].needs == {ipset: dict(sent)[ipset].seq}
    assert not commits["node.node1"].workloads
    assert list(commits["node.node2"].workloads) == ["k8s/ns1/p2/eth0"]
    assert not commits["node.node2"].needs


def test_policy_change_travels_once_and_is_named_by_the_commit(writer: Writer) -> None:
    sent = writer.publish(policy("web", "web", "db", types=["Ingress", "Egress"], egress=[{"action": "Deny"}]))
    assert [stream for stream, _ in sent] == [WEB, "node.node1"]
    commit = sent[1][1]
    assert (sent[0][1].prev, commit.needs) == (sent[0][1].seq - 1, {WEB: sent[0][1].seq})
    assert (commit.rev, commit.seq, commit.prev) == (2, 1, 0)


def test_newly_active_contents_ride_in_the_commit_when_small(writer: Writer) -> None:
    ((stream, commit),) = writer.publish(policy("db", "db", "web"))
    assert stream == "node.node2"
    assert set(commit.add) == {DB, the_set(writer, "node2")}
    assert all(state is not None for state in commit.add.values())
    assert not commit.needs


def test_large_contents_are_not_inlined_but_named_with_their_seq(writer: Writer) -> None:
    writer.publish(network_set("big", "big", many_nets(3000)))
    ((_, commit),) = writer.publish(policy("db", "db", "big"))
    ipset = the_set(writer, "node2")
    assert commit.add[DB] is not None
    assert commit.add[ipset] is None
    answer = writer.publisher.some_streams(wire.SnapshotRequest(node="node2", streams={ipset: -1}))
    content = wire.decode_content(answer.streams[ipset].content)
    assert isinstance(content, wire.SetContent)
    assert len(content.members) == 3000
    assert commit.needs == {ipset: answer.streams[ipset].seq}


def test_inlined_contents_together_stay_within_a_message(writer: Writer) -> None:
    rules = [{"action": "Allow", "source": {"nets": many_nets(700)}}]
    ((_, commit),) = writer.publish(*(policy(f"db{n}", "db", "", ingress=rules) for n in range(60)))
    inlined = [state for state in commit.add.values() if state is not None]
    assert 0 < len(inlined) < len(commit.add) == 60
    assert commit.needs.keys() == {name for name, state in commit.add.items() if state is None}
    assert len(wire.encode(commit)) <= MESSAGE_BYTES


def test_commit_too_large_for_a_message_becomes_a_mark_ahead_of_the_reader(writer: Writer) -> None:
    before = writer.publisher.readers["node1"].seq
    ((stream, mark),) = writer.publish(*(endpoint("node1", f"pod{n}", "other", n + 10) for n in range(2500)))
    assert stream == "node.node1"
    assert mark == wire.Mark(epoch=EPOCH, rev=2, seq=before + 1)
    assert len(writer.publisher.snapshot("node1", 0.0).workloads) == 2501
    ((_, commit),) = writer.publish(endpoint("node1", "last", "other", 5000))
    assert (commit.prev, commit.seq) == (before + 1, before + 2)


def test_set_changes_go_in_bounded_pieces_and_the_commit_needs_the_last(writer: Writer) -> None:
    nets = many_nets(2 * SET_CHUNK + 10)
    sent = writer.publish(network_set("big", "db", nets))
    ipset = the_set(writer)
    pieces = [message for stream, message in sent if stream == ipset]
    assert [len(piece.added) for piece in pieces] == [SET_CHUNK, SET_CHUNK, 10]
    assert [piece.prev for piece in pieces[1:]] == [piece.seq for piece in pieces[:-1]]
    assert sorted(member for piece in pieces for member in piece.added) == sorted(nets)
    assert sent[-1][1].needs == {ipset: pieces[-1].seq}


def test_message_that_fits_no_bus_is_left_out_and_its_number_used_up(writer: Writer) -> None:
    nets = [f"10.{a}.{b}.0/24" for a in range(256) for b in range(256)]
    rules = [{"action": "Allow", "source": {"nets": nets}}]
    sent = writer.publish(policy("web", "web", "db", ingress=rules))
    assert [stream for stream, _ in sent] == ["node.node1"]
    needs = sent[0][1].needs
    answer = writer.publisher.some_streams(wire.SnapshotRequest(node="node1", streams={WEB: needs[WEB] - 1}))
    assert len(answer.streams[WEB].content) > SINGLE_BYTES


def test_dropped_stream_is_named_and_its_messages_stop(writer: Writer) -> None:
    ipset = the_set(writer)
    ((_, commit),) = writer.publish((policy("web", "web", "db")[0], None))
    assert set(commit.remove) == {WEB, ipset}
    assert [stream for stream, _ in writer.publish(endpoint("node2", "p2", "db", 9))] == ["node.node2"]


def test_seqs_go_on_while_nobody_follows(writer: Writer) -> None:
    """A late message of the first life must never pass for one of the second."""
    ipset = the_set(writer)
    writer.publish(endpoint("node2", "p2", "db", 9))
    writer.publish((policy("web", "web", "db")[0], None))
    ((_, commit),) = writer.publish(policy("web", "web", "db"))
    assert commit.add[WEB].seq > 0
    assert commit.add[ipset].seq > 1


def test_tables_go_to_every_reader(writer: Writer) -> None:
    sent = writer.publish(value("Node", "node9", {"bgp": {"ipv4Address": "192.0.2.9/24"}}))
    assert sent[0][0] == "route.nodes"
    assert sorted(stream for stream, _ in sent[1:]) == ["node.node1", "node.node2"]
    assert all(message.needs == {"route.nodes": 1} for stream, message in sent if stream.startswith("node."))
    sent = writer.publish(config={"/calico/x": msgspec.Raw(b"{}")})
    assert sent[0][1].config == {"/calico/x": msgspec.Raw(b"{}")}
    state = writer.publisher.state_of(subjects.CONFIG_STREAM)
    assert state is not None
    assert wire.decode_content(state.content) == wire.TableContent(config={"/calico/x": msgspec.Raw(b"{}")})
    sent = writer.publish(config={"/calico/x": None})
    assert sent[0][1].config == {"/calico/x": wire.NULL}
    assert writer.publisher.config == {}


# --- readers and marks -----------------------------------------------------------------------------------------------


def report(node: str, seq: int, epoch: wire.Epoch | None = EPOCH) -> wire.Applied:
    return wire.Applied(node=node, epoch=epoch, rev=1, seq=seq)


def test_silent_reader_is_forgotten_and_told_when_it_reports_again(writer: Writer) -> None:
    publisher = writer.publisher
    publisher.applied(report("node2", 0), 40.0)
    publisher.remind(READER_TIMEOUT_S + 1)
    assert set(publisher.readers) == {"node2"}
    assert writer.publish(endpoint("node1", "p9", "web", 9)) == []
    ((stream, mark),) = writer.decoded(publisher.applied(report("node1", 0), 50.0))
    assert (stream, mark.seq) == ("node.node1", 1)
    snapshot = publisher.snapshot("node1", 50.0)
    assert snapshot.seq >= mark.seq
    assert "k8s/ns1/p9/eth0" in snapshot.workloads


def test_report_of_another_epoch_says_nothing(writer: Writer) -> None:
    writer.publish(endpoint("node1", "p9", "web", 9))
    other = wire.Epoch("t0", 1, 7)
    assert writer.publisher.applied(report("node1", 50, other), 1.0) == []
    assert writer.publisher.applied(report("node1", 50, None), 1.0) == []
    assert writer.publisher.readers["node1"].applied_seq < 1


def test_reader_that_follows_another_typha_is_forgotten_at_once(writer: Writer) -> None:
    publisher = writer.publisher
    publisher.snapshot("node1", 0.0)
    publisher.applied(report("node1", 0), 1.0)
    assert writer.decoded(publisher.move("node1", Role.FELIX, "t2")) == [
        ("node.node1", wire.Mark(epoch=EPOCH, rev=publisher.rev, seq=0, follow="t2"))
    ]
    assert "node1" in publisher.readers  # it may stay
    publisher.applied(report("node1", 0, wire.Epoch("t2", 9, 7)), 2.0)
    assert "node1" not in publisher.readers
    assert all(stream != "node.node1" for stream, _ in writer.publish(endpoint("node1", "p9", "web", 9)))
    assert publisher.move("node1", Role.FELIX, "t2") == []


def test_report_of_what_a_reader_held_before_it_came_does_not_end_it(writer: Writer) -> None:
    publisher = writer.publisher
    before = wire.Epoch("t2", 9, 7)
    publisher.snapshot("node1", 0.0)
    publisher.applied(report("node1", 3, before), 1.0)  # its kernel is not there yet
    assert "node1" in publisher.readers
    publisher.applied(report("node1", 0), 2.0)
    publisher.snapshot("node1", 3.0)
    publisher.applied(report("node1", 3, before), 4.0)  # it was away in between
    assert "node1" in publisher.readers


def test_reader_that_does_not_confirm_is_reminded_less_and_less_often(writer: Writer) -> None:
    for node in ("node1", "node2"):
        writer.publisher.applied(report(node, 0), 0.0)
    writer.publish(endpoint("node1", "p9", "web", 9))
    at = []
    for step in range(400):
        now = step / 10
        writer.publisher.readers["node1"].seen_at = writer.publisher.readers["node2"].seen_at = now
        for stream, mark in writer.decoded(writer.publisher.remind(now)):
            assert (stream, mark.seq) == ("node.node1", 1)
            at.append(now)
    gaps = [later - earlier for earlier, later in zip([0.0, *at], at, strict=False)]
    assert gaps[0] == pytest.approx(LAG_S, abs=0.2)
    assert gaps == sorted(gaps)
    assert max(gaps) == pytest.approx(LAG_MAX_S, abs=0.2)
    writer.publisher.applied(report("node1", 1), 40.0)
    assert writer.publisher.remind(60.0) == []


def test_mark_is_sent_when_its_revision_is_reached_also_when_that_changed_nothing(writer: Writer) -> None:
    assert writer.publisher.want_mark(3, ["node1"], 0.0) == []
    assert writer.publish() == []
    assert writer.publish() == [("node.node1", wire.Mark(epoch=EPOCH, rev=3, seq=0))]
    assert writer.publish() == []


def test_mark_follows_the_commit_of_its_revision(writer: Writer) -> None:
    writer.publisher.want_mark(2, [], 0.0)
    sent = writer.publish(endpoint("node1", "p9", "web", 9))
    kinds = [(stream, type(message).__name__) for stream, message in sent]
    assert kinds == [("node.node1", "Commit"), ("node.node1", "Mark"), ("node.node2", "Mark")]


def test_mark_wished_for_a_revision_already_reached_is_sent_at_once(writer: Writer) -> None:
    (sent,) = writer.decoded(writer.publisher.want_mark(1, ["node2", "unknown"], 0.0))
    assert sent == ("node.node2", wire.Mark(epoch=EPOCH, rev=1, seq=0))


def test_wishes_for_revisions_that_never_come_are_bounded(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED_MARKS", 5)
    for _ in range(50):
        writer.publisher.want_mark(10**9, ["node1"], 0.0)
    assert len(writer.publisher._marks) == 5


# --- who is concerned ------------------------------------------------------------------------------------------------


def test_revision_concerns_the_nodes_that_it_changed_those_that_lose_something_included(writer: Writer) -> None:
    writer.publish(endpoint("node2", "p2", "db", 9))  # 2: node2's pod, and node1's set
    writer.publish()  # 3: nothing
    writer.publish((policy("web", "web", "db")[0], None))  # 4: node1 loses a policy
    concerns = writer.publisher.concerns
    assert [concerns(rev).nodes for rev in (2, 3, 4)] == [["node1", "node2"], [], ["node1"]]
    writer.publish(value("Node", "node9", {"bgp": {"ipv4Address": "192.0.2.9/24"}}))
    assert concerns(5).nodes == ["node1", "node2", "node9"]


def test_one_flush_of_several_revisions_concerns_the_same_nodes_for_each(writer: Writer) -> None:
    writer.rev = 9
    writer.publish(endpoint("node2", "p2", "other", 2))
    assert [writer.publisher.concerns(rev).nodes for rev in (2, 5, 10)] == [["node1", "node2"]] * 3


def test_revision_older_than_the_memory_may_concern_everybody(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REMEMBERED_FLUSHES", 3)
    for host in range(10, 16):
        writer.publish(endpoint("node2", "p2", "other", host))
    reply = writer.publisher.concerns(2)
    assert (reply.unknown, reply.nodes) == (True, ["node1", "node2"])
    assert not writer.publisher.concerns(writer.rev).unknown


# --- answers ---------------------------------------------------------------------------------------------------------


def test_contents_are_encoded_once_for_all_readers(writer: Writer) -> None:
    first = writer.publisher.snapshot("node1", 0.0).streams["route.nodes"]
    assert writer.publisher.snapshot("node2", 0.0).streams["route.nodes"] is first


def test_only_streams_that_are_newer_and_active_on_the_node_are_answered(writer: Writer) -> None:
    ipset = the_set(writer)
    writer.publish(endpoint("node2", "p2", "db", 9))
    state = writer.publisher.state_of(WEB)
    assert state is not None
    wanted = {ipset: 0, WEB: state.seq, "ipset.s:nonsense": -1, "route.nodes": -1}
    answer = writer.publisher.some_streams(wire.SnapshotRequest(node="node1", streams=wanted))
    assert (set(answer.streams), answer.gone, answer.full) == ({ipset, "route.nodes"}, ["ipset.s:nonsense"], False)
    assert answer.seq == writer.publisher.readers["node1"].seq
    other = writer.publisher.some_streams(wire.SnapshotRequest(node="node2", streams={WEB: -1, ipset: -1}))
    assert sorted(other.gone) == sorted([WEB, ipset])
