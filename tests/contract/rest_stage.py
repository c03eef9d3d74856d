"""A small API server for tests of its clients: `/apis/projectcalico.org/v3` over a ResourceClient, as plain as can be.

It answers what the real one answers (Status objects, pages, watches with bookmarks, dry runs, 410) and can be told to
fail: `down` closes every connection, `expire` makes every watch and page start again.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from aiohttp import web

from libs.model.base import Resource
from libs.resources import codec
from libs.resources.client import ResourceClient
from libs.resources.errors import AlreadyExists, Conflict, NotFound, NotSupported, ResourceError, ValidationError
from libs.resources.release import IpamRelease
from libs.store.api import Store
from libs.store.overlay import OverlayStore
from libs.testkit.servers import free_port
from services.apiserver.core import status
from services.apiserver.core.request import Target, Verb, is_true, parse
from services.apiserver.core.status import ApiError, Cause


class RestStage:
    def __init__(self, store: Store, token: str = "", tls: ssl.SSLContext | None = None) -> None:
        """tls: demands certificates of clients; `peers` has the common names of those who asked."""
        self.store = store
        self.token = token
        self.peers: list[str] = []
        self.refused = 0
        self._tls = tls
        self.port = free_port()
        self.requests: list[tuple[str, str]] = []
        self.expire_watches = False
        self.page_limit = 0
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self._tls).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs))
        if self._tls is not None and request.transport is not None:
            peer = request.transport.get_extra_info("peercert")
            self.peers += [text for part in peer["subject"] for name, text in part if name == "commonName"]
        try:
            if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
                self.refused += 1
                raise status.unauthorized()
            info = parse(request.method, request.path, request.query)
            if info.target is None:
                raise status.not_found_path()
            return await self._answer(request, info.verb, info.target)
        except ApiError as error:
            return web.json_response(error.status(), status=error.code)
        except ResourceError as error:
            found = _api_error(error, info.target)
            return web.json_response(found.status(), status=found.code)

    def _client(self, request: web.Request) -> ResourceClient:
        store = OverlayStore(self.store) if request.query.get("dryRun") == "All" else self.store
        return ResourceClient(store, release=IpamRelease(store))

    async def _answer(self, request: web.Request, verb: str, target: Target) -> web.StreamResponse:
        client, kind = self._client(request), target.kind.kind
        match verb:
            case Verb.GET:
                return _one(await client.get(kind, target.name, target.namespace))
            case Verb.LIST:
                return await self._list(request, client, target)
            case Verb.WATCH:
                return await self._watch(request, client, target)
            case Verb.CREATE:
                return _one((await client.create(await _body(request, target))).resource, 201)
            case Verb.UPDATE:
                return _one((await client.update(await _body(request, target))).resource)
            case Verb.DELETE:
                options = await request.json() if request.can_read_body else {}
                version = (options.get("preconditions") or {}).get("resourceVersion") or ""
                await client.delete(kind, target.name, target.namespace, version)
                return web.json_response({"kind": "Status", "apiVersion": "v1", "status": "Success"})
        raise status.method_not_allowed()

    async def _list(self, request: web.Request, client: ResourceClient, target: Target) -> web.Response:
        found = await client.list(target.kind.kind, target.namespace)
        start = int(request.query.get("continue") or 0)
        limit = self.page_limit or int(request.query.get("limit") or 0) or len(found.items)
        if start and self.expire_watches:
            self.expire_watches = False
            raise status.expired("the continue token is too old")
        metadata = {"resourceVersion": str(found.revision)}
        if request.query.get("limit") and start + limit < len(found.items):
            metadata["continue"] = str(start + limit)
        items = found.items[start : start + limit] if request.query.get("limit") else found.items
        value = {
            "kind": f"{target.kind.kind}List", "apiVersion": "projectcalico.org/v3", "metadata": metadata,
            "items": [codec.to_json(item) for item in items],
        }  # fmt: skip
        return web.json_response(value)

    async def _watch(self, request: web.Request, client: ResourceClient, target: Target) -> web.StreamResponse:
        if self.expire_watches:
            self.expire_watches = False
            raise status.expired()
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        since = int(request.query["resourceVersion"])
        prefix = codec.prefix(target.kind.kind, target.namespace)
        async with aclosing(self.store.watch(prefix, revision=since + 1)) as batches:
            async for batch in batches:
                for event in batch.events:
                    kv = event.kv or event.previous
                    assert kv is not None
                    resource = codec.with_metadata(
                        codec.from_kv(target.kind.kind, kv), resource_version=str(event.revision)
                    )
                    what = "DELETED" if event.kv is None else "MODIFIED" if event.previous else "ADDED"
                    await _event(response, what, codec.to_json(resource))
                mark = {"kind": target.kind.kind, "metadata": {"resourceVersion": str(batch.revision)}}
                if is_true(request.query, "allowWatchBookmarks"):
                    await _event(response, "BOOKMARK", mark)
        return response


async def _event(response: web.StreamResponse, what: str, value: object) -> None:
    text = json.dumps({"type": what, "object": value}).encode() + b"\n"
    half = len(text) // 2  # in two pieces: a reader must not take what it gets for a whole line
    await response.write(text[:half])
    await asyncio.sleep(0)
    await response.write(text[half:])


def _one(resource: Resource, code: int = 200) -> web.Response:
    return web.json_response(codec.to_json(resource), status=code)


async def _body(request: web.Request, target: Target) -> Resource:
    found = codec.from_json(await request.json())
    return codec.with_metadata(found, namespace=target.namespace)


def _api_error(error: ResourceError, target: Target | None) -> ApiError:
    assert target is not None
    plural, name = target.kind.plural, error.identity.name if error.identity else target.name
    match error:
        case NotFound() if error.identity and error.identity.kind == "Tier":
            return status.not_found("tiers", name)
        case NotFound():
            return status.not_found(plural, name)
        case AlreadyExists():
            return status.already_exists(plural, name)
        case Conflict():
            return status.conflict(plural, name, str(error))
        case ValidationError():
            causes = [Cause("FieldValueInvalid", one.message, one.path) for one in error.problems]
            return status.invalid(target.kind.kind, name, causes)
        case NotSupported():
            return ApiError(405, "MethodNotAllowed", str(error), plural=plural, name=name)
    return status.internal(str(error))


@asynccontextmanager
async def rest_stage(store: Store, token: str = "", tls: ssl.SSLContext | None = None) -> AsyncIterator[RestStage]:
    stage = RestStage(store, token, tls)
    await ResourceClient(store).ensure_initialized()
    await stage.start()
    try:
        yield stage
    finally:
        await stage.stop()
