"""All objects of one collection, kept equal to the API server: one list, then watches; a list again when history is
lost.

What is held stays as it was while the server is away, and `in_sync` stays true: a reader then knows the past, never an
empty cluster. Before the first list is complete nothing may be concluded from an absence.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import aclosing
from random import Random
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeVar

from libs.kube.api import JsonObject, KubeApi, KubeError
from libs.runtime.backoff import Backoff

log = logging.getLogger(__name__)

T = TypeVar("T")
GONE = 410


class Key(NamedTuple):
    """namespace: "" for what is in none."""

    namespace: str
    name: str


class Informer(Generic[T]):
    """path: of the collection, in all namespaces ("/api/v1/pods"). decode: makes of a document what is held; ValueError
    (msgspec's errors are such) makes it one of `unreadable`. changed: called with the keys that differ from before,
    after the change was taken in; with every key after the first list. report: "" when all is well, else what is wrong.
    """

    def __init__(
        self,
        api: KubeApi,
        path: str,
        decode: Callable[[JsonObject], T],
        changed: Callable[[frozenset[Key]], None],
        random: Random,
        *,
        query: Mapping[str, str] | None = None,
        report: Callable[[str], None] = lambda problem: None,
    ) -> None:
        self.path = path
        self._api = api
        self._decode = decode
        self._changed = changed
        self._query = query
        self._report = report
        self._backoff = Backoff(random, first_s=0.2, cap_s=30.0)
        self._held: dict[Key, T] = {}
        self._versions: dict[Key, str] = {}
        self._bad: dict[Key, str] = {}
        self._revision = ""
        self._synced = asyncio.Event()

    @property
    def in_sync(self) -> bool:
        return self._synced.is_set()

    @property
    def objects(self) -> Mapping[Key, T]:
        return MappingProxyType(self._held)

    @property
    def unreadable(self) -> Mapping[Key, str]:
        """Why: there is such an object, and it must not be taken for absent."""
        return MappingProxyType(self._bad)

    def __contains__(self, key: Key) -> bool:
        """Does it exist, readable or not?"""
        return key in self._versions

    async def synced(self) -> None:
        await self._synced.wait()

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                if not self._revision:
                    await self._list()
                await self._follow()
            except KubeError as error:
                if error.code == GONE:
                    self._revision = ""  # what happened meanwhile is not known any more
                    if not error.retry_after_s:
                        log.info("history is lost, listing again", extra={"path": self.path})
                pause_s = max(self._backoff.next_s(), error.retry_after_s or 0.0)
                self._report(str(error))
                log.warning(
                    "not followed, trying again", extra={"path": self.path, "error": str(error), "retry_s": pause_s}
                )
                await asyncio.sleep(pause_s)

    async def _list(self) -> None:
        listing = await self._api.list_all(self.path, self._query)
        first = not self.in_sync
        new = {_key(document): document for document in listing.items}
        touched = {key for key in self._versions if key not in new}
        for key in touched:
            self._forget(key)
        for key, document in new.items():
            if first or self._versions.get(key) != _version(document):
                self._take(key, document)
                touched.add(key)
        self._revision = listing.resource_version
        self._synced.set()
        self._well()
        if touched or first:
            self._changed(frozenset(touched))

    async def _follow(self) -> None:
        async with aclosing(self._api.watch(self.path, self._revision, self._query)) as events:
            async for event in events:
                self._revision = _version(event.object)
                self._well()
                if event.type == "BOOKMARK":
                    continue
                key = _key(event.object)
                if event.type == "DELETED":
                    self._forget(key)
                else:
                    self._take(key, event.object)
                self._changed(frozenset({key}))

    def _take(self, key: Key, document: JsonObject) -> None:
        self._forget(key)
        self._versions[key] = _version(document)
        try:
            self._held[key] = self._decode(document)
        except ValueError as error:
            self._bad[key] = str(error)
            log.warning("object not understood", extra={"path": self.path, "key": "/".join(key), "error": str(error)})

    def _forget(self, key: Key) -> None:
        self._versions.pop(key, None)
        self._held.pop(key, None)
        self._bad.pop(key, None)

    def _well(self) -> None:
        self._backoff.reset()
        self._report("")


def _key(document: JsonObject) -> Key:
    metadata = document["metadata"]
    return Key(str(metadata.get("namespace") or ""), str(metadata["name"]))


def _version(document: JsonObject) -> str:
    return str(document["metadata"].get("resourceVersion") or "")
