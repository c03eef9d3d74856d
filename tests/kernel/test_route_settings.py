"""How routes to workloads are written, and what else may lead to their interfaces, in a namespace of its own."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from libs.netlink.monitor import ROUTES, Changed, Event, Monitor
from libs.netlink.netns import in_netns
from libs.netlink.routes import Route
from libs.policy.output import Block, Pool, Workload, WorkloadKey
from libs.testkit.netns import Namespace, namespace, run
from services.felix.core.mtu import PATTERN
from services.felix.core.overlay import ClusterRoutes
from services.felix.core.route_settings import RouteSettings
from services.felix.core.routing import Routing
from services.felix.drivers.interfaces import InterfaceDriver

pytestmark = pytest.mark.kernel
PODS = {4: "10.65.0.5", 6: "fd00:65::5"}
OTHERS = {4: "10.9.0.0/24", 6: "fd00:9::/64"}
POOL, BLOCK = "10.65.0.0/16", "10.65.0.0/26"
DEFAULT = RouteSettings()
FAMILIES = pytest.mark.parametrize("family", [4, 6])


class Node:
    """A felix's driver of routes with one pod, cali1, and one interface that is nobody's, up0."""

    def __init__(self, space: Namespace, settings: RouteSettings) -> None:
        self.space = space
        self.driver, self.routing = InterfaceDriver(("cali",)), Routing("n1", ClusterRoutes.ENABLED)
        self.workload = Workload(name="cali1", nets4=(f"{PODS[4]}/32",), nets6=(f"{PODS[6]}/128",))
        self.key = WorkloadKey("k8s", "ns1/web", "eth0")
        self.routing.put_workload(self.key, self.workload)
        self.routing.put_pool(POOL, Pool(cidr=POOL))
        self.routing.put_block(BLOCK, Block(cidr=BLOCK, node="n1"))
        self._wake = asyncio.Event()
        self.driver.configure(PATTERN, False, settings)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.driver.watch(self._wake.set))
            while True:
                await self.driver.step(self.routing, {self.key: self.workload})
                await self._wake.wait()
                self._wake.clear()

    def configure(self, settings: RouteSettings) -> None:
        self.driver.configure(PATTERN, False, settings)
        self._wake.set()

    def ip(self, family: int, *command: str) -> str:
        return run(self.space, ["ip", f"-{family}", *command])

    def shown(self, family: int, what: str) -> list[tuple[str, str, int]]:
        """Of each route there: device, protocol, metric."""
        found: list[dict[str, Any]] = json.loads(self.ip(family, "-j", "-N", "route", "show", what))
        return [(one.get("dev", ""), one.get("protocol", "3"), one.get("metric", 0)) for one in found]

    async def sees(self, family: int, what: str, wanted: list[tuple[str, str, int]]) -> None:
        deadline = time.monotonic() + 10
        while (found := self.shown(family, what)) != wanted:
            assert time.monotonic() < deadline, f"{what}: {found}, not {wanted}"
            await asyncio.sleep(0.02)


@asynccontextmanager
async def felix(space: Namespace, settings: RouteSettings = DEFAULT) -> AsyncIterator[Node]:
    node = Node(space, settings)
    task = asyncio.create_task(node.run())
    try:
        yield node
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await node.driver.close()


def stage(work: Callable[[Namespace], Awaitable[None]]) -> None:
    with namespace("rts") as space:
        for name in ("cali1", "up0"):
            run(space, ["ip", "link", "add", name, "type", "veth", "peer", "name", f"peer-{name}"])
            run(space, ["ip", "link", "set", f"peer-{name}", "up"])
            run(space, ["ip", "link", "set", name, "up"])
        with in_netns(f"/run/netns/{space.name}"):
            asyncio.run(_awaited(work(space)))


async def _awaited(work: Awaitable[None]) -> None:
    await work


@contextmanager
def history(dst: str) -> Iterator[list[tuple[bool, Route]]]:
    """What happens to routes of that destination: (gone, route)."""
    seen: list[tuple[bool, Route]] = []

    def note(event: Event) -> None:
        if isinstance(event, Changed) and isinstance(event.object, Route) and str(event.object.dst).startswith(dst):
            seen.append((event.gone, event.object))

    monitor = Monitor(note, ROUTES)
    monitor.start()
    try:
        yield seen
    finally:
        monitor.stop()


@FAMILIES
def test_routes_are_calicos_and_a_change_relabels_them_without_a_moment_without(family: int) -> None:
    pod = PODS[family]

    async def work(space: Namespace) -> None:
        async with felix(space) as node:
            await node.sees(family, pod, [("cali1", "3", 1024)])
            await node.sees(4, BLOCK, [("", "80", 0)])  # what is no workload's keeps its protocol and metric
            with history(pod) as seen:
                node.configure(replace(DEFAULT, protocol=99))
                await node.sees(family, pod, [("cali1", "99", 1024)])
                await until(lambda: bool(seen))
                assert [(gone, one.protocol) for gone, one in seen] == [(False, 99)], "in place"
            with history(pod) as seen:
                node.configure(replace(DEFAULT, protocol=98, priorities={4: 300, 6: 600}))
                metric = {4: 300, 6: 600}[family]
                await node.sees(family, pod, [("cali1", "98", metric)])
                await until(lambda: len(seen) == 2)
                assert [(gone, one.protocol, one.metric) for gone, one in seen] == [
                    (False, 98, metric), (True, 99, 1024),
                ], "the new one first"  # fmt: skip
            assert node.shown(4, BLOCK) == [("", "80", 0)]

    stage(work)


@FAMILIES
@pytest.mark.parametrize("remove_external", [True, False])
@pytest.mark.parametrize(
    "old", [("80", "0"), ("3", "1024"), ("97", "1024"), ("97", "7")], ids=lambda old: "-".join(old)
)
def test_routes_of_before_a_restart_are_known_again(family: int, remove_external: bool, old: tuple[str, str]) -> None:
    """Of an earlier release, of Calico's felix, of other settings: no second route to the pod is left behind."""
    pod = PODS[family]

    async def work(space: Namespace) -> None:
        metric = ("metric", old[1]) if old[1] != "0" else ()
        run(space, ["ip", f"-{family}", "route", "add", pod, "dev", "cali1", "proto", old[0], *metric])
        async with felix(space, RouteSettings(protocol=99, remove_external=remove_external)) as node:
            await node.sees(family, pod, [("cali1", "99", 1024)])

    stage(work)


