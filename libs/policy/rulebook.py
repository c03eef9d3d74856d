"""The rules of what is active: compiled when something first becomes active on any node, dropped when it is idle
everywhere.

One book for policies, one for profiles; both draw on the same IP sets, which are active while any compiled rule refers
to them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from libs.policy.activity import Activity, Switch
from libs.policy.sets import SetSpec, SetTable

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

Compile = Callable[[K], tuple[V, dict[str, SetSpec]] | None]


class SetUse:
    """The sets that active rules refer to, and on which nodes. Collects which sets appeared and which lost their last
    user.
    """

    def __init__(self, table: SetTable) -> None:
        self.table = table
        self.on_nodes: Activity[str] = Activity()
        self.created: set[str] = set()
        self.deleted: set[str] = set()
        self._to_release: list[str] = []

    def take_up(self, specs: dict[str, SetSpec]) -> None:
        for spec in specs.values():
            if self.table.activate(spec):
                self.created.add(spec.id)

    def give_up(self, set_ids: frozenset[str]) -> None:
        """Released only at `settle`, so that a set which moves from one policy to another is not rebuilt."""
        self._to_release.extend(set_ids)

    def settle(self) -> None:
        for set_id in self._to_release:
            if self.table.deactivate(set_id):
                if set_id in self.created:
                    self.created.discard(set_id)
                else:
                    self.deleted.add(set_id)
        self._to_release.clear()


class RuleBook(Generic[K, V]):
    def __init__(self, compile_one: Compile[K, V], uses: SetUse) -> None:
        self.activity: Activity[K] = Activity()
        self.active: dict[K, V] = {}
        self._sets: dict[K, frozenset[str]] = {}
        self._stale: set[K] = set()
        self._compile = compile_one
        self._uses = uses

    def touch(self, key: K) -> None:
        """Its rules may be different from what was compiled."""
        self._stale.add(key)

    def flush(self) -> tuple[dict[K, V | None], list[Switch[K]]]:
        """Compile, drop and recompile; returns the changes of content and of activity by node."""
        switches = self.activity.take()
        changed: dict[K, V | None] = {}
        before: dict[K, frozenset[str]] = {}
        for key in self._stale.union(switch.thing for switch in switches):
            was_active = key in self.active
            if key not in self.activity:
                if was_active:
                    before[key] = self._sets.pop(key)
                    del self.active[key]
                    changed[key] = None
                    self._uses.give_up(before[key])
                continue
            if was_active and key not in self._stale:
                continue
            compiled = self._compile(key)
            if compiled is None:
                raise RuntimeError(f"{key} is active but does not exist")
            value, specs = compiled
            before[key] = self._sets.get(key, frozenset())
            if not was_active or self.active[key] != value:
                changed[key] = value
            self.active[key] = value
            self._sets[key] = frozenset(specs)
            self._uses.take_up(specs)
            self._uses.give_up(before[key])
        self._stale.clear()
        self._move_sets(switches, before)
        return changed, switches

    def _move_sets(self, switches: list[Switch[K]], before: dict[K, frozenset[str]]) -> None:
        """Count sets on nodes: where a rule set came, went, or stayed with other sets than before."""
        sets_on_nodes = self._uses.on_nodes
        switched = {(switch.node, switch.thing) for switch in switches}
        gained = [switch for switch in switches if switch.active]
        for node, key, _ in gained:
            sets_on_nodes.add(node, self._sets[key])
        for node, key, active in switches:
            if not active:
                sets_on_nodes.drop(node, before[key] if key in before else self._sets[key])
        for key, old in before.items():
            new = self._sets.get(key)
            if new is None or new == old:
                continue
            for node in self.activity.nodes_of(key):
                if (node, key) not in switched:
                    sets_on_nodes.add(node, new)
                    sets_on_nodes.drop(node, old)
