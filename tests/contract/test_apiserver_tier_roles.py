"""Tier RBAC through the whole apiserver: a role file, real etcd, HTTP (row A07). What a kube-apiserver's own RBAC says
is asked in tests/kube.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from libs.testkit.servers import EtcdServer, NatsServer
from services.apiserver.core.request import API_PREFIX
from tests.contract.test_apiserver_process import Process

pytestmark = pytest.mark.servers

POLICIES = f"{API_PREFIX}/namespaces/default/networkpolicies"
GLOBAL = f"{API_PREFIX}/globalnetworkpolicies"
ROLES = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: policies}
rules:
- {apiGroups: [projectcalico.org], resources: [networkpolicies, globalnetworkpolicies], verbs: ["*"]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: red}
rules:
- {apiGroups: [projectcalico.org], resources: [tiers], resourceNames: [red], verbs: [get]}
- apiGroups: [projectcalico.org]
  resources: [tier.networkpolicies, tier.globalnetworkpolicies]
  resourceNames: ["red.*"]
  verbs: ["*"]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: one}
rules:
- {apiGroups: [projectcalico.org], resources: [tiers], resourceNames: [blue], verbs: [get]}
- {apiGroups: [projectcalico.org], resources: [tier.networkpolicies], resourceNames: [blue-web], verbs: [get, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: blind}
rules:
- {apiGroups: [projectcalico.org], resources: [tier.networkpolicies], verbs: ["*"]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: policies}
roleRef: {kind: ClusterRole, name: policies}
subjects: [{kind: Group, name: users}]
""" + "".join(
    f"---\n{{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {{name: {user}}},"
    f" roleRef: {{kind: ClusterRole, name: {user}}}, subjects: [{{kind: User, name: {user}}}]}}\n"
    for user in ("red", "one", "blind")
)
USERS = "".join(f"token-of-{user},{user},,users\n" for user in ("red", "one", "blind"))
TOKENS = USERS + "token-of-root,root,,system:masters\n"


class Client:
    def __init__(self, process: Process, user: str) -> None:
        self._process, self._user = process, user

    async def __call__(self, path: str, method: str = "GET", body: Any = None) -> tuple[int, Any]:
        connector = aiohttp.TCPConnector(ssl=self._process.pki.client())
        headers = {"Authorization": f"Bearer token-of-{self._user}"}
        async with (
            aiohttp.ClientSession(connector=connector, headers=headers) as session,
            session.request(method, f"https://127.0.0.1:{self._process.port}{path}", json=body) as answer,
        ):
            return answer.status, await answer.json()

    async def names(self, path: str) -> list[str]:
        status, found = await self(path)
        assert status == 200, found
        return sorted(item["metadata"]["name"] for item in found["items"])

    async def watched(self, path: str, until: str) -> list[str]:
        """Names of the objects that a watch tells, until one of that name comes."""
        connector = aiohttp.TCPConnector(ssl=self._process.pki.client())
        headers = {"Authorization": f"Bearer token-of-{self._user}"}
        told: list[str] = []
        async with (
            asyncio.timeout(30),
            aiohttp.ClientSession(connector=connector, headers=headers) as session,
            session.get(f"https://127.0.0.1:{self._process.port}{path}") as answer,
        ):
            assert answer.status == 200, await answer.text()
            async for line in answer.content:
                told.append(json.loads(line)["object"]["metadata"]["name"])
                if told[-1] == until:
                    break
        return told


def policy(tier: str, name: str, *, kind: str = "NetworkPolicy") -> dict[str, Any]:
    where = {"namespace": "default"} if kind == "NetworkPolicy" else {}
    return {
        "apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name} | where,
        "spec": {"tier": tier, "selector": "all()"},
    }  # fmt: skip


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Process]:
    async with EtcdServer() as etcd, NatsServer() as nats:
        process = Process(tmp_path, etcd, nats)
        (tmp_path / "roles").write_text(ROLES)
        (tmp_path / "tokens").write_text(TOKENS)
        child = process.start()
        try:
            await process.answers()
            root = Client(process, "root")
            for order, tier in enumerate(("red", "blue"), start=10):
                body = {"apiVersion": "projectcalico.org/v3", "kind": "Tier", "metadata": {"name": tier}}
                assert (await root(f"{API_PREFIX}/tiers", "POST", body | {"spec": {"order": order}}))[0] == 201
                for name in ("web", "db"):
                    assert (await root(POLICIES, "POST", policy(tier, f"{tier}-{name}")))[0] == 201
                wide = policy(tier, f"{tier}-all", kind="GlobalNetworkPolicy")
                assert (await root(GLOBAL, "POST", wide))[0] == 201
            yield process
        finally:
            child.kill()


