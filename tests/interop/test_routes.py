"""Routes with every attribute, both ways and through; reflection; next hops; equal paths; own AS."""

from __future__ import annotations

from dataclasses import replace

import pytest

from libs.testkit.routers.model import Neighbour, Route, Router
from libs.testkit.routers.peer import Peer, until
from libs.testkit.routers.raw import LOCAL_PREF, MED, ORIGINATOR, RawPeer, announcement, read_path
from tests.interop.pairs import OUR_AS, THEIR_AS, Pairing

feature, needs = pytest.mark.feature, pytest.mark.needs

RICH = Route(
    "10.1.0.0/24", origin="egp", as_path=(65010, 65011), med=77, communities=frozenset({(64512, 1), (64512, 2)}),
    extended=frozenset({"rt:64512:100", "soo:64512:7"}), large=frozenset({(64512, 1, 2), (4_200_000_000, 3, 4)}),
)  # fmt: skip
FULL = replace(
    RICH, prefix="10.5.0.0/24", as_path=(65010, 65011, frozenset({65020, 65021})), atomic=True,
    aggregator=(65020, "10.20.0.1"), unknown=frozenset({(99, "c0ffee")}),
)  # fmt: skip


def carried(route: Route) -> dict[str, object]:
    """What must be the same at both ends of an external session, the path apart."""
    names = ("origin", "med", "communities", "extended", "large", "atomic", "aggregator", "unknown")
    return {name: getattr(route, name) for name in names}


@feature("attributes from the peer")
@pytest.mark.parametrize("prefix", ["10.1.0.0/24", "fd01::/64"])
def test_attributes_of_the_peers_routes(pairing: Pairing, kind: type[Peer], prefix: str) -> None:
    family = "ipv6" if ":" in prefix else "ipv4"
    said = replace(RICH, prefix=prefix)
    if kind.daemon == "exabgp":  # says what it is told, its own AS included
        said = replace(said, as_path=(THEIR_AS, *RICH.as_path))
    if kind.daemon == "gobgp":  # its command has no word for a site of origin
        said = replace(said, extended=frozenset({"rt:64512:100"}))
    pair = pairing.pair(kind, families=(family,), their_routes=(said,))
    got = pair.ours.wait_route(prefix)
    assert carried(got) == carried(said)
    assert got.as_path == (THEIR_AS, *RICH.as_path)
    assert got.next_hop == pair.b.address(family)  # type: ignore[arg-type]


@feature("attributes to the peer")
@pytest.mark.parametrize("prefix", ["10.1.0.0/24", "fd01::/64"])
def test_attributes_of_our_routes(pairing: Pairing, kind: type[Peer], prefix: str) -> None:
    family = "ipv6" if ":" in prefix else "ipv4"
    said = replace(RICH, prefix=prefix)
    pair = pairing.pair(kind, families=(family,), routes=(said,))
    got = pair.theirs.wait_route(prefix)
    assert carried(got) == carried(said)
    assert got.as_path == (OUR_AS, *RICH.as_path)
    assert got.next_hop == pair.a.address(family)  # type: ignore[arg-type]


@feature("attributes through us, all of them")
def test_every_attribute_passes_through(pairing: Pairing, kind: type[Peer]) -> None:
    """A raw speaker at c, we in the middle, the router opposite sees what c said, and our AS in front."""
    a, b, c = (pairing.lab.site(name) for name in "abc")
    them = pairing.add(kind, "b", Router(THEIR_AS, "10.9.0.2", (Neighbour(a.ipv4, OUR_AS),)))
    us = pairing.subject(
        Router(OUR_AS, "10.9.0.1", (Neighbour(b.ipv4, THEIR_AS), Neighbour(c.ipv4, 65010, passive=True))), start=True
    )
    us.wait_up(b.ipv4)
    with RawPeer.dial(c, a.ipv4) as raw:
        raw.handshake(65010, "10.9.0.3")
        raw.send(announcement(FULL, c.ipv4))
        inner = us.wait_route(FULL.prefix)
        assert carried(inner) == carried(FULL)
        assert inner.as_path == FULL.as_path
        outer = them.wait_route(FULL.prefix)
        wanted = carried(replace(FULL, med=None))  # MED does not travel to a third AS
        got = carried(outer)
        if kind.daemon in ("frr", "gobgp"):  # their answers leave unknown attributes out
            wanted.pop("unknown"), got.pop("unknown")
        assert got == wanted
        assert outer.as_path == (OUR_AS, *FULL.as_path)


