"""What a node with 20 pods receives, and what it costs it, while the rest of the cluster grows from 1,000 to 50,000
endpoints.

    python -m benchmarks.node_share [--quick] [--json FILE]

Real etcd, NATS and typha; the node is a process of its own that follows typha as felix does. The cluster has 100 other
nodes and 100 other namespaces whatever its size; the rest's endpoints come with their IPAM blocks (64 addresses each),
so the table of blocks that every node needs grows as well. One measurement is the node's snapshot and then a fixed
period in which the rest changes 50 endpoints a second and the node's own namespace two. Our node's policies select its
own namespace, and one global policy a set of 200 endpoints elsewhere.

Naive: all objects as a JSON list to every node, then each change to every node.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from ipaddress import IPv4Address, ip_network
from random import Random

from benchmarks import policies
from benchmarks.common import machine, parser, report
from libs.bus.config import BusConfig
from libs.bus.nats import NatsBus
from libs.model import keys
from libs.store.api import Put
from libs.store.config import StoreConfig
from libs.store.etcd import EtcdStore
from libs.testkit.servers import EtcdServer, NatsServer
from services.felix.shell.feed import FeedRunner

NODES = 100
OWN = "ns-own"
REST_PER_S, OWN_PER_S = 50, 2


def own_data() -> list[tuple[str, bytes]]:
    data = [policies.profile(OWN)]
    data += [policies.endpoint(900_000 + n, "node-own", OWN, f"app{n % 5}") for n in range(20)]
    data += [policies.endpoint(910_000 + n, f"node{n % NODES}", OWN, f"app{n % 5}") for n in range(100)]
    data += [policies.policy(f"own{n}", OWN, f"app{n % 5}", f"app{(n + 1) % 5}", 8000 + n) for n in range(10)]
    rule = [{"action": "Allow", "source": {"selector": "app == 'shared'"}}]
    spec = {
        "tier": "default",
        "order": 50,
        "selector": f"projectcalico.org/namespace == '{OWN}'",
        "types": ["Ingress"],
        "ingress": rule,
    }
    data.append(policies.resource("GlobalNetworkPolicy", "shared", spec))
    data += [policies.endpoint(920_000 + n, f"node{n % NODES}", "ns0", "shared") for n in range(200)]
    for number in range(NODES):
        address = IPv4Address("172.16.0.0") + number + 1
        data.append(policies.resource("Node", f"node{number}", {"bgp": {"ipv4Address": f"{address}/16"}}))
    data.append(policies.resource("Node", "node-own", {"bgp": {"ipv4Address": "172.16.200.1/16"}}))
    pool = {
        "cidr": "10.0.0.0/8",
        "ipipMode": "Never",
        "vxlanMode": "Never",
        "blockSize": 26,
        "nodeSelector": "all()",
        "allowedUses": ["Workload"],
    }
    data.append(policies.resource("IPPool", "pool", pool))
    return data


def rest_data(endpoints: int) -> list[tuple[str, bytes]]:
    data = list(policies.cluster(endpoints, 1_000, NODES, 100, 20))
    blocks = (endpoints + 63) // 64
    for number in range(blocks):
        cidr = ip_network((int(IPv4Address("10.0.0.0")) + number * 64, 26))
        value = {
            "cidr": str(cidr), "affinity": f"host:node{number % NODES}", "allocations": [None] * 64,
            "unallocated": list(range(64)), "attributes": [], "deleted": False,
        }  # fmt: skip
        data.append((keys.BlockKey(cidr).path, json.dumps(value).encode()))
    return data


async def reader(seconds: float) -> None:
    """The node: follows from nothing, prints one line when it has its snapshot and one in the end."""
    async with NatsBus(BusConfig.from_env(os.environ), name="felix-node-own") as bus:
        await bus.wait_connected(20)
        feed = FeedRunner(bus, "node-own", lambda apply, _: None, Random(1))
        begun_s = cpu_s()
        task = asyncio.create_task(feed.run())
        while not feed.following:  # noqa: ASYNC110 the feed has no event for it, and this is a benchmark's start
            await asyncio.sleep(0.01)
        snapshot_bytes, snapshot_cpu_s = feed.received_bytes, cpu_s() - begun_s
        print(json.dumps({"snapshot_bytes": snapshot_bytes}), flush=True)
        await asyncio.sleep(seconds)
        figures = {
            "snapshot_bytes": snapshot_bytes, "bytes": feed.received_bytes, "messages": feed.received_messages,
            "cpu_s": round(cpu_s() - begun_s, 3), "snapshot_cpu_s": round(snapshot_cpu_s, 3),
        }  # fmt: skip
        print(json.dumps(figures), flush=True)
        task.cancel()


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def load(store: EtcdStore, data: list[tuple[str, bytes]]) -> None:
    for start in range(0, len(data), 120):
        await store.txn([], [Put(key, value) for key, value in data[start : start + 120]])


async def churn(store: EtcdStore, endpoints: int, seconds: float) -> int:
    """Label changes at fixed rates; bytes of all of them, which is what the naive way sends to every node."""
    chance = Random(2)
    begun = time.monotonic()
    sent = number = 0
    while (passed := time.monotonic() - begun) < seconds:
        if number <= passed * (REST_PER_S + OWN_PER_S):
            if number % (REST_PER_S + OWN_PER_S) < OWN_PER_S:
                which = chance.randrange(100)
                key, value = policies.endpoint(
                    910_000 + which, f"node{which % NODES}", OWN, f"app{chance.randrange(5)}"
                )
            else:
                which = chance.randrange(endpoints)
                node, namespace = f"node{which % NODES}", f"ns{which // NODES % 100}"
                key, value = policies.endpoint(which, node, namespace, f"app{chance.randrange(20)}")
            await store.put(key, value)
            sent += len(value)
            number += 1
        else:
            await asyncio.sleep(0.002)
    return sent


async def one(endpoints: int, seconds: float) -> dict[str, object]:
    data = own_data() + rest_data(endpoints)
    with EtcdServer() as etcd, NatsServer() as nats:
        env = {**os.environ, "ETCD_ENDPOINTS": etcd.endpoint, "NATS_URL": nats.url, "LOG_LEVEL": "warning"}
        async with EtcdStore(StoreConfig.from_env(env)) as store:
            await load(store, data)
            typha = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.typha", env=env)
            try:
                node = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "benchmarks.node_share", "--reader", str(seconds), env=env,
                    stdout=asyncio.subprocess.PIPE,
                )  # fmt: skip
                assert node.stdout is not None
                await asyncio.wait_for(node.stdout.readline(), 120)
                changed = await churn(store, endpoints, seconds)
                figures = json.loads(await asyncio.wait_for(node.stdout.readline(), 60))
                await node.wait()
            finally:
                typha.terminate()
                await typha.wait()
    everything = sum(len(value) for _, value in data)
    return {
        "what": f"{endpoints:,} endpoints elsewhere",
        "snapshot_KiB": round(figures["snapshot_bytes"] / 1024, 1),
        "total_KiB": round(figures["bytes"] / 1024, 1),
        "messages": figures["messages"],
        "cpu_ms": round(figures["cpu_s"] * 1000),
        "naive_KiB": round((everything + changed) / 1024),
        "bytes": figures["bytes"],
    }


async def run(sizes: list[int], seconds: float) -> list[dict[str, object]]:
    rows = [await one(size, seconds) for size in sizes]
    first, last = rows[0], rows[-1]
    growth = (int(str(last["bytes"])) / int(str(first["bytes"])) - 1) * 100
    cpu = (int(str(last["cpu_ms"])) / max(1, int(str(first["cpu_ms"]))) - 1) * 100
    naive = int(str(last["naive_KiB"])) / int(str(first["naive_KiB"]))
    rows.append(
        {"what": "growth", "total_KiB": f"{growth:+.1f} %", "cpu_ms": f"{cpu:+.0f} %", "naive_KiB": f"x{naive:.1f}"}
    )
    return rows


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--reader", type=float, help="be the node, for so many seconds")
    options = made.parse_args()
    if options.reader is not None:
        asyncio.run(reader(options.reader))
        return 0
    described = machine()
    sizes, seconds = ([200, 1_000], 3.0) if options.quick else ([1_000, 10_000, 50_000], 60.0)
    report("a node's share", asyncio.run(run(sizes, seconds)), options.json, described)
    return 0


if __name__ == "__main__":
    sys.exit(main())
