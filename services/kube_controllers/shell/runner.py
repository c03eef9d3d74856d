"""What a leader does: follows the datastore, keeps the configuration, runs the controllers that it switches on.

Made anew for each tenure and given a fenced store, so that nothing seen or begun before counts: the first listing is
younger than the leadership, and a write that comes too late is refused by etcd.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

from libs.kube.api import KubeApi
from libs.kube.objects import Source
from libs.resources.client import ResourceClient
from libs.resources.mirror import Mirror
from libs.resources.release import IpamRelease
from libs.runtime.health import Reporter
from libs.store.fenced import FencedStore
from services.kube_controllers.core.controller import Controller, Observer, Round
from services.kube_controllers.core.nodes import Nodes
from services.kube_controllers.core.pods import Pods
from services.kube_controllers.core.policies import ClusterPolicies, Policies
from services.kube_controllers.core.profiles import Namespaces, ServiceAccounts
from services.kube_controllers.core.services import EndpointSlices, Services
from services.kube_controllers.core.settings import Environment, Running, Sync
from services.kube_controllers.core.translation import Translation
from services.kube_controllers.metrics import Metrics
from services.kube_controllers.shell.configuration import Configuration
from services.kube_controllers.shell.host_endpoints import HostEndpoints
from services.kube_controllers.shell.kubernetes import Kubernetes
from services.kube_controllers.shell.rounds import Rounds
from services.kube_controllers.shell.synchronizer import Synchronizer
from services.kube_controllers.shell.upkeep import KINDS as UPKEEP_KINDS
from services.kube_controllers.shell.upkeep import NAMES as UPKEEP_NAMES
from services.kube_controllers.shell.upkeep import upkeep

log = logging.getLogger(__name__)

TRANSLATIONS: Mapping[str, Callable[[Sync], Translation[Any]]] = {
    "policy": lambda settings: Policies(),
    "cluster-policy": lambda settings: ClusterPolicies(),
    "namespace": lambda settings: Namespaces(),
    "service-account": lambda settings: ServiceAccounts(),
    "workload-endpoint": lambda settings: Pods(),
    "node": lambda settings: Nodes(sync_labels=settings.labels),
    "service": lambda settings: Services(),
    "endpoint-slice": lambda settings: EndpointSlices(),
}
"""Controllers that bring Kubernetes' objects; names as in `settings.SYNCHRONIZED`."""
NAMES = (Configuration.name, HostEndpoints.name, *UPKEEP_NAMES, *TRANSLATIONS)
KINDS = Configuration.reads | HostEndpoints.reads | UPKEEP_KINDS


def controllers(
    mirror: Mirror,
    resources: ResourceClient,
    store: FencedStore,
    kubernetes: Kubernetes | None,
    metrics: Metrics,
) -> Sequence[Controller]:
    """Those in rounds. A new one comes here, with its name in NAMES and what it reads in KINDS."""
    return (HostEndpoints(mirror, resources), *upkeep(mirror, store, kubernetes, metrics.ipam))


