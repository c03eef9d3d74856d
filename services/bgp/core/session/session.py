"""The session with one peer: RFC 4271 section 8 with the collision rules of 6.8, without sockets or clocks.

The shell reports what happens (`start`, `accepted`, `connected`, `received`, `closed`, `tick` at `deadline()`) with
the time in seconds of a clock that never goes back, and carries out the actions in their order. Numbers name TCP
connections; the session gives them out. It tracks up to three: the one that is established, one that the peer began,
one that we began; of those that have exchanged OPENs one stays. What the peer sends never raises.

The routes are not here: `Established`, `Received`, `Down` and the like tell the tables what happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from services.bgp.core.paths import Family
from services.bgp.core.session import actions as act
from services.bgp.core.session.actions import Action
from services.bgp.core.session.change import Cost, changed, cost_of_change
from services.bgp.core.session.connection import Connection
from services.bgp.core.session.machine import Machine
from services.bgp.core.session.negotiation import (
    keepalive_s,
)
from services.bgp.core.session.states import Event, State, step
from services.bgp.core.session.status import Status
from services.bgp.core.settings import PeerSettings
from services.bgp.core.wire.codes import RefreshSubtype
from services.bgp.core.wire.errors import (
    Cease,
    ErrorCode,
    Notification,
    administrative,
)
from services.bgp.core.wire.refresh import RouteRefresh, encode_refresh

_IDENTITY = frozenset({"remote_as", "local_as", "families", "prefix", "address", "port"})


class Session(Machine):
    """One for each peer. What the constructor takes stands at `Machine`."""

    # --- what a user or the shell asks for ---

    def start(self, now: float) -> list[Action]:
        """ManualStart, also the first time. Nothing when it runs already."""
        if self._running:
            return []
        self._running, self._plain = True, False
        self._patience.forget()
        event = Event.MANUAL_START_PASSIVE if self.settings.passive else Event.MANUAL_START
        self._listen(event, now, self._timing.connect_delay_s)
        return self._done(now, [])

    def stop(self, now: float, reason: Notification | None = None) -> list[Action]:
        """ManualStop: all connections go, and so do the peer's routes. reason: administrative shutdown without words
        by default."""
        reason = reason or administrative(Cease.ADMINISTRATIVE_SHUTDOWN)
        self._running = False
        actions = self._lose_all(Event.MANUAL_STOP, now, reason)
        self._base = State.IDLE
        self._connect_at = self._idle_until = None
        return self._done(now, actions)

    def reset(self, now: float, reason: Notification | None = None, *, hard: bool = False) -> list[Action]:
        """Down and up again. Both sides keep the routes when RFC 8538 is negotiated, unless it is to be hard."""
        actions = self._lose_all(
            Event.AUTOMATIC_STOP, now, reason or administrative(Cease.ADMINISTRATIVE_RESET), hard=hard
        )
        return self._done(now, actions)

    def abandon(self, now: float) -> list[Action]:
        """Close without a word, so that a peer with graceful restart keeps our routes while this process is
        replaced."""
        self._running = False
        actions: list[Action] = [act.Close(number) for number in self._connections]
        self._connections.clear()
        self._base, self._connect_at, self._idle_until = State.IDLE, None, None
        return self._done(now, actions)

    def update(self, settings: PeerSettings, now: float) -> list[Action]:
        """Other settings for the same peer. Resets the session when `cost_of_change` says so."""
        names = changed(self.settings, settings)
        reset = cost_of_change(self.settings, settings) is Cost.RESET
        self.settings = settings
        if not self._running or not names:
            return []
        if reset:
            self._plain = False
            self._patience.forget()
            if self._base is State.IDLE:  # what made it wait may be what was just put right
                self._listen(Event.AUTOMATIC_START, now, self._timing.connect_delay_s)
            told = Notification(ErrorCode.CEASE, Cease.CONFIGURATION_CHANGE)
            return self.reset(now, told, hard=bool(_IDENTITY.intersection(names)))
        for connection in self._connections.values():
            if connection.negotiated is not None:
                asked = keepalive_s(settings, connection.negotiated.hold_time_s)
                connection.negotiated = replace(connection.negotiated, keepalive_s=asked)
                self._keepalive_later(connection, now)
        if settings.passive and all(connection.up for connection in self._connections.values()):
            self._connect_at = None  # an attempt that is under way keeps its limit
        elif self._base is State.ACTIVE and "passive" in names and self.state is State.ACTIVE:
            self._connect_at = now
        return self._done(now, [])

    def send(self, updates: Sequence[bytes], now: float) -> list[Action]:
        """Whole UPDATE messages for the established connection; nothing when there is none."""
        connection = self._up()
        if connection is None or not updates:
            return []
        self._counters.sent["UPDATE"] += len(updates)
        self._keepalive_later(connection, now)
        return [act.Send(connection.number, b"".join(updates))]

    def refresh(self, family: Family, now: float, subtype: RefreshSubtype = RefreshSubtype.REQUEST) -> list[Action]:
        """Ask for all routes of a family again, or mark begin and end of our own answer. Nothing when not
        negotiated."""
        connection = self._up()
        if connection is None or connection.negotiated is None or family not in connection.negotiated.families:
            return []
        marks = subtype is not RefreshSubtype.REQUEST
        if not (connection.negotiated.enhanced_refresh if marks else connection.negotiated.route_refresh):
            return []
        self._counters.sent["ROUTE_REFRESH"] += 1
        return [act.Send(connection.number, encode_refresh(RouteRefresh(family, subtype)))]

    def send_stalled(self, now: float) -> list[Action]:
        """The shell could not write anything for the send hold time (RFC 9687: the larger of 8 minutes and twice the
        hold time)."""
        connection = self._up()
        if connection is None:
            return []
        message = Notification(ErrorCode.SEND_HOLD_TIMER_EXPIRED)
        reason = "the peer takes nothing any more"
        return self._done(now, self._lose(connection, Event.SEND_HOLD_TIMER_EXPIRES, now, reason, sent=message))

    # --- what happens ---

    def accepted(self, now: float) -> tuple[int, list[Action]]:
        """The peer connected: (number of the connection, what to do). Idle refuses; Cease 6/5 says so."""
        number = self._number()
        if self._base is State.IDLE:
            step(State.IDLE, Event.TCP_CR_INVALID, State.IDLE)
            refusal = Notification(ErrorCode.CEASE, Cease.CONNECTION_REJECTED)
            return number, [act.Send(number, refusal.encode()), act.Close(number)]
        actions: list[Action] = []
        for other in list(self._connections.values()):
            if other.incoming and other.state is not State.ESTABLISHED:
                # A peer begins one connection at a time: it gave the older one up, and we have not heard of it yet.
                actions += self._collided(other, now)
        connection = Connection(number, incoming=True, state=State.ACTIVE, up=True)
        self._connections[number] = connection
        actions += self._tcp_up(connection, Event.TCP_CONNECTION_CONFIRMED, now)
        return number, self._done(now, actions)

    def connected(self, number: int, now: float) -> list[Action]:
        """The attempt of `Connect(number)` succeeded."""
        connection = self._connections.get(number)
        if connection is None or connection.up:
            return []
        self._counters.connects += 1
        self._connect_at = None
        connection.up = True
        return self._done(now, self._tcp_up(connection, Event.TCP_CR_ACKED, now))

    def closed(self, number: int, now: float, error: str = "") -> list[Action]:
        """The connection is gone, or the attempt failed; no `Close` follows. error: the system's words."""
        connection = self._connections.get(number)
        if connection is None:
            return []
        reason = "the connection was closed" if connection.up else "the connection could not be made"
        if connection.reader.buffered and connection.offer is None:
            reason += " in the midst of a message"
        reason = f"{reason}: {error}" if error else reason
        return self._done(now, self._lose(connection, Event.TCP_CONNECTION_FAILS, now, reason))

    def received(self, number: int, data: bytes, now: float) -> list[Action]:
        connection = self._connections.get(number)
        if connection is None or not connection.up:
            return []
        connection.reader.feed(data)
        return self._done(now, self._read(connection, now))

    def tick(self, now: float) -> list[Action]:
        """Timers. Call when `deadline()` has come; earlier or later does no harm."""
        actions: list[Action] = []
        for connection in list(self._connections.values()):
            if connection.number in self._connections:
                actions += self._timers(connection, now)
        if self._idle_until is not None and self._idle_until <= now:
            self._listen(Event.IDLE_HOLD_TIMER_EXPIRES, now, 0)
        if self._connect_at is not None and self._connect_at <= now:
            actions += self._connect(now)
        return self._done(now, actions)

    def deadline(self) -> float | None:
        """When `tick` has something to do; None: not before something happens."""
        times = [self._idle_until, self._connect_at]
        for one in self._connections.values():
            times += (one.hold_at, one.keepalive_at, one.delay_open_at, one.decide_at)
        return min((time for time in times if time is not None), default=None)

    # --- what it is like ---

    @property
    def status(self) -> Status:
        decoder = self._decoder
        attempts = [time for time in (self._idle_until, self._connect_at) if time is not None]
        return Status(
            state=self._state,
            since=self._since,
            last_error=self._last_error,
            last_error_at=self._last_error_at,
            last_sent=self._last_sent,
            last_received=self._last_received,
            next_attempt=min(attempts, default=None),
            negotiated=self.negotiated,
            counters=self._counters,
            discarded_attributes=decoder.discarded if decoder else 0,
            withdrawn_updates=decoder.withdrawn if decoder else 0,
            ignored_families=decoder.ignored if decoder else 0,
            last_update_problem=decoder.last_problem if decoder else "",
        )
