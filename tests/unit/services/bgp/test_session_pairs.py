"""Two sessions wired to each other: collision of connections (RFC 4271 section 6.8), graceful restart (RFC 4724,
8538, 9494)."""

from __future__ import annotations

from itertools import permutations
from random import Random

import pytest

from services.bgp.core.paths import Family
from services.bgp.core.session import actions as act
from services.bgp.core.session.negotiation import Restart
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


def one_is_left(pair: Pair) -> None:
    """Both are up, on the same connection, at once and without having lost one that was up; the other goes soon."""
    deliver_all(pair)
    assert all(end.up for end in pair.ends)
    pair.run(3)
    deliver_all(pair)
    assert len(pair.pipes) == 1
    assert [pair.session(end).status.counters.established for end in (0, 1)] == [1, 1], "no flap"
    for end in pair.ends:
        assert end.up
        for action in end.happened:
            assert not isinstance(action, act.Failed) or action.received is None or action.received.subcode == 7


@pytest.mark.parametrize("router_ids", [(1, 2), (2, 1), (0xC0A80001, 0x0A000001)])
@pytest.mark.parametrize("order", ORDERS)
def test_of_two_connections_one_stays(router_ids: tuple[int, int], order: tuple[int, ...]) -> None:
    """Four OPENs are on their way and arrive in any order before any KEEPALIVE does."""
    pair = colliding(router_ids)
    opens = pair.choices()
    assert len(opens) == 4
    for index in order:
        _, pipe, end = opens[index]
        if pipe.queues[end] and pipe.queues[end][0] is not None:
            pair.play(opens[index])
    one_is_left(pair)


@pytest.mark.parametrize("seed", range(60))
def test_of_two_connections_one_stays_in_any_order_of_messages(seed: int) -> None:
    """One side may be established while the other is not yet, and the RFC's two rules are at odds."""
    pair = colliding((1, 2) if seed % 2 else (2, 1))
    random = Random(seed)
    while choices := pair.choices():
        pair.play(random.choice(choices))
    one_is_left(pair)


@pytest.mark.parametrize("router_ids", [(1, 2), (2, 1)])
def test_what_is_established_stays(router_ids: tuple[int, int]) -> None:
    """One connection comes up at both ends before the OPENs of the other arrive."""
    pair = colliding(router_ids)
    first = pair.pipes[0]
    while choices := [choice for choice in pair.choices() if choice[1] is first]:
        pair.play(choices[0])
    one_is_left(pair)
    assert pair.pipes == [first]


def test_equal_identifiers_in_two_ases_are_decided_by_the_as_number() -> None:
    """RFC 6286 section 2.3: of the newer ones, that of the lower AS goes at once."""
    pair = colliding((7, 7), (65000, 65001))
    for choice in pair.choices():
        if choice[1].queues[choice[2]]:
            pair.play(choice)
    refused = {pipe.opener for pipe in pair.pipes if None in pipe.numbers}
    assert refused <= {0}
    one_is_left(pair)


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
    pair.replaced(1, Pair(settings(0), settings(1))).settle(30)
    assert pair.ends[0].kept == [(V4,)]


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


def test_routes_stay_when_the_connection_goes() -> None:
    """RFC 4724 section 4.2; and the peer says that it kept its own."""
    pair = up(Pair())
    cut(pair)
    assert (pair.ends[0].kept, pair.ends[1].kept) == ([(V4,)], [(V4,)])
    pair.settle(60)
    negotiated = pair.session(0).negotiated
    assert negotiated is not None
    assert negotiated.forwarding == {V4}
    assert not negotiated.peer_restarting


def test_nothing_is_kept_for_no_time() -> None:
    """A restart time of 0; with RFC 9494 the long-lived time begins at once."""
    for long_s in (None, 0, 1000):  # 0: it only knows of it
        theirs = settings(1, restart_time_s=0, long_lived_time_s=long_s)
        pair = up(Pair(settings(0, long_lived_time_s=1), theirs))
        negotiated = pair.session(0).negotiated
        assert negotiated is not None
        assert negotiated.long_lived == (((V4, 1000),) if long_s else ())
        assert negotiated.knows_long_lived == (long_s is not None)
        cut(pair)
        assert pair.ends[0].kept == [(V4,) if long_s else ()]


def test_a_peer_that_did_not_keep_its_routes_says_so() -> None:
    """Forwarding State not set (RFC 4724 section 4.2)."""
    pair = up(Pair())
    pair.session(1).restart = Restart(restarting=True, preserved=frozenset())
    cut(pair)
    pair.settle(60)
    negotiated = pair.session(0).negotiated
    assert negotiated is not None
    assert negotiated.peer_restarting
    assert negotiated.forwarding == frozenset()
    assert pair.session(1).restart.preserved == frozenset(Family), "from now on there are routes to be found"


def test_without_graceful_restart_nothing_is_kept() -> None:
    for settings_of in ((None, 120), (120, None)):
        pair = up(Pair(settings(0, restart_time_s=settings_of[0]), settings(1, restart_time_s=settings_of[1])))
        cut(pair)
        assert (pair.ends[0].kept, pair.ends[1].kept) == ([()], [()])


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
    assert pair.ends[1].kept == [(V4,) if kept else ()]
    assert pair.ends[0].kept == [(V4,) if kept else ()]
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
        while not pair.ends[0].kept:
            pair.advance(1)
            for pipe in pair.pipes:
                pipe.queues[0].clear()
        assert pair.ends[0].kept[0] == ((V4,) if told else ())


def test_after_a_process_was_replaced_nothing_was_lost() -> None:
    """`abandon` on one side, a new session in its place that says it is restarting: no route goes in between."""
    pair = up(Pair())
    actions = pair.session(1).abandon(pair.now)
    pair.ends[1].up = False
    pair.do(1, actions)
    deliver_all(pair)
    assert pair.ends[0].kept == [(V4,)]
    fresh = pair.replaced(1, Pair(restart=Restart(restarting=True)))
    fresh.settle(30)
    negotiated = fresh.session(0).negotiated
    assert negotiated is not None
    assert negotiated.peer_restarting
    assert negotiated.forwarding == {V4}
