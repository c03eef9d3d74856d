"""Sessions come up, with every setting of theirs, and do not where they must not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest

from libs.testkit.routers.model import Family, Neighbour, Route, Router
from libs.testkit.routers.peer import Peer, until
from libs.testkit.routers.raw import KEEPALIVE, RawPeer, message
from tests.interop.pairs import OUR_AS, THEIR_AS, Pairing

feature, needs = pytest.mark.feature, pytest.mark.needs


def stays_down(peer: Peer, neighbour: str, tries: Callable[[], int], *, at_least: int = 2) -> None:
    """Not Established, while the other end has tried more than once: shown by something that counts its tries."""
    until(lambda: peer.session(neighbour).up or tries() >= at_least, 40, f"{at_least} tries of the other end")
    assert not peer.session(neighbour).up


@feature("session over IPv4, over IPv6")
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_session_comes_up_and_carries_its_family(pairing: Pairing, kind: type[Peer], family: Family) -> None:
    own, other = ("10.1.0.0/24", "10.2.0.0/24") if family == "ipv4" else ("fd01::/64", "fd02::/64")
    pair = pairing.pair(kind, families=(family,), routes=(Route(own),), their_routes=(Route(other),))
    assert pair.ours.wait_route(other).as_path == (THEIR_AS,)
    assert pair.theirs.wait_route(own).as_path == (OUR_AS,)
    if "kernel" in pair.ours.can:
        pair.ours.wait_kernel(other, [pair.b.address(family)])


@feature("internal session")
def test_internal_session_keeps_path_empty(pairing: Pairing, kind: type[Peer]) -> None:
    pair = pairing.pair(
        kind, their_as=OUR_AS, routes=(Route("10.1.0.0/24"),), their_routes=(Route("10.2.0.0/24", local_pref=300),)
    )
    got = pair.ours.wait_route("10.2.0.0/24")
    assert (got.as_path, got.local_pref) == ((), 300)
    assert pair.theirs.wait_route("10.1.0.0/24").as_path == ()


@feature("IPv6 routes over an IPv4 session")
def test_ipv6_routes_over_ipv4_session(pairing: Pairing, kind: type[Peer]) -> None:
    pair = pairing.pair(
        kind, session={"families": ("ipv4", "ipv6")},
        routes=(Route("fd01::/64", next_hop="fd09::1"), Route("10.1.0.0/24")),
        their_routes=(Route("fd02::/64", next_hop="fd09::2"), Route("10.2.0.0/24")),
    )  # fmt: skip
    pair.ours.wait_route("10.2.0.0/24")
    assert pair.ours.wait_route("fd02::/64").next_hop == "fd09::2"
    assert pair.theirs.wait_route("fd01::/64").next_hop == "fd09::1"


@feature("IPv4 routes over an IPv6 session (RFC 8950)")
@needs("ext-nh")
def test_ipv4_routes_with_ipv6_next_hops(pairing: Pairing, kind: type[Peer]) -> None:
    """A node without an IPv4 address of its own: its IPv4 routes have its IPv6 address as next hop."""
    pair = pairing.pair(
        kind, families=("ipv6",), session={"families": ("ipv4", "ipv6"), "next_hop_extended": True},
        routes=(Route("10.1.0.0/24", next_hop="fd09::1"),), their_routes=(Route("10.2.0.0/24", next_hop="fd09::2"),),
        our_router={"addresses": ("fd09::1",)},
    )  # fmt: skip
    assert pair.ours.wait_route("10.2.0.0/24").next_hop == "fd09::2"
    assert pair.theirs.wait_route("10.1.0.0/24").next_hop == "fd09::1"
    if "kernel" in pair.ours.can:
        pair.ours.wait_kernel("10.2.0.0/24", ["fd09::2"])


@feature("password (RFC 2385): right")
@needs("md5")
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_same_password(pairing: Pairing, kind: type[Peer], family: Family) -> None:
    pairing.pair(kind, families=(family,), session={"password": "one secret"[:10].replace(" ", "-")})


@feature("password: wrong, missing, and changed while it runs")
@needs("md5")
@pytest.mark.parametrize("wrong", ["another", ""])
def test_wrong_password_until_it_is_right(pairing: Pairing, kind: type[Peer], wrong: str) -> None:
    pair = pairing.pair(kind, session={"password": "secret"}, mine={"password": wrong}, up=False)
    # SYNs that the kernel dropped for their signature, or for lacking one (netstat's TcpExt, linux/snmp.h).
    names = ("TCPMD5NotFound", "TCPMD5Unexpected", "TCPMD5Failure")

    def refused() -> int:
        return sum(tcp_count(peer, *names) for peer in (pair.ours, pair.theirs))

    stays_down(pair.ours, pair.at_ours, refused)
    pair.ours.change(pair.at_ours, password="secret")
    pair.wait_up(60)


def tcp_count(peer: Peer, *names: str) -> int:
    """Sum of counters of the peer's namespace."""
    lines = [line.split() for line in peer.run("cat", "/proc/net/netstat").splitlines() if line.startswith("TcpExt:")]
    told = dict(zip(lines[0], lines[1], strict=True))
    return sum(int(told[name]) for name in names)


