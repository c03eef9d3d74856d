"""Overlays with real packets: three nodes, of which node3 is in another subnet, behind a router that knows no pods.

VXLAN and, where the kernel has it, IP in IP, which carries IPv4 alone.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

import pytest
import pytest_asyncio
from msgspec.structs import replace

from libs.bus.applied import WaitProblem
from libs.model.node import Node
from libs.netlink.ethtool import tx_checksum
from libs.testkit.cluster import Cluster, Pod
from libs.testkit.netns import kernel_makes
from libs.testkit.packets import UDP, Packet, datagram, frame, tag_of
from libs.testkit.reach import Flow, Verdict, check
from libs.testkit.sniff import IPIP as IPPROTO_IPIP
from libs.testkit.sniff import Seen, Sniffer
from libs.testkit.topology import Namespace, remove
from libs.testkit.traffic import Load
from tests.cluster.conftest import ALLOW, World, open_world, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAMILIES = (4, 6)
POOLS = {4: ("default-ipv4-ippool", "10.65.0.0/16", 26), 6: ("default-ipv6-ippool", "fd00:65::/48", 122)}
DEVICES = {4: "vxlan.calico", 6: "vxlan-v6.calico"}
RECOVER_S = 30.0  # what the feature table allows for a change of encapsulation
HEAL_S = 10.0  # through events; the period of comparing is 90 s


@dataclass(frozen=True)
class Overlay:
    """kind: of its links, and what pools call it. devices: of each family that it carries."""

    kind: str
    devices: Mapping[int, str]

    @property
    def families(self) -> tuple[int, ...]:
        return tuple(self.devices)

    def carries(self, packet: Seen) -> bool:
        return packet.is_vxlan() if self is VXLAN else packet.protocol == IPPROTO_IPIP


VXLAN, IPIP = Overlay("vxlan", DEVICES), Overlay("ipip", {4: "tunl0"})
ON_STOCK_KERNEL = pytest.param(IPIP, marks=pytest.mark.stock_kernel)
each = pytest.mark.parametrize("overlay", [VXLAN, IPIP], indirect=True, ids=["vxlan", "ipip"])
each_also_on_stock_kernel = pytest.mark.parametrize(
    "overlay", [VXLAN, ON_STOCK_KERNEL], indirect=True, ids=["vxlan", "ipip"]
)


@pytest.fixture
def overlay(request: pytest.FixtureRequest) -> Overlay:
    found: Overlay = request.param
    if not kernel_makes(found.kind):
        pytest.skip("this kernel has no IP-in-IP tunnels")
    return found


@dataclass(frozen=True)
class Pods:
    """One on each node; far stands behind the router."""

    one: Pod
    two: Pod
    far: Pod


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        yield await open_world(stack, Cluster.create(nodes=3, far=("node3",), daemons=("node",), udp_ports=(8080,)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(world: World) -> Pods:
    await world.cluster.add_namespace("ns1")
    add = world.cluster.add_pod
    return Pods(*[await add(f"node{i}", name, namespace="ns1") for i, name in ((1, "one"), (2, "two"), (3, "far"))])


async def tunnel_addresses(world: World, overlay: Overlay, *, there: bool) -> None:
    """The node service gives and takes them as pools change."""

    async def as_wanted() -> bool:
        nodes = [node for node in (await world.resources.list("Node")).items if isinstance(node, Node)]
        return all(_has_tunnel(node, overlay) == there for node in nodes)

    await until(as_wanted, RECOVER_S, f"tunnel addresses of all nodes: {there}")


def _has_tunnel(node: Node, overlay: Overlay) -> bool:
    if overlay is IPIP:
        return bool(node.spec.bgp and node.spec.bgp.ipv4_ipip_tunnel_addr)
    return bool(node.spec.ipv4_vxlan_tunnel_addr and node.spec.ipv6_vxlan_tunnel_addr)


async def set_mode(world: World, mode: str = "Never", overlay: Overlay = VXLAN, *, nat: bool = True) -> None:
    """nat: natOutgoing; what pods send to pods must keep its source all the same. Pools of a family that the overlay
    does not carry are not encapsulated.
    """
    for family, (name, cidr, size) in POOLS.items():
        modes = {one.kind: mode if one is overlay and family in one.families else "Never" for one in (VXLAN, IPIP)}
        await world.apply(f"""
