"""`calico-node upgrade-ipam`: what the plugin host-local keeps on disk becomes Calico's, on a real etcd."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

from libs.ipam.client import IpamClient
from libs.ipam.requests import AssignIpRequest
from libs.resources.client import ResourceClient
from libs.store.api import Store
from libs.testkit.bootstrap import key, resource
from libs.testkit.pods import PLUGIN_DIRS
from libs.testkit.servers import EtcdServer
from services.node.shell import host_local
from tests.contract.ipam_stage import Cluster
from tests.contract.store_backends import EtcdBackend
from tests.contract.test_calico_data import Ctl, ctl  # noqa: F401 - a fixture

pytestmark = pytest.mark.servers
ROOT = Path(__file__).resolve().parents[2]
PODS = {"a": ("10.65.0.5", "fd00:65::5"), "b": ("10.65.0.6", "fd00:65::6")}


class Host:
    """node1 with two pods whose addresses host-local gave."""

    def __init__(self, ctl: Ctl, directory: Path) -> None:  # noqa: F811
        self.ctl, self.directory = ctl, directory
        self.network = directory / "k8s-pod-network"
        self.network.mkdir()
        (self.network / "lock").touch()
        for number, family in enumerate((4, 6)):
            (self.network / f"last_reserved_ip.{number}").write_text("10.65.0.6" if family == 4 else "fd00:65::6")
        for name, addresses in PODS.items():
            for address in addresses:
                self.give(address, name)
        ctl.on(self._prepare)

    def give(self, address: str, container: str) -> None:
        (self.network / address).write_text(f"{container}\r\neth0")

    async def _prepare(self, store: Store) -> None:
        await ResourceClient(store).ensure_initialized()
        backend = EtcdBackend(self.ctl.server, request_timeout_s=30.0)
        await backend.open()
        try:
            cluster = Cluster(backend)
            await cluster.node("node1")
            await cluster.node("node2")
            await cluster.pool("four", "10.65.0.0/24", 28)
            await cluster.pool("six", "fd00:65::/112", 124)
        finally:
            await backend.close()
        for name, addresses in PODS.items():
            await self.endpoint(store, name, *addresses)

    @staticmethod
    async def endpoint(store: Store, name: str, *addresses: str) -> None:
        nets = [f"{one}/{128 if ':' in one else 32}" for one in addresses]
        spec = {"orchestrator": "k8s", "node": "node1", "containerID": name, "pod": f"pod-{name}", "endpoint": "eth0",
                "ipNetworks": nets}  # fmt: skip
        full = f"node1-k8s-pod--{name}-eth0"
        value = resource("WorkloadEndpoint", full, spec, namespace="shop")
        await store.put(f"{key('workloadendpoints', 'shop')}/{full}", value)

    def upgrade(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        env = {n: v for n, v in os.environ.items() if not n.startswith(("ETCD", "CALICO", "CNI", "NODENAME", "KUBE"))}
        env |= {"ETCD_ENDPOINTS": self.ctl.server.endpoint, "NODENAME": "node1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "services.node", "upgrade-ipam", "--directory", str(self.directory)]
        return subprocess.run(
            [*command, *arguments], env=env, cwd=ROOT, text=True, capture_output=True, timeout=60, check=False
        )

    def files(self) -> set[str]:
        return {path.name for path in self.network.iterdir()}


@pytest.fixture
def host(ctl: Ctl, tmp_path: Path) -> Host:  # noqa: F811
    return Host(ctl, tmp_path)


def allocations(server: EtcdServer) -> dict[str, tuple[str, dict[str, str]]]:
    """Address -> (handle, attributes)."""

    async def work(store: Store) -> dict[str, tuple[str, dict[str, str]]]:
        blocks = await IpamClient(store).blocks()
        return {str(one.address): (one.handle or "", dict(one.attrs)) for block in blocks for one in block.allocated()}

    found: dict[str, tuple[str, dict[str, str]]] = Ctl(server).on(work)
    return found


def test_addresses_of_host_local_become_calicos(host: Host) -> None:
    told = host.upgrade("--dry-run")
    assert (told.returncode, allocations(host.ctl.server)) == (0, {})
    assert "would move 10.65.0.5 of pod shop/pod-a" in told.stdout
    assert {"10.65.0.5", "lock", "last_reserved_ip.0"} < host.files()
    done = host.upgrade()
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4
    found = allocations(host.ctl.server)
    assert {address: handle for address, (handle, _) in found.items()} == {
        address: f"k8s-pod-network.{name}" for name, addresses in PODS.items() for address in addresses
    }
    attrs = found["fd00:65::6"][1]
    assert attrs.pop("timestamp").endswith("+0000 UTC")
    assert attrs == {"namespace": "shop", "node": "node1", "pod": "pod-b"}
    assert host.files() == {"lock"}
    assert "found 0 problems" in host.ctl.good("ipam", "check")
    again = host.upgrade()
    assert (again.returncode, again.stdout) == (0, "nothing to move\n")


def test_a_dry_run_makes_no_lock(host: Host) -> None:
    (host.network / "lock").unlink()
    before = host.files()
    told = host.upgrade("--dry-run")
    assert told.returncode == 0, told.stderr
    assert "would move 10.65.0.5 of pod shop/pod-a" in told.stdout
    assert host.files() == before
    assert host.upgrade().returncode == 0
    assert host.files() == {"lock"}


def test_a_run_that_was_cut_short_is_gone_on_with(host: Host) -> None:
    """The address is in the datastore, its file still there; and another family's file is there alone."""

    async def first(store: Store) -> None:
        request = AssignIpRequest(address=ip_address("10.65.0.5"), handle="k8s-pod-network.a", node="node1")
        await IpamClient(store).assign_ip(request)

    host.ctl.on(first)
    done = host.upgrade()
    assert done.returncode == 0, done.stderr
    assert len(allocations(host.ctl.server)) == 4
    assert "found 0 problems" in host.ctl.good("ipam", "check")


