"""Real container runtimes on our network: cnitool (C01, C02), containerd, Podman; chained plugins and host ports (C11);
two networks for one container (C14). Each has its own network namespace's view of a host (tests/cluster/runtimes).

Every test ends with nothing left on the node: no interface, route, set element, address, endpoint or journal entry.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from libs.testkit.cluster import Cluster, Pod
from libs.testkit.processes import Probe
from libs.testkit.reach import Flow, Verdict, check
from libs.testkit.topology import NETNS_DIR, Namespace, remove
from tests.cluster.conftest import ALLOW, DENY, World, open_world, until
from tests.cluster.runtimes import image
from tests.cluster.runtimes.containerd import Containerd
from tests.cluster.runtimes.host import Host, RuntimeFailed
from tests.cluster.runtimes.podman import Podman
from tests.cluster.runtimes.tools import cnitool, tool
from tests.cluster.traces import WEPS, traces
from tests.kernel.test_bandwidth import lacking

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

Address = IPv4Address | IPv6Address
VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NETWORK, IMAGE = "k8s-pod-network", "localhost/busybox:test"
OPEN, CLOSED, HOST_PORT = 8080, 9090, 8088
SERVE = f"busybox httpd -p {OPEN} -h /etc; busybox httpd -f -p {CLOSED} -h /etc"
PORTMAP: dict[str, Any] = {"type": "portmap", "snat": True, "capabilities": {"portMappings": True}}
BANDWIDTH: dict[str, Any] = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
# Containers that no Kubernetes knows carry the labels of their network. node2 itself may come in, by its addresses.
POLICY = """
kind: GlobalNetworkPolicy
metadata: {name: front}
spec:
  selector: role == 'server'
  types: [Ingress, Egress]
  egress: [{action: Allow}]
  ingress:
  - {action: Allow, source: {selector: role == 'client'}, destination: {ports: [8080]}, protocol: TCP}
  - {action: Allow, source: {nets: [172.31.0.12/32]}, destination: {ports: [8080]}, protocol: TCP}
  - {action: Allow, source: {nets: ['fd00:172:31::c/128']}, destination: {ports: [8080]}, protocol: TCP}
"""
# As Calico's manifests give it to its installer, for the Kubernetes datastore.
CALICO = """{
  "name": "k8s-pod-network", "cniVersion": "0.3.1",
  "plugins": [
    {"type": "calico", "log_level": "info", "log_file_path": "%s/cni.log", "datastore_type": "kubernetes",
     "nodename": "__KUBERNETES_NODE_NAME__", "mtu": __CNI_MTU__, "ipam": {"type": "calico-ipam"},
     "policy": {"type": "k8s"}, "kubernetes": {}},
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
    {"type": "bandwidth", "capabilities": {"bandwidth": true}}
  ]
}"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        cluster = Cluster.create(nodes=2, tcp_ports=(OPEN,), udp_ports=())
        made = await open_world(stack, cluster)
        await cluster.add_namespace("ns1")
        await made.apply(POLICY)
        for name, role in (("client", "client"), ("stranger", "other")):
            await cluster.add_pod("node2", name, namespace="ns1", labels={"role": role})
        yield made


@pytest.fixture(scope="module")
def host(world: World) -> Iterator[Host]:
    made = Host.open(world.cluster.node("node1"), ("portmap", "bandwidth", "tuning", "loopback"))
    yield made
    made.close()


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_left(world: World, host: Host) -> AsyncIterator[None]:
    yield
    node = world.cluster.node("node1")

    async def gone() -> bool:
        return not await traces(world, node)

    with contextlib.suppress(AssertionError):
        await until(gone, 10, "nothing is left on node1")
    assert await traces(world, node) == []
    assert not list((host.directory / "cni").rglob("*-eth*"))  # libcni's cache of results
    for path in host.networks.iterdir():
        path.unlink()