@feature("attributes through us, all of them")
def test_unknown_transitive_attribute_is_marked_partial(pairing: Pairing) -> None:
    a, b, c = (pairing.lab.site(name) for name in "abc")
    pairing.subject(
        Router(OUR_AS, "10.9.0.1", (Neighbour(b.ipv4, THEIR_AS, passive=True), Neighbour(c.ipv4, 65010, passive=True))),
        start=True,
    )
    with RawPeer.dial(b, a.ipv4) as one, RawPeer.dial(c, a.ipv4) as other:
        one.handshake(THEIR_AS, "10.9.0.2")
        other.handshake(65010, "10.9.0.3")
        other.send(announcement(FULL, c.ipv4))
        got = one.await_update(FULL.prefix)
        assert got.attributes[99] == (0xE0, bytes.fromhex("c0ffee"))  # optional, transitive, partial
        assert LOCAL_PREF not in got.attributes
        assert MED not in got.attributes
        assert read_path(got.attributes[2][1]) == (OUR_AS, *FULL.as_path)


@feature("route reflection (RFC 4456)")
@needs("rr")
def test_we_reflect_between_clients(pairing: Pairing, kind: type[Peer]) -> None:
    a, b, c = (pairing.lab.site(name) for name in "abc")
    clients = (Neighbour(b.ipv4, OUR_AS, rr_client=True), Neighbour(c.ipv4, OUR_AS, passive=True, rr_client=True))
    us = pairing.subject(
        Router(OUR_AS, "10.9.0.1", clients, cluster_id="10.77.0.1"),
        start=True,
    )  # fmt: skip
    them = pairing.add(kind, "b", Router(OUR_AS, "10.9.0.2", (Neighbour(a.ipv4, OUR_AS),), (Route("10.2.0.0/24"),)))
    us.wait_up(b.ipv4)
    with RawPeer.dial(c, a.ipv4) as raw:
        raw.handshake(OUR_AS, "10.9.0.3")
        raw.send(announcement(Route("10.3.0.0/24", local_pref=150, med=3), c.ipv4))
        got = them.wait_route("10.3.0.0/24")
        assert (got.originator_id, got.cluster_list) == ("10.9.0.3", ("10.77.0.1",))
        assert (got.next_hop, got.local_pref, got.med, got.as_path) == (c.ipv4, 150, 3, ())
        back = raw.await_update("10.2.0.0/24")
        assert back.attributes[ORIGINATOR][1] == bytes((10, 9, 0, 2))
        assert back.next_hop == b.ipv4
        raw.channel.close()
        them.wait_gone("10.3.0.0/24")


@feature("route reflection (RFC 4456)")
@needs("rr")
def test_we_take_reflected_routes(pairing: Pairing, kind: type[Peer]) -> None:
    a, b, c = (pairing.lab.site(name) for name in "abc")
    clients = (Neighbour(a.ipv4, OUR_AS, rr_client=True), Neighbour(c.ipv4, OUR_AS, passive=True, rr_client=True))
    pairing.add(kind, "b", Router(OUR_AS, "10.9.0.2", clients, cluster_id="10.77.0.2"))
    us = pairing.subject(Router(OUR_AS, "10.9.0.1", (Neighbour(b.ipv4, OUR_AS),)), start=True)
    with RawPeer.dial(c, b.ipv4) as raw:
        raw.handshake(OUR_AS, "10.9.0.3")
        raw.send(announcement(Route("10.3.0.0/24", local_pref=150), c.ipv4))
        got = us.wait_route("10.3.0.0/24")
        assert (got.originator_id, got.cluster_list, got.next_hop) == ("10.9.0.3", ("10.77.0.2",), c.ipv4)
        if "kernel" in us.can:
            us.wait_kernel("10.3.0.0/24", [c.ipv4])


