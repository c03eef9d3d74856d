"""The label index: which items does a selector match, kept up to date while items, profiles and selectors come and go.

In: items (endpoints and network sets) under small dense numbers, each with its own labels and the names of its parents
(profiles, whose labels it inherits); the labels of parents; selectors. Out: for every selector the bitmap of the items
that it matches, and what changed in it since the last look. One index serves both questions of policy: which policies
select this endpoint, and which endpoints are in this IP set.

Two ways lead to an answer, and both must give the same:
- a new selector is evaluated over bitmaps (label value -> items), which costs microseconds whatever the number of
  items;
- a changed item is tested by the closures of the few selectors that it could match. Candidates come from the
  restriction index: every selector is filed under two label values that it cannot match without (failing that, under
  one, or under one label name). Two, because nearly every selector of a namespaced policy asks for its namespace.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import TypeVar

from pyroaring import BitMap

from libs.model import selector as sel
from libs.model.selector import Labels, Selector

K = TypeVar("K", bound=Hashable)
Pair = tuple[str, str]  # label and value

_EMPTY_LABELS: dict[str, str] = {}


class Entry:
    """One selector of the index. `matched` is live: copy it to keep it. `flipped` are the items whose membership
    changed since `take_changes`, an item that left and came back not among them. `users` counts those who asked for the
    selector."""

    __slots__ = ("filed_under", "flipped", "matched", "matches", "selector", "users")

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self.matches = selector.matches
        self.matched = BitMap()
        self.flipped = BitMap()
        self.users = 0
        self.filed_under: list[Pair] | str | None = None  # one or two label values, or a label; None: not filed


class _Shelf:
    """Selectors that need one label value: `entries` nothing more (that could be filed), the others a second one."""

    __slots__ = ("entries", "second")

    def __init__(self) -> None:
        self.entries: dict[Entry, None] = {}
        self.second: dict[Pair, dict[Entry, None]] = {}


class _Item:
    __slots__ = ("labels", "parents")

    def __init__(self, labels: Labels, parents: tuple[str, ...]) -> None:
        self.labels = labels
        self.parents = parents


class LabelIndex:
    def __init__(self) -> None:
        self._items: dict[int, _Item] = {}
        self._all = BitMap()
        self._parents: dict[str, Labels] = {}
        self._children: dict[str, BitMap] = {}
        self._values: dict[str, dict[str, BitMap]] = {}  # label -> value -> items
        self._present: dict[str, BitMap] = {}  # label -> items that have it
        self._entries: dict[str, Entry] = {}  # canonical text -> entry
        self._by_value: dict[Pair, _Shelf] = {}
        self._by_label: dict[str, dict[Entry, None]] = {}
        self._anywhere: dict[Entry, None] = {}
        self._changed: dict[Entry, None] = {}

    # --- items and parents --------------------------------------------------------------------------------------------

    def put_item(self, number: int, labels: Labels, parents: tuple[str, ...] = ()) -> None:
        """Add or replace an item. Of a label's values its own wins, then that of the first parent that has one."""
        old = self._items.get(number)
        if old is not None and old.labels == labels and old.parents == parents:
            return
        before = None if old is None else self._effective(old)
        if old is None or old.parents != parents:
            for parent in () if old is None else old.parents:
                self._forget_child(parent, number)
            for parent in parents:
                self._children.setdefault(parent, BitMap()).add(number)
        item = self._items[number] = _Item(labels, parents)
        self._reindex(number, before, self._effective(item))

    def drop_item(self, number: int) -> None:
        item = self._items.pop(number, None)
        if item is None:
            return
        for parent in item.parents:
            self._forget_child(parent, number)
        self._reindex(number, self._effective(item), None)

    def put_parent(self, name: str, labels: Labels) -> None:
        """Set the labels that children of `name` inherit; empty labels are the same as no such parent."""
        old = self._parents.get(name, _EMPTY_LABELS)
        if old == labels:
            return
        children = [(number, self._effective(self._items[number])) for number in self._children.get(name, ())]
        if labels:
            self._parents[name] = labels
        else:
            self._parents.pop(name, None)
        for number, before in children:
            self._reindex(number, before, self._effective(self._items[number]))

    def labels_of(self, number: int) -> Mapping[str, str]:
        """The item's labels, inherited ones included."""
        return self._effective(self._items[number])

    def _forget_child(self, parent: str, number: int) -> None:
        children = self._children.get(parent)
        if children is not None:
            children.discard(number)
            if not children:
                del self._children[parent]

    def _effective(self, item: _Item) -> Labels:
        merged: dict[str, str] | None = None
        for parent in reversed(item.parents):
            inherited = self._parents.get(parent)
            if inherited:
                merged = {**merged, **inherited} if merged else dict(inherited)
        if merged is None:
            return item.labels
        merged.update(item.labels)
        return merged

    def _reindex(self, number: int, before: Labels | None, after: Labels | None) -> None:
        if before is None:
            self._all.add(number)
        elif after is None:
            self._all.discard(number)
        old = _EMPTY_LABELS if before is None else before
        new = _EMPTY_LABELS if after is None else after
        if before is not None and after is not None and old == new:
            return
        old_pairs, new_pairs = old.items(), new.items()
        for pair in old_pairs:
            if pair not in new_pairs:
                self._unfile(number, *pair)
        for pair in new_pairs:
            if pair not in old_pairs:
                self._file(number, *pair)
        # Every selector that matched `old` is filed under its labels, every one that will match `new` under those.
        for pair in old_pairs:
            shelf = self._by_value.get(pair)
            if shelf is not None:
                self._test(number, shelf.entries, after)
                for other in old_pairs if shelf.second else ():
                    self._test(number, shelf.second.get(other), after)
            self._test(number, self._by_label.get(pair[0]), after)
        for pair in new_pairs:
            shelf = self._by_value.get(pair)
            if shelf is not None:
                fresh = pair not in old_pairs
                if fresh:
                    self._test(number, shelf.entries, after)
                for other in new_pairs if shelf.second else ():
                    if fresh or other not in old_pairs:
                        self._test(number, shelf.second.get(other), after)
            if pair[0] not in old:
                self._test(number, self._by_label.get(pair[0]), after)
        self._test(number, self._anywhere, after)

    def _test(self, number: int, bucket: dict[Entry, None] | None, labels: Labels | None) -> None:
        for entry in bucket or ():
            now = labels is not None and entry.matches(labels)
            if now is not (number in entry.matched):
                self._flip(entry, number, now)

    def _flip(self, entry: Entry, number: int, now: bool) -> None:
        if now:
            entry.matched.add(number)
        else:
            entry.matched.discard(number)
        if number in entry.flipped:
            entry.flipped.discard(number)
        else:
            entry.flipped.add(number)
        self._changed[entry] = None

    def _file(self, number: int, label: str, value: str) -> None:
        values = self._values.setdefault(label, {})
        items = values.get(value)
        if items is None:
            items = values[value] = BitMap()
        items.add(number)
        present = self._present.get(label)
        if present is None:
            present = self._present[label] = BitMap()
        present.add(number)

    def _unfile(self, number: int, label: str, value: str) -> None:
        values = self._values[label]
        values[value].discard(number)
        if not values[value]:
            del values[value]
            if not values:
                del self._values[label]
        present = self._present[label]
        present.discard(number)  # a new value of the same label brings it back
        if not present:
            del self._present[label]

    # --- selectors ----------------------------------------------------------------------------------------------------

    def add_selector(self, selector: Selector) -> Entry:
        """The entry of a selector, evaluated. Asked for n times it must be dropped n times. A new entry starts with no
        changes: its caller reads `matched`."""
        entry = self._entries.get(selector.canonical)
        if entry is None:
            entry = self._entries[selector.canonical] = Entry(selector)
            entry.matched = BitMap(self.evaluate(selector.root))
            self._file_entry(entry)
        entry.users += 1
        return entry

    def drop_selector(self, entry: Entry) -> None:
        entry.users -= 1
        if entry.users:
            return
        del self._entries[entry.selector.canonical]
        self._changed.pop(entry, None)
        self._unfile_entry(entry)

    def take_changes(self) -> list[Entry]:
        """Entries whose `flipped` is worth a look. The caller clears each `flipped` when it is done with it."""
        changed = [entry for entry in self._changed if entry.flipped]
        self._changed.clear()
        return changed

    def entries_of(self, number: int) -> Iterator[Entry]:
        """The selectors that match an item, in no particular order."""
        labels = self._effective(self._items[number])
        for pair in labels.items():
            shelf = self._by_value.get(pair)
            if shelf is not None:
                for entry in shelf.entries:
                    if number in entry.matched:
                        yield entry
                for other in labels.items() if shelf.second else ():
                    for entry in shelf.second.get(other, ()):
                        if number in entry.matched:
                            yield entry
            for entry in self._by_label.get(pair[0], ()):
                if number in entry.matched:
                    yield entry
        for entry in self._anywhere:
            if number in entry.matched:
                yield entry

    def _file_entry(self, entry: Entry) -> None:
        """File a selector under the two rarest values it needs, or the one, else under the rarest label, else anywhere.

        An `in` with several values would need several places, so it counts as "the label is present". A selector that
        contradicts itself matches nothing, ever, and is filed nowhere.
        """
        pairs: list[tuple[int, Pair]] = []
        labels: list[tuple[int, str]] = []
        for key, restriction in entry.selector.restrictions.items():
            if restriction.values == ():
                return
            if restriction.absent:
                continue
            labels.append((len(self._present.get(key, ())), key))
            if restriction.values is not None and len(restriction.values) == 1:
                (value,) = restriction.values
                pairs.append((len(self._values.get(key, {}).get(value, ())), (key, value)))
        if pairs:
            entry.filed_under = place = [pair for _, pair in sorted(pairs)[:2]]
            shelf = self._by_value.setdefault(place[0], _Shelf())
            group = shelf.entries if len(place) == 1 else shelf.second.setdefault(place[1], {})
            group[entry] = None
        elif labels:
            entry.filed_under = label = min(labels)[1]
            self._by_label.setdefault(label, {})[entry] = None
        else:
            self._anywhere[entry] = None

    def _unfile_entry(self, entry: Entry) -> None:
        place = entry.filed_under
        entry.filed_under = None
        if isinstance(place, list):
            shelf = self._by_value[place[0]]
            if len(place) == 1:
                del shelf.entries[entry]
            else:
                _remove(shelf.second, place[1], entry)
            if not shelf.entries and not shelf.second:
                del self._by_value[place[0]]
        elif place is not None:
            _remove(self._by_label, place, entry)
        else:
            self._anywhere.pop(entry, None)

    def evaluate(self, node: sel.Node) -> BitMap:
        """The items that a tree matches. The result may be one of the index's own bitmaps: copy before changing it."""
        match node:
            case sel.All() | sel.Global():
                return self._all
            case sel.Has(key):
                return self._present.get(key, BitMap())
            case sel.Equal(key, value):
                return self._values.get(key, {}).get(value, BitMap())
            case sel.NotEqual(key, value):
                return self._all - self._values.get(key, {}).get(value, BitMap())
            case sel.In(key, values):
                return self._with_values(key, values)
            case sel.NotIn(key, values):
                return self._all - self._with_values(key, values)
            case sel.Contains(key) | sel.StartsWith(key) | sel.EndsWith(key):
                test = sel.text_test(node)
                return BitMap().union(*(items for value, items in self._values.get(key, {}).items() if test(value)))
            case sel.Not(operand):
                return self._all - self.evaluate(operand)
            case sel.Or(operands):
                return BitMap().union(*map(self.evaluate, operands))
            case sel.And(operands):
                return self._evaluate_and(operands)

    def _evaluate_and(self, operands: tuple[sel.Node, ...]) -> BitMap:
        """Positive terms first, smallest first; then what negative terms name is taken away, without building
        complements.
        """
        positive: list[BitMap] = []
        negative: list[BitMap] = []
        for operand in operands:
            match operand:
                case sel.Not(inner):
                    negative.append(self.evaluate(inner))
                case sel.NotEqual(key, value):
                    negative.append(self._values.get(key, {}).get(value, BitMap()))
                case sel.NotIn(key, values):
                    negative.append(self._with_values(key, values))
                case _:
                    positive.append(self.evaluate(operand))
        positive.sort(key=len)
        result: BitMap = BitMap(positive[0] if positive else self._all)
        for items in positive[1:]:
            result &= items
        for items in negative:
            result -= items
        return result

    def _with_values(self, key: str, values: tuple[str, ...]) -> BitMap:
        have = self._values.get(key)
        return BitMap().union(*(have[value] for value in values if value in have)) if have else BitMap()


def _remove(groups: dict[K, dict[Entry, None]], group: K, entry: Entry) -> None:
    del groups[group][entry]
    if not groups[group]:
        del groups[group]
