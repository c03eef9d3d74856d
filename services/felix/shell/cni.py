"""Plugs pods in and out: CNI ADD, DEL and CHECK, as steps that can each fail or be cut short and leave nothing behind.

ADD: journal → addresses (IPAM) → WorkloadEndpoint in etcd while the veth pair is made → wait until this node's kernel
holds the pod's policy at that revision → answer. Until its policy is programmed the interface is unknown to the ruleset
and passes nothing. Any failure undoes what was done, in reverse, and releases the addresses.
DEL: journal → endpoint (only if it is still this container's) → veth → addresses last, so that nobody gets them too
early.

What cannot be undone at once, because the datastore is away or because we were killed, stays in the journal and is
undone by `undo_forever`; a request for the same interface waits for its turn meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any, Protocol

from libs import model
from libs.ipam.client import IpamClient
from libs.ipam.errors import HandleMissing, IpamError
from libs.ipam.pools import Use
from libs.ipam.requests import AssignIpRequest, AssignRequest
from libs.model.names import workload_endpoint_name
from libs.model.qos import qos_controls
from libs.policy.output import WorkloadKey
from libs.resources.client import ResourceClient
from libs.resources.errors import NotFound, ResourceError, ValidationError
from libs.runtime import tracing
from libs.store.api import StoreError, StoreUnavailable
from services.felix.core import cni
from services.felix.core.cni import CniError, Request
from services.felix.core.journal import Entry, Journal
from services.felix.core.routing import Address
from services.felix.drivers.podlinks import random_mac

log = logging.getLogger(__name__)
trace = tracing.tracer("felix.cni")

UNDO_S = 20.0
UNDO_AGAIN_S = (0.5, 10.0)
UNDO_ERRORS = (StoreError, ResourceError, IpamError, CniError, TimeoutError)


NO_POLICY = "this node has no policy from typha yet; is typha reachable?"


class PodLinks(Protocol):
    """The kernel side of an attachment (services/felix/drivers/podlinks.py), synchronous. All raise CniError.

    `connect` and `check` are quick; `remove` is called from a thread of its own.
    """

    def connect(
        self, host: str, netns: str, ifname: str, addresses: tuple[Address, ...], mac: str, mtu_bytes: int
    ) -> None:
        """Make the pair with addresses and routes. One of that host name is replaced; a failure leaves nothing."""
        ...

    def check(self, host: str, netns: str, ifname: str, addresses: tuple[Address, ...], mac: str) -> list[str]:
        """What is wrong with it, in words; empty when all is well."""
        ...

    def remove(self, host: str, netns: str, ifname: str) -> None:
        """Gone when this returns, whatever was there before."""
        ...


class Enforcement(Protocol):
    """What the dataplane tells CNI."""

    def ready(self) -> bool:
        """Has the kernel a ruleset of ours? Before that an interface we do not know would pass everything."""
        ...

    async def programmed(self, key: WorkloadKey, rev: int, timeout_s: float) -> bool:
        """Wait until the kernel holds the endpoint's policy as of `rev`."""
        ...

    def enforced(self, key: WorkloadKey) -> bool: ...


