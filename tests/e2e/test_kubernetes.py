"""A workload of Kubernetes from `kubectl apply` to packets, and what happens to it: pods move, nodes come and go,
controllers and API servers restart, the datastore is locked. At the end nothing is left.

Rows K01, K02, D14, C10 (what the plugin reads of a pod), A12, I14.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from libs.kube.objects import Key
from libs.testkit.cluster import PROJECT
from libs.testkit.kube.cluster import KubeCluster
from libs.testkit.pods import Pod
from libs.testkit.reach import Verdict
from tests.e2e.cases import policy
from tests.e2e.conftest import needs_kubernetes
from tests.e2e.grid import sandbox

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

JsonObject = dict[str, Any]
ALLOW, DENY = Verdict.ALLOW, Verdict.DENY
NODES = ("node1", "node2", "node3")
SHOP, OTHER = "shop", "other"
RESOURCES = "/calico/resources/v3/projectcalico.org"
FRONT_ONLY: JsonObject = {
    "podSelector": {"matchLabels": {"app": "back"}},
    "policyTypes": ["Ingress"],
    "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "front"}}}], "ports": [{"port": "web"}]}],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kube() -> AsyncIterator[KubeCluster]:
    """Fronts and backs of a shop, one stranger; a policy that lets only fronts in, on a named port."""
    needs_kubernetes()
    async with KubeCluster(nodes=len(NODES)) as made:
        for name in (SHOP, OTHER):
            made.kubectl("create", "namespace", name)
            await made.until(lambda name=name: has_account(made, name), f"service account of {name}")  # type: ignore[misc]
        made.kubectl.apply(
            deployment("front", SHOP, 3), deployment("back", SHOP, 3), deployment("stranger", OTHER, 1),
            service("back"), policy("back", SHOP, FRONT_ONLY),
        )  # fmt: skip
        await settled(made)
        yield made


async def has_account(kube: KubeCluster, namespace: str) -> bool:
    return (await asyncio.to_thread(kube.kubectl.run, "get", "sa", "default", "-n", namespace)).status == 0


def deployment(name: str, namespace: str, replicas: int) -> JsonObject:
    """Spread over the nodes; ready once the node itself gets an answer."""
    container = {
        "name": "serve", "image": "localhost/probe:1", "ports": [{"name": "web", "containerPort": 8080}],
        "readinessProbe": {"tcpSocket": {"port": 8080}},
    }  # fmt: skip
    spread = {
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app": name}},
    }  # fmt: skip
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container], "topologySpreadConstraints": [spread]},
    }
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def service(name: str) -> JsonObject:
    spec = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": "web"}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SHOP}, "spec": spec}


def plain_pod(name: str, node: str) -> JsonObject:
    spec = {"nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": "any"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": OTHER}, "spec": spec}


async def kubectl(kube: KubeCluster, *arguments: str, timeout_s: float = 100) -> str:
    return await asyncio.to_thread(kube.kubectl, *arguments, timeout_s=timeout_s)


async def pods(kube: KubeCluster, app: str, count: int, namespace: str = SHOP) -> list[Pod]:
    """All ready, as their nodes have them."""
    found = [sandbox(kube, namespace, name).pod for name in await kube.until_ready(namespace, f"app={app}", count)]
    return [pod for pod in found if pod is not None]


async def settled(kube: KubeCluster, fronts: int = 3, backs: int = 3) -> None:
    """Everybody is there, and who may reach whom does: both families."""
    front, back = await pods(kube, "front", fronts), await pods(kube, "back", backs)
    (stranger,) = await pods(kube, "stranger", 1, OTHER)
    for family in (4, 6):
        questions: Any = [(a, b, 8080, "tcp") for a in front for b in back]
        questions += [(stranger, b, 8080, "tcp") for b in back] + [
            (a, b, 8080, "tcp") for a in back for b in back if a != b
        ]
        questions += [(stranger, a, 8080, "tcp") for a in front]
        wanted = [ALLOW] * (len(front) * len(back)) + [DENY] * (len(back) ** 2) + [ALLOW] * len(front)
        await kube.cluster.eventually(questions, wanted, family=family, timeout_s=60)


async def keys(kube: KubeCluster, plural: str) -> list[str]:
    async with kube.cluster.store() as store:
        found = (await store.list(f"{RESOURCES}/{plural}/")).kvs
    return [kv.key.removeprefix(f"{RESOURCES}/{plural}/") for kv in found]


async def calicoctl(kube: KubeCluster, *arguments: str) -> str:
    def run() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "services.calicoctl", *arguments], env={**os.environ, **kube.cluster.outside_env()},
            cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    return await asyncio.to_thread(run)


async def test_what_kubernetes_and_calico_say_of_a_pod_is_one(kube: KubeCluster) -> None:
    """Addresses of both families in the pod's status and its endpoint; labels, ports and account by the API alone."""
    (front, *_) = await pods(kube, "front", 3)
    document = (await kube.get("pod", front.name, "-n", SHOP))["status"]
    assert [one["ip"] for one in document["podIPs"]] == [str(address) for address in front.addresses]
    endpoint = f"{front.node}-k8s-{front.name.replace('-', '--')}-eth0"
    shown = json.loads(await calicoctl(kube, "get", "workloadendpoint", endpoint, "-n", SHOP, "-o", "json"))
    labels, spec = shown["metadata"]["labels"], shown["spec"]
    assert labels["app"] == "front"
    assert labels["projectcalico.org/serviceaccount"] == "default"
    assert spec["profiles"] == [f"kns.{SHOP}", f"ksa.{SHOP}.default"]
    assert [(one["name"], one["port"]) for one in spec["ports"]] == [("web", 8080)]
    wanted = {str(pod.address(4)) for pod in await pods(kube, "back", 3)}

    async def served() -> bool:
        slices = (await kube.get("endpointslices", "-n", SHOP, "-l", "kubernetes.io/service-name=back"))["items"]
        return wanted == {to for one in slices for end in one["endpoints"] or () for to in end["addresses"]}

    await kube.until(served, f"the service leads to {wanted}")


