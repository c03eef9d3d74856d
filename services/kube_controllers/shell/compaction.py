"""The controller of etcd's history: one step of compaction in each period."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from libs.store.api import Store, StoreAuthError
from libs.store.compactor import Compactor
from services.kube_controllers.core.controller import Round
from services.kube_controllers.core.settings import Running

log = logging.getLogger(__name__)


class Compaction:
    name = "compaction"
    reads: frozenset[str] = frozenset()

    def __init__(self, store: Store, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._compactor = Compactor(store)
        self._monotonic = monotonic
        self._last_s: float | None = None
        self._detail = "waiting for the first period"

    def wanted(self, settings: Running) -> bool:
        return settings.upkeep.compaction_s > 0

    async def round(self, settings: Running) -> Round:
        """Called early, it does nothing: history younger than a period stays."""
        period_s = settings.upkeep.compaction_s
        if self._last_s is None or (left_s := self._last_s + period_s - self._monotonic()) <= 0:
            try:
                compacted = await self._compactor.step()
            except StoreAuthError as error:  # needs etcd's root role (facts/etcd-layout.md section 7)
                log.warning("not allowed to compact etcd", extra={"error": str(error)})
                self._detail = f"not allowed: {error}"
            else:
                if compacted is not None:
                    self._detail = f"compacted up to revision {compacted}"
                    log.info("etcd compacted", extra={"rev": compacted, "period_s": period_s})
                elif self._last_s is not None:
                    self._detail = "somebody else compacts"
            self._last_s = self._monotonic()
            left_s = period_s
        return Round(self._detail, again_s=left_s)
