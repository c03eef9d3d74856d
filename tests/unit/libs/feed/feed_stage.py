"""A reader of typha's streams with its clock, and what is sent to it."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec

from libs.bus import wire
from libs.feed.feed import (
    Action,
    Apply,
    Ask,
    Feed,
    Phase,
    Subscribe,
    Unsubscribe,
)
from libs.policy.output import Action as Verdict
from libs.policy.output import IPSetType, Policy, PolicyKey, Rule, Workload

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


def following(**streams: wire.StreamState) -> Reader:
    reader = Reader()
    reader.hello()
    reader.snapshot(5, 1, {POLICY: policy_state(1, 1), SET: set_state(1, "x")}, workloads={POD: workload()})
    assert reader.feed.phase is Phase.FOLLOWING
    return reader
