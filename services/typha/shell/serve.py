"""Requests that typha answers on the bus: snapshots in compressed chunks, marks, and which nodes a revision
concerns.
"""

from __future__ import annotations

import logging
import secrets
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import msgspec

from libs.bus import compat, subjects, wire
from libs.bus.api import Bus, BusError, Msg, Subscription
from libs.bus.compat import NotUnderstood
from libs.bus.subjects import Role
from libs.bus.tokens import encode_token
from libs.runtime.release import version
from services.typha.core.publisher import Outgoing, Publisher
from services.typha.metrics import Metrics

log = logging.getLogger(__name__)
M = TypeVar("M", bound=msgspec.Struct)

CHUNK_BYTES = 512_000
SMALL_BYTES = 1_000_000  # up to here the better compression costs a few milliseconds
KEPT_S = 60.0
SILENT_S = 25.0  # readers report each ten


@dataclass(slots=True)
class Answer:
    """A snapshot being pulled by its reader, chunk by chunk."""

    reply: wire.SnapshotReply
    chunks: list[bytes]
    expires_at: float


@dataclass(slots=True)
class Contact:
    """Last time etcd answered a quorum read, and its revision then."""

    at: float = -1e9
    head: int = 0

    def age_s(self, now: float) -> float:
        return round(min(now - self.at, 1e6), 3)


class Server:
    """flush: publish what was read, and for a felix see to it that its node is known."""

    def __init__(
        self,
        bus: Bus,
        publisher: Publisher,
        contact: Contact,
        metrics: Metrics,
        flush: Callable[[str | None], object],
        send: Callable[[list[Outgoing]], None],
    ) -> None:
        self._bus = bus
        self._publisher = publisher
        self._contact = contact
        self._metrics = metrics
        self._flush = flush
        self._send = send
        self._answers: dict[str, Answer] = {}
        self._waiting: list[tuple[float, wire.ConcernsRequest, Msg]] = []
        self._started_at = time.monotonic()
        self._version = version()
        self._refused: dict[tuple[Role, str], str] = {}
        self._newcomers: Subscription | None = None
        self.on_report: list[Callable[[Role, wire.Applied], None]] = []
        # nodes, whichever typha they follow
        self._heard_at: dict[Role, dict[str, float]] = {role: {} for role in Role}

    def start(self) -> None:
        instance = self._publisher.epoch.instance
        newcomers = f"{subjects.TYPHA_SNAPSHOT}.*"
        self._newcomers = self._bus.subscribe(newcomers, self._on_snapshot, queue=subjects.TYPHA_QUEUE)
        self._bus.subscribe(subjects.own_snapshots(instance), self._on_snapshot)
        for role in Role:
            self._bus.subscribe(subjects.all_applied(role), partial(self._on_applied, role=role))
        self._bus.subscribe(subjects.TYPHA_MARK, self._on_mark)
        self._bus.subscribe(subjects.TYPHA_CONCERNS, self._on_concerns, queue=subjects.TYPHA_QUEUE)

    def take_no_newcomers(self) -> None:
        """Those who look for any typha find another one."""
        if self._newcomers is not None:
            self._newcomers.unsubscribe()

    def tick(self) -> None:
        """Drop abandoned answers, answer questions whose time is up. Called each second."""
        now = time.monotonic()
        for ident in [ident for ident, answer in self._answers.items() if answer.expires_at < now]:
            del self._answers[ident]
        late = [entry for entry in self._waiting if entry[0] < now]
        self._waiting = [entry for entry in self._waiting if entry[0] >= now]
        for _, request, msg in late:
            error = f"this typha has only reached revision {self._publisher.rev}"
            _respond(msg, wire.ConcernsReply(rev=request.rev, error=error))

    def advanced(self) -> None:
        """The publisher reached a new revision: answer who waited for it."""
        if not self._waiting:
            return
        due = [entry for entry in self._waiting if entry[1].rev <= self._publisher.rev]
        self._waiting = [entry for entry in self._waiting if entry[1].rev > self._publisher.rev]
        for _, request, msg in due:
            _respond(msg, self._concerns(request.rev))

    # --- handlers: synchronous, called by the bus in order of arrival ---

    def _on_snapshot(self, msg: Msg) -> None:
        try:
            request = _decode(msg, wire.SnapshotRequest, wants_answer=True)
        except NotUnderstood as error:
            reply = self._reply()
            reply.error, reply.refused = str(error), True
            _respond(msg, reply)
            return
        if request is not None and _is_from(msg, request.node, token=-1):
            _respond(msg, self._answer(request))

    def _on_applied(self, msg: Msg, role: Role) -> None:
        report = _decode(msg, wire.Applied)
        if report is None or not _is_from(msg, report.node, token=2):
            return
        now = self._heard_at[role][report.node] = time.monotonic()
        reader = self._publisher.readers_of(role).get(report.node)
        if reader is not None and reader.applied_seq < reader.seq == report.seq:
            self._metrics.client_latency.labels(role).observe(now - reader.sent_at)
        self._send(self._publisher.applied(report, now, role))
        for tell in self.on_report:
            tell(role, report)

    def _on_mark(self, msg: Msg) -> None:
        request = _decode(msg, wire.MarkRequest)
        if request is not None:
            self._send(self._publisher.want_mark(request.rev, request.nodes, time.monotonic()))

    def _on_concerns(self, msg: Msg) -> None:
        try:
            request = _decode(msg, wire.ConcernsRequest, wants_answer=True)
        except NotUnderstood as error:
            _respond(msg, wire.ConcernsReply(rev=0, error=str(error)))
            return
        if request is None:
            return
        if request.rev <= self._publisher.rev:
            _respond(msg, self._concerns(request.rev))
        else:
            self._waiting.append((time.monotonic() + min(request.timeout_s, 60.0), request, msg))

    def _concerns(self, rev: int) -> wire.ConcernsReply:
        since = time.monotonic() - SILENT_S
        speaking = [node for node, at in self._heard_at[Role.BGP].items() if at >= since]
        reply = self._publisher.concerns(rev, {*speaking, *self._publisher.speakers})
        if self._started_at < since:  # before, nobody can be said to be silent
            heard_at = self._heard_at[Role.FELIX]
            reply.silent = [node for node in reply.nodes if heard_at.get(node, 0.0) < since]
        return reply

    def _reply(self) -> wire.SnapshotReply:
        publisher = self._publisher
        return wire.SnapshotReply(
            epoch=publisher.epoch,
            rev=publisher.rev,
            etcd_age_s=self._contact.age_s(time.monotonic()),
            head=self._contact.head,
            protocol=compat.PROTOCOL,
            version=self._version,
        )

    def _refusal(self, request: wire.SnapshotRequest) -> str:
        """Why this reader is not served; "" when it is. Told once for each."""
        who = f"{request.role} on {request.node}"
        why = compat.difference(request.protocol, request.version, who, "this typha")
        if why and self._refused.get((request.role, request.node)) != why:
            self._refused[request.role, request.node] = why
            log.error("reader refused", extra={"node": request.node, "reason": why})
        elif not why:
            self._refused.pop((request.role, request.node), None)
        return why

    def _answer(self, request: wire.SnapshotRequest) -> wire.SnapshotReply:
        now = time.monotonic()
        publisher = self._publisher
        reply = self._reply()
        if why := self._refusal(request):
            reply.error, reply.refused = why, True
            return reply
        if publisher.rev == 0:
            reply.error = "not in sync with the datastore yet"
            return reply
        if request.hello:
            return reply
        if request.id:
            answer = self._answers.get(request.id)
            if answer is None or not 0 <= request.chunk < len(answer.chunks):
                reply.error = "no such answer (any more)"
                return reply
            if request.chunk == len(answer.chunks) - 1:
                del self._answers[request.id]
            else:
                answer.expires_at = now + KEPT_S
            return msgspec.structs.replace(answer.reply, chunk=request.chunk, data=answer.chunks[request.chunk])
        role = request.role
        self._flush(request.node if role is Role.FELIX else None)  # what was read but not yet published belongs in
        snapshot = publisher.some_streams(request) if request.streams else publisher.snapshot(request.node, now, role)
        reply.rev = publisher.rev
        raw = wire.encode(snapshot)
        packed = zlib.compress(raw, 6 if len(raw) < SMALL_BYTES else 1)
        metrics = self._metrics
        metrics.snapshots.labels(role).inc()
        metrics.snapshot_raw.labels(role).set(len(raw))
        metrics.snapshot_packed.labels(role).set(len(packed))
        metrics.client_snapshot.labels(role).observe(time.monotonic() - now)
        chunks = [packed[start : start + CHUNK_BYTES] for start in range(0, len(packed), CHUNK_BYTES)]
        reply.chunks, reply.data = len(chunks), chunks[0]
        if len(chunks) > 1:
            reply.id = secrets.token_hex(8)
            self._answers[reply.id] = Answer(reply, chunks, now + KEPT_S)
        return reply


