"""`kubectl apply -f k8s/calico-vxlan.yaml` on real kubelets, with the image of this tree: rows M01, M04, X04 (each
account suffices), M14 (probes answer, read-only roots and users without rights do), D14's way from a real Calico (what
it left in iptables goes).

The datastore and the bus stand outside, without TLS: the way of an existing etcd. VXLAN, because not every kernel has
IP in IP.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from libs.netlink.netns import in_netns
from libs.testkit.cluster import PROJECT
from libs.testkit.kube.cluster import KubeCluster
from libs.testkit.netns import Namespace
from libs.testkit.reach import Flow, Verdict, check, open_flow
from tests.e2e.conftest import needs_kubernetes, needs_real_kubelets

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

JsonObject = dict[str, Any]
SYSTEM, SPACE = "calico-system", "shop"
MANIFEST = PROJECT / "k8s" / "calico-vxlan.yaml"
IMAGE = Path(os.environ.get("CALICO_TEST_IMAGE", PROJECT / ".run" / "image.tar"))
EARLIER_CALICO = """
table ip filter {
    chain FORWARD { type filter hook forward priority filter; policy accept; counter jump cali-FORWARD; }
    chain cali-FORWARD { counter drop; }
}
"""
"""As its iptables mode leaves it, in the form that iptables-nft reads; drops all that is forwarded."""
COMPONENTS = {"calico-node": 2, "calico-typha": 2, "calico-kube-controllers": 2}


def needs_image() -> None:
    if not IMAGE.exists():
        pytest.skip("the container image is not here")


def nft(kube: KubeCluster, *arguments: str, text: str | None = None) -> str:
    """nft on node1."""
    return Namespace(kube.node("node1").namespace.name).run("nft", *arguments, text=text)


def manifests(kube: KubeCluster) -> list[JsonObject]:
    """As they are, but for where the datastore and the bus are, and without their certificates."""
    found = list(yaml.safe_load_all(MANIFEST.read_text()))
    for one in found:
        if one["kind"] == "ConfigMap" and one["metadata"]["name"] == "calico-config":
            one["data"] = {"ETCD_ENDPOINTS": kube.cluster.etcd.endpoint, "NATS_URL": kube.cluster.nats.url}
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kube() -> AsyncIterator[KubeCluster]:
    needs_kubernetes()
    needs_real_kubelets()
    needs_image()
    async with KubeCluster(nodes=2, real_kubelets=True, calico=False) as made:
        await made.import_image(IMAGE)
        await asyncio.to_thread(nft, made, "-f", "-", text=EARLIER_CALICO)
        kubectl = made.kubectl
        # The host of a service account's environment is the Service's address, by kube-proxy.
        await asyncio.to_thread(kubectl.apply, *manifests(made))
        for component in COMPONENTS:
            pair = made.control_plane.ca.issue(component)
            await asyncio.to_thread(
                kubectl, "create", "secret", "generic", f"{component}-certs", "-n", SYSTEM,
                f"--from-file=ca.crt={made.control_plane.ca.cert}", f"--from-file=tls.crt={pair.cert}",
                f"--from-file=tls.key={pair.key}",
            )  # fmt: skip
        try:
            await components_ready(made)
        except BaseException:
            print(explain(made))
            raise
        yield made


def explain(kube: KubeCluster) -> str:
    """Why pods are not ready."""
    shown = [kube.kubectl.run("get", "pods", "-A", "-o", "wide"), kube.kubectl.run("get", "events", "-A")]
    shown += [
        kube.kubectl.run("logs", "-n", SYSTEM, "-l", f"app.kubernetes.io/name={name}", "--prefix", "--tail=30")
        for name in COMPONENTS
    ]
    return "\n".join(f"{one.out}{one.err}" for one in shown)


async def components_ready(kube: KubeCluster) -> None:
    for component, count in COMPONENTS.items():
        await kube.until_ready(SYSTEM, f"app.kubernetes.io/name={component}", count, timeout_s=180)


def pod(name: str, node: str) -> JsonObject:
    ready = {"tcpSocket": {"port": 8080}, "periodSeconds": 1}
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": SPACE, "labels": {"app": name, "test": "yes"}},
        "spec": {
            "nodeName": node, "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "serve", "image": "localhost/probe:1", "imagePullPolicy": "Never",
                "args": [name, "tcp:8080"], "readinessProbe": ready,
            }],
        },
    }  # fmt: skip


def namespace_of(kube: KubeCluster, found: JsonObject) -> Path:
    address = found["status"]["podIP"]
    for path in kube.real[found["spec"]["nodeName"]].namespaces():
        with contextlib.suppress(OSError), in_netns(path):
            if f"{address} " in Path("/proc/thread-self/net/fib_trie").read_text().replace("\n", " "):
                return path
    raise LookupError(f"no network namespace has {address}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pods(kube: KubeCluster) -> dict[str, JsonObject]:
    """A server, and a client of each kind beside it and on the other node."""
    await asyncio.to_thread(kube.kubectl, "create", "namespace", SPACE)

    async def account() -> bool:
        return (await asyncio.to_thread(kube.kubectl.run, "get", "sa", "default", "-n", SPACE)).status == 0

    await kube.until(account, "service account")
    wanted = [pod("web", "node1"), pod("friend", "node2"), pod("stranger", "node2")]
    await asyncio.to_thread(kube.kubectl.apply, *wanted)
    return await kube.until_ready(SPACE, "test", 3, timeout_s=120)


async def become(kube: KubeCluster, pods: dict[str, JsonObject], wanted: dict[str, Verdict]) -> None:
    address = ip_address(pods["web"]["status"]["podIP"])
    flows = [Flow(namespace_of(kube, pods[name]), address, 8080) for name in wanted]

    async def so() -> bool:
        return await asyncio.to_thread(check, flows, timeout_s=0.6, tries=2) == list(wanted.values())

    await kube.until(so, f"{wanted}")


async def test_users_pods_have_a_network_and_policy_acts(kube: KubeCluster, pods: dict[str, JsonObject]) -> None:
    await become(kube, pods, {"friend": Verdict.ALLOW, "stranger": Verdict.ALLOW})
    peer = {"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}
    policy = {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "friends", "namespace": SPACE},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"], "ingress": [peer]},
    }  # fmt: skip
    await asyncio.to_thread(kube.kubectl.apply, policy)
    await become(kube, pods, {"friend": Verdict.ALLOW, "stranger": Verdict.DENY})


async def test_what_an_earlier_calico_left_is_taken_over(kube: KubeCluster) -> None:
    """The image has what it takes: traffic would not be forwarded on that node, see EARLIER_CALICO."""

    async def gone() -> bool:
        return "cali-" not in await asyncio.to_thread(nft, kube, "list", "table", "ip", "filter")

    await kube.until(gone, "chains of an earlier Calico removed", timeout_s=60)


async def test_nodes_are_ready_and_say_so(kube: KubeCluster, pods: dict[str, JsonObject]) -> None:
    for node in (await kube.get("nodes"))["items"]:
        conditions = {one["type"]: one["status"] for one in node["status"]["conditions"]}
        assert conditions["Ready"] == "True"
        assert conditions["NetworkUnavailable"] == "False"


async def test_rolling_update_loses_no_connection(kube: KubeCluster, pods: dict[str, JsonObject]) -> None:
    """Row M04: a connection that is used all the time, and new ones, while every calico-node is replaced."""
    address = pods["web"]["status"]["podIP"]
    space = namespace_of(kube, pods["friend"])
    selector = "app.kubernetes.io/name=calico-node"
    before = {one["metadata"]["uid"] for one in (await kube.get("pods", "-n", SYSTEM, "-l", selector))["items"]}
    done = asyncio.Event()
    asked = 0

    def talk(connection: Any) -> None:
        connection.sendall(b"still there?")
        assert connection.recv(100) == b"still there?"

    async def traffic() -> None:
        nonlocal asked
        with contextlib.closing(open_flow(Flow(space, ip_address(address), 8080))) as connection:
            connection.setblocking(True)
            connection.settimeout(10)
            connection.connect((address, 8080))
            while not done.is_set():
                await asyncio.to_thread(talk, connection)
                flows = [Flow(space, ip_address(address), 8080)]
                assert await asyncio.to_thread(check, flows, timeout_s=3, tries=1) == [Verdict.ALLOW]
                asked += 1

    talking = asyncio.create_task(traffic())
    await asyncio.to_thread(kube.kubectl, "rollout", "restart", "daemonset/calico-node", "-n", SYSTEM)

    async def replaced() -> bool:
        if talking.done():
            talking.result()
        items = (await kube.get("pods", "-n", SYSTEM, "-l", selector))["items"]
        return before.isdisjoint(one["metadata"]["uid"] for one in items)

    await kube.until(replaced, "every calico-node replaced", timeout_s=240)
    await components_ready(kube)
    done.set()
    await talking
    assert asked > 10


async def test_uninstall(kube: KubeCluster, pods: dict[str, JsonObject]) -> None:
    """Users' pods first, then what was applied; what remains on the hosts is removed by `calico-node uninstall`."""
    await asyncio.to_thread(kube.kubectl, "delete", "namespace", SPACE, "--timeout=120s", timeout_s=150)
    text = yaml.safe_dump_all(manifests(kube))
    await asyncio.to_thread(kube.kubectl, "delete", "--timeout=180s", "-f", "-", stdin=text, timeout_s=200)
    left = await asyncio.to_thread(kube.kubectl, "get", "clusterroles,clusterrolebindings", "-o", "name")
    assert "calico" not in left
