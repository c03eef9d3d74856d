"""Pods of Kubernetes: from the API to the first packet under policy, one at a time and 500 in one go on three nodes.

    python -m benchmarks.kubernetes [--quick] [--json FILE]

A real kube-apiserver, controller-manager, scheduler and etcd, our controllers, typha and a felix on each node; nodes
are namespaces, with an agent that does a kubelet's work for networking through the compiled CNI plugin, and a probe
server in each pod. Nothing pulls images or starts containers, so this is what the network adds to a pod's start.

A policy lets a friend in and nobody else. `first packet`: from the request that creates the pod (scheduler, agent, CNI
and policy included) to the friend's first answer. `leaks`: pods that ever answered the stranger, who asks right then.
Pods of the 500 name their node, since scheduler and controller-manager ask the API at most 20 to 50 times a second.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.common import Row, cpu_s, machine, parser, report, rss_mb, spread
from libs.kube.api import KubeApi
from libs.kube.objects import Key
from libs.testkit.http_probe import http_get
from libs.testkit.kube.cluster import KubeCluster
from libs.testkit.kube.kubelet import Sandbox
from libs.testkit.pods import Pod
from libs.testkit.reach import Flow, Verdict, check

SPACE, PORT = "bench", 8080
CREATES_AT_ONCE = 50
BATCH = 50
"""Servers asked at once: the kernel's table of neighbours has 1,024 entries for all namespaces together."""
JsonObject = dict[str, Any]


def pod(name: str, app: str, node: str = "") -> JsonObject:
    container = {"name": "c", "image": "any", "ports": [{"containerPort": PORT}]}
    spec: JsonObject = {"terminationGracePeriodSeconds": 0, "containers": [container]}
    metadata = {"name": name, "namespace": SPACE, "labels": {"app": app}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": spec | ({"nodeName": node} if node else {}),
    }


