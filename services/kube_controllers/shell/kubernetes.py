"""The Kubernetes API as the controllers share it: one connection, one informer for each kind that somebody reads.

    kubernetes.follow(PODS).objects             # {Key(namespace, name): Pod}, kept up to date
    kubernetes.follow(PODS).subscribe(callback) # callback(keys that changed)

An informer starts when its kind is first asked for and lives as long as the leader's tenure. Nothing may be concluded
from an absence before `in_sync`, nor for a key in `unreadable`; before something is deleted for good, ask `gone`.

A controller in rounds (`core/controller.py`) that reads Kubernetes' objects names their `sources` (`Observer` there):
it is called after changes of them, and not before all of them are in sync.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Generic, TypeVar, cast

from libs.kube.api import KubeApi, KubeError
from libs.kube.informer import Informer
from libs.kube.objects import Key, KubeObject, Source

log = logging.getLogger(__name__)

T = TypeVar("T", bound=KubeObject)
Changed = Callable[[frozenset[Key]], None]
NOT_FOUND = 404


class Shared(Generic[T]):
    """One kind of object, for everybody who reads it. objects: not to be written to."""

    def __init__(self, api: KubeApi, source: Source[T], random: Random) -> None:
        self.source = source
        self.problem = ""  # why it is behind, "" when it is not
        self._api = api
        self._subscribers: list[Changed] = []
        self._informer = Informer(
            api, source.path, source.decode, self._tell, random, report=self._report, optional=source.optional
        )

    @property
    def in_sync(self) -> bool:
        return self._informer.in_sync

    async def synced(self) -> None:
        await self._informer.synced()

    @property
    def objects(self) -> Mapping[Key, T]:
        return self._informer.objects

    @property
    def unreadable(self) -> Mapping[Key, str]:
        return self._informer.unreadable

    def __contains__(self, key: Key) -> bool:
        """Does it exist, readable or not?"""
        return key in self._informer

    def subscribe(self, changed: Changed) -> Callable[[], None]:
        """What is returned ends it. Changes from now on: who comes late looks at `objects` first."""
        self._subscribers.append(changed)
        return lambda: self._subscribers.remove(changed)

    async def gone(self, key: Key) -> bool:
        """Asks the API server itself. Raises KubeError when it does not say yes or no."""
        try:
            await self._api.get(self.source.path_of(key))
        except KubeError as error:
            if error.code != NOT_FOUND:
                raise
            return True
        return False

    async def run(self) -> None:
        """For ever."""
        await self._informer.run()

    def _tell(self, keys: frozenset[Key]) -> None:
        for changed in list(self._subscribers):
            changed(keys)

    def _report(self, problem: str) -> None:
        self.problem = problem


class Kubernetes:
    """api: for requests of a controller's own."""

    def __init__(self, api: KubeApi, random: Random) -> None:
        self.api = api
        self._random = random
        self._shared: dict[str, Shared[Any]] = {}
        self._more = asyncio.Event()

    def follow(self, source: Source[T]) -> Shared[T]:
        """The informer of this kind, started if it was not."""
        found = self._shared.get(source.path)
        if found is None:
            found = self._shared[source.path] = Shared(self.api, source, self._random)
            self._more.set()
        return cast("Shared[T]", found)

    def problems(self) -> list[str]:
        return [shared.problem for shared in self._shared.values() if shared.problem]

    async def run(self) -> None:
        """For ever: whatever was asked for so far, and what is asked for later."""
        started: set[str] = set()
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._more.clear()
                for path in self._shared.keys() - started:
                    tasks.create_task(self._shared[path].run(), name=f"informer {path}")
                    started.add(path)
                await self._more.wait()
