"""The task that writes to the kernel, with everything below it pretended: order, reports, nothing too early."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from random import Random

import pytest

from libs.feed.delta import Delta
from libs.feed.feed import Apply
from libs.nftables.state import TableState
from libs.policy.output import Host, Pool, Qos, Workload, WorkloadKey
from services.felix.core.options import RulesetOptions
from services.felix.core.overlay import OverlaySettings, WantedOverlays
from services.felix.core.routing import Routing
from services.felix.core.ruleset import RulesetBuilder
from services.felix.shell.dataplane import Dataplane, Progress

pytestmark = pytest.mark.virtual_time
KEY = WorkloadKey("k8s", "ns/a", "eth0")
LIMITED = Workload(name="cali1", qos=Qos(egress_bandwidth=1_000))


class Kernel:
    """All four drivers; `did` holds what they were asked, in order."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.limited: Mapping[WorkloadKey, Workload] = {}
        self.refuse: dict[str, str] = {}
        self.unlisted = ""  # why addresses cannot be listed
        self.links_unlisted = ""
        self.ipvs = False


class Table:
    def __init__(self, kernel: Kernel, desired: TableState) -> None:
        self.desired = desired
        self._kernel = kernel

    async def step(self) -> object:
        self._kernel.did.append("table")
        return None

    def resync(self) -> None:
        self._kernel.did.append("resync table")


class Routes:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def resync(self) -> None:
        self._kernel.did.append("resync routes")

    def resync_interfaces(self) -> None:
        self._kernel.did.append("resync interfaces")

    def ipvs(self) -> bool:
        if self._kernel.links_unlisted:
            raise OSError(self._kernel.links_unlisted)
        return self._kernel.ipvs

    def host_addresses(self) -> Mapping[str, frozenset[str]]:
        if self._kernel.unlisted:
            raise OSError(self._kernel.unlisted)
        return {"eth0": frozenset({"192.0.2.1"})}

    async def step(self, routing: Routing, workloads: dict[WorkloadKey, Workload]) -> dict[str, str]:
        self._kernel.did.append("routes")
        return {}


class Bandwidth:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def resync(self) -> None:
        self._kernel.did.append("resync bandwidth")

    def interfaces_changed(self) -> None:
        self._kernel.did.append("interfaces changed")

    async def step(self, workloads: Mapping[WorkloadKey, Workload]) -> dict[str, str]:
        self._kernel.did.append("bandwidth")
        self._kernel.limited = dict(workloads)
        return dict(self._kernel.refuse)


