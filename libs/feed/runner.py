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

from libs.bus import compat, subjects, wire
from libs.bus.api import Bus, BusError, Msg, Subscription
from libs.bus.compat import NotUnderstood
from libs.bus.subjects import Role
from libs.feed.feed import Action, Apply, Ask, Feed, Phase, Subscribe, Unsubscribe
from libs.runtime.release import version

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
        self._version = version()
        self._refusal = ""  # that was told
        self._skipped: set[str] = set()  # kinds of messages of a later release

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
        who = f"typha {ask.instance}" if ask.instance else "a typha"
        try:
            if request.hello:
                own = subjects.own_snapshot(ask.instance, request.node)
                subject = own if ask.instance else subjects.any_snapshot(request.node)
                reply = await self._request(subject, request, who)
                self._do(self.feed.hello(reply, time.monotonic()))
                self._tell()
                return
            reply, snapshot = await self._pull(subjects.own_snapshot(ask.instance, request.node), request, who)
        except NotUnderstood as error:
            self._do(self.feed.refuse(str(error), time.monotonic(), looking=request.hello))
            self._tell()
            return
        except (BusError, msgspec.DecodeError, zlib.error, OSError) as error:
            log.info("no answer from typha", extra={"instance": ask.instance or "any", "error": str(error)})
            self._do(self.feed.failed(request, time.monotonic()))
            return
        before = self.feed.refused
        self._do(self.feed.snapshot(reply, snapshot, time.monotonic()))
        self._tell()
        if self.feed.refused > before:
            log.warning("snapshot is older than what is applied", extra={"rev": snapshot.rev, "applied": self.feed.rev})

    def _tell(self) -> None:
        """Once for each reason, however often it is met again."""
        refusal = self.feed.refusal
        if refusal == self._refusal:
            return
        self._refusal = refusal
        if refusal:
            log.error("no typha can be followed, what was applied last stays", extra={"reason": refusal})
        else:
            log.warning("typha is understood again", extra={"instance": self.feed.instance})

    async def _request(self, subject: str, request: wire.SnapshotRequest, who: str) -> wire.SnapshotReply:
        """Raises NotUnderstood when it helps nobody to ask again soon."""
        request = msgspec.structs.replace(request, protocol=compat.PROTOCOL, version=self._version)
        msg = await self._bus.request(subject, wire.encode(request), REQUEST_TIMEOUT_S)
        self.received_bytes += len(msg.data)
        self.received_messages += 1
        try:
            reply: wire.SnapshotReply = wire.decoder(wire.SnapshotReply).decode(msg.data)
        except msgspec.ValidationError as error:
            raise compat.not_understood(f"an answer of {who}", msg.data, error, who) from error
        if reply.refused:
            raise NotUnderstood(reply.error)
        if reply.error:
            raise BusError(reply.error)
        if why := compat.difference(reply.protocol, reply.version, f"typha {reply.epoch.instance}"):
            raise NotUnderstood(why)
        return reply

    async def _pull(
        self, subject: str, request: wire.SnapshotRequest, who: str
    ) -> tuple[wire.SnapshotReply, wire.Snapshot]:
        """All chunks of one snapshot, one after the other: the reader sets the pace."""
        first = await self._request(subject, request, who)
        unpack = zlib.decompressobj()
        raw = [unpack.decompress(first.data, SNAPSHOT_MAX_BYTES)]
        for chunk in range(1, first.chunks):
            part = wire.SnapshotRequest(node=request.node, role=request.role, id=first.id, chunk=chunk)
            raw.append(unpack.decompress((await self._request(subject, part, who)).data, SNAPSHOT_MAX_BYTES))
        data = b"".join(raw)
        try:
            snapshot: wire.Snapshot = wire.decoder(wire.Snapshot).decode(data)
        except msgspec.ValidationError as error:
            raise NotUnderstood(f"the snapshot of {who} ({first.version or 'version unknown'}): {error}") from error
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
            self._not_taken(msg, kind, error)
            return
        self._traceparent = msg.headers.get("traceparent")
        self._do(then(message))
        self._tell()
        self._traceparent = None

    def _not_taken(self, msg: Msg, kind: object, error: msgspec.DecodeError) -> None:
        """A kind that we do not know may be left out: if it had a place in a sequence, the next message shows the gap,
        and what was missed is fetched. A beat says nothing that the next one does not. Anything else was meant for us.
        """
        if unknown := compat.unknown_kind(kind, msg.data):
            if unknown not in self._skipped:
                self._skipped.add(unknown)
                log.info("messages of an unknown kind are skipped", extra={"kind": unknown, "subject": msg.subject})
            return
        log.warning("malformed message", extra={"subject": msg.subject, "error": str(error)})
        if kind is not wire.Beat:
            self._do(self.feed.resync(time.monotonic()))

    def _reconnected(self) -> None:
        self._do(self.feed.resync(time.monotonic()))

    @property
    def following(self) -> bool:
        return self.feed.phase is Phase.FOLLOWING
