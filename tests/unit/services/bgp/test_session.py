"""One session: states, timers, negotiation, errors; RFC 4271 sections 6 and 8. The peer is played by hand."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from random import Random
from typing import TypeVar

import pytest

from services.bgp.core.paths import EndOfRib, Family
from services.bgp.core.session import actions as act
from services.bgp.core.session.connection import Timing
from services.bgp.core.session.session import Session
from services.bgp.core.session.states import State
from services.bgp.core.settings import PeerSettings
from services.bgp.core.wire.capabilities import Capabilities
from services.bgp.core.wire.codes import MARKER, MessageType, RefreshSubtype
from services.bgp.core.wire.encode import encode_end_of_rib
from services.bgp.core.wire.errors import Notification, administrative
from services.bgp.core.wire.framing import KEEPALIVE, MessageReader, frame
from services.bgp.core.wire.open import Open, decode_open, encode_open
from tests.properties.bgp_pair import Pair, settings

A = TypeVar("A", bound=act.Action)
PEER_OPEN = Open(64512, 90, 2, Capabilities(families=((1, 1),), route_refresh=True, enhanced_refresh=True, as4=64512))


def only(actions: list[act.Action], kind: type[A]) -> A:
    [found] = [action for action in actions if isinstance(action, kind)]
    return found


def sent(actions: list[act.Action]) -> list[tuple[MessageType, bytes]]:
    reader, found = MessageReader(65535), []
    for action in actions:
        if isinstance(action, act.Send):
            reader.feed(action.data)
    while (message := reader.next()) is not None:
        found.append(message)
    return found


def kinds(actions: list[act.Action]) -> list[str]:
    return [kind.name for kind, _ in sent(actions)]


def told(actions: list[act.Action]) -> tuple[int, int]:
    [(kind, body)] = [message for message in sent(actions) if message[0] is MessageType.NOTIFICATION]
    assert kind is MessageType.NOTIFICATION
    return body[0], body[1]


def session(peer: PeerSettings | None = None, **timing: float) -> Session:
    made = Session(peer or settings(0), 1, Random(1), 0.0, timing=Timing(**timing))  # type: ignore[arg-type]
    made.start(0)
    return made


def open_sent(made: Session, now: float = 10) -> int:
    connection = only(made.tick(now), act.Connect).connection
    assert kinds(made.connected(connection, now)) == ["OPEN"]
    return connection


def established(made: Session, theirs: Open = PEER_OPEN, now: float = 10) -> int:
    connection = open_sent(made, now)
    assert kinds(made.received(connection, encode_open(theirs), now)) == ["KEEPALIVE"]
    assert only(made.received(connection, KEEPALIVE, now), act.Established).connection == connection
    return connection


# --- the way up ---


def test_states_on_the_way_up() -> None:
    made = Session(settings(0), 1, Random(1), 0.0)
    assert made.status.state is State.IDLE
    assert made.deadline() is None
    assert made.start(5) == []
    assert (made.status.state, made.status.since) == (State.ACTIVE, 5)
    at = made.deadline()
    assert at is not None
    assert 5 + 1.5 <= at <= 5 + 2, "Calico's connect delay, with jitter of RFC 4271 section 10"
    connection = only(made.tick(at), act.Connect).connection
    assert made.state is State.CONNECT
    actions = made.connected(connection, 8)
    assert made.state is State.OPEN_SENT
    [(kind, body)] = sent(actions)
    assert kind is MessageType.OPEN
    ours = decode_open(body)
    assert (ours.asn, ours.hold_time_s, ours.router_id) == (64512, 90, 1)
    made.received(connection, encode_open(PEER_OPEN), 8)
    assert made.state is State.OPEN_CONFIRM
    made.received(connection, KEEPALIVE, 9)
    status = made.status
    assert (status.state, status.since, status.counters.established) == (State.ESTABLISHED, 9, 1)
    assert (status.counters.received["OPEN"], status.counters.sent["KEEPALIVE"]) == (1, 1)
    assert made.start(10) == [], "starting twice changes nothing"


def test_passive_peers_only_listen() -> None:
    made = session(settings(0, passive=True))
    assert made.deadline() is None
    assert made.state is State.ACTIVE
    connection, actions = made.accepted(1)
    assert kinds(actions) == ["OPEN"]
    made.received(connection, encode_open(PEER_OPEN) + KEEPALIVE, 1)
    assert made.state is State.ESTABLISHED


def test_idle_refuses_connections() -> None:
    """RFC 4271 section 8.2.2; with words, as RFC 4486 has them."""
    made = Session(settings(0), 1, Random(1), 0.0)
    connection, actions = made.accepted(1)
    assert told(actions) == (6, 5)
    assert actions[-1] == act.Close(connection)
    assert made.received(connection, KEEPALIVE, 1) == []


def test_failed_attempts_are_repeated_while_we_listen() -> None:
    made = session()
    first = only(made.tick(10), act.Connect).connection
    assert "refused" in only(made.closed(first, 11, "refused"), act.Failed).reason
    assert made.state is State.ACTIVE
    at = made.deadline()
    assert at is not None
    assert 11 + 3.75 <= at <= 11 + 5
    second = only(made.tick(at), act.Connect).connection
    late = made.tick(at + 5)
    assert act.Close(second) in late, "ConnectRetryTimer: the attempt took too long"
    assert only(late, act.Connect).connection not in (first, second)
    assert made.accepted(at + 6)[1], "it listens all the time"


def test_delay_open() -> None:
    """RFC 4271 section 8.1.1: our OPEN waits, or goes out with the peer's."""
    for peer_first in (False, True):
        made = session(settings(0, delay_open_s=3))
        connection = only(made.tick(10), act.Connect).connection
        assert made.connected(connection, 10) == []
        if peer_first:
            actions = made.received(connection, encode_open(PEER_OPEN), 11)
            assert kinds(actions) == ["OPEN", "KEEPALIVE"]
            assert made.state is State.OPEN_CONFIRM
        else:
            assert made.deadline() == 13
            assert kinds(made.tick(13)) == ["OPEN"]
            assert made.state is State.OPEN_SENT


