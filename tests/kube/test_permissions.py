"""Each permission of the manifests taken away in turn: what asks for it names verb, resource and account, and concludes
nothing. A real kube-apiserver judges; each permission has a user of its own who lacks it alone.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
import pytest_asyncio
import yaml

from libs.kube.api import KubeApi, KubeError
from libs.kube.informer import Informer
from libs.kube.objects import NODES, SERVICES, Key, Source
from libs.testkit.kube.control_plane import ControlPlane
from services.felix.core.cni.errors import CniError
from services.felix.core.cni.request import parse
from services.felix.shell.cni.kubernetes import KubernetesPods
from services.felix.shell.cni.pods import RequestPods
from services.kube_controllers.core import load_balancers
from services.kube_controllers.core.settings import Sync
from services.kube_controllers.shell.kubernetes import Shared
from services.kube_controllers.shell.runner import TRANSLATIONS
from services.node.shell.kubernetes import internal_addresses, set_network_unavailable
from tests.contract.typha_stage import PROJECT
from tests.kube.controllers_stage import KubeStage, eventually
from tests.unit.services.felix.cni_stage import posted

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

GROUP = "rbac.authorization.k8s.io"
SOURCES: dict[str, Source[Any]] = {one.plural: one for one in (make(Sync()).source for make in TRANSLATIONS.values())}
DEADLINE_S = 30.0


class Permission(NamedTuple):
    group: str
    resource: str
    verb: str


def role(name: str) -> dict[str, Any]:
    documents = yaml.safe_load_all((PROJECT / "k8s/parts/rbac.yaml").read_text())
    (found,) = (one for one in documents if (one["kind"], one["metadata"]["name"]) == ("ClusterRole", name))
    return dict(found)


def permissions(name: str) -> list[Permission]:
    return [
        Permission(group, resource, verb)
        for rule in role(name)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    ]


def without(name: str, *taken: Permission) -> list[dict[str, Any]]:
    """The role's rules, each with one resource."""
    return [
        {**copy.deepcopy(rule), "resources": [resource], "verbs": verbs}
        for rule in role(name)["rules"]
        for resource in rule["resources"]
        if (verbs := [v for v in rule["verbs"] if Permission(rule["apiGroups"][0], resource, v) not in taken])
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory, control_plane: ControlPlane) -> AsyncIterator[KubeStage]:
    async with KubeStage(tmp_path_factory.mktemp("stage"), control_plane) as made:
        yield made


async def user(stage: KubeStage, name: str, rules: list[dict[str, Any]]) -> Path:
    """A kubeconfig of somebody who may do just that."""
    api = f"/apis/{GROUP}/v1"
    await stage.make(f"{api}/clusterroles", f"{GROUP}/v1", "ClusterRole", name, {"rules": rules})
    binding = {
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": name},
        "subjects": [{"apiGroup": GROUP, "kind": "User", "name": name}],
    }
    await stage.make(f"{api}/clusterrolebindings", f"{GROUP}/v1", "ClusterRoleBinding", name, binding)
    return await asyncio.to_thread(stage.control_plane.user, name)


def refusal(name: str, one: Permission) -> str:
    """What the server says of it, and our logs with it."""
    return f'User "{name}" cannot {one.verb} resource "{one.resource}"'


async def until_refused(ask: Callable[[], Awaitable[object]], text: str) -> None:
    """Roles are known to the server a moment after they were made."""
    said = ""
    async with asyncio.timeout(DEADLINE_S):
        while text not in said:
            try:
                await ask()
            except (KubeError, CniError) as error:
                said = f"{error} {getattr(error, 'details', '')}"
            await asyncio.sleep(0.05)


async def test_each_permission_of_kube_controllers_is_named_when_it_is_missing(stage: KubeStage) -> None:
    async def missing(number: int, one: Permission) -> None:
        name = f"{stage.prefix}-kc{number}"
        kubeconfig = await user(stage, name, without("calico-kube-controllers", one))
        async with await KubeApi.open(kubeconfig) as api:
            await lacks(api, one, refusal(name, one))

    wanted = permissions("calico-kube-controllers")
    assert {one.resource for one in wanted} == {*SOURCES, "services/status", "events"}
    async with asyncio.TaskGroup() as tasks:
        for number, one in enumerate(wanted):
            tasks.create_task(missing(number, one))


async def lacks(api: KubeApi, one: Permission, text: str) -> None:
    if one.resource == "services/status":
        await until_refused(lambda: api.patch(f"{SERVICES.path_of(Key('default', 'kubernetes'))}/status", {}), text)
    elif one.resource == "events":
        await until_refused(lambda: api.create("/api/v1/namespaces/default/events", {}), text)
    elif one.verb == "get":  # the question before a deletion: no answer is not "gone"
        shared = Shared(api, SOURCES[one.resource], Random(1))
        await until_refused(lambda: shared.gone(Key("default", "absent")), text)
    else:
        await followed(api, SOURCES[one.resource], one.verb, text)


