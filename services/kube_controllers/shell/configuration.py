"""Keeps the KubeControllersConfiguration: creates it when there is none, writes what is in force into its status."""

from __future__ import annotations

import logging

import msgspec

from libs import model
from libs.resources.client import ResourceClient
from libs.resources.errors import AlreadyExists
from libs.resources.mirror import Mirror
from services.kube_controllers.core import settings
from services.kube_controllers.core.controller import Round
from services.kube_controllers.core.settings import Environment, Running

log = logging.getLogger(__name__)


class Configuration:
    name = "configuration"
    reads = frozenset({"KubeControllersConfiguration"})

    def __init__(self, mirror: Mirror, resources: ResourceClient, environment: Environment) -> None:
        self._mirror = mirror
        self._resources = resources
        self._environment = environment
        self._initialized = False
        self._written: model.KubeControllersConfigurationStatus | None = None

    def stored(self) -> model.KubeControllersConfiguration | None:
        """None when there is none, or none that can be read."""
        found = self._mirror.of(model.KubeControllersConfiguration)
        return next((one for one in found if one.metadata.name == settings.NAME), None)

    def in_force(self) -> Running | None:
        """None as long as nobody knows: then nothing is switched on or off."""
        stored = self.stored()
        return None if stored is None else settings.running(stored.spec, self._environment)

    async def round(self) -> Round:
        if not self._initialized:  # as calicoctl does before it writes: the cluster's information and its tiers
            await self._resources.ensure_initialized()
            self._initialized = True
        stored, now = self.stored(), self.in_force()
        if stored is None or now is None:
            return await self._create()
        if stored.status == now.status or (self._written == now.status and stored.status.running_config is not None):
            return Round("in force")  # in the second case another program says otherwise: not written over for ever
        # A whole-object update, as Calico makes it. A user who was faster is not overwritten: the round is repeated.
        written = await self._resources.update(msgspec.structs.replace(stored, status=now.status))
        self._written = now.status
        await self._mirror.reached(written.revision)
        return Round("status written", {"update": 1})

    async def _create(self) -> Round:
        if self._mirror.unreadable(model.KubeControllersConfiguration):
            return Round(failures={settings.NAME: "what is stored cannot be read; what was in force before stays so"})
        try:
            written = await self._resources.create(settings.default_configuration())
        except AlreadyExists:
            return Round("created by somebody else")  # the watch brings it
        log.info("configuration created", extra={"resource": settings.NAME, "rev": written.revision})
        await self._mirror.reached(written.revision)
        return Round("created", {"create": 1})