class Runner:
    """health: a reporter for each of NAMES. on_settings: called whenever other settings come into force. api: None
    where there is no Kubernetes.
    """

    def __init__(
        self,
        store: FencedStore,
        environment: Environment,
        metrics: Metrics,
        health: Mapping[str, Reporter],
        on_settings: Callable[[Running], None],
        random: Random,
        api: KubeApi | None = None,
    ) -> None:
        resources = ResourceClient(store, release=IpamRelease(store))
        self.kubernetes = None if api is None else Kubernetes(api, random)
        self._resources = resources
        self._random = random
        self._mirror = Mirror(store, KINDS, self._on_change, random)
        self._metrics = metrics
        self._health = health
        self._on_settings = on_settings
        self._settings: Running | None = None
        self._switch = asyncio.Event()
        all_controllers = controllers(self._mirror, resources, store, self.kubernetes, metrics)
        self._controllers = {one.name: one for one in all_controllers}
        self._configuration = Configuration(self._mirror, resources, environment)
        self._keeper = self._rounds(Configuration.name, self._configuration.round, random)
        self._rounds_of = {
            name: self._rounds(name, partial(self._round, one), random) for name, one in self._controllers.items()
        }

    def _rounds(self, name: str, work: Callable[[], Awaitable[Round]], random: Random) -> Rounds:
        return Rounds(name, work, self._metrics, self._health[name], random)

    async def run(self) -> None:
        """For ever. Raises FenceLost, in a group."""
        try:
            async with asyncio.TaskGroup() as tasks:
                if self.kubernetes is not None:
                    tasks.create_task(self.kubernetes.run(), name="kubernetes")
                tasks.create_task(self._mirror.run(), name="mirror")
                tasks.create_task(self._keeper.run(), name=self._keeper.name)
                tasks.create_task(self._switch_forever(tasks), name="switch")
        finally:
            self._metrics.ipam.clear()
            for name in NAMES:
                self._metrics.running.labels(name).set(0)
                self._health[name].report(detail="standing by")

    async def _round(self, controller: Controller) -> Round:
        assert self._settings is not None, "no controller runs before the settings are known"
        if not controller.wanted(self._settings):
            return Round("switched off")  # the switch has not come to it yet
        return await controller.round(self._settings)

    def _on_change(self, kinds: frozenset[str]) -> None:
        if kinds & Configuration.reads:
            self._keeper.poke()
            now = self._configuration.in_force()
            if now is not None and now != self._settings:
                self._settings = now
                self._on_settings(now)
                self._switch.set()
        for name, rounds in self._rounds_of.items():
            if kinds & self._controllers[name].reads:
                rounds.poke()

    async def _switch_forever(self, tasks: asyncio.TaskGroup) -> None:
        """Each controller runs, or not, as the settings say; the others do not notice."""
        running: dict[str, tuple[object, asyncio.Task[None]]] = {}
        self._metrics.running.labels(Configuration.name).set(1)
        while True:
            await self._switch.wait()
            self._switch.clear()
            settings = self._settings
            assert settings is not None, "the switch is only set with settings"
            for name, (wanted, work) in self._wanted(settings).items():
                before, task = running.get(name, (None, None))
                if task is not None and wanted != before:
                    del running[name]
                    task.cancel()
                    await asyncio.wait([task])
                    log.info("controller stopped", extra={"controller": name})
                if wanted is not None and name not in running:
                    running[name] = wanted, tasks.create_task(work(), name=name)
                    log.info("controller starts", extra={"controller": name})
                if wanted is None:
                    self._health[name].report(detail="switched off")
                self._metrics.running.labels(name).set(wanted is not None)
            for rounds in self._rounds_of.values():
                rounds.poke()

    def _wanted(self, settings: Running) -> dict[str, tuple[object, Callable[[], Coroutine[Any, Any, None]]]]:
        """By controller: under which settings it runs, None when it does not, and its work. With other settings it is
        started anew; one in rounds is given the new ones at its next round.
        """
        found: dict[str, tuple[object, Callable[[], Coroutine[Any, Any, None]]]] = {}
        for name, controller in self._controllers.items():
            sources = controller.sources if isinstance(controller, Observer) else ()
            runs = controller.wanted(settings) and (not sources or self.kubernetes is not None)
            found[name] = (True if runs else None, partial(self._observe, name, sources))
        for name in TRANSLATIONS:
            found[name] = (settings.sync.get(name), partial(self._synchronize, name))
        return found

    async def _observe(self, name: str, sources: tuple[Source[Any], ...]) -> None:
        """Rounds, also after changes of Kubernetes' objects."""
        rounds = self._rounds_of[name]
        shared = [self.kubernetes.follow(source) for source in sources] if self.kubernetes is not None else []
        endings = [one.subscribe(lambda keys: rounds.poke()) for one in shared]
        try:
            for one in shared:
                await one.synced()
            rounds.poke()
            await rounds.run()
        finally:
            for end in endings:
                end()

    async def _synchronize(self, name: str) -> None:
        assert self.kubernetes is not None, "not wanted without Kubernetes"
        assert self._settings is not None, "not started before the settings are known"
        settings = self._settings.sync[name]
        translation = TRANSLATIONS[name](settings)
        shared = self.kubernetes.follow(translation.source)
        one = Synchronizer(
            name, translation, shared, self._resources, settings, self._metrics, self._health[name], self._random
        )
        await one.run()
