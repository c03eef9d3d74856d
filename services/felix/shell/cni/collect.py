"""GC: disconnect the containers of a network that the runtime does not know (any more)."""

from __future__ import annotations

import logging

from services.felix.core.cni.config import Attachment
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.request import Request
from services.felix.core.journal import Entry, Journal
from services.felix.shell.cni.addresses import Addresses
from services.felix.shell.cni.datastore import Datastore
from services.felix.shell.cni.turns import Turns
from services.felix.shell.cni.undo import Undo

log = logging.getLogger(__name__)


class Collect:
    def __init__(self, datastore: Datastore, addresses: Addresses, journal: Journal, undo: Undo, turns: Turns) -> None:
        self._datastore = datastore
        self._addresses = addresses
        self._journal = journal
        self._undo = undo
        self._turns = turns

    async def __call__(self, request: Request) -> None:
        """Raises CniError when something remains."""
        await self._datastore.check_unlocked()
        failed: list[str] = []
        for found in await self._datastore.own_endpoints():
            spec = found.spec
            handle = f"{request.config.name}.{spec.container_id}"
            if Attachment(spec.container_id, spec.endpoint) in request.config.valid_attachments:
                continue
            if not await self._addresses.held(handle):
                continue  # of another network
            entry = Entry(
                verb="DEL",
                container=spec.container_id,
                ifname=spec.endpoint,
                host_interface=spec.interface_name,
                handle=handle,
                namespace=found.metadata.namespace or "",
                wep=found.metadata.name,
            )
            async with self._turns.of(entry.host_interface):
                await self._journal.begin(entry)
                if await self._undo.undo_or_leave(entry):
                    log.info("collected", extra={"interface": entry.host_interface, "container": entry.container})
                else:
                    failed.append(entry.container)
        if failed:
            raise CniError(Code.TRY_AGAIN, f"not yet collected: {', '.join(failed)}")
