"""`calicoctl ipam` on a real etcd: planted faults are found and repaired, exactly those; settings; splitting."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from ipaddress import IPv4Network, ip_address
from pathlib import Path
from typing import Any, TypeVar

import pytest
from click.testing import CliRunner, Result

from libs.ipam import keys
from libs.ipam.affinity import AffinityState
from libs.ipam.pools import Use
from libs.ipam.requests import AssignRequest
from libs.ipam.wire import Address
from libs.resources.client import ResourceClient
from libs.resources.release import IpamRelease
from libs.runtime import logs
from libs.testkit.servers import EtcdServer
from services.calicoctl.app import cli
from services.calicoctl.session import Environment
from services.calicoctl.version import client_version
from tests.contract.ipam_stage import Cluster, of_pod, wipe
from tests.contract.store_backends import EtcdBackend

pytestmark = pytest.mark.servers

T = TypeVar("T")


class Ctl:
    """Commands as processes of their own would run them, and work on the same etcd between them."""

    def __init__(self, server: EtcdServer) -> None:
        self.server = server

    def __call__(self, *arguments: str) -> Result:
        environment = Environment(variables={"ETCD_ENDPOINTS": self.server.endpoint})
        return CliRunner().invoke(cli, list(arguments), obj=environment)

    def good(self, *arguments: str) -> str:
        result = self(*arguments)
        assert result.exit_code == 0, result.output + repr(result.exception)
        return result.stdout

    def bad(self, *arguments: str) -> str:
        result = self(*arguments)
        assert result.exit_code in (1, 2), result.output + repr(result.exception)
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        return result.stderr

    def on(self, work: Callable[[Cluster], Awaitable[T]]) -> T:
        async def inside() -> T:
            backend = EtcdBackend(self.server, request_timeout_s=30.0)
            await backend.open()
            try:
                return await work(Cluster(backend))
            finally:
                await backend.close()

        return asyncio.run(inside())


@pytest.fixture
def ctl(ipam_etcd: EtcdServer) -> Iterator[Ctl]:
    found = Ctl(ipam_etcd)

    async def prepare(cluster: Cluster) -> None:
        await wipe(cluster.store)
        await ResourceClient(cluster.store).ensure_initialized("v3.33.0", "k8s")
        await cluster.node("node1")
        await cluster.node("node2")
        await cluster.pool("four", "10.65.0.0/24", 28)
        await cluster.pool("six", "fd00:65::/112", 124)

    found.on(prepare)
    yield found
    logs.close()


async def run_pod(cluster: Cluster, name: str, node: str = "node1") -> list[Address]:
    got = await cluster.client().auto_assign(of_pod(name, node, 1, 1))
    addresses: list[Address] = [i.ip for i in (*got.v4, *got.v6)]
    await cluster.endpoint(node, name, *addresses)
    return addresses


async def tunnel(cluster: Cluster, node: str) -> Address:
    attrs = {"node": node, "type": "vxlanTunnelAddress"}
    request = AssignRequest(handle=f"vxlan-tunnel-addr-{node}", node=node, num4=1, use=Use.TUNNEL, attrs=attrs)
    address = (await cluster.client().auto_assign(request)).v4[0].ip
    await cluster.put("Node", "nodes", node, {"ipv4VXLANTunnelAddr": str(address)})
    return address


async def stored(cluster: Cluster) -> dict[str, bytes]:
    return {kv.key: kv.value for kv in (await cluster.store.list(keys.PREFIX)).kvs}


def problems(text: str) -> int:
    last = text.splitlines()[-1]
    return int(last.removeprefix("Check complete; found ").removesuffix(" problems."))


# --- check and release -----------------------------------------------------------------------------------------------


class Planted:
    """A healthy cluster with faults of every kind. `leaked`: the addresses that nobody uses."""

    def __init__(self, ctl: Ctl) -> None:
        self.leaked: list[Address] = []
        self.healthy: list[Address] = []
        ctl.on(self._plant)

    async def _plant(self, cluster: Cluster) -> None:
        self.healthy = [await tunnel(cluster, "node2")]
        for name in ("a", "b", "c"):
            self.healthy += await run_pod(cluster, name)
        self.leaked = await run_pod(cluster, "lost")
        await cluster.no_endpoint("node1", "lost")
        await cluster.endpoint("node1", "foreign", ip_address("192.0.2.1"))  # in no pool
        await cluster.endpoint("node2", "unbooked", ip_address("10.65.0.250"))  # in a pool, not allocated
        await cluster.store.put(keys.handle("idle"), b'{"block":{"10.65.0.0/28":1},"deleted":false}')
        lb = {"type": "LoadBalancer", "namespace": "ns", "service": "s"}
        await cluster.pool("lb", "10.66.0.0/24", 28, allowedUses=["LoadBalancer"])
        await cluster.client().auto_assign(
            AssignRequest(handle="lb-1", node="", num4=1, use=Use.LOAD_BALANCER, attrs=lb)
        )


def test_healthy_cluster_has_no_problems(ctl: Ctl) -> None:
    async def work(cluster: Cluster) -> None:
        await run_pod(cluster, "a")
        await tunnel(cluster, "node1")
        await cluster.client().set_config(cooldown_s=60)
        await run_pod(cluster, "cooling")
        await cluster.no_endpoint("node1", "cooling")
        await cluster.client().release_by_handle("k8s-pod-network.cooling")

    ctl.on(work)
    text = ctl.good("ipam", "check", "--show-all-ips")
    assert problems(text) == 0
    assert "Found 2 workload IPs." in text
    assert "Found 1 node tunnel IPs." in text
    assert "IPAM blocks record 5 allocations." in text
    assert "Workload(ns/node1-k8s-a-eth0)" in text


def test_check_finds_the_planted_faults_and_only_those(ctl: Ctl, tmp_path: Path) -> None:
    planted = Planted(ctl)
    before = ctl.on(stored)
    text = ctl.good("ipam", "check", "--show-problem-ips", "-o", str(tmp_path / "report"))
    lines = [line.strip() for line in text.splitlines()]
    assert [line.split()[0] for line in lines if "leaked; attrs" in line] == [str(a) for a in planted.leaked]
    assert "192.0.2.1 in use by Workload(ns/node1-k8s-foreign-eth0) is not in any active IP pool." in lines
    assert any(line.startswith("10.65.0.250 in use by") and "no IPAM allocation" in line for line in lines)
    assert "idle doesn't have any active IPs." in lines
    assert problems(text) == 5
    assert ctl.on(stored) == before  # looking changes nothing
    report = json.loads((tmp_path / "report").read_text())
    assert [ip for ip, (one,) in report["allocations"].items() if not one["inUse"]] == sorted(map(str, planted.leaked))


def test_report_has_calicos_form(ctl: Ctl, tmp_path: Path) -> None:
    Planted(ctl)
    ctl.good("ipam", "check", "-o", str(tmp_path / "report"))
    raw = (tmp_path / "report").read_text()
    report: dict[str, Any] = json.loads(raw)
    assert raw == json.dumps(report, indent=2)  # two spaces, as Go's MarshalIndent
    assert list(report) == [
        "version", "clusterGUID", "datastoreLocked", "clusterInformationRevision", "clusterType", "allocations",
        "leakedHandles",
    ]  # fmt: skip
    (lost,) = [one for (one,) in report["allocations"].values() if one.get("pod") == "lost" and ":" not in one["ip"]]
    sequence = lost.pop("sequenceNumber")
    assert isinstance(sequence, int)
    assert lost == {
        "ip": lost["ip"], "handle": "k8s-pod-network.lost", "pod": "lost", "namespace": "ns", "node": "node1",
        "inUse": False, "owners": None,
    }  # fmt: skip
    (used,) = [one for (one,) in report["allocations"].values() if one.get("type") == "vxlanTunnelAddress"]
    assert (used["inUse"], used["owners"]) == (True, ["Node(node2)"])
    (handle,) = report["leakedHandles"]
    assert (handle["ID"], handle["UID"]) == ("idle", None)
    assert handle["Revision"].isdigit()
    assert report["version"] == client_version()


def test_release_from_report_frees_the_leaks_and_nothing_else(ctl: Ctl, tmp_path: Path) -> None:
    planted = Planted(ctl)
    early, late = str(tmp_path / "early"), str(tmp_path / "late")
    ctl.good("ipam", "check", "-o", early)

    async def another(cluster: Cluster) -> None:  # leaked in the second report only, so perhaps just being made
        addresses = await run_pod(cluster, "recent")
        await cluster.no_endpoint("node1", "recent")
        planted.healthy += addresses

    ctl.on(another)
    assert "not locked" in ctl.bad("ipam", "release", "--from-report", early)
    assert ctl.good("datastore", "migrate", "lock") == "Datastore locked.\n"
    assert "stale" in ctl.bad("ipam", "release", "--from-report", early)
    ctl.good("ipam", "check", "-o", late)
    text = ctl.good("ipam", "release", "--from-report", early, "--from-report", late)
    assert "Released 2 IPs successfully" in text
    assert "Released 1 handles; 0 skipped" in text

    async def held(cluster: Cluster) -> set[Address]:
        return {a.address for block in await cluster.client().blocks() for a in block.allocated()}

    now = ctl.on(held)
    assert not now & set(planted.leaked)
    assert now >= set(planted.healthy)
    assert ctl.good("datastore", "migrate", "unlock") == "Datastore unlocked.\n"
    again = ctl.good("ipam", "check")
    assert "Found 2 IPs that are allocated in IPAM but not actually in use." in again  # of the recent pod
    assert problems(again) == 4


def test_address_given_anew_since_the_report_is_not_released(ctl: Ctl, tmp_path: Path) -> None:
    planted = Planted(ctl)
    report = str(tmp_path / "r")
    ctl.good("datastore", "migrate", "lock")
    ctl.good("ipam", "check", "-o", report)

    async def reuse(cluster: Cluster) -> None:
        client = cluster.client()
        await client.release_by_handle("k8s-pod-network.lost")
        for number in range(16):  # round the whole block, until the address comes again
            got = await client.auto_assign(of_pod(f"new{number}"))
            if got.v4 and got.v4[0].ip == planted.leaked[0]:
                return
        raise AssertionError("the address did not come again")

    ctl.on(reuse)
    result = ctl("ipam", "release", "--from-report", report)
    assert result.exit_code == 1
    assert str(planted.leaked[0]) in result.stderr

    async def info(cluster: Cluster) -> object:
        return (await cluster.client().address_info(planted.leaked[0])).allocation

    assert ctl.on(info) is not None


@pytest.mark.parametrize(
    ("change", "forced", "message"),
    [
        ({"clusterGUID": "0" * 32}, False, "another cluster"),
        ({"clusterGUID": "0" * 32}, True, "another cluster"),  # force does not help
        ({"clusterInformationRevision": "1"}, True, "stale"),
        ({"version": "v1.0"}, False, "another version"),
        ({"allocations": {"x": [{"ip": "x", "inUse": False, "owners": None}]}}, True, "not a report"),
        ({"allocations": []}, True, "not a report"),
    ],
)
def test_unfit_reports_are_refused(
    ctl: Ctl, tmp_path: Path, change: dict[str, object], forced: bool, message: str
) -> None:
    Planted(ctl)
    ctl.good("datastore", "migrate", "lock")
    path = tmp_path / "r"
    ctl.good("ipam", "check", "-o", str(path))
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    before = ctl.on(stored)
    assert message in ctl.bad("ipam", "release", "--from-report", str(path), *(["--force"] if forced else []))
    assert ctl.on(stored) == before


def test_force_releases_without_a_lock_and_by_another_versions_report(ctl: Ctl, tmp_path: Path) -> None:
    Planted(ctl)
    path = tmp_path / "r"
    ctl.good("ipam", "check", "-o", str(path))
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": "v1.0"}))
    text = ctl.good("ipam", "release", "--from-report", str(path), "--force")
    assert text.count("WARNING") == 2
    assert "Released 2 IPs successfully" in text


def test_release_of_one_address(ctl: Ctl) -> None:
    planted = Planted(ctl)
    address = str(planted.leaked[0])
    assert ctl.good("ipam", "release", "--ip", address) == f"Successfully released IP address {address}\n"
    assert ctl.bad("ipam", "release", "--ip", address) == f"IP address {address} is not assigned\n"
    assert "Invalid IP address" in ctl.bad("ipam", "release", "--ip", "10.65.0")
    assert "--from-report" in ctl.bad("ipam", "release")
    assert "cannot read report /none" in ctl.bad("ipam", "release", "--from-report", "/none")


def test_blocks_that_contradict_themselves_are_problems(ctl: Ctl) -> None:
    async def spoil(cluster: Cluster) -> None:
        await run_pod(cluster, "a")
        (key,) = [kv.key for kv in (await cluster.store.list(keys.blocks(4))).kvs]
        kv = await cluster.store.get(key)
        assert kv
        block = json.loads(kv.value)
        block["unallocated"] = [0, *block["unallocated"]]  # free and allocated
        await cluster.store.put(key, json.dumps(block).encode())
        await cluster.store.put(keys.block(IPv4Network("10.65.0.240/28")), b"[]")

    ctl.on(spoil)
    text = ctl.good("ipam", "check")
    assert problems(text) == 2
    assert "both free and allocated: [0]" in text
    assert "10.65.0.240-28: cannot be read" in text


def test_after_a_node_is_deleted_nothing_of_it_is_left(ctl: Ctl) -> None:
    async def work(cluster: Cluster) -> None:
        for n in range(20):
            await run_pod(cluster, f"p{n}", "node2")
        await run_pod(cluster, "other", "node1")
        await tunnel(cluster, "node2")
        await ResourceClient(cluster.store, release=IpamRelease(cluster.store)).delete("Node", "node2")

    ctl.on(work)
    assert problems(ctl.good("ipam", "check")) == 0

    async def left(cluster: Cluster) -> list[str]:
        return [key for key in await stored(cluster) if "node2" in key]

    assert ctl.on(left) == []
    assert "IPAM blocks record 2 allocations." in ctl.good("ipam", "check")


# --- configure -------------------------------------------------------------------------------------------------------


def test_settings_are_stored_in_calicos_form_and_shown(ctl: Ctl) -> None:
    text = ctl.good(
        "ipam", "configure", "--strictaffinity=true", "--max-blocks-per-host=4", "--ip-cooldown-seconds=30",
        "--kubevirt-ip-persistence=Disabled",
    )  # fmt: skip
    assert text.splitlines() == [
        "Successfully set StrictAffinity to: true",
        "Successfully set MaxBlocksPerHost to: 4",
        "Successfully set KubeVirtVMAddressPersistence to: Disabled",
        "Successfully set IPCooldownSeconds to: 30",
    ]

    async def value(cluster: Cluster) -> bytes:
        kv = await cluster.store.get(keys.CONFIG)
        return kv.value if kv else b""

    assert ctl.on(value) == (
        b'{"strict_affinity":true,"auto_allocate_blocks":true,"maxBlocksPerHost":4,'
        b'"kubeVirtVMAddressPersistence":"Disabled","ipCooldownSeconds":30}'
    )
    rows = [
        line.split("|")[1:3] for line in ctl.good("ipam", "show", "--show-configuration").splitlines() if "|" in line
    ]
    assert {name.strip(): value.strip() for name, value in rows[1:]} == {
        "StrictAffinity": "true", "AutoAllocateBlocks": "true", "MaxBlocksPerHost": "4",
        "KubeVirtVMAddressPersistence": "Disabled", "IPCooldownSeconds": "30",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "at least one"),
        (["--max-blocks-per-host=4"], "needs strictAffinity true"),
        (["--strictaffinity=true", "--max-blocks-per-host=-1"], "outside 0 to"),
        (["--ip-cooldown-seconds=1201"], "outside 0 to 1200"),
        (["--strictaffinity=perhaps"], "not a valid boolean"),
        (["--kubevirt-ip-persistence=off"], "not one of"),
    ],
)
def test_settings_that_cannot_work_change_nothing(ctl: Ctl, options: list[str], message: str) -> None:
    assert message in ctl.bad("ipam", "configure", *options)
    assert ctl.on(stored) == {}


def test_affinity_cannot_be_loosened_under_a_limit(ctl: Ctl) -> None:
    ctl.good("ipam", "configure", "--strictaffinity=true", "--max-blocks-per-host=4")
    assert "needs strictAffinity" in ctl.bad("ipam", "configure", "--strictaffinity=false")
    ctl.good("ipam", "configure", "--strictaffinity=false", "--max-blocks-per-host=0")


# --- split -----------------------------------------------------------------------------------------------------------


def test_split_keeps_blocks_and_addresses_and_new_pods_use_the_parts(ctl: Ctl) -> None:
    async def fill(cluster: Cluster) -> None:
        for n in range(20):
            await run_pod(cluster, f"p{n}", f"node{n % 2 + 1}")

    ctl.on(fill)
    assert "not locked" in ctl.bad("ipam", "split", "4", "--name", "four")
    ctl.good("datastore", "migrate", "lock")
    before = ctl.on(stored)
    lines = ctl.good("ipam", "split", "4", "--cidr", "10.65.0.0/24").splitlines()
    assert lines[0] == "IP Pool 10.65.0.0/24 was successfully split into 4 smaller pools."
    assert lines[1:] == [f"Created split-four-{n} with CIDR 10.65.0.{64 * n}/26." for n in range(4)]
    assert ctl.on(stored) == before
    ctl.good("datastore", "migrate", "unlock")
    assert problems(ctl.good("ipam", "check")) == 0
    names = ctl.good("get", "ippools", "-o", "name").splitlines()
    assert sorted(name.split("/")[1] for name in names) == ["six", *(f"split-four-{n}" for n in range(4))]

    async def more(cluster: Cluster) -> None:
        got = await cluster.client().auto_assign(of_pod("new", pools4=["split-four-3"]))
        assert got.v4[0].ip in IPv4Network("10.65.0.192/26")
        assert (await cluster.client().release_by_handle("k8s-pod-network.p0")).freed
        states = set((await cluster.affinities()).values())
        assert states == {AffinityState.CONFIRMED}

    ctl.on(more)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["3", "--name", "four"], "not a valid power of 2: 3"),
        (["1", "--name", "four"], "not a valid power of 2: 1"),
        (["0", "--name", "four"], "not a valid power of 2: 0"),
        (["32", "--name", "four"], "smaller than its blocks"),
        (["128", "--name", "six"], "at most 64"),
        (["2", "--name", "absent"], "unable to find IP pool absent"),
        (["2"], "either --cidr or --name"),
    ],
)
def test_split_that_cannot_be_is_refused(ctl: Ctl, arguments: list[str], message: str) -> None:
    ctl.good("datastore", "migrate", "lock")

    async def pools(cluster: Cluster) -> list[bytes]:
        return [kv.value for kv in (await cluster.store.list(keys.resource("ippools"))).kvs]

    before = ctl.on(pools)
    assert message in ctl.bad("ipam", "split", *arguments)
    assert ctl.on(pools) == before


def test_lock_needs_an_initialised_datastore_and_makes_it(ctl: Ctl) -> None:
    ctl.on(lambda cluster: wipe(cluster.store))
    assert ctl.good("datastore", "migrate", "lock") == "Datastore locked.\n"
    assert "false" in ctl.good("get", "clusterinformation", "default", "-o", "yaml")
