"""The reader of typha's streams: when it leaves a typha for another one, and when it stays."""

from __future__ import annotations

from random import Random

import pytest

from libs.bus import subjects, wire
from libs.feed.delta import Delta
from libs.feed.feed import (
    MISSED_BEATS_S,
    STALE_ETCD_S,
    Action,
    Apply,
    Ask,
    Feed,
    Phase,
)
from tests.unit.libs.feed.feed_stage import (
    KEY,
    POD,
    POLICY,
    SET,
    A,
    B,
    Reader,
    following,
    policy_state,
    set_state,
    workload,
)


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
