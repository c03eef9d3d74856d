"""`calico-node startup` as a process in a namespace of its own, on a real etcd that listens there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from libs import model
from libs.resources import codec
from libs.resources.client import ResourceClient
from libs.resources.errors import NotFound
from libs.store.config import StoreConfig
from libs.store.etcd import EtcdStore
from libs.testkit.netns import Namespace, can_make_namespaces, create, delete
from libs.testkit.netns_relay import NetnsRelay
from libs.testkit.servers import EtcdServer

pytestmark = [
    pytest.mark.servers,
    pytest.mark.kernel,
    pytest.mark.xdist_group("node-startup"),
    pytest.mark.skipif(not can_make_namespaces(), reason="needs root and network namespaces"),
]
PROJECT = Path(__file__).resolve().parents[2]
_OURS = ("ETCD", "NATS", "FELIX", "CALICO", "NODENAME", "IP", "AS", "KUBE", "CLUSTER_TYPE", "LOG_", "HOSTNAME")
ENV = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}


class Host:
    """A namespace with three interfaces, and an etcd inside."""

    def __init__(self, netns: Namespace, etcd: EtcdServer, endpoint: str, directory: Path) -> None:
        """endpoint: etcd's, from outside."""
        self.netns, self.etcd, self.endpoint, self.directory = netns, etcd, endpoint, directory

    def begin(self, verb: str = "startup", *arguments: str, **env: str) -> subprocess.Popen[str]:
        nodename = str(self.directory / "nodename")
        given = {"ETCD_ENDPOINTS": self.etcd.endpoint, "CALICO_NODENAME_FILE": nodename, "WAIT_FOR_DATASTORE": "true"}
        return subprocess.Popen(
            ["nsenter", f"--net={self.netns.path}", sys.executable, "-m", "services.node", verb, *arguments],
            env=ENV | given | env, cwd=PROJECT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def startup(self, *arguments: str, **env: str) -> tuple[int, str]:
        process = self.begin("startup", *arguments, **env)
        out, _ = process.communicate(timeout=60)
        return process.returncode, out

    def good(self, **env: str) -> None:
        status, out = self.startup(**env)
        assert status == 0, out

    def work(self, function: Any) -> Any:
        """`await function(resources)` with the datastore."""

        async def run() -> Any:
            store = EtcdStore(StoreConfig((self.endpoint,)))
            try:
                return await function(ResourceClient(store))
            finally:
                await store.close()

        return asyncio.run(run())

    def get(self, kind: str, name: str) -> Any:
        return self.work(lambda resources: resources.get(kind, name))

    def apply(self, kind: str, name: str, spec: dict[str, Any], **metadata: Any) -> None:
        document = {
            "apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec,
        }  # fmt: skip
        self.work(lambda resources: resources.apply(codec.from_json(document)))

    def names(self, kind: str) -> list[str]:
        listed = self.work(lambda resources: resources.list(kind))
        return [one.metadata.name for one in listed.items]

    def bgp(self, name: str = "node1") -> model.node.NodeBGPSpec:
        found = self.get("Node", name).spec.bgp
        return found if found is not None else model.node.NodeBGPSpec()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Namespace, EtcdServer, str]]:
    netns = create("nst")
    with contextlib.ExitStack() as stack:
        stack.callback(delete, netns)
        for name, addresses in (
            ("docker0", ["172.17.0.1/16"]), ("eth0", ["192.0.2.5/24", "2001:db8::5/64"]),
            ("eth1", ["198.51.100.7/25", "2001:db8:1::7/80"]),
        ):  # fmt: skip
            netns.run("ip", "link", "add", name, "type", "veth", "peer", "name", f"p{name}")
            for address in addresses:
                netns.run("ip", "addr", "add", address, "dev", name, *(["nodad"] if ":" in address else []))
            netns.run("ip", "link", "set", name, "up")
            netns.run("ip", "link", "set", f"p{name}", "up")
        netns.run("ip", "route", "add", "203.0.113.0/24", "via", "198.51.100.1")
        netns.run("ip", "route", "add", "2001:db8:9::/64", "via", "2001:db8:1::1")
        etcd = stack.enter_context(EtcdServer(netns=netns.name))
        relay = stack.enter_context(NetnsRelay(netns.path, [("127.0.0.1", etcd.port)]))
        yield netns, etcd, f"http://127.0.0.1:{relay.ports[0]}"


@pytest.fixture
def host(machine: tuple[Namespace, EtcdServer, str], tmp_path: Path) -> Host:
    made = Host(*machine, tmp_path)

    async def wipe(resources: ResourceClient) -> None:
        for kv in (await resources.store.list("/calico/")).kvs:
            await resources.store.delete(kv.key)

    made.work(wipe)
    return made


