"""A TCP relay that tests put between a client and its server, to cut and mend that one connection."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

from libs.testkit.servers import free_port


class Relay:
    """Listens on 127.0.0.1:`port` and forwards to `target_port` there. `async with Relay(server.port) as relay: ...`"""

    def __init__(self, target_port: int, target: str = "127.0.0.1") -> None:
        self._target = target, target_port
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()
        self._stalled = asyncio.Event()
        self._stalled.set()
        self.lose_next_answer = False
        """Pass requests on, but break the connection as soon as the server says anything; then be honest again."""
        self.port = 0
        self.accepted = 0

    async def cut(self) -> None:
        """Reset what is open and refuse what comes."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for pump in self._pumps:
            pump.cancel()
        if self._pumps:
            await asyncio.wait(self._pumps)

    async def mend(self) -> None:
        if self._server is None:
            self.port = self.port or free_port()  # not an ephemeral one, which others would get while it is cut
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def stall(self) -> None:
        """Keep connections open and pass nothing on, as a firewall that forgot them does."""
        self._stalled.clear()

    def unstall(self) -> None:
        self._stalled.set()

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # it was cut while this one was on its way here
            writer.transport.abort()
            return
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)
        far: asyncio.StreamWriter | None = None
        try:
            far_reader, far = await asyncio.open_connection(*self._target)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._pump(reader, far))
                tasks.create_task(self._pump(far_reader, writer, answers=True))
        except* (OSError, _Ended, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, far):
                if end is not None:
                    end.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False) -> None:
        while data := await reader.read(65_536):
            await self._stalled.wait()
            if answers and self.lose_next_answer:
                self.lose_next_answer = False
                raise _Ended
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()
        raise _Ended


class _Ended(Exception):
    """One side closed: so do both."""
