"""Overlays with real packets: three nodes, of which node3 is in another subnet, behind a router that knows no pods."""

from __future__ import annotations

import asyncio
import socket
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from ipaddress import ip_address

import pytest
import pytest_asyncio
from msgspec.structs import replace

from libs.bus.applied import WaitProblem
from libs.model.node import Node
from libs.netlink.ethtool import tx_checksum
from libs.testkit.cluster import Cluster, Pod
from libs.testkit.packets import UDP, Packet, frame, tag_of
from libs.testkit.reach import Flow, Verdict, check
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


async def tunnel_addresses(world: World, *, there: bool) -> None:
    """The node service gives and takes them as pools change."""

    async def as_wanted() -> bool:
        nodes = [node for node in (await world.resources.list("Node")).items if isinstance(node, Node)]
        return all(
            bool(node.spec.ipv4_vxlan_tunnel_addr and node.spec.ipv6_vxlan_tunnel_addr) == there for node in nodes
        )

    await until(as_wanted, RECOVER_S, f"tunnel addresses of all nodes: {there}")


async def set_mode(world: World, vxlan: str = "Never") -> None:
    """natOutgoing stays: what pods send to pods must keep its source all the same."""
    for name, cidr, size in POOLS.values():
        await world.apply(f"""
kind: IPPool
metadata: {{name: {name}}}
spec: {{cidr: "{cidr}", blockSize: {size}, vxlanMode: {vxlan}, ipipMode: Never, natOutgoing: true}}
""")
    await tunnel_addresses(world, there=vxlan != "Never")


async def reachable(world: World, *pairs: tuple[Pod, Pod], timeout_s: float = RECOVER_S) -> None:
    for family in FAMILIES:
        for protocol in ("tcp", "udp"):
            questions = [(a, b, 8080, protocol) for a, b in pairs]
            await world.cluster.eventually(questions, ALLOW, family=family, timeout_s=timeout_s)  # type: ignore[arg-type]


def between(seen: list[Seen], a: Pod, b: Pod, family: int) -> list[Seen]:
    ends = {a.address(family), b.address(family)}
    return [packet for packet in seen if {packet.source, packet.target} == ends]


async def ways(world: World, a: Pod, b: Pod, family: int) -> tuple[int, int]:
    """(packets of the pair seen without a tunnel, in a VXLAN packet) at the second one's node, of one exchange."""
    with Sniffer(world.cluster.fabric, b.node) as wire:
        await world.cluster.eventually([(a, b, 8080, "tcp")], ALLOW, family=family)
        seen = wire.packets()
    inner = [packet.inner() for packet in seen if packet.is_vxlan()]
    return len(between(seen, a, b, family)), len(between([one for one in inner if one is not None], a, b, family))


def links(world: World, node: str) -> set[str]:
    return {line.split()[0].split("@")[0] for line in world.run(node, "ip", "-br", "link").splitlines()}


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


async def test_o01_o02_vxlan_always_carries_everything_between_nodes(world: World, pods: Pods) -> None:
    await set_mode(world, vxlan="Always")
    pairs = [(a, b) for a in (pods.one, pods.two, pods.far) for b in (pods.one, pods.two, pods.far) if a is not b]
    await reachable(world, *pairs)
    for family in FAMILIES:
        for target in (pods.two, pods.far):
            plain, tunnelled = await ways(world, pods.one, target, family)
            assert tunnelled, (family, target.name)
            assert not plain, (family, target.name)
    node1 = world.cluster.node("node1")
    for family, device in DEVICES.items():
        shown = world.run("node1", "ip", "-d", "-o", "link", "show", device)
        local = (node1.ipv4 if family == 4 else node1.ipv6).ip
        assert "vxlan id 4096 " in shown
        assert f"local {local} dev eth0" in shown
        assert "dstport 4789 nolearning" in shown
        assert f"mtu {1450 if family == 4 else 1430} " in shown
        assert "link/ether 66:" in shown
        assert world.run("node1", "bridge", "fdb", "show", "dev", device).count("self permanent") == 2
    gotten = route(world, "node1", pods.two, 4)
    assert "dev vxlan.calico" in gotten
    assert "mtu 1450" in gotten


