"""GC: disconnect the containers of a network that the runtime does not know (any more), and nobody else's."""

from __future__ import annotations

import logging
from collections.abc import Collection

from libs import model
from services.felix.core.cni.config import CALICO_IPAM
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.pod import NETWORK
from services.felix.core.cni.request import Request
from services.felix.core.journal import Entry
from services.felix.shell.cni.addresses import Addresses
from services.felix.shell.cni.datastore import Datastore
from services.felix.shell.cni.turns import Turns
from services.felix.shell.cni.undo import UNDO_ERRORS, Undo
from services.felix.shell.journal import Journal

log = logging.getLogger(__name__)


class Collect:
    def __init__(self, datastore: Datastore, addresses: Addresses, journal: Journal, undo: Undo, turns: Turns) -> None:
        self._datastore = datastore
        self._addresses = addresses
        self._journal = journal
        self._undo = undo
        self._turns = turns

    async def __call__(self, request: Request) -> None:
        """As much as can be done; raises CniError with what could not, by attachment."""
        with self._journal.noting() as begun:
            await self._collect(request, begun)

    async def _collect(self, request: Request, begun: set[Entry]) -> None:
        """begun: grows with what others begin meanwhile. The runtime could not yet name it, so it is left alone."""
        await self._datastore.check_unlocked()
        valid = {(one.container, one.ifname) for one in request.valid_attachments()}
        failed: dict[str, str] = {}
        in_transition = self._journal.unfinished()
        for entry in in_transition:
            if entry.network == request.network and (entry.container, entry.ifname) not in valid:
                await self._settle(entry, failed, begun=True)
        for found in await self._datastore.own_endpoints():
            spec = found.spec
            if (spec.container_id, spec.endpoint) in valid | {one.attachment for one in begun}:
                continue
            if await self._is_of(request, found):
                await self._disconnect(request, found, failed)
        if request.config.ipam.type == CALICO_IPAM:
            known = {request.handle_of(container, ifname) for container, ifname in valid}
            known |= {entry.handle for entry in in_transition}
            await self.release_strays(request, known, failed, begun)
        try:
            await self._addresses.forward(request)
        except UNDO_ERRORS as error:
            failed[f"IPAM plugin {request.config.ipam.type}"] = str(error) or type(error).__name__
        raise_failed(failed)

    async def release_strays(
        self, request: Request, known: set[str], failed: dict[str, str], begun: Collection[Entry] = ()
    ) -> None:
        """Addresses held for containers of this network that are not known, and not begun meanwhile."""
        for handle in await self._addresses.strays(request.network, known):
            if any(handle == entry.handle for entry in begun):
                continue
            try:
                await self._addresses.release(handle)
            except UNDO_ERRORS as error:
                failed[handle] = str(error) or type(error).__name__
            else:
                log.info("addresses collected", extra={"handle": handle})

    async def _is_of(self, request: Request, found: model.WorkloadEndpoint) -> bool:
        """Does the endpoint belong to the request's network? Those of other makes do not say so themselves."""
        network = (found.metadata.annotations or {}).get(NETWORK)
        if network is not None:
            return network == request.network
        return bool(await self._addresses.held(request.handle_of(found.spec.container_id, found.spec.endpoint)))

    async def _disconnect(self, request: Request, found: model.WorkloadEndpoint, failed: dict[str, str]) -> None:
        spec = found.spec
        entry = Entry(
            verb="DEL",
            container=spec.container_id,
            ifname=spec.endpoint,
            host_interface=spec.interface_name,
            handle=request.handle_of(spec.container_id, spec.endpoint),
            namespace=found.metadata.namespace or "",
            wep=found.metadata.name,
            network=request.network,
            delegation=self._addresses.undoing(request, spec.container_id, spec.endpoint),
        )
        await self._settle(entry, failed)

    async def _settle(self, entry: Entry, failed: dict[str, str], *, begun: bool = False) -> None:
        async with self._turns.of(entry.host_interface):
            if begun and not self._journal.holds(entry):
                return  # whoever was at it has come to an end
            await self._journal.begin(entry)
            problem = await self._undo.undo_or_leave(entry)
        if problem:
            failed[f"container {entry.container}, interface {entry.ifname}"] = problem
        else:
            log.info("collected", extra={"interface": entry.host_interface, "container": entry.container})


def raise_failed(failed: dict[str, str]) -> None:
    if failed:
        details = "; ".join(f"{what}: {why}" for what, why in failed.items())
        raise CniError(Code.TRY_AGAIN, f"{len(failed)} could not be collected yet", details)
