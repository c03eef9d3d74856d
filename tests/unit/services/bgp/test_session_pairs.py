"""Two sessions wired to each other: collision of connections (RFC 4271 section 6.8), graceful restart (RFC 4724,
8538, 9494)."""

from __future__ import annotations

from itertools import permutations

import pytest

from services.bgp.core.paths import Attributes, Family, Reach
from services.bgp.core.session import actions as act
from services.bgp.core.session.negotiation import Restart
from services.bgp.core.session.states import State
from services.bgp.core.wire.encode import encode_change, encode_end_of_rib
from services.bgp.core.wire.errors import Cease, administrative
from tests.properties.bgp_pair import Pair, settings

V4 = Family.IPV4


def up(pair: Pair) -> Pair:
    pair.start()
    pair.settle()
    return pair


def connecting_both() -> Pair:
    """Both have just begun a connection; neither has been accepted."""
    pair = Pair()
    pair.start()
    while len(pair.pipes) < 2:
        pair.advance(0.01)
    return pair


# --- collision ---


def colliding(router_ids: tuple[int, int] = (1, 2), asns: tuple[int, int] = (64512, 64512)) -> Pair:
    """Two connections are accepted, no OPEN has arrived."""
    pair = Pair(
        settings(0, asn=asns[0], peer_asn=asns[1]), settings(1, asn=asns[1], peer_asn=asns[0]), router_ids=router_ids
    )
    pair.start()
    while len(pair.pipes) < 2:
        pair.advance(0.01)
    for choice in pair.choices():
        assert choice[0] == "accept"
        pair.play(choice)
    return pair


def deliver_all(pair: Pair) -> None:
    while choices := pair.choices():
        pair.play(choices[0])


ORDERS = list(permutations(range(4)))


@pytest.mark.parametrize("router_ids", [(1, 2), (2, 1), (0xC0A80001, 0x0A000001)])
@pytest.mark.parametrize("order", ORDERS)
def test_of_two_connections_that_of_the_higher_identifier_stays(
    router_ids: tuple[int, int], order: tuple[int, ...]
) -> None:
    """Four OPENs are on their way and arrive in any order before any KEEPALIVE does."""
    pair = colliding(router_ids)
    opens = pair.choices()
    assert len(opens) == 4
    for index in order:
        _, pipe, end = opens[index]
        if pipe.queues[end] and pipe.queues[end][0] is not None:
            pair.play(opens[index])
    deliver_all(pair)
    assert all(end.up for end in pair.ends)
    [pipe] = pair.pipes
    assert pipe.opener == (0 if router_ids[0] > router_ids[1] else 1)
    assert [pair.session(end).status.counters.established for end in (0, 1)] == [1, 1], "no flap"
    for end in pair.ends:
        for action in end.happened:
            assert not isinstance(action, act.Failed) or action.received is None or action.received.subcode == 7


@pytest.mark.parametrize("router_ids", [(1, 2), (2, 1)])
def test_what_is_established_stays(router_ids: tuple[int, int]) -> None:
    """One connection comes up at both ends before the OPENs of the other arrive."""
    pair = colliding(router_ids)
    first = pair.pipes[0]
    while choices := [choice for choice in pair.choices() if choice[1] is first]:
        pair.play(choices[0])
    assert all(end.up for end in pair.ends)
    deliver_all(pair)
    assert pair.pipes == [first]
    assert [pair.session(end).status.counters.established for end in (0, 1)] == [1, 1]


def test_equal_identifiers_in_two_ases_are_decided_by_the_as_number() -> None:
    """RFC 6286 section 2.3."""
    pair = colliding((7, 7), (65000, 65001))
    for choice in pair.choices():
        if choice[1].queues[choice[2]]:
            pair.play(choice)
    deliver_all(pair)
    assert [pipe.opener for pipe in pair.pipes] == [1]
    assert all(end.up for end in pair.ends)


def test_an_attempt_that_is_not_needed_any_more_is_given_up() -> None:
    pair = connecting_both()
    first = pair.pipes[0]
    pair.play(("accept", first, 1 - first.opener))
    while True:
        open_now = [choice for choice in pair.choices() if choice[1] is first]
        if not open_now:
            break
        pair.play(open_now[0])
    assert all(end.up for end in pair.ends)
    while choices := pair.choices():
        pair.play(choices[0])
    assert len(pair.pipes) == 1
    assert [end.session.status.counters.collisions for end in pair.ends] == [0, 0]


