"""Real kubelets with containerd and kube-proxy on our network: rows S01 (kube-proxy in nftables mode on one node,
in iptables mode on the other), S02 (policy on service traffic after DNAT, node ports), S08 (pods in the host's network,
host ports), C10 by a real runtime.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from libs.ipam.client import IpamClient
from libs.netlink.netns import in_netns
from libs.testkit.kube.cluster import KubeCluster
from libs.testkit.reach import Flow, Verdict, check, open_flow
from tests.e2e.conftest import needs_kubernetes, needs_real_kubelets

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]

JsonObject = dict[str, Any]
ALLOW, DENY = Verdict.ALLOW, Verdict.DENY
NODE_PORT, HOST_PORT, HOST_NETWORK_PORT = 30080, 8088, 9191
SPACE = "real"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kube() -> AsyncIterator[KubeCluster]:
    """Two servers, one on each node, behind a Service; clients that policy lets in and others; pods of the host's."""
    needs_kubernetes()
    needs_real_kubelets()
    async with KubeCluster(nodes=2, real_kubelets=True, kube_proxy={"node2": "iptables"}) as made:
        made.kubectl("create", "namespace", SPACE)
        await made.until(lambda: has_account(made), "service account")
        made.kubectl.apply(
            deployment("web", 2, ["web", "tcp:8080"], spread=True), service(),
            pod("friend", "node1", ["friend", "tcp:8080"]), pod("stranger", "node1", ["stranger", "tcp:8080"]),
            pod("far-friend", "node2", ["far", "tcp:8080"], role="friend"),
            pod("far-stranger", "node2", ["stranger", "tcp:8080"], role="stranger"),
            pod("host", "node1", ["host", f"tcp:{HOST_NETWORK_PORT}"], network=True),
            pod("hostport", "node2", ["hostport", "tcp:8080"], host_port=HOST_PORT),
        )  # fmt: skip
        await made.until_ready(SPACE, "test", 8, timeout_s=120)
        yield made


async def has_account(kube: KubeCluster) -> bool:
    return (await asyncio.to_thread(kube.kubectl.run, "get", "serviceaccount", "default", "-n", SPACE)).status == 0


def containers(args: list[str], host_port: int = 0) -> list[JsonObject]:
    port: JsonObject = {"containerPort": int(args[1].partition(":")[2])}
    port |= {"hostPort": host_port} if host_port else {}
    ready = {"tcpSocket": {"port": port["containerPort"]}, "periodSeconds": 1}
    return [{
        "name": "serve", "image": "localhost/probe:1", "imagePullPolicy": "Never", "args": args, "ports": [port],
        "readinessProbe": ready,
    }]  # fmt: skip


def pod(
    name: str, node: str, args: list[str], *, role: str = "", network: bool = False, host_port: int = 0
) -> JsonObject:
    labels = {"test": "yes", "role": role or name, "app": name}
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": SPACE, "labels": labels},
        "spec": {
            "nodeName": node, "hostNetwork": network, "terminationGracePeriodSeconds": 1,
            "containers": containers(args, host_port),
        },
    }  # fmt: skip


def deployment(name: str, replicas: int, args: list[str], *, spread: bool) -> JsonObject:
    labels = {"test": "yes", "app": name}
    constraint = {
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": name}},
    }  # fmt: skip
    template = {"terminationGracePeriodSeconds": 1, "containers": containers(args)}
    template |= {"topologySpreadConstraints": [constraint]} if spread else {}
    return {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": SPACE},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": labels}, "spec": template},
        },
    }  # fmt: skip


