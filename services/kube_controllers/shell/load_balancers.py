"""The controller that gives addresses of IP pools to Services of type LoadBalancer, and writes them into their status.

Address management is the only memory: what a service's handle holds is what its status shows. A round first releases,
then takes addresses that are asked for exactly, then draws the others, so that nobody is given by chance what another
one wants. Before the addresses of a service that is gone or not ours any more are released, the API server is asked.

A round reads all of address management. So changes that come in a burst are looked at together, and those that concern
no load balancer, or are our own writes coming back, not at all.

The API server knows no fence. A status is written under the service's uid and version, and only after etcd has said
that we still lead: a leader of before writes over nothing that its successor wrote.

A cluster without a pool for load balancers is left alone: another program may serve its services.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from libs.ipam.block import Allocation, ReleaseOption
from libs.ipam.client import IpamClient
from libs.ipam.errors import IpamError
from libs.ipam.pools import Pool, Use
from libs.ipam.requests import AssignIpRequest, AssignRequest
from libs.ipam.source import pool_from_resource
from libs.ipam.wire import Address, go_time_string
from libs.kube.api import MERGE, JsonObject, KubeError
from libs.kube.objects import NAMESPACES, SERVICES, Key, Service, Source
from libs.model.pools import IPPool
from libs.resources.mirror import Mirror
from services.kube_controllers.core import load_balancers as core
from services.kube_controllers.core.controller import Round
from services.kube_controllers.core.load_balancers import LOAD_BALANCER, Plan, Wish
from services.kube_controllers.core.settings import Running
from services.kube_controllers.shell.events import Events
from services.kube_controllers.shell.kubernetes import NOT_FOUND, Kubernetes, Shared
from services.kube_controllers.shell.lock import LOCKED, locked

log = logging.getLogger(__name__)

T = TypeVar("T")

HOST = "load-balancer"
SYNC_S = 300.0
RETRY_S = 30.0
"""While a service waits for an address that is not to be had: nothing tells when it becomes free."""
SPACING_S = 1.0
"""Between two rounds that changes called for."""
_AT_ONCE = 16
_WRITES = 3  # tries of one status that others change as well
_CONFLICT = 409


@dataclass(slots=True)
class _Case:
    """A service that is ours, in one round."""

    key: Key
    service: Service
    handle: str
    wish: Wish
    plan: Plan
    holds: set[Address] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a round rests on; blocks are not known to change before it is due again. services: of type LoadBalancer."""

    assign: object
    services: dict[Key, str]
    unreadable: frozenset[Key]
    namespaces: dict[Key, str]
    pools: frozenset[tuple[str, str]]
    unreadable_pools: frozenset[object]


@dataclass(slots=True)
class _Done:
    writes: Counter[str] = field(default_factory=Counter)
    written: dict[Key, str] = field(default_factory=dict)  # versions that our writes made
    failures: dict[str, str] = field(default_factory=dict)


