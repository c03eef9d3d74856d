"""`kubectl apply` of k8s/ on real kubelets, with the image of this tree, as docs/install/kubernetes.md tells: rows M01,
M04, X04 (each account suffices), M14 (probes answer, read-only roots and users without rights do), X01 and X05 (etcd
and NATS in the cluster, TLS and permissions throughout, a certificate of its own on each node), D14's way from a real
Calico (what it left in iptables goes).

VXLAN, because not every kernel has IP in IP.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

from libs.netlink.netns import in_netns
from libs.testkit.cluster import PROJECT
from libs.testkit.http_probe import http_get
from libs.testkit.kube.cluster import KubeCluster
from libs.testkit.netns import Namespace
from libs.testkit.reach import Flow, Verdict, check, open_flow
from tests.e2e.conftest import needs_kubernetes, needs_real_kubelets

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

JsonObject = dict[str, Any]
SYSTEM, SPACE = "calico-system", "shop"
K8S = PROJECT / "k8s"
IMAGE = Path(os.environ.get("CALICO_TEST_IMAGE", PROJECT / ".run" / "image.tar"))
EARLIER_CALICO = """
table ip filter {
    chain FORWARD { type filter hook forward priority filter; policy accept; counter jump cali-FORWARD; }
    chain cali-FORWARD { counter drop; }
}
"""
"""As its iptables mode leaves it, in the form that iptables-nft reads; drops all that is forwarded."""
STORES = {"calico-etcd": 2, "calico-nats": 2}
COMPONENTS = STORES | {"calico-node": 2, "calico-typha": 2, "calico-kube-controllers": 2, "calico-apiserver": 2}


def needs_image() -> None:
    if not IMAGE.exists():
        pytest.skip("the container image is not here")


def nft(kube: KubeCluster, *arguments: str, text: str | None = None) -> str:
    """nft on node1."""
    return Namespace(kube.node("node1").namespace.name).run("nft", *arguments, text=text)


def addresses(kube: KubeCluster) -> dict[str, str]:
    return {node.name: str(node.ipv4.ip) for node in kube.cluster.nodes}


def manifests(kube: KubeCluster, *names: str) -> list[JsonObject]:
    """As they are, but for the names and addresses that an operator fills in."""
    at = addresses(kube)
    lists = {
        "calico-config": {
            "ETCD_ENDPOINTS": ",".join(f"https://{address}:2379" for address in at.values()),
            "NATS_URL": ",".join(f"tls://{address}:4222" for address in at.values()),
        },
        "calico-etcd": {
            "ETCD_INITIAL_CLUSTER": ",".join(f"{name}=https://{address}:2380" for name, address in at.items())
        },
        "calico-nats": {"NATS_ROUTES": f"[{', '.join(f'tls://{address}:6222' for address in at.values())}]"},
    }
    found = [one for name in names for one in yaml.safe_load_all((K8S / f"{name}.yaml").read_text())]
    for one in found:
        if one["kind"] == "ConfigMap":
            one["data"] |= lists.get(one["metadata"]["name"], {})
    return found


def calicoctl(kube: KubeCluster, *arguments: str, env: dict[str, str] | None = None) -> str:
    """Of a machine beside the nodes."""
    done = subprocess.run(
        ["nsenter", f"--net={kube.cluster.fabric.path}", sys.executable, "-m", "services.calicoctl", *arguments],
        cwd=PROJECT, env=os.environ | (env or {}), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def as_root(kube: KubeCluster) -> dict[str, str]:
    """etcd's administrator."""
    at = kube.cluster.directory / "pki" / "root"
    return {
        "ETCD_ENDPOINTS": ",".join(f"https://{address}:2379" for address in addresses(kube).values()),
        "ETCD_CA_CERT_FILE": str(at / "ca.crt"), "ETCD_CERT_FILE": str(at / "tls.crt"),
        "ETCD_KEY_FILE": str(at / "tls.key"),
    }  # fmt: skip


