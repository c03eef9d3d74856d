"""A NATS proxy that loses, repeats, reorders and delays messages on their way to one client, by a seeded plan.

It stands between a real client and a real server and understands just enough of the protocol (https://docs.nats.io/reference/
reference-protocols/nats-protocol): what the server sends is cut into operations, MSG and HMSG are subject to the plan,
everything else (INFO, PING, PONG, +OK, -ERR) passes. What the client sends passes untouched, so a handshake and
keep-alives work.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Self

from libs.netlink.netns import in_netns
from libs.testkit.processes import nsrun

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
    subjects: set[str] = field(default_factory=set)  # of all messages seen, disturbed or not
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
            self.subjects.add(subject)
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


# --- as a process, for clients in another network namespace ----------------------------------------------------------


class ChaosProcess:
    """The proxy as a child in a namespace, told what to do line by line (see `serve`).

    Start it from the main thread: it ends with the thread that started it. Methods block for a round trip on a pipe.
    """

    def __init__(self, netns: Path, listen: tuple[str, int], to: tuple[str, int], *, seed: int = 0) -> None:
        self._netns = netns
        self._arguments = [*(f"{host}:{port}" for host, port in (listen, to)), str(seed)]
        self._child: subprocess.Popen[str] | None = None

    def start(self) -> Self:
        command = [str(nsrun()), str(os.getpid()), sys.executable, "-m", "libs.testkit.chaos", *self._arguments]
        with in_netns(self._netns):
            self._child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
            )
        self._answer()
        return self

    def stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def plan(self, only: str = "", **shares: float) -> None:
        """From now on, for messages whose subject begins with `only`: shares as in `Plan`."""
        self._tell(json.dumps({"plan": shares, "only": only}))

    def heal(self) -> None:
        self.plan()

    def cut(self) -> None:
        self._tell(json.dumps({"cut": True}))

    def counts(self) -> dict[str, int]:
        """How often each thing happened so far."""
        return dict(self._tell("{}")["counts"])

    def subjects(self) -> set[str]:
        """Subjects of all messages that came from the server so far."""
        return set(self._tell(json.dumps({"subjects": True}))["subjects"])

    def _tell(self, line: str) -> Any:
        assert self._child is not None
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._child is not None
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"the proxy ended with status {self._child.wait()}")
        return json.loads(line)


async def serve(listen: str, to: str, seed: int) -> None:
    """An object a line on stdin ({"plan": {…}, "only": prefix}, {"cut": true}, {"subjects": true}), one on stdout."""
    (host, _, port), (target, _, target_port) = listen.rpartition(":"), to.rpartition(":")
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    proxy = ChaosProxy(target, int(target_port), Plan(seed=seed), listen_host=host, port=int(port))
    async with proxy:
        print(json.dumps({"port": proxy.port}), flush=True)
        while line := await lines.readline():
            wish = json.loads(line)
            if "plan" in wish:
                proxy.plan = Plan(**wish["plan"], only=_starts_with(wish["only"]))
            if wish.get("cut"):
                proxy.cut()
            answer = {"counts": proxy.counts}
            print(
                json.dumps(answer | {"subjects": sorted(proxy.subjects)} if wish.get("subjects") else answer),
                flush=True,
            )


def _starts_with(prefix: str) -> Callable[[str], bool]:
    return lambda subject: subject.startswith(prefix)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