kind: IPPool
metadata: {{name: {name}}}
spec:
  {{cidr: "{cidr}", blockSize: {size}, vxlanMode: {modes["vxlan"]}, ipipMode: {modes["ipip"]},
    natOutgoing: {str(nat).lower()}}}
""")
    await tunnel_addresses(world, overlay, there=mode != "Never")


async def reachable(
    world: World, *pairs: tuple[Pod, Pod], families: Sequence[int] = FAMILIES, timeout_s: float = RECOVER_S
) -> None:
    for family in families:
        for protocol in ("tcp", "udp"):
            questions = [(a, b, 8080, protocol) for a, b in pairs]
            await world.cluster.eventually(questions, ALLOW, family=family, timeout_s=timeout_s)  # type: ignore[arg-type]


def between(seen: list[Seen], a: Pod, b: Pod, family: int) -> list[Seen]:
    ends = {a.address(family), b.address(family)}
    return [packet for packet in seen if {packet.source, packet.target} == ends]


async def ways(world: World, a: Pod, b: Pod, family: int, overlay: Overlay = VXLAN) -> tuple[int, int]:
    """(packets of the pair seen without a tunnel, in one) at the second one's node, of one exchange."""
    with Sniffer(world.cluster.fabric, b.node) as wire:
        await world.cluster.eventually([(a, b, 8080, "tcp")], ALLOW, family=family)
        seen = wire.packets()
    inner = [packet.inner() for packet in seen if overlay.carries(packet)]
    return len(between(seen, a, b, family)), len(between([one for one in inner if one is not None], a, b, family))


def links(world: World, node: str) -> set[str]:
    """Those that are up: the kernel keeps an idle tunl0 in every namespace."""
    words = [line.split() for line in world.run(node, "ip", "-br", "link").splitlines()]
    return {one[0].split("@")[0] for one in words if "UP" in one[-1].strip("<>").split(",")}


def route(world: World, node: str, pod: Pod, family: int) -> str:
    return world.run(node, "ip", f"-{family}", "route", "get", str(pod.address(family)))


# --- O01, O02, O04 ----------------------------------------------------------------------------------------------------


async def test_o04_nodes_of_one_subnet_need_no_tunnel_and_no_routing_daemon(world: World, pods: Pods) -> None:
    await set_mode(world)
    await reachable(world, (pods.one, pods.two), (pods.two, pods.one))
    for family in FAMILIES:
        plain, tunnelled = await ways(world, pods.one, pods.two, family)
        assert plain, family
        assert not tunnelled, family
    assert not links(world, "node1") & set(DEVICES.values())
    flows = [(pods.one, pods.far, 8080, "tcp")]
    assert await world.cluster.reach(flows) == [Verdict.DENY], "the router between the subnets knows no pods"  # type: ignore[arg-type]


@each_also_on_stock_kernel
async def test_o01_o02_o03_always_carries_everything_between_nodes(world: World, pods: Pods, overlay: Overlay) -> None:
    await set_mode(world, "Always", overlay)
    pairs = [(a, b) for a in (pods.one, pods.two, pods.far) for b in (pods.one, pods.two, pods.far) if a is not b]
    await reachable(world, *pairs, families=overlay.families)
    for family, device in overlay.devices.items():
        for target in (pods.two, pods.far):
            plain, tunnelled = await ways(world, pods.one, target, family, overlay)
            assert tunnelled, (family, target.name)
            assert not plain, (family, target.name)
        node1 = world.cluster.node("node1")
        local = (node1.ipv4 if family == 4 else node1.ipv6).ip
        mtu = 1480 if overlay is IPIP else 1450 if family == 4 else 1430
        vxlan = ("vxlan id 4096 ", f"local {local} dev eth0", "dstport 4789 nolearning", "link/ether 66:")
        shown = world.run("node1", "ip", "-d", "-o", "link", "show", device)
        for words in (f"mtu {mtu} ", *(vxlan if overlay is VXLAN else ("link/ipip 0.0.0.0 brd 0.0.0.0",))):
            assert words in shown
        if overlay is VXLAN:
            assert world.run("node1", "bridge", "fdb", "show", "dev", device).count("self permanent") == 2
        gotten = route(world, "node1", pods.two, family)
        assert f"dev {device}" in gotten
        assert f"mtu {mtu}" in gotten


