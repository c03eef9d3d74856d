"""The local control socket: HTTP over a unix socket that only root may open, for `calico-bgp peers|rib|explain`.

GET  /peers                      GET  /rib?family=ipv4&table=loc|in|out&peer=NAME
GET  /explain?prefix=10.0.0.0/24    GET  /settings    GET /state
POST /refresh?peer=NAME          POST /reset?peer=NAME&message=TEXT
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable, Iterable
from datetime import datetime
from ipaddress import ip_network
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
from aiohttp import web

from libs.bus.bgp import StateRequest
from services.bgp.core.paths import Family
from services.bgp.core.settings_file import encode_settings
from services.bgp.shell import report
from services.bgp.shell.speaker import Speaker

log = logging.getLogger(__name__)

ROWS = 500  # of a table between two turns of the event loop


class Control:
    """speaker: None before there are settings; then every answer is 503 with what is waited for."""

    def __init__(self, path: Path, speaker: Callable[[], Speaker | None], *, started: datetime, version: str) -> None:
        self._path = path
        self._speaker = speaker
        self._started, self._version = started, version
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Control:
        app = web.Application()
        app.add_routes(
            [
                web.get("/peers", self._peers),
                web.get("/rib", self._rib),
                web.get("/explain", self._explain),
                web.get("/settings", self._settings),
                web.get("/state", self._state),
                web.post("/refresh", self._refresh),
                web.post("/reset", self._reset),
            ]
        )
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        old = os.umask(0o177)
        try:
            await web.UnixSite(runner, str(self._path)).start()
        finally:
            os.umask(old)
        self._runner = runner
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        self._path.unlink(missing_ok=True)

    def _now(self) -> Speaker:
        speaker = self._speaker()
        if speaker is None:
            raise web.HTTPServiceUnavailable(text="no settings yet: typha has not been heard, and nothing is saved")
        return speaker

    async def _peers(self, request: web.Request) -> web.Response:
        return _json(report.peers(self._now()))

    async def _state(self, request: web.Request) -> web.Response:
        found = report.state(self._now(), StateRequest(routes=True), started=self._started, version=self._version)
        return web.Response(body=msgspec.json.encode(found), content_type="application/json")

    async def _settings(self, request: web.Request) -> web.Response:
        return web.Response(text=encode_settings(self._now().settings), content_type="application/json")

    async def _rib(self, request: web.Request) -> web.StreamResponse:
        speaker, table = self._now(), request.query.get("table", "loc")
        if table not in ("loc", "in", "out"):
            raise web.HTTPBadRequest(text="table is one of loc, in, out")
        family = _family(request)
        try:
            rows = await _in_turns(report.rib(speaker, family=family, table=table, peer=request.query.get("peer", "")))
        except KeyError as error:
            raise web.HTTPNotFound(text=_no_peer(speaker, str(error.args[0]))) from error
        return web.Response(body=msgspec.json.encode(rows), content_type="application/json")

    async def _explain(self, request: web.Request) -> web.Response:
        text = request.query.get("prefix", "")
        try:
            wanted = ip_network(text, strict=False)
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"{text!r} is neither an address nor a network") from error
        found = report.explain(self._now(), wanted)
        if found is None:
            raise web.HTTPNotFound(text=f"no route covers {text}")
        return _json(found)

    async def _refresh(self, request: web.Request) -> web.Response:
        speaker, name = self._now(), request.query.get("peer", "")
        peer = next((one for one in speaker.all_peers() if one.name == name), None)
        if peer is None:
            raise web.HTTPNotFound(text=_no_peer(speaker, name))
        if not peer.ask_again():
            raise web.HTTPConflict(text=f"{name} is not up, or does not know route refresh")
        return _json({"asked": name})

    async def _reset(self, request: web.Request) -> web.Response:
        speaker, name = self._now(), request.query.get("peer", "")
        peer = next((one for one in speaker.all_peers() if one.name == name), None)
        if peer is None:
            raise web.HTTPNotFound(text=_no_peer(speaker, name))
        peer.reset(request.query.get("message", ""))
        return _json({"reset": name})


async def _in_turns(found: Iterable[Any]) -> list[Any]:
    """Rows of a large table, made a few at a time: keepalives and UPDATEs go on in between."""
    rows: list[Any] = []
    for row in found:
        rows.append(row)
        if len(rows) % ROWS == 0:
            await asyncio.sleep(0)
    return rows


def _family(request: web.Request) -> Family:
    name = request.query.get("family", "ipv4")
    if name not in ("ipv4", "ipv6"):
        raise web.HTTPBadRequest(text="family is ipv4 or ipv6")
    return Family[name.upper()]


def _no_peer(speaker: Speaker, name: str) -> str:
    known = ", ".join(sorted(peer.name for peer in speaker.all_peers())) or "none"
    return f"no peer {name!r}; there are: {known}"


def _json(value: Any) -> web.Response:
    return web.Response(text=json.dumps(value), content_type="application/json")
