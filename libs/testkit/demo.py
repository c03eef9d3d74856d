"""`./dev demo`, `up`, `down`, `shell`: a cluster on this machine for people.

demo: start everything, plug nine pods, apply the quickstart's files one by one with calicoctl, try every connection,
and compare with what a person wrote down beforehand. up: the same without policies, left running. A cluster that is
left running belongs to a process in the background, whose number stands in STATE; `down` ends it, and it removes all it
made.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from libs.model.node import Node
from libs.resources.client import ResourceClient
from libs.testkit import quickstart
from libs.testkit.bootstrap import nodes_only
from libs.testkit.cluster import Cluster, Pod
from libs.testkit.quickstart import Quickstart, Stage
from libs.testkit.reach import Verdict
from libs.testkit.sweep import RUN_DIR, sweep_stale
from libs.testkit.traffic import Load

PROJECT = Path(__file__).resolve().parents[2]
STATE = RUN_DIR / "dev.json"
SAMPLES = 20  # changes timed for "apply to enforcement"
# How pods of different nodes reach each other: vxlanMode of the pools, and what runs on every node for it beside felix.
# With an overlay the third node is in a subnet of its own, behind a router that knows no pods.
NETWORKING = {
    "none": ("Never", ()),
    "bgp": ("Never", ("bgp",)),
    "vxlan": ("Always", ("node",)),
    "vxlan-crosssubnet": ("CrossSubnet", ("node",)),
}
FAR = ("node3",)
KILLED = "node2"
TUNNELS_S = 30.0
ROUTES_S = 60.0

say = Console(stderr=True, highlight=False)
show = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


class Failure(Exception):
    """Told to the user without a trace."""


async def calicoctl(cluster: Cluster, *arguments: str) -> str:
    """Its standard output. Raises Failure with what it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.calicoctl", *arguments,
        env={**os.environ, **cluster.outside_env()}, cwd=PROJECT,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    if process.returncode != 0:
        raise Failure(f"calicoctl {' '.join(arguments)} failed:\n{err.decode()}{out.decode()}")
    return out.decode()