@feature("internal routes are not passed on without reflection")
def test_internal_routes_stay(pairing: Pairing) -> None:
    a, b, c = (pairing.lab.site(name) for name in "abc")
    us = pairing.subject(
        Router(
            OUR_AS,
            "10.9.0.1",
            (Neighbour(b.ipv4, OUR_AS, passive=True), Neighbour(c.ipv4, OUR_AS, passive=True)),
            (Route("10.1.0.0/24"),),
        ),
        start=True,
    )
    with RawPeer.dial(b, a.ipv4) as one, RawPeer.dial(c, a.ipv4) as other:
        one.handshake(OUR_AS, "10.9.0.2")
        other.handshake(OUR_AS, "10.9.0.3")
        other.await_update("10.1.0.0/24")
        one.send(announcement(Route("10.2.0.0/24", local_pref=100), b.ipv4))
        us.wait_route("10.2.0.0/24")
        us.announce(Route("10.4.0.0/24"))
        other.await_update("10.4.0.0/24")
        assert not any("10.2.0.0/24" in heard.announced for heard in other.heard)


@feature("next hop: own, kept, of a third")
def test_next_hop_self_and_keep(pairing: Pairing, kind: type[Peer]) -> None:
    """From c by us to b: our address when asked for `self`, c's when asked to keep it."""
    a, b, c = (pairing.lab.site(name) for name in "abc")
    them = pairing.add(kind, "b", Router(THEIR_AS, "10.9.0.2", (Neighbour(a.ipv4, OUR_AS),)))
    us = pairing.subject(
        Router(
            OUR_AS,
            "10.9.0.1",
            (Neighbour(b.ipv4, THEIR_AS, next_hop_self=True), Neighbour(c.ipv4, 65010, passive=True)),
        ),
        start=True,
    )
    us.wait_up(b.ipv4)
    with RawPeer.dial(c, a.ipv4) as raw:
        raw.handshake(65010, "10.9.0.3")
        raw.send(announcement(Route("10.3.0.0/24", as_path=(65010,)), c.ipv4))
        assert them.wait_route("10.3.0.0/24").next_hop == a.ipv4
        us.change(b.ipv4, next_hop_self=False, next_hop_keep=True)
        us.wait_up(b.ipv4)
        them.wait_route("10.3.0.0/24", like=lambda route: route.next_hop == c.ipv4)


@feature("equal paths in the kernel (ECMP)")
def test_two_equal_paths(pairing: Pairing, kind: type[Peer]) -> None:
    a, b, c = (pairing.lab.site(name) for name in "abc")
    us = pairing.subject(
        Router(OUR_AS, "10.9.0.1", (Neighbour(b.ipv4, THEIR_AS), Neighbour(c.ipv4, THEIR_AS, passive=True))), start=True
    )
    path = (THEIR_AS,) if kind.daemon == "exabgp" else ()
    them = pairing.add(
        kind,
        "b",
        Router(THEIR_AS, "10.9.0.2", (Neighbour(a.ipv4, OUR_AS),), (Route("10.3.0.0/24", as_path=path, med=5),)),
    )
    with RawPeer.dial(c, a.ipv4) as raw:
        raw.handshake(THEIR_AS, "10.9.0.3")
        raw.send(announcement(Route("10.3.0.0/24", as_path=(THEIR_AS,), med=5), c.ipv4))
        us.wait_kernel("10.3.0.0/24", [b.ipv4, c.ipv4])
        them.withdraw("10.3.0.0/24")
        us.wait_kernel("10.3.0.0/24", [c.ipv4])
        them.announce(Route("10.3.0.0/24", as_path=path, med=5))
        us.wait_kernel("10.3.0.0/24", [b.ipv4, c.ipv4])


@feature("best path: preference, path length, origin, MED")
def test_best_of_two(pairing: Pairing) -> None:
    a, b, c = (pairing.lab.site(name) for name in "abc")
    us = pairing.subject(
        Router(
            OUR_AS, "10.9.0.1", (Neighbour(b.ipv4, THEIR_AS, passive=True), Neighbour(c.ipv4, THEIR_AS, passive=True))
        ),
        start=True,
    )
    one_p, other_p = (THEIR_AS,), (THEIR_AS, 65010)
    cases = [  # the first is better
        (Route("10.3.0.0/24", as_path=one_p), Route("10.3.0.0/24", as_path=other_p)),
        (Route("10.3.1.0/24", as_path=one_p, origin="igp"), Route("10.3.1.0/24", as_path=one_p, origin="incomplete")),
        (Route("10.3.2.0/24", as_path=one_p, med=1), Route("10.3.2.0/24", as_path=one_p, med=2)),
        (
            Route("10.3.3.0/24", as_path=(THEIR_AS, frozenset({1, 2, 3}))),
            Route("10.3.3.0/24", as_path=(THEIR_AS, 7, 8)),
        ),
    ]
    with RawPeer.dial(b, a.ipv4) as one, RawPeer.dial(c, a.ipv4) as other:
        one.handshake(THEIR_AS, "10.9.0.2")
        other.handshake(THEIR_AS, "10.9.0.3")
        for better, worse in cases:
            other.send(announcement(worse, c.ipv4))
            us.wait_kernel(worse.prefix, [c.ipv4])
            one.send(announcement(better, b.ipv4))
            us.wait_kernel(better.prefix, [b.ipv4])


