"""Restarts under traffic (RFC 4724, RFC 8538): packets through the kernel's routes, of which none may be lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from libs.testkit.processes import Probe
from libs.testkit.reach import Flow
from libs.testkit.routers.lab import LostRoutes
from libs.testkit.routers.model import Route
from libs.testkit.routers.peer import Peer, until
from libs.testkit.routers.raw import RawPeer, announcement, capability, end_of_rib
from libs.testkit.traffic import Load
from tests.interop.pairs import THEIR_AS, Pair, Pairing
from tests.interop.test_errors import opposite

feature, needs = pytest.mark.feature, pytest.mark.needs
NETS = (("10.8.1.0/24", "fd08:1::/64"), ("10.8.2.0/24", "fd08:2::/64"))


class Hosts:
    """A host behind each router, and steady packets from one to the other by the routes that BGP brought."""

    def __init__(self, pairing: Pairing, pair: Pair) -> None:
        self.pair = pair
        self.one = pairing.lab.host("ha", pair.a, 1)
        self.other = pairing.lab.host("hb", pair.b, 2)

    def pin_their_routes(self) -> None:
        """What they do with their own kernel while they restart is not in question: FRR's zebra takes IPv6 routes out
        for some milliseconds. In a table of its own, so that their routes can still be seen to come back.
        """
        for net in NETS[0]:
            family, here = ("-6", self.pair.a.ipv6) if ":" in net else ("-4", self.pair.a.ipv4)
            self.pair.theirs.run("ip", family, "route", "add", net, "via", here, "table", "77")
            self.pair.theirs.run("ip", family, "rule", "add", "to", net, "lookup", "77", "pref", "100")

    def wait_routes(self) -> None:
        for four, six in NETS[1:]:
            self.pair.ours.wait_kernel(four, [self.pair.b.ipv4])
            self.pair.ours.wait_kernel(six, [self.pair.b.ipv6])
        for four, six in NETS[:1]:
            self.pair.theirs.wait_kernel(four, [self.pair.a.ipv4])
            self.pair.theirs.wait_kernel(six, [self.pair.a.ipv6])

    @contextmanager
    def traffic(self) -> Iterator[Load]:
        """Fails when a packet was lost."""
        server = Probe("hb", self.other.space, [], [9])
        try:
            flows = [Flow(self.one.space.path, ip_address(to), 9, "udp") for to in (self.other.ipv4, self.other.ipv6)]
            with Load(udp=flows, udp_per_s=200) as load:
                yield load
            assert load.result.udp_sent > 100
            assert load.result.lost_nothing, load.result
        finally:
            server.stop()


def graceful_pair(pairing: Pairing, kind: type[Peer], time_s: int = 120) -> tuple[Pair, Hosts]:
    pair = pairing.pair(
        kind, families=("ipv4", "ipv6"), session={"graceful_restart": time_s},
        routes=tuple(Route(net) for net in NETS[0]), their_routes=tuple(Route(net) for net in NETS[1]), start=False,
    )  # fmt: skip
    hosts = Hosts(pairing, pair)
    pair.theirs.start()
    pair.ours.start()
    pair.wait_up()
    hosts.wait_routes()
    return pair, hosts


@feature("graceful restart: the peer crashes and comes back")
@needs("gr", "kernel")
def test_no_packet_is_lost_when_the_peer_restarts(pairing: Pairing, kind: type[Peer]) -> None:
    pair, hosts = graceful_pair(pairing, kind)
    hosts.pin_their_routes()
    with hosts.traffic(), LostRoutes(pair.a.space) as lost:
        pair.theirs.kill()
        for family in pair.families:
            pair.ours.wait_down(pair.b.address(family))
        for prefix in NETS[1]:
            assert pair.ours.kernel(prefix), "the route stays while the peer restarts"
            assert [route.stale for route in pair.ours.routes(prefix)] == [True]
        pair.theirs.start()
        pair.wait_up(60)
        for prefix in NETS[1]:
            pair.ours.wait_route(prefix)
        hosts.wait_routes()
        assert lost.seen() == []


@feature("graceful restart: we crash and come back")
@needs("gr", "kernel")
def test_no_packet_is_lost_when_we_restart(pairing: Pairing, kind: type[Peer]) -> None:
    pair, hosts = graceful_pair(pairing, kind)
    with hosts.traffic():
        pair.ours.kill()
        for family in pair.families:
            pair.theirs.wait_down(pair.a.address(family))
        assert pair.theirs.kernel(NETS[0][0]), "the peer keeps our routes while we restart"
        pair.ours.start()
        pair.wait_up(60)
        hosts.wait_routes()
        for prefix in NETS[1]:
            pair.ours.wait_route(prefix)


@feature("graceful restart: we are stopped and started by our manager")
@needs("gr", "kernel")
def test_no_packet_is_lost_when_we_are_stopped_and_started(pairing: Pairing, kind: type[Peer]) -> None:
    if not pairing.keeps_routes_when_stopped:
        pytest.skip("the router opposite cannot: a subject that withdraws when it is stopped")
    pair, hosts = graceful_pair(pairing, kind)
    with hosts.traffic():
        pair.ours.stop()
        for family in pair.families:
            pair.theirs.wait_down(pair.a.address(family))
        pair.ours.start()
        pair.wait_up(60)
        hosts.wait_routes()


@feature("graceful restart: the peer does not come back")
@needs("gr")
def test_stale_routes_go_after_the_restart_time(pairing: Pairing, kind: type[Peer]) -> None:
    pair = pairing.pair(kind, session={"graceful_restart": 15}, their_routes=(Route("10.2.0.0/24"),))
    pair.ours.wait_route("10.2.0.0/24")
    pair.theirs.kill()
    pair.ours.wait_down(pair.at_ours)
    assert [route.stale for route in pair.ours.routes("10.2.0.0/24")] == [True]
    pair.ours.wait_gone("10.2.0.0/24", timeout_s=60)
    if "kernel" in pair.ours.can:
        pair.ours.wait_kernel("10.2.0.0/24", [])


@feature("without graceful restart: a crash takes the routes at once")
def test_routes_go_at_once_without_graceful_restart(pairing: Pairing, kind: type[Peer]) -> None:
    pair = pairing.pair(kind, their_routes=(Route("10.2.0.0/24"),))
    pair.ours.wait_route("10.2.0.0/24")
    pair.theirs.kill()
    pair.ours.wait_gone("10.2.0.0/24")
    pair.theirs.start()
    pair.wait_up(60)
    pair.ours.wait_route("10.2.0.0/24")


@feature("graceful restart: what End-of-RIB sweeps")
def test_end_of_rib_sweeps_what_did_not_come_again(pairing: Pairing) -> None:
    here = opposite(pairing, graceful_restart=120)
    again = capability(64, bytes((0x80, 120, 0, 1, 1, 0x80)))  # restarted; 120 s; IPv4 unicast, forwarding kept
    first = capability(64, bytes((0x00, 120, 0, 1, 1, 0x80)))

    def say(raw: RawPeer, *prefixes: str) -> None:
        raw.send(*(announcement(Route(text, as_path=(THEIR_AS,)), "10.9.0.2") for text in prefixes))

    raw = here.up(extra=first)
    say(raw, "10.2.0.0/24", "10.3.0.0/24")
    raw.send(end_of_rib("ipv4"))
    here.ours.wait_route("10.3.0.0/24")
    raw.close()
    here.ours.wait_down(here.address)
    assert {route.stale for route in here.ours.learned("ipv4")} == {True}
    with here.up(extra=again) as raw:
        say(raw, "10.2.0.0/24")
        here.ours.wait_route("10.2.0.0/24")
        assert len(here.ours.learned("ipv4")) == 2, "the other waits for End-of-RIB"
        raw.send(end_of_rib("ipv4"))
        here.ours.wait_gone("10.3.0.0/24")
        here.ours.wait_route("10.2.0.0/24")


@feature("graceful restart: forwarding state not kept by the peer")
def test_peer_that_lost_its_forwarding_state(pairing: Pairing) -> None:
    """The F bit is clear in the new OPEN: its stale routes go at once (RFC 4724 section 4.2)."""
    here = opposite(pairing, graceful_restart=120)
    raw = here.up(extra=capability(64, bytes((0x00, 120, 0, 1, 1, 0x80))))
    raw.send(announcement(Route("10.2.0.0/24", as_path=(THEIR_AS,)), "10.9.0.2"), end_of_rib("ipv4"))
    here.ours.wait_route("10.2.0.0/24")
    raw.close()
    here.ours.wait_down(here.address)
    with here.up(extra=capability(64, bytes((0x80, 120, 0, 1, 1, 0x00)))):
        here.ours.wait_gone("10.2.0.0/24")


@feature("graceful restart: End-of-RIB of ours")
def test_we_send_end_of_rib(pairing: Pairing) -> None:
    here = opposite(pairing, graceful_restart=120)
    here.ours.announce(Route("10.1.0.0/24"))
    with here.up(extra=capability(64, bytes((0x00, 120, 0, 1, 1, 0x80)))) as raw:
        raw.await_update("10.1.0.0/24")
        until(lambda: ended(raw), 20, "End-of-RIB")
        at = [bool(heard.announced) for heard in raw.heard]
        assert at.index(True) < at.index(False), "routes first, then End-of-RIB"


def ended(raw: RawPeer) -> bool:
    """Whether an UPDATE came that says nothing at all; waits for one message more when not."""
    if any(not (heard.announced or heard.withdrawn or heard.attributes) for heard in raw.heard):
        return True
    raw.hear()
    return False
