"""Routes of one protocol through the reconciler: the same promises from the fake and from the kernel."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

import pytest

from libs.netlink.drivers import FakeRoutes, Ours, RouteDriver
from libs.netlink.links import VethEnd, create_veth, get_link, set_link
from libs.netlink.routes import (
    NextHop,
    Route,
    RouteKey,
    blackhole_route,
    device_route,
    gateway_route,
    put_request,
)
from libs.netlink.socket import NETLINK_ROUTE, NetlinkSocket
from libs.reconcile import Diff, Reconciler
from libs.testkit import netns


@dataclass
class World:
    driver: FakeRoutes | RouteDriver
    up: int  # an interface that is up
    down: int  # and one that is not
    ns: netns.Namespace | None = None

    def reconciler(self) -> Reconciler[RouteKey, Route]:
        reconciler = Reconciler(self.driver)
        reconciler.in_sync = True
        return reconciler

    def foreign(self, route: Route) -> None:
        """Somebody adds a route by hand."""
        if self.ns is None:
            assert isinstance(self.driver, FakeRoutes)
            self.driver.routes[route.key] = route
        else:
            with NetlinkSocket(NETLINK_ROUTE, self.ns.path) as netlink:
                netlink.request(*put_request(route))

    def foreign_left(self, route: Route) -> bool:
        if self.ns is None:
            assert isinstance(self.driver, FakeRoutes)
            return route.key in self.driver.routes
        shown = self.ns.run("ip", "-o", "route", "show", "proto", str(route.protocol))
        return str(route.dst).removesuffix("/32") in shown.split()


@pytest.fixture(params=["fake", pytest.param("kernel", marks=pytest.mark.kernel)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    if request.param == "fake":
        fake = FakeRoutes()
        fake.links = {2: True, 3: False}
        yield World(fake, 2, 3)
        return
    if not netns.can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    with netns.namespace("rt") as ns, NetlinkSocket(NETLINK_ROUTE, ns.path) as netlink:
        indexes = []
        for name in ("up0", "down0"):
            create_veth(netlink, VethEnd(name), VethEnd(name + "p"))
            link = get_link(netlink, name)
            peer = get_link(netlink, name + "p")
            assert link is not None
            assert peer is not None
            set_link(netlink, peer.index, up=True)
            indexes.append(link.index)
        set_link(netlink, indexes[0], up=True)
        driver = RouteDriver(netns=ns.path)
        try:
            yield World(driver, indexes[0], indexes[1], ns)
        finally:
            driver.close()


def wanted(world: World) -> dict[RouteKey, Route]:
    routes = [
        device_route(ip_network("10.0.0.1/32"), world.up),
        device_route(ip_network("fd00::1/128"), world.up),
        gateway_route(ip_network("10.1.0.0/26"), ip_address("10.0.0.1"), world.up),
        gateway_route(ip_network("10.2.0.0/26"), ip_address("192.0.2.1"), world.up, onlink=True, mtu_bytes=1450),
        gateway_route(ip_network("fd01::/122"), ip_address("fd00::1"), world.up),
        gateway_route(ip_network("fd02::/122"), ip_address("fd99::1"), world.up, onlink=True),
        blackhole_route(ip_network("10.3.0.0/26")),
        blackhole_route(ip_network("fd03::/122"), metric=77),
        Route(
            ip_network("10.4.0.0/26"),
            (NextHop(world.up, ip_address("192.0.2.1"), True), NextHop(world.up, ip_address("192.0.2.2"), True, 3)),
            metric=5,
        ),
        Route(
            ip_network("fd04::/64"),
            (NextHop(world.up, ip_address("fd99::1"), True), NextHop(world.up, ip_address("fd99::2"), True)),
        ),
    ]
    return {route.key: route for route in routes}


async def test_every_kind_of_route_reads_back_as_it_was_written(world: World) -> None:
    reconciler = world.reconciler()
    reconciler.desired = wanted(world)
    assert await reconciler.step() == {}
    assert await world.driver.read() == wanted(world)


async def test_restart_finds_its_routes_and_removes_only_the_unwanted(world: World) -> None:
    first = world.reconciler()
    first.desired = wanted(world)
    await first.step()
    gone = blackhole_route(ip_network("10.3.0.0/26")).key
    again = world.reconciler()
    again.desired = {key: route for key, route in wanted(world).items() if key != gone}
    assert await again.step() == {}
    assert await world.driver.read() == again.desired


async def test_changed_route_is_replaced_in_place(world: World) -> None:
    reconciler = world.reconciler()
    reconciler.desired = wanted(world)
    await reconciler.step()
    key = RouteKey(ip_network("10.2.0.0/26"), 254, 0)
    reconciler.put(key, gateway_route(key.dst, ip_address("192.0.2.7"), world.up, onlink=True))
    assert await reconciler.step() == {}
    assert (await world.driver.read())[key].hops == (NextHop(world.up, ip_address("192.0.2.7"), True),)


async def test_routes_of_other_protocols_stay(world: World) -> None:
    foreign = device_route(ip_network("10.9.0.0/24"), world.up, protocol=3)
    world.foreign(foreign)
    reconciler = world.reconciler()
    assert await reconciler.step() == {}
    assert foreign.key not in await world.driver.read()
    assert await world.driver.apply(Diff({}, {foreign.key})) == {}
    assert world.foreign_left(foreign)


@pytest.mark.parametrize(
    ("kind", "code"),
    [("down", errno.ENETDOWN), ("missing", errno.ENODEV), ("unreachable gateway", errno.ENETUNREACH)],
)
async def test_refused_route_is_named_and_the_others_are_written(world: World, kind: str, code: int) -> None:
    dst = ip_network("10.5.0.1/32")
    bad = {
        "down": device_route(dst, world.down),
        "missing": device_route(dst, 4711),
        "unreachable gateway": gateway_route(dst, ip_address("203.0.113.1"), world.up),
    }[kind]
    good = device_route(ip_network("10.5.0.2/32"), world.up)
    failed = await world.driver.apply(Diff({bad.key: bad, good.key: good}, set()))
    assert failed.keys() == {bad.key}
    error = failed[bad.key]
    assert isinstance(error, OSError)
    assert error.errno == code
    assert await world.driver.read() == {good.key: good}


async def test_route_that_is_gone_already_counts_as_deleted(world: World) -> None:
    assert await world.driver.apply(Diff({}, {device_route(ip_network("10.6.0.0/24"), world.up).key})) == {}


async def test_route_of_another_protocol_is_refused_by_the_driver(world: World) -> None:
    route = device_route(ip_network("10.6.0.0/24"), world.up, protocol=81)
    with pytest.raises(ValueError, match="not of protocol 80"):
        await world.driver.apply(Diff({route.key: route}, set()))


@pytest.mark.parametrize("everything", [False, True])
async def test_what_is_ours_on_our_interfaces_goes_and_the_rest_stays(world: World, everything: bool) -> None:
    """By the protocol that we use there, or because it leads where one of ours does; or whatever somebody put there."""

    def route(text: str, protocol: int, *, metric: int = 5) -> Route:
        return device_route(ip_network(text), world.up, protocol=protocol, metric=metric)

    ours = [route("10.7.0.1/32", 99), route("10.7.0.2/32", 80), route("10.7.0.3/32", 4, metric=9)]
    others = [route("10.7.0.4/32", 4)]
    never = [route("10.7.0.5/32", 81), route("10.7.0.6/32", 12), route("10.7.0.7/32", 2)]
    wanted = route("10.7.0.3/32", 99)
    for one in (*ours, *others, *never):
        world.foreign(one)
    world.driver.ours = Ours(
        device_protocol=99, links=frozenset({world.up}), places=frozenset({(wanted.dst, world.up)}), all=everything
    )
    reconciler = world.reconciler()
    reconciler.put(wanted.key, wanted)
    assert await reconciler.step() == {}
    gone = [*ours, *(others if everything else ())]
    assert [one.dst for one in (*ours, *others, *never) if world.foreign_left(one)] == [
        one.dst for one in (*others, *never) if one not in gone
    ]
    assert await world.driver.read() == {wanted.key: wanted}


async def test_on_interfaces_that_are_not_ours_only_our_own_protocol_counts(world: World) -> None:
    elsewhere = device_route(ip_network("10.7.0.1/32"), world.up, protocol=99)
    world.foreign(elsewhere)
    world.driver.ours = Ours(device_protocol=99, links=frozenset({world.down}), all=True)
    assert await world.reconciler().step() == {}
    assert world.foreign_left(elsewhere)


async def test_more_routes_than_one_slice(world: World) -> None:
    routes = [device_route(ip_network((0x0A000000 + i, 32)), world.up) for i in range(4500)]
    reconciler = world.reconciler()
    reconciler.desired = {route.key: route for route in routes}
    assert await reconciler.step() == {}
    assert len(await world.driver.read()) == 4500
    reconciler.desired = {}
    assert await reconciler.step() == {}
    assert await world.driver.read() == {}