class Demo:
    def __init__(self, cluster: Cluster, example: Quickstart, networking: str = "none") -> None:
        self.cluster = cluster
        self.networking = networking
        self.example = example
        self.pods: dict[str, Pod] = {}
        self.times_ms: dict[str, float] = {}
        self.matrices: list[dict[str, Any]] = []

    async def begin(self) -> None:
        with self._timed("cluster up"):
            await self.cluster.start()
        await self._apply(self.example.stages[0])
        mode, _ = NETWORKING[self.networking]
        if mode != "Never":
            with self._timed(f"networking {self.networking}"):
                await self._encapsulate(mode)
        with self._timed("nine pods"):
            for spec in self.example.pods:
                pod = await self.cluster.add_pod(
                    spec.node, spec.name, namespace=spec.namespace, labels=spec.labels, annotations=spec.annotations
                )
                self.pods[spec.name] = pod
        say.print("  " + "  ".join(f"{pod.name} {pod.address(4)}" for pod in self.pods.values()))

        if self.networking == "bgp":
            with self._timed("routes from all to all"):
                await asyncio.to_thread(self._wait_for_routes)

    def _wait_for_routes(self) -> None:
        """Until every node has a learned route to every pod of the others. Raises Failure."""
        wanted = [
            (node, str(pod.address(family)))
            for node in self.cluster.nodes
            for pod in self.pods.values()
            if pod.node != node.name
            for family in self.example.families
        ]
        deadline = time.monotonic() + ROUTES_S
        for node, address in wanted:
            command = ["ip", "-n", node.namespace.name, "route", "show", "match", address, "proto", "81"]
            if ":" in address:
                command.insert(3, "-6")
            while not subprocess.run(command, capture_output=True, text=True, check=True).stdout:
                if time.monotonic() > deadline:
                    raise Failure(f"{node.name} has no route to {address} within {ROUTES_S:g} s")
                time.sleep(0.05)

    async def run_stages(self) -> bool:
        """True when every cell of every matrix is as expected."""
        good = True
        for number, stage in enumerate(self.example.stages):
            if number:
                await self._apply(stage)
            good &= await self._try(stage)
        return good

    async def _apply(self, stage: Stage) -> None:
        for path in stage.apply:
            with self._timed(f"apply {path.name}"):
                await calicoctl(self.cluster, "apply", "-f", str(path), "--wait", "--timeout", "30s")

    async def _try(self, stage: Stage) -> bool:
        """Every connection, in every family, at once. A cell is right when all families are."""
        keys = list(stage.expected)
        cells: list[dict[str, Any]] = []
        with self._timed(f"try {stage.name}"):
            for family in self.example.families:
                questions = [(self.pods[a], self.pods[b], port, "tcp") for a, b, port in keys]
                verdicts = await self.cluster.reach(questions, family=family)  # type: ignore[arg-type]
                cells += [
                    {"from": a, "to": b, "port": port, "family": family,
                     "expected": stage.expected[a, b, port], "actual": _word(verdict)}
                    for (a, b, port), verdict in zip(keys, verdicts, strict=True)
                ]  # fmt: skip
        self.matrices.append({"name": stage.name, "cells": cells})
        wrong = [cell for cell in cells if cell["expected"] != cell["actual"]]
        show.print(self._table(stage, cells))
        for cell in wrong:
            show.print(
                f"  [red]{cell['from']} → {cell['to']}:{cell['port']} (IPv{cell['family']}): "
                f"expected {cell['expected']}, got {cell['actual']}[/red]"
            )
        right = len(cells) - len(wrong)
        show.print(f"  {stage.name}: {right} of {len(cells)} connections as expected\n")
        return not wrong

    def _table(self, stage: Stage, cells: list[dict[str, Any]]) -> Table:
        """Rows connect to columns; a mark for each port; a wrong one is red. Beside it what was expected."""
        names = [pod.name for pod in self.example.pods]
        table = Table(title=f"{stage.name}: ports {', '.join(map(str, self.example.ports))}   (actual | expected)")
        table.add_column("from \\ to")
        for name in names:
            table.add_column(name, justify="center")
        by_key: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
        for cell in cells:
            by_key.setdefault((cell["from"], cell["to"], cell["port"]), []).append(cell)
        for source in names:
            row: list[Text] = []
            for target in names:
                if source == target:
                    row.append(Text("-"))
                    continue
                actual, expected = Text(), ""
                for port in self.example.ports:
                    group = by_key[source, target, port]
                    wrong = any(cell["actual"] != cell["expected"] for cell in group)
                    mark = "✓" if all(cell["actual"] == "allow" for cell in group) else "·"
                    actual.append("✗" if wrong else mark, style="red" if wrong else "")
                    expected += "✓" if group[0]["expected"] == "allow" else "·"
                row.append(actual + Text(f" {expected}", style="dim"))
            table.add_row(source, *row)
        return table

    async def _encapsulate(self, mode: str) -> None:
        """All pools; then the node services give tunnel addresses."""
        async with self.cluster.store() as store:
            resources = ResourceClient(store)
            for pool in (await resources.list("IPPool")).items:
                spec = json.dumps({"spec": {"vxlanMode": mode}})
                await calicoctl(self.cluster, "patch", "ippool", str(pool.metadata.name), "-p", spec)
            deadline = time.monotonic() + TUNNELS_S
            while missing := [node.metadata.name for node in await _nodes(resources) if not _has_tunnels(node)]:
                if time.monotonic() > deadline:
                    raise Failure(f"no tunnel addresses within {TUNNELS_S:g} s: {', '.join(map(str, missing))}")
                await asyncio.sleep(0.05)

    async def survive_kills(self) -> bool:
        """New connections between nodes while a service of one of them is dead: True when none was lost."""
        parts = ["felix", *(("bgp",) if self.networking == "bgp" else ())]
        return all([await self._survive_a_kill(part) for part in parts])

    async def _survive_a_kill(self, part: str) -> bool:
        allowed = [key for key, verdict in self.example.stages[-1].expected.items() if verdict == "allow"]
        across = [
            self.cluster.flow(self.pods[a], self.pods[b], port, family=family)
            for a, b, port in allowed
            if KILLED in (self.pods[a].node, self.pods[b].node) and self.pods[a].node != self.pods[b].node
            for family in self.example.families
        ]
        with self._timed(f"kill -9 of {part} on {KILLED}"), Load(tcp=across, tcp_per_s=100) as load:
            await asyncio.to_thread(_wait_for, load, 50)
            if part == "felix":
                self.cluster.kill_felix(KILLED)
            else:
                self.cluster.node(KILLED).daemons[part].kill()
            await asyncio.to_thread(_wait_for, load, 150)
            if part == "felix":
                await self.cluster.start_felix(KILLED)
            else:
                await self.cluster.restart_daemon(KILLED, part)
            await asyncio.to_thread(_wait_for, load, 50)
        result = load.result
        show.print(
            f"  kill -9 of {part}: {result.tcp_ok} of {result.tcp_opened} connections between nodes came through\n"
        )
        return result.lost_nothing

    async def time_enforcement(self) -> None:
        """From handing a policy to etcd to the first packet treated the new way, on two nodes, many times."""
        from libs.testkit.enforcement import measure

        source, target = self.pods["monitor"], self.pods["vault"]
        async with self.cluster.store() as store:
            samples = await measure(self.cluster, store, source, target, port=9090, changes=SAMPLES)
        self.times_ms["apply to enforcement, median"] = round(statistics.median(samples), 2)
        self.times_ms["apply to enforcement, maximum"] = round(max(samples), 2)

    @contextlib.contextmanager
    def _timed(self, what: str) -> Any:
        started = time.monotonic()
        say.print(f"{what} …", end="")
        try:
            yield
        except BaseException:
            say.print(" [red]failed[/red]")
            raise
        took = time.monotonic() - started
        self.times_ms[what] = round(took * 1000, 1)
        say.print(f" {took:.2f} s")

    def report(self) -> dict[str, Any]:
        return {"matrices": self.matrices, "times_ms": self.times_ms}


