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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libs import model
from libs.netlink.podlink import PodVeth, host_interface
from services.felix.core.cni.addressing import Given
from services.felix.core.cni.config import CALICO_IPAM
from services.felix.core.cni.endpoint import Place, addresses_of, endpoint_key, make_endpoint
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.peers import peers_timeout_s
from services.felix.core.cni.pod import PodFacts, wanted_mac
from services.felix.core.cni.request import Request
from services.felix.core.cni.result import encode_result
from services.felix.core.journal import Entry
from services.felix.core.route_settings import RouteSettings
from services.felix.drivers.gates import wait_for_gates
from services.felix.drivers.podlinks import random_mac
from services.felix.shell.cni import node
from services.felix.shell.cni.addresses import Addresses, NothingGiven
from services.felix.shell.cni.datastore import Datastore
from services.felix.shell.cni.links import pod_link, result_of
from services.felix.shell.cni.pods import PodSource
from services.felix.shell.cni.protocols import NO_POLICY, Enforcement, Peers, PodLinks
from services.felix.shell.cni.undo import Undo
from services.felix.shell.journal import Journal

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AddSettings:
    """policy_timeout_s: how long to wait for policy where the configuration does not say. mtu_bytes: what the agent
    finds. routes: how those to pods are written.
    """

    policy_timeout_s: float
    mtu_bytes: Callable[[], int]
    mtu_file: Path
    routes: Callable[[], RouteSettings] = RouteSettings


class Add:
    def __init__(
        self,
        place: Place,
        datastore: Datastore,
        pods: PodSource,
        addresses: Addresses,
        links: PodLinks,
        enforcement: Enforcement,
        peers: Peers,
        journal: Journal,
        undo: Undo,
        settings: AddSettings,
        observe: Callable[[str, float], None],
    ) -> None:
        self._place = place
        self._datastore = datastore
        self._pods = pods
        self._addresses = addresses
        self._links = links
        self._enforcement = enforcement
        self._peers = peers
        self._journal = journal
        self._undo = undo
        self._settings = settings
        self._observe = observe

    async def __call__(self, request: Request) -> dict[str, Any]:
        """The result object. Raises CniError, StoreError, ResourceError, IpamError."""
        node.check_name(request.config, self._place.node)
        if not self._enforcement.ready():
            raise CniError(Code.TRY_AGAIN, NO_POLICY)
        datastore = self._datastore
        facts, found, *_ = await asyncio.gather(
            self._pods.facts(request), datastore.endpoint(request), datastore.check_unlocked(), datastore.check_node()
        )
        peers_s = peers_timeout_s(request, facts)  # refused before anything is done
        if request.config.readiness_gates:
            await wait_for_gates(request.config.readiness_gates)
            found = await datastore.endpoint(request)
        # What is still to be undone will be undone: it cannot be the answer.
        settled = not self._journal.is_open((request.container, request.ifname))
        if found is not None and found.spec.container_id == request.container and settled:
            again = self._same_again(request, found)
            if again is not None:
                return again
        delegation = await self._addresses.delegation(request)
        entry = self._place.entry("ADD", request, delegation)
        await self._journal.begin(entry)
        try:
            made = await self._plug(request, facts, entry, found, peers_s)
        except BaseException as error:
            if isinstance(error, NothingGiven):
                entry = self._place.entry("ADD", request)
                await self._journal.begin(entry)
            await self._undo.undo_or_leave(entry)  # also when cancelled: it takes no longer than UNDO_S
            raise
        self._journal.end(entry)
        log.info("pod connected", extra={"interface": entry.host_interface, "container": request.container})
        return made

    async def _plug(
        self, request: Request, facts: PodFacts, entry: Entry, found: model.WorkloadEndpoint | None, peers_s: float
    ) -> dict[str, Any]:
        host, settings = entry.host_interface, self._settings
        mac = wanted_mac(request, facts) or random_mac()
        mtu = node.mtu_bytes(request.config, settings.mtu_file, settings.mtu_bytes)
        given = await self._timed("ipam", self._addresses.assign(request, facts, entry.delegation, found))
        link = pod_link(request, host, given, mac, mtu, settings.routes())
        endpoint = self._make_endpoint(request, facts, link, found)
        storing = asyncio.ensure_future(self._timed("endpoint", self._store(request, endpoint, found)))
        try:
            # The write is on its way while the link is made, here: a thread costs more than it saves.
            await asyncio.sleep(0)
            started = time.monotonic()
            self._links.connect(link)
            self._observe("veth", time.monotonic() - started)
            rev = await asyncio.shield(storing)
        except BaseException:
            # Undoing must meet no write in progress, also when this is cancelled; and what went wrong first is what
            # the user should read.
            await asyncio.wait([storing])
            if not storing.cancelled():
                storing.exception()  # looked at, so that nobody complains
            raise
        try:
            await self._wait_for_policy(request, host, rev, peers_s)
        except BaseException:
            with contextlib.suppress(CniError):  # at once: undoing may have to wait for the datastore
                await self._links.remove(host, request.netns, request.ifname)
            raise
        return encode_result(result_of(request, link, given), request.version)

    async def _store(
        self, request: Request, endpoint: model.WorkloadEndpoint, found: model.WorkloadEndpoint | None
    ) -> int:
        if endpoint.spec.profiles == [request.network]:
            await self._datastore.ensure_profile(request)
        return await self._datastore.store(endpoint, found)

    async def _wait_for_policy(self, request: Request, host: str, rev: int, peers_s: float) -> None:
        """Until it is in the kernel. By then the pod's peers know it, or their time is up."""
        limit_s = float(request.config.policy_setup_timeout_seconds) or self._settings.policy_timeout_s
        waits = [self._enforcement.programmed(endpoint_key(request), rev, limit_s)]
        if peers_s:
            waits.append(self._timed("peers", self._peers.wait(rev, peers_s)))
        programmed, *_ = await self._timed("policy", asyncio.gather(*waits))
        if not programmed:
            text = f"policy of {host} is not in the kernel after {limit_s:g} s; is typha reachable?"
            raise CniError(Code.TRY_AGAIN, text)

    def _same_again(self, request: Request, found: model.WorkloadEndpoint) -> dict[str, Any] | None:
        """The earlier answer, when this very container is connected already and nothing is wrong with it."""
        host, addresses = found.spec.interface_name, addresses_of(found)
        if host != self._place.host_interface(request) or not addresses:
            return None
        routes = None if request.config.ipam.type == CALICO_IPAM else ()  # only the other plugin would know them
        given = Given(tuple(map(host_interface, addresses)), routes)
        mtu = node.mtu_bytes(request.config, self._settings.mtu_file, self._settings.mtu_bytes)
        link = pod_link(request, host, given, found.spec.mac, mtu)
        if self._links.check(link):
            return None
        made = pod_link(request, host, given, found.spec.mac, self._links.mtu_bytes(host))
        return encode_result(result_of(request, made, given), request.version)

    def _make_endpoint(
        self, request: Request, facts: PodFacts, link: PodVeth, found: model.WorkloadEndpoint | None
    ) -> model.WorkloadEndpoint:
        mac = link.container_mac or ""
        endpoint, problems = make_endpoint(request, facts, self._place, mac, link.addresses, found)
        for problem in problems:  # the pod is worth more than its limit
            log.warning("part of an annotation is ignored", extra={"pod": request.pod, "problem": problem})
        return endpoint

    async def _timed(self, step: str, work: Awaitable[Any]) -> Any:
        started = time.monotonic()
        try:
            return await work
        finally:
            self._observe(step, time.monotonic() - started)
