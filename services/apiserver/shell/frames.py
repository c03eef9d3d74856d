"""Where a watch's frames go: a chunked HTTP answer or, as Kubernetes allows, the text messages of a WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Protocol

from aiohttp import ClientConnectionResetError, HttpVersion11, web


class ClientGone(Exception):
    """The client closed its connection, or does not read."""


class Sink(Protocol):
    """send, check: raise ClientGone. abort: the connection is closed without more."""

    @property
    def response(self) -> web.StreamResponse: ...
    async def send(self, frames: Sequence[bytes]) -> None:
        """frames: whole ones, each with its line end. Waits until the socket takes more."""
        ...

    def check(self) -> None: ...
    async def close(self) -> None: ...
    def abort(self) -> None: ...


async def open_sink(request: web.Request, content_type: str, write_limit_s: float) -> Sink:
    """Begins the answer. write_limit_s: a client that does not read for that long is given up."""
    socket = web.WebSocketResponse(compress=False)
    if socket.can_prepare(request).ok:
        await socket.prepare(request)
        return _WebSocket(request, socket, write_limit_s)
    response = web.StreamResponse(
        headers={"Content-Type": content_type, "Cache-Control": "no-cache, private", "X-Accel-Buffering": "no"}
    )
    if request.version >= HttpVersion11:
        response.enable_chunked_encoding()
    else:
        response.force_close()  # the end of the connection is then the end of the answer
    await response.prepare(request)
    return _Chunked(request, response, write_limit_s)


class _Connection:
    def __init__(self, request: web.Request, write_limit_s: float) -> None:
        self._request, self._write_limit_s = request, write_limit_s

    def check(self) -> None:
        transport = self._request.transport
        if transport is None or transport.is_closing():
            raise ClientGone

    def abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()

    async def _limited(self, writing: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._write_limit_s):
                await writing
        except (TimeoutError, ConnectionError, ClientConnectionResetError) as error:
            raise ClientGone from error


class _Chunked(_Connection):
    def __init__(self, request: web.Request, response: web.StreamResponse, write_limit_s: float) -> None:
        super().__init__(request, write_limit_s)
        self.response = response

    async def send(self, frames: Sequence[bytes]) -> None:
        await self._limited(self.response.write(b"".join(frames)))

    async def close(self) -> None:
        await self._limited(self.response.write_eof())


class _WebSocket(_Connection):
    def __init__(self, request: web.Request, response: web.WebSocketResponse, write_limit_s: float) -> None:
        super().__init__(request, write_limit_s)
        self.response: web.WebSocketResponse = response
        self._ignoring = asyncio.create_task(self._ignore_client(), name="watch ignores its websocket's client")

    async def _ignore_client(self) -> None:
        """Nothing is expected of it but that it closes; reading answers that, and its pings."""
        async for _ in self.response:
            pass

    async def send(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            await self._limited(self.response.send_str(frame.decode().rstrip("\n")))

    def abort(self) -> None:
        self._ignoring.cancel()
        super().abort()

    def check(self) -> None:
        super().check()
        if self.response.closed:
            raise ClientGone

    async def close(self) -> None:
        await self._limited(self._say_goodbye())

    async def _say_goodbye(self) -> None:
        self._ignoring.cancel()
        await self.response.close()
