"""Channels to every etcd endpoint, which of them to use now, the auth token, and what gRPC's errors mean.

Reads are tried on one endpoint after another until their time is up. A write is sent at most once, over a connection
that was up: after that nobody but etcd knows whether it happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

import grpc
import grpc.aio
from aetcd.rpc import rpc_pb2 as pb
from aetcd.rpc import rpc_pb2_grpc as stubs

from libs.runtime.files import signature
from libs.store.api import LeaseLost, StoreAuthError, StoreError, StoreUnavailable
from libs.store.config import StoreConfig, StoreConfigError, split_endpoint, with_fresh_files

log = logging.getLogger(__name__)

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]

_RETRIABLE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,  # the server closes its streams so when it stops
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # "too many requests"
        grpc.StatusCode.ABORTED,
    }
)
_TOKEN_IS_OLD = ("invalid auth token", "revision in header is old", "user name is empty")
_MAX_MESSAGE_BYTES = 256 * 1024 * 1024
_HEAD_START_S = 0.3
_ATTEMPT_S = 4.0  # patience with one endpoint while there are others


class PermissionDenied(StoreAuthError):
    """We are who we say, and may not do this."""


@dataclass(slots=True)
class Endpoint:
    """One etcd member: its channel and the stubs on it."""

    url: str
    channel: grpc.aio.Channel
    kv: Any
    watch: Any
    lease: Any
    maintenance: Any
    auth: Any


def _open(url: str, config: StoreConfig) -> Endpoint:
    secure, target = split_endpoint(url)
    options = [
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", int(config.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(config.keepalive_timeout_s * 1000)),
        ("grpc.http2.ping_timeout_ms", int(config.keepalive_timeout_s * 1000)),  # else 60 s in spite of the above
        ("grpc.http2.max_pings_without_data", 0),  # a quiet watch must notice a dead peer too
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        ("grpc.enable_http_proxy", 0),  # etcd is never behind the proxy that the shell happens to name
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if secure:
        credentials = grpc.ssl_channel_credentials(config.ca or None, config.key or None, config.cert or None)
        channel = grpc.aio.secure_channel(target, credentials, options=options)
    else:
        channel = grpc.aio.insecure_channel(target, options=options)
    return Endpoint(
        url,
        channel,
        kv=stubs.KVStub(channel),
        watch=stubs.WatchStub(channel),
        lease=stubs.LeaseStub(channel),
        maintenance=stubs.MaintenanceStub(channel),
        auth=stubs.AuthStub(channel),
    )


class Connection:
    """Everything that EtcdStore, its watches and its leases share."""

    def __init__(self, config: StoreConfig, random: Random | None = None) -> None:
        self.config = config
        self._files = signature(path for path in config.tls_files if path is not None)
        self.cluster_id: int | None = None
        self._random = random or Random()
        self._endpoints = [_open(url, config) for url in config.endpoints]
        self._current = self._random.randrange(len(self._endpoints))
        self._token = ""
        self._token_lock = asyncio.Lock()
        self._closed = False
        self._streams: set[Any] = set()
        self._retired: set[asyncio.Task[None]] = set()
        self._reloader: asyncio.Task[None] | None = None

    async def close(self) -> None:
        self._closed = True
        ending = [task for task in (self._reloader, *self._retired) if task is not None]
        for task in ending:
            task.cancel()
        if ending:
            await asyncio.wait(ending)
        for endpoint in self._endpoints:
            await endpoint.channel.close()

    @property
    def closed(self) -> bool:
        return self._closed

    def raise_if_closed(self) -> None:
        """A call that ends because its channel was closed looks like a cancelled task; only a real cancellation may
        pass as one.
        """
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if self._reloader is not None:
            raise StoreUnavailable("connected anew with changed certificates")

    # --- certificates that change ------------------------------------------------------------------------------------

    async def _reload(self) -> None:
        """New channels whenever the files change. Calls under way end on the old ones, streams move at once: a watch
        goes on at its revision.
        """
        paths = [path for path in self.config.tls_files if path is not None]
        seen = self._files
        while True:
            await asyncio.sleep(self.config.reload_check_s)
            if (now := signature(paths)) == seen:
                continue
            seen = now
            try:
                config = with_fresh_files(self.config)
            except StoreConfigError as error:
                log.warning("changed certificate files are not used", extra={"error": str(error)})
                continue
            log.info("certificate files changed, making new connections to etcd")
            old, self._endpoints = self._endpoints, [_open(url, config) for url in config.endpoints]
            self.config = config
            for stream in list(self._streams):
                stream.cancel()
            task = asyncio.get_running_loop().create_task(_retire(old, config.request_timeout_s))
            self._retired.add(task)
            task.add_done_callback(self._retired.discard)

    @contextlib.asynccontextmanager
    async def stream(self, call: Any) -> Any:
        """A stream that does not outlive its block, however that is left, nor the channels that it was opened on."""
        self._streams.add(call)
        try:
            yield call
        finally:
            self._streams.discard(call)
            call.cancel()

    # --- calls -------------------------------------------------------------------------------------------------------

    async def read(self, call: Callable[[Endpoint], Callable[..., Awaitable[T]]], request: Any) -> T:
        """Idempotent call: repeated on the next endpoint, with backoff, until `request_timeout_s` is over."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.config.request_timeout_s
        attempt = 0
        while True:
            try:
                return await self._once(call, request, deadline)
            except StoreUnavailable:
                attempt += 1
                pause = self.backoff_s(attempt)
                if self._closed or loop.time() + pause >= deadline:
                    raise
                await asyncio.sleep(pause)

    async def write(self, call: Callable[[Endpoint], Callable[..., Awaitable[T]]], request: Any) -> T:
        """Sent at most once. StoreUnavailable: it may have happened."""
        return await self._once(call, request, asyncio.get_running_loop().time() + self.config.request_timeout_s)

    async def _once(self, call: Callable[[Endpoint], Callable[..., Awaitable[T]]], request: Any, deadline: float) -> T:
        renewed = False
        while True:
            endpoint = await self.ready_endpoint(deadline)
            token = self._token
            try:
                timeout_s = self._patience_s(deadline)
                reply = await call(endpoint)(request, timeout=timeout_s, metadata=self._metadata())
            except grpc.aio.AioRpcError as error:
                if self._token_refused(error) and not renewed:
                    renewed = True  # refused before anything was done, so this is no repetition of a write
                    await self._renew_token(token, deadline)
                    continue
                if error.code() in _RETRIABLE:
                    self.failed(endpoint)
                raise self.translate(error, endpoint) from error
            except asyncio.CancelledError:
                self.raise_if_closed()
                raise
            except grpc.aio.UsageError as error:
                raise StoreUnavailable("the store is closed") from error
            self._note_header(reply)
            return reply

    def _patience_s(self, deadline: float) -> float:
        left = max(0.05, deadline - asyncio.get_running_loop().time())
        return left if len(self._endpoints) == 1 else min(left, _ATTEMPT_S)

    def backoff_s(self, attempt: int) -> float:
        ceiling = min(2.0, 0.05 * 2 ** min(attempt, 10))
        return self._random.uniform(ceiling / 2, ceiling)

    # --- endpoints ---------------------------------------------------------------------------------------------------

    async def ready_endpoint(self, deadline: float) -> Endpoint:
        """An endpoint whose connection is up, the one in use if possible. Raises StoreUnavailable at `deadline`."""
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if self._reloader is None and any(self.config.tls_files):
            self._reloader = asyncio.get_running_loop().create_task(self._reload(), name="etcd certificates")
        endpoint = self._endpoints[self._current]
        if endpoint.channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.READY:
            endpoint = await self._first_ready(deadline)
        await self._ensure_token(endpoint, deadline)
        return endpoint

    async def _first_ready(self, deadline: float) -> Endpoint:
        """The one in use gets a head start; when it fails or dallies, whichever connects first takes its place."""
        loop = asyncio.get_running_loop()
        preferred = self._endpoints[self._current]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(min(deadline, loop.time() + _HEAD_START_S)):
                if await _connects(preferred.channel):
                    return preferred
        order = self._endpoints[self._current :] + self._endpoints[: self._current]
        waits = {asyncio.ensure_future(_until_ready(endpoint.channel)): endpoint for endpoint in order}
        try:
            done, _ = await asyncio.wait(
                waits,
                timeout=max(0.0, deadline - loop.time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for wait in waits:
                wait.cancel()
        for wait, endpoint in waits.items():
            if wait in done and not wait.cancelled() and wait.exception() is None:
                if endpoint in self._endpoints:  # else its channel was replaced meanwhile, and serves this call yet
                    self._current = self._endpoints.index(endpoint)
                return endpoint
        raise StoreUnavailable(f"no etcd endpoint reachable: {', '.join(self.config.endpoints)}")

    def failed(self, endpoint: Endpoint) -> None:
        """Prefer another one from now on; a late failure of one that is not in use changes nothing."""
        if self._endpoints[self._current] is endpoint:
            self._current = (self._current + 1) % len(self._endpoints)

    # --- authentication ----------------------------------------------------------------------------------------------

    def _metadata(self) -> Metadata:
        return (("token", self._token),) if self._token else ()

    def stream_metadata(self) -> Metadata:
        """`hasleader`: let the member end the stream when it lost the cluster, instead of saying nothing for ever."""
        return (*self._metadata(), ("hasleader", "true"))

    async def _ensure_token(self, endpoint: Endpoint, deadline: float) -> None:
        if self.config.authenticates and not self._token:
            await self._authenticate(endpoint, "", deadline)

    async def _renew_token(self, old: str, deadline: float) -> None:
        await self._authenticate(self._endpoints[self._current], old, deadline)

    async def renew_after(self, error: grpc.aio.AioRpcError, token_used: str) -> bool:
        """For streams: whether `error` was about the token and a new one has been fetched."""
        if not self._token_refused(error):
            return False
        deadline = asyncio.get_running_loop().time() + self.config.request_timeout_s
        await self._renew_token(token_used, deadline)
        return True

    @property
    def token(self) -> str:
        return self._token

    async def _authenticate(self, endpoint: Endpoint, old: str, deadline: float) -> None:
        async with self._token_lock:
            if self._token != old:
                return  # somebody else was first
            try:
                user, password = self.config.login()
            except StoreConfigError as error:
                raise StoreAuthError(str(error)) from error
            request = pb.AuthenticateRequest(name=user, password=password)
            try:
                reply = await endpoint.auth.Authenticate(request, timeout=self._patience_s(deadline))
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION and "not enabled" in (error.details() or ""):
                    return  # a cluster without authentication: credentials are not wanted
                if error.code() in _RETRIABLE:
                    self.failed(endpoint)
                raise self.translate(error, endpoint) from error
            self._token = reply.token

    def _token_refused(self, error: grpc.aio.AioRpcError) -> bool:
        if not self.config.authenticates:
            return False
        details = error.details() or ""
        return error.code() is grpc.StatusCode.UNAUTHENTICATED or any(text in details for text in _TOKEN_IS_OLD)

    # --- meaning -----------------------------------------------------------------------------------------------------

    def translate(self, error: grpc.aio.AioRpcError, endpoint: Endpoint) -> StoreError:
        code, details = error.code(), error.details() or ""
        text = f"{endpoint.url}: {details} ({code.name})"
        if code is grpc.StatusCode.PERMISSION_DENIED:
            return PermissionDenied(text)
        if code is grpc.StatusCode.UNAUTHENTICATED:
            return StoreAuthError(text)
        if "user name is empty" in details or "authentication failed" in details:
            return StoreAuthError(text)
        if code is grpc.StatusCode.NOT_FOUND and "lease not found" in details:
            return LeaseLost(text)
        if code in _RETRIABLE and "database space exceeded" not in details:
            return StoreUnavailable(text)
        return StoreError(text)

    def _note_header(self, reply: Any) -> None:
        header = getattr(reply, "header", None)
        if header is not None and header.cluster_id and header.cluster_id != self.cluster_id:
            if self.cluster_id is not None:
                log.warning("etcd is another cluster now", extra={"was": self.cluster_id, "is": header.cluster_id})
            self.cluster_id = header.cluster_id


async def _connects(channel: grpc.aio.Channel) -> bool:
    """Whether the attempt now under way, or a new one, succeeds."""
    state = channel.get_state(try_to_connect=True)
    while state in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING):
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)
    return state is grpc.ChannelConnectivity.READY


async def _until_ready(channel: grpc.aio.Channel) -> None:
    """Like `channel_ready`, but asks again for a connection whenever the channel has given up."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


async def _retire(endpoints: list[Endpoint], grace_s: float) -> None:
    await asyncio.gather(*(endpoint.channel.close(grace_s) for endpoint in endpoints))
