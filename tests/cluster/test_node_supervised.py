"""`calico-node run --supervise` on two nodes: it starts them up, runs felix and bgp, and takes it all away again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from libs import model
from libs.resources.errors import NotFound
from libs.testkit.cluster import DAEMONS, FELIX_PORT, PROJECT, Cluster, Node, Pod
from libs.testkit.http_probe import http_get
from libs.testkit.processes import Process
from libs.testkit.reach import Verdict
from tests.cluster.conftest import World, open_world, until
from tests.cluster.runtimes import tools
from tests.kernel.calico_leftovers import ipsets, load, recorded

pytestmark = pytest.mark.asyncio(loop_scope="module")

NODE_PORT = DAEMONS["node"][2]
BGP_PORT = DAEMONS["bgp"][2]


class Stage:
    def __init__(self, world: World, **given: str) -> None:
        """given: for the environment of the nodes."""
        self.world, self.given = world, given
        self.cluster = world.cluster
        self.nodes = {node.name: self.process(node) for node in world.cluster.nodes}

    def env(self, node: Node) -> dict[str, str]:
        return (
            self.cluster.startup_env(node)
            | {
                "CALICO_NODE_HEALTHHOST": str(node.ipv4.ip),
                "CALICO_NODE_HEALTHPORT": str(NODE_PORT),
                "CALICO_NODE_PROBE_EVERY_S": "0.2",
                "CALICO_BGP_HEALTHHOST": str(node.ipv4.ip),
                "CALICO_BGP_HEALTHPORT": str(BGP_PORT),
                "CALICO_BGP_STATE_DIR": str(node.directory / "bgp"),
                "CALICO_BGP_CONTROL_SOCKET": str(node.directory / "bgp.sock"),
                "AUTODETECT_POLL_INTERVAL": "0.5",
            }
            | self.given
        )

    def process(self, node: Node, **env: str) -> Process:
        return Process(
            f"node on {node.name}", (sys.executable, "-m", "services.node", "run", "--supervise"),
            netns=node.namespace, log_path=node.directory / "node.log", cwd=PROJECT, env=self.env(node) | env,
        )  # fmt: skip

    def kill(self, name: str) -> None:
        self.nodes[name].kill()

    async def probe(self, name: str, probe: str) -> tuple[bool, str]:
        node = self.cluster.node(name)
        try:
            answer = await http_get(node.namespace, str(node.ipv4.ip), NODE_PORT, f"/{probe}", timeout_s=5)
        except OSError as error:
            return False, str(error)
        return answer.status == 200, answer.text

    async def programs(self, name: str) -> dict[str, int]:
        """Its programs' pids, once they run: an address that changed has them started anew."""

        found: dict[str, int] = {}

        async def run() -> bool:
            nonlocal found
            found = children(self.nodes[name].pid)
            return set(found) == {"services.felix", "services.bgp"}

        await until(run, 60, f"felix and bgp run on {name}")
        return found

    async def ready(self, name: str, timeout_s: float = 90.0) -> None:
        said = ""

        async def is_ready() -> bool:
            nonlocal said
            self.nodes[name].require_running()
            good, said = await self.probe(name, "readiness")
            return good

        try:
            await until(is_ready, timeout_s, f"{name} is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{said}\n{self.nodes[name].log_tail(40)}") from None

    def command(self, name: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        node = self.cluster.node(name)
        return subprocess.run(
            ["ip", "netns", "exec", node.namespace.name, sys.executable, "-m", "services.node", *arguments],
            env=self.env(node) | env, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    async def pods(self) -> list[Pod]:
        """One on each node, that reach each other; whichever test comes first plugs them."""
        wanted = (("node1", "one"), ("node2", "two"))
        one, two = [
            self.cluster.node(node).pods.get(name) or await self.cluster.add_pod(node, name) for node, name in wanted
        ]
        await self.cluster.eventually([(one, two, 8080, "tcp"), (two, one, 8080, "tcp")], Verdict.ALLOW, timeout_s=60)
        return [one, two]

    async def spec(self, name: str) -> model.node.NodeSpec:
        found = await self.world.resources.get("Node", name)
        assert isinstance(found, model.Node)
        return found.spec


NO_BGP = """\
table inet broken {
    chain c {
        type filter hook input priority -500
        tcp dport 179 drop
        tcp sport 179 drop
    }
}
"""
THEIRS = """\
table inet theirs {
    chain c {
        type filter hook input priority 5
        accept
    }
}
"""


def inside(node: Node, *command: str, text: str = "") -> None:
    argv = ["ip", "netns", "exec", node.namespace.name, *command]
    subprocess.run(argv, input=text, text=True, check=True, capture_output=True)


def children(pid: int) -> dict[str, int]:
    """Name of the service -> pid, of a process's children that run."""
    found = {}
    for one in subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout.split():
        try:
            line = Path(f"/proc/{one}/cmdline").read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        found[next((part for part in line if part.startswith("services.")), line[0])] = int(one)
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage() -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        cluster = Cluster.create(nodes=2, services=False, daemons=("bgp",), fill=_nothing)
        world = await open_world(stack, cluster)
        await cluster.add_namespace("default")
        made = Stage(world, CALICO_NODE_TAKE_OVER="false")  # at a time of its own; tests do it by the command
        for name in made.nodes:
            stack.callback(made.kill, name)
        for process in (*cluster.typhas, *made.nodes.values()):
            process.start()
        for name in made.nodes:
            await made.ready(name)
        yield made


async def _nothing(store: object, cluster: object) -> None:
    return None


async def test_d01_d04_d05_two_nodes_that_start_together_make_one_cluster(stage: Stage) -> None:
    for node in stage.cluster.nodes:
        bgp = (await stage.spec(node.name)).bgp
        assert bgp is not None
        assert (bgp.ipv4_address, bgp.ipv6_address) == (str(node.ipv4), str(node.ipv6))
        assert (node.directory / "nodename").read_text() == node.name
    pools = [one.metadata.name for one in (await stage.world.resources.list("IPPool")).items]
    assert pools == ["default-ipv4-ippool", "default-ipv6-ippool"]
    info = await stage.world.resources.get("ClusterInformation", "default")
    assert isinstance(info, model.ClusterInformation)
    assert info.spec.datastore_ready
    assert len(info.spec.cluster_guid) == 32


async def test_pods_reach_each_other_over_what_the_supervised_services_made(stage: Stage) -> None:
    one, two = await stage.pods()
    for family in (4, 6):
        await stage.cluster.eventually(
            [(one, two, 8080, "tcp"), (two, one, 8080, "tcp")], Verdict.ALLOW, family=family, timeout_s=30
        )


async def test_d06_broken_bgp_is_not_ready_but_alive(stage: Stage) -> None:
    node2 = stage.cluster.node("node2")
    health = ("health", "--felix-live", "--felix-ready", "--bird-live", "--bird6-live", "--bird-ready", "--bird6-ready")
    felix = {"FELIX_HEALTHHOST": str(stage.cluster.node("node1").ipv4.ip), "FELIX_HEALTHPORT": str(FELIX_PORT)}

    async def healthy(*how: str) -> bool:
        done = await asyncio.to_thread(stage.command, "node1", *how, **felix)
        return (done.returncode, done.stderr) == (0, "")

    await until(lambda: healthy(*health), 60, "node1 is well")
    inside(node2, "nft", "-f", "-", text=NO_BGP)
    try:
        bgp = children(stage.nodes["node1"].pid)["services.bgp"]
        os.kill(bgp, signal.SIGKILL)

        async def broken() -> bool:
            good, said = await stage.probe("node1", "readiness")
            return not good and "BGP not established" in said

        await until(broken, 60, "node1 is not ready")

        async def lives() -> bool:
            return (await stage.probe("node1", "liveness"))[0] and not (await stage.probe("node1", "readiness"))[0]

        await until(lives, 30, "alive, though not ready")
        bad = stage.command("node1", *health, "--threshold-time", "1h", **felix)
        assert bad.returncode == 1
        assert f"Mesh_{str(node2.ipv4.ip).replace('.', '_')}" in bad.stderr
        await until(lambda: healthy("health", "--felix-live", "--felix-ready", "--bird-live"), 30, "well without peers")
    finally:
        inside(node2, "nft", "delete", "table", "inet", "broken")
    await stage.ready("node1")


async def test_d02_a_new_address_is_followed_by_the_node_and_its_peers(stage: Stage) -> None:
    node1 = stage.cluster.node("node1")
    fresh = "172.31.0.77/24"
    # The first one is what is found; the old one stays as a second for what the test asks the node.
    node1.namespace.ip([
        f"addr del {node1.ipv4} dev eth0", f"addr add {fresh} dev eth0", f"addr add {node1.ipv4} dev eth0",
        "route replace default via 172.31.0.1",
    ])  # fmt: skip
    try:

        async def followed() -> bool:
            bgp = (await stage.spec("node1")).bgp
            return bgp is not None and bgp.ipv4_address == fresh

        await until(followed, 60, "the node has its new address")

        async def peers() -> bool:
            done = stage.command("node2", "status", "show")
            return "172.31.0.77" in done.stdout and "172.31.0.11 " not in done.stdout

        await until(peers, 60, "node2 speaks to the new address")
    finally:
        node1.namespace.ip([
            f"addr del {fresh} dev eth0", f"addr replace {node1.ipv4} dev eth0",
            "route replace default via 172.31.0.1",
        ])  # fmt: skip

    async def back() -> bool:
        bgp = (await stage.spec("node1")).bgp
        return bgp is not None and bgp.ipv4_address == str(node1.ipv4)

    await until(back, 60, "the old address is back")
    await stage.ready("node1")


async def test_d03_another_node_with_the_same_address_is_refused(stage: Stage) -> None:
    file = stage.cluster.node("node1").directory / "other-nodename"
    done = stage.command("node1", "startup", NODENAME="impostor", CALICO_NODENAME_FILE=str(file))
    assert done.returncode == 1
    assert "is the address of node node1" in done.stdout + done.stderr
    assert not file.exists()
    with pytest.raises(NotFound):
        await stage.world.resources.get("Node", "impostor")


async def test_a_killed_felix_is_started_again_and_pods_notice_nothing(stage: Stage) -> None:
    one, two = await stage.pods()
    before = (await stage.programs("node1"))["services.felix"]
    os.kill(before, signal.SIGKILL)

    async def again() -> bool:
        now = children(stage.nodes["node1"].pid).get("services.felix")
        return now is not None and now != before

    await until(again, 60, "another felix runs")
    assert await stage.cluster.passes([(two, one, 8080, "tcp")])
    await stage.ready("node1")


async def test_a_killed_supervisor_leaves_no_process_and_its_successor_all_traffic(stage: Stage) -> None:
    one, two = await stage.pods()
    process = stage.nodes["node1"]
    pids = await stage.programs("node1")
    process.kill()

    async def all_ended() -> bool:
        return not any(alive(pid) for pid in pids.values())

    await until(all_ended, 30, "felix and bgp ended with their supervisor")
    assert await stage.cluster.passes([(one, two, 8080, "tcp")])
    process.start()
    await stage.ready("node1")
    assert await stage.cluster.passes([(one, two, 8080, "tcp")])


@pytest.fixture
def xtables(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a program needs in its environment to find both kinds of iptables; this process has it too."""
    needed = {name: value for name, value in tools.environment().items() if os.environ.get(name) != value}
    for name, value in needed.items():
        monkeypatch.setenv(name, value)
    return needed


@pytest.mark.parametrize("kind", ["legacy", "nft"])
async def test_what_a_real_calico_node_left_goes_under_traffic_and_others_rules_stay(
    stage: Stage, kind: str, xtables: dict[str, str]
) -> None:
    tool = f"iptables-{kind}"
    tools.tool(tool)
    node = stage.cluster.node("node1")
    one, two = await stage.pods()
    await asyncio.to_thread(load, node.namespace.path, tool, recorded("iptables"), one.address(4))
    done = stage.command("node1", "take-over", "--dry-run", **xtables)
    assert done.returncode == 0, done.stderr
    assert f"would remove {tool}:" in done.stdout
    passed: list[bool] = []
    ended = asyncio.Event()

    async def traffic() -> None:
        while not ended.is_set():
            passed.append(await stage.cluster.passes([(two, one, 8080, "tcp"), (one, two, 8080, "tcp")]))

    flowing = asyncio.create_task(traffic())
    try:
        health = {"FELIX_HEALTHHOST": str(node.ipv4.ip)}
        done = await asyncio.to_thread(stage.command, "node1", "take-over", **xtables, **health)
    finally:
        ended.set()
        await flowing
    assert done.returncode == 0, done.stderr
    assert set(passed) == {True}
    saved = stage.world.run("node1", f"{tool}-save")
    assert "cali" not in saved
    assert "of somebody else" in saved
    left = await asyncio.to_thread(ipsets, node.namespace.path)
    assert not [name for name in left if name.startswith("cali")]
    again = stage.command("node1", "take-over", **xtables, **health)
    assert (again.returncode, again.stdout) == (0, "nothing to remove\n")


async def test_a_node_that_starts_where_nftables_of_a_real_calico_node_stand_takes_them_over(stage: Stage) -> None:
    node = stage.cluster.node("node1")
    one, two = await stage.pods()
    old = recorded("nft").partition("# ip route")[0]
    assert stage.nodes["node1"].stop(40) == 0
    for family in ("ip", "ip6"):
        inside(node, "nft", "delete", "table", family, "calico")
    inside(node, "nft", "-f", "-", text=old)
    assert "cali40" in stage.world.run("node1", "nft", "list", "table", "ip", "calico")
    stage.nodes["node1"] = stage.process(node, CALICO_NODE_TAKE_OVER="true")
    stage.nodes["node1"].start()
    await stage.ready("node1")

    async def arp_gone() -> bool:
        return "calico-arp" not in stage.world.run("node1", "nft", "list", "tables")

    await until(arp_gone, 30, "the ARP table goes by itself")
    assert "cali40" not in stage.world.run("node1", "nft", "list", "table", "ip", "calico")
    assert await stage.cluster.passes([(one, two, 8080, "tcp"), (two, one, 8080, "tcp")])


async def test_d14_a_locked_datastore_refuses_new_pods_and_forwards(stage: Stage) -> None:
    from libs.testkit.cluster import CniError

    one, two = await stage.pods()
    await _lock(stage, False)
    try:
        with pytest.raises(CniError, match="locked"):
            await stage.cluster.add_pod("node1", "late", probe=False)
        assert await stage.cluster.passes([(one, two, 8080, "tcp")])
        assert stage.command("node1", "startup").returncode == 0, "a locked datastore is there all the same"
        info = await stage.world.resources.get("ClusterInformation", "default")
        assert isinstance(info, model.ClusterInformation)
        assert info.spec.datastore_ready is False
    finally:
        await _lock(stage, True)
    late = await stage.cluster.add_pod("node1", "late", probe=False)
    await stage.cluster.remove_pod(late)


async def _lock(stage: Stage, ready: bool) -> None:
    patch: Mapping[str, object] = {"spec": {"datastoreReady": ready}}
    from libs.resources.patch import PatchType

    await stage.world.resources.patch("ClusterInformation", "default", patch, PatchType.MERGE)


async def test_d08_without_bird_no_bgp_runs(stage: Stage) -> None:
    node = stage.cluster.node("node2")
    stage.nodes["node2"].stop(30)
    process = stage.process(node, CALICO_NETWORKING_BACKEND="vxlan")
    process.start()
    try:
        old, stage.nodes["node2"] = stage.nodes["node2"], process
        await stage.ready("node2")
        assert set(children(process.pid)) == {"services.felix"}
    finally:
        assert process.stop(30) == 0, process.log_tail()
        stage.nodes["node2"] = old
    old.start()
    await stage.ready("node2")


async def test_m13_uninstall_leaves_nothing_of_ours_and_all_of_others(
    stage: Stage, tmp_path: Path, xtables: dict[str, str]
) -> None:
    """Last: node1 is no node afterwards."""
    node = stage.cluster.node("node1")
    inside(node, "nft", "-f", "-", text=THEIRS)
    node.namespace.ip(["route add 198.51.100.0/24 via 172.31.0.1 proto static", "rule add fwmark 0x7 lookup 77"])
    conf, programs = tmp_path / "net.d", tmp_path / "bin"
    conf.mkdir()
    programs.mkdir()
    for name in ("10-calico.conflist", "calico-kubeconfig", "05-theirs.conflist"):
        (conf / name).write_text("{}")
    for name in ("calico", "calico-ipam", "bridge"):
        (programs / name).write_text("")
    places = (
        "--conf-dir", str(conf), "--bin-dir", str(programs), "--state-dir", f"{node.directory / 'state'}",
        "--felix-host", str(node.ipv4.ip),
    )  # fmt: skip
    refused = stage.command("node1", "uninstall", *places, **xtables)
    assert refused.returncode == 1
    assert "felix and bgp still runs here" in refused.stderr
    assert (conf / "10-calico.conflist").exists()
    assert stage.nodes["node1"].stop(30) == 0, stage.nodes["node1"].log_tail()
    done = stage.command("node1", "uninstall", *places, **xtables)
    assert done.returncode == 0, done.stderr
    world = stage.world
    tables = world.run("node1", "nft", "list", "tables")
    assert "calico" not in tables
    assert "theirs" in tables
    routes = json.loads(world.run("node1", "ip", "-j", "-d", "route", "show", "table", "all"))
    routes += json.loads(world.run("node1", "ip", "-j", "-6", "-d", "route", "show", "table", "all"))
    assert not [one for one in routes if str(one.get("protocol")) in ("80", "81") or "cali" in str(one.get("dev"))]
    assert [one for one in routes if one["dst"] == "198.51.100.0/24"]
    assert "0x7" in world.run("node1", "ip", "rule")
    links = {one["ifname"] for one in json.loads(world.run("node1", "ip", "-j", "link"))}
    assert not [name for name in links if name.startswith("cali") or "calico" in name]
    assert "eth0" in links
    assert sorted(path.name for path in conf.iterdir()) == ["05-theirs.conflist"]
    assert sorted(path.name for path in programs.iterdir()) == ["bridge"]
    assert not (node.directory / "state").exists()
    again = stage.command("node1", "uninstall", *places, **xtables)
    assert (again.returncode, again.stdout) == (0, "nothing to remove\n")
