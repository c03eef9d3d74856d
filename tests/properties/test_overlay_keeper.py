"""Whatever nodes, pools and settings did, and whatever somebody did to the kernel, a pass brings the pretend kernel to
what is wanted: no entry is missing, none is left; and after its first half nothing that is wanted is missing already.
"""

from __future__ import annotations

import asyncio
from random import Random
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from libs.netlink.fdb import FdbEntry
from libs.netlink.neighbours import Neighbour
from libs.netlink.tunnel_fakes import FakeFdb, FakeNeighbours, FakeTunnelKernel, FakeTunnels
from libs.policy.output import NodeInfo, Pool
from services.felix.core.overlay import DEVICES, Address, Overlays, OverlaySettings
from services.felix.drivers import overlays as module
from services.felix.drivers.overlays import OverlayKeeper

NODES = ("n1", "n2", "n3", "n4")
POOL4, POOL6 = "10.0.0.0/16", "fd00::/48"
STEPS = 60
KINDS = ("node", "pass", "pool", "settings", "lose fdb", "lose neighbour", "lose device")
WEIGHTS = (10, 6, 1, 1, 1, 1, 1)


def draw(random: Random) -> tuple[str, str, object]:
    """Few values, so that nodes take one another's."""
    (kind,) = random.choices(KINDS, WEIGHTS)
    match kind:
        case "node":
            return kind, random.choice(NODES[1:] if random.random() < 0.9 else NODES), info(random)
        case "pool":
            return kind, random.choice((POOL4, POOL6)), random.choice(("Never", "Always"))
        case "settings":
            return kind, "", OverlaySettings(vni=random.choice((4096, 7)))
    return kind, "", None


def info(random: Random) -> NodeInfo | None:
    if random.random() < 0.1:
        return None
    choose = random.choice
    return NodeInfo(
        ipv4=f"192.0.2.{choose((1, 2, 3))}/24",
        ipv6=choose(("", "2001:db8::1/64", "2001:db8::2/64")),
        vxlan_ipv4=choose(("", "10.0.1.0", "10.0.2.0", "10.0.3.0", "10.0.4.0")),
        vxlan_ipv6=choose(("", "fd00::1", "fd00::2", "fd00::3")),
        vxlan_mac=choose(("", "", "66:00:00:00:00:01", "66:00:00:00:00:02")),
    )


class Carriers:
    def index_of(self, address: Address) -> int | None:
        return 2

    def underlay_mtu_bytes(self) -> int:
        return 1500


class Machine:
    def __init__(self) -> None:
        self.kernel = FakeTunnelKernel({2: 1500})
        drivers = FakeTunnels(self.kernel, DEVICES), FakeFdb(self.kernel), FakeNeighbours(self.kernel)
        self.keeper = OverlayKeeper(Carriers(), drivers, release="6.1")
        self.wanted = Overlays("n1")
        for cidr in (POOL4, POOL6):
            self.wanted.put_pool(cidr, Pool(cidr=cidr, vxlan_mode="Always"))
        for name in NODES[:2]:
            self.wanted.put_node(name, NodeInfo(ipv4="192.0.2.1/24", vxlan_ipv4=f"10.0.{name[1]}.0"))

    async def step(self) -> None:
        overlays = self.wanted
        _, failed = await self.keeper.prepare(overlays.wanted, overlays.settings)
        assert not failed
        fdb, neighbours = self.expected()
        assert fdb <= self.kernel.fdb
        assert neighbours <= set(self.kernel.neighbours.values())
        assert not await self.keeper.finish(overlays.wanted)

    def expected(self) -> tuple[set[FdbEntry], set[Neighbour]]:
        wanted, indexes = self.wanted.wanted, self.kernel.indexes
        ends = [end for end in wanted.ends if end.device in wanted.devices]
        return (
            {FdbEntry(indexes[end.device], end.mac, end.host) for end in ends},
            {Neighbour(end.address, indexes[end.device], end.mac) for end in ends},
        )

    def check(self) -> None:
        """A device whose address was taken back stays, without address and entries."""
        wanted, kernel = self.wanted.wanted, self.kernel
        fdb, neighbours = self.expected()
        assert kernel.devices.keys() - wanted.missing.keys() == wanted.devices.keys()
        assert not any(one.addresses for name, one in kernel.devices.items() if name in wanted.missing)
        assert kernel.fdb == fdb
        assert set(kernel.neighbours.values()) == neighbours

    def tell(self, kind: str, key: str, value: object) -> None:
        kernel = self.kernel
        match kind:
            case "node":
                self.wanted.put_node(key, value)  # type: ignore[arg-type]
            case "pool":
                self.wanted.put_pool(key, Pool(cidr=key, vxlan_mode=str(value)))
            case "settings":
                self.wanted.configure(value)  # type: ignore[arg-type]
            case "lose fdb" if kernel.fdb:
                kernel.fdb.discard(min(kernel.fdb, key=str))
                self.keeper.resync()  # as an event would
            case "lose neighbour" if kernel.neighbours:
                del kernel.neighbours[min(kernel.neighbours, key=str)]
                self.keeper.resync()
            case "lose device" if kernel.devices:
                kernel.drop(min(kernel.devices))
                self.keeper.resync()


async def run(random: Random) -> None:
    machine = Machine()
    for _ in range(STEPS):
        kind, key, value = draw(random)
        if kind == "pass":
            await machine.step()
            machine.check()
        else:
            machine.tell(kind, key, value)
    await machine.step()
    machine.check()


@given(st.integers(0, 2**32))
def test_every_pass_ends_in_what_is_wanted(seed: int) -> None:
    with mock.patch.object(module, "LINGER_S", 0.0):
        asyncio.run(run(Random(seed)))
