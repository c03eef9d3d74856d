"""What is said of endpoints, from what is known of the kernel."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from random import Random

import pytest

from libs.policy.output import Host, Tier, Workload, WorkloadKey
from libs.reconcile import Diff
from libs.store.memory import MemoryStore
from services.felix.core import status
from services.felix.core.status import DOWN, ERROR, UP, Kernel, Status
from services.felix.shell.status import StatusFiles, StatusReporter
from tests.unit.services.felix.table import gnp, wl, workload

A, B = wl("a"), wl("b")
WEB = workload("a", "10.0.0.1", Tier(name="default", ingress=(gnp("p"),)))
GOOD = Kernel(running=("calia", "eth0"), workloads={A: WEB}, owners={"calia": A})


@pytest.mark.parametrize(
    ("kernel", "wanted"),
    [
        (GOOD, Status(UP)),
        (replace(GOOD, running=()), Status(DOWN, "interface calia is missing or down")),
        (replace(GOOD, owners={"calia": B}), Status(DOWN, f"interface calia is that of {B}")),
        (replace(GOOD, failures={"interface calia": "sysctl"}), Status(DOWN, "sysctl")),
        (replace(GOOD, failures={"interface calib": "sysctl"}), Status(UP)),
        (replace(GOOD, failures={"route 10.0.0.1/32": "no"}), Status(ERROR, "route 10.0.0.1/32: no")),
        (replace(GOOD, refused={gnp("p"): "bad"}), Status(ERROR, "gnp/p: bad")),
        (replace(GOOD, refused={"kns.ns1": "bad"}, running=()), Status(ERROR, "kns.ns1: bad")),
        (replace(GOOD, refused={gnp("q"): "bad", "kns.ns2": "bad"}), Status(UP)),
        (replace(GOOD, refused_interfaces={"calia": "bad"}), Status(ERROR, "bad")),
        (replace(GOOD, workloads={}), Status(ERROR, "ruleset not applied: not yet")),
        (
            replace(GOOD, workloads={A: workload("a", "10.0.0.2")}, failures={"nftables": "no memory"}),
            Status(ERROR, "ruleset not applied: no memory"),
        ),
        (replace(GOOD, failures={"bandwidth calia": "no ifb"}), Status(UP, "its bandwidth is not limited: no ifb")),
        (replace(GOOD, failures={"nftables": "no memory"}), Status(UP)),  # of somebody else's change
    ],
)
def test_of_a_workload(kernel: Kernel, wanted: Status) -> None:
    assert status.of_workload(A, WEB, kernel) == wanted


def test_a_workload_that_is_switched_off_is_down() -> None:
    off = workload("a", "10.0.0.1", state="inactive")
    assert status.of_workload(A, off, replace(GOOD, workloads={A: off})) == Status(DOWN, "administratively down")


@pytest.mark.parametrize(
    ("host", "interfaces", "wanted"),
    [
        (Host(name="eth0"), {"eth0"}, UP),
        (Host(name="eth1"), {"eth1"}, DOWN),
        (Host(name="eth0"), (), DOWN),
        (Host(name="*"), {"*"}, UP),
        (Host(expected4=("192.0.2.1",)), {"eth0", "eth1"}, UP),
        (Host(expected4=("192.0.2.1",)), (), DOWN),
    ],
)
def test_of_a_host_endpoint(host: Host, interfaces: set[str], wanted: str) -> None:
    kernel = replace(GOOD, hosts={"h": host}, of_hosts={"h": interfaces})
    assert status.of_host("h", host, kernel).status == wanted
    assert status.of_host("h", host, replace(kernel, refused_hosts={"h": "bad"})) == Status(ERROR, "bad")
    assert status.of_host("h", host, replace(kernel, hosts={})).status == ERROR


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (WorkloadKey("k8s", "default/testpod1", "eth0"), "k8s default%2Ftestpod1 eth0"),
        (WorkloadKey("k8/s", "a b/c%", "eth/0"), "k8%2Fs a%20b%2Fc%25 eth%2F0"),
        (WorkloadKey("o", "n/x.y-z_~$&+=:@", "e"), "o n%2Fx.y-z_~$&+=:@ e"),
    ],
)
def test_files_are_named_as_calico_names_them(key: WorkloadKey, name: str) -> None:
    assert status.file_name(key) == name


def test_keys_in_etcd_are_calicos() -> None:
    found = status.etcd_values("n1", {A: Status(UP), "h/1": Status(ERROR, "why")})
    assert {key: json.loads(value) for key, value in found.items()} == {
        "/calico/felix/v2/no-region/host/n1/workload/k8s/ns1%2fa/endpoint/eth0": {"status": "up"},
        "/calico/felix/v1/host/n1/endpoint/h%2f1": {"status": "error"},
    }
    assert all(key.startswith(status.etcd_prefixes("n1")) for key in found)
    assert not any(key.startswith(status.etcd_prefixes("n")) for key in found)


async def test_a_file_that_someone_removed_or_changed_is_put_right(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("services.felix.shell.status.RESYNC_S", 0.01)
    told: list[tuple[object, Status]] = []
    reporter = StatusReporter(
        "n1",
        None,
        random=Random(1),
        publish=lambda key, what: told.append((key, what)),  # type: ignore[arg-type]
    )
    reporter.configure(tmp_path, in_etcd=False, delay_s=1.0)
    reporter.update({A: Status(UP), "h": Status(DOWN, "why")}, {A: WEB})
    reporter.update({A: Status(UP), "h": Status(DOWN, "why")}, {A: WEB})
    assert told == [(A, Status(UP)), ("h", Status(DOWN, "why"))]
    name, wanted = status.file_name(A), status.file_content(WEB)

    async def holds() -> None:
        deadline = time.monotonic() + 30
        while (found := [(path.name, path.read_bytes()) for path in tmp_path.iterdir()]) != [(name, wanted)]:
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0)

    task = asyncio.create_task(reporter.run())
    try:
        await holds()
        (tmp_path / name).write_text("changed")
        await holds()
        (tmp_path / name).unlink()
        (tmp_path / "stranger").write_text("")
        await holds()
        reporter.update({}, {})
        assert {key for key, what in told[2:] if what == Status(DOWN, "endpoint is gone")} == {A, "h"}
    finally:
        task.cancel()


async def test_keys_go_when_reporting_ends_in_the_middle_of_a_write() -> None:
    class Store(MemoryStore):
        async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
            reporter.configure(None, in_etcd=False, delay_s=0.0)
            return await super().put(key, value, lease=lease)

    store = Store()
    reporter = StatusReporter("n1", store, random=Random(1), publish=lambda key, what: None)
    reporter.configure(None, in_etcd=True, delay_s=0.0)
    reporter.update({A: Status(UP)}, {A: WEB})
    task = asyncio.create_task(reporter.run())
    try:
        deadline = time.monotonic() + 30
        while not (written := bool((await store.list("/calico/")).revision > 1)) or (await store.list("/calico/")).kvs:
            assert time.monotonic() < deadline, written
            await asyncio.sleep(0.01)
    finally:
        task.cancel()


def test_files_of_the_directory_are_all_ours(tmp_path) -> None:
    driver = StatusFiles(tmp_path / "new" / "endpoint-status")
    other = Workload(name="calib")

    async def story() -> None:
        assert await driver.read() == {}
        assert await driver.apply(Diff({"a": status.file_content(WEB)}, {"was not there"})) == {}
        assert json.loads((await driver.read())["a"]) == {
            "ifaceName": "calia", "mac": "", "ipv4Nets": ["10.0.0.1/32"], "ipv6Nets": ["fd00::1/128"],
        }  # fmt: skip
        too_long = "x" * 300
        failed = await driver.apply(Diff({too_long: b"", "b": status.file_content(other)}, {"a"}))
        assert failed.keys() == {too_long}
        assert (await driver.read()).keys() == {"b"}

    asyncio.run(story())
