"""Garbage collection of addresses, carried out: reads, lets `gc.decide` decide, and releases through IpamClient.

One round may be called at any time and cut short anywhere: everything is compare-and-swap and releases carry handle and
sequence number, so a stale decision releases nothing. Users are read a second time right before each batch and the
decision is made again on them; what does not stand twice is not released.

What a round suspects is kept in memory only. A process that starts again waits the grace period anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from libs.ipam.block import ReleaseOption
from libs.ipam.client import IpamClient
from libs.ipam.errors import BlockNotEmpty, IpamError
from libs.ipam.gc import Decision, Memory, decide
from libs.ipam.view import Users, read_ledger, read_users
from libs.ipam.wire import Address, Network
from libs.store.api import Store

log = logging.getLogger(__name__)

GRACE_S = 900.0  # leakGracePeriod's default
BATCH = 10_000  # addresses between two looks at who uses them


@dataclass(slots=True)
class Collected:
    """What a round did. refused: leaks whose release was refused, because somebody else changed them meanwhile."""

    suspects: int = 0
    released: list[Address] = field(default_factory=list)
    refused: dict[Address, str] = field(default_factory=dict)
    idle_blocks: list[Network] = field(default_factory=list)
    cold_blocks: list[Network] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    kept_blocks: list[Network] = field(default_factory=list)  # of a gone node, still in use by others
    failures: dict[str, str] = field(default_factory=dict)


class GarbageCollector:
    """Raises StoreError when the datastore is away; the next round goes on."""

    def __init__(
        self,
        store: Store,
        ipam: IpamClient,
        *,
        grace_s: float = GRACE_S,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """grace_s 0: nothing is released because of its age alone. May be changed between rounds."""
        self.grace_s = grace_s
        self._store = store
        self._ipam = ipam
        self._monotonic = monotonic
        self._wall = wall
        self._memory = Memory()

    @property
    def interval_s(self) -> float:
        """How long to wait until the next round when nothing calls for one earlier."""
        return self.grace_s / 2 if self.grace_s > 0 else 300.0

    async def round(self) -> Collected:
        ledger = await read_ledger(self._store)
        users = await read_users(self._store, ledger.revision)
        cooldown_s = (await self._ipam.inputs()).config.cooldown_s
        now_s, now = self._monotonic(), self._wall()

        def again(seen: Users) -> Decision:
            return decide(
                ledger.blocks,
                ledger.affinities,
                seen,
                self._memory,
                now_s=now_s,
                now=now,
                grace_s=self.grace_s,
                cooldown_s=cooldown_s,
                hosts=ledger.hosts,
            )

        decision = again(users)
        done = Collected(suspects=len(decision.memory.suspects))
        await self._release(decision.leaks, again, done)
        await self._give_up_idle(decision.idle_blocks, done)
        if decision.cold_blocks:
            done.cold_blocks = await self._ipam.collect_cooled()
        await self._clean_nodes(decision.gone_nodes, again, done)
        self._memory = decision.memory
        return done

    async def _release(
        self, leaks: tuple[ReleaseOption, ...], again: Callable[[Users], Decision], done: Collected
    ) -> None:
        for batch in _batches(leaks):
            sure = set(again(await read_users(self._store)).leaks)
            options = [option for option in batch if option in sure]
            if not options:
                continue
            result = await self._ipam.release_ips(options)
            done.released += [address for address, _ in result.freed]
            done.refused |= {address: str(error) for address, error in result.refused.items()}
            for address, handle in result.freed:
                log.warning("released a leaked address", extra={"address": str(address), "handle": handle})

    async def _give_up_idle(self, blocks: Iterable[tuple[str, Network]], done: Collected) -> None:
        for node, cidr in blocks:
            try:
                await self._ipam.release_affinity(node, cidr, must_be_empty=True)
            except BlockNotEmpty:
                continue  # in use again
            except IpamError as error:
                done.failures[str(cidr)] = str(error)
                continue
            done.idle_blocks.append(cidr)

    async def _clean_nodes(self, nodes: Iterable[str], again: Callable[[Users], Decision], done: Collected) -> None:
        for node in nodes:
            if node not in again(await read_users(self._store)).gone_nodes:
                continue  # it came back
            try:
                kept = await self._ipam.remove_host(node)
            except IpamError as error:
                done.failures[node] = str(error)
                continue
            done.kept_blocks += kept
            if not kept:
                done.nodes.append(node)
                log.info("cleaned up after a node", extra={"node": node})


def _batches(leaks: tuple[ReleaseOption, ...]) -> Iterable[list[ReleaseOption]]:
    """The addresses of one handle stay together."""
    batch: list[ReleaseOption] = []
    by_handle: dict[str | None, list[ReleaseOption]] = {}
    for option in leaks:
        by_handle.setdefault(option.handle, []).append(option)
    for options in by_handle.values():
        batch += options
        if len(batch) >= BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
