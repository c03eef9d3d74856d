"""Connections: accepted, counted, given their TLS, and let go of in order at the end.

The handshake is ours and not the event loop's server's, for three reasons: each connection gets the SSLContext of the
moment, failures can be counted with their reason, and there is a limit on connections before any work is done for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Protocol

from services.apiserver.shell.limits import Runner

log = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 10.0
SHUTDOWN_TIMEOUT_S = 5.0
UNREAD_TIMEOUT_S = 30.0
"""A client that takes nothing of what was sent to it for so long is gone (TCP_USER_TIMEOUT, tcp(7))."""
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Counts(Protocol):
    def refused(self) -> None: ...
    def handshake_failed(self) -> None: ...


class Listener:
    """Serves `runner` on listening sockets until it is cancelled. context: of TLS, as it is now; None: plain HTTP."""

    def __init__(
        self,
        runner: Runner,
        sockets: Sequence[socket.socket],
        *,
        context: Callable[[], ssl.SSLContext] | None,
        max_connections: int,
        counts: Counts,
    ) -> None:
        self._runner, self._sockets, self._context = runner, list(sockets), context
        self._max, self._counts = max_connections, counts
        self._handshakes = 0
        self.ports = sorted({one.getsockname()[1] for one in sockets})

    @property
    def connections(self) -> int:
        server = self._runner.server
        return self._handshakes + (len(server.connections) if server is not None else 0)

    async def serve(self) -> None:
        """Until it is cancelled; the sockets are closed then, and connections that stand are left alone."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for listening in self._sockets:
                    tasks.create_task(self._accept(listening, tasks), name=f"accept {listening.getsockname()[:2]}")
        finally:
            for listening in self._sockets:
                listening.close()

    async def _accept(self, listening: socket.socket, tasks: asyncio.TaskGroup) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, address = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    log.error("no connection can be accepted for now", extra={"error": str(error)})
                    await asyncio.sleep(1.0)
                continue  # else the client left before we came
            if self._max and self.connections >= self._max:
                self._counts.refused()
                accepted.close()
                continue
            tasks.create_task(self._connect(accepted, str(address[0])), name="handshake")

    async def _connect(self, accepted: socket.socket, client: str) -> None:
        server = self._runner.server
        if server is None:
            accepted.close()
            return
        self._handshakes += 1
        try:
            with contextlib.suppress(OSError):
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_TIMEOUT_S * 1000))
            if self._context is None:
                await asyncio.get_running_loop().connect_accepted_socket(server, accepted)
                return
            await asyncio.get_running_loop().connect_accepted_socket(
                server,
                accepted,
                ssl=self._context(),
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            )
        except (OSError, EOFError) as error:  # ssl.SSLError and TimeoutError are OSErrors
            self._counts.handshake_failed()
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            log.info("TLS handshake failed", extra={"client": client, "reason": reason})
        finally:
            self._handshakes -= 1