@feature("TTL security (RFC 5082)")
@needs("gtsm")
@pytest.mark.parametrize("family", ["ipv4", pytest.param("ipv6", marks=needs("gtsm over ipv6"))])
def test_ttl_security_with_a_neighbour_one_hop_away(pairing: Pairing, kind: type[Peer], family: Family) -> None:
    pair = pairing.pair(kind, families=(family,), session={"ttl_security": 1})
    mine = pair.ours.run("ss", "-tinH", "state", "established")
    assert pair.b.address(family) in mine


@feature("TTL security (RFC 5082)")
@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_ttl_security_ignores_packets_from_farther_away(pairing: Pairing, family: Family) -> None:
    a, b = pairing.lab.site("a"), pairing.lab.site("b")
    remote = b.address(family)
    router = Router(OUR_AS, "10.9.0.1", (Neighbour(remote, THEIR_AS, ttl_security=1, passive=True),))
    ours = pairing.subject(router, start=True)
    with RawPeer.dial(b, a.address(family), ttl=255) as near:
        near.handshake(THEIR_AS, "10.9.0.2", families=(family,))
        ours.wait_up(remote)
    ours.wait_down(remote)
    dropped = tcp_count(ours, "TCPMinTTLDrop")
    with suppress(TimeoutError, AssertionError), RawPeer.dial(b, a.address(family), ttl=64, timeout_s=5) as far:
        far.handshake(THEIR_AS, "10.9.0.2", families=(family,), timeout_s=5)
        far.send(message(KEEPALIVE), message(KEEPALIVE))
        until(lambda: tcp_count(ours, "TCPMinTTLDrop") > dropped, 20, "its packets are dropped")
        assert not ours.session(remote).up
    assert tcp_count(ours, "TCPMinTTLDrop") > dropped
    assert not ours.session(remote).up


@feature("multihop")
def test_multihop_between_loopbacks(pairing: Pairing, kind: type[Peer]) -> None:
    a, b = pairing.lab.site("a"), pairing.lab.site("b")
    for site, other, own, far in ((a, b, "10.99.0.1", "10.99.0.2"), (b, a, "10.99.0.2", "10.99.0.1")):
        site.space.ip([f"addr add {own}/32 dev lo", f"route add {far}/32 via {other.ipv4}"])
    ours = Router(
        OUR_AS, "10.9.0.1", (Neighbour("10.99.0.2", THEIR_AS, local_address="10.99.0.1", multihop=3),),
        (Route("10.1.0.0/24"),), addresses=("10.99.0.1", a.ipv6),
    )  # fmt: skip
    theirs = Router(
        THEIR_AS, "10.9.0.2", (Neighbour("10.99.0.1", OUR_AS, local_address="10.99.0.2", multihop=3),),
        (Route("10.2.0.0/24"),), addresses=("10.99.0.2", b.ipv6),
    )  # fmt: skip
    them, us = pairing.add(kind, "b", theirs), pairing.subject(ours, start=True)
    us.wait_up("10.99.0.2")
    assert us.wait_route("10.2.0.0/24").next_hop == "10.99.0.2"
    assert them.wait_route("10.1.0.0/24").next_hop == "10.99.0.1"
    if "kernel" in us.can:  # the next hop is resolved: the kernel gets the neighbour's address
        us.wait_kernel("10.2.0.0/24", [b.ipv4])


@feature("ports other than 179")
@needs("port")
def test_other_ports(pairing: Pairing, kind: type[Peer]) -> None:
    pair = pairing.pair(
        kind, mine={"port": 1790}, other={"port": 1791}, our_router={"port": 1791}, their_router={"port": 1790}
    )
    told = pair.ours.run("ss", "-tnH", "state", "established")
    assert ":1790" in told or ":1791" in told
    assert ":179 " not in told


@feature("passive ends")
def test_passive_end_waits(pairing: Pairing, kind: type[Peer]) -> None:
    pair = pairing.pair(kind, mine={"passive": True})
    ours = [line.split() for line in pair.ours.run("ss", "-tnH", "state", "established").splitlines()]
    assert [line[2].endswith(":179") for line in ours] == [True], ours


@feature("passive ends")
def test_we_connect_to_passive_end(pairing: Pairing, kind: type[Peer]) -> None:
    pair = pairing.pair(kind, other={"passive": True})
    ours = [line.split() for line in pair.ours.run("ss", "-tnH", "state", "established").splitlines()]
    assert [line[3].endswith(":179") for line in ours] == [True], ours


