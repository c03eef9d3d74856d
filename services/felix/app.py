"""Felix: this node's share of the calculation from the bus, CNI requests from a socket, both into the kernel."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from pathlib import Path
from random import Random

from libs.bus import subjects, wire
from libs.bus.api import Bus, BusError
from libs.bus.explain import Setting
from libs.feed.feed import Apply, Phase
from libs.feed.runner import FeedRunner
from libs.ipam.client import IpamClient
from libs.kube.api import credentials
from libs.policy.output import WorkloadKey
from libs.resources import version_guard
from libs.resources.client import ResourceClient
from libs.resources.guarded import GuardedStore
from libs.runtime import logs
from libs.runtime.backends import open_bus, open_store
from libs.runtime.metrics_server import MetricsServer
from libs.runtime.release import version
from libs.runtime.service import Service
from libs.store.api import Store
from services.felix.config import FelixConfig
from services.felix.core import status
from services.felix.core.configfile import file_settings
from services.felix.core.interface_exclude import InterfaceExclude
from services.felix.core.live import LiveSettings, camel, effective, environment_settings, metrics_at_start
from services.felix.core.mtu import pod_mtu_bytes
from services.felix.core.options import RulesetOptions
from services.felix.core.overlay import OverlaySettings
from services.felix.core.refresh import Timer, shortest_s
from services.felix.core.route_settings import RouteSettings
from services.felix.core.routing import Routing
from services.felix.core.ruleset import RulesetBuilder
from services.felix.core.status import EndpointKey, Status
from services.felix.drivers.bandwidth import BandwidthDriver
from services.felix.drivers.interfaces import InterfaceDriver
from services.felix.drivers.ipam_plugin import IpamPlugins
from services.felix.drivers.overlays import OverlayKeeper
from services.felix.drivers.podlinks import KernelPodLinks
from services.felix.drivers.tables import KernelTables
from services.felix.metrics import Metrics
from services.felix.shell.cni.add import AddSettings
from services.felix.shell.cni.kubernetes import KubernetesPods
from services.felix.shell.cni.peers import Peers
from services.felix.shell.cni.plugin import Plugin
from services.felix.shell.cni.pods import RequestPods
from services.felix.shell.cni.server import CniServer
from services.felix.shell.dataplane import TABLES, Dataplane, Progress
from services.felix.shell.explain import Explainer
from services.felix.shell.journal import Journal
from services.felix.shell.status import StatusReporter
from services.felix.shell.vitals import Vitals
from services.felix.shell.wireguard import KeyPublisher, WireguardReconciler
from services.felix.wireguard_metrics import WireguardCollector

log = logging.getLogger(__name__)

REPORT_S = 10.0
STATUS_PAUSE_S = 0.01  # each pod that comes or goes gives several reasons to look at the endpoints' status
OUTLETS: tuple[logs.Outlet, ...] = ("screen", "file", "syslog")


class Felix:
    """Wires the parts of one node's agent."""

    def __init__(
        self, config: FelixConfig, service: Service, store: Store, bus: Bus, kernel: Kernel, metrics: Metrics
    ) -> None:
        self.config = config
        self.node = config.node_name()
        self.metrics = metrics
        self.bus = bus
        self.statuses = StatusReporter(self.node, store, random=Random(), publish=self.publish_status)
        self.kernel = kernel
        random = Random()
        self._start = RulesetOptions(
            interface_prefixes=config.interface_prefix,
            endpoint_to_host=config.default_endpoint_to_host_action.capitalize(),
            overlay=OverlaySettings(ipv6=config.ipv6_support),
        )
        self._environment = environment_settings(os.environ)
        self._file, self._file_problems = _settings_of(config.felix_config)
        at_start = effective({}, self.node, {}, self._environment, self._start, self._file)
        self._service = service
        self._show(at_start)
        self.metrics_server = MetricsServer(service, metrics_at_start(at_start))
        self.routing = Routing(self.node)
        self.builder = RulesetBuilder(self._start)
        self.key_publisher = KeyPublisher(ResourceClient(store), self.node, random)
        self.wireguard = WireguardReconciler(
            self.node,
            config.wireguard_program,
            kernel.interfaces.underlay_mtu_bytes,
            ipv6=config.ipv6_support,
            on_keys=self.key_publisher.want,
        )
        service.registry.register(WireguardCollector(self.node, lambda: self.wireguard.states))
        self.dataplane = Dataplane(
            self.builder,
            kernel.tables.pair,
            self.routing,
            kernel.interfaces,
            kernel.bandwidth,
            kernel.overlays,
            on_progress=self.report,
            random=random,
            observe=metrics.observe_pass,
            on_pass=self._after_pass,
            encryption=self.wireguard,
        )
        self.feed = FeedRunner(bus, self.node, self.on_apply, random)
        self.settings = LiveSettings(options=self._start)
        self._configured = False
        self._statuses_due: asyncio.TimerHandle | None = None
        self._statuses_late = False  # they were due in the midst of a pass
        self._mtu_written_bytes = 0
        self._mtu_refused = ""
        self._levels = logs.levels()  # those of the environment, which apply where the datastore says nothing
        resources = ResourceClient(store)
        api = credentials(config.kubeconfig, os.environ)
        self.pods = KubernetesPods(api, RequestPods(resources), random)
        self.plugin = Plugin(
            self.node,
            resources,
            IpamClient(store),
            kernel.pod_links,
            self,
            Peers(bus, self.node),
            Journal(config.state_dir / "cni-journal"),
            IpamPlugins(),
            AddSettings(
                config.policy_setup_timeout_s,
                self.pod_mtu_bytes,
                config.mtu_file,
                lambda: (self.settings if self._configured else at_start).routes,
            ),
            interface_prefix=config.interface_prefix[0],
            pods=self.pods,
            observe=lambda step, seconds: self.metrics.cni.labels(step).observe(seconds),
        )
        self.explainer = Explainer(
            self.node,
            bus,
            self.feed,
            self.dataplane,
            self.builder,
            kernel.tables,
            lambda: self.settings.options,
            self.warnings,
            self.shown_settings,
            version(),
        )
        self.vitals = Vitals(service.health, self.feed, self.dataplane, bus, metrics)

    # --- feed → dataplane → report ---

    def on_apply(self, apply: Apply, traceparent: str | None) -> None:
        if apply.delta.config or self.node in apply.delta.nodes or not self._configured:
            state = self.feed.feed.state
            own = state.nodes.get(self.node)
            labels = own.labels if own is not None else {}
            self._configure(effective(state.config, self.node, labels, self._environment, self._start, self._file))
        self.dataplane.push(apply, traceparent)

    def _configure(self, settings: LiveSettings) -> None:
        for problem in settings.problems:
            if problem not in self.settings.problems:
                log.warning("part of the configuration is ignored", extra={"problem": problem})
        before, self.settings = self.settings, settings
        if settings.ip_forwarding and (not self._configured or not before.ip_forwarding):
            self.kernel.interfaces.forward()
        encryption = settings.wireguard, settings.options.mark_mask
        if not self._configured or encryption != (before.wireguard, before.options.mark_mask):
            self.wireguard.configure(settings.wireguard, settings.options.mark_mask)
            self.dataplane.interfaces_changed()
        if (settings.options, settings.service_cidrs) != (before.options, before.service_cidrs):
            self.dataplane.configure(settings.options, settings.service_cidrs)
        self.dataplane.configure_routes(settings.cluster_routes, settings.options.overlay)
        if not self._configured or _of_statuses(settings) != _of_statuses(before):
            self._configured = True
            self._configure_statuses()
        self._show(settings)
        self.metrics_server.serve_at(settings.metrics)
        if settings.routes.sync != before.routes.sync:
            log.warning("routes", extra={"programmed": settings.routes.sync})
        if _of_interfaces(settings) != _of_interfaces(before):
            self.kernel.interfaces.configure(*_of_interfaces(settings))
            self.dataplane.resync_routes()
        for outlet in OUTLETS:
            level = settings.log_levels.get(outlet) or self._levels.get(outlet)
            if outlet in self._levels and level is not None and logs.levels()[outlet] != level:
                log.warning("log level changes", extra={"outlet": outlet, "level": level})
                logs.set_level(level, outlet)

    def _show(self, settings: LiveSettings) -> None:
        """How this process itself is watched."""
        self._service.health.override_timeouts(settings.health_timeouts)
        self._service.registry.show(process=settings.process_metrics, runtime=settings.runtime_metrics)

    def _configure_statuses(self) -> None:
        path, in_etcd, delay_s = _of_statuses(self.settings)
        directory = None if path is None else Path(path) / "endpoint-status"
        self.statuses.configure(directory, in_etcd=in_etcd, delay_s=delay_s)

    def statuses_changed(self) -> None:
        """What is said of the endpoints may be another thing now."""
        if self._statuses_due is None:
            self._statuses_due = asyncio.get_running_loop().call_later(STATUS_PAUSE_S, self._update_statuses)

    def _after_pass(self) -> None:
        if self._statuses_late:
            self._update_statuses()
        else:
            self.statuses_changed()

    def _update_statuses(self) -> None:
        self._statuses_due = None
        plane, builder = self.dataplane, self.builder
        self._statuses_late = plane.passing
        if plane.passing or not plane.passes:
            return
        kernel = status.Kernel(
            running=self.kernel.interfaces.running(),
            workloads=plane.workloads,
            hosts=plane.hosts,
            refused=builder.refused,
            refused_interfaces=builder.refused_interfaces,
            refused_hosts=builder.refused_hosts,
            failures=plane.progress.failures,
            owners={one.name: builder.owner_of(one.name) for one in plane.wanted.values()},
            of_hosts=builder.interfaces_of_hosts(),
        )
        self.statuses.update(status.all_statuses(plane.wanted, plane.wanted_hosts, kernel), plane.wanted)

    def publish_status(self, key: EndpointKey, what: Status) -> None:
        name = str(key)
        message = wire.EndpointStatus(
            node=self.node, endpoint=name, status=what.status, rev=self.dataplane.progress.rev, detail=what.detail
        )
        try:
            self.bus.publish(subjects.endpoint_status(self.node, name), wire.encode(message))
        except BusError as error:
            log.debug("status not sent", extra={"endpoint": name, "error": str(error)})

    def mtu_bytes(self) -> int:
        """Of new pods."""
        pools = self.feed.feed.state.pools.values()
        underlay_bytes = self.kernel.interfaces.underlay_mtu_bytes()
        of_overlays = pod_mtu_bytes(underlay_bytes, pools, self.settings.options.overlay)
        return self.config.mtu_bytes or min(
            of_overlays,
            *self.wireguard.mtu_bytes(),
            underlay_bytes,
        )

    def pod_mtu_bytes(self) -> int:
        """The same, once the file says so too."""
        with contextlib.suppress(OSError):
            self.write_mtu_file()
        return self.mtu_bytes()

    def write_mtu_file(self) -> None:
        """Where other network plugins look for it. Raises OSError when it must be written and cannot be."""
        mtu_bytes = self.mtu_bytes()
        if mtu_bytes == self._mtu_written_bytes:
            return
        try:
            write_number(self.config.mtu_file, mtu_bytes)
        except OSError as error:
            if self.settings.require_mtu_file:
                raise
            if str(error) != self._mtu_refused:
                self._mtu_refused = str(error)
                log.warning("MTU file not written", extra={"error": str(error)})
        else:
            self._mtu_written_bytes = mtu_bytes

    def report(self, progress: Progress) -> None:
        """Tell the cluster what this kernel holds."""
        message = wire.Applied(
            node=self.node,
            epoch=progress.epoch,
            rev=progress.rev,
            seq=progress.seq,
            failures=progress.failures,
            warnings=self.warnings(),
        )
        try:
            self.bus.publish(subjects.applied(self.node), wire.encode(message))
        except BusError as error:
            log.debug("report not sent", extra={"error": str(error)})

    def warnings(self) -> tuple[str, ...]:
        waiting = self.kernel.overlays.waiting.items()
        told = (*self._file_problems, *self.settings.problems, *self.dataplane.problems)
        return (*told, *(f"{name}: {reason}" for name, reason in waiting))

    def shown_settings(self) -> dict[str, Setting]:
        settings = self.settings
        return {camel(name): Setting(settings.shown[name], source) for name, source in settings.sources.items()}

    # --- what CNI needs to know (services/felix/shell/cni/protocols.py) ---

    def ready(self) -> bool:
        return self.dataplane.in_sync and self.dataplane.passes > 0

    def following(self) -> bool:
        return self.bus.connected and self.feed.feed.phase is Phase.FOLLOWING

    def failing(self) -> str:
        return self.dataplane.progress.failures.get(TABLES, "")

    async def programmed(self, key: WorkloadKey, rev: int, timeout_s: float) -> bool:
        request = wire.MarkRequest(rev=rev, nodes=[self.node])
        self.bus.publish(subjects.TYPHA_MARK, wire.encode(request))
        plane = self.dataplane
        return await plane.until(lambda: plane.progress.rev >= rev and key in plane.workloads, timeout_s)

    def enforced(self, key: WorkloadKey) -> bool:
        if self._statuses_due is not None:
            self._statuses_due.cancel()
            self._update_statuses()
        known, plane = self.statuses.of(key), self.dataplane
        if known is None and not plane.passing:
            return False
        held = key in plane.workloads if known is None else known.status != status.ERROR
        return held and TABLES not in plane.progress.failures

    # --- periodic ---

    async def report_forever(self) -> None:
        """The heartbeat by which typha knows its readers, and the probes and gauges."""
        last = 0.0
        while True:
            now = time.monotonic()
            if now - last >= REPORT_S and self.dataplane.in_sync:
                last = now
                self.report(self.dataplane.progress)
            self.vitals.update()
            await asyncio.sleep(1.0)

    async def refresh_forever(self) -> None:
        """Compare with the kernel on a period, in case an event was missed."""
        random, now = Random(), time.monotonic()
        tables, routes, interfaces = Timer(random, now), Timer(random, now), Timer(random, now)
        while True:
            now, settings, start = time.monotonic(), self.settings, self.config
            nftables_s = _first(settings.nftables_refresh_s, start.nftables_refresh_interval_s)
            # IP sets are parts of the tables: whoever compares those compares both.
            if tables.due(now, shortest_s(nftables_s, settings.ipsets_refresh_s)):
                self.dataplane.resync_tables()
            if routes.due(now, _first(settings.route_refresh_s, start.route_refresh_interval_s)):
                self.dataplane.resync_routes()
                self.dataplane.resync_bandwidth()
            if interfaces.due(now, _first(settings.interface_refresh_s, start.interface_refresh_interval_s)):
                self.dataplane.resync_interfaces()
            if self.feed.feed.in_sync:
                self.write_mtu_file()
            await asyncio.sleep(1.0)


