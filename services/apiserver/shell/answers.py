"""Answers in the form that the client wants: objects and lists as they are, as tables, or their metadata alone.

A list is put together from what its objects were encoded to once for all; a large one is sent in pieces, so that many
of them at once do not fill the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import msgspec
from aiohttp import web

from libs.model import yamltext
from libs.model.base import API_VERSION, Resource
from libs.model.kinds import Kind
from services.apiserver.core import negotiation, tables
from services.apiserver.core.documents import warning_headers
from services.apiserver.core.grouping import groups
from services.apiserver.core.negotiation import JSON, YAML, Form, Output
from services.apiserver.core.request import is_true
from services.apiserver.core.status import JsonObject
from services.apiserver.shell.reading import Page

_PIECE_BYTES = 256 * 2**10


class Answers:
    """What one request is answered with. Raises ApiError 406 and 400 when made."""

    def __init__(self, request: web.Request, kind: Kind, now: datetime, *, listing: bool = False) -> None:
        self._request, self._kind, self._now = request, kind, now
        self._output = negotiation.output(",".join(request.headers.getall("Accept", [])), listing=listing)
        self._include = negotiation.include_object(request.query.get("includeObject", ""))
        self._pretty = is_true(request.query, "pretty")

    async def one(
        self, resource: Resource, json: bytes, *, status: int = 200, warnings: Sequence[str] = ()
    ) -> web.StreamResponse:
        """json: the resource as clients get it."""
        match self._output.form:
            case Form.WHOLE:
                body = json
            case Form.METADATA:
                body = partial(json, self._output)
            case Form.TABLE:
                version = resource.metadata.resource_version
                table = tables.table(
                    self._kind, [resource], include=self._include.value, revision=version, now=self._now
                )
                body = msgspec.json.encode(table | {"apiVersion": f"meta.k8s.io/{self._output.version}"})
        return self._whole(body, status, warnings)

    async def status(self, value: JsonObject, warnings: Sequence[str] = ()) -> web.StreamResponse:
        return self._whole(msgspec.json.encode(value), value.get("code", 200), warnings)

    async def many(self, page: Page) -> web.StreamResponse:
        metadata: JsonObject = {"resourceVersion": str(page.revision)}
        if page.continue_:
            metadata["continue"] = page.continue_
        if page.remaining is not None:
            metadata["remainingItemCount"] = page.remaining
        match self._output.form:
            case Form.TABLE:
                head = tables.table(self._kind, ()) | {"apiVersion": f"meta.k8s.io/{self._output.version}"}
                del head["rows"]
                items = tables.encoded_rows(self._kind, page.items, self._include.value, self._now)
            case Form.METADATA:
                head = {"kind": "PartialObjectMetadataList", "apiVersion": f"meta.k8s.io/{self._output.version}"}
                items = (partial(item.json, self._output) for item in page.items)
            case Form.WHOLE:
                head = {"kind": f"{self._kind.kind}List", "apiVersion": API_VERSION}
                items = (item.json for item in page.items)
        name = b"rows" if self._output.form is Form.TABLE else b"items"
        parts = _list(msgspec.json.encode(head | {"metadata": metadata}), name, items)
        pieces = map(b"".join, groups(parts, _PIECE_BYTES))
        if self._output.yaml or self._pretty:
            return self._whole(b"".join(pieces))
        return await self._stream(pieces)

    def _whole(self, body: bytes, status: int = 200, warnings: Sequence[str] = ()) -> web.Response:
        content_type = JSON
        if self._output.yaml:
            value: Any = msgspec.json.decode(body)
            body, content_type = yamltext.dump_yaml(value).encode(), YAML
        elif self._pretty:
            body = msgspec.json.format(body, indent=2) + b"\n"
        response = web.Response(body=body, status=status, content_type=content_type)
        for value in warning_headers(list(warnings)):
            response.headers.add("Warning", value)
        return response

    async def _stream(self, pieces: Iterator[bytes]) -> web.StreamResponse:
        first = next(pieces)
        second = next(pieces, None)
        if second is None or self._request.method == "HEAD":
            return web.Response(body=first, content_type=JSON)
        response = web.StreamResponse(headers={"Content-Type": JSON})
        response.enable_chunked_encoding()
        await response.prepare(self._request)
        await response.write(first)
        await response.write(second)
        for piece in pieces:
            await response.write(piece)
        await response.write_eof()
        return response


def partial(json: bytes, output: Output) -> bytes:
    """PartialObjectMetadata of an encoded object; nothing but its outermost level is decoded."""
    metadata = msgspec.json.decode(json, type=dict[str, msgspec.Raw])["metadata"]
    version = output.version.encode()
    return b'{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/%b","metadata":%b}' % (version, bytes(metadata))


def _list(head: bytes, name: bytes, items: Iterable[bytes]) -> Iterator[bytes]:
    """head: the list without its items, as JSON; name: how they are called in it."""
    yield head[:-1] + b',"%b":[' % name
    separator = b""
    for item in items:
        yield separator
        yield item
        separator = b","
    yield b"]}\n"
