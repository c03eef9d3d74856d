"""Ports on the loopback of the root namespace that lead into another namespace, for clients that cannot go there
themselves.

gRPC opens sockets from threads of its own, so entering a namespace around a call is no way to reach a server inside.
The relay is one thread with an event loop: it opens its listeners where it is born, then moves into the namespace for
good, where every outgoing connection is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from libs.netlink.netns import in_netns


class NetnsRelay:
    """`ports[i]` on 127.0.0.1 leads to `targets[i]` (host, port) as seen from the namespace."""

    def __init__(self, netns: Path, targets: Sequence[tuple[str, int]]) -> None:
        self._netns = netns
        self._listeners: list[tuple[socket.socket, tuple[str, int]]] = []
        for target in targets:
            listener = socket.create_server(("127.0.0.1", 0))
            listener.setblocking(False)
            self._listeners.append((listener, target))
        self.ports = [listener.getsockname()[1] for listener, _ in self._listeners]
        self._loop = asyncio.new_event_loop()
        self._done = asyncio.Event()
        self._thread = threading.Thread(target=self._main, name="netns-relay", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # its loop has just ended
                self._loop.call_soon_threadsafe(self._done.set)
            self._thread.join(5)
        for listener, _ in self._listeners:
            listener.close()

    def _main(self) -> None:
        try:
            with in_netns(self._netns):  # the thread is ours alone, so here the block may await
                self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        for listener, target in self._listeners:
            tasks.add(asyncio.create_task(self._accept(listener, target, tasks), name=f"relay-{target[1]}"))
        await self._done.wait()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, listener: socket.socket, target: tuple[str, int], tasks: set[asyncio.Task[None]]) -> None:
        while True:
            client, _ = await self._loop.sock_accept(listener)
            task = asyncio.create_task(self._connect(client, target), name="relay-connection")
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _connect(self, client: socket.socket, target: tuple[str, int]) -> None:
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        server = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with client, server:  # either side may be killed at any time; the other sees the end
            try:
                await self._loop.sock_connect(server, target)
                # A group, so that neither direction still waits for a descriptor that is closed, and soon another's.
                async with asyncio.TaskGroup() as copies:
                    copies.create_task(self._copy(client, server), name="relay-up")
                    copies.create_task(self._copy(server, client), name="relay-down")
            except* OSError:
                pass

    async def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        while data := await self._loop.sock_recv(source, 262_144):
            await self._loop.sock_sendall(sink, data)
        sink.shutdown(socket.SHUT_WR)
