"""kube_controllers when things go wrong: killed leaders, a restarted API server, missing permissions; and switched off
and on. A real kube-apiserver, a real etcd, the real process.
"""

from __future__ import annotations

import asyncio
import copy
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from libs import model
from libs.kube import objects
from libs.testkit.kube.control_plane import ControlPlane
from services.kube_controllers.core.settings import Sync
from services.kube_controllers.shell.runner import TRANSLATIONS
from tests.contract.controllers_stage import Replica
from tests.contract.typha_stage import PROJECT
from tests.kube.controllers_stage import KubeStage, eventually

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

SPEC: dict[str, Any] = {"podSelector": {}, "policyTypes": ["Ingress"]}
SOURCES = [make(Sync()).source for make in TRANSLATIONS.values()]


@pytest_asyncio.fixture(loop_scope="module")
async def stage(tmp_path: Path, control_plane: ControlPlane) -> AsyncIterator[KubeStage]:
    async with KubeStage(tmp_path, control_plane) as made:
        yield made


async def test_k03_k05_each_controller_stops_and_starts_alone_and_the_status_tells(stage: KubeStage) -> None:
    ns = await stage.namespace()
    replica = await stage.controllers().until_leading()
    await stage.policy(ns, "p1", SPEC)
    await stage.until_stored("NetworkPolicy", "knp.default.p1", ns)
    every = ("node", "policy", "namespace", "serviceAccount", "workloadEndpoint", "loadBalancer")
    await eventually(lambda: runs(stage, *every), stage.told)
    default = await stage.running_config()
    assert default["node"]["syncLabels"] == "Enabled"
    await stage.set_controllers(namespace={}, node={"syncLabels": "Disabled"}, workloadEndpoint={}, serviceAccount={})
    await eventually(lambda: runs(stage, "namespace", "node", "workloadEndpoint", "serviceAccount"), stage.told)
    await eventually(lambda: said(replica, '"controller stopped", "controller": "policy"'), stage.told)
    await stage.policy(ns, "p2", SPEC)
    other = await stage.namespace()
    await stage.until_stored("Profile", f"kns.{other}")
    assert await stage.stored("NetworkPolicy", "knp.default.p2", ns) is None
    assert await stage.stored("NetworkPolicy", "knp.default.p1", ns) is not None, "switched off is not cleaned up"
    assert (await stage.running_config())["node"]["syncLabels"] == "Disabled"
    assert len(re.findall(r'"controller stopped".*"namespace"', replica.log.read_text())) == 0
    await stage.unmake(objects.NETWORK_POLICIES, "p1", ns)
    await stage.set_controllers(policy={"reconcilerPeriod": "1m"})
    await stage.until_stored("NetworkPolicy", "knp.default.p2", ns)
    await stage.until_gone("NetworkPolicy", "knp.default.p1", ns)
    await eventually(lambda: runs(stage, "policy"), stage.told)
    assert (await stage.running_config())["policy"] == {"reconcilerPeriod": "1m0s"}


async def runs(stage: KubeStage, *names: str) -> bool:
    return (await stage.running_config()).keys() == set(names)


async def test_k07_a_killed_leader_is_replaced_and_nothing_is_done_twice(stage: KubeStage) -> None:
    ns = await stage.namespace()
    replicas = [stage.controllers() for _ in range(2)]
    for one in replicas:
        await one.until_ready()
    for number in range(30):
        await stage.policy(ns, f"p{number}", SPEC)
    await stage.until_stored("NetworkPolicy", "knp.default.p3", ns)  # in the middle of it
    first = await stage.leader()
    leader = next(one for one in replicas if first.endswith(f".{one.process.pid}"))
    (other,) = (one for one in replicas if one is not leader)
    leader.process.send_signal(signal.SIGKILL)
    await other.until_leading()
    await stage.unmake(objects.NETWORK_POLICIES, "p0", ns)
    await stage.until_gone("NetworkPolicy", "knp.default.p0", ns)
    for number in range(1, 30):
        found = await stage.until_stored("NetworkPolicy", f"knp.default.p{number}", ns)
        kv = await stage.store.get(model.keys.resource_key("NetworkPolicy", f"knp.default.p{number}", ns))
        assert kv is not None
        assert kv.version == 1, f"written once, by whichever of the two: {found}"


async def test_restarted_in_the_middle_it_goes_on_and_an_idle_start_writes_nothing(stage: KubeStage) -> None:
    ns = await stage.namespace()
    replica = await stage.controllers().until_leading()
    for number in range(20):
        await stage.policy(ns, f"p{number}", SPEC)
    replica.process.send_signal(signal.SIGTERM)
    assert await replica.status() == 0
    await stage.unmake(objects.NETWORK_POLICIES, "p0", ns)
    again = await stage.controllers().until_leading()
    for number in range(1, 20):
        await stage.until_stored("NetworkPolicy", f"knp.default.p{number}", ns)
    await stage.until_gone("NetworkPolicy", "knp.default.p0", ns)
    again.process.send_signal(signal.SIGTERM)
    assert await again.status() == 0
    third = await stage.controllers().until_leading()

    async def looked_at_everything() -> bool:
        _, text = await third.get("/metrics")
        return all(
            re.search(rf'kube_controllers_rounds_total{{controller="{name}"}} [1-9]', text) for name in TRANSLATIONS
        )

    await third.until(looked_at_everything, 30.0, "a look at everything")
    assert '"msg": "written", "controller": "policy"' not in third.log.read_text()
    assert "not done" not in third.log.read_text()


