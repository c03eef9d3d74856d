"""The controller of automatic host endpoints: nodes and settings in, HostEndpoints out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field

from libs import model
from libs.resources.client import ResourceClient, Written
from libs.resources.errors import NotFound, ResourceError
from libs.resources.mirror import Mirror
from services.kube_controllers.core.controller import Round
from services.kube_controllers.core.host_endpoints import plan
from services.kube_controllers.core.settings import Running

log = logging.getLogger(__name__)


class HostEndpoints:
    name = "host-endpoints"
    reads = frozenset({"Node", "HostEndpoint"})

    def __init__(self, mirror: Mirror, resources: ResourceClient) -> None:
        self._mirror = mirror
        self._resources = resources
        self._said: frozenset[str] = frozenset()

    def wanted(self, settings: Running) -> bool:
        return settings.host_endpoints is not None

    async def round(self, settings: Running) -> Round:
        """A conflict, or a name that is taken meanwhile, means that the mirror is a little behind: its next change, or
        the retry, brings another round.
        """
        assert settings.host_endpoints is not None, "not wanted, and yet asked"
        todo = plan(
            self._mirror.of(model.Node),
            self._mirror.of(model.HostEndpoint),
            settings.host_endpoints,
            unreadable_nodes=frozenset(key.name for key in self._mirror.unreadable(model.Node)),
        )
        self._say(todo.problems)
        done = _Done()
        for endpoint in todo.changes.create:
            await done.with_(endpoint.metadata.name, "create", self._resources.create(endpoint))
        for endpoint in todo.changes.update:
            await done.with_(endpoint.metadata.name, "update", self._resources.update(endpoint))
        versions = {one.metadata.name: one.metadata.resource_version for one in self._mirror.of(model.HostEndpoint)}
        for name in todo.changes.delete:
            # Only the one that was looked at: a user may have made it his own by taking our label off.
            deletion = self._resources.delete("HostEndpoint", name, resource_version=versions.get(name, ""))
            await done.with_(name, "delete", deletion)
        await self._mirror.reached(done.revision)  # or the next round would do it all again
        return Round(f"{todo.wanted} wanted", dict(done.writes), done.failures)

    def _say(self, problems: tuple[str, ...]) -> None:
        """Each once, until it has gone."""
        for problem in problems:
            if problem not in self._said:
                log.warning("left out", extra={"controller": self.name, "problem": problem})
        self._said = frozenset(problems)


@dataclass(slots=True)
class _Done:
    revision: int = 0  # of the last write
    writes: Counter[str] = field(default_factory=Counter)
    failures: dict[str, str] = field(default_factory=dict)

    async def with_(self, name: str, operation: str, write: Awaitable[Written]) -> None:
        """One that cannot be written does not keep the others from it. Trouble with the datastore ends the round."""
        try:
            written = await write
        except NotFound:
            if operation != "delete":
                self.failures[name] = "deleted meanwhile"
        except ResourceError as error:
            self.failures[name] = str(error)
        else:
            self.revision = max(self.revision, written.revision)
            self.writes[operation] += 1
