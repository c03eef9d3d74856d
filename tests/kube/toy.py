"""The smallest API server that kube-apiserver passes requests on to, which keeps what it was sent.

One kind, `Note`, in one collection: discovery, list, get, create, delete. Every request is kept as it arrived.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiohttp import web
from aiohttp.typedefs import Handler

from libs.testkit.pki import Authority, KeyPair
from libs.testkit.servers import free_port

GROUP, VERSION = "notes.example.org", "v1"


@dataclass(frozen=True, slots=True)
class Seen:
    """caller: common name of the certificate that the connection was made with, empty for none."""

    method: str
    path: str
    caller: str
    user: str
    groups: tuple[str, ...]
    query: Mapping[str, str]


class ToyServer:
    """Runs in a thread of its own; ends with the `with` block."""

    def __init__(
        self,
        serving: KeyPair,
        clients: Authority,
        address: str = "127.0.0.1",
        port: int | None = None,
        group: str = GROUP,
    ) -> None:
        self._group_name, self._base = group, f"/apis/{group}/{VERSION}"
        self.address, self.port = address, port or free_port(address)
        self.seen: list[Seen] = []
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(clients.cert))
        self._tls.load_cert_chain(serving.cert, serving.key)
        self._tls.verify_mode = ssl.CERT_OPTIONAL
        self._notes: dict[str, dict[str, Any]] = {}
        self._revision = 1
        self._loop = asyncio.new_event_loop()
        self._started: threading.Event = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="toy-api", daemon=True)

    def about(self, plural: str) -> list[Seen]:
        return [seen for seen in self.seen if f"/{plural}" in seen.path]

    def _serve(self) -> None:
        self._loop.run_until_complete(self._open())
        self._started.set()
        self._loop.run_forever()

    async def _open(self) -> None:
        app = web.Application(middlewares=[self._remember])
        app.router.add_get(f"/apis/{self._group_name}", self._group)
        app.router.add_get(self._base, self._resources)
        app.router.add_get(f"{self._base}/notes", self._list)
        app.router.add_post(f"{self._base}/notes", self._create)
        app.router.add_get(f"{self._base}/notes/{{name}}", self._get)
        app.router.add_delete(f"{self._base}/notes/{{name}}", self._delete)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, self.address, self.port, ssl_context=self._tls).start()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @web.middleware
    async def _remember(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = request.transport
        certificate = (transport.get_extra_info("peercert") if transport else None) or {}
        names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
        self.seen.append(
            Seen(
                request.method, request.path, names[0] if names else "", request.headers.get("X-Remote-User", ""),
                tuple(request.headers.getall("X-Remote-Group", [])), dict(request.query),
            )
        )  # fmt: skip
        return await handler(request)

    async def _group(self, request: web.Request) -> web.Response:
        version = {"groupVersion": f"{self._group_name}/{VERSION}", "version": VERSION}
        return web.json_response(
            {
                "kind": "APIGroup",
                "apiVersion": "v1",
                "name": self._group_name,
                "versions": [version],
                "preferredVersion": version,
            }
        )

    async def _resources(self, request: web.Request) -> web.Response:
        note = {
            "name": "notes", "singularName": "note", "namespaced": False, "kind": "Note",
            "verbs": ["create", "delete", "get", "list"],
        }  # fmt: skip
        kind = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{self._group_name}/{VERSION}"}
        return web.json_response(kind | {"resources": [note]})

    async def _list(self, request: web.Request) -> web.Response:
        kind = {"kind": "NoteList", "apiVersion": f"{self._group_name}/{VERSION}"}
        metadata = {"resourceVersion": str(self._revision)}
        return web.json_response(kind | {"metadata": metadata, "items": list(self._notes.values())})

    async def _create(self, request: web.Request) -> web.Response:
        note = await request.json()
        self._revision += 1
        note["metadata"] |= {"uid": f"uid-{self._revision}", "resourceVersion": str(self._revision)}
        self._notes[note["metadata"]["name"]] = note
        return web.json_response(note, status=201)

    async def _get(self, request: web.Request) -> web.Response:
        note = self._notes.get(request.match_info["name"])
        return web.json_response(note) if note else self._missing()

    async def _delete(self, request: web.Request) -> web.Response:
        await request.read()
        if self._notes.pop(request.match_info["name"], None) is None:
            return self._missing()
        return web.json_response({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})

    def _missing(self) -> web.Response:
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NotFound"}
        return web.json_response(status | {"message": "no such note", "code": 404}, status=404)