async def test_o01_crosssubnet_uses_the_tunnel_for_the_other_subnet_alone(world: World, pods: Pods) -> None:
    await set_mode(world, vxlan="CrossSubnet")
    await reachable(world, (pods.one, pods.two), (pods.one, pods.far), (pods.far, pods.two))

    async def settled() -> bool:
        return all("dev eth0" in route(world, node, pod, family) for family in FAMILIES
                   for node, pod in (("node1", pods.two), ("node2", pods.one)))  # fmt: skip

    await until(settled, RECOVER_S, "direct routes within the subnet")
    for family in FAMILIES:
        plain, tunnelled = await ways(world, pods.one, pods.two, family)
        assert plain, family
        assert not tunnelled, family
        plain, tunnelled = await ways(world, pods.one, pods.far, family)
        assert tunnelled, family
        assert not plain, family


# --- O07, and what a dead felix leaves --------------------------------------------------------------------------------


def state(world: World, node: str) -> dict[str, str]:
    """All that an overlay is made of, without what counts or ages."""
    shown = {}
    for device in DEVICES.values():
        shown[f"{device} link"] = world.run(node, "ip", "-o", "-br", "link", "show", device).split(" <")[0]
        addresses = world.run(node, "ip", "-o", "addr", "show", device, "scope", "global").splitlines()
        shown[f"{device} address"] = "\n".join(line.split()[3] for line in addresses)
        shown[f"{device} fdb"] = "\n".join(sorted(world.run(node, "bridge", "fdb", "show", "dev", device).splitlines()))
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


@pytest.mark.parametrize("device", DEVICES.values())
@pytest.mark.parametrize("what", ["forwarding entry", "neighbour", "route", "address", "mtu", "mac", "down", "device"])
async def test_o07_what_somebody_takes_away_comes_back(world: World, pods: Pods, what: str, device: str) -> None:
    await set_mode(world, vxlan="Always")
    await reachable(world, (pods.one, pods.two), (pods.one, pods.far))
    before = state(world, "node1")
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
        return device in links(world, "node1") and state(world, "node1") == before

    await until(back, HEAL_S, f"{what} of {device}")
    await reachable(world, (pods.one, pods.two), (pods.one, pods.far))


async def test_o07_what_somebody_adds_goes(world: World, pods: Pods) -> None:
    await set_mode(world, vxlan="Always")
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


async def test_kill_9_of_felix_loses_nothing_that_goes_through_tunnels(world: World, pods: Pods) -> None:
    await set_mode(world, vxlan="Always")
    pairs = [(pods.one, pods.two), (pods.two, pods.one), (pods.far, pods.one)]
    await reachable(world, *pairs)
    before = state(world, "node1")
    flow = world.cluster.flow
    udp = [flow(a, b, 8080, "udp", family=family) for a, b in pairs for family in FAMILIES]
    tcp = [flow(a, b, 8080, family=family) for a, b in pairs for family in FAMILIES]
    with Load(udp=udp, tcp=tcp, streams=tcp[:2], udp_per_s=500, tcp_per_s=50) as load:
        await another(load, 300)
        world.cluster.kill_felix("node1")
        await another(load, 600)
        await world.cluster.start_felix("node1")
        await another(load, 600)
    assert load.result.lost_nothing, load.result
    assert state(world, "node1") == before


async def another(load: Load, packets: int) -> None:
    wanted = load.snapshot().udp_sent + packets

    async def sent() -> bool:
        return load.snapshot().udp_sent >= wanted

    await until(sent, 30, f"{packets} more packets")


