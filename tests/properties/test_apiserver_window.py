"""Windows and their readers against a model that keeps everything: any history, cut into any batches, with any bounds.

The model is etcd itself: a list of events, from which the state at any revision is computed anew. Readers come at any
revision, read in any portions, stop and come back; the cache loses sight of etcd and lists again. Each reader that is
not told to begin anew must end with what is there, and on the way hear of no object that it could not have known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from libs.model import kinds
from libs.model.base import ObjectMeta, Resource
from libs.model.endpoints import GlobalNetworkSet
from libs.model.keys import resource_key
from libs.model.storage import to_storage
from libs.store.api import KeyValue
from services.apiserver.core.window import Edit, EventType, Expired, Window, edit, read, told

KIND = kinds.kind("GlobalNetworkSet")
NAMES = ("a", "b", "c", "d")
COLOURS = ("red", "blue")
KEEPS: dict[str, Callable[[Resource], bool]] = {
    "all": lambda resource: True,
    **{colour: lambda resource, colour=colour: resource.metadata.labels.get("colour") == colour for colour in COLOURS},
}

Told = dict[str, int]  # key -> revision of the object there


@dataclass
class Reader:
    """position: as a client's resourceVersion. held: what it believes."""

    keep: str
    position: int
    known_here: bool  # the cache had come that far, and seen everything
    held: Told = field(default_factory=dict)


def value(colour: str | None) -> bytes:
    """None: one that nobody can read."""
    if colour is None:
        return b"{"
    metadata = ObjectMeta(name="x", uid="u", creation_timestamp="2026-01-01T00:00:00Z", labels={"colour": colour})
    return to_storage(GlobalNetworkSet(metadata=metadata))


class WindowAgainstHistory(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.revision = 1  # of etcd
        self.states: dict[int, dict[str, KeyValue]] = {1: {}}
        self.pending: list[Edit] = []
        self.readers: list[Reader] = []

    @initialize(changes=st.integers(1, 12), size=st.sampled_from([3_000, 2**20]))
    def open_window(self, changes: int, size: int) -> None:
        self.window = Window(1, max_changes=changes, max_bytes=size)

    # --- etcd --------------------------------------------------------------------------------------------------------

    @rule(writes=st.dictionaries(st.sampled_from(NAMES), st.sampled_from([*COLOURS, None, "gone"]), min_size=1))
    def write(self, writes: dict[str, Any]) -> None:
        """One transaction: all at one revision."""
        state = dict(self.states[self.revision])
        revision = self.revision + 1
        edits = []
        for name, what in writes.items():
            key = resource_key(KIND.kind, name)
            before = state.pop(key, None)
            if what != "gone":
                created = before.create_revision if before else revision
                state[key] = KeyValue(key, value(what), revision, created, before.version + 1 if before else 1)
            elif before is None:
                continue
            edits.append(edit(KIND, key, state.get(key), revision))
        if edits:
            self.revision = revision
            self.states[revision] = state
            self.pending += edits

    @rule()
    def elsewhere(self) -> None:
        """A write that is none of this kind."""
        self.states[self.revision + 1] = self.states[self.revision]
        self.revision += 1

    # --- the cache ---------------------------------------------------------------------------------------------------

    @rule(data=st.data())
    def follow(self, data: st.DataObject) -> None:
        """A batch: all up to some revision."""
        if self.revision > self.window.log.revision:
            until = data.draw(st.integers(self.window.log.revision + 1, self.revision))
            batch = [each for each in self.pending if each.revision <= until]
            self.pending = [each for each in self.pending if each.revision > until]
            self.window.apply(batch, until)

    @rule()
    def list_again(self) -> None:
        """History was compacted: only the state of now can be had."""
        if self.revision > self.window.log.revision:
            self.pending = []
            state = self.states[self.revision].values()
            self.window.resync([edit(KIND, kv.key, kv, kv.mod_revision) for kv in state], self.revision)

    # --- readers -----------------------------------------------------------------------------------------------------

    @rule(keep=st.sampled_from(sorted(KEEPS)))
    def come_with_a_list(self, keep: str) -> None:
        """From the cache."""
        held = {each.key: each.revision for each in self.window.items() if KEEPS[keep](each.resource)}
        self.readers.append(Reader(keep, self.window.log.revision, True, held))

    @rule(keep=st.sampled_from(sorted(KEEPS)), data=st.data())
    def come_from_elsewhere(self, keep: str, data: st.DataObject) -> None:
        """With a revision from another replica, older or newer than what this one knows."""
        revision = data.draw(st.integers(1, self.revision))
        known_here = revision <= self.window.log.revision and not self.in_a_gap(revision)
        self.readers.append(Reader(keep, revision, known_here, self.seen(keep, revision)))

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), limit=st.integers(1, 5))
    def read(self, data: st.DataObject, limit: int) -> None:
        index = data.draw(st.integers(0, len(self.readers) - 1))
        try:
            self.advance(self.readers[index], limit)
        except Expired:
            assert self.may_expire(self.readers[index])
            del self.readers[index]

    def may_expire(self, reader: Reader) -> bool:
        """Only who is before the floor, or came with a revision that this cache never saw."""
        return reader.position < self.window.log.floor or not reader.known_here

    def advance(self, reader: Reader, limit: int) -> bool:
        """False when nothing was left to read. Whatever a client is told must follow from what it has."""
        changes, reached = self.window.log.since(reader.position, limit)
        for change in changes:
            assert change.revision > reader.position
            event = told(change, KEEPS[reader.keep])
            if event is None:
                continue
            kind, stored = event
            assert stored.resource.metadata.resource_version == str(change.revision)
            if kind is EventType.DELETED:
                assert reader.held.pop(stored.key, None) is not None, "deleted, not there"
            else:
                assert (kind is EventType.MODIFIED) == (stored.key in reader.held), kind
                reader.held[stored.key] = stored.revision
        assert all(change.revision <= reached for change in changes)
        reader.position = reached
        return bool(changes)

    def seen(self, keep: str, revision: int) -> Told:
        found = (read(KIND, kv) for kv in self.states[revision].values())
        return {each.key: each.revision for each in found if each is not None and KEEPS[keep](each.resource)}

    # --- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def window_holds_the_state_of_its_revision(self) -> None:
        if hasattr(self, "window"):
            log = self.window.log
            state = self.states[log.revision]
            assert {each.key: each.revision for each in self.window.items()} == self.seen("all", log.revision)
            assert self.window.keys == len(state)
            assert len(log) <= log._max_changes
            assert log.bytes <= log._max_bytes

    @invariant()
    def a_reader_never_claims_more_than_it_was_told(self) -> None:
        """What it would carry in a bookmark: the state there is the state that it believes."""
        for reader in self.readers:
            if reader.known_here:
                assert reader.held == self.seen(reader.keep, reader.position)

    def in_a_gap(self, position: int) -> bool:
        return any(after < position < until for after, until in self.window.log._gaps)

    def teardown(self) -> None:
        if not hasattr(self, "window"):
            return
        for each in list(self.readers):
            try:
                while self.advance(each, 3):
                    pass
            except Expired:
                assert self.may_expire(each)
                continue
            # Who came from elsewhere, too: had it been in what this cache did not see, it would have expired.
            if each.position == self.window.log.revision:
                assert each.held == self.seen(each.keep, self.window.log.revision)


TestWindowAgainstHistory = WindowAgainstHistory.TestCase
TestWindowAgainstHistory.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
