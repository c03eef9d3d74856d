"""What a node with 100 pods receives, and what it costs it, while the rest of the cluster grows from 100 to 100,000
endpoints.

    python -m benchmarks.node_share [--quick] [--json FILE]

Real etcd, NATS, typha and felix, which writes its ruleset to the kernel; all in a network namespace of their own. CPU
is user and system time of felix: until its first ruleset stands, and in the minute after. Bytes are payloads of
messages, counted by a second process that follows typha as the same node.

The same at every size: 100 other nodes, 100 other namespaces with 1,000 policies, and what concerns the node: 100 pods
of its own, 100 pods of the same namespace elsewhere, ten policies among them, and one global policy that refers to 200
pods of another namespace. Growing: endpoints of the other namespaces, and with them IPAM blocks (64 addresses each),
whose table every node needs for its routes.

One measurement: the snapshot, then 60 s in which, at every size, the rest of the cluster makes 50 changes a second (in
turn: a label changes; a pod goes; one comes) and the node's own namespace two label changes a second. So a cluster 50
times the size changes no more often: what is measured is what the size alone costs the node.

Naive: a list of all objects to the node, then each change.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import aiohttp

from benchmarks import policies
from benchmarks.common import Row, cpu_s, machine, parser, report, rss_mb
from benchmarks.policies import Entry
from libs.bus.config import BusConfig
from libs.bus.nats import NatsBus
from libs.feed.runner import FeedRunner
from libs.model import keys
from libs.store.config import StoreConfig
from libs.store.etcd import EtcdStore
from libs.testkit.servers import EtcdServer, NatsServer, free_port

NODES, NAMESPACES, APPS, POLICIES = 100, 100, 20, 1_000
NODE, OWN = "node-own", "ns-own"
OWN_PODS, OWN_ELSEWHERE, OWN_POLICIES, SHARED = 100, 100, 10, 200
REST_PER_S, OWN_PER_S = 50, 2
FIRST_OWN, FIRST_ELSEWHERE, FIRST_SHARED = 900_000, 910_000, 920_000  # numbers of endpoints, and so addresses


def own_data() -> list[Entry]:
    """What concerns the node, and the nodes."""
    data = [policies.profile(OWN)]
    data += [policies.endpoint(FIRST_OWN + n, NODE, OWN, f"app{n % 5}") for n in range(OWN_PODS)]
    data += [own_elsewhere(n, n % 5) for n in range(OWN_ELSEWHERE)]
    data += [
        policies.policy(f"own{n}", OWN, f"app{n % 5}", [f"app{(n + 1) % 5}"], 8000 + n) for n in range(OWN_POLICIES)
    ]
    spec = {
        "tier": "default", "order": 50, "selector": f"projectcalico.org/namespace == '{OWN}'", "types": ["Ingress"],
        "ingress": [{"action": "Allow", "source": {"selector": "app == 'shared'"}}],
    }  # fmt: skip
    data.append(policies.resource("GlobalNetworkPolicy", "shared", spec))
    data += [policies.endpoint(FIRST_SHARED + n, f"node{n % NODES}", "ns0", "shared") for n in range(SHARED)]
    for number in range(NODES):
        address = IPv4Address("172.16.0.0") + number + 1
        data.append(policies.resource("Node", f"node{number}", {"bgp": {"ipv4Address": f"{address}/16"}}))
    data.append(policies.resource("Node", NODE, {"bgp": {"ipv4Address": "172.16.200.1/16"}}))
    pool = {
        "cidr": "10.0.0.0/8", "ipipMode": "Never", "vxlanMode": "Never", "blockSize": 26, "nodeSelector": "all()",
        "allowedUses": ["Workload"],
    }  # fmt: skip
    data.append(policies.resource("IPPool", "pool", pool))
    return data


def rest_data(endpoints: int) -> list[Entry]:
    """What does not concern the node, but for the blocks."""
    data = list(policies.cluster(endpoints, POLICIES, NODES, NAMESPACES, APPS))
    chance = Random(3)  # owners in a pattern would compress too well
    for number in range((endpoints + 63) // 64):
        cidr = ip_network((int(IPv4Address("10.0.0.0")) + number * 64, 26))
        value = {
            "cidr": str(cidr), "affinity": f"host:node{chance.randrange(NODES)}", "allocations": [None] * 64,
            "unallocated": list(range(64)), "attributes": [], "deleted": False,
        }  # fmt: skip
        data.append((keys.BlockKey(cidr).path, json.dumps(value).encode()))
    return data


def rest_endpoint(number: int, app: int) -> Entry:
    return policies.endpoint(number, f"node{number % NODES}", f"ns{number // NODES % NAMESPACES}", f"app{app}")


def own_elsewhere(number: int, app: int) -> Entry:
    return policies.endpoint(FIRST_ELSEWHERE + number, f"node{number % NODES}", OWN, f"app{app}")


async def follow(seconds: float) -> None:
    """The node: follows from nothing, prints one line when it has its snapshot and one in the end."""
    async with NatsBus(BusConfig.from_env(os.environ), name=f"felix-{NODE}") as bus:
        await bus.wait_connected(20)
        feed = FeedRunner(bus, NODE, lambda apply, _: None, Random(1))
        task = asyncio.create_task(feed.run())
        while not feed.following:  # noqa: ASYNC110 - the feed has no event for it, and this is a benchmark's start
            await asyncio.sleep(0.01)
        snapshot = {"snapshot_bytes": feed.received_bytes}
        print(json.dumps(snapshot), flush=True)
        await asyncio.sleep(seconds)
        period = {
            "bytes": feed.received_bytes, "messages": feed.received_messages, "snapshots": feed.feed.snapshots,
        }  # fmt: skip
        print(json.dumps(snapshot | period), flush=True)
        task.cancel()


async def churn(store: EtcdStore, endpoints: int, seconds: float) -> tuple[int, int]:
    """At fixed rates; number of changes, and bytes of all of them, which is what the naive way sends to the node."""
    chance = Random(2)
    begun = time.monotonic()
    sent = number = gone = 0
    while (passed := time.monotonic() - begun) < seconds:
        if number > passed * (REST_PER_S + OWN_PER_S):
            await asyncio.sleep(0.002)
            continue
        turn = number % (REST_PER_S + OWN_PER_S)
        if turn < OWN_PER_S:
            key, value = own_elsewhere(chance.randrange(OWN_ELSEWHERE), chance.randrange(5))
        elif turn % 3 == 2:
            key, value = rest_endpoint(gone, chance.randrange(APPS))
        else:
            which = chance.randrange(endpoints)
            gone = which if turn % 3 == 1 else gone
            key, value = rest_endpoint(which, chance.randrange(APPS))
        if turn >= OWN_PER_S and turn % 3 == 1:
            await store.delete(key)
        else:
            await store.put(key, value)
        sent += len(key) + len(value)
        number += 1
    return number, sent


def make_interfaces() -> None:
    """The node's own, in the subnet of all nodes, and those of its pods."""
    batch = ["link add eth0 type veth peer name wire", "addr add 172.16.200.1/16 dev eth0"]
    batch += [f"link set {name} up" for name in ("eth0", "wire")]
    for number in range(FIRST_OWN, FIRST_OWN + OWN_PODS):
        name = f"cali{number:08x}"
        batch += [f"link add {name} type veth peer name p{number}", f"link set p{number} up", f"link set {name} up"]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(batch), text=True, check=True)