@pytest.mark.parametrize("passive", [0, 1])
def test_a_peer_that_lost_power_is_taken_back_with_graceful_restart(passive: int) -> None:
    """RFC 4724 section 5: a new connection of a peer that is established means the old one is dead; routes are kept."""
    pair = up(Pair(settings(0, passive=passive == 0), settings(1, passive=passive == 1)))
    pair.advance(20)
    survivor = pair.ends[0]
    pair.replaced(1, Pair(settings(0), settings(1))).settle(30)
    assert downs(pair, 0) == [(V4,)]
    assert survivor.stale == {V4}


@pytest.mark.parametrize("passive", [0, 1])
def test_a_peer_that_lost_power_without_graceful_restart(passive: int) -> None:
    """RFC 4271 section 6.8: the older connection stays until the hold timer finds out; unless the peer began that
    too, and would not begin another one if it still had it."""
    changes = {"restart_time_s": None}
    pair = up(Pair(settings(0, passive=passive == 0, **changes), settings(1, passive=passive == 1, **changes)))
    pair.advance(20)
    pair.replaced(1, Pair(settings(0, **changes), settings(1, **changes))).settle(200)
    [down] = [action for action in pair.ends[0].happened if isinstance(action, act.Down)]
    assert ("hold time" in down.reason) == (passive == 1)
    assert down.kept == ()


# --- graceful restart ---


def cut(pair: Pair) -> None:
    [pipe] = pair.pipes
    pair.cut(pipe)


def downs(pair: Pair, end: int) -> list[tuple[Family, ...]]:
    return [action.kept for action in pair.ends[end].happened if isinstance(action, act.Down)]


def test_routes_stay_when_the_connection_goes_and_until_end_of_rib() -> None:
    """RFC 4724 section 4.2."""
    pair = up(Pair())
    cut(pair)
    assert downs(pair, 0) == [(V4,)]
    pair.settle(60)
    assert pair.ends[0].stale == {V4}
    attributes = Attributes(next_hop=b"\x0a\0\0\1", local_pref=1)
    announced = encode_change(Reach(V4, attributes, [b"\x08\x0a"]), pair.session(1).negotiated.context)  # type: ignore[union-attr]
    pair.do(1, pair.session(1).send([*announced, encode_end_of_rib(V4)], pair.now))
    pair.settle()
    assert pair.ends[0].stale == set()
    last = [type(action).__name__ for action in pair.ends[0].happened][-2:]
    assert last == ["Received", "SweepStale"], "what was announced again counts before the rest goes"


def test_routes_go_when_the_peer_does_not_come_back() -> None:
    pair = up(Pair(settings(0), settings(1, restart_time_s=30)))
    pair.pipes.clear()
    for end in (0, 1):
        [number] = list(pair.session(end)._connections)
        pair.do(end, pair.session(end).closed(number, pair.now))
    pair.session(1).abandon(pair.now)
    start = pair.now
    while pair.ends[0].stale:
        pair.advance(1)
        for pipe in list(pair.pipes):
            pair.refuse(pipe)
        assert pair.now - start < 32
    assert pair.now - start >= 30
    assert "in time" in pair.ends[0].take(act.SweepStale)[0].reason  # type: ignore[attr-defined]


def test_routes_go_when_the_end_of_rib_does_not_come() -> None:
    pair = up(Pair())
    cut(pair)
    pair.settle(60)
    pair.run(340)
    assert pair.ends[0].stale == {V4}
    pair.run(30)
    assert pair.ends[0].stale == set()


def test_routes_go_at_once_when_the_peer_did_not_keep_its_own() -> None:
    """Forwarding State not set (RFC 4724 section 4.2)."""
    pair = up(Pair())
    pair.session(1).restart = Restart(restarting=True, preserved=frozenset())
    cut(pair)
    pair.settle(60)
    assert pair.ends[0].stale == set()
    assert pair.session(0).negotiated is not None
    assert pair.session(0).negotiated.peer_restarting
    assert pair.session(1).restart.preserved == frozenset(Family), "from now on there are routes to be found"


