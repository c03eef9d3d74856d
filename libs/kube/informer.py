"""All objects of one collection, kept equal to the API server: one list, then watches; a list again when history is
lost.

What is held stays as it was while the server is away, and `in_sync` stays true: a reader then knows the past, never an
empty cluster. Before the first list is complete nothing may be concluded from an absence.

A server in trouble is not asked in a hurry: the pause between tries grows until a watch has lasted `STEADY_S`, whether
it ended badly or just ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import aclosing
from random import Random
from types import MappingProxyType
from typing import Generic, TypeVar

from libs.kube.api import JsonObject, KubeApi, KubeError
from libs.kube.objects import Key
from libs.runtime.backoff import Backoff

log = logging.getLogger(__name__)

T = TypeVar("T")
FORBIDDEN = 403
GONE = 410
NOT_FOUND = 404
STEADY_S = 5.0
ABSENT_S = 15.0
"""After so long a kind that the server does not have is asked for again."""
_RESUMABLE = frozenset({0, 401, 403, 429, 500, 503})
"""Codes after which a watch may go on where it was. After others its revision may be what is wrong (too old, from
before a restored backup, in front of an event that nobody can read), and everything is listed again.
"""


class Informer(Generic[T]):
    """path: of the collection, in all namespaces ("/api/v1/pods"). decode: makes of a document what is held; ValueError
    (msgspec's errors are such) makes it one of `unreadable`. changed: called with the keys that differ from before,
    after the change was taken in; with every key after the first list. report: "" when all is well, else what is wrong.
    optional: the kind may come and go with its CustomResourceDefinition, and its objects with it; without it there are
    none.
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
        optional: bool = False,
    ) -> None:
        self.path = path
        self._api = api
        self._decode = decode
        self._changed = changed
        self._query = query
        self._report = report
        self._optional = optional
        self._forbidden = False
        self._absent = False
        self._backoff = Backoff(random, first_s=0.2, cap_s=30.0)
        self._held: dict[Key, T] = {}
        self._versions: dict[Key, str] = {}
        self._bad: dict[Key, str] = {}
        self._untold: set[Key] = set()  # taken in by a list that may have ended in the middle
        self._revision = ""
        self._synced = asyncio.Event()

    @property
    def in_sync(self) -> bool:
        return self._synced.is_set()

    @property
    def forbidden(self) -> bool:
        """Did the server say last that we may not read these?"""
        return self._forbidden

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
                if await self._follow():
                    self._backoff.reset()
                else:
                    await asyncio.sleep(self._backoff.next_s())
            except KubeError as error:
                if error.code == NOT_FOUND and await self._is_absent():
                    await asyncio.sleep(ABSENT_S)
                    continue
                self._forbidden = error.code == FORBIDDEN
                if error.code not in _RESUMABLE:
                    self._revision = ""  # what happened meanwhile is not known any more
                pause_s = error.pause_s(self._backoff.next_s())
                self._report(str(error))
                log.warning(
                    "not followed, trying again",
                    extra={
                        "path": self.path, "error": str(error), "retry_s": pause_s, "list_again": not self._revision
                    },
                )  # fmt: skip
                await asyncio.sleep(pause_s)

    async def _list(self) -> None:
        first = not self.in_sync
        seen: set[Key] = set()
        revision = ""
        async with aclosing(self._api.pages(self.path, self._query)) as pages:
            async for page in pages:
                revision = page.resource_version
                for document in page.items:
                    key = _key(document)
                    seen.add(key)
                    if first or self._versions.get(key) != _version(document):
                        self._take(key, document)
                        self._untold.add(key)
        self._take_all(seen, revision)

    def _take_all(self, seen: set[Key], revision: str) -> None:
        """Everything was listed: what was not seen is gone."""
        first = not self.in_sync
        for key in self._versions.keys() - seen:
            self._forget(key)
            self._untold.add(key)
        if self._absent:
            log.info("the server has the kind now", extra={"path": self.path})
            self._absent = False
        self._revision = revision
        self._forbidden = False
        self._synced.set()
        self._report("")
        if self._untold or first:
            told, self._untold = frozenset(self._untold), set()
            self._changed(told)

    async def _is_absent(self) -> bool:
        """The server says that it has no such kind: then nothing of the kind is there. Other doubts are none."""
        if not self._optional:
            return False
        root, _, plural = self.path.rpartition("/")
        try:
            if await self._api.serves(root.removeprefix("/apis/"), plural):
                return False
        except KubeError as error:
            log.warning("discovery failed", extra={"path": self.path, "error": str(error)})
            return False
        if not self._absent:
            log.info("the server does not have the kind; asking again later", extra={"path": self.path})
        self._absent = False
        self._take_all(set(), "")
        self._absent = True
        return True

    async def _follow(self) -> bool:
        """Until the server ends the watch. Did it last?"""
        started_s = asyncio.get_running_loop().time()
        async with aclosing(self._api.watch(self.path, self._revision, self._query)) as events:
            async for event in events:
                self._revision = _version(event.object) or self._revision
                self._report("")
                if self._lasted(started_s):
                    self._backoff.reset()
                if event.type == "BOOKMARK":
                    continue
                key = _key(event.object)
                if event.type == "DELETED":
                    self._forget(key)
                else:
                    self._take(key, event.object)
                self._changed(frozenset({key}))
        return self._lasted(started_s)

    def _lasted(self, started_s: float) -> bool:
        return asyncio.get_running_loop().time() - started_s >= STEADY_S

    def _take(self, key: Key, document: JsonObject) -> None:
        self._forget(key)
        self._versions[key] = _version(document)
        try:
            self._held[key] = self._decode(document)
        except ValueError as error:
            self._bad[key] = str(error)
            log.warning("object not understood", extra={"path": self.path, "key": str(key), "error": str(error)})

    def _forget(self, key: Key) -> None:
        self._versions.pop(key, None)
        self._held.pop(key, None)
        self._bad.pop(key, None)


def _key(document: JsonObject) -> Key:
    metadata = document["metadata"]
    return Key(str(metadata.get("namespace") or ""), str(metadata["name"]))


def _version(document: JsonObject) -> str:
    return str(document["metadata"].get("resourceVersion") or "")
