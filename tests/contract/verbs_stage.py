"""The API's verbs on a free port, over a store and a cache, with roles from a file; a header says who asks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

from aiohttp import ClientSession, web

from libs.resources.client import ResourceClient
from libs.resources.release import IpamRelease
from libs.store.api import Delete, Store
from services.apiserver.app import tier_names
from services.apiserver.core.request import API_PREFIX, User, parse
from services.apiserver.core.status import ApiError
from services.apiserver.shell.authz import Tiered
from services.apiserver.shell.cache import CacheSettings, EtcdCache
from services.apiserver.shell.front import encode_status
from services.apiserver.shell.rolefile import RoleFile
from services.apiserver.shell.verbs import Api
from tests.contract.apiserver_watch_stage import PATIENT

ADMIN = "admin"
API_VERSION = "projectcalico.org/v3"
NAMESPACED = ("networkpolicies", "networksets", "stagednetworkpolicies", "stagedkubernetesnetworkpolicies")


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str
    warnings: list[str] = field(default_factory=list)

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def message(self) -> str:
        return str(self.json["message"])

    @property
    def names(self) -> list[str]:
        return [item["metadata"]["name"] for item in self.json["items"]]


@dataclass(slots=True)
class Stage:
    store: Store
    resources: ResourceClient
    cache: EtcdCache
    roles: RoleFile
    roles_path: Path
    session: ClientSession
    url: str
    clock: datetime = datetime(2026, 11, 28, 1, 2, 3, tzinfo=UTC)

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        user: str = ADMIN,
        headers: dict[str, str] | None = None,
        content_type: str = "application/json",
        **query: object,
    ) -> Answer:
        """path: `tiers/a`, or a whole one. body: bytes as they are, anything else as JSON."""
        url = self.url + (path if path.startswith("/") else f"{API_PREFIX}/{path}")
        sent: dict[str, Any] = {"headers": {"X-User": user, **(headers or {})}}
        if body is not None:
            sent["data"] = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent["headers"]["Content-Type"] = content_type
        params = {name.rstrip("_"): str(value) for name, value in query.items()}
        async with self.session.request(method, url, params=params, **sent) as response:
            text = await response.text()
            return Answer(response.status, dict(response.headers), text, response.headers.getall("Warning", []))

    async def make(self, plural: str, name: str, spec: object = None, namespace: str = "", **metadata: object) -> Any:
        """Created, as the server has it."""
        where = f"namespaces/{namespace}/{plural}" if namespace else plural
        answer = await self.call("POST", where, {"metadata": {"name": name, **metadata}, "spec": spec or {}})
        assert answer.status == 201, answer.text
        return answer.json

    def allow(self, documents: list[dict[str, Any]]) -> None:
        """Replace the roles, the administrator's apart."""
        self.roles_path.write_text(_text([*_ADMINISTRATOR, *documents]))
        assert self.roles.file.look(), "the roles were not read again"


_ADMINISTRATOR: list[dict[str, Any]] = [
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "all"},
        "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}],
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "admin"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "all"},
        "subjects": [{"kind": "User", "name": ADMIN, "apiGroup": "rbac.authorization.k8s.io"}],
    },
]


def _text(documents: list[dict[str, Any]]) -> str:
    """As YAML without aliases, which a role file must not have."""
    return "\n---\n".join(map(json.dumps, documents))


def role(user: str, *rules: dict[str, Any]) -> list[dict[str, Any]]:
    """A ClusterRole of these rules, bound to the user."""
    made = {"kind": "ClusterRole", "metadata": {"name": user}, "rules": list(rules)}
    binding = {
        "kind": "ClusterRoleBinding",
        "metadata": {"name": user},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user},
        "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
    }
    return [{"apiVersion": "rbac.authorization.k8s.io/v1", **document} for document in (made, binding)]


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _front(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        request["info"] = parse(request.method, request.path, request.query)
        request["user"] = User(request.headers.get("X-User", "nobody"))
        return await handler(request)
    except ApiError as error:
        body, content_type = encode_status(error.status(), "")
        headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s else {}
        return web.Response(status=error.code, body=body, content_type=content_type, headers=headers)


async def wipe(store: Store) -> None:
    while kvs := (await store.list("/calico/", keys_only=True)).kvs:
        await store.txn([], [Delete(kv.key) for kv in kvs[:100]])


@asynccontextmanager
async def open_stage(store: Store, directory: Path, *, settings: CacheSettings | None = None) -> AsyncIterator[Stage]:
    """A cluster with its built-in tiers, and a server for it."""

    async def at_once(_seconds: float) -> None:
        return

    await wipe(store)
    random = Random(7)
    stage: list[Stage] = []
    resources = ResourceClient(store, release=IpamRelease(store), sleep=at_once, now=lambda: stage[0].clock)
    cache = EtcdCache(store, random, settings=settings or PATIENT, eager=True)
    path = directory / "roles.yaml"
    path.write_text(_text(_ADMINISTRATOR))
    roles = RoleFile(path)

    async def all_tiers() -> list[str]:
        return await tier_names(store)

    api = Api(store, resources, cache, Tiered(roles, all_tiers), roles, random=random, now=lambda: stage[0].clock)
    app = web.Application(middlewares=[_front], client_max_size=3 * 2**20)
    app.router.add_routes(api.routes())
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    running = asyncio.create_task(cache.run(), name="cache")
    try:
        site = web.TCPSite(runner, "localhost", 0)
        await site.start()
        port = runner.addresses[0][1]
        async with ClientSession() as session:
            stage.append(Stage(store, resources, cache, roles, path, session, f"http://localhost:{port}"))
            await resources.ensure_initialized()
            yield stage[0]
    finally:
        cache.close()
        running.cancel()
        await asyncio.wait([running])
        await runner.cleanup()