def _of_interfaces(settings: LiveSettings) -> tuple[str, bool, RouteSettings, int, InterfaceExclude]:
    """Arguments of InterfaceDriver.configure."""
    spoofing = settings.options.allow_source_spoofing
    return settings.mtu_pattern, spoofing, settings.routes, settings.wireguard.table, settings.interface_exclude


def _of_statuses(settings: LiveSettings) -> tuple[str | None, bool, float]:
    return settings.status_path, settings.status_in_etcd, settings.status_delay_s


def write_number(path: Path, number: int) -> None:
    """Readers see the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(f"{number}\n")
    fresh.replace(path)


def _first(live_s: float | None, configured_s: float) -> float:
    return configured_s if live_s is None else live_s


class Kernel:
    """Everything that talks to this network namespace's kernel."""

    def __init__(self, config: FelixConfig, metrics: Metrics) -> None:
        self.tables = KernelTables(RulesetBuilder.tables(), metrics.count_written)
        self.interfaces = InterfaceDriver(config.interface_prefix, ipv6=config.ipv6_support)
        self.bandwidth = BandwidthDriver(config.interface_prefix)
        self.overlays = OverlayKeeper(self.interfaces)
        self.pod_links = KernelPodLinks()

    async def __aenter__(self) -> Kernel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.tables.close()
        await self.interfaces.close()
        await self.bandwidth.close()
        await self.overlays.close()
        await self.pod_links.close()


