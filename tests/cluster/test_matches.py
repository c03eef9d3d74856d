"""Every way a rule can name what it matches, as users write it: protocols, ICMP, service accounts, services; and what
never decides: staged policies. Two nodes, IPv4 and IPv6, real packets.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from libs.model import keys
from libs.testkit.cluster import Pod
from libs.testkit.reach import Verdict
from tests.cluster.conftest import ALLOW, DENY, World, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAMILIES = (4, 6)


@dataclass(frozen=True)
class Pods:
    """In ns1: web on node1; client, with the account `reader`, and other, with `writer`, on node2."""

    web: Pod
    client: Pod
    other: Pod


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(world: World) -> Pods:
    await world.cluster.add_namespace("ns1", labels={"team": "red"}, service_accounts=("reader", "writer"))
    add = world.cluster.add_pod
    return Pods(
        await add("node1", "web", namespace="ns1", labels={"app": "web"}),
        await add("node2", "client", namespace="ns1", labels={"app": "client"}, service_account="reader"),
        await add("node2", "other", namespace="ns1", labels={"app": "other"}, service_account="writer"),
    )


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def clean(world: World, pods: Pods) -> AsyncIterator[None]:
    yield
    await world.clean()


def policy(rules: str, *, name: str = "p", direction: str = "ingress", selector: str = "app == 'web'") -> str:
    return f"""
kind: NetworkPolicy
metadata: {{name: {name}, namespace: ns1}}
spec:
  selector: {selector}
  types: [{direction.capitalize()}]
  {direction}: {rules}
"""


def pings(world: World, source: Pod, target: Pod, family: int) -> bool:
    try:
        world.run(source.name, "ping", "-c", "1", "-W", "1", str(target.address(family)))
    except subprocess.CalledProcessError:
        return False
    return True


@pytest.mark.parametrize(
    ("rule", "tcp", "udp"),
    [
        ("{action: Allow, protocol: TCP}", ALLOW, DENY),
        ("{action: Allow, protocol: 17}", DENY, ALLOW),
        ("{action: Allow, notProtocol: UDP}", ALLOW, DENY),
        ("{action: Allow, notProtocol: 6}", DENY, ALLOW),
        ("{action: Allow, protocol: SCTP}", DENY, DENY),
        ("{action: Allow, protocol: 47}", DENY, DENY),
    ],
)
async def test_p10_protocols_by_name_and_number(
    world: World, pods: Pods, rule: str, tcp: Verdict, udp: Verdict
) -> None:
    await world.apply(policy(f"[{rule}]"))
    await world.check([(pods.client, pods.web, 8080, "tcp", tcp), (pods.client, pods.web, 8080, "udp", udp)])


@pytest.mark.parametrize("family", FAMILIES)
async def test_p10_a_rule_for_one_family_leaves_the_other_alone(world: World, pods: Pods, family: int) -> None:
    await world.apply(policy(f"[{{action: Deny, ipVersion: {family}}}, {{action: Allow}}]"))
    flow = (pods.client, pods.web, 8080, "tcp")
    await world.check([(*flow, DENY)], families=[family])
    await world.check([(*flow, ALLOW)], families=[10 - family])


async def test_p12_icmp_by_type_and_code(world: World, pods: Pods) -> None:
    echo = "[{action: Deny, protocol: ICMP, icmp: {type: 8, code: 0}}, " \
        "{action: Deny, protocol: ICMPv6, icmp: {type: 128, code: 0}}, {action: Allow}]"  # fmt: skip
    assert all(pings(world, pods.client, pods.web, family) for family in FAMILIES)
    await world.apply(policy(echo))
    assert not any(pings(world, pods.client, pods.web, family) for family in FAMILIES)
    await world.check([(pods.client, pods.web, 8080, "tcp", ALLOW)])
    await world.apply(policy(echo.replace("code: 0", "code: 1")))
    assert all(pings(world, pods.client, pods.web, family) for family in FAMILIES)
    await world.apply(policy("[{action: Deny, protocol: ICMP, notICMP: {type: 8}}, {action: Allow, protocol: ICMP}]"))
    assert pings(world, pods.client, pods.web, 4)
    assert not pings(world, pods.client, pods.web, 6)


@pytest.mark.parametrize(
    ("match", "client", "other"),
    [
        ("{names: [reader]}", ALLOW, DENY),
        ("{names: [reader, writer]}", ALLOW, ALLOW),
        ("{names: [nobody]}", DENY, DENY),
        ("{selector: projectcalico.org/name == 'writer'}", DENY, ALLOW),
        ("{names: [reader], selector: projectcalico.org/name == 'writer'}", DENY, DENY),
    ],
)
async def test_p15_service_accounts(world: World, pods: Pods, match: str, client: Verdict, other: Verdict) -> None:
    await world.apply(policy(f"[{{action: Allow, source: {{serviceAccounts: {match}}}}}]"))
    await world.check([(pods.client, pods.web, 8080, "tcp", client), (pods.other, pods.web, 8080, "tcp", other)])


class Service:
    """Endpoint slices as Kubernetes' controllers write them, one for each family."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name

    async def points_to(self, *targets: Pod, port: int = 8080) -> None:
        for family in FAMILIES:
            value = {
                "kind": "EndpointSlice",
                "apiVersion": "discovery.k8s.io/v1",
                "metadata": {
                    "name": f"{self._name}-{family}",
                    "namespace": "ns1",
                    "labels": {"kubernetes.io/service-name": self._name},
                },
                "addressType": f"IPv{family}",
                "endpoints": [{"addresses": [str(pod.address(family))]} for pod in targets],
                "ports": [{"name": "web", "protocol": "TCP", "port": port}],
            }
            await self._world.store.put(self._key(family), json.dumps(value).encode())

    async def remove(self) -> None:
        for family in FAMILIES:
            await self._world.store.delete(self._key(family))

    def _key(self, family: int) -> str:
        return keys.resource_key("KubernetesEndpointSlice", f"{self._name}-{family}", "ns1")


