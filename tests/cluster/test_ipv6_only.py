"""Pods that have IPv6 and nothing else: routes between nodes, neighbour discovery, policy by selectors, networks and
ICMPv6 types; nothing of it needs an IPv4 address.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from libs.testkit.cluster import Pod
from tests.cluster.conftest import ALLOW, DENY, World

pytestmark = pytest.mark.asyncio(loop_scope="module")

ONLY_IPV6 = {"ipam": {"type": "calico-ipam", "assign_ipv4": "false", "assign_ipv6": "true"}}


@dataclass(frozen=True)
class Pods:
    web: Pod
    near: Pod
    far: Pod


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(world: World) -> Pods:
    await world.cluster.add_namespace("ns1")
    add = world.cluster.add_pod
    return Pods(
        await add("node1", "web", namespace="ns1", labels={"app": "web"}, config=ONLY_IPV6),
        await add("node1", "near", namespace="ns1", labels={"app": "near"}, config=ONLY_IPV6),
        await add("node2", "far", namespace="ns1", labels={"app": "far"}, config=ONLY_IPV6),
    )


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def clean(world: World, pods: Pods) -> AsyncIterator[None]:
    yield
    await world.clean()


def policy(rules: str, direction: str = "ingress") -> str:
    return f"""
kind: NetworkPolicy
metadata: {{name: p, namespace: ns1}}
spec:
  selector: app == 'web'
  types: [{direction.capitalize()}]
  {direction}: {rules}
"""


async def test_n14_pods_have_no_ipv4_and_reach_each_other_on_and_across_nodes(world: World, pods: Pods) -> None:
    for pod in (pods.web, pods.near, pods.far):
        assert [address.version for address in pod.addresses] == [6]
        assert world.run(pod.name, "ip", "-4", "route", "show") == ""
    await world.check(
        [
            (pods.near, pods.web, 8080, "tcp", ALLOW),
            (pods.far, pods.web, 8080, "tcp", ALLOW),
            (pods.web, pods.far, 8080, "udp", ALLOW),
        ],
        families=[6],
    )


async def test_n14_policy_decides_by_selector_network_and_default(world: World, pods: Pods) -> None:
    near, far = (pods.near, pods.web, 8080, "tcp"), (pods.far, pods.web, 8080, "tcp")
    await world.apply(policy("[{action: Allow, source: {selector: app == 'far'}}]"))
    await world.check([(*near, DENY), (*far, ALLOW)], families=[6])
    await world.apply(policy(f"[{{action: Allow, source: {{nets: ['{pods.near.address(6)}/128']}}}}]"))
    await world.check([(*near, ALLOW), (*far, DENY)], families=[6])
    await world.apply(policy("[{action: Allow, ipVersion: 4}]"))
    await world.check([(*near, DENY), (*far, DENY)], families=[6])
    await world.apply(policy("[{action: Deny}]", "egress"))
    await world.check([(pods.web, pods.far, 8080, "tcp", DENY), (*near, ALLOW)], families=[6])


async def test_n14_neighbour_discovery_goes_on_under_deny_all_and_icmpv6_is_policed(world: World, pods: Pods) -> None:
    def pings(source: Pod, wait_s: int) -> bool:
        world.run(source.name, "ip", "-6", "neigh", "flush", "dev", "eth0")  # so that neighbours are asked for again
        try:
            world.run(source.name, "ping", "-c", "1", "-W", str(wait_s), str(pods.web.address(6)))
        except subprocess.CalledProcessError:
            return False
        return True

    assert pings(pods.far, 10)
    await world.apply(policy("[{action: Deny, protocol: ICMPv6, icmp: {type: 128}}, {action: Allow}]"))
    assert not pings(pods.far, 1)
    await world.check([(pods.far, pods.web, 8080, "tcp", ALLOW)], families=[6])
    await world.apply(policy("[{action: Allow, protocol: TCP}]"))
    world.run(pods.web.name, "ip", "-6", "neigh", "flush", "dev", "eth0")
    await world.check([(pods.near, pods.web, 8080, "tcp", ALLOW)], families=[6])
    assert not pings(pods.near, 1)
