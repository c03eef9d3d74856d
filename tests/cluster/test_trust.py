"""A cluster of nodes over mutual TLS, with etcd's roles and NATS's permissions on (X01, X02, X05, T06)."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from libs.testkit.cluster import PROJECT, Cluster
from libs.testkit.reach import Verdict
from libs.trust import identities
from tests.cluster.conftest import until

pytestmark = pytest.mark.cluster

DENY = {
    "apiVersion": "projectcalico.org/v3",
    "kind": "NetworkPolicy",
    "metadata": {"name": "closed", "namespace": "default"},
    "spec": {"selector": "app == 'web'", "types": ["Ingress"]},
}


@pytest.fixture
async def cluster() -> AsyncGenerator[Cluster, None]:
    async with Cluster.create(nodes=2, daemons=("bgp", "node"), tls=True) as cluster:
        yield cluster


async def calicoctl(cluster: Cluster, *arguments: str, identity: str = identities.OPERATOR) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.calicoctl", *arguments, cwd=PROJECT,
        env=cluster.env | cluster.outside_env(identity), stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


def said(path: Path, text: str) -> int:
    return path.read_text().count(text)


async def test_pods_policy_and_renewal_over_mutual_tls(cluster: Cluster, tmp_path: Path) -> None:
    web = await cluster.add_pod("node1", "web", labels={"app": "web"})
    client = await cluster.add_pod("node2", "client")
    question = (client, web, 8080, "tcp")
    for family in (4, 6):
        await cluster.eventually([question], Verdict.ALLOW, family=family, timeout_s=60)

    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(DENY))
    status, output = await calicoctl(cluster, "apply", "-f", str(policy), identity=identities.READER)
    assert status == 1, output
    assert "permission denied" in output
    status, output = await calicoctl(
        cluster, "apply", "-f", str(policy), "--wait", "--timeout", "60s", identity=identities.POLICY_EDITOR
    )
    assert status == 0, output
    for family in (4, 6):
        assert await cluster.reach([question], family=family) == [Verdict.DENY]

    assert cluster.trust is not None
    log = cluster.node("node1").directory / "felix.log"
    connected = said(log, "connected to NATS")
    cluster.trust.authority.renew(identities.node("node1"))

    async def moved() -> bool:
        return said(log, "making new connections to etcd") > 0 and said(log, "connected to NATS") > connected

    await until(moved, 60, "felix on node1 connected anew")
    status, output = await calicoctl(cluster, "delete", "-f", str(policy), "--wait", "--timeout", "60s")
    assert status == 0, output
    assert await cluster.passes([question])
    await cluster.remove_pod(web)
    await cluster.remove_pod(client)
    for process in cluster._processes():
        # Whatever least privilege takes from a service that it does need shows here.
        text = process.log_path.read_text()
        assert "permission" not in text.lower(), f"{process.name}:\n{process.log_tail()}"
