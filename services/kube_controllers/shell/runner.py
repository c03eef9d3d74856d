"""What a leader does: follows the datastore, keeps the configuration, runs the controllers that it switches on.

Made anew for each tenure and given a fenced store, so that nothing seen or begun before counts: the first listing is
younger than the leadership, and a write that comes too late is refused by etcd.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from random import Random

from libs.resources.client import ResourceClient
from libs.resources.mirror import Mirror
from libs.runtime.health import Reporter
from libs.store.fenced import FencedStore
from services.kube_controllers.core.controller import Controller, Round
from services.kube_controllers.core.settings import Environment, Running
from services.kube_controllers.metrics import Metrics
from services.kube_controllers.shell.configuration import Configuration
from services.kube_controllers.shell.host_endpoints import HostEndpoints
from services.kube_controllers.shell.rounds import Rounds

log = logging.getLogger(__name__)

NAMES = (Configuration.name, HostEndpoints.name)
KINDS = Configuration.reads | HostEndpoints.reads


def controllers(mirror: Mirror, resources: ResourceClient) -> Sequence[Controller]:
    """All there are. A new one comes here, with its name in NAMES and what it reads in KINDS."""
    return (HostEndpoints(mirror, resources),)


class Runner:
    """health: a reporter for each of NAMES. on_settings: called whenever other settings come into force."""

    def __init__(
        self,
        store: FencedStore,
        environment: Environment,
        metrics: Metrics,
        health: Mapping[str, Reporter],
        on_settings: Callable[[Running], None],
        random: Random,
    ) -> None:
        resources = ResourceClient(store)
        self._mirror = Mirror(store, KINDS, self._on_change, random)
        self._metrics = metrics
        self._health = health
        self._on_settings = on_settings
        self._settings: Running | None = None
        self._switch = asyncio.Event()
        self._controllers = {one.name: one for one in controllers(self._mirror, resources)}
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
                tasks.create_task(self._mirror.run(), name="mirror")
                tasks.create_task(self._keeper.run(), name=self._keeper.name)
                tasks.create_task(self._switch_forever(tasks), name="switch")
        finally:
            for name in NAMES:
                self._metrics.running.labels(name).set(0)
                self._health[name].report(detail="standing by")

    async def _round(self, controller: Controller) -> Round:
        assert self._settings is not None, "no controller runs before the settings are known"
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
        running: dict[str, asyncio.Task[None]] = {}
        self._metrics.running.labels(Configuration.name).set(1)
        while True:
            await self._switch.wait()
            self._switch.clear()
            settings = self._settings
            assert settings is not None, "the switch is only set with settings"
            for name, controller in self._controllers.items():
                wanted = controller.wanted(settings)
                if wanted and name not in running:
                    running[name] = tasks.create_task(self._rounds_of[name].run(), name=name)
                    log.info("controller starts", extra={"controller": name})
                elif not wanted and (task := running.pop(name, None)) is not None:
                    task.cancel()
                    await asyncio.wait([task])
                    log.info("controller stopped", extra={"controller": name})
                if not wanted:
                    self._health[name].report(detail="switched off")
                self._metrics.running.labels(name).set(wanted)
                self._rounds_of[name].poke()
