"""A small server with the API's documents, and objects that stand still: enough for kubectl to look around."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache

from aiohttp import web

from libs.model import codec
from libs.model.base import Resource
from services.apiserver.core import tables
from services.apiserver.core.request import API_PREFIX, SERVED
from services.apiserver.core.status import ApiError, not_found, not_found_path
from services.apiserver.shell.documents import Documents

VERSION = "1.2.3"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
"""What ages are counted from."""


@dataclass
class Described:
    """requests: what was asked for, as (method, path with query, Accept); bodies: what was sent with it."""

    url: str
    documents: Documents
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)


@web.middleware
async def errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return web.json_response(error.status(), status=error.code)
    except web.HTTPNotFound:
        return web.json_response(not_found_path().status(), status=404)


@cache
def _documents() -> Documents:
    """They never change, so one set does for all servers."""
    return new_documents()


def new_documents() -> Documents:
    return Documents(VERSION, other_paths=["/healthz"])


@asynccontextmanager
async def described(
    resources: Mapping[str, list[Resource]] | None = None, *, fresh: bool = False
) -> AsyncIterator[Described]:
    """resources: by plural. fresh: with documents that were made anew, as another replica makes them."""
    documents = new_documents() if fresh else _documents()
    there = resources or {}
    seen = Described("", documents)

    async def read(request: web.Request) -> web.Response:
        kind = SERVED[request.match_info["plural"]]
        items = there.get(kind.plural, [])
        if (name := request.match_info.get("name")) is not None:
            items = [one for one in items if one.name == name]
            if not items:
                raise not_found(kind.plural, name)
        if "as=Table" in request.headers.get("Accept", ""):
            return web.json_response(tables.table(kind, items, include="Object", revision="7", now=NOW))
        if name is not None:
            return web.json_response(codec.to_dict(items[0]))
        return web.json_response(
            {
                "kind": f"{kind.kind}List", "apiVersion": "projectcalico.org/v3", "metadata": {"resourceVersion": "7"},
                "items": [codec.to_dict(one) for one in items],
            }
        )  # fmt: skip

    async def write(request: web.Request) -> web.Response:
        """Answers with what it got, or what was there."""
        if request.method == "PATCH":
            return await read(request)
        return web.json_response(json.loads(await request.read()), status=201 if request.method == "POST" else 200)

    @web.middleware
    async def record(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        seen.requests.append((request.method, request.path_qs, request.headers.get("Accept", "")))
        seen.bodies.append(await request.read())
        return await handler(request)

    app = web.Application(middlewares=[record, errors])
    app.add_routes(documents.routes())
    for scope in (API_PREFIX, f"{API_PREFIX}/namespaces/{{namespace}}"):
        app.router.add_get(f"{scope}/{{plural}}", read)
        app.router.add_get(f"{scope}/{{plural}}/{{name}}", read)
        app.router.add_post(f"{scope}/{{plural}}", write)
        app.router.add_patch(f"{scope}/{{plural}}/{{name}}", write)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        seen.url = f"http://{host}:{port}"
        yield seen
    finally:
        await runner.cleanup()
