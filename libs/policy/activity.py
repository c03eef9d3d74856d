"""Who needs what: counts, by node, of the things that a node's endpoints refer to, and the nodes of each thing."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)


class Switch(NamedTuple, Generic[K]):
    """A thing that became active (or idle) on a node."""

    node: str
    thing: K
    active: bool


class Activity(Generic[K]):
    """Reference counts of things by node. A thing is active on a node while its count there is above zero."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[K, int]] = {}
        self._nodes: dict[K, set[str]] = {}
        self._before: dict[tuple[str, K], bool] = {}

    def add(self, node: str, things: Iterable[K]) -> None:
        for thing in things:
            counts = self._counts.setdefault(node, {})
            count = counts.get(thing, 0)
            counts[thing] = count + 1
            if not count:
                self._before.setdefault((node, thing), False)
                self._nodes.setdefault(thing, set()).add(node)

    def drop(self, node: str, things: Iterable[K]) -> None:
        for thing in things:
            counts = self._counts[node]
            count = counts[thing] - 1
            if count:
                counts[thing] = count
                continue
            del counts[thing]
            self._before.setdefault((node, thing), True)
            nodes = self._nodes[thing]
            nodes.discard(node)
            if not nodes:
                del self._nodes[thing]
            if not counts:
                del self._counts[node]

    def take(self) -> list[Switch[K]]:
        """What became active or idle where, since the last call; what went to and fro is not told."""
        switches = [
            Switch(node, thing, not before)
            for (node, thing), before in self._before.items()
            if (thing in self._counts.get(node, ())) is not before
        ]
        self._before.clear()
        return switches

    def on(self, node: str) -> Iterable[K]:
        return self._counts.get(node, {}).keys()

    def nodes_of(self, thing: K) -> frozenset[str] | set[str]:
        """The nodes where a thing is active; do not keep or change it."""
        return self._nodes.get(thing, frozenset())

    def __contains__(self, thing: K) -> bool:
        return thing in self._nodes
