"""FelixConfiguration and BGPConfiguration that change while traffic flows: the effect is seen, nothing is lost."""

from __future__ import annotations

import json
import select
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest
import pytest_asyncio

from libs.bus import Msg, subjects, wire
from libs.netlink.netns import in_netns
from libs.testkit.cluster import Pod
from libs.testkit.reach import Flow, Verdict, open_flow
from libs.testkit.traffic import Load
from tests.cluster.conftest import ALLOW, DENY, World, until, verdicts

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAMILIES = (4, 6)
POLICY = """
kind: GlobalNetworkPolicy
metadata: {name: front}
spec:
  selector: role == 'server'
  types: [Ingress]
  ingress:
  - {action: Log, destination: {ports: [9090]}, protocol: TCP}
  - {action: Allow, source: {selector: role == 'client'}, destination: {ports: [8080]}, protocol: TCP}
  - {action: Allow, source: {selector: role == 'client'}, destination: {ports: [8080]}, protocol: UDP}
"""

SHUT = """
kind: GlobalNetworkPolicy
metadata: {name: shut}
spec: {selector: role == 'shut', types: [Ingress]}
"""


@dataclass(frozen=True)
class Pods:
    """server and near on node1, far on node2."""

    server: Pod
    near: Pod
    far: Pod


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(world: World) -> Pods:
    await world.cluster.add_namespace("ns1")
    add = world.cluster.add_pod
    return Pods(
        await add("node1", "server", namespace="ns1", labels={"role": "server"}),
        await add("node1", "near", namespace="ns1", labels={"role": "client"}),
        await add("node2", "far", namespace="ns1", labels={"role": "client"}),
    )


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def front(world: World, pods: Pods) -> AsyncIterator[None]:
    await world.apply(POLICY)
    yield
    await world.clean()
    for kind, name in (("FelixConfiguration", "default"), ("BGPConfiguration", "default")):
        if any(resource.metadata.name == name for resource in (await world.resources.list(kind)).items):
            await world.delete(kind, name)


async def configure(world: World, **spec: object) -> None:
    await world.apply(json.dumps({"kind": "FelixConfiguration", "metadata": {"name": "default"}, "spec": spec}))


def to_host(world: World, pod: Pod) -> list[Flow]:
    """A closed port of the pod's own node: what gets there is refused. (A ping would be of an established flow.)"""
    node = world.cluster.node(pod.node)
    return [Flow(pod.netns.path, address.ip, 9, "tcp") for address in (node.ipv4, node.ipv6)]


async def test_d10_n09_e07_p20_settings_change_under_traffic_without_loss(world: World, pods: Pods) -> None:
    flow = world.cluster.flow
    good = [flow(a, pods.server, 8080, family=family) for a in (pods.near, pods.far) for family in FAMILIES]
    udp = [flow(a, pods.server, 8080, "udp", family=family) for a in (pods.near, pods.far) for family in FAMILIES]
    refused = [flow(pods.far, pods.server, 9090, protocol, family=family) for protocol in ("tcp", "udp")
               for family in FAMILIES]  # fmt: skip
    host = to_host(world, pods.near)
    assert await verdicts(host) == [DENY, DENY]
    assert await verdicts(refused) == [DENY] * 4
    with Load(udp=udp, tcp=good, streams=good, tcp_per_s=100) as load:
        await configure(
            world, defaultEndpointToHostAction="Accept", nftablesFilterDenyAction="Reject", logPrefix="live %n",
            logActionRateLimit="7/minute",
        )  # fmt: skip
        assert await verdicts(host, 5.0) == [Verdict.REFUSED] * 2
        # A refusal that arrives while connect() still holds its socket counts only when the SYN is repeated, after 1 s.
        assert await verdicts(refused, 5.0) == [Verdict.REFUSED] * 4
        text = world.run("node1", "nft", "list", "table", "ip", "calico")
        assert 'prefix "live front: "' in text
        assert "limit rate 7/minute" in text
        await configure(world, vxlanPort=4790, logPrefix="again")
        assert await verdicts(host) == [DENY, DENY]
        assert await verdicts(refused) == [DENY] * 4
        text = world.run("node1", "nft", "list", "table", "ip6", "calico")
        assert 'prefix "again: "' in text
        assert "4790" in text
        assert "limit rate" not in text
    assert load.result.lost_nothing, load.result
    assert load.result.tcp_opened > 50, load.result