@feature("own AS in the path")
def test_allowed_local_as(pairing: Pairing) -> None:
    a, b = pairing.lab.site("a"), pairing.lab.site("b")
    us = pairing.subject(
        Router(OUR_AS, "10.9.0.1", (Neighbour(b.ipv4, THEIR_AS, passive=True, allow_local_as=1),)), start=True
    )
    with RawPeer.dial(b, a.ipv4) as raw:
        raw.handshake(THEIR_AS, "10.9.0.2")
        raw.send(
            announcement(Route("10.3.0.0/24", as_path=(THEIR_AS, OUR_AS, OUR_AS)), b.ipv4),
            announcement(Route("10.2.0.0/24", as_path=(THEIR_AS, OUR_AS)), b.ipv4),
        )
        us.wait_route("10.2.0.0/24")
        assert [r for r in us.routes("10.3.0.0/24") if r.best] == []


@feature("several paths from one peer (RFC 7911)")
@needs("add-path")
def test_add_path_from_a_router(pairing: Pairing, kind: type[Peer]) -> None:
    """Two others say the same prefix to the router opposite, which passes both on."""
    a, b, c, d = (pairing.lab.site(name) for name in "abcd")
    if kind.daemon == "exabgp":
        pytest.skip("the router opposite cannot: exabgp has no RIB of its own")
    sources = (Neighbour(c.ipv4, 65010, passive=True), Neighbour(d.ipv4, 65011, passive=True))
    pairing.add(kind, "b", Router(THEIR_AS, "10.9.0.2", (Neighbour(a.ipv4, OUR_AS, add_path="send"), *sources)))
    us = pairing.subject(Router(OUR_AS, "10.9.0.1", (Neighbour(b.ipv4, THEIR_AS, add_path="receive"),)), start=True)
    us.wait_up(b.ipv4)
    with RawPeer.dial(c, b.ipv4) as one, RawPeer.dial(d, b.ipv4) as other:
        one.handshake(65010, "10.9.0.3")
        other.handshake(65011, "10.9.0.4")
        one.send(announcement(Route("10.3.0.0/24", as_path=(65010,)), c.ipv4))
        other.send(announcement(Route("10.3.0.0/24", as_path=(65011,)), d.ipv4))
        until(lambda: len(us.routes("10.3.0.0/24")) == 2, 30, lambda: f"two paths: {us.routes('10.3.0.0/24')}")
        assert {route.as_path for route in us.routes("10.3.0.0/24")} == {(THEIR_AS, 65010), (THEIR_AS, 65011)}


@feature("many routes, packed")
def test_thousand_routes_arrive_and_go(pairing: Pairing, kind: type[Peer]) -> None:
    a, b, c = (pairing.lab.site(name) for name in "abc")
    them = pairing.add(kind, "b", Router(THEIR_AS, "10.9.0.2", (Neighbour(a.ipv4, OUR_AS),)))
    us = pairing.subject(
        Router(OUR_AS, "10.9.0.1", (Neighbour(b.ipv4, THEIR_AS), Neighbour(c.ipv4, 65010, passive=True))), start=True
    )
    us.wait_up(b.ipv4)
    prefixes = [f"10.{100 + n // 250}.{n % 250}.0/24" for n in range(1000)]
    with RawPeer.dial(c, a.ipv4) as raw:
        raw.handshake(65010, "10.9.0.3")
        raw.send(
            *(announcement(Route(text, as_path=(65010, 65100 + n % 7)), c.ipv4) for n, text in enumerate(prefixes))
        )
        until(
            lambda: len(them.learned("ipv4")) == 1000,
            60,
            lambda: f"1,000 routes at the peer: {len(them.learned('ipv4'))}",
        )
        raw.channel.close()
        until(lambda: not them.learned("ipv4"), 60, lambda: f"none left: {len(them.learned('ipv4'))}")
