"""A Kubernetes API in memory, for properties of what reads one: collections, watches with a history, trouble on demand.

It refuses what a real one refuses: an object that is not there (404), a revision whose history is gone (410), anything
while it is away. tests/kube has the real one.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from libs.kube.api import Event, JsonObject, KubeApi, KubeError, Listing
from libs.kube.objects import Key, Source

Change = Literal["ADDED", "MODIFIED", "DELETED"]


class MemoryKube(KubeApi):
    """failures: how many of the next requests are answered with 503. held: while it is set, watches are silent.
    breaks: collections whose next list ends in the middle, once each.
    """

    def __init__(self) -> None:
        self.failures = 0
        self.held = False
        self.breaks: set[str] = set()
        self.revision = 1
        self._oldest = 1
        self._objects: dict[str, dict[Key, JsonObject]] = {}
        self._history: dict[str, list[tuple[int, Change, JsonObject]]] = {}
        self._generation = 0  # of watches: those of an earlier one have ended
        self._news = asyncio.Event()

    # --- what a test does ------------------------------------------------------------------------------------------

    def put(self, source: Source[Any], name: str, namespace: str = "", **content: Any) -> None:
        """content: metadata's labels, and the object's other fields."""
        labels = content.pop("labels", {})
        metadata = {"name": name, "labels": labels} | ({"namespace": namespace} if namespace else {})
        key = Key(namespace, name)
        there = key in self._objects.setdefault(source.path, {})
        self._happens(source, key, "MODIFIED" if there else "ADDED", {"metadata": metadata, **content})

    def remove(self, source: Source[Any], name: str, namespace: str = "") -> None:
        key = Key(namespace, name)
        there = self._objects.get(source.path, {}).get(key)
        if there is not None:
            self._happens(source, key, "DELETED", copy.deepcopy(there))

    def forget_history(self) -> None:
        """Watches end, and none begins at a revision of before."""
        self.revision += 1
        self._oldest = self.revision
        self.end_watches()

    def end_watches(self) -> None:
        self._generation += 1
        self._wake()

    @contextmanager
    def silent(self) -> Iterator[None]:
        self.held = True
        try:
            yield
        finally:
            self.held = False
            self._wake()

    def _happens(self, source: Source[Any], key: Key, change: Change, document: JsonObject) -> None:
        self.revision += 1
        document["metadata"]["resourceVersion"] = str(self.revision)
        if change == "DELETED":
            del self._objects[source.path][key]
        else:
            self._objects[source.path][key] = document
        self._history.setdefault(source.path, []).append((self.revision, change, document))
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    # --- what a client asks ----------------------------------------------------------------------------------------

    async def _answered(self) -> None:
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise KubeError(503, "told to fail")

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> JsonObject:
        await self._answered()
        for collection, objects in self._objects.items():
            root, _, plural = collection.rpartition("/")
            for key, document in objects.items():
                where = f"namespaces/{key.namespace}/" if key.namespace else ""
                if path == f"{root}/{where}{plural}/{key.name}":
                    return document
        raise KubeError(404, f"GET {path}: 404 not found", "NotFound")

    async def pages(self, path: str, query: Mapping[str, str] | None = None) -> AsyncGenerator[Listing, None]:
        """Two, of one revision."""
        await self._answered()
        revision, items = str(self.revision), list(self._objects.get(path, {}).values())
        middle = len(items) // 2
        yield Listing(items[:middle] if path not in self.breaks else items, revision)
        if path in self.breaks:
            self.breaks.discard(path)
            raise KubeError(410, f"LIST {path}: the token expired", "Expired")
        await self._answered()
        yield Listing(items[middle:], revision)

    async def watch(
        self, path: str, resource_version: str, query: Mapping[str, str] | None = None
    ) -> AsyncGenerator[Event, None]:
        await self._answered()
        seen, generation = int(resource_version), self._generation
        if seen < self._oldest:
            raise KubeError(410, f"WATCH {path}: too old", "Expired")
        while True:
            news = self._news
            if self._generation != generation:
                raise KubeError(0, f"WATCH {path}: connection lost")
            for revision, change, document in list(self._history.get(path, [])):
                if revision > seen and not self.held:
                    seen = revision
                    yield Event(change, document)
            await news.wait()

    async def serves(self, group_version: str, plural: str) -> bool:
        await self._answered()
        return True

    async def close(self) -> None:
        pass