def network(version: str = "1.0.0", *after: dict[str, Any], name: str = NETWORK, before: Any = ()) -> dict[str, Any]:
    """A network list with our plugin among others, dual-stack; its containers carry the label role=server."""
    calico: dict[str, Any] = {
        "type": "calico", "nodename": "node1", "policy": {"type": "k8s"},
        "ipam": {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true"},
        "args": {"cni": {"labels": [{"key": "role", "value": "server"}]}},
    }  # fmt: skip
    return {"name": name, "cniVersion": version, "plugins": [*before, calico, *after]}


async def addresses(world: World, container: str) -> list[Address]:
    """Of the container whose id ends or begins so, from its endpoint."""
    for kv in (await world.store.list(WEPS)).kvs:
        spec = json.loads(kv.value)["spec"]
        if spec["containerID"] in container or container in spec["containerID"]:
            return [ip_network(text).network_address for text in spec["ipNetworks"]]
    raise LookupError(container)


def pod(world: World, name: str) -> Pod:
    return world.cluster.node("node2").pods[name]


async def verdicts(world: World, wanted: list[tuple[Namespace, Address, int, Verdict]]) -> None:
    flows = [Flow(space.path, address, port) for space, address, port, _ in wanted]
    await world.known()  # a runtime's ADD waits for its own node alone
    found = await asyncio.to_thread(check, flows, timeout_s=0.6, wanted=[want for *_, want in wanted])
    shown = [f"{space.name} -> {address} {port}: " for space, address, port, _ in wanted]
    assert [*map(str.__add__, shown, found)] == [*map(str.__add__, shown, [want for *_, want in wanted])]


async def policed(world: World, held: list[Address]) -> None:
    """Another pod and the host reach the container, as policy says; others do not."""
    client, stranger = pod(world, "client").netns, pod(world, "stranger").netns
    own = world.cluster.node("node1").namespace
    await verdicts(world, [
        row
        for address in held
        for row in (
            (client, address, OPEN, ALLOW), (client, address, CLOSED, DENY), (stranger, address, OPEN, DENY),
            (own, address, OPEN, ALLOW), (own, address, CLOSED, ALLOW),
        )
    ])  # fmt: skip


async def serves(world: World, address: Address) -> None:
    """Until the container's own server, which it may only just have started, answers the host."""
    flow = Flow(world.cluster.node("node1").namespace.path, address, CLOSED)

    async def answers() -> bool:
        return await asyncio.to_thread(check, [flow], timeout_s=0.5) == [ALLOW]

    await until(answers, 20, "the container's server")


class Attached:
    """A network namespace that cnitool attaches: as containerd would a pod of ns1."""

    def __init__(self, world: World, host: Host, name: str) -> None:
        self.host, self.name = host, name
        self.netns = Namespace(f"cal-{world.cluster.id}-{name}")
        self.probe: Probe | None = None
        self._world = world
        self._attached: dict[tuple[str, str], dict[str, Any]] = {}  # what a test that fails leaves to DEL

    async def __aenter__(self) -> Attached:
        cnitool()  # where there is none the test is skipped before anything is made
        self.netns.create()
        self._world.cluster._namespaces.append(self.netns)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.probe is not None:
            self.probe.stop()
        for (network, ifname), capabilities in list(self._attached.items()):
            with contextlib.suppress(RuntimeFailed):
                await self.cni("del", network=network, ifname=ifname, **capabilities)
        remove([self.netns])
        self._world.cluster._namespaces.remove(self.netns)

    async def cni(self, verb: str, *, network: str = NETWORK, ifname: str = "eth0", **capabilities: Any) -> Any:
        """The result; None where there is none. Raises RuntimeFailed."""
        env = {
            "CNI_PATH": "/opt/cni/bin",
            "NETCONFPATH": "/etc/cni/net.d",
            "CNI_IFNAME": ifname,
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=ns1;K8S_POD_NAME={self.name}",
            "CAP_ARGS": json.dumps(capabilities),
        }
        if verb == "add":
            self._attached[network, ifname] = capabilities
        said = await self.host.run(cnitool(), verb, network, self.netns.path, env=env)
        if verb == "del":
            self._attached.pop((network, ifname), None)
        return json.loads(said) if said.strip() else None

    def serve(self) -> None:
        self.probe = Probe(self.name, self.netns, (OPEN, CLOSED), ())


def given(result: dict[str, Any]) -> list[Address]:
    return [ip_network(entry["address"], strict=False).network_address for entry in result["ips"]]


# --- cnitool ---


@pytest.mark.parametrize("version", VERSIONS)
async def test_c01_c02_every_version_twice_by_cnitool(world: World, host: Host, version: str) -> None:
    host.install(network(version))
    async with Attached(world, host, "web") as web:
        result = await web.cni("add")
        assert await web.cni("add") == result
        assert result["cniVersion"] == version
        names = [interface["name"] for interface in result["interfaces"]]
        assert [names[entry["interface"]] for entry in result["ips"]] == ["eth0", "eth0"]
        assert [entry.get("version") for entry in result["ips"]] == (["4", "6"] if version < "1" else [None, None])
        web.serve()
        await policed(world, given(result))
        if version < "0.4":  # CHECK came with 0.4.0
            with pytest.raises(RuntimeFailed, match="does not support the CHECK command"):
                await web.cni("check")
        else:
            await web.cni("check")
            await asyncio.to_thread(web.netns.ip, ["link set eth0 down"])
            with pytest.raises(RuntimeFailed, match="eth0 is down"):
                await web.cni("check")
        if version == "1.1.0":
            await web.cni("status")
        await web.cni("del")
        await web.cni("del")


async def test_c13_gc_without_the_list_of_what_is_valid_is_refused(host: Host, world: World) -> None:
    host.install(network("1.1.0"))
    async with Attached(world, host, "web") as web:
        await web.cni("add")
        with pytest.raises(RuntimeFailed, match=r"GC needs `cni\.dev/valid-attachments`"):  # cnitool gives none
            await web.cni("gc")
        await web.cni("del")


async def test_calicos_own_network_list_works_unchanged(world: World, host: Host) -> None:
    """But for its kubeconfig: there is no Kubernetes API here to read the pod from; tests/e2e has one."""
    host.install(CALICO % host.directory)
    async with Attached(world, host, "plain") as plain:
        result = await plain.cni("add")
        (address,) = given(result)
        plain.serve()
        # No label, so no policy: the namespace's profile lets everybody in.
        client, stranger = pod(world, "client").netns, pod(world, "stranger").netns
        await verdicts(world, [(client, address, CLOSED, ALLOW), (stranger, address, OPEN, ALLOW)])
        await plain.cni("del")


async def test_c11_chained_before_and_after_other_plugins(world: World, host: Host) -> None:
    tuning = {"type": "tuning", "sysctl": {"net.ipv4.ip_default_ttl": "77"}}
    host.install(network("1.0.0", tuning, before=[{"type": "loopback"}]))
    async with Attached(world, host, "web") as web:
        result = await web.cni("add")
        names = [interface["name"] for interface in result["interfaces"]]
        assert {"lo", "eth0"} <= set(names)  # what the one before had said is in ours
        await web.cni("check")
        web.serve()
        await policed(world, [one for one in given(result) if not one.is_loopback])
        ttl = await host.run("ip", "netns", "exec", web.netns.name, "cat", "/proc/sys/net/ipv4/ip_default_ttl")
        assert int(ttl) == 77
        await web.cni("del")


async def test_c11_reached_by_host_port_as_policy_says(world: World, host: Host) -> None:
    host.install(network("1.0.0", PORTMAP))
    ports = {"portMappings": [{"hostPort": HOST_PORT, "containerPort": OPEN, "protocol": "tcp"}]}
    async with Attached(world, host, "web") as web:
        held = given(await web.cni("add", **ports))  # no CHECK: portmap's fails with two families
        web.serve()
        await policed(world, held)
        node1, node2 = world.cluster.nodes
        client, stranger = pod(world, "client").netns, pod(world, "stranger").netns
        await verdicts(world, [
            row
            for address in (node1.ipv4.ip, node1.ipv6.ip)
            for row in (
                (node2.namespace, address, HOST_PORT, ALLOW), (client, address, HOST_PORT, ALLOW),
                (stranger, address, HOST_PORT, DENY),  # policy sees who asks and what port the container has
            )
        ])  # fmt: skip
        await web.cni("del", **ports)
        rules = await host.run("nft", "list", "ruleset")
        assert str(HOST_PORT) not in rules
        assert not [address for address in held if str(address) in rules]


async def test_c11_bandwidth_chained_limits_and_stays(world: World, host: Host) -> None:
    if what := lacking():
        pytest.skip(f"this kernel has no traffic control for bandwidth limits: {what}")
    host.install(network("1.0.0", BANDWIDTH))
    rates = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000}
    async with Attached(world, host, "web") as web:
        result = await web.cni("add", bandwidth=rates)
        web.serve()
        await policed(world, given(result))
        # Another change must not let felix take it for a leftover of its own.
        await world.apply(POLICY.replace("front", "another").replace("'server'", "'nobody'"))
        await web.cni("check", bandwidth=rates)
        shown = json.loads(await host.run("tc", "-j", "qdisc", "show"))
        limited = {one["dev"][:4] for one in shown if one["kind"] == "tbf"}
        assert "cali" in limited
        assert len(limited) == 2  # and the device through which what the pod sends is led
        await web.cni("del", bandwidth=rates)
    await world.delete("GlobalNetworkPolicy", "another")