def service() -> JsonObject:
    port = {"port": 80, "targetPort": 8080, "nodePort": NODE_PORT}
    spec = {"selector": {"app": "web"}, "type": "NodePort", "ipFamilyPolicy": "PreferDualStack", "ports": [port]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": SPACE}, "spec": spec}


def policy(name: str, app: str, **rules: Any) -> JsonObject:
    spec = {"podSelector": {"matchLabels": {"app": app}}, "policyTypes": ["Ingress"], **rules}
    metadata = {"name": name, "namespace": SPACE}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


FRIENDS: JsonObject = {"ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}]}


class Places:
    """Where a question is asked from, and what is asked for."""

    def __init__(self, kube: KubeCluster) -> None:
        self.kube = kube
        self.pods: dict[str, JsonObject] = {}

    async def look(self) -> Places:
        items = (await self.kube.get("pods", "-n", SPACE))["items"]
        self.pods = {one["metadata"]["name"]: one for one in items}
        return self

    def addresses(self, name: str) -> list[str]:
        return [one["ip"] for one in self.pods[name]["status"]["podIPs"]]

    def space(self, name: str) -> Path:
        """A pod's network namespace, or a node's, or `outside`, the fabric beside them."""
        if name == "outside":
            return self.kube.cluster.fabric.path
        if name not in self.pods:
            return self.kube.node(name).namespace.path
        node = self.pods[name]["spec"]["nodeName"]
        if self.pods[name]["spec"].get("hostNetwork"):
            return self.kube.node(node).namespace.path
        for path in sorted(self.kube.real[node].namespaces()):
            if _has_address(path, self.addresses(name)[0]):
                return path
        raise LookupError(f"no network namespace of {name} on {node}")

    def servers(self) -> dict[str, str]:
        """Of the deployment: node -> pod."""
        return {one["spec"]["nodeName"]: name for name, one in self.pods.items() if name.startswith("web-")}


def _has_address(path: Path, address: str) -> bool:
    with contextlib.suppress(OSError), in_netns(path):
        return f"{address} " in Path("/proc/thread-self/net/fib_trie").read_text().replace("\n", " ")
    return False


@pytest_asyncio.fixture(loop_scope="module")
async def places(kube: KubeCluster) -> AsyncIterator[Places]:
    yield await Places(kube).look()
    await asyncio.to_thread(kube.kubectl, "delete", "networkpolicies", "--all", "-n", SPACE)


async def become(places: Places, wanted: list[tuple[str, str, int, Verdict]]) -> None:
    """Until every (from, address, port) is answered so, several times in a row: a Service chooses anew each time."""
    flows = [Flow(places.space(source), ip_address(address), port) for source, address, port, _ in wanted]
    want, seen, streak = [verdict for *_, verdict in wanted], [], 0
    deadline = asyncio.get_running_loop().time() + 60
    while streak < 6:
        seen = await asyncio.to_thread(check, flows, timeout_s=0.6, tries=2)
        streak = streak + 1 if seen == want else 0
        if not streak and asyncio.get_running_loop().time() > deadline:
            rows = zip(wanted, seen, strict=True)
            shown = [f"{a} -> {b}:{p} {got}, wanted {v}" for (a, b, p, v), got in rows if got != v]
            raise AssertionError("\n".join(shown))


async def service_addresses(kube: KubeCluster) -> list[str]:
    return list((await kube.get("service", "web", "-n", SPACE))["spec"]["clusterIPs"])


async def test_pods_are_what_kubernetes_thinks(kube: KubeCluster, places: Places) -> None:
    """Both families; the kubelet's own readiness probes come through; exec and logs work."""
    for name in ("friend", *places.servers().values()):
        assert [ip_address(text).version for text in places.addresses(name)] == [4, 6]
    assert places.addresses("host") == [str(kube.node("node1").ipv4.ip), str(kube.node("node1").ipv6.ip)]
    assert await asyncio.to_thread(kube.kubectl, "logs", "friend", "-n", SPACE) == "ready\n"
    near, far = places.servers()["node1"], places.servers()["node2"]
    await become(places, [
        ("friend", address, 8080, ALLOW) for server in (near, far) for address in places.addresses(server)
    ])  # fmt: skip


async def test_policy_on_services(kube: KubeCluster, places: Places) -> None:
    """Rows S01, S02: after kube-proxy's DNAT the pod's policy decides, for cluster addresses and node ports, whether
    it works with nftables (node1) or iptables (node2).
    """
    cluster_ips = await service_addresses(kube)
    assert [ip_address(text).version for text in cluster_ips] == [4, 6]
    node_ports = [str(kube.node("node1").ipv4.ip), str(kube.node("node2").ipv6.ip)]

    def picture(stranger: Verdict, outside: Verdict) -> list[tuple[str, str, int, Verdict]]:
        rows = [(who, ip, 80, ALLOW) for who in ("friend", "far-friend") for ip in cluster_ips]
        rows += [(who, ip, 80, stranger) for who in ("stranger", "far-stranger") for ip in cluster_ips]
        return rows + [("outside", ip, NODE_PORT, outside) for ip in node_ports]

    await become(places, picture(ALLOW, ALLOW))
    assert "table ip kube-proxy" in kube.real["node1"].run("nft", "list", "tables").stdout
    assert "table ip kube-proxy" not in kube.real["node2"].run("nft", "list", "tables").stdout
    assert "KUBE-SVC" in kube.real["node2"].run("iptables-save", "-t", "nat").stdout
    kube.kubectl.apply(policy("friends", "web", **FRIENDS))
    await become(places, picture(DENY, DENY))
    kube.kubectl.apply(policy("service-port", "web", ingress=[{"ports": [{"port": 80}]}]))  # which is not the pod's
    await become(places, picture(DENY, DENY))
    kube.kubectl.apply(policy("port", "web", ingress=[{"ports": [{"port": 8080}]}]))
    await become(places, picture(ALLOW, ALLOW))


async def test_egress_policy_on_services(kube: KubeCluster, places: Places) -> None:
    """Row S02: a client's egress is judged by where the Service leads, and not by its address."""
    (address, _) = await service_addresses(kube)
    rules = {"policyTypes": ["Egress"], "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "hostport"}}}]}]}
    kube.kubectl.apply(policy("out", "stranger", **rules))
    await become(places, [("stranger", address, 80, DENY), ("friend", address, 80, ALLOW)])
    rules["egress"] = [{"to": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 8080}]}]
    kube.kubectl.apply(policy("out", "stranger", **rules))
    await become(places, [("stranger", address, 80, ALLOW), ("friend", address, 80, ALLOW)])


async def test_pods_in_the_hosts_network(kube: KubeCluster, places: Places) -> None:
    """Row S08: such a pod is its node: it reaches pods of that node whatever policy says, others by its address."""
    near, far = (places.addresses(places.servers()[node])[0] for node in ("node1", "node2"))
    own = str(kube.node("node1").ipv4.ip)
    kube.kubectl.apply(policy("friends", "web", **FRIENDS))
    await become(places, [
        ("host", near, 8080, ALLOW), ("host", far, 8080, DENY), ("friend", own, HOST_NETWORK_PORT, DENY),
        ("far-friend", own, HOST_NETWORK_PORT, ALLOW), ("outside", own, HOST_NETWORK_PORT, ALLOW),
    ])  # fmt: skip
    block = {"ingress": [{"from": [{"ipBlock": {"cidr": f"{own}/32"}}]}]}
    kube.kubectl.apply(policy("host", "web", **block))
    await become(places, [("host", near, 8080, ALLOW), ("host", far, 8080, ALLOW), ("stranger", far, 8080, DENY)])


async def test_host_ports(kube: KubeCluster, places: Places) -> None:
    """Row S08: a host port leads to the pod, and to the pod's policy, which sees who really asks."""
    node = kube.node("node2")
    asked = [("outside", str(node.ipv4.ip), HOST_PORT), ("node1", str(node.ipv4.ip), HOST_PORT)]
    await become(places, [(*one, ALLOW) for one in asked])
    kube.kubectl.apply(policy("closed", "hostport"))
    await become(places, [(*one, DENY) for one in asked])
    block = {"ingress": [{"from": [{"ipBlock": {"cidr": f"{kube.cluster.ipv4.ip}/32"}}]}]}
    kube.kubectl.apply(policy("closed", "hostport", **block))
    await become(places, [(*asked[0], ALLOW), (*asked[1], DENY)])


async def test_a_kubelet_that_restarts_and_an_agent_too(kube: KubeCluster, places: Places) -> None:
    """Connections stay open while both are away, and both come back to what there was."""
    address = places.addresses(places.servers()["node2"])[0]
    flow = Flow(places.space("friend"), ip_address(address), 8080)
    with contextlib.closing(open_flow(flow)) as connection:
        connection.setblocking(True)
        connection.settimeout(20)
        connection.connect((address, 8080))
        kube.cluster.kill_felix("node2")
        kube.real["node2"].end("kubelet")
        connection.sendall(b"still there?")
        assert connection.recv(100) == b"still there?"
        await kube.cluster.start_felix("node2")
        kube.real["node2"].start_kubelet()
        connection.sendall(b"and now?")
        assert connection.recv(100) == b"and now?"
    kube.kubectl.apply(pod("late", "node2", ["late", "tcp:8080"]))
    await kube.until_ready(SPACE, "app=late", 1, timeout_s=120)
    assert len((await kube.get("pods", "-n", SPACE, "-l", "test"))["items"]) == 9


async def test_at_the_end_nothing_is_left(kube: KubeCluster, places: Places) -> None:
    """All pods go; with them their endpoints, addresses, interfaces."""
    await asyncio.to_thread(kube.kubectl, "delete", "namespace", SPACE, "--timeout=100s", timeout_s=120)
    async with kube.cluster.store() as store:

        async def gone() -> bool:
            endpoints = (await store.list("/calico/resources/v3/projectcalico.org/workloadendpoints/")).kvs
            blocks = await IpamClient(store).blocks()
            held = [one for block in blocks for one in block.allocated() if not one.released_at]
            return not endpoints and not held

        await kube.until(gone, "endpoints and addresses gone")
    for name in ("node1", "node2"):
        shown = await asyncio.to_thread(kube.real[name].run, "ip", "-o", "link")
        assert "cali" not in shown.stdout
        assert not kube.real[name].namespaces()
