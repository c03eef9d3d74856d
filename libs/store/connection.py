"""The channels to all etcd endpoints, which of them to use now, the auth token, and what gRPC's errors mean.

Reads are tried on one endpoint after another until their time is up. A write is sent at most once, over a connection
that was up: after that nobody but etcd knows whether it happened.

With ETCD_DISCOVERY_SRV the endpoints come from DNS, and are looked up again when none of them serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
from aetcd.rpc import rpc_pb2 as pb

from libs.runtime.files import signature
from libs.store.api import LeaseLost, StoreAuthError, StoreError, StoreUnavailable
from libs.store.channels import Endpoint, connects, open_endpoint, retire, until_ready
from libs.store.config import StoreConfig, StoreConfigError, with_fresh_files

if TYPE_CHECKING:
    from libs.store.discovery import Discovery, Lookups, Member

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
_HEAD_START_S = 0.3
_LATEST_START_S = 0.9  # of a member of the last priority: less than DNS is left alone, after which all begin anew
_ATTEMPT_S = 4.0  # patience with one endpoint while there are others


class PermissionDenied(StoreAuthError):
    """We are who we say, and may not do this."""


class Connection:
    """Everything that EtcdStore, its watches and its leases share. discovery: how members are found where config
    names a domain; else by the system's resolv.conf.
    """

    def __init__(self, config: StoreConfig, random: Random | None = None, discovery: Discovery | None = None) -> None:
        self.config = config
        self._files = signature(path for path in config.tls_files if path is not None)
        self.cluster_id: int | None = None
        self._random = random or Random()
        self._endpoints = [open_endpoint(url, config) for url in config.endpoints]
        self._current = self._random.randrange(len(self._endpoints)) if self._endpoints else 0
        self._lookups = self._make_lookups(discovery)
        self._failures = 0  # of calls and streams, since one did well
        self._token = ""
        self._token_lock = asyncio.Lock()
        self._closed = False
        self._streams: set[Any] = set()
        self._retired: set[asyncio.Task[None]] = set()
        self._reloader: asyncio.Task[None] | None = None

    async def close(self) -> None:
        self._closed = True
        if self._lookups is not None:
            await self._lookups.close()
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
        if self._reloader is not None or self._lookups is not None:
            raise StoreUnavailable("connected anew, with changed certificates or to other members")

    # --- certificates that change ------------------------------------------------------------------------------------

    async def _reload(self) -> None:
        """New channels whenever the files change. A watch goes on at its revision."""
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
            old, self._endpoints = self._endpoints, [open_endpoint(e.url, config, e.priority) for e in self._endpoints]
            self.config = config
            self._retire(old)

    def _retire(self, endpoints: list[Endpoint]) -> None:
        """Calls under way end on them; streams move at once."""
        for stream in list(self._streams):
            stream.cancel()
        task = asyncio.get_running_loop().create_task(retire(endpoints, self.config.request_timeout_s))
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
            self._failures = 0
            if self._lookups is not None:
                self._lookups.served()
            return reply

    def _patience_s(self, deadline: float) -> float:
        left = max(0.05, deadline - asyncio.get_running_loop().time())
        return left if len(self._endpoints) < 2 else min(left, _ATTEMPT_S)

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
        endpoint = self._endpoints[self._current] if self._endpoints else None
        if endpoint is None or endpoint.channel.get_state(try_to_connect=True) is not grpc.ChannelConnectivity.READY:
            endpoint = await self._first_ready(deadline)
        await self._ensure_token(endpoint, deadline)
        return endpoint

    async def _first_ready(self, deadline: float) -> Endpoint:
        """The one in use gets a head start; when it fails or dallies, whichever connects first takes its place. Members
        of a later priority begin later.
        """
        loop = asyncio.get_running_loop()
        if self._endpoints:
            preferred = self._endpoints[self._current]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(min(deadline, loop.time() + _HEAD_START_S)):
                    if await connects(preferred.channel):
                        return preferred
        while True:
            if (endpoint := await self._race(deadline)) is not None:
                if endpoint in self._endpoints:  # else its channel was replaced meanwhile, and serves this call yet
                    self._current = self._endpoints.index(endpoint)
                return endpoint
            if self._closed:
                raise StoreUnavailable("the store is closed")
            if loop.time() >= deadline:
                urls = ", ".join(endpoint.url for endpoint in self._endpoints)
                reached = [f"no etcd endpoint reachable: {urls}"] if urls else []
                problem = self._lookups.problem if self._lookups is not None else ""
                raise StoreUnavailable("; ".join((*reached, *filter(None, (problem,)))))

    async def _race(self, deadline: float) -> Endpoint | None:
        """The first that connects; None at `deadline`, and when DNS was asked again: it may have named others."""
        order = self._endpoints[self._current :] + self._endpoints[: self._current]
        ranks = sorted({endpoint.priority for endpoint in order})
        waits: dict[asyncio.Future[None], Endpoint] = {}
        for endpoint in order:
            delay_s = min(_LATEST_START_S, ranks.index(endpoint.priority) * _HEAD_START_S)
            waits[asyncio.ensure_future(until_ready(endpoint.channel, delay_s))] = endpoint
        lookup = [self._lookups.ask()] if self._lookups is not None else []
        try:
            done, _ = await asyncio.wait(
                [*waits, *lookup],
                timeout=max(0.0, deadline - asyncio.get_running_loop().time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for wait in waits:
                wait.cancel()
        for wait, endpoint in waits.items():
            if wait in done and not wait.cancelled() and wait.exception() is None:
                return endpoint
        for task in lookup:
            if task.done() and not task.cancelled():
                task.result()  # it raises nothing, unless we are at fault
        return None

    def failed(self, endpoint: Endpoint) -> None:
        """Prefer another one from now on; a late failure of one that is not in use changes nothing."""
        self._failures += 1
        if self._lookups is not None and not self._closed and self._none_serves():
            self._lookups.ask()
        if self._endpoints[self._current] is endpoint:
            self._current = (self._current + 1) % len(self._endpoints)

    # --- members by DNS ----------------------------------------------------------------------------------------------

    def _make_lookups(self, discovery: Discovery | None) -> Lookups | None:
        if not self.config.discovery_srv:
            return None
        from libs.store.discovery import Discovery, Lookups  # dnspython takes its time, and few ask for it

        secure = bool(self.config.ca or self.config.cert)
        found = discovery or Discovery(self.config.discovery_srv, secure=secure, random=self._random)
        return Lookups(found, self._random, wanted=self._none_serves, found=self._take)

    def _none_serves(self) -> bool:
        """Not one is connected; or all are, and yet nothing succeeds: they may belong to somebody else by now."""
        return not any(endpoint.ready for endpoint in self._endpoints) or self._failures >= 2 * len(self._endpoints)

    def _take(self, members: list[Member]) -> None:
        """The members that DNS names now. Channels to those that are known already are kept."""
        known = {endpoint.url: endpoint for endpoint in self._endpoints}
        endpoints, opened = [], False
        for member in members:
            if (endpoint := known.pop(member.url, None)) is None:
                endpoint, opened = open_endpoint(member.url, self.config), True
            endpoint.priority = member.priority
            endpoints.append(endpoint)
        self._endpoints, self._current = endpoints, 0
        if known:
            self._retire(list(known.values()))
        if opened or known:
            urls = [endpoint.url for endpoint in endpoints]
            log.info("members of etcd by DNS", extra={"domain": self.config.discovery_srv, "endpoints": urls})

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
