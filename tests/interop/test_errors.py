"""What a speaker says to a peer that breaks the protocol, octet by octet: NOTIFICATION codes, and what survives.

RFC 4271 section 6, RFC 7606 (errors in attributes cost a route, not the session), RFC 6608 (FSM errors), RFC 7313.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass

import pytest

from libs.testkit.routers.model import Neighbour, Route, Router
from libs.testkit.routers.peer import Peer, until
from libs.testkit.routers.raw import (
    AGGREGATOR,
    AS4_PATH,
    AS_PATH,
    ATOMIC,
    COMMUNITIES,
    EXTENDED_COMMUNITIES,
    KEEPALIVE,
    LARGE,
    LOCAL_PREF,
    MARKER,
    MED,
    NEXT_HOP,
    OPEN,
    OPTIONAL,
    ORIGIN,
    ORIGINATOR,
    TRANSITIVE,
    UPDATE,
    RawPeer,
    announcement,
    as_path,
    attribute,
    capabilities,
    capability,
    end_of_rib,
    message,
    mp_reach,
    open_body,
    prefix,
    read_path,
    update_body,
    withdrawal,
)  # fmt: skip
from tests.interop.pairs import OUR_AS, THEIR_AS, Pairing

feature = pytest.mark.feature
GOOD = "10.2.0.0/24"
BAD = "10.3.0.0/24"


@dataclass
class Opposite:
    """Our speaker at site a, and a way to be its neighbour from site b."""

    ours: Peer
    pairing: Pairing
    asn: int = THEIR_AS
    address: str = "10.9.0.2"

    def dial(self) -> RawPeer:
        return RawPeer.dial(self.pairing.lab.site("b"), "10.9.0.1")

    def up(self, *, seen: bool = True, **named: object) -> RawPeer:
        """An established session; tried again while the other closes at once, as many do for a while after an error.
        seen: it lasts until the other shows it.
        """
        deadline = time.monotonic() + 30
        while True:
            raw = self.dial()
            try:
                raw.handshake(self.asn, self.address, **named)  # type: ignore[arg-type]
            except AssertionError:
                raw.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
                continue
            if seen:
                self.ours.wait_up(self.address)
            return raw


def opposite(pairing: Pairing, *, asn: int = THEIR_AS, **changes: object) -> Opposite:
    pairing.lab.site("a"), pairing.lab.site("b")
    neighbour = Neighbour("10.9.0.2", asn, passive=True, **changes)  # type: ignore[arg-type]
    return Opposite(pairing.subject(Router(OUR_AS, "10.9.0.1", (neighbour,)), start=True), pairing, asn)


# -- messages that end the session ----------------------------------------------------------------------------------

CAPS = capabilities(THEIR_AS)
HEADERS = {
    "marker": (b"\xfe" + MARKER[1:] + struct.pack("!HB", 19, KEEPALIVE), (1, 1)),
    "length below 19": (MARKER + struct.pack("!HB", 18, KEEPALIVE), (1, 2)),
    "length above 4096": (MARKER + struct.pack("!HB", 4097, UPDATE), (1, 2)),
    "KEEPALIVE of 20 octets": (message(KEEPALIVE, b"\0"), (1, 2)),
    "UPDATE of 22 octets": (message(UPDATE, b"\0\0\0"), (1, 2)),
    "type 9": (message(9), (1, 3)),
}
OPENS = {
    "version 3": (open_body(THEIR_AS, 90, "10.9.0.2", CAPS, version=3), (2, 1)),
    "another AS": (open_body(64999, 90, "10.9.0.2", capabilities(64999)), (2, 2)),
    "BGP identifier 0.0.0.0": (open_body(THEIR_AS, 90, "0.0.0.0", CAPS), (2, 3)),
    "hold time of 1 s": (open_body(THEIR_AS, 1, "10.9.0.2", CAPS), (2, 6)),
    "hold time of 2 s": (open_body(THEIR_AS, 2, "10.9.0.2", CAPS), (2, 6)),
}


@feature("NOTIFICATION: message header errors")
@pytest.mark.parametrize("what", HEADERS)
def test_header_error(pairing: Pairing, what: str) -> None:
    sent, wanted = HEADERS[what]
    here = opposite(pairing)
    with here.up() as raw:
        raw.send(sent)
        assert raw.notification()[:2] == wanted
        assert raw.closed()
    here.ours.wait_down(here.address)


@feature("NOTIFICATION: OPEN errors")
@pytest.mark.parametrize("what", OPENS)
def test_open_error(pairing: Pairing, what: str) -> None:
    body, wanted = OPENS[what]
    here = opposite(pairing)
    with here.dial() as raw:
        raw.expect(OPEN)
        raw.send(message(OPEN, body))
        assert raw.notification()[:2] == wanted
        assert raw.closed()
    here.up().close()  # and is ready for one that does better


@feature("NOTIFICATION: OPEN errors")
def test_no_common_family(pairing: Pairing) -> None:
    """RFC 5492: 2/7 with the capability that is missing, or a session that carries nothing; never IPv4 unasked."""
    here = opposite(pairing)
    with here.dial() as raw:
        raw.send(message(OPEN, open_body(THEIR_AS, 90, "10.9.0.2", capabilities(THEIR_AS, ("ipv6",)))))
        raw.expect(OPEN)
        assert raw.notification()[:2] == (2, 7)


@feature("NOTIFICATION: a message out of turn")
def test_update_before_keepalive(pairing: Pairing) -> None:
    """RFC 6608: FSM error; its subcode 2 is for OpenConfirm."""
    here = opposite(pairing)
    with here.dial() as raw:
        raw.send(
            message(OPEN, open_body(THEIR_AS, 90, "10.9.0.2", CAPS)),
            announcement(Route(GOOD, as_path=(THEIR_AS,)), "10.9.0.2"),
        )
        raw.expect(OPEN)
        code, subcode, _ = raw.notification()
        assert (code, subcode) in ((5, 2), (5, 0))


@feature("NOTIFICATION: a message out of turn")
def test_open_twice(pairing: Pairing) -> None:
    here = opposite(pairing)
    with here.up() as raw:
        raw.send(message(OPEN, open_body(THEIR_AS, 90, "10.9.0.2", CAPS)))
        code, subcode, _ = raw.notification()
        assert (code, subcode) in ((5, 3), (5, 0))


@feature("NOTIFICATION: hold timer")
def test_hold_timer_says_so(pairing: Pairing) -> None:
    here = opposite(pairing, hold_time_s=3, keepalive_s=1)
    with here.up(seen=False, hold_time_s=3) as raw:
        assert raw.notification(30)[:2] == (4, 0)
    here.ours.wait_down(here.address)


@feature("NOTIFICATION: two connections at once")
def test_collision_ends_one_of_two_connections(pairing: Pairing) -> None:
    """One of them ends, the other carries routes. RFC 4271 section 6.8 keeps the established one; a neighbour that
    begins a second one has lost the first, and may be believed (RFC 4724 section 5 says so with graceful restart)."""
    here = opposite(pairing)
    with here.up() as first, here.dial() as second:
        second.send(message(OPEN, open_body(THEIR_AS, 90, "10.9.0.2", CAPS)), message(KEEPALIVE))
        until(lambda: any(one.ended() for one in (first, second)), 30, "one of the two connections ends")
        left = second if first.ended() else first
        here.ours.wait_up(here.address)
        left.send(announcement(Route(GOOD, as_path=(THEIR_AS,)), "10.9.0.2"))
        here.ours.wait_route(GOOD)


@feature("NOTIFICATION: unknown peer")
def test_stranger_gets_no_session(pairing: Pairing) -> None:
    here = opposite(pairing)
    stranger = pairing.lab.site("c")
    with RawPeer.dial(stranger, "10.9.0.1") as raw:
        raw.send(message(OPEN, open_body(THEIR_AS, 90, "10.9.0.3", CAPS)))
        assert raw.closed()
    assert not here.ours.session("10.9.0.3").up


# -- UPDATEs that are wrong -----------------------------------------------------------------------------------------

_O = attribute(TRANSITIVE, ORIGIN, b"\0")
_P = attribute(TRANSITIVE, AS_PATH, as_path((THEIR_AS,)))
_N = attribute(TRANSITIVE, NEXT_HOP, bytes((10, 9, 0, 2)))
FATAL = {
    "well-known attribute that nobody knows": (
        update_body(b"", _O + _P + _N + attribute(TRANSITIVE, 99, b"x"), prefix(BAD)), (3, 2),
    ),
    "attributes longer than the message": (b"\0\0" + struct.pack("!H", 200) + _O, (3, 1)),
    "withdrawn routes longer than the message": (struct.pack("!H", 200) + b"\0\0\0", (3, 1)),
    "prefix of 33 bits": (update_body(b"", _O + _P + _N, b"\x21\x0a\x03\x00\x00\x00"), (3, 10)),
    "two MP_REACH_NLRI": (
        update_body(b"", _O + _P + 2 * mp_reach("ipv4", bytes((10, 9, 0, 2)), prefix(BAD))), (3, 1),
    ),
}  # fmt: skip
LOST = {
    # RFC 7606 section 7: these cost the routes of the UPDATE, which were there before, and nothing else.
    "ORIGIN 7": attribute(TRANSITIVE, ORIGIN, b"\x07") + _P + _N,
    "ORIGIN of 2 octets": attribute(TRANSITIVE, ORIGIN, b"\0\0") + _P + _N,
    "no ORIGIN": _P + _N,
    "no AS_PATH": _O + _N,
    "no NEXT_HOP": _O + _P,
    "AS_PATH with a segment of type 9": _O + attribute(TRANSITIVE, AS_PATH, b"\x09\x01\0\0\xfc\x01") + _N,
    "AS_PATH cut short": _O + attribute(TRANSITIVE, AS_PATH, b"\x02\x02\0\0\xfc\x01") + _N,
    "AS_PATH with an empty segment": _O + attribute(TRANSITIVE, AS_PATH, b"\x02\0") + _N,
    "NEXT_HOP of 5 octets": _O + _P + attribute(TRANSITIVE, NEXT_HOP, b"\x0a\x09\0\x02\0"),
    "MED of 3 octets": _O + _P + _N + attribute(OPTIONAL, MED, b"\0\0\0"),
    "COMMUNITIES of 5 octets": _O + _P + _N + attribute(OPTIONAL | TRANSITIVE, COMMUNITIES, b"\0" * 5),
    "EXTENDED COMMUNITIES of 7 octets": _O
    + _P
    + _N
    + attribute(OPTIONAL | TRANSITIVE, EXTENDED_COMMUNITIES, b"\0" * 7),
    "LARGE COMMUNITIES of 11 octets": _O + _P + _N + attribute(OPTIONAL | TRANSITIVE, LARGE, b"\0" * 11),
    "ORIGIN flagged optional": attribute(OPTIONAL, ORIGIN, b"\0") + _P + _N,
}
DISCARDED = {
    # The attribute goes, the route stays.
    "ATOMIC_AGGREGATE with a value": _O + _P + _N + attribute(TRANSITIVE, ATOMIC, b"\0"),
    "AGGREGATOR of 5 octets": _O + _P + _N + attribute(OPTIONAL | TRANSITIVE, AGGREGATOR, b"\0" * 5),
    "ORIGINATOR_ID from outside": _O + _P + _N + attribute(OPTIONAL, ORIGINATOR, b"\x01" * 4),
    "LOCAL_PREF from outside": _O + _P + _N + attribute(TRANSITIVE, LOCAL_PREF, b"\0\0\x01\x2c"),
    "AS4_PATH from a 4-octet speaker": _O + _P + _N + attribute(OPTIONAL | TRANSITIVE, AS4_PATH, as_path((1, 2))),
    "MED twice": _O + _P + _N + attribute(OPTIONAL, MED, b"\0\0\0\x01") + attribute(OPTIONAL, MED, b"\0\0\0\x02"),
}


def route(text: str) -> bytes:
    return announcement(Route(text, as_path=(THEIR_AS,)), "10.9.0.2")


@feature("NOTIFICATION: UPDATE errors")
@pytest.mark.parametrize("what", FATAL)
def test_update_error_that_ends_the_session(pairing: Pairing, what: str) -> None:
    body, wanted = FATAL[what]
    here = opposite(pairing)
    with here.up() as raw:
        raw.send(route(GOOD))
        here.ours.wait_route(GOOD)
        raw.send(message(UPDATE, body))
        assert raw.notification()[:2] == wanted
    here.ours.wait_gone(GOOD)


@feature("errors that cost a route, not the session (RFC 7606)")
@pytest.mark.parametrize("what", LOST)
def test_wrong_attribute_withdraws_its_routes(pairing: Pairing, what: str) -> None:
    here = opposite(pairing)
    with here.up() as raw:
        raw.send(route(BAD))
        here.ours.wait_route(BAD)
        raw.send(message(UPDATE, update_body(b"", LOST[what], prefix(BAD))), route(GOOD))
        here.ours.wait_route(GOOD)
        here.ours.wait_gone(BAD)
        assert here.ours.session(here.address).up


@feature("errors that cost an attribute, not the route (RFC 7606)")
@pytest.mark.parametrize("what", DISCARDED)
def test_wrong_attribute_is_discarded(pairing: Pairing, what: str) -> None:
    here = opposite(pairing)
    with here.up() as raw:
        raw.send(message(UPDATE, update_body(b"", DISCARDED[what], prefix(BAD))))
        got = here.ours.wait_route(BAD)
        assert (got.atomic, got.aggregator, got.originator_id) == (what.startswith("ATOMIC") and got.atomic, None, "")
        assert got.local_pref in (None, 100)
        assert got.as_path == (THEIR_AS,)
        assert got.med in ((1,) if what == "MED twice" else (None, 0))


@feature("a connection that ends in the midst of a message")
@pytest.mark.parametrize("how", ["close", "reset"])
def test_connection_ends_mid_update(pairing: Pairing, how: str) -> None:
    here = opposite(pairing)
    raw = here.up()
    raw.send(route(GOOD), route(BAD)[:-3])
    here.ours.wait_route(GOOD)
    getattr(raw, how)()
    here.ours.wait_down(here.address)
    here.ours.wait_gone(GOOD)
    assert here.ours.routes(BAD) == []
    with here.up() as again:
        again.send(route(BAD))
        here.ours.wait_route(BAD)


@feature("octets that come one at a time")
def test_messages_in_small_pieces(pairing: Pairing) -> None:
    here = opposite(pairing)
    with here.up() as raw:
        raw.channel.setsockopt(6, 1, 1)  # TCP_NODELAY: each octet travels by itself
        for octet in route(GOOD) + route(BAD):
            raw.send(bytes((octet,)))
        here.ours.wait_route(BAD)


@feature("loops: own AS, own originator id, own cluster id")
@pytest.mark.parametrize("loop", ["as", "originator", "cluster"])
def test_own_marks_are_refused(pairing: Pairing, loop: str) -> None:
    outside = loop == "as"
    here = opposite(pairing, asn=THEIR_AS if outside else OUR_AS, rr_client=loop == "cluster")
    marks: dict[str, object] = {
        "as": {"as_path": (THEIR_AS, OUR_AS)},
        "originator": {"originator_id": "10.9.0.1", "local_pref": 100},
        "cluster": {"cluster_list": ("10.9.0.1",), "originator_id": "1.1.1.1", "local_pref": 100},
    }
    fine = Route(GOOD, as_path=(THEIR_AS,)) if outside else Route(GOOD, local_pref=100)
    with here.up() as raw:
        looped = announcement(Route(BAD, **marks[loop]), "10.9.0.2")  # type: ignore[arg-type]
        raw.send(
            announcement(fine, "10.9.0.2"),
            looped,
            announcement(Route("10.4.0.0/24", as_path=fine.as_path, local_pref=fine.local_pref), "10.9.0.2"),
        )
        here.ours.wait_route("10.4.0.0/24")
        assert [r for r in here.ours.routes(BAD) if r.best] == []


# -- what is negotiated ---------------------------------------------------------------------------------------------


@feature("two-octet AS numbers")
def test_four_octet_numbers_through_a_two_octet_peer(pairing: Pairing) -> None:
    """RFC 6793: AS_TRANS and AS4_PATH to an old speaker, put together again when they come from one."""
    a, b, c = (pairing.lab.site(name) for name in "abc")
    big = 4_200_000_001
    ours = pairing.subject(
        Router(big, "10.9.0.1", (Neighbour(b.ipv4, THEIR_AS, passive=True), Neighbour(c.ipv4, 64514, passive=True))),
        start=True,
    )
    with RawPeer.dial(b, a.ipv4) as old, RawPeer.dial(c, a.ipv4) as new:
        body = old.handshake(THEIR_AS, "10.9.0.2", as4=False)
        assert struct.unpack_from("!H", body, 1)[0] == 23456
        new.handshake(64514, "10.9.0.3")
        path = attribute(TRANSITIVE, AS_PATH, as_path((THEIR_AS, 23456), octets=2))
        path += attribute(OPTIONAL | TRANSITIVE, AS4_PATH, as_path((4_200_000_009,)))
        old.send(message(UPDATE, update_body(b"", _O + path + _N, prefix(GOOD))))
        assert ours.wait_route(GOOD).as_path == (THEIR_AS, 4_200_000_009)
        assert new.await_update(GOOD).numbers() == (big, THEIR_AS, 4_200_000_009)
        new.send(announcement(Route(BAD, as_path=(64514, 4_200_000_008)), c.ipv4))
        got = old.await_update(BAD)
        assert got.numbers(octets=2) == (23456, 64514, 23456)
        assert read_path(got.attributes[AS4_PATH][1]) == (big, 64514, 4_200_000_008)


@feature("messages longer than 4,096 octets (RFC 8654)")
@pytest.mark.parametrize("extended", [True, False])
def test_long_messages_where_both_can(pairing: Pairing, extended: bool) -> None:
    here = opposite(pairing)
    with here.up(extra=capability(6) if extended else b"") as raw:
        nlri = b"".join(prefix(f"10.{128 + n // 256}.{n % 256}.0/24") for n in range(2000))
        raw.send(message(UPDATE, update_body(b"", _O + _P + _N, nlri)))
        if extended:
            here.ours.wait_route("10.128.0.0/24")
            here.ours.wait_route(f"10.{128 + 1999 // 256}.{1999 % 256}.0/24")
        else:
            assert raw.notification()[:2] == (1, 2)


@feature("several paths from one peer (RFC 7911)")
def test_paths_with_ids_are_kept_apart(pairing: Pairing) -> None:
    here = opposite(pairing, add_path="receive")
    receive = capability(69, struct.pack("!HBB", 1, 1, 2))  # IPv4 unicast: we can send several
    with here.up(extra=receive) as raw:
        for number, med in ((1, 50), (2, 10), (3, 30)):
            attributes = _O + _P + _N + attribute(OPTIONAL, MED, struct.pack("!I", med))
            raw.send(message(UPDATE, update_body(b"", attributes, struct.pack("!I", number) + prefix(GOOD))))
        until(lambda: len(here.ours.routes(GOOD)) == 3, 20, lambda: f"three paths: {here.ours.routes(GOOD)}")
        best = [r.med for r in here.ours.routes(GOOD) if r.best]
        assert best == [10]
        raw.send(message(UPDATE, update_body(struct.pack("!I", 2) + prefix(GOOD))))
        until(lambda: len(here.ours.routes(GOOD)) == 2, 20, lambda: f"two paths: {here.ours.routes(GOOD)}")
        assert [r.med for r in here.ours.routes(GOOD) if r.best] == [30]


@feature("route refresh (RFC 2918, RFC 7313)")
@pytest.mark.parametrize("enhanced", [True, False])
def test_refresh_is_answered(pairing: Pairing, enhanced: bool) -> None:
    pairing.lab.site("a"), pairing.lab.site("b")
    ours = Router(OUR_AS, "10.9.0.1", (Neighbour("10.9.0.2", THEIR_AS, passive=True),), (Route("10.1.0.0/24"),))
    here = Opposite(pairing.subject(ours, start=True), pairing)
    with here.up(extra=capability(70) if enhanced else b"") as raw:
        raw.await_update("10.1.0.0/24")
        raw.heard.clear()
        raw.send(message(5, struct.pack("!HBB", 1, 0, 1)))
        if enhanced:
            assert raw.expect(5)[2] == 1  # BoRR
            raw.await_update("10.1.0.0/24")
            assert raw.expect(5)[2] == 2  # EoRR
        else:
            raw.await_update("10.1.0.0/24")


@feature("route refresh (RFC 2918, RFC 7313)")
def test_enhanced_refresh_sweeps_what_was_not_repeated(pairing: Pairing) -> None:
    here = opposite(pairing)
    with here.up(extra=capability(70)) as raw:
        raw.send(route(GOOD), route(BAD))
        here.ours.wait_route(BAD)
        raw.send(message(5, struct.pack("!HBB", 1, 1, 1)), route(GOOD), message(5, struct.pack("!HBB", 1, 2, 1)))
        here.ours.wait_gone(BAD)
        here.ours.wait_route(GOOD)


@feature("storms of withdrawals")
def test_storm_ends_where_it_should(pairing: Pairing) -> None:
    here = opposite(pairing)
    prefixes = [f"10.{100 + n // 250}.{n % 250}.0/24" for n in range(2000)]
    nlri = b"".join(prefix(text) for text in prefixes[:900])
    up = message(UPDATE, update_body(b"", _O + _P + _N, nlri))
    down = withdrawal(*prefixes[:900])
    with here.up() as raw:
        for _ in range(50):
            raw.send(up, down)
        raw.send(up, withdrawal(*prefixes[1:900]), end_of_rib("ipv4"))
        here.ours.wait_route(prefixes[0])
        here.ours.wait_gone(prefixes[899])
        if "kernel" in here.ours.can:
            here.ours.wait_kernel(prefixes[899], [])
            here.ours.wait_kernel(prefixes[0], ["10.9.0.2"])
        until(lambda: len(here.ours.learned("ipv4")) == 1, 30, "one route left")
