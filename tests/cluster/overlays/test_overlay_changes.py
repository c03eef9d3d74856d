"""Overlays that change under traffic, that somebody damages, whose felix dies."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest
from msgspec.structs import replace

from libs.model.node import Node
from libs.netlink.ethtool import tx_checksum
from libs.testkit.sniff import Sniffer
from libs.testkit.traffic import Load
from tests.cluster.conftest import ALLOW, World, until
from tests.cluster.overlays.lab import (
    DEVICES,
    HEAL_S,
    IPIP,
    ON_STOCK_KERNEL,
    POOLS,
    RECOVER_S,
    VXLAN,
    Overlay,
    Pods,
    another,
    each,
    links,
    reachable,
    route,
    set_mode,
    state,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

# --- O07, and what a dead felix leaves --------------------------------------------------------------------------------


DAMAGE = {
    "forwarding entry": lambda w, device: ("bridge", "fdb", "del", *w.split()[:1], "dev", device, "dst", w.split()[2]),
    "neighbour": lambda w, device: ("ip", "neigh", "del", w.split()[0], "dev", device),
    "route": lambda w, device: ("ip", "-6" if "v6" in device else "-4", "route", "del", w.split()[0], "dev", device),
}


TAKEN = ["forwarding entry", "neighbour", "route", "address", "mtu", "mac", "down", "device"]
TAKEN_OF_TUNL0 = ["route", "address", "mtu", "down"]  # the module's own cannot be removed
TAKEN_OF = [
    *[pytest.param(VXLAN, device, what, id=f"{device}-{what}") for device in DEVICES.values() for what in TAKEN],
    *[pytest.param(IPIP, "tunl0", what, id=f"tunl0-{what}", marks=pytest.mark.stock_kernel) for what in TAKEN_OF_TUNL0],
]


@pytest.mark.parametrize(("overlay", "device", "what"), TAKEN_OF, indirect=["overlay"])
async def test_o07_what_somebody_takes_away_comes_back(
    world: World, pods: Pods, overlay: Overlay, device: str, what: str
) -> None:
    await set_mode(world, "Always", overlay)
    families = overlay.families
    await reachable(world, (pods.one, pods.two), (pods.one, pods.far), families=families)
    before = state(world, "node1", overlay)
    family = 6 if "v6" in device else 4
    rows = {"forwarding entry": "fdb", "neighbour": "neighbours", "route": f"routes {family}"}
    if what in DAMAGE:
        row = before[f"{device} {rows[what]}"].splitlines()[0]
        world.run("node1", *DAMAGE[what](row, device))
    else:
        commands = {
            "address": ("ip", "addr", "del", before[f"{device} address"], "dev", device),
            "mtu": ("ip", "link", "set", device, "mtu", "1300"),
            "mac": ("ip", "link", "set", device, "address", "66:00:00:00:00:99"),
            "down": ("ip", "link", "set", device, "down"),
            "device": ("ip", "link", "del", device),
        }
        world.run("node1", *commands[what])

    async def back() -> bool:
        return device in links(world, "node1") and state(world, "node1", overlay) == before

    await until(back, HEAL_S, f"{what} of {device}")
    await reachable(world, (pods.one, pods.two), (pods.one, pods.far), families=families)


async def test_o07_what_somebody_adds_goes(world: World, pods: Pods) -> None:
    await set_mode(world, "Always")
    await reachable(world, (pods.one, pods.two))
    before = state(world, "node1")
    for command in (
        ("bridge", "fdb", "add", "66:00:00:00:00:77", "dev", "vxlan.calico", "dst", "172.31.0.77", "self", "permanent"),
        ("ip", "neigh", "add", "10.65.77.77", "lladdr", "66:00:00:00:00:77", "dev", "vxlan.calico", "nud", "permanent"),
        ("ip", "addr", "add", "10.65.77.1/32", "dev", "vxlan.calico"),
        ("ip", "route", "add", "10.65.78.0/26", "dev", "vxlan.calico", "proto", "80"),
    ):
        world.run("node1", *command)

    async def gone() -> bool:
        return state(world, "node1") == before

    await until(gone, HEAL_S, "strange entries")


@each
async def test_kill_9_of_felix_loses_nothing_that_goes_through_tunnels(
    world: World, pods: Pods, overlay: Overlay
) -> None:
    await set_mode(world, "Always", overlay)
    pairs = [(pods.one, pods.two), (pods.two, pods.one), (pods.far, pods.one)]
    await reachable(world, *pairs, families=overlay.families)
    before = state(world, "node1", overlay)
    flow = world.cluster.flow
    udp = [flow(a, b, 8080, "udp", family=family) for a, b in pairs for family in overlay.families]
    tcp = [flow(a, b, 8080, family=family) for a, b in pairs for family in overlay.families]
    with Load(udp=udp, tcp=tcp, streams=tcp[:2], udp_per_s=500, tcp_per_s=50) as load:
        await another(load, 300)
        world.cluster.kill_felix("node1")
        await another(load, 600)
        await world.cluster.start_felix("node1")
        await another(load, 600)
    assert load.result.lost_nothing, load.result
    assert state(world, "node1", overlay) == before


# --- O05, O06, O13 ----------------------------------------------------------------------------------------------------


@each
async def test_o05_encapsulation_changes_under_traffic_and_the_old_device_goes(
    world: World, pods: Pods, overlay: Overlay
) -> None:
    await set_mode(world, "Never", overlay)
    devices = set(overlay.devices.values())
    near = [(pods.one, pods.two), (pods.two, pods.one)]
    await reachable(world, *near, families=overlay.families)
    flow = world.cluster.flow
    udp = [flow(a, b, 8080, "udp", family=family) for a, b in near for family in overlay.families]
    streams = [flow(a, b, 8080, family=family) for a, b in near for family in overlay.families]
    with Load(udp=udp, streams=streams, udp_per_s=400) as load:
        await another(load, 200)
        for mode in ("Always", "CrossSubnet", "Always", "Never"):
            lost_before = load.snapshot().udp_sent - load.snapshot().udp_received
            await set_mode(world, mode, overlay)
            await reachable(world, *near, families=overlay.families)

            async def as_wanted(mode: str = mode) -> bool:
                there = devices <= links(world, "node1")
                tunnelled = all(
                    device in route(world, "node1", pods.two, family) for family, device in overlay.devices.items()
                )
                return there == (mode != "Never") and tunnelled == (mode == "Always")

            await until(as_wanted, RECOVER_S, f"routes and devices of {mode}")
            await another(load, 200)
            lost = load.snapshot().udp_sent - load.snapshot().udp_received - lost_before
            print(f"to {mode}: about {lost} of 400/s lost")
    result = load.result
    assert result.streams_broken == 0, result
    assert result.longest_silence_s < RECOVER_S, result
    assert result.udp_received > 800, result

    async def gone() -> bool:
        return not links(world, "node2") & devices

    await until(gone, RECOVER_S, "node2's devices go too")


@each
async def test_o05_within_one_subnet_a_change_away_from_the_tunnel_and_back_loses_nothing(
    world: World, pods: Pods, overlay: Overlay
) -> None:
    """With devices that are there on both sides, every route is replaced in place; one that is not needed lingers."""
    await set_mode(world, "Always", overlay)
    devices = set(overlay.devices.values())
    near = [(pods.one, pods.two), (pods.two, pods.one)]
    await reachable(world, *near, families=overlay.families)
    flow = world.cluster.flow
    with Load(
        udp=[flow(a, b, 8080, "udp", family=f) for a, b in near for f in overlay.families], udp_per_s=400
    ) as load:
        for mode in ("CrossSubnet", "Always", "Never"):
            await another(load, 100)
            await set_mode(world, mode, overlay)

            async def switched(mode: str = mode) -> bool:
                ends = [("node1", pods.two), ("node2", pods.one)]
                shown = [(route(world, *end, family), device)
                         for end in ends for family, device in overlay.devices.items()]  # fmt: skip
                return all((device in text) == (mode == "Always") for text, device in shown)

            await until(switched, RECOVER_S, mode)

        async def gone() -> bool:
            return not (links(world, "node1") | links(world, "node2")) & devices

        await until(gone, RECOVER_S, "devices that nothing needs")
        await another(load, 100)
    assert load.result.udp_lost == 0, load.result


async def test_o06_tunnel_addresses_move_with_the_pools(world: World, pods: Pods) -> None:
    await set_mode(world, "Always")
    await reachable(world, (pods.one, pods.two))
    other = """
