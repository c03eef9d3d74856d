"""NATS in a dictionary: one `MemoryBroker`, any number of `MemoryBus` connections, and whatever trouble a test asks
for.

Deliveries wait in the broker's queue and are made one by one: by themselves at the next turn of the event loop, or by
hand with `run_until_idle` when `manual` is set (no event loop needed then, except for requests). Trouble:

    broker.faults.append(Fault(lambda d: d.subject.startswith("calico.typha."), drop=True))   # until removed
    broker.shuffle = Random(7)              # deliver in any order (real NATS keeps it per publisher and subject)
    broker.disconnect("felix-a"); broker.reconnect("felix-a")       # as the network would; hooks fire
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from random import Random
from types import MappingProxyType, TracebackType
from typing import Self

from libs.bus.api import (
    BusNoResponders,
    BusPayloadTooLarge,
    BusTimeout,
    BusUnavailable,
    Callback,
    Msg,
)
from libs.bus.subject_match import check_publish_subject, check_subscribe_subject, matches
from libs.bus.tokens import encode_token

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


@dataclass(slots=True)
class Delivery:
    """One message on its way to one subscription."""

    subject: str
    data: bytes
    reply: str
    headers: Mapping[str, str]
    sender: str
    receiver: str
    _subscription: MemorySubscription


@dataclass(slots=True)
class Fault:
    """What happens to deliveries that `when` is true for; the first matching fault decides. `times` limits how often
    (None: always).

    drop: it never arrives. copies: it arrives this many times more. hold_back: it arrives after this many later
    deliveries. slow: it is dropped and its receiver is told that it was too slow.
    """

    when: Callable[[Delivery], bool]
    drop: bool = False
    copies: int = 0
    hold_back: int = 0
    slow: bool = False
    times: int | None = None


@dataclass(slots=True)
class _Held:
    delivery: Delivery
    remaining: int


class MemoryBroker:
    """The server. random: decides which member of a queue group gets a message."""

    def __init__(
        self, *, manual: bool = False, random: Random | None = None, max_payload_bytes: int = 1024 * 1024
    ) -> None:
        self.faults: list[Fault] = []
        self.shuffle: Random | None = None
        self.manual = manual
        self.max_payload_bytes = max_payload_bytes
        self.published: list[tuple[str, bytes]] = []
        self.record = False
        self._random = random or Random(0)
        self._exact: dict[str, dict[int, MemorySubscription]] = {}  # subject without wildcards -> its subscriptions
        self._patterns: dict[int, MemorySubscription] = {}
        self._ids = count(1)
        self._queue: deque[Delivery] = deque()
        self._held: list[_Held] = []
        self._clients: dict[str, MemoryBus] = {}
        self._scheduled = False

    def connect(self, name: str) -> MemoryBus:
        if name in self._clients:
            raise ValueError(f"{name} is connected already")
        bus = self._clients[name] = MemoryBus(self, name)
        return bus

    def disconnect(self, name: str) -> None:
        """Cut one client off: what is on its way to it is lost, and so is what is published meanwhile."""
        self._clients[name]._lost()

    def reconnect(self, name: str) -> None:
        self._clients[name]._restored()

    def run_until_idle(self, limit: int = 1_000_000) -> int:
        """Deliver everything, also what callbacks publish in turn; returns how many deliveries were made."""
        done = 0
        while self._step():
            done += 1
            if done > limit:
                raise RuntimeError("messages breed messages: the bus never gets idle")
        return done

    # --- for MemoryBus -----------------------------------------------------------------------------------------------

    def _add(self, subscription: MemorySubscription) -> None:
        subscription.id = next(self._ids)
        self._table(subscription.subject)[subscription.id] = subscription

    def _forget(self, subscription: MemorySubscription) -> None:
        self._table(subscription.subject).pop(subscription.id, None)
        if not self._exact.get(subscription.subject, True):
            del self._exact[subscription.subject]

    def _table(self, subject: str) -> dict[int, MemorySubscription]:
        wild = "*" in subject or ">" in subject
        return self._patterns if wild else self._exact.setdefault(subject, {})

    def _of_client(self, bus: MemoryBus) -> list[MemorySubscription]:
        tables = [self._patterns, *self._exact.values()]
        return [subscription for table in tables for subscription in table.values() if subscription.bus is bus]

    def _drop_in_flight(self, receiver: str) -> None:
        self._queue = deque(d for d in self._queue if d.receiver != receiver)
        self._held = [held for held in self._held if held.delivery.receiver != receiver]

    def _accept(self, subject: str, data: bytes, reply: str, headers: Mapping[str, str], sender: str) -> bool:
        """Route one message; False when nobody subscribes."""
        if self.record:
            self.published.append((subject, data))
        chosen: list[MemorySubscription] = []
        groups: dict[str, list[MemorySubscription]] = {}
        interested = list(self._exact.get(subject, {}).values())
        interested += [s for s in self._patterns.values() if matches(s.subject, subject)]
        for subscription in interested:
            if not subscription.bus.connected:
                continue
            if subscription.queue:
                groups.setdefault(subscription.queue, []).append(subscription)
            else:
                chosen.append(subscription)
        chosen += [self._random.choice(members) for members in groups.values()]
        for subscription in chosen:
            self._send(Delivery(subject, data, reply, headers, sender, subscription.bus.name, subscription))
        self._schedule()
        return bool(chosen)

    def _send(self, delivery: Delivery) -> None:
        fault = next((f for f in self.faults if f.times != 0 and f.when(delivery)), None)
        if fault is None:
            self._queue.append(delivery)
            return
        if fault.times is not None:
            fault.times -= 1
        if fault.slow:
            delivery._subscription.bus._too_slow(delivery.subject)
        elif fault.hold_back:
            self._held.append(_Held(delivery, fault.hold_back))
        elif not fault.drop:
            self._queue.extend([delivery] * (1 + fault.copies))

    def _schedule(self) -> None:
        if not self.manual and not self._scheduled and (self._queue or self._held):
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        for _ in range(len(self._queue) or 1):
            self._step()
        self._schedule()

    def _step(self) -> bool:
        if not self._queue:
            if not self._held:
                return False
            self._queue.append(self._held.pop(0).delivery)  # nothing later is coming: late is now
        if self.shuffle is not None:
            self._queue.rotate(-self.shuffle.randrange(len(self._queue)))
        delivery = self._queue.popleft()
        for held in self._held:
            held.remaining -= 1
        self._queue.extend(held.delivery for held in self._held if held.remaining <= 0)
        self._held = [held for held in self._held if held.remaining > 0]
        delivery._subscription._deliver(delivery)
        return True


@dataclass(slots=True, eq=False)
class MemorySubscription:
    bus: MemoryBus
    subject: str
    callback: Callback
    queue: str | None
    id: int = 0
    active: bool = True

    def unsubscribe(self) -> None:
        self.active = False
        self.bus.broker._forget(self)

    def _deliver(self, delivery: Delivery) -> None:
        if not self.active or not self.bus.connected:
            return
        message = Msg(delivery.subject, delivery.data, delivery.reply, delivery.headers, self.bus.publish)
        try:
            self.callback(message)
        except Exception as error:
            if self.bus.broker.manual:
                raise
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"subscriber of {self.subject} failed", "exception": error}
            )


class MemoryBus:
    """One connection to a MemoryBroker; made by `MemoryBroker.connect`."""

    def __init__(self, broker: MemoryBroker, name: str, max_buffered_bytes: int = 64 * 1024 * 1024) -> None:
        self.broker = broker
        self.name = name
        self.max_buffered_bytes = max_buffered_bytes
        self.on_disconnect: list[Callable[[], None]] = []
        self.on_reconnect: list[Callable[[], None]] = []
        self.on_slow_consumer: list[Callable[[str], None]] = []
        self._connected = True
        self._closed = False
        self._buffer: list[tuple[str, bytes, Mapping[str, str]]] = []
        self._buffered_bytes = 0
        self._requests: dict[str, asyncio.Future[Msg]] = {}
        self._request_ids = count(1)
        self._inbox = f"_INBOX.{encode_token(name)}"
        broker._add(MemorySubscription(self, f"{self._inbox}.*", self._answered, None))

    @property
    def connected(self) -> bool:
        return self._connected

    @property
    def max_payload_bytes(self) -> int:
        return self.broker.max_payload_bytes

    def publish(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        check_publish_subject(subject)
        self._check(data)
        if self._connected:
            self.broker._accept(subject, data, "", dict(headers) if headers else _NO_HEADERS, self.name)
            return
        if self._buffered_bytes + len(data) > self.max_buffered_bytes:
            raise BusUnavailable("not connected, and the outbound buffer is full")
        self._buffered_bytes += len(data)
        self._buffer.append((subject, data, dict(headers) if headers else _NO_HEADERS))

    def subscribe(self, subject: str, callback: Callback, queue: str | None = None) -> MemorySubscription:
        check_subscribe_subject(subject)
        if self._closed:
            raise BusUnavailable("closed")
        subscription = MemorySubscription(self, subject, callback, queue)
        self.broker._add(subscription)
        return subscription

    async def request(
        self, subject: str, data: bytes, timeout_s: float, headers: Mapping[str, str] | None = None
    ) -> Msg:
        check_publish_subject(subject)
        self._check(data)
        if not self._connected:
            raise BusUnavailable("not connected")
        token = str(next(self._request_ids))
        future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._requests[token] = future
        try:
            reply = f"{self._inbox}.{token}"
            if not self.broker._accept(subject, data, reply, dict(headers) if headers else _NO_HEADERS, self.name):
                raise BusNoResponders(subject)
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError as error:
            raise BusTimeout(f"no answer on {subject} within {timeout_s} s") from error
        finally:
            del self._requests[token]

    async def barrier(self, timeout_s: float = 10.0) -> None:
        if not self._connected:
            raise BusUnavailable("not connected")
        await asyncio.sleep(0)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._connected = False
        self._fail_requests()
        del self.broker._clients[self.name]
        for subscription in self.broker._of_client(self):
            subscription.unsubscribe()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    # --- for MemoryBroker --------------------------------------------------------------------------------------------

    def _lost(self) -> None:
        if not self._connected:
            return
        self._connected = False
        self.broker._drop_in_flight(self.name)
        self._fail_requests()
        for hook in self.on_disconnect:
            hook()

    def _restored(self) -> None:
        if self._connected or self._closed:
            return
        self._connected = True
        buffered, self._buffer, self._buffered_bytes = self._buffer, [], 0
        for subject, data, headers in buffered:
            self.broker._accept(subject, data, "", headers, self.name)
        for hook in self.on_reconnect:
            hook()

    def _too_slow(self, subject: str) -> None:
        for hook in self.on_slow_consumer:
            hook(subject)

    def _fail_requests(self) -> None:
        for future in self._requests.values():
            if not future.done():
                future.set_exception(BusUnavailable("connection lost while waiting for the answer"))

    def _answered(self, message: Msg) -> None:
        future = self._requests.get(message.subject.rpartition(".")[2])
        if future is not None and not future.done():
            future.set_result(message)

    def _check(self, data: bytes) -> None:
        if self._closed:
            raise BusUnavailable("closed")
        if len(data) > self.max_payload_bytes:
            raise BusPayloadTooLarge(f"{len(data)} bytes; the server takes {self.max_payload_bytes}")