class Plugin:
    def __init__(
        self,
        node: str,
        resources: ResourceClient,
        ipam: IpamClient,
        links: PodLinks,
        enforcement: Enforcement,
        journal: Journal,
        *,
        interface_prefix: str,
        policy_timeout_s: float,
        mtu_bytes: Callable[[], int],
        observe: Callable[[str, float], None] = lambda step, seconds: None,
    ) -> None:
        self._node = node
        self._resources = resources
        self._ipam = ipam
        self._links = links
        self._enforcement = enforcement
        self._journal = journal
        self._prefix = interface_prefix
        self._policy_timeout_s = policy_timeout_s
        self._mtu_bytes = mtu_bytes
        self._observe = observe
        self._locks: dict[str, asyncio.Lock] = {}  # one request at a time for each host interface
        self._left: dict[Entry, None] = {}  # still to be undone
        self._left_more = asyncio.Event()

    async def handle(self, request: Request) -> dict[str, Any] | None:
        """The result object of ADD; None where success has none. Raises CniError."""
        span = trace.span(f"cni.{request.command.lower()}", attributes={"container": request.container})
        with span, _translated():
            match request.command:
                case "STATUS":
                    await self._status()
                    return None
                case "GC":
                    await self._collect(request)
                    return None
            async with self._one_at_a_time(request.host_interface(self._prefix)):
                match request.command:
                    case "ADD":
                        return await self._add(request)
                    case "DEL":
                        await self._delete(request)
                    case "CHECK":
                        await self._check(request)
        return None

    @asynccontextmanager
    async def _one_at_a_time(self, host: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(host, asyncio.Lock())
        async with lock:
            yield
        if not lock.locked() and not getattr(lock, "_waiters", None):
            self._locks.pop(host, None)

    # --- ADD ---

    async def _add(self, request: Request) -> dict[str, Any]:
        if not self._enforcement.ready():
            raise CniError(cni.TRY_AGAIN, NO_POLICY)
        await asyncio.gather(self._datastore_ready(), self._node_known())
        host = request.host_interface(self._prefix)
        found = await self._endpoint(request)
        if found is not None and found.spec.container_id == request.container:
            again = await self._same_again(request, found)
            if again is not None:
                return again
        entry = self._entry("ADD", request)
        self._journal.begin(entry)
        try:
            result = await self._plug(request, entry, found)
        except BaseException:
            await self._undo_or_leave(entry)  # also when cancelled: it takes no longer than UNDO_S
            raise
        self._journal.end(entry)
        log.info("pod connected", extra={"interface": host, "container": request.container})
        return result

    async def _plug(self, request: Request, entry: Entry, found: model.WorkloadEndpoint | None) -> dict[str, Any]:
        host = entry.host_interface
        addresses = await self._timed("ipam", self._assign(request))
        mac = random_mac()
        endpoint = self._make_endpoint(request, mac, addresses, found)
        storing = asyncio.ensure_future(self._timed("endpoint", self._store(endpoint, found)))
        try:
            mtu = request.config.mtu or self._mtu_bytes()
            await asyncio.sleep(
                0
            )  # the write is on its way while the link is made, here: a thread costs more than it saves
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
            key = WorkloadKey(request.orchestrator, _workload_id(request), request.ifname)
            if not await self._timed("policy", self._enforcement.programmed(key, rev, self._policy_timeout_s)):
                text = f"policy of {host} is not in the kernel after {self._policy_timeout_s:g} s; is typha reachable?"
                raise CniError(cni.TRY_AGAIN, text)
        except BaseException:
            with contextlib.suppress(CniError):  # at once: undoing may have to wait for the datastore
                await _in_thread(lambda: self._links.remove(host, request.netns, request.ifname))
            raise
        return cni.result(request, host, mac, addresses)

    async def _same_again(self, request: Request, found: model.WorkloadEndpoint) -> dict[str, Any] | None:
        """The earlier answer, when this very container is connected already and nothing is wrong with it."""
        addresses = _addresses_of(found)
        host = found.spec.interface_name
        if host != request.host_interface(self._prefix) or not addresses:
            return None
        if self._links.check(host, request.netns, request.ifname, addresses, found.spec.mac):
            return None
        return cni.result(request, host, found.spec.mac, addresses)

    async def _assign(self, request: Request) -> tuple[Address, ...]:
        num4, num6 = request.wants()
        fixed = request.fixed_addresses()
        if fixed:
            return await self._assign_fixed(request, fixed)
        wanted = AssignRequest(
            handle=request.handle,
            node=self._node,
            num4=num4,
            num6=num6,
            attrs=self._attributes(request),
            pools4=request.config.ipam.ipv4_pools,
            pools6=request.config.ipam.ipv6_pools,
            namespace_labels=await self._namespace_labels(request),
            max_per_handle=1,
        )
        result = await self._ipam.auto_assign(wanted)
        if not result.complete:
            why = ", ".join(f"IPv{version}: {reason}" for version, reason in result.reasons.items())
            with contextlib.suppress(HandleMissing):
                await self._ipam.release_by_handle(request.handle)
            raise CniError(cni.NO_ADDRESS, f"no address for the pod on node {self._node}: {why}")
        return (*(given.ip for given in result.v4), *(given.ip for given in result.v6))

    async def _assign_fixed(self, request: Request, fixed: tuple[Address, ...]) -> tuple[Address, ...]:
        for address in fixed:
            await self._ipam.assign_ip(
                AssignIpRequest(
                    address=address,
                    handle=request.handle,
                    node=self._node,
                    attrs=self._attributes(request),
                    use=Use.WORKLOAD,
                    max_per_handle=1,
                )
            )
        return fixed

    def _attributes(self, request: Request) -> dict[str, str]:
        now = time.time_ns()
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(now // 10**9))
        attributes = {
            "namespace": request.namespace,
            "node": self._node,
            "pod": request.pod,
            "timestamp": f"{stamp}.{now % 10**9:09d} +0000 UTC",
        }
        return {name: value for name, value in attributes.items() if value}

    async def _namespace_labels(self, request: Request) -> dict[str, str] | None:
        """Labels of the pod's namespace, as its profile passes them on (pcns.…)."""
        if not request.is_kubernetes:
            return None
        try:
            profile = await self._resources.get("Profile", f"kns.{request.namespace}")
        except NotFound:
            return {}
        labels: dict[str, str] = getattr(profile.spec, "labels_to_apply", None) or {}
        return {name.removeprefix("pcns."): value for name, value in labels.items() if name.startswith("pcns.")}

    def _make_endpoint(
        self, request: Request, mac: str, addresses: tuple[Address, ...], found: model.WorkloadEndpoint | None
    ) -> model.WorkloadEndpoint:
        facts = request.config.args.cni
        account = facts.service_account or request.args.get("K8S_POD_SERVICE_ACCOUNT", "")
        labels = {
            **facts.label_map(),
            "projectcalico.org/namespace": request.namespace,
            "projectcalico.org/orchestrator": request.orchestrator,
        }
        if account and len(account) < 63:
            labels["projectcalico.org/serviceaccount"] = account
        controls, problems = qos_controls(facts.annotations)
        for problem in problems:  # the pod is worth more than its limit
            log.warning("part of an annotation is ignored", extra={"pod": request.pod, "problem": problem})
        spec = model.WorkloadEndpointSpec(
            orchestrator=request.orchestrator,
            node=self._node,
            container_id=request.container,
            pod=request.pod,
            endpoint=request.ifname,
            service_account_name=account,
            ip_networks=[str(ip_network(address)) for address in addresses],
            profiles=request.profiles(),
            interface_name=request.host_interface(self._prefix),
            mac=mac,
            ports=[
                model.WorkloadEndpointPort(
                    name=port.name, protocol=model.Protocol(port.protocol), port=port.port, host_port=port.host_port
                )
                for port in facts.ports
            ],
            qos_controls=controls,
        )
        metadata = model.ObjectMeta(name=self._wep_name(request), namespace=request.namespace, labels=labels)
        if found is not None:
            metadata.uid = found.metadata.uid
            metadata.creation_timestamp = found.metadata.creation_timestamp
            metadata.resource_version = found.metadata.resource_version
        return model.WorkloadEndpoint(metadata=metadata, spec=spec)

    async def _store(self, endpoint: model.WorkloadEndpoint, found: model.WorkloadEndpoint | None) -> int:
        if found is None:
            return (await self._resources.create(endpoint)).revision
        return (await self._resources.update(endpoint)).revision

    # --- DEL, CHECK, and what a crash left ---

    async def _delete(self, request: Request) -> None:
        await self._datastore_ready()
        entry = self._entry("DEL", request)
        self._journal.begin(entry)
        try:
            await self._undo(entry)
        except UNDO_ERRORS:
            self._leave(entry)  # the runtime asks again, or it does not: either way it will be done
            raise
        log.info("pod disconnected", extra={"interface": entry.host_interface, "container": request.container})

    async def _check(self, request: Request) -> None:
        found = await self._endpoint(request)
        if found is None:
            raise CniError(cni.UNKNOWN_CONTAINER, f"no endpoint for container {request.container} in the datastore")
        problems: list[str] = []
        if found.spec.container_id != request.container:
            problems.append(f"the endpoint belongs to container {found.spec.container_id}")
        host = request.host_interface(self._prefix)
        addresses = _addresses_of(found)
        problems += self._links.check(host, request.netns, request.ifname, addresses, found.spec.mac)
        if not self._enforcement.enforced(WorkloadKey(request.orchestrator, _workload_id(request), request.ifname)):
            problems.append(f"policy of {host} is not in the kernel")
        if problems:
            raise CniError(cni.CHECK_FAILED, "; ".join(problems))

    async def _status(self) -> None:
        """Could a pod be connected now?"""
        if not self._enforcement.ready():
            raise CniError(cni.NOT_AVAILABLE, NO_POLICY)
        try:
            await self._datastore_ready()
        except (CniError, StoreError) as error:
            raise CniError(cni.NOT_AVAILABLE, "no pod can be connected now", str(error)) from error

    async def _collect(self, request: Request) -> None:
        """Disconnect the containers of this network that the runtime does not know (any more)."""
        await self._datastore_ready()
        failed: list[str] = []
        for found in (await self._resources.list("WorkloadEndpoint")).items:
            assert isinstance(found, model.WorkloadEndpoint)
            spec = found.spec
            known = cni.Attachment(spec.container_id, spec.endpoint) in request.config.valid_attachments
            if spec.node != self._node or not spec.container_id or known:
                continue
            handle = f"{request.config.name}.{spec.container_id}"
            try:
                await self._ipam.ips_by_handle(handle)
            except HandleMissing:
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
            async with self._one_at_a_time(entry.host_interface):
                self._journal.begin(entry)
                if await self._undo_or_leave(entry):
                    log.info("collected", extra={"interface": entry.host_interface, "container": entry.container})
                else:
                    failed.append(entry.container)
        if failed:
            raise CniError(cni.TRY_AGAIN, f"not yet collected: {', '.join(failed)}")

    def recover(self) -> None:
        """Find what a crash cut short. Called once at start, before requests are served; `undo_forever` does it."""
        entries, bad = self._journal.unfinished()
        for path in bad:
            log.error("journal entry is unreadable and kept for inspection", extra={"file": str(path)})
        for entry in entries:
            log.warning("undoing an interrupted request", extra={"verb": entry.verb, "container": entry.container})
            self._leave(entry)

    async def undo_forever(self) -> None:
        """Undo what could not be undone when it was due, until it can."""
        delay_s, longest_s = UNDO_AGAIN_S
        while True:
            await self._left_more.wait()
            self._left_more.clear()
            while self._left:
                for entry in list(self._left):
                    async with self._one_at_a_time(entry.host_interface):
                        # A later request for the same attachment may have settled it.
                        if not self._journal.holds(entry) or await self._undo_or_leave(entry):
                            self._left.pop(entry, None)
                if self._left:
                    await asyncio.sleep(delay_s)
                    delay_s = min(longest_s, delay_s * 2)
            delay_s = UNDO_AGAIN_S[0]

    def _leave(self, entry: Entry) -> None:
        self._left[entry] = None
        self._left_more.set()

    async def _undo_or_leave(self, entry: Entry) -> bool:
        try:
            async with asyncio.timeout(UNDO_S):
                await self._undo(entry)
        except UNDO_ERRORS as error:
            log.warning(
                "cannot be undone yet, trying again later",
                extra={"verb": entry.verb, "container": entry.container, "error": str(error) or type(error).__name__},
            )
            self._leave(entry)
            return False
        return True

    async def _undo(self, entry: Entry) -> None:
        """Endpoint, link, addresses: each only if it is (still) this attachment's, each already gone is fine."""
        try:
            found = await self._resources.get("WorkloadEndpoint", entry.wep, entry.namespace)
        except NotFound:
            found = None
        other = found is not None and _container_of(found) != entry.container
        if found is not None and not other:
            with contextlib.suppress(NotFound):
                version = found.metadata.resource_version
                await self._resources.delete("WorkloadEndpoint", entry.wep, entry.namespace, version)
        if not other:
            # The kernel waits for all of its processors, some 40 ms: nothing else should, and several of these may.
            await _in_thread(lambda: self._links.remove(entry.host_interface, entry.netns, entry.ifname))
        with contextlib.suppress(HandleMissing):
            await self._ipam.release_by_handle(entry.handle)
        self._journal.end(entry)

    # --- small things ---

    async def _datastore_ready(self) -> None:
        try:
            info = await self._resources.get("ClusterInformation", "default")
        except NotFound:
            return
        if getattr(info.spec, "datastore_ready", True) is False:
            raise CniError(cni.TRY_AGAIN, "the datastore is locked (ClusterInformation.datastoreReady is false)")

    async def _node_known(self) -> None:
        """Without its Node, others would neither find a way to the pods here nor see whose their addresses are."""
        try:
            await self._resources.get("Node", self._node)
        except NotFound:
            text = f"there is no Node {self._node} in the datastore; is this node's name right?"
            raise CniError(cni.INVALID_CONFIG, text) from None

    async def _endpoint(self, request: Request) -> model.WorkloadEndpoint | None:
        try:
            found = await self._resources.get("WorkloadEndpoint", self._wep_name(request), request.namespace)
        except NotFound:
            return None
        assert isinstance(found, model.WorkloadEndpoint)
        return found

    def _wep_name(self, request: Request) -> str:
        spec = model.WorkloadEndpointSpec(
            orchestrator=request.orchestrator,
            node=self._node,
            container_id=request.container,
            pod=request.pod,
            endpoint=request.ifname,
        )
        return workload_endpoint_name(spec)

    def _entry(self, verb: Any, request: Request) -> Entry:
        return Entry(
            verb=verb,
            container=request.container,
            ifname=request.ifname,
            host_interface=request.host_interface(self._prefix),
            handle=request.handle,
            namespace=request.namespace,
            wep=self._wep_name(request),
            netns=request.netns,
        )

    async def _timed(self, step: str, work: Awaitable[Any]) -> Any:
        started = time.monotonic()
        try:
            return await work
        finally:
            self._observe(step, time.monotonic() - started)


async def _in_thread(work: Callable[[], None]) -> None:
    """Run what blocks. When cancelled, end only once it has: nobody else may touch the interface before."""
    running = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


def _workload_id(request: Request) -> str:
    return f"{request.namespace}/{request.pod if request.is_kubernetes else request.container}"


def _container_of(resource: Any) -> str:
    return str(resource.spec.container_id)


def _addresses_of(endpoint: model.WorkloadEndpoint) -> tuple[Address, ...]:
    return tuple(ip_network(network).network_address for network in endpoint.spec.ip_networks or ())


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Foreign exceptions as CNI errors, once, here."""
    try:
        yield
    except StoreUnavailable as error:
        raise CniError(cni.TRY_AGAIN, "the datastore is unavailable", str(error)) from error
    except ValidationError as error:
        raise CniError(cni.INVALID_CONFIG, "the description of the pod is not acceptable", str(error)) from error
    except (StoreError, ResourceError) as error:
        raise CniError(cni.INTERNAL, "the datastore refused", str(error)) from error
    except IpamError as error:
        raise CniError(cni.NO_ADDRESS, f"no address: {error}", str(error.reason)) from error
