"""Garbage of IPAM and addresses of load balancers: a real kube-apiserver, a real etcd, the real process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from ipaddress import ip_address
from typing import Any

import pytest
import pytest_asyncio

from libs import model
from libs.ipam.client import IpamClient
from libs.ipam.requests import AssignIpRequest
from libs.kube.api import MERGE, KubeError
from libs.kube.objects import NODES, PODS, SERVICES, Key
from libs.testkit.kube.control_plane import ControlPlane
from services.kube_controllers.core import load_balancers as core
from tests.contract.controllers_stage import Replica
from tests.kube.controllers_stage import KubeStage, eventually

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

LB = {"allowedUses": ["LoadBalancer"], "blockSize": 29}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory, control_plane: ControlPlane) -> AsyncIterator[KubeStage]:
    async with KubeStage(tmp_path_factory.mktemp("stage"), control_plane) as made:
        for name, cidr, size in (("lb4", "10.70.0.0/29", 29), ("lb6", "fd00:70::/125", 125)):
            await made.apply("IPPool", name, {"cidr": cidr, **LB, "blockSize": size})
        await made.apply("IPPool", "pods", {"cidr": "10.65.0.0/24", "blockSize": 28})
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(stage: KubeStage) -> Replica:
    controllers = {"node": {"leakGracePeriod": "2s"}, "loadBalancer": {"assignIPs": "AllServices"}}
    await stage.apply("KubeControllersConfiguration", "default", {"controllers": controllers})
    return await stage.controllers().until_leading()


async def held(stage: KubeStage, **attrs: str) -> set[str]:
    """Addresses with these attributes."""
    blocks = await IpamClient(stage.store).blocks()
    return {
        str(one.address)
        for block in blocks
        for one in block.allocated()
        if one.released_at is None and attrs.items() <= one.attrs.items()
    }


class Services:
    def __init__(self, stage: KubeStage, namespace: str) -> None:
        self.stage = stage
        self.namespace = namespace

    async def make(self, name: str, annotations: dict[str, Any] | None = None, **spec: Any) -> None:
        content = {
            "metadata": {
                "name": name,
                "annotations": {key: json.dumps(text) for key, text in (annotations or {}).items()},
            },
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]} | spec,
        }
        await self.stage.make(f"/api/v1/namespaces/{self.namespace}/services", "v1", "Service", name, content)

    async def shown(self, name: str) -> list[str]:
        document = await self.stage.api.get(SERVICES.path_of(Key(self.namespace, name)))
        return [one["ip"] for one in document["status"]["loadBalancer"].get("ingress") or []]

    async def until(self, name: str, *addresses: str, count: int | None = None) -> list[str]:
        """Until status and address management both say so."""
        found: list[str] = []

        async def holds() -> bool:
            nonlocal found
            found = await self.shown(name)
            stored = await held(self.stage, service=name, namespace=self.namespace)
            right = len(found) == count if count is not None else found == list(addresses)
            return right and set(found) == stored

        await eventually(holds, lambda: f"{name} shows {found}\n{self.stage.told()}")
        return found


async def test_s03_s04_a_service_gets_its_address_keeps_it_and_gives_it_back(
    stage: KubeStage, running: Replica
) -> None:
    services = Services(stage, await stage.namespace())
    await services.make("web")
    await services.make("other", loadBalancerClass="example.com/other")
    await services.make("exact", {core.ADDRESSES: ["10.70.0.5"]})
    await services.until("exact", "10.70.0.5")
    (first,) = await services.until("web", count=1)
    assert first != "10.70.0.5"
    path = SERVICES.path_of(Key(services.namespace, "web"))
    await stage.api.patch(f"{path}/status", {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}}, MERGE)
    await services.until("web", first)  # put right
    await stage.api.patch(path, {"metadata": {"annotations": {core.ADDRESSES: '["10.70.0.6"]'}}})
    await services.until("web", "10.70.0.6")  # moved
    assert await services.shown("other") == []
    await stage.api.patch(path, {"spec": {"type": "ClusterIP"}})
    await services.until("web")
    await stage.unmake(SERVICES, "exact", services.namespace)

    async def freed() -> bool:
        return not await held(stage, namespace=services.namespace)

    await eventually(freed, stage.told)


async def test_s04_an_address_that_is_taken_is_told_and_had_once_it_is_free(stage: KubeStage, running: Replica) -> None:
    services = Services(stage, await stage.namespace())
    await services.make("one", {core.ADDRESSES: ["10.70.0.3"]})
    await services.until("one", "10.70.0.3")
    await services.make("two", {core.ADDRESSES: ["10.70.0.3"]})

    async def told() -> bool:
        events = await stage.api.list_all(f"/api/v1/namespaces/{services.namespace}/events")
        return any(
            event["reason"] == "LoadBalancerAddress" and "10.70.0.3 is assigned to" in event["message"]
            and event["involvedObject"]["name"] == "two"
            for event in events.items
        )  # fmt: skip

    await eventually(told, stage.told)
    assert await services.shown("two") == []
    await stage.unmake(SERVICES, "one", services.namespace)
    await eventually_free(stage, services, "one")
    await stage.api.patch(  # any change of it calls for a round
        SERVICES.path_of(Key(services.namespace, "two")), {"metadata": {"labels": {"try": "again"}}}
    )
    await services.until("two", "10.70.0.3")


async def eventually_free(stage: KubeStage, services: Services, name: str) -> None:
    async def free() -> bool:
        return not await held(stage, service=name, namespace=services.namespace)

    await eventually(free, stage.told)


async def test_i13_i15_an_endpoint_whose_del_was_lost_goes_a_live_one_stays_and_a_nodes_addresses_go_with_it(
    stage: KubeStage, running: Replica
) -> None:
    ns, node, other = await stage.namespace(), f"{stage.prefix}-a", f"{stage.prefix}-b"
    ipam = IpamClient(stage.store)
    for name in (node, other):
        await stage.kube_node(name)
        await stage.calico_node(name, name)
    addresses = {"lost": ("10.65.0.17", node), "live": ("10.65.0.18", node), "away": ("10.65.0.33", other)}
    for pod, (address, where) in addresses.items():
        await stage.pod(ns, pod, where)
        attrs = {"namespace": ns, "pod": pod, "node": where}
        await ipam.assign_ip(
            AssignIpRequest(address=ip_address(address), handle=f"k8s-pod-network.{ns}-{pod}", node=where, attrs=attrs)
        )
        await endpoint(stage, ns, pod, where, address)
    await stage.unmake(PODS, "lost", ns)

    async def collected() -> bool:
        return not await held(stage, namespace=ns, pod="lost")

    await eventually(collected, stage.told)
    listed = {item.spec.pod for item in (await stage.resources.list("WorkloadEndpoint", ns)).items}  # type: ignore[attr-defined]
    assert listed == {"live", "away"}
    assert await held(stage, namespace=ns) == {"10.65.0.18", "10.65.0.33"}
    await stage.unmake(PODS, "away", ns)
    await stage.unmake(NODES, other)

    async def gone() -> bool:
        return await held(stage, namespace=ns) == {"10.65.0.18"}

    await eventually(gone, stage.told)
    await stage.until_gone("Node", other)
    status, text = await running.get("/metrics")
    assert status == 200
    assert f'ipam_allocations_in_use{{ippool="pods",node="{node}"}}' in text
    with pytest.raises(KubeError):
        await stage.api.get(PODS.path_of(Key(ns, "lost")))


async def endpoint(stage: KubeStage, namespace: str, pod: str, node: str, address: str) -> None:
    made = model.WorkloadEndpoint(
        metadata=model.ObjectMeta(namespace=namespace),
        spec=model.WorkloadEndpointSpec(
            orchestrator="k8s", pod=pod, node=node, endpoint="eth0", container_id="c1", interface_name="cali1",
            ip_networks=[f"{address}/32"], profiles=[f"kns.{namespace}"], mac="ee:ee:ee:ee:ee:ee",
        ),
    )  # fmt: skip
    made.metadata.name = model.names.workload_endpoint_name(made.spec)
    await stage.resources.create(made)
