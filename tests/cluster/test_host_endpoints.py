"""Host endpoints through the whole product: written to etcd, calculated by typha, enforced by felix on real packets.

    fabric ─ eth0 ─ node1 ─ ext0 ════ ext0 ─ node2 ─ eth0 ─ fabric      host1 (no Node resource) ─ eth0 ─ fabric

The second link makes "another interface" of node1. What each kind of policy does in the kernel, in every combination,
is tested in tests/kernel/test_host_endpoints.py; here it is shown to arrive, to leave again and to survive a restart.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

import pytest
import pytest_asyncio
import yaml

from libs import model
from libs.bus.applied import listening
from libs.model.base import Resource
from libs.model.codec import convert
from libs.policy import autohep
from libs.resources import codec
from libs.store.etcd import EtcdStore
from libs.testkit import bootstrap
from libs.testkit.cluster import PROJECT, Cluster, Pod
from libs.testkit.processes import Probe, Process
from libs.testkit.reach import Flow, Protocol, Verdict
from libs.testkit.topology import Namespace
from libs.testkit.traffic import Load
from tests.cluster.conftest import ALLOW, DENY, World, open_world, until, verdicts
from tests.cluster.kernel_state import handles, written

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAMILIES = (4, 6)
API = {"apiVersion": "projectcalico.org/v3"}
OUTSIDE = "host1"  # a machine that is no node of the cluster
OPEN = ["projectcalico-default-allow"]
EXT = {
    "node1": {4: "192.0.2.1", 6: "2001:db8:2::1"},
    "node2": {4: "192.0.2.2", 6: "2001:db8:2::2"},
}
PREFIX = {4: 24, 6: 64}
SPARE = {4: "172.31.0.200", 6: "fd00:172:31::c8"}  # in nobody's use
PORTS = (8080, 8090, 8100)
Where = tuple[str, str, int, Protocol]  # from, to, port, protocol


async def fill(store: EtcdStore, cluster: Cluster) -> None:
    await bootstrap.defaults(store, cluster)
    await store.delete(bootstrap.key("nodes", cluster.nodes[2].name))


class Hosts:
    """The cluster, with servers on the hosts themselves and flows between them.

    Places: node1, node2, host1, fabric; `node1/ext0` is node1 by its second link; `web`, `shut` are pods of node1.
    """

    def __init__(self, world: World, pods: dict[str, Pod]) -> None:
        self.world = world
        self.cluster = world.cluster
        self._pods = pods
        self._spaces = {node.name: node.namespace for node in self.cluster.nodes}
        self._spaces |= {"fabric": self.cluster.fabric, OUTSIDE: self.cluster.nodes[2].namespace}
        self._spaces |= {name: pod.netns for name, pod in pods.items()}

    def space(self, place: str) -> Namespace:
        return self._spaces[place.partition("/")[0]]

    def address(self, place: str, family: int) -> IPv4Address | IPv6Address:
        name, _, interface = place.partition("/")
        if interface == "ext0":
            return ip_address(EXT[name][family])
        if name in self._pods:
            return self._pods[name].address(family)
        node = self.cluster if name == "fabric" else self.cluster.node("node3" if name == OUTSIDE else name)
        return node.ipv4.ip if family == 4 else node.ipv6.ip

    def flow(self, where: Where, family: int) -> Flow:
        source, target, port, protocol = where
        return Flow(self.space(source).path, self.address(target, family), port, protocol)

    async def expect(self, wanted: dict[Where, Verdict], *, families: tuple[int, ...] = FAMILIES) -> None:
        """Each flow has its verdict now, in each family; no second chance."""
        asked = [(where, family) for where in wanted for family in families]
        flows, hoped = [self.flow(where, family) for where, family in asked], [wanted[where] for where, _ in asked]
        got = await verdicts(flows, 0.5, wanted=hoped)
        wrong = [
            f"IPv{family} {' '.join(map(str, where))}: {is_}, wanted {wanted[where]}"
            for (where, family), is_ in zip(asked, got, strict=True)
            if is_ != wanted[where]
        ]
        assert not wrong, "\n".join(wrong)

    async def eventually(self, wanted: dict[Where, Verdict], timeout_s: float = 30.0) -> None:
        """For what no revision tells the end of."""

        async def holds() -> bool:
            flows = [self.flow(where, family) for where in wanted for family in FAMILIES]
            return await verdicts(flows, 0.4) == [wanted[where] for where in wanted for _ in FAMILIES]

        await until(holds, timeout_s, f"{wanted}")

    def run(self, node: str, *command: str) -> str:
        return self.world.run(node, *command)


def hep(name: str, node: str = "node1", *, labels: dict[str, str] | None = None, **spec: Any) -> str:
    metadata = {"name": name, "labels": {"host": name, **(labels or {})}}
    return json.dumps({"kind": "HostEndpoint", "metadata": metadata, "spec": {"node": node, **spec}})


def gnp(name: str, selector: str = "has(host)", **spec: Any) -> str:
    types = [kind for kind, rules in (("Ingress", "ingress"), ("Egress", "egress")) if rules in spec]
    spec = {"selector": selector, "types": types, **spec}
    return json.dumps({"kind": "GlobalNetworkPolicy", "metadata": {"name": name}, "spec": spec})


def rule(action: str, *ports: int, protocol: str = "TCP", **more: Any) -> dict[str, Any]:
    return {"action": action, "protocol": protocol, "destination": {"ports": list(ports)}, **more}


def several(*documents: str) -> str:
    return "\n---\n".join(documents)


TO = ("node2", "node1", 8080, "tcp")
TO_OTHER = ("node2", "node1", 8090, "tcp")
TO_UDP = ("node2", "node1", 8080, "udp")
BY_EXT = ("node2", "node1/ext0", 8080, "tcp")
FROM = ("node1", "node2", 8080, "tcp")
FROM_OTHER = ("node1", "node2", 8090, "tcp")
THROUGH = ("node2", "web", 8080, "tcp")
THROUGH_OTHER = ("node2", "web", 8090, "tcp")
BACK = ("web", "node2", 8080, "tcp")
TO_POD = ("node1", "web", 8080, "tcp")
SELF = ("node1", "node1", 8080, "tcp")
EVERYTHING = (TO, TO_OTHER, TO_UDP, BY_EXT, FROM, FROM_OTHER, THROUGH, THROUGH_OTHER, BACK, TO_POD, SELF)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosts() -> AsyncIterator[Hosts]:
    async with AsyncExitStack() as stack:
        cluster = Cluster.create(nodes=3, tcp_ports=PORTS, udp_ports=PORTS, fill=fill)
        world = await open_world(stack, cluster)
        node1, node2, _ = cluster.nodes
        node1.namespace.ip([f"link add ext0 type veth peer name ext0 netns {node2.namespace.name}"])
        for node in (node1, node2):
            node.namespace.ip([
                *(f"addr add {EXT[node.name][family]}/{PREFIX[family]} dev ext0" + " nodad" * (family == 6)
                  for family in FAMILIES),
                "link set ext0 up",
            ])  # fmt: skip
        await cluster.add_namespace("ns1")
        pods = {name: await cluster.add_pod("node1", name, namespace="ns1", labels={"app": name}) for name in ("web",)}
        made = Hosts(world, pods)
        for family in FAMILIES:  # no node: nobody but its owner gives it routes to pods
            via = made.address("node1", family)
            made.space(OUTSIDE).ip([f"route add {made.address('web', family)} via {via}"])
        for place in ("node1", "node2", OUTSIDE, "fabric"):
            probe = Probe(place, made.space(place), PORTS, PORTS)
            stack.callback(probe.stop)
        yield made


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def clean(hosts: Hosts) -> AsyncIterator[None]:
    """Without host endpoints all is open, before every test and after it."""
    await hosts.expect(dict.fromkeys(EVERYTHING, ALLOW))
    yield
    world = hosts.world
    for resource in (await world.resources.list("HostEndpoint")).items:
        await world.delete("HostEndpoint", resource.metadata.name)
    await world.clean()
    for resource in (await world.resources.list("FelixConfiguration")).items:
        await world.delete("FelixConfiguration", resource.metadata.name)


def tables(hosts: Hosts, node: str) -> str:
    return "".join(hosts.run(node, "nft", "-s", "list", "table", family, "calico") for family in ("ip", "ip6"))


async def test_e02_named_interface_is_closed_until_policy_or_profile_opens_it(hosts: Hosts) -> None:
    world = hosts.world
    empty = tables(hosts, "node1")
    await world.apply(hep("eth", interfaceName="eth0"))
    closed = {
        TO: DENY,
        TO_UDP: DENY,
        FROM: DENY,
        BY_EXT: ALLOW,
        THROUGH: ALLOW,
        BACK: ALLOW,
        TO_POD: ALLOW,
        SELF: ALLOW,
    }
    await hosts.expect(closed)
    allow = gnp("allow", ingress=[rule("Allow", 8080)], egress=[rule("Allow", 8080)])
    await world.apply(allow)
    await hosts.expect(closed | {TO: ALLOW, TO_OTHER: DENY, FROM: ALLOW, FROM_OTHER: DENY})
    rules = [rule("Deny", 8080), {"action": "Allow"}]
    await world.apply(gnp("allow", ingress=rules, egress=rules))
    await hosts.expect({TO: DENY, TO_OTHER: ALLOW, TO_UDP: ALLOW, FROM: DENY, FROM_OTHER: ALLOW})
    await world.delete("GlobalNetworkPolicy", "allow")
    await hosts.expect(closed)
    await world.apply(hep("eth", interfaceName="eth0", profiles=OPEN))
    await hosts.expect(dict.fromkeys(EVERYTHING, ALLOW))
    await world.apply(hep("eth", interfaceName="ext0"))  # it moves to the other interface
    await hosts.expect({TO: ALLOW, FROM: ALLOW, BY_EXT: DENY})
    await world.delete("HostEndpoint", "eth")
    await hosts.expect(dict.fromkeys(EVERYTHING, ALLOW))
    assert tables(hosts, "node1") == empty


async def test_e03_wildcard_covers_every_interface_but_loopback_and_workloads(hosts: Hosts) -> None:
    world = hosts.world
    await world.apply(hep("all", interfaceName="*"))
    closed = {TO: DENY, FROM: DENY, BY_EXT: DENY, THROUGH: ALLOW, BACK: ALLOW, TO_POD: ALLOW, SELF: ALLOW}
    await hosts.expect(closed)
    await world.apply(hep("own", interfaceName="ext0", profiles=OPEN))
    await hosts.expect(closed | {BY_EXT: ALLOW})
    await world.delete("HostEndpoint", "own")
    await hosts.expect(closed)
    await world.delete("HostEndpoint", "all")
    await hosts.expect(dict.fromkeys(EVERYTHING, ALLOW))


async def test_e04_interface_is_found_by_expected_address_and_follows_it(hosts: Hosts) -> None:
    world = hosts.world

    def move(family: int, interface: str, verb: str) -> None:
        command = ["ip", "addr", verb, f"{SPARE[family]}/{PREFIX[family]}", "dev", interface]
        hosts.run("node1", *command, *(["nodad"] if family == 6 and verb == "add" else []))

    with ExitStack() as undo:
        for family in FAMILIES:
            await world.apply(hep("found", expectedIPs=[SPARE[family]]))
            await hosts.expect({TO: ALLOW, BY_EXT: ALLOW})  # nobody has the address
            for interface, closed, open_ in (("eth0", TO, BY_EXT), ("ext0", BY_EXT, TO)):
                move(family, interface, "add")
                undo.callback(move, family, interface, "del")
                await hosts.eventually({closed: DENY, open_: ALLOW})
                move(family, interface, "del")
                undo.pop_all()
                await hosts.eventually({closed: ALLOW, open_: ALLOW})
            await world.delete("HostEndpoint", "found")
    # An explicit name wins over an address.
    node = hosts.cluster.node("node1")
    await world.apply(several(hep("a", expectedIPs=[str(node.ipv4.ip)]), hep("b", interfaceName="eth0", profiles=OPEN)))
    await hosts.expect({TO: ALLOW, FROM: ALLOW})
    await world.delete("HostEndpoint", "b")
    await hosts.expect({TO: DENY, FROM: DENY})


async def test_e05_failsafe_ports_change_while_running(hosts: Hosts) -> None:
    world = hosts.world
    await world.apply(hep("all", interfaceName="*"))
    to_nats, to_etcd = ("node1", "fabric", 4222, "tcp"), ("node1", "fabric", 2379, "tcp")
    await hosts.expect({to_nats: ALLOW, to_etcd: ALLOW}, families=(4,))  # the servers have an IPv4 address only
    await hosts.expect({TO: DENY, FROM: DENY, TO_UDP: DENY})

    def config(inbound: list[dict[str, Any]], outbound: list[dict[str, Any]]) -> str:
        lifelines = [{"protocol": "TCP", "port": port} for port in (2379, 4222)]
        spec = {"failsafeInboundHostPorts": inbound, "failsafeOutboundHostPorts": [*lifelines, *outbound]}
        return json.dumps({"kind": "FelixConfiguration", "metadata": {"name": "default"}, "spec": spec})

    tcp, udp = {"protocol": "TCP", "port": 8080}, {"protocol": "UDP", "port": 8080}
    await world.apply(config([tcp], []))
    await hosts.expect({TO: ALLOW, TO_OTHER: DENY, TO_UDP: DENY, FROM: DENY})
    await world.apply(config([udp], [tcp]))
    await hosts.expect({TO: DENY, TO_UDP: ALLOW, FROM: ALLOW, FROM_OTHER: DENY})
    await world.apply(config([tcp | {"net": "172.31.0.12/32"}, tcp | {"net": "2001:db8:2::/64"}], []))
    await hosts.expect({TO: ALLOW, BY_EXT: DENY}, families=(4,))  # node2 has another address there
    await hosts.expect({TO: DENY, BY_EXT: ALLOW}, families=(6,))
    await world.delete("FelixConfiguration", "default")
    await hosts.expect({TO: DENY, TO_UDP: DENY, FROM: DENY})
    # Nothing of the above is more than a failsafe of the host itself.
    await hosts.expect({THROUGH: ALLOW, BACK: ALLOW})


async def test_apply_on_forward_policy_judges_what_passes_through(hosts: Hosts) -> None:
    world = hosts.world
    both = {direction: [rule("Deny", 8080), {"action": "Allow"}] for direction in ("ingress", "egress")}
    await world.apply(several(hep("all", interfaceName="*", profiles=OPEN), gnp("forward", **both)))
    await hosts.expect({TO: DENY, FROM: DENY, THROUGH: ALLOW, BACK: ALLOW, TO_POD: ALLOW})
    await world.apply(gnp("forward", applyOnForward=True, **both))
    await hosts.expect(
        {TO: DENY, FROM: DENY, THROUGH: DENY, BACK: DENY, THROUGH_OTHER: ALLOW, TO_OTHER: ALLOW, TO_POD: ALLOW}
    )
    await world.delete("GlobalNetworkPolicy", "forward")
    await hosts.expect(dict.fromkeys(EVERYTHING, ALLOW))


@contextmanager
def node_port(hosts: Hosts, port: int, to_port: int) -> Iterator[None]:
    """What kube-proxy does on node1: connections to `port` go to the pod."""
    try:
        for family, version in (("ip", 4), ("ip6", 6)):
            address = hosts.address("web", version)
            target = f"{address}:{to_port}" if version == 4 else f"[{address}]:{to_port}"
            for command in (
                f"add table {family} services",
                f"add chain {family} services pre {{ type nat hook prerouting priority -100; }}",
                f"add rule {family} services pre tcp dport {port} dnat to {target}",
            ):
                hosts.run("node1", "nft", command)
        yield
    finally:
        for family in ("ip", "ip6"):
            hosts.run("node1", "nft", f"add table {family} services")
            hosts.run("node1", "nft", f"delete table {family} services")


async def test_pre_dnat_policy_judges_the_port_that_the_sender_wrote(hosts: Hosts) -> None:
    world = hosts.world
    service = ("node2", "node1", 30080, "tcp")
    with node_port(hosts, 30080, 8080):
        await world.apply(hep("all", interfaceName="*", profiles=OPEN))
        await hosts.expect({service: ALLOW})
        await world.apply(gnp("ports", preDNAT=True, applyOnForward=True, ingress=[rule("Deny", 30080)]))
        await hosts.expect({service: DENY, THROUGH: ALLOW, TO: ALLOW, FROM: ALLOW})
        near = [
            rule("Allow", 30080, source={"nets": [str(ip_network(hosts.address("node2", family)))]})
            for family in FAMILIES
        ]
        await world.apply(gnp("ports", preDNAT=True, applyOnForward=True, ingress=[*near, rule("Deny", 30080)]))
        await hosts.expect({service: ALLOW, ("fabric", "node1", 30080, "tcp"): DENY})


async def test_do_not_track_policy_leaves_no_connection(hosts: Hosts) -> None:
    world = hosts.world
    answers = {"action": "Allow", "protocol": "TCP", "source": {"ports": [8080]}}

    def tracked(port: int) -> bool:
        text = hosts.run("node1", "conntrack", "-L") + hosts.run("node1", "conntrack", "-L", "-f", "ipv6")
        return f"dport={port} " in text

    hosts.run("node1", "conntrack", "-F")
    await world.apply(several(
        hep("eth", interfaceName="eth0"),
        gnp("raw", doNotTrack=True, applyOnForward=True, ingress=[rule("Allow", 8080)], egress=[answers]),
        gnp("normal", ingress=[rule("Allow", 8090)]),
    ))  # fmt: skip
    await hosts.expect({TO: ALLOW, TO_OTHER: ALLOW, TO_UDP: DENY})
    assert tracked(8090)
    assert not tracked(8080)
    await world.apply(gnp("raw", doNotTrack=True, applyOnForward=True, ingress=[rule("Deny", 8080)], egress=[answers]))
    await hosts.expect({TO: DENY, TO_OTHER: ALLOW})


async def test_e12_a_host_that_is_no_node_enforces_the_same_policy_and_is_known_by_its_addresses(hosts: Hosts) -> None:
    world = hosts.world
    to_outside, pod_to_outside = ("node2", OUTSIDE, 8080, "tcp"), ("web", OUTSIDE, 8080, "tcp")
    outside_to, fabric_to = (OUTSIDE, "node1", 8080, "tcp"), ("fabric", "node1", 8080, "tcp")
    pods_only = [rule("Allow", 8080, source={"selector": "app == 'web'"})]
    addresses = [str(hosts.address(OUTSIDE, family)) for family in FAMILIES]
    await world.apply(hep("db", "node3", labels={"role": "db"}, expectedIPs=addresses))
    await hosts.expect({to_outside: DENY, (OUTSIDE, "node2", 8080, "tcp"): DENY})
    await world.apply(gnp("db", "role == 'db'", ingress=pods_only, egress=[{"action": "Allow"}]))
    await hosts.expect({to_outside: DENY, pod_to_outside: ALLOW, ("web", OUTSIDE, 8090, "tcp"): DENY})
    # A rule elsewhere finds it by its labels.
    await world.apply(several(
        hep("eth", interfaceName="eth0"),
        gnp("from-db", "host == 'eth'", ingress=[rule("Allow", 8080, source={"selector": "role == 'db'"})]),
    ))  # fmt: skip
    await hosts.expect({outside_to: ALLOW, fabric_to: DENY, TO: DENY})
    await world.apply(hep("db", "node3", labels={"role": "other"}, expectedIPs=addresses))
    await hosts.expect({outside_to: DENY, fabric_to: DENY})


async def test_e11_two_on_one_interface_the_lower_name_acts_until_it_goes(hosts: Hosts) -> None:
    world = hosts.world
    await world.apply(hep("b", interfaceName="eth0"))
    await hosts.expect({TO: DENY})
    await world.apply(hep("a", interfaceName="eth0", profiles=OPEN))
    await hosts.expect({TO: ALLOW})
    await world.delete("HostEndpoint", "a")
    await hosts.expect({TO: DENY})


async def reconcile(hosts: Hosts, **config: Any) -> set[str]:
    """What the controller does in one round; names of the host endpoints that there are then."""
    world, resources = hosts.world, hosts.world.resources
    settings = convert(model.AutoHostEndpointConfig, config)
    nodes = [one for one in (await resources.list("Node")).items if isinstance(one, model.Node)]
    stored = [one for one in (await resources.list("HostEndpoint")).items if isinstance(one, model.HostEndpoint)]
    todo = autohep.changes(stored, autohep.desired(nodes, settings).endpoints)
    async with listening(world.bus, 60.0) as waiter:
        revisions = [(await resources.create(one)).revision for one in todo.create]
        revisions += [(await resources.update(one)).revision for one in todo.update]
        revisions += [(await resources.delete("HostEndpoint", name)).revision for name in todo.delete]
        await waiter.until_applied(revisions)
    return {one.metadata.name for one in (await resources.list("HostEndpoint")).items}


async def test_e06_automatic_host_endpoints_are_open_until_policy_restricts_them(hosts: Hosts) -> None:
    world = hosts.world
    await world.apply(hep("mine", "node2", interfaceName="ext0", profiles=OPEN))
    assert await reconcile(hosts, autoCreate="Enabled") == {"mine", "node1-auto-hep", "node2-auto-hep"}
    await hosts.expect(dict.fromkeys(EVERYTHING, ALLOW))
    restrict = gnp("nodes", "kubernetes.io/hostname == 'node1'", ingress=[rule("Allow", 8090)])
    await world.apply(restrict)
    await hosts.expect(
        {TO: DENY, TO_UDP: DENY, BY_EXT: DENY, TO_OTHER: ALLOW, FROM: ALLOW, THROUGH: ALLOW, SELF: ALLOW}
    )
    await hosts.expect({("fabric", "node2", 8080, "tcp"): ALLOW})  # has the same kind, but not the label
    await world.delete("GlobalNetworkPolicy", "nodes")
    # The other node is known by its addresses.
    peers = [rule("Allow", 8080, source={"selector": "kubernetes.io/hostname == 'node2'"})]
    await world.apply(gnp("peers", "kubernetes.io/hostname == 'node1'", ingress=peers))
    await hosts.expect({TO: ALLOW, TO_OTHER: DENY, ("fabric", "node1", 8080, "tcp"): DENY})
    await world.delete("GlobalNetworkPolicy", "peers")

    cidrs = ["172.31.0.0/24", "fd00:172:31::/64"]
    lan = {"generateName": "lan", "interfaceCIDRs": cidrs, "labels": {"net": "lan"}, "nodeSelector": "all()"}
    settings = {"autoCreate": "Enabled", "createDefaultHostEndpoint": "Disabled", "templates": [lan]}
    assert await reconcile(hosts, **settings) == {"mine", "node1-lan-auto-hep", "node2-lan-auto-hep"}
    await hosts.expect(dict.fromkeys(EVERYTHING, ALLOW))
    await world.apply(gnp("lan", "net == 'lan'", ingress=[rule("Allow", 8090)]))
    await hosts.expect({TO: DENY, TO_OTHER: ALLOW, BY_EXT: ALLOW, FROM: DENY, FROM_OTHER: ALLOW})
    assert await reconcile(hosts, autoCreate="Disabled") == {"mine"}
    await hosts.expect(dict.fromkeys(EVERYTHING, ALLOW))


@contextmanager
def controllers(hosts: Hosts) -> Iterator[Process]:
    """kube_controllers of the cluster, outside of its nodes."""
    cluster = hosts.cluster
    process = Process(
        "kube_controllers", (sys.executable, "-m", "services.kube_controllers"), netns=cluster.fabric,
        log_path=cluster.directory / "kube-controllers.log", env=cluster.env | {
            "KUBE_CONTROLLERS_LEASE_S": "10", "KUBE_CONTROLLERS_PROMETHEUSMETRICSPORT": "0",
        },
        cwd=PROJECT,
    )  # fmt: skip
    process.start()
    try:
        yield process
    finally:
        process.stop()


async def switch(hosts: Hosts, auto_create: str, *names: str) -> None:
    """By the KubeControllersConfiguration; until these are the host endpoints and every node enforces them."""
    world = hosts.world
    found: list[Resource] = []

    async def written() -> bool:
        nonlocal found
        found = (await world.resources.list("HostEndpoint")).items
        return {one.metadata.name for one in found} == set(names)

    async with listening(world.bus, 60.0) as waiter:
        spec = {"controllers": {"node": {"hostEndpoint": {"autoCreate": auto_create}}}}
        document = API | {"kind": "KubeControllersConfiguration", "metadata": {"name": "default"}, "spec": spec}
        await world.resources.apply(codec.from_json(document))
        await until(written, 50.0, f"host endpoints {names}")
        await waiter.until_applied([int(one.metadata.resource_version) for one in found])


async def test_e06_the_controller_makes_them_and_takes_them_away_again(hosts: Hosts) -> None:
    world = hosts.world
    ours = "projectcalico.org/created-by == 'calico-kube-controllers' && kubernetes.io/hostname == 'node1'"
    with controllers(hosts):
        await switch(hosts, "Enabled", "node1-auto-hep", "node2-auto-hep")
        await hosts.expect(dict.fromkeys(EVERYTHING, ALLOW))
        await world.apply(gnp("nodes", ours, ingress=[rule("Allow", 8090)]))
        restricted = {TO: DENY, TO_UDP: DENY, BY_EXT: DENY, TO_OTHER: ALLOW, FROM: ALLOW, THROUGH: ALLOW, SELF: ALLOW}
        await hosts.expect(restricted)
        await switch(hosts, "Disabled")
        await hosts.eventually(dict.fromkeys(EVERYTHING, ALLOW))  # the policy is still there, and selects nothing
        await switch(hosts, "Enabled", "node1-auto-hep", "node2-auto-hep")
        await hosts.expect(restricted)
    await hosts.expect(restricted)  # nobody needs the controller for what is written
    with controllers(hosts):
        await switch(hosts, "Disabled")
    await world.resources.delete("KubeControllersConfiguration", "default")
    await hosts.eventually(dict.fromkeys(EVERYTHING, ALLOW))


def tos_at_fabric(hosts: Hosts, source: str, family: int) -> int:
    """Type of service of a packet as it arrives outside of the cluster."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    level, option, told = (socket.SOL_IP, socket.IP_RECVTOS, socket.IP_TOS) if family == 4 else (
        socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, socket.IPV6_TCLASS,
    )  # fmt: skip
    with (
        hosts.space("fabric").socket(kind, socket.SOCK_DGRAM) as server,
        hosts.space(source).socket(kind, socket.SOCK_DGRAM) as sender,
    ):
        server.setsockopt(level, option, 1)
        server.bind((str(hosts.address("fabric", family)), 0))
        server.settimeout(20)
        sender.sendto(b"x", server.getsockname())
        _, ancillary, _, _ = server.recvmsg(64, 64)
    (data,) = [data for of, what, data in ancillary if (of, what) == (level, told)]
    return data[0]


