"""GET over a socket of another namespace: how a test asks a service of a pretend node how it is."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass

from libs.testkit.topology import Namespace


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    text: str


async def http_get(netns: Namespace, host: str, port: int, path: str, *, timeout_s: float = 20.0) -> Answer:
    """Raises OSError (TimeoutError included) when there is no answer or half of one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    loop = asyncio.get_running_loop()
    with netns.socket(family, socket.SOCK_STREAM) as channel:
        async with asyncio.timeout(timeout_s):
            await loop.sock_connect(channel, (host, port))
            await loop.sock_sendall(channel, f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            data = b""
            while more := await loop.sock_recv(channel, 65536):
                data += more
    head, gap, body = data.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if not gap or len(words) < 2 or not words[1].isdigit():
        raise ConnectionError(f"{host}:{port} gave no proper HTTP answer: {data[:80]!r}")
    return Answer(int(words[1]), body.decode(errors="replace"))
