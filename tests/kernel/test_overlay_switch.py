"""A change of encapsulation in a kernel: the route to a node's block is replaced, never removed and made again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_network

import pytest

from libs.netlink.monitor import ROUTES, Changed, events
from libs.netlink.netns import in_netns
from libs.netlink.routes import PROTOCOL_KERNEL, Route
from libs.policy.output import Block, NodeInfo, Pool
from libs.testkit.netns import Namespace, kernel_makes, namespace
from services.felix.core.overlay import ClusterRoutes
from services.felix.core.routing import Routing
from services.felix.drivers import overlays as module
from services.felix.drivers.interfaces import InterfaceDriver
from services.felix.drivers.overlays import OverlayKeeper

pytestmark = pytest.mark.kernel

POOLS = ("10.0.0.0/16", "fd00::/48")
DEVICES = {"vxlan": ("vxlan.calico", "vxlan-v6.calico"), "ipip": ("tunl0",)}  # the latter carries IPv4 alone
BLOCKS = ("10.0.2.0/26", "fd00::80/122")  # of n2, with its tunnel addresses inside
NODES = {
    "n1": NodeInfo(
        ipv4="192.0.2.1/24", ipv6="2001:db8::1/64", vxlan_ipv4="10.0.1.0", vxlan_ipv6="fd00::40", ipip_ipv4="10.0.1.1"
    ),
    "n2": NodeInfo(
        ipv4="192.0.2.2/24", ipv6="2001:db8::2/64", vxlan_ipv4="10.0.2.0", vxlan_ipv6="fd00::80", ipip_ipv4="10.0.2.1"
    ),
}


@contextmanager
def a_node() -> Iterator[Namespace]:
    with namespace("ov") as space:
        for command in (
            "link add eth0 type veth peer name wire",
            "link set wire up",
            "link set eth0 up",
            "addr add 192.0.2.1/24 dev eth0",
            "addr add 2001:db8::1/64 dev eth0 nodad",
        ):
            space.run("ip", *command.split())
        yield space


class Felix:
    """The part of a pass that writes routes (services/felix/shell/dataplane.py)."""

    def __init__(self) -> None:
        self.routing = Routing("n1", ClusterRoutes.ENABLED)
        self.routes = InterfaceDriver(("cali",))
        self.keeper = OverlayKeeper(self.routes)
        for name, info in NODES.items():
            self.routing.put_node(name, info)
        for cidr in BLOCKS:
            self.routing.put_block(cidr, Block(cidr=cidr, node="n2"))

    async def step(self, mode: str, kind: str = "vxlan") -> None:
        for cidr, _ in zip(POOLS, DEVICES[kind], strict=False):
            vxlan, ipip = (mode, "Never") if kind == "vxlan" else ("Never", mode)
            self.routing.put_pool(cidr, Pool(cidr=cidr, vxlan_mode=vxlan, ipip_mode=ipip))
        overlays = self.routing.overlays
        new, failed = await self.keeper.prepare(overlays.wanted, overlays.settings)
        if new:
            self.routes.resync()
        failed |= await self.routes.step(self.routing, {})
        assert failed | await self.keeper.finish(overlays.wanted) == {}

    async def close(self) -> None:
        await self.routes.close()
        await self.keeper.close()


@pytest.mark.parametrize("kind", ["vxlan", pytest.param("ipip", marks=pytest.mark.stock_kernel)])
def test_routes_are_replaced_in_place(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernel_makes(kind):
        pytest.skip("this kernel has no IP-in-IP tunnels")
    monkeypatch.setattr(module, "LINGER_S", 0.0)
    modes = ("Never", "Always", "CrossSubnet", "Always", "Never", "CrossSubnet", "Never")
    with a_node() as space:

        async def scenario() -> None:
            felix = Felix()
            try:
                await felix.step(modes[0], kind)
                async with events(ROUTES) as stream:
                    for mode in modes[1:]:
                        await felix.step(mode, kind)
                        for family, cidr, device in zip(("-4", "-6"), BLOCKS, DEVICES[kind], strict=False):
                            shown = space.run("ip", family, "route", "show", cidr)
                            assert (device in shown) == (mode == "Always"), (mode, shown)
                            assert (device in space.run("ip", "-br", "link", "show", "up")) == (mode != "Never")
                    space.run("ip", "route", "add", "blackhole", "203.0.113.0/24")  # the last event
                    changes = [event async for event in until(stream, "203.0.113.0/24")]
            finally:
                await felix.close()
            for cidr, _ in zip(BLOCKS, DEVICES[kind], strict=False):
                mine = [change for change in changes if str(change.object.dst) == cidr]  # type: ignore[union-attr]
                assert len(mine) == 4, "to and from the tunnel, twice"
                assert not [change for change in mine if change.gone], cidr

        with in_netns(space.path):
            asyncio.run(scenario())


async def until(stream: object, last: str) -> object:  # type: ignore[misc]
    """Without those of the kernel, which adds them for its own addresses when it likes."""
    async for event in stream:  # type: ignore[attr-defined]
        if isinstance(event, Changed) and isinstance(event.object, Route) and event.object.protocol != PROTOCOL_KERNEL:
            if event.object.dst == ip_network(last):
                return
            yield event


@pytest.mark.stock_kernel
def test_a_device_that_is_made_anew_takes_its_routes_along() -> None:
    with a_node() as space:

        async def scenario() -> None:
            felix = Felix()
            try:
                await felix.step("Always")

                def shown() -> list[str]:
                    entries = [space.run("bridge", "fdb", "show", "dev", device) for device in DEVICES["vxlan"]]
                    return [space.run("ip", "route", "show", "proto", "80"), *entries]

                before = shown()
                space.run("ip", "link", "del", "vxlan.calico")
                felix.keeper.resync()
                felix.routes.resync()
                await felix.step("Always")
                assert shown() == before
                again = Felix()  # as after a restart: all is there, nothing is written
                try:
                    async with events(ROUTES) as stream:
                        await again.step("Always")
                        space.run("ip", "route", "add", "blackhole", "203.0.113.0/24")
                        assert [event async for event in until(stream, "203.0.113.0/24")] == []
                finally:
                    await again.close()
            finally:
                await felix.close()

        with in_netns(space.path):
            asyncio.run(scenario())


def test_a_tunnel_address_that_is_taken_back_leaves_the_device_and_comes_again() -> None:
    with a_node() as space:

        async def scenario() -> None:
            felix = Felix()
            try:
                await felix.step("Always")

                def shown() -> tuple[str, ...]:
                    return tuple(space.run("ip", family, "route", "show", "proto", "80") for family in ("-4", "-6"))

                before = shown()
                assert "vxlan" in before[0]
                felix.routing.put_node("n1", NodeInfo(ipv4="192.0.2.1/24", ipv6="2001:db8::1/64"))
                await felix.step("Always")
                for device in ("vxlan.calico", "vxlan-v6.calico"):
                    assert "scope global" not in space.run("ip", "addr", "show", "dev", device)
                assert shown() == before, "the way out stays, though the kernel drops the routes with the last address"
                felix.routing.put_node("n1", NODES["n1"])
                await felix.step("Always")
                assert "10.0.1.0/32" in space.run("ip", "addr", "show", "dev", "vxlan.calico")
                assert shown() == before
            finally:
                await felix.close()

        with in_netns(space.path):
            asyncio.run(scenario())
