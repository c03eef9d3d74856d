"""A NATS proxy that loses, repeats, reorders and delays messages on their way to one client, by a seeded plan.

It stands between a real client and a real server and understands just enough of the protocol (https://docs.nats.io/reference/
reference-protocols/nats-protocol): what the server sends is cut into operations, MSG and HMSG are subject to the plan,
everything else (INFO, PING, PONG, +OK, -ERR) passes. What the client sends passes untouched, so a handshake and
keep-alives work.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

CRLF = b"\r\n"


@dataclass(slots=True)
class Plan:
    """Probabilities per message. `only`: subjects the plan is applied to. delay_s: upper bound of the added delay.

    A held message overtakes nothing and is overtaken: it is delivered after `hold` later ones.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    delay: float = 0.0
    delay_s: float = 0.05
    hold: int = 3
    only: Callable[[str], bool] = lambda subject: True
    seed: int = 0


@dataclass(slots=True)
class _Held:
    frame: bytes
    after: int


@dataclass(slots=True)
class ChaosProxy:
    """`async with ChaosProxy(host, port, plan) as proxy:` then connect the client to `nats://127.0.0.1:{proxy.port}`.

    counts: how often each thing happened; `plan` may be replaced at any time, Plan() heals.
    """

    host: str
    port_of_server: int
    plan: Plan
    listen_host: str = "127.0.0.1"
    port: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    _server: asyncio.Server | None = None
    _random: Random = field(default_factory=Random)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def __aenter__(self) -> ChaosProxy:
        self._random = Random(self.plan.seed)
        self._server = await asyncio.start_server(self._client, self.listen_host, self.port, limit=1 << 22)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> None:
        """Break every connection, as a failing network would."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(self.host, self.port_of_server, limit=1 << 22)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, up_writer}
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._copy(reader, up_writer), name="client to server")
                tasks.create_task(self._disturb(up_reader, writer), name="server to client")
        except* (OSError, asyncio.IncompleteReadError, _Closed):
            pass
        finally:
            for one in (writer, up_writer):
                self._writers.discard(one)
                one.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        raise _Closed

    async def _disturb(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held: list[_Held] = []
        loop = asyncio.get_running_loop()
        while True:
            line = await reader.readuntil(CRLF)
            if not line.startswith((b"MSG ", b"HMSG ")):
                writer.write(line)
                continue
            parts = line.split()
            frame = line + await reader.readexactly(int(parts[-1]) + 2)
            subject = parts[1].decode()
            self.counts["messages"] += 1
            for one in held:
                one.after -= 1
            fate = self._fate(subject)
            if fate:
                self.counts[fate] += 1
            if fate == "reorder":
                held.append(_Held(frame, self.plan.hold))
            elif fate == "delay":
                loop.call_later(self._random.uniform(0, self.plan.delay_s), self._late, writer, frame)
            elif fate != "drop":
                writer.write(frame * 2 if fate == "duplicate" else frame)
            for one in [one for one in held if one.after <= 0]:
                held.remove(one)
                writer.write(one.frame)
            with contextlib.suppress(ConnectionError):
                await writer.drain()

    def _fate(self, subject: str) -> str:
        plan = self.plan
        if not plan.only(subject):
            return ""
        draw = self._random.random()
        for name, share in (
            ("drop", plan.drop),
            ("duplicate", plan.duplicate),
            ("reorder", plan.reorder),
            ("delay", plan.delay),
        ):
            if draw < share:
                return name
            draw -= share
        return ""

    def _late(self, writer: asyncio.StreamWriter, frame: bytes) -> None:
        if not writer.is_closing():
            writer.write(frame)


class _Closed(Exception):
    """The other side ended the connection."""
