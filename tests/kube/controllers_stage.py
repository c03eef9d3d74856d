"""kube_controllers between a real kube-apiserver and an etcd of Calico's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from libs import model
from libs.kube.api import KubeApi, KubeError
from libs.kube.objects import Key, Source
from libs.model.base import Resource
from libs.model.codec import to_dict
from libs.resources.errors import Conflict
from libs.testkit.kube.control_plane import ControlPlane
from tests.contract.controllers_stage import Replica, Stage

JsonObject = dict[str, Any]
CNP_GROUP = "policy.networking.k8s.io"


class KubeStage(Stage):
    """What kube_controllers write is read from etcd; what they read is written through kube-apiserver. Each stage has
    its own prefix of names, since several share one control plane.
    """

    def __init__(self, directory: Path, control_plane: ControlPlane) -> None:
        super().__init__(directory)
        self.control_plane = control_plane
        self.api: KubeApi
        self.prefix = f"t{os.getpid()}-{time.monotonic_ns() % 10**9}"
        self._made: list[str] = []

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        await self.resources.ensure_initialized()
        self.api = await KubeApi.open(self.control_plane.admin)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            for path in reversed(self._made):
                with contextlib.suppress(KubeError):
                    await self.api.delete(path, {"gracePeriodSeconds": 0})
        finally:
            await self.api.close()
            await super().__aexit__(kind, error, tb)

    def controllers(self, kubeconfig: Path | None = None, **env: str) -> Replica:
        return self.replica(KUBECONFIG=str(kubeconfig or self.control_plane.admin), **env)

    # --- Kubernetes' side --------------------------------------------------------------------------------------------

    async def namespace(self, labels: dict[str, str] | None = None) -> str:
        name = f"{self.prefix}-{len(self._made)}"
        await self.make("/api/v1/namespaces", "v1", "Namespace", name, labels=labels)
        return name

    async def make(
        self,
        path: str,
        api_version: str,
        kind: str,
        name: str,
        content: JsonObject | None = None,
        *,
        labels: dict[str, str] | None = None,
    ) -> JsonObject:
        document = {"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "labels": labels or {}}}
        made = await self.api.create(path, document | (content or {}))
        self._made.append(f"{path}/{name}")
        return made

    async def account(self, namespace: str, name: str, labels: dict[str, str] | None = None) -> None:
        await self.make(f"/api/v1/namespaces/{namespace}/serviceaccounts", "v1", "ServiceAccount", name, labels=labels)

    async def policy(self, namespace: str, name: str, spec: JsonObject) -> None:
        path = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"
        await self.make(path, "networking.k8s.io/v1", "NetworkPolicy", name, {"spec": spec})

    async def pod(
        self, namespace: str, name: str, node: str, labels: dict[str, str] | None = None, account: str = "default"
    ) -> None:
        spec = {
            "nodeName": node, "serviceAccountName": account, "automountServiceAccountToken": False,
            "containers": [{"name": "c", "image": "none"}],
        }  # fmt: skip
        path = f"/api/v1/namespaces/{namespace}/pods"
        while True:  # the namespace's account comes a moment after the namespace
            try:
                await self.make(path, "v1", "Pod", name, {"spec": spec}, labels=labels)
                return
            except KubeError as error:
                if error.code != 403:
                    raise
                await asyncio.sleep(0.05)

    async def kube_node(self, name: str, labels: dict[str, str] | None = None, cidrs: list[str] | None = None) -> None:
        spec = {"podCIDR": cidrs[0], "podCIDRs": cidrs} if cidrs else {}
        await self.make("/api/v1/nodes", "v1", "Node", name, {"spec": spec}, labels=labels)

    async def unmake(self, source: Source[Any], name: str, namespace: str = "") -> None:
        await self.api.delete(source.path_of(Key(namespace, name)), {"gracePeriodSeconds": 0})

    async def change(self, source: Source[Any], name: str, patch: JsonObject, namespace: str = "") -> None:
        await self.api.patch(source.path_of(Key(namespace, name)), patch)

    # --- Calico's side -----------------------------------------------------------------------------------------------

    async def stored(self, kind: str, name: str, namespace: str = "") -> JsonObject | None:
        """As JSON, without metadata but labels; None when there is none."""
        found = await self.store.get(model.keys.resource_key(kind, name, namespace))
        return None if found is None else dict(json.loads(found.value))

    async def until_stored(
        self, kind: str, name: str, namespace: str = "", *, timeout_s: float = 30.0,
        holds: Callable[[JsonObject], bool] = lambda found: True,
    ) -> JsonObject:  # fmt: skip
        found: JsonObject | None = None
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(ValueError):
                found = await self.stored(kind, name, namespace)
            if found is not None and holds(found):
                return found
            assert time.monotonic() < deadline, f"{kind} {namespace}/{name}: {found}\n{self.told()}"
            await asyncio.sleep(0.03)

    async def until_gone(self, kind: str, name: str, namespace: str = "", timeout_s: float = 30.0) -> None:
        deadline = time.monotonic() + timeout_s
        while await self.store.get(model.keys.resource_key(kind, name, namespace)) is not None:
            assert time.monotonic() < deadline, f"{kind} {namespace}/{name} is still there\n{self.told()}"
            await asyncio.sleep(0.03)

    async def endpoint(self, namespace: str, pod: str, node: str, **spec: Any) -> str:
        """A pod's workload endpoint, as the CNI plugin makes it. Its name."""
        made = model.WorkloadEndpoint(
            metadata=model.ObjectMeta(namespace=namespace, labels={"made-by": "cni"}),
            spec=model.WorkloadEndpointSpec(
                orchestrator="k8s", pod=pod, node=node, endpoint="eth0", container_id="c1", interface_name="cali1",
                ip_networks=["10.65.0.2/32", "fd00:65::2/128"], profiles=[f"kns.{namespace}"], mac="ee:ee:ee:ee:ee:ee",
                **spec,
            ),
        )  # fmt: skip
        made.metadata.name = model.names.workload_endpoint_name(made.spec)
        await self.resources.create(made)
        return made.metadata.name

    async def calico_node(self, name: str, kubernetes: str | None = None, **metadata: Any) -> None:
        spec: JsonObject = {"bgp": {"ipv4Address": "192.0.2.1/24"}}
        if kubernetes is not None:
            spec["orchRefs"] = [{"nodeName": kubernetes, "orchestrator": "k8s"}]
        await self.apply("Node", name, spec, **metadata)

    async def set_controllers(self, **controllers: Any) -> None:
        """`spec.controllers` of the configuration, all of it."""
        while True:
            with contextlib.suppress(Conflict):
                stored: Resource = await self.resources.get("KubeControllersConfiguration", "default")
                assert isinstance(stored, model.KubeControllersConfiguration)
                stored.spec.controllers = model.codec.convert(model.ControllersConfig, controllers)
                await self.resources.update(stored)
                return

    async def running_config(self) -> JsonObject:
        found = to_dict(await self.resources.get("KubeControllersConfiguration", "default"))
        return dict(found.get("status", {}).get("runningConfig", {}).get("controllers", {}))

    async def writes(self) -> int:
        """A revision: it stands still while nothing is written."""
        return (await self.store.status()).revision

    def told(self) -> str:
        logs = sorted(self._directory.glob("replica*.log"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in logs)


async def eventually(holds: Callable[[], Awaitable[bool]], what: Callable[[], str], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not await holds():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what()}"
        await asyncio.sleep(0.03)
