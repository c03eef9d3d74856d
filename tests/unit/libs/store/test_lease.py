"""The keeper of leases, against a stream that ends in the middle: what a real etcd does only by chance."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import cast

from libs.store.codec import pb
from libs.store.connection import Connection, Endpoint
from libs.store.lease import LeaseKeeper

TTL_S = 0.3


class _KeepAlive:
    """A keep-alive stream. ends_after: how many renewals it answers before the server ends it."""

    def __init__(self, ends_after: int) -> None:
        self._left = ends_after

    async def write(self, request: object) -> None:
        if not self._left:
            raise asyncio.InvalidStateError("RPC already finished.")  # as grpc.aio says it
        self._left -= 1

    async def read(self) -> object:
        return SimpleNamespace(TTL=TTL_S)

    def cancel(self) -> None:
        pass


class _Server:
    """What the keeper uses of a Connection. The first keep-alive stream ends after one lease."""

    token = ""

    def __init__(self) -> None:
        self.streams = 0
        self.granted = 0
        self.renewed_again = asyncio.Event()
        self.endpoint = cast(Endpoint, SimpleNamespace(lease=SimpleNamespace(LeaseKeepAlive=self._open)))

    def _open(self, metadata: object) -> _KeepAlive:
        self.streams += 1
        if self.streams > 1:
            self.renewed_again.set()
        return _KeepAlive(1 if self.streams == 1 else 1000)

    async def read(self, call: object, request: pb.LeaseGrantRequest) -> object:
        self.granted += 1
        return SimpleNamespace(ID=self.granted, TTL=TTL_S)

    async def ready_endpoint(self, deadline: float) -> Endpoint:
        return self.endpoint

    @contextlib.asynccontextmanager
    async def stream(self, call: _KeepAlive) -> AsyncIterator[_KeepAlive]:
        yield call

    def stream_metadata(self) -> tuple[()]:
        return ()

    def failed(self, endpoint: Endpoint) -> None:
        pass


async def test_renewal_goes_on_after_the_server_ended_a_stream_between_two_leases() -> None:
    server = _Server()
    keeper = LeaseKeeper(cast(Connection, server))
    await keeper.grant(1)
    await keeper.grant(1)
    async with asyncio.timeout(30):
        await server.renewed_again.wait()
    await keeper.close()