async def test_c14_two_networks_of_one_container(world: World, host: Host) -> None:
    host.install(network())
    host.install(network(name="second"), "20-second.conflist")
    async with Attached(world, host, "web") as web:
        first = await web.cni("add")
        second = await web.cni("add", network="second", ifname="net1")
        assert not set(given(first)) & set(given(second))
        web.serve()
        await policed(world, [*given(first), *given(second)])
        await web.cni("check")
        await web.cni("check", network="second", ifname="net1")
        await web.cni("del", network="second", ifname="net1")
        await policed(world, given(first))
        await web.cni("del")


# --- containerd ---


@pytest_asyncio.fixture(loop_scope="module")
async def containerd(world: World, host: Host, tmp_path: Path) -> AsyncIterator[Containerd]:
    made = Containerd(host, f"c{world.cluster.id}")
    try:
        await made.start()
        archive = tmp_path / "image.tar"
        archive.write_bytes(image.docker_archive(IMAGE, image.layer(tool("busybox"))))
        await made.ctr("image", "import", archive)
        yield made
    finally:
        made.close()


async def test_a_container_of_containerd(world: World, host: Host, containerd: Containerd) -> None:
    host.install(network("1.0.0", PORTMAP))
    await containerd.run(IMAGE, "web", "/bin/sh", "-c", SERVE)
    held = await addresses(world, f"{containerd.space}-web")
    assert [address.version for address in held] == [4, 6]
    inside = await containerd.ctr("task", "exec", "--exec-id", "look", "web", "ip", "address", "show", "eth0")
    assert all(str(address) in inside for address in held)
    await serves(world, held[0])
    await policed(world, held)
    await containerd.end("web")

    async def ended() -> bool:
        return not containerd.leftovers()

    await until(ended, 10, "no shim is left")


