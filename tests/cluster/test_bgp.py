"""Pods of different nodes reach each other over routes that our speakers tell each other, and nothing that happens to a
speaker loses a packet.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from ipaddress import IPv4Address, IPv4Interface, IPv6Interface, ip_network
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from libs.model import keys
from libs.testkit.cluster import Cluster, Pod
from libs.testkit.processes import Process
from libs.testkit.traffic import Load
from services.bgp.core.paths import Attributes, Family, nlri
from services.bgp.core.settings import Originated, PeerKind, PeerSettings, PoolExport, SpeakerSettings
from services.bgp.core.settings_file import encode_settings
from tests.cluster.conftest import ALLOW, World, open_world, until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(crash_etcd: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        cluster = Cluster.create(nodes=3, daemons=("bgp",), etcd_binary=crash_etcd)
        yield await open_world(stack, cluster)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(world: World) -> dict[str, Pod]:
    made = {name: await world.cluster.add_pod(f"node{name[1]}", name) for name in ("p1", "p2", "p3")}
    await converged(world)
    return made


def ask(world: World, node: str, *arguments: str) -> Any:
    """What the speaker of a node answers, None when it cannot."""
    done = _run(world, node, *arguments)
    return json.loads(done.stdout) if done.returncode == 0 else None


def _run(world: World, node: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    socket = world.cluster.node(node).directory / "bgp.sock"
    command = [sys.executable, "-m", "services.bgp", *arguments, "--socket", str(socket), "-o", "json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def routes(world: World, node: str) -> set[str]:
    """Destinations of learned routes in the kernel."""
    found: set[str] = set()
    for family in ("-4", "-6"):
        told = json.loads(world.run(node, "ip", "-j", family, "route", "show", "proto", "81"))
        found |= {one["dst"] for one in told if one.get("type", "unicast") == "unicast"}
    return found


async def blocks(world: World) -> dict[str, set[str]]:
    """CIDRs of the blocks of each node, as etcd has them."""
    found: dict[str, set[str]] = {node.name: set() for node in world.cluster.nodes}
    for kv in (await world.store.list("/calico/ipam/v2/assignment/")).kvs:
        block = json.loads(kv.value)
        found[block["affinity"].removeprefix("host:")].add(block["cidr"])
    return found


async def converged(world: World, *, timeout_s: float = 60.0) -> None:
    """Every node has a route to every block of the others, and none to its own."""

    async def same() -> bool:
        have = await blocks(world)
        return all(
            {cidr for owner, cidrs in have.items() if owner != name for cidr in cidrs} <= routes(world, name)
            and not (have[name] & routes(world, name))
            for name in have
        )

    await until(same, timeout_s, "all nodes know all blocks")


async def test_every_pod_reaches_every_pod_over_learned_routes(world: World, pods: dict[str, Pod]) -> None:
    await world.check([(a, b, 8080, "tcp", ALLOW) for a in pods.values() for b in pods.values() if a is not b])
    for node in world.cluster.nodes:  # felix leaves them to bgp
        assert "via" not in world.run(node.name, "ip", "route", "show", "proto", "80")


async def test_mesh_is_complete_in_both_families(world: World, pods: dict[str, Pod]) -> None:
    for node in world.cluster.nodes:
        others = [other for other in world.cluster.nodes if other is not node]
        peers = ask(world, node.name, "peers")
        addresses = {str(address.ip) for other in others for address in (other.ipv4, other.ipv6)}
        assert {peer["address"] for peer in peers} == addresses
        assert {peer["state"] for peer in peers} == {"Established"}
        assert {peer["kind"] for peer in peers} == {"Mesh"}


async def test_blocks_are_told_whole_and_unused_addresses_go_nowhere(world: World, pods: dict[str, Pod]) -> None:
    have = await blocks(world)
    for node in world.cluster.nodes:

        async def black(name: str = node.name) -> bool:  # others may hear of a block before its own kernel
            shown = json.loads(world.run(name, "ip", "-j", "route", "show", "proto", "81", "type", "blackhole"))
            return {one["dst"] for one in shown} == {cidr for cidr in have[name] if "." in cidr}

        await until(black, 30, f"blackholes of {node.name}")
        told = {one["prefix"] for one in ask(world, node.name, "rib") if one["from"].startswith("Mesh")}
        assert told == {cidr for name, cidrs in have.items() if name != node.name for cidr in cidrs if "." in cidr}


async def test_speaker_explains_a_pods_address(world: World, pods: dict[str, Pod]) -> None:
    address = str(pods["p2"].address(4))
    found = ask(world, "node1", "explain", address)
    assert found["paths"][0]["from"] == f"Mesh_{str(world.cluster.node('node2').ipv4.ip).replace('.', '_')}"
    assert found["paths"][0]["reason"] == "best"
    assert found["kernel"]["hops"] == [{"gateway": str(world.cluster.node("node2").ipv4.ip), "interface": "eth0"}]
    said = _run(world, "node1", "explain", "203.0.113.1")
    assert (said.returncode, said.stderr.strip()) == (1, "calico-bgp: no route covers 203.0.113.1")


def load(world: World, pods: dict[str, Pod]) -> Load:
    flow = world.cluster.flow
    pairs = [(a, b) for a in pods.values() for b in pods.values() if a is not b]
    tcp = [flow(a, b, 8080, family=family) for a, b in pairs for family in (4, 6)]
    udp = [flow(a, b, 8080, "udp", family=family) for a, b in pairs for family in (4, 6)]
    return Load(udp=udp, tcp=tcp, streams=tcp[:4], denied=[])


async def sent(running: Load, packets: int) -> None:
    wanted = running.snapshot().udp_sent + packets

    async def enough() -> bool:
        return running.snapshot().udp_sent >= wanted

    await until(enough, 60, f"{packets} more packets")


async def established(world: World, node: str) -> None:
    async def up() -> bool:
        peers = ask(world, node, "peers")
        return bool(peers) and {peer["state"] for peer in peers} == {"Established"}

    await until(up, 30, f"all sessions of {node}")


@pytest.mark.parametrize("part", ["bgp", "felix"])
async def test_kill_9_loses_no_packet(world: World, pods: dict[str, Pod], part: str) -> None:
    before = {node.name: routes(world, node.name) for node in world.cluster.nodes}
    with load(world, pods) as running:
        await sent(running, 300)
        if part == "bgp":
            world.cluster.node("node1").daemons["bgp"].kill()
            await sent(running, 1000)
            await world.cluster.restart_daemon("node1", "bgp")
            await established(world, "node1")
        else:
            world.cluster.kill_felix("node1")
            await sent(running, 1000)
            await world.cluster.start_felix("node1")
        await sent(running, 1000)
    assert running.result.lost_nothing, running.result
    assert running.result.udp_sent > 2300, running.result
    await converged(world)
    assert {node.name: routes(world, node.name) for node in world.cluster.nodes} == before


async def test_speaker_starts_from_disk_without_nats_and_etcd(world: World, pods: dict[str, Pod]) -> None:
    cluster = world.cluster
    with load(world, pods) as running:
        cluster.nats.kill()
        cluster.etcd.kill()
        await cluster.restart_daemon("node2", "bgp")
        await established(world, "node2")
        await sent(running, 1000)
        await cluster.etcd.start_async()
        await cluster.nats.start_async()
        await cluster.wait_ready()
    assert running.result.lost_nothing, running.result
    late = await cluster.add_pod("node3", "late")
    await converged(world)
    await world.check([(pods["p1"], late, 8080, "tcp", ALLOW), (late, pods["p2"], 8080, "tcp", ALLOW)])
    await cluster.remove_pod(late)


async def test_session_of_a_node_that_goes_takes_its_routes(world: World, pods: dict[str, Pod]) -> None:
    """Mesh off: every session ends, and with it what was learned; on again: all is as before."""
    before = {node.name: routes(world, node.name) for node in world.cluster.nodes}
    off = "kind: BGPConfiguration\nmetadata: {name: default}\nspec: {nodeToNodeMeshEnabled: false}\n"
    await world.apply(off)

    async def empty() -> bool:
        names = [node.name for node in world.cluster.nodes]
        return all(ask(world, name, "peers") == [] and not routes(world, name) for name in names)

    await until(empty, 30, "no sessions, no learned routes")
    await world.apply(off.replace("false", "true"))
    await converged(world)
    assert {node.name: routes(world, node.name) for node in world.cluster.nodes} == before


async def test_two_reflectors_chosen_by_label_stand_in_for_the_mesh(world: World, pods: dict[str, Pod]) -> None:
    """G03, G04: one BGPPeer by selectors gives all sessions; routes of clients pass the reflectors; one may die."""
    before: dict[str, bytes] = {}
    for name in ("node1", "node2"):
        key = keys.resource_key("Node", name, "")
        kv = await world.store.get(key)
        assert kv is not None
        before[key] = kv.value
        node = json.loads(kv.value)
        node["metadata"].setdefault("labels", {})["route-reflector"] = "true"
        node["spec"]["bgp"]["routeReflectorClusterID"] = "244.0.0.1"
        await world.store.put(key, json.dumps(node).encode())
    await world.apply(
        """\