async def test_the_mode_ipvs_of_kube_proxy_comes_and_goes_under_traffic_without_loss(world: World, pods: Pods) -> None:
    """Only its interface here; what it leads to is shown by tests/kernel/test_ipvs.py."""
    flow, node = world.cluster.flow, world.cluster.node("node1")
    good = [flow(a, pods.server, 8080, family=family) for a in (pods.near, pods.far) for family in FAMILIES]
    host = to_host(world, pods.near)
    await configure(world, nftablesFilterDenyAction="Reject")

    async def stages(there: bool) -> None:
        async def listed() -> bool:
            found = [world.run("node1", "nft", "list", "table", family, "calico") for family in ("ip", "ip6")]
            seen = {("hook-ipvs-from" in text, "hook input priority 110" in text) for text in found}
            return seen == {(there, there)}

        await until(listed, 30, f"stages behind IPVS: {there}")

    warnings: list[str] = []

    def heard(message: Msg) -> None:
        warnings[:] = wire.decoder(wire.Applied).decode(message.data).warnings

    async def is_told(wanted: bool) -> bool:
        return any("nftablesFilterDenyAction: is Drop" in one for one in warnings) is wanted

    subscription = world.bus.subscribe(subjects.applied("node1"), heard)
    with Load(tcp=good, streams=good, tcp_per_s=100) as load:
        await stages(False)
        node.namespace.ip(["link add kube-ipvs0 type bridge", "addr add 10.96.0.1/32 dev kube-ipvs0"])
        await stages(True)
        assert await verdicts(host) == [DENY] * 2
        await until(lambda: is_told(True), 30, "Reject is Drop now")
        world.cluster.kill_felix("node1")
        await world.cluster.start_felix("node1")
        await stages(True)
        node.namespace.ip(["link del kube-ipvs0"])
        await stages(False)
        await until(lambda: is_told(False), 30, "Reject is Reject again")
    assert load.result.lost_nothing, load.result
    subscription.unsubscribe()


async def test_n19_packets_to_addresses_of_no_service_are_dropped_or_rejected(world: World, pods: Pods) -> None:
    node = world.cluster.node("node1")
    flows = [Flow(pods.near.netns.path, ip_address(text), 80, "udp") for text in ("198.51.100.9", "2001:db8:5::9")]
    other = world.cluster.node("node2")
    back = (f"198.51.100.0/24 via {other.ipv4.ip}", f"2001:db8:5::/64 via {other.ipv6.ip}")
    for route in back:  # the router that sends it back would be here
        world.run("node1", "ip", *(["-6"] if "db8" in route else []), "route", "add", *route.split(), "dev", "eth0")

    def counted() -> int:
        text = "".join(world.run("node1", "nft", "list", "table", f, "calico") for f in ("ip", "ip6"))
        lines = [line for line in text.splitlines() if "no such service: would loop" in line]
        return sum(int(line.partition("packets ")[2].split()[0]) for line in lines)

    try:
        assert counted() == 0
        spec = {"serviceClusterIPs": [{"cidr": "198.51.100.0/24"}], "serviceExternalIPs": [{"cidr": "2001:db8:5::/64"}]}
        await world.apply(json.dumps({"kind": "BGPConfiguration", "metadata": {"name": "default"}, "spec": spec}))
        assert await verdicts(flows) == [DENY, DENY]
        assert counted() >= 2
        await configure(world, serviceLoopPrevention="Reject")
        assert await verdicts(flows) == [Verdict.REFUSED, Verdict.REFUSED]
        await configure(world, serviceLoopPrevention="Disabled")
        assert "service-cidrs" not in world.run(node.name, "nft", "list", "table", "ip", "calico")
        await world.check([(pods.near, pods.server, 8080, "tcp", ALLOW)])
    finally:
        for route in back:
            world.run("node1", "ip", *(["-6"] if "db8" in route else []), "route", "del", *route.split(), "dev", "eth0")


