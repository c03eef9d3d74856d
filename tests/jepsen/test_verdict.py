"""The verdict on histories made by hand: what it must find, and what it must not take for a mistake."""

from __future__ import annotations

import json
from typing import Any

from tests.jepsen.audit import PREFIX, Audit
from tests.jepsen.history import Estate, History, Instance
from tests.jepsen.raw_etcd import Change
from tests.jepsen.verdict import judge

BLOCK = PREFIX + "assignment/ipv4/block/10.0.0.0-30"
BASE = 100


class Story:
    """Time passes with every line; etcd's revisions with every write. One block of four, of node n0."""

    def __init__(self) -> None:
        self.history = History()
        self.audit = Audit()
        self._time = 0
        self._revision = 0
        self._sequence = BASE - 1
        self._used: dict[int, tuple[str, int, str]] = {}
        self.affinity("n0", "confirmed", self._block())

    def affinity(self, node: str, state: str, *more: Change) -> None:
        value = json.dumps({"state": state, "deleted": False}).encode()
        self._write(Change(0, f"{PREFIX}host/{node}/ipv4/block/10.0.0.0-30", value), *more)

    def asked(self, id_: str, kind: str, **arguments: Any) -> None:
        self._event(e="invoke", id=id_, f=kind, a=arguments)

    def told(self, id_: str, outcome: str, result: Any = None) -> None:
        self._event(e=outcome, id=id_, r=result)

    def assigned(self, ordinal: int, id_: str, handle: str) -> Instance:
        """Written, and told to whom it is for."""
        instance = self.stored(ordinal, id_, handle)
        self.told(id_, "ok", {"got": [[instance.address, instance.sequence]], "why": []})
        return instance

    def stored(self, ordinal: int, id_: str, handle: str) -> Instance:
        self._used[ordinal] = handle, self._sequence, id_
        instance = Instance(f"10.0.0.{ordinal}", handle, self._sequence)
        self._write(self._block(), self._handle(handle))
        return instance

    def freed(self, ordinal: int) -> None:
        handle, _, _ = self._used.pop(ordinal)
        self._write(self._block(), self._handle(handle))

    def problems(self) -> set[str]:
        return {problem.kind for problem in judge(self.history, self.audit).problems}

    def _event(self, **event: Any) -> None:
        self._time += 1
        self.history.take({**event, "t": self._time})

    def _write(self, *changes: Change) -> None:
        self._revision += 1
        self.audit.take([Change(self._revision, change.key, change.value) for change in changes])

    def _handle(self, handle: str) -> Change:
        count = sum(1 for whose, _, _ in self._used.values() if whose == handle)
        value = json.dumps({"block": {"10.0.0.0/30": count}, "deleted": False}).encode() if count else None
        return Change(0, f"{PREFIX}handle/{handle}", value)

    def _block(self) -> Change:
        self._sequence += 1
        ordinals = sorted(self._used)
        raw = {
            "cidr": "10.0.0.0/30",
            "affinity": "host:n0",
            "allocations": [ordinals.index(o) if o in self._used else None for o in range(4)],
            "unallocated": [o for o in range(4) if o not in self._used],
            "attributes": [{"handle_id": self._used[o][0], "secondary": {"pod": self._used[o][2]}} for o in ordinals],
            "sequenceNumber": self._sequence,
            "sequenceNumberForAllocation": {str(o): self._used[o][1] for o in ordinals},
            "deleted": False,
        }
        return Change(0, BLOCK, json.dumps(raw).encode())


def assign(story: Story, id_: str, handle: str) -> None:
    story.asked(id_, "assign", handle=handle, num4=1, num6=0, keep=True, once=False)


def test_address_given_released_and_given_again_is_nobodys_mistake() -> None:
    story = Story()
    assign(story, "a", "h1")
    story.assigned(0, "a", "h1")
    story.asked("r", "release_handle", handle="h1")
    story.freed(0)
    story.told("r", "ok", {"freed": [["10.0.0.0", "h1"]], "unallocated": [], "refused": {}})
    assign(story, "b", "h2")
    kept = story.assigned(0, "b", "h2")
    assert story.problems() == set()
    assert judge(story.history, story.audit).expected == {kept}


def test_address_of_two_is_a_duplicate_and_a_loss() -> None:
    story = Story()
    assign(story, "a", "h1")
    story.assigned(0, "a", "h1")
    story.freed(0)
    assign(story, "b", "h2")
    story.assigned(0, "b", "h2")
    assert story.problems() == {"duplicate", "lost"}