# --- timers ---


def test_peer_silent_for_hold_time_goes_down() -> None:
    made = session()
    connection = established(made)
    made.received(connection, encode_end_of_rib(Family.IPV4), 50)
    for now in (70, 100, 130):
        assert kinds(made.tick(now)) == ["KEEPALIVE"]
    actions = made.tick(140)
    assert told(actions) == (4, 0)
    assert "hold time" in only(actions, act.Down).reason
    assert made.state is State.ACTIVE


def test_keepalives_are_a_third_of_the_hold_time_with_jitter() -> None:
    made = session()
    connection = established(made, replace(PEER_OPEN, hold_time_s=30))
    negotiated = made.negotiated
    assert negotiated is not None
    assert (negotiated.hold_time_s, negotiated.keepalive_s) == (30, 10)
    at = made.deadline()
    assert at is not None
    assert 10 + 7.5 <= at <= 10 + 10
    assert kinds(made.tick(at)) == ["KEEPALIVE"]
    made.send([encode_end_of_rib(Family.IPV4)], at + 5)
    later = made.deadline()
    assert later is not None
    assert later >= at + 5 + 7.5, "an UPDATE is a sign of life too"
    assert connection


def test_keepalive_time_of_the_settings() -> None:
    """Never more than half of the hold time, so that one may be lost."""
    for asked, expected in ((20, 20), (80, 45)):
        made = session(settings(0, keepalive_time_s=asked))
        established(made)
        assert made.negotiated is not None
        assert made.negotiated.keepalive_s == expected