def answered(connected: socket.socket, timeout_s: float = 20.0) -> bool:
    connected.send(b"ping")
    if not select.select([connected], [], [], timeout_s)[0]:
        return False
    try:
        return bool(connected.recv(100))
    except ConnectionError:
        return False


async def test_n22_the_next_pod_with_an_address_does_not_inherit_its_connections(world: World, pods: Pods) -> None:
    add = world.cluster.add_pod
    old = await add("node1", "first", namespace="ns1", labels={"role": "server"})
    flows = [world.cluster.flow(pods.near, old, 8080, "udp", family=family) for family in FAMILIES]
    addresses = [str(flow.address) for flow in flows]
    sockets = [open_flow(flow) for flow in flows]
    second: Pod | None = None
    try:
        for made, flow in zip(sockets, flows, strict=True):
            made.connect((str(flow.address), 8080))
            assert answered(made)
        await world.cluster.remove_pod(old)
        closed = (
            "kind: GlobalNetworkPolicy\nmetadata: {name: shut}\nspec: {selector: role == 'shut', types: [Ingress]}\n"
        )
        await world.apply(closed)
        second = await add(
            "node1", "second", namespace="ns1", labels={"role": "shut"},
            annotations={"cni.projectcalico.org/ipAddrs": json.dumps(addresses)},
        )  # fmt: skip
        assert [str(world.cluster.flow(pods.near, second, 8080, family=f).address) for f in FAMILIES] == addresses
        assert [answered(made, 0.5) for made in sockets] == [False, False]
        await world.delete("GlobalNetworkPolicy", "shut")  # the control: it is there and answers
        assert [answered(made) for made in sockets] == [True, True]
    finally:
        for made in sockets:
            made.close()
        if second is not None:
            await world.cluster.remove_pod(second)


async def test_n23_settings_of_interfaces_are_repaired_and_route_sync_can_be_switched_off(
    world: World, pods: Pods
) -> None:
    node = world.cluster.node("node1")
    name = pods.server.result["interfaces"][0]["name"]
    paths = (f"ipv4/conf/{name}/proxy_arp", f"ipv4/conf/{name}/forwarding", f"ipv6/conf/{name}/proxy_ndp")

    def values() -> list[str]:
        with in_netns(node.namespace.path):
            out = []
            for path in paths:
                with open(f"/proc/sys/net/{path}") as file:
                    out.append(file.read().strip())
            return out

    async def repaired() -> bool:
        return values() == ["1", "1", "1"]

    await until(repaired, 30, "settings are there")
    await configure(world, routeRefreshInterval="1s")
    node.namespace.sysctl(dict.fromkeys(paths, 0))  # not looked at: felix may look at them at this very moment
    await until(repaired, 30, "settings are put right")

    await configure(world, routeRefreshInterval="1s", routeSyncDisabled=True)
    address = world.cluster.flow(pods.near, pods.server, 8080).address

    def route() -> str:
        return world.run("node1", "ip", "route", "show", f"{address}/32")

    before = route()
    assert name in before
    passes = await world.metric("node1", "felix_int_dataplane_apply_time_seconds_count")
    world.run("node1", "ip", "route", "del", f"{address}/32", "dev", name)

    async def looked() -> bool:
        return await world.metric("node1", "felix_int_dataplane_apply_time_seconds_count") >= passes + 3

    await until(looked, 30, "felix looks at routes and leaves them alone")
    assert route() == ""
    await configure(world, routeRefreshInterval="1s")

    async def back() -> bool:
        return route() == before

    await until(back, 30, "the route is written again")


