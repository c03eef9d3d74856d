"""The Loc-RIB: every path of every prefix, filed by prefix; and what was noted for the next decision.

A path of a peer is there as long as the peer stands by it, rejected ones too: so there is no second table for what came
in, and new filters judge the attributes as they were received. Each peer only keeps the set of its prefixes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import repeat

from services.bgp.core.paths import Family, Nlri, Reach, Unreach
from services.bgp.core.rib.decision import decide
from services.bgp.core.rib.path import Community, Path, Source
from services.bgp.core.rib.peers import Import, Peer
from services.bgp.core.rib.table import Table, insert, of_source, remove, remove_all


class LocRib:
    """dirty: prefixes whose paths have changed since somebody took them from there."""

    def __init__(self) -> None:
        self.tables: dict[Family, Table] = {family: {} for family in Family}
        self.dirty: dict[Family, dict[Nlri, None]] = {family: {} for family in Family}

    def insert(self, family: Family, prefix: Nlri, path: Path) -> None:
        insert(self.tables[family], prefix, path)
        self.dirty[family][prefix] = None

    def remove_local(self, family: Family, prefix: Nlri, source: Source) -> None:
        remove(self.tables[family], prefix, source, 0)
        self.dirty[family][prefix] = None

    def reach(self, peer: Peer, change: Reach) -> None:
        family, prefixes = change.family, change.prefixes
        table = self.tables[family]
        if (unrepeated := peer.unrepeated.get(family)) is not None:
            unrepeated.difference_update(zip(prefixes, change.path_ids or repeat(0), strict=False))
        if change.path_ids is not None:
            imports: dict[int, Import] = {}
            for prefix, path_id in zip(prefixes, change.path_ids, strict=True):
                found = imports.get(path_id)
                if found is None:
                    found = imports[path_id] = peer.admit(family, change.attributes, path_id)
                insert(table, prefix, found.judge(prefix))
        else:
            admitted = peer.admit(family, change.attributes)
            path = admitted.path
            if path is None:
                for prefix in prefixes:
                    insert(table, prefix, admitted.judge(prefix))
            elif table.keys().isdisjoint(prefixes):
                table.update(dict.fromkeys(prefixes, path))
            else:
                for prefix in prefixes:
                    insert(table, prefix, path)
        peer.prefixes[family].update(prefixes)
        self.dirty[family].update(dict.fromkeys(prefixes))

    def unreach(self, peer: Peer, change: Unreach) -> None:
        table, mine, dirty = self.tables[change.family], peer.prefixes[change.family], self.dirty[change.family]
        ids = change.path_ids if change.path_ids is not None else [0] * len(change.prefixes)
        for prefix, path_id in zip(change.prefixes, ids, strict=True):
            if prefix in mine:
                if remove(table, prefix, peer, path_id):
                    mine.discard(prefix)
                dirty[prefix] = None

    def sweep(self, peer: Peer, family: Family) -> None:
        """Take what the peer has not said again on this session."""
        peer.stale_until.pop(family, None)
        table, mine, dirty = self.tables[family], peer.prefixes[family], self.dirty[family]
        stale = [prefix for prefix in mine if any(path.stale for path in of_source(table, prefix, peer))]
        for prefix in stale:
            if remove_all(table, prefix, peer, keep=peer.generation):
                mine.discard(prefix)
        dirty.update(dict.fromkeys(stale))

    def remove_all(self, peer: Peer, family: Family) -> None:
        peer.stale_until.pop(family, None)
        table, mine = self.tables[family], peer.prefixes[family]
        for prefix in mine:
            if isinstance(table[prefix], list):
                remove_all(table, prefix, peer)
            else:
                del table[prefix]
        self.dirty[family].update(dict.fromkeys(mine))
        peer.prefixes[family] = set()

    def judge_again(self, peer: Peer, family: Family, only: Iterable[Nlri] | None = None) -> None:
        """Import policy has changed: from the attributes as received."""
        table = self.tables[family]
        prefixes = list(peer.prefixes[family]) if only is None else [p for p in only if p in peer.prefixes[family]]
        again: dict[Path, Import] = {}

        def judged(path: Path, prefix: Nlri) -> Path:
            found = again.get(path)
            if found is None:
                found = again[path] = peer.admit(family, path.received, path.path_id, path.generation)
            new = found.path or found.judge(prefix)
            if path.llgr_begun and not new.llgr_begun:
                new.begin_llgr()
            return new

        for prefix in prefixes:
            entry = table[prefix]
            if isinstance(entry, Path):
                table[prefix] = judged(entry, prefix)
            else:
                for at, path in enumerate(entry):
                    if path.source is peer:
                        entry[at] = judged(path, prefix)
        self.dirty[family].update(dict.fromkeys(prefixes))

    def begin_llgr(self, peer: Peer, family: Family) -> set[Path]:
        """RFC 9494 section 4.2: paths that forbid it go, the others, returned, become the last choice."""
        table, mine = self.tables[family], peer.prefixes[family]
        self.dirty[family].update(dict.fromkeys(mine))
        begun: set[Path] = set()
        for prefix in list(mine):
            for path in tuple(of_source(table, prefix, peer)):
                if Community.NO_LLGR in path.attributes.communities:
                    if remove(table, prefix, peer, path.path_id):
                        mine.discard(prefix)
                elif path not in begun:
                    begun.add(path)
                    path.begin_llgr()
        return begun

    def begin_refresh(self, peer: Peer, family: Family) -> None:
        table = self.tables[family]
        peer.unrepeated[family] = {
            (prefix, path.path_id) for prefix in peer.prefixes[family] for path in of_source(table, prefix, peer)
        }

    def end_refresh(self, peer: Peer, family: Family) -> None:
        table, mine, dirty = self.tables[family], peer.prefixes[family], self.dirty[family]
        for prefix, path_id in peer.unrepeated.pop(family, ()):
            if prefix in mine:
                if remove(table, prefix, peer, path_id):
                    mine.discard(prefix)
                dirty[prefix] = None

    def accepted(self, peer: Peer, family: Family) -> int:
        """How many paths of a peer import policy has not rejected. Written for a whole table: it is counted on the
        event loop."""
        count = 0
        for entry in map(self.tables[family].__getitem__, peer.prefixes[family]):
            if isinstance(entry, Path):
                count += entry.rejected is None
            else:
                count += sum(path.source is peer and path.rejected is None for path in entry)
        return count

    def best(self, family: Family, prefixes: Iterable[Nlri]) -> dict[Path | None, list[Nlri]]:
        """Prefixes by their best path, under None those that have none that could be used."""
        found: defaultdict[Path | None, list[Nlri]] = defaultdict(list)
        prefixes = list(prefixes)
        last: Path | None = None
        append = found[None].append
        decided: dict[tuple[Path, ...], Path | None] = {}  # the same few paths compete for many prefixes
        for prefix, entry in zip(prefixes, map(self.tables[family].get, prefixes), strict=True):
            if isinstance(entry, list):
                competing = tuple(entry)
                if competing not in decided:
                    decided[competing] = next(iter(decide(competing)), None)
                entry = decided[competing]
            if entry is not last:  # neighbours mostly have the same
                last, append = entry, found[entry].append
            append(prefix)
        for path in [path for path in found if path is not None and not path.usable]:
            found[None] += found.pop(path)
        return found
