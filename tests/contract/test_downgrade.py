"""Services as processes on a real etcd whose data a later release wrote (M05): each says why it ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from libs.resources.version_guard import DATA_FORMAT, FORMAT, REFUSED_STATUS, is_older
from libs.runtime import release
from libs.store.config import StoreConfig
from libs.store.etcd import EtcdStore
from libs.testkit.netns import Namespace, can_make_namespaces, create, delete
from libs.testkit.netns_relay import NetnsRelay
from libs.testkit.servers import EtcdServer
from tests.contract.test_node_startup import ENV, PROJECT

pytestmark = [
    pytest.mark.servers,
    pytest.mark.kernel,
    pytest.mark.xdist_group("downgrade"),
    pytest.mark.skipif(not can_make_namespaces(), reason="needs root and network namespaces"),
]
KEY = "/calico/resources/v3/projectcalico.org/clusterinformations/default"
SERVICES = ("typha", "felix", "kube_controllers", "apiserver", "node")


class Host:
    def __init__(self, netns: Namespace, etcd: EtcdServer, endpoint: str, directory: Path) -> None:
        """endpoint: etcd's, from outside."""
        self.netns, self.etcd, self.endpoint, self.directory = netns, etcd, endpoint, directory

    def put(self, version: str, data_format: int | None) -> None:
        annotations = {} if data_format is None else {DATA_FORMAT: str(data_format)}
        metadata = {"name": "default", "annotations": annotations}
        spec = {"calicoVersion": version, "clusterGUID": "0" * 32, "datastoreReady": True}
        document = {"kind": "ClusterInformation", "apiVersion": "projectcalico.org/v3", "metadata": metadata}
        self.data({KEY: msgspec.json.encode(document | {"spec": spec})})

    def data(self, put: dict[str, bytes] | None = None) -> dict[str, bytes]:
        """put: instead of all there is."""

        async def run() -> dict[str, bytes]:
            store = EtcdStore(StoreConfig((self.endpoint,)))
            try:
                if put is not None:
                    for kv in (await store.list("/")).kvs:
                        await store.delete(kv.key)
                    for key, value in put.items():
                        await store.put(key, value)
                return {kv.key: kv.value for kv in (await store.list("/")).kvs}
            finally:
                await store.close()

        return asyncio.run(run())

    def run(self, service: str) -> tuple[int, str]:
        """Exit status and log of one that ends by itself."""
        arguments = ["startup"] if service == "node" else []
        state = str(self.directory)
        own = {
            "ETCD_ENDPOINTS": self.etcd.endpoint, "NODENAME": "node1", "CALICO_NODENAME_FILE": f"{state}/nodename",
            "FELIX_STATE_DIR": state, "FELIX_CNI_SOCKET": f"{state}/cni.sock", "FELIX_MTU_FILE": f"{state}/mtu",
            "APISERVER_BIND_ADDRESS": "127.0.0.1", "APISERVER_DEVELOPMENT": "true",
        }  # fmt: skip
        done = subprocess.run(
            ["nsenter", f"--net={self.netns.path}", sys.executable, "-m", f"services.{service}", *arguments],
            env=ENV | own, cwd=PROJECT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
        )  # fmt: skip
        return done.returncode, done.stdout


@pytest.fixture(scope="module")
def machine() -> Iterator[tuple[Namespace, EtcdServer, str]]:
    netns = create("dng")
    try:
        netns.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "peth0")
        netns.run("ip", "addr", "add", "192.0.2.5/24", "dev", "eth0")
        for name in ("eth0", "peth0"):
            netns.run("ip", "link", "set", name, "up")
        with EtcdServer(netns=netns.name) as etcd, NetnsRelay(netns.path, [("127.0.0.1", etcd.port)]) as relay:
            yield netns, etcd, f"http://127.0.0.1:{relay.ports[0]}"
    finally:
        delete(netns)


@pytest.fixture
def host(machine: tuple[Namespace, EtcdServer, str], tmp_path: Path) -> Host:
    return Host(*machine, tmp_path)


@pytest.mark.parametrize("service", SERVICES)
def test_m05_service_ends_with_the_reason_on_data_of_a_later_release_and_writes_nothing(
    host: Host, service: str
) -> None:
    host.put("v9.9.0", FORMAT + 1)
    before = host.data()
    status, log = host.run(service)
    assert status == REFUSED_STATUS, log[-3000:]
    assert f"the datastore holds data of format {FORMAT + 1} (release of the node that started last: v9.9.0)" in log
    assert "restore a backup of etcd" in log
    assert host.data() == before
    assert "Traceback" not in log


@pytest.mark.parametrize("version", ["v3.31.2", "v9.9.0", ""])
def test_m05_a_node_starts_beside_calicos_and_on_data_that_it_understands(host: Host, version: str) -> None:
    host.put(version, None)
    status, log = host.run("node")
    assert status == 0, log[-3000:]
    assert ("older than the cluster's" in log) is is_older(release.version(), version)
    assert "/calico/resources/v3/projectcalico.org/nodes/node1" in host.data()
