"""Our two nftables tables in the kernel, as the dataplane uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from libs.nftables.kernel import ForeignChanges, KernelTransport
from libs.nftables.model import Table
from libs.nftables.reconcile import Applied, TableReconciler
from libs.nftables.state import TableState


class TableDriver:
    """One table: `desired` is what the ruleset compiler fills. The first `step` begins to write."""

    def __init__(self, transport: KernelTransport, table: Table, count: Callable[[Applied], None]) -> None:
        self.reconciler = TableReconciler(transport, table)
        self._count = count

    @property
    def desired(self) -> TableState:
        return self.reconciler.desired

    def resync(self) -> None:
        self.reconciler.resync()

    async def step(self) -> Applied:
        self.reconciler.in_sync = True
        applied = await self.reconciler.step()
        self._count(applied)
        return applied


class KernelTables:
    def __init__(self, tables: tuple[Table, Table], count: Callable[[Applied], None] = lambda applied: None) -> None:
        self._transport = KernelTransport()
        self._names = set(tables)
        first, second = tables
        self.pair = (TableDriver(self._transport, first, count), TableDriver(self._transport, second, count))

    async def watch(self, changed: Callable[[], None]) -> None:
        """Calls back when someone else touched one of our tables."""
        events = ForeignChanges(
            lambda table: changed() if table is None or table in self._names else None, self._transport.sync.port
        )
        events.start()
        try:
            await asyncio.Event().wait()
        finally:
            events.stop()

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._transport.close)