async def test_scaling_and_moving(kube: KubeCluster) -> None:
    """New pods are under policy from their first packet; those of a drained node come up elsewhere."""
    await kubectl(kube, "scale", "deployment/back", "-n", SHOP, "--replicas=5")
    await settled(kube, backs=5)
    await kubectl(kube, "drain", "node3", "--force", "--timeout=90s")
    assert not any(pod.node == "node3" for pod in await pods(kube, "back", 5))
    await settled(kube, backs=5)
    assert not kube.kubelets["node3"].sandboxes
    assert not [name for name in await keys(kube, "workloadendpoints") if "/node3-" in name]
    await kubectl(kube, "uncordon", "node3")
    await kubectl(kube, "scale", "deployment/back", "-n", SHOP, "--replicas=3")
    await settled(kube)


async def test_a_node_goes_and_comes(kube: KubeCluster) -> None:
    """Row K01: with Kubernetes' Node goes ours, and what it held of address blocks; the same machine joins again."""
    await kubectl(kube, "drain", "node3", "--force", "--timeout=90s")
    await kube.stop_kubelet("node3")
    await kubectl(kube, "delete", "node", "node3")

    async def gone() -> bool:
        return "node3" not in await keys(kube, "nodes")

    await kube.until(gone, "our Node is gone")
    await settled(kube)
    async with kube.cluster.store() as store:

        async def released() -> bool:
            return not (await store.list("/calico/ipam/v2/host/node3/")).kvs

        await kube.until(released, "the node's address blocks are released")
    await kube.start_kubelet("node3")
    await kube.until(lambda: is_node(kube, "node3"), "Kubernetes has the node again")
    await kube.register("node3")
    await kubectl(kube, "rollout", "restart", "deployment/back", "deployment/front", "-n", SHOP)
    await kubectl(kube, "rollout", "status", "deployment/back", "-n", SHOP, "--timeout=90s")
    await kubectl(kube, "rollout", "status", "deployment/front", "-n", SHOP, "--timeout=90s")
    assert any(pod.node == "node3" for pod in await pods(kube, "back", 3))
    await settled(kube)


async def is_node(kube: KubeCluster, name: str) -> bool:
    """Known, ready and without a taint: pods may be placed there."""
    done = await asyncio.to_thread(kube.kubectl.run, "get", "node", name, "-o", "json")
    if done.status:
        return False
    node = json.loads(done.out)
    conditions = {one["type"]: one["status"] for one in node.get("status", {}).get("conditions", [])}
    return conditions.get("Ready") == "True" and not node["spec"].get("taints")


