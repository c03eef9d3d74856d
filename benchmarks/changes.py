"""What a change costs on a node: felix's compiler and its netlink writer, in a namespace of its own.

Two changes that users make all day: a member that comes into a set of 100,000, and a policy of 100 rules that is edited
on a node with 250 pods. Each is done the naive way in the same run: `nft -f -` of that one change, which has a process
to start and the table to read. CPU seconds are those of this process, which does nothing else meanwhile.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from benchmarks.common import Row, machine, parser, percentile, report, rss_mb
from libs.nftables.kernel import KernelTransport
from libs.nftables.reconcile import TableReconciler
from libs.policy.output import (
    Action,
    IPSet,
    IPSetType,
    Policy,
    PolicyKey,
    PortRange,
    Profile,
    Rule,
    Tier,
    Workload,
    WorkloadKey,
)
from libs.testkit.netns import Namespace, namespace
from services.felix.core.options import RulesetOptions
from services.felix.core.ruleset import RulesetBuilder

WEB = PolicyKey("NetworkPolicy", "web", "ns1")
SET = "s:members"


class Node:
    """A node's tables in a network namespace."""

    def __init__(self, space: Namespace, transport: KernelTransport, options: RulesetOptions | None = None) -> None:
        self.space = space
        self.builder = RulesetBuilder(options)
        table4, table6 = (TableReconciler(transport, table) for table in RulesetBuilder.tables())
        table4.in_sync = table6.in_sync = True
        self.tables = (table4, table6)
        self._loop = asyncio.new_event_loop()

    def apply(self) -> None:
        self.builder.apply_to(*(table.desired for table in self.tables))
        for table in self.tables:
            self._loop.run_until_complete(table.step())

    def timed(self, change: Callable[[], None]) -> tuple[float, float]:
        """Milliseconds until the kernel has the change, and CPU seconds of it."""
        cpu, started = time.process_time(), time.perf_counter()
        change()
        self.apply()
        return (time.perf_counter() - started) * 1e3, time.process_time() - cpu

    def nft(self, text: str) -> float:
        started = time.perf_counter()
        command = ["ip", "netns", "exec", self.space.name, "nft", "-f", "-"]
        subprocess.run(command, input=text, text=True, check=True, capture_output=True)
        return (time.perf_counter() - started) * 1e3


def address(number: int) -> str:
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def rules(count: int, first_port: int) -> tuple[Rule, ...]:
    return tuple(
        Rule(
            action=Action.ALLOW,
            protocol="tcp",
            src_sets=(SET,),
            dst_ports=(PortRange(first_port + at, first_port + at),),
        )
        for at in range(count)
    )


def fill(node: Node, members: int, pods: int, rule_count: int) -> None:
    allow = Rule(action=Action.ALLOW)
    node.builder.set_profile("open", Profile(inbound=(allow,), outbound=(allow,)))
    node.builder.set_ipset(SET, IPSet(IPSetType.NET, frozenset(f"{address(n)}/32" for n in range(members))))
    node.builder.set_policy(WEB, Policy(tier="default", namespace="ns1", inbound=rules(rule_count, 1000)))
    for number in range(pods):
        node.builder.set_workload(
            WorkloadKey("k8s", f"ns1/p{number}", "eth0"),
            Workload(
                name=f"cali{number:08x}",
                profiles=("open",),
                nets4=(f"10.200.{number >> 8}.{number & 255}/32",),
                tiers=(Tier(name="default", ingress=(WEB,)),),
            ),
        )


def measure(members: int, pods: int, rule_count: int, rounds: int) -> list[Row]:
    with namespace("bench") as space, closing(KernelTransport(space.path)) as transport:
        node = Node(space, transport)
        load_ms, load_cpu_s = node.timed(lambda: fill(node, members, pods, rule_count))
        new = [f"{address(members + at)}/32" for at in range(rounds)]
        more = [node.timed(lambda one=one: node.builder.change_ipset(SET, [one], [])) for one in new]  # type: ignore[misc]
        less = [node.timed(lambda one=one: node.builder.change_ipset(SET, [], [one])) for one in new]  # type: ignore[misc]
        edits = [
            node.timed(
                lambda at=at: node.builder.set_policy(  # type: ignore[misc]
                    WEB, Policy(tier="default", namespace="ns1", inbound=rules(rule_count, 2000 + at))
                )
            )
            for at in range(rounds)
        ]
        kernel_set = "s-members-h"
        element = f"add element ip calico {kernel_set} {{ {address(members + rounds)} }}\n"
        naive_member = [node.nft(element) for _ in range(min(rounds, 5))]
        added = (f"add rule ip calico pi-np/ns1/web tcp dport {3000 + at} counter accept" for at in range(rule_count))
        chain = "\n".join(added)
        naive_policy = [node.nft(f"flush chain ip calico pi-np/ns1/web\n{chain}\n") for _ in range(min(rounds, 5))]

        return [
            _row(f"everything: {members:,} members, {pods} pods, {rule_count} rules", [(load_ms, load_cpu_s)]),
            _row(f"one member into a set of {members:,}", more),
            _row("one member out of it", less),
            _row(f"a policy of {rule_count} rules changed in all of them, {pods} pods", edits),
            _row("naive: the member by nft", [(ms, 0.0) for ms in naive_member]),
            _row("naive: the policy by nft", [(ms, 0.0) for ms in naive_policy]),
            {"what": "memory of this process", "p50_ms": "", "p99_ms": "", "cpu_ms": "", "mb": round(rss_mb())},
        ]


