"""Turns what the parts of the calculation changed in a flush into `Changes`, node by node."""

from __future__ import annotations

from typing import Any

from libs.policy.changes import Changes, IPSetChange, NodeChange
from libs.policy.output import Host, Workload, WorkloadKey
from libs.policy.rulebook import RuleBook, SetUse
from libs.policy.sets import SetDelta


class _Draft:
    """A NodeChange in the making. `lists` are its sets, by field."""

    __slots__ = ("hosts", "lists", "workloads")

    def __init__(self) -> None:
        self.workloads: dict[WorkloadKey, Workload | None] = {}
        self.hosts: dict[str, Host | None] = {}
        self.lists: dict[str, set[Any]] = {}

    def note(self, field: str, thing: object) -> None:
        self.lists.setdefault(field, set()).add(thing)

    def finish(self) -> NodeChange:
        lists = {field: frozenset(things) for field, things in self.lists.items()}
        return NodeChange(workloads=self.workloads, hosts=self.hosts, **lists)


class Report:
    """Of one flush. Filled while it goes on; `finish` ends it."""

    def __init__(self) -> None:
        self._drafts: dict[str, _Draft] = {}
        self._refused: dict[str, str] = {}

    def workload(self, node: str, key: WorkloadKey, value: Workload | None) -> None:
        self._draft(node).workloads[key] = value

    def host(self, node: str, key: str, value: Host | None) -> None:
        self._draft(node).hosts[key] = value

    def refused(self, key: str, reason: str) -> None:
        self._refused[key] = reason

    def finish(
        self,
        policies: RuleBook[Any, Any],
        profiles: RuleBook[Any, Any],
        uses: SetUse,
        deltas: dict[str, SetDelta],
        tables: dict[str, Any],
    ) -> Changes:
        """Flush both books and the sets, which makes their state current. deltas: what happened to existing sets."""
        changed_policies = self._book(policies, "policies")
        changed_profiles = self._book(profiles, "profiles")
        uses.settle()
        return Changes(
            policies=changed_policies,
            profiles=changed_profiles,
            ipsets=self._sets(uses, deltas),
            nodes={node: draft.finish() for node, draft in self._drafts.items()},
            refused=self._refused,
            **tables,
        )

    def _draft(self, node: str) -> _Draft:
        draft = self._drafts.get(node)
        if draft is None:
            draft = self._drafts[node] = _Draft()
        return draft

    def _book(self, book: RuleBook[Any, Any], field: str) -> dict[Any, Any]:
        changed, switches = book.flush()
        appeared = set()
        for node, thing, active in switches:
            self._draft(node).note(f"{field}_{'added' if active else 'removed'}", thing)
            if active:
                appeared.add((node, thing))
        for thing, value in changed.items():
            for node in () if value is None else book.activity.nodes_of(thing):
                if (node, thing) not in appeared:
                    self._draft(node).note(f"{field}_changed", thing)
        return changed

    def _sets(self, uses: SetUse, deltas: dict[str, SetDelta]) -> dict[str, IPSetChange]:
        appeared = set()
        for node, set_id, active in uses.on_nodes.take():
            self._draft(node).note("sets_added" if active else "sets_removed", set_id)
            if active:
                appeared.add((node, set_id))
        changes = {set_id: IPSetChange(created=uses.table.get(set_id)) for set_id in uses.created}
        changes |= {set_id: IPSetChange(deleted=True) for set_id in uses.deleted}
        for set_id, delta in deltas.items():
            if set_id in changes:
                continue
            changes[set_id] = IPSetChange(added=frozenset(delta.added), removed=frozenset(delta.removed))
            for node in uses.on_nodes.nodes_of(set_id):
                if (node, set_id) not in appeared:
                    self._draft(node).note("sets_changed", set_id)
        uses.created.clear()
        uses.deleted.clear()
        return changes
