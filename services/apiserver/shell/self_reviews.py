"""Serves `core.reviews`: what users ask about themselves. The front has let them in and has read the body."""

from __future__ import annotations

import msgspec
from aiohttp import web

from services.apiserver.core import documents, negotiation, protobuf, reviews
from services.apiserver.core.status import JsonObject, bad_request
from services.apiserver.shell.authz import Authorization


class SelfReviews:
    def __init__(self, authorization: Authorization) -> None:
        self._authorization = authorization

    def routes(self) -> list[web.RouteDef]:
        return [web.post(path, self._answer) for path in reviews.KINDS]

    async def _answer(self, request: web.Request) -> web.Response:
        version, kind = reviews.KINDS[request.path]
        review = reviews.checked(
            _decoded(await request.read(), request.headers.get("Content-Type", ""), kind), request.path
        )
        answer = {"kind": kind, "apiVersion": version, "metadata": {"creationTimestamp": None}}
        if "spec" in review:
            answer["spec"] = review["spec"]
        answer["status"] = await self._status(request, review)
        return web.Response(status=201, body=msgspec.json.encode(answer), content_type="application/json")

    async def _status(self, request: web.Request, review: JsonObject) -> JsonObject:
        user = request["user"]
        if request.path == reviews.WHOAMI:
            return reviews.user_status(user)
        if request.path == reviews.RULES:
            return reviews.rules_status(self._authorization.granted(user, reviews.namespace_of(review)))
        decision = await self._authorization.authorize(user, reviews.asked(review))
        return {"allowed": decision.allowed} | ({"reason": decision.reason} if decision.reason else {})


def _decoded(raw: bytes, content_type: str, kind: str) -> object:
    try:
        if content_type.partition(";")[0].strip().lower() == protobuf.MEDIA_TYPE:
            return protobuf.decode(raw, kind)
        return documents.decode(raw, yaml=negotiation.body_is_yaml(content_type)).value
    except ValueError as error:
        raise bad_request(f"the body cannot be read: {error}") from error