def _wait_for(load: Load, connections: int) -> None:
    """Until so many more were opened; to be called in a thread."""
    wanted = load.snapshot().tcp_opened + connections
    while load.snapshot().tcp_opened < wanted:
        time.sleep(0.02)


async def _nodes(resources: ResourceClient) -> list[Node]:
    return [node for node in (await resources.list("Node")).items if isinstance(node, Node)]


def _has_tunnels(node: Node) -> bool:
    return bool(node.spec.ipv4_vxlan_tunnel_addr and node.spec.ipv6_vxlan_tunnel_addr)


def _word(verdict: Verdict) -> str:
    return str(verdict.value)


# --- a cluster that is left running ----------------------------------------------------------------------------------


def state() -> dict[str, Any] | None:
    """Of the cluster that `up` or `demo --keep` left, if its process lives."""
    try:
        found: dict[str, Any] = json.loads(STATE.read_text())
        os.kill(found["pid"], 0)
    except (OSError, ValueError, KeyError):
        return None
    return found


def leave_running(demo: Demo) -> None:
    """Write down how to find the cluster, and tell the user."""
    cluster = demo.cluster
    namespaces = {node.name: node.namespace.name for node in cluster.nodes}
    namespaces |= {pod.name: pod.netns.name for pod in demo.pods.values()}
    STATE.write_text(
        json.dumps(
            {
                "pid": os.getpid(),
                "directory": str(cluster.directory),
                "env": cluster.outside_env(),
                "namespaces": namespaces,
            },
            indent=1,
        )
    )
    exports = " ".join(f"{name}={value}" for name, value in cluster.outside_env().items())
    show.print(
        f"""The cluster is running; its logs are in {cluster.directory}
  ./dev shell node1                      a shell inside a node (or a pod: ./dev shell web)
  export {exports}
  ./dev run calicoctl get wep -A -o wide
  ./dev run calicoctl tap                the bus, readable
  ./dev down                             end it""",
        soft_wrap=True,
    )


async def until_told() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()


