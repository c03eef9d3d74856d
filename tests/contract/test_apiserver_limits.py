"""apiserver's limits: bodies, requests at a time, rates, dawdling clients, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from services.apiserver.core.request import API_PREFIX
from tests.contract.apiserver_stage import POLICIES, ROUTES, Pki, Stage, stage
from tests.contract.test_apiserver_front import ADMIN, READER, ROLES, TOKENS, until

WATCH = POLICIES + "?watch=true"
POOLS = f"{API_PREFIX}/ippools"


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    made = Pki(tmp_path / "pki")
    (made.home / "tokens").write_text(TOKENS)
    (made.home / "roles").write_text(ROLES)
    return made


class Gate:
    """A handler that waits until it is let through, and a watch that goes on for ever."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.inside = 0
        self.ended = 0

    async def slow(self, _: web.Request) -> web.Response:
        self.inside += 1
        try:
            await self.open.wait()
        finally:
            self.inside -= 1
        return web.json_response({"done": True})

    async def either(self, request: web.Request) -> web.StreamResponse:
        return await (self.watch(request) if request["info"].verb == "watch" else self.slow(request))

    async def watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"type":"ADDED"}\n')
        self.inside += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.inside -= 1
            self.ended += 1
        return response

    def routes(self) -> list[web.RouteDef]:
        return [web.get(POLICIES, self.either), web.post(POLICIES, self.slow), *ROUTES]


@contextlib.asynccontextmanager
async def limited(pki: Pki, gate: Gate | None = None, **settings: Any) -> AsyncIterator[Stage]:
    files = {"token_auth_file": pki.home / "tokens", "authorization_role_file": pki.home / "roles"}
    async with stage(pki, gate.routes() if gate else ROUTES, **files, **settings) as made:
        yield made