def test_hold_time_of_zero_has_no_timers() -> None:
    made = session()
    established(made, replace(PEER_OPEN, hold_time_s=0))
    assert made.deadline() is None


def test_a_peer_that_connects_and_says_nothing_is_given_up() -> None:
    made = session()
    open_sent(made)
    actions = made.tick(10 + 240)
    assert told(actions) == (4, 0)


def test_the_send_hold_timer_ends_a_session_that_takes_nothing() -> None:
    """RFC 9687."""
    made = session()
    established(made)
    assert told(made.send_stalled(500)) == (8, 0)
    assert made.send_stalled(500) == []


# --- what is wrong in an OPEN ---


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        (replace(PEER_OPEN, asn=65000, capabilities=None), (2, 2)),
        (replace(PEER_OPEN, router_id=1), (2, 3)),
        (replace(PEER_OPEN, capabilities=Capabilities(families=((2, 1),), as4=64512)), (2, 7)),
        (replace(PEER_OPEN, hold_time_s=2), (2, 6)),
    ],
)
def test_open_that_does_not_fit(theirs: Open, expected: tuple[int, int]) -> None:
    made = session()
    connection = open_sent(made)
    actions = made.received(connection, encode_open(theirs), 10)
    assert told(actions) == expected
    assert actions[-1] == only(actions, act.Failed)
    assert made.state is State.IDLE, "a wait, so that nobody is kept busy"
    assert made.status.last_sent
    assert made.status.next_attempt is not None


def test_unsupported_capability_says_what_is_wanted() -> None:
    """RFC 5492 section 5."""
    made = session(settings(0, families=(Family.IPV6,)))
    connection = open_sent(made)
    actions = made.received(connection, encode_open(PEER_OPEN), 10)
    assert sent(actions)[0][1] == bytes.fromhex("0207010400020001")
    assert "IPV6" in only(actions, act.Failed).reason


def test_any_as_number_is_taken_when_none_is_configured() -> None:
    made = session(settings(0, peer_asn=0))
    established(made, replace(PEER_OPEN, asn=4200000000, capabilities=Capabilities(as4=4200000000)))
    assert made.negotiated is not None
    assert not made.negotiated.internal


def test_the_same_router_id_in_another_as_is_allowed() -> None:
    """RFC 6286: identifiers are unique within an AS."""
    made = session(settings(0, peer_asn=65000))
    established(made, replace(PEER_OPEN, asn=65000, router_id=1, capabilities=None))


def test_errors_make_it_wait_longer_each_time() -> None:
    """Calico's error wait: 5 s, doubled up to 30; forgotten after a while."""
    made = session()
    now, waits = 10.0, []
    for _ in range(5):
        connection = open_sent(made, now)
        made.received(connection, encode_open(replace(PEER_OPEN, asn=1, capabilities=None)), now)
        until = made.deadline()
        assert until is not None
        waits.append(until - now)
        now = until
    for wait, full in zip(waits, (5, 10, 20, 30, 30), strict=True):
        assert full * 0.75 <= wait <= full
    now += 1000
    connection = open_sent(made, now)
    made.received(connection, encode_open(replace(PEER_OPEN, asn=1, capabilities=None)), now)
    assert (made.deadline() or 0) - now <= 5


def test_a_peer_that_refuses_optional_parameters_is_asked_without() -> None:
    """RFC 5492 section 3."""
    made = session()
    connection = open_sent(made)
    made.received(connection, Notification(2, 4).encode(), 10)
    actions = made.tick(20)
    again = only(actions, act.Connect).connection
    [(_, body)] = sent(made.connected(again, 20))
    assert decode_open(body).capabilities is None
    made.received(again, encode_open(Open(64512, 90, 2, None)) + KEEPALIVE, 20)
    assert made.negotiated is not None
    assert made.negotiated.families == (Family.IPV4,)
    assert not made.negotiated.context.as4