async def followed(api: KubeApi, source: Source[Any], verb: str, text: str) -> None:
    told: list[str] = []
    changes: list[frozenset[Key]] = []
    informer = Informer(api, source.path, source.decode, changes.append, Random(1), report=told.append)
    if source.optional and verb == "watch":  # none is served here, so it is not followed, and yet refused first
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(KubeError, match="cannot watch resource") as refused:
                _ = [event async for event in api.watch(source.path, "1")]
        assert text in str(refused.value)
        return
    following = asyncio.create_task(informer.run())
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not any(text in one for one in told):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        if verb == "list":
            assert not informer.in_sync
            assert not changes, "nothing is concluded from what nobody listed"
        else:
            known = set(informer.objects)
            assert informer.in_sync
            assert known or source.plural not in ("namespaces", "services"), "what was listed is known"
    finally:
        following.cancel()


async def test_each_permission_of_calico_node_is_named_when_it_is_missing(stage: KubeStage) -> None:
    node, ns = f"{stage.prefix}-n", await stage.namespace()
    await stage.kube_node(node)
    await stage.pod(ns, "web", node)
    args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE={ns};K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c1"
    request = parse(posted({"CNI_ARGS": args}))

    async def missing(number: int, one: Permission) -> None:
        name = f"{stage.prefix}-node{number}"
        kubeconfig = await user(stage, name, without("calico-node", one))
        text = refusal(name, one)
        async with await KubeApi.open(kubeconfig) as api:
            if one.resource in ("pods", "namespaces"):
                pods = KubernetesPods(kubeconfig, RequestPods(stage.resources), Random(1))
                await until_refused(lambda: pods.facts(request), text)
                await pods.aclose()
            elif one.resource == "nodes":
                await until_refused(lambda: internal_addresses(api, node), text)
                await until_refused(lambda: set_network_unavailable(api, node, False), text)
            else:
                await until_refused(lambda: set_network_unavailable(api, node, False), text)

    wanted = permissions("calico-node")
    assert {one.resource for one in wanted} == {"pods", "namespaces", "nodes", "nodes/status"}
    async with asyncio.TaskGroup() as tasks:
        for number, one in enumerate(wanted):
            tasks.create_task(missing(number, one))
    document = await stage.api.get(NODES.path_of(Key("", node)))
    assert not [c for c in document["status"].get("conditions", ()) if c["type"] == "NetworkUnavailable"]


async def test_kube_controllers_that_may_write_nothing_say_so_and_delete_nothing(stage: KubeStage) -> None:
    """Both verbs that write, in the real process. The other verbs: test_controllers_trouble.py."""
    ns, name = await stage.namespace(), f"{stage.prefix}-mute"
    await stage.apply("IPPool", "lb", {"cidr": "10.70.0.0/29", "blockSize": 29, "allowedUses": ["LoadBalancer"]})
    taken = [Permission("", "services/status", "patch"), Permission("", "events", "create")]
    kubeconfig = await user(stage, name, without("calico-kube-controllers", *taken))
    for service, wish in (("web", "10.70.0.3"), ("elsewhere", "192.0.2.1")):
        content = {
            "metadata": {"name": service, "annotations": {load_balancers.ADDRESSES: f'["{wish}"]'}},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
        }
        await stage.make(f"/api/v1/namespaces/{ns}/services", "v1", "Service", service, content)
    await stage.policy(ns, "p1", {"podSelector": {}})
    # A lease that no pause ends: a new tenure would count anew.
    replica = await stage.controllers(kubeconfig, KUBE_CONTROLLERS_LEASE_S="60").until_leading()
    await stage.until_stored("NetworkPolicy", "knp.default.p1", ns)  # what it may do it does

    async def named() -> bool:
        log = replica.log.read_text().replace('\\"', '"')
        return all(refusal(name, one) in log for one in taken)

    await eventually(named, stage.told)
    before = {kv.key for kv in (await stage.store.list("/calico/", keys_only=True)).kvs}
    rounds = await replica.metric("kube_controllers_tenures_total")

    async def again() -> bool:
        _, text = await replica.get("/metrics")
        line = next(
            one for one in text.splitlines() if one.startswith('kube_controllers_failures_total{controller="lo')
        )
        return float(line.split()[-1]) >= 3

    await eventually(again, stage.told)
    after = {kv.key for kv in (await stage.store.list("/calico/", keys_only=True)).kvs}
    assert before <= after
    assert await replica.metric("kube_controllers_tenures_total") == rounds, "and it did not start anew"
    document = await stage.api.get(SERVICES.path_of(Key(ns, "web")))
    assert not document["status"]["loadBalancer"].get("ingress")
