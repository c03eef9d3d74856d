"""ADD: journal → addresses (IPAM) → WorkloadEndpoint in etcd while the veth pair is made → wait until this node's
kernel holds the pod's policy at that revision, and other nodes its address if that is asked for → answer.

Until its policy is programmed the interface is unknown to the ruleset and passes nothing. Any failure undoes what was
done, in reverse, and releases the addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from libs import model
from libs.resources.errors import ResourceError
from libs.store.api import StoreError
from services.felix.core.cni.endpoint import Place, addresses_of, endpoint_key, make_endpoint
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.peers import peers_timeout_s
from services.felix.core.cni.request import Request
from services.felix.core.cni.result import result
from services.felix.core.journal import Entry, Journal
from services.felix.core.routing import Address
from services.felix.drivers.podlinks import random_mac
from services.felix.shell.cni.addresses import Addresses
from services.felix.shell.cni.datastore import Datastore
from services.felix.shell.cni.protocols import NO_POLICY, Enforcement, Peers, PodLinks
from services.felix.shell.cni.undo import Undo, in_thread

log = logging.getLogger(__name__)


class Add:
    def __init__(
        self,
        place: Place,
        datastore: Datastore,
        addresses: Addresses,
        links: PodLinks,
        enforcement: Enforcement,
        peers: Peers,
        journal: Journal,
        undo: Undo,
        *,
        policy_timeout_s: float,
        mtu_bytes: Callable[[], int],
        observe: Callable[[str, float], None],
    ) -> None:
        self._place = place
        self._datastore = datastore
        self._addresses = addresses
        self._links = links
        self._enforcement = enforcement
        self._peers = peers
        self._journal = journal
        self._undo = undo
        self._policy_timeout_s = policy_timeout_s
        self._mtu_bytes = mtu_bytes
        self._observe = observe

    async def __call__(self, request: Request) -> dict[str, Any]:
        """The result object. Raises CniError, StoreError, ResourceError, IpamError."""
        if not self._enforcement.ready():
            raise CniError(Code.TRY_AGAIN, NO_POLICY)
        peers_timeout_s(request)  # refused before anything is done
        await asyncio.gather(self._datastore.check_unlocked(), self._datastore.check_node())
        found = await self._datastore.endpoint(request)
        if found is not None and found.spec.container_id == request.container:
            again = self._same_again(request, found)
            if again is not None:
                return again
        entry = self._place.entry("ADD", request)
        await self._journal.begin(entry)
        try:
            made = await self._plug(request, entry, found)
        except BaseException:
            await self._undo.undo_or_leave(entry)  # also when cancelled: it takes no longer than UNDO_S
            raise
        self._journal.end(entry)
        log.info("pod connected", extra={"interface": entry.host_interface, "container": request.container})
        return made

    async def _plug(self, request: Request, entry: Entry, found: model.WorkloadEndpoint | None) -> dict[str, Any]:
        host = entry.host_interface
        addresses = await self._timed("ipam", self._addresses.assign(request))
        mac = random_mac()
        endpoint = self._make_endpoint(request, mac, addresses, found)
        storing = asyncio.ensure_future(self._timed("endpoint", self._datastore.store(endpoint, found)))
        try:
            mtu = request.config.mtu or self._mtu_bytes()
            # The write is on its way while the link is made, here: a thread costs more than it saves.
            await asyncio.sleep(0)
            started = time.monotonic()
            self._links.connect(host, request.netns, request.ifname, addresses, mac, mtu)
            self._observe("veth", time.monotonic() - started)
        except BaseException:
            # Undoing must meet no write in progress, and what went wrong first is what the user should read.
            with contextlib.suppress(StoreError, ResourceError):
                await storing
            raise
        try:
            rev = await storing
            if not await self._known(request, rev):
                text = f"policy of {host} is not in the kernel after {self._policy_timeout_s:g} s; is typha reachable?"
                raise CniError(Code.TRY_AGAIN, text)
        except BaseException:
            with contextlib.suppress(CniError):  # at once: undoing may have to wait for the datastore
                await in_thread(lambda: self._links.remove(host, request.netns, request.ifname))
            raise
        return result(request, host, mac, addresses)

    async def _known(self, request: Request, rev: int) -> bool:
        """Is the pod's policy in the kernel? By then its peers know it, or their time is up."""
        waits = [self._enforcement.programmed(endpoint_key(request), rev, self._policy_timeout_s)]
        peers_s = peers_timeout_s(request)
        if peers_s:
            waits.append(self._timed("peers", self._peers.wait(rev, peers_s)))
        programmed, *_ = await self._timed("policy", asyncio.gather(*waits))
        return bool(programmed)

    def _same_again(self, request: Request, found: model.WorkloadEndpoint) -> dict[str, Any] | None:
        """The earlier answer, when this very container is connected already and nothing is wrong with it."""
        addresses = addresses_of(found)
        host = found.spec.interface_name
        if host != self._place.host_interface(request) or not addresses:
            return None
        if self._links.check(host, request.netns, request.ifname, addresses, found.spec.mac):
            return None
        return result(request, host, found.spec.mac, addresses)

    def _make_endpoint(
        self, request: Request, mac: str, addresses: tuple[Address, ...], found: model.WorkloadEndpoint | None
    ) -> model.WorkloadEndpoint:
        endpoint, problems = make_endpoint(request, self._place, mac, addresses, found)
        for problem in problems:  # the pod is worth more than its limit
            log.warning("part of an annotation is ignored", extra={"pod": request.pod, "problem": problem})
        return endpoint

    async def _timed(self, step: str, work: Awaitable[Any]) -> Any:
        started = time.monotonic()
        try:
            return await work
        finally:
            self._observe(step, time.monotonic() - started)
