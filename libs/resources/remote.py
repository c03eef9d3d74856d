"""The same operations as `client.ResourceClient`, asked of an API server over `/apis/projectcalico.org/v3`.

Resources get their defaults and are checked here too before they are sent, so that a fault is told with the same words
whichever way is taken; the server has the last word. `dry_run`: the server checks everything and stores nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from random import Random
from typing import Any

import aiohttp

from libs import model
from libs.kube.credentials import RELOAD_CHECK_S
from libs.model import kinds
from libs.model.base import Resource
from libs.model.codec import DecodeError
from libs.resources import codec, rules
from libs.resources.api import Changed
from libs.resources.client import MAX_TRIES, Listed, Written
from libs.resources.errors import AlreadyExists, Conflict, FieldProblem, Identity, ValidationError
from libs.resources.patch import PatchType
from libs.resources.remote_access import Access, Renewing
from libs.resources.remote_errors import HistoryLost, decode_status, of_answer
from libs.runtime.backoff import Backoff
from libs.store.api import StoreUnavailable

API = "/apis/projectcalico.org/v3"
PAGE = 500
TIMEOUT_S = 60.0
IDLE_S = 330.0
"""A watch that says nothing for so long is opened again: bookmarks come about once a minute."""
WATCH_S = 300
READS = 4
"""Times that a read is tried; a write is sent once, since nobody knows what became of one without an answer."""
_PASSING = frozenset({429, 502, 503, 504})


class RemoteClient:
    def __init__(
        self, http: aiohttp.ClientSession, access: Access, *, dry_run: bool = False, random: Random | None = None,
        reload_check_s: float = RELOAD_CHECK_S,
    ) -> None:  # fmt: skip
        """reload_check_s: how often, at most, a request looks whether the credentials' files have changed."""
        self._http = http
        self._renewing = Renewing(access, reload_check_s=reload_check_s)
        self._dry_run = dry_run
        self._random = random or Random()
        self._pace = _Pace(access.qps, access.burst)

    # --- reading -----------------------------------------------------------------------------------------------------

    async def get(self, kind: str, name: str, namespace: str = "") -> Resource:
        if rules.is_default_allow(kind, name):
            return rules.default_allow_profile()
        identity = Identity(kind, name, namespace)
        return _resource(kind, await self._ask("GET", "get", identity))

    async def list(self, kind: str, namespace: str = "") -> Listed:
        """In pages of one revision. When that expires between two of them, all is listed again in one piece."""
        identity = Identity(kind, "", namespace)
        items: list[Resource] = []
        query: dict[str, str] = {"limit": str(PAGE)}
        while True:
            try:
                found = await self._ask("GET", "list", identity, query=query)
            except HistoryLost:
                items, query = [], {}
                continue
            items += [one for value in found.get("items") or [] if (one := _readable(kind, value)) is not None]
            metadata = found.get("metadata") or {}
            if not metadata.get("continue"):
                break
            query = {"limit": str(PAGE), "continue": str(metadata["continue"])}
        if kind == "Profile" and not any(map(rules.is_built_in, items)):
            items.append(rules.default_allow_profile())
        items.sort(key=lambda one: (one.metadata.namespace, one.metadata.name))
        return Listed(items, _revision(metadata.get("resourceVersion")))

    async def follow(self, kind: str, listed: Listed, namespace: str = "") -> AsyncGenerator[Changed, None]:
        """What changes after `listed`, for ever (`api.Resources.follow`)."""
        held = {_place(one): one for one in listed.items if not rules.is_built_in(one)}
        revision = listed.revision
        backoff = Backoff(self._random, first_s=0.2, cap_s=5.0)
        while True:
            try:
                async with aclosing(self._watch(Identity(kind, "", namespace), revision)) as events:
                    async for what, value in events:
                        backoff.reset()
                        if what == "BOOKMARK":
                            revision = _revision((value.get("metadata") or {}).get("resourceVersion"))
                            continue
                        found = _readable(kind, value)
                        if found is None:
                            continue
                        revision = _revision(found.metadata.resource_version)
                        if (change := _changed(held, found, revision, gone=what == "DELETED")) is not None:
                            yield change
            except HistoryLost:
                fresh = await self._listed_again(kind, namespace, backoff)
                for change in _differences(held, fresh):
                    yield change
                revision = fresh.revision
            except StoreUnavailable:
                await asyncio.sleep(backoff.next_s())

    async def _listed_again(self, kind: str, namespace: str, backoff: Backoff) -> Listed:
        while True:
            try:
                return await self.list(kind, namespace)
            except StoreUnavailable:
                await asyncio.sleep(backoff.next_s())

    async def _watch(self, identity: Identity, revision: int) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """One connection's (type, object). Ends when the server ends it. Raises HistoryLost, StoreUnavailable."""
        query = {
            "watch": "true", "resourceVersion": str(revision), "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }  # fmt: skip
        timeout = aiohttp.ClientTimeout(total=None, connect=TIMEOUT_S, sock_read=IDLE_S)
        async with self._request("GET", identity, query, timeout=timeout) as answer:
            if answer.status != 200:
                raise of_answer(answer.status, await answer.read(), "watch", identity)
            rest = b""
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in filter(None, lines):
                    event = _json(line)
                    value = event.get("object") or {}
                    if event.get("type") == "ERROR":
                        body = json.dumps(value).encode()
                        raise of_answer(int(value.get("code") or 500), body, "watch", identity)
                    yield str(event.get("type")), value

    # --- writing -----------------------------------------------------------------------------------------------------

    async def create(self, resource: Resource) -> Written:
        identity = codec.identity(resource)
        if rules.is_default_allow(identity.kind, identity.name):
            raise AlreadyExists(identity)
        if resource.metadata.resource_version:
            problem = FieldProblem("metadata.resourceVersion", "must be empty when a resource is created")
            raise ValidationError(identity, [problem])
        _check(resource)
        answer = await self._ask("POST", "create", identity, body=codec.to_json(resource))
        return _written(identity.kind, answer, created=True)

    async def update(self, resource: Resource) -> Written:
        identity = codec.identity(resource)
        rules.refuse_default_allow("update", identity)
        given = resource.metadata.resource_version
        if not given:
            raise ValidationError(identity, [FieldProblem("metadata.resourceVersion", "is required for an update")])
        _check(resource)
        answer = await self._ask("PUT", "update", identity, body=codec.to_json(resource), given=given)
        return _written(identity.kind, answer)

    async def replace(self, resource: Resource) -> Written:
        """As `ResourceClient.replace`: labels and annotations are added to those that are there."""
        identity = codec.identity(resource)
        rules.refuse_default_allow("update", identity)
        given = resource.metadata.resource_version
        for _ in range(MAX_TRIES):
            current = await self.get(identity.kind, identity.name, identity.namespace)
            latest = current.metadata.resource_version
            if given and given != latest:
                raise Conflict(identity, given, latest)
            try:
                return await self.update(codec.with_added_metadata(resource, current))
            except Conflict:
                if given:
                    raise
        raise Conflict(identity)

    async def apply(self, resource: Resource) -> Written:
        try:
            return await self.create(codec.with_metadata(resource, resource_version=""))
        except AlreadyExists:
            return await self.replace(resource)

    async def patch(self, kind: str, name: str, patch: object, patch_type: PatchType, namespace: str = "") -> Written:
        """Applied here and written under the version it was applied to: the server has no strategic patch for these
        kinds, and all three mean the same with both datastores.
        """
        identity = Identity(kind, name, namespace)
        rules.refuse_default_allow("patch", identity)
        for _ in range(MAX_TRIES):
            current = await self.get(kind, name, namespace)
            changed = codec.patched(current, patch, patch_type)
            latest = current.metadata.resource_version
            wanted = changed.metadata.resource_version
            if wanted and wanted != latest:
                raise Conflict(identity, wanted, latest)
            try:
                return await self.update(codec.with_metadata(changed, resource_version=latest))
            except Conflict:
                continue
        raise Conflict(identity)

    async def delete(self, kind: str, name: str, namespace: str = "", resource_version: str = "") -> Written:
        """revision 0: the server did not say; everything up to now is what `list` then shows."""
        identity = Identity(kind, name, namespace)
        rules.refuse_default_allow("delete", identity)
        body: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if resource_version:
            body["preconditions"] = {"resourceVersion": resource_version}
        answer = await self._ask("DELETE", "delete", identity, body=body, given=resource_version)
        if decode_status(answer):
            return Written(codec.placeholder(identity), 0)
        return _written(kind, answer)

    async def ensure_initialized(self, version: str = "", cluster_type: str = "") -> None:
        """The server sees to it."""

    # --- HTTP --------------------------------------------------------------------------------------------------------

    async def _ask(
        self, method: str, operation: str, identity: Identity, *,
        query: Mapping[str, str] | None = None, body: dict[str, Any] | None = None, given: str = "",
    ) -> dict[str, Any]:  # fmt: skip
        """The decoded answer. Reads are tried again while the server is starting, moving or busy."""
        for tries in range(READS if method == "GET" else 1):
            if tries:
                await asyncio.sleep(0.2 * 2**tries * self._random.uniform(0.5, 1.0))
            try:
                async with self._request(method, identity, query or {}, body) as answer:
                    text = await answer.read()
                    if answer.status < 300:
                        return _json(text)
                    problem = of_answer(answer.status, text, operation, identity, given)
                    if answer.status not in _PASSING:
                        raise problem
            except StoreUnavailable as error:
                problem = error
        raise problem

    @asynccontextmanager
    async def _request(
        self, method: str, identity: Identity, query: Mapping[str, str], body: dict[str, Any] | None = None, *,
        timeout: aiohttp.ClientTimeout | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:  # fmt: skip
        """Raises StoreUnavailable when no whole answer came. What was refused for its credentials (401), and so not
        done, is asked once more with newer ones where there are any.
        """
        access = await self._renewing.current()
        async with self._sent(access, method, identity, query, body, timeout) as answer:
            if answer.status != 401 or (newer := await self._renewing.after_refusal(access)) is access:
                yield answer
                return
        async with self._sent(newer, method, identity, query, body, timeout) as answer:
            yield answer

    @asynccontextmanager
    async def _sent(
        self, access: Access, method: str, identity: Identity, query: Mapping[str, str], body: dict[str, Any] | None,
        timeout: aiohttp.ClientTimeout | None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:  # fmt: skip
        await self._pace.wait()
        kind = kinds.kind(identity.kind)
        path = API + (f"/namespaces/{identity.namespace}" if identity.namespace else "") + f"/{kind.plural}"
        if identity.name and method != "POST":
            path += f"/{identity.name}"
        extra = {"dryRun": "All"} if self._dry_run and method != "GET" else {}
        try:
            async with self._http.request(
                method, access.url + path, params={**query, **extra}, json=body,
                headers={"Accept": "application/json", **await access.headers()},
                ssl=access.tls or True, server_hostname=access.server_name, proxy=access.proxy,
                timeout=timeout or aiohttp.ClientTimeout(total=TIMEOUT_S),
            ) as answer:  # fmt: skip
                yield answer
        except (aiohttp.ClientError, TimeoutError) as error:
            raise StoreUnavailable(f"API server {access.url}: {error or type(error).__name__}") from error


class _Pace:
    """At most `burst` requests at once and `qps` a second on average; 0: as fast as they come."""

    def __init__(self, qps: float, burst: int) -> None:
        self._qps = qps
        self._ahead_s = max(1, burst) / qps if qps else 0.0
        self._next = 0.0

    async def wait(self) -> None:
        if not self._qps:
            return
        now = asyncio.get_running_loop().time()
        self._next = max(self._next, now - self._ahead_s) + 1 / self._qps
        if self._next > now:
            await asyncio.sleep(self._next - now)


@asynccontextmanager
async def connect(
    access: Access, *, dry_run: bool = False, reload_check_s: float = RELOAD_CHECK_S
) -> AsyncIterator[RemoteClient]:
    async with aiohttp.ClientSession(trust_env=True, read_bufsize=1 << 21) as http:
        yield RemoteClient(http, access, dry_run=dry_run, reload_check_s=reload_check_s)


# --- what servers answer ---------------------------------------------------------------------------------------------


def _json(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise StoreUnavailable(f"API server: the answer is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise StoreUnavailable("API server: the answer is not a JSON object")
    return value


def _resource(kind: str, value: dict[str, Any]) -> Resource:
    try:
        return model.codec.from_dict({**value, "kind": kind})
    except DecodeError as error:
        raise StoreUnavailable(f"API server: not a readable {kind}: {error}") from error


def _readable(kind: str, value: dict[str, Any]) -> Resource | None:
    try:
        return _resource(kind, value)
    except StoreUnavailable:
        return None


def _written(kind: str, value: dict[str, Any], *, created: bool = False) -> Written:
    found = _resource(kind, value)
    return Written(found, _revision(found.metadata.resource_version), created)


def _revision(text: object) -> int:
    return int(text) if isinstance(text, str) and text.isdecimal() else 0


def _check(resource: Resource) -> None:
    if problems := codec.problems(codec.with_defaults(resource)):
        raise ValidationError(codec.identity(resource), problems)


# --- what is told of a watch -----------------------------------------------------------------------------------------

Held = dict[tuple[str, str], Resource]


def _place(resource: Resource) -> tuple[str, str]:
    return resource.metadata.namespace, resource.metadata.name


def _changed(held: Held, found: Resource, revision: int, *, gone: bool) -> Changed | None:
    before = held.pop(_place(found), None)
    if gone:
        return Changed(before or found, revision, gone=True) if before is not None else None
    held[_place(found)] = found
    if before is not None and before.metadata.resource_version == found.metadata.resource_version:
        return None
    return Changed(found, revision, created=before is None)


def _differences(held: Held, fresh: Listed) -> list[Changed]:
    """Brings `held` to the new listing, and tells how."""
    there = {_place(one): one for one in fresh.items if not rules.is_built_in(one)}
    gone = [place for place in held if place not in there]
    changes = [Changed(held.pop(place), fresh.revision, gone=True) for place in gone]
    told = (_changed(held, one, _revision(one.metadata.resource_version), gone=False) for one in there.values())
    return changes + [change for change in told if change is not None]