async def test_routes_to_pods_get_another_protocol_and_metric_and_strangers_go_without_loss(
    world: World, pods: Pods
) -> None:
    flow, near = world.cluster.flow, pods.near.result["interfaces"][0]["name"]
    good = [flow(a, pods.server, 8080, family=family) for a in (pods.near, pods.far) for family in FAMILIES]
    udp = [flow(a, pods.server, 8080, "udp", family=family) for a in (pods.near, pods.far) for family in FAMILIES]

    def shown(family: int) -> list[str]:
        address = flow(pods.near, pods.server, 8080, family=family).address
        lines = world.run("node1", "ip", f"-{family}", "route", "show", str(address)).splitlines()
        return [" ".join(line.replace("scope link", "").replace("pref medium", "").split()[1:]) for line in lines]

    def strangers() -> list[str]:
        return [world.run("node1", "ip", f"-{family}", "route", "show", net) for family, net in others.items()]

    others = {4: "192.0.2.0/24", 6: "2001:db8::/64"}
    name = pods.server.result["interfaces"][0]["name"]
    before = [f"dev {name} metric 1024"]
    assert [shown(family) for family in FAMILIES] == [before, before]
    with Load(udp=udp, tcp=good, streams=good, tcp_per_s=50) as load:
        await configure(
            world, deviceRouteProtocol=90, ipv4NormalRoutePriority=300, ipv6NormalRoutePriority=600,
            removeExternalRoutes=False,
        )  # fmt: skip

        async def changed() -> bool:
            wanted = [[f"dev {name} proto 90 metric {metric}"] for metric in (300, 600)]
            return [shown(family) for family in FAMILIES] == wanted

        await until(changed, 30, "protocol and metric are others")
        for family, net in others.items():
            world.run("node1", "ip", f"-{family}", "route", "add", net, "dev", near)
        world.cluster.kill_felix("node1")
        await world.cluster.start_felix("node1")
        third = await world.cluster.add_pod("node1", "third", namespace="ns1")
        assert f"dev {third.result['interfaces'][0]['name']} proto 90" in world.run("node1", "ip", "route")
        await world.cluster.remove_pod(third)
        assert all(strangers()), "they may stay"
        await configure(world)

        async def back() -> bool:
            return [shown(family) for family in FAMILIES] == [before, before] and not any(strangers())

        await until(back, 30, "all is as it was, and what is not ours is gone")
    assert load.result.lost_nothing, load.result


async def test_n21_the_mtu_file_follows_the_pools_and_pods_get_it(world: World, pods: Pods) -> None:
    file = world.cluster.node("node1").directory / "mtu"

    async def says(value: int) -> bool:
        return file.exists() and file.read_text() == f"{value}\n"

    await until(lambda: says(1500), 30, "the MTU of the host")
    world.run("node1", "ip", "link", "set", "eth0", "mtu", "1480")
    try:
        await until(lambda: says(1480), 30, "the MTU of the host, changed")
        pod = await world.cluster.add_pod("node1", "small", namespace="ns1")
        try:
            assert " mtu 1480 " in world.run("small", "ip", "link", "show", "eth0")
        finally:
            await world.cluster.remove_pod(pod)
        await configure(world, mtuIfacePattern="^nothing$")
        await until(lambda: says(1460), 30, "no interface tells")
    finally:
        world.run("node1", "ip", "link", "set", "eth0", "mtu", "1500")


async def test_an_interface_that_is_excluded_is_no_underlay(world: World, pods: Pods) -> None:
    file = world.cluster.node("node1").directory / "mtu"

    async def says(value: int) -> bool:
        return file.exists() and file.read_text() == f"{value}\n"

    await until(lambda: says(1500), 30, "the MTU of the host")
    await configure(world, interfaceExclude="kube-ipvs0,/^eth[0-9]+$/")
    await until(lambda: says(1460), 30, "no interface tells")
    await configure(world, interfaceExclude="kube-ipvs0")
    await until(lambda: says(1500), 30, "it counts again")
    await world.check([(pods.far, pods.server, 8080, "tcp", ALLOW)])