async def test_n17_dscp_annotation_of_a_host_endpoint_marks_what_leaves_the_cluster(hosts: Hosts) -> None:
    world = hosts.world
    document = json.loads(hep("all", interfaceName="*", profiles=OPEN))
    for value, wanted in (("46", 46), ("AF11", 10)):
        document["metadata"]["annotations"] = {"qos.projectcalico.org/dscp": value}
        await world.apply(json.dumps(document))
        for family in FAMILIES:
            assert tos_at_fabric(hosts, "node1", family) == wanted << 2
            assert tos_at_fabric(hosts, "node2", family) == 0
    await world.delete("HostEndpoint", "all")
    assert [tos_at_fabric(hosts, "node1", family) for family in FAMILIES] == [0, 0]


async def test_restart_of_felix_loses_nothing_and_lets_nothing_through(hosts: Hosts) -> None:
    """Under `*`: the new process reaches etcd and NATS by failsafe ports, and finds the kernel as it should be."""
    world = hosts.world
    await world.apply(several(
        hep("all", interfaceName="*"),
        gnp("allow", ingress=[rule("Allow", 8080), rule("Allow", 8080, protocol="UDP")], egress=[rule("Allow", 8080)]),
    ))  # fmt: skip
    await hosts.expect({TO: ALLOW, TO_OTHER: DENY})
    before = handles(world, "node1")
    tcp = [hosts.flow(where, family) for where in (TO, BY_EXT, FROM, THROUGH) for family in FAMILIES]
    udp = [hosts.flow(TO_UDP, family) for family in FAMILIES]
    denied = [hosts.flow(where, family) for where in (TO_OTHER, FROM_OTHER) for family in FAMILIES]
    with Load(udp=udp, tcp=tcp, streams=tcp[:4], denied=denied) as load:

        async def more(connections: int) -> None:
            wanted = load.snapshot().tcp_opened + connections

            async def opened() -> bool:
                return load.snapshot().tcp_opened >= wanted

            await until(opened, 30, f"{connections} more connections")

        await more(30)
        hosts.cluster.kill_felix("node1")
        await more(50)  # nobody is there but the kernel
        await hosts.cluster.start_felix("node1")
        await more(50)
    assert load.result.lost_nothing, load.result
    assert load.result.denied_passed == 0, load.result
    assert load.result.denied_tried > 20, load.result
    assert handles(world, "node1") == before
    assert await written(world, "node1") == [0, 0, 0]
    await world.apply(gnp("allow", ingress=[rule("Allow", 8090)]))  # and it goes on following
    await hosts.expect({TO: DENY, TO_OTHER: ALLOW})


@pytest.mark.parametrize("part", ["felix", "typha"])
async def test_a_host_endpoint_that_went_while_nobody_saw_is_gone_afterwards(hosts: Hosts, part: str) -> None:
    world = hosts.world
    await world.apply(several(hep("all", interfaceName="*"), hep("eth", interfaceName="eth0")))
    await hosts.expect({TO: DENY, BY_EXT: DENY})
    if part == "felix":
        hosts.cluster.kill_felix("node1")
    else:
        hosts.cluster.kill_typha()
    await world.resources.delete("HostEndpoint", "eth")
    await world.resources.apply(codec.from_json(yaml.safe_load(hep("all", interfaceName="ext0")) | API))
    await hosts.expect({TO: DENY, BY_EXT: DENY})  # the kernel goes on as it was
    wanted = {TO: ALLOW, FROM: ALLOW, BY_EXT: DENY}
    if part == "felix":
        await hosts.cluster.start_felix("node1")
        await hosts.expect(wanted)
    else:
        await hosts.cluster.start_typha()
        await hosts.eventually(wanted)
