"""CNI ADD and DEL through the compiled shim, as a container runtime calls it: 200 pods one at a time, ten
and fifty at once.

    python -m benchmarks.cni [--quick] [--json FILE]

Every pod gets an IPv4 and an IPv6 address. The steps are felix's own histogram, so they are means: `ipam`, then
`endpoint` (its write to etcd) while `veth` is made, then `policy` (until the kernel holds it). The rest of an ADD is
the shim, the socket, reading what is there already, and the journal.

Naive, in the same run: what the link alone costs when it is made by commands, one process a step, with one address; and
what removing it costs when `ip` does it.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

from benchmarks.common import Row, cpu_s, machine, parser, report, spread
from libs.runtime.compile_c import compile_c
from libs.testkit.cluster import SHIM, Cluster, Pod
from libs.testkit.topology import Namespace, namespaces, remove

STEPS = ("ipam", "veth", "endpoint", "policy")
Steps = dict[str, tuple[float, float]]  # step -> (seconds in all, number)


def prepared(cluster: Cluster, names: list[str]) -> list[Pod]:
    """Pods whose namespaces exist, not plugged in yet."""
    pods = [
        Pod(name, "ns1", "node1", Namespace(f"cal-{cluster.id}-b-{name}"), {"app": f"app{number % 20}"})
        for number, name in enumerate(names)
    ]
    for pod in pods:
        pod.netns.create()
    return pods


async def timed(work: Awaitable[object]) -> float:
    """Milliseconds."""
    begun = time.monotonic()
    await work
    return (time.monotonic() - begun) * 1000


async def each(
    pods: list[Pod], at_once: int, work: Callable[[Pod], Awaitable[object]], what: str
) -> tuple[Row, list[float]]:
    """`at_once` workers take the pods one after the other."""
    samples: list[float] = []
    todo = iter(pods)

    async def worker() -> None:
        for pod in todo:
            took_ms = await timed(work(pod))
            samples.append(took_ms)

    begun = time.monotonic()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    return {"what": what, **spread(samples), "per_s": round(len(pods) / (time.monotonic() - begun), 1)}, samples


async def steps(cluster: Cluster) -> Steps:
    """From felix's histogram."""
    found: dict[str, dict[str, float]] = {}
    for line in (await cluster.felix_get("node1", "/metrics")).text.splitlines():
        if line.startswith(("felix_cni_step_seconds_sum{", "felix_cni_step_seconds_count{")):
            name, _, value = line.rpartition(" ")
            step = name.split('step="')[1].split('"')[0]
            found.setdefault(step, {})["sum" if "_sum{" in name else "count"] = float(value)
    return {step: (entry["sum"], entry["count"]) for step, entry in found.items()}


def step_rows(before: Steps, after: Steps, samples: list[float]) -> list[Row]:
    means: dict[str, float] = {}
    for step in STEPS:
        (old_total, old_number), (total, number) = before.get(step, (0.0, 0.0)), after[step]
        means[step] = (total - old_total) / max(1.0, number - old_number) * 1000
    rest = sum(samples) / len(samples) - means["ipam"] - max(means["endpoint"], means["veth"]) - means["policy"]
    rows: list[Row] = [{"what": f"  {step}", "mean_ms": round(mean, 2)} for step, mean in means.items()]
    return [*rows, {"what": "  rest", "mean_ms": round(rest, 2)}]


async def plug_and_unplug(cluster: Cluster, count: int, at_once: int) -> list[Row]:
    label = "one at a time" if at_once == 1 else f"{at_once} at once"
    pods = prepared(cluster, [f"{at_once}x{number}" for number in range(count)])
    felix = cluster.node("node1").felix.pid

    async def add(pod: Pod) -> None:
        pod.result = await cluster.cni("ADD", pod)

    before, used_s = await steps(cluster), cpu_s(felix)
    row, samples = await each(pods, at_once, add, f"ADD, {label}")
    row["felix_cpu_ms"] = round((cpu_s(felix) - used_s) / count * 1000, 1)
    rows = [row, *step_rows(before, await steps(cluster), samples)]
    used_s = cpu_s(felix)
    row, _ = await each(pods, at_once, lambda pod: cluster.cni("DEL", pod), f"DEL, {label}")
    row["felix_cpu_ms"] = round((cpu_s(felix) - used_s) / count * 1000, 1)
    for pod in pods:
        pod.netns.delete()
    return [*rows, row]


def by_commands(cluster: Cluster, times: int) -> list[Row]:
    """The veth pair, address, routes and a sysctl, each by a process of its own, in the node's namespace."""
    node = cluster.node("node1").namespace
    made: list[float] = []
    removed: list[float] = []
    for number in range(times):
        pod = Namespace(f"cal-{cluster.id}-b-n{number}")
        pod.create()
        host, address = f"bench{number}", f"10.250.0.{number % 250 + 1}"
        commands = [
            (node, f"ip link add {host} type veth peer name eth0 netns {pod.name}"),
            (node, f"ip link set {host} up"),
            (pod, "ip link set eth0 up"),
            (pod, f"ip addr add {address}/32 dev eth0"),
            (pod, "ip route add 169.254.1.1 dev eth0 scope link"),
            (pod, "ip route add default via 169.254.1.1 dev eth0"),
            (node, f"ip route add {address} dev {host} scope link"),
            (node, f"sysctl -q -w net.ipv4.conf.{host}.proxy_arp=1"),
        ]
        made.append(run_all(commands))
        removed.append(run_all([(node, f"ip link del {host}")]))
        pod.delete()
    return [
        {"what": "naive: the link alone, by commands", **spread(made)},
        {"what": "naive: `ip link del`", **spread(removed)},
    ]


def run_all(commands: list[tuple[Namespace, str]]) -> float:
    """Milliseconds."""
    begun = time.monotonic()
    for space, command in commands:
        subprocess.run(["nsenter", f"--net={space.path}", *command.split()], check=True, capture_output=True)
    return (time.monotonic() - begun) * 1000


async def shim_alone(times: int) -> Row:
    """VERSION, which the shim answers itself: what starting any plugin costs the runtime."""
    shim = compile_c(SHIM)

    async def version() -> None:
        process = await asyncio.create_subprocess_exec(
            shim, env={"CNI_COMMAND": "VERSION"}, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        await process.communicate(b'{"cniVersion":"1.0.0"}')

    return {"what": "the shim alone (VERSION)", **spread([await timed(version()) for _ in range(times)])}


async def run(count: int) -> list[Row]:
    rows: list[Row] = []
    async with Cluster.create(nodes=2) as cluster:
        await cluster.add_namespace("ns1")
        try:
            for at_once in (1, 10, 50):
                rows += await plug_and_unplug(cluster, count, at_once)
            rows.append(await shim_alone(50))
            rows += by_commands(cluster, min(30, count))
        finally:
            remove(namespaces(f"cal-{cluster.id}-b-"))
    return rows


def main() -> int:
    options = parser(__doc__).parse_args()
    described = machine()
    report("CNI", asyncio.run(run(20 if options.quick else 200)), options.json, described)
    return 0


if __name__ == "__main__":
    sys.exit(main())
