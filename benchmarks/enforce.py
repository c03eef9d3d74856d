"""From a client's put to the first packet treated the new way: two nodes, real packets, 200 changes at each size.

    python -m benchmarks.enforce [--quick] [--json FILE]

Sizes: nothing else; 200 policies on the probed endpoint itself; then 100 pods more on its node and 1,000 policies of
ten rules, as Calico was measured (103 endpoints, 1,002 policies). At the last size felix is also started again, from
the kernel's state as it left it: time until ready, memory.

Naive, in the same run on the same node with the same ruleset: one `nft -f` process that replaces the node's table, as
agents do that render everything and hand it to a command; and one `nft -f -` process that changes one rule. Both are
only the last step of such an agent: no watch, no calculation, no distribution.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import policies
from benchmarks.common import Row, cpu_s, machine, parser, report, rss_mb, spread
from libs.store.api import Store
from libs.testkit.cluster import Cluster, Pod
from libs.testkit.enforcement import measure, measure_changes

PORT = 9000
TABLE = "calico"
NODE = "node2"


async def both_ways(cluster: Cluster, store: Store, pods: tuple[Pod, Pod], changes: int, what: str) -> list[Row]:
    done = await measure_changes(cluster, store, *pods, port=PORT, changes=changes)
    rows: list[Row] = []
    for name, deny in (("deny", True), ("allow", False)):
        row: Row = {"what": f"{what}: {name}", **spread([change.from_put_ms for change in done if change.deny is deny])}
        acked = spread([change.from_ack_ms for change in done if change.deny is deny])
        rows.append(row | {"from_ack_p50_ms": acked["p50_ms"], "from_ack_max_ms": acked["max_ms"]})
    return rows


def nft(cluster: Cluster, *arguments: str, text: str | None = None) -> str:
    """In the namespace of NODE, where the table is. Raises CalledProcessError."""
    command = ["nsenter", f"--net={cluster.node(NODE).namespace.path}", "nft", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, input=text).stdout


def replace_table(cluster: Cluster, times: int) -> Row:
    """`nft -f` with the whole of the IPv4 table, as one transaction. Felix must not run: it would put its own back."""
    samples: list[float] = []
    listed = nft(cluster, "-s", "list", "table", "ip", TABLE)
    with TemporaryDirectory() as directory:
        script = Path(directory) / "table.nft"
        script.write_text(f"delete table ip {TABLE}\n{listed}")
        for _ in range(times):
            begun = time.monotonic()
            nft(cluster, "-f", str(script))
            samples.append((time.monotonic() - begun) * 1000)
    return {"what": "naive: `nft -f` of the whole table (last step only)", **spread(samples)}


def change_one_rule(cluster: Cluster, times: int) -> Row:
    """`nft -f -` that rewrites a chain of one rule in a table of its own, which costs the same and disturbs nobody."""
    samples: list[float] = []
    nft(cluster, "-f", "-", text="add table ip bench\nadd chain ip bench c\n")
    for number in range(times):
        verdict = "drop" if number % 2 else "accept"
        begun = time.monotonic()
        nft(cluster, "-f", "-", text=f"flush chain ip bench c\nadd rule ip bench c {verdict}\n")
        samples.append((time.monotonic() - begun) * 1000)
    nft(cluster, "delete", "table", "ip", "bench")
    return {"what": "naive: `nft -f -` for one rule (last step only)", **spread(samples)}


async def settled(cluster: Cluster, store: Store, pods: tuple[Pod, Pod]) -> None:
    """What was written before is in the kernel: changes are applied in order, and this one has been seen."""
    await measure(cluster, store, *pods, port=PORT, changes=2)


async def restart(cluster: Cluster, times: int) -> Row:
    """From starting felix on NODE, the kernel as it was left, until it says that it is ready; CPU and memory then."""
    seconds: list[float] = []
    used: list[float] = []
    for _ in range(times):
        cluster.kill_felix(NODE)
        begun = time.monotonic()
        await cluster.start_felix(NODE)
        seconds.append(time.monotonic() - begun)
        used.append(cpu_s(cluster.node(NODE).felix.pid))
    return {
        "what": "felix started again, until ready",
        "count": times,
        "p50_ms": round(statistics.median(seconds) * 1000),
        "max_ms": round(max(seconds) * 1000),
        "cpu_ms": round(statistics.median(used) * 1000),
        "rss_mb": round(rss_mb(cluster.node(NODE).felix.pid)),
    }


async def run(changes: int, own: int, pods: int, others: int) -> list[Row]:
    rows: list[Row] = []
    async with Cluster.create(nodes=2, tcp_ports=(8080,), udp_ports=()) as cluster, cluster.store() as store:
        await cluster.add_namespace("ns1")
        pair = (
            await cluster.add_pod("node1", "client", namespace="ns1", labels={"app": "client"}),
            await cluster.add_pod(NODE, "server", namespace="ns1", labels={"app": "server"}),
        )
        rows += await both_ways(cluster, store, pair, changes, "ours, nothing else")

        loaded = [policies.policy(f"own{n}", "ns1", "server", [f"app{n}"], 2000 + n) for n in range(own)]
        await policies.store_all(store, loaded)
        await settled(cluster, store, pair)
        rows += await both_ways(cluster, store, pair, changes, f"ours, {own} policies on the endpoint")

        for number in range(pods):
            app = {"app": f"app{number % 20}"}
            await cluster.add_pod(NODE, f"p{number}", namespace="ns1", labels=app, probe=False)
        peers = [[f"app{(n + at) % 20}" for at in range(10)] for n in range(others)]
        loaded = [policies.policy(f"o{n}", "ns1", f"app{n % 20}", peers[n], 3000 + n) for n in range(others)]
        await policies.store_all(store, loaded)
        await settled(cluster, store, pair)
        what = f"ours, {pods} pods and {others:,} policies of 10 rules more"
        rows += await both_ways(cluster, store, pair, changes, what)
        rows.append({"what": "felix then", "rss_mb": round(rss_mb(cluster.node(NODE).felix.pid))})
        rows.append({"what": "typha then", "rss_mb": round(rss_mb(cluster.typhas[0].pid))})
        rows.append(await restart(cluster, 5))

        cluster.kill_felix(NODE)
        rows.append(replace_table(cluster, max(5, changes // 10)))
        rows.append(change_one_rule(cluster, max(5, changes // 2)))
    return rows


def main() -> int:
    options = parser(__doc__).parse_args()
    described = machine()
    sizes = (10, 20, 5, 50) if options.quick else (200, 200, 100, 1_000)
    report("apply to enforcement", asyncio.run(run(*sizes)), options.json, described)
    return 0


if __name__ == "__main__":
    sys.exit(main())
