"""The start-up race: do the first connections of a new pod get through to the nodes whose policy allows it?

    python -m benchmarks.start_race [--quick] [--json FILE]

Servers on five nodes allow what is labelled as a client. On a sixth node clients are plugged in, four at a time, and
each connects to every server the moment its ADD returned. A first packet that comes before the server's node knows the
client's address is dropped; TCP tries again a second later, and that is what the user sees. Busy: meanwhile policies of
the servers are changed all the time, as in a rollout, so that those nodes have other work.

Compared in the same run: ADD as Calico's is (own policy only), and ADD that waits for the peers.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import AsyncIterator

from benchmarks.common import Row, machine, parser, percentile, report
from libs.netlink.netns import in_netns
from libs.resources import codec
from libs.resources.client import ResourceClient
from libs.testkit.cluster import Cluster, Pod

SERVERS, AT_ONCE, PORT = 5, 4, 8080
GIVE_UP_S = 5.0
LATE_MS = 500.0  # more than any answer here takes, less than TCP's first retransmission
WAIT_S = 10.0


def policy(number: int, revision: int) -> dict[str, object]:
    """revision: changes a rule, so that it must be programmed again."""
    clients = {
        "action": "Allow",
        "protocol": "TCP",
        "source": {"selector": "app == 'client'"},
        "destination": {"ports": [PORT]},
    }
    other = {"action": "Allow", "protocol": "TCP", "destination": {"ports": [10_000 + revision % 1000]}}
    return {
        "apiVersion": "projectcalico.org/v3",
        "kind": "GlobalNetworkPolicy",
        "metadata": {"name": f"to-servers-{number}"},
        "spec": {
            "order": number,
            "selector": "app == 'server'",
            "types": ["Ingress"],
            "ingress": [clients, other] if number == 0 else [other],
        },
    }


@contextlib.asynccontextmanager
async def changes(resources: ResourceClient, *, busy: bool) -> AsyncIterator[None]:
    async def forever() -> None:
        revision = 0
        while True:
            revision += 1
            await resources.apply(codec.from_json(policy(1 + revision % 20, revision)))

    task = asyncio.create_task(forever()) if busy else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def connect(client: Pod, server: Pod, family: int) -> float:
    """Milliseconds until the connection stood; infinite when it did not."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with in_netns(client.netns.path):
        made = socket.socket(kind, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    began = time.monotonic()
    try:
        async with asyncio.timeout(GIVE_UP_S):
            await asyncio.get_running_loop().sock_connect(made, (str(server.address(family)), PORT))
    except (TimeoutError, OSError):
        return float("inf")
    finally:
        made.close()
    return (time.monotonic() - began) * 1000


async def roll_out(cluster: Cluster, servers: list[Pod], count: int, wait_s: float, what: str) -> Row:
    adds: list[float] = []
    connects: list[float] = []
    numbers = iter(range(count))
    config = {"peers_setup_timeout_seconds": wait_s}

    async def worker() -> None:
        for number in numbers:
            began = time.monotonic()
            pod = await cluster.add_pod(
                "node1", f"client{number}", namespace="ns1", labels={"app": "client"}, config=config, probe=False
            )
            adds.append((time.monotonic() - began) * 1000)
            family = 4 if number % 2 else 6
            connects.extend(await asyncio.gather(*(connect(pod, server, family) for server in servers)))
            await cluster.remove_pod(pod)

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    late = sum(took > LATE_MS for took in connects)
    return {
        "what": what,
        "pods": count,
        "add_p50_ms": round(percentile(adds, 0.5), 1),
        "add_p99_ms": round(percentile(adds, 0.99), 1),
        "connections": len(connects),
        "first_packet_dropped": late,
        "share_%": round(100 * late / len(connects), 1),
        "connect_p50_ms": round(percentile(connects, 0.5), 2),
        "connect_p99_ms": round(min(percentile(connects, 0.99), 1000 * GIVE_UP_S), 2),
    }


async def run(count: int) -> list[Row]:
    rows: list[Row] = []
    async with Cluster.create(nodes=SERVERS + 1, tcp_ports=(PORT,), udp_ports=()) as cluster:
        await cluster.add_namespace("ns1")
        async with cluster.store() as store:
            resources = ResourceClient(store)
            for number in range(21):
                await resources.apply(codec.from_json(policy(number, 0)))
            servers = [
                await cluster.add_pod(f"node{number}", f"server{number}", namespace="ns1", labels={"app": "server"})
                for number in range(2, SERVERS + 2)
            ]
            for busy in (False, True):
                async with changes(resources, busy=busy):
                    for wait_s in (0.0, WAIT_S):
                        what = f"{'busy' if busy else 'quiet'}, {'waits for peers' if wait_s else 'own policy only'}"
                        rows.append(await roll_out(cluster, servers, count, wait_s, what))
    return rows


def main() -> int:
    options = parser(__doc__).parse_args()
    described = machine()
    report("start-up race", asyncio.run(run(12 if options.quick else 100)), options.json, described)
    return 0


if __name__ == "__main__":
    sys.exit(main())
