"""WireGuard between real nodes, by wireguard-go where this kernel has none: node1 and node2 encrypt, node3 does not.

`/run/wireguard` is one directory for all namespaces of this machine, so each felix gets a mount namespace in which it
is a directory of its node.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path

import pytest
import pytest_asyncio

from libs.model import Node
from libs.netlink.netns import in_netns
from libs.netlink.wireguard import WgDevice, format_key
from libs.testkit.bootstrap import POOL_V4, POOL_V6
from libs.testkit.cluster import Cluster, Pod
from libs.testkit.reach import Verdict
from libs.testkit.sniff import Seen, Sniffer
from services.calicoctl.status import gather
from services.felix.drivers.wireguard_userspace import UserspaceDevices
from tests.cluster.conftest import ALLOW, World, open_world, until

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(
        shutil.which("wireguard-go") is None or not Path("/dev/net/tun").exists(), reason="wireguard-go is not here"
    ),
]

OWN_SOCKETS = """
directory=${FELIX_STATE_DIR%/state}/wireguard
mkdir -p /run/wireguard "$directory" && mount --bind "$directory" /run/wireguard && exec "$@"
"""
FELIX = ("unshare", "--mount", "--propagation", "slave", "sh", "-c", OWN_SOCKETS, "sh", sys.executable, "-m",
         "services.felix")  # fmt: skip
DEVICES = {4: "wireguard.cali", 6: "wg-v6.cali"}
PORTS = {4: 51820, 6: 51821}
FAMILIES = (4, 6)
ON = """
kind: FelixConfiguration
metadata: {name: default}
spec: {wireguardEnabled: true, wireguardEnabledV6: true}
---
kind: FelixConfiguration
metadata: {name: node.node3}
spec: {wireguardEnabled: false, wireguardEnabledV6: false}
"""


@dataclass(frozen=True)
class Pods:
    one: Pod
    two: Pod
    three: Pod


class Stage(World):
    pods: Pods

    def device(self, node: str, family: int) -> WgDevice:
        sockets = self.cluster.node(node).directory / "wireguard"
        return UserspaceDevices("", sockets=sockets).read(DEVICES[family])

    async def keys(self, node: str) -> tuple[str, str]:
        found = await self.resources.get("Node", node)
        assert isinstance(found, Node)
        return found.status.wireguard_public_key, found.status.wireguard_public_key_v6

    async def encrypts(self, node: str, peers: set[str]) -> bool:
        """The node's table leads into both devices for blocks of exactly these nodes."""
        for family in FAMILIES:
            routes = self.run(node, "ip", f"-{family}", "route", "show", "table", "1", "type", "unicast")
            wanted = {format_key(key) for key in self.device(node, family).peers} if routes else set()
            told = {(await self.keys(peer))[family == 6] for peer in peers}
            if wanted != told or bool(routes) != bool(peers):
                return False
        return True

    async def agree(self) -> None:
        async def both() -> bool:
            try:
                return await self.encrypts("node1", {"node2"}) and await self.encrypts("node2", {"node1"})
            except Exception:
                return False

        await until(both, 60, "node1 and node2 know each other's keys")

    async def failures(self, node: str) -> dict[str, str]:
        return (await gather(self.bus, [node], 10))[node].failures

    def wire(self, node: str) -> Sniffer:
        """The underlay at this node."""
        return Sniffer(self.cluster.fabric, node)


POOLS = tuple(ip_network(pool) for pool in (POOL_V4, POOL_V6))


def clear(seen: Sequence[Seen]) -> list[Seen]:
    """Packets that show a pod's address."""
    return [one for one in seen if any(is_of_pods(address) for address in (one.source, one.target))]


def is_of_pods(address: IPv4Address | IPv6Address) -> bool:
    return any(address.version == pool.version and address in pool for pool in POOLS)


def encrypted(seen: Sequence[Seen], family: int) -> list[Seen]:
    return [one for one in seen if one.target_port == PORTS[family] and one.target.version == family]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        cluster = Cluster.create(nodes=3, felix=FELIX, daemons=("node",))
        world = await open_world(stack, cluster)
        made = Stage(world.cluster, world.store, world.bus)
        made.pods = Pods(
            await cluster.add_pod("node1", "one"),
            await cluster.add_pod("node2", "two"),
            await cluster.add_pod("node3", "three"),
        )
        await made.apply(ON)
        await made.agree()
        yield made


