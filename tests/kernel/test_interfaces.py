"""The driver of routes and interfaces, in a namespace of its own."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any

import pytest

from libs.netlink.codec import DumpInterrupted
from libs.netlink.links import Link
from libs.netlink.netns import in_netns
from libs.netlink.routes import Route, RouteKey
from libs.netlink.socket import NetlinkSocket
from libs.netlink.sysctl import SysctlError
from libs.policy.output import Block, Pool, Workload, WorkloadKey
from libs.testkit.netns import Namespace, namespace, run
from services.felix.core.interface_exclude import NOTHING, parse
from services.felix.core.overlay import ClusterRoutes
from services.felix.core.route_settings import RouteSettings
from services.felix.core.routing import Routing
from services.felix.drivers import interfaces as module
from services.felix.drivers import workload_sysctls as sysctls
from services.felix.drivers.interfaces import InterfaceDriver

pytestmark = pytest.mark.kernel
POOL, BLOCK, OTHER_BLOCK = "10.65.0.0/16", "10.65.0.0/26", "10.65.1.0/26"


def test_asking_for_the_mtu_or_addresses_does_not_hide_what_must_be_compared() -> None:
    with namespace("ifc") as space:
        run(space, ["ip", "link", "add", "eth0", "mtu", "1400", "type", "veth", "peer", "name", "other"])
        run(space, ["ip", "link", "set", "other", "up"])
        run(space, ["ip", "link", "set", "eth0", "up"])
        run(space, ["ip", "addr", "add", "192.0.2.7/24", "dev", "eth0"])

        async def scenario() -> None:
            driver, routing = InterfaceDriver(("cali",)), Routing("n1", ClusterRoutes.ENABLED)
            try:
                routing.put_pool(POOL, Pool(cidr=POOL))
                routing.put_block(BLOCK, Block(cidr=BLOCK, node="n1"))
                assert await driver.step(routing, {}) == {}
                assert BLOCK in run(space, ["ip", "route", "show", "type", "blackhole"])
                run(space, ["ip", "route", "del", "blackhole", BLOCK, "proto", "80"])
                driver.resync()
                assert driver.underlay_mtu_bytes() == 1400
                assert driver.host_addresses()["eth0"] == {"192.0.2.7"}
                assert await driver.step(routing, {}) == {}
                assert BLOCK in run(space, ["ip", "route", "show", "type", "blackhole"])
            finally:
                await driver.close()

        with in_netns(f"/run/netns/{space.name}"):
            asyncio.run(scenario())


def test_a_listing_that_fails_once_is_told_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(netlink: NetlinkSocket) -> list[Link]:
        raise DumpInterrupted(errno.EINTR, "links")

    with namespace("ifc") as space:

        async def scenario() -> None:
            driver, routing = InterfaceDriver(("cali",)), Routing("n1", ClusterRoutes.ENABLED)
            key, waiting = WorkloadKey("k8s", "ns1/web", "eth0"), Workload(name="cali1", nets4=("10.65.0.5/32",))
            try:
                routing.put_pool(POOL, Pool(cidr=POOL))
                routing.put_block(BLOCK, Block(cidr=BLOCK, node="n1"))
                routing.put_workload(key, waiting)
                assert await driver.step(routing, {key: waiting}) == {}
                routing.put_block(BLOCK, Block(cidr=BLOCK, node="n2"))
                routing.put_block(OTHER_BLOCK, Block(cidr=OTHER_BLOCK, node="n1"))
                routing.put_workload(key, None)
                driver.resync()
                with monkeypatch.context() as patch:
                    patch.setattr(module, "list_links", interrupted)
                    assert "links" in (await driver.step(routing, {}))["routes"]
                    assert driver.underlay_mtu_bytes(), "as known before"
                    with pytest.raises(DumpInterrupted):
                        driver.host_addresses()
                assert await driver.step(routing, {}) == {}
                shown = run(space, ["ip", "route", "show", "type", "blackhole"])
                assert BLOCK not in shown
                assert OTHER_BLOCK in shown
                assert not driver._owners, "connections of the pod that went are forgotten"
                assert not driver._waiting
            finally:
                await driver.close()

        with in_netns(f"/run/netns/{space.name}"):
            asyncio.run(scenario())


POD4, POD6 = "10.65.0.5/32", "fd00:65::5/128"


@contextmanager
def a_pod() -> Iterator[tuple[Namespace, Callable[..., str]]]:
    """A node's namespace with cali1, which is down, and its peer, which counts as a workload's too."""
    with namespace("ifc") as space:
        run(space, ["ip", "link", "add", "cali1", "type", "veth", "peer", "name", "cali1p"])
        run(space, ["ip", "link", "set", "cali1p", "up"])
        yield space, lambda *command: run(space, ["ip", *command])


async def follow(space: Namespace, ip: Callable[..., str], steps: Sequence[tuple[tuple[str, ...], bool]]) -> int:
    """Run each command, and see the pod's routes come (True) or go. Returns how often everything was compared."""
    driver, routing = InterfaceDriver(("cali",)), Routing("n1", ClusterRoutes.ENABLED)
    wake, compared = asyncio.Event(), 0
    workload = Workload(name="cali1", nets4=(POD4,), nets6=(POD6,))
    key = WorkloadKey("k8s", "ns1/web", "eth0")
    routing.put_workload(key, workload)
    read = driver._driver.read

    async def counting() -> dict[RouteKey, Route]:
        nonlocal compared
        compared += 1
        return await read()

    driver._driver.read = counting  # type: ignore[method-assign]

    async def reconcile() -> None:
        while True:
            await driver.step(routing, {key: workload})
            await wake.wait()
            wake.clear()

    def routes() -> set[str]:
        shown = [ip(family, "route", "show", "proto", one) for family in ("-4", "-6") for one in ("80", "boot")]
        return {line.split()[0] for text in shown for line in text.splitlines()}

    tasks = [asyncio.ensure_future(driver.watch(wake.set)), asyncio.ensure_future(reconcile())]
    try:
        for command, there in steps:
            if command:
                ip(*command)
            wanted = {POD4.split("/")[0], POD6.split("/")[0]} if there else set()
            async with asyncio.timeout(10):
                while not compared or routes() != wanted or there != ("cali1" in driver.running()):
                    assert not tasks[1].done(), f"{command}: it stopped"
                    await asyncio.sleep(0.02)
        assert set(driver._links) == {line.split()[0].split("@")[0] for line in ip("-br", "link").splitlines()}
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await driver.close()
    return compared