async def run(options: argparse.Namespace, ready: int | None) -> int:
    """The whole life of a cluster. ready: descriptor on which the exit status is written once it is left running."""
    sweep_stale()
    example = quickstart.load()
    mode, daemons = NETWORKING[options.networking]
    far = FAR if mode != "Never" else ()
    cluster = Cluster.create(
        nodes=options.nodes, tcp_ports=example.ports, udp_ports=(), fill=nodes_only, far=far, daemons=daemons
    )
    demo = Demo(cluster, example, options.networking)
    status = 1
    try:
        await demo.begin()
        if options.verb == "demo":
            good = await demo.run_stages()
            status = 0 if await demo.survive_kills() and good else 1
            await demo.time_enforcement()
            _print_times(demo.times_ms)
            if options.json is not None:
                options.json.write_text(json.dumps(demo.report(), indent=1))
        else:
            status = 0
        if ready is not None:
            leave_running(demo)
            os.write(ready, bytes([status]))
            os.close(ready)
            _detach(cluster.directory / "demo.log")
            await until_told()
    finally:
        say.print("cleaning up …", end="")
        await cluster.stop()
        if ready is not None:
            STATE.unlink(missing_ok=True)
        say.print(" done")
    return status


def _detach(log: Path) -> None:
    """From here on what we print goes to a file: the terminal belongs to the user again."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(descriptor, number)
    os.close(descriptor)


def _print_times(times_ms: dict[str, float]) -> None:
    table = Table(title="times")
    table.add_column("what")
    table.add_column("ms", justify="right")
    for what, value in times_ms.items():
        table.add_row(what, f"{value:,.1f}")
    show.print(table)


def keep(arguments: list[str]) -> int:
    """Run in a session of its own and come back when the cluster is left running, or could not be."""
    if state() is not None:
        say.print("a cluster is running already; ./dev down ends it")
        return 1
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "libs.testkit.demo", *arguments, "--ready-fd", str(writer)]
    child = subprocess.Popen(command, pass_fds=[writer], start_new_session=True, stdin=subprocess.DEVNULL)
    os.close(writer)
    try:
        told = os.read(reader, 1)
    except KeyboardInterrupt:
        child.send_signal(signal.SIGINT)
        child.wait()
        return 130
    return told[0] if told else child.wait() or 1


def down() -> int:
    found = state()
    if found is not None:
        os.kill(found["pid"], signal.SIGTERM)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                os.kill(found["pid"], 0)
            except OSError:
                break
            time.sleep(0.05)
        else:
            say.print(f"process {found['pid']} does not end")
            return 1
    removed = sweep_stale()
    say.print("stopped" if found else f"nothing was running{', swept: ' + ', '.join(removed) if removed else ''}")
    return 0


def shell(name: str) -> int:
    """Becomes the shell; returns only when there is none to become."""
    found = state()
    if found is None:
        say.print("no cluster is running; ./dev up starts one")
        return 1
    if name not in found["namespaces"]:
        say.print(f"{name!r} is neither a node nor a pod; there are {', '.join(found['namespaces'])}")
        return 1
    env = {**os.environ, **found["env"], "PS1": f"{name} \\w # "}
    command = ["ip", "netns", "exec", found["namespaces"][name], "bash", "--norc"]
    return os.execvpe(command[0], command, env)


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev", description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in (("demo", "the whole demonstration"), ("up", "a cluster for development")):
        one = verbs.add_parser(verb, help=text)
        one.add_argument("--nodes", type=int, default=3, help="number of nodes (the quickstart needs three)")
        one.add_argument(
            "--networking",
            choices=list(NETWORKING),
            default="none",
            help="how pods of different nodes reach each other",
        )
        one.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
        one.add_argument("--json", type=Path, help="write matrices and times to this file")
        if verb == "demo":
            one.add_argument("--keep", action="store_true", help="leave the cluster running")
    verbs.add_parser("down", help="end the cluster that is running")
    enter = verbs.add_parser("shell", help="a shell inside a node or pod")
    enter.add_argument("name", metavar="NODE")
    options = parser.parse_args()
    if options.verb == "down":
        return down()
    if options.verb == "shell":
        return shell(options.name)
    if options.nodes < 3:
        parser.error("the quickstart's pods need three nodes")
    if options.ready_fd is None and (options.verb == "up" or options.keep):
        return keep(sys.argv[1:])
    try:
        return asyncio.run(run(options, options.ready_fd))
    except KeyboardInterrupt:
        return 130
    except Failure as error:
        say.print(str(error), markup=False)
        return 1


if __name__ == "__main__":
    sys.exit(main())
