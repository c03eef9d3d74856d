"""Taking attachments apart: for DEL, for a failed ADD, and for what a crash or a datastore that was away left.

What cannot be undone at once stays in the journal and is undone by `undo_forever`; a request for the same interface
waits for its turn meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from libs.ipam.errors import IpamError
from libs.resources.errors import ResourceError
from libs.store.api import StoreError
from services.felix.core.cni.errors import CniError
from services.felix.core.journal import Entry
from services.felix.shell.cni.addresses import Addresses
from services.felix.shell.cni.datastore import Datastore
from services.felix.shell.cni.protocols import Peers, PodLinks
from services.felix.shell.cni.turns import Turns
from services.felix.shell.journal import Journal

log = logging.getLogger(__name__)

UNDO_S = 20.0
UNDO_AT_ONCE = 8
FORGET_S = 2.0  # for other nodes to forget an address; the kernel needs some 40 ms for the interface meanwhile
UNDO_AGAIN_S = (0.5, 10.0)
UNDO_ERRORS = (StoreError, ResourceError, IpamError, CniError, TimeoutError)


class Undo:
    def __init__(
        self, datastore: Datastore, addresses: Addresses, links: PodLinks, peers: Peers,
        journal: Journal, turns: Turns,
    ) -> None:  # fmt: skip
        self._datastore = datastore
        self._addresses = addresses
        self._links = links
        self._peers = peers
        self._journal = journal
        self._turns = turns
        self._left: dict[Entry, None] = {}  # still to be undone
        self._left_more = asyncio.Event()

    def recover(self) -> None:
        """Find what a crash cut short. Called once at start, before requests are served; `undo_forever` does it."""
        if self._journal.unreadable:
            log.error("journal records are unreadable and kept", extra={"records": self._journal.unreadable})
        for entry in self._journal.unfinished():
            log.warning("undoing an interrupted request", extra={"verb": entry.verb, "container": entry.container})
            self.leave(entry)

    async def undo_forever(self) -> None:
        """Undo what could not be undone when it was due, until it can."""
        delay_s, longest_s = UNDO_AGAIN_S
        while True:
            await self._left_more.wait()
            self._left_more.clear()
            while self._left:
                # At once, since each may take its time; not all of them, because the datastore is everybody's.
                some = asyncio.Semaphore(UNDO_AT_ONCE)
                async with asyncio.TaskGroup() as tasks:
                    for entry in list(self._left):
                        tasks.create_task(self._settle(entry, some), name=f"undo {entry.host_interface}")
                if self._left:
                    await asyncio.sleep(delay_s)
                    delay_s = min(longest_s, delay_s * 2)
            delay_s = UNDO_AGAIN_S[0]

    async def _settle(self, entry: Entry, some: asyncio.Semaphore) -> None:
        async with some, self._turns.of(entry.host_interface):
            # A later request for the same attachment may have settled it.
            if not self._journal.holds(entry) or not await self.undo_or_leave(entry):
                self._left.pop(entry, None)

    def leave(self, entry: Entry) -> None:
        """For `undo_forever`."""
        self._left[entry] = None
        self._left_more.set()

    async def undo_or_leave(self, entry: Entry) -> str:
        """What kept it from being done at once; empty when it is done. Ends within UNDO_S, also in an emergency."""
        try:
            async with asyncio.timeout(UNDO_S):
                await self.undo(entry)
        except UNDO_ERRORS as error:
            problem = str(error) or type(error).__name__
            log.warning(
                "cannot be undone yet, trying again later",
                extra={"verb": entry.verb, "container": entry.container, "error": problem},
            )
            self.leave(entry)
            return problem
        return ""

    async def undo(self, entry: Entry) -> None:
        """Endpoint, link, addresses: each only if it is (still) this attachment's, each already gone is fine."""
        rev = await self._datastore.delete(entry.wep, entry.namespace, entry.container)
        if rev is not None:
            waits: list[Awaitable[object]] = [self._links.remove(entry.host_interface, entry.netns, entry.ifname)]
            if rev:
                # Whoever is given the addresses next must not find them in other nodes' sets.
                waits.append(self._peers.wait(rev, FORGET_S))
            await asyncio.gather(*waits)
        await self._addresses.release(entry.handle, entry.delegation)
        self._journal.end(entry)
