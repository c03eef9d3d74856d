"""The session with one peer: RFC 4271 section 8 with the collision rules of 6.8, without sockets or clocks.

The shell reports what happens (`start`, `accepted`, `connected`, `received`, `closed`, `tick` at `deadline()`) with
the time in seconds of a clock that never goes back, and carries out the actions in their order. Numbers name TCP
connections; the session gives them out. It tracks up to three: the one that is established, one that the peer began,
one that we began; as soon as two have exchanged OPENs one of them goes. What the peer sends never raises.

The routes are not here: `Established`, `Received`, `Down` and the like tell the tables what happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from random import Random

from services.bgp.core.paths import Change, Family
from services.bgp.core.session import actions as act
from services.bgp.core.session.actions import Action
from services.bgp.core.session.change import Cost, changed, cost_of_change
from services.bgp.core.session.collision import loser
from services.bgp.core.session.connection import Connection, Timing
from services.bgp.core.session.graceful import kept_families
from services.bgp.core.session.negotiation import (
    Negotiated,
    Restart,
    check_open,
    keepalive_s,
    negotiate,
    our_open,
    wanted_families,
)
from services.bgp.core.session.patience import Patience
from services.bgp.core.session.states import Event, State, step
from services.bgp.core.session.status import Counters, Status
from services.bgp.core.settings import PeerSettings
from services.bgp.core.wire.codes import MessageType, RefreshSubtype
from services.bgp.core.wire.errors import (
    BgpError,
    Cease,
    ErrorCode,
    Notification,
    OpenError,
    administrative,
    decode_notification,
    hard_reset,
)
from services.bgp.core.wire.framing import KEEPALIVE
from services.bgp.core.wire.open import decode_open, encode_open
from services.bgp.core.wire.refresh import RouteRefresh, decode_refresh, encode_refresh
from services.bgp.core.wire.update import UpdateDecoder

# Which state is told when the machine without a connection is in one and those with one are in others.
_PROGRESS = (
    State.IDLE,
    State.ACTIVE,
    State.CONNECT,
    State.OPEN_SENT,
    State.OPEN_CONFIRM,
    State.ESTABLISHED,
)
_BY_CODE = {
    ErrorCode.MESSAGE_HEADER: Event.BGP_HEADER_ERR,
    ErrorCode.OPEN: Event.BGP_OPEN_MSG_ERR,
    ErrorCode.UPDATE: Event.UPDATE_MSG_ERR,
    ErrorCode.FSM: Event.FSM_ERR,
    ErrorCode.ROUTE_REFRESH: Event.UPDATE_MSG_ERR,
}
# Cease that says nothing against trying again soon.
_NO_PENALTY = (
    Cease.ADMINISTRATIVE_RESET,
    Cease.CONNECTION_REJECTED,
    Cease.CONFIGURATION_CHANGE,
    Cease.COLLISION_RESOLUTION,
)
# When we end a session like that, the peer is not to keep our routes (RFC 8538 section 3.2).
_HARD = (Cease.ADMINISTRATIVE_SHUTDOWN, Cease.PEER_DECONFIGURED)
_IDENTITY = frozenset({"remote_as", "local_as", "families", "prefix", "address", "port"})


class Session:
    """restart: what our OPENs say of our own graceful restart; the shell clears `restarting` when it has chosen its
    routes."""

    def __init__(
        self,
        settings: PeerSettings,
        router_id: int,
        random: Random,
        now: float,
        *,
        timing: Timing | None = None,
        restart: Restart | None = None,
        hostname: str = "",
    ) -> None:
        self.settings = settings
        self.restart = restart or Restart()
        self._router_id = router_id
        self._random = random
        self._timing = timing or Timing()
        self._hostname = hostname
        self._base = State.IDLE  # the machine that has no connection: Idle or Active
        self._running = False
        self._connections: dict[int, Connection] = {}
        self._numbers = 0
        self._connect_at: float | None = None
        self._idle_until: float | None = None
        self._patience = Patience(*self._timing.error_wait_s, self._timing.error_forget_s)
        self._plain = False  # the peer refused optional parameters
        self._counters = Counters()
        self._decoder: UpdateDecoder | None = None
        self._state, self._since = State.IDLE, now
        self._last_error = ""
        self._last_error_at: float | None = None
        self._last_sent = self._last_received = ""

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
        if connection.reader.buffered:
            reason += " in the midst of a message"
        reason = f"{reason}: {error}" if error else reason
        return self._done(now, self._lose(connection, Event.TCP_CONNECTION_FAILS, now, reason))

    def received(self, number: int, data: bytes, now: float) -> list[Action]:
        connection = self._connections.get(number)
        if connection is None or not connection.up:
            return []
        actions: list[Action] = []
        changes: list[Change] = []
        connection.reader.feed(data)
        try:
            while number in self._connections and (message := connection.reader.next()) is not None:
                kind, body = message
                self._counters.received[kind.name] += 1
                if kind is MessageType.UPDATE and connection.decoder is not None:
                    changes += connection.decoder.decode(body)
                    continue
                if changes and kind is not MessageType.KEEPALIVE:
                    actions.append(act.Received(changes))
                    changes = []
                actions += self._message(connection, kind, body, now)
            connection.heard(now)
            if changes:
                actions.append(act.Received(changes))
        except BgpError as error:
            if changes:
                actions.append(act.Received(changes))
            event = _BY_CODE[ErrorCode(error.notification.code)]
            actions += self._lose(connection, event, now, str(error), sent=error.notification, penalty=True)
        return self._done(now, actions)

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
            times += (one.hold_at, one.keepalive_at, one.delay_open_at)
        return min((time for time in times if time is not None), default=None)

    # --- what it is like ---

    @property
    def state(self) -> State:
        """That of the connection that got farthest."""
        return max((self._base, *(one.state for one in self._connections.values())), key=_PROGRESS.index)

    @property
    def negotiated(self) -> Negotiated | None:
        connection = self._up()
        return connection.negotiated if connection else None

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

    # --- connections: up, OPEN, collision ---

    def _tcp_up(self, connection: Connection, event: Event, now: float) -> list[Action]:
        connection.hold_at = now + self._timing.open_hold_s
        if self.settings.delay_open_s > 0:
            connection.move(event, connection.state)
            connection.delay_open_at = now + self.settings.delay_open_s
            return []
        connection.move(event, State.OPEN_SENT)
        return self._send_open(connection)

    def _send_open(self, connection: Connection) -> list[Action]:
        connection.delay_open_at = None
        connection.ours = our_open(
            self.settings, self._router_id, self.restart, plain=self._plain, hostname=self._hostname
        )
        return [self._write(connection, MessageType.OPEN, encode_open(connection.ours))]

    def _message(self, connection: Connection, kind: MessageType, body: bytes, now: float) -> list[Action]:
        """Anything but an UPDATE of an established session. Raises BgpError."""
        state = connection.state
        if kind is MessageType.NOTIFICATION:
            return self._notified(connection, decode_notification(body), now)
        if kind is MessageType.OPEN and connection.negotiated is None:
            return self._opened(connection, body, now)
        if kind is MessageType.KEEPALIVE and state is State.ESTABLISHED:
            connection.move(Event.KEEPALIVE_MSG, State.ESTABLISHED)
            return []
        if kind is MessageType.KEEPALIVE and state is State.OPEN_CONFIRM:
            return self._established(connection, now)
        if kind is MessageType.ROUTE_REFRESH and state is State.ESTABLISHED:
            connection.move(Event.ROUTE_REFRESH_MSG, State.ESTABLISHED)
            return self._refreshed(connection, decode_refresh(body))
        raise connection.unexpected(kind)

    def _opened(self, connection: Connection, body: bytes, now: float) -> list[Action]:
        theirs = decode_open(body)
        check_open(self.settings, self._router_id, theirs)
        ours = connection.ours or our_open(
            self.settings, self._router_id, self.restart, plain=self._plain, hostname=self._hostname
        )
        negotiated = negotiate(self.settings, ours, theirs)
        connection.negotiated = negotiated
        actions: list[Action] = []
        for other in list(self._connections.values()):
            if other is connection or other.state not in (State.OPEN_CONFIRM, State.ESTABLISHED):
                continue
            our_id, their_id = (self._router_id, self.settings.local_as), (theirs.router_id, theirs.asn)
            if loser(connection, other, our_id, their_id, now, self._timing.collision_s) is connection:
                return actions + self._collided(connection, now)
            actions += self._collided(other, now)
        for other in list(self._connections.values()):
            if not other.up:  # an attempt that is not needed any more
                actions += self._collided(other, now)
        self._connect_at = None
        if connection.opened:
            connection.move(Event.BGP_OPEN, State.OPEN_CONFIRM)
        else:
            actions += self._send_open(connection)
            connection.move(Event.BGP_OPEN_WITH_DELAY_OPEN_TIMER, State.OPEN_CONFIRM)
        connection.reader.limit = negotiated.context.max_message
        actions.append(self._write(connection, MessageType.KEEPALIVE, KEEPALIVE))
        self._keepalive_later(connection, now)
        return actions

    def _collided(self, connection: Connection, now: float) -> list[Action]:
        self._counters.collisions += connection.up
        sent = Notification(ErrorCode.CEASE, Cease.COLLISION_RESOLUTION) if connection.opened else None
        if connection.state is not State.ESTABLISHED:
            return self._forget(connection, Event.OPEN_COLLISION_DUMP, sent)
        reason = "the peer began another connection in its place"
        return self._lose(connection, Event.OPEN_COLLISION_DUMP, now, reason, replaced=True)

    def _established(self, connection: Connection, now: float) -> list[Action]:
        assert connection.negotiated is not None  # OpenConfirm follows the peer's OPEN
        connection.move(Event.KEEPALIVE_MSG, State.ESTABLISHED)
        connection.established_at = now
        connection.decoder = self._decoder = UpdateDecoder(connection.negotiated.context)
        self._counters.established += 1
        self._connect_at = None
        self.restart = Restart(self.restart.restarting)  # from now on there are routes that a new connection finds
        return [act.Established(connection.number, connection.negotiated)]

    def _refreshed(self, connection: Connection, message: RouteRefresh | None) -> list[Action]:
        negotiated = connection.negotiated
        if message is None or negotiated is None or message.family not in negotiated.families:
            return []
        if message.subtype is RefreshSubtype.REQUEST:
            return [act.RefreshRequested(message.family)]
        if not negotiated.enhanced_refresh:
            return []
        begin = message.subtype is RefreshSubtype.BEGIN
        return [act.BeginRefresh(message.family) if begin else act.EndRefresh(message.family)]

    def _notified(self, connection: Connection, message: Notification, now: float) -> list[Action]:
        event = Event.NOTIF_MSG
        penalty = message.code != ErrorCode.CEASE or message.subcode not in _NO_PENALTY
        if message.code == ErrorCode.OPEN:
            if message.subcode == OpenError.UNSUPPORTED_VERSION:
                event = Event.NOTIF_MSG_VER_ERR
            if message.subcode == OpenError.UNSUPPORTED_OPTIONAL_PARAMETER and self._may_be_plain():
                self._plain, penalty = True, False
        reason = f"the peer ended it: {message}"
        return self._lose(connection, event, now, reason, received=message, penalty=penalty)

    def _may_be_plain(self) -> bool:
        """Without capabilities there is only IPv4, and an AS number of two octets."""
        return Family.IPV4 in wanted_families(self.settings) and self.settings.local_as <= 0xFFFF

    # --- timers ---

    def _timers(self, connection: Connection, now: float) -> list[Action]:
        if connection.hold_at is not None and connection.hold_at <= now:
            return self._lose(
                connection,
                Event.HOLD_TIMER_EXPIRES,
                now,
                "nothing came from the peer for the hold time",
                sent=Notification(ErrorCode.HOLD_TIMER_EXPIRED),
                hold_timer=True,
            )
        if connection.delay_open_at is not None and connection.delay_open_at <= now:
            connection.move(Event.DELAY_OPEN_TIMER_EXPIRES, State.OPEN_SENT)
            return self._send_open(connection)
        if connection.keepalive_at is not None and connection.keepalive_at <= now:
            connection.move(Event.KEEPALIVE_TIMER_EXPIRES, connection.state)
            self._keepalive_later(connection, now)
            return [self._write(connection, MessageType.KEEPALIVE, KEEPALIVE)]
        return []

    def _keepalive_later(self, connection: Connection, now: float) -> None:
        negotiated = connection.negotiated
        if negotiated is None or not negotiated.keepalive_s:
            connection.keepalive_at = None
        else:
            connection.keepalive_at = now + self._jitter(negotiated.keepalive_s)

    def _jitter(self, seconds: float) -> float:
        """RFC 4271 section 10: from 0.75 to 1.0 of it."""
        return seconds * self._random.uniform(0.75, 1.0)

    def _listen(self, event: Event, now: float, delay_s: float) -> None:
        self._base = step(self._base, event, State.ACTIVE)
        self._idle_until = None
        self._connect_at = None if self.settings.passive else now + self._jitter(delay_s)

    def _connect(self, now: float) -> list[Action]:
        actions: list[Action] = []
        self._connect_at = None
        for one in list(self._connections.values()):
            if not one.up:
                reason = "the connection could not be made in time"
                actions += self._lose(one, Event.CONNECT_RETRY_TIMER_EXPIRES, now, reason)
            elif not one.incoming or one.state in (State.OPEN_CONFIRM, State.ESTABLISHED):
                return actions
        if self.settings.passive:
            return actions
        connection = Connection(self._number(), incoming=False, state=State.ACTIVE, up=False)
        connection.move(Event.CONNECT_RETRY_TIMER_EXPIRES, State.CONNECT)
        self._connections[connection.number] = connection
        self._connect_at = now + self._timing.connect_retry_s
        return [*actions, act.Connect(connection.number)]

    # --- the end of a connection ---

    def _lose_all(self, event: Event, now: float, message: Notification, *, hard: bool = False) -> list[Action]:
        actions: list[Action] = []
        for connection in list(self._connections.values()):
            sent: Notification | None = None
            if connection.opened:
                negotiated = connection.negotiated
                is_hard = hard or (message.code == ErrorCode.CEASE and message.subcode in _HARD)
                sent = hard_reset(message) if negotiated and negotiated.notifications_kept and is_hard else message
            actions += self._lose(connection, event, now, f"ended here: {message}", sent=sent)
        return actions

    def _lose(
        self,
        connection: Connection,
        event: Event,
        now: float,
        reason: str,
        *,
        sent: Notification | None = None,
        received: Notification | None = None,
        penalty: bool = False,
        hold_timer: bool = False,
        replaced: bool = False,
    ) -> list[Action]:
        """replaced: by another connection of the same peer, for which graceful restart holds."""
        was_up, negotiated = connection.state is State.ESTABLISHED, connection.negotiated
        sent = sent if connection.opened else None
        self._last_error, self._last_error_at = reason, now
        if received is not None:
            self._last_received = str(received)
        actions = self._forget(connection, event, sent)
        if was_up and negotiated is not None:
            kept: tuple[Family, ...] = ()
            if self._running:
                kept = kept_families(negotiated, hold_timer=hold_timer, sent=sent, received=received)
            actions.append(act.Down(reason, sent, received, kept))
        else:
            actions.append(act.Failed(reason, sent, received))
        if not replaced:
            self._afterwards(now, penalty, self._timing.connect_delay_s if was_up else self._timing.connect_retry_s)
        return actions

    def _forget(self, connection: Connection, event: Event, sent: Notification | None) -> list[Action]:
        actions: list[Action] = []
        waits = (State.CONNECT, State.ACTIVE, State.OPEN_SENT)
        retries = event in (Event.TCP_CONNECTION_FAILS, Event.CONNECT_RETRY_TIMER_EXPIRES) and connection.state in waits
        connection.move(event, State.ACTIVE if retries else State.IDLE)
        del self._connections[connection.number]
        if sent is not None:
            self._last_sent = str(sent)
            actions.append(self._write(connection, MessageType.NOTIFICATION, sent.encode()))
        if event is not Event.TCP_CONNECTION_FAILS:
            actions.append(act.Close(connection.number))
        return actions

    def _afterwards(self, now: float, penalty: bool, delay_s: float) -> None:
        if not self._running:
            return
        others: Iterable[Connection] = self._connections.values()
        if any(one.state in (State.OPEN_CONFIRM, State.ESTABLISHED) or not one.incoming for one in others):
            return
        if penalty and not self._connections:
            self._base = State.IDLE
            self._connect_at = None
            self._idle_until = now + self._jitter(self._patience.error(now))
        elif not self.settings.passive:
            self._connect_at = now + self._jitter(delay_s)

    # --- small things ---

    def _number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _up(self) -> Connection | None:
        return next((one for one in self._connections.values() if one.state is State.ESTABLISHED), None)

    def _write(self, connection: Connection, kind: MessageType, data: bytes) -> Action:
        self._counters.sent[kind.name] += 1
        return act.Send(connection.number, data)

    def _done(self, now: float, actions: list[Action]) -> list[Action]:
        if self.state is not self._state:
            self._state, self._since = self.state, now
        return actions
