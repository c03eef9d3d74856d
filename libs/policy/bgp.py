"""BGP resources into what speakers are told (`bgp_output.py`): tables, and what changed since the last `take`.

    resources ──► bgp_inputs ──► entries ─────────────────────────► config.bgp
                      │ selectors
                      ├──► NodeSelection (labels of nodes) ───────► config.bgp, node/…
                      └──► LocalWorkloads (labels of endpoints) ──► local.<node>
    blocks, affinities ──► LocalBlocks ───────────────────────────► local.<node>
    services, slices, ranges ──► ServiceTable ────────────────────► route.services

As in the calculation around it, everything is a function of the current resources.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from libs import model
from libs.model import keys
from libs.policy import bgp_inputs
from libs.policy.bgp_inputs import BGP_KINDS, Selection
from libs.policy.bgp_local import LocalBlocks, LocalWorkloads
from libs.policy.bgp_nodes import NodeSelection
from libs.policy.bgp_output import (
    BgpEntry,
    BgpNode,
    BgpSettings,
    LocalEntry,
    ServiceRoutes,
    felix_key,
    node_key,
    settings_key,
)
from libs.policy.bgp_services import ServiceTable
from libs.policy.index import Entry, LabelIndex


class BgpTables:
    """Tables are named as the fields of `Changes`; `local` is by node."""

    def __init__(self) -> None:
        self.entries: dict[str, BgpEntry] = {}
        self.services: dict[str, ServiceRoutes] = {}
        self.local: dict[str, dict[str, LocalEntry]] = {}
        self._told: dict[tuple[str, str], dict[str, Any]] = {}  # (table, node) -> what was put -> value last taken

    def put_entry(self, key: str, entry: BgpEntry | None) -> None:
        self._put(("bgp", ""), self.entries, key, entry)

    def put_services(self, key: str, routes: ServiceRoutes | None) -> None:
        self._put(("services", ""), self.services, key, routes)

    def put_local(self, node: str, key: str, entry: LocalEntry | None) -> None:
        known = self.local.setdefault(node, {})
        self._put(("local", node), known, key, entry)
        if not known:
            del self.local[node]

    def take(self) -> dict[str, Any]:
        """Fields of `Changes` that are not empty. What came and went in between is no change."""
        changes: dict[str, Any] = {}
        for (table, node), told in self._told.items():
            tables: dict[str, dict[str, Any]] = {"bgp": self.entries, "services": self.services}
            now = tables.get(table, self.local.get(node, {}))
            changed = {key: now.get(key) for key, before in told.items() if now.get(key) != before}
            if changed and table == "local":
                changes.setdefault(table, {})[node] = changed
            elif changed:
                changes[table] = changed
        self._told = {}
        return changes

    def _put(self, where: tuple[str, str], known: dict[str, Any], key: str, value: object) -> None:
        before = known.get(key)
        if before == value:
            return
        self._told.setdefault(where, {}).setdefault(key, before)
        if value is None:
            del known[key]
        else:
            known[key] = value


class BgpCalculation(BgpTables):
    """index: of endpoints' labels, shared with the policies. cluster_ips: as of `ServiceTable`."""

    def __init__(self, index: LabelIndex, cluster_ips: Iterable[str] = ()) -> None:
        super().__init__()
        self._resources: dict[str, model.Resource] = {}
        self._unreadable: dict[str, str] = {}  # key -> why its value cannot be read
        self._what: dict[str, tuple[str, str]] = {}  # key -> kind and name, of both
        self._dirty: set[str] = set()
        self._facts: dict[str, tuple[str, str]] = {}  # node -> cluster id, Kubernetes' name for it
        self.nodes = NodeSelection()
        self.blocks = LocalBlocks(self.put_local)
        self.workloads = LocalWorkloads(index, self.nodes, self.put_local)
        self.service_table = ServiceTable(cluster_ips)

    def put_resource(self, key: str, resource: model.Resource | None) -> None:
        """A resource of BGP_KINDS or a FelixConfiguration, None when there is none under that key; keys of other kinds
        are never there.
        """
        if resource is not None:
            self._resources[key] = resource
            self._what[key] = (resource.kind, resource.name)
            self._dirty.add(key)
        elif self._resources.pop(key, None) is not None:
            self._dirty.add(key)

    def put_problem(self, key: str, problem: str) -> None:
        """There is a value under this key, but it cannot be read; "": it can, or there is none. Other kinds are passed
        over.
        """
        if problem:
            parsed = keys.parse_key(key)
            if isinstance(parsed, keys.ResourceKey) and parsed.kind in BGP_KINDS:
                self._unreadable[key] = problem
                self._what[key] = (parsed.kind, parsed.name)
                self._dirty.add(key)
        elif self._unreadable.pop(key, None) is not None:
            self._dirty.add(key)

    def put_node(
        self, name: str, labels: dict[str, str] | None, cluster_id: str = "", kubernetes_name: str = ""
    ) -> None:
        """None: gone."""
        self._facts[name] = (cluster_id, kubernetes_name)
        self.nodes.put_node(name, labels)

    def flush(self, changed: list[Entry]) -> dict[str, str]:
        """Calculate; `take` tells the changes. changed: as the shared index gave it. Returns what is treated as absent,
        with the reason, by key.
        """
        refused: dict[str, str] = {}
        dirty, self._dirty = self._dirty, set()
        for key in sorted(dirty):
            if problem := self._apply(key):
                refused[key] = problem
        for name, selected in self.nodes.flush().items():
            cluster_id, kubernetes_name = self._facts.get(name, ("", ""))
            self.workloads.touch_node(name)
            entry = None
            if selected is None:
                self._facts.pop(name, None)
            else:
                made = BgpNode(
                    cluster_id=cluster_id, kubernetes_name=kubernetes_name, peers=selected[0], targets=selected[1]
                )
                entry = None if made == BgpNode() else made
            self.put_entry(node_key(name), entry)
        self.workloads.flush(changed)
        for name, routes in self.service_table.flush().items():
            self.put_services(name, routes)
        return refused

    def _apply(self, key: str) -> str:
        kind, name = self._what[key]
        resource, problem = self._resources.get(key), self._unreadable.get(key, "")
        if resource is None and not problem:
            del self._what[key]
        if kind == model.FelixConfiguration.kind:
            felix = resource if isinstance(resource, model.FelixConfiguration) else None
            self.put_entry(felix_key(name), bgp_inputs.felix_part(felix.spec) if felix is not None else None)
            return ""
        entry: BgpEntry | None = None
        if problem:
            entry = bgp_inputs.unreadable(kind, problem)
        elif resource is not None:
            try:
                entry = bgp_inputs.reduce_bgp(resource)
            except ValueError as error:
                problem = str(error)
                entry = bgp_inputs.unreadable(kind, problem)
        good = entry is not None and not problem
        if kind == "BGPPeer":
            chosen: Selection | None = None
            if good and isinstance(resource, model.BGPPeer):
                chosen = bgp_inputs.selection(resource.spec)
            self.nodes.put_peer(name, chosen)
            self.workloads.put_peer(name, chosen)
        self.put_entry(bgp_inputs.entry_key(kind, name), entry)
        if bgp_inputs.entry_key(kind, name) == settings_key(bgp_inputs.DEFAULT):
            self.service_table.put_settings(entry if isinstance(entry, BgpSettings) and good else None)
        return problem
