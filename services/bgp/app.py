"""bgp: this node's speaker, by the cluster's resources or by a file."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from libs.bus import bgp as told
from libs.runtime import logs
from libs.runtime.backends import open_bus
from libs.runtime.exits import ServiceExit
from libs.runtime.release import version
from libs.runtime.service import Service
from services.bgp.config import BgpConfig
from services.bgp.core.rib.fib import FibChange
from services.bgp.core.settings import SpeakerSettings
from services.bgp.core.settings_file import SettingsError, decode_settings
from services.bgp.metrics import SpeakerCollector
from services.bgp.shell import report
from services.bgp.shell.cluster import Cluster
from services.bgp.shell.control import Control
from services.bgp.shell.kernel import Kernel
from services.bgp.shell.kubernetes_secrets import KubernetesSecrets, own_namespace
from services.bgp.shell.peer import Peer
from services.bgp.shell.secrets import SecretDirectory, Secrets
from services.bgp.shell.speaker import Speaker

log = logging.getLogger(__name__)


class Bgp:
    """speaker: None until there are settings."""

    def __init__(self, config: BgpConfig, service: Service) -> None:
        self.config = config
        self.speaker: Speaker | None = None
        self.started = datetime.now(UTC)
        self.version = version()
        self._log_level = ""
        self.on_session: list[Callable[[told.Peer], None]] = []
        self.on_routes: list[Callable[[list[FibChange]], None]] = []
        self._health = service.health.register("Speaker")
        self._health.report(ready=False, detail="no settings yet")
        self._secrets = _secrets(config, service)
        SpeakerCollector(lambda: self.speaker, service.registry)

    def control(self) -> Control:
        return Control(self.config.control_socket, lambda: self.speaker, started=self.started, version=self.version)

    async def take(self, settings: SpeakerSettings) -> None:
        """The first time it starts the speaker, later it changes it."""
        if settings.log_level != self._log_level:
            self._log_level = settings.log_level
            _set_log_level(settings.log_level or self.config.log_level)
        if self.speaker is None:
            kernel = Kernel(interface_prefixes=self.config.interface_prefix)
            speaker = Speaker(settings, kernel, self._secrets, Random())
            kernel.on_routes += self.on_routes
            speaker.on_session.append(self._session_changed)
            try:
                await speaker.start()
            except BaseException:
                await speaker.stop()  # the next one listens where this one does
                raise
            self.speaker = speaker
        else:
            await self.speaker.configure(settings)
        self._health.report()

    def state(self, request: told.StateRequest) -> told.State | None:
        if self.speaker is None:
            return None
        return report.state(self.speaker, request, started=self.started, version=self.version)

    def _session_changed(self, peer: Peer) -> None:
        if self.speaker is not None:
            for tell in self.on_session:
                tell(report.peer_state(self.speaker, peer))

    async def stop(self) -> None:
        if self.speaker is not None:
            await self.speaker.stop()


def _secrets(config: BgpConfig, service: Service) -> Secrets:
    if (credentials := config.kubernetes()) is None:
        return SecretDirectory(config.secrets_dir)
    found = KubernetesSecrets(credentials, own_namespace(config.secrets_namespace), Random())
    service.spawn(found.run(), name="secrets of Kubernetes")
    return found


def _set_log_level(level: str) -> None:
    """BGPConfiguration's logSeverityScreen over what the process was started with."""
    try:
        logs.set_level(level.lower(), "screen")
    except ValueError as error:
        log.warning("log level not changed", extra={"error": str(error)})


async def run(config: BgpConfig, service: Service) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a mesh of 1,000 nodes is 1,000 sockets
    app = Bgp(config, service)
    async with app.control():
        try:
            if config.settings is None:
                await _by_cluster(app, service)
            else:
                await _by_file(app, config.settings, service)
        finally:
            await app.stop()


async def _by_cluster(app: Bgp, service: Service) -> None:
    config, node = app.config, app.config.node_name()
    async with open_bus(f"bgp-{node}") as bus:
        cluster = Cluster(
            bus,
            node,
            router_id=config.router_id,
            cluster_ips=config.advertise_cluster_ips,
            state_dir=config.state_dir,
            take=app.take,
            state=app.state,
            random=Random(),
            connected=bus.wait_connected,
        )
        app.on_session.append(cluster.session_changed)
        app.on_routes.append(cluster.routes_changed)
        await cluster.start_from_disk()
        service.spawn(cluster.run(), name="cluster")
        service.ready()
        await service.stop.wait()


async def _by_file(app: Bgp, path: Path, service: Service) -> None:
    try:
        await app.take(_read(path))
    except (OSError, SettingsError) as error:
        raise ServiceExit(2, f"{path}: {error}") from error
    again = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, again.set)
    service.ready()
    stop = asyncio.create_task(service.stop.wait())
    while not service.stop.is_set():
        hup = asyncio.create_task(again.wait())
        await asyncio.wait({stop, hup}, return_when=asyncio.FIRST_COMPLETED)
        if again.is_set():
            again.clear()
            try:
                await app.take(_read(path))
            except (OSError, SettingsError) as error:
                log.error("settings not taken, the last good ones stay", extra={"file": str(path), "error": str(error)})
            else:
                log.info("settings read again", extra={"file": str(path)})
        hup.cancel()


def _read(path: Path) -> SpeakerSettings:
    return decode_settings(path.read_bytes())