async def test_the_controllers_restart(kube: KubeCluster) -> None:
    """What happened while they were away is caught up with; nothing is taken back meanwhile."""
    assert kube.controllers is not None
    kube.controllers.kill()
    await kubectl(kube, "label", "namespace", OTHER, "team=friends")
    welcome = FRONT_ONLY | {"ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"team": "friends"}}}]}]}
    kube.kubectl.apply(policy("welcome", SHOP, welcome))
    await kubectl(kube, "delete", "networkpolicy", "back", "-n", SHOP)
    await settled(kube)
    kube.start_controllers()
    (stranger,) = await pods(kube, "stranger", 1, OTHER)
    front, back = await pods(kube, "front", 3), await pods(kube, "back", 3)
    questions: Any = [(a, b, 8080, "tcp") for a in (stranger, *front) for b in back]
    await kube.cluster.eventually(questions, [ALLOW] * 3 + [DENY] * 9, timeout_s=120)
    kube.kubectl.apply(policy("back", SHOP, FRONT_ONLY))
    await kubectl(kube, "delete", "networkpolicy", "welcome", "-n", SHOP)
    await settled(kube)


async def test_the_api_servers_restart(kube: KubeCluster) -> None:
    """Packets do not notice; afterwards both APIs serve, and what is said there is done."""
    assert kube.apiserver is not None
    kube.apiserver.kill()
    kube.control_plane.apiserver.kill()
    front, back = await pods_known(kube, "front"), await pods_known(kube, "back")
    questions: Any = [(a, b, 8080, "tcp") for a in front for b in back]
    assert await kube.cluster.passes(questions)
    kube.control_plane.apiserver.start()
    kube.apiserver.start()

    async def served() -> bool:
        return (await asyncio.to_thread(kube.kubectl.run, "get", "ippools")).status == 0

    await kube.until(served, "our kinds are served again")
    kube.kubectl.apply(policy("closed", SHOP, {"podSelector": {}, "policyTypes": ["Ingress"]}))
    await kube.cluster.eventually([(front[0], front[1], 8080, "tcp")], DENY, timeout_s=90)
    await kubectl(kube, "delete", "networkpolicy", "closed", "-n", SHOP)
    await kubectl(kube, "scale", "deployment/front", "-n", SHOP, "--replicas=4")
    await settled(kube, fronts=4)
    await kubectl(kube, "scale", "deployment/front", "-n", SHOP, "--replicas=3")
    await settled(kube)


async def pods_known(kube: KubeCluster, app: str) -> list[Pod]:
    """Without asking the API."""
    found = [one.pod for kubelet in kube.kubelets.values() for one in kubelet.sandboxes.values()]
    return [pod for pod in found if pod is not None and pod.name.startswith(f"{app}-")]


@contextlib.asynccontextmanager
async def refused(kube: KubeCluster, name: str, wanted: Sequence[str]) -> AsyncIterator[None]:
    """A pod of node1 does not start, and the plugin says why; after the block it does."""
    kube.kubectl.apply(plain_pod(name, "node1"))
    key = Key(OTHER, name)

    async def told() -> bool:
        error = kube.kubelets["node1"].errors.get(key, "")
        return all(word in error for word in wanted)

    await kube.until(told, f"the plugin says {wanted}")
    assert (await kube.get("pod", name, "-n", OTHER))["status"]["phase"] == "Pending"
    yield

    async def there() -> bool:
        return bool((await kube.get("pod", name, "-n", OTHER))["status"]["phase"] == "Running")

    await kube.until(there, f"{name} runs")
    await kubectl(kube, "delete", "pod", name, "-n", OTHER, "--timeout=60s")


async def test_a_locked_datastore(kube: KubeCluster) -> None:
    """Row D14: pods are refused, packets flow, and unlocked all goes on."""
    await calicoctl(kube, "datastore", "migrate", "lock")
    try:
        async with refused(kube, "waits", ("CNI error 11", "locked")):
            await settled(kube)
            await calicoctl(kube, "datastore", "migrate", "unlock")
    finally:
        await calicoctl(kube, "datastore", "migrate", "unlock")


async def test_a_permission_that_is_missing(kube: KubeCluster) -> None:
    """The plugin cannot read pods: a pod without its labels would be under other policies, so it is none."""
    binding = await kubectl(kube, "get", "clusterrolebinding", "test-felix", "-o", "json")
    await kubectl(kube, "delete", "clusterrolebinding", "test-felix")

    async def counts() -> bool:
        asked = ("auth", "can-i", "get", "pods", "-n", OTHER, "--as=test-felix")
        return (await asyncio.to_thread(kube.kubectl.run, *asked)).out.strip() == "no"

    await kube.until(counts, "felix may not read pods any more")
    async with refused(kube, "unread", ("CNI error 100", "pods", "forbidden", "test-felix")):
        await asyncio.to_thread(kube.kubectl, "create", "-f", "-", stdin=binding)


async def test_at_the_end_nothing_is_left(kube: KubeCluster) -> None:
    """Rows K02, I14: namespaces go with all that was made of them; address management has no problem."""
    await kubectl(kube, "delete", "namespace", SHOP, OTHER, "--timeout=90s")

    async def gone() -> bool:
        made = [*await keys(kube, "workloadendpoints"), *await keys(kube, "networkpolicies")]
        made += [name for name in await keys(kube, "profiles") if f".{SHOP}" in name or f".{OTHER}" in name]
        return not made

    await kube.until(gone, "endpoints, policies and profiles are gone")
    report = await calicoctl(kube, "ipam", "check")
    assert "Check complete; found 0 problems." in report, report
    assert sorted(await keys(kube, "nodes")) == sorted(NODES)
    for node in kube.cluster.nodes:
        assert "cali" not in await asyncio.to_thread(_links, node.namespace.name)
        assert not kube.kubelets[node.name].sandboxes


def _links(namespace: str) -> str:
    return subprocess.run(
        ["ip", "-n", namespace, "-o", "link"], capture_output=True, text=True, check=True, timeout=30
    ).stdout
