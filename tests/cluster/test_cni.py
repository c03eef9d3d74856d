"""CNI as a container runtime sees it: what is made, what comes back, and that nothing stays when it goes wrong.

Two nodes, real plugin, real services, both families. Names of tests say which capability they show.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import pytest_asyncio

from libs import model
from libs.ipam.client import IpamClient
from libs.ipam.errors import HandleMissing
from libs.resources.patch import PatchType
from libs.runtime.compile_c import compile_c
from libs.testkit.cluster import SHIM, Cluster, CniError, Node, Pod
from libs.testkit.pods import cni_environment, cni_stdin
from libs.testkit.processes import Probe
from libs.testkit.topology import Namespace, remove
from services.felix.core.cni.versions import VERSIONS
from services.felix.shell.journal import read_journal
from tests.cluster.conftest import ALLOW, World, open_world, until
from tests.cluster.kernel_state import elements, ruleset

pytestmark = pytest.mark.asyncio(loop_scope="module")

NETWORK = "k8s-pod-network"
HOST_MAC = "ee:ee:ee:ee:ee:ee"
GATEWAY6 = "fe80::ecee:eeff:feee:eeee"
WEPS = "/calico/resources/v3/projectcalico.org/workloadendpoints/"
CLUSTER_INFORMATION = "/calico/resources/v3/projectcalico.org/clusterinformations/default"
Command = Literal["ADD", "DEL", "CHECK", "STATUS", "GC"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(crash_etcd: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        cluster = Cluster.create(
            nodes=2, tcp_ports=(8080,), udp_ports=(8080,), etcd_binary=crash_etcd,
            env={"FELIX_POLICY_SETUP_TIMEOUT_S": "10"},
        )  # fmt: skip
        made = await open_world(stack, cluster)
        await cluster.add_namespace("ns1")
        yield made


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_left(world: World) -> AsyncIterator[None]:
    """Every test leaves no pod, no address, no endpoint, no interface and no journal entry."""
    yield
    for pod in world.cluster.pods():
        await world.cluster.remove_pod(pod)
    for node in world.cluster.nodes:
        await traceless(world, node)


@dataclass
class Trace:
    """What is left of attachments on a node."""

    addresses: list[str]
    endpoints: list[str]
    interfaces: list[str]
    journal: list[str]

    def __bool__(self) -> bool:
        return bool(self.addresses or self.endpoints or self.interfaces or self.journal)


async def traces(world: World, node: Node) -> Trace:
    handles = [
        allocation.handle or ""
        for block in await IpamClient(world.store).blocks()
        for allocation in block.allocated()
        if allocation.attrs.get("node") == node.name
    ]
    endpoints = [kv.key for kv in (await world.store.list(WEPS)).kvs if f"/{node.name}-" in kv.key]
    links = json.loads(world.run(node.name, "ip", "-j", "link"))
    interfaces = [link["ifname"] for link in links if link["ifname"].startswith("cali")]
    journal = [container for container, _ in open_entries(node)]
    return Trace(handles, endpoints, interfaces, journal)


async def traceless(world: World, node: Node, timeout_s: float = 0.0) -> None:
    async def gone() -> bool:
        return not await traces(world, node)

    if timeout_s:
        await until(gone, timeout_s, f"nothing is left on {node.name}")
    assert not await traces(world, node)


def stranger(world: World, pod_name: str, **config: Any) -> Pod:
    """A pod of node1 that is not plugged in yet, with a namespace of its own. `discard` it."""
    pod = Pod(pod_name, "ns1", "node1", Namespace(f"cal-{world.cluster.id}-{pod_name}"))
    pod.config = config
    pod.netns.create()
    world.cluster._namespaces.append(pod.netns)  # goes with the cluster when a test fails
    return pod


def discard(*pods: Pod) -> None:
    remove([pod.netns for pod in pods])


async def refused(world: World, pod: Pod, command: Command = "ADD") -> CniError:
    """The error object of a command that must fail and leave no trace."""
    with pytest.raises(CniError) as caught:
        await world.cluster.cni(command, pod)
    return caught.value


def raw(world: World, environment: Mapping[str, str], stdin: bytes) -> tuple[int, dict[str, Any]]:
    """The plugin with exactly this; its exit status and what it printed."""
    shim = compile_c(SHIM)
    socket = str(world.cluster.node("node1").cni_socket)
    done = subprocess.run(
        [shim],
        env={"CALICO_CNI_SOCKET": socket, **environment},
        input=stdin,
        capture_output=True,
        timeout=30,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


def host_name(pod: Pod) -> str:
    return str(pod.result["interfaces"][0]["name"])


# --- what is made ---


async def test_c03_what_ip_shows_in_the_pod_and_on_the_host(world: World) -> None:
    pod = await world.cluster.add_pod("node1", "web", namespace="ns1")
    name, inside = host_name(pod), pod.name
    assert name == f"cali{_sha1('ns1.web')}"
    outer = json.loads(world.run("node1", "ip", "-j", "addr", "show", "dev", name))[0]
    inner = json.loads(world.run(inside, "ip", "-j", "addr", "show", "dev", "eth0"))[0]
    assert outer["address"] == HOST_MAC
    assert inner["address"] != HOST_MAC
    assert int(inner["address"][:2], 16) & 3 == 2  # locally administered, unicast
    assert [(a["local"], a["prefixlen"]) for a in outer["addr_info"]] == [(GATEWAY6, 64)]
    shown = {(a["local"], a["prefixlen"]) for a in inner["addr_info"] if a["scope"] == "global"}
    assert shown == {(str(pod.address(4)), 32), (str(pod.address(6)), 128)}
    routes4 = world.run(inside, "ip", "route").splitlines()
    assert [line.strip() for line in routes4] == [
        "default via 169.254.1.1 dev eth0",
        "169.254.1.1 dev eth0 scope link",
    ]
    assert f"default via {GATEWAY6} dev eth0" in world.run(inside, "ip", "-6", "route")
    assert f"{pod.address(4)} dev {name} scope link metric 1024" in world.run("node1", "ip", "route")
    assert f"{pod.address(6)} dev {name} metric 1024" in world.run("node1", "ip", "-6", "route")
    assert outer["mtu"] == inner["mtu"] == 1500
    world.run(inside, "ping", "-c1", "-W10", str(world.cluster.node("node2").ipv4.ip))  # the gateway answers for all
    neighbours = world.run(inside, "ip", "neigh", "show", "169.254.1.1")
    assert HOST_MAC in neighbours


def _sha1(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()[:11]


async def test_c01_the_result_names_both_interfaces_and_the_addresses(world: World) -> None:
    pod = await world.cluster.add_pod("node1", "web", namespace="ns1", probe=False)
    assert pod.result["cniVersion"] == "1.0.0"
    host, container = pod.result["interfaces"]
    inner = json.loads(world.run(pod.name, "ip", "-j", "link", "show", "dev", "eth0"))[0]
    assert host == {"name": host_name(pod), "mac": HOST_MAC}
    assert container == {"name": "eth0", "mac": inner["address"], "sandbox": str(pod.netns.path)}
    assert [entry["interface"] for entry in pod.result["ips"]] == [1, 1]
    assert pod.addresses == [pod.address(4), pod.address(6)]


async def test_version_needs_no_felix(world: World) -> None:
    environment = {"CNI_COMMAND": "VERSION", "CALICO_CNI_SOCKET": "/nowhere"}
    status, answer = await asyncio.to_thread(raw, world, environment, b'{"cniVersion": "1.0.0"}')
    assert status == 0
    assert answer["cniVersion"] == "1.0.0"
    assert set(VERSIONS) == set(answer["supportedVersions"])


async def test_c12_what_is_said_of_a_request_is_in_the_file_that_the_configuration_names(world: World) -> None:
    file = world.cluster.directory / "cni.log"
    await world.cluster.add_pod("node1", "web", namespace="ns1", config={"log_file_path": str(file)})
    said = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["container"] for line in said if line["msg"] == "pod connected"], said


async def test_c02_add_again_gives_the_same_answer_and_del_again_is_no_error(world: World) -> None:
    pod = await world.cluster.add_pod("node1", "web", namespace="ns1")
    before = ruleset(world, "node1")
    assert await world.cluster.cni("ADD", pod) == pod.result
    assert ruleset(world, "node1") == before
    other = await world.cluster.add_pod("node2", "client", namespace="ns1")
    await world.check([(other, pod, 8080, "tcp", ALLOW)])
    await world.cluster.cni("DEL", pod)
    await world.cluster.cni("DEL", pod)


async def test_c02_del_of_a_container_that_never_was_is_no_error(world: World) -> None:
    never = stranger(world, "never")
    try:
        assert await world.cluster.cni("DEL", never) == {}
    finally:
        discard(never)
    await world.cluster.cni("DEL", never)  # and when its namespace is gone


async def test_c06_a_late_del_of_an_older_container_leaves_the_new_one_alone(world: World) -> None:
    pod = await world.cluster.add_pod("node1", "web", namespace="ns1")
    client = await world.cluster.add_pod("node2", "client", namespace="ns1")
    # The runtime lost the sandbox and made another one for the same pod before it cleaned up.
    older = replace(pod, netns=Namespace(f"cal-{world.cluster.id}-older"))
    pod.container_id = "f" * 64
    world.cluster._namespaces.append(older.netns)
    old_space, pod.netns = pod.netns, older.netns
    pod.netns.create()
    older.netns = old_space
    pod.result = {}
    assert pod.probe is not None
    pod.probe.stop()
    pod.result = await world.cluster.cni("ADD", pod)
    pod.probe = Probe(pod.name, pod.netns, (8080,), (8080,))
    try:
        await world.check([(client, pod, 8080, "tcp", ALLOW)])
        await world.cluster.cni("DEL", older)
        await world.check([(client, pod, 8080, "tcp", ALLOW)])
        held = [a for a in (await traces(world, world.cluster.node("node1"))).addresses if a.startswith(NETWORK)]
        assert held == [f"{NETWORK}.{pod.container_id}"] * 2
        await world.cluster.cni("CHECK", pod)
    finally:
        discard(older)
        world.cluster._namespaces.remove(old_space)


@pytest.mark.parametrize(
    ("where", "command", "problem"),
    [
        ("host", "link del {host}", "host interface {host} is missing"),
        ("pod", "route del default", "lacks its route to 0.0.0.0/0"),
        ("pod", "-6 route del default", "lacks its route to ::/0"),
        ("pod", "link set eth0 down", "container interface eth0 is down"),
        ("pod", "addr del {v4}/32 dev eth0", "lacks address {v4}"),
        ("pod", "addr del {v6}/128 dev eth0", "lacks address {v6}"),
    ],
)
async def test_c13_check_tells_what_is_broken(world: World, where: str, command: str, problem: str) -> None:
    pod = await world.cluster.add_pod("node1", "web", namespace="ns1", probe=False)
    assert await world.cluster.cni("CHECK", pod) == {}
    words = {"host": host_name(pod), "v4": str(pod.address(4)), "v6": str(pod.address(6))}
    world.run("node1" if where == "host" else pod.name, "ip", *command.format(**words).split())
    error = await refused(world, pod, "CHECK")
    assert error.code == 101
    assert problem.format(**words) in error.text


async def test_c13_check_tells_that_the_endpoint_or_its_policy_is_missing(world: World) -> None:
    pod = await world.cluster.add_pod("node1", "web", namespace="ns1", probe=False)
    key = next(kv.key for kv in (await world.store.list(f"{WEPS}ns1/")).kvs)
    stored = await world.store.get(key)
    assert stored is not None
    world.cluster.kill_typha()
    try:
        world.cluster.kill_felix("node1")  # now without typha: it does not know what the kernel should hold
        world.cluster.node("node1").cni_socket.unlink()
        world.cluster.node("node1").felix.start()
        await socket_of(world, "node1")
        error = await refused(world, pod, "CHECK")
        assert (error.code, error.text.count("policy of")) == (101, 1)
    finally:
        await world.cluster.start_typha()
        await world.cluster.wait_ready()
    await world.cluster.cni("CHECK", pod)
    await world.store.delete(key)
    error = await refused(world, pod, "CHECK")
    assert error.code == 3
    await world.store.put(key, stored.value)


async def socket_of(world: World, node: str) -> None:
    """Until a felix that may not be ready serves its socket."""

    async def there() -> bool:
        with socket.socket(socket.AF_UNIX) as asking:  # its file is there a moment before it listens
            return asking.connect_ex(str(world.cluster.node(node).cni_socket)) == 0

    await until(there, 30, "the CNI socket")


async def test_c13_status_and_gc(world: World) -> None:
    kept = await world.cluster.add_pod("node1", "kept", namespace="ns1")
    lost = await world.cluster.add_pod("node1", "lost", namespace="ns1")
    other = await world.cluster.add_pod("node2", "other", namespace="ns1")
    world.cluster._forget(lost)  # its namespace is gone and nobody said DEL
    assert await world.cluster.cni("STATUS", kept) == {}
    valid = [{"containerID": kept.container_id, "ifname": "eth0"}]
    another = replace(kept, config={"name": "another-network", "cni.dev/valid-attachments": []})
    await world.cluster.cni("GC", another)
    assert len((await traces(world, world.cluster.node("node1"))).endpoints) == 2  # of another network: none of its
    await world.cluster.cni("GC", replace(kept, config={"cni.dev/valid-attachments": valid}))
    left = await traces(world, world.cluster.node("node1"))
    assert left.interfaces == [host_name(kept)]
    assert len(left.endpoints) == 1
    assert set(left.addresses) == {f"{NETWORK}.{kept.container_id}"}
    await world.check([(other, kept, 8080, "tcp", ALLOW)])
    world.cluster.kill_felix("node1")
    assert (await refused(world, kept, "STATUS")).code == 50
    await world.cluster.start_felix("node1")


# --- refusals: an error object with the right code, and no trace ---


BAD_CONFIGURATIONS: list[tuple[dict[str, Any], int, str]] = [
    ({"ipam": {"type": "no-such-plugin"}}, 7, "no such program in CNI_PATH"),
    ({"ipam": {"type": "../calico-ipam"}}, 7, "not the name of a program"),
    ({"ipam": {"type": "calico-ipam", "assign_ipv4": "no", "assign_ipv6": "true"}}, 7, "not true or false"),
    ({"ipam": {"type": "calico-ipam", "assign_ipv4": "false", "assign_ipv6": "false"}}, 7, "both false"),
    ({"ipam": ["calico-ipam"]}, 7, "$.ipam"),
    ({"mtu": "big"}, 7, "$.mtu"),
    ({"name": ""}, 7, "`name` is missing"),
    ({"cniVersion": "9.0.0"}, 1, "'9.0.0' is not one of"),
    ({"ipam": {"type": "calico-ipam", "ipv4_pools": ["no-such-pool"]}}, 102, "no-such-pool"),
    ({"args": {"cni": {"labels": [{"key": "bad key", "value": "x"}]}}}, 7, "not acceptable"),
    ({"args": {"cni": {"ports": [{"name": "x", "port": 99999}]}}}, 7, "not acceptable"),
    ({"args": {"cni": {"ports": [{"name": "x", "port": 80, "protocol": "NONSENSE"}]}}}, 7, "not acceptable"),
    ({"args": {"cni": {"annotations": {"cni.projectcalico.org/ipAddrs": '["10.65.0.300"]'}}}}, 7, "ipAddrs"),
    ({"args": {"cni": {"annotations": {"cni.projectcalico.org/ipAddrs": '["192.0.2.7"]'}}}}, 102, "192.0.2.7"),
]


@pytest.mark.parametrize(("config", "code", "text"), BAD_CONFIGURATIONS)
async def test_bad_configuration_is_refused_without_a_trace(
    world: World, config: dict[str, Any], code: int, text: str
) -> None:
    pod = stranger(world, "bad", **config)
    try:
        error = await refused(world, pod)
    finally:
        discard(pod)
    assert error.code == code, error
    assert text in f"{error.text} {error.details}"
    await traceless(world, world.cluster.node("node1"))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"CNI_NETNS": "/var/run/netns/there-is-none"}, 4),
        ({"CNI_NETNS": "/etc/hostname"}, 4),
        ({"CNI_NETNS": "relative"}, 4),
        ({"CNI_NETNS": ""}, 4),
        ({"CNI_IFNAME": "a-name-that-is-too-long"}, 4),
        ({"CNI_IFNAME": "../eth0"}, 4),
        ({"CNI_CONTAINERID": ""}, 4),
        ({"CNI_CONTAINERID": "../../etc"}, 4),
        ({"CNI_COMMAND": "FLY"}, 4),
        ({"CNI_ARGS": "nonsense"}, 4),
    ],
)
async def test_bad_environment_is_refused_without_a_trace(world: World, change: dict[str, str], code: int) -> None:
    pod = stranger(world, "bad")
    try:
        environment = cni_environment("ADD", pod, Path("/")) | change
        status, answer = await asyncio.to_thread(raw, world, environment, json.dumps(cni_stdin("ADD", pod)).encode())
    finally:
        discard(pod)
    assert (status != 0, answer["code"]) == (True, code), answer
    assert answer["cniVersion"] == "1.0.0"
    await traceless(world, world.cluster.node("node1"))


@pytest.mark.parametrize("stdin", [b"", b"{", b"[]", b"\xff\xfe", b'{"name": 7}'])
async def test_standard_input_that_is_no_configuration_is_refused(world: World, stdin: bytes) -> None:
    pod = stranger(world, "bad")
    try:
        status, answer = await asyncio.to_thread(raw, world, cni_environment("ADD", pod, Path("/")), stdin)
    finally:
        discard(pod)
    assert status != 0
    assert answer["code"] in (6, 7)


async def test_an_interface_that_is_taken_is_refused_without_a_trace(world: World) -> None:
    pod = stranger(world, "taken")
    try:
        pod.netns.ip(["link add eth0 type bridge"])
        error = await refused(world, pod)
    finally:
        discard(pod)
    assert error.code == 5
    assert "eth0 exists" in error.text
    await traceless(world, world.cluster.node("node1"))


async def test_i01_disabled_pool_gives_no_address_and_the_add_leaves_nothing(world: World) -> None:
    pools = {}
    for name in ("default-ipv4-ippool", "default-ipv6-ippool"):
        pool = pools[name] = await world.resources.get("IPPool", name)
        assert isinstance(pool, model.IPPool)
        await world.resources.patch("IPPool", name, {"spec": {"disabled": True}}, PatchType.MERGE)
    pod = stranger(world, "none")
    try:
        error = await refused(world, pod)
        assert error.code == 102
        assert "no address" in error.text
        await traceless(world, world.cluster.node("node1"))
        # One family only: the other's address must not stay either.
        await world.resources.patch("IPPool", "default-ipv4-ippool", {"spec": {"disabled": False}}, PatchType.MERGE)
        error = await refused(world, pod)
        assert error.code == 102
        await traceless(world, world.cluster.node("node1"))
    finally:
        for name in pools:
            await world.resources.patch("IPPool", name, {"spec": {"disabled": False}}, PatchType.MERGE)
        await until(lambda: works(world, pod), 30, "pods can be connected again")
        discard(pod)


async def test_add_on_a_node_that_has_no_node_resource_is_refused_without_a_trace(world: World) -> None:
    key = "/calico/resources/v3/projectcalico.org/nodes/node1"
    stored = await world.store.get(key)
    assert stored is not None
    await world.store.delete(key)
    pod = stranger(world, "lost")
    try:
        error = await refused(world, pod)
        assert error.code == 7
        assert "node1" in error.text
        await traceless(world, world.cluster.node("node1"))
    finally:
        await world.store.put(key, stored.value)
        discard(pod)


async def works(world: World, pod: Pod) -> bool:
    """Can the pod be connected? Disconnects it again."""
    try:
        await world.cluster.cni("ADD", pod)
    except CniError:
        return False
    await world.cluster.cni("DEL", pod)
    return True


async def test_c07_locked_datastore_refuses_add_and_del_and_traffic_goes_on(world: World) -> None:
    web = await world.cluster.add_pod("node1", "web", namespace="ns1")
    client = await world.cluster.add_pod("node2", "client", namespace="ns1")
    stored = await world.store.get(CLUSTER_INFORMATION)
    assert stored is not None
    locked = json.loads(stored.value)
    locked["spec"]["datastoreReady"] = False
    await world.store.put(CLUSTER_INFORMATION, json.dumps(locked).encode())
    pod = stranger(world, "late")
    try:
        for command in ("ADD", "DEL"):
            error = await refused(world, pod, command)
            assert (error.code, "locked" in error.text) == (11, True)
        assert (await refused(world, pod, "STATUS")).code == 50
        await world.check([(client, web, 8080, "tcp", ALLOW)])
    finally:
        discard(pod)
        await world.store.put(CLUSTER_INFORMATION, stored.value)
    left = await traces(world, world.cluster.node("node1"))
    assert (len(left.endpoints), left.interfaces, left.journal) == (1, [host_name(web)], [])


async def test_without_felix_the_plugin_says_try_again(world: World) -> None:
    pod = stranger(world, "early")
    world.cluster.kill_felix("node1")
    try:
        for command in ("ADD", "DEL", "CHECK"):
            error = await refused(world, pod, command)
            assert error.code == 11  # the socket file is there and nobody listens
        world.cluster.node("node1").cni_socket.unlink()
        error = await refused(world, pod)
        assert error.code == 11
        assert str(world.cluster.node("node1").cni_socket) in error.text
    finally:
        discard(pod)
        await world.cluster.start_felix("node1")


async def test_felix_that_never_heard_typha_refuses_add(world: World) -> None:
    pod = stranger(world, "early")
    world.cluster.kill_typha()
    try:
        world.cluster.kill_felix("node1")
        world.cluster.node("node1").cni_socket.unlink(missing_ok=True)
        world.cluster.node("node1").felix.start()
        await socket_of(world, "node1")
        error = await refused(world, pod)
        assert (error.code, "typha" in error.text) == (11, True)
    finally:
        discard(pod)
        await world.cluster.start_typha()
        await world.cluster.wait_ready()


async def test_felix_that_lost_typha_refuses_add_when_the_policy_does_not_come(world: World) -> None:
    pod = stranger(world, "early")
    world.cluster.kill_typha()
    try:
        error = await refused(world, pod)
        assert (error.code, "typha" in error.text) == (11, True)
        await traceless(world, world.cluster.node("node1"))
    finally:
        discard(pod)
        await world.cluster.start_typha()
        await world.cluster.wait_ready()


async def test_i23_etcd_that_is_down_refuses_add_and_del_and_both_work_afterwards(world: World) -> None:
    node = world.cluster.node("node1")
    pod = await world.cluster.add_pod("node1", "web", namespace="ns1")
    late = stranger(world, "late")
    world.cluster.etcd.kill()
    try:
        errors = await asyncio.gather(refused(world, late), refused(world, pod, "DEL"))
    finally:
        await world.cluster.etcd.start_async()
    assert [error.code for error in errors] == [11, 11], errors
    assert all("datastore" in error.text for error in errors), errors
    await world.cluster.wait_ready()
    await world.cluster.cni("ADD", late)
    await world.cluster.cni("DEL", late)
    discard(late)
    await world.cluster.remove_pod(pod)
    await traceless(world, node)


async def test_i23_etcd_that_goes_down_during_adds_leaves_nothing_once_it_is_back(world: World) -> None:
    node = world.cluster.node("node1")
    pods = [stranger(world, f"late{n}") for n in range(3)]
    adding = []
    for pod in pods:  # one after the other, so that each is at another step
        adding.append(asyncio.create_task(world.cluster.cni("ADD", pod)))
        await asyncio.sleep(0.004)
    world.cluster.etcd.kill()
    try:
        results = await asyncio.gather(*adding, return_exceptions=True)
    finally:
        await world.cluster.etcd.start_async()
    await world.cluster.wait_ready()
    for pod, result in zip(pods, results, strict=True):
        if isinstance(result, CniError):
            assert result.code == 11, result
        else:
            assert not isinstance(result, BaseException), result
            pod.result = result
            await world.cluster.cni("DEL", pod)
    await traceless(world, node, 60)  # of the others without a DEL: nobody may be left to send it
    discard(*pods)


# --- crash safety ---


class Asking:
    """The plugin with its request sent, not waited for: so that moments count from when felix can have it."""

    def __init__(self, world: World, command: Command, pod: Pod) -> None:
        shim = compile_c(SHIM)
        socket = {"CALICO_CNI_SOCKET": str(world.cluster.node(pod.node).cni_socket)}
        self.pod = pod
        self._process = subprocess.Popen(
            [shim],
            env=cni_environment(command, pod, shim.parent) | socket,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._stdin = json.dumps(cni_stdin(command, pod)).encode()

    def send(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(self._stdin)
        self._process.stdin.close()
        self._process.stdin = None

    def answer(self) -> dict[str, Any] | CniError:
        output, _ = self._process.communicate(timeout=30)
        if self._process.returncode:
            return CniError.from_output(output, b"")
        found: dict[str, Any] = json.loads(output) if output.strip() else {}
        return found


def open_entries(node: Node) -> list[tuple[str, str]]:
    return list(read_journal(node.directory / "state" / "cni-journal")[0])


async def journal_is_empty(node: Node) -> bool:
    return not open_entries(node)


async def whole(world: World, node: Node, pods: list[Pod]) -> list[Pod]:
    """The pods that are there with everything; the others must be gone with everything."""
    left, found = await traces(world, node), []
    for pod in pods:
        parts = [
            left.addresses.count(f"{NETWORK}.{pod.container_id}") == 2,
            any(key.endswith(f"/{workload_name(pod)}") for key in left.endpoints),
            f"cali{_sha1(f'{pod.namespace}.{pod.name}')}" in left.interfaces,
        ]
        assert all(parts) or not any(parts), (pod.name, parts, left)
        found += [pod] if all(parts) else []
    return found


def workload_name(pod: Pod) -> str:
    return f"{pod.node}-k8s-{pod.name.replace('-', '--')}-eth0"


def interrupted(world: World, asking: list[Asking], pause_s: float) -> list[dict[str, Any] | CniError]:
    """Send the requests, kill felix in their midst, and gather what came of them."""
    for one in asking:
        one.send()
    time.sleep(pause_s)
    world.cluster.kill_felix("node1")
    return [one.answer() for one in asking]


async def test_kill_9_of_felix_during_add_leaves_each_pod_wholly_there_or_wholly_gone(world: World) -> None:
    node, client = world.cluster.node("node1"), await world.cluster.add_pod("node2", "client", namespace="ns1")
    chance, outcomes = random.Random(7), {"there": 0, "gone": 0}

    async def unheard() -> bool:
        return elements(world, "node1", "ip", "from-wl") == []

    for attempt in range(5):
        pods = [stranger(world, f"crash{attempt}x{n}") for n in range(4)]
        results = interrupted(world, [Asking(world, "ADD", pod) for pod in pods], chance.uniform(0.002, 0.04))
        await world.cluster.start_felix("node1")
        for pod, result in zip(pods, results, strict=True):
            if isinstance(result, CniError):
                assert result.code == 11, result
            else:
                pod.result = result
        await until(lambda: journal_is_empty(node), 30, "what was cut short is undone")
        there = await whole(world, node, pods)
        # One whose answer got lost on its way may be there, as the runtime will find when it asks again or deletes it.
        assert all(pod in there for pod in pods if pod.result)
        outcomes["there"] += len(there)
        outcomes["gone"] += len(pods) - len(there)
        for pod in there:
            again = await world.cluster.cni("ADD", pod)
            assert again == (pod.result or again)
            pod.result = again
            await world.cluster.cni("CHECK", pod)
            assert sorted(await _assigned(world, pod)) == sorted(str(address) for address in pod.addresses)
            world.run(client.name, "ping", "-c1", "-w10", str(pod.address(4)))
            await world.cluster.cni("DEL", pod)
        await traceless(world, node, 60)
        await until(unheard, 30, "the ruleset has forgotten the pods")  # it follows the datastore
        discard(*pods)
    assert outcomes["gone"] >= 4, outcomes


async def _assigned(world: World, pod: Pod) -> list[str]:
    try:
        held = await IpamClient(world.store).ips_by_handle(f"{NETWORK}.{pod.container_id}")
    except HandleMissing:
        return []
    return [str(one.address) for one in held]


async def test_kill_9_of_felix_during_del_ends_with_the_pod_gone(world: World) -> None:
    node, chance = world.cluster.node("node1"), random.Random(11)
    for attempt in range(3):
        pods = [stranger(world, f"crash{attempt}x{n}") for n in range(4)]
        for pod in pods:
            pod.result = await world.cluster.cni("ADD", pod)
        results = interrupted(world, [Asking(world, "DEL", pod) for pod in pods], chance.uniform(0.001, 0.02))
        await world.cluster.start_felix("node1")
        for pod, result in zip(pods, results, strict=True):
            if isinstance(result, CniError):
                assert result.code == 11, result
                await world.cluster.cni("DEL", pod)  # as runtimes do
        await traceless(world, node, 60)
        discard(*pods)
