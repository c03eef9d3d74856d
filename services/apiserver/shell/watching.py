"""Kubernetes' watch protocol over a `ports.Watch`: JSON frames in a chunked answer, one to a line.

    {"type":"ADDED","object":{…}}     ADDED, MODIFIED, DELETED, BOOKMARK, ERROR (a Status, the last frame)

The query decides how it begins (`core.watchoptions`): all that there is as ADDED, or the changes after a revision. It
ends at its time, with an ERROR 410 when the client must list again, when the cache ends it, and when the client does
not read: nothing is queued for it beyond what its socket takes.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

import msgspec
from aiohttp import web

from libs.model.base import ObjectMeta
from libs.model.codec import encode
from libs.model.kinds import Kind
from services.apiserver.core.grouping import groups
from services.apiserver.core.ports import Cache, Keep, Snapshot, Stored, Watch
from services.apiserver.core.status import ApiError
from services.apiserver.core.watchoptions import WatchOptions, parse
from services.apiserver.core.window import EventType, told
from services.apiserver.shell.frames import ClientGone, Sink, open_sink

INITIAL_EVENTS_END = "k8s.io/initial-events-end"

Render = Callable[[Stored, bool], bytes]
"""The object of a frame as JSON. bool: it is the first one (a Table has its columns only there)."""


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """bookmark_s: between bookmarks. min_timeout_s: without timeoutSeconds a watch ends after a random time between
    this and twice as much (kube-apiserver's --min-request-timeout). write_limit_s: for which a client may not read.
    poll_s: how often a silent watch looks whether its client is still there. chunk_bytes: written at once.
    """

    bookmark_s: float = 60.0
    min_timeout_s: float = 1_800.0
    write_limit_s: float = 30.0
    poll_s: float = 15.0
    chunk_bytes: int = 64 * 2**10


def whole(stored: Stored, first: bool) -> bytes:
    return stored.json


def metadata_only(stored: Stored, first: bool) -> bytes:
    """PartialObjectMetadata (meta.k8s.io/v1)."""
    metadata = msgspec.json.decode(stored.json, type=dict[str, msgspec.Raw])["metadata"]
    return b'{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":%b}' % bytes(metadata)


async def serve_watch(
    request: web.Request,
    kind: Kind,
    cache: Cache,
    keep: Keep,
    *,
    random: Random,
    render: Render = whole,
    content_type: str = "application/json",
    decided_at: int | None = None,
    settings: WatchSettings | None = None,
) -> web.StreamResponse:
    """Answers until the watch ends. Raises ApiError for what is wrong before the answer has begun: 400, 422, 410, 503,
    504.

    keep: selectors, namespace and tiers; evaluated for each change. decided_at: `cache.revision` before the tiers for
    `keep` were looked up.
    """
    settings = settings or WatchSettings()
    options = parse(request.query)
    decided_at = cache.revision if decided_at is None else decided_at
    snapshot = await _snapshot(kind, cache, options)
    since = options.revision or 0 if snapshot is None else snapshot.revision
    watch = await cache.watch(kind, since=since, decided_at=decided_at)
    try:
        sink = await open_sink(request, content_type, settings.write_limit_s)
        session = _Session(watch, kind, keep, render, sink, options, settings)
        span_s = options.timeout_s or settings.min_timeout_s * (1 + random.random())
        try:
            await session.run(snapshot if options.begins_with_all else None, span_s)
            await sink.close()
        except ClientGone:
            sink.abort()
        return sink.response
    finally:
        await watch.aclose()


async def _snapshot(kind: Kind, cache: Cache, options: WatchOptions) -> Snapshot | None:
    """What the watch begins with, or after; None when it begins after a revision that the client named."""
    if options.revision and not options.begins_with_all:
        return None
    newest = options.revision is None
    return await cache.list(kind, at_least=await cache.latest() if newest else options.revision or 0)


class _Session:
    def __init__(
        self,
        watch: Watch,
        kind: Kind,
        keep: Keep,
        render: Render,
        sink: Sink,
        options: WatchOptions,
        settings: WatchSettings,
    ) -> None:
        self._watch, self._kind, self._keep, self._render = watch, kind, keep, render
        self._sink, self._options, self._settings = sink, options, settings
        self._first = True

    async def run(self, initial: Snapshot | None, span_s: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + span_s
        if initial is not None:
            frames = (self._frame(EventType.ADDED, each) for each in initial.items if self._keep(each.resource))
            await self._send(frames)
            if self._options.marks_end_of_initial:
                await self._bookmark(initial.revision, end_of_initial=True)
        bookmark_at = loop.time() + self._settings.bookmark_s
        while True:
            wake_at = min(until, bookmark_at, loop.time() + self._settings.poll_s)
            try:
                async with asyncio.timeout_at(wake_at):
                    changes = await anext(self._watch)
                events = (event for change in changes if (event := told(change, self._keep)) is not None)
                await self._send(self._frame(type_, stored) for type_, stored in events)
            except TimeoutError:
                self._sink.check()
            except StopAsyncIteration:
                return
            except ApiError as error:
                await self._sink.send([_frame(EventType.ERROR, msgspec.json.encode(error.status()))])
                return
            now = loop.time()
            if now >= until or now >= bookmark_at:
                if self._options.bookmarks:
                    await self._bookmark(self._watch.revision)
                bookmark_at = now + self._settings.bookmark_s
            if now >= until:
                return

    async def _send(self, frames: Iterable[bytes]) -> None:
        for chunk in groups(frames, self._settings.chunk_bytes):
            await self._sink.send(chunk)
            await asyncio.sleep(0)  # a socket that takes all would keep everybody else from their turn

    async def _bookmark(self, revision: int, *, end_of_initial: bool = False) -> None:
        annotations = {INITIAL_EVENTS_END: "true"} if end_of_initial else {}
        empty = self._kind.struct(metadata=ObjectMeta(resource_version=str(revision), annotations=annotations))
        fields = msgspec.json.decode(encode(empty), type=dict[str, msgspec.Raw])
        json = msgspec.json.encode({name: fields[name] for name in ("kind", "apiVersion", "metadata")})
        await self._sink.send([self._frame(EventType.BOOKMARK, Stored("", empty, json, revision))])

    def _frame(self, type_: EventType, stored: Stored) -> bytes:
        json = self._render(stored, self._first)
        self._first = False
        return _frame(type_, json)


def _frame(type_: EventType, json: bytes) -> bytes:
    return b'{"type":"%b","object":%b}\n' % (type_.encode(), json)