@each_also_on_stock_kernel
async def test_o01_o03_crosssubnet_uses_the_tunnel_for_the_other_subnet_alone(
    world: World, pods: Pods, overlay: Overlay
) -> None:
    await set_mode(world, "CrossSubnet", overlay)
    pairs = (pods.one, pods.two), (pods.one, pods.far), (pods.far, pods.two)
    await reachable(world, *pairs, families=overlay.families)

    async def settled() -> bool:
        return all("dev eth0" in route(world, node, pod, family) for family in overlay.families
                   for node, pod in (("node1", pods.two), ("node2", pods.one)))  # fmt: skip

    await until(settled, RECOVER_S, "direct routes within the subnet")
    for family in overlay.families:
        plain, tunnelled = await ways(world, pods.one, pods.two, family, overlay)
        assert plain, family
        assert not tunnelled, family
        plain, tunnelled = await ways(world, pods.one, pods.far, family, overlay)
        assert tunnelled, family
        assert not plain, family


@each_also_on_stock_kernel
async def test_policy_decides_about_what_comes_through_the_tunnel(world: World, pods: Pods, overlay: Overlay) -> None:
    await set_mode(world, "Always", overlay)
    await reachable(world, (pods.one, pods.two), (pods.far, pods.two), families=overlay.families)
    nets = [str(ip_network(pods.far.address(family))) for family in FAMILIES]
    rules = [{"action": "Allow", "source": {"nets": [net]}} for net in nets]
    await world.apply(f"""
kind: NetworkPolicy
metadata: {{name: only-far, namespace: ns1}}
spec: {{selector: all(), types: [Ingress], ingress: {json.dumps(rules)}}}
""")
    try:
        wanted = [(pods.far, pods.two, 8080, "tcp", ALLOW), (pods.one, pods.two, 8080, "tcp", Verdict.DENY)]
        await world.check(wanted, families=overlay.families)
    finally:
        await world.delete("NetworkPolicy", "only-far", "ns1")


# --- O07, and what a dead felix leaves --------------------------------------------------------------------------------


def state(world: World, node: str, overlay: Overlay = VXLAN) -> dict[str, str]:
    """All that an overlay is made of, without what counts or ages."""
    shown = {}
    for device in overlay.devices.values():
        shown[f"{device} link"] = world.run(node, "ip", "-o", "-br", "link", "show", device).split(" <")[0]
        addresses = world.run(node, "ip", "-o", "addr", "show", device, "scope", "global").splitlines()
        shown[f"{device} address"] = "\n".join(line.split()[3] for line in addresses)
        entries = world.run(node, "bridge", "fdb", "show", "dev", device) if overlay is VXLAN else ""
        shown[f"{device} fdb"] = "\n".join(sorted(entries.splitlines()))
        neighbours = world.run(node, "ip", "neigh", "show", "dev", device, "nud", "permanent").splitlines()
        shown[f"{device} neighbours"] = "\n".join(sorted(neighbours))
        for family in FAMILIES:
            routes = world.run(node, "ip", f"-{family}", "route", "show", "dev", device, "proto", "80").splitlines()
            shown[f"{device} routes {family}"] = "\n".join(sorted(line.strip() for line in routes))
    return shown


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


async def another(load: Load, packets: int) -> None:
    wanted = load.snapshot().udp_sent + packets

    async def sent() -> bool:
        return load.snapshot().udp_sent >= wanted

    await until(sent, 30, f"{packets} more packets")


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
    assert not links(world, "node2") & devices


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


# --- O03: what this kernel cannot do ----------------------------------------------------------------------------------


async def test_o03_a_node_without_ip_in_ip_says_so_and_goes_on(world: World, pods: Pods) -> None:
    if kernel_makes("ipip"):
        pytest.skip("this kernel has IP-in-IP tunnels")
    await set_mode(world, "Always")
    await reachable(world, (pods.one, pods.two))
    spec = "{kind: IPPool, metadata: {name: ipip}, spec: {cidr: 10.71.0.0/24, blockSize: 26, ipipMode: Always}}"
    try:

        async def told() -> bool:  # not by the first: there is no tunnel address yet, and so no device
            try:
                await world.apply(spec)
            except WaitProblem as problem:
                return "this kernel has no IP-in-IP tunnels" in str(problem)
            return False

        await until(told, RECOVER_S, "what the kernel lacks")
        await reachable(world, (pods.one, pods.two))
        log = (world.cluster.node("node1").directory / "felix.log").read_text()
        assert log.count("overlay not in place") and log.count("this kernel has no IP-in-IP") <= 2, "said once"  # noqa: PT018
    finally:
        await world.delete("IPPool", "ipip")


