"""The kernel's state under change, restart and meddling, on two nodes, IPv4 and IPv6. Names of tests say which
capability they show.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import pytest_asyncio

from libs.testkit.cluster import Pod
from libs.testkit.reach import Flow, Verdict, check
from libs.testkit.topology import Namespace, remove
from libs.testkit.traffic import Load
from tests.cluster.conftest import ALLOW, DENY, World, until
from tests.cluster.kernel_state import elements, handles, routes, ruleset, settles, transactions, written

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAMILIES = {4: "ip", 6: "ip6"}
HEAL_S = 30.0  # through events; the periods of refreshing are 90 and 180 s

POLICY = """
kind: GlobalNetworkPolicy
metadata: {name: front}
spec:
  selector: role == 'server'
  types: [Ingress]
  ingress:
  - {action: Allow, source: {selector: role == 'client'}, destination: {ports: [8080]}, protocol: TCP}
  - {action: Allow, source: {selector: role == 'client'}, destination: {ports: [8080]}, protocol: UDP}
"""


@dataclass(frozen=True)
class Pods:
    """server and near on node1, far on node2; near and far are clients, stranger on node2 is not."""

    server: Pod
    near: Pod
    far: Pod
    stranger: Pod

    def wanted(self) -> list[tuple[Pod, Pod, int, str, Verdict]]:
        return [
            (self.near, self.server, 8080, "tcp", ALLOW),
            (self.far, self.server, 8080, "tcp", ALLOW),
            (self.far, self.server, 8080, "udp", ALLOW),
            (self.far, self.server, 9090, "tcp", DENY),
            (self.stranger, self.server, 8080, "tcp", DENY),
        ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(world: World) -> Pods:
    await world.cluster.add_namespace("ns1")
    add = world.cluster.add_pod
    return Pods(
        await add("node1", "server", namespace="ns1", labels={"role": "server"}),
        await add("node1", "near", namespace="ns1", labels={"role": "client"}),
        await add("node2", "far", namespace="ns1", labels={"role": "client"}),
        await add("node2", "stranger", namespace="ns1", labels={"role": "other"}),
    )


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def front(world: World, pods: Pods) -> AsyncIterator[None]:
    """Every test begins with the policy in place and both felixes running."""
    await world.apply(POLICY)
    yield
    for node in world.cluster.nodes:
        if not node.felix.running:
            await world.cluster.start_felix(node.name)
    await world.clean()


async def test_n01_a_policy_with_a_new_set_is_one_transaction_for_each_table(world: World, pods: Pods) -> None:
    tables = world.run("node1", "nft", "list", "tables").split("\n")
    assert {"table ip calico", "table ip6 calico"} <= set(tables)
    with transactions(world, "node1") as seen:
        await seen.mark()  # `nft monitor` listens now
        before, counted = await seen.mark(), await written(world, "node1")
        await world.apply(POLICY.replace("role == 'client'", "role == 'other'"))
        after = await seen.mark()
    assert after - before == 2
    assert (await written(world, "node1"))[2] - counted[2] == 2
    await world.check([(pods.stranger, pods.server, 8080, "tcp", ALLOW), (pods.far, pods.server, 8080, "tcp", DENY)])


async def test_n01_a_change_of_set_members_writes_elements_only(world: World, pods: Pods) -> None:
    before = await written(world, "node1")
    later = await world.cluster.add_pod("node2", "later", namespace="ns1", labels={"role": "client"})
    try:
        await world.check([(later, pods.server, 8080, "tcp", ALLOW)])
        rules, members, calls = (new - old for new, old in zip(await written(world, "node1"), before, strict=True))
        assert (rules, members, calls) == (0, 2, 2)  # one address in each family
    finally:
        await world.cluster.remove_pod(later)


async def test_n02_every_pod_has_one_element_in_each_direction(world: World, pods: Pods) -> None:
    names = sorted(pod.result["interfaces"][0]["name"] for pod in (pods.server, pods.near))
    for family in FAMILIES.values():
        assert elements(world, "node1", family, "from-wl") == names
        assert elements(world, "node1", family, "to-wl") == names


@asynccontextmanager
async def foreign(world: World, interface: str) -> AsyncIterator[Namespace]:
    """A namespace on node1 behind an interface that nobody announced, with an address and routes of either family."""
    node = world.cluster.node("node1").namespace
    inside = Namespace(f"{node.name}-foreign")
    inside.create()

    async def carrier() -> bool:
        return "state UP" in world.run("node1", "ip", "link", "show", "dev", interface)

    try:
        node.ip([
            f"link add {interface} type veth peer name eth0 netns {inside.name}",
            f"addr add 10.99.0.1/24 dev {interface}",
            f"addr add fd00:99::1/64 dev {interface} nodad",
            f"link set {interface} up",
        ])  # fmt: skip
        inside.ip([
            "addr add 10.99.0.2/24 dev eth0",
            "addr add fd00:99::2/64 dev eth0 nodad",
            "link set eth0 up",
            "route add default via 10.99.0.1",
            "route add ::/0 via fd00:99::1",
        ])  # fmt: skip
        await until(carrier, 30, "the interface works")
        yield inside
    finally:
        node.ip([f"link del {interface}"])  # a namespace takes its interfaces along only after a while
        remove([inside])


@pytest.mark.parametrize("running", [True, False], ids=["felix-running", "felix-stopped"])
async def test_n02_an_interface_that_nobody_announced_is_dropped(world: World, pods: Pods, running: bool) -> None:
    async def ask(interface: str) -> list[Verdict]:
        async with foreign(world, interface) as inside:
            flows = [Flow(inside.path, pods.near.address(family), 9090, "tcp") for family in FAMILIES]
            return await asyncio.to_thread(check, flows, timeout_s=1.5)

    if not running:
        world.cluster.kill_felix("node1")
    assert await ask("other0") == [ALLOW, ALLOW]  # the control: only its name makes it a workload's interface
    assert await ask("califoreign0") == [DENY, DENY]


async def test_n03_kill_9_and_restart_write_nothing_and_lose_nothing(world: World, pods: Pods) -> None:
    flow = world.cluster.flow
    allowed = [(pods.near, pods.server), (pods.far, pods.server)]
    tcp = [flow(a, b, 8080, family=family) for a, b in allowed for family in FAMILIES]
    udp = [flow(a, b, 8080, "udp", family=family) for a, b in allowed for family in FAMILIES]
    denied = [flow(pods.stranger, pods.server, 8080, family=family) for family in FAMILIES]
    before_tables, before_routes = handles(world, "node1"), routes(world, "node1")
    with Load(udp=udp, tcp=tcp, streams=tcp, denied=denied, tcp_per_s=300) as load:
        world.cluster.kill_felix("node1")
        await world.cluster.start_felix("node1")
    assert await written(world, "node1") == [0, 0, 0]
    assert handles(world, "node1") == before_tables
    assert routes(world, "node1") == before_routes
    result = load.result
    assert result.lost_nothing, result
    assert result.denied_passed == 0, result
    assert result.tcp_opened > 100, result


def _flush_chain(world: World, pod: Pod, family: str) -> None:
    world.run("node1", "nft", "flush", "chain", family, "calico", f"tw-{pod.result['interfaces'][0]['name']}")


def _flush_hook(world: World, pod: Pod, family: str) -> None:
    for chain in ("hook-input-host", "from-wl-dispatch"):
        world.run("node1", "nft", "flush", "chain", family, "calico", chain)


def _delete_table(world: World, pod: Pod, family: str) -> None:
    world.run("node1", "nft", "delete", "table", family, "calico")


def _flush_table(world: World, pod: Pod, family: str) -> None:
    world.run("node1", "nft", "flush", "table", family, "calico")


def _delete_elements(world: World, pod: Pod, family: str) -> None:
    name = pod.result["interfaces"][0]["name"]
    for direction in ("from-wl", "to-wl"):
        world.run("node1", "nft", "delete", "element", family, "calico", direction, f'{{ "{name}" }}')


def _foreign_rule(world: World, pod: Pod, family: str) -> None:
    world.run("node1", "nft", "insert", "rule", family, "calico", "from-wl-dispatch", "accept")


def _foreign_chain(world: World, pod: Pod, family: str) -> None:
    world.run("node1", "nft", "add", "chain", family, "calico", "left-behind")


MEDDLING = [
    _flush_chain, _flush_hook, _delete_table, _flush_table, _delete_elements, _foreign_rule, _foreign_chain,
]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES.values())
@pytest.mark.parametrize("meddle", MEDDLING, ids=lambda meddle: meddle.__name__.strip("_"))
async def test_n04_what_somebody_did_to_the_tables_is_undone(
    world: World, pods: Pods, meddle: Callable[[World, Pod, str], None], family: str
) -> None:
    before = ruleset(world, "node1")
    meddle(world, pods.server, family)
    await settles(world, "node1", before, HEAL_S, "the tables are as before")
    await world.check(pods.wanted())


@pytest.mark.parametrize("family", FAMILIES)
async def test_n04_routes_that_somebody_deleted_or_bent_come_back(world: World, pods: Pods, family: int) -> None:
    before = routes(world, "node1")

    async def same() -> bool:
        return routes(world, "node1") == before

    address = pods.server.address(family)
    length = address.max_prefixlen
    name = pods.server.result["interfaces"][0]["name"]
    block = next(line.split()[1] for line in before if " via " in line and (":" in line.split()[1]) == (family == 6))
    for command in (
        f"route del {address}/{length} dev {name}",
        "route flush proto 80",
        f"route flush proto boot dev {name}",
        f"route replace {address}/{length} dev eth0 proto 80",
        f"route replace {address}/{length} dev eth0 metric 1024",
        f"route replace {block} via {world.cluster.ipv4.ip if family == 4 else world.cluster.ipv6.ip} proto 80",
        f"route add {'192.0.2.0/24' if family == 4 else '2001:db8::/64'} dev eth0 proto 80",
    ):
        world.run("node1", "ip", f"-{family}", *command.split())
        await until(same, HEAL_S, f"the routes are as before `ip {command}`")
        await world.check(pods.wanted(), families=[family])


async def test_n04_routes_come_back_with_an_interface_that_was_down(world: World, pods: Pods) -> None:
    before = routes(world, "node1")
    name = pods.server.result["interfaces"][0]["name"]
    world.run("node1", "ip", "link", "set", name, "down")

    async def fewer() -> bool:
        return not any(name in line for line in routes(world, "node1"))

    async def same() -> bool:
        return routes(world, "node1") == before

    await until(fewer, HEAL_S, "no route leads to an interface that is down")
    world.run("node1", "ip", "link", "set", name, "up")
    # The kernel took the link-local address, which pods have as their IPv6 gateway, with it.
    await until(same, HEAL_S, "the routes are as before")
    await world.check(pods.wanted(), families=[4])
    world.run("node1", "ip", "addr", "replace", "fe80::ecee:eeff:feee:eeee/64", "dev", name, "nodad")
    await world.check(pods.wanted(), families=[6])


async def test_n04_a_foreign_table_and_foreign_routes_are_left_alone(world: World, pods: Pods) -> None:
    world.run("node1", "nft", "add table ip mine; add chain ip mine c { type filter hook input priority 50; }")
    world.run("node1", "ip", "route", "add", "192.0.2.0/24", "dev", "eth0", "proto", "static")
    try:
        world.cluster.kill_felix("node1")
        await world.cluster.start_felix("node1")
        _delete_table(world, pods.server, "ip")
        await world.cluster.eventually([(pods.stranger, pods.server, 8080, "tcp")], DENY)
        assert "chain c" in world.run("node1", "nft", "list", "table", "ip", "mine")
        assert "192.0.2.0/24" in world.run("node1", "ip", "route", "show", "proto", "static")
    finally:
        world.run("node1", "nft", "delete", "table", "ip", "mine")
        world.run("node1", "ip", "route", "del", "192.0.2.0/24", "proto", "static")


async def test_n05_what_fifty_pods_left_is_gone_after_a_start_and_the_others_are_untouched(
    world: World, pods: Pods
) -> None:
    before_tables, before_routes = ruleset(world, "node2"), routes(world, "node2")
    many = await asyncio.gather(
        *(
            world.cluster.add_pod("node2", f"many{n}", namespace="ns1", labels={"role": f"r{n}"}, probe=False)
            for n in range(50)
        )
    )
    policies = "---".join(POLICY.replace("front", f"many{n}").replace("'server'", f"'r{n}'") for n in range(5))
    await world.apply(policies)
    # far is a client of these: one set of theirs is used by nobody else, one chain group each.
    assert len(elements(world, "node2", "ip", "from-wl")) == 52
    flows = [world.cluster.flow(pods.far, pods.server, 8080, family=family) for family in FAMILIES]
    world.cluster.kill_felix("node2")
    with Load(tcp=flows, streams=flows) as load:
        for pod in many[:40]:  # with their namespaces go interfaces and routes
            world.cluster._forget(pod)
        for kv in (await world.store.list("/calico/resources/v3/projectcalico.org/workloadendpoints/ns1/")).kvs:
            if "-many" in kv.key:
                await world.store.delete(kv.key)
        for n in range(5):
            await world.resources.delete("GlobalNetworkPolicy", f"many{n}")
        world.run("node2", "nft", "add", "chain", "ip", "calico", "fw-cali00000000000")
        world.run("node2", "nft", "add set ip6 calico s-left { type ipv6_addr; }")
        world.run("node2", "ip", "route", "add", "192.0.2.0/24", "dev", "eth0", "proto", "80")
        world.run("node2", "ip", "-6", "route", "add", "blackhole", "2001:db8::/64", "proto", "80")
        await world.cluster.start_felix("node2")

        async def clean() -> bool:
            shown = routes(world, "node2")
            addresses = {str(address) for pod in many for address in pod.addresses}
            return not any(line.split()[1] in addresses or "192.0.2" in line or "2001:db8" in line for line in shown)

        await until(clean, HEAL_S, "routes of the pods that are gone")
        await settles(world, "node2", before_tables, HEAL_S, "the tables are as before the fifty pods")
    assert load.result.lost_nothing, load.result
    assert set(before_routes) <= set(routes(world, "node2"))  # a second block may stay
    await world.check(pods.wanted())
    for pod in many[40:]:  # the runtime asks for those that it still knows
        await world.cluster.remove_pod(pod)