@pytest.mark.parametrize(
    ("method", "v4", "v6"),
    [
        ("first-found", "192.0.2.5/24", "2001:db8::5/64"),
        ("interface=eth1", "198.51.100.7/25", "2001:db8:1::7/80"),
        ("skip-interface=eth0", "198.51.100.7/25", "2001:db8:1::7/80"),
        ("cidr=198.51.100.0/24,2001:db8:1::/48", "198.51.100.7/25", "2001:db8:1::7/80"),
    ],
)
def test_d01_each_method_finds_the_address_of_its_interface(host: Host, method: str, v4: str, v6: str) -> None:
    host.good(NODENAME="node1", IP="autodetect", IP6="autodetect", IP_AUTODETECTION_METHOD=method,
              IP6_AUTODETECTION_METHOD=method)  # fmt: skip
    assert (host.bgp().ipv4_address, host.bgp().ipv6_address) == (v4, v6)


def test_d01_can_reach_asks_the_kernels_routes(host: Host) -> None:
    host.good(NODENAME="node1", IP6="autodetect", IP_AUTODETECTION_METHOD="can-reach=203.0.113.9",
              IP6_AUTODETECTION_METHOD="can-reach=2001:db8:9::9")  # fmt: skip
    assert (host.bgp().ipv4_address, host.bgp().ipv6_address) == ("198.51.100.7/25", "2001:db8:1::7/80")


def test_a_given_address_and_as_number_and_reference(host: Host) -> None:
    host.good(NODENAME="node1", IP="192.0.2.5", IP6="2001:db8::5/64", AS="1.10", CALICO_K8S_NODE_REF="kube-node")
    node = host.get("Node", "node1")
    assert (node.spec.bgp.ipv4_address, node.spec.bgp.ipv6_address, node.spec.bgp.as_number) == (
        "192.0.2.5/24", "2001:db8::5/64", 65546,
    )  # fmt: skip
    assert [(ref.node_name, ref.orchestrator) for ref in node.spec.orch_refs] == [("kube-node", "k8s")]
    assert {one.name for one in node.spec.interfaces} == {"docker0", "eth0", "eth1"}
    host.good(NODENAME="node1", IP="none", AS="")
    assert (host.bgp().ipv4_address, host.bgp().as_number) == ("192.0.2.5/24", 65546)


def test_what_others_wrote_into_the_node_stays(host: Host) -> None:
    spec = {"bgp": {"ipv4Address": "192.0.2.9/24", "routeReflectorClusterID": "244.0.0.1"},
            "ipv4VXLANTunnelAddr": "10.0.0.1",
            "addresses": [{"address": "192.0.2.9", "type": "InternalIP"}]}  # fmt: skip
    host.apply("Node", "node1", spec, labels={"rack": "a"}, annotations={"x": "y"})
    host.good(NODENAME="node1", IP="autodetect", IP_AUTODETECTION_METHOD="interface=missing")
    assert host.bgp().ipv4_address == "192.0.2.9/24", "nothing was found, so the old one stays"
    host.good(NODENAME="node1", IP="autodetect")
    node = host.get("Node", "node1")
    assert node.spec.bgp.ipv4_address == "192.0.2.5/24"
    assert node.spec.bgp.route_reflector_cluster_id == "244.0.0.1"
    assert node.spec.ipv4_vxlan_tunnel_addr == "10.0.0.1"
    assert [one.address for one in node.spec.addresses] == ["192.0.2.9"]
    assert (node.metadata.labels["rack"], node.metadata.annotations) == ("a", {"x": "y"})


def test_policy_only_writes_no_addresses(host: Host) -> None:
    host.good(NODENAME="node1", CALICO_NETWORKING_BACKEND="none")
    assert host.get("Node", "node1").spec.bgp is None


def test_d03_an_address_of_another_node_is_refused_and_a_detected_one_given_up(host: Host) -> None:
    host.apply("Node", "other", {"bgp": {"ipv4Address": "192.0.2.5/32"}})
    status, out = host.startup(NODENAME="node1")
    assert status == 1
    assert "192.0.2.5/24 is the address of node other" in out
    with pytest.raises(NotFound):
        host.get("Node", "node1")
    assert not (host.directory / "nodename").exists()
    host.apply("Node", "node1", {"bgp": {"ipv4Address": "192.0.2.77/24", "ipv6Address": "2001:db8::5/64"}})
    assert host.startup(NODENAME="node1", IP="autodetect")[0] == 1
    assert (host.bgp().ipv4_address, host.bgp().ipv6_address) == ("", "2001:db8::5/64")
    host.good(NODENAME="node1", DISABLE_NODE_IP_CHECK="true")
    assert host.bgp().ipv4_address == "192.0.2.5/24"


