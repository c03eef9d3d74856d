"""What is said of endpoints, and what happens to one that the kernel refuses: through the whole product."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from libs import model
from libs.bus import wire
from libs.bus.applied import WaitProblem
from libs.model import keys
from libs.testkit.cluster import Pod
from services.felix.core import status
from tests.cluster.conftest import ALLOW, DENY, World, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SOON_S = 30.0
MAX_HOOKS = 1024  # of one hook of one family (net/netfilter/core.c, MAX_HOOK_COUNT)


class Statuses:
    """The last word on the bus about each endpoint of node1."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.last: dict[str, wire.EndpointStatus] = {}
        self.history: list[tuple[str, str]] = []
        self._subscription = world.bus.subscribe("calico.felix.node1.status.>", self._heard)

    def _heard(self, message: Any) -> None:
        told = msgspec.json.decode(message.data, type=wire.EndpointStatus)
        self.last[told.endpoint] = told
        self.history.append((told.endpoint, told.status))

    def close(self) -> None:
        self._subscription.unsubscribe()

    async def until(self, endpoint: str, wanted: str, detail: str = "", timeout_s: float = SOON_S) -> None:
        async def holds() -> bool:
            told = self.last.get(endpoint)
            return told is not None and told.status == wanted and detail in told.detail

        await until(holds, timeout_s, f"{endpoint} is {wanted} {detail}, not {self.last.get(endpoint)}")


@pytest_asyncio.fixture(loop_scope="module")
async def statuses(world: World) -> AsyncIterator[Statuses]:
    made = Statuses(world)
    await world.bus.barrier(10)
    yield made
    made.close()


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def clean(world: World) -> AsyncIterator[None]:
    if not any(resource.metadata.name == "kns.ns1" for resource in (await world.resources.list("Profile")).items):
        await world.cluster.add_namespace("ns1")
    yield
    for pod in world.cluster.pods():
        await world.cluster.remove_pod(pod)
    for kind in ("WorkloadEndpoint", "HostEndpoint", "FelixConfiguration"):
        for resource in (await world.resources.list(kind)).items:
            await world.delete(kind, resource.metadata.name, resource.metadata.namespace or "")
    await world.clean()


def key(pod: str) -> str:
    return f"k8s/ns1/{pod}/eth0"


def interface(pod: Pod) -> str:
    return str(pod.result["interfaces"][0]["name"])


def files(world: World) -> set[str]:
    directory = world.cluster.node("node1").directory / "endpoint-status"
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


def file_of(pod: str) -> str:
    return f"k8s ns1%2F{pod} eth0"


async def eventually_files(world: World, wanted: set[str], timeout_s: float = SOON_S) -> None:
    async def holds() -> bool:
        return files(world) == wanted

    await until(holds, timeout_s, f"files {wanted}, not {files(world)}")


async def add(world: World, name: str) -> Pod:
    return await world.cluster.add_pod("node1", name, namespace="ns1", labels={"app": name})


async def configure(world: World, **spec: object) -> None:
    await world.apply(json.dumps({"kind": "FelixConfiguration", "metadata": {"name": "default"}, "spec": spec}))


def hep(name: str, **spec: Any) -> str:
    return json.dumps({"kind": "HostEndpoint", "metadata": {"name": name}, "spec": {"node": "node1", **spec}})


async def in_etcd(world: World) -> dict[str, str]:
    """Endpoint -> status, by the keys of node1."""
    found = {}
    for prefix in status.etcd_prefixes("node1"):
        for kv in (await world.store.list(prefix)).kvs:
            parsed = keys.parse_status_key(kv.key)
            assert parsed is not None
            name = "/".join(part for part in (parsed.orchestrator, parsed.workload, parsed.endpoint) if part)
            value = json.loads(kv.value)
            assert value.keys() == {"status"}
            found[name] = value["status"]
    return found


async def eventually_etcd(world: World, wanted: dict[str, str]) -> None:
    seen: dict[str, str] = {}

    async def holds() -> bool:
        seen.clear()
        seen.update(await in_etcd(world))
        return seen == wanted

    await until(holds, SOON_S, f"keys {wanted}, last {seen}")


