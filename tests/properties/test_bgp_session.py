"""Sessions under any order of events: nothing raises, invariants hold, two of them end up with one connection."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.bgp.core.paths import Attributes, EndOfRib, Family, Reach, Unreach
from services.bgp.core.session import actions as act
from services.bgp.core.session.connection import Timing
from services.bgp.core.session.session import Session
from services.bgp.core.session.states import State
from services.bgp.core.wire.capabilities import Capabilities
from services.bgp.core.wire.encode import encode_change, encode_end_of_rib
from services.bgp.core.wire.errors import Cease, Notification, administrative
from services.bgp.core.wire.framing import KEEPALIVE
from services.bgp.core.wire.open import Open, encode_open
from tests.properties.bgp_messages import mutated
from tests.properties.bgp_pair import Pair
from tests.properties.bgp_pair import settings as peer

V4 = Family.IPV4


def check_pair(pair: Pair) -> None:
    """What holds after every step, on both sides."""
    for end in pair.ends:
        connections = list(end.session._connections.values())
        states = [connection.state for connection in connections]
        assert len(connections) <= 3
        assert states.count(State.ESTABLISHED) <= 1
        assert states.count(State.ESTABLISHED) + states.count(State.OPEN_CONFIRM) <= 1, "two have exchanged OPENs"
        assert State.IDLE not in states
        assert sum(not connection.incoming for connection in connections) <= 1
        status = end.session.status
        assert status.state is end.session.state
        assert (status.negotiated is None) == (status.state is not State.ESTABLISHED)
        if status.state in (State.IDLE, State.CONNECT) and end.session._running:
            assert end.session.deadline() is not None, "nothing would ever happen again"


def disturb(pair: Pair, random: Random, rounds: int) -> None:
    """What networks, administrators and time do."""
    for _ in range(rounds):
        choices = pair.choices()
        end = random.randrange(2)
        session = pair.session(end)
        dice = random.random()
        if choices and dice < 0.62:
            pair.play(random.choice(choices), random.choice((None, None, 1, 18, 20)))
        elif dice < 0.68 and pair.pipes:
            pair.cut(random.choice(pair.pipes))
        elif dice < 0.73 and any(pipe.fresh for pipe in pair.pipes):
            pair.refuse(next(pipe for pipe in pair.pipes if pipe.fresh))
        elif dice < 0.76:
            pair.do(end, session.reset(pair.now, hard=random.random() < 0.3))
        elif dice < 0.78:
            reason = administrative(random.choice(list(Cease)), "any")
            pair.do(end, session.stop(pair.now, reason))
        elif dice < 0.80:
            pair.do(end, session.update(peer(end, hold_time_s=random.choice((9, 90)), passive=False), pair.now))
        elif dice < 0.83:
            attributes = Attributes(next_hop=b"\x0a\0\0\1", local_pref=1)
            if session.negotiated is not None:
                change = Reach(V4, attributes, [bytes((8, random.randrange(1, 100)))])
                update = encode_change(change, session.negotiated.context)
                pair.do(end, session.send([*update, encode_end_of_rib(V4)], pair.now))
        elif dice < 0.86 and pair.pipes:
            # Something on the way between them writes into the stream.
            queue = random.choice(pair.pipes).queues[end]
            if queue and queue[0] is not None:
                queue[0] = mutated(queue[0], random, [KEEPALIVE])
        else:
            pair.advance(random.choice((0.01, 0.1, 1, 3, 10, 100)))
        pair.do(end, session.start(pair.now))


@pytest.mark.parametrize("passive", [None, 0, 1])
@given(seed=st.integers(0, 2**32), rounds=st.integers(0, 120), ids=st.sampled_from([(1, 2), (2, 1)]))
def test_two_sessions_end_up_with_one_connection(
    passive: int | None, seed: int, rounds: int, ids: tuple[int, int]
) -> None:
    """After any trouble, on a good network: both established, on the same connection, nothing left over."""
    random = Random(seed)
    sides = [peer(end, passive=passive == end) for end in (0, 1)]
    pair = Pair(*sides, seed=seed, router_ids=ids)
    pair.check = lambda: check_pair(pair)
    pair.start()
    disturb(pair, random, rounds)
    for end in (0, 1):
        pair.do(end, pair.session(end).start(pair.now))
        pair.do(end, pair.session(end).update(sides[end], pair.now))
    pair.settle(500)
    [pipe] = pair.pipes
    for end in (0, 1):
        session = pair.session(end)
        [number] = session._connections
        assert number == pipe.numbers[end]
        pair.do(end, session.send([encode_end_of_rib(V4)], pair.now))
    established = [end.session.status.counters.established for end in pair.ends]
    pair.run(600)
    assert [end.session.status.counters.established for end in pair.ends] == established, "it stays up"


@pytest.mark.hunt
@settings(max_examples=20000)
@given(seed=st.integers(0, 2**48))
def test_two_sessions_end_up_with_one_connection_many_times(seed: int) -> None:
    random = Random(seed)
    pair = Pair(seed=seed, router_ids=random.choice(((1, 2), (2, 1))))
    pair.check = lambda: check_pair(pair)
    pair.start()
    disturb(pair, random, random.randrange(300))
    for end in (0, 1):
        pair.do(end, pair.session(end).start(pair.now))
    pair.settle(500)


GOOD = (
    encode_open(Open(64512, 90, 2, Capabilities(families=((1, 1),), as4=64512))),
    encode_open(Open(64512, 0, 2, None)),
    KEEPALIVE,
    encode_end_of_rib(V4),
    Notification(6, 4).encode(),
    Notification(2, 4).encode(),
    bytes.fromhex("ff" * 16 + "00170500010001"),
)


@given(seed=st.integers(0, 2**48), delay=st.sampled_from([0, 3]), passive=st.booleans())
def test_nothing_that_a_peer_does_raises(seed: int, delay: float, passive: bool) -> None:
    """Any calls in any order, good and broken messages; timers always lead on; what is told makes sense."""
    random = Random(seed)
    now, up = 0.0, False
    session = Session(peer(0, delay_open_s=delay, passive=passive), 1, random, now, timing=Timing(collision_s=1))
    known = [0]

    def do(actions: list[act.Action]) -> None:
        nonlocal up
        for action in actions:
            match action:
                case act.Connect(number):
                    known.append(number)
                case act.Established():
                    assert not up
                    up = True
                case act.Down():
                    assert up
                    up = False
                case act.Received(changes):
                    assert up
                    for change in changes:
                        assert isinstance(change, EndOfRib) or (
                            isinstance(change, (Reach, Unreach)) and change.prefixes and change.family in Family
                        )
                case _:
                    pass
        assert up == (session.state is State.ESTABLISHED)

    do(session.start(now))
    for _ in range(60):
        number = random.choice(known[-3:])
        match random.randrange(10):
            case 0:
                number, actions = session.accepted(now)
                known.append(number)
                do(actions)
            case 1 | 2:
                do(session.connected(number, now))
            case 3:
                do(session.closed(number, now, "gone"))
            case 4:
                at = session.deadline()
                if at is not None:
                    now = max(now, at)
                    do(session.tick(now))
            case 5:
                now += random.choice((0, 0.5, 2, 5, 50))
                do(session.tick(now))
            case 6:
                do(session.received(number, mutated(random.choice(GOOD), random, GOOD), now))
            case _:
                do(session.received(number, b"".join(random.choices(GOOD, k=random.randrange(1, 4))), now))
    for _ in range(200):  # time alone: each timer that fires is followed by a later one, or by none
        at = session.deadline()
        if at is None:
            break
        now = max(now, at)
        do(session.tick(now))
        do(session.tick(now))  # another connection's timer, or the attempt that a timer made due
        later = session.deadline()
        assert later is None or later > now
