"""One cluster for all tests of a module; every test cleans the policies it made."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from libs.bus import BusError
from libs.bus.applied import WaitProblem, listening
from libs.bus.config import BusConfig
from libs.bus.nats import NatsBus
from libs.resources import codec
from libs.resources.client import ResourceClient
from libs.store.etcd import EtcdStore
from libs.testkit.cluster import Cluster, Pod
from libs.testkit.patience import patient
from libs.testkit.reach import Flow, Verdict, check
from tests.marks import by_module

ALLOW, DENY = Verdict.ALLOW, Verdict.DENY
POLICY_KINDS = (
    "NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy",
    "NetworkSet", "GlobalNetworkSet",
)  # fmt: skip
BUILT_IN_TIERS = {"default", "kube-admin", "kube-baseline"}


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    by_module(items, Path(__file__).parent, "cluster")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
    report: Any = yield
    given = getattr(item, "funcargs", {}).values()
    found = {id(cluster): cluster for one in given if isinstance(cluster := getattr(one, "cluster", one), Cluster)}
    if report.failed:
        report.sections += [(f"cluster {cluster.id}", told(cluster)) for cluster in found.values()]
    return report


def told(cluster: Cluster, lines: int = 8) -> str:
    """The last words of all processes, for the report of a failure."""
    shown = []
    for path in sorted(cluster.directory.rglob("*.log")):
        tail = path.read_text(errors="replace").splitlines()[-lines:]
        shown.append("\n".join([f"--- {path.relative_to(cluster.directory)}", *(line[:400] for line in tail)]))
    return "\n".join(shown)


class World:
    """A running cluster as a user sees it."""

    def __init__(self, cluster: Cluster, store: EtcdStore, bus: NatsBus) -> None:
        self.cluster = cluster
        self.store = store
        self.bus = bus
        self.resources = ResourceClient(store)

    async def apply(self, text: str, *, timeout_s: float = 60.0) -> int:
        """Apply YAML documents one after the other; returns when every node concerned enforces them."""
        revisions: list[int] = []
        timeout_s = patient(timeout_s)
        await self.bus.wait_connected(timeout_s)  # ours may have been away with the server
        async with listening(self.bus, timeout_s) as waiter:
            for document in yaml.safe_load_all(text):
                document.setdefault("apiVersion", "projectcalico.org/v3")
                written = await self.resources.apply(codec.from_json(document))
                revisions.append(written.revision)
            await waiter.until_applied(revisions)
        return revisions[-1]

    async def delete(self, kind: str, name: str, namespace: str = "", *, timeout_s: float = 60.0) -> None:
        async with listening(self.bus, patient(timeout_s)) as waiter:
            written = await self.resources.delete(kind, name, namespace)
            await waiter.until_applied([written.revision])

    async def known(self, *nodes: str, timeout_s: float = 30.0) -> None:
        """Until the kernels of these nodes, or of all whose felix runs, hold what etcd has now. CNI ADD waits for its
        own node alone: others hear of the pod, and of its block, at about the same time. Raises WaitProblem, BusError.
        """
        names = nodes or [node.name for node in self.cluster.nodes if node.felix.running]
        newest = max(kv.mod_revision for kv in (await self.store.list("/calico/", keys_only=True)).kvs)
        async with listening(self.bus, patient(timeout_s)) as waiter:
            waiter.progress.concern(names, newest)
            await waiter.until_reached([])

    async def clean(self) -> None:
        """Remove every policy, set and tier that a test left."""
        async with listening(self.bus, patient(60.0)) as waiter:
            if revisions := await self.removed():
                await waiter.until_applied(revisions)

    async def removed(self) -> list[int]:
        """Removes every policy, set and tier that a test left, and waits for no node; the revisions."""
        revisions: list[int] = []
        for kind in (*POLICY_KINDS, "Tier"):
            for resource in (await self.resources.list(kind)).items:
                if kind == "Tier" and resource.metadata.name in BUILT_IN_TIERS:
                    continue
                meta = resource.metadata
                revisions.append((await self.resources.delete(kind, meta.name, meta.namespace or "")).revision)
        return revisions

    async def check(
        self, wanted: Sequence[tuple[Pod, Pod, int, str, Verdict]], *, families: Sequence[int] = (4, 6)
    ) -> None:
        """Every flow has its verdict now, in each family; no second chance."""
        wrong: list[str] = []
        for family in families:
            questions: Any = [(a, b, port, protocol) for a, b, port, protocol, _ in wanted]
            expected = [verdict for *_, verdict in wanted]
            verdicts = await self.cluster.reach(questions, family=family, timeout_s=0.5, wanted=expected)
            wrong += [
                f"IPv{family} {a.name} -> {b.name} {protocol}/{port}: {got}, wanted {want}"
                for (a, b, port, protocol, want), got in zip(wanted, verdicts, strict=True)
                if got != want
            ]
        assert not wrong, "\n".join(wrong)

    def run(self, where: str, *command: str) -> str:
        """A command inside a node or pod; its output. Raises CalledProcessError."""
        spaces = {node.name: node.namespace.name for node in self.cluster.nodes}
        spaces |= {pod.name: pod.netns.name for pod in self.cluster.pods()}
        argv = ["ip", "netns", "exec", spaces[where], *command]
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout

    async def metric(self, node: str, name: str) -> float:
        """A sample of a node's felix, labels included in the name where it has any."""
        text = (await self.cluster.felix_get(node, "/metrics")).text
        for line in text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[-1])
        raise LookupError(name)


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float, what: str) -> None:
    """Poll a condition of the outside world until it holds."""
    timeout_s = patient(timeout_s)
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(0.02)


async def verdicts(
    flows: list[Flow], timeout_s: float = 0.6, *, tries: int = 2, wanted: Sequence[Verdict] | None = None
) -> list[Verdict]:
    """wanted: as of `check`."""
    return await asyncio.to_thread(check, flows, timeout_s=timeout_s, tries=tries, wanted=wanted)


async def open_world(stack: AsyncExitStack, cluster: Cluster) -> World:
    await stack.enter_async_context(cluster)
    store = await stack.enter_async_context(cluster.store())
    env = {**os.environ, **cluster.outside_env()}
    bus = await stack.enter_async_context(NatsBus(BusConfig.from_env(env), name="test"))
    await bus.wait_connected(patient(30))
    world = World(cluster, store, bus)

    async def known() -> None:
        with suppress(WaitProblem, BusError):  # of a node that was stopped on purpose, the test knows
            await world.known()

    cluster.on_plugged = known
    return world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        cluster = Cluster.create(nodes=2, tcp_ports=(8080, 9090, 9091), udp_ports=(8080, 9090))
        yield await open_world(stack, cluster)
