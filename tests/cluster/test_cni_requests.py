"""What a CNI request can ask for, and what the kernel and the datastore then have; and that what is refused leaves no
trace. Names of tests say which capability they show.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from libs import model
from libs.ipam.client import IpamClient
from libs.netlink.podlink import table_of
from libs.runtime.compile_c import compile_c
from libs.testkit.cluster import SHIM, Cluster, CniError, Pod
from libs.testkit.pods import cni_environment, cni_stdin
from libs.testkit.topology import Namespace, remove
from services.felix.core.cni.versions import VERSIONS, at_least
from tests.cluster.conftest import ALLOW, DENY, World, open_world, until
from tests.cluster.footprint import Footprint, footprint, leaves_nothing
from tests.cluster.runtimes.tools import plugin

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANNOTATION = "cni.projectcalico.org/"
NODES = "/calico/resources/v3/projectcalico.org/nodes/"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        cluster = Cluster.create(nodes=1, tcp_ports=(8080,), env={"FELIX_POLICY_SETUP_TIMEOUT_S": "20"})
        made = await open_world(stack, cluster)
        await cluster.add_namespace("ns1")
        first = await cluster.add_pod("node1", "first", namespace="ns1", probe=False)
        await cluster.remove_pod(first)  # the node has its blocks now
        yield made


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def before(world: World) -> AsyncIterator[Footprint]:
    """Whatever the test did is gone once its pods are."""
    was = await footprint(world, world.cluster.node("node1"))
    yield was
    for pod in world.cluster.pods():
        await world.cluster.remove_pod(pod)
    discard_strangers(world)
    await world.clean()
    await leaves_nothing(world, world.cluster.node("node1"), was)


async def pod_with(world: World, name: str = "web", *, annotations: dict[str, str] | None = None, **config: Any) -> Pod:
    return await world.cluster.add_pod(
        "node1", name, namespace="ns1", annotations=annotations, config=config, probe=False
    )


async def refused(world: World, *, annotations: dict[str, str] | None = None, **config: Any) -> CniError:
    with pytest.raises(CniError) as caught:
        await pod_with(world, "refused", annotations=annotations, **config)
    return caught.value


def further(pod: Pod, ifname: str, **config: Any) -> Pod:
    return replace(pod, ifname=ifname, config=config, result={}, probe=None)


def host_name(pod: Pod) -> str:
    return next(one["name"] for one in pod.result["interfaces"] if not one.get("sandbox"))


def endpoint_name(pod: Pod) -> str:
    return f"{pod.node}-k8s-{pod.name}-{pod.ifname}"


async def endpoint(world: World, pod: Pod) -> model.WorkloadEndpoint:
    found = await world.resources.get("WorkloadEndpoint", endpoint_name(pod), "ns1")
    assert isinstance(found, model.WorkloadEndpoint)
    return found


def shown(world: World, where: str, *words: str) -> Any:
    return json.loads(world.run(where, "ip", "-j", *words))


@contextlib.asynccontextmanager
async def pool(world: World, name: str, cidr: str, **spec: Any) -> AsyncIterator[None]:
    made = model.IPPool(metadata=model.ObjectMeta(name=name), spec=model.IPPoolSpec(cidr=cidr, **spec))
    await world.resources.create(made)

    async def known() -> bool:
        """Felix reads pools once a second."""
        try:
            pod = await pod_with(world, "probing", ipam={"type": "calico-ipam", "ipv4_pools": [name]})
        except CniError as error:
            return "is no enabled" not in error.text
        await world.cluster.remove_pod(pod)
        return True

    try:
        await until(known, 30, f"pool {name} is known")
        yield
    finally:
        await world.resources.delete("IPPool", name)


# --- versions ---


async def test_c01_every_version_gets_its_form_of_result(world: World, before: Footprint) -> None:
    for version in VERSIONS:
        pod = await pod_with(world, cniVersion=version)
        result = pod.result
        assert result["cniVersion"] == version
        if not at_least(version, "0.3.0"):
            assert set(result) == {"cniVersion", "ip4", "ip6", "dns"}
            assert ip_network(result["ip4"]["ip"]).prefixlen == 32
        else:
            host, container = result["interfaces"]
            assert container["sandbox"] == str(pod.netns.path)
            assert shown(world, pod.name, "link", "show", "eth0")[0]["address"] == container["mac"]
            assert shown(world, "node1", "link", "show", host["name"])[0]["address"] == host["mac"]
            assert ("version" in result["ips"][0]) == (not at_least(version, "1.0.0"))
            assert ("mtu" in host) == (version == "1.1.0")
        if at_least(version, "0.4.0"):
            assert await world.cluster.cni("CHECK", pod) == {}
        else:
            with pytest.raises(CniError, match="has no CHECK") as caught:
                await world.cluster.cni("CHECK", pod)
            assert caught.value.code == 1
        assert await world.cluster.cni("ADD", pod) == result
        await world.cluster.remove_pod(pod)
    await leaves_nothing(world, world.cluster.node("node1"), before)


async def test_c01_in_a_chain_the_result_of_those_before_is_kept(world: World) -> None:
    earlier = {"cniVersion": "0.4.0", "interfaces": [{"name": "x0"}], "ips": [], "dns": {"domain": "example.org"}}
    pod = await pod_with(world, prevResult=earlier)
    assert [one["name"] for one in pod.result["interfaces"]] == ["x0", host_name_of_second(pod), "eth0"]
    assert {one["interface"] for one in pod.result["ips"]} == {2}
    assert pod.result["dns"] == {"domain": "example.org"}
    pod.config = {}
    assert await world.cluster.cni("CHECK", pod) == {}


def host_name_of_second(pod: Pod) -> str:
    return str(pod.result["interfaces"][1]["name"])


# --- settings ---


async def test_c05_mtu_of_the_configuration_of_the_file_and_of_the_node(world: World) -> None:
    file = world.cluster.node("node1").directory / "mtu"
    kept = file.read_text()
    for config, text, expected in (({}, kept, int(kept)), ({}, "1400\n", 1400), ({"mtu": 1280}, "1400\n", 1280)):
        file.write_text(text)
        try:
            pod = await pod_with(world, **config, require_mtu_file=True)
        finally:
            file.write_text(kept)
        for where, name in (("node1", host_name(pod)), (pod.name, "eth0")):
            assert shown(world, where, "link", "show", name)[0]["mtu"] == expected
        await world.cluster.cni("CHECK", pod)
        await world.cluster.remove_pod(pod)
    file.unlink()
    try:
        error = await refused(world, require_mtu_file=True)
        assert (error.code, str(file) in error.text) == (11, True)
    finally:
        file.write_text(kept)


@pytest.mark.parametrize("allowed", [False, True])
async def test_c09_forwarding_in_the_pod(world: World, allowed: bool) -> None:
    pod = await pod_with(world, container_settings={"allow_ip_forwarding": allowed})
    for path in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        assert world.run(pod.name, "sysctl", "-n", path).strip() == str(int(allowed))
    await world.cluster.cni("CHECK", pod)
    world.run(pod.name, "sysctl", "-qw", f"net.ipv4.ip_forward={int(not allowed)}")
    with pytest.raises(CniError, match=r"net\.ipv4\.ip_forward is"):
        await world.cluster.cni("CHECK", pod)


async def test_c10_annotations_become_link_and_endpoint(world: World) -> None:
    pod = await pod_with(
        world,
        annotations={
            ANNOTATION + "hwAddr": "1C:0C:0A:C0:FF:EE",
            ANNOTATION + "ipFamilies": '["IPv4"]',
            ANNOTATION + "floatingIPs": '["172.30.0.1"]',
            ANNOTATION + "allowedSourcePrefixes": '["10.70.0.0/16"]',
        },
        feature_control={"floating_ips": True},
        num_queues=2,
        device_type="netkit",
    )
    link = shown(world, pod.name, "-d", "link", "show", "eth0")[0]
    assert (link["address"], link["num_tx_queues"]) == ("1c:0c:0a:c0:ff:ee", 2)
    assert link["linkinfo"]["info_kind"] in ("veth", "netkit")  # what this kernel has
    assert [address.version for address in pod.addresses] == [4]
    assert "default" not in world.run(pod.name, "ip", "-6", "route")
    spec = (await endpoint(world, pod)).spec
    assert spec.mac == "1c:0c:0a:c0:ff:ee"
    assert [(nat.internal_ip, nat.external_ip) for nat in spec.ip_nats] == [(str(pod.address(4)), "172.30.0.1")]
    assert spec.allow_spoofed_source_prefixes == ["10.70.0.0/16"]
    await world.cluster.cni("CHECK", pod)


async def test_c10_addresses_past_ipam(world: World) -> None:
    annotations = {ANNOTATION + "ipAddrsNoIpam": '["10.99.0.7", "fd00:99::7"]'}
    error = await refused(world, annotations=annotations)
    assert (error.code, "feature_control.ip_addrs_no_ipam" in error.text) == (7, True)
    pod = await pod_with(world, annotations=annotations, feature_control={"ip_addrs_no_ipam": True})
    assert [str(one) for one in pod.addresses] == ["10.99.0.7", "fd00:99::7"]
    world.run("node1", "ping", "-c1", "-W10", "10.99.0.7")
    world.run("node1", "ping", "-c1", "-W10", "fd00:99::7")
    await world.cluster.cni("CHECK", pod)


async def test_i06_pools_by_annotation_of_pod_and_namespace_and_by_configuration(
    world: World, before: Footprint
) -> None:
    async with pool(world, "blue", "10.80.0.0/24"), pool(world, "green", "10.81.0.0/24"):
        was = await footprint(world, world.cluster.node("node1"))
        pods, namespace = {"annotations": {ANNOTATION + "ipv4pools": '["blue"]'}}, ANNOTATION + "ipv4pools"
        ipam = {"type": "calico-ipam", "ipv4_pools": ["10.81.0.0/24"]}
        by_pod = await pod_with(world, "a", **pods, ipam=ipam)
        by_configuration = await pod_with(world, "b", ipam=ipam)
        by_namespace = await pod_with(world, "c", args={"cni": {"namespaceAnnotations": {namespace: '["blue"]'}}})
        assert by_pod.address(4) in ip_network("10.80.0.0/24")
        assert by_configuration.address(4) in ip_network("10.81.0.0/24")
        assert by_namespace.address(4) in ip_network("10.80.0.0/24")
        for pod in (by_pod, by_configuration, by_namespace):
            await world.cluster.remove_pod(pod)
        for annotations, text in (
            ({ANNOTATION + "ipv4pools": '["no-such-pool"]'}, "'no-such-pool' is no enabled IPv4 pool"),
            ({ANNOTATION + "ipv4pools": "blue"}, "no JSON list"),
            ({ANNOTATION + "ipv6pools": '["blue"]', ANNOTATION + "ipFamilies": '["IPv6"]'}, "no enabled IPv6 pool"),
        ):
            error = await refused(world, annotations=annotations)
            assert text in error.text, error
        await leaves_nothing(world, world.cluster.node("node1"), was)


async def test_i07_a_fixed_address_is_one_pods_alone_and_of_a_pool_for_pods(world: World) -> None:
    fixed = {ANNOTATION + "ipAddrs": '["10.65.200.7"]'}
    pod = await pod_with(world, annotations=fixed)
    assert [str(one) for one in pod.addresses] == ["10.65.200.7"]
    error = await refused(world, annotations=fixed)
    assert (error.code, "10.65.200.7 is assigned to" in error.text) == (102, True)
    assert await world.cluster.cni("ADD", pod) == pod.result
    async with pool(world, "tunnels", "10.82.0.0/24", allowed_uses=["Tunnel"]):
        error = await refused(world, annotations={ANNOTATION + "ipAddrs": '["10.82.0.7"]'})
        assert (error.code, "does not allow the use Workload" in error.text) == (102, True)
    error = await refused(world, annotations={ANNOTATION + "ipAddrs": '["192.0.2.7"]'})
    assert (error.code, "192.0.2.7 is in no enabled pool" in error.text) == (102, True)


async def test_a_full_pool_says_so_and_the_other_family_is_given_back(world: World) -> None:
    async with pool(world, "tiny", "10.83.0.0/32", block_size=32):
        ipam = {"type": "calico-ipam", "ipv4_pools": ["tiny"], "assign_ipv6": "true"}
        pod = await pod_with(world, ipam=ipam)
        was = await footprint(world, world.cluster.node("node1"))
        error = await refused(world, ipam=ipam)
        assert (error.code, "no-free-addresses" in error.text) == (102, True)
        await leaves_nothing(world, world.cluster.node("node1"), was)
        await world.cluster.remove_pod(pod)


# --- several interfaces ---


async def test_c14_a_second_interface_has_policy_and_addresses_of_its_own_and_goes_alone(world: World) -> None:
    web = await world.cluster.add_pod("node1", "web", namespace="ns1", labels={"app": "web"})
    client = await world.cluster.add_pod("node1", "client", namespace="ns1")
    second = further(web, "net1", name="second-network")
    second.result = await world.cluster.cni("ADD", second)
    try:
        assert host_name(second) != host_name(web)
        assert not set(second.addresses) & set(web.addresses)
        for pod in (web, second):
            assert await world.cluster.cni("CHECK", pod) == {}
            assert await world.cluster.cni("ADD", pod) == pod.result
        both = [(client, web, 8080, "tcp"), (client, second, 8080, "tcp")]
        await world.check([(*flow, ALLOW) for flow in both])
        assert "default via 169.254.1.1 dev eth0" in world.run(web.name, "ip", "route")
        assert f"from {second.address(4)} lookup {table_of('net1')}" in world.run(web.name, "ip", "rule")
        await world.apply(
            "kind: GlobalNetworkPolicy\nmetadata: {name: only-net1}\nspec:\n"
            "  selector: app == 'web'\n  types: [Ingress]\n"
            f"  ingress:\n  - {{action: Allow, destination: {{nets: [{second.address(4)}/32]}}}}\n"
            f"  - {{action: Allow, destination: {{nets: ['{second.address(6)}/128']}}}}\n"
        )
        await world.check([(*both[0], DENY), (*both[1], ALLOW)])
    finally:
        await world.cluster.cni("DEL", second)
    assert "net1" not in world.run(web.name, "ip", "link")
    assert str(second.address(4)) not in world.run(web.name, "ip", "rule")
    assert await world.cluster.cni("CHECK", web) == {}
    await world.delete("GlobalNetworkPolicy", "only-net1")
    await world.check([(*both[0], ALLOW)])


# --- other plugins for addresses ---


@pytest_asyncio.fixture(loop_scope="module")
async def pod_cidrs(world: World) -> AsyncIterator[None]:
    """What the Kubernetes of a real cluster gives its nodes."""
    stored = await world.store.get(f"{NODES}node1")
    assert stored is not None
    resource = json.loads(stored.value)
    resource["status"] = {**resource.get("status", {}), "podCIDRs": ["10.90.1.0/24", "fd00:90:1::/64"]}
    await world.store.put(f"{NODES}node1", json.dumps(resource).encode())
    yield
    await world.store.put(f"{NODES}node1", stored.value)


def host_local(data_dir: Path, **more: Any) -> dict[str, Any]:
    ranges = [[{"subnet": "usePodCidr"}], [{"subnet": "usePodCidrIPv6"}]]
    return {"type": "host-local", "dataDir": str(data_dir), "ranges": ranges, **more}


async def test_i22_host_local_with_the_nodes_pod_cidrs(
    world: World, before: Footprint, pod_cidrs: None, tmp_path: Path
) -> None:
    plugin("host-local")
    ipam = host_local(tmp_path)
    pod, other = await pod_with(world, ipam=ipam), await pod_with(world, "other", ipam=ipam)
    for one in (pod, other):
        assert one.address(4) in ip_network("10.90.1.0/24")
        assert one.address(6) in ip_network("fd00:90:1::/64")
        assert await world.cluster.cni("CHECK", one) == {}
    assert pod.address(4) != other.address(4)
    world.run(pod.name, "ping", "-c1", "-W10", str(other.address(4)))
    world.run(pod.name, "ping", "-c1", "-W10", str(other.address(6)))
    assert await world.cluster.cni("ADD", pod) == pod.result
    assert len((await footprint(world, world.cluster.node("node1"), tmp_path)).files) == 4
    await world.cluster.cni("DEL", pod)
    await world.cluster.cni("DEL", pod)
    assert len((await footprint(world, world.cluster.node("node1"), tmp_path)).files) == 2
    await world.cluster.remove_pod(other)
    await world.cluster.remove_pod(pod)
    await leaves_nothing(world, world.cluster.node("node1"), before, tmp_path)


async def test_c09_routes_of_host_local_stand_in_place_of_default_ones(
    world: World, pod_cidrs: None, tmp_path: Path
) -> None:
    plugin("host-local")
    ipam = host_local(tmp_path, routes=[{"dst": "10.0.0.0/8", "gw": "10.90.1.254"}, {"dst": "fd00::/8"}])
    pod = await pod_with(world, ipam=ipam)
    assert world.run(pod.name, "ip", "route").splitlines() == [
        "10.0.0.0/8 via 169.254.1.1 dev eth0 ",
        "169.254.1.1 dev eth0 scope link ",
    ]
    assert pod.result["routes"] == [{"dst": "10.0.0.0/8"}, {"dst": "fd00::/8"}]
    assert await world.cluster.cni("CHECK", pod) == {}
    await world.cluster.remove_pod(pod)
    pod = await pod_with(world, ipam=ipam, include_default_routes=True)
    assert "default via 169.254.1.1 dev eth0" in world.run(pod.name, "ip", "route")
    assert "fd00::/8 via fe80::ecee:eeff:feee:eeee" in world.run(pod.name, "ip", "-6", "route")
    assert await world.cluster.cni("CHECK", pod) == {}


async def test_another_plugins_refusal_and_a_later_failure_leave_no_reservation(
    world: World, before: Footprint, pod_cidrs: None, tmp_path: Path
) -> None:
    plugin("host-local")
    node = world.cluster.node("node1")
    error = await refused(world, ipam={"type": "host-local", "dataDir": str(tmp_path), "ranges": []})
    assert "host-local" in error.text
    await leaves_nothing(world, node, before, tmp_path)
    pod = replace(stranger(world, "taken"), config={"ipam": host_local(tmp_path)})
    pod.netns.ip(["link add eth0 type bridge"])
    with pytest.raises(CniError, match="eth0 exists"):
        await world.cluster.cni("ADD", pod)
    await leaves_nothing(world, node, before, tmp_path)
    await world.cluster.cni("DEL", pod)  # as runtimes do


async def test_static_addresses_with_dns(world: World) -> None:
    plugin("static")
    ipam = {"type": "static", "addresses": [{"address": "10.91.0.4/24", "gateway": "10.91.0.1"}], "routes": [],
            "dns": {"nameservers": ["10.91.0.2"]}}  # fmt: skip
    pod = await pod_with(world, ipam=ipam)
    assert pod.result["ips"] == [{"address": "10.91.0.4/32", "interface": 1}]
    assert pod.result["dns"] == {"nameservers": ["10.91.0.2"]}
    world.run("node1", "ping", "-c1", "-W10", "10.91.0.4")


# --- calico-ipam ---


def named(tmp_path: Path, name: str) -> Path:
    link = tmp_path / name
    link.symlink_to(compile_c(SHIM))
    return link


def call(world: World, program: Path, command: str, pod: Pod, **config: Any) -> tuple[int, dict[str, Any]]:
    """Any plugin, inside the node, with our socket and programs at hand."""
    environment = cni_environment(command, pod, program.parent)
    environment["CALICO_CNI_SOCKET"] = str(world.cluster.node("node1").cni_socket)
    environment["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin"
    done = subprocess.run(
        ["ip", "netns", "exec", world.cluster.node("node1").namespace.name, program],
        env=environment, input=json.dumps({**cni_stdin(command, pod), **config}).encode(),
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else {}


STRANGERS: set[str] = set()  # pods that the cluster does not know


def stranger(world: World, name: str) -> Pod:
    """Not plugged in yet; its namespace goes after the test."""
    pod = Pod(name, "ns1", "node1", Namespace(f"cal-{world.cluster.id}-{name}"))
    STRANGERS.add(pod.netns.name)
    pod.netns.create()
    world.cluster._namespaces.append(pod.netns)
    return pod


def discard_strangers(world: World) -> None:
    of_pods = {pod.netns.name for pod in world.cluster.pods()} | {node.namespace.name for node in world.cluster.nodes}
    for space in [one for one in world.cluster._namespaces if one.name not in of_pods and one.name in STRANGERS]:
        remove([space])
        world.cluster._namespaces.remove(space)
    STRANGERS.clear()


async def test_calico_ipam_by_itself(world: World, before: Footprint, tmp_path: Path) -> None:
    ipam, pod = named(tmp_path, "calico-ipam"), stranger(world, "alone")
    status, answer = await asyncio.to_thread(call, world, ipam, "ADD", pod)
    assert (status, set(answer)) == (0, {"cniVersion", "ips", "routes", "dns"})
    assert [ip_network(one["address"], strict=False).prefixlen for one in answer["ips"]] == [26, 122]
    held = await IpamClient(world.store).ips_by_handle(f"k8s-pod-network.{pod.container_id}")
    assert [str(one.address) for one in held] == [one["address"].split("/")[0] for one in answer["ips"]]
    assert await asyncio.to_thread(call, world, ipam, "CHECK", pod, prevResult=answer) == (0, {})
    assert (await asyncio.to_thread(call, world, ipam, "STATUS", pod))[0] == 0
    for _ in range(2):
        assert await asyncio.to_thread(call, world, ipam, "DEL", pod) == (0, {})
    await leaves_nothing(world, world.cluster.node("node1"), before)
    status, answer = await asyncio.to_thread(call, world, ipam, "CHECK", pod, prevResult=answer)
    assert (status, answer["code"]) == (1, 101)


async def test_calico_ipam_serves_the_bridge_plugin(world: World, before: Footprint, tmp_path: Path) -> None:
    bridge, pod = plugin("bridge"), stranger(world, "bridged")
    named(tmp_path, "calico-ipam")
    config = {"type": "bridge", "bridge": "br-test", "ipam": {"type": "calico-ipam"}}

    def run(command: str, **more: Any) -> tuple[int, dict[str, Any]]:
        (tmp_path / "bridge").unlink(missing_ok=True)
        (tmp_path / "bridge").symlink_to(bridge)
        return call(world, tmp_path / "bridge", command, pod, **config, **more)

    status, answer = await asyncio.to_thread(run, "ADD")
    try:
        assert status == 0, answer
        address = ip_address(answer["ips"][0]["address"].split("/")[0])
        held = await IpamClient(world.store).ips_by_handle(f"k8s-pod-network.{pod.container_id}")
        assert [one.address for one in held] == [address]
    finally:
        status, _ = await asyncio.to_thread(run, "DEL", prevResult=answer)
        world.run("node1", "ip", "link", "del", "br-test")
    assert status == 0
    await leaves_nothing(world, world.cluster.node("node1"), before)


# --- refusals ---


REFUSED: list[tuple[dict[str, str], dict[str, Any], int, str]] = [
    ({}, {"cniVersion": "0.9.0"}, 1, "'0.9.0'"),
    ({}, {"runtimeConfig": {"deviceID": "0000:1f"}}, 2, "deviceID"),
    ({}, {"nodename": "elsewhere"}, 7, "elsewhere"),
    ({}, {"nodename": "", "nodename_file": "/no/such/file"}, 11, "/no/such/file"),
    ({}, {"device_type": "ipvlan"}, 7, "device_type"),
    ({}, {"mtu": 7}, 5, "cali"),  # the kernel's word
    ({}, {"num_queues": 100000}, 5, "cali"),
    ({}, {"readiness_gates": ["not a url"]}, 7, "readiness_gates"),
    ({}, {"ipam": {"type": "no-such-plugin"}}, 7, "no-such-plugin"),
    ({}, {"prevResult": {"ips": [{"address": "?"}]}}, 7, "prevResult"),
    ({ANNOTATION + "hwAddr": "nonsense"}, {}, 7, "hwAddr"),
    ({ANNOTATION + "floatingIPs": '["172.30.0.1"]'}, {}, 7, "feature_control.floating_ips"),
    ({ANNOTATION + "allowedSourcePrefixes": '["10.0.0.1/8"]'}, {}, 7, "allowedSourcePrefixes"),
    ({ANNOTATION + "ipFamilies": '["IPv5"]'}, {}, 7, "IPv5"),
    ({ANNOTATION + "ipAddrs": '["10.65.0.300"]'}, {}, 7, "10.65.0.300"),
]


@pytest.mark.parametrize(("annotations", "config", "code", "text"), REFUSED)
async def test_what_is_refused_leaves_nothing_and_can_be_deleted(
    world: World, before: Footprint, annotations: dict[str, str], config: dict[str, Any], code: int, text: str
) -> None:
    pod = stranger(world, "refused")
    pod.annotations, pod.config = annotations, config
    with pytest.raises(CniError) as caught:
        await world.cluster.cni("ADD", pod)
    assert (caught.value.code, text in caught.value.text) == (code, True), caught.value
    await leaves_nothing(world, world.cluster.node("node1"), before)
    if code != 1:
        assert await world.cluster.cni("DEL", pod) == {}
        await leaves_nothing(world, world.cluster.node("node1"), before)


async def test_standard_input_cut_anywhere_is_refused_and_leaves_nothing(world: World, before: Footprint) -> None:
    pod, shim = stranger(world, "cut"), compile_c(SHIM)
    text = json.dumps(cni_stdin("ADD", pod)).encode()
    environment = cni_environment("ADD", pod, Path("/")) | {
        "CALICO_CNI_SOCKET": str(world.cluster.node("node1").cni_socket)
    }

    def ask(stdin: bytes) -> dict[str, Any]:
        done = subprocess.run([shim], env=environment, input=stdin, capture_output=True, timeout=30, check=False)
        assert done.returncode == 1
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    for cut in range(0, len(text), 29):
        assert (await asyncio.to_thread(ask, text[:cut]))["code"] == 6
    await leaves_nothing(world, world.cluster.node("node1"), before)


async def test_c13_check_finds_a_lost_allocation_and_status_a_lost_pool(world: World) -> None:
    pod = await pod_with(world)
    assert await world.cluster.cni("CHECK", pod) == {}
    await IpamClient(world.store).release_by_handle(f"k8s-pod-network.{pod.container_id}")
    with pytest.raises(CniError, match="is not assigned to k8s-pod-network") as caught:
        await world.cluster.cni("CHECK", pod)
    assert caught.value.code == 101
    assert await world.cluster.cni("STATUS", pod) == {}
    with pytest.raises(CniError) as caught:
        await world.cluster.cni(
            "STATUS", replace(pod, config={"ipam": {"type": "calico-ipam", "ipv4_pools": ["none"]}})
        )
    assert (caught.value.code, "'none'" in caught.value.details) == (50, True)
    world.cluster.kill_typha()
    try:

        async def tells() -> bool:
            try:
                await world.cluster.cni("STATUS", pod)
            except CniError as error:
                return error.code == 50 and "typha" in error.details
            return False

        await until(tells, 60, "STATUS tells that typha is away")
    finally:
        await world.cluster.start_typha()
        await world.cluster.wait_ready()