async def run(config: FelixConfig, service: Service) -> None:
    node = config.node_name()
    metrics = Metrics(service.registry)
    async with open_store() as store, open_bus(f"felix-{node}") as bus, Kernel(config, metrics) as kernel:
        felix = Felix(config, service, GuardedStore(store), bus, kernel, metrics)
        for name, work in (
            ("feed", felix.feed.run()),
            ("dataplane", felix.dataplane.run()),
            ("nftables events", kernel.tables.watch(felix.dataplane.resync_tables)),
            (
                "interface events",
                kernel.interfaces.watch(
                    felix.dataplane.interfaces_changed, felix.statuses_changed, felix.dataplane.resync_encryption
                ),
            ),
            ("overlay events", kernel.overlays.watch(felix.dataplane.interfaces_changed)),
            ("statuses", felix.statuses.run()),
            ("report", felix.report_forever()),
            ("WireGuard keys", felix.key_publisher.run()),
            ("WireGuard devices", felix.wireguard.read_forever()),
            ("refresh", felix.refresh_forever()),
            ("questions", felix.explainer.run()),
            ("data format", version_guard.check_when_reachable(store)),
            ("metrics", felix.metrics_server.run()),
        ):
            service.spawn(work, name=name)
        felix.plugin.undo.recover()
        service.spawn(felix.plugin.undo.undo_forever(), name="undo")
        service.spawn(felix.pods.warm_up(), name="Kubernetes client")
        async with contextlib.aclosing(felix.pods), CniServer(felix.plugin, config.cni_socket):
            service.ready()
            await service.stop.wait()


def _settings_of(path: Path) -> tuple[dict[str, str], list[str]]:
    """What a node that has no such file says with it: nothing."""
    try:
        return file_settings(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, []
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f"configuration file {path}: {error}"]