kind: BGPConfiguration
metadata: {name: default}
spec: {nodeToNodeMeshEnabled: false}
---
kind: BGPPeer
metadata: {name: reflectors}
spec: {nodeSelector: all(), peerSelector: route-reflector == 'true'}
"""
    )
    reflectors = {str(address.ip) for n in ("node1", "node2") for address in _addresses(world, n)}

    async def reflected() -> bool:
        peers = ask(world, "node3", "peers") or []
        return {peer["address"] for peer in peers if peer["state"] == "Established"} == reflectors

    await until(reflected, 60, "node3 has sessions with the two reflectors alone")
    await converged(world, timeout_s=60)
    await world.check([(a, b, 8080, "tcp", ALLOW) for a in pods.values() for b in pods.values() if a is not b])
    # What a client tells one reflector, another client hears from it.
    late = await world.cluster.add_pod("node3", "late3")
    await converged(world)
    await world.check([(pods["p1"], late, 8080, "tcp", ALLOW), (late, pods["p2"], 8080, "tcp", ALLOW)])
    await world.cluster.remove_pod(late)
    world.cluster.node("node1").daemons["bgp"].kill()
    await world.check([(pods["p3"], pods["p2"], 8080, "tcp", ALLOW), (pods["p3"], pods["p1"], 8080, "tcp", ALLOW)])
    await world.cluster.restart_daemon("node1", "bgp")
    await until(reflected, 60, "the reflector is back")
    for key, value in before.items():
        await world.store.put(key, value)
    await world.delete("BGPPeer", "reflectors")
    await world.apply("kind: BGPConfiguration\nmetadata: {name: default}\nspec: {}\n")
    await converged(world, timeout_s=60)


def _addresses(world: World, node: str) -> tuple[IPv4Interface, IPv6Interface]:
    found = world.cluster.node(node)
    return found.ipv4, found.ipv6


async def test_missing_password_holds_sessions_down_and_its_arrival_brings_them_up(
    world: World, pods: dict[str, Pod]
) -> None:
    default = "kind: BGPConfiguration\nmetadata: {name: default}\nspec: "
    await world.apply(default + "{nodeMeshPassword: {secretKeyRef: {name: bgp, key: pw}}}\n")

    async def held() -> bool:
        peers = [peer for node in world.cluster.nodes for peer in ask(world, node.name, "peers") or []]
        return len(peers) == 12 and all(peer["state"] == "Close" and "missing" in peer["detail"] for peer in peers)

    await until(held, 30, "sessions held down, and why")
    for node in world.cluster.nodes:
        (node.directory / "secrets" / "bgp").mkdir(parents=True)
        (node.directory / "secrets" / "bgp" / "pw").write_text("right\n")
    await converged(world, timeout_s=60)
    for node in world.cluster.nodes:
        await established(world, node.name)
    # Changed on all sides within the hold time: not one session is lost.
    before = {node.name: ask(world, node.name, "peers") for node in world.cluster.nodes}
    for node in world.cluster.nodes:
        (node.directory / "secrets" / "bgp" / "pw").write_text("other\n")
    late = await world.cluster.add_pod("node1", "late2")
    await world.check([(pods["p2"], late, 8080, "tcp", ALLOW)])
    for node in world.cluster.nodes:
        now = {peer["name"]: peer["messages"]["sent"]["OPEN"] for peer in ask(world, node.name, "peers")}
        assert now == {peer["name"]: peer["messages"]["sent"]["OPEN"] for peer in before[node.name]}
    await world.apply(default + "{}\n")
    for node in world.cluster.nodes:
        await established(world, node.name)


async def test_workload_peers_with_its_node_and_its_routes_stay(
    world: World, pods: dict[str, Pod], tmp_path: Path
) -> None:
    """G16: the pod finds its node at 169.254.0.179; what it announces is routed to it, through a felix that dies."""
    await world.apply(
        """\