def policy(name: str, subject: str, friend: str) -> JsonObject:
    spec = {
        "podSelector": {"matchLabels": {"app": subject}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": friend}}}]}],
    }
    metadata = {"name": name, "namespace": SPACE}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


class Bench:
    def __init__(self, kube: KubeCluster, api: KubeApi) -> None:
        self.kube, self.api = kube, api
        self.friend: Pod | None = None
        self.stranger: Pod | None = None

    def sandbox(self, name: str) -> Sandbox | None:
        key = Key(SPACE, name)
        return next((one.sandboxes[key] for one in self.kube.kubelets.values() if key in one.sandboxes), None)

    async def connected(self, name: str) -> Pod:
        while (found := self.sandbox(name)) is None:  # noqa: ASYNC110 - the agent's table has no event
            await asyncio.sleep(0.001)
        assert found.pod is not None
        return found.pod

    async def begin(self) -> None:
        self.kube.kubectl("create", "namespace", SPACE)
        await self.kube.until(self._has_account, "service account")
        for name in ("friend", "stranger"):
            await self.api.create(f"/api/v1/namespaces/{SPACE}/pods", pod(name, name, "node1"))
        self.friend, self.stranger = await self.connected("friend"), await self.connected("stranger")
        path = f"/apis/networking.k8s.io/v1/namespaces/{SPACE}/networkpolicies"
        await self.api.create(path, policy("friends", "server", "friend"))
        await self.api.create(f"/api/v1/namespaces/{SPACE}/pods", pod("first", "server", "node2"))
        first = await self.connected("first")
        await self.kube.until(lambda: self._is(self.stranger, [first], Verdict.DENY), "the policy is in force")

    async def _has_account(self) -> bool:
        arguments = ("get", "serviceaccount", "default", "-n", SPACE)
        return (await asyncio.to_thread(self.kube.kubectl.run, *arguments)).status == 0

    async def ask(self, client: Pod | None, servers: Sequence[Pod], timeout_s: float) -> list[Verdict]:
        assert client is not None
        flows = [Flow(client.netns.path, one.address(4), PORT) for one in servers]
        return await asyncio.to_thread(check, flows, timeout_s=timeout_s)

    async def _is(self, client: Pod | None, servers: Sequence[Pod], wanted: Verdict) -> bool:
        return set(await self.ask(client, servers, 0.5)) == {wanted}

    async def one_by_one(self, count: int) -> list[Row]:
        plugged: list[float] = []
        first: list[float] = []
        leaks = 0
        for number in range(count):
            begun = time.monotonic()
            await self.api.create(f"/api/v1/namespaces/{SPACE}/pods", pod(f"one-{number}", "server"))
            made = await self.connected(f"one-{number}")
            plugged.append((time.monotonic() - begun) * 1000)
            while (await self.ask(self.friend, [made], 0.2)) != [Verdict.ALLOW]:
                pass
            first.append((time.monotonic() - begun) * 1000)
            leaks += (await self.ask(self.stranger, [made], 0.15)) != [Verdict.DENY]
        return [
            {"what": "one pod: created to CNI's answer", **spread(plugged)},
            {"what": "one pod: created to first packet, policy enforced", **spread(first), "leaks": leaks},
        ]

    async def policies(self, count: int) -> Row:
        """A policy that shuts the friend out of one pod, from the API to the first refused connection."""
        target = await self.connected("first")
        path = f"/apis/networking.k8s.io/v1/namespaces/{SPACE}/networkpolicies"
        samples: list[float] = []
        for _ in range(count):
            begun = time.monotonic()
            await self.api.update(f"{path}/friends", policy("friends", "server", "nobody"))
            while (await self.ask(self.friend, [target], 0.05)) == [Verdict.ALLOW]:
                pass
            samples.append((time.monotonic() - begun) * 1000 - 50)  # the silence that is waited for
            await self.api.update(f"{path}/friends", policy("friends", "server", "friend"))
            await self.kube.until(lambda: self._is(self.friend, [target], Verdict.ALLOW), "open again")
        return {"what": "policy changed to enforced", **spread(samples)}

    async def at_once(self, count: int) -> list[Row]:
        await asyncio.to_thread(
            self.kube.kubectl, "delete", "pods", "-n", SPACE, "-l", "app=server", "--timeout=100s", timeout_s=120
        )
        nodes = [node.name for node in self.kube.cluster.nodes]
        before, felix_s = await self.requests(), self._felix_cpu_s()
        slots = asyncio.Semaphore(CREATES_AT_ONCE)

        async def create(number: int) -> Pod:
            name = f"many-{number}"
            async with slots:
                body = pod(name, "server", nodes[number % len(nodes)])
                await self.api.create(f"/api/v1/namespaces/{SPACE}/pods", body)
            return await self.connected(name)

        begun = time.monotonic()
        made = await asyncio.gather(*(create(number) for number in range(count)))
        plugged_s = time.monotonic() - begun
        waiting = list(made)
        while waiting:
            some, waiting = waiting[:BATCH], waiting[BATCH:]
            answers = await self.ask(self.friend, some, 1.0)
            waiting += [one for one, seen in zip(some, answers, strict=True) if seen != Verdict.ALLOW]
        all_s = time.monotonic() - begun
        leaks = 0
        for start in range(0, count, BATCH):
            leaks += sum(
                seen != Verdict.DENY for seen in await self.ask(self.stranger, made[start : start + BATCH], 0.5)
            )
        await self.kube.until(self._all_running, "all Running in the API")
        reported_s = time.monotonic() - begun
        after = await self.requests()
        rows: list[Row] = [
            {"what": f"{count} pods: all connected", "s": round(plugged_s, 1)},
            {"what": f"{count} pods: all answer the friend, policy enforced", "s": round(all_s, 1), "leaks": leaks},
            {"what": f"{count} pods: all Running in the API", "s": round(reported_s, 1)},
            {"what": "  felix, all nodes: CPU for each pod", "mean_ms": self._each(felix_s, count)},
        ]
        rows += [
            {"what": f"  requests: {name}", "count": after[name] - before[name],
             "per_pod": round((after[name] - before[name]) / count, 1)}
            for name in after
        ]  # fmt: skip
        begun = time.monotonic()
        path = f"/api/v1/namespaces/{SPACE}/pods"
        await self.api.delete(path, {"gracePeriodSeconds": 0})
        while any(one.sandboxes for one in self.kube.kubelets.values()):  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
        rows.append({"what": f"{count} pods: all disconnected", "s": round(time.monotonic() - begun, 1)})
        assert self.kube.controllers is not None
        rows.append({"what": "  kube_controllers: memory", "mb": round(rss_mb(self.kube.controllers.pid))})
        return rows

    async def _all_running(self) -> bool:
        items = (await self.api.list_all(f"/api/v1/namespaces/{SPACE}/pods")).items
        return all(one["status"].get("phase") == "Running" for one in items)

    def _felix_cpu_s(self) -> float:
        return sum(cpu_s(node.felix.pid) for node in self.kube.cluster.nodes)

    def _each(self, before_s: float, count: int) -> float:
        return round((self._felix_cpu_s() - before_s) / count * 1000, 1)

    async def requests(self) -> dict[str, int]:
        """Since the start: kube-apiserver's by verb (watches and the rest of itself left out), etcd's by who asked."""
        told = await asyncio.to_thread(self.kube.kubectl, "get", "--raw", "/metrics")
        found = {f"kube-apiserver, {verb}": 0 for verb in ("GET", "POST", "PATCH", "DELETE")}
        kubernetes = 0.0
        for line in told.splitlines():
            name, _, value = line.rpartition(" ")
            if name.startswith("apiserver_request_total{"):
                verb = name.split('verb="')[1].split('"')[0]
                if (key := f"kube-apiserver, {verb}") in found:
                    found[key] += int(float(value))
            elif name.startswith("etcd_requests_total{"):
                kubernetes += float(value)
        etcd = self.kube.cluster.etcd
        metrics = (await http_get(self.kube.cluster.fabric, etcd.address, etcd.port, "/metrics")).text
        total = sum(
            float(line.rpartition(" ")[2])
            for line in metrics.splitlines()
            if line.startswith("grpc_server_handled_total{") and 'grpc_service="etcdserverpb.KV"' in line
            and 'grpc_code="OK"' in line
        )  # fmt: skip
        return found | {"etcd, by kube-apiserver": int(kubernetes), "etcd, by ours": int(total - kubernetes)}


async def run(single: int, many: int) -> list[Row]:
    async with KubeCluster(nodes=3, apiserver=False, log_level="warning") as kube:
        path = kube.outside("bench", groups=["system:masters"])
        async with await KubeApi.open(path) as api:
            bench = Bench(kube, api)
            await bench.begin()
            rows = await bench.one_by_one(single)
            rows.append(await bench.policies(max(5, single // 4)))
            return rows + await bench.at_once(many)


def main() -> int:
    options = parser(__doc__).parse_args()
    described = machine()
    sizes = (10, 30) if options.quick else (100, 500)
    report("Kubernetes", asyncio.run(run(*sizes)), options.json, described)
    return 0


if __name__ == "__main__":
    sys.exit(main())