kind: IPPool
metadata: {name: other}
spec: {cidr: 10.66.0.0/16, blockSize: 26, vxlanMode: Always}
"""
    await world.apply(other)
    for disabled in (True, False):
        name, cidr, size = POOLS[4]
        await world.apply(
            f"""{{kind: IPPool, metadata: {{name: {name}}},
spec: {{cidr: {cidr}, blockSize: {size}, vxlanMode: Always, natOutgoing: true, disabled: {str(disabled).lower()}}}}}"""
        )
        if not disabled:
            await world.delete("IPPool", "other")
        begins = "10.66." if disabled else "10.65."

        async def moved(begins: str = begins) -> bool:
            return all(
                state(world, node.name)["vxlan.calico address"].startswith(begins)
                and state(world, node.name)["vxlan.calico neighbours"].count(begins) == 2
                and all(
                    f" via {begins}" in line for line in state(world, node.name)["vxlan.calico routes 4"].splitlines()
                )
                for node in world.cluster.nodes
            )

        await until(moved, RECOVER_S, f"tunnel addresses that begin with {begins}")
        await reachable(world, (pods.one, pods.two), (pods.far, pods.two))


async def test_o13_settings_of_the_device_and_the_mtu_file_follow(world: World, pods: Pods) -> None:
    await set_mode(world, "Always")
    await reachable(world, (pods.one, pods.two))
    config = """
