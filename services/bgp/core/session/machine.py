"""The connections of one peer and what leads from state to state: RFC 4271 sections 6.2, 6.8 and 8.2.

Messages before a session is established, timers, and the end of a connection. `session.Session` is what the shell
calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from services.bgp.core.paths import Change, Family
from services.bgp.core.session import actions as act
from services.bgp.core.session.actions import Action
from services.bgp.core.session.collision import Verdict, judge
from services.bgp.core.session.connection import Connection, Timing
from services.bgp.core.session.graceful import kept_families
from services.bgp.core.session.negotiation import (
    Negotiated,
    Restart,
    check_open,
    negotiate,
    our_open,
    wanted_families,
)
from services.bgp.core.session.patience import Patience
from services.bgp.core.session.states import Event, State, step
from services.bgp.core.session.status import Counters
from services.bgp.core.settings import PeerSettings
from services.bgp.core.wire.codes import MessageType, RefreshSubtype
from services.bgp.core.wire.errors import (
    BgpError,
    Cease,
    ErrorCode,
    Notification,
    OpenError,
    decode_notification,
    hard_reset,
)
from services.bgp.core.wire.framing import KEEPALIVE
from services.bgp.core.wire.open import decode_open, encode_open
from services.bgp.core.wire.refresh import RouteRefresh, decode_refresh
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


class Machine:
    """restart: what our OPENs say of our own graceful restart; the shell clears `restarting` when it chose its
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

    @property
    def state(self) -> State:
        """That of the connection that got farthest."""
        return max((self._base, *(one.state for one in self._connections.values())), key=_PROGRESS.index)

    @property
    def negotiated(self) -> Negotiated | None:
        connection = self._up()
        return connection.negotiated if connection else None

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

    def _read(self, connection: Connection, now: float) -> list[Action]:
        """All messages that are there; an error of the peer's ends the connection."""
        actions: list[Action] = []
        changes: list[Change] = []
        error: BgpError | None = None
        try:
            while connection.number in self._connections and connection.offer is None:
                message = connection.reader.next()
                if message is None:
                    break
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
        except BgpError as raised:
            error = raised
        if changes:
            actions.append(act.Received(changes))
        if error is not None:
            event = _BY_CODE[ErrorCode(error.notification.code)]
            actions += self._lose(connection, event, now, str(error), sent=error.notification, penalty=True)
        return actions

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
        connection.offer = negotiate(self.settings, ours, theirs)
        actions: list[Action] = []
        our_id, their_id = (self._router_id, self.settings.local_as), (theirs.router_id, theirs.asn)
        for other in self._exchanged():
            verdict = judge(connection, other, our_id, their_id, now, self._timing.collision_s)
            if verdict is Verdict.NEW_GOES:
                return actions + self._collided(connection, now)
            if verdict is Verdict.WAIT:
                connection.decide_at = now + self._timing.collision_wait_s
                return actions
            actions += self._collided(other, now)
        return actions + self._confirm(connection, now)

    def _exchanged(self) -> list[Connection]:
        return [one for one in self._connections.values() if one.exchanged]

    def _confirm(self, connection: Connection, now: float) -> list[Action]:
        """OpenConfirm: the peer's OPEN is accepted, and no other connection stands against it."""
        negotiated, connection.offer, connection.decide_at = connection.offer, None, None
        assert negotiated is not None  # whoever calls has just made or found it
        connection.negotiated = negotiated
        actions: list[Action] = []
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

    def _decide(self, now: float) -> list[Action]:
        """Connections that waited for another one: it is gone, or has had its time."""
        actions: list[Action] = []
        for connection in list(self._connections.values()):
            if connection.offer is None or connection.number not in self._connections:
                continue
            others = self._exchanged()
            late = connection.decide_at is not None and connection.decide_at <= now
            if others and not late:
                continue
            if any(other.state is State.ESTABLISHED for other in others):
                actions += self._collided(connection, now)
                continue
            for other in others:
                actions += self._collided(other, now)
            actions += self._confirm(connection, now)
            actions += self._read(connection, now)
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
                kept = kept_families(negotiated, sent=sent, received=received)
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
        actions += self._decide(now)
        if self.state is not self._state:
            self._state, self._since = self.state, now
        return actions
