"""kube_controllers: replicas elect a leader, which runs the controllers; the others stand by."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from contextlib import AsyncExitStack
from random import Random

from libs.kube.api import KubeApi, KubeError
from libs.resources import version_guard
from libs.runtime import contact, logs
from libs.runtime.backends import open_store
from libs.runtime.exits import ServiceExit
from libs.runtime.health import Reporter
from libs.runtime.metrics_server import MetricsServer
from libs.runtime.service import Service
from libs.store.api import Compare, Store, StoreError
from libs.store.election import Election
from libs.store.fenced import FencedStore
from services.kube_controllers.config import KubeControllersConfig
from services.kube_controllers.core.settings import Running
from services.kube_controllers.core.upkeep import DEFAULT_METRICS_PORT
from services.kube_controllers.metrics import Metrics
from services.kube_controllers.shell.runner import NAMES, Runner

log = logging.getLogger(__name__)

ELECTION_KEY = "/calico/election/v1/kube-controllers"


class KubeControllers:
    def __init__(
        self,
        config: KubeControllersConfig,
        service: Service,
        store: Store,
        random: Random,
        api: KubeApi | None = None,
    ) -> None:
        self._config = config
        self._store = store
        self._random = random
        self._api = api
        self._metrics = Metrics(service.registry)
        self._datastore = service.health.register("Datastore", timeout_s=contact.STALE_S)
        self._kubernetes = service.health.register("Kubernetes", timeout_s=contact.STALE_S)
        self._leadership = service.health.register("Leadership")
        self._health: dict[str, Reporter] = {name: service.health.register(name) for name in NAMES}
        for reporter in self._health.values():
            reporter.report(detail="standing by")
        self._environment = config.environment(os.environ)
        self._settings: Running | None = None
        holder = f"{socket.gethostname()}.{os.getpid()}"
        self.election = Election(store, ELECTION_KEY, holder=holder, ttl_s=config.lease_s, random=random)
        self._metrics.leader.set_function(lambda: float(self.election.leading))
        port = self._environment.metrics_port
        # A replica that stands by shows them where the environment says, or at the usual port; a leader follows the
        # resource.
        place = config.metrics_place(DEFAULT_METRICS_PORT if port is None else port)
        self.metrics = MetricsServer(service, place)

    async def lead_forever(self) -> None:
        await version_guard.check_when_reachable(self._store)
        await self.election.run(self.lead)

    async def lead(self, fence: Compare) -> None:
        self._metrics.tenures.inc()
        store = FencedStore(self._store, fence)
        runner = Runner(store, self._environment, self._metrics, self._health, self._take, self._random, self._api)
        try:
            self._report_role()
            await runner.run()
        finally:
            self._leadership.report(detail="standing by")

    def _take(self, settings: Running) -> None:
        """What the settings mean for the process itself."""
        old, self._settings = self._settings, settings
        if old is None or old.log_level != settings.log_level:
            try:
                logs.set_level(settings.log_level, "screen")
            except ValueError as error:
                log.warning("log level not changed", extra={"error": str(error)})
        self.metrics.serve_at(self._config.metrics_place(settings.upkeep.metrics_port))
        auto = settings.host_endpoints
        log.info(
            "settings in force",
            extra={
                "host_endpoints": "not run" if auto is None else auto.auto_create,
                "kubernetes": sorted(settings.sync),
                "templates": [one.generate_name for one in auto.templates] if auto is not None else [],
                "environment": settings.status.environment_vars,
            },
        )
        for problem in settings.problems:
            log.warning("setting ignored", extra={"problem": problem})
        if settings.without_effect and (old is None or old.without_effect != settings.without_effect):
            log.info("settings without effect in this version", extra={"settings": settings.without_effect})

    async def contact_forever(self) -> None:
        """Readiness is that the datastore and the Kubernetes API answer us, leader or not."""
        while True:
            checked = self._settings.health_checks if self._settings else self._environment.health_checks is not False
            self._report_role()
            why = await contact.trouble(self._store.status(), StoreError)
            self._datastore.report(ready=not (why and checked), detail=why)
            await self._contact_kubernetes(checked)
            await asyncio.sleep(contact.EVERY_S)

    async def _contact_kubernetes(self, checked: bool) -> None:
        if self._api is None:
            self._kubernetes.report(detail="none: no kubeconfig, and not in a pod")
            return
        why = await contact.trouble(self._api.get("/version"), KubeError)
        self._kubernetes.report(ready=not (why and checked), detail=why)

    def _report_role(self) -> None:
        election = self.election
        role = "leading" if election.leading else f"standing by, leader is {election.leader or 'not known'}"
        self._leadership.report(detail=role)


async def run(config: KubeControllersConfig, service: Service) -> None:
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store())
        api = None
        if (access := config.kubernetes(os.environ)) is not None:
            try:
                api = await stack.enter_async_context(await KubeApi.open(access))
            except ValueError as error:  # not there, not ours to read, no kubeconfig
                raise ServiceExit(2, str(error)) from error
        else:
            log.info("no Kubernetes API: only what lives in etcd is looked after; KUBECONFIG names one")
        app = KubeControllers(config, service, store, Random(), api)
        async with asyncio.TaskGroup() as tasks:  # inside: leaving the lead in an orderly way needs the store
            work = [
                tasks.create_task(app.lead_forever(), name="election"),
                tasks.create_task(app.contact_forever(), name="contact"),
                tasks.create_task(app.metrics.run(), name="metrics"),
            ]
            service.ready()
            await service.stop.wait()
            for task in work:
                task.cancel()