kind: FelixConfiguration
metadata: {name: default}
spec:
  {vxlanVNI: 77, vxlanPort: 8472, vxlanMTU: 1400, vxlanMTUV6: 1390, featureDetectOverride: ChecksumOffloadBroken=true}
"""

    async def before() -> bool:
        return mtu_file(world, "node1") == 1430

    await until(before, RECOVER_S, "the file's MTU of pods behind VXLAN")
    await world.apply(config)

    async def followed() -> bool:
        shown = [world.run(node.name, "ip", "-d", "-o", "link", "show", "vxlan.calico") for node in world.cluster.nodes]
        return (
            all("vxlan id 77 " in text and "dstport 8472" in text and "mtu 1400 " in text for text in shown)
            and not offloads(world, "node1", "vxlan.calico")
            and not offloads(world, "node2", "vxlan-v6.calico")
            and mtu_file(world, "node1") == 1390
            and "mtu 1400" in route(world, "node1", pods.two, 4)
        )

    await until(followed, RECOVER_S, "settings of the device")
    await reachable(world, (pods.one, pods.two), (pods.one, pods.far))
    with Sniffer(world.cluster.fabric, "node2") as wire:
        await world.cluster.eventually([(pods.one, pods.two, 8080, "tcp")], ALLOW)
        assert any(packet.is_vxlan(8472) for packet in wire.packets())
    await world.delete("FelixConfiguration", "default")

    async def restored() -> bool:
        return (
            "vxlan id 4096 " in world.run("node1", "ip", "-d", "-o", "link", "show", "vxlan.calico")
            and offloads(world, "node1", "vxlan.calico")
            and mtu_file(world, "node1") == 1430
        )

    await until(restored, RECOVER_S, "what is the default")
    await reachable(world, (pods.one, pods.two))


@pytest.mark.parametrize("overlay", [ON_STOCK_KERNEL], indirect=True, ids=["ipip"])
async def test_o13_ip_in_ips_mtu_and_the_mtu_file_follow(world: World, pods: Pods, overlay: Overlay) -> None:
    await set_mode(world, "Always", overlay)
    await reachable(world, (pods.one, pods.two), families=overlay.families)

    async def has(mtu: int) -> bool:
        shown = [world.run(node.name, "ip", "link", "show", "tunl0") for node in world.cluster.nodes]
        same = all(f"mtu {mtu} " in text for text in shown) and f"mtu {mtu}" in route(world, "node1", pods.two, 4)
        return same and mtu_file(world, "node1") == mtu

    await until(lambda: has(1480), RECOVER_S, "what the host's leaves")
    await world.apply("{kind: FelixConfiguration, metadata: {name: default}, spec: {ipipMTU: 1400}}")
    try:
        await until(lambda: has(1400), RECOVER_S, "what is set")
        await reachable(world, (pods.one, pods.two), (pods.one, pods.far), families=overlay.families)
    finally:
        await world.delete("FelixConfiguration", "default")
    await until(lambda: has(1480), RECOVER_S, "what is the default")


async def test_o13_a_nodes_own_mac_is_used_and_known_to_the_others(world: World, pods: Pods) -> None:
    await set_mode(world, "Always")
    await reachable(world, (pods.one, pods.two))
    generated = world.run("node1", "cat", "/sys/class/net/vxlan.calico/address").strip()
    for mac in ("66:00:00:00:00:42", ""):
        node = await world.resources.get("Node", "node1")
        assert isinstance(node, Node)
        await world.resources.update(replace(node, spec=replace(node.spec, vxlan_tunnel_mac_addr=mac)))

        async def followed(mac: str = mac or generated) -> bool:
            return mac in world.run("node1", "cat", "/sys/class/net/vxlan.calico/address") and all(
                f"{mac} dst 172.31.0.11 self permanent" in state(world, other)["vxlan.calico fdb"]
                and f"lladdr {mac}" in state(world, other)["vxlan.calico neighbours"]
                for other in ("node2", "node3")
            )

        await until(followed, RECOVER_S, f"MAC {mac or generated}")
        await reachable(world, (pods.two, pods.one), (pods.one, pods.far))


def mtu_file(world: World, node: str) -> int:
    return int((world.cluster.node(node).directory / "mtu").read_text())


def offloads(world: World, node: str, device: str) -> bool:
    with closing(world.cluster.node(node).namespace.socket(socket.AF_INET, socket.SOCK_DGRAM)) as control:
        try:
            return tx_checksum(control, device)
        except OSError:
            return False