async def raw(front: Stage, *parts: bytes, timeout_s: float = 20.0) -> bytes:
    """What the server says to these bytes until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=front.pki.client())
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        async with asyncio.timeout(timeout_s):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


HEAD = f"Host: x\r\nAuthorization: {ADMIN[0][1]}\r\n".encode()


async def test_a_body_that_is_too_large_is_413_however_it_comes(pki: Pki) -> None:
    async with limited(pki, max_request_body_bytes=4096) as front:
        for data in (b"x" * 4097, chunks(5, 1000)):
            status, body, _ = await front.ask(POOLS, method="POST", headers=ADMIN, data=data)
            assert (status, body["reason"]) == (413, "RequestEntityTooLarge")
            assert body["message"] == "Request entity too large: limit is 4096"
        status, body, _ = await front.ask(POOLS, method="POST", headers=ADMIN, data=b"x" * 4096)
        assert (status, body["body"]) == (200, 4096)
        claimed = b"POST " + POOLS.encode() + b" HTTP/1.1\r\n" + HEAD + b"Content-Length: 99999999999\r\n\r\n"
        answer = await raw(front, claimed)
        assert answer.startswith(b"HTTP/1.1 413")


async def chunks(count: int, size: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * size


async def test_a_compressed_body_is_measured_as_it_unfolds(pki: Pki) -> None:
    import gzip

    bomb = gzip.compress(b"0" * 50_000_000)
    async with limited(pki, max_request_body_bytes=100_000) as front:
        status, body, _ = await front.ask(
            POOLS, method="POST", headers=[*ADMIN, ("Content-Encoding", "gzip")], data=bomb
        )
        assert (status, body["reason"]) == (413, "RequestEntityTooLarge")


async def test_the_default_limit_of_bodies_is_kubernetes_own(pki: Pki) -> None:
    async with limited(pki) as front:
        status, body, _ = await front.ask(POOLS, method="POST", headers=ADMIN, data=b"x" * 3145729)
        assert (status, body["message"]) == (413, "Request entity too large: limit is 3145728")


async def test_strangers_bodies_are_not_read(pki: Pki) -> None:
    async with limited(pki) as front:
        head = b"POST " + POOLS.encode() + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n"
        answer = await raw(front, head, b"x" * 1000)
        assert answer.startswith(b"HTTP/1.1 401")
        assert b"connection: close" in answer.lower()


async def test_requests_at_a_time_are_limited_apart_for_reads_and_writes(pki: Pki) -> None:
    gate = Gate()
    async with limited(pki, gate, max_requests_inflight=2, max_mutating_requests_inflight=1) as front:
        slow = [asyncio.create_task(front.ask(headers=READER)) for _ in range(2)]
        await until(lambda: gate.inside == 2, "both are inside")
        status, body, headers = await front.ask(headers=READER)
        assert (status, body["reason"], headers["Retry-After"]) == (429, "TooManyRequests", "1")
        assert body["details"] == {"retryAfterSeconds": 1}
        assert front.metric("apiserver_current_inflight_requests", request_kind="readOnly") == 2
        slow.append(asyncio.create_task(front.ask(method="POST", headers=ADMIN, data=b"{}")))
        await until(lambda: gate.inside == 3, "a write has its own room")
        assert (await front.ask(method="POST", headers=ADMIN, data=b"{}"))[0] == 429
        assert (await front.ask("/livez"))[0] == 200, "probes are not turned away"
        watch = asyncio.create_task(front.ask(WATCH, headers=READER))
        await until(lambda: gate.inside == 4, "nor are watches")
        gate.open.set()
        assert [(await task)[0] for task in slow] == [200] * 3
        assert (await front.ask(headers=READER))[0] == 200
        watch.cancel()
        assert front.metric("apiserver_request_terminations_total", code="429", component="apiserver") == 2


async def test_one_user_who_asks_too_fast_does_not_stop_another(pki: Pki) -> None:
    async with limited(pki, user_rate_per_s=0.001, user_burst=3) as front:
        assert [(await front.ask(headers=READER))[0] for _ in range(4)] == [200, 200, 200, 429]
        _, body, headers = await front.ask(headers=READER)
        assert int(headers["Retry-After"]) > 100
        assert body["details"]["retryAfterSeconds"] == int(headers["Retry-After"])
        assert [(await front.ask(headers=ADMIN))[0] for _ in range(5)] == [200] * 5, "masters have no limit"


async def test_slow_heads_are_cut(pki: Pki) -> None:
    async with limited(pki, head_timeout_s=0.3) as front:
        started = time.monotonic()
        assert await raw(front) == b"", "who says nothing"
        assert await raw(front, b"GET " + POLICIES.encode() + b" HTTP/1.1\r\nHost: x\r\nX-A: ") == b"", "who stops"
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=pki.client())
        with contextlib.suppress(ConnectionError):
            while not reader.at_eof():  # a header a moment, for ever
                writer.write(b"GET / HTTP/1.1\r\nX-Slow: 1\r\n" if reader._buffer == b"" else b"X: 1\r\n")  # type: ignore[attr-defined]
                await writer.drain()
                await asyncio.sleep(0.02)
                assert time.monotonic() - started < 60
        # On a connection that served a request already.
        request = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", front.port, ssl=pki.client())
        writer.write(request)
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.write(request[:20])
        assert await reader.read() == b""
        writer.close()
        await until(lambda: not front.parts.front.running, "nothing is left")


async def test_slow_bodies_are_cut(pki: Pki) -> None:
    async with limited(pki, body_timeout_s=0.3) as front:
        head = b"POST " + POOLS.encode() + b" HTTP/1.1\r\n" + HEAD + b"Content-Length: 100\r\n\r\n"
        answer = await raw(front, head, b"only this")
        assert answer.startswith(b"HTTP/1.1 504")
        assert b'"reason":"Timeout"' in answer
        await until(lambda: not front.parts.front.running, "nothing is left")


async def test_idle_connections_are_closed(pki: Pki) -> None:
    async with limited(pki, idle_timeout_s=0.3) as front:
        assert (await raw(front, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_connections_are_limited(pki: Pki) -> None:
    async with limited(pki, max_connections=3, head_timeout_s=30) as front:
        standing = [await asyncio.open_connection("127.0.0.1", front.port, ssl=pki.client()) for _ in range(3)]
        with pytest.raises((ConnectionError, aiohttp.ClientError)):
            await front.ask("/livez")
        assert front.metric("apiserver_connections_refused_total") == 1
        standing.pop()[1].close()
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(ConnectionError, aiohttp.ClientError):
                assert (await front.ask("/livez"))[0] == 200
                break
            assert time.monotonic() < deadline
        for _, writer in standing:
            writer.close()


async def test_a_request_ends_in_time_and_watches_do_not(pki: Pki) -> None:
    gate = Gate()
    async with limited(pki, gate, request_timeout=0.3) as front:
        watch = asyncio.create_task(front.ask(WATCH, headers=READER))
        status, body, _ = await front.ask(headers=READER)
        assert (status, body["reason"]) == (504, "Timeout")
        await until(lambda: gate.inside == 1, "the slow one is gone, the watch is there")
        assert not watch.done()
        watch.cancel()
        assert (await front.ask(POLICIES + "?timeout=soon", headers=READER))[1]["reason"] == "BadRequest"
    gate = Gate()
    async with limited(pki, gate) as front:
        assert (await front.ask(POLICIES + "?timeout=200ms", headers=READER))[0] == 504, "a client may want less"


async def test_a_watch_whose_client_went_away_is_let_go(pki: Pki) -> None:
    gate = Gate()
    async with limited(pki, gate) as front:
        watch = asyncio.create_task(front.ask(WATCH, headers=READER))
        await until(lambda: gate.inside == 1, "it is there")
        assert front.parts.front.watches == 1
        what = {
            "verb": "WATCH", "group": "projectcalico.org", "version": "v3", "resource": "networkpolicies",
            "subresource": "", "scope": "namespace", "component": "apiserver",
        }  # fmt: skip
        assert front.metric("apiserver_longrunning_requests", **what) == 1
        watch.cancel()
        await until(lambda: gate.ended == 1 and front.parts.front.watches == 0, "without a byte to write")
        assert front.metric("apiserver_longrunning_requests", **what) == 0


async def test_the_end_is_orderly(pki: Pki) -> None:
    """No new ones, watches end their answers properly, and what is under way finishes."""
    gate = Gate()
    connector = aiohttp.TCPConnector(ssl=pki.client())
    async with aiohttp.ClientSession(connector=connector, headers=dict(READER)) as session:
        server = limited(pki, gate)
        front = await server.__aenter__()
        watch = await session.get(front.url(WATCH))
        assert await watch.content.readline() == b'{"type":"ADDED"}\n'
        slow = asyncio.create_task(front.ask(headers=READER))
        await until(lambda: gate.inside == 2, "both are inside")
        front.service.stop.set()
        assert (await front.ask("/readyz"))[0] == 500
        closing = asyncio.create_task(server.__aexit__(None, None, None))
        assert await watch.content.read() == b"", "an end and no error"
        with pytest.raises((ConnectionError, aiohttp.ClientError)):
            await front.ask("/livez")
        assert not slow.done()
        gate.open.set()
        assert (await slow)[0] == 200
        await closing


async def test_garbage_is_answered_and_costs_nothing(pki: Pki) -> None:
    async with limited(pki) as front:
        for garbage in (b"GARBAGE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
                        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000 + b"\r\n\r\n"):  # fmt: skip
            answer = await raw(front, garbage)
            assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400", b"HTTP/1.1 401")), (garbage[:40], answer)
            assert b"aiohttp" not in answer
        assert (await front.ask(headers=READER))[0] == 200
