"""Typha: one watch on etcd, one calculation for all nodes, each node's share on the bus."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from dataclasses import dataclass

from libs.bus import compat, subjects, wire
from libs.bus.api import Bus, BusError
from libs.bus.subjects import Role
from libs.model import keys
from libs.policy.bgp_services import ADVERTISE_CLUSTER_IPS, cluster_ranges
from libs.policy.calculator import Calculator
from libs.resources import version_guard
from libs.runtime import garbage, tracing
from libs.runtime.backends import open_bus, open_store
from libs.runtime.health import Reporter
from libs.runtime.metrics_server import MetricsServer
from libs.runtime.release import version
from libs.runtime.service import Service
from libs.store.api import Store, StoreError
from services.typha.config import TyphaConfig
from services.typha.core.publisher import SINGLE_BYTES, Outgoing, Publisher
from services.typha.metrics import SYNCER, Metrics
from services.typha.shell.moving import Mover
from services.typha.shell.serve import Contact, Server
from services.typha.shell.sync import PREFIX, Sync, WentBack

log = logging.getLogger(__name__)
trace = tracing.tracer("typha")

HEALTH_TIMEOUT_S = 30.0
WAITING = "waiting for etcd"


@dataclass(frozen=True, slots=True)
class Seen:
    """Counts of the publisher that the metrics already have."""

    registered: int = 0
    reused: int = 0


class Typha:
    """Wires the parts. Everything but I/O waits runs on one thread, so a flush sees one state."""

    def __init__(
        self, config: TyphaConfig, service: Service, watching: Reporter, store: Store, bus: Bus, cluster: int
    ) -> None:
        self.config = config
        self.store = store
        self.bus = bus
        self.metrics = Metrics(service.registry)
        ranges, problems = cluster_ranges(config.advertise_cluster_ips)
        for problem in problems:
            log.warning(
                "part of the configuration is ignored", extra={"problem": f"{ADVERTISE_CLUSTER_IPS}: {problem}"}
            )
        self.calculator = Calculator(ranges)
        instance = config.instance or secrets.token_hex(4)
        self.publisher = Publisher(wire.Epoch(instance, time.time_ns(), cluster), self.calculator)
        self.contact = Contact()
        self.sync = Sync(store, self.calculator, self._batch)
        self.server = Server(bus, self.publisher, self.contact, self.metrics, self.flush_for, self.send)
        even = config.connection_rebalancing_mode != "none"
        self.mover = Mover(bus, self.publisher, self.send, self.metrics, even=even)
        self.server.on_report.append(self.mover.heard)
        self._dirty = asyncio.Event()
        self._events: list[wire.EventMsg] = []
        self._flushes = 0
        self._seen = Seen()
        self._watching = watching
        self._version = version()
        self._bus_health = service.health.register("Bus")

    # --- etcd → calculation → bus ---

    def _batch(self, rev: int, events: list[wire.EventMsg]) -> None:
        self.metrics.updates.labels(SYNCER).inc(len(events))
        self.metrics.kvs_per_msg.labels(SYNCER).observe(len(events))
        self.metrics.log_errors.labels(SYNCER).inc(sum(bool(event.error) for event in events))
        if self.config.events:
            self._events += events
        self._dirty.set()

    def flush_for(self, node: str | None) -> None:
        """Before a snapshot: everything is published, and policies that all nodes need are active on `node`, when it
        is for a felix.
        """
        known = node is None or node in self.calculator.nodes
        if node is not None:
            self.calculator.know_node(node)
        self.flush(force=not known)

    def flush(self, *, force: bool = False) -> bool:
        """Publish whatever was read and not yet published; True when it meant something to a reader."""
        rev = self.sync.rev
        if not self.sync.in_sync or (rev <= self.publisher.rev and not self._events and not force):
            return False
        started = time.monotonic()
        before = self.publisher.rev
        with trace.span("typha.flush", attributes={"revision.first": before + 1, "revision": rev}) as span:
            with garbage.paused():
                changes = self.calculator.flush()
            self.metrics.log_errors.labels(SYNCER).inc(len(changes.refused))
            for key, reason in changes.refused.items():
                log.error("bad value, treated as absent", extra={"key": key, "error": reason})
            out = self.publisher.publish(changes, self.sync.take_config(), rev, started)
            self.send(out, span.traceparent)
        self._publish_events()
        self.server.advanced()
        self._flushes += 1
        if self._flushes == 1:
            garbage.settle()  # what was calculated first is what stays
        self.metrics.breadcrumb_seq.labels(SYNCER).set(self._flushes)
        self.metrics.breadcrumb_size.labels(SYNCER).observe(len(out))
        self.metrics.next_breadcrumb.labels(SYNCER).observe(time.monotonic() - started)
        if not out:
            self.metrics.skipped.labels(SYNCER).inc()
        return bool(out)

    def send(self, out: list[Outgoing], traceparent: str | None = None) -> None:
        headers = {"traceparent": traceparent} if traceparent else None
        started = time.monotonic()
        for subject, data in out:
            self._publish(subject, data, headers)
        if out:
            self.metrics.client_write.labels(SYNCER).observe(time.monotonic() - started)

    def _publish(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        """A message that cannot be handed over counts as lost: its number is used up, so readers notice and heal."""
        try:
            self.bus.publish(subject, data, headers)
        except BusError as error:
            log.warning("message not sent", extra={"subject": subject, "bytes": len(data), "error": str(error)})

    def _publish_events(self) -> None:
        events, self._events = self._events, []
        for event in events:
            parsed = keys.parse_key(event.key)
            kind, namespace, name = keys.describe(parsed) if parsed is not None else ("Unknown", "", event.key)
            subject = subjects.event(self.publisher.epoch.instance, kind, namespace, name)
            data = wire.encode(event)
            if len(data) > SINGLE_BYTES:
                event.value, event.error = (
                    wire.NULL,
                    event.error or f"a value of {len(data)} bytes does not fit a message",
                )
                data = wire.encode(event)
            self._publish(subject, data)

    async def flush_forever(self) -> None:
        """At once when idle; while changes keep coming, at most one flush per `batch_s` and never back to back. One
        that meant nothing to any reader (an address was assigned inside a block, say) does not make the next one wait.
        """
        last_end = 0.0
        while True:
            await self._dirty.wait()
            pause = self.config.batch_s - (time.monotonic() - last_end)
            if pause > 0:
                self.metrics.breadcrumb_block.labels(SYNCER).inc()
                await asyncio.sleep(pause)
            else:
                self.metrics.breadcrumb_non_block.labels(SYNCER).inc()
            self._dirty.clear()
            if self.flush():
                last_end = time.monotonic()
            await asyncio.sleep(0)

    async def sync_forever(self) -> None:
        while True:
            try:
                await self.sync.run()
            except WentBack:
                raise
            except StoreError as error:
                log.warning("lost the datastore, listing again", extra={"error": str(error)})
                await asyncio.sleep(0.5)

    async def contact_forever(self, cluster: int) -> None:
        """A quorum read each second tells readers how fresh we are, and us whether etcd went back."""
        while True:
            asked_at, seen = time.monotonic(), self.sync.rev  # the watch may pass the answer on its way
            try:
                listing = await self.store.list(f"{PREFIX}.contact")
                if listing.revision < seen or (await self.store.status()).cluster_id != cluster:
                    raise WentBack(f"etcd is at revision {listing.revision}, we were at {seen}")
                self.contact.at, self.contact.head = asked_at, listing.revision
            except StoreError as error:
                log.debug("no contact with the datastore", extra={"error": str(error)})
            await asyncio.sleep(1.0)

    def start(self) -> None:
        self.server.start()
        self.mover.start()

    async def stop(self) -> None:
        """Readers follow others before this one ends, where there are others."""
        self.mover.leaving = True
        self.server.take_no_newcomers()
        self.beat(time.monotonic())  # the others shall not send readers here
        await self.mover.hand_over(self.config.shutdown_grace_s)

    def beat(self, now: float) -> None:
        publisher = self.publisher
        if publisher.rev:
            beat = wire.Beat(
                epoch=publisher.epoch, rev=publisher.rev, etcd_age_s=self.contact.age_s(now), head=self.contact.head,
                protocol=compat.PROTOCOL, version=self._version, leaving=self.mover.leaving,
            )  # fmt: skip
            self._publish(subjects.beat(publisher.epoch.instance), wire.encode(beat))

    async def beat_forever(self) -> None:
        while True:
            now = time.monotonic()
            publisher = self.publisher
            age = self.contact.age_s(now)
            self.beat(now)
            before = {role: len(publisher.readers_of(role)) for role in Role}
            self.send(publisher.remind(now))
            for role in Role:
                self.metrics.dropped.labels(role).inc(before[role] - len(publisher.readers_of(role)))
            self.server.tick()
            self.mover.tick()
            self._report_health(age)
            await asyncio.sleep(1.0)

    def _report_health(self, age_s: float) -> None:
        detail = f"revision {self.sync.rev}, etcd answered {age_s:.1f} s ago" if self.sync.in_sync else WAITING
        self._watching.report(ready=self.sync.in_sync, detail=detail)
        self._bus_health.report(ready=self.bus.connected, detail="" if self.bus.connected else "not connected")
        metrics = self.metrics
        for role in Role:
            readers = self.publisher.readers_of(role).values()
            metrics.active.labels(role).set(len(readers))
            metrics.streaming.labels(role).set(sum(reader.applied_seq >= reader.seq for reader in readers))
        metrics.cache_size.labels(SYNCER).set(self.sync.size)
        metrics.accepted.labels(SYNCER).inc(self.publisher.registered - self._seen.registered)
        metrics.snapshots_reused.labels(SYNCER).inc(self.publisher.reused - self._seen.reused)
        self._seen = Seen(self.publisher.registered, self.publisher.reused)

    async def ping_forever(self) -> None:
        while True:
            await asyncio.sleep(10.0)
            started = time.monotonic()
            try:
                await self.bus.barrier()
            except BusError:
                continue
            self.metrics.ping.labels(SYNCER).observe(time.monotonic() - started)


async def run(config: TyphaConfig, service: Service) -> None:
    watching = service.health.register("DatastoreSync", timeout_s=HEALTH_TIMEOUT_S)
    async with open_store() as store, open_bus("typha") as bus:
        cluster = await _cluster_id(store, service, watching)
        if cluster is None:
            return
        typha = Typha(config, service, watching, store, bus, cluster)
        typha.start()
        metrics_at = config.metrics_place(config.metrics_port if config.metrics_enabled else 0)
        for name, work in (
            ("sync", typha.sync_forever()),
            ("flush", typha.flush_forever()),
            ("contact", typha.contact_forever(cluster)),
            ("beat", typha.beat_forever()),
            ("ping", typha.ping_forever()),
            ("metrics", MetricsServer(service, metrics_at).run()),
        ):
            service.spawn(work, name=name)
        service.ready()
        await service.stop.wait()
        await typha.stop()


async def _cluster_id(store: Store, service: Service, watching: Reporter) -> int | None:
    """etcd's cluster id, waiting for etcd as long as it takes; None when told to stop meanwhile. Raises ServiceExit for
    data that we would misread.
    """
    delay_s = 0.2
    while not service.stop.is_set():
        try:
            cluster = (await store.status()).cluster_id
            await version_guard.check(store)
            return cluster
        except StoreError as error:
            log.warning("waiting for the datastore", extra={"error": str(error)})
            watching.report(ready=False, detail=WAITING)
        try:
            async with asyncio.timeout(delay_s):
                await service.stop.wait()
        except TimeoutError:
            delay_s = min(5.0, delay_s * 2)
    return None
