"""Which BGPPeers each node has, and whose target it is: selectors over nodes' labels, evaluated once for all nodes."""

from __future__ import annotations

from libs.policy.bgp_inputs import Selection
from libs.policy.index import Entry, LabelIndex

Selected = tuple[tuple[str, ...], tuple[str, ...]]
"""(peers that the node has other than those of all nodes, peers of which it is a target), both sorted."""


class NodeSelection:
    def __init__(self) -> None:
        self._index = LabelIndex()
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []  # by number; numbers are not used again, nodes come and go seldom
        self._chosen: dict[str, Selection] = {}
        self._entries: dict[str, tuple[Entry | None, Entry | None]] = {}
        self._users: dict[Entry, set[tuple[str, bool]]] = {}  # (peer, whether as target)
        self._named: dict[str, set[str]] = {}  # node -> peers that name it
        self._dirty: set[str] = set()

    def put_node(self, name: str, labels: dict[str, str] | None) -> None:
        """None: gone."""
        number = self._numbers.get(name)
        if labels is None:
            if number is not None:
                del self._numbers[name]
                self._index.drop_item(number)
        else:
            if number is None:
                number = self._numbers[name] = len(self._names)
                self._names.append(name)
            self._index.put_item(number, labels)
        self._dirty.add(name)

    def put_peer(self, peer: str, chosen: Selection | None) -> None:
        """None: gone, or means nothing."""
        old = self._chosen.get(peer)
        if old == chosen:
            return
        if old is not None:
            del self._chosen[peer]
            for target, entry in enumerate(self._entries.pop(peer)):
                if entry is not None:
                    self._release(entry, (peer, bool(target)))
            if old.node:
                self._named[old.node].discard(peer)
                self._dirty.add(old.node)
        if chosen is not None:
            self._chosen[peer] = chosen
            nodes, targets = (
                self._claim(one, (peer, index == 1)) for index, one in enumerate((chosen.nodes, chosen.targets))
            )
            self._entries[peer] = (nodes, targets)
            if chosen.node:
                self._named.setdefault(chosen.node, set()).add(peer)
                self._dirty.add(chosen.node)

    def has(self, node: str, peer: str) -> bool:
        """Is this one of the node's peers? As of the last flush's changes and later ones alike."""
        chosen = self._chosen.get(peer)
        if chosen is None:
            return False
        if chosen.node or chosen.nodes is None:
            return chosen.node in ("", node)
        entry, number = self._entries[peer][0], self._numbers.get(node)
        return entry is not None and number is not None and number in entry.matched

    def flush(self) -> dict[str, Selected | None]:
        """Nodes whose part may be different now; None for one that is gone."""
        for entry in self._index.take_changes():
            entry.flipped.clear()  # of nodes that were put, which are dirty anyway
        dirty, self._dirty = self._dirty, set()
        return {name: self._selected(name) for name in dirty}

    def _selected(self, name: str) -> Selected | None:
        number = self._numbers.get(name)
        if number is None:
            return None
        users = [user for entry in self._index.entries_of(number) for user in self._users[entry]]
        peers = {peer for peer, target in users if not target} | self._named.get(name, set())
        return tuple(sorted(peers)), tuple(sorted(peer for peer, target in users if target))

    def _claim(self, selector: object, user: tuple[str, bool]) -> Entry | None:
        if selector is None:
            return None
        entry = self._index.add_selector(selector)  # type: ignore[arg-type]
        self._users.setdefault(entry, set()).add(user)
        self._dirty.update(self._names[number] for number in entry.matched)
        return entry

    def _release(self, entry: Entry, user: tuple[str, bool]) -> None:
        self._dirty.update(self._names[number] for number in entry.matched)
        users = self._users[entry]
        users.discard(user)
        if not users:
            del self._users[entry]
        self._index.drop_selector(entry)