def test_without_capabilities_there_is_no_ipv6_session() -> None:
    made = session(settings(0, families=(Family.IPV6,)))
    connection = open_sent(made)
    made.received(connection, Notification(2, 4).encode(), 10)
    assert made.state is State.IDLE


def test_an_error_on_one_of_two_connections_does_not_stop_the_other() -> None:
    """Nor does it make us idle, which would refuse what the peer begins next."""
    made = session()
    first = open_sent(made)
    second, _ = made.accepted(10)
    assert told(made.received(first, encode_open(replace(PEER_OPEN, asn=1, capabilities=None)), 10)) == (2, 2)
    assert made.state is State.OPEN_SENT
    assert made.status.next_attempt is not None
    assert kinds(made.accepted(11)[1]) == ["NOTIFICATION", "OPEN"], "the newer of two that the peer began"
    assert made.received(second, KEEPALIVE, 11) == []


def two_connections(router_id: int) -> tuple[Session, int, int]:
    """Ours is in OpenConfirm, then the peer's OPEN comes on the one that it began; its identifier is 2."""
    made = Session(settings(0), router_id, Random(1), 0.0)
    made.start(0)
    ours = open_sent(made)
    theirs, _ = made.accepted(10)
    made.received(ours, encode_open(PEER_OPEN), 10)
    return made, ours, theirs


def test_the_connection_of_the_lower_identifier_goes_at_once() -> None:
    """RFC 4271 section 6.8."""
    made, ours, theirs = two_connections(router_id=3)
    assert told(made.received(theirs, encode_open(PEER_OPEN), 10)) == (6, 7)
    assert only(made.received(ours, KEEPALIVE, 10), act.Established)
    assert made.status.counters.collisions == 1


def test_a_peer_that_keeps_to_the_letter_gives_the_other_one_up() -> None:
    """It is in OpenConfirm too, and closes what the lower identifier began: we go on with the other at once."""
    made, ours, theirs = two_connections(router_id=1)
    assert made.received(theirs, encode_open(PEER_OPEN) + KEEPALIVE, 10) == []
    actions = made.received(ours, Notification(6, 7).encode(), 10.1)
    assert kinds(actions) == ["KEEPALIVE"]
    assert only(actions, act.Established).connection == theirs


def test_when_neither_ends_the_identifier_decides() -> None:
    made, ours, theirs = two_connections(router_id=1)
    made.received(theirs, encode_open(PEER_OPEN), 10)
    assert made.deadline() == 12
    actions = made.tick(12)
    assert told(actions) == (6, 7)
    assert act.Close(ours) in actions
    assert only(made.received(theirs, KEEPALIVE, 12), act.Established)


def test_when_the_older_one_is_established_it_stays() -> None:
    made, ours, theirs = two_connections(router_id=1)
    made.received(ours, KEEPALIVE, 10)
    assert made.received(theirs, encode_open(PEER_OPEN), 10.1) == []
    actions = made.tick(12.1)
    assert told(actions) == (6, 7)
    assert act.Close(theirs) in actions
    assert made.state is State.ESTABLISHED


# --- messages at the wrong time: RFC 6608 ---


@pytest.mark.parametrize(
    "message", [KEEPALIVE, encode_end_of_rib(Family.IPV4), frame(MessageType.ROUTE_REFRESH, bytes(4))]
)
def test_a_message_before_the_open(message: bytes) -> None:
    made = session()
    connection = open_sent(made)
    actions = made.received(connection, message, 10)
    assert sent(actions)[0][1] == bytes((5, 1, message[18]))


@pytest.mark.parametrize("message", [encode_open(PEER_OPEN), encode_end_of_rib(Family.IPV4)])
def test_a_message_before_the_keepalive(message: bytes) -> None:
    made = session()
    connection = open_sent(made)
    made.received(connection, encode_open(PEER_OPEN), 10)
    assert sent(made.received(connection, message, 10))[0][1] == bytes((5, 2, message[18]))


