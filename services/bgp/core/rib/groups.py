"""Update groups: peers of equal terms share one Adj-RIB-Out, and what is packed for one of them is packed for all.

A group keeps `out`, what its members are told when they have taken everything, and a row of batches, each the changes
between two moments: prefix -> what is told now, the last one when it changed twice. A member has a place in that row
and no more. A batch is packed when the first member comes to it; behind the slowest member nothing is kept, and
batches between which no member stands are merged, so a member that takes nothing costs at most one entry for a
prefix.

A new member first gets all of `out` as it is (members that come together share that, packed once), then goes on at
the end of the row. A member that changes groups, or that asks for a refresh, gets the same, with withdrawals of what
only the old group told.

One thing differs between members of a group: nobody is told what came from himself. So messages carry who their
prefixes came from and a member leaves his own out; where it had been told the same prefix from somebody else before,
that is remembered (`turned`) and it gets a withdrawal instead.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

from services.bgp.core.paths import Attributes, Nlri
from services.bgp.core.rib.outgoing import Export, Exporter, Out, Terms
from services.bgp.core.rib.path import NextHop, Path, Source
from services.bgp.core.wire.encode import encode_attributes, encode_end_of_rib, encode_reach, encode_unreach

NOBODY = Source("", remote=False)
"""Source of withdrawals that every member gets."""


class Batch:
    """Changes that follow each other. readers: members that have yet to begin it."""

    __slots__ = ("__weakref__", "changes", "messages", "readers", "turned")

    def __init__(self, changes: dict[Nlri, Out] | None = None) -> None:
        self.changes: dict[Nlri, Out] = {} if changes is None else changes
        self.turned: dict[Source, set[Nlri]] = {}  # source -> prefixes that others were the source of before
        self.messages: list[tuple[Source, bytes]] | None = None  # once packed
        self.readers = 0

    def turn(self, prefix: Nlri, source: Source) -> None:
        self.turned.setdefault(source, set()).add(prefix)

    def absorb(self, later: Batch) -> None:
        changes = self.changes
        for prefix in changes.keys() & later.changes.keys():
            if changes[prefix].source is not later.changes[prefix].source:
                self.turn(prefix, later.changes[prefix].source)
        changes.update(later.changes)
        for source, prefixes in later.turned.items():
            self.turned.setdefault(source, set()).update(prefixes)
        self.messages = None


class Member:
    """A peer's place: the rest of what it is being sent, batches of its own, then the row from `at` on."""

    __slots__ = ("at", "end_of_rib_due", "message", "messages", "own", "reading", "source")

    def __init__(self, source: Source, at: Batch) -> None:
        self.source = source
        self.at = at
        self.own: list[Batch] = []
        self.reading: Batch | None = None  # where `messages` come from, until they are all taken
        self.messages: list[tuple[Source, bytes]] = []
        self.message = 0
        self.end_of_rib_due = False