def test_d03_an_address_that_a_node_has_is_not_lost_to_whoever_claims_it_later(host: Host) -> None:
    host.good(NODENAME="node1", IP="autodetect")
    host.apply("Node", "other", {"bgp": {"ipv4Address": "192.0.2.5/24"}})
    host.good(NODENAME="node1", IP="autodetect", AS="64999")  # written anew, for something else
    assert (host.bgp().ipv4_address, str(host.bgp().as_number)) == ("192.0.2.5/24", "64999")
    host.good(NODENAME="node1", IP="autodetect", IP6="autodetect")  # the other family is new, and free
    assert (host.bgp().ipv4_address, host.bgp().ipv6_address) == ("192.0.2.5/24", "2001:db8::5/64")


def test_d03_of_two_that_start_together_with_one_address_at_most_one_does(host: Host) -> None:
    starts = [host.begin(NODENAME=name, CALICO_NODENAME_FILE=str(host.directory / name)) for name in ("a", "b", "c")]
    outs = [process.communicate(timeout=60)[0] for process in starts]
    assert sum(process.returncode == 0 for process in starts) <= 1, outs
    holders = [name for name in host.names("Node") if host.bgp(name).ipv4_address]
    assert len(holders) <= 1


def test_d04_first_start_makes_pools_and_later_ones_change_nothing(host: Host) -> None:
    host.good(
        NODENAME="node1", CALICO_IPV4POOL_CIDR="10.1.0.0/16", CALICO_IPV4POOL_VXLAN="CrossSubnet",
        CALICO_IPV4POOL_BLOCK_SIZE="24", CALICO_IPV4POOL_NAT_OUTGOING="false", CALICO_IPV6POOL_CIDR="fd00:1::/64",
        CALICO_IPV4POOL_NODE_SELECTOR="rack == 'a'", CALICO_IPV6POOL_NAT_OUTGOING="true",
    )  # fmt: skip
    four, six = host.get("IPPool", "default-ipv4-ippool"), host.get("IPPool", "default-ipv6-ippool")
    assert (four.spec.cidr, four.spec.vxlan_mode, four.spec.block_size, four.spec.nat_outgoing) == (
        "10.1.0.0/16", "CrossSubnet", 24, False,
    )  # fmt: skip
    assert four.spec.node_selector == "rack == 'a'"
    assert (six.spec.cidr, six.spec.nat_outgoing, six.spec.block_size) == ("fd00:1::/64", True, 122)
    host.good(NODENAME="node1", CALICO_IPV4POOL_CIDR="10.2.0.0/16")
    assert host.get("IPPool", "default-ipv4-ippool") == four
    host.work(lambda resources: resources.delete("IPPool", "default-ipv6-ippool"))
    host.good(NODENAME="node1", CALICO_IPV6POOL_CIDR="none")
    assert host.names("IPPool") == ["default-ipv4-ippool"]


def test_d04_none_and_contradictions(host: Host) -> None:
    host.good(NODENAME="node1", NO_DEFAULT_POOLS="true")
    assert host.names("IPPool") == []
    host.good(NODENAME="node1", CALICO_IPV4POOL_CIDR="none", FELIX_IPV6SUPPORT="false")
    assert host.names("IPPool") == []
    status, out = host.startup(NODENAME="node1", NO_DEFAULT_POOLS="true", CALICO_IPV4POOL_CIDR="10.0.0.0/8")
    assert (status, "NO_DEFAULT_POOLS" in out) == (2, True)


def test_d04_nodes_that_start_together_make_one_set_of_everything(host: Host) -> None:
    starts = [
        host.begin(NODENAME=name, IP=address, CALICO_NODENAME_FILE=str(host.directory / name), CLUSTER_TYPE=kind)
        for name, address, kind in (
            ("a", "192.0.2.5", "k8s,bgp"),
            ("b", "198.51.100.7", "bgp"),
            ("c", "172.17.0.1", "x"),
        )
    ]
    outs = [process.communicate(timeout=60)[0] for process in starts]
    assert [process.returncode for process in starts] == [0, 0, 0], outs
    assert host.names("IPPool") == ["default-ipv4-ippool", "default-ipv6-ippool"]
    assert host.names("Tier") == ["default", "kube-admin", "kube-baseline"]
    info = host.get("ClusterInformation", "default").spec
    assert set(info.cluster_type.split(",")) == {"k8s", "bgp", "x"}
    assert len(info.cluster_guid) == 32
    names = {"default", "node.a", "node.b", "node.c"}
    assert set(host.names("FelixConfiguration")) == names


