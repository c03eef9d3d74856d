"""Runs the Feed on a bus: subscriptions, requests with their chunks, time. All decisions are in
libs/feed/feed.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections import deque
from collections.abc import Callable
from random import Random

import msgspec

from libs.bus import subjects, wire
from libs.bus.api import Bus, BusError, Msg, Subscription
from libs.bus.subjects import Role
from libs.feed.feed import Action, Apply, Ask, Feed, Phase, Subscribe, Unsubscribe

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 3.0
SNAPSHOT_MAX_BYTES = 1 << 30


class FeedRunner:
    """`on_apply` is called for each Apply, in order, on the loop's thread. traceparent: of the message that led to
    it.
    """

    def __init__(
        self,
        bus: Bus,
        node: str,
        on_apply: Callable[[Apply, str | None], None],
        random: Random,
        role: Role = Role.FELIX,
    ) -> None:
        self.feed = Feed(node, random, role)
        self.received_bytes = 0
        self.received_messages = 0
        self._bus = bus
        self._on_apply = on_apply
        self._subscriptions: dict[str, Subscription] = {}
        self._wake = asyncio.Event()
        self._pending: deque[Action] = deque()
        self._asks: set[asyncio.Task[None]] = set()
        self._traceparent: str | None = None
        self._sleeps_until = 0.0

    async def run(self) -> None:
        self._bus.on_reconnect.append(self._reconnected)
        self._bus.on_slow_consumer.append(lambda _: self._reconnected())
        self._do(self.feed.start(time.monotonic()))
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    self._perform(tasks)
                    self._wake.clear()
                    now = time.monotonic()
                    self._sleeps_until = self.feed.deadline(now)
                    try:
                        async with asyncio.timeout(self._sleeps_until - now):
                            await self._wake.wait()
                    except TimeoutError:
                        pass
                    self._do(self.feed.tick(time.monotonic()))
        finally:
            self._subscriptions.clear()

    # --- actions ---

    def _do(self, actions: list[Action]) -> None:
        """Applies are handed on at once, so that they keep the order of messages; the rest needs the loop."""
        for action in actions:
            if isinstance(action, Apply):
                self._on_apply(action, self._traceparent)
            else:
                self._pending.append(action)
        if self._pending or self.feed.deadline(time.monotonic()) < self._sleeps_until:
            self._wake.set()

    def _perform(self, tasks: asyncio.TaskGroup) -> None:
        while self._pending:
            match self._pending.popleft():
                case Subscribe(subject):
                    if subject not in self._subscriptions:
                        self._subscriptions[subject] = self._bus.subscribe(subject, self._handler(subject))
                case Unsubscribe(subject):
                    subscription = self._subscriptions.pop(subject, None)
                    if subscription is not None:
                        subscription.unsubscribe()
                case Ask() as ask:
                    tasks.create_task(self._ask(ask), name="ask")
                case Apply() as apply:
                    self._on_apply(apply, None)

    async def _ask(self, ask: Ask) -> None:
        request = ask.request
        try:
            if ask.instance == "":
                reply = await self._request(subjects.any_snapshot(request.node), request)
                self._do(self.feed.hello(reply, time.monotonic()))
                return
            reply, snapshot = await self._pull(subjects.own_snapshot(ask.instance, request.node), request)
        except (BusError, msgspec.DecodeError, zlib.error, OSError) as error:
            log.info("no answer from typha", extra={"instance": ask.instance or "any", "error": str(error)})
            self._do(self.feed.failed(request, time.monotonic()))
            return
        before = self.feed.refused
        self._do(self.feed.snapshot(reply, snapshot, time.monotonic()))
        if self.feed.refused > before:
            log.warning("snapshot is older than what is applied", extra={"rev": snapshot.rev, "applied": self.feed.rev})

    async def _request(self, subject: str, request: wire.SnapshotRequest) -> wire.SnapshotReply:
        msg = await self._bus.request(subject, wire.encode(request), REQUEST_TIMEOUT_S)
        self.received_bytes += len(msg.data)
        self.received_messages += 1
        reply: wire.SnapshotReply = wire.decoder(wire.SnapshotReply).decode(msg.data)
        if reply.error:
            raise BusError(reply.error)
        return reply

    async def _pull(self, subject: str, request: wire.SnapshotRequest) -> tuple[wire.SnapshotReply, wire.Snapshot]:
        """All chunks of one snapshot, one after the other: the reader sets the pace."""
        first = await self._request(subject, request)
        unpack = zlib.decompressobj()
        raw = [unpack.decompress(first.data, SNAPSHOT_MAX_BYTES)]
        for chunk in range(1, first.chunks):
            part = wire.SnapshotRequest(node=request.node, role=request.role, id=first.id, chunk=chunk)
            raw.append(unpack.decompress((await self._request(subject, part)).data, SNAPSHOT_MAX_BYTES))
        snapshot: wire.Snapshot = wire.decoder(wire.Snapshot).decode(b"".join(raw))
        return first, snapshot

    # --- messages ---

    def _handler(self, subject: str) -> Callable[[Msg], None]:
        family = subject.split(".", 4)[3]
        if family == "beat":
            return lambda msg: self._take(msg, wire.Beat, lambda m: self.feed.beat(m, time.monotonic()))
        if family in subjects.COMMIT_FAMILIES:
            return lambda msg: self._take(msg, wire.NodeMessage, lambda m: self.feed.node_message(m, time.monotonic()))
        stream = subjects.stream_of(subject)
        return lambda msg: self._take(
            msg, wire.StreamMessage, lambda m: self.feed.stream_message(stream, m, time.monotonic())
        )

    def _take(self, msg: Msg, kind: object, then: Callable[..., list[Action]]) -> None:
        self.received_bytes += len(msg.data)
        self.received_messages += 1
        try:
            message = wire.decoder(kind).decode(msg.data)
        except msgspec.DecodeError as error:
            log.warning("malformed message", extra={"subject": msg.subject, "error": str(error)})
            self._do(self.feed.resync(time.monotonic()))
            return
        self._traceparent = msg.headers.get("traceparent")
        self._do(then(message))
        self._traceparent = None

    def _reconnected(self) -> None:
        self._do(self.feed.resync(time.monotonic()))

    @property
    def following(self) -> bool:
        return self.feed.phase is Phase.FOLLOWING