class LoadBalancers:
    name = "load-balancers"
    reads = frozenset({"IPPool", "ClusterInformation"})
    sources: tuple[Source[Any], ...] = (SERVICES, NAMESPACES)

    def __init__(
        self,
        mirror: Mirror,
        ipam: IpamClient,
        kubernetes: Kubernetes,
        confirm: Callable[[], Awaitable[None]],
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """confirm: raises FenceLost when we are not leader any more."""
        self._mirror = mirror
        self._ipam = ipam
        self._kubernetes = kubernetes
        self._api = kubernetes.api
        self._events = Events(kubernetes.api)
        self._confirm = confirm
        self._clock_ns = clock_ns
        self._monotonic = monotonic
        self._said: dict[Key, str] = {}
        self._last_s = self._due_s = 0.0
        self._seen: _Seen | None = None  # by the last round, None when it is to be made again anyway
        self._detail = ""

    @property
    def _services(self) -> Shared[Service]:
        return self._kubernetes.follow(SERVICES)  # from the first round on, not while it is switched off

    def wanted(self, settings: Running) -> bool:
        return settings.upkeep.load_balancers is not None

    async def round(self, settings: Running) -> Round:
        if locked(self._mirror):
            self._seen = None
            return Round(LOCKED, again_s=SYNC_S)
        seen, now_s = self._look(settings), self._monotonic()
        if self._seen is not None:
            again_s = (self._due_s if seen == self._seen else min(self._due_s, self._last_s + SPACING_S)) - now_s
            if again_s > 0:
                return Round(self._detail, again_s=again_s)
        self._seen = None
        pools, all_known = self._pools()
        held = await self._held()
        done = _Done()
        cases = []
        problems: dict[Key, str] = {}
        serves = any(Use.LOAD_BALANCER in pool.uses and not pool.disabled for pool in pools)
        handles = set()
        for key, service in self._services.objects.items():
            mine, odd = core.managed(service, settings.upkeep.load_balancers)
            if odd:
                problems[key] = odd
            handle = core.handle(service) if mine else ""
            has = held.get(handle, [])
            if not mine or not (serves or has):
                continue
            handles.add(handle)
            case = _Case(key, service, handle, Wish(core.versions(service)), Plan(), {one.address for one in has})
            try:
                case.wish = core.wish_of(service)
                case.plan = core.plan(case.wish, has, _shown(service), pools, all_known=all_known)
            except ValueError as error:  # what it has stays
                case.problems.append(str(error))
            cases.append(case)
        strangers = [handle for handle in held if handle not in handles]
        await _each(strangers, lambda handle: self._drop(handle, held[handle], settings, done))
        await _each(cases, lambda case: self._release(case, case.plan.release, done))
        await _each(cases, lambda case: self._take(case, done))
        await _each(cases, lambda case: self._draw(case, done))
        await _each(cases, lambda case: self._show(case, core.in_order(case.holds, case.wish), done))
        problems |= {case.key: "; ".join(case.problems) for case in cases if case.problems}
        await self._say(problems)
        waiting = f", {len(problems)} with problems" if problems else ""
        self._detail = f"{len(cases)} services{waiting}"
        again_s = RETRY_S if problems else SYNC_S
        self._last_s, self._due_s = now_s, now_s + again_s
        if not done.failures:
            seen.services.update(done.written)
            self._seen = seen
        return Round(self._detail, dict(done.writes), done.failures, again_s=again_s)

    # --- what there is -----------------------------------------------------------------------------------------------

    def _look(self, settings: Running) -> _Seen:
        services, namespaces = self._services, self._kubernetes.follow(NAMESPACES).objects
        return _Seen(
            settings.upkeep.load_balancers,
            {
                key: one.metadata.resource_version
                for key, one in services.objects.items()
                if one.spec.type == LOAD_BALANCER
            },
            frozenset(services.unreadable),
            {key: one.metadata.resource_version for key, one in namespaces.items()},
            frozenset((one.metadata.name, one.metadata.resource_version) for one in self._mirror.of(IPPool)),
            frozenset(self._mirror.unreadable(IPPool)),
        )

    def _pools(self) -> tuple[list[Pool], bool]:
        """And whether those are all."""
        found = []
        all_known = not self._mirror.unreadable(IPPool)
        for resource in self._mirror.of(IPPool):
            try:
                found.append(pool_from_resource(resource))
            except ValueError as error:
                all_known = False
                log.warning("pool left out", extra={"pool": resource.metadata.name, "error": str(error)})
        return found, all_known

    async def _held(self) -> dict[str, list[Allocation]]:
        """By handle: everything that was given to services."""
        held: defaultdict[str, list[Allocation]] = defaultdict(list)
        for block in await self._ipam.blocks():
            for one in block.allocated():
                mine = one.handle is not None and one.handle.startswith("lb-") and one.attrs.get("service")
                if mine and one.handle is not None and one.released_at is None:
                    held[one.handle].append(one)
        return dict(held)

    # --- addresses ---------------------------------------------------------------------------------------------------

    async def _drop(self, handle: str, held: list[Allocation], settings: Running, done: _Done) -> None:
        """All that a handle holds whose service is gone, or not ours any more; unless the API server says otherwise."""
        attrs = held[0].attrs
        key = Key(attrs.get("namespace", ""), attrs["service"])
        if not key.namespace or key in self._services.unreadable:
            return
        try:
            document = await self._api.get(SERVICES.path_of(key))
            service = SERVICES.decode(document)
        except KubeError as error:
            if error.code != NOT_FOUND:
                done.failures[str(key)] = f"its addresses stay: {error}"
                return
            document, service = {}, None
        except ValueError as error:
            done.failures[str(key)] = f"its addresses stay: it cannot be read: {error}"
            return
        same = service is not None and core.handle(service) == handle
        if service is not None and same:
            if core.managed(service, settings.upkeep.load_balancers)[0]:
                return  # the informer is behind
            mine = {str(one.address) for one in held}
            shown = document["status"]["loadBalancer"].get("ingress") or [] if _shown(service) else []
            rest = [entry for entry in shown if entry.get("ip") not in mine]  # whole: another controller may be at work
            if service.spec.type == LOAD_BALANCER and rest != shown:
                case = _Case(key, service, handle, Wish(), Plan())
                await self._write(case, rest, done, sure=True, tries=1)
                if str(key) in done.failures:
                    return  # an address that is still shown is not given to another one
        result = await self._ipam.release_ips(_options(held))
        done.writes["release"] += len(result.freed)
        log.info(
            "addresses of a service released",
            extra={"service": str(key), "addresses": [str(address) for address, _ in result.freed]},
        )

    async def _release(self, case: _Case, allocations: Iterable[Allocation], done: _Done) -> None:
        """What does not suit the service's wish any more. Those go from the status first: nobody is sent to an address
        that another service may be given the next moment.
        """
        going = list(allocations)
        if not going:
            return
        rest = case.holds - {one.address for one in going}
        await self._show(case, core.in_order(rest, case.wish), done, anyway=True)
        if str(case.key) in done.failures:
            case.plan = Plan()
            return
        case.holds = rest
        result = await self._ipam.release_ips(_options(going))
        done.writes["release"] += len(result.freed)
        if result.refused:
            case.problems += [str(error) for error in result.refused.values()]

    async def _take(self, case: _Case, done: _Done) -> None:
        for address in case.plan.take:
            try:
                await self._assign(case, address, done)
            except IpamError as error:
                case.problems.append(f"{address} is not to be had: {error}")

    async def _draw(self, case: _Case, done: _Done) -> None:
        prefer: dict[int, Address] = {address.version: address for address in case.plan.prefer}
        for version in case.plan.draw:
            try:
                if (wanted := prefer.get(version)) is not None:
                    try:
                        await self._assign(case, wanted, done)
                        continue
                    except IpamError:
                        pass  # another's by now
                await self._any(case, version, done)
            except IpamError as error:
                if not self._may_miss(case, version):
                    case.problems.append(f"no IPv{version} address: {error}")

    async def _assign(self, case: _Case, address: Address, done: _Done) -> None:
        request = AssignIpRequest(
            address=address, handle=case.handle, node=HOST, attrs=self._attrs(case), use=Use.LOAD_BALANCER,
            max_per_handle=1,
        )  # fmt: skip
        await self._ipam.assign_ip(request)
        case.holds.add(address)
        done.writes["assign"] += 1

    async def _any(self, case: _Case, version: int, done: _Done) -> None:
        namespace = self._kubernetes.follow(NAMESPACES).objects.get(Key("", case.key.namespace))
        pools = case.wish.pools
        request = AssignRequest(
            handle=case.handle,
            node=HOST,
            num4=int(version == 4),
            num6=int(version == 6),
            attrs=self._attrs(case),
            pools4=pools.get(4, ()) if version == 4 else (),
            pools6=pools.get(6, ()) if version == 6 else (),
            namespace_labels=namespace.metadata.labels if namespace is not None else None,
            use=Use.LOAD_BALANCER,
            max_per_handle=1,
        )
        got = await self._ipam.auto_assign(request)
        case.holds |= {one.ip for one in got.v4} | {one.ip for one in got.v6}
        done.writes["assign"] += len(got.v4) + len(got.v6)
        if not got.complete and not self._may_miss(case, version):
            case.problems.append(f"no IPv{version} address: {got.reasons.get(version, 'none is free')}")

    def _attrs(self, case: _Case) -> dict[str, str]:
        return {
            "service": case.key.name,
            "namespace": case.key.namespace,
            "type": LOAD_BALANCER,
            "timestamp": go_time_string(self._clock_ns()),
        }

    def _may_miss(self, case: _Case, version: int) -> bool:
        """The second family of a service that only prefers to have both."""
        return case.service.spec.ip_family_policy == "PreferDualStack" and version != case.wish.versions[0]

    # --- what is told ------------------------------------------------------------------------------------------------

    async def _show(self, case: _Case, addresses: list[str], done: _Done, *, anyway: bool = False) -> None:
        """Into the status, where it differs. anyway: what the informer says of the status is not believed, it may be
        older than our last write.
        """
        if anyway or _shown(case.service) != addresses:
            await self._write(case, [{"ip": address} for address in addresses], done, sure=anyway)

    async def _write(
        self, case: _Case, ingress: list[JsonObject], done: _Done, *, sure: bool = False, tries: int = _WRITES
    ) -> None:
        """sure: what is not written is a failure; else what the informer will tell of is none. tries: 1 where `ingress`
        was made of the status that is there.
        """
        key = case.key
        for left in reversed(range(tries)):
            await self._confirm()
            metadata = case.service.metadata
            body = {
                "metadata": {"uid": metadata.uid, "resourceVersion": metadata.resource_version},
                "status": {"loadBalancer": {"ingress": ingress or None}},
            }
            try:
                document = await self._api.patch(f"{SERVICES.path_of(key)}/status", body, MERGE)
                case.service = SERVICES.decode(document)
            except KubeError as error:
                if error.code == NOT_FOUND:
                    return  # the informer will tell
                if error.code != _CONFLICT:
                    done.failures[str(key)] = f"status not written: {error}"
                    return
                if left and await self._look_again(case, done):
                    continue
                break
            except ValueError as error:
                done.failures[str(key)] = f"status written, and what is there now cannot be read: {error}"
                return
            done.written[key] = case.service.metadata.resource_version
            done.writes["update"] += 1
            return
        if sure:
            done.failures.setdefault(str(key), "status not written: the service was changed meanwhile")

    async def _look_again(self, case: _Case, done: _Done) -> bool:
        """After a conflict: is it the service that we know, and asks for the same? Then at the version that it has."""
        try:
            now = SERVICES.decode(await self._api.get(SERVICES.path_of(case.key)))
        except (KubeError, ValueError) as error:
            done.failures[str(case.key)] = f"status not written: {error}"
            return False
        known = case.service
        same = (now.metadata.uid, now.metadata.annotations, now.spec)
        if same != (known.metadata.uid, known.metadata.annotations, known.spec):
            return False
        case.service = now
        return True

    async def _say(self, problems: dict[Key, str]) -> None:
        """Each once, until it changes: in the log, and as an event of the service."""
        for key, problem in problems.items():
            if self._said.get(key) == problem:
                continue
            log.warning("service without the address it asks for", extra={"service": str(key), "problem": problem})
            service = self._services.objects.get(key)
            if service is not None:
                await self._events.warn(SERVICES, service.metadata, "LoadBalancerAddress", problem)
        self._said = problems


def _shown(service: Service) -> list[str]:
    return [one.ip for one in service.status.load_balancer.ingress]


def _options(allocations: Iterable[Allocation]) -> list[ReleaseOption]:
    return [ReleaseOption(one.address, one.handle, one.sequence) for one in allocations]


async def _each(items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Several at a time; all come to their end before the first error is raised."""
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(item: T) -> None:
        async with limit:
            await work(item)

    for result in await asyncio.gather(*(one(item) for item in items), return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
