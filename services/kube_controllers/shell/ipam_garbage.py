"""The controller that collects garbage of address management, and shows its figures.

Rounds come each half grace period and for the figures each minute; at once when a node comes or goes or a pool changes,
and a little after pods changed. With a Kubernetes API at hand it has the last word about pods (`libs.ipam.pods`);
without one the workload endpoints are the pods.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from libs import model
from libs.ipam.client import IpamClient
from libs.ipam.collector import Collected, GarbageCollector
from libs.ipam.pods import Kubernetes
from libs.ipam.pools import pool_of
from libs.kube.objects import NODES, PODS, Source
from libs.resources.mirror import Mirror
from libs.store.api import Store
from services.kube_controllers.core.controller import Round
from services.kube_controllers.core.ipam_usage import NO_POOL, UNKNOWN_NODE, figures
from services.kube_controllers.core.settings import Running
from services.kube_controllers.ipam_metrics import IpamMetrics
from services.kube_controllers.shell.lock import LOCKED, locked

SPACING_S = 5.0
"""Between two rounds that only pods called for: each reads all of address management."""
FRESH_S = 60.0
"""Figures are not older than this."""


class IpamGarbage:
    name = "ipam-garbage"
    reads = frozenset({"Node", "IPPool", "IPReservation", "ClusterInformation"})

    def __init__(
        self,
        mirror: Mirror,
        store: Store,
        ipam: IpamClient,
        metrics: IpamMetrics,
        kubernetes: Kubernetes | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mirror = mirror
        self._ipam = ipam
        self._metrics = metrics
        self._kubernetes = kubernetes
        self._monotonic = monotonic
        self._collector = GarbageCollector(store, ipam, kubernetes=kubernetes, monotonic=monotonic)
        self._last_s: float | None = None
        self._seen: object = None
        self._detail = ""

    @property
    def sources(self) -> tuple[Source[Any], ...]:
        return () if self._kubernetes is None else (PODS, NODES)

    def wanted(self, settings: Running) -> bool:
        runs = settings.upkeep.leak_grace_s is not None
        if not runs:
            self._metrics.clear()
        return runs

    async def round(self, settings: Running) -> Round:
        grace_s = settings.upkeep.leak_grace_s
        assert grace_s is not None, "not wanted, and yet asked"
        self._collector.grace_s = grace_s
        if locked(self._mirror):
            return Round(LOCKED, again_s=SPACING_S)
        now_s, urgent = self._monotonic(), self._urgent(grace_s)
        next_s = 0.0 if self._last_s is None else self._last_s + min(SPACING_S, self._collector.interval_s)
        if urgent == self._seen and now_s < next_s:
            return Round(self._detail, again_s=next_s - now_s)
        done = await self._collector.round()
        await self._show(done)
        self._last_s, self._seen = now_s, urgent
        writes = {"delete": len(done.endpoints) + len(done.released) + len(done.idle_blocks) + len(done.nodes)}
        self._detail = f"{done.suspects} addresses suspect"
        if done.kept_blocks:
            self._detail += f", {len(done.kept_blocks)} blocks of gone nodes still in use"
        failures = done.failures | {str(address): why for address, why in done.refused.items()}
        return Round(
            self._detail, writes if writes["delete"] else {}, failures, again_s=min(self._collector.interval_s, FRESH_S)
        )

    def _urgent(self, grace_s: float) -> object:
        """What calls for a round at once when it changes."""
        mirror = self._mirror
        return (
            grace_s,
            frozenset(node.metadata.name for node in mirror.of(model.Node)),
            frozenset((one.metadata.name, one.metadata.resource_version) for one in mirror.of(model.IPPool)),
            frozenset((one.metadata.name, one.metadata.resource_version) for one in mirror.of(model.IPReservation)),
        )

    async def _show(self, done: Collected) -> None:
        if done.ledger is None:
            return
        inputs = await self._ipam.inputs()
        of_node = {a.address: a.attrs.get("node", "") for block in done.ledger.blocks for a in block.allocated()}
        for address in done.released:
            pool = pool_of(inputs.pools, address)
            self._metrics.reclaimed[pool.name if pool else NO_POOL, of_node.get(address) or UNKNOWN_NODE] += 1
        blocks = await self._ipam.blocks() if done.released or done.idle_blocks else done.ledger.blocks
        nodes = [node.metadata.name for node in self._mirror.of(model.Node)]
        suspected = done.suspected - set(done.released)
        self._metrics.figures = figures(inputs.pools, blocks, inputs.reservations, nodes, suspected)