# --- O08 --------------------------------------------------------------------------------------------------------------


STRANGER = {4: "172.31.0.200", 6: "fd00:172:31::200"}


@pytest_asyncio.fixture(loop_scope="module")
async def stranger(world: World) -> AsyncIterator[Namespace]:
    """A host in the nodes' subnet that is no node."""
    fabric = world.cluster.fabric
    space = Namespace(f"{fabric.name}-x")
    space.create()
    try:
        fabric.ip([f"link add stranger type veth peer name eth0 netns {space.name}", "link set stranger master br0 up"])
        space.ip(
            [f"addr add {STRANGER[4]}/24 dev eth0", f"addr add {STRANGER[6]}/64 dev eth0 nodad", "link set eth0 up"]
        )
        yield space
    finally:
        remove([space])


async def arrives(world: World, pods: Pods, overlay: Overlay, sender: Namespace, family: int) -> bool:
    """Whether node1's pod sees what somebody sends it in packets as the overlay's."""
    node, target = world.cluster.node("node1"), pods.one.address(family)
    source = ip_address("10.65.200.7" if family == 4 else "fd00:65::c8:7")
    inner = Packet(source, target, UDP, 4000, 8080)
    kind, host = (socket.AF_INET, node.ipv4.ip) if family == 4 else (socket.AF_INET6, node.ipv6.ip)
    if overlay is IPIP:
        sock, to, packet = (
            sender.socket(kind, socket.SOCK_RAW, IPPROTO_IPIP),
            (str(host), 0),
            datagram(inner, tag_of(7)),
        )
    else:
        sock, to = sender.socket(kind, socket.SOCK_DGRAM), (str(host), 4789)
        mac = world.run("node1", "cat", f"/sys/class/net/{overlay.devices[family]}/address").strip()
        ends = bytes.fromhex(mac.replace(":", "")), b"\x66" * 6
        packet = struct.pack("!II", 0x08000000, 4096 << 8) + frame(inner, tag_of(7), *ends)
    with Sniffer(pods.one.netns, "eth0") as wire, closing(sock):
        for _ in range(20):
            sock.sendto(packet, to)
            await asyncio.sleep(0.02)
            if any(seen.source == source for seen in wire.packets()):
                return True
    return False


@each_also_on_stock_kernel
async def test_o08_only_known_nodes_and_listed_networks_may_send(
    world: World, pods: Pods, stranger: Namespace, overlay: Overlay
) -> None:
    await set_mode(world, "Always", overlay)
    await reachable(world, (pods.one, pods.two), (pods.one, pods.far), families=overlay.families)
    for family in overlay.families:
        assert not await arrives(world, pods, overlay, stranger, family), family
    dropped = world.run("node1", "nft", "list", "chain", "ip", "calico", "tunnel-senders")
    word = "IP in IP" if overlay is IPIP else "VXLAN"
    (rule,) = [line for line in dropped.splitlines() if f'drop comment "{word} from a stranger"' in line]
    assert "packets 0 bytes 0 drop" not in rule
    listed = "{kind: FelixConfiguration, metadata: {name: default}, spec: {externalNodesList: [172.31.0.192/28]}}"
    await world.apply(listed)

    async def accepted() -> bool:
        return await arrives(world, pods, overlay, stranger, 4)

    await until(accepted, HEAL_S, "a listed network is let in")
    assert overlay is IPIP or not await arrives(world, pods, overlay, stranger, 6)
    await world.delete("FelixConfiguration", "default")

    async def refused() -> bool:
        return not await accepted()

    await until(refused, HEAL_S, "it is a stranger again")
    await reachable(world, (pods.one, pods.two), families=overlay.families)