def test_refused_release_leaves_the_owner_his_address() -> None:
    story = Story()
    assign(story, "a", "h1")
    story.assigned(0, "a", "h1")
    story.asked("r", "release_handle", handle="h1")
    story.told("r", "fail", "handle-missing")
    assert story.problems() == {"stray"}, "a refusal that is not true"
    story.freed(0)
    assign(story, "b", "h2")
    story.assigned(0, "b", "h2")
    assert story.problems() >= {"duplicate", "lost"}


def test_release_without_an_answer_may_happen_at_once_later_or_never() -> None:
    for happens in (True, False):
        story = Story()
        assign(story, "a", "h1")
        given = story.assigned(0, "a", "h1")
        story.asked("r", "release_handle", handle="h1")
        if happens:
            story.freed(0)
            assign(story, "b", "h2")
            story.assigned(0, "b", "h2")
        assert story.problems() == set()
        assert judge(story.history, story.audit).collectable == (set() if happens else {given})


def test_assignment_without_an_answer_is_left_to_garbage_collection() -> None:
    story = Story()
    assign(story, "a", "h1")
    given = story.stored(0, "a", "h1")
    assert story.problems() == set()
    assert judge(story.history, story.audit).collectable == {given}


def test_refused_assignment_must_not_leave_an_address() -> None:
    story = Story()
    assign(story, "a", "h1")
    story.stored(0, "a", "h1")
    story.told("a", "fail", "no-free-addresses")
    assert story.problems() == {"stray"}


def test_stale_release_covers_only_the_allocation_it_names() -> None:
    story = Story()
    assign(story, "a", "h1")
    old = story.assigned(0, "a", "h1")
    story.asked("r", "release_handle", handle="h1")
    story.freed(0)
    story.told("r", "ok", {"freed": [["10.0.0.0", "h1"]], "unallocated": [], "refused": {}})
    assign(story, "b", "h2")
    story.assigned(0, "b", "h2")
    story.asked("s", "release_ips", options=[[old.address, None, old.sequence]], stale=True)
    story.freed(0)
    story.told("s", "ok", {"freed": [["10.0.0.0", "h2"]], "unallocated": [], "refused": {}})
    assert story.problems() == {"lost"}


def test_address_that_another_released_before_its_owner_learned_of_it_is_nobodys_mistake() -> None:
    for at_the_same_time in (True, False):
        story = Story()
        assign(story, "a", "group")
        story.stored(0, "a", "group")
        if at_the_same_time:
            story.asked("r", "release_handle", handle="group")
        second = story.stored(1, "a", "group")
        story.told("a", "ok", {"got": [[second.address, second.sequence]], "why": []})
        if not at_the_same_time:
            story.asked("r", "release_handle", handle="group")
        story.freed(0)
        story.told("r", "ok", {"freed": [["10.0.0.0", "group"]], "unallocated": [], "refused": {}})
        assert story.problems() == (set() if at_the_same_time else {"stray"})


def test_address_told_of_but_never_stored_is_lost() -> None:
    story = Story()
    assign(story, "a", "h1")
    story.told("a", "ok", {"got": [["10.0.0.2", BASE]], "why": []})
    assert story.problems() == {"lost"}


def test_handle_that_counts_wrong_and_foreign_affinity_are_seen_at_their_revision() -> None:
    story = Story()
    story.affinity("n1", "pending")
    assert story.problems() == set(), "a claim that has only begun promises nothing"
    story.affinity("n1", "confirmed")
    assert story.problems() == {"affinity"}
    story = Story()
    assign(story, "a", "h1")
    story.assigned(0, "a", "h1")
    story._write(Change(0, f"{PREFIX}handle/h1", b'{"block":{"10.0.0.0/30":2},"deleted":false}'))
    assert story.problems() == {"handle"}


def test_estate_of_a_dead_client_is_what_it_held_and_what_it_did_not_learn() -> None:
    story, estate = Story(), Estate()
    lines = [
        {"e": "invoke", "id": "a", "t": 1, "f": "assign", "a": {"handle": "h1", "keep": True}},
        {"e": "invoke", "id": "b", "t": 2, "f": "assign", "a": {"handle": "h2", "keep": True}},
        {"e": "ok", "id": "a", "t": 3, "r": {"got": [["10.0.0.0", 7], ["10.0.0.1", 7]]}},
        {
            "e": "invoke",
            "id": "c",
            "t": 4,
            "f": "release_ips",
            "a": {"options": [["10.0.0.1", "h1", 7]], "stale": False},
        },
    ]
    for line in lines:
        estate.take(line)
        story.history.take(line)
    estate.died()
    assert list(estate.held) == [Instance("10.0.0.0", "h1", 7)]
    assert list(estate.doubtful) == ["h2", "h1"]
