"""The driver of routes and interfaces, in a namespace of its own."""

from __future__ import annotations

import asyncio

import pytest

from libs.netlink.netns import in_netns
from libs.policy.output import Block, Pool
from libs.testkit.netns import namespace, run
from services.felix.core.routing import Routing
from services.felix.drivers.interfaces import InterfaceDriver

pytestmark = pytest.mark.kernel
POOL, BLOCK = "10.65.0.0/16", "10.65.0.0/26"


def test_asking_for_the_mtu_or_addresses_does_not_hide_what_must_be_compared() -> None:
    with namespace("ifc") as space:
        run(space, ["ip", "link", "add", "eth0", "mtu", "1400", "type", "veth", "peer", "name", "other"])
        run(space, ["ip", "link", "set", "other", "up"])
        run(space, ["ip", "link", "set", "eth0", "up"])
        run(space, ["ip", "addr", "add", "192.0.2.7/24", "dev", "eth0"])

        async def scenario() -> None:
            driver, routing = InterfaceDriver(("cali",)), Routing("n1", program_cluster_routes=True)
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
