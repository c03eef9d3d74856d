"""What watchers are fed from: one kind's objects at a revision, and the changes that led there, as far back as fits.

Flows in: what etcd's watch or a new listing says of each key (`Edit`). Flows out: `Change`s, which any number of
readers take by position; a position is a revision, so a reader costs nothing here and one that is too slow finds its
changes gone (`Expired`) instead of making others wait.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from libs.model.codec import encode
from libs.model.kinds import Kind
from libs.resources import codec
from libs.store.api import Event, KeyValue
from services.apiserver.core.ports import Change, Keep, Stored

_OVERHEAD_BYTES = 1_000
"""Of a change beside its JSON: the decoded objects, roughly."""


class Expired(Exception):
    """The changes after the position are not all here. oldest: the first position from which they are."""

    def __init__(self, oldest: int) -> None:
        super().__init__(f"changes are kept since revision {oldest}")
        self.oldest = oldest


class EventType(StrEnum):
    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True)
class Edit:
    """A key as it is since `revision`. created: revision of its creation, 0 when it is gone. stored: None when it is
    gone, and for a value that nobody can read.
    """

    key: str
    revision: int
    created: int = 0
    stored: Stored | None = None


def read(kind: Kind, kv: KeyValue) -> Stored | None:
    """None for a value that cannot be read, which all readers skip."""
    resource = codec.readable(kind.kind, kv)
    return None if resource is None else Stored(kv.key, resource, encode(resource), kv.mod_revision)


def stamped(stored: Stored, revision: int) -> Stored:
    """The same object, shown as of another revision."""
    resource = codec.with_metadata(stored.resource, resource_version=str(revision))
    return Stored(stored.key, resource, encode(resource), revision)


def edit(kind: Kind, key: str, kv: KeyValue | None, revision: int) -> Edit:
    return Edit(key, revision) if kv is None else Edit(key, revision, kv.create_revision, read(kind, kv))


def change_of(kind: Kind, event: Event) -> Change | None:
    """From an event alone, without the state before it; None when readers see nothing of it.

    Raises Expired when etcd no longer knew what had been there before.
    """
    existed = event.kv is None or event.kv.version > 1
    if existed and event.previous is None:
        raise Expired(event.revision)
    before = read(kind, event.previous) if event.previous is not None else None
    after = read(kind, event.kv) if event.kv is not None else None
    if before is None and after is None:
        return None
    return Change(event.revision, None if before is None else stamped(before, event.revision), after)


def told(change: Change, keep: Keep) -> tuple[EventType, Stored] | None:
    """What a watcher hears of a change: one that leaves its selection is deleted to it, one that enters is added."""
    had = change.before is not None and keep(change.before.resource)
    if change.after is not None and keep(change.after.resource):
        return (EventType.MODIFIED if had else EventType.ADDED), change.after
    if had and change.before is not None:
        return EventType.DELETED, change.before
    return None


class Log:
    """Recent changes in order of revision, bounded in number and bytes.

    floor: readers at this position or later find all that follows. revision: up to which everything is in.
    """

    def __init__(self, revision: int, *, max_changes: int, max_bytes: int) -> None:
        if max_changes < 1 or max_bytes < 1:
            raise ValueError("a window holds one change at least")
        self.floor = self.revision = revision
        self.bytes = 0
        self._max_changes, self._max_bytes = max_changes, max_bytes
        self._changes: list[Change] = []
        self._revisions: list[int] = []  # of _changes, for bisection
        self._gaps: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._changes)

    def append(self, changes: Iterable[Change], revision: int) -> None:
        """changes: in order. Those that the log has already passed by `advance` are left out."""
        for change in changes:
            if change.revision > self.revision:
                self._changes.append(change)
                self._revisions.append(change.revision)
                self.bytes += _size(change)
        self.advance(revision)
        self._trim()

    def advance(self, revision: int) -> None:
        """Nothing (more) happened up to `revision`."""
        self.revision = max(self.revision, revision)

    def note_gap(self, after: int, until: int) -> None:
        """What happened between was not seen one by one; the changes that are appended next lead from `after` to
        `until`. A reader in between cannot use them: it may know an object that came and went unseen.
        """
        self._gaps.append((after, until))

    def since(self, position: int, limit: int) -> tuple[Sequence[Change], int]:
        """The next changes after `position`, and the position of a reader who was told them. `limit`, or a few more: no
        revision is torn, and no group of changes that a listing found. Raises Expired.
        """
        if position < self.floor or any(after < position < until for after, until in self._gaps):
            raise Expired(self.floor)
        start = bisect_right(self._revisions, position)
        end = min(start + limit, len(self._changes))
        while 0 < end < len(self._changes) and self._revisions[end] == self._revisions[end - 1]:
            end += 1
        if end == len(self._changes):
            return self._changes[start:], max(position, self.revision)
        reached = self._revisions[end - 1]
        for after, until in self._gaps:
            if after < reached < until:
                end, reached = bisect_right(self._revisions, until), until
        return self._changes[start:end], reached

    def _trim(self) -> None:
        drop = 0
        while len(self._changes) - drop > self._max_changes or self.bytes > self._max_bytes:
            self.bytes -= _size(self._changes[drop])
            drop += 1
        if drop:
            self.floor = self._revisions[drop - 1]
            del self._changes[:drop], self._revisions[:drop]
            self._gaps = [gap for gap in self._gaps if gap[1] > self.floor]


def _size(change: Change) -> int:
    sides = [side for side in (change.before, change.after) if side is not None]
    return sum(len(side.json) for side in sides) + _OVERHEAD_BYTES


def _free(count: int, after: int, until: int, used: set[int]) -> list[int]:
    """The last `count` revisions in that span that are not used; the first repeated where there are not enough."""
    span = range(until, max(after, until - count - len(used)), -1)
    found = [moment for moment in span if moment not in used][:count] or [until] * min(1, count)
    return [*found[-1:] * (count - len(found)), *found[::-1]]


class Window:
    """Everything of one kind, and its log. built_in: objects that are always there and never stored."""

    def __init__(self, revision: int = 0, *, max_changes: int, max_bytes: int, built_in: Sequence[Stored] = ()) -> None:
        self._max_changes, self._max_bytes = max_changes, max_bytes
        self._built_in = {stored.key: stored for stored in built_in}
        self._sorted: Sequence[Stored] | None = None
        self.edits = 0  # grows with each change of what etcd holds, readable or not
        self.reset((), revision)

    @property
    def keys(self) -> int:
        """How many etcd has, the unreadable ones included."""
        return len(self._keys)

    def has(self, key: str, revision: int) -> Stored | None:
        """The object, if it is of that revision."""
        found = self._state.get(key)
        return found if found is not None and found.revision == revision else None

    def items(self) -> Sequence[Stored]:
        """Sorted by key; the same sequence until something changes."""
        if self._sorted is None:
            self._sorted = tuple(self._state[key] for key in sorted(self._state))
        return self._sorted

    def reset(self, edits: Iterable[Edit], revision: int) -> None:
        """Begin anew with a listing. No reader of before can go on."""
        self.log = Log(revision, max_changes=self._max_changes, max_bytes=self._max_bytes)
        self._state: dict[str, Stored] = dict(self._built_in)
        self._keys: set[str] = set()
        for each in edits:
            self._take(each)
        self._touched()

    def apply(self, edits: Iterable[Edit], revision: int) -> list[Change]:
        """edits: in order of revision, none above `revision`, which is complete with them. Returns what changed."""
        changes = [change for each in edits if (change := self._change_of(each)) is not None]
        self.log.append(changes, revision)
        return changes

    def resync(self, edits: Sequence[Edit], revision: int) -> list[Change]:
        """edits: all that there is, by a listing at `revision`, of the same history. Readers who know all up to now go
        on with what differs.

        The moment of a deletion is forgotten. Each gets a revision of its own among those that passed unseen, as late
        as may be: a client that loses its connection between two would miss the second if both had the same.
        """
        after = self.log.revision
        changed = [each for each in edits if self.has(each.key, each.revision) is None]
        replaced = [
            Edit(each.key, each.created - 1)
            for each in changed
            if (before := self._state.get(each.key)) is not None and each.created > before.revision
        ]
        gone = sorted(self._keys - {each.key for each in edits})
        moments = _free(len(gone), after, revision, {each.revision for each in changed})
        deleted = [Edit(key, moment) for key, moment in zip(gone, moments, strict=True)]
        self.log.note_gap(after, revision)
        return self.apply(sorted([*replaced, *changed, *deleted], key=lambda each: each.revision), revision)

    def _change_of(self, each: Edit) -> Change | None:
        before = self._state.get(each.key)
        self._take(each)
        if each.key in self._built_in or (before is None and each.stored is None):
            return None
        return Change(each.revision, None if before is None else stamped(before, each.revision), each.stored)

    def _take(self, each: Edit) -> None:
        if each.created:
            self._keys.add(each.key)
        else:
            self._keys.discard(each.key)
        if each.key not in self._built_in:
            if each.stored is not None:
                self._state[each.key] = each.stored
            else:
                self._state.pop(each.key, None)
        self._touched()

    def _touched(self) -> None:
        self.edits += 1
        self._sorted = None
