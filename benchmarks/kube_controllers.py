"""kube_controllers with 10,000 pods and 1,000 network policies: first synchronisation, a full reconcile, memory.

    python -m benchmarks.kube_controllers [--quick] [--json FILE]

A real kube-apiserver, an etcd for it and one for Calico, and the real process. Pods are bound to nodes and never run;
each has its workload endpoint in etcd as the CNI plugin makes it. `empty`: etcd has endpoints without the pods' labels
and no policies, so everything is written. `again`: a started leader finds everything right; `full reconcile` is the
longest of all controllers' looks at everything, and memory is taken after it. CPU is the process's, start included.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import aiohttp

from benchmarks.common import Row, cpu_s, machine, parser, report, rss_mb
from libs import model
from libs.kube.api import KubeApi, KubeError
from libs.resources.client import ResourceClient
from libs.store.config import StoreConfig
from libs.store.etcd import EtcdStore
from libs.testkit.kube.control_plane import ControlPlane
from libs.testkit.servers import EtcdServer, free_port
from services.kube_controllers.shell.runner import TRANSLATIONS
from tests.contract.typha_stage import Child

AT_ONCE = 40
SPACES = 20
DEADLINE_S = 600.0


async def spread_out(work: Iterable[Callable[[], Awaitable[object]]]) -> None:
    """`AT_ONCE` at a time."""
    left = iter(work)

    async def worker() -> None:
        for one in left:
            await one()

    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))


async def fill(api: KubeApi, resources: ResourceClient, pods: int, policies: int) -> None:
    async def create(path: str, version: str, kind: str, name: str, **content: object) -> None:
        metadata = {"name": name, "labels": {"app": name, "tier": "web"}}
        with suppress(KubeError):  # of a client that asked twice
            await api.create(path, {"apiVersion": version, "kind": kind, "metadata": metadata, **content})

    spaces = [f"space{number}" for number in range(SPACES)]
    for space in spaces:
        await create("/api/v1/namespaces", "v1", "Namespace", space)
        await create(f"/api/v1/namespaces/{space}/serviceaccounts", "v1", "ServiceAccount", "default")

    def pod(number: int) -> Callable[[], Awaitable[None]]:
        space, name, node = spaces[number % SPACES], f"pod{number}", f"node{number % 100}"

        async def made() -> None:
            spec = {
                "nodeName": node,
                "automountServiceAccountToken": False,
                "containers": [{"name": "c", "image": "i"}],
            }
            await create(f"/api/v1/namespaces/{space}/pods", "v1", "Pod", name, spec=spec)
            endpoint = model.WorkloadEndpointSpec(
                orchestrator="k8s", pod=name, node=node, endpoint="eth0", container_id="c", interface_name="cali1",
                ip_networks=[f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}/32"], profiles=[f"kns.{space}"],
            )  # fmt: skip
            metadata = model.ObjectMeta(name=model.names.workload_endpoint_name(endpoint), namespace=space)
            await resources.create(model.WorkloadEndpoint(metadata=metadata, spec=endpoint))

        return made

    def policy(number: int) -> Callable[[], Awaitable[None]]:
        space = spaces[number % SPACES]
        friends = [{"podSelector": {"matchLabels": {"app": f"pod{number}"}}}]
        spec = {
            "podSelector": {"matchLabels": {"tier": "web"}},
            "ingress": [{"from": friends, "ports": [{"port": 80}, {"port": 443}]}],
        }
        path, version = f"/apis/networking.k8s.io/v1/namespaces/{space}/networkpolicies", "networking.k8s.io/v1"
        return lambda: create(path, version, "NetworkPolicy", f"p{number}", spec=spec)

    await spread_out([pod(number) for number in range(pods)] + [policy(number) for number in range(policies)])


async def measured(case: str, kubeconfig: Path, etcd: EtcdServer, directory: Path) -> Row:
    port = free_port()
    environment = {
        "KUBECONFIG": str(kubeconfig), "ETCD_ENDPOINTS": etcd.endpoint,
        "KUBE_CONTROLLERS_HEALTHHOST": "127.0.0.1", "KUBE_CONTROLLERS_HEALTHPORT": str(port),
    }  # fmt: skip
    began_s = time.monotonic()
    child = Child("services.kube_controllers", env=environment, log=directory / f"{case}.log")
    process = child.process
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while True:
                if process.poll() is not None or time.monotonic() - began_s > DEADLINE_S:
                    raise RuntimeError(f"{case}: not done")
                with suppress(aiohttp.ClientError, TimeoutError):
                    async with session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                        text = await answer.text()
                    rounds = dict(re.findall(r'kube_controllers_rounds_total{controller="([a-z-]+)"} ([\d.]+)', text))
                    if all(float(rounds.get(name, 0)) >= 1 for name in TRANSLATIONS):
                        break
                await asyncio.sleep(0.05)
        took_s = time.monotonic() - began_s
        looks = re.findall(r'kube_controllers_reconcile_seconds{controller="([a-z-]+)"} ([\d.e-]+)', text)
        writes = re.findall(r'kube_controllers_writes_total{controller="[a-z-]+",operation="[a-z]+"} ([\d.]+)', text)
        return {
            "case": case,
            "start to all in place, s": round(took_s, 1),
            "full reconcile, s": round(max(float(value) for _, value in looks), 2),
            "written": int(sum(map(float, writes))),
            "rss_mb": round(rss_mb(process.pid)),
            "cpu_s": round(cpu_s(process.pid), 1),
        }
    finally:
        child.kill()


async def bench(pods: int, policies: int) -> list[Row]:
    with ControlPlane(controllers=()) as control_plane, EtcdServer() as etcd, tempfile.TemporaryDirectory() as place:
        api = await KubeApi.open(control_plane.admin)
        store = EtcdStore(StoreConfig((etcd.endpoint,)))
        try:
            resources = ResourceClient(store)
            await resources.ensure_initialized()
            await fill(api, resources, pods, policies)
            return [await measured(case, control_plane.admin, etcd, Path(place)) for case in ("empty", "again")]
        finally:
            await store.close()
            await api.close()


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser(__doc__).parse_args(arguments)
    pods, policies = (300, 30) if options.quick else (10_000, 1_000)
    described = machine()
    rows = asyncio.run(bench(pods, policies))
    report(f"kube_controllers: {pods:,} pods, {policies:,} policies", rows, options.json, described)
    return 0


if __name__ == "__main__":
    sys.exit(main())
