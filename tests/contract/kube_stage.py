"""A server that answers as a kube-apiserver does when things go wrong, which a real one cannot be made to do on demand.

Each request takes the next answer that a test has put in line; without one, lists tell what there is and watches stay
open. tests/kube has the real one.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from aiohttp import web

JsonObject = dict[str, Any]
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class TroubledApi:
    """objects: by name, as `pod` makes them. asked: (time, "LIST" or "WATCH", query) of each request."""

    def __init__(self) -> None:
        self.objects: dict[str, JsonObject] = {}
        self.revision = 10
        self.lists: deque[Answer] = deque()
        self.watches: deque[Answer] = deque()
        self.asked: list[tuple[float, str, dict[str, str]]] = []
        self.served = True
        self.end = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        assert self._runner.addresses
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.end.set()
        assert self._runner is not None
        await self._runner.cleanup()

    def kubeconfig(self, directory: Path) -> Path:
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
            "clusters": [{"name": "k", "cluster": {"server": self.url}}],
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        }  # fmt: skip
        path = directory / "kubeconfig"
        path.write_text(yaml.safe_dump(content))
        return path

    def put(self, name: str, **labels: str) -> JsonObject:
        self.revision += 1
        made = pod(name, self.revision, **labels)
        self.objects[name] = made
        return made

    def times(self, verb: str) -> list[float]:
        return [when for when, what, _ in self.asked if what == verb]

    def queries(self, verb: str) -> list[dict[str, str]]:
        return [query for _, what, query in self.asked if what == verb]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.path.count("/") == 3 and request.path.startswith("/apis/"):  # discovery of one group's version
            resources = [{"name": "things"}] if self.served else []
            return web.json_response({"kind": "APIResourceList", "resources": resources})
        verb = "WATCH" if request.query.get("watch") else "LIST"
        self.asked.append((asyncio.get_running_loop().time(), verb, dict(request.query)))
        line = self.watches if verb == "WATCH" else self.lists
        if line:
            return await line.popleft()(request)
        if verb == "LIST":
            return web.json_response(listing(list(self.objects.values()), self.revision))
        return await events(stay=self.end)(request)


def pod(name: str, revision: int, **labels: str) -> JsonObject:
    return {
        "metadata": {"namespace": "ns", "name": name, "resourceVersion": str(revision), "labels": labels},
        "spec": {"nodeName": "n1", "containers": None},
    }


def listing(items: Sequence[JsonObject], revision: int, more: str = "") -> JsonObject:
    return {"metadata": {"resourceVersion": str(revision), "continue": more}, "items": list(items)}


def status(code: int, message: str = "no", **headers: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        body = {"kind": "Status", "code": code, "message": message, "reason": "Test"}
        return web.json_response(body, status=code, headers=headers)

    return answer


def document(body: JsonObject) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(body)

    return answer


def events(*lines: JsonObject | bytes, stay: asyncio.Event | None = None) -> Answer:
    """A watch with these lines. stay: when it ends; at once without it."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for line in lines:
            await response.write((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n")
        if stay is not None:
            await stay.wait()
        return response

    return answer


def silent(end: asyncio.Event) -> Answer:
    """Takes the request and says nothing."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await end.wait()
        return web.Response()

    return answer


def event(kind: str, body: JsonObject) -> JsonObject:
    return {"type": kind, "object": body}
