"""The pretend cluster itself: wiring, plugging, questions, traffic, faults, a clean end; a stand-in plays Felix."""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from aiohttp import web

from libs.testkit.cluster import Cluster, CniError, Node, Pod, Question
from libs.testkit.reach import Flow, Verdict, check
from libs.testkit.sweep import sweep_stale
from libs.testkit.topology import Namespace, namespaces, processes_in
from libs.testkit.traffic import Load

pytestmark = [pytest.mark.kernel, pytest.mark.servers]


class StandIn:
    """Plugs pods with `ip`, routes between nodes, no policy: enough of a Felix to test the kit."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.requests: list[dict[str, object]] = []

    async def serve(self, node: Node) -> web.AppRunner:
        app = web.Application()
        app.router.add_post("/cni", partial(self._answer, node))
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(node.cni_socket)).start()
        return runner

    async def _answer(self, node: Node, request: web.Request) -> web.Response:
        asked = await request.json()
        self.requests.append(asked)
        env, config = asked["env"], json.loads(asked["config"])
        if config.get("refuse"):
            return web.json_response({"cniVersion": "1.0.0", "code": 7, "msg": "no"}, status=500)
        if env["CNI_COMMAND"] != "ADD":
            return web.Response(status=200)
        number = len(self.requests)
        v4, v6 = f"10.65.{node.ipv4.ip.packed[3]}.{number}", f"fd00:65:{node.ipv4.ip.packed[3]:x}::{number:x}"
        device, pod = f"cali{number}", Namespace(Path(env["CNI_NETNS"]).name)
        pod.sysctl({"ipv6/conf/default/accept_dad": 0})
        node.namespace.ip([
            f"link add {device} type veth peer name eth0 netns {pod.name}",
            f"link set {device} up",
            f"addr add 169.254.1.1/32 dev {device}",
            f"addr add fe80::1/64 dev {device} nodad",
        ])  # fmt: skip
        pod.ip([
            f"addr add {v4}/32 dev eth0", f"addr add {v6}/128 dev eth0 nodad", "link set eth0 up",
            "route add 169.254.1.1 dev eth0", "route add default via 169.254.1.1 dev eth0",
            "route add ::/0 via fe80::1 dev eth0",
        ])  # fmt: skip
        node.namespace.ip([f"route add {v4} dev {device}", f"route add {v6} dev {device}"])
        for other in self.cluster.nodes:
            if other is not node:
                other.namespace.ip([f"route add {v4} via {node.ipv4.ip}", f"route add {v6} via {node.ipv6.ip}"])
        return web.json_response({"cniVersion": "1.0.0", "ips": [{"address": f"{v4}/32"}, {"address": f"{v6}/128"}]})


@asynccontextmanager
async def plugged(nodes: int = 2) -> AsyncIterator[tuple[Cluster, StandIn]]:
    async with Cluster.create(nodes=nodes, services=False) as cluster:
        stand_in = StandIn(cluster)
        runners = [await stand_in.serve(node) for node in cluster.nodes]
        try:
            yield cluster, stand_in
        finally:
            for runner in runners:
                await runner.cleanup()


def drop(node: Node, source: Pod, target: Pod, verdict: str = "drop") -> None:
    """A rule of nft in the node between two pods, both families; stands for a policy."""
    rules = "".join(
        f"{ip} saddr {source.address(family)} {ip} daddr {target.address(family)} {verdict}\n"
        for ip, family in (("ip", 4), ("ip6", 6))
    )
    text = f"table inet t {{ chain c {{ type filter hook forward priority 0; policy accept;\n{rules}}}\n}}\n"
    subprocess.run(["ip", "netns", "exec", node.namespace.name, "nft", "-f", "-"], input=text.encode(), check=True)


async def test_pods_reach_each_other_and_verdicts_tell_why_not() -> None:
    async with plugged() as (cluster, _):
        a, b = await cluster.add_pod("node1", "a"), await cluster.add_pod("node2", "b")
        c = await cluster.add_pod("node1", "c")
        for family in (4, 6):
            pairs = [(one, other, 8080, "tcp") for one in (a, b, c) for other in (a, b, c) if one is not other]
            assert await cluster.passes(pairs, family=family)
            questions: list[Question] = [
                (a, b, 8081, "udp"),
                (a, b, 0, "icmp"),
                (a, b, 9999, "tcp"),
                (a, b, 9999, "udp"),
            ]
            allow, refused = Verdict.ALLOW, Verdict.REFUSED
            wanted = [allow, allow, refused, refused]
            assert await cluster.reach(questions, family=family, wanted=wanted) == wanted
        assert await cluster.reach([(a, "203.0.113.1", 80, "tcp")]) == [Verdict.DENY]  # routed away, nobody there
        drop(cluster.node("node1"), a, b)
        for family in (4, 6):
            questions = [(a, b, 8080, "tcp"), (a, b, 8080, "udp"), (a, b, 0, "icmp"), (c, b, 8080, "tcp")]
            wanted = [Verdict.DENY, Verdict.DENY, Verdict.DENY, Verdict.ALLOW]
            assert await cluster.reach(questions, family=family, wanted=wanted) == wanted
        await cluster.eventually([(a, b, 8080, "tcp"), (c, b, 8080, "tcp")], [Verdict.DENY, Verdict.ALLOW])
        with pytest.raises(AssertionError, match="a -> b tcp/8080: deny, wanted allow"):
            await cluster.eventually([(a, b, 8080, "tcp")], Verdict.ALLOW, timeout_s=0.1)


async def test_plugin_gets_what_a_runtime_gives_and_its_error_is_raised() -> None:
    async with plugged(1) as (cluster, stand_in):
        pod = await cluster.add_pod("node1", "web", namespace="shop", labels={"app": "web"})
        with pytest.raises(CniError, match="CNI error 7: no"):
            await cluster.add_pod("node1", "bad", config={"refuse": True})
        assert [p.name for p in cluster.pods()] == ["web"]
        await cluster.remove_pod(pod)
        assert not pod.netns.exists()
        add, delete = stand_in.requests[0], stand_in.requests[-1]
        assert add["env"] == {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": pod.container_id,
            "CNI_NETNS": f"/run/netns/{pod.netns.name}",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;"
            f"K8S_POD_INFRA_CONTAINER_ID={pod.container_id}",
            "CNI_PATH": str(Path(str(add["env"]["CNI_PATH"]))),  # type: ignore[index]
        }
        assert json.loads(str(delete["config"]))["prevResult"] == pod.result
        cluster.node("node1").cni_socket.unlink()
        with pytest.raises(CniError) as caught:
            await cluster.add_pod("node1", "late")
        assert caught.value.code == 11


async def sent(load: Load, number: int) -> None:
    async with asyncio.timeout(30):
        while load.snapshot().udp_sent < number:  # noqa: ASYNC110 - a thread's count
            await asyncio.sleep(0.005)


async def test_load_counts_losses_exactly_while_a_path_is_cut() -> None:
    async with plugged() as (cluster, _):
        a, b = await cluster.add_pod("node1", "a"), await cluster.add_pod("node2", "b")
        c = await cluster.add_pod("node1", "c")
        drop(cluster.node("node2"), c, a)
        drop(cluster.node("node1"), c, b)
        denied = [cluster.flow(c, b, 8080, "tcp"), cluster.flow(c, b, 8080, "udp", family=6)]
        good = [cluster.flow(a, b, 8080, "udp"), cluster.flow(a, b, 8081, "udp", family=6)]
        tcp = [cluster.flow(a, b, 8080), cluster.flow(a, b, 8080, family=6)]
        with Load(udp=good, tcp=tcp, streams=tcp, denied=denied) as load:
            await sent(load, 1000)
            async with asyncio.timeout(30):
                while load.snapshot().stream_messages <= 40:  # noqa: ASYNC110 - a thread's count
                    await asyncio.sleep(0.005)
        seen = load.result
        assert seen.lost_nothing, seen
        assert seen.denied_passed == 0
        assert 900 <= seen.udp_sent <= 1100 + 1000 * (seen.duration_s - 1)
        assert seen.udp_received == seen.udp_sent
        assert seen.tcp_ok == seen.tcp_opened
        assert seen.tcp_opened > 80
        assert seen.denied_tried > 40

        # Its carrier stays, or the kernel keeps packets until the neighbour is known again.
        cut, mend = (["link set node1 nomaster"], ["link set node1 master br0"])
        with Load(udp=good, tcp=tcp, streams=tcp, denied=[cluster.flow(a, b, 8080)]) as load:
            await asyncio.sleep(0.3)
            cluster.fabric.ip(cut)
            await sent(load, load.snapshot().udp_sent + 300)
            cluster.fabric.ip(mend)
            await asyncio.sleep(0.5)
        seen = load.result
        assert not seen.lost_nothing
        assert seen.udp_lost + seen.udp_received == seen.udp_sent
        assert seen.udp_lost > 280
        assert seen.longest_silence_s > 0.28
        assert seen.tcp_slow + seen.tcp_failed > 0
        assert seen.denied_passed > 0


async def test_a_machine_that_stands_still_is_neither_a_policy_nor_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    async with plugged() as (cluster, _):
        a, b = await cluster.add_pod("node1", "a"), await cluster.add_pod("node2", "b")
        questions: list[Question] = [(a, b, 8080, "tcp"), (a, b, 8080, "udp")]
        await cluster.eventually(questions, Verdict.ALLOW)
        assert b.probe is not None
        server = b.probe._child.pid
        select, pauses = selectors.EpollSelector.select, [6.0]

        def held_up(self: selectors.EpollSelector, timeout: float | None = None) -> object:
            if pauses and threading.current_thread().name.startswith("asyncio_"):  # that of `to_thread`
                time.sleep(pauses.pop())
                os.kill(server, signal.SIGCONT)
            return select(self, timeout)

        monkeypatch.setattr(selectors.EpollSelector, "select", held_up)
        os.kill(server, signal.SIGSTOP)
        assert await cluster.reach(questions, timeout_s=5.0) == [Verdict.ALLOW] * 2
        assert not pauses
        flows = [cluster.flow(a, b, 8080, protocol) for protocol in ("tcp", "udp")]
        with Load(tcp=flows[:1], udp=flows[1:], streams=flows[:1]) as load:
            await asyncio.sleep(0.2)
            os.kill(server, signal.SIGSTOP)
            await asyncio.sleep(1.5)
            os.kill(server, signal.SIGCONT)
        assert load.result.longest_silence_s > 1, load.result
        assert load.result.lost_nothing, load.result


async def test_etcd_and_nats_answer_from_outside_and_come_back_after_a_kill(crash_etcd: Path) -> None:
    async with Cluster.create(nodes=1, services=False, etcd_binary=crash_etcd) as cluster:
        async with cluster.store() as store:
            nodes = await store.list("/calico/resources/v3/projectcalico.org/nodes/")
            assert [json.loads(kv.value)["metadata"]["name"] for kv in nodes.kvs] == ["node1"]
            cluster.etcd.kill()
            await cluster.etcd.start_async()
            assert (await store.list("/calico/resources/v3/projectcalico.org/nodes/")).kvs == nodes.kvs
        port = int(cluster.outside_env()["NATS_URL"].rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await reader.readline()).startswith(b"INFO ")
        writer.close()


async def test_services_are_started_in_their_namespaces_awaited_killed_and_started_again(tmp_path: Path) -> None:
    program = tmp_path / "service.py"
    program.write_text(
        "import http.server, os, socketserver\n"
        "role = 'FELIX' if 'NODENAME' in os.environ else 'TYPHA'\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers()\n"
        "        self.wfile.write((os.environ.get('NODENAME', 'typha') + ' ' + os.environ['ETCD_ENDPOINTS'])"
        ".encode())\n"
        "at = (os.environ[role + '_HEALTHHOST'], int(os.environ[role + '_HEALTHPORT']))\n"
        "socketserver.TCPServer.allow_reuse_address = True\n"
        "socketserver.TCPServer(at, H).serve_forever()\n"
    )
    command = [sys.executable, "-IS", str(program)]
    async with Cluster.create(nodes=2, felix=command, typha=command) as cluster:
        assert (await cluster.felix_get("node2", "/metrics")).text == "node2 http://172.31.0.1:2379"
        assert (await cluster.typha_get("/metrics")).text.startswith("typha ")
        cluster.kill_felix("node1")
        with pytest.raises(OSError):
            await cluster.felix_get("node1", "/liveness")
        await cluster.start_felix("node1")
        cluster.kill_typha()
        await cluster.start_typha()
        assert set(cluster.node("node1").namespace.processes()) == {cluster.node("node1").felix.pid}


async def test_service_that_ends_early_fails_the_start_with_its_log_and_leaves_nothing() -> None:
    command = [sys.executable, "-ISc", "import sys; sys.exit('no such flag')"]
    cluster = Cluster.create(nodes=1, felix=command, typhas=0)
    with pytest.raises(RuntimeError, match="felix on node1 ended with status 1:\nno such flag"):
        async with cluster:
            raise AssertionError("it started")
    assert namespaces(f"cal-{cluster.id}-") == []
    assert not cluster.directory.exists()


async def test_a_port_that_comes_to_the_fabric_cuts_no_node_off_its_router() -> None:
    """A bridge without an address of its own takes the lowest of its ports' and is deaf to what it had before."""
    async with Cluster.create(nodes=3, services=False, far=("node3",)) as cluster:
        far = cluster.node("node3")
        flows = [
            Flow(cluster.node(name).namespace.path, address.ip, 9)
            for name in ("node1", "node2")
            for address in (far.ipv4, far.ipv6)
        ]
        assert await asyncio.to_thread(check, flows) == [Verdict.REFUSED] * 4, "nobody listens"
        lowest = "link add low address 00:00:00:00:00:01 type veth peer name other"
        cluster.fabric.ip([lowest, "link set other up", "link set low master br0 up"])
        assert await asyncio.to_thread(check, flows) == [Verdict.REFUSED] * 4


