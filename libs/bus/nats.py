"""The bus over core NATS and nats-py.

nats-py's own reconnect is switched off: each connection is a new client object, made by one supervisor task here, and
every subscription and request belongs to this class. That hides what the client does on its bad days: it closes for
good on some server errors, waits without end for a peer that is stopped, and goes deaf when its read loop meets an
unexpected exception. The supervisor notices all of them the same way, as a missing round trip to ourselves, and starts
afresh.

Its `flush` is not a barrier either: the PING overtakes what is still queued. See `nats_client.flush`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from random import Random
from secrets import token_hex
from types import MappingProxyType, TracebackType
from typing import Self

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg as NatsMsg
from nats.aio.subscription import Subscription as NatsSubscription

from libs.bus.api import INBOXES, BusNoResponders, BusPayloadTooLarge, BusTimeout, BusUnavailable, Callback, Msg
from libs.bus.config import BusConfig, BusConfigError
from libs.bus.nats_client import (
    UNLIMITED,
    abort,
    auth_options,
    backlog_bytes,
    flush,
    now,
    publish_on,
    resolve,
    tls_context,
    where,
)
from libs.bus.subject_match import check_publish_subject, check_subscribe_subject
from libs.bus.tokens import encode_token
from libs.runtime.files import signature

log = logging.getLogger(__name__)

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_NO_RESPONDERS = "503"
_PROGRESS_BYTES = 65_536
_MESSAGE_OVERHEAD = 64  # what a queued message costs besides its payload, roughly


async def connect(config: BusConfig, *, name: str, timeout_s: float | None = None) -> NatsBus:
    """A started bus, once it is connected. With `timeout_s`, raises BusUnavailable when that took too long."""
    bus = NatsBus(config, name=name)
    try:
        bus.start()
        await bus.wait_connected(timeout_s)
    except BaseException:
        await bus.close()
        raise
    return bus


class _Subscription:
    """Outlives connections: `handle` is its incarnation on the current one."""

    __slots__ = ("_bus", "active", "callback", "handle", "queue", "subject")

    def __init__(self, bus: NatsBus, subject: str, callback: Callback, queue: str | None) -> None:
        self._bus = bus
        self.subject = subject
        self.callback = callback
        self.queue = queue
        self.active = True
        self.handle: NatsSubscription | None = None

    def unsubscribe(self) -> None:
        if self.active:
            self.active = False
            self._bus._unsubscribe(self)

    async def deliver(self, message: NatsMsg) -> None:
        """Called by nats-py, message by message."""
        if not self.active:
            return
        headers = message.headers or _NO_HEADERS
        try:
            self.callback(Msg(message.subject, message.data, message.reply, headers, self._bus.publish))
        except Exception as error:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"subscriber of {self.subject} failed", "exception": error}
            )


class NatsBus:
    """One process's connection. `start` once, inside a running loop; `close` at the end.

    name: who we are. Answers arrive below `_INBOX.<inbox>.`, the name when not given, so that a server can permit each
    node its own inbox only.
    """

    def __init__(self, config: BusConfig, *, name: str, inbox: str = "", random: Random | None = None) -> None:
        self.on_disconnect: list[Callable[[], None]] = []
        self.on_reconnect: list[Callable[[], None]] = []
        self.on_slow_consumer: list[Callable[[str], None]] = []
        self.connections = 0  # made so far
        self._config = config
        self._name = name
        self._random = random or Random()
        self._inbox = f"{INBOXES}{encode_token(inbox or name)}.{token_hex(8)}"
        self._client: Client | None = None
        self._lost = asyncio.Event()  # of the current connection
        self._ready = asyncio.Event()
        self._closed = False
        self._max_payload_bytes = 1024 * 1024
        self._subscriptions: set[_Subscription] = set()
        self._requests: dict[str, asyncio.Future[Msg]] = {}
        self._request_number = 0
        self._echo: asyncio.Future[None] | None = None
        self._buffer: deque[tuple[str, bytes, str, Mapping[str, str] | None]] = deque()
        self._buffered_bytes = 0
        self._handed_bytes = 0  # to the client, since start
        self._supervisor: asyncio.Task[None] | None = None
        self._leftovers: set[asyncio.Task[None]] = set()  # old connections being closed
        self._seen_files = signature(config.tls_files)
        self._tls = tls_context(config)
        self._auth = auth_options(config)
        self.subscribe(f"{self._inbox}.*", self._answered)

    # --- what users call ---------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        return self._ready.is_set()

    @property
    def max_payload_bytes(self) -> int:
        return self._max_payload_bytes

    def start(self) -> None:
        """Begin to connect, and stay so until `close`."""
        self._supervisor = asyncio.get_running_loop().create_task(self._supervise(), name=f"bus {self._name}")
        self._supervisor.add_done_callback(_report_crash)

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._ready.wait()
        except TimeoutError as error:
            servers = ", ".join(self._config.servers)
            raise BusUnavailable(f"no NATS server reachable within {timeout_s} s: {servers}") from error

    def publish(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        check_publish_subject(subject)
        self._publish(subject, data, "", headers)

    def subscribe(self, subject: str, callback: Callback, queue: str | None = None) -> _Subscription:
        check_subscribe_subject(subject)
        if self._closed:
            raise BusUnavailable("closed")
        subscription = _Subscription(self, subject, callback, queue)
        self._subscriptions.add(subscription)
        if self._client is not None:
            self._stand(subscription, self._client)
        return subscription

    async def request(
        self, subject: str, data: bytes, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> Msg:
        check_publish_subject(subject)
        if not self.connected:
            raise BusUnavailable("not connected")
        self._request_number += 1
        token = str(self._request_number)
        future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._requests[token] = future
        try:
            self._publish(subject, data, f"{self._inbox}.{token}", headers)
            async with asyncio.timeout(timeout_s):
                answer = await future
        except TimeoutError as error:
            raise BusTimeout(f"no answer on {subject} within {timeout_s} s") from error
        finally:
            del self._requests[token]
        if not answer.data and answer.headers.get("Status") == _NO_RESPONDERS:
            raise BusNoResponders(f"nobody answers on {subject}")
        return answer

    async def barrier(self, timeout_s: float = 10.0) -> None:
        client = self._client
        if client is None or not self.connected:
            raise BusUnavailable("not connected")
        lost = asyncio.ensure_future(self._lost.wait())
        flushed = asyncio.ensure_future(flush(client, timeout_s))
        try:
            await asyncio.wait((lost, flushed), return_when=asyncio.FIRST_COMPLETED)
            if not flushed.done():
                raise BusUnavailable("connection lost before the server had everything")
            try:
                flushed.result()
            except (TimeoutError, nats.errors.Error, OSError) as error:
                raise BusUnavailable(f"server did not confirm: {error}") from error
        finally:
            lost.cancel()
            flushed.cancel()

    async def close(self) -> None:
        """Send what is buffered if there is a connection, then end it. Pending requests fail."""
        if self._closed:
            return
        if self.connected:
            with contextlib.suppress(BusUnavailable):
                await self.barrier(1.0)
        self._closed = True
        self._ready.clear()
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        self._fail_requests()
        if self._leftovers:
            await asyncio.wait(self._leftovers)

    async def __aenter__(self) -> Self:
        if self._supervisor is None:
            self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    # --- one connection after another --------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        failures = 0
        servers: list[str] = []
        myself = asyncio.current_task()
        assert myself is not None
        while not myself.cancelling():  # nats-py's wait_for may swallow the CancelledError itself (CPython gh-86296)
            if not servers:
                servers = list(self._config.servers)
                self._random.shuffle(servers)
            server = servers.pop()
            client = await self._try_connect(server, failures)
            if client is None:
                failures += 1
                ceiling = min(self._config.reconnect_max_s, self._config.reconnect_min_s * 2 ** min(failures, 16))
                await asyncio.sleep(self._random.uniform(ceiling / 2, ceiling))
                continue
            failures = 0
            try:
                await self._until_lost(client)
            finally:
                self._disconnected(client)

    async def _try_connect(self, server: str, failures: int) -> Client | None:
        """A client on which every subscription stands, or None."""
        self._renew_tls()
        client = Client()
        self._lost = lost = asyncio.Event()

        async def closed() -> None:
            lost.set()

        async def failed(error: Exception) -> None:
            self._client_error(error, client, lost)

        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                await resolve(server)
                await client.connect(
                    servers=[server],
                    name=self._name,
                    error_cb=failed,
                    closed_cb=closed,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=self._config.connect_timeout_s,
                    ping_interval=UNLIMITED,  # the watchdog does that
                    pending_size=UNLIMITED,  # we count ourselves: publish must not wait
                    flusher_queue_size=0,  # unlimited: subscribe must not wait
                    skip_subject_validation=True,  # done here already
                    tls=self._tls,
                    **self._auth,
                )
                lost.clear()  # a first refused attempt has set it
                self._client = client
                for subscription in self._subscriptions:
                    self._stand(subscription, client)
                await flush(client, self._config.connect_timeout_s)
        except (TimeoutError, OSError, ssl.SSLError, nats.errors.Error) as error:
            level = logging.WARNING if failures in (0, 5) or failures % 100 == 0 else logging.DEBUG
            log.log(
                level, "no connection to NATS", extra={"server": server, "error": str(error), "tries": failures + 1}
            )
            self._client = None
            self._discard(client)
            return None
        except BaseException:
            self._client = None
            self._discard(client)
            raise
        return client

    async def _until_lost(self, client: Client) -> None:
        """From connected to not connected any more."""
        self._max_payload_bytes = client.max_payload
        self._drain_buffer(client)
        self._ready.set()
        log.info("connected to NATS", extra={"server": where(client), "subscriptions": len(self._subscriptions)})
        self.connections += 1
        if self.connections > 1:
            _call(self.on_reconnect)
        missed = 0
        while not self._lost.is_set():
            await _wait(self._lost, self._config.watchdog_s)
            if self._lost.is_set():
                return
            if self._renew_tls():
                log.info("certificate files changed, making a new connection to NATS", extra={"server": where(client)})
                with contextlib.suppress(TimeoutError, OSError, nats.errors.Error):
                    await flush(client, self._config.connect_timeout_s)  # what was published leaves by the old one
                return
            received, waiting, handed = client.stats["in_msgs"], backlog_bytes(client), self._handed_bytes
            alive = await self._round_trip() or client.stats["in_msgs"] != received  # busy is not deaf
            if not alive and (left := backlog_bytes(client)):
                # The echo may still wait behind much that we publish ourselves: alive as long as the socket takes it.
                alive = waiting + self._handed_bytes - handed - left > _PROGRESS_BYTES
            missed = 0 if alive else missed + 1
            if missed >= 2:
                log.warning("connection to NATS is deaf, making a new one", extra={"server": where(client)})
                return

    def _renew_tls(self) -> bool:
        """Read the certificate files again when they changed; whether there is something new to connect with. Files
        that cannot be used (half written, key and certificate of two renewals) leave what we have.
        """
        if self._seen_files == (seen := signature(self._config.tls_files)):
            return False
        self._seen_files = seen
        try:
            self._tls = tls_context(self._config)
        except BusConfigError as error:
            log.warning("changed certificate files are not used", extra={"error": str(error)})
            return False
        return True

    def _disconnected(self, client: Client) -> None:
        self._ready.clear()
        self._client = None
        self._lost.set()
        for subscription in self._subscriptions:
            subscription.handle = None
        self._discard(client)
        self._fail_requests()
        if not self._closed:
            log.warning("connection to NATS lost", extra={"server": where(client)})
            _call(self.on_disconnect)

    def _discard(self, client: Client) -> None:
        """Close in the background and without patience: nobody waits for this one any more."""
        task = asyncio.get_running_loop().create_task(abort(client), name=f"bus {self._name} closing")
        self._leftovers.add(task)
        task.add_done_callback(self._leftovers.discard)

    def _client_error(self, error: Exception, client: Client, lost: asyncio.Event) -> None:
        """nats-py's error callback: everything it does not raise to a caller."""
        if isinstance(error, nats.errors.SlowConsumerError):
            log.warning("dropped a message: subscriber too slow", extra={"subject": error.subject})
            _call(self.on_slow_consumer, error.subject)
        elif isinstance(error, nats.errors.UnexpectedEOF | nats.errors.StaleConnectionError | OSError):
            lost.set()
        elif client is self._client:
            log.warning("NATS reports an error", extra={"error": str(error)})

    async def _round_trip(self) -> bool:
        """Does what we publish come back to us? A PONG alone would not show that messages are still dispatched."""
        self._echo = asyncio.get_running_loop().create_future()
        try:
            self._publish(f"{self._inbox}.echo", b"", "", None)
            async with asyncio.timeout(self._config.watchdog_s):
                await self._echo
        except (TimeoutError, BusUnavailable):
            return False
        finally:
            self._echo = None
        return True

    # --- plumbing ----------------------------------------------------------------------------------------------------

    def _publish(self, subject: str, data: bytes, reply: str, headers: Mapping[str, str] | None) -> None:
        if self._closed:
            raise BusUnavailable("closed")
        if len(data) > self._max_payload_bytes:
            raise BusPayloadTooLarge(f"{len(data)} bytes; the server takes {self._max_payload_bytes}")
        client = self._client
        cost = len(data) + _MESSAGE_OVERHEAD
        if client is None or not self._ready.is_set():
            if self._buffered_bytes + cost > self._config.max_buffered_bytes:
                raise BusUnavailable("not connected, and the outbound buffer is full")
            self._buffer.append((subject, data, reply, headers))
            self._buffered_bytes += cost
            return
        if client.pending_data_size + cost > self._config.max_buffered_bytes:
            raise BusUnavailable("the outbound buffer is full: the server takes less than is published")
        self._handed_bytes += cost
        publish_on(client, subject, data, reply, headers)

    def _drain_buffer(self, client: Client) -> None:
        while self._buffer:
            subject, data, reply, headers = self._buffer.popleft()
            try:
                publish_on(client, subject, data, reply, headers)
            except BusPayloadTooLarge as error:  # this server takes less than the one before
                log.warning("a message that waited was dropped", extra={"subject": subject, "error": str(error)})
        self._buffered_bytes = 0

    def _stand(self, subscription: _Subscription, client: Client) -> None:
        with contextlib.suppress(nats.errors.ConnectionClosedError, nats.errors.ConnectionDrainingError):
            # A client that closed under us: the supervisor is about to notice and subscribes again.
            subscription.handle = now(
                client.subscribe(
                    subscription.subject,
                    queue=subscription.queue or "",
                    cb=subscription.deliver,
                    pending_msgs_limit=self._config.max_pending_msgs,
                    pending_bytes_limit=self._config.max_pending_bytes,
                )
            )

    def _unsubscribe(self, subscription: _Subscription) -> None:
        self._subscriptions.discard(subscription)
        handle, subscription.handle = subscription.handle, None
        if handle is not None:
            with contextlib.suppress(nats.errors.Error):
                now(handle.unsubscribe())

    def _answered(self, message: Msg) -> None:
        token = message.subject.rpartition(".")[2]
        if token == "echo":
            if self._echo is not None and not self._echo.done():
                self._echo.set_result(None)
            return
        future = self._requests.get(token)
        if future is not None and not future.done():
            future.set_result(message)

    def _fail_requests(self) -> None:
        for future in self._requests.values():
            if not future.done():
                future.set_exception(BusUnavailable("connection lost while waiting for the answer"))


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


def _call(hooks: list[Callable[..., None]], *arguments: str) -> None:
    for hook in list(hooks):
        try:
            hook(*arguments)
        except Exception as error:
            asyncio.get_running_loop().call_exception_handler({"message": "bus hook failed", "exception": error})


def _report_crash(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler({"message": "bus supervisor failed", "exception": error, "task": task})