# --- Podman ---


@pytest_asyncio.fixture(loop_scope="module")
async def podman(world: World, host: Host, tmp_path: Path) -> AsyncIterator[Podman]:
    made = Podman(host, f"cal-{world.cluster.id}", NETWORK)
    try:
        archive = tmp_path / "layer.tar"
        archive.write_bytes(image.layer(tool("busybox")))
        host.install(network("1.0.0", PORTMAP))
        await made("import", archive, IMAGE)
        yield made
    finally:
        await made("rm", "--all", "--force", "--time", "0")
        made.close()


def gone(space: Path) -> None:
    """Podman leaves an empty file when its place was busy for a moment (its issue 19721)."""
    assert not os.path.ismount(space)
    space.unlink()


async def test_a_container_of_podman_with_a_host_port(world: World, host: Host, podman: Podman) -> None:
    spaces = set(os.listdir(NETNS_DIR))
    ident = await podman.run(
        IMAGE, "web", "/bin/sh", "-c", SERVE, options=("--publish", f"{HOST_PORT}:{OPEN}")
    )  # fmt: skip
    held = await addresses(world, ident)
    shown = json.loads(await podman("inspect", "web"))[0]["NetworkSettings"]["Networks"][NETWORK]
    assert [shown["IPAddress"], shown["GlobalIPv6Address"]] == [str(address) for address in held]
    await serves(world, held[0])
    await policed(world, held)
    node1, node2 = world.cluster.nodes
    await verdicts(world, [(node2.namespace, node1.ipv4.ip, HOST_PORT, ALLOW)])
    await podman("rm", "--force", "--time", "0", "web")
    for name in set(os.listdir(NETNS_DIR)) - spaces:
        if name.startswith("netns-"):  # as Podman calls them
            gone(NETNS_DIR / name)


async def test_c14_a_container_of_podman_on_two_networks(world: World, host: Host, podman: Podman) -> None:
    host.install(network(name="second"), "20-second.conflist")
    options = ("--network", NETWORK, "--network", "second")
    await podman.run(IMAGE, "web", "/bin/sh", "-c", SERVE, options=options)
    networks = json.loads(await podman("inspect", "web"))[0]["NetworkSettings"]["Networks"]
    held = [ip_address(networks[n][k]) for n in (NETWORK, "second") for k in ("IPAddress", "GlobalIPv6Address")]
    assert len(set(held)) == 4
    await serves(world, held[0])
    await policed(world, held)
    await podman("rm", "--force", "--time", "0", "web")