def test_configuration_is_made_once_and_what_somebody_decided_stays(host: Host) -> None:
    host.good(NODENAME="node1")
    default, own = (host.get("FelixConfiguration", name).spec for name in ("default", "node.node1"))
    assert (default.log_severity_screen, str(default.reporting_interval)) == ("Info", "0s")
    assert (own.default_endpoint_to_host_action, own.floating_ips) == ("Return", ""), "defaults would hide `default`"
    host.apply("FelixConfiguration", "node.node1", {"defaultEndpointToHostAction": "Drop"})
    host.apply("FelixConfiguration", "default", {"logSeverityScreen": "Debug"})
    host.good(NODENAME="node1")
    assert host.get("FelixConfiguration", "node.node1").spec.default_endpoint_to_host_action == "Drop"
    assert host.get("FelixConfiguration", "default").spec.log_severity_screen == "Debug"


def test_d05_names_in_their_order_and_the_file_wins_on_restart(host: Host) -> None:
    host.good(HOSTNAME="First.Example")
    assert (host.directory / "nodename").read_text() == "first.example"
    host.good(HOSTNAME="renamed")
    assert host.names("Node") == ["first.example"]
    host.good(NODENAME="given", HOSTNAME="renamed", DISABLE_NODE_IP_CHECK="true")
    assert (host.directory / "nodename").read_text() == "given"


def test_a_node_of_a_cluster_starts_again_while_kubernetes_does_not_answer(host: Host) -> None:
    """Its felix has policies to follow all the same. The first start waits: kubeadm's pod subnets are the pools."""
    kubeconfig = host.directory / "kubeconfig"
    document = {
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "current-context": "c",
    }
    kubeconfig.write_text(json.dumps(document))
    env = {"NODENAME": "node1", "KUBECONFIG": str(kubeconfig), "IP": "autodetect"}
    by_kubernetes = env | {"IP_AUTODETECTION_METHOD": "kubernetes-internal-ip"}
    for one in (env, by_kubernetes):
        status, out = host.startup(**one)
        assert status == 1
        assert "127.0.0.1:1" in out
        assert host.names("IPPool") == []
    host.good(NODENAME="node1")
    host.good(**env)
    host.good(**by_kubernetes)
    assert host.bgp().ipv4_address == "192.0.2.5/24"


def test_each_start_renews_the_age_of_the_nodename_file(host: Host) -> None:
    """BGP's readiness counts from it: all sessions first, then one."""
    host.good(NODENAME="node1")
    os.utime(host.directory / "nodename", (1e9, 1e9))
    host.good(NODENAME="node1")
    assert (host.directory / "nodename").stat().st_mtime > 1.7e9


@pytest.mark.parametrize(
    ("env", "status", "word"),
    [
        ({"IP": "eth0"}, 2, "IP=eth0"),
        ({"IP6": "192.0.2.5"}, 2, "IP6=192.0.2.5"),
        ({"IP_AUTODETECTION_METHOD": "guess"}, 2, "IP_AUTODETECTION_METHOD: 'guess'"),
        ({"IP": "autodetect", "IP_AUTODETECTION_METHOD": "kubernetes-internal-ip"}, 2, "no Kubernetes API"),
        ({"AS": "4294967296"}, 2, "AS in the environment"),
        ({"CALICO_NETWORKING_BACKEND": "carrier-pigeon"}, 2, "CALICO_NETWORKING_BACKEND"),
        ({"DATASTORE_TYPE": "kubernetes"}, 2, "DATASTORE_TYPE"),
        ({"CALICO_IPV4POOL_BLOCK_SIZE": "19"}, 2, "CALICO_IPV4POOL_BLOCK_SIZE"),
        ({"IP": "autodetect", "IP_AUTODETECTION_METHOD": "interface=missing"}, 1, "interface=missing"),
        ({"NODENAME": "Bad_Name!"}, 1, "name"),
        ({"ETCD_ENDPOINTS": "http://127.0.0.1:1", "WAIT_FOR_DATASTORE": ""}, 1, "datastore does not answer"),
    ],
)
def test_bad_settings_end_with_a_clear_word(host: Host, env: dict[str, str], status: int, word: str) -> None:
    found, out = host.startup(**{"NODENAME": "node1", **env})
    assert found == status, out
    assert word in out
    assert not (host.directory / "nodename").exists()


def test_it_waits_for_the_datastore_and_ends_when_told_meanwhile(host: Host) -> None:
    waiting = host.begin(NODENAME="node1", WAIT_FOR_DATASTORE="true", ETCD_ENDPOINTS="http://127.0.0.1:1")
    assert waiting.stdout is not None
    for line in waiting.stdout:
        if "waiting for the datastore" in line:
            assert json.loads(line)["level"] in ("warning", "WARNING")
            break
    waiting.terminate()
    assert waiting.wait(30) == 0