kind: FelixConfiguration
metadata: {name: default}
spec: {defaultEndpointToHostAction: Accept}
---
kind: BGPConfiguration
metadata: {name: default}
spec: {localWorkloadPeeringIPV4: 169.254.0.179}
---
kind: BGPPeer
metadata: {name: routers}
spec: {localWorkloadSelector: role == 'router', asNumber: 65401}
"""
    )
    router = await world.cluster.add_pod("node1", "router", labels={"role": "router"})
    own = IPv4Address(str(router.address(4)))
    interface = router.result["interfaces"][0]["name"]
    settings = SpeakerSettings(
        node="router", router_id=int(own), local_as=65401, addresses=(own,),
        peers=(PeerSettings("node", PeerKind.GLOBAL, IPv4Address("169.254.0.179"), 64512, 65401),),
        originated=(Originated(Family.IPV4, nlri(ip_network("10.99.0.0/24")), Attributes(), block=True),),
        own_blocks=(ip_network("10.99.0.0/24"),), pools=(PoolExport(ip_network("10.99.0.0/16")),),
    )  # fmt: skip
    (tmp_path / "router.json").write_text(encode_settings(settings))
    speaker = Process(
        "speaker in the pod",
        [sys.executable, "-m", "services.bgp", "--settings", str(tmp_path / "router.json"), "--control-socket",
         str(tmp_path / "router.sock")],
        netns=router.netns, log_path=tmp_path / "router.log", env=dict(os.environ), cwd=Path(__file__).parents[2],
    )  # fmt: skip
    speaker.start()
    try:

        async def routed() -> bool:
            return "10.99.0.0/24" in routes(world, "node1")

        await until(routed, 60, "the pod's route on its node")
        told = {one["peer"]: one for one in ask(world, "node1", "explain", "10.99.0.0/24")["advertised"]}
        assert "inside a pool" in next(one["reason"] for name, one in told.items() if name.startswith("Mesh"))
        through = json.loads(world.run("node1", "ip", "-j", "route", "show", "10.99.0.0/24"))
        assert [(one["gateway"], one["dev"]) for one in through] == [(str(own), interface)]
        world.cluster.kill_felix("node1")
        await world.cluster.start_felix("node1")
        assert await routed()
    finally:
        speaker.stop()

    async def withdrawn() -> bool:
        addresses = world.run("node1", "ip", "address", "show", "dev", interface)
        return "10.99.0.0/24" not in routes(world, "node1") and "169.254.0.179" not in addresses

    await world.delete("BGPPeer", "routers")
    await until(withdrawn, 60, "neither route nor gateway of a pod that is no peer any more")
    await world.apply("kind: BGPConfiguration\nmetadata: {name: default}\nspec: {}\n")
    await world.apply("kind: FelixConfiguration\nmetadata: {name: default}\nspec: {}\n")
    await world.cluster.remove_pod(router)
