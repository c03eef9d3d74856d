"""BGP resources into what speakers are told (`bgp_output.py`): tables, and what changed since the last `take`."""

from __future__ import annotations

from typing import Any

from libs.policy.bgp_output import BgpEntry, LocalWorkload, ServiceRoutes


class BgpTables:
    """Tables are named as the fields of `Changes`; `local` is by node."""

    def __init__(self) -> None:
        self.entries: dict[str, BgpEntry] = {}
        self.services: dict[str, ServiceRoutes] = {}
        self.local: dict[str, dict[str, LocalWorkload]] = {}
        self._changes: dict[str, dict[Any, Any]] = {}

    def put_entry(self, key: str, entry: BgpEntry | None) -> None:
        self._put("bgp", self.entries, key, entry)

    def put_services(self, key: str, routes: ServiceRoutes | None) -> None:
        self._put("services", self.services, key, routes)

    def put_local(self, node: str, key: str, workload: LocalWorkload | None) -> None:
        known = self.local.get(node, {})
        if known.get(key) == workload:
            return
        if workload is not None:
            self.local.setdefault(node, known)[key] = workload
        else:
            del known[key]
            if not known:
                del self.local[node]
        self._changes.setdefault("local", {}).setdefault(node, {})[key] = workload

    def take(self) -> dict[str, Any]:
        """Fields of `Changes` that are not empty."""
        changes, self._changes = self._changes, {}
        return changes

    def _put(self, table: str, known: dict[str, Any], key: str, value: object) -> None:
        if known.get(key) == value:
            return
        if value is None:
            del known[key]
        else:
            known[key] = value
        self._changes.setdefault(table, {})[key] = value