@each_also_on_stock_kernel
async def test_o08_what_pods_encapsulate_themselves_is_dropped_unless_they_may(
    world: World, pods: Pods, overlay: Overlay
) -> None:
    """Even where the other end lets the pods' range send, and they keep their addresses."""
    await set_mode(world, "Always", overlay, nat=False)
    await reachable(world, (pods.two, pods.one), families=overlay.families)
    field = "allowIPIPPacketsFromWorkloads" if overlay is IPIP else "allowVXLANPacketsFromWorkloads"

    async def configure(may: bool) -> None:
        spec = f"{{externalNodesList: [10.65.0.0/16], {field}: {str(may).lower()}}}"
        await world.apply(f"{{kind: FelixConfiguration, metadata: {{name: default}}, spec: {spec}}}")

    async def let_through() -> bool:
        return await arrives(world, pods, overlay, pods.two.netns, 4)

    await configure(False)
    try:
        assert not await let_through()
        await configure(True)
        await until(let_through, HEAL_S, "what may be sent arrives")
    finally:
        await world.delete("FelixConfiguration", "default")


@each
async def test_o08_policy_of_host_endpoints_does_not_meet_what_known_nodes_send(
    world: World, pods: Pods, overlay: Overlay
) -> None:
    await set_mode(world, "Always", overlay)
    await reachable(world, (pods.one, pods.two), (pods.far, pods.two), families=overlay.families)
    await world.apply("{kind: HostEndpoint, metadata: {name: all2}, spec: {node: node2, interfaceName: '*'}}")
    try:
        assert "tunnel-senders" in world.run("node2", "nft", "list", "chain", "ip", "calico", "hook-fh")
        pairs = (pods.one, pods.two), (pods.two, pods.far)
        await reachable(world, *pairs, families=overlay.families, timeout_s=3)
    finally:
        await world.delete("HostEndpoint", "all2")


@pytest.fixture
def strict(world: World) -> Iterator[None]:
    """The kernel drops what comes from where it would not send the answer."""
    spaces = [node.namespace for node in world.cluster.nodes]
    for space in spaces:
        space.sysctl({"ipv4/conf/all/rp_filter": 1})
    yield
    for space in spaces:
        space.sysctl({"ipv4/conf/all/rp_filter": 0})


@pytest.mark.usefixtures("strict")
@each_also_on_stock_kernel
async def test_hosts_reach_pods_through_the_tunnel_from_every_address_they_have(
    world: World, pods: Pods, overlay: Overlay
) -> None:
    await set_mode(world, "Always", overlay)
    await reachable(world, (pods.one, pods.two), (pods.far, pods.one), families=overlay.families)
    node = world.cluster.node("node1")
    flows = [
        Flow(node.namespace.path, target.address(family), 8080, "tcp", source)
        for target in (pods.two, pods.far)
        for family in overlay.families
        for source in (None, node.ipv4.ip if family == 4 else node.ipv6.ip)
    ]

    async def all_pass() -> bool:
        return await asyncio.to_thread(check, flows, timeout_s=0.6, tries=2) == [ALLOW] * len(flows)

    await until(all_pass, HEAL_S, "hosts reach pods")


# --- I08 --------------------------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("mode", ["Never", "CrossSubnet", "Always"])
async def test_i08_borrowed_addresses_are_reached_across_nodes(
    world: World, pods: Pods, mode: str, overlay: Overlay
) -> None:
    await set_mode(world, "Always", overlay)
    await world.apply(
        "{kind: IPPool, metadata: {name: small}, "
        f"spec: {{cidr: 10.70.0.0/29, blockSize: 29, {overlay.kind}Mode: {mode}}}}}"
    )
    config = {"ipam": {"type": "calico-ipam", "assign_ipv4": "true", "ipv4_pools": ["10.70.0.0/29"]}}
    add = world.cluster.add_pod
    made = [
        await add(node, f"small{i}", namespace="ns1", config=config)
        for i, node in enumerate(("node1", "node2", *(("node3",) if mode != "Never" else ())))
    ]
    try:
        routes = world.run("node1", "ip", "route", "show", "proto", "80")
        assert f"{made[1].address(4)} via " in routes
        pairs = [(a, b) for a in made for b in made if a is not b] + [(pods.two, made[0]), (pods.one, made[1])]
        await world.cluster.eventually([(a, b, 8080, "tcp") for a, b in pairs], ALLOW, timeout_s=RECOVER_S)
    finally:
        for pod in made:
            await world.cluster.remove_pod(pod)
        await world.delete("IPPool", "small")