async def start_felix(env: dict[str, str], directory: Path) -> asyncio.subprocess.Process:
    """Returns when its first ruleset stands in the kernel."""
    port = free_port()
    env = env | {
        "FELIX_FELIXHOSTNAME": NODE, "FELIX_HEALTHHOST": "127.0.0.1", "FELIX_HEALTHPORT": str(port),
        "FELIX_STATE_DIR": str(directory), "CALICO_CNI_SOCKET": str(directory / "cni.sock"),
        "FELIX_MTU_FILE": str(directory / "mtu"), "FELIX_PROGRAMCLUSTERROUTES": "Enabled",
    }  # fmt: skip
    felix = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.felix", env=env)
    await until_ready(port)
    return felix


async def until_ready(port: int) -> None:
    """Typha has read all of etcd. A node that asked earlier would measure its own waiting. Raises TimeoutError."""
    async with asyncio.timeout(120), aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"http://127.0.0.1:{port}/readiness") as answer:
                    if answer.ok:
                        return
            await asyncio.sleep(0.05)


async def one(endpoints: int, seconds: float) -> dict[str, float]:
    """Figures of one size."""
    data = own_data() + rest_data(endpoints)
    with EtcdServer() as etcd, NatsServer() as nats, TemporaryDirectory() as directory:
        port = free_port()
        env = {**os.environ, "ETCD_ENDPOINTS": etcd.endpoint, "NATS_URL": nats.url, "LOG_LEVEL": "error"}
        env |= {"TYPHA_HEALTHHOST": "127.0.0.1", "TYPHA_HEALTHPORT": str(port)}
        async with EtcdStore(StoreConfig.from_env(env)) as store:
            await policies.store_all(store, data)
            typha = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.typha", env=env)
            node: asyncio.subprocess.Process | None = None
            felix: asyncio.subprocess.Process | None = None
            try:
                await until_ready(port)
                node = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "benchmarks.node_share", "--follow", str(seconds), env=env,
                    stdout=asyncio.subprocess.PIPE,
                )  # fmt: skip
                assert node.stdout is not None
                await asyncio.wait_for(node.stdout.readline(), 120)
                felix = await start_felix(env, Path(directory))
                start_s, before_s = cpu_s(felix.pid), cpu_s(typha.pid)
                changes, sent = await churn(store, endpoints, seconds)
                used_s = cpu_s(typha.pid) - before_s
                of_felix = {
                    "felix_start_s": start_s, "felix_cpu_s": cpu_s(felix.pid) - start_s,
                    "felix_rss_mb": rss_mb(felix.pid),
                }  # fmt: skip
                figures: dict[str, float] = json.loads(await asyncio.wait_for(node.stdout.readline(), 60))
                await node.wait()
                memory_mb = rss_mb(typha.pid)
            finally:
                for process in (felix, node, typha):
                    if process is not None and process.returncode is None:
                        process.terminate()
                        await process.wait()
    return figures | of_felix | {
        "endpoints": endpoints, "changes": changes, "typha_cpu_s": used_s, "typha_rss_mb": memory_mb,
        "naive_bytes": sum(len(key) + len(value) for key, value in data) + sent,
    }  # fmt: skip