def test_a_second_open() -> None:
    made = session()
    connection = established(made)
    actions = made.received(connection, encode_open(PEER_OPEN), 10)
    assert sent(actions)[0][1] == bytes((5, 3, 1))
    assert only(actions, act.Down)


# --- garbage, cuts, lengths ---


def test_what_came_before_garbage_counts() -> None:
    made = session()
    connection = established(made)
    actions = made.received(connection, encode_end_of_rib(Family.IPV4) + b"GET / HTTP/1.1\r\n\r\n   ", 11)
    assert only(actions, act.Received).changes == [EndOfRib(Family.IPV4)]
    assert told(actions) == (1, 1)
    assert actions.index(only(actions, act.Received)) < actions.index(only(actions, act.Down))


def test_a_length_that_is_not_allowed_is_refused_at_once() -> None:
    made = session()
    connection = established(made)
    assert told(made.received(connection, MARKER + b"\xff\xff\x02", 11)) == (1, 2)


def test_extended_messages_are_taken_when_both_said_so() -> None:
    made = session()
    connection = established(
        made, replace(PEER_OPEN, capabilities=replace(PEER_OPEN.capabilities or Capabilities(), extended_message=True))
    )
    assert made.received(connection, MARKER + b"\xff\xff\x02", 11) == []


def test_a_broken_update_ends_the_session_and_is_reported() -> None:
    made = session()
    connection = established(made)
    actions = made.received(connection, frame(MessageType.UPDATE, b"\0\2\x21\1\0\0"), 11)
    assert told(actions) == (3, 10)
    assert "prefix length 33" in made.status.last_error


def test_closed_in_the_midst_of_a_message() -> None:
    made = session()
    connection = established(made)
    made.received(connection, encode_end_of_rib(Family.IPV4)[:21], 11)
    actions = made.closed(connection, 12)
    assert "midst of a message" in only(actions, act.Down).reason
    assert not [action for action in actions if isinstance(action, act.Close)], "it is closed already"


def test_octet_by_octet_is_the_same() -> None:
    made = session()
    connection = open_sent(made)
    happened: list[act.Action] = []
    for octet in encode_open(PEER_OPEN) + KEEPALIVE + encode_end_of_rib(Family.IPV4):
        happened += made.received(connection, bytes((octet,)), 10)
    assert [type(action).__name__ for action in happened] == ["Send", "Established", "Received"]


# --- from above ---


def test_shutdown_with_words() -> None:
    made = session()
    established(made)
    actions = made.stop(20, administrative(2, "back at ten"))  # type: ignore[arg-type]
    assert told(actions) == (6, 2)
    assert "back at ten" in only(actions, act.Down).reason
    assert made.state is State.IDLE
    assert made.deadline() is None
    made.start(30)
    assert made.state is State.ACTIVE


def test_reset_comes_back() -> None:
    made = session()
    established(made)
    actions = made.reset(20)
    assert told(actions) == (6, 4)
    assert made.state is State.ACTIVE
    assert only(made.tick(25), act.Connect)


def test_abandon_says_nothing() -> None:
    """So that a peer with graceful restart keeps our routes."""
    made = session()
    connection = established(made)
    assert made.abandon(20) == [act.Close(connection)]


def test_refresh_and_its_marks() -> None:
    """RFC 2918, RFC 7313; in the order in which things came."""
    made = session()
    connection = established(made)
    marks = [frame(MessageType.ROUTE_REFRESH, bytes((0, 1, subtype, 1))) for subtype in (0, 1, 2)]
    stream = marks[0] + marks[1] + encode_end_of_rib(Family.IPV4) + marks[2]
    happened = [type(action).__name__ for action in made.received(connection, stream, 11)]
    assert happened == ["RefreshRequested", "BeginRefresh", "Received", "EndRefresh"]
    assert kinds(made.refresh(Family.IPV4, 12)) == ["ROUTE_REFRESH"]
    assert kinds(made.refresh(Family.IPV4, 12, RefreshSubtype.BEGIN)) == ["ROUTE_REFRESH"]
    assert made.refresh(Family.IPV6, 12) == []
    assert made.received(connection, frame(MessageType.ROUTE_REFRESH, bytes((0, 2, 0, 1))), 12) == []


