"""FibWriter and the filter of the monitor, on the kernel."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from libs.netlink.codec import ObjectExists
from libs.netlink.fib import FibWriter
from libs.netlink.links import list_links
from libs.netlink.monitor import ROUTES, Changed, Event, Monitor
from libs.netlink.routes import BLACKHOLE, PROTOCOL_BGP, PROTOCOL_KERNEL, NextHop, Route, list_routes
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from libs.testkit import netns
from services.bgp.core.paths import nlri

pytestmark = pytest.mark.kernel


@pytest.fixture
def space() -> Iterator[netns.Namespace]:
    if not netns.can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    with netns.namespace("fib") as made:
        made.run("ip", "link", "add", "va", "type", "veth", "peer", "name", "vb")
        made.run("ip", "link", "set", "va", "up")
        made.run("ip", "link", "set", "vb", "up")
        made.run("ip", "address", "add", "10.9.0.1/24", "dev", "va")
        made.run("ip", "address", "add", "fd00:9::1/64", "dev", "va", "nodad")
        made.run("ip", "address", "add", "10.9.1.1/24", "dev", "vb")
        yield made


def test_routes_of_both_families_are_written_replaced_and_dropped(space: netns.Namespace) -> None:
    with NetlinkSocket(NETLINK_ROUTE, space.path) as netlink:
        index = {link.name: link.index for link in list_links(netlink)}
        writer = FibWriter(netns=space.path)
        via = (NextHop(index["va"], IPv4Address("10.9.0.2")),)
        ecmp = (*via, NextHop(index["vb"], IPv4Address("10.9.1.2")))
        keys = [nlri(ip_network(text)) for text in ("10.1.0.0/16", "10.2.3.4/32", "0.0.0.0/1", "10.128.0.0/9")]
        assert (
            writer.put(2, [(keys[0], via), (keys[1], ecmp), (keys[2], ()), (keys[3], via)], 1024, exclusive=True) == {}
        )
        assert writer.put(2, [(keys[0], ecmp)], 1024, exclusive=False) == {}
        six = nlri(ip_network("fd00:a::/50"))
        via6 = (NextHop(index["va"], IPv6Address("fd00:9::2")),)
        assert writer.put(10, [(six, via6)], 1024, exclusive=True) == {}
        found = {route.dst: route for route in list_routes(netlink, protocol=PROTOCOL_BGP)}
        assert found[ip_network("10.1.0.0/16")] == Route(
            ip_network("10.1.0.0/16"), ecmp, protocol=PROTOCOL_BGP, metric=1024
        )
        assert found[ip_network("0.0.0.0/1")].type == BLACKHOLE
        assert found[ip_network("fd00:a::/50")].hops == via6
        assert len(found) == 5
        again = writer.put(2, [(keys[3], ecmp), (nlri(ip_network("10.7.0.0/16")), via)], 1024, exclusive=True)
        assert list(again) == [0]
        assert isinstance(again[0], ObjectExists)
        assert writer.drop(2, [*keys, nlri(ip_network("10.99.0.0/16"))], 1024) == {}
        assert writer.drop(10, [six], 1024) == {}
        assert [route.dst for route in list_routes(netlink, protocol=PROTOCOL_BGP)] == [ip_network("10.7.0.0/16")]
        writer.close()


def test_ten_thousand_in_one_call_with_one_refused(space: netns.Namespace) -> None:
    with NetlinkSocket(NETLINK_ROUTE, space.path) as netlink:
        index = {link.name: link.index for link in list_links(netlink)}
        writer = FibWriter(netns=space.path)
        via, nowhere = (NextHop(index["va"], IPv4Address("10.9.0.2")),), (NextHop(99, IPv4Address("10.9.0.2")),)
        routes = [(bytes((24, 20, n >> 8, n & 255)), via) for n in range(10_000)]
        routes[777] = (routes[777][0], nowhere)
        assert list(writer.put(2, routes, 1024, exclusive=True)) == [777]
        assert len(list_routes(netlink, protocol=PROTOCOL_BGP)) == 9_999
        writer.close()


async def test_monitor_leaves_out_what_we_change_ourselves(space: netns.Namespace) -> None:
    writer, seen = FibWriter(netns=space.path), asyncio.Queue[Event]()

    def note(event: Event) -> None:
        """Routes to its own addresses the kernel adds when it likes."""
        route = event.object if isinstance(event, Changed) else None
        if not isinstance(route, Route) or route.protocol != PROTOCOL_KERNEL:
            seen.put_nowait(event)

    monitor = Monitor(note, ROUTES, space.path, ignore_port=writer.port)
    monitor.start()
    try:
        with NetlinkSocket(NETLINK_ROUTE, space.path) as netlink:
            index = {link.name: link.index for link in list_links(netlink)}
        via = (NextHop(index["va"], IPv4Address("10.9.0.2")),)
        assert writer.put(2, [(nlri(ip_network("10.1.0.0/16")), via)], 1024, exclusive=True) == {}
        space.run("ip", "route", "del", "10.1.0.0/16")
        async with asyncio.timeout(10):
            event = await seen.get()
        assert seen.empty()
        assert isinstance(event, Changed)
        assert event.gone
        assert isinstance(event.object, Route)
        assert event.object.dst == ip_network("10.1.0.0/16")
    finally:
        monitor.stop()
        writer.close()


def test_what_ip_shows_is_what_was_meant(space: netns.Namespace) -> None:
    with NetlinkSocket(NETLINK_ROUTE, space.path) as netlink:
        index = {link.name: link.index for link in list_links(netlink)}
    writer = FibWriter(netns=space.path)
    via, direct = (NextHop(index["va"], IPv4Address("10.9.0.2")),), (NextHop(index["vb"]),)
    routes = [(nlri(ip_network("10.5.0.0/26")), via), (nlri(ip_network("10.6.0.1/32")), direct)]
    writer.put(2, routes, 1024, exclusive=True)
    shown = space.run("ip", "route", "show", "proto", "81")
    assert [line.strip() for line in shown.splitlines()] == [
        "10.5.0.0/26 via 10.9.0.2 dev va metric 1024",
        "10.6.0.1 dev vb scope link metric 1024",
    ]
    writer.close()
