"""One value per identity, whatever keys claim it.

Two keys of the datastore can mean the same thing (a policy under its old and its new name, two pools with one CIDR
after a raw write). Which one counts must not depend on the order of arrival, so the smallest key does.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Claims(Generic[V]):
    def __init__(self) -> None:
        self._single: dict[Hashable, tuple[str, V]] = {}
        self._contested: dict[Hashable, dict[str, V]] = {}

    def claim(self, identity: Hashable, key: str, value: V) -> None:
        contest = self._contested.get(identity)
        if contest is not None:
            contest[key] = value
            return
        holder = self._single.get(identity)
        if holder is None or holder[0] == key:
            self._single[identity] = (key, value)
            return
        self._contested[identity] = {holder[0]: holder[1], key: value}
        del self._single[identity]

    def release(self, identity: Hashable, key: str) -> None:
        contest = self._contested.get(identity)
        if contest is None:
            self._single.pop(identity, None)
            return
        contest.pop(key, None)
        if len(contest) == 1:
            self._single[identity] = contest.popitem()
            del self._contested[identity]

    def get(self, identity: Hashable) -> V | None:
        holder = self._single.get(identity)
        if holder is not None:
            return holder[1]
        contest = self._contested.get(identity)
        return contest[min(contest)] if contest else None
