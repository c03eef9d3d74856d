"""The reader of typha's streams: what it makes of a typha of another release."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from libs.bus import wire
from libs.feed.feed import (
    QUICK_RETRIES,
    STALE_ETCD_S,
    Ask,
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