# --- O05, O06, O13 ----------------------------------------------------------------------------------------------------


async def test_o05_encapsulation_changes_under_traffic_and_the_old_device_goes(world: World, pods: Pods) -> None:
    await set_mode(world)
    near = [(pods.one, pods.two), (pods.two, pods.one)]
    await reachable(world, *near)
    flow = world.cluster.flow
    udp = [flow(a, b, 8080, "udp", family=family) for a, b in near for family in FAMILIES]
    streams = [flow(a, b, 8080, family=family) for a, b in near for family in FAMILIES]
    with Load(udp=udp, streams=streams, udp_per_s=400) as load:
        await another(load, 200)
        for mode in ("Always", "CrossSubnet", "Always", "Never"):
            lost_before = load.snapshot().udp_sent - load.snapshot().udp_received
            await set_mode(world, vxlan=mode)
            await reachable(world, *near)

            async def as_wanted(mode: str = mode) -> bool:
                there = set(DEVICES.values()) <= links(world, "node1")
                tunnelled = all("vxlan" in route(world, "node1", pods.two, family) for family in FAMILIES)
                return there == (mode != "Never") and tunnelled == (mode == "Always")

            await until(as_wanted, RECOVER_S, f"routes and devices of {mode}")
            await another(load, 200)
            lost = load.snapshot().udp_sent - load.snapshot().udp_received - lost_before
            print(f"to {mode}: about {lost} of 400/s lost")
    result = load.result
    assert result.streams_broken == 0, result
    assert result.longest_silence_s < RECOVER_S, result
    assert result.udp_received > 800, result
    assert not links(world, "node2") & set(DEVICES.values())


async def test_o05_within_one_subnet_a_change_away_from_the_tunnel_and_back_loses_nothing(
    world: World, pods: Pods
) -> None:
    """With devices that are there on both sides, every route is replaced in place; one that is not needed lingers."""
    await set_mode(world, vxlan="Always")
    near = [(pods.one, pods.two), (pods.two, pods.one)]
    await reachable(world, *near)
    flow = world.cluster.flow
    with Load(udp=[flow(a, b, 8080, "udp", family=f) for a, b in near for f in FAMILIES], udp_per_s=400) as load:
        for mode in ("CrossSubnet", "Always", "Never"):
            await another(load, 100)
            await set_mode(world, vxlan=mode)

            async def switched(mode: str = mode) -> bool:
                shown = [route(world, "node1", pods.two, 4), route(world, "node2", pods.one, 6)]
                return all(("vxlan" in text) == (mode == "Always") for text in shown)

            await until(switched, RECOVER_S, mode)

        async def gone() -> bool:
            return not (links(world, "node1") | links(world, "node2")) & set(DEVICES.values())

        await until(gone, RECOVER_S, "devices that nothing needs")
        await another(load, 100)
    assert load.result.udp_lost == 0, load.result


async def test_o06_tunnel_addresses_move_with_the_pools(world: World, pods: Pods) -> None:
    await set_mode(world, vxlan="Always")
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
    await set_mode(world, vxlan="Always")
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


async def test_o13_a_nodes_own_mac_is_used_and_known_to_the_others(world: World, pods: Pods) -> None:
    await set_mode(world, vxlan="Always")
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
    if "ipip" in kinds(world):
        pytest.skip("this kernel has IP-in-IP tunnels")
    await set_mode(world, vxlan="Always")
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


def kinds(world: World) -> str:
    try:
        world.run("node1", "ip", "link", "add", "ipip9", "type", "ipip", "local", "192.0.2.99")
    except subprocess.CalledProcessError:
        return ""
    world.run("node1", "ip", "link", "del", "ipip9")
    return "ipip"


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