def in_the_node(space: Namespace, work: Coroutine[Any, Any, int]) -> int:
    with in_netns(f"/run/netns/{space.name}"):
        return asyncio.run(work)


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_a_workloads_routes_follow_its_interface_without_comparing_everything(family: str) -> None:
    with a_pod() as (space, ip):
        steps = [
            ((), False),
            (("link", "set", "cali1", "up"), True),
            (("link", "set", "cali1", "down"), False),
            (("link", "set", "cali1", "up"), True),
            ((family, "route", "del", (POD4 if family == "-4" else POD6), "dev", "cali1"), True),
            (("link", "del", "cali1"), False),
            (("link", "add", "cali1", "type", "veth", "peer", "name", "cali1p"), False),
            (("link", "set", "cali1p", "up"), False),
            (("link", "set", "cali1", "up"), True),
        ]
        assert in_the_node(space, follow(space, ip, steps)) <= 2


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_a_route_that_somebody_overwrites_is_put_back_without_comparing_everything(family: str) -> None:
    mine = POD4 if family == "-4" else POD6
    with a_pod() as (space, ip):
        steps = [
            ((), False),
            (("link", "set", "cali1", "up"), True),
            ((family, "route", "replace", mine, "dev", "lo", "proto", "static", "metric", "1024"), True),
        ]
        assert in_the_node(space, follow(space, ip, steps)) <= 2
        assert "static" not in ip(family, "route", "show", mine)


def test_a_stray_route_of_ours_goes_and_a_renamed_interface_is_found() -> None:
    with a_pod() as (space, ip):
        run(space, ["ip", "link", "set", "cali1", "name", "other"])
        run(space, ["ip", "link", "set", "other", "up"])
        steps = [
            ((), False),
            (("route", "add", "10.65.0.9/32", "dev", "other", "proto", "80"), False),
            (("link", "set", "other", "down"), False),
            (("link", "set", "other", "name", "cali1"), False),
            (("link", "set", "cali1", "up"), True),
            (("-6", "route", "add", "fd00:65::9/128", "dev", "cali1", "proto", "80"), True),
        ]
        in_the_node(space, follow(space, ip, steps))