async def test_e10_status_follows_the_interface_on_the_bus_in_a_file_and_in_etcd(
    world: World, statuses: Statuses
) -> None:
    await configure(world, endpointReportingEnabled=True, endpointReportingDelay="50ms")
    pod = await add(world, "web")
    await eventually_files(world, {file_of("web")})
    await statuses.until(key("web"), "up")
    await eventually_etcd(world, {key("web"): "up"})
    directory = world.cluster.node("node1").directory / "endpoint-status"
    content = json.loads((directory / file_of("web")).read_text())
    endpoint = (await world.resources.list("WorkloadEndpoint")).items[0]
    assert isinstance(endpoint, model.WorkloadEndpoint)
    assert content == {
        "ifaceName": interface(pod),
        "mac": endpoint.spec.mac,
        "ipv4Nets": [f"{pod.address(4)}/32"],
        "ipv6Nets": [f"{pod.address(6)}/128"],
    }
    world.run("node1", "ip", "link", "set", interface(pod), "down")
    await statuses.until(key("web"), "down", "missing or down")
    await eventually_files(world, set())
    await eventually_etcd(world, {key("web"): "down"})
    world.run("node1", "ip", "link", "set", interface(pod), "up")
    await statuses.until(key("web"), "up")
    await eventually_files(world, {file_of("web")})
    await eventually_etcd(world, {key("web"): "up"})
    world.run("web", "ip", "link", "set", "eth0", "down")  # the other end: no carrier
    await statuses.until(key("web"), "down", "missing or down")
    world.run("web", "ip", "link", "set", "eth0", "up")
    await statuses.until(key("web"), "up")
    await world.cluster.remove_pod(pod)
    await statuses.until(key("web"), "down", "gone")
    await eventually_files(world, set())
    await eventually_etcd(world, {})
    assert ("error" in {what for _, what in statuses.history}) is False


async def test_e10_host_endpoints_are_down_without_an_interface_of_theirs(world: World, statuses: Statuses) -> None:
    await configure(world, endpointReportingEnabled=True, endpointReportingDelay="0s")
    open_ = ["projectcalico-default-allow"]
    await world.apply(hep("eth", interfaceName="eth0", profiles=open_))
    await world.apply(hep("none", interfaceName="nope0", profiles=open_))
    await world.apply(hep("later", interfaceName="eth0", profiles=open_))
    await world.apply(hep("nobody", expectedIPs=["203.0.113.9"], profiles=open_))
    await world.apply(hep("rest", interfaceName="*", profiles=open_))
    await statuses.until("eth", "up")
    await statuses.until("none", "down", "nope0")
    await statuses.until("later", "down", "another host endpoint's")
    await statuses.until("nobody", "down", "expected address")
    await statuses.until("rest", "up")
    await eventually_etcd(world, {"eth": "up", "none": "down", "later": "down", "nobody": "down", "rest": "up"})
    await world.delete("HostEndpoint", "eth")
    await statuses.until("later", "up")
    await configure(world, endpointReportingEnabled=False)
    await eventually_etcd(world, {})


async def test_e10_what_went_while_felix_was_away_is_forgotten(world: World, statuses: Statuses) -> None:
    await configure(world, endpointReportingEnabled=True, endpointReportingDelay="0s")
    await add(world, "stays")
    await eventually_files(world, {file_of("stays")})
    await eventually_etcd(world, {key("stays"): "up"})
    world.cluster.kill_felix("node1")
    directory: Path = world.cluster.node("node1").directory / "endpoint-status"
    (directory / file_of("stays")).unlink()
    (directory / file_of("went")).write_text("{}")
    for name in (
        keys.workload_status_key("node1", "k8s", "ns1/went", "eth0"), keys.host_endpoint_status_key("node1", "went"),
        keys.workload_status_key("node10", "k8s", "ns1/other", "eth0"),
    ):  # fmt: skip
        await world.store.put(name, b'{"status":"up"}')
    await world.cluster.start_felix("node1")
    await eventually_files(world, {file_of("stays")})
    await eventually_etcd(world, {key("stays"): "up"})
    assert await world.store.delete(keys.workload_status_key("node10", "k8s", "ns1/other", "eth0")) is not None


async def test_e11_the_lower_of_two_workloads_has_their_interface_until_it_goes(
    world: World, statuses: Statuses
) -> None:
    """The second one has another profile: by it one sees who acts."""
    pod, client = await add(world, "web"), await add(world, "client")
    await world.check([(client, pod, 8080, "tcp", ALLOW)])
    (mine,) = [one for one in (await world.resources.list("WorkloadEndpoint")).items if one.spec.pod == "web"]
    assert isinstance(mine, model.WorkloadEndpoint)
    await statuses.until(key("web"), "up")
    for name, lower in (("aaa", True), ("zzz", False)):
        metadata = {"name": f"node1-k8s-{name}-eth0", "namespace": "ns1"}
        spec = {"orchestrator": "k8s", "node": "node1", "pod": name, "endpoint": "eth0", "profiles": ["missing"],
                "ipNetworks": mine.spec.ip_networks, "interfaceName": mine.spec.interface_name}  # fmt: skip
        document = {"kind": "WorkloadEndpoint", "metadata": metadata, "spec": spec}
        await world.apply(json.dumps(document))
        await world.check([(client, pod, 8080, "tcp", DENY if lower else ALLOW)])
        shadowed, acting = (key("web"), key(name)) if lower else (key(name), key("web"))
        await statuses.until(acting, "up")
        await statuses.until(shadowed, "down", f"is that of {acting}")
        await world.delete("WorkloadEndpoint", metadata["name"], "ns1")
        await world.check([(client, pod, 8080, "tcp", ALLOW)])
        await statuses.until(key("web"), "up")
        await statuses.until(key(name), "down", "gone")