async def test_o09_pods_of_both_families_talk_and_nothing_of_it_is_seen_on_the_wire(stage: Stage) -> None:
    one, two = stage.pods.one, stage.pods.two
    for family in FAMILIES:
        questions = [(a, b, 8080, protocol) for a, b in ((one, two), (two, one)) for protocol in ("tcp", "udp")]
        await stage.cluster.eventually(questions, ALLOW, family=family, timeout_s=30)  # type: ignore[arg-type]
        with stage.wire("node1") as wire:
            verdicts = await stage.cluster.reach(questions, family=family)  # type: ignore[arg-type]
            seen = wire.packets()
        assert verdicts == [ALLOW] * 4
        assert clear(seen) == []
        assert encrypted(seen, family)
        (counted,) = stage.device("node1", family).stats.values()
        assert counted.handshake_s > 0
        assert counted.sent_bytes > 0
        assert counted.received_bytes > 0


async def test_o09_a_host_reaches_a_remote_pod_through_the_tunnel(stage: Stage) -> None:
    node1 = stage.cluster.node("node1")

    async def addresses() -> bool:
        found = await stage.resources.get("Node", "node1")
        assert isinstance(found, Node)
        told = found.spec.wireguard
        if told is None or not told.interface_ipv4_address or not told.interface_ipv6_address:
            return False
        shown = "".join(stage.run("node1", "ip", "addr", "show", "dev", name) for name in DEVICES.values())
        return f"{told.interface_ipv4_address}/32" in shown and f"{told.interface_ipv6_address}/128" in shown

    await until(addresses, 30, "the tunnel addresses are on the devices")
    for family in FAMILIES:
        with stage.wire("node1") as wire:
            await until(lambda family=family: answers(node1.namespace.path, stage.pods.two, family), 30, "an answer")
            assert clear(wire.packets()) == []


async def answers(netns: Path, pod: Pod, family: int) -> bool:
    import socket

    def connect() -> bool:
        with in_netns(netns):
            channel = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_STREAM)
        with channel:
            channel.settimeout(1)
            try:
                channel.connect((str(pod.address(family)), 8080))
            except OSError:
                return False
            return True

    return await asyncio.to_thread(connect)


async def test_o11_a_node_without_a_key_is_reached_in_clear_text(stage: Stage) -> None:
    assert await stage.keys("node3") == ("", "")
    one, three = stage.pods.one, stage.pods.three
    for family in FAMILIES:
        with stage.wire("node1") as wire:
            verdicts = await stage.cluster.reach([(one, three, 8080, "tcp"), (three, one, 8080, "tcp")], family=family)
            assert verdicts == [Verdict.ALLOW] * 2
            assert clear(wire.packets())


async def test_o11_a_restarted_felix_keeps_key_and_sessions(stage: Stage) -> None:
    before = await stage.keys("node1"), stage.device("node1", 4).stats
    stage.cluster.kill_felix("node1")
    with stage.wire("node1") as wire:
        assert await stage.cluster.reach([(stage.pods.one, stage.pods.two, 8080, "tcp")]) == [ALLOW]
        await stage.cluster.start_felix("node1")
        assert await stage.cluster.reach([(stage.pods.one, stage.pods.two, 8080, "tcp")]) == [ALLOW]
        assert clear(wire.packets()) == []
    after = await stage.keys("node1"), stage.device("node1", 4).stats
    assert after[0] == before[0]
    assert set(after[1]) == set(before[1])


async def test_o11_two_nodes_with_one_key_are_both_left_out_and_reported(stage: Stage) -> None:
    (key, _), three = await stage.keys("node2"), await stage.resources.get("Node", "node3")
    assert isinstance(three, Node)
    stage.cluster.node("node3").felix.stop(5.0)  # it would take the key back
    try:
        three.status.wireguard_public_key = key
        await stage.resources.update(three)

        async def left_out() -> bool:
            return not stage.device("node1", 4).peers

        await until(left_out, 20, "node1 has neither as a peer")
        throws = stage.run("node1", "ip", "route", "show", "table", "1", "type", "throw")
        assert "dev" not in throws
        failed = await stage.failures("node1")
        assert "node3 has the same key" in failed["WireGuard IPv4 node node2"]
        assert await stage.cluster.reach([(stage.pods.one, stage.pods.two, 8080, "tcp")]) == [ALLOW]  # in clear text
    finally:
        await stage.cluster.start_felix("node3")
    await stage.agree()
