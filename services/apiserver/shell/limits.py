"""What keeps the server's memory bounded: requests in flight, how fast a user asks, and connections that dawdle.

aiohttp closes a connection that is idle between requests, but by one long timer that also covers the first request's
head; here a head has a short deadline of its own, from the first byte (or the connection) to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from services.apiserver.core.request import Verb
from services.apiserver.core.status import ApiError, too_many_requests
from services.apiserver.shell.certificates import Peer, peer_of

MUTATING = frozenset(
    {Verb.CREATE, Verb.UPDATE, Verb.PATCH, Verb.DELETE, Verb.DELETE_COLLECTION, "post", "put", "patch"}
)
SERVER = "calico-apiserver"
"""Else aiohttp would tell its version."""
BUSY = "Too many requests, please try again later."


class InFlight:
    """Requests at the same time, those that write counted apart (as --max-requests-inflight and
    --max-mutating-requests-inflight of a kube-apiserver). 0: no limit. Watches do not count.
    """

    def __init__(self, reading: int, mutating: int) -> None:
        self._limits = {False: reading, True: mutating}
        self.now = {False: 0, True: 0}

    @contextlib.contextmanager
    def one(self, verb: str) -> Iterator[None]:
        """Raises ApiError 429."""
        kind = verb in MUTATING
        if self._limits[kind] and self.now[kind] >= self._limits[kind]:
            raise too_many_requests(BUSY)
        self.now[kind] += 1
        try:
            yield
        finally:
            self.now[kind] -= 1


class Handler(RequestHandler):
    """A connection whose request heads have a deadline. peer: the client's certificate. when_lost: called when the
    client went away, by whoever waits for something else meanwhile.
    """

    __slots__ = ("_head_timeout_s", "_head_timer", "peer", "when_lost")

    def __init__(self, manager: web.Server, *, head_timeout_s: float, **more: Any) -> None:
        super().__init__(manager, **more)
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self.peer: Peer | None = None
        self.when_lost: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        ssl_object = transport.get_extra_info("ssl_object")
        if ssl_object is not None:
            self.peer = peer_of(ssl_object)
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        before = self._request_count
        super().data_received(data)
        if self._request_count != before:
            self._disarm()
        elif self._head_timer is None and self._waiter is not None and not self._waiter.done():
            self._arm()  # bytes of a next request that is not complete yet

    def connection_lost(self, exc: BaseException | None) -> None:
        self._disarm()
        super().connection_lost(exc)
        if self.when_lost is not None:
            self.when_lost()

    def _arm(self) -> None:
        self._head_timer = self._loop.call_later(self._head_timeout_s, self._too_late)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_late(self) -> None:
        self._head_timer = None
        self.force_close()

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """The rest of a body that could not be unpacked is read, too, before the connection is used again: after its
        sender was told.
        """
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What does not even reach the middlewares: bytes that are no HTTP."""
        self.keep_alive(False)
        if status < 500:
            error = ApiError(status, "BadRequest", "the request is not valid HTTP")
        else:
            self.logger.error("request failed outside of the middlewares", exc_info=exc)
            error = ApiError(status, "InternalError", "Internal error occurred")
        body = msgspec.json.encode(error.status())
        response = web.Response(status=status, body=body, content_type="application/json")
        response.headers["Server"] = SERVER
        response.force_close()
        return response


class Server(web.Server):
    """Makes a `Handler` for each connection."""

    def __init__(self, handler: Any, *, request_factory: Any, head_timeout_s: float, **more: Any) -> None:
        super().__init__(handler, request_factory=request_factory, **more)
        self._head_timeout_s = head_timeout_s

    def __call__(self) -> RequestHandler:
        return Handler(self, loop=self._loop, head_timeout_s=self._head_timeout_s, **self._kwargs)


class Runner(web.AppRunner):
    """An AppRunner whose connections are ours."""

    def __init__(self, app: web.Application, *, head_timeout_s: float, idle_timeout_s: float) -> None:
        super().__init__(
            app, access_log=None, handle_signals=False, keepalive_timeout=idle_timeout_s, lingering_time=2.0,
            shutdown_timeout=1.0,
        )  # fmt: skip
        self._head_timeout_s = head_timeout_s

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return Server(
            made.request_handler,
            request_factory=made.request_factory,
            head_timeout_s=self._head_timeout_s,
            **made._kwargs,
        )
