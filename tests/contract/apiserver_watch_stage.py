"""An HTTP server with nothing but lists and watches over a store, and clients that watch as a reflector does."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import aiohttp
from aiohttp import web

from libs.model import kinds, storage
from libs.model.base import ObjectMeta, Resource
from libs.model.keys import resource_key
from libs.model.policy import Tier
from libs.store.api import Store
from services.apiserver.core.ports import Keep
from services.apiserver.core.request import API_PREFIX, parse
from services.apiserver.core.status import ApiError
from services.apiserver.shell.cache import CacheMetrics, CacheSettings, EtcdCache
from services.apiserver.shell.watching import Render, WatchSettings, serve_watch, whole

DEADLINE_S = 30.0
SETS = "globalnetworksets"

Frame = dict[str, Any]
State = dict[str, dict[str, Any]]


def document(kind: str, name: str, namespace: str = "", **labels: str) -> tuple[str, bytes]:
    """Key and value as they are stored."""
    metadata = ObjectMeta(
        name=name, namespace=namespace, uid=f"u-{name}", creation_timestamp="2026-01-01T00:00:00Z", labels=labels
    )
    resource: Resource = kinds.kind(kind).struct(metadata=metadata)
    return resource_key(kind, name, namespace), storage.to_storage(resource)


async def put(store: Store, kind: str, name: str, namespace: str = "", **labels: str) -> int:
    key, value = document(kind, name, namespace, **labels)
    return await store.put(key, value)


async def delete(store: Store, kind: str, name: str, namespace: str = "") -> int:
    revision = await store.delete(resource_key(kind, name, namespace))
    assert revision is not None
    return revision


def selection(query: Any) -> Keep:
    """labelSelector, of the form `name=value` only."""
    name, _, value = query.get("labelSelector", "").partition("=")
    return lambda resource: not name or resource.metadata.labels.get(name) == value


class Api:
    """A server at `url`. stop: as SIGTERM; kill: its connections break."""

    def __init__(self, store: Store, cache: EtcdCache, watching: WatchSettings, render: Render) -> None:
        self.store, self.cache = store, cache
        self._watching, self._render = watching, render
        self.url = ""
        self.port = 0
        self.handlers = 0

    @asynccontextmanager
    async def serve(self, port: int = 0, host: str = "127.0.0.1") -> AsyncIterator[Api]:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        site = web.TCPSite(runner, host, port, reuse_address=True)
        await site.start()
        self.port = runner.addresses[0][1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.port}{API_PREFIX}"
        running = asyncio.create_task(self.cache.run(), name="cache")
        try:
            yield self
        finally:
            await site.stop()
            self.cache.close()
            async with asyncio.timeout(DEADLINE_S):
                while self.handlers:  # noqa: ASYNC110 - polled in a test, with a deadline
                    await asyncio.sleep(0.005)
            await runner.cleanup()
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.handlers += 1
        try:
            return await self._answer_or_raise(request)
        except ApiError as error:
            return web.json_response(error.status(), status=error.code)
        finally:
            self.handlers -= 1

    async def _answer_or_raise(self, request: web.Request) -> web.StreamResponse:
        info = parse(request.method, request.path, request.query)
        assert info.target is not None
        kind, keep = info.target.kind, selection(request.query)
        if info.verb == "watch":
            return await serve_watch(
                request, kind, self.cache, keep, random=Random(), render=self._render, settings=self._watching
            )
        asked = request.query.get("resourceVersion")
        at_least = await self.cache.latest() if asked is None else int(asked)
        found = await self.cache.list(kind, at_least=at_least)
        items = b",".join(each.json for each in found.items if keep(each.resource))
        head = json.dumps({"kind": f"{kind.kind}List", "metadata": {"resourceVersion": str(found.revision)}})
        return web.Response(body=head[:-1].encode() + b',"items":[' + items + b"]}", content_type="application/json")


PATIENT = CacheSettings(first_wait_s=60.0, wait_s=30.0)
"""So that a moment without etcd is none without an answer."""


def api(
    store: Store,
    *,
    settings: CacheSettings | None = None,
    watching: WatchSettings | None = None,
    metrics: CacheMetrics | None = None,
    render: Render = whole,
    eager: bool = False,
) -> Api:
    cache = EtcdCache(store, Random(), settings=settings or PATIENT, metrics=metrics, eager=eager)
    return Api(store, cache, watching or WatchSettings(), render)


def key_of(thing: dict[str, Any]) -> str:
    return f"{thing['metadata'].get('namespace', '')}/{thing['metadata']['name']}"


def revision_of(thing: dict[str, Any]) -> int:
    return int(thing["metadata"]["resourceVersion"])


@asynccontextmanager
async def watching(url: str, plural: str = SETS, **query: str) -> AsyncIterator[Frames]:
    timeout = aiohttp.ClientTimeout(total=None, sock_read=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        aiohttp.ClientSession(timeout=timeout, connector=connector, read_bufsize=2**20) as session,
        session.get(f"{url}/{plural}", params={"watch": "1", **query}) as answer,
    ):
        yield Frames(answer)


class Frames:
    """The frames of one watch, with a deadline for each."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer

    async def next(self) -> Frame | None:
        """None at the clean end of the stream."""
        async with asyncio.timeout(DEADLINE_S):
            line = await self.answer.content.readline()
        if not line:
            return None
        assert line.endswith(b"\n"), "a frame was cut off"
        found: Frame = json.loads(line)
        return found

    async def take(self, count: int) -> list[Frame]:
        found = []
        for _ in range(count):
            frame = await self.next()
            assert frame is not None, f"the watch ended after {len(found)} of {count} frames: {found}"
            found.append(frame)
        return found

    async def short(self, count: int) -> list[tuple[str, str, int]]:
        """(type, name, resourceVersion)."""
        frames = await self.take(count)
        return [
            (frame["type"], frame["object"]["metadata"].get("name", ""), revision_of(frame["object"]))
            for frame in frames
        ]

    async def until_end(self) -> list[Frame]:
        found = []
        while (frame := await self.next()) is not None:
            found.append(frame)
        return found