@FAMILIES
def test_what_others_route_to_workloads_goes_also_while_felix_runs(family: int) -> None:
    other = OTHERS[family]

    async def work(space: Namespace) -> None:
        run(space, ["ip", f"-{family}", "route", "add", other, "dev", "cali1", "proto", "static"])
        async with felix(space) as node:
            await node.sees(family, PODS[family], [("cali1", "3", 1024)])
            await node.sees(family, other, [])
            for extra in (("proto", "static"), ("metric", "5"), ("proto", "99", "metric", "7")):
                node.ip(family, "route", "add", other, "dev", "cali1", *extra)
                await node.sees(family, other, [])
            node.ip(family, "link", "add", "cali2", "type", "veth", "peer", "name", "cali2p")
            node.ip(family, "link", "set", "cali2", "up")
            node.ip(family, "route", "add", other, "dev", "cali2", "metric", "9")
            await node.sees(family, other, [])

    stage(work)


@FAMILIES
def test_what_is_the_kernels_bgps_or_leads_elsewhere_stays(family: int) -> None:
    """As does the same destination on an interface that is no workload's."""
    other = OTHERS[family]

    async def work(space: Namespace) -> None:
        def ip(*command: str) -> None:
            run(space, ["ip", f"-{family}", *command])

        inside = "10.8.0.1/24" if family == 4 else "fd00:8::1/64"
        ip("addr", "add", inside, "dev", "cali1", *(("nodad",) if family == 6 else ()))
        for protocol, metric in (("81", "1"), ("bird", "2"), ("186", "3")):
            ip("route", "add", other, "dev", "cali1", "proto", protocol, "metric", metric)
        ip("route", "add", other, "dev", "up0", "metric", "5")
        ip("route", "append", other, "dev", "cali1", "metric", "5")
        async with felix(space) as node:
            kept = [("cali1", "81", 1), ("cali1", "12", 2), ("cali1", "186", 3), ("up0", "3", 5)]
            await node.sees(family, other, kept)
            assert ("cali1", "2", 0 if family == 4 else 256) in node.shown(family, inside.replace("1/", "0/"))

    stage(work)


@FAMILIES
def test_external_routes_may_stay_and_the_choice_may_change(family: int) -> None:
    other = OTHERS[family]

    async def work(space: Namespace) -> None:
        lasting = RouteSettings(protocol=99, remove_external=False)
        async with felix(space, lasting) as node:
            await node.sees(family, PODS[family], [("cali1", "99", 1024)])
            node.ip(family, "route", "add", other, "dev", "cali1", "metric", "5")
            node.ip(family, "route", "add", other, "dev", "cali1", "metric", "6", "proto", "99")
            await node.sees(family, other, [("cali1", "3", 5)])
            node.driver.resync()
            node.configure(lasting)
            node.configure(replace(lasting, remove_external=True))
            await node.sees(family, other, [])
            node.configure(lasting)
            await node.sees(family, PODS[family], [("cali1", "99", 1024)])
            node.ip(family, "route", "add", other, "dev", "cali1", "metric", "5")
            node.driver.resync()
            node.configure(replace(lasting, priorities={4: 1, 6: 1}))
            await node.sees(family, PODS[family], [("cali1", "99", 1)])
            assert node.shown(family, other) == [("cali1", "3", 5)]

    stage(work)


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