async def test_k08_the_api_server_restarts_and_nothing_is_lost_or_deleted(
    stage: KubeStage, control_plane: ControlPlane
) -> None:
    ns = await stage.namespace()
    await stage.policy(ns, "p1", SPEC)
    replica = await stage.controllers(KUBE_CONTROLLERS_LEASE_S="15").until_ready()  # a new tenure would know nothing
    await stage.until_stored("NetworkPolicy", "knp.default.p1", ns)
    await stage.until_stored("Profile", f"kns.{ns}")  # namespaces are known too, else no profile is judged at all
    await asyncio.to_thread(control_plane.apiserver.close)
    try:
        await replica.until_ready(False)
        # Drift is repaired from what is known, and a stray stays: whether it is one nobody can tell now.
        await stage.store.delete(model.keys.resource_key("NetworkPolicy", "knp.default.p1", ns))
        await stage.until_stored("NetworkPolicy", "knp.default.p1", ns)
        await stage.apply("Profile", "kns.stray", {})
        await eventually(lambda: said(replica, "not done, trying again"), stage.told)
        assert await stage.stored("Profile", "kns.stray") is not None
        fresh = stage.controllers()  # one that never saw the API server deletes nothing either
        replica.kill()
        await fresh.until_leading()
        await eventually(lambda: said(fresh, "not followed, trying again"), stage.told)
        assert await stage.stored("NetworkPolicy", "knp.default.p1", ns) is not None
        assert await stage.stored("Profile", "kns.stray") is not None
    finally:
        await asyncio.to_thread(control_plane.apiserver.start)
    await stage.policy(ns, "p2", SPEC)
    await stage.until_stored("NetworkPolicy", "knp.default.p2", ns, timeout_s=60)
    await stage.until_gone("Profile", "kns.stray", timeout_s=60)
    await fresh.until_ready()


async def said(replica: Replica, *texts: str) -> bool:
    log = replica.log.read_text()
    return all(text in log for text in texts)


def documented_role() -> dict[str, Any]:
    """The one that users copy."""
    text = (PROJECT / "docs/reference/kube-controllers.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    role: dict[str, Any] = yaml.safe_load(block)
    return role


async def test_the_documented_role_is_what_the_controllers_read_and_no_more() -> None:
    granted = {
        (group, resource, verb)
        for rule in documented_role()["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    groups = {source.plural: source.group_version.rpartition("/")[0] for source in SOURCES}
    needed = {(groups[name], name, verb) for name in groups for verb in ("get", "list", "watch")}
    needed |= {("", "services/status", "patch"), ("", "events", "create")}  # addresses of load balancers
    assert granted == needed


async def bind(stage: KubeStage, user: str) -> None:
    """The user has the role of the same name."""
    group, api = "rbac.authorization.k8s.io", "/apis/rbac.authorization.k8s.io/v1"
    content = {
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": user},
        "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
    }
    await stage.make(f"{api}/clusterrolebindings", f"{group}/v1", "ClusterRoleBinding", user, content)


async def grant(stage: KubeStage, user: str, role: dict[str, Any]) -> None:
    """A PUT makes a role, too."""
    path = f"/apis/rbac.authorization.k8s.io/v1/clusterroles/{user}"
    await stage.api.update(path, copy.deepcopy(role) | {"metadata": {"name": user}})


def without(role: dict[str, Any], verb: str) -> dict[str, Any]:
    taken = copy.deepcopy(role)
    for rule in taken["rules"]:
        rule["verbs"] = [one for one in rule["verbs"] if one != verb]
    return taken


@pytest.mark.parametrize("verb", ["list", "watch", "get"])
async def test_a_missing_permission_is_named_and_nothing_is_deleted_for_lack_of_it(
    stage: KubeStage, control_plane: ControlPlane, verb: str
) -> None:
    """The verb is taken away for all kinds, and each kind must be named."""
    user = f"{stage.prefix}-{verb}"
    role = documented_role()
    await bind(stage, user)
    await grant(stage, user, without(role, verb))
    ns = await stage.namespace()
    strays = [
        ("NetworkPolicy", "knp.default.stray", ns), ("Profile", "kns.stray", ""), ("Profile", "ksa.x.stray", ""),
        ("Node", "stray", ""),
    ]  # fmt: skip
    await stage.apply("NetworkPolicy", "knp.default.stray", {"selector": "all()", "tier": "default"}, namespace=ns)
    for kind, name, _ in strays[1:3]:
        await stage.apply(kind, name, {})
    await stage.calico_node("stray", f"{stage.prefix}-gone")
    replica = await stage.controllers(control_plane.user(user)).until_leading()
    # Custom resources that this cluster does not have are refused before anybody knows that they are not there.
    named = [source for source in SOURCES if not source.optional]
    if verb == "get":
        asked = {"NetworkPolicy": "networkpolicies", "Namespace": "namespaces", "Node": "nodes"}
        texts = [f'User \\"{user}\\" cannot get resource \\"{plural}\\"' for plural in asked.values()]
    else:
        texts = [f'User \\"{user}\\" cannot {verb} resource \\"{source.plural}\\"' for source in named]
    await eventually(lambda: said(replica, *texts), lambda: f"{texts}\n{stage.told()}")
    if verb != "watch":  # what is listed is known, also when it cannot be followed
        for kind, name, namespace in strays:
            assert await stage.stored(kind, name, namespace) is not None, (kind, name)
    await grant(stage, user, role)
    await stage.policy(ns, "p1", SPEC)
    await stage.until_stored("NetworkPolicy", "knp.default.p1", ns, timeout_s=60)
    for kind, name, namespace in strays:
        await stage.until_gone(kind, name, namespace, timeout_s=60)
