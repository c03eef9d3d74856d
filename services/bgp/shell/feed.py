"""This node's speaker as a reader of typha: whole tables at each revision (docs/design/distribution.md)."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from libs.bus import subjects, wire
from libs.bus.api import Bus
from libs.bus.subjects import Role
from libs.feed.feed import Apply
from libs.feed.runner import FeedRunner
from services.bgp.core.tables import Tables

OnTables = Callable[[Tables, Apply, str | None], None]
"""tables: all there is now, to be read before returning. apply: `rev` and what of them changed (`delta`; empty when
only the revision is new). The last one: trace context of the message that led to it."""


class TablesFeed:
    """`on_tables` is called for each step, in order, on the loop's thread. Run `runner.run()`; what was done with a
    step goes back with `report`, each time and every ten seconds, or typha forgets this speaker after 45 s.
    """

    def __init__(self, bus: Bus, node: str, on_tables: OnTables, random: Random) -> None:
        self.runner = FeedRunner(bus, node, self._on_apply, random, Role.BGP)
        state = self.runner.feed.state
        self.tables = Tables(state.nodes, state.pools, state.bgp, state.services, state.local)
        self._bus = bus
        self._node = node
        self._on_tables = on_tables

    def _on_apply(self, apply: Apply, traceparent: str | None) -> None:
        self._on_tables(self.tables, apply, traceparent)

    def report(self, apply: Apply, failures: dict[str, str], warnings: tuple[str, ...] = ()) -> None:
        """Everything up to `apply` is in effect here, but for `failures` (resource -> reason). Raises BusError."""
        message = wire.Applied(
            node=self._node, epoch=apply.epoch, rev=apply.rev, seq=apply.seq, failures=failures, warnings=warnings
        )
        self._bus.publish(subjects.applied(self._node, Role.BGP), wire.encode(message))