async def listed(url: str, plural: str = SETS, **query: str) -> tuple[State, int]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/{plural}", params=query) as answer:
        body = await answer.json()
        assert answer.status == 200, body
        return {key_of(item): item for item in body["items"]}, revision_of(body)


class Reflector:
    """Lists, watches, and watches on from where it was when the stream ends, as client-go's does. state: what it
    believes there is. On each frame it checks what a watch promises.

    relists: how often it had to begin anew.
    """

    def __init__(self, url: Callable[[], str], plural: str = SETS, *, streaming: bool = False, **query: str) -> None:
        self._url, self._plural, self._query = url, plural, query
        self._streaming = streaming
        self.state: State = {}
        self.revision = 0
        self.relists = 0
        self.resumed = 0
        self._answer: aiohttp.ClientResponse | None = None

    def interrupt(self) -> None:
        """Its connection breaks, wherever it is."""
        if self._answer is not None:
            self._answer.close()

    async def run(self) -> None:
        """For ever."""
        while True:
            try:
                async with aiohttp.ClientSession() as session:
                    await self._again(session)
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                await asyncio.sleep(0.01)

    async def _again(self, session: aiohttp.ClientSession) -> None:
        streaming = False
        if not self.revision and self._streaming:
            streaming = True
            self.state = {}
        elif not self.revision:
            async with session.get(f"{self._url()}/{self._plural}", params=self._query) as answer:
                if answer.status != 200:
                    await asyncio.sleep(0.02)
                    return
                body = await answer.json()
            self.state = {key_of(item): item for item in body["items"]}
            self.revision = revision_of(body)
            self.relists += 1
        query = {"watch": "1", "allowWatchBookmarks": "true", **self._query}
        if streaming:
            query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
            self.relists += 1
        else:
            query["resourceVersion"] = str(self.revision)
            self.resumed += 1
        async with session.get(f"{self._url()}/{self._plural}", params=query) as answer:
            if answer.status == 410:
                self.revision = 0
                return
            if answer.status != 200:
                await asyncio.sleep(0.02)
                return
            self._answer = answer
            try:
                async for line in answer.content:
                    if not line.endswith(b"\n"):
                        return
                    if not self._take(json.loads(line), initial=streaming and not self.revision):
                        return
            finally:
                self._answer = None

    def _take(self, frame: Frame, *, initial: bool) -> bool:
        thing = frame["object"]
        if frame["type"] == "ERROR":
            assert thing["code"] == 410, thing
            self.revision = 0
            return False
        if frame["type"] == "BOOKMARK":
            assert set(thing) == {"kind", "apiVersion", "metadata"}
            assert revision_of(thing) >= self.revision, "a bookmark went back"
            self.revision = revision_of(thing)
            return True
        key = key_of(thing)
        if not initial:
            assert revision_of(thing) > self.revision or revision_of(thing) == self.revision, "went back"
        if frame["type"] == "ADDED":
            assert key not in self.state, f"{key} was added twice"
            self.state[key] = thing
        elif frame["type"] == "MODIFIED":
            assert key in self.state, f"{key} was changed, not added"
            self.state[key] = thing
        else:
            assert frame["type"] == "DELETED"
            assert self.state.pop(key, None) is not None, f"{key} was deleted, not there"
        if not initial:
            self.revision = revision_of(thing)
        return True


async def eventually(check: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    async with asyncio.timeout(deadline_s):
        while not check():  # noqa: ASYNC110 - any condition
            await asyncio.sleep(0.01)


def tier(name: str) -> tuple[str, bytes]:
    metadata = ObjectMeta(name=name, uid=f"u-{name}", creation_timestamp="2026-01-01T00:00:00Z")
    return resource_key("Tier", name), storage.to_storage(Tier(metadata=metadata))