def test_forwarding_is_switched_on_for_both_families_or_for_ipv4_alone() -> None:
    for ipv6 in (True, False):
        with namespace("ifc") as space:
            for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
                run(space, ["sysctl", "-qw", f"{key}=0"])

            async def scenario(ipv6: bool = ipv6) -> None:
                driver = InterfaceDriver(("cali",), ipv6=ipv6)
                driver.forward()
                await driver.close()

            with in_netns(f"/run/netns/{space.name}"):
                asyncio.run(scenario())
            assert run(space, ["sysctl", "-n", "net.ipv4.ip_forward"]).strip() == "1"
            assert run(space, ["sysctl", "-n", "net.ipv6.conf.all.forwarding"]).strip() == str(int(ipv6))


@pytest.mark.parametrize(
    ("own", "net", "pod"), [("192.0.2.7", "192.0.2.7/32", POD4), ("2001:db8::7", "2001:db8::7/128", POD6)]
)
def test_an_excluded_interface_has_no_say_and_a_change_counts_at_once(own: str, net: str, pod: str) -> None:
    """kube-ipvs0 holds the addresses of services: here also one that the host has, and a smaller MTU."""
    with namespace("ifc") as space:
        run(space, ["ip", "link", "add", "kube-ipvs0", "mtu", "1300", "type", "veth", "peer", "name", "p0"])
        run(space, ["ip", "link", "add", "eth0", "mtu", "1400", "type", "veth", "peer", "name", "p1"])
        for name in ("kube-ipvs0", "p0", "eth0", "p1"):
            run(space, ["ip", "link", "set", name, "up"])
        for name in ("kube-ipvs0", "eth0"):
            run(space, ["ip", "addr", "add", own, "dev", name, *(["nodad"] if ":" in own else [])])

        async def scenario() -> None:
            driver = InterfaceDriver(("cali",))

            def held() -> dict[str, frozenset[str]]:
                return {name: those for name, those in driver.host_addresses().items() if name != "lo"}

            try:
                driver.configure("^(eth|kube)", False, RouteSettings())
                assert held() == {"eth0": {own}}
                assert driver.underlay_mtu_bytes() == 1400
                assert driver.index_of(ip_address(own)) == driver._links["eth0"].index
                driver.configure("^(eth|kube)", False, RouteSettings(), exclude=NOTHING)
                assert held() == {"eth0": {own}, "kube-ipvs0": {own}}
                assert driver.underlay_mtu_bytes() == 1300
                driver.configure("^(eth|kube)", False, RouteSettings(), exclude=parse("kube-ipvs0,/^eth[0-9]$/"))
                assert held() == {}
                assert driver.index_of(ip_address(own)) is None
            finally:
                await driver.close()

        with in_netns(f"/run/netns/{space.name}"):
            asyncio.run(scenario())


def test_what_comes_and_goes_on_an_excluded_interface_wakes_nobody() -> None:
    """kube-proxy gives kube-ipvs0 an address for each service."""
    with namespace("ifc") as space:
        for name, peer in (("kube-ipvs0", "p0"), ("eth0", "p1")):
            run(space, ["ip", "link", "add", name, "type", "veth", "peer", "name", peer])

        async def scenario() -> int:
            driver, wakes, seen = InterfaceDriver(("cali",)), 0, asyncio.Event()

            def woken() -> None:
                nonlocal wakes
                wakes += 1
                seen.set()

            watch = asyncio.ensure_future(driver.watch(woken))
            try:
                await asyncio.sleep(0)  # it listens
                driver.host_addresses()
                for number in range(20):
                    run(space, ["ip", "addr", "add", f"10.96.0.{number}/32", "dev", "kube-ipvs0"])
                run(space, ["ip", "addr", "add", "192.0.2.8/32", "dev", "eth0"])
                async with asyncio.timeout(10):
                    await seen.wait()
                assert "192.0.2.8" in driver.host_addresses()["eth0"]
                return wakes
            finally:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)
                await driver.close()

        assert in_the_node(space, scenario()) == 1