def _respond(msg: Msg, reply: msgspec.Struct) -> None:
    """Whoever asked asks again when the answer cannot be sent."""
    try:
        msg.respond(wire.encode(reply))
    except BusError as error:
        log.warning("answer not sent", extra={"subject": msg.subject, "error": str(error)})


def _is_from(msg: Msg, node: str, *, token: int) -> bool:
    """Nodes may only publish below their own name, so a message must name the sender that its subject names."""
    if msg.subject.split(".")[token] == encode_token(node):
        return True
    log.warning("request in another node's name", extra={"subject": msg.subject, "node": node})
    return False


def _decode(msg: Msg, kind: type[M], *, wants_answer: bool = False) -> M | None:
    """A message from the bus, or None when it is not what it should be: logged, harmless. Raises NotUnderstood for one
    that waits for an answer: whoever sent it may be of another release, and has to hear why.
    """
    if wants_answer and not msg.reply:
        log.warning("request without a place for the answer", extra={"subject": msg.subject})
        return None
    try:
        decoded: M = wire.decoder(kind).decode(msg.data)
    except msgspec.DecodeError as error:
        log.warning("malformed request", extra={"subject": msg.subject, "error": str(error)})
        if wants_answer:
            raise compat.not_understood("the request", msg.data, error, "the sender", "this typha") from error
        return None
    return decoded