async def test_forwarding_is_left_alone_where_it_is_not_felixs_also_by_a_new_felix(world: World, pods: Pods) -> None:
    names = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")

    def forwarding() -> list[str]:
        return world.run("node1", "sysctl", "-n", *names).split()

    assert forwarding() == ["1", "1"]
    await configure(world, ipForwarding="Disabled")
    assert forwarding() == ["1", "1"], "it is not switched off either"
    world.run("node1", "sysctl", "-qw", *(f"{name}=0" for name in names))
    try:
        await configure(world, ipForwarding="Disabled", logPrefix="other")
        world.cluster.kill_felix("node1")
        await world.cluster.start_felix("node1")
        assert forwarding() == ["0", "0"]
    finally:
        await configure(world, ipForwarding="Enabled")
    assert forwarding() == ["1", "1"]
    world.run("node1", "sysctl", "-qw", *(f"{name}=0" for name in names))
    world.cluster.kill_felix("node1")
    await world.cluster.start_felix("node1")
    assert forwarding() == ["1", "1"]
    await world.check([(pods.far, pods.server, 8080, "tcp", ALLOW)])


async def test_intervals_of_interfaces_and_sets_count_without_those_of_routes_and_rules(
    world: World, pods: Pods
) -> None:
    never = {"nftablesRefreshInterval": "0s", "routeRefreshInterval": "0s"}
    name = pods.server.result["interfaces"][0]["name"]
    setting = f"net.ipv4.conf.{name}.proxy_arp"
    world.run("node1", "sysctl", "-qw", f"{setting}=0")

    async def repaired() -> bool:
        return world.run("node1", "sysctl", "-n", setting).strip() == "1"

    await configure(world, **never, interfaceRefreshInterval="1s")
    await until(repaired, 30, "settings of interfaces are put right")
    await configure(world, **never, interfaceRefreshInterval="0s", ipsetsRefreshInterval="1s")
    passes = await world.metric("node1", "felix_int_dataplane_apply_time_seconds_count")

    async def looked() -> bool:
        return await world.metric("node1", "felix_int_dataplane_apply_time_seconds_count") >= passes + 3

    await until(looked, 30, "felix looks at the tables")


async def test_what_is_shown_of_felix_itself_and_how_long_it_may_be_silent(world: World, pods: Pods) -> None:
    async def shown() -> tuple[bool, bool]:
        text = (await world.cluster.felix_get("node1", "/metrics")).text
        return "\npython_info{" in text, "\nprocess_resident_memory_bytes " in text

    async def times_out() -> bool:
        return "timed out" in (await world.cluster.felix_get("node1", "/liveness")).text

    async def well() -> bool:
        return (await world.cluster.felix_get("node1", "/liveness")).status == 200

    assert await shown() == (True, True)
    await configure(
        world, prometheusGoMetricsEnabled=False, prometheusProcessMetricsEnabled=True,
        healthTimeoutOverrides=[{"name": "Bus", "timeout": "1ms"}],
    )  # fmt: skip
    assert await shown() == (False, True)
    await until(times_out, 30, "a reporter that reports each second")
    await configure(world, prometheusProcessMetricsEnabled=False)
    assert await shown() == (True, False)
    await until(well, 30, "it may take its time again")


async def test_unsupported_fields_are_named_once_in_the_log(world: World, pods: Pods) -> None:
    for prefix in ("one", "two"):
        await configure(world, xdpEnabled=False, logPrefix=prefix)
    text = world.cluster.node("node1").felix.log_path.read_text()
    assert len([line for line in text.splitlines() if "xdpEnabled" in line]) == 1
