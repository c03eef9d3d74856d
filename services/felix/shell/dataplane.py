"""From applied changes to the kernel: the one task that writes nftables tables, routes and interface settings.

`push` takes what the feed decided (cheap, no I/O). `run` folds everything pushed meanwhile into the desired state and
reconciles, in this order: both nftables tables (each one transaction: sets, chains, dispatch), bandwidth limits,
WireGuard, tunnel devices and what they know of other nodes, then routes, then what nothing leads to any more of the
tunnels. So a workload's interface is policed and limited before packets can be routed to it, and a route never leads to
a tunnel that is not there yet or not there any more. Nothing is written before the first snapshot.

What fails stays dirty and is tried again; it is reported by object together with the revision that everything else has
reached. When the kernel refuses a transaction for something that belongs to a policy or an endpoint, that one is denied
everything, the others go on: the transaction is made again without it. It is tried as it is when it changes, and
with each periodic comparison.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

from libs.bus import wire
from libs.feed.delta import Delta
from libs.feed.feed import Apply
from libs.nftables.ops import Failure, TransactionRefused
from libs.nftables.state import TableState
from libs.policy.output import Host, Workload, WorkloadKey
from libs.runtime import tracing
from services.felix.core.options import RulesetOptions
from services.felix.core.overlay import ClusterRoutes, OverlaySettings, WantedOverlays
from services.felix.core.routing import Routing
from services.felix.core.ruleset import RulesetBuilder

log = logging.getLogger(__name__)
trace = tracing.tracer("felix")

RETRY_S = (0.05, 10.0)
TABLES = "nftables"  # among the failures: a table stays as it was
MAX_REFUSALS = 32  # in one pass; each costs a transaction
# The kernel is short of something or was disturbed: that says nothing about the object at which it happened.
PASSING = frozenset({errno.ENOMEM, errno.ENOBUFS, errno.EINTR, errno.EAGAIN, errno.ENFILE, errno.EMFILE})


class TableDriver(Protocol):
    """One nftables table (services/felix/drivers/tables.py)."""

    @property
    def desired(self) -> TableState: ...

    async def step(self) -> object:
        """Raises TransactionRefused, or anything else that says why the kernel could not be brought in line."""
        ...

    def resync(self) -> None: ...


class RouteWriter(Protocol):
    """Routes and settings of interfaces (services/felix/drivers/routes.py)."""

    def resync(self) -> None: ...

    def resync_interfaces(self) -> None: ...

    def host_addresses(self) -> Mapping[str, frozenset[str]]:
        """Addresses of each interface that is no workload's, as of now. Raises OSError."""
        ...

    def ipvs(self) -> bool:
        """Whether kube-proxy leads packets to services by IPVS here. Raises OSError."""
        ...

    async def step(self, routing: Routing, workloads: dict[WorkloadKey, Workload]) -> dict[str, str]:
        """Make the kernel match; object -> reason for what could not be."""
        ...


class BandwidthWriter(Protocol):
    """Traffic control of workloads' interfaces (services/felix/drivers/bandwidth.py)."""

    def resync(self) -> None: ...

    def interfaces_changed(self) -> None: ...

    async def step(self, workloads: Mapping[WorkloadKey, Workload]) -> dict[str, str]:
        """Make the kernel match; object -> reason for what could not be."""
        ...


class OverlayWriter(Protocol):
    """Tunnel devices and their entries (services/felix/drivers/overlays.py). Both return object -> reason for what
    could not be.
    """

    def resync(self) -> None: ...

    async def prepare(self, wanted: WantedOverlays, settings: OverlaySettings) -> tuple[bool, dict[str, str]]:
        """Make what routes are about to lead to; also whether there are new devices."""
        ...

    async def finish(self, wanted: WantedOverlays) -> dict[str, str]:
        """Remove what they led to before."""
        ...