def row(figures: dict[str, float]) -> Row:
    return {
        "what": f"{figures['endpoints']:,} endpoints elsewhere",
        "snapshot_KiB": round(figures["snapshot_bytes"] / 1024, 1),
        "all_KiB": round(figures["bytes"] / 1024, 1),
        "messages": figures["messages"],
        "felix_start_ms": round(figures["felix_start_s"] * 1000),
        "felix_cpu_ms": round(figures["felix_cpu_s"] * 1000),
        "felix_rss_mb": round(figures["felix_rss_mb"], 1),
        "naive_KiB": round(figures["naive_bytes"] / 1024),
        "typha_cpu_s": round(figures["typha_cpu_s"], 2),
        "typha_rss_mb": round(figures["typha_rss_mb"]),
    }


def growth(first: dict[str, float], last: dict[str, float]) -> Row:
    def percent(name: str) -> str:
        return f"{(last[name] / first[name] - 1) * 100:+.1f} %"

    return {
        "what": f"growth, {first['endpoints']:,} to {last['endpoints']:,}",
        "snapshot_KiB": percent("snapshot_bytes"),
        "all_KiB": percent("bytes"),
        "felix_start_ms": percent("felix_start_s"),
        "felix_cpu_ms": percent("felix_cpu_s"),
        "felix_rss_mb": percent("felix_rss_mb"),
        "naive_KiB": percent("naive_bytes"),
    }


async def run(sizes: list[int], seconds: float) -> list[Row]:
    figures = [await one(size, seconds) for size in sizes]
    if again := [f for f in figures if f["snapshots"] != 1]:
        raise SystemExit(f"the node took more than one snapshot, so bytes cannot be compared: {again}")
    return [*map(row, figures), growth(figures[0], figures[-1])]


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--follow", type=float, metavar="SECONDS", help="be the node")
    made.add_argument("--inside", action="store_true", help="this is the network namespace to work in")
    options = made.parse_args()
    if options.follow is not None:
        asyncio.run(follow(options.follow))
        return 0
    if not options.inside:  # felix must not meet the ruleset of this machine
        again = [sys.executable, "-m", "benchmarks.node_share", "--inside", *sys.argv[1:]]
        os.execvp("unshare", ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *again])
    make_interfaces()
    described = machine()
    sizes, seconds = ([200, 1_000], 3.0) if options.quick else ([100, 10_000, 100_000], 60.0)
    report("a node's share", asyncio.run(run(sizes, seconds)), options.json, described)
    return 0


if __name__ == "__main__":
    sys.exit(main())
