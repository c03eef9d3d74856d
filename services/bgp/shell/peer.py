"""One peer on the event loop: carries out what its session asks for, and brings it what the sockets say.

All decisions are the session's (core/session). Here are sockets, the timer, the password, and the rule that a peer
whose socket is full gets nothing more until it has drained.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from random import Random
from typing import Protocol, cast

from services.bgp.core.paths import Change, Family
from services.bgp.core.session import actions as act
from services.bgp.core.session.actions import Action
from services.bgp.core.session.change import Cost, cost_of_change
from services.bgp.core.session.negotiation import Negotiated, Restart
from services.bgp.core.session.session import Session
from services.bgp.core.session.states import State
from services.bgp.core.settings import PeerSettings
from services.bgp.core.wire.codes import RefreshSubtype
from services.bgp.core.wire.errors import Cease, ErrorCode, Notification, administrative
from services.bgp.shell import transport

log = logging.getLogger(__name__)

WRITE_BUFFER = 256 * 1024  # octets that may wait in the socket's transport
CLOSE_S = 10.0
SEND_HOLD_S = 480.0  # RFC 9687 section 6: the larger of 8 minutes and twice the hold time


class Tables(Protocol):
    """Where routes go: the speaker."""

    def established(self, peer: Peer, negotiated: Negotiated) -> None: ...
    def down(self, peer: Peer, kept: tuple[Family, ...]) -> None: ...
    def received(self, peer: Peer, changes: list[Change]) -> None: ...
    def refresh_requested(self, peer: Peer, family: Family) -> None: ...
    def refreshing(self, peer: Peer, family: Family, begins: bool) -> None: ...
    def drained(self, peer: Peer) -> None: ...


class _Link(asyncio.Protocol):
    """One TCP connection. begin: what the session wants done when it is there, before anything is read from it."""

    def __init__(self, peer: Peer, number: int, begin: Callable[[], None]) -> None:
        self._peer = peer
        self._begin = begin
        self.number = number
        self.transport: asyncio.Transport | None = None
        self.paused_since: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        made = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it
        made.set_write_buffer_limits(high=WRITE_BUFFER)
        self.transport = made
        self._begin()

    def data_received(self, data: bytes) -> None:
        self._peer.data_received(self.number, data)

    def connection_lost(self, error: Exception | None) -> None:
        self._peer.connection_lost(self.number, _words(error))

    def pause_writing(self) -> None:
        self.paused_since = time.monotonic()

    def resume_writing(self) -> None:
        self.paused_since = None
        self._peer.drained()


class Peer:
    """secret: the password, or as text why there is none although there should be; then the session is held down."""

    def __init__(
        self,
        settings: PeerSettings,
        router_id: int,
        tables: Tables,
        random: Random,
        *,
        secret: bytes | str | None,
        restart: Restart,
        hostname: str,
        gone: Callable[[Peer], None] | None = None,
    ) -> None:
        now = time.monotonic()
        self.settings = settings
        self.secret = secret
        self.session = Session(settings, router_id, random, now, restart=restart, hostname=hostname)
        self.local_addresses: dict[Family, bytes] = {}  # of the established connection, towards the peer
        self._tables = tables
        self._links: dict[int, _Link] = {}
        self._attempts: dict[int, asyncio.Task[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._established: int | None = None
        self._answering: set[Family] = set()
        self._gone = gone  # of a dynamic peer: called when its last connection has ended

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def held_down(self) -> str:
        """Why the session may not even begin; empty when it may."""
        return self.secret if isinstance(self.secret, str) else ""

    @property
    def password(self) -> bytes | None:
        return self.secret if isinstance(self.secret, bytes) else None

    @property
    def up(self) -> bool:
        return self._established is not None

    def start(self) -> None:
        if self.held_down:
            log.error("session held down", extra={"peer": self.name, "reason": self.held_down})
            return
        self._do(self.session.start(time.monotonic()))

    def stop(self, reason: Notification | None = None) -> None:
        self._do(self.session.stop(time.monotonic(), reason))

    def abandon(self) -> None:
        """Close without NOTIFICATION, so that the peer keeps our routes for our restart."""
        self._do(self.session.abandon(time.monotonic()))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def update(self, settings: PeerSettings, secret: bytes | str | None) -> None:
        """A new password is given to the open sockets too: when the other side changes in time, nothing breaks."""
        cost = cost_of_change(self.settings, settings)
        same_key = (self.settings.password is None) == (settings.password is None)
        was_down = bool(self.held_down)
        self.settings, old, self.secret = settings, self.secret, secret
        if self.held_down:
            if not was_down:
                log.error("session held down", extra={"peer": self.name, "reason": self.held_down})
                self.stop(Notification(ErrorCode.CEASE, Cease.CONFIGURATION_CHANGE))
            self._do(self.session.update(settings, time.monotonic()))
            return
        if old != secret and same_key and cost is not Cost.RESET:
            for link in self._links.values():
                self._sign(link)
        self._do(self.session.update(settings, time.monotonic()))
        if was_down:
            self._do(self.session.start(time.monotonic()))

    def accept(self, channel: socket.socket) -> None:
        """A connection that came in; owns the socket."""
        number, actions = self.session.accepted(time.monotonic())
        transport.accepted(channel, self.settings.ttl_security)
        task = asyncio.get_running_loop().create_task(self._accept(number, channel, actions))
        self._attempts[number] = task
        task.add_done_callback(lambda _: self._attempts.pop(number, None))

    async def _accept(self, number: int, channel: socket.socket, actions: list[Action]) -> None:
        link = self._links[number] = _Link(self, number, lambda: self._do(actions))
        await asyncio.get_running_loop().connect_accepted_socket(lambda: link, channel)

    # --- routes ---

    @property
    def writable(self) -> bool:
        link = self._links.get(self._established) if self._established is not None else None
        return link is not None and link.paused_since is None and link.transport is not None

    def send(self, updates: bytes) -> None:
        self._do(self.session.send([updates], time.monotonic()))

    def ask_again(self) -> bool:
        """Route refresh of every family of the session (RFC 2918); False when there is none, or it is not known."""
        negotiated = self.session.negotiated
        if negotiated is None or not negotiated.route_refresh:
            return False
        for family in negotiated.families:
            self._do(self.session.refresh(family, time.monotonic()))
        return True

    def answer_refresh(self, family: Family) -> None:
        """All routes of the family follow: between marks, when both ends know them (RFC 7313)."""
        self._do(self.session.refresh(family, time.monotonic(), RefreshSubtype.BEGIN))
        self._answering.add(family)

    def told_everything(self) -> None:
        """Nothing waits to be sent any more."""
        while self._answering:
            self._do(self.session.refresh(self._answering.pop(), time.monotonic(), RefreshSubtype.END))

    def reset(self, message: str = "") -> None:
        """Down and up again; message: for the people at the other end (RFC 9003)."""
        self._do(self.session.reset(time.monotonic(), administrative(Cease.ADMINISTRATIVE_RESET, message)))

    # --- what the sockets say ---

    def data_received(self, number: int, data: bytes) -> None:
        self._do(self.session.received(number, data, time.monotonic()))

    def connection_lost(self, number: int, error: str) -> None:
        if self._links.pop(number, None) is not None:
            self._do(self.session.closed(number, time.monotonic(), error))
        self._tell_if_gone()

    def drained(self) -> None:
        self._tables.drained(self)

    def _tick(self) -> None:
        self._timer = None
        now = time.monotonic()
        for number, link in list(self._links.items()):
            limit = max(SEND_HOLD_S, 2 * self.settings.hold_time_s)
            if number == self._established and link.paused_since is not None and now - link.paused_since > limit:
                self._do(self.session.send_stalled(now))
        self._do(self.session.tick(now))

    # --- what the session asks for ---

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case act.Send(number, data):
                    link = self._links.get(number)
                    if link is not None and link.transport is not None:
                        link.transport.write(data)
                case act.Received(changes):
                    self._tables.received(self, changes)
                case act.Connect(number):
                    self._connect(number)
                case act.Close(number):
                    self._close(number)
                case act.Established(number, negotiated):
                    self._up(number, negotiated)
                case act.Down(reason, _, _, kept):
                    self._established = None
                    self._answering.clear()
                    log.warning("session down", extra={"peer": self.name, "reason": reason, "kept": len(kept)})
                    self._tables.down(self, kept)
                case act.RefreshRequested(family):
                    self._tables.refresh_requested(self, family)
                case act.BeginRefresh(family):
                    self._tables.refreshing(self, family, True)
                case act.EndRefresh(family):
                    self._tables.refreshing(self, family, False)
                case act.Failed(reason):
                    log.info("no session", extra={"peer": self.name, "reason": reason})
        self._arm()

    def _up(self, number: int, negotiated: Negotiated) -> None:
        self._established = number
        link = self._links[number]
        assert link.transport is not None
        self.local_addresses = _own_addresses(link.transport)
        log.info("session established", extra={"peer": self.name, "families": [f.name for f in negotiated.families]})
        self._tables.established(self, negotiated)

    def _arm(self) -> None:
        """One timer, moved only when it would be too late: data arrives far more often than time runs out."""
        deadline = self.session.deadline()
        if deadline is None or (self._timer is not None and self._timer_at <= deadline):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        delay_s = max(0.0, deadline - time.monotonic())
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _connect(self, number: int) -> None:
        task = asyncio.get_running_loop().create_task(self._attempt(number), name=f"connect {self.name}")
        self._attempts[number] = task
        task.add_done_callback(lambda _: self._attempts.pop(number, None))

    async def _attempt(self, number: int) -> None:
        settings = self.settings
        try:
            channel = transport.outgoing(
                settings.address,
                source=settings.source,
                password=self.password,
                ttl_security=settings.ttl_security,
                interface=settings.interface,
            )
            await transport.connect(channel, settings.address, settings.port)
            link = self._links[number] = _Link(
                self, number, lambda: self._do(self.session.connected(number, time.monotonic()))
            )
            await asyncio.get_running_loop().create_connection(lambda: link, sock=channel)
        except (OSError, transport.PasswordRefused) as error:
            self._links.pop(number, None)
            self._do(self.session.closed(number, time.monotonic(), _words(error)))

    def _close(self, number: int) -> None:
        if number == self._established:
            self._established = None
        if (task := self._attempts.pop(number, None)) is not None and task is not asyncio.current_task():
            task.cancel()
        link = self._links.pop(number, None)
        if link is not None and link.transport is not None:
            link.transport.close()  # after what was written, if the other side takes it
            asyncio.get_running_loop().call_later(CLOSE_S, link.transport.abort)
        self._tell_if_gone()

    @property
    def quiet(self) -> bool:
        """Without any connection, begun or made."""
        return not self._links and not self._attempts and self.session.state in (State.IDLE, State.ACTIVE)

    def _tell_if_gone(self) -> None:
        if self._gone is not None and self.quiet:
            asyncio.get_running_loop().call_soon(self._gone, self)

    def _sign(self, link: _Link) -> None:
        channel = link.transport.get_extra_info("socket") if link.transport is not None else None
        if channel is not None:
            try:
                transport.sign(channel, self.settings.address, self.password)
            except transport.PasswordRefused as error:
                log.error("password not taken", extra={"peer": self.name, "error": str(error)})


def _own_addresses(link: asyncio.Transport) -> dict[Family, bytes]:
    address = link.get_extra_info("sockname")[0].partition("%")[0]
    packed = _packed(address)
    return {Family.IPV4 if len(packed) == 4 else Family.IPV6: packed}


def _packed(address: str) -> bytes:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return socket.inet_pton(family, address)


def _words(error: BaseException | None) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) if error is not None else ""