def test_an_ipv4_address_counts_also_where_it_is_link_local() -> None:
    """A node may have no other; IPv6 gives each interface one."""
    with namespace("ifc") as space:
        run(space, ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "p0"])

        async def scenario() -> None:
            driver, woken = InterfaceDriver(("cali",)), asyncio.Event()
            watch = asyncio.ensure_future(driver.watch(woken.set))
            try:
                await asyncio.sleep(0)  # it listens
                assert driver.index_of(ip_address("169.254.7.7")) is None
                run(space, ["ip", "addr", "add", "169.254.7.7/16", "dev", "eth0"])
                async with asyncio.timeout(10):
                    await woken.wait()
                assert driver.index_of(ip_address("169.254.7.7")) == driver._links["eth0"].index
            finally:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)
                await driver.close()

        with in_netns(f"/run/netns/{space.name}"):
            asyncio.run(scenario())


def test_interfaces_are_compared_without_reading_routes_unless_they_are_others() -> None:
    with a_pod() as (space, ip):
        ip("link", "set", "cali1", "up")

        async def scenario() -> int:
            driver, routing = InterfaceDriver(("cali",)), Routing("n1", ClusterRoutes.ENABLED)
            workload, key = Workload(name="cali1", nets4=(POD4,), nets6=(POD6,)), WorkloadKey("k8s", "ns1/web", "eth0")
            routing.put_workload(key, workload)
            read, compared = driver._driver.read, 0

            async def counting() -> dict[RouteKey, Route]:
                nonlocal compared
                compared += 1
                return await read()

            driver._driver.read = counting  # type: ignore[method-assign]

            def proxy_arp(value: str = "") -> str:
                name = "net.ipv4.conf.cali1.proxy_arp"
                return run(space, ["sysctl", "-qw", f"{name}={value}"] if value else ["sysctl", "-n", name]).strip()

            try:
                assert await driver.step(routing, {key: workload}) == {}
                assert (proxy_arp(), compared) == ("1", 1)
                proxy_arp("0")
                ip("route", "del", POD4, "dev", "cali1")
                ip("addr", "add", "fe80::7/64", "dev", "cali1")  # as the kernel does, at a time of its own
                assert await driver.step(routing, {key: workload}) == {}
                assert proxy_arp() == "0", "nobody told"
                driver.resync_interfaces()
                assert await driver.step(routing, {key: workload}) == {}
                assert (proxy_arp(), compared) == ("1", 1), "settings are put right, routes are not read"
                assert POD4.split("/")[0] not in ip("route")
                ip("link", "set", "cali1", "down")  # takes the routes along; without events, nobody knows
                ip("link", "set", "cali1", "mtu", "1300", "up")
                driver.resync_interfaces()
                assert await driver.step(routing, {key: workload}) == {}
                assert POD4.split("/")[0] in ip("route")
                assert driver._links["cali1"].mtu_bytes == 1300
                return compared
            finally:
                await driver.close()

        assert in_the_node(space, scenario()) == 2


def test_a_setting_of_an_interface_that_cannot_be_made_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str, value: object) -> None:
        raise SysctlError(f"{path}: no")

    with a_pod() as (space, ip):
        ip("link", "set", "cali1", "up")

        async def scenario() -> int:
            driver, routing = InterfaceDriver(("cali",)), Routing("n1", ClusterRoutes.ENABLED)
            workload, key = Workload(name="cali1", nets4=(POD4,)), WorkloadKey("k8s", "ns1/web", "eth0")
            routing.put_workload(key, workload)
            try:
                with monkeypatch.context() as patch:
                    patch.setattr(sysctls, "write_sysctl", refused)
                    assert "interface cali1" in await driver.step(routing, {key: workload})
                    assert "interface cali1" in await driver.step(routing, {key: workload}), "it still is wrong"
                assert await driver.step(routing, {key: workload}) == {}
                return int(run(space, ["sysctl", "-n", "net.ipv4.conf.cali1.proxy_arp"]))
            finally:
                await driver.close()

        assert in_the_node(space, scenario()) == 1