async def arrives(world: World, pods: Pods, stranger: Namespace, family: int) -> bool:
    """Whether the pod sees what the stranger sends it in VXLAN packets of an overlay's number."""
    device = DEVICES[family]
    node = world.cluster.node("node1")
    mac = world.run("node1", "cat", f"/sys/class/net/{device}/address").strip()
    target, source = pods.one.address(family), ip_address("10.65.200.7" if family == 4 else "fd00:65::c8:7")
    inner = frame(Packet(source, target, UDP, 4000, 8080), tag_of(7), bytes.fromhex(mac.replace(":", "")), b"\x66" * 6)
    packet = struct.pack("!II", 0x08000000, 4096 << 8) + inner
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    to = (str((node.ipv4 if family == 4 else node.ipv6).ip), 4789)
    with Sniffer(pods.one.netns, "eth0") as wire, closing(stranger.socket(kind, socket.SOCK_DGRAM)) as sock:
        for _ in range(20):
            sock.sendto(packet, to)
            await asyncio.sleep(0.02)
            if any(seen.source == source for seen in wire.packets()):
                return True
    return False


async def test_o08_only_known_nodes_and_listed_networks_may_send(world: World, pods: Pods, stranger: Namespace) -> None:
    await set_mode(world, vxlan="Always")
    await reachable(world, (pods.one, pods.two), (pods.one, pods.far))
    for family in FAMILIES:
        assert not await arrives(world, pods, stranger, family), family
    dropped = world.run("node1", "nft", "list", "chain", "ip", "calico", "tunnel-senders")
    assert 'drop comment "VXLAN from a stranger"' in dropped
    assert "packets 0 bytes 0 drop" not in dropped
    listed = "{kind: FelixConfiguration, metadata: {name: default}, spec: {externalNodesList: [172.31.0.192/28]}}"
    await world.apply(listed)

    async def accepted() -> bool:
        return await arrives(world, pods, stranger, 4)

    await until(accepted, HEAL_S, "a listed network is let in")
    assert not await arrives(world, pods, stranger, 6)
    await world.delete("FelixConfiguration", "default")

    async def refused() -> bool:
        return not await accepted()

    await until(refused, HEAL_S, "it is a stranger again")
    await reachable(world, (pods.one, pods.two))


async def test_o08_policy_of_host_endpoints_does_not_meet_what_known_nodes_send(world: World, pods: Pods) -> None:
    await set_mode(world, vxlan="Always")
    await reachable(world, (pods.one, pods.two), (pods.far, pods.two))
    await world.apply("{kind: HostEndpoint, metadata: {name: all2}, spec: {node: node2, interfaceName: '*'}}")
    try:
        assert "tunnel-senders" in world.run("node2", "nft", "list", "chain", "ip", "calico", "hook-fh")
        await reachable(world, (pods.one, pods.two), (pods.two, pods.far), timeout_s=3)
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
async def test_hosts_reach_pods_through_the_tunnel_from_every_address_they_have(world: World, pods: Pods) -> None:
    await set_mode(world, vxlan="Always")
    await reachable(world, (pods.one, pods.two), (pods.far, pods.one))
    node = world.cluster.node("node1")
    flows = [
        Flow(node.namespace.path, target.address(family), 8080, "tcp", source)
        for target in (pods.two, pods.far)
        for family, own in ((4, node.ipv4.ip), (6, node.ipv6.ip))
        for source in (None, own)
    ]

    async def all_pass() -> bool:
        return await asyncio.to_thread(check, flows, timeout_s=0.6, tries=2) == [ALLOW] * len(flows)

    await until(all_pass, HEAL_S, "hosts reach pods")


# --- I08 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["Never", "CrossSubnet", "Always"])
async def test_i08_borrowed_addresses_are_reached_across_nodes(world: World, pods: Pods, mode: str) -> None:
    await set_mode(world, vxlan="Always")
    await world.apply(
        f"{{kind: IPPool, metadata: {{name: small}}, spec: {{cidr: 10.70.0.0/29, blockSize: 29, vxlanMode: {mode}}}}}"
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
