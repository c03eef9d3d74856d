"""The unix socket that the CNI shim posts to: HTTP, one request per process, root only."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.request import Request, parse
from services.felix.shell.cni.log import CniLog, settings_of
from services.felix.shell.cni.plugin import Plugin

log = logging.getLogger(__name__)

BODY_BYTES = 8 * 1024 * 1024


class CniServer:
    """`async with CniServer(plugin, path):` serves until the block ends; requests in progress are finished first."""

    def __init__(self, plugin: Plugin, path: Path) -> None:
        self._path = path
        self._log = CniLog()
        app = web.Application(client_max_size=BODY_BYTES)
        app.router.add_post("/cni", lambda http: self._answer(http, plugin.handle))
        app.router.add_post("/ipam", lambda http: self._answer(http, plugin.handle_ipam, for_ipam=True))
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=20.0, handler_cancellation=False)

    async def __aenter__(self) -> CniServer:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()  # left by a process that was killed
        self._log.install()
        await self._runner.setup()
        mask = os.umask(0o177)  # never open to others, not even until a chmod
        try:
            await web.UnixSite(self._runner, str(self._path)).start()
        finally:
            os.umask(mask)
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        await self._runner.cleanup()
        self._log.uninstall()

    async def _answer(
        self,
        http: web.Request,
        handle: Callable[[Request], Awaitable[dict[str, Any] | None]],
        *,
        for_ipam: bool = False,
    ) -> web.Response:
        try:
            request = parse(await http.read(), for_ipam=for_ipam)
        except CniError as error:
            return _refused(error, "")
        with self._log.request(settings_of(request.raw)):
            try:
                result = await handle(request)
            except CniError as error:
                return _refused(error, request.version)
            except Exception as error:
                log.exception("CNI request failed")
                return _json(CniError(Code.INTERNAL, f"internal error: {error}").object(request.version), status=500)
        return _json(result) if result is not None else web.Response(body=b"")


def _refused(error: CniError, version: str) -> web.Response:
    log.warning("CNI request refused", extra={"code": error.code, "error": str(error), "details": error.details})
    return _json(error.object(version), status=400)


def _json(value: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(
        body=json.dumps(value, indent=2).encode() + b"\n", status=status, content_type="application/json"
    )
