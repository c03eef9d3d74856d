"""Network policies of Kubernetes, end to end: kubectl, kube-apiserver, our controllers, typha, felix, packets.

Rows P01 (what upstream's conformance suite asks), P09 (ClusterNetworkPolicy), K02 (what is made of objects comes back).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from libs.testkit.kube.cluster import KubeCluster
from libs.testkit.reach import Verdict
from tests.e2e.cases import (
    CASES,
    EVERY,
    A,
    B,
    Case,
    Y,
    documents,
    egress,
    ingress,
    namespaces,
    pods,
    policy,
    port,
    select,
    sources,
    targets,
)  # fmt: skip
from tests.e2e.conftest import needs_kubernetes
from tests.e2e.grid import NAMESPACES, TCP80, TCP81, UDP80, Grid, Picture, pod_document, sandbox

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

JsonObject = dict[str, Any]
CRD = Path(__file__).parent / "manifests" / "clusternetworkpolicies.yaml"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kube() -> AsyncIterator[KubeCluster]:
    needs_kubernetes()
    async with KubeCluster(nodes=2, apiserver=False) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def grid(kube: KubeCluster) -> AsyncIterator[Grid]:
    """And the kind ClusterNetworkPolicy."""
    kube.kubectl.apply(yaml.safe_load(CRD.read_text()))
    made = Grid(kube, "np")
    await made.make()
    await made.becomes(Picture(), "without policies")
    yield made
    await made.remove()


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def cleaned(kube: KubeCluster, grid: Grid) -> AsyncIterator[None]:
    yield
    await kubectl(kube, "delete", "networkpolicies", "--all", "-n", grid.namespace("x"))
    await kubectl(kube, "delete", "clusternetworkpolicies", "--all")


async def kubectl(kube: KubeCluster, *arguments: str) -> str:
    return await asyncio.to_thread(kube.kubectl, *arguments)


async def apply(kube: KubeCluster, *made: JsonObject) -> None:
    await asyncio.to_thread(kube.kubectl.apply, *made)


async def restored(grid: Grid) -> None:
    await grid.becomes(Picture(), "after all policies were deleted")


@pytest.mark.parametrize("case", CASES, ids=[case.name.replace(" ", "-") for case in CASES])
async def test_conformance(kube: KubeCluster, grid: Grid, case: Case) -> None:
    """Row P01. Cases that change nothing are seen to change something before their second policy comes."""
    first, *rest = documents(case, grid)
    picture = case.picture()
    if not picture.denied:
        await apply(kube, first)
        await _closes_something(grid)
    await apply(kube, first, *rest)
    await grid.becomes(picture, case.name)


async def _closes_something(grid: Grid) -> None:
    async def closed() -> bool:
        return bool(await grid.seen(Picture((TCP80,)), 4, 0.5))

    await grid.kube.until(closed, "the first policy closes something", 30)


async def test_a_policy_that_changes_and_goes(kube: KubeCluster, grid: Grid) -> None:
    """Row P01: update, then deletion restores."""
    space = grid.namespace("x")
    await apply(kube, policy("p", space, ingress(A, sources(pods(B)))))
    await grid.becomes(Picture().deny("*", "x/a").allow("x/b", "x/a"), "from b")
    await apply(kube, policy("p", space, ingress(A, sources(namespaces(Y), ports=[port(80)]))))
    await grid.becomes(Picture().deny("*", "x/a").allow("y", "x/a", TCP80), "from y on port 80")
    await apply(kube, policy("p", space, egress(B, targets(pods(A)))))
    await grid.becomes(Picture().deny("x/b", "*").allow("x/b", "x/a"), "egress of b instead")
    await kubectl(kube, "delete", "networkpolicy", "p", "-n", space)
    await restored(grid)


async def test_labels_of_pods_and_namespaces_change(kube: KubeCluster, grid: Grid) -> None:
    """Rows P01, K02: the pod's label reaches its endpoint, the namespace's its profile."""
    x, y = grid.namespace("x"), grid.namespace("y")
    friends, team = sources(pods(select(role="friend"))), sources(namespaces(select(team="red")))
    await apply(kube, policy("p", x, ingress(A, friends, team)))
    await grid.becomes(Picture().deny("*", "x/a"), "nobody is a friend")
    await kubectl(kube, "label", "pod", "c", "-n", x, "role=friend")
    await kubectl(kube, "label", "namespace", y, "team=red")
    try:
        await grid.becomes(Picture().deny("*", "x/a").allow(("x/c", "y"), "x/a"), "labelled")
        await kubectl(kube, "label", "pod", "a", "-n", x, "pod=other", "--overwrite")
        await restored(grid)
        await kubectl(kube, "label", "pod", "a", "-n", x, "pod=a", "--overwrite")
    finally:
        await kubectl(kube, "label", "pod", "c", "-n", x, "role-")
        await kubectl(kube, "label", "namespace", y, "team-")
    await grid.becomes(Picture().deny("*", "x/a"), "labels taken away")


async def test_a_policy_that_is_there_before_its_pods(kube: KubeCluster, grid: Grid) -> None:
    """Row P01: no packet before the policy: whoever asks all the time gets in never."""
    x = grid.namespace("x")
    await apply(kube, policy("p", x, ingress(select(pod="late"))))
    await apply(kube, pod_document("late", x, labels={"pod": "late"}))
    await kube.until_ready(x, "pod=late", 1)
    late = grid_sandbox(grid, "late")
    questions = [(grid.pod(name), late, 80, "tcp") for name in ("x/b", "y/a", "z/a")]
    try:
        assert {str(v) for v in await kube.cluster.reach(questions, timeout_s=0.6)} == {"deny"}  # type: ignore[arg-type]
        await kubectl(kube, "delete", "networkpolicy", "p", "-n", x)
        await kube.cluster.eventually(questions, Verdict.ALLOW, timeout_s=20)  # type: ignore[arg-type]
    finally:
        await kubectl(kube, "delete", "pod", "late", "-n", x, "--timeout=60s")


def grid_sandbox(grid: Grid, name: str) -> Any:
    return sandbox(grid.kube, grid.namespace("x"), name).pod


# --- row P09 --------------------------------------------------------------------------------------------------


def cluster_policy(name: str, tier: str, priority: int, **spec: Any) -> JsonObject:
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"tier": tier, "priority": priority, **spec},
    }


def subject(namespace: str, **labels: str) -> JsonObject:
    within = select(ns=namespace)
    return (
        {"pods": {"namespaceSelector": within, "podSelector": select(**labels)}} if labels else {"namespaces": within}
    )


def rule(action: str, direction: str, namespace: str, *protocols: JsonObject, **labels: str) -> JsonObject:
    made: JsonObject = {"action": action, direction: [subject(namespace, **labels)]}
    return made | ({"protocols": list(protocols)} if protocols else {})


TCP_80: JsonObject = {"tcp": {"destinationPort": {"number": 80}}}


async def test_an_administrators_deny_beats_a_network_policy(kube: KubeCluster, grid: Grid) -> None:
    await apply(
        kube, policy("open", grid.namespace("x"), ingress(EVERY, {})),
        cluster_policy("deny-y", "Admin", 10, subject=subject("x"), ingress=[rule("Deny", "from", "y")]),
    )  # fmt: skip
    await grid.becomes(Picture().deny("y", "x"), "denied by the administrator")


async def test_an_administrators_accept_beats_a_network_policy(kube: KubeCluster, grid: Grid) -> None:
    accept = rule("Accept", "from", "y", TCP_80)
    await apply(
        kube, policy("closed", grid.namespace("x"), ingress(EVERY)),
        cluster_policy("accept", "Admin", 10, subject=subject("x", pod="a"), ingress=[accept]),
    )  # fmt: skip
    await grid.becomes(Picture().deny("*", "x").allow("y", "x/a", TCP80), "accepted by the administrator")


async def test_pass_leaves_it_to_network_policies(kube: KubeCluster, grid: Grid) -> None:
    deny = cluster_policy("deny-all", "Admin", 20, subject=subject("x"), ingress=[rule("Deny", "from", "y")])
    await apply(
        kube, policy("p", grid.namespace("x"), ingress(A, sources(namespaces(Y), ports=[port(81)]))), deny,
        cluster_policy("pass-b", "Admin", 10, subject=subject("x"), ingress=[rule("Pass", "from", "y", pod="b")]),
    )  # fmt: skip
    picture = Picture().deny("*", "x/a").deny("y", "x").allow("y/b", ("x/b", "x/c")).allow("y/b", "x/a", TCP81)
    await grid.becomes(picture, "y/b is passed on")


async def test_priority_decides_between_administrators(kube: KubeCluster, grid: Grid) -> None:
    accept = cluster_policy("accept", "Admin", 10, subject=subject("x", pod="a"), ingress=[rule("Accept", "from", "y")])
    deny = cluster_policy("deny", "Admin", 20, subject=subject("x"), ingress=[rule("Deny", "from", "y")])
    await apply(kube, accept, deny)
    await grid.becomes(Picture().deny("y", ("x/b", "x/c")), "accept first")
    await apply(kube, accept | {"spec": accept["spec"] | {"priority": 30}})
    await grid.becomes(Picture().deny("y", "x"), "deny first")


async def test_the_baseline_gives_way_to_network_policies(kube: KubeCluster, grid: Grid) -> None:
    denials = [rule("Deny", "from", name) for name in NAMESPACES]
    await apply(
        kube,
        cluster_policy("base", "Baseline", 10, subject=subject("x"), ingress=denials),
        policy("p", grid.namespace("x"), ingress(A, sources(namespaces(Y)))),
    )  # fmt: skip
    await grid.becomes(Picture().deny("*", "x").allow("y", "x/a"), "baseline, and a policy for a")


async def test_egress_rules_of_administrators(kube: KubeCluster, grid: Grid) -> None:
    networks = [f"{grid.pod('z/c').address(4)}/32", f"{grid.pod('z/c').address(6)}/128"]
    await apply(kube, cluster_policy(
        "out", "Admin", 10, subject=subject("x", pod="a"), egress=[
            rule("Accept", "to", "y", {"udp": {"destinationPort": {"range": {"start": 79, "end": 81}}}}),
            rule("Deny", "to", "y"),
            {"action": "Deny", "to": [{"networks": networks}]},
            rule("Deny", "to", "x", {"destinationNamedPort": "serve-81-tcp"}),
        ],
    ))  # fmt: skip
    picture = Picture().deny("x/a", "y").allow("x/a", "y", UDP80).deny("x/a", "z/c").deny("x/a", "x", TCP81)
    await grid.becomes(picture, "egress by protocol, network and named port")
    await kubectl(kube, "delete", "clusternetworkpolicy", "out")
    await restored(grid)


async def test_what_is_damaged_behind_the_controllers_back_comes_back(kube: KubeCluster, grid: Grid) -> None:
    """Row K02. A policy that is gone from etcd is written anew when its object is touched, at the latest in the
    reconcile period.
    """
    x = grid.namespace("x")
    await apply(kube, policy("p", x, ingress(A)))
    await grid.becomes(Picture().deny("*", "x/a"), "isolated")
    key = f"/calico/resources/v3/projectcalico.org/networkpolicies/{x}/knp.default.p"
    async with kube.cluster.store() as store:
        assert await store.get(key) is not None
        await store.delete(key)

        async def back() -> bool:
            return await store.get(key) is not None

        await kubectl(kube, "annotate", "networkpolicy", "p", "-n", x, "touched=yes")
        await kube.until(back, "written anew", 60)
    await grid.becomes(Picture().deny("*", "x/a"), "isolated again")