class Group:
    """Peers of equal terms in one family. `flush` of the tables calls `update` before anything is taken."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.out: dict[Nlri, Out] = {}
        self.members: dict[str, Member] = {}
        self.exporter: Exporter | None = None
        self._row: list[Batch] = [Batch()]  # the last one takes changes
        self._exports: WeakKeyDictionary[Path, Export] = WeakKeyDictionary()
        self._outs: WeakValueDictionary[tuple[Attributes, Source], Out] = WeakValueDictionary()
        self._withdrawn: WeakValueDictionary[Source, Out] = WeakValueDictionary()
        self._by_source: Counter[Source] | None = None  # prefixes of `out`, counted when somebody asks
        self._whole: ref[Batch] | None = None  # `out` as a batch, for new members, as long as nothing changes

    # --- changes in ---

    def configure(self, exporter: Exporter) -> None:
        """A new policy; the tables then call `update` with whatever it may concern."""
        self.exporter = exporter
        self._exports.clear()

    def forget(self, paths: Iterable[Path]) -> None:
        """Facts about these paths changed that export policy may have asked for."""
        for path in paths:
            self._exports.pop(path, None)

    def forget_by(self, next_hops: Set[NextHop]) -> None:
        """The same of every path by these: paths are few where prefixes are many."""
        self.forget([path for path in self._exports if path.next_hop in next_hops])

    def intern(self, attributes: Attributes, source: Source) -> Out:
        key = (attributes, source)
        out = self._outs.get(key)
        if out is None:
            out = self._outs[key] = Out(attributes, source)
        return out

    def export(self, path: Path) -> Export:
        export = self._exports.get(path)
        if export is None:
            assert self.exporter is not None
            export = self._exports[path] = self.exporter.export(path)
        return export

    def update(self, best: Mapping[Path | None, list[Nlri]]) -> None:
        """best: the prefixes that may have changed, by their best path; under None those that have none."""
        told, changes = self.out, self._row[-1].changes
        for path, prefixes in best.items():
            if not prefixes:
                continue
            export = self.export(path) if path is not None else None
            if export is not None and export.many is not None:
                news = export.many(prefixes)
            else:
                news = [export.out if export is not None else None] * len(prefixes)
            if told.keys().isdisjoint(prefixes) and changes.keys().isdisjoint(prefixes):  # nearly always at first
                if news.count(news[0]) == len(news):
                    fresh = dict.fromkeys(prefixes, news[0]) if news[0] is not None else {}
                else:
                    fresh = {prefix: new for prefix, new in zip(prefixes, news, strict=True) if new is not None}
                if fresh:
                    told.update(fresh)
                    changes.update(fresh)
                    self._changed()
                continue
            self._change(prefixes, news)

    def _changed(self) -> None:
        """What was made from `out` as a whole holds no more."""
        self._whole = self._by_source = None

    def _change(self, prefixes: Sequence[Nlri], news: Sequence[Out | None]) -> None:
        told, batch = self.out, self._row[-1]
        changes = batch.changes
        self._changed()
        gone = self._withdrawal(NOBODY)
        for prefix, new, old in zip(prefixes, news, map(told.get, prefixes), strict=True):
            if new is old:
                continue
            if new is not None:
                told[prefix] = new
                now = new
            else:
                assert old is not None
                del told[prefix]
                if gone.source is not old.source:
                    gone = self._withdrawal(old.source)
                now = gone
            before = changes.get(prefix)
            changes[prefix] = now
            source = now.source
            if (old is not None and old.source is not source) or (before is not None and before.source is not source):
                batch.turn(prefix, source)

    def _withdrawal(self, source: Source) -> Out:
        out = self._withdrawn.get(source)
        if out is None:
            out = self._withdrawn[source] = Out(None, source)
        return out

    def count(self, name: str) -> int:
        """How many prefixes a member is told in all."""
        if self._by_source is None:
            self._by_source = Counter(out.source for out in self.out.values())
        return len(self.out) - self._by_source[self.members[name].source]

    # --- members ---

    def join(self, source: Source, had: Iterable[Nlri] = ()) -> Member:
        """A member that has been told nothing, or `had` by its former group (withdrawn where we do not tell it)."""
        self._seal()
        member = Member(source, self._row[-1])
        member.at.readers += 1
        self.members[source.name] = member
        self._tell_all(member, had)
        return member

    def leave(self, name: str) -> set[Nlri]:
        """Returns every prefix that the member may have been told."""
        member = self.members.pop(name)
        had = set(self.out)
        for batch in (member.reading, *member.own, *self._row[self._row.index(member.at) :]):
            had.update(batch.changes if batch is not None else ())
        member.at.readers -= 1
        self._compact()
        return had

    def refresh(self, name: str) -> None:
        """Everything again (RFC 2918). What is still in the row comes after it and brings it up to date once more.
        Whoever asks again before it has begun to take the last answer gets that one."""
        if not self.members[name].own:
            self._tell_all(self.members[name], ())

    def _tell_all(self, member: Member, had: Iterable[Nlri]) -> None:
        whole = self._whole() if self._whole is not None else None
        if whole is None:
            whole = Batch(dict(self.out))
            self._whole = ref(whole)
        gone = [prefix for prefix in had if (out := self.out.get(prefix)) is None or out.source is member.source]
        if gone:
            whole = Batch(dict(self.out))
            whole.changes.update(dict.fromkeys(gone, self._withdrawal(NOBODY)))
        member.own.append(whole)

    # --- messages out ---

    def waiting(self, name: str) -> bool:
        member = self.members[name]
        return bool(
            member.messages
            or member.own
            or member.end_of_rib_due
            or member.at is not self._row[-1]
            or member.at.changes
        )

    def take(self, name: str, budget: int, sent: list[bytes]) -> int:
        """Append messages, at least `budget` octets of them or all there are; returns the octets."""
        member = self.members[name]
        taken = 0
        while taken < budget:
            if not member.messages and not self._next(member):
                break
            taken += self._read(member, budget - taken, sent)
        return taken

    def _next(self, member: Member) -> bool:
        """Begin what comes next; False: the member has everything."""
        if member.own:
            self._begin(member, member.own.pop(0))
        elif member.end_of_rib_due:
            member.end_of_rib_due = False
            member.messages, member.message = [(NOBODY, encode_end_of_rib(self.terms.family))], 0
        else:
            if member.at is self._row[-1]:
                if not member.at.changes:
                    return False
                self._seal()
            batch = member.at
            self._begin(member, batch)
            member.at = self._row[self._row.index(batch) + 1]
            batch.readers -= 1
            member.at.readers += 1
            self._compact()
        return True

    def _begin(self, member: Member, batch: Batch) -> None:
        if batch.messages is None:
            batch.messages = self._pack(batch.changes)
        source = member.source
        gone = [prefix for prefix in batch.turned.get(source, ()) if batch.changes[prefix].source is source]
        member.messages, member.reading = batch.messages, batch
        if gone:
            family, context = self.terms.family, self.terms.context
            own = [(NOBODY, message) for message in encode_unreach(family, gone, context)]
            member.messages = own + batch.messages

    def _read(self, member: Member, budget: int, sent: list[bytes]) -> int:
        messages, at, source = member.messages, member.message, member.source
        taken = 0
        while at < len(messages) and taken < budget:
            origin, message = messages[at]
            at += 1
            if origin is not source:
                sent.append(message)
                taken += len(message)
        member.message = at
        if at == len(messages):
            member.messages, member.message, member.reading = [], 0, None
        return taken

    def _pack(self, changes: Mapping[Nlri, Out]) -> list[tuple[Source, bytes]]:
        """Withdrawals first, then the prefixes of each set of attributes together."""
        family, context = self.terms.family, self.terms.context
        by_out: defaultdict[Out, list[Nlri]] = defaultdict(list)
        for prefix, out in changes.items():
            by_out[out].append(prefix)
        gone: list[tuple[Source, bytes]] = []
        told: list[tuple[Source, bytes]] = []
        for out, prefixes in by_out.items():
            if out.attributes is None:
                gone += [(out.source, message) for message in encode_unreach(family, prefixes, context)]
            else:
                block = encode_attributes(out.attributes, family, context)
                messages = encode_reach(block, out.attributes, family, prefixes, context)
                told += [(out.source, message) for message in messages]
        return gone + told

    def _seal(self) -> None:
        """From now on changes go to a new batch."""
        if self._row[-1].changes:
            self._row.append(Batch())
            self._compact()

    def _compact(self) -> None:
        """Drop what all have begun; merge a batch that no member begins with into the one before."""
        row = self._row
        while len(row) > 1 and row[0].readers == 0:
            row.pop(0)
        at = 0
        while at + 2 < len(row):
            if row[at + 1].readers == 0:
                row[at].absorb(row.pop(at + 1))
            else:
                at += 1
