"""The reader of typha's streams, message by message: what it applies, what it asks for, whom it follows."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest

from libs.bus import subjects, wire
from libs.feed.delta import Delta
from libs.feed.feed import (
    ASK_AGAIN_S,
    MISSED_BEATS_S,
    NEED_GRACE_S,
    QUICK_RETRIES,
    STALE_ETCD_S,
    STUCK_S,
    Action,
    Apply,
    Ask,
    Feed,
    Phase,
    Subscribe,
    Unsubscribe,
)
from libs.policy.output import Action as Verdict
from libs.policy.output import IPSetType, Policy, PolicyKey, Rule, Workload, WorkloadKey

A, B = wire.Epoch("a", 1, 7), wire.Epoch("b", 2, 7)
POLICY, SET = "policy.gnp/web", "ipset.s:1"
KEY, POD = PolicyKey("GlobalNetworkPolicy", "web"), "k8s/ns1/p1/eth0"


def policy(order: int) -> Policy:
    """A policy whose versions can be told apart."""
    return Policy(tier="default", selector=f"v == {order}", inbound=(Rule(action=Verdict.ALLOW, src_sets=("s:1",)),))


def state(seq: int, content: wire.Content) -> wire.StreamState:
    return wire.StreamState(seq, msgspec.Raw(wire.encode(content)))


def policy_state(seq: int, version: int) -> wire.StreamState:
    return state(seq, wire.PolicyContent(policy(version)))


def set_state(seq: int, *members: str) -> wire.StreamState:
    return state(seq, wire.SetContent(IPSetType.NET, list(members)))


def workload(name: str = "calip1") -> Workload:
    return Workload(name=name)


class Reader:
    """A Feed with its clock; `asks` and `applies` are what came out of the last call."""

    def __init__(self) -> None:
        self.now = 100.0
        self.feed = Feed("node1", Random(1))
        self.asks: list[Ask] = []
        self.applies: list[Apply] = []
        self.subscribed: set[str] = set()
        self.take(self.feed.start(self.now))

    def take(self, actions: list[Action]) -> list[Action]:
        self.asks = [action for action in actions if isinstance(action, Ask)]
        self.applies = [action for action in actions if isinstance(action, Apply)]
        for action in actions:
            if isinstance(action, Subscribe):
                self.subscribed.add(action.subject)
            elif isinstance(action, Unsubscribe):
                self.subscribed.discard(action.subject)
        return actions

    def hello(self, epoch: wire.Epoch = A, *, age: float = 0.1) -> list[Action]:
        reply = wire.SnapshotReply(epoch=epoch, rev=1, etcd_age_s=age, head=1)
        return self.take(self.feed.hello(reply, self.now))

    def snapshot(
        self,
        rev: int,
        seq: int,
        streams: dict[str, wire.StreamState] | None = None,
        *,
        epoch: wire.Epoch = A,
        age: float = 0.1,
        head: int | None = None,
        full: bool = True,
        gone: tuple[str, ...] = (),
        workloads: dict[str, Workload] | None = None,
    ) -> list[Action]:
        reply = wire.SnapshotReply(epoch=epoch, rev=rev, etcd_age_s=age, head=rev if head is None else head)
        content = wire.Snapshot(
            rev=rev, seq=seq, full=full, streams=streams or {}, gone=list(gone), workloads=workloads or {}
        )
        return self.take(self.feed.snapshot(reply, content, self.now))

    def streams(self, seq: int, streams: dict[str, wire.StreamState], *gone: str) -> list[Action]:
        return self.snapshot(10, seq, streams, full=False, gone=gone)

    def commit(
        self, rev: int, seq: int, *, epoch: wire.Epoch = A, prev: int | None = None, **rest: Any
    ) -> list[Action]:
        message = wire.Commit(epoch=epoch, rev=rev, seq=seq, prev=seq - 1 if prev is None else prev, **rest)
        return self.take(self.feed.node_message(message, self.now))

    def mark(self, rev: int, seq: int, *, epoch: wire.Epoch = A) -> list[Action]:
        return self.take(self.feed.node_message(wire.Mark(epoch=epoch, rev=rev, seq=seq), self.now))

    def members(self, seq: int, *added: str, removed: tuple[str, ...] = (), epoch: wire.Epoch = A) -> list[Action]:
        message = wire.SetMsg(epoch=epoch, rev=1, seq=seq, prev=seq - 1, added=list(added), removed=list(removed))
        return self.take(self.feed.stream_message(SET, message, self.now))

    def rules(self, seq: int, version: int) -> list[Action]:
        message = wire.PolicyMsg(epoch=A, rev=1, seq=seq, prev=seq - 1, policy=policy(version))
        return self.take(self.feed.stream_message(POLICY, message, self.now))

    def beat(self, epoch: wire.Epoch = A, *, age: float = 0.1) -> list[Action]:
        beat = wire.Beat(epoch=epoch, rev=1, etcd_age_s=age, head=1)
        return self.take(self.feed.beat(beat, self.now))

    def wait(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.take(self.feed.tick(self.now))

    @property
    def held(self) -> set[str]:
        return self.feed.state.sets["s:1"].members

    @property
    def version(self) -> str:
        return self.feed.state.policies[KEY].selector


@pytest.fixture
def reader() -> Reader:
    """Follows typha a at revision 10, node stream 5, policy stream 3 (version 3), set stream 8 ({10.0.0.1/32})."""
    made = Reader()
    made.hello()
    made.snapshot(10, 5, {POLICY: policy_state(3, 3), SET: set_state(8, "10.0.0.1/32")}, workloads={POD: workload()})
    assert made.feed.phase is Phase.FOLLOWING
    made.now += 10
    made.beat()
    return made


# --- commits and what they need --------------------------------------------------------------------------------------


def test_subscribes_before_it_asks_for_the_snapshot() -> None:
    reader = Reader()
    actions = reader.hello()
    assert [isinstance(action, Ask) for action in actions] == [False] * (len(actions) - 1) + [True]
    wanted = {subjects.beat("a"), subjects.node_stream("a", "node1")}
    assert reader.subscribed == wanted | {subjects.of_stream("a", name) for name in subjects.SHARED_BY_ALL}


def test_contents_change_nothing_before_a_commit_names_them(reader: Reader) -> None:
    assert reader.members(9, "10.0.0.2/32") == []
    assert reader.held == {"10.0.0.1/32"}
    reader.commit(11, 6, needs={SET: 9})
    assert reader.applies[0].delta.set_changes == {"s:1": ({"10.0.0.2/32"}, set())}
    assert (reader.applies[0].rev, reader.applies[0].seq) == (11, 6)


def test_commit_waits_for_everything_it_needs_and_is_applied_as_one(reader: Reader) -> None:
    assert reader.commit(11, 6, needs={SET: 9, POLICY: 4}) == []
    assert reader.rules(4, 4) == []
    assert (reader.version, reader.held, reader.feed.rev) == ("v == 3", {"10.0.0.1/32"}, 10)
    reader.members(9, "10.0.0.2/32")
    (apply,) = reader.applies
    assert apply.delta.policies == {KEY: policy(4)}
    assert apply.delta.set_changes == {"s:1": ({"10.0.0.2/32"}, set())}


def test_a_complete_commit_behind_an_incomplete_one_waits(reader: Reader) -> None:
    reader.commit(11, 6, needs={SET: 9})
    reader.rules(4, 4)
    assert reader.commit(12, 7, needs={POLICY: 4}) == []
    assert reader.version == "v == 3"
    reader.members(9, "10.0.0.2/32")
    (apply,) = reader.applies
    assert (apply.rev, apply.seq, reader.version) == (12, 7, "v == 4")


def test_messages_that_a_commit_does_not_name_stay_in_the_queue(reader: Reader) -> None:
    reader.members(9, "10.0.0.2/32")
    reader.members(10, "10.0.0.3/32")
    reader.commit(11, 6, needs={SET: 9})
    assert reader.held == {"10.0.0.1/32", "10.0.0.2/32"}
    reader.commit(12, 7, needs={SET: 10})
    assert reader.held == {"10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32"}


def test_lost_shared_message_is_fetched_after_the_grace(reader: Reader) -> None:
    reader.commit(11, 6, needs={SET: 9})
    assert reader.feed.deadline(reader.now) <= reader.now + NEED_GRACE_S
    assert reader.wait(NEED_GRACE_S / 2) == []
    reader.wait(NEED_GRACE_S)
    assert reader.asks == [Ask("a", wire.SnapshotRequest(node="node1", streams={SET: 8}))]
    assert reader.wait(ASK_AGAIN_S / 2) == []  # it was asked for
    reader.wait(ASK_AGAIN_S)
    assert reader.asks[0].request.streams == {SET: 8}  # but the answer may be lost too
    reader.streams(6, {SET: set_state(9, "10.0.0.1/32", "10.0.0.2/32")})
    assert reader.applies[0].delta.set_changes == {"s:1": ({"10.0.0.2/32"}, set())}


def test_gap_in_a_shared_stream_is_fetched_at_once(reader: Reader) -> None:
    reader.members(10, "10.0.0.3/32")
    assert reader.asks == [Ask("a", wire.SnapshotRequest(node="node1", streams={SET: 8}))]
    assert reader.held == {"10.0.0.1/32"}


def test_commit_that_stays_incomplete_leads_to_a_snapshot(reader: Reader) -> None:
    reader.commit(11, 6, needs={SET: 9})
    reader.wait(NEED_GRACE_S)
    assert reader.asks[0].request.streams == {SET: 8}
    started = reader.now
    while reader.feed.phase is Phase.FOLLOWING:
        reader.beat()
        reader.wait(0.5)
    assert STUCK_S - 0.5 <= reader.now - started <= STUCK_S + 0.5
    assert reader.asks == [Ask("a", wire.SnapshotRequest(node="node1"))]


def test_content_fetched_ahead_waits_for_the_commit_that_names_it(reader: Reader) -> None:
    """Asked for at commit 6, answered after typha had published commits 7 and 8: the members belong to 8."""
    reader.commit(11, 6, needs={SET: 9, POLICY: 4})
    reader.wait(NEED_GRACE_S)
    reader.streams(8, {SET: set_state(11, "10.0.0.9/32"), POLICY: policy_state(4, 4)})
    assert reader.applies == []
    assert reader.held == {"10.0.0.1/32"}
    assert reader.commit(12, 7, workloads={POD: None}) == []
    reader.commit(13, 8, needs={SET: 11})
    (apply,) = reader.applies
    assert (apply.rev, apply.seq, reader.held) == (13, 8, {"10.0.0.9/32"})


def test_commits_before_the_one_that_waits_for_fetched_content_are_not_held_up(reader: Reader) -> None:
    reader.members(10, "10.0.0.3/32")  # a gap: 9 is missing
    reader.streams(8, {SET: set_state(11, "10.0.0.9/32")})
    reader.commit(11, 6, workloads={POD: None})
    assert reader.applies[0].seq == 6
    assert reader.held == {"10.0.0.1/32"}
    assert reader.commit(12, 7, needs={SET: 10}) == []
    reader.commit(13, 8, needs={SET: 11})
    assert (reader.applies[0].seq, reader.held) == (8, {"10.0.0.9/32"})


@pytest.mark.parametrize("late", [6, 5, 1])
def test_duplicate_and_late_commits_are_ignored(reader: Reader, late: int) -> None:
    reader.commit(11, 6, workloads={POD: workload("calip2")})
    assert reader.commit(9, late, workloads={POD: None}) == []
    assert reader.feed.state.workloads == {WorkloadKey.parse(POD): workload("calip2")}


def test_duplicate_and_late_contents_are_ignored(reader: Reader) -> None:
    reader.members(9, "10.0.0.2/32")
    assert reader.members(9, "10.0.0.7/32") == []
    assert reader.members(8, "10.0.0.7/32") == []
    reader.commit(11, 6, needs={SET: 9})
    assert reader.members(9, "10.0.0.7/32") == []
    assert reader.held == {"10.0.0.1/32", "10.0.0.2/32"}


def test_contents_of_another_epoch_or_of_a_stream_not_followed_are_ignored(reader: Reader) -> None:
    assert reader.members(9, "10.0.0.2/32", epoch=B) == []
    message = wire.SetMsg(epoch=A, rev=1, seq=1, prev=0, added=["10.0.0.2/32"])
    assert reader.feed.stream_message("ipset.s:other", message, reader.now) == []


# --- streams come and go ---------------------------------------------------------------------------------------------


def test_inlined_content_is_applied_with_its_commit(reader: Reader) -> None:
    reader.commit(11, 6, add={"ipset.s:2": set_state(1, "10.9.0.0/16")})
    assert reader.applies[0].delta.sets["s:2"] is not None
    assert subjects.of_stream("a", "ipset.s:2") in reader.subscribed


def test_content_that_is_not_inlined_is_fetched_at_once(reader: Reader) -> None:
    actions = reader.commit(11, 6, add={"ipset.s:2": None}, needs={"ipset.s:2": 4})
    assert [type(action) for action in actions] == [Subscribe, Ask]
    assert reader.asks[0].request.streams == {"ipset.s:2": -1}
    reader.streams(6, {"ipset.s:2": set_state(4, "10.9.0.0/16")})
    assert reader.feed.state.sets["s:2"].members == {"10.9.0.0/16"}


def test_dropped_stream_goes_from_the_state_and_the_subscriptions(reader: Reader) -> None:
    reader.commit(11, 6, remove=[SET, POLICY])
    (apply,) = reader.applies
    assert apply.delta.sets == {"s:1": None}
    assert apply.delta.policies == {KEY: None}
    assert subjects.of_stream("a", SET) not in reader.subscribed


def test_stream_dropped_and_followed_again_across_queued_commits_has_the_new_content(reader: Reader) -> None:
    reader.commit(11, 6, needs={POLICY: 4})  # holds up what follows
    reader.commit(12, 7, remove=[SET])
    reader.commit(13, 8, add={SET: set_state(12, "10.0.0.9/32")})
    assert reader.held == {"10.0.0.1/32"}
    reader.rules(4, 4)
    (apply,) = reader.applies
    assert reader.held == {"10.0.0.9/32"}
    assert apply.delta.set_changes == {"s:1": ({"10.0.0.9/32"}, {"10.0.0.1/32"})}
    assert subjects.of_stream("a", SET) in reader.subscribed
    reader.members(13, "10.0.0.8/32")
    reader.commit(14, 9, needs={SET: 13})
    assert reader.held == {"10.0.0.9/32", "10.0.0.8/32"}


def test_stream_followed_again_with_content_too_large_to_inline_waits_for_that_content(reader: Reader) -> None:
    """The old content is still there when both commits are queued: it must not pass for the new one."""
    reader.commit(11, 6, needs={POLICY: 4})
    reader.commit(12, 7, remove=[SET])
    reader.commit(13, 8, add={SET: None}, needs={SET: 12})
    reader.rules(4, 4)
    assert "s:1" not in reader.feed.state.sets  # 6 and 7 are applied, 8 waits
    reader.wait(ASK_AGAIN_S)
    reader.streams(8, {SET: set_state(12, "10.0.0.9/32")})
    assert reader.held == {"10.0.0.9/32"}


def test_stream_that_was_reported_gone_is_waited_for_no_longer(reader: Reader) -> None:
    reader.commit(11, 6, needs={SET: 9})
    reader.wait(NEED_GRACE_S)
    reader.streams(7, {}, SET)
    assert reader.applies == []  # the commit that drops it is on its way
    reader.commit(12, 7, remove=[SET])
    assert reader.applies[0].delta.sets == {"s:1": None}


def test_late_answer_that_a_stream_is_gone_does_not_undo_that_it_is_back(reader: Reader) -> None:
    reader.commit(11, 6, needs={POLICY: 4})
    reader.commit(12, 7, remove=[SET])
    reader.commit(13, 8, add={SET: set_state(12, "10.0.0.9/32")})
    reader.streams(7, {}, SET)
    reader.rules(4, 4)
    assert reader.held == {"10.0.0.9/32"}
    reader.streams(7, {}, SET)
    reader.members(13, "10.0.0.8/32")
    reader.commit(14, 9, needs={SET: 13})
    assert reader.held == {"10.0.0.9/32", "10.0.0.8/32"}


# --- the node's own stream -------------------------------------------------------------------------------------------


def test_gap_in_the_own_stream_leads_to_a_snapshot_and_what_came_early_is_kept(reader: Reader) -> None:
    reader.commit(12, 7, workloads={POD: workload("calip2")})
    assert reader.asks == [Ask("a", wire.SnapshotRequest(node="node1"))]
    assert reader.feed.phase is Phase.SYNCING
    assert reader.commit(13, 8, workloads={POD: workload("calip3")}) == []
    streams = {POLICY: policy_state(3, 3), SET: set_state(8, "10.0.0.1/32")}
    reader.snapshot(12, 7, streams, workloads={POD: workload("calip2")})
    assert [apply.seq for apply in reader.applies] == [7, 8]
    assert reader.feed.state.workloads[WorkloadKey.parse(POD)].name == "calip3"


def test_mark_ahead_of_the_stream_leads_to_a_snapshot(reader: Reader) -> None:
    reader.mark(12, 6)
    assert reader.asks == [Ask("a", wire.SnapshotRequest(node="node1"))]
    assert reader.feed.rev == 10


def test_mark_at_the_streams_place_proves_a_revision_without_a_commit(reader: Reader) -> None:
    reader.mark(17, 5)
    assert reader.applies == [Apply(Delta(), 17, 5, A)]
    assert reader.feed.rev == 17


def test_mark_is_answered_even_when_it_says_nothing_new(reader: Reader) -> None:
    reader.mark(10, 5)
    assert reader.applies == [Apply(Delta(), 10, 5, A)]


def test_mark_waits_for_commits_that_are_not_applied(reader: Reader) -> None:
    reader.commit(11, 6, needs={SET: 9})
    assert reader.mark(17, 6) == []
    reader.members(9, "10.0.0.2/32")
    assert [apply.rev for apply in reader.applies] == [11, 17]


def test_message_of_a_new_epoch_of_the_same_instance_leads_to_a_snapshot(reader: Reader) -> None:
    again = wire.Epoch("a", 2, 7)
    reader.mark(90, 9)  # of the old epoch, never fulfilled
    reader.snapshot(11, 0, epoch=again)
    assert reader.applies[0].delta.sets == {"s:1": None}
    reader.mark(12, 0, epoch=again)
    assert reader.applies == [Apply(Delta(), 12, 0, again)]
    reader.commit(99, 1, epoch=A, prev=0)
    assert reader.asks != []
    assert reader.feed.phase is Phase.SYNCING


# --- snapshots -------------------------------------------------------------------------------------------------------


def test_reconnect_takes_a_snapshot_whose_equal_content_changes_nothing(reader: Reader) -> None:
    reader.take(reader.feed.resync(reader.now))
    assert reader.asks == [Ask("a", wire.SnapshotRequest(node="node1"))]
    streams = {POLICY: policy_state(3, 3), SET: set_state(8, "10.0.0.1/32")}
    actions = reader.snapshot(14, 5, streams, workloads={POD: workload()})
    assert actions == [Apply(Delta(), 14, 5, A)]
    assert not reader.applies[0].delta


def test_snapshot_changes_only_what_differs(reader: Reader) -> None:
    reader.take(reader.feed.resync(reader.now))
    streams = {POLICY: policy_state(9, 3), SET: set_state(11, "10.0.0.1/32", "10.0.0.5/32")}
    reader.snapshot(14, 7, streams, workloads={POD: workload()})
    assert reader.applies[0].delta == Delta(set_changes={"s:1": ({"10.0.0.5/32"}, set())})


def test_snapshot_keeps_the_queued_messages_that_continue_it(reader: Reader) -> None:
    for seq in (9, 10, 11):
        reader.members(seq, f"10.0.0.{seq}/32")
    reader.take(reader.feed.resync(reader.now))
    reader.snapshot(14, 5, {SET: set_state(10, "10.0.0.1/32", "10.0.0.9/32", "10.0.0.10/32")})
    reader.commit(15, 6, needs={SET: 11})
    assert reader.held == {"10.0.0.1/32", "10.0.0.9/32", "10.0.0.10/32", "10.0.0.11/32"}


def test_snapshot_of_an_instance_that_is_no_longer_followed_is_ignored(reader: Reader) -> None:
    assert reader.snapshot(99, 9, epoch=B) == []
    assert reader.feed.rev == 10


def silent(reader: Reader) -> None:
    """Three beats are missed, and the reader looks around."""
    reader.wait(MISSED_BEATS_S + 0.1)
    reader.wait(1.0)
    assert reader.asks == [Ask("", wire.SnapshotRequest(node="node1", hello=True))]


def test_three_missed_beats_move_the_reader_after_a_random_wait(reader: Reader) -> None:
    reader.wait(MISSED_BEATS_S - 0.1)
    phases = [reader.feed.phase]
    assert reader.wait(0.2) == []
    assert [*phases, reader.feed.phase] == [Phase.FOLLOWING, Phase.DISCOVERING]
    due = reader.feed.deadline(reader.now)
    reader.now = due - 0.002
    assert reader.wait(0) == []
    reader.wait(0.01)
    assert reader.asks == [Ask("", wire.SnapshotRequest(node="node1", hello=True))]
    waits = set()
    for seed in range(20):
        one = Feed("node1", Random(seed))
        one.phase = Phase.FOLLOWING
        one.tick(10.0)
        waits.add(one.deadline(10.0))
    assert len(waits) > 15


def test_moving_to_another_typha_with_equal_content_changes_nothing(reader: Reader) -> None:
    silent(reader)
    reader.hello(B)
    assert all(".b." in subject for subject in reader.subscribed)
    assert subjects.of_stream("b", SET) in reader.subscribed
    streams = {POLICY: policy_state(70, 3), SET: set_state(71, "10.0.0.1/32")}
    reader.snapshot(10, 2, streams, epoch=B, workloads={POD: workload()})
    assert reader.applies == [Apply(Delta(), 10, 2, B)]


def test_snapshot_older_than_what_is_applied_is_refused_and_another_typha_looked_for(reader: Reader) -> None:
    silent(reader)
    reader.hello(B)
    assert reader.snapshot(9, 2, epoch=B, head=9, age=5.0) == []
    assert (reader.feed.refused, reader.feed.rev, reader.held) == (1, 10, {"10.0.0.1/32"})
    reader.wait(3.0)
    assert reader.asks == [Ask("", wire.SnapshotRequest(node="node1", hello=True))]


def test_etcd_read_before_our_revision_existed_does_not_prove_that_it_went_back(reader: Reader) -> None:
    """Typha b is a moment behind: its last read of etcd, a second ago, was older than the commit we just applied."""
    reader.commit(20, 6)
    reader.feed.phase = Phase.DISCOVERING
    reader.now += 0.1
    reader.hello(B)
    reader.snapshot(15, 2, epoch=B, age=0.9, head=14)
    assert (reader.feed.refused, reader.feed.rev) == (1, 20)


@pytest.mark.parametrize(
    ("epoch", "age", "head"),
    [(wire.Epoch("b", 2, 8), 60.0, 99), (B, 0.5, 4)],
    ids=["cluster id changed", "head fell, seen just now"],
)
def test_lower_revision_is_accepted_after_a_restore_of_etcd(
    reader: Reader, epoch: wire.Epoch, age: float, head: int
) -> None:
    silent(reader)
    reader.hello(epoch)
    reader.snapshot(4, 0, {SET: set_state(1, "10.0.0.1/32")}, epoch=epoch, age=age, head=head)
    assert (reader.feed.refused, reader.feed.rev, reader.feed.phase) == (0, 4, Phase.FOLLOWING)
    assert reader.applies[0].delta.policies == {KEY: None}
    assert reader.applies[0].delta.set_changes == {}


def stale(reader: Reader) -> None:
    reader.beat(age=STALE_ETCD_S + 1)
    reader.wait(0.5)


def test_typha_that_lost_etcd_is_left_only_for_a_fresher_one(reader: Reader) -> None:
    stale(reader)
    assert reader.asks == [Ask("", wire.SnapshotRequest(node="node1", hello=True))]
    assert reader.feed.phase is Phase.FOLLOWING  # what it has stands
    assert reader.hello(B, age=STALE_ETCD_S + 5) == []
    assert reader.feed.instance == "a"
    for _ in range(25):
        reader.beat(age=STALE_ETCD_S + 1)
        reader.wait(1.0)
        if reader.asks:
            break
    assert reader.asks == [Ask("", wire.SnapshotRequest(node="node1", hello=True))]
    reader.hello(B, age=0.2)
    assert reader.feed.instance == "b"


def test_own_typha_answering_the_search_for_a_fresher_one_changes_nothing(reader: Reader) -> None:
    stale(reader)
    assert reader.hello(A, age=0.1) == []
    assert reader.feed.phase is Phase.FOLLOWING


def test_gap_is_healed_although_a_fresher_typha_was_looked_for_a_moment_ago(reader: Reader) -> None:
    stale(reader)
    reader.hello(A, age=STALE_ETCD_S + 1)
    reader.commit(12, 7)
    assert reader.asks == [Ask("a", wire.SnapshotRequest(node="node1"))]


def test_failed_snapshots_are_tried_again_then_another_typha_is_looked_for(reader: Reader) -> None:
    reader.take(reader.feed.resync(reader.now))
    reader.take(reader.feed.failed(reader.asks[0].request, reader.now))
    reader.wait(1.0)
    assert reader.asks == [Ask("a", wire.SnapshotRequest(node="node1"))]
    reader.take(reader.feed.failed(reader.asks[0].request, reader.now))
    reader.wait(2.0)
    assert reader.asks == [Ask("", wire.SnapshotRequest(node="node1", hello=True))]


def test_beat_of_another_instance_does_not_count(reader: Reader) -> None:
    reader.wait(2.0)
    reader.beat(B)
    reader.wait(MISSED_BEATS_S - 1.9)
    assert reader.feed.phase is Phase.DISCOVERING


# --- a reader that is asked to move ----------------------------------------------------------------------------------


def asked_to_move(reader: Reader, instance: str = "b") -> list[Action]:
    mark = wire.Mark(epoch=A, rev=reader.feed.rev, seq=reader.feed.seq, follow=instance)
    return reader.take(reader.feed.node_message(mark, reader.now))


def moving_reply(rev: int, age: float = 0.1) -> wire.SnapshotReply:
    return wire.SnapshotReply(epoch=B, rev=rev, etcd_age_s=age, head=rev)


def test_reader_moves_when_asked_and_what_is_equal_is_not_touched() -> None:
    reader = following()
    asked_to_move(reader)
    assert reader.asks == [Ask("b", wire.SnapshotRequest(node="node1", hello=True))]
    assert reader.feed.phase is Phase.FOLLOWING  # until the other one answers
    reader.commit(6, 2, workloads={"k8s/ns1/p2/eth0": workload("calip2")})
    assert [apply.rev for apply in reader.applies] == [6]
    reader.take(reader.feed.hello(moving_reply(6), reader.now))
    assert reader.asks == [Ask("b", wire.SnapshotRequest(node="node1"))]
    assert all(".b." in subject for subject in reader.subscribed)
    assert len(reader.subscribed) == 2 + 2 + len(subjects.SHARED_BY_ALL)
    both = {POD: workload(), "k8s/ns1/p2/eth0": workload("calip2")}
    streams = {POLICY: policy_state(40, 1), SET: set_state(70, "x")}
    reader.snapshot(6, 9, streams, epoch=B, workloads=both)
    assert [(bool(apply.delta), apply.rev, apply.epoch) for apply in reader.applies] == [(False, 6, B)]
    reader.commit(7, 10, epoch=B, workloads={POD: None})
    assert list(reader.applies[0].delta.workloads.values()) == [None]


@pytest.mark.parametrize("why", ["behind", "stale", "gone", "another protocol"])
def test_reader_stays_when_the_other_typha_cannot_take_it(why: str) -> None:
    reader = following()
    asked_to_move(reader)
    request = reader.asks[0].request
    other = {"behind": moving_reply(4), "stale": moving_reply(5, age=STALE_ETCD_S + 1)}.get(why, moving_reply(5))
    if why == "gone":
        assert reader.take(reader.feed.failed(request, reader.now)) == []
    else:
        other.protocol = 2 if why == "another protocol" else 1
        assert reader.take(reader.feed.hello(other, reader.now)) == []
    assert (reader.feed.standing, reader.feed.instance) == ("following", "a")
    reader.commit(6, 2, workloads={POD: None})
    assert len(reader.applies) == 1
    asked_to_move(reader)
    assert reader.asks == [Ask("b", wire.SnapshotRequest(node="node1", hello=True))]  # it may be asked again


def test_reader_that_moved_and_gets_no_snapshot_keeps_its_state_and_finds_a_third_one() -> None:
    reader = following()
    asked_to_move(reader)
    reader.take(reader.feed.hello(moving_reply(5), reader.now))
    for _ in range(2):
        reader.take(reader.feed.failed(wire.SnapshotRequest(node="node1"), reader.now))
        while not reader.wait(0.1):
            pass
    assert reader.asks == [Ask("", wire.SnapshotRequest(node="node1", hello=True))]
    assert reader.applies == []
    assert reader.held == {"x"}


def test_reader_that_is_asked_to_follow_whom_it_follows_does_nothing() -> None:
    reader = following()
    assert asked_to_move(reader, "a") == [Apply(Delta(), 5, 1, A)]
    reader.feed.resync(reader.now)
    assert asked_to_move(reader, "b") == []  # it waits for a snapshot


# --- releases that differ --------------------------------------------------------------------------------------------


def strange(**fields: Any) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(fields))


NOT_UNDERSTOOD = {
    "a kind of content that is not known": (POLICY, strange(kind="graph", edges=[])),
    "content of another family": (POLICY, set_state(7, "y").content),
    "a verdict that is not known": (
        POLICY, strange(kind="policy", policy={"tier": "d", "selector": "", "inbound": [{"action": "divert"}]}),
    ),
    "a kind of policy that is not known": ("policy.xnp/web", policy_state(1, 1).content),
    "no JSON": (SET, msgspec.Raw(b"{")),
}  # fmt: skip


def following(**streams: wire.StreamState) -> Reader:
    reader = Reader()
    reader.hello()
    reader.snapshot(5, 1, {POLICY: policy_state(1, 1), SET: set_state(1, "x")}, workloads={POD: workload()})
    assert reader.feed.phase is Phase.FOLLOWING
    return reader


@pytest.mark.parametrize("case", NOT_UNDERSTOOD)
@pytest.mark.parametrize("by", ["snapshot", "commit", "streams"])
def test_what_is_not_understood_leaves_all_as_it_is_and_is_asked_for_calmly(case: str, by: str) -> None:
    stream, content = NOT_UNDERSTOOD[case]
    reader = following()
    before = msgspec.json.encode(reader.feed.state.policies[KEY]), set(reader.held), dict(reader.feed.state.workloads)
    stated = {SET: set_state(7, "y", "z"), stream: wire.StreamState(7, content)}
    if by == "snapshot":
        reader.feed.resync(reader.now)
        reader.snapshot(9, 4, stated)
    elif by == "commit":
        reader.commit(9, 2, add=stated)
    else:
        reader.streams(2, stated)
    assert reader.applies == []
    assert before == (
        msgspec.json.encode(reader.feed.state.policies[KEY]), reader.held, reader.feed.state.workloads
    )  # fmt: skip
    assert reader.feed.phase is Phase.DISCOVERING
    assert stream in reader.feed.standing
    assert not any(subject.startswith("calico.typha.a.") for subject in reader.subscribed)
    asks = 0
    for _ in range(300):  # five minutes, in which a typha answers and is not understood
        if reader.wait(1.0):
            asks += 1
            reader.hello()
            reader.snapshot(9, 4, stated)
            assert reader.feed.in_sync
            assert reader.applies == []
    assert 15 <= asks <= 30
    while not reader.wait(1.0):
        pass
    reader.hello()
    reader.snapshot(10, 5, {POLICY: policy_state(8, 1), SET: set_state(8, "x")}, workloads={POD: workload()})
    assert reader.feed.standing == "following"
    assert not reader.applies[0].delta  # it was equal: nothing flapped


def test_typha_of_another_protocol_is_not_followed_and_the_reason_names_both() -> None:
    reader = Reader()
    reply = wire.SnapshotReply(epoch=A, rev=1, etcd_age_s=0.1, head=1, protocol=2, version="v9.0.0")
    assert reader.take(reader.feed.hello(reply, reader.now)) == []
    assert reader.feed.standing == (
        "refused: typha a (v9.0.0) speaks protocol 2, this reader protocol 1: upgrade this reader"
    )
    assert reader.wait(0.1) == []
    while not reader.wait(1.0):
        pass
    reader.hello(B)
    reader.snapshot(5, 1, {POLICY: policy_state(1, 1), SET: set_state(1, "x")}, epoch=B)
    assert reader.feed.standing == "following"


def test_who_looks_for_a_typha_asks_a_few_times_soon_when_others_may_fit_and_seldom_then() -> None:
    """Each request goes to a typha by chance: one of another protocol among several must not cost 10 s."""
    waits: list[float] = []
    reader = Reader()
    for _ in range(2 * QUICK_RETRIES):
        refused_by(reader, A)
        since = reader.now
        while not reader.wait(0.05):
            pass
        waits.append(reader.now - since)
    assert all(0.2 <= wait < 3.1 for wait in waits[:QUICK_RETRIES])
    assert all(10.0 <= wait < 20.1 for wait in waits[QUICK_RETRIES:])
    reader.hello(B)
    reader.snapshot(5, 1, {POLICY: policy_state(1, 1), SET: set_state(1, "x")}, epoch=B)
    assert reader.feed.standing == "following"
    reader.wait(4.0)  # no beats: it looks again, and the count starts anew
    while not reader.wait(0.05):
        pass
    refused_by(reader, A)
    since = reader.now
    while not reader.wait(0.05):
        pass
    assert reader.now - since < 3.1


def test_a_refusal_while_a_snapshot_is_waited_for_does_not_drop_the_typha_that_was_followed() -> None:
    reader = following()
    reader.beat(age=STALE_ETCD_S + 1)
    assert reader.wait(1.0)  # asks who else there is
    reader.feed.resync(reader.now)
    subscribed = set(reader.subscribed)
    refused_by(reader, B)
    assert (reader.feed.instance, reader.subscribed) == ("a", subscribed)
    [ask] = reader.wait(0.01)
    assert isinstance(ask, Ask)
    assert (ask.instance, ask.request.hello) == ("a", False)
    reader.snapshot(11, 6, {POLICY: policy_state(3, 3), SET: set_state(8, "10.0.0.1/32")}, workloads={POD: workload()})
    assert reader.feed.standing == "following"


def refused_by(reader: Reader, epoch: wire.Epoch) -> None:
    reply = wire.SnapshotReply(epoch=epoch, rev=1, etcd_age_s=0.1, head=1, protocol=2)
    reader.take(reader.feed.hello(reply, reader.now))


def test_who_follows_one_typha_does_not_mind_that_another_one_is_of_another_protocol() -> None:
    reader = following()
    reader.beat(age=STALE_ETCD_S + 1)
    assert reader.wait(1.0)
    reply = wire.SnapshotReply(epoch=B, rev=1, etcd_age_s=0.1, head=1, protocol=2)
    assert reader.take(reader.feed.hello(reply, reader.now)) == []
    assert reader.feed.standing == "following"


def test_streams_of_families_that_are_not_known_are_not_followed() -> None:
    reader = following()
    later = wire.StreamState(3, strange(kind="graph", edges=[]))
    reader.commit(6, 2, add={"graph.all": later, "graph.some": None}, needs={"graph.all": 3, "graph.some": 2})
    assert [apply.rev for apply in reader.applies] == [6]
    assert reader.asks == []
    reader.commit(7, 3, remove=["graph.some"], needs={"graph.all": 4})
    assert [apply.rev for apply in reader.applies] == [7]
    reader.feed.resync(reader.now)
    streams = {POLICY: policy_state(1, 1), SET: set_state(1, "x"), "graph.all": later}
    reader.snapshot(8, 3, streams, workloads={POD: workload()})
    assert not reader.applies[0].delta
    assert not any("graph" in subject for subject in reader.subscribed)