def many_policies(policies: int, pods: int, rounds: int, *, skip_blocks: bool) -> list[Row]:
    """All pods with the same policies, each of two rules and a set of twenty: load, change one, add a pod."""
    keys = tuple(PolicyKey("NetworkPolicy", f"p{number}", "ns1") for number in range(policies))
    tiers = (Tier(name="default", ingress=keys),)
    allow = Rule(action=Action.ALLOW)

    def policy(number: int, port: int, source: int | None = None) -> Policy:
        match = {"action": Action.ALLOW, "src_sets": (f"s:{number if source is None else source}",)}
        rules = (
            Rule(**match, protocol="tcp", dst_ports=(PortRange(port, port),)),  # type: ignore[arg-type]
            Rule(**match, protocol="udp", dst_ports=(PortRange(port, port),)),  # type: ignore[arg-type]
        )
        return Policy(tier="default", namespace="ns1", inbound=rules)

    def add_pod(node: Node, number: int) -> None:
        node.builder.set_workload(
            WorkloadKey("k8s", f"ns1/p{number}", "eth0"),
            Workload(
                name=f"cali{number:08x}",
                profiles=("open",),
                nets4=(f"10.200.{number >> 8}.{number & 255}/32",),
                tiers=tiers,
            ),
        )

    def load(node: Node) -> None:
        node.builder.set_profile("open", Profile(inbound=(allow,), outbound=(allow,)))
        for number, key in enumerate(keys):
            members = frozenset(f"{address(number * 20 + at)}/32" for at in range(20))
            node.builder.set_ipset(f"s:{number}", IPSet(IPSetType.NET, members))
            node.builder.set_policy(key, policy(number, 8080))
        for number in range(pods):
            add_pod(node, number)

    name = "skip blocks" if skip_blocks else "plain lists"
    with namespace("bench") as space, closing(KernelTransport(space.path)) as transport:
        node = Node(space, transport, RulesetOptions(skip_blocks=skip_blocks))
        before = _kernel_mb()
        load_ms, load_cpu = node.timed(lambda: load(node))
        memory = _kernel_mb() - before
        step = max(1, policies // rounds)
        edits = [
            node.timed(lambda at=at: node.builder.set_policy(keys[at], policy(at, 9090)))  # type: ignore[misc]
            for at in range(0, policies, step)
        ]
        fresh = [node.timed(lambda at=at: add_pod(node, pods + at)) for at in range(rounds)]  # type: ignore[misc]
        members = [
            node.timed(lambda at=at: node.builder.change_ipset(f"s:{at}", [f"{address(1 << 20 | at)}/32"], []))  # type: ignore[misc]
            for at in range(0, policies, step)
        ]
        sources = [
            node.timed(lambda at=at: node.builder.set_policy(keys[at], policy(at, 9090, at + 1)))  # type: ignore[misc]
            for at in range(0, policies - 1, step)
        ]
    all_of_it: Row = {
        "what": f"{name}: {policies:,} policies on each of {pods} pods", "p50_ms": round(load_ms, 1),
        "cpu_ms": round(load_cpu * 1e3, 1), "mb": round(memory, 1),
    }  # fmt: skip
    return [
        all_of_it,
        _row(f"{name}: one policy's two rules changed", edits),
        _row(f"{name}: one policy asks for another set", sources),
        _row(f"{name}: one pod added", fresh),
        _row(f"{name}: one member added", members),
    ]


def _kernel_mb() -> float:
    """What the kernel holds for itself: objects, large allocations, counters (one for each core)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    fields = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return (fields["SUnreclaim"] + fields["VmallocUsed"] + fields["Percpu"]) / 1024


def _row(what: str, samples: list[tuple[float, float]]) -> Row:
    return {
        "what": what,
        "p50_ms": round(percentile([ms for ms, _ in samples], 0.5), 2),
        "p99_ms": round(percentile([ms for ms, _ in samples], 0.99), 2),
        "cpu_ms": round(sum(cpu for _, cpu in samples) / len(samples) * 1e3, 2),
    }


def main() -> None:
    options = parser(__doc__).parse_args()
    described = machine()
    shape = (2_000, 20, 20, 5) if options.quick else (100_000, 250, 100, 50)
    large = (50, 10, 5) if options.quick else (1_000, 250, 50)
    rows = measure(*shape)
    for skip_blocks in (False, True):
        rows += many_policies(*large, skip_blocks=skip_blocks)
    report("A change on a node", rows, options.json, described)


if __name__ == "__main__":
    main()
