"""States and events of RFC 4271 section 8, and which lead where.

`TRANSITIONS` is the law: the session asks `step` before each change of state, and a message whose event has no entry
for the state is answered with "finite state machine error". `python -m services.bgp.core.session.states` prints the
table for the docs.

Where this differs from the RFC it does what BIRD and FRR do: a TCP connection that fails leads to Active, not to
Idle, so that we listen between attempts (Idle refuses); Idle is for errors of the protocol, with a wait that grows.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Final


class State(Enum):
    """With the names that users know."""

    IDLE = "Idle"
    CONNECT = "Connect"
    ACTIVE = "Active"
    OPEN_SENT = "OpenSent"
    OPEN_CONFIRM = "OpenConfirm"
    ESTABLISHED = "Established"


class Event(IntEnum):
    """Numbered as in RFC 4271 section 8.1. Ours are 29 (RFC 2918), 30 (RFC 9687), and 31: a message that the state
    does not expect (RFC 6608)."""

    MANUAL_START = 1
    MANUAL_STOP = 2
    AUTOMATIC_START = 3
    MANUAL_START_PASSIVE = 4
    AUTOMATIC_START_PASSIVE = 5
    AUTOMATIC_STOP = 8
    CONNECT_RETRY_TIMER_EXPIRES = 9
    HOLD_TIMER_EXPIRES = 10
    KEEPALIVE_TIMER_EXPIRES = 11
    DELAY_OPEN_TIMER_EXPIRES = 12
    IDLE_HOLD_TIMER_EXPIRES = 13
    TCP_CR_INVALID = 15
    TCP_CR_ACKED = 16
    TCP_CONNECTION_CONFIRMED = 17
    TCP_CONNECTION_FAILS = 18
    BGP_OPEN = 19
    BGP_OPEN_WITH_DELAY_OPEN_TIMER = 20
    BGP_HEADER_ERR = 21
    BGP_OPEN_MSG_ERR = 22
    OPEN_COLLISION_DUMP = 23
    NOTIF_MSG_VER_ERR = 24
    NOTIF_MSG = 25
    KEEPALIVE_MSG = 26
    UPDATE_MSG = 27
    UPDATE_MSG_ERR = 28
    ROUTE_REFRESH_MSG = 29
    SEND_HOLD_TIMER_EXPIRES = 30
    FSM_ERR = 31


_I, _C, _A, _S, _O, _E = State
_ENDS: Final = (
    Event.MANUAL_STOP,
    Event.AUTOMATIC_STOP,
    Event.HOLD_TIMER_EXPIRES,
    Event.BGP_HEADER_ERR,
    Event.BGP_OPEN_MSG_ERR,
    Event.OPEN_COLLISION_DUMP,
    Event.NOTIF_MSG_VER_ERR,
    Event.NOTIF_MSG,
    Event.FSM_ERR,
)

TRANSITIONS: Final[dict[tuple[State, Event], tuple[State, ...]]] = {
    (_I, Event.MANUAL_START): (_A,),
    (_I, Event.AUTOMATIC_START): (_A,),
    (_I, Event.MANUAL_START_PASSIVE): (_A,),
    (_I, Event.AUTOMATIC_START_PASSIVE): (_A,),
    (_I, Event.IDLE_HOLD_TIMER_EXPIRES): (_A,),
    (_I, Event.MANUAL_STOP): (_I,),
    (_I, Event.TCP_CR_INVALID): (_I,),  # refused: we are not listening to this peer
    (_A, Event.CONNECT_RETRY_TIMER_EXPIRES): (_C,),
    (_A, Event.TCP_CONNECTION_CONFIRMED): (_S, _A),  # stays with DelayOpen
    (_A, Event.DELAY_OPEN_TIMER_EXPIRES): (_S,),
    (_A, Event.BGP_OPEN_WITH_DELAY_OPEN_TIMER): (_O,),
    (_A, Event.TCP_CONNECTION_FAILS): (_A,),
    (_C, Event.CONNECT_RETRY_TIMER_EXPIRES): (_A,),  # given up; Active begins the next one
    (_C, Event.TCP_CR_ACKED): (_S, _C),
    (_C, Event.DELAY_OPEN_TIMER_EXPIRES): (_S,),
    (_C, Event.BGP_OPEN_WITH_DELAY_OPEN_TIMER): (_O,),
    (_C, Event.TCP_CONNECTION_FAILS): (_A,),
    (_S, Event.BGP_OPEN): (_O,),
    (_S, Event.TCP_CONNECTION_FAILS): (_A,),
    (_O, Event.KEEPALIVE_MSG): (_E,),
    (_O, Event.KEEPALIVE_TIMER_EXPIRES): (_O,),
    (_O, Event.TCP_CONNECTION_FAILS): (_I,),
    (_O, Event.SEND_HOLD_TIMER_EXPIRES): (_I,),
    (_E, Event.KEEPALIVE_MSG): (_E,),
    (_E, Event.KEEPALIVE_TIMER_EXPIRES): (_E,),
    (_E, Event.UPDATE_MSG): (_E,),
    (_E, Event.UPDATE_MSG_ERR): (_I,),
    (_E, Event.ROUTE_REFRESH_MSG): (_E,),
    (_E, Event.TCP_CONNECTION_FAILS): (_I,),
    (_E, Event.SEND_HOLD_TIMER_EXPIRES): (_I,),
    **{(state, event): (_I,) for state in (_C, _A, _S, _O, _E) for event in _ENDS},
}


def step(state: State, event: Event, to: State) -> State:
    """`to`, when the table allows it; anything else is a mistake in this program."""
    if to not in TRANSITIONS.get((state, event), ()):
        raise RuntimeError(f"no transition from {state.value} to {to.value} by {event.name}")
    return to


def table() -> str:
    """Markdown: an event a row, a state a column, in each cell where it leads."""
    lines = ["| Event | " + " | ".join(state.value for state in State) + " |", "|---" * (len(State) + 1) + "|"]
    for event in Event:
        cells = (" or ".join(to.value for to in TRANSITIONS.get((state, event), ())) for state in State)
        lines.append(f"| {event.value} {event.name.lower()} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