def test_going_twice_removes_what_was_stale() -> None:
    """RFC 4724 section 4.2, consecutive restarts."""
    pair = up(Pair())
    cut(pair)
    pair.settle(60)
    cut(pair)
    last = [type(action).__name__ for action in pair.ends[0].happened][-2:]
    assert last == ["SweepStale", "Down"]


def test_without_graceful_restart_nothing_is_kept() -> None:
    for settings_of in ((None, 120), (120, None)):
        pair = up(Pair(settings(0, restart_time_s=settings_of[0]), settings(1, restart_time_s=settings_of[1])))
        cut(pair)
        assert (downs(pair, 0), downs(pair, 1)) == ([()], [()])


@pytest.mark.parametrize(
    ("subcode", "kept"), [(Cease.ADMINISTRATIVE_RESET, True), (Cease.ADMINISTRATIVE_SHUTDOWN, False)]
)
def test_notifications_keep_routes_unless_the_reset_is_hard(subcode: Cease, kept: bool) -> None:
    """RFC 8538: a shutdown is sent as a hard reset, a reset keeps the routes on both sides."""
    pair = up(Pair())
    if subcode is Cease.ADMINISTRATIVE_RESET:
        pair.do(0, pair.session(0).reset(pair.now))
    else:
        pair.do(0, pair.session(0).stop(pair.now, administrative(subcode, "bye")))
    while choices := pair.choices():
        pair.play(choices[0])
    assert downs(pair, 1) == [(V4,) if kept else ()]
    assert downs(pair, 0) == [(V4,) if kept else ()]
    if not kept:
        [received] = [action.received for action in pair.ends[1].happened if isinstance(action, act.Down)]
        assert received is not None
        assert received.hard_reset
        assert received.communication == "bye"


def test_the_hold_timer_keeps_routes_only_with_rfc_8538() -> None:
    for told in (True, False):
        pair = up(Pair())
        first = pair.session(0)
        if not told:
            [connection] = first._connections.values()
            assert connection.negotiated is not None
            object.__setattr__(connection.negotiated, "notifications_kept", False)
        pair.pipes[0].queues[0].clear()
        while not downs(pair, 0):
            pair.advance(1)
            for pipe in pair.pipes:
                pipe.queues[0].clear()
        assert downs(pair, 0)[0] == ((V4,) if told else ())


def test_long_lived_graceful_restart() -> None:
    """RFC 9494: after the restart time the routes are the last choice for a long time, then they go."""
    pair = up(
        Pair(
            settings(0, long_lived_time_s=1), settings(1, restart_time_s=10, long_lived_time_s=1000), restart=Restart()
        )
    )
    [pipe] = pair.pipes
    pair.cut(pipe)
    start = pair.now

    def dark(seconds: float) -> None:
        for _ in range(int(seconds)):
            pair.advance(1)
            for pipe in list(pair.pipes):
                pair.refuse(pipe)

    dark(9)
    assert pair.ends[0].take(act.LongLivedStale) == []
    dark(3)
    assert pair.ends[0].take(act.LongLivedStale) == [act.LongLivedStale(V4)]
    assert pair.ends[0].stale == {V4}
    dark(990)
    assert pair.ends[0].stale == {V4}
    dark(20)
    assert pair.ends[0].stale == set()
    assert 1010 <= pair.now - start < 1030


def test_after_a_process_was_replaced_nothing_was_lost() -> None:
    """`abandon` on one side, a new session in its place that says it is restarting: no route goes in between."""
    pair = up(Pair())
    actions = pair.session(1).abandon(pair.now)
    pair.ends[1].up = False
    pair.do(1, actions)
    deliver_all(pair)
    assert pair.ends[0].stale == {V4}
    fresh = pair.replaced(1, Pair(restart=Restart(restarting=True)))
    fresh.settle(30)
    assert pair.ends[0].stale == {V4}
    fresh.do(1, fresh.session(1).send([encode_end_of_rib(V4)], fresh.now))
    fresh.settle()
    assert pair.ends[0].stale == set()
    assert fresh.session(0).state is State.ESTABLISHED
