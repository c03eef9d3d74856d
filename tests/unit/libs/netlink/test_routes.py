from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from libs.netlink.links import format_mac, parse_mac
from libs.netlink.monitor import decode_event
from libs.netlink.routes import (
    RTM_DELROUTE,
    NextHop,
    Route,
    blackhole_route,
    decode_route,
    device_route,
    gateway_route,
    put_request,
    slices,
)

ROUTES = [
    device_route(ip_network("10.0.0.1/32"), 7),
    device_route(ip_network("fd00::1/128"), 7, metric=512),
    gateway_route(ip_network("0.0.0.0/0"), ip_address("10.0.0.1"), 7, onlink=True, mtu_bytes=1450),
    gateway_route(ip_network("::/0"), ip_address("fe80::1"), 7, protocol=81),
    blackhole_route(ip_network("10.0.0.0/26")),
    Route(ip_network("10.1.0.0/16"), (NextHop(1, ip_address("10.0.0.1")), NextHop(2, None, False, 200)), table=1000),
    gateway_route(ip_network("10.3.0.0/16"), ip_address("fd00::1"), 7),  # of the other IP version (RTA_VIA)
    Route(ip_network("10.4.0.0/16"), (NextHop(1, ip_address("10.0.0.1")), NextHop(2, ip_address("fe80::1")))),
    Route(ip_network("10.2.0.0/16"), (NextHop(1),), source=ip_address("192.0.2.1"), metric=9),
]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: str(route.dst))
def test_route_survives_its_message(route: Route) -> None:
    assert decode_route(put_request(route)[2]) == route


def test_event_of_a_deleted_route_says_so() -> None:
    event = decode_event(RTM_DELROUTE, put_request(ROUTES[0])[2])
    assert event is not None
    assert event.gone
    assert event.object == ROUTES[0]


def test_ipv6_route_has_the_kernels_default_metric_and_no_scope() -> None:
    route = ROUTES[3]
    assert route.metric == 1024
    assert route == Route(route.dst, route.hops, protocol=81, metric=1024, scope=253)


def test_slices_cover_everything_once() -> None:
    assert [len(s) for s in slices(range(4500))] == [2000, 2000, 500]
    assert [i for s in slices(range(4500)) for i in s] == list(range(4500))


def test_mac_round_trip_and_bad_mac() -> None:
    assert format_mac(parse_mac("EE:ee:00:01:02:03")) == "ee:ee:00:01:02:03"
    for bad in ("ee:ee", "xx:ee:00:01:02:03", ""):
        with pytest.raises(ValueError, match=r"MAC|hexadecimal"):
            parse_mac(bad)