@feature("dynamic neighbours")
def test_neighbour_from_a_range(pairing: Pairing, kind: type[Peer]) -> None:
    a, b = pairing.lab.site("a"), pairing.lab.site("b")
    ours = Router(
        OUR_AS,
        "10.9.0.1",
        (Neighbour("10.9.0.0", THEIR_AS, dynamic="10.9.0.0/24", passive=True),),
        (Route("10.1.0.0/24"),),
    )
    us = pairing.subject(ours, start=True)
    them = pairing.add(kind, "b", Router(THEIR_AS, "10.9.0.2", (Neighbour(a.ipv4, OUR_AS),), (Route("10.2.0.0/24"),)))
    us.wait_route("10.2.0.0/24")
    them.wait_route("10.1.0.0/24")
    assert us.session(b.ipv4).up


@feature("timers as seen by the peer")
def test_timers_are_seen_by_the_peer(pairing: Pairing, kind: type[Peer]) -> None:
    pair = pairing.pair(kind, mine={"hold_time_s": 30, "keepalive_s": 7}, other={"hold_time_s": 60})
    assert pair.theirs.session(pair.at_theirs).hold_time_s == 30
    assert pair.ours.session(pair.at_ours).hold_time_s == 30


@feature("hold time runs out")
def test_silent_peer_is_dropped(pairing: Pairing, kind: type[Peer]) -> None:
    pair = pairing.pair(
        kind, session={"hold_time_s": 6, "keepalive_s": 2}, their_routes=(Route("10.2.0.0/24"),)
    )  # fmt: skip
    pair.ours.wait_route("10.2.0.0/24")
    pair.theirs.pause()
    pair.ours.wait_down(pair.at_ours, 30)
    pair.ours.wait_gone("10.2.0.0/24")
    if "kernel" in pair.ours.can:
        pair.ours.wait_kernel("10.2.0.0/24", [])
    pair.theirs.resume()
    pair.wait_up(60)
    pair.ours.wait_route("10.2.0.0/24")


@feature("shutdown with words (RFC 9003)")
@needs("shutdown-message")
def test_shutdown_message_arrives(pairing: Pairing, kind: type[Peer]) -> None:
    pair = pairing.pair(kind)
    pair.theirs.shut(pair.at_theirs, "maintenance-until-noon")
    pair.ours.wait_down(pair.at_ours)
    until(
        lambda: "maintenance-until-noon" in pair.ours.session(pair.at_ours).said + pair.ours.log_tail(500), 20,
        lambda: f"their words are told: {pair.ours.session(pair.at_ours).said}",
    )  # fmt: skip


@feature("shutdown with words (RFC 9003)")
@needs("shutdown-message")
def test_our_words_arrive_at_the_peer(pairing: Pairing, kind: type[Peer]) -> None:
    pair = pairing.pair(kind)
    pair.ours.shut(pair.at_ours, "back-in-a-minute")
    until(
        lambda: "back-in-a-minute" in pair.theirs.session(pair.at_theirs).said + pair.theirs.log_tail(500), 20,
        lambda: f"our words are told: {pair.theirs.session(pair.at_theirs).said}",
    )  # fmt: skip
    pair.wait_up(60)


@feature("session over link-local addresses")
@needs("link-local")
def test_link_local_session(pairing: Pairing, kind: type[Peer]) -> None:
    a, b = pairing.lab.site("a"), pairing.lab.site("b")
    them = pairing.add(
        kind,
        "b",
        Router(THEIR_AS, "10.9.0.2", (Neighbour(a.link_local, OUR_AS, interface="eth0"),), (Route("fd02::/64"),)),
    )
    us = pairing.subject(
        Router(OUR_AS, "10.9.0.1", (Neighbour(b.link_local, THEIR_AS, interface="eth0"),), (Route("fd01::/64"),)),
        start=True,
    )
    us.wait_up(b.link_local)
    us.wait_route("fd02::/64")
    them.wait_route("fd01::/64")
    if "kernel" in us.can:
        us.wait_kernel("fd02::/64", [b.link_local])


@feature("four-octet AS numbers")
def test_four_octet_as_numbers(pairing: Pairing, kind: type[Peer]) -> None:
    own, other = (Route("10.1.0.0/24"),), (Route("10.2.0.0/24"),)
    pair = pairing.pair(kind, our_as=4_200_000_001, their_as=4_200_000_002, routes=own, their_routes=other)
    assert pair.theirs.wait_route("10.1.0.0/24").as_path == (4_200_000_001,)
    assert pair.ours.wait_route("10.2.0.0/24").as_path == (4_200_000_002,)


@feature("local AS")
def test_local_as_of_a_session(pairing: Pairing, kind: type[Peer]) -> None:
    pair = pairing.pair(
        kind, our_as=OUR_AS, mine={"local_as": 65099}, other={"asn": 65099}, routes=(Route("10.1.0.0/24"),)
    )  # fmt: skip
    assert pair.theirs.wait_route("10.1.0.0/24").as_path[0] == 65099
