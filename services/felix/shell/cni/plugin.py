"""Plugs pods in and out: the verbs of CNI, as steps that can each fail or be cut short and leave nothing behind.

ADD: add.py. CHECK and STATUS: check.py. GC: collect.py. Addresses alone, for other plugins: ipam.py.
DEL: journal → endpoint (only if it is still this container's) → veth → addresses last, so that nobody gets them too
early.
What cannot be undone at once is undone later (undo.py).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from libs.ipam.client import IpamClient
from libs.ipam.errors import IpamError
from libs.resources.client import ResourceClient
from libs.resources.errors import AlreadyExists, Conflict, ResourceError, ValidationError
from libs.runtime import tracing
from libs.store.api import StoreError, StoreUnavailable
from services.felix.core.cni.endpoint import Place
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.request import Request
from services.felix.core.journal import Delegation
from services.felix.shell.cni.add import Add, AddSettings
from services.felix.shell.cni.addresses import Addresses
from services.felix.shell.cni.check import Check
from services.felix.shell.cni.collect import Collect
from services.felix.shell.cni.datastore import Datastore
from services.felix.shell.cni.ipam import Ipam
from services.felix.shell.cni.pods import PodSource, RequestPods
from services.felix.shell.cni.protocols import AddressPlugins, Enforcement, Peers, PodLinks
from services.felix.shell.cni.turns import Turns
from services.felix.shell.cni.undo import UNDO_ERRORS, Undo
from services.felix.shell.journal import Journal

log = logging.getLogger(__name__)
trace = tracing.tracer("felix.cni")


class Plugin:
    """The plugin `calico`; `handle_ipam` is that of `calico-ipam`."""

    def __init__(
        self,
        node: str,
        resources: ResourceClient,
        ipam: IpamClient,
        links: PodLinks,
        enforcement: Enforcement,
        peers: Peers,
        journal: Journal,
        plugins: AddressPlugins,
        settings: AddSettings,
        *,
        interface_prefix: str,
        pods: PodSource | None = None,
        observe: Callable[[str, float], None] = lambda step, seconds: None,
    ) -> None:
        """pods: who knows the pods; by default only the requests do."""
        self._place = Place(node, interface_prefix)
        self._datastore = Datastore(resources, self._place)
        self._journal = journal
        self._turns = Turns()
        pods = pods or RequestPods(resources)
        self._addresses = Addresses(node, resources, ipam, plugins, pods)
        self.undo = Undo(self._datastore, self._addresses, links, peers, journal, self._turns)
        self._add = Add(
            self._place, self._datastore, pods, self._addresses, links, enforcement, peers, journal, self.undo,
            settings, observe,
        )  # fmt: skip
        self._check = Check(self._place, self._datastore, pods, self._addresses, links, enforcement)
        self._collect = Collect(self._datastore, self._addresses, journal, self.undo, self._turns)
        self._ipam = Ipam(self._datastore, pods, self._addresses, self._check, self._collect, self._turns)

    async def handle(self, request: Request) -> dict[str, Any] | None:
        """The result object of ADD; None where success has none. Raises CniError."""
        span = trace.span(f"cni.{request.command.lower()}", attributes={"container": request.container})
        with span, _translated():
            match request.command:
                case "STATUS":
                    await self._check.status(request)
                    return None
                case "GC":
                    await self._collect(request)
                    return None
            async with self._turns.of(self._place.host_interface(request)):
                match request.command:
                    case "ADD":
                        return await self._add(request)
                    case "DEL":
                        await self._delete(request)
                    case "CHECK":
                        await self._check.check(request)
        return None

    async def handle_ipam(self, request: Request) -> dict[str, Any] | None:
        """The result object of ADD; None where success has none. Raises CniError."""
        span = trace.span(f"ipam.{request.command.lower()}", attributes={"container": request.container})
        with span, _translated():
            return await self._ipam.handle(request)

    async def _delete(self, request: Request) -> None:
        await self._datastore.check_unlocked()
        entry = self._place.entry("DEL", request, await self._undoing(request))
        await self._journal.begin(entry)
        try:
            await self.undo.undo(entry)
        except UNDO_ERRORS as error:
            if entry.delegation is not None and isinstance(error, CniError) and error.code != Code.TRY_AGAIN:
                self._journal.end(entry)  # another plugin refuses: time heals nothing, and the runtime knows
            else:
                self.undo.leave(entry)  # the runtime asks again, or it does not: either way it will be done
            raise
        log.info("pod disconnected", extra={"interface": entry.host_interface, "container": request.container})

    async def _undoing(self, request: Request) -> Delegation | None:
        """A plugin that is not there gave nothing to a container that never was."""
        delegation = self._addresses.undoing(request)
        if delegation is None or self._addresses.can_call(delegation):
            return delegation
        found = await self._datastore.endpoint(request)
        return delegation if found is not None and found.spec.container_id == request.container else None


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Foreign exceptions as CNI errors, once, here."""
    try:
        yield
    except StoreUnavailable as error:
        raise CniError(Code.TRY_AGAIN, "the datastore is unavailable", str(error)) from error
    except (Conflict, AlreadyExists) as error:
        raise CniError(Code.TRY_AGAIN, "somebody else changed the pod's endpoint meanwhile", str(error)) from error
    except ValidationError as error:
        raise CniError(Code.INVALID_CONFIG, "the description of the pod is not acceptable", str(error)) from error
    except (StoreError, ResourceError) as error:
        raise CniError(Code.INTERNAL, "the datastore refused", str(error)) from error
    except IpamError as error:
        raise CniError(Code.NO_ADDRESS, f"no address: {error}", str(error.reason)) from error