async def answers(world: World, source: Pod, target: Pod, port: int = 8080) -> list[Verdict]:
    found = []
    for family in FAMILIES:
        found += await world.cluster.reach([(source, target, port, "tcp")], family=family, timeout_s=0.3)
    return found


async def test_p16_service_as_destination_opens_its_backends_on_their_ports(world: World, pods: Pods) -> None:
    service = Service(world, "shop")
    try:
        await service.points_to(pods.web)
        await world.apply(
            policy(
                "[{action: Allow, destination: {services: {name: shop, namespace: ns1}}}]",
                direction="egress",
                selector="app == 'client'",
            )
        )
        await world.check(
            [
                (pods.client, pods.web, 8080, "tcp", ALLOW),
                (pods.client, pods.web, 9090, "tcp", DENY),
                (pods.client, pods.web, 8080, "udp", DENY),
                (pods.client, pods.other, 8080, "tcp", DENY),
            ]
        )

        async def opened() -> bool:
            return await answers(world, pods.client, pods.other) == [ALLOW, ALLOW]

        await service.points_to(pods.web, pods.other)
        await until(opened, 10, "the service's new backend is reached")

        async def moved() -> bool:
            return await answers(world, pods.client, pods.web, 9090) == [ALLOW, ALLOW]

        await service.points_to(pods.web, port=9090)
        await until(moved, 10, "the service's other port is reached")
        await world.check([(pods.client, pods.web, 8080, "tcp", DENY), (pods.client, pods.other, 8080, "tcp", DENY)])
    finally:
        await service.remove()


async def test_p17_service_as_source_lets_in_only_its_backends(world: World, pods: Pods) -> None:
    service = Service(world, "callers")
    try:
        await service.points_to(pods.client)
        await world.apply(policy("[{action: Allow, source: {services: {name: callers, namespace: ns1}}}]"))
        await world.check(
            [
                (pods.client, pods.web, 8080, "tcp", ALLOW),
                (pods.client, pods.web, 9090, "udp", ALLOW),
                (pods.other, pods.web, 8080, "tcp", DENY),
            ]
        )

        async def swapped() -> bool:
            one, two = await answers(world, pods.client, pods.web), await answers(world, pods.other, pods.web)
            return one == [DENY, DENY] and two == [ALLOW, ALLOW]

        await service.points_to(pods.other)
        await until(swapped, 15, "the other backend alone is let in")
    finally:
        await service.remove()


async def test_p21_staged_policies_count_for_nothing(world: World, pods: Pods) -> None:
    staged = policy("[{action: Deny}]", name="trial").replace("kind: NetworkPolicy", "kind: StagedNetworkPolicy")
    await world.apply(staged)
    flow = (pods.client, pods.web, 8080, "tcp")
    await world.check([(*flow, ALLOW)])
    await world.apply(policy("[{action: Allow, protocol: UDP}]"))
    await world.check([(*flow, DENY)])
    await world.apply("""
kind: StagedNetworkPolicy
metadata: {name: p, namespace: ns1}
spec: {stagedAction: Delete}
""")
    await world.check([(*flow, DENY), (pods.client, pods.web, 8080, "udp", ALLOW)])


async def test_p20_metadata_of_a_rule_is_in_its_comment(world: World, pods: Pods) -> None:
    await world.apply(policy("[{action: Allow, metadata: {annotations: {ticket: a-17, owner: web}}}]"))
    for family in ("ip", "ip6"):
        listed = world.run("node1", "nft", "list", "chain", family, "calico", "pi-np/ns1/p")
        assert "np/ns1/p/0 allow; owner=web,ticket=a-17" in listed