def test_what_is_doubtful_stays_and_is_told(host: Host) -> None:
    """A container that no endpoint tells of, an address in no pool, one that somebody else has, a strange file."""

    async def others(store: Store) -> None:
        await Host.endpoint(store, "c", "172.16.0.9")
        request = AssignIpRequest(address=ip_address("10.65.0.6"), handle="somebody", node="node1")
        await IpamClient(store).assign_ip(request)

    host.ctl.on(others)
    host.give("10.65.0.99", "unknown")
    host.give("172.16.0.9", "c")
    (host.network / "notes.txt").write_text("x")
    done = host.upgrade()
    assert done.returncode == 1
    for said in ("10.65.0.99: no workload endpoint of node1", "172.16.0.9 of pod shop/pod-c", "10.65.0.6 of pod shop",
                 "notes.txt: not a file of host-local"):  # fmt: skip
        assert said in done.stderr
    assert {"10.65.0.99", "172.16.0.9", "10.65.0.6", "notes.txt", "last_reserved_ip.0"} < host.files()
    assert "10.65.0.5" not in host.files()
    assert allocations(host.ctl.server)["10.65.0.6"][0] == "somebody"


def test_host_locals_own_lock_is_respected(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_local, "PATIENCE_S", 0.3)
    with (host.network / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        async def work(store: Store) -> None:
            await host_local.move(store, "node1", "k8s-pod-network", directory=host.directory)

        with pytest.raises(host_local.Busy, match="is held by another process"):
            host.ctl.on(work)
    assert allocations(host.ctl.server) == {}
    assert host.upgrade().returncode == 0


def test_files_of_the_real_plugin_are_understood(host: Host) -> None:
    plugin = next((Path(at) / "host-local" for at in PLUGIN_DIRS if (Path(at) / "host-local").exists()), None)
    if plugin is None:
        pytest.skip("container runtimes are not here")
    ranges = [[{"subnet": "10.65.0.0/24", "rangeStart": "10.65.0.200"}], [{"subnet": "fd00:65::/112"}]]
    ipam = {"type": "host-local", "ranges": ranges, "dataDir": str(host.directory)}
    config = {"cniVersion": "1.0.0", "name": "k8s-pod-network", "type": "calico", "ipam": ipam}
    variables = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "real", "CNI_NETNS": "/n", "CNI_IFNAME": "eth0",
                 "CNI_PATH": str(plugin.parent)}  # fmt: skip
    done = subprocess.run([plugin], env=os.environ | variables, input=json.dumps(config), text=True,
                          capture_output=True, timeout=30, check=True)  # fmt: skip
    given = [one["address"].split("/")[0] for one in json.loads(done.stdout)["ips"]]
    assert set(given) < host.files()
    host.ctl.on(lambda store: host.endpoint(store, "real", *given))
    moved = host.upgrade()
    assert moved.returncode == 0, moved.stderr
    found = allocations(host.ctl.server)
    assert {found[address][0] for address in given} == {"k8s-pod-network.real"}


def test_no_directory_is_nothing_to_do(ctl: Ctl, tmp_path: Path) -> None:  # noqa: F811
    done = subprocess.run(
        [sys.executable, "-m", "services.node", "upgrade-ipam", "--directory", str(tmp_path), "--node", "node1"],
        env=os.environ | {"ETCD_ENDPOINTS": ctl.server.endpoint}, cwd=ROOT, text=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "nothing to move\n"), done.stderr
