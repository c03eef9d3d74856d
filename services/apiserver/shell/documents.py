"""Serves what describes the API: discovery in both forms, OpenAPI v2 and v3, the version and the list of paths.

Everything is made once, when the routes are. Caching is Kubernetes' own (k8s.io/kube-openapi, pkg/handler and
pkg/handler3): an ETag on each document, 304 for who has it, and documents asked for by their hash may be kept for ever.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
from aiohttp import hdrs, web

from services.apiserver.core import accept, discovery, openapi, swagger
from services.apiserver.core.accept import JSON, MediaType
from services.apiserver.core.request import API_PREFIX
from services.apiserver.core.status import GROUP, JsonObject, not_acceptable

MIN_GZIP_BYTES = 1024
_YEAR_S = 365 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Document:
    """One document in one form, ready to send. digest: SHA-512 of the body in capitals, as Kubernetes writes it."""

    media: MediaType
    body: bytes
    digest: str
    packed: bytes = field(repr=False)

    @classmethod
    def of(cls, content: JsonObject, media: MediaType = JSON) -> Document:
        body = msgspec.json.encode(content)
        packed = gzip.compress(body, mtime=0) if len(body) >= MIN_GZIP_BYTES else b""
        return cls(media, body, hashlib.sha512(body).hexdigest().upper(), packed)


class Documents:
    """The documents and their routes. version: of this program. other_paths: what others serve, for `/`."""

    def __init__(self, version: str, *, other_paths: Iterable[str] = ()) -> None:
        v3 = openapi.document(version)
        self.v3 = Document.of(v3)
        self.v3_index = Document.of(openapi.index(self.v3.digest))
        self._v3_path = f"/openapi/v3{API_PREFIX}"
        one = Document.of
        groups = {core: [self._aggregated(v, core=core) for v in discovery.AGGREGATED] for core in (True, False)}
        self._by_path: dict[str, list[Document]] = {
            "/": [one(discovery.root_paths(other_paths))],
            "/api": [one(discovery.api_versions()), *groups[True]],
            "/apis": [one(discovery.api_group_list()), *groups[False]],
            f"/apis/{GROUP}": [one(discovery.api_group())],
            API_PREFIX: [one(discovery.api_resource_list())],
            "/version": [one(discovery.version_info(version))],
            "/openapi/v2": [one(swagger.from_v3(v3))],
            "/openapi/v3": [self.v3_index],
            self._v3_path: [self.v3],
        }
        for group_version in discovery.REVIEWS:
            self._by_path[f"/apis/{group_version.partition('/')[0]}"] = [one(discovery.api_group(group_version))]
            self._by_path[f"/apis/{group_version}"] = [one(discovery.review_resource_list(group_version))]

    @staticmethod
    def _aggregated(version: str, *, core: bool) -> Document:
        return Document.of(discovery.aggregated(version, core=core), discovery.AGGREGATED[version])

    def routes(self) -> list[web.RouteDef]:
        """GET and HEAD of every document, with or without a slash at the end."""
        found = []
        for path in self._by_path:
            found.append(web.get(path, self._serve))
            if path != "/":
                found.append(web.get(path + "/", self._serve))
        return found

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        """Raises ApiError 406 when no form of the document is accepted."""
        path = request.path.rstrip("/") or "/"
        offers = self._by_path[path]
        wanted = accept.choose(",".join(request.headers.getall(hdrs.ACCEPT, [])), [one.media for one in offers])
        if wanted is None:
            taken = ", ".join(str(one.media) for one in offers)
            raise not_acceptable(f"only the following media types are accepted: {taken}")
        document = next(one for one in offers if one.media is wanted)
        if path == self._v3_path and (asked := request.query.get("hash")):
            if asked != document.digest:
                moved = {hdrs.LOCATION: f"{self._v3_path}?hash={document.digest}"}
                return web.Response(status=301, headers=moved)
            return _answer(request, document, immutable=True)
        return _answer(request, document)


def _answer(request: web.Request, document: Document, *, immutable: bool = False) -> web.Response:
    headers = {
        hdrs.ETAG: f'"{document.digest}"',
        hdrs.VARY: f"{hdrs.ACCEPT}, {hdrs.ACCEPT_ENCODING}",
        # Without a hash in the address the document may change when the server does: keep it, but ask.
        hdrs.CACHE_CONTROL: f"public, immutable, max-age={_YEAR_S}" if immutable else "public, no-cache",
    }
    if _has(request, document):
        return web.Response(status=304, headers=headers)
    body = document.body
    if document.packed and accept.takes_gzip(request.headers.get(hdrs.ACCEPT_ENCODING, "")):
        headers[hdrs.CONTENT_ENCODING], body = "gzip", document.packed
    return web.Response(body=body, headers=headers | {hdrs.CONTENT_TYPE: str(document.media)})


def _has(request: web.Request, document: Document) -> bool:
    """Whether If-None-Match names the document; compared weakly, as for GET (RFC 9110 section 13.1.2)."""
    tags = request.if_none_match or ()
    return any(tag.value in ("*", document.digest) for tag in tags)
