"""Clients that send too much, too slowly or no HTTP, strangers and crowds: each is told, and others are served."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from tests.contract.apiserver_process import (
    ADMIN,
    NOBODY,
    POLICIES,
    SETS,
    TIERS,
    Running,
    network_set,
)
from tests.contract.bad_input_stage import LIMIT, MB, under_fire

pytestmark = [pytest.mark.servers, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    yield from under_fire(tmp_path_factory.mktemp("apiserver"))


@pytest.fixture(autouse=True)
async def served_afterwards(server: Running) -> AsyncIterator[None]:
    yield
    await server.answers()


# --- size and framing ---


def post(path: str) -> bytes:
    """Head of a request, not yet ended."""
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\n".encode()


async def test_a_body_that_is_too_large_is_refused_before_it_came(server: Running) -> None:
    said = await server.raw(post(POLICIES) + b"Content-Length: %d\r\n\r\n" % (50 * 1024 * MB))
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b"RequestEntityTooLarge" in said


async def test_a_chunked_body_that_is_too_large_is_refused_while_it_comes(server: Running) -> None:
    before = server.rss_bytes

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(500):
            yield bytes(MB)

    found, closed = None, False
    async with server.session() as session:
        try:
            async with session.post(POLICIES, data=endless()) as response:
                found = (response.status, await response.json())
        except aiohttp.ClientConnectionError:
            closed = True  # it may stop listening before all is sent
    assert closed or (found is not None and found[0] == 413), found
    assert (server.rss_bytes - before) / MB < 40


async def test_an_object_just_below_the_limit_is_looked_at(server: Running) -> None:
    nets = [f"10.{i // 65536}.{i // 256 % 256}.{i % 256}/32" for i in range(120_000)]
    body = json.dumps(network_set("big", nets)).encode()
    assert LIMIT * 0.6 < len(body) < LIMIT
    found = await server.ask("POST", SETS + "?dryRun=All", body)
    assert found.status in (201, 413, 422), found.body


RAW = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS hello on the plain port
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET  / HTTP/1.1\r\n\r\n",
    b"\r\n\r\n\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    b"GET /" + b"z" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: y\r\n" % i for i in range(50_000)) + b"\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)


@pytest.mark.parametrize("sent", RAW, ids=range(len(RAW)))
async def test_bytes_that_are_no_request_close_the_connection(server: Running, sent: bytes) -> None:
    said = await server.raw(sent)
    if said:
        assert said.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), said[:200]
        assert b'"kind":"Status"' in said


@pytest.mark.parametrize(
    "rest",
    [
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}",
        b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}",
        b"Content-Length: 500\r\n\r\n{}",
    ],
)
async def test_a_body_that_ends_too_early_or_is_badly_framed_writes_nothing(server: Running, rest: bytes) -> None:
    said = await server.raw(post(POLICIES) + rest, half_close=True)
    if said:
        assert said.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400", b"HTTP/1.1 504", b"HTTP/1.1 408")), said[:200]


# --- who may not ---


@pytest.mark.parametrize(
    ("token", "status", "reason"),
    [("", 401, "Unauthorized"), ("wrong", 401, "Unauthorized"), (NOBODY, 403, "Forbidden")],
)
async def test_strangers_learn_nothing_and_cost_nothing(server: Running, token: str, status: int, reason: str) -> None:
    for method, path, body in (
        ("GET", POLICIES, None),
        ("GET", POLICIES + "/absent", None),
        ("POST", POLICIES, b"{" + b" " * 2 * MB),
        ("POST", POLICIES, b"not json"),
        ("PATCH", POLICIES + "/there", b"["),
        ("DELETE", POLICIES, None),
        ("GET", POLICIES + "?watch=1", None),
    ):
        found = await server.ask(method, path, body, token=token)
        assert (found.status, found.reason) == (status, reason), (method, path, found.body)
        assert token == NOBODY or "globalnetworkpolicies" not in found.message


@pytest.mark.parametrize("header", ["Basic YTpi", "Bearer", "Bearer ", "Bearer a b", "bogus", "Bearer " + "x" * 7000])
async def test_odd_credentials_are_none(server: Running, header: str) -> None:
    found = await server.ask("GET", POLICIES, token="", headers={"Authorization": header})
    assert (found.status, found.reason) == (401, "Unauthorized")


# --- clients that dawdle, and crowds ---


async def _trickle(server: Running, head: bytes, byte: bytes) -> float:
    """Seconds until the server closes on a client that sends one byte now and then."""
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    started = loop.time()

    async def send() -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(head)
            while True:
                writer.write(byte)
                await writer.drain()
                await asyncio.sleep(0.2)

    task = asyncio.create_task(send())
    try:
        async with asyncio.timeout(60):
            with contextlib.suppress(ConnectionError):
                while await reader.read(65536):
                    pass
        return loop.time() - started
    finally:
        task.cancel()
        writer.close()


async def test_heads_and_bodies_that_trickle_are_cut_off_while_others_are_served(server: Running) -> None:
    head = f"GET {TIERS} HTTP/1.1\r\nHost: x\r\nX-Slow: ".encode()
    body = (
        f"POST {TIERS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\nContent-Length: 100000\r\n\r\n".encode()
    )
    async with asyncio.TaskGroup() as tasks:
        slow = [tasks.create_task(_trickle(server, start, b"x")) for start in (head, body) for _ in range(100)]
        served = 0
        while not all(task.done() for task in slow):
            await server.answers()
            served += 1
    assert served >= 1
    # Each is over within its deadline and what closing takes, not when the client has finished (hours later).
    assert max(task.result() for task in slow) < 45


async def test_three_thousand_idle_connections_cost_little_and_others_are_served(server: Running) -> None:
    count = 3_000
    before = server.rss_bytes
    request = f"GET {TIERS}/default HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\n\r\n".encode()
    idle: list[asyncio.StreamWriter] = []
    try:
        for number in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            idle.append(writer)
            if number % 100 == 0:  # kept alive after a request; the others say nothing and go with the head's deadline
                writer.write(request)
                assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
        await server.answers()
        grown = (server.rss_bytes - before) / count / 1024
        assert grown < 64, f"{grown:.0f} kB for each connection"
    finally:
        for writer in idle:
            writer.close()


async def test_a_crowd_that_leaves_in_the_middle_of_answers(server: Running) -> None:
    async def leave(number: int) -> None:
        async with server.session() as session:
            with contextlib.suppress(TimeoutError, aiohttp.ClientError):
                path = f"{SETS}?watch=1" if number % 2 else POLICIES
                async with session.get(path, timeout=aiohttp.ClientTimeout(total=0.05 * (number % 7 + 1))) as response:
                    await response.content.readany()

    await asyncio.gather(*(leave(number) for number in range(200)))