class Overlays:
    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.new = True

    def resync(self) -> None:
        self._kernel.did.append("resync overlays")

    async def prepare(self, wanted: WantedOverlays, settings: OverlaySettings) -> tuple[bool, dict[str, str]]:
        self._kernel.did.append("tunnels made")
        return bool(wanted.enabled) and self.new, {}

    async def finish(self, wanted: WantedOverlays) -> dict[str, str]:
        self._kernel.did.append("tunnels removed")
        return {}


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def dataplane(
    kernel: Kernel,
    builder: RulesetBuilder | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Dataplane:
    tables = tuple(Table(kernel, TableState(table)) for table in RulesetBuilder.tables())
    return Dataplane(
        builder or RulesetBuilder(), (tables[0], tables[1]), Routing("n1"), Routes(kernel), Bandwidth(kernel),
        Overlays(kernel), on_progress=on_progress, random=Random(1),
    )  # fmt: skip


async def test_limits_come_after_policy_and_before_routes_and_not_before_the_snapshot() -> None:
    kernel, reports = Kernel(), list[Progress]()
    plane = dataplane(kernel, on_progress=reports.append)
    task = asyncio.create_task(plane.run())
    try:
        plane.resync_routes()
        plane.resync_bandwidth()
        await settle()
        assert kernel.did == ["resync routes", "resync overlays", "interfaces changed", "resync bandwidth"]
        kernel.did.clear()
        kernel.refuse = {"bandwidth cali1": "no"}
        plane.push(Apply(epoch=None, rev=7, seq=1, delta=Delta(workloads={KEY: LIMITED})))  # type: ignore[arg-type]
        await settle()
        assert kernel.did == ["table", "table", "bandwidth", "tunnels made", "routes", "tunnels removed"]
        assert kernel.limited == {KEY: LIMITED}
        assert reports[-1].failures == {"bandwidth cali1": "no"}
        assert reports[-1].unlimited == {"bandwidth cali1"}
        assert await plane.until(lambda: KEY in plane.workloads, 30)
        kernel.refuse = {}
        assert await plane.until(lambda: not plane.progress.failures, 30), "it is tried again unasked"
        assert reports[-1].unlimited == frozenset()
    finally:
        task.cancel()


async def test_new_tunnels_are_there_before_routes_are_resolved_and_old_ones_go_after_them() -> None:
    kernel = Kernel()
    plane = dataplane(kernel)
    pool = Pool(cidr="10.0.0.0/16", vxlan_mode="Always")
    plane.push(Apply(epoch=None, rev=7, seq=1, delta=Delta(pools={"10.0.0.0/16": pool})))  # type: ignore[arg-type]
    await plane._pass()
    assert kernel.did[-4:] == ["tunnels made", "resync routes", "routes", "tunnels removed"]


async def test_interfaces_are_compared_without_routes_and_tunnels() -> None:
    kernel = Kernel()
    plane = dataplane(kernel)
    task = asyncio.create_task(plane.run())
    try:
        plane.push(Apply(epoch=None, rev=7, seq=1, delta=Delta()))  # type: ignore[arg-type]
        assert await plane.until(lambda: plane.passes == 1, 30)
        kernel.did.clear()
        plane.resync_interfaces()
        assert await plane.until(lambda: plane.passes == 2, 30), "it wakes the dataplane"
        assert kernel.did[:2] == ["resync interfaces", "interfaces changed"]
        assert "routes" in kernel.did
    finally:
        task.cancel()


async def test_the_mode_ipvs_of_kube_proxy_is_followed_while_running_and_what_it_cannot_do_is_told() -> None:
    kernel = Kernel()
    plane = dataplane(kernel)
    plane.push(Apply(epoch=None, rev=7, seq=1, delta=Delta()))  # type: ignore[arg-type]

    async def written() -> bool:
        kernel.did.clear()
        await plane._pass()
        return "table" in kernel.did

    plane.configure(RulesetOptions(deny_action="Reject"), ())
    assert await written()
    assert not await written()
    assert not plane.problems
    kernel.ipvs = True
    assert await written()
    assert not await written()
    assert any("hook-ipvs-from" in table.desired.chains for table in plane._tables)
    plane.configure(RulesetOptions(deny_action="Reject", log_prefix="other"), ())
    assert await written()
    assert any("hook-ipvs-from" in table.desired.chains for table in plane._tables)
    assert [one.partition(":")[0] for one in plane.problems] == ["nftablesFilterDenyAction"]
    kernel.ipvs = False
    assert await written()
    assert not any("hook-ipvs-from" in table.desired.chains for table in plane._tables)
    assert not plane.problems


async def test_no_table_is_written_before_it_is_known_whether_kube_proxy_uses_ipvs() -> None:
    kernel = Kernel()
    plane = dataplane(kernel)
    kernel.ipvs, kernel.links_unlisted = True, "interrupted"
    plane.configure(RulesetOptions(), ())
    plane.push(Apply(epoch=None, rev=7, seq=1, delta=Delta()))  # type: ignore[arg-type]
    await plane._pass()
    assert plane.progress.failures == {"interfaces": "interrupted"}
    assert "table" not in kernel.did
    assert "routes" in kernel.did
    kernel.links_unlisted = ""
    await plane._pass()
    assert "table" in kernel.did
    assert any("hook-ipvs-from" in table.desired.chains for table in plane._tables)
    kernel.links_unlisted = "interrupted"
    plane.configure(RulesetOptions(log_prefix="other"), ())
    kernel.did.clear()
    await plane._pass()
    assert "table" in kernel.did, "as known before"


async def test_addresses_that_cannot_be_listed_are_told_and_asked_for_again() -> None:
    kernel = Kernel()
    builder = RulesetBuilder()
    plane = dataplane(kernel, builder)
    kernel.unlisted = "interrupted"
    plane.push(Apply(epoch=None, rev=7, seq=1, delta=Delta(hosts={"h": Host(expected4=("192.0.2.1",))})))  # type: ignore[arg-type]
    await plane._pass()
    assert plane.progress.failures == {"interfaces": "interrupted"}
    assert kernel.did[-3:] == ["tunnels made", "routes", "tunnels removed"], "all else goes on"
    kernel.unlisted = ""
    await plane._pass()
    assert plane.progress.failures == {}
    assert builder.interfaces_of_hosts() == {"h": {"eth0"}}