def test_refresh_is_not_asked_of_who_does_not_know_it() -> None:
    made = session()
    established(made, replace(PEER_OPEN, capabilities=None))
    assert made.refresh(Family.IPV4, 12) == []


def test_nothing_is_sent_without_a_session() -> None:
    made = session()
    assert made.send([encode_end_of_rib(Family.IPV4)], 1) == []
    assert made.refresh(Family.IPV4, 1) == []


# --- new settings ---


def test_soft_changes_leave_the_session_alone() -> None:
    made = session()
    established(made)
    assert made.update(settings(0, keepalive_time_s=5, filters=("f",)), 20) == []
    at = made.deadline()
    assert at is not None
    assert 20 + 3.75 <= at <= 25, "the keepalive timer follows at once"


def test_an_attempt_under_way_has_its_limit_also_when_the_peer_becomes_passive() -> None:
    made = session()
    connection = only(made.tick(10), act.Connect).connection
    made.update(settings(0, passive=True), 11)
    assert made.deadline() == 15
    actions = made.tick(15)
    assert act.Close(connection) in actions
    assert not [action for action in actions if isinstance(action, act.Connect)]
    assert made.deadline() is None


def test_other_identity_is_a_new_session() -> None:
    """The peer is told why (RFC 4486); routes of another AS are not kept."""
    made = session()
    established(made)
    actions = made.update(settings(0, peer_asn=65000), 20)
    assert told(actions) == (6, 6)
    assert only(actions, act.Down).kept == ()
    connection = open_sent(made, 30)
    made.received(connection, encode_open(replace(PEER_OPEN, asn=65000, capabilities=None)), 30)
    assert made.state is State.OPEN_CONFIRM


def test_a_corrected_setting_does_not_wait_for_the_error_to_be_forgotten() -> None:
    made = session()
    for now in (10, 20, 40, 80):
        connection = open_sent(made, now)
        made.received(connection, encode_open(replace(PEER_OPEN, asn=65000, capabilities=None)), now)
    assert made.state is State.IDLE
    made.update(settings(0, peer_asn=65000), 81)
    assert made.state is State.ACTIVE
    assert (made.deadline() or 0) <= 83


def test_ipv4_over_ipv6_is_offered_on_ipv6_sessions_only() -> None:
    """RFC 8950."""
    v6 = settings(0, address=ip_address("fd00::2"), families=(Family.IPV4, Family.IPV6))
    for peer, offered in ((v6, True), (settings(0), False)):
        connection = only((made := session(peer)).tick(10), act.Connect).connection
        [(_, body)] = sent(made.connected(connection, 10))
        capabilities = decode_open(body).capabilities
        assert capabilities is not None
        assert bool(capabilities.extended_next_hop) == offered


def test_two_sessions_negotiate_what_both_offer() -> None:
    pair = Pair(
        settings(0, hold_time_s=30, families=(Family.IPV4, Family.IPV6), add_path_send=True),
        settings(1, hold_time_s=90, families=(Family.IPV6,)),
    )
    pair.start()
    pair.settle()
    first, second = pair.session(0).negotiated, pair.session(1).negotiated
    assert first is not None
    assert second is not None
    assert (first.families, second.families) == ((Family.IPV6,), (Family.IPV6,))
    assert (first.hold_time_s, second.hold_time_s) == (30, 30)
    assert first.context.add_path_send == second.context.add_path_receive == frozenset({Family.IPV6})
    assert not first.context.add_path_receive
    assert first.context.max_message == 65535
    assert first.enhanced_refresh