def install(kube: KubeCluster) -> None:
    """The steps of the page, until all pods are there."""
    pki, kubectl, nodes = kube.cluster.directory / "pki", kube.kubectl, list(addresses(kube))
    named = [word for name in nodes for word in ("--node", name)]
    servers = [word for address in addresses(kube).values() for word in ("--server", address)]
    calicoctl(kube, "trust", "certs", "-d", str(pki), *named, *servers)
    for name, real in kube.real.items():
        shutil.copytree(pki / f"calico-node.{name}", real.directory / "over/etc/calico/certs")
    kubectl.apply(*manifests(kube, "calico-vxlan"))
    kubectl("apply", "-f", "-", stdin=calicoctl(kube, "trust", "secrets", "-d", str(pki)))
    listed = pki / "nodes"
    listed.write_text("".join(f"{name}\n" for name in nodes))
    kubectl("create", "configmap", "calico-nats-nodes", "-n", SYSTEM, f"--from-file=nodes={listed}")
    kubectl("label", "nodes", "--all", "projectcalico.org/stores=member")
    kubectl.apply(*manifests(kube, "etcd", "nats", "apiserver"))
    bundle = base64.b64encode((pki / "ca.crt").read_bytes()).decode()
    patch = json.dumps({"spec": {"caBundle": bundle}})
    kubectl("patch", "apiservice", "v3.projectcalico.org", "--type=merge", "-p", patch)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kube() -> AsyncIterator[KubeCluster]:
    needs_kubernetes()
    needs_real_kubelets()
    needs_image()
    async with KubeCluster(nodes=2, real_kubelets=True, calico=False) as made:
        await made.import_image(IMAGE)
        await asyncio.to_thread(nft, made, "-f", "-", text=EARLIER_CALICO)

        async def nodes() -> bool:
            return len((await made.get("nodes"))["items"]) == len(made.cluster.nodes)

        await made.until(nodes, "nodes are known")
        try:
            await asyncio.to_thread(install, made)
            for component, count in STORES.items():
                await made.until_ready(SYSTEM, f"app.kubernetes.io/name={component}", count, timeout_s=120)
            named = [word for name in addresses(made) for word in ("--node", name)]
            told = await asyncio.to_thread(calicoctl, made, "datastore", "auth", "setup", *named, env=as_root(made))
            assert "switch authentication on" in told
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


async def test_every_port_of_a_node_wants_a_certificate_or_is_not_to_be_reached(kube: KubeCluster) -> None:
    """Row X01, from a machine beside the nodes: in plain HTTP, and by TLS without a certificate."""
    for address in addresses(kube).values():
        for port in (2379, 2380, 2381, 4222, 6222, 8222, 9094, 9095, 9096, 9097, 9098, 9099):
            with contextlib.suppress(OSError):
                said = await http_get(kube.cluster.fabric, address, port, "/metrics", timeout_s=3)
                assert said.status == 400, (address, port, said)  # "client sent an HTTP request to an HTTPS server"
            assert not await asyncio.to_thread(answers_strangers, kube, address, port), (address, port)


def answers_strangers(kube: KubeCluster, address: str, port: int) -> bool:
    context = ssl.create_default_context(cafile=kube.cluster.directory / "pki/ca.crt")
    context.check_hostname = False
    try:
        with kube.cluster.fabric.socket(socket.AF_INET, socket.SOCK_STREAM) as plain:
            plain.settimeout(3)
            plain.connect((address, port))
            with context.wrap_socket(plain) as secure:
                secure.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                return bool(secure.recv(100))
    except OSError:
        return False


async def test_nobody_is_refused_what_it_needs_and_kubectl_reads_calicos_objects(kube: KubeCluster) -> None:
    async def served() -> bool:
        return (await asyncio.to_thread(kube.kubectl.run, "get", "ippools.projectcalico.org")).status == 0

    await kube.until(served, "kube-apiserver passes on what is asked of ours")
    read = await asyncio.to_thread(kube.kubectl, "get", "ippools.projectcalico.org", "-o", "name")
    assert "ippool.projectcalico.org/default-ipv4-ippool" in read.split()
    for component in COMPONENTS:
        selector = ("-l", f"app.kubernetes.io/name={component}")
        logs = await asyncio.to_thread(
            kube.kubectl, "logs", "-n", SYSTEM, *selector, "--all-containers", "--tail=-1", "--max-log-requests=20"
        )
        bad = [line for line in logs.splitlines() if "permissions violation" in line.lower()]
        assert bad == [], component


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
                want = [Verdict.ALLOW]
                assert await asyncio.to_thread(check, flows, timeout_s=3, tries=1, wanted=want) == want
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
    for names in (("apiserver",), ("calico-vxlan",), ("etcd", "nats")):  # the stores last
        text = yaml.safe_dump_all(manifests(kube, *names))
        await asyncio.to_thread(
            kube.kubectl, "delete", "--ignore-not-found", "--timeout=180s", "-f", "-", stdin=text, timeout_s=200
        )
    left = await asyncio.to_thread(kube.kubectl, "get", "clusterroles,clusterrolebindings", "-o", "name")
    assert "calico" not in left
