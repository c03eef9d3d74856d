"""From a pod's annotations to the token buckets of its interface."""

from __future__ import annotations

import json

import pytest

from services.felix.core.bandwidth import ifb_name
from tests.cluster.conftest import ALLOW, World, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
P = "qos.projectcalico.org/"


def buckets(world: World, device: str) -> list[tuple[str, int, int]]:
    """(handle, bytes a second, bytes sent) of each token bucket; none where the device is not."""
    found = json.loads(world.run("node1", "tc", "-s", "-j", "qdisc", "show"))
    return [
        (one["handle"], one["options"]["rate"], one["bytes"])
        for one in found
        if one["kind"] == "tbf" and one["dev"] == device
    ]


async def test_n16_annotations_limit_both_directions_until_the_pod_goes(world: World) -> None:
    await world.cluster.add_namespace("ns1")
    add = world.cluster.add_pod
    pod = await add(
        "node1", "slow", namespace="ns1",
        annotations={f"{P}ingressBandwidth": "80M", f"{P}ingressBurst": "8M", "kubernetes.io/egress-bandwidth": "40M"},
    )  # fmt: skip
    far = await add("node2", "far", namespace="ns1")
    interface = pod.result["interfaces"][0]["name"]
    ifb = ifb_name(interface)

    async def has(device: str, *rates: int) -> bool:
        return [rate for _, rate, _ in buckets(world, device)] == list(rates)

    await until(lambda: has(interface, 10_000_000), 30, "what goes to the pod is limited")
    await until(lambda: has(ifb, 5_000_000), 30, "what comes from the pod is limited")
    await world.check([(pod, far, 8080, "tcp", ALLOW), (far, pod, 8080, "tcp", ALLOW)])
    before = buckets(world, interface) + buckets(world, ifb)
    assert all(sent > 0 for _, _, sent in before)

    world.cluster.kill_felix("node1")
    await world.cluster.start_felix("node1")
    after = buckets(world, interface) + buckets(world, ifb)
    assert [one[:2] for one in after] == [one[:2] for one in before]
    assert all(new[2] >= old[2] for new, old in zip(after, before, strict=True))

    world.run("node1", "ip", "link", "del", ifb)  # a foreign hand; the event is enough
    await until(lambda: has(ifb, 5_000_000), 30, "the ifb is there again")
    await world.cluster.eventually([(pod, far, 8080, "tcp")], ALLOW)  # once packets are led to it as well

    listed = await world.resources.list("WorkloadEndpoint", "ns1")
    endpoint = next(one for one in listed.items if one.spec.pod == "slow")
    endpoint.spec.qos_controls.egress_bandwidth = 0  # type: ignore[union-attr]
    endpoint.spec.qos_controls.ingress_bandwidth = 160_000_000  # type: ignore[union-attr]
    await world.resources.update(endpoint)
    await until(lambda: has(interface, 20_000_000), 30, "the new rate is there")
    await until(lambda: has(ifb), 30, "the other direction is free")
    await world.check([(pod, far, 8080, "tcp", ALLOW), (far, pod, 8080, "tcp", ALLOW)])
    await world.cluster.remove_pod(pod)
    await world.cluster.remove_pod(far)


async def test_an_annotation_that_cannot_be_used_does_not_keep_the_pod_out(world: World) -> None:
    await world.cluster.add_namespace("ns1")
    annotations = {f"{P}ingressBandwidth": "fast", f"{P}egressBandwidth": "8M", f"{P}egressPeakrate": "1M"}
    pod = await world.cluster.add_pod("node1", "odd", namespace="ns1", annotations=annotations)
    interface = pod.result["interfaces"][0]["name"]

    async def limited() -> bool:
        return [rate for _, rate, _ in buckets(world, ifb_name(interface))] == [1_000_000]

    await until(limited, 30, "the good part is taken")
    assert buckets(world, interface) == []
    await world.cluster.remove_pod(pod)

    async def gone() -> bool:
        return "bwcali" not in world.run("node1", "ip", "link", "show", "type", "ifb")

    await until(gone, 30, "the ifb has gone with the pod")
