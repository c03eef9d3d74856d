"""The verbs of `/apis/projectcalico.org/v3/…` on aiohttp: what Kubernetes' clients expect of an API server.

The front has told who asks (`request["user"]`) and what for (`request["info"]`), has let the request pass and has read
its body; whatever is wrong is raised as ApiError and becomes a Status there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from random import Random

import msgspec
from aiohttp import web

from libs.model import codec
from libs.model.kinds import Kind
from libs.resources.client import ResourceClient, Written
from libs.store.api import Store
from services.apiserver.core import documents, negotiation, options, tables
from services.apiserver.core.negotiation import Form, Output, PatchKind
from services.apiserver.core.ports import Authorizer, Cache, Stored, TierAccess
from services.apiserver.core.request import API_PREFIX, RequestInfo, Target, User, Verb
from services.apiserver.core.status import GROUP, JsonObject, bad_request, method_not_allowed, not_found_path
from services.apiserver.shell.answers import Answers, partial
from services.apiserver.shell.reading import Page, Reading
from services.apiserver.shell.watching import Render, WatchSettings, serve_watch, whole
from services.apiserver.shell.writing import Body, Done, Writing

Handler = Callable[[web.Request, User, RequestInfo, Target], Awaitable[web.StreamResponse]]


class Api:
    """resources: its `release` decides what a deleted pool does about its addresses."""

    def __init__(
        self,
        store: Store,
        resources: ResourceClient,
        cache: Cache,
        tiers: TierAccess,
        authorizer: Authorizer,
        *,
        random: Random,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        watch_settings: WatchSettings | None = None,
    ) -> None:
        self._cache, self._random, self._now = cache, random, now
        self._reading = Reading(store, cache, tiers)
        self._writing = Writing(resources, tiers, authorizer, now=now, random=random)
        self._watch_settings = watch_settings
        self._handlers: dict[str, Handler] = {
            Verb.GET: self._get,
            Verb.LIST: self._list,
            Verb.WATCH: self._watch,
            Verb.CREATE: self._create,
            Verb.UPDATE: self._update,
            Verb.PATCH: self._patch,
            Verb.DELETE: self._delete,
            Verb.DELETE_COLLECTION: self._delete_collection,
        }

    def routes(self) -> list[web.AbstractRouteDef]:
        """For all resources; what the group itself is, discovery answers."""
        return [web.route("*", API_PREFIX + "/{rest:.+}", self.handle)]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        info: RequestInfo = request["info"]
        if info.target is None:
            raise not_found_path()
        handler = self._handlers.get(info.verb)
        if handler is None:
            raise method_not_allowed()
        return await handler(request, request["user"], info, info.target)

    # --- reading -----------------------------------------------------------------------------------------------------

    async def _get(self, request: web.Request, user: User, info: RequestInfo, target: Target) -> web.StreamResponse:
        answers = Answers(request, target.kind, self._now())
        found = await self._reading.get(user, info.verb, target, options.revision_of(request.query))
        return await answers.one(found.resource, found.json)

    async def _list(self, request: web.Request, user: User, info: RequestInfo, target: Target) -> web.StreamResponse:
        answers = Answers(request, target.kind, self._now(), listing=True)
        return await answers.many(await self._page(request, user, info, target))

    async def _page(self, request: web.Request, user: User, info: RequestInfo, target: Target) -> Page:
        wanted = options.list_options(request.query, target.kind)
        selection = await self._reading.selection(user, info.verb, target, wanted.labels, wanted.fields)
        return await self._reading.list(target, wanted, selection)

    async def _watch(self, request: web.Request, user: User, info: RequestInfo, target: Target) -> web.StreamResponse:
        output = negotiation.output(",".join(request.headers.getall("Accept", [])), watching=True)
        include = negotiation.include_object(request.query.get("includeObject", ""))
        labels, fields = options.selection(request.query, target.kind)
        if target.name:
            fields = (*fields, *options.only(target.name))
        decided_at = self._cache.revision
        selection = await self._reading.selection(user, info.verb, target, labels, fields)
        return await serve_watch(
            request,
            target.kind,
            self._cache,
            selection.keep,
            random=self._random,
            render=_render(target.kind, output, include, self._now),
            decided_at=decided_at,
            settings=self._watch_settings,
        )

    # --- writing -----------------------------------------------------------------------------------------------------

    async def _create(self, request: web.Request, user: User, info: RequestInfo, target: Target) -> web.StreamResponse:
        answers = Answers(request, target.kind, self._now())
        if target.name:
            raise method_not_allowed()
        query = options.write_query(request.query, _agent(request), of="CreateOptions")
        done = await self._writing.create(user, target, await _body(request), query)
        return await _written(answers, done)

    async def _update(self, request: web.Request, user: User, info: RequestInfo, target: Target) -> web.StreamResponse:
        answers = Answers(request, target.kind, self._now())
        query = options.write_query(request.query, _agent(request), of="UpdateOptions")
        return await _written(answers, await self._writing.update(user, target, await _body(request), query))

    async def _patch(self, request: web.Request, user: User, info: RequestInfo, target: Target) -> web.StreamResponse:
        answers = Answers(request, target.kind, self._now())
        kind = negotiation.patch_kind(request.headers.get("Content-Type", ""))
        query = options.write_query(request.query, _agent(request), of="PatchOptions", applying=kind is PatchKind.APPLY)
        body = Body(await request.read())
        return await _written(answers, await self._writing.patch(user, target, body, kind, query))

    async def _delete(self, request: web.Request, user: User, info: RequestInfo, target: Target) -> web.StreamResponse:
        answers = Answers(request, target.kind, self._now())
        written = await self._writing.delete(user, target, await self._delete_options(request))
        if not written.deleted:
            return await answers.one(written.resource, codec.encode(written.resource))
        return await answers.status(_deleted(target, written))

    async def _delete_collection(
        self, request: web.Request, user: User, info: RequestInfo, target: Target
    ) -> web.StreamResponse:
        answers = Answers(request, target.kind, self._now(), listing=True)
        wanted = await self._delete_options(request)
        page = await self._page(request, user, info, target)
        await self._writing.delete_all(user, target, list(page.items), wanted)
        return await answers.many(page)

    async def _delete_options(self, request: web.Request) -> options.DeleteOptions:
        raw = await request.read()
        if not raw.strip():
            return options.delete_options(request.query, None)
        try:
            decoded = documents.decode(raw, yaml=negotiation.body_is_yaml(request.headers.get("Content-Type", "")))
        except ValueError as error:
            raise bad_request(f"the body of a deletion must be DeleteOptions: {error}") from error
        return options.delete_options(request.query, decoded.value)


async def _body(request: web.Request) -> Body:
    return Body(await request.read(), negotiation.body_is_yaml(request.headers.get("Content-Type", "")))


def _agent(request: web.Request) -> str:
    return request.headers.get("User-Agent", "")


async def _written(answers: Answers, done: Done) -> web.StreamResponse:
    written = done.written
    json = codec.encode(written.resource)
    return await answers.one(written.resource, json, status=201 if written.created else 200, warnings=done.warnings)


def _deleted(target: Target, written: Written) -> JsonObject:
    details = {"name": target.name, "group": GROUP, "kind": target.kind.plural}
    if written.resource.metadata.uid:
        details["uid"] = written.resource.metadata.uid
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def _render(kind: Kind, output: Output, include: negotiation.Include, now: Callable[[], datetime]) -> Render:
    """How objects look in the frames of a watch."""

    def table(stored: Stored, first: bool) -> bytes:
        one = tables.table(kind, [stored.resource], include=include.value, revision=str(stored.revision), now=now())
        if not first:
            one["columnDefinitions"] = None
        return msgspec.json.encode(one | {"apiVersion": f"meta.k8s.io/{output.version}"})

    match output.form:
        case Form.TABLE:
            return table
        case Form.METADATA:
            return lambda stored, first: partial(stored.json, output)
    return whole