async def test_two_clusters_side_by_side_do_not_meet_and_stop_leaves_nothing() -> None:
    async with Cluster.create(nodes=1, services=False) as one, Cluster.create(nodes=1, services=False) as two:
        async with one.store() as a, two.store() as b:
            await a.put("/only/one", b"")
            assert await b.get("/only/one") is None
        spaces = [*namespaces(f"cal-{one.id}-"), *namespaces(f"cal-{two.id}-")]
        assert len(spaces) == 4
        pids = processes_in(spaces)
        assert len(pids) == 4
    assert [s for s in spaces if s.exists()] == []
    assert not set(pids) & {int(name) for name in os.listdir("/proc") if name.isdigit()}
    assert not one.directory.exists()


def test_leftovers_of_a_killed_owner_are_swept_and_a_living_ones_are_not(tmp_path: Path) -> None:
    text = (
        "import asyncio, pathlib, sys\n"
        "from libs.testkit.cluster import Cluster\n"
        "async def main():\n"
        "    cluster = Cluster.create(nodes=1, services=False, run_dir=pathlib.Path(sys.argv[1]))\n"
        "    await cluster.start()\n"
        "    print(cluster.id, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", text, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        identity = owner.stdout.readline().strip()
        spaces = namespaces(f"cal-{identity}-")
        assert len(spaces) == 2
        assert sweep_stale(tmp_path) == []
        assert [s for s in spaces if s.exists()] == spaces
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.communicate()
    deadline = time.monotonic() + 30
    while processes_in(spaces) and time.monotonic() < deadline:  # they die with their owner, without a sweep
        time.sleep(0.01)
    assert processes_in(spaces) == []
    assert sweep_stale(tmp_path) == [identity]
    assert [s for s in spaces if s.exists()] == []
    assert list(tmp_path.iterdir()) == []