@contextmanager
def full_hook(world: World, hook: str, family: str = "ip") -> Iterator[None]:
    """A kernel that takes no further base chain at this hook of node1, in this family."""

    def chains(first: int, count: int) -> bool:
        made = "".join(
            f"add chain {family} crowd c{number} {{ type filter hook {hook} priority 900; }}\n"
            for number in range(first, first + count)
        )
        command = ["ip", "netns", "exec", world.cluster.node("node1").namespace.name, "nft", "-f", "-"]
        done = subprocess.run(command, input=made, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 or "Argument list too long" in done.stderr, done.stderr[:300]
        return done.returncode == 0

    world.run("node1", "nft", "add", "table", family, "crowd")
    try:
        have, step = 0, MAX_HOOKS // 2
        while step:
            if chains(have, step):
                have += step
            else:
                step //= 2
        yield
    finally:
        world.run("node1", "nft", "delete", "table", family, "crowd")


async def limit(world: World, pod: str, connections: int) -> None:
    """Gives the pod's endpoint a connection limit, for which the ruleset needs a base chain of its own."""
    (found,) = [one for one in (await world.resources.list("WorkloadEndpoint")).items if one.spec.pod == pod]
    assert isinstance(found, model.WorkloadEndpoint)
    controls = model.QoSControls(ingress_max_connections=connections)
    changed = msgspec.structs.replace(found, spec=msgspec.structs.replace(found.spec, qos_controls=controls))
    revision = (await world.resources.update(changed)).revision

    async def applied() -> bool:
        return await world.metric("node1", "felix_applied_revision") >= revision

    await until(applied, SOON_S, f"node1 is at revision {revision}")


async def test_p28_what_the_kernel_refuses_denies_one_endpoint_and_the_others_go_on(
    world: World, statuses: Statuses
) -> None:
    pod, other, client = await add(world, "web"), await add(world, "other"), await add(world, "client")
    both = [(client, pod, 8080, "tcp", ALLOW), (client, other, 8080, "tcp", ALLOW)]
    await world.check(both)
    await eventually_files(world, {file_of(name) for name in ("web", "other", "client")})
    with full_hook(world, "forward"):
        await limit(world, "web", 100)
        await statuses.until(key("web"), "error", "hook-qos-forward")
        await world.check([(client, pod, 8080, "tcp", DENY), (client, other, 8080, "tcp", ALLOW)])
        await world.check([(pod, client, 8080, "tcp", DENY)])
        await eventually_files(world, {file_of(name) for name in ("other", "client")})
        # Whoever waits for a change is told, and the change is made for all others.
        policy = {"selector": "app == 'other'", "types": ["Ingress"], "ingress": [
            {"action": "Allow", "protocol": "TCP", "destination": {"ports": [9090]}}]}  # fmt: skip
        document = {"kind": "GlobalNetworkPolicy", "metadata": {"name": "late"}, "spec": policy}
        with pytest.raises(WaitProblem, match="hook-qos-forward"):
            await world.apply(json.dumps(document))
        await world.check([(client, other, 8080, "tcp", DENY), (client, other, 9090, "tcp", ALLOW)])
        late = await add(world, "late")
        await world.check([(client, late, 8080, "tcp", ALLOW), (client, pod, 8080, "tcp", DENY)])
        assert statuses.last[key("other")].status == "up"
        await statuses.until(key("late"), "up")
        log = world.cluster.node("node1").felix.log_path.read_text()
        assert "refused by the kernel, denied instead" in log
        assert [line for line in log.splitlines() if "endpoint in error" in line and key("web") in line]
        # A change back to what the kernel takes is enough.
        await limit(world, "web", 0)
        await statuses.until(key("web"), "up")
        await world.check([(client, pod, 8080, "tcp", ALLOW)])
        await limit(world, "web", 100)
        await statuses.until(key("web"), "error")
    # And so is a kernel that takes it now, at the next comparison.
    with suppress(WaitProblem):  # it may be too early for the refusal to be gone
        await configure(world, nftablesRefreshInterval="1s")
    await statuses.until(key("web"), "up")
    await world.check([(client, pod, 8080, "tcp", ALLOW), (client, other, 9090, "tcp", ALLOW)])
    assert "hook-qos-forward" in world.run("node1", "nft", "list", "table", "ip", "calico")