class Encryption(Protocol):
    """WireGuard between nodes (services/felix/shell/wireguard.py)."""

    def fold(self, delta: Delta) -> None: ...

    def resync(self) -> None: ...

    def interfaces_changed(self) -> None: ...

    async def step(self) -> dict[str, str]:
        """Make the kernel match; object -> reason for what could not be, or is not encrypted."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """Where the kernel stands. failures: object -> reason. unlimited: those of them that are about bandwidth, so that
    policy and routes are in place all the same.
    """

    epoch: wire.Epoch | None = None
    rev: int = 0
    seq: int = -1
    failures: dict[str, str] = field(default_factory=dict)
    unlimited: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Waiter:
    ready: Callable[[], bool]
    future: asyncio.Future[None]


class Dataplane:
    def __init__(
        self,
        builder: RulesetBuilder,
        tables: tuple[TableDriver, TableDriver],
        routing: Routing,
        routes: RouteWriter,
        bandwidth: BandwidthWriter,
        overlays: OverlayWriter,
        *,
        on_progress: Callable[[Progress], None],
        random: Random,
        observe: Callable[[float, int], None] = lambda seconds, failures: None,
        on_pass: Callable[[], None] = lambda: None,
        encryption: Encryption | None = None,
    ) -> None:
        """on_progress: after a pass that changed anything that others should know. observe: duration and number of
        failures of every pass. on_pass: after every pass.
        """
        self.progress = Progress()
        self.in_sync = False
        self.workloads: dict[WorkloadKey, Workload] = {}  # as in the kernel after the last pass
        self.hosts: dict[str, Host] = {}  # host endpoints, likewise
        self.wanted: dict[WorkloadKey, Workload] = {}
        self.wanted_hosts: dict[str, Host] = {}
        self.passes = 0
        self.steps = 0  # that came to an end, of all passes
        self.passing = False  # what is wanted may be ahead of the kernel and of `progress`
        self._builder = builder
        self._tables = tables
        self._routing = routing
        self._routes = routes
        self._bandwidth = bandwidth
        self._overlays = overlays
        self._encryption = encryption
        self._on_progress = on_progress
        self._observe = observe
        self._on_pass = on_pass
        self._random = random
        self._queue: list[tuple[Apply, str | None]] = []
        self._wake = asyncio.Event()
        self._waiters: list[_Waiter] = []
        self._refused: dict[str, str] = {}
        self._tables_work = False
        self._ipvs: bool | None = None  # whether kube-proxy uses it here; None: not known yet
        self._retry = 0

    # --- asked for by others ---

    @property
    def problems(self) -> tuple[str, ...]:
        """What of the configuration has no effect on this host."""
        return self._builder.problems

    def push(self, apply: Apply, traceparent: str | None = None) -> None:
        self._queue.append((apply, traceparent))
        self._wake.set()

    def configure(self, options: RulesetOptions, service_cidrs: tuple[str, ...]) -> None:
        """Takes effect with the next pass."""
        self._builder.set_service_cidrs(service_cidrs)
        self._builder.set_options(options)
        self._tables_work = True
        if self.in_sync:
            self._wake.set()

    def configure_routes(self, owner: ClusterRoutes, settings: OverlaySettings) -> None:
        """Takes effect with the next pass."""
        if self._routing.configure(owner, settings) and self.in_sync:
            self._wake.set()

    def resync_tables(self) -> None:
        for table in self._tables:
            table.resync()
        self._builder.try_again()
        self._tables_work = True
        self._wake.set()

    def resync_routes(self) -> None:
        """Compare routes, tunnels and interfaces' settings with the kernel."""
        self._routes.resync()
        self._overlays.resync()
        if self._encryption is not None:
            self._encryption.resync()
        self.interfaces_changed()

    def resync_interfaces(self) -> None:
        """Compare interfaces, their addresses and settings with the kernel."""
        self._routes.resync_interfaces()
        self.interfaces_changed()

    def interfaces_changed(self) -> None:
        """The route writer has something to do, and knows what: interfaces, addresses or routes changed."""
        self._bandwidth.interfaces_changed()
        if self._encryption is not None:
            self._encryption.interfaces_changed()
        self._wake.set()

    def resync_encryption(self) -> None:
        if self._encryption is not None:
            self._encryption.resync()
            self._wake.set()

    def resync_bandwidth(self) -> None:
        self._bandwidth.resync()
        self._wake.set()

    async def until(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `ready()` holds after some pass; False when the time is up."""
        if ready():
            return True
        waiter = _Waiter(ready, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter.future
        except TimeoutError:
            return False
        finally:
            self._waiters.remove(waiter)
        return True

    # --- the task ---

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not self._queue and not self.in_sync:
                continue
            await self._pass()

    async def _pass(self) -> None:
        started = time.monotonic()
        problems = self.problems
        self.passing = True
        queue, self._queue = self._queue, []
        last = queue[-1][0] if queue else None
        parent = next((traceparent for _, traceparent in reversed(queue) if traceparent), None)
        rev = last.rev if last is not None else self.progress.rev
        with trace.span("felix.apply", parent=parent, attributes={"revision": rev}) as span:
            for apply, _ in queue:
                self._fold(apply)
            self.in_sync = self.in_sync or bool(queue)
            failures = dict(self._refused)
            failures |= await self._write_tables()
            unlimited = await self._bandwidth.step(self.wanted)
            failures |= unlimited
            self.steps += 1
            if self._encryption is not None:
                failures |= await self._encryption.step()
                self.steps += 1
            failures |= await self._write_routes()
            span.set("failures", len(failures))
        if not self._tables_work:
            self.workloads, self.hosts = dict(self.wanted), dict(self.wanted_hosts)
        self.passes += 1
        self.steps += 1
        self._observe(time.monotonic() - started, len(failures))
        epoch, seq = (last.epoch, last.seq) if last is not None else (self.progress.epoch, self.progress.seq)
        before, self.progress = self.progress, Progress(epoch, rev, seq, failures, frozenset(unlimited))
        self.passing = False
        if failures:
            self._later()
        else:
            self._retry = 0
        if queue or failures != before.failures or self.problems != problems:
            self._on_progress(self.progress)
        for waiter in self._waiters:
            if not waiter.future.done() and waiter.ready():
                waiter.future.set_result(None)
        self._on_pass()

    async def _write_routes(self) -> dict[str, str]:
        overlays = self._routing.overlays
        wanted = overlays.wanted
        new_devices, failures = await self._overlays.prepare(wanted, overlays.settings)
        if new_devices:
            self._routes.resync()
        failures |= await self._routes.step(self._routing, self.wanted)
        return failures | await self._overlays.finish(wanted)

    def _fold(self, apply: Apply) -> None:
        """Into the desired state. A value that cannot be programmed is named and leaves the others alone."""
        delta, builder, routing = apply.delta, self._builder, self._routing
        for set_id, ipset in delta.sets.items():
            self._try(f"ipset {set_id}", lambda s=set_id, v=ipset: builder.set_ipset(s, v))  # type: ignore[misc]
        for set_id, (added, removed) in delta.set_changes.items():
            if set_id not in delta.sets:
                self._try(
                    f"ipset {set_id}",
                    lambda s=set_id, a=added, r=removed: builder.change_ipset(s, a, r),  # type: ignore[misc]
                )
        for key, policy in delta.policies.items():
            builder.set_policy(key, policy)
        for name, profile in delta.profiles.items():
            builder.set_profile(name, profile)
        for workload_key, workload in delta.workloads.items():
            builder.set_workload(workload_key, workload)
            routing.put_workload(workload_key, workload)
            if workload is None:
                self.wanted.pop(workload_key, None)
            else:
                self.wanted[workload_key] = workload
        for host_name, host in delta.hosts.items():
            builder.set_host(host_name, host)
            if host is None:
                self.wanted_hosts.pop(host_name, None)
            else:
                self.wanted_hosts[host_name] = host
        for cidr, pool in delta.pools.items():
            builder.set_pool(cidr, pool)
            routing.put_pool(cidr, pool)
        for node, info in delta.nodes.items():
            builder.set_node(node, info)
            routing.put_node(node, info)
        for cidr, block in delta.blocks.items():
            routing.put_block(cidr, block)
        if self._encryption is not None:
            self._encryption.fold(delta)
        if (
            delta.policies
            or delta.profiles
            or delta.sets
            or delta.set_changes
            or delta.workloads
            or delta.hosts
            or delta.pools
            or delta.nodes
        ):
            self._tables_work = True

    def _try(self, name: str, change: Callable[[], None]) -> None:
        try:
            change()
        except (ValueError, KeyError) as error:
            self._refused[name] = str(error)
            log.error("cannot be programmed", extra={"object": name, "error": str(error)})
        else:
            self._refused.pop(name, None)

    async def _write_tables(self) -> dict[str, str]:
        unread: dict[str, str] = {}
        try:
            if (ipvs := self._routes.ipvs()) != self._ipvs:
                if ipvs or self._ipvs is not None:
                    log.info("kube-proxy's mode IPVS", extra={"present": ipvs})
                self._ipvs = ipvs
                self._tables_work |= self._builder.set_ipvs(ipvs)
            if self._builder.expects_addresses:
                self._tables_work |= self._builder.set_host_addresses(self._routes.host_addresses())
        except OSError as failed:  # what was known before stands, and it is tried again
            unread["interfaces"] = str(failed)
            if self._ipvs is None:  # a table without its stages would open what the one before us closes
                return unread | self._not_compiled()
        if not self._tables_work:
            return unread | self._not_compiled()  # a pass for routes alone does not make these good
        self._tables_work = False
        error = await self._apply_tables()
        failures = unread | self._not_compiled()
        if error is not None:
            log.error("ruleset not applied", extra={"error": str(error)})
            failures[TABLES] = str(error)
            self._tables_work = True
        return failures

    async def _apply_tables(self) -> Exception | None:
        """With whatever the kernel refuses denied. Returns what is left of its refusals, which nobody is to blame
        for.
        """
        failed: Exception | None = None
        for _ in range(MAX_REFUSALS):
            self._builder.apply_to(*(table.desired for table in self._tables))
            failed, again = None, False
            for table in self._tables:
                try:
                    await table.step()
                except TransactionRefused as error:
                    failed = error
                    again |= self._refuse(error.failures[0])
                except Exception as error:  # anything else: reported, tried again later
                    failed = error
                self.steps += 1
            if not again:
                break
        return failed

    def _refuse(self, failure: Failure) -> bool:
        """False when denying someone does not help."""
        if failure.code in PASSING or not failure.name or not self._builder.refuse(failure.name, str(failure)):
            return False
        log.error("refused by the kernel, denied instead", extra={"object": failure.name, "error": str(failure)})
        return True

    def _not_compiled(self) -> dict[str, str]:
        builder = self._builder
        return (
            {str(owner): reason for owner, reason in builder.refused.items()}
            | {f"workload interface {name}": reason for name, reason in builder.refused_interfaces.items()}
            | {f"host endpoint {name}": reason for name, reason in builder.refused_hosts.items()}
            | {f"nftables {name}": reason for name, reason in builder.unwritten.items()}
        )

    def _later(self) -> None:
        """Try again, less and less often."""
        self._retry += 1
        low, high = RETRY_S
        delay_s = self._random.uniform(0.5, 1.0) * min(high, low * 2 ** min(self._retry, 12))
        asyncio.get_running_loop().call_later(delay_s, self._wake.set)
