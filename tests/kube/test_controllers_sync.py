"""kube_controllers brings Kubernetes' objects into etcd: a real kube-apiserver, a real etcd, the real process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from libs import model
from libs.kube import objects
from libs.testkit.kube.control_plane import ControlPlane
from tests.contract.controllers_stage import Replica
from tests.kube.controllers_stage import CNP_GROUP, KubeStage, eventually

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

ORCHESTRATOR = "projectcalico.org/orchestrator == 'k8s'"
WEB = {
    "podSelector": {"matchLabels": {"app": "db"}},
    "policyTypes": ["Ingress"],
    "ingress": [
        {"from": [{"podSelector": {"matchLabels": {"role": "web"}}}], "ports": [{"protocol": "TCP", "port": 5432}]}
    ],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory, control_plane: ControlPlane) -> AsyncIterator[KubeStage]:
    async with KubeStage(tmp_path_factory.mktemp("stage"), control_plane) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(stage: KubeStage) -> Replica:
    return await stage.controllers().until_leading()


async def test_p01_k02_a_network_policy_comes_changes_and_goes(stage: KubeStage, running: Replica) -> None:
    ns = await stage.namespace()
    await stage.policy(ns, "web", WEB)
    name = "knp.default.web"
    made = await stage.until_stored("NetworkPolicy", name, ns)
    assert made["spec"] == {
        "tier": "default", "order": 1000, "types": ["Ingress"], "selector": f"{ORCHESTRATOR} && app == 'db'",
        "ingress": [
            {
                "action": "Allow", "protocol": "TCP", "source": {"selector": f"{ORCHESTRATOR} && role == 'web'"},
                "destination": {"ports": [5432]},
            }
        ],
    }  # fmt: skip
    assert made["metadata"]["namespace"] == ns
    await stage.change(objects.NETWORK_POLICIES, "web", {"spec": {"ingress": []}}, ns)
    changed = await stage.until_stored("NetworkPolicy", name, ns, holds=lambda found: "ingress" not in found["spec"])
    assert changed["metadata"]["uid"] == made["metadata"]["uid"], "the same object, updated"
    await stage.unmake(objects.NETWORK_POLICIES, "web", ns)
    await stage.until_gone("NetworkPolicy", name, ns)


async def test_k02_what_is_damaged_in_etcd_is_repaired_and_users_objects_are_left_alone(
    stage: KubeStage, running: Replica
) -> None:
    ns = await stage.namespace(labels={"env": "prod"})
    await stage.policy(ns, "web", WEB)
    mine = {"selector": "all()", "order": 5, "types": ["Ingress"]}
    await stage.apply("NetworkPolicy", "mine", mine, namespace=ns)
    await stage.apply("Profile", "mine", {})
    made = await stage.until_stored("NetworkPolicy", "knp.default.web", ns)
    key = model.keys.resource_key("NetworkPolicy", "knp.default.web", ns)
    for damage in (None, b"{", b'{"spec": []}', json.dumps(made | {"spec": {"selector": "all()"}}).encode()):
        if damage is None:
            await stage.store.delete(key)
        else:
            await stage.store.put(key, damage)
        again = await stage.until_stored(
            "NetworkPolicy", "knp.default.web", ns, holds=lambda found: found.get("spec") == made["spec"]
        )
        assert again["metadata"]["uid"]
    # Strays: of names that only we give, and nothing in Kubernetes that they stand for.
    await stage.apply("NetworkPolicy", "knp.default.stray", mine, namespace=ns)
    await stage.until_gone("NetworkPolicy", "knp.default.stray", ns)
    await stage.apply("Profile", "kns.stray", {})
    await stage.until_gone("Profile", "kns.stray")
    await stage.apply("Profile", f"ksa.{ns}.stray", {})
    await stage.until_gone("Profile", f"ksa.{ns}.stray")
    await stage.store.delete(model.keys.resource_key("Profile", f"kns.{ns}"))
    await stage.until_stored("Profile", f"kns.{ns}")
    left = await stage.stored("NetworkPolicy", "mine", ns)
    assert left is not None
    assert left["spec"]["order"] == 5
    assert await stage.stored("Profile", "mine") is not None
    # Labels that somebody gave a generated object stay: only its content is ours.
    await stage.resources.patch(
        "NetworkPolicy", "knp.default.web", {"metadata": {"labels": {"a": "b"}}}, model_patch(), ns
    )
    await stage.policy(ns, "second", WEB)
    await stage.until_stored("NetworkPolicy", "knp.default.second", ns)
    labelled = await stage.stored("NetworkPolicy", "knp.default.web", ns)
    assert labelled is not None
    assert labelled["metadata"]["labels"]["a"] == "b"


def model_patch() -> Any:
    from libs.resources.patch import PatchType

    return PatchType.MERGE


async def test_k02_namespaces_and_service_accounts_become_profiles(stage: KubeStage, running: Replica) -> None:
    ns = await stage.namespace(labels={"env": "prod"})
    await stage.account(ns, "web.front", {"team": "x"})
    profile = await stage.until_stored("Profile", f"kns.{ns}")
    assert profile["spec"] == {
        "ingress": [{"action": "Allow"}], "egress": [{"action": "Allow"}],
        "labelsToApply": {
            "pcns.env": "prod", "pcns.kubernetes.io/metadata.name": ns, "pcns.projectcalico.org/name": ns,
        },
    }  # fmt: skip
    account = await stage.until_stored("Profile", f"ksa.{ns}.web.front")
    assert account["spec"] == {"labelsToApply": {"pcsa.team": "x", "pcsa.projectcalico.org/name": "web.front"}}
    await stage.change(objects.NAMESPACES, ns, {"metadata": {"labels": {"env": None, "stage": "2"}}})
    await stage.until_stored(
        "Profile", f"kns.{ns}", holds=lambda found: found["spec"]["labelsToApply"].get("pcns.stage") == "2"
        and "pcns.env" not in found["spec"]["labelsToApply"],
    )  # fmt: skip
    await stage.unmake(objects.SERVICE_ACCOUNTS, "web.front", ns)
    await stage.until_gone("Profile", f"ksa.{ns}.web.front")
    await stage.unmake(objects.NAMESPACES, ns)
    await stage.until_gone("Profile", f"kns.{ns}")
    await stage.until_gone("Profile", f"ksa.{ns}.default")


async def test_k02_labels_of_pods_reach_endpoints_that_there_are_and_no_others(
    stage: KubeStage, running: Replica
) -> None:
    ns = await stage.namespace()
    for node in ("n1", "n2"):  # endpoints of nodes that do not exist are garbage at once, which is another controller's
        await stage.calico_node(node)
    await stage.account(ns, "web")
    await stage.pod(ns, "p-1", "n1", {"app": "db"}, account="web")
    name = await stage.endpoint(ns, "p-1", "n1")
    elsewhere = await stage.endpoint(ns, "p-1", "n2")
    lonely = await stage.endpoint(ns, "no-pod", "n1")
    before = await stage.stored("WorkloadEndpoint", name, ns)
    wanted = {
        "app": "db", "projectcalico.org/namespace": ns, "projectcalico.org/orchestrator": "k8s",
        "projectcalico.org/serviceaccount": "web",
    }  # fmt: skip
    found = await stage.until_stored(
        "WorkloadEndpoint", name, ns, holds=lambda found: found["metadata"]["labels"] == wanted
    )
    assert before is not None
    assert found["spec"] == before["spec"] | {"serviceAccountName": "web"}
    assert found["metadata"]["uid"] == before["metadata"]["uid"]
    await stage.change(objects.PODS, "p-1", {"metadata": {"labels": {"app": None, "tier": "2"}}}, ns)
    await stage.until_stored(
        "WorkloadEndpoint", name, ns,
        holds=lambda found: found["metadata"]["labels"] == {"tier": "2"} | {k: wanted[k] for k in wanted if k != "app"},
    )  # fmt: skip
    await stage.resources.patch("WorkloadEndpoint", name, {"metadata": {"labels": {"x": "y"}}}, model_patch(), ns)
    await stage.until_stored(
        "WorkloadEndpoint", name, ns, holds=lambda found: "x" not in found["metadata"]["labels"]
    )  # fmt: skip
    await stage.unmake(objects.PODS, "p-1", ns)
    await stage.pod(ns, "p-2", "n1")
    await stage.until_stored("Profile", f"kns.{ns}")
    for one in (name, elsewhere, lonely):
        assert await stage.stored("WorkloadEndpoint", one, ns) is not None, "the CNI plugin takes it away, nobody else"
    other = await stage.stored("WorkloadEndpoint", elsewhere, ns)
    assert other is not None
    assert "app" not in other["metadata"]["labels"], "an endpoint of another node is not this pod's"


async def test_services_and_slices_are_stored_for_rules_and_bgp(stage: KubeStage, running: Replica) -> None:
    ns = await stage.namespace()
    spec = {
        "type": "LoadBalancer", "ports": [{"name": "http", "port": 80, "targetPort": "web"}, {"name": "dns", "port": 53,
        "protocol": "UDP", "appProtocol": "dns"}], "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
        "externalIPs": ["198.51.100.7"], "selector": {"app": "web"}, "sessionAffinity": "ClientIP",
        "loadBalancerSourceRanges": ["192.0.2.0/24"],
    }  # fmt: skip
    path = f"/api/v1/namespaces/{ns}/services"
    made = await stage.make(path, "v1", "Service", "web", {"spec": spec})
    node_ports = [one["nodePort"] for one in made["spec"]["ports"]]
    stored = await stage.until_stored("KubernetesService", "web", ns)
    assert stored["spec"] == {
        "type": "LoadBalancer", "clusterIP": made["spec"]["clusterIP"], "clusterIPs": made["spec"]["clusterIPs"],
        "externalIPs": ["198.51.100.7"], "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
        "loadBalancerSourceRanges": ["192.0.2.0/24"],
        "ports": [
            {"name": "http", "protocol": "TCP", "port": 80, "targetPort": "web", "nodePort": node_ports[0]},
            {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 53, "nodePort": node_ports[1]},
        ],
    }, "what rules, BGP and calicoctl's trace use, and no more: the rest changes without need"  # fmt: skip
    ingress = {"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9", "ipMode": "Proxy"}]}}}
    await stage.api.patch(f"{path}/web/status", ingress)
    await stage.until_stored(
        "KubernetesService", "web", ns,
        holds=lambda found: found.get("status", {}).get("loadBalancer") == ingress["status"]["loadBalancer"],
    )  # fmt: skip
    content = {
        "addressType": "IPv6",
        "endpoints": [
            {"addresses": ["2001:db8::7"], "conditions": {"ready": True}, "nodeName": "n1"},
            {"addresses": ["2001:db8::8"], "conditions": {"ready": False}},
            {"addresses": ["2001:db8::9"], "conditions": {"ready": False, "serving": True, "terminating": True}},
        ],
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    }
    slices = f"/apis/discovery.k8s.io/v1/namespaces/{ns}/endpointslices"
    labels = {"kubernetes.io/service-name": "web", "other": "x"}
    await stage.make(slices, "discovery.k8s.io/v1", "EndpointSlice", "web-1", content, labels=labels)
    slice_ = await stage.until_stored("KubernetesEndpointSlice", "web-1", ns)
    assert {name: slice_[name] for name in content} == content
    assert slice_["metadata"]["labels"] == {"kubernetes.io/service-name": "web"}
    await stage.store.delete(model.keys.resource_key("KubernetesEndpointSlice", "web-1", ns))
    await stage.until_stored("KubernetesEndpointSlice", "web-1", ns)
    await stage.unmake(objects.ENDPOINT_SLICES, "web-1", ns)
    await stage.unmake(objects.SERVICES, "web", ns)
    await stage.until_gone("KubernetesEndpointSlice", "web-1", ns)
    await stage.until_gone("KubernetesService", "web", ns)


async def test_k01_nodes_take_labels_and_networks_and_go_with_their_kubernetes_node(
    stage: KubeStage, running: Replica
) -> None:
    node, other = f"{stage.prefix}-n1", f"{stage.prefix}-n2"
    await stage.kube_node(node, {"rack": "7", "zone": "a"}, ["10.244.1.0/24"])
    await stage.calico_node("calico-n1", node, labels={"mine": "x", "zone": "user"})
    await stage.calico_node("vm", None)
    await stage.calico_node("openstack-n", None)
    found = await stage.until_stored("Node", "calico-n1", holds=lambda found: "rack" in found["metadata"]["labels"])
    assert found["metadata"]["labels"] == {"mine": "x", "rack": "7", "zone": "a"}
    assert json.loads(found["metadata"]["annotations"]["projectcalico.org/kube-labels"]) == {"rack": "7", "zone": "a"}
    assert found["status"]["podCIDRs"] == ["10.244.1.0/24"]
    await stage.change(objects.NODES, node, {"metadata": {"labels": {"rack": None, "zone": "b"}}})
    found = await stage.until_stored(
        "Node", "calico-n1", holds=lambda found: found["metadata"]["labels"].get("zone") == "b"
    )
    assert found["metadata"]["labels"] == {"mine": "x", "zone": "b"}
    # One whose Kubernetes node never was, with what belongs to it.
    ns = await stage.namespace()
    name = await stage.endpoint(ns, "p", "calico-n2")
    await stage.calico_node("calico-n2", other)
    await stage.until_gone("Node", "calico-n2")
    await stage.until_gone("WorkloadEndpoint", name, ns)
    await stage.unmake(objects.NODES, node)
    await stage.until_gone("Node", "calico-n1")
    assert await stage.stored("Node", "vm") is not None
    assert await stage.stored("Node", "openstack-n") is not None


CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": f"clusternetworkpolicies.{CNP_GROUP}",
        "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/network-policy-api/pull/300"},
    },
    "spec": {
        "group": CNP_GROUP, "scope": "Cluster",
        "names": {
            "kind": "ClusterNetworkPolicy", "plural": "clusternetworkpolicies", "singular": "clusternetworkpolicy",
        },
        "versions": [
            {
                "name": "v1alpha2", "served": True, "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                    }
                },
            }
        ],
    },
}  # fmt: skip
CNP = {
    "tier": "Admin", "priority": 7, "subject": {"namespaces": {"matchLabels": {"env": "prod"}}},
    "ingress": [{"name": "no", "action": "Deny", "from": [{"namespaces": {}}]}],
}  # fmt: skip


async def test_p09_cluster_network_policies_come_with_their_definition_and_go_with_it(
    stage: KubeStage, running: Replica
) -> None:
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    path = f"/apis/{CNP_GROUP}/v1alpha2/clusternetworkpolicies"
    await eventually(lambda: said(running, "the server does not have the kind"), stage.told)
    await stage.api.create(crds, CRD)
    try:
        await eventually(lambda: served(stage), stage.told)
        name = f"{stage.prefix}-admin"
        await stage.make(path, f"{CNP_GROUP}/v1alpha2", "ClusterNetworkPolicy", name, {"spec": CNP})
        made = await stage.until_stored("KubernetesClusterNetworkPolicy", name, timeout_s=60)
        assert made["spec"] == CNP
        await stage.store.delete(model.keys.resource_key("KubernetesClusterNetworkPolicy", name))
        await stage.until_stored("KubernetesClusterNetworkPolicy", name)
        await stage.change(objects.CLUSTER_NETWORK_POLICIES, name, {"spec": {"priority": 8}})
        await stage.until_stored(
            "KubernetesClusterNetworkPolicy", name, holds=lambda found: found["spec"]["priority"] == 8
        )
    finally:
        await stage.api.delete(f"{crds}/{CRD['metadata']['name']}")  # type: ignore[index]
    await stage.until_gone("KubernetesClusterNetworkPolicy", name, timeout_s=60)
    assert running.process.poll() is None


async def said(replica: Replica, text: str) -> bool:
    return text in replica.log.read_text()


async def served(stage: KubeStage) -> bool:
    return await stage.api.serves(f"{CNP_GROUP}/v1alpha2", "clusternetworkpolicies")
