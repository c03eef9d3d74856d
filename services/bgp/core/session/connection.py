"""One TCP connection to the peer, of which there may be two until their OPENs decide (RFC 4271 section 6.8)."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.bgp.core.session.negotiation import Negotiated
from services.bgp.core.session.states import Event, State, step
from services.bgp.core.wire.errors import BgpError, ErrorCode, FsmError
from services.bgp.core.wire.framing import MessageReader
from services.bgp.core.wire.open import Open
from services.bgp.core.wire.update import UpdateDecoder


@dataclass(slots=True)
class Timing:
    """Seconds. The first three are Calico's (connect delay, connect retry, error wait from and to).

    connect_delay_s: before the first attempt. connect_retry_s: between attempts, and how long one may take.
    error_wait_s: after an error of the protocol, doubled each time, forgotten after error_forget_s. open_hold_s: for
    the peer's OPEN. collision_s: how long after a session came up another connection counts as begun at the same
    time. collision_wait_s: how long the one that ought to stay waits for the other to end.
    """

    connect_delay_s: float = 2
    connect_retry_s: float = 5
    error_wait_s: tuple[float, float] = (5, 30)
    error_forget_s: float = 300
    open_hold_s: float = 240
    collision_s: float = 5
    collision_wait_s: float = 2


@dataclass(slots=True)
class Connection:
    """incoming: the peer began it. state: Connect or Active until our OPEN is out. up: TCP is there. hold_at,
    keepalive_at, delay_open_at: when those timers expire, None when they do not run. offer: what the peer's OPEN came
    to, while it waits for another connection to end, until decide_at; nothing more is read meanwhile."""

    number: int
    incoming: bool
    state: State
    up: bool
    reader: MessageReader = field(default_factory=MessageReader)
    ours: Open | None = None
    negotiated: Negotiated | None = None
    decoder: UpdateDecoder | None = None
    hold_at: float | None = None
    keepalive_at: float | None = None
    delay_open_at: float | None = None
    established_at: float | None = None
    offer: Negotiated | None = None
    decide_at: float | None = None

    def move(self, event: Event, to: State) -> None:
        self.state = step(self.state, event, to)

    @property
    def exchanged(self) -> bool:
        """Both OPENs are accepted."""
        return self.state in (State.OPEN_CONFIRM, State.ESTABLISHED)

    @property
    def opened(self) -> bool:
        """Our OPEN is out: the peer understands a NOTIFICATION."""
        return self.ours is not None

    def heard(self, now: float) -> None:
        """Something came: the hold timer starts again (RFC 4271 section 8.2.2)."""
        if self.negotiated is not None and self.exchanged:
            hold_time_s = self.negotiated.hold_time_s
            if hold_time_s:
                self.hold_at = now + hold_time_s
            elif self.state is State.ESTABLISHED:
                self.hold_at = None

    def unexpected(self, kind: int) -> BgpError:
        """RFC 6608: a message that this state does not expect."""
        subcode = {
            State.OPEN_SENT: FsmError.IN_OPEN_SENT,
            State.OPEN_CONFIRM: FsmError.IN_OPEN_CONFIRM,
            State.ESTABLISHED: FsmError.IN_ESTABLISHED,
        }.get(self.state, FsmError.UNSPECIFIED)
        return BgpError(ErrorCode.FSM, subcode, bytes((kind,)), f"message type {kind} in state {self.state.value}")
