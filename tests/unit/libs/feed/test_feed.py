"""The reader of typha's streams, message by message: what it applies, what it asks for, whom it follows."""

from __future__ import annotations

import pytest

from libs.bus import subjects, wire
from libs.feed.delta import Delta
from libs.feed.feed import (
    ASK_AGAIN_S,
    NEED_GRACE_S,
    STUCK_S,
    Apply,
    Ask,
    Phase,
    Subscribe,
)
from libs.policy.output import WorkloadKey
from tests.unit.libs.feed.feed_stage import (
    KEY,
    POD,
    POLICY,
    SET,
    A,
    B,
    Reader,
    policy,
    policy_state,
    set_state,
    workload,
)

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
