"""Leases that stay alive while their store does: one task renews each of them every third of its TTL."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from libs.store.api import StoreError
from libs.store.codec import pb
from libs.store.connection import Connection

log = logging.getLogger(__name__)

_RETRY_S = 0.5


@dataclass(slots=True)
class _Lease:
    ttl_s: float
    renew_at: float
    expires_at: float  # at the earliest; etcd counts from when it got the last renewal


class LeaseKeeper:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._leases: dict[int, _Lease] = {}
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def grant(self, ttl_s: int) -> int:
        # Repeating a grant is harmless: the one whose answer was lost expires by itself.
        asked_at = asyncio.get_running_loop().time()
        reply = await self._connection.read(lambda at: at.lease.LeaseGrant, pb.LeaseGrantRequest(TTL=ttl_s))
        self._leases[reply.ID] = _Lease(reply.TTL, asked_at + reply.TTL / 3, asked_at + reply.TTL)
        self._changed.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="etcd leases")
        lease: int = reply.ID
        return lease

    def left_s(self, lease: int) -> float:
        known = self._leases.get(lease)
        return 0.0 if known is None else max(0.0, known.expires_at - asyncio.get_running_loop().time())

    def forget(self, lease: int) -> None:
        self._leases.pop(lease, None)

    async def close(self) -> None:
        self._leases.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            due = min((lease.renew_at for lease in self._leases.values()), default=None)
            try:
                async with asyncio.timeout_at(due):
                    await self._changed.wait()
                continue  # a new lease may be due earlier
            except TimeoutError:
                pass
            now = loop.time()
            ids = [lease_id for lease_id, lease in self._leases.items() if lease.renew_at <= now]
            if not ids:
                continue  # revoked meanwhile
            try:
                await self._renew(ids)
            except (StoreError, grpc.RpcError, TimeoutError, asyncio.InvalidStateError) as error:
                log.warning("leases not renewed, trying again", extra={"leases": len(ids), "error": str(error)})
                for lease_id in ids:
                    if (lease := self._leases.get(lease_id)) is not None:
                        lease.renew_at = loop.time() + min(_RETRY_S, lease.ttl_s / 6)

    async def _renew(self, ids: list[int]) -> None:
        """One short stream per round: nothing to repair when the endpoint changes in between."""
        loop = asyncio.get_running_loop()
        patience_s = max(0.2, min(self._leases[lease_id].ttl_s for lease_id in ids) / 3)
        endpoint = await self._connection.ready_endpoint(loop.time() + patience_s)
        token = self._connection.token
        call: Any = endpoint.lease.LeaseKeepAlive(metadata=self._connection.stream_metadata())
        try:
            async with asyncio.timeout(patience_s), self._connection.stream(call):
                for lease_id in ids:
                    sent_at = loop.time()
                    await call.write(pb.LeaseKeepAliveRequest(ID=lease_id))
                    reply = await call.read()
                    if reply is grpc.aio.EOF:
                        raise StoreError("etcd ended the lease stream")
                    self._renewed(lease_id, reply.TTL, sent_at)
        except grpc.aio.AioRpcError as error:
            if not await self._connection.renew_after(error, token):
                self._connection.failed(endpoint)
            raise
        except asyncio.CancelledError:
            self._connection.raise_if_closed()
            raise
        except (TimeoutError, asyncio.InvalidStateError):  # the latter: written to after the server ended the stream
            self._connection.failed(endpoint)
            raise

    def _renewed(self, lease_id: int, ttl_s: float, sent_at: float) -> None:
        lease = self._leases.get(lease_id)
        if lease is None:
            return  # revoked meanwhile
        if ttl_s <= 0:
            log.warning("lease expired before it could be renewed", extra={"lease": lease_id, "ttl_s": lease.ttl_s})
            del self._leases[lease_id]
            return
        lease.renew_at, lease.expires_at = sent_at + lease.ttl_s / 3, sent_at + ttl_s
