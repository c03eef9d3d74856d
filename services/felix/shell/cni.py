"""Plugs pods in and out: CNI ADD, DEL and CHECK, as steps that can each fail or be cut short and leave nothing behind.

ADD: journal → addresses (IPAM) → WorkloadEndpoint in etcd while the veth pair is made → wait until this node's kernel holds the
pod's policy at that revision → answer. Until its policy is programmed the interface is
unknown to the ruleset and passes nothing. Any failure undoes what was done, in reverse, and releases the addresses.
DEL: journal → endpoint (only if it is still this container's) → veth → addresses last, so that nobody gets them too early.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_interface, ip_network
from typing import Any, Protocol

from libs import model
from libs.ipam.client import IpamClient
from libs.ipam.errors import HandleMissing, IpamError
from libs.ipam.pools import Use
from libs.ipam.requests import AssignIpRequest, AssignRequest
from libs.model.names import workload_endpoint_name
from libs.policy.output import WorkloadKey
from libs.resources.client import ResourceClient
from libs.resources.errors import NotFound, ResourceError
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


class PodLinks(Protocol):
    """The kernel side of an attachment (services/felix/drivers/podlinks.py): quick, synchronous. All raise CniError."""

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

    def status(self, key: WorkloadKey, status: str, rev: int) -> None: ...


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

    async def handle(self, request: Request) -> dict[str, Any] | None:
        """The result object of ADD; None where success has none. Raises CniError."""
        host = request.host_interface(self._prefix)
        async with self._one_at_a_time(host):
            with trace.span(
                f"cni.{request.command.lower()}", attributes={"container": request.container, "host": host}
            ):
                with _translated():
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
            raise CniError(cni.TRY_AGAIN, "this node has no policy from typha yet; is typha reachable?")
        await self._datastore_ready()
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
            # Also when cancelled: the undoing itself is bounded, and what it does not reach the journal still names.
            async with asyncio.timeout(UNDO_S):
                await asyncio.shield(asyncio.ensure_future(self._undo(entry)))
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
            started = time.monotonic()
            mtu = request.config.mtu or self._mtu_bytes()
            self._links.connect(host, request.netns, request.ifname, addresses, mac, mtu)
            self._observe("veth", time.monotonic() - started)
        finally:
            rev = await storing  # also after a failure: undoing must meet no write in progress
        key = WorkloadKey(request.orchestrator, _workload_id(request), request.ifname)
        if not await self._timed("policy", self._enforcement.programmed(key, rev, self._policy_timeout_s)):
            text = f"policy of {host} is not in the kernel after {self._policy_timeout_s:g} s; is typha reachable?"
            raise CniError(cni.TRY_AGAIN, text)
        self._enforcement.status(key, "up", rev)
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
        return tuple(interface.ip for interface in (*result.v4, *result.v6))

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
                    name=port.name, protocol=port.protocol, port=port.port, host_port=port.host_port
                )
                for port in facts.ports
            ],
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
        entry = self._entry("DEL", request)
        self._journal.begin(entry)
        await self._undo(entry)
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

    async def recover(self) -> None:
        """Finish or undo what a crash cut short. Called once at start, before requests are served."""
        entries, bad = self._journal.unfinished()
        for path in bad:
            log.error("journal entry is unreadable and kept for inspection", extra={"file": str(path)})
        for entry in entries:
            log.warning("undoing an interrupted request", extra={"verb": entry.verb, "container": entry.container})
            delay_s = 0.5
            while True:
                try:
                    await self._undo(entry)
                    break
                except (StoreError, CniError) as error:
                    log.warning("not yet possible, trying again", extra={"error": str(error)})
                    await asyncio.sleep(delay_s)
                    delay_s = min(10.0, delay_s * 2)

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
            self._links.remove(entry.host_interface, entry.netns, entry.ifname)
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


def _workload_id(request: Request) -> str:
    return f"{request.namespace}/{request.pod if request.is_kubernetes else request.container}"


def _container_of(resource: Any) -> str:
    return str(resource.spec.container_id)


def _addresses_of(endpoint: model.WorkloadEndpoint) -> tuple[Address, ...]:
    return tuple(ip_interface(network).ip for network in endpoint.spec.ip_networks or ())


@contextlib.contextmanager
def _translated() -> Any:
    """Foreign exceptions as CNI errors, once, here."""
    try:
        yield
    except StoreUnavailable as error:
        raise CniError(cni.TRY_AGAIN, "the datastore is unavailable", str(error)) from error
    except (StoreError, ResourceError) as error:
        raise CniError(cni.INTERNAL, "the datastore refused", str(error)) from error
    except IpamError as error:
        raise CniError(cni.NO_ADDRESS, f"no address: {error}", str(error.reason)) from error