async def test_a07_a_user_of_one_tier_neither_reads_nor_writes_another(api: Process) -> None:
    red, root = Client(api, "red"), Client(api, "root")

    # Reads: one, all, by selector, by watch.
    assert (await red(f"{POLICIES}/red-web"))[0] == 200
    assert await red.names(POLICIES) == ["red-db", "red-web"]
    assert await red.names(GLOBAL) == ["red-all"]
    assert await root.names(POLICIES) == ["blue-db", "blue-web", "red-db", "red-web"]
    both = f"{POLICIES}?labelSelector=projectcalico.org/tier%20in%20(red,blue)"
    assert await red.names(both) == ["red-db", "red-web"]
    for blue in (f"{POLICIES}/blue-web", f"{POLICIES}?fieldSelector=spec.tier%3Dblue",
                 f"{POLICIES}?labelSelector=projectcalico.org/tier%3Dblue&watch=true"):  # fmt: skip
        status, body = await red(blue)
        assert (status, body["reason"]) == (403, "Forbidden"), blue
        assert 'in tier "blue" and namespace "default" (user cannot get tier)' in body["message"]

    # Writes.
    status, body = await red(POLICIES, "POST", policy("blue", "blue-new"))
    assert status == 403
    assert body["message"] == (
        'networkpolicies.projectcalico.org "blue-new" is forbidden: User "red" cannot create'
        ' networkpolicies.projectcalico.org in tier "blue" and namespace "default" (user cannot get tier)'
    )
    assert (await red(POLICIES, "POST", policy("red", "red-new")))[0] == 201
    for path, verb in ((f"{POLICIES}/blue-web", "DELETE"), (f"{GLOBAL}/blue-all", "DELETE")):
        assert (await red(path, verb))[0] == 403
    _, current = await root(f"{POLICIES}/blue-web")
    assert (await red(f"{POLICIES}/blue-web", "PUT", current))[0] == 403
    current["spec"]["tier"] = "red"
    assert (await red(f"{POLICIES}/blue-web", "PUT", current))[0] in (403, 422), "nor is it taken over"
    _, mine = await root(f"{POLICIES}/red-web")
    mine["spec"]["tier"] = "blue"
    assert (await red(f"{POLICIES}/red-web", "PUT", mine))[0] in (403, 422), "nor one's own pushed over"
    status, _ = await red(POLICIES, "DELETE")
    assert status in (200, 403)
    left = await root.names(POLICIES)
    assert [name for name in left if name.startswith("blue")] == ["blue-db", "blue-web"], "a collection is one's own"


async def test_a07_a_watch_tells_of_ones_own_tier_alone(api: Process) -> None:
    red, root = Client(api, "red"), Client(api, "root")
    watch = asyncio.create_task(red.watched(f"{POLICIES}?watch=true", "red-last"))
    try:
        for name in ("blue-1", "red-1", "blue-2"):
            assert (await root(POLICIES, "POST", policy(name.split("-")[0], name)))[0] == 201
        deadline = asyncio.get_running_loop().time() + 30
        number = 0
        while not watch.done():  # it may have begun after some of these
            number += 1
            for name in (f"blue-x{number}", "red-last"):
                await root(POLICIES, "POST", policy(name.split("-")[0], name))
            await root(f"{POLICIES}/red-last", "DELETE")
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)
        told = await watch
    finally:
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch
    assert told[-1] == "red-last"
    assert [name for name in told if not name.startswith("red")] == []


async def test_a07_one_policy_by_name_and_no_tier_without_get(api: Process) -> None:
    one, blind = Client(api, "one"), Client(api, "blind")
    assert (await one(f"{POLICIES}/blue-web"))[0] == 200
    status, body = await one(f"{POLICIES}/blue-db")
    assert (status, "(user cannot get tier)" in body["message"]) == (403, False), "the tier it may get"
    assert (await one(f"{POLICIES}/red-web"))[0] == 403
    assert (await one(f"{POLICIES}/blue-web", "DELETE"))[0] == 403, "get and update alone"
    assert await one.names(POLICIES) == [], "a list needs the tier's"
    status, body = await blind(f"{POLICIES}/blue-web")
    assert (status, "(user cannot get tier)" in body["message"]) == (403, True)
    assert await blind.names(POLICIES) == []
