"""Overlays with real packets: which way they take, and whose are let in.

VXLAN and, where the kernel has it, IP in IP, which carries IPv4 alone.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from ipaddress import ip_address, ip_network

import pytest
import pytest_asyncio

from libs.bus.applied import WaitProblem
from libs.testkit.netns import kernel_makes
from libs.testkit.packets import UDP, Packet, datagram, frame, tag_of
from libs.testkit.reach import Flow, Verdict, check
from libs.testkit.sniff import IPIP as IPPROTO_IPIP
from libs.testkit.sniff import Sniffer
from libs.testkit.topology import Namespace, TopologyError, remove
from tests.cluster.conftest import ALLOW, World, until
from tests.cluster.overlays.lab import (
    DEVICES,
    FAMILIES,
    HEAL_S,
    IPIP,
    RECOVER_S,
    VXLAN,
    Overlay,
    Pods,
    each,
    each_also_on_stock_kernel,
    links,
    reachable,
    route,
    set_mode,
    ways,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

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
        with suppress(TopologyError):  # at once: the kernel takes its time with a namespace and what is in it
            fabric.ip(["link del stranger"])
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
    world: World, pods: Pods, overlay: Overlay, stranger: Namespace
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
        await reachable(world, *pairs, families=overlay.families)
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
