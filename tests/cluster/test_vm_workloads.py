"""A virtual machine as a workload: an endpoint that an orchestrator of machines wrote, behind a TAP device of a node.

No CNI takes part: the address comes from IPAM, the endpoint is a WorkloadEndpoint in the datastore, and felix gives the
device its policy, routes and settings as it does for pods.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from libs.ipam.client import IpamClient
from libs.ipam.requests import AssignRequest
from libs.testkit.cluster import Cluster, Pod
from libs.testkit.processes import Probe
from libs.testkit.topology import Namespace
from libs.testkit.vms import VirtualMachine
from tests.cluster.conftest import ALLOW, DENY, World, open_world, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEVICE, MAC = "tap1c0ffee", "fa:16:3e:00:00:01"
POLICY = """
kind: GlobalNetworkPolicy
metadata: {name: machines}
spec:
  selector: role == 'machine'
  types: [Ingress, Egress]
  ingress:
    - {action: Allow, protocol: TCP, source: {selector: app == 'client'}, destination: {ports: [8080]}}
  egress:
    - {action: Allow, protocol: TCP, destination: {selector: app == 'client'}}
"""


def endpoint(addresses: list[str]) -> str:
    return f"""
kind: WorkloadEndpoint
metadata:
  name: node1-openstack-vm--1-port--1
  namespace: ns1
  labels: {{role: machine}}
spec:
  orchestrator: openstack
  node: node1
  workload: vm-1
  endpoint: port-1
  interfaceName: {DEVICE}
  mac: {MAC}
  ipNetworks: {addresses}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world() -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        made = await open_world(stack, Cluster.create(nodes=2, udp_ports=(), env={"FELIX_INTERFACEPREFIX": "cali,tap"}))
        await made.cluster.add_namespace("ns1")
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def machine(world: World) -> AsyncIterator[Pod]:
    """Booted, addressed and serving; its endpoint is not written yet."""
    node = world.cluster.node("node1").namespace
    ipam = IpamClient(world.store)
    given = await ipam.auto_assign(AssignRequest(handle="openstack.vm-1", node="node1", num4=1, num6=1))
    with VirtualMachine(Namespace(f"cal-{world.cluster.id}-node1-ns1-vm-pod"), node, DEVICE) as vm:
        node.ip([f"link set {DEVICE} up"])
        (outside,) = [
            line.split()[2] for line in world.run("node1", "ip", "-br", "-6", "addr", "show", DEVICE).splitlines()
        ]
        vm.space.ip(
            [
                f"link set eth0 address {MAC} up",
                f"addr add {given.v4[0].ip}/16 dev eth0",  # as in a subnet: the node answers for every other address
                "route add default via 10.65.255.254",
                f"addr add {given.v6[0].ip}/128 dev eth0 nodad",
                f"route add default via {outside.partition('/')[0]} dev eth0",
            ]
        )
        pod = Pod("vm-1", "ns1", "node1", vm.space)
        pod.result = {"ips": [{"address": f"{one.ip}/{one.ip.max_prefixlen}"} for one in (*given.v4, *given.v6)]}
        pod.probe = Probe("vm-1", vm.space, (8080, 8081), ())
        try:
            yield pod
        finally:
            pod.probe.stop()
            await ipam.release_by_handle("openstack.vm-1")


async def test_e12_a_machine_has_policy_routes_and_settings_and_loses_them_with_its_endpoint(
    world: World, machine: Pod
) -> None:
    near, far = [
        await world.cluster.add_pod(node, f"client-{node}", namespace="ns1", labels={"app": "client"})
        for node in ("node1", "node2")
    ]
    stranger = await world.cluster.add_pod("node2", "stranger", namespace="ns1")
    await world.apply(POLICY)
    try:
        await world.check([(near, machine, 8080, "tcp", DENY), (machine, near, 8080, "tcp", DENY)])
        await world.apply(endpoint([str(entry["address"]) for entry in machine.result["ips"]]))
        machine.netns.ip(["neigh flush dev eth0"])  # it is still waiting for an answer to its first question
        await world.check(
            [
                (near, machine, 8080, "tcp", ALLOW),
                (far, machine, 8080, "tcp", ALLOW),
                (near, machine, 8081, "tcp", DENY),
                (stranger, machine, 8080, "tcp", DENY),
                (machine, near, 8080, "tcp", ALLOW),
                (machine, far, 8081, "tcp", ALLOW),
                (machine, stranger, 8080, "tcp", DENY),
            ]
        )
        for setting in ("ipv4/conf/%s/proxy_arp", "ipv6/conf/%s/proxy_ndp", "ipv4/conf/%s/forwarding"):
            assert world.run("node1", "cat", f"/proc/sys/net/{setting % DEVICE}") == "1\n"
        await world.delete("WorkloadEndpoint", "node1-openstack-vm--1-port--1", "ns1")
        await world.check([(near, machine, 8080, "tcp", DENY), (machine, near, 8080, "tcp", DENY)])
        assert DEVICE not in world.run("node1", "ip", "route", "show", "proto", "boot")
    finally:
        await world.clean()
        for pod in (near, far, stranger):
            await world.cluster.remove_pod(pod)


async def test_e12_a_machine_that_restarts_with_its_endpoint_is_connected_again(world: World, machine: Pod) -> None:
    """The device goes and comes with the machine; the endpoint stays."""
    client = await world.cluster.add_pod("node2", "client", namespace="ns1", labels={"app": "client"})
    await world.apply(POLICY + "---" + endpoint([str(entry["address"]) for entry in machine.result["ips"]]))
    try:
        await world.check([(client, machine, 8080, "tcp", ALLOW)])
        world.cluster.node("node1").namespace.ip([f"link set {DEVICE} down"])
        await world.check([(client, machine, 8080, "tcp", DENY)])
        world.cluster.node("node1").namespace.ip([f"link set {DEVICE} up"])

        async def routed() -> bool:
            return all(
                DEVICE in world.run("node1", "ip", family, "route", "show", "proto", "boot") for family in ("-4", "-6")
            )

        await until(routed, 10, "the machine's routes are back")
        await world.check([(client, machine, 8080, "tcp", ALLOW)], families=(4,))
    finally:
        await world.delete("WorkloadEndpoint", "node1-openstack-vm--1-port--1", "ns1")
        await world.clean()
        await world.cluster.remove_pod(client)
