"""kube_controllers' processes on an etcd of their own, and what a user does with that etcd."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from libs import model
from libs.model.codec import convert, to_dict
from libs.resources import codec
from libs.resources.client import ResourceClient
from libs.resources.errors import Conflict, NotFound
from libs.resources.patch import PatchType
from libs.store.config import StoreConfig
from libs.store.etcd import EtcdStore
from libs.testkit.servers import EtcdServer, free_port
from services.kube_controllers.app import ELECTION_KEY
from tests.contract.typha_stage import Child

LEASE_S = 6  # a replica that starts may keep the leader from its processor for a while
START_S = 60.0  # a process begins in two seconds; where others begin as well, two cores take their time
OPEN = "projectcalico-default-allow"
MARK = {"projectcalico.org/created-by": "calico-kube-controllers"}


class Replica(Child):
    def __init__(self, env: dict[str, str], log: Path) -> None:
        self.port = free_port()
        own = {
            "KUBE_CONTROLLERS_HEALTHHOST": "127.0.0.1", "KUBE_CONTROLLERS_HEALTHPORT": str(self.port),
            "KUBE_CONTROLLERS_PROMETHEUSMETRICSPORT": "0",
        }  # fmt: skip
        super().__init__(
            "services.kube_controllers", env={"KUBE_CONTROLLERS_LEASE_S": str(LEASE_S)} | own | env, log=log
        )

    async def get(self, path: str) -> tuple[int, str]:
        timeout = aiohttp.ClientTimeout(total=20)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"http://127.0.0.1:{self.port}{path}") as answer,
        ):
            return answer.status, await answer.text()

    async def metric(self, name: str) -> float:
        _, text = await self.get("/metrics")
        return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} ")), 0.0)

    async def until(self, holds: Callable[[], Awaitable[bool]], timeout_s: float = START_S, what: str = "") -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                if await holds():
                    return
            assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}\n{self.log.read_text()[-3000:]}"
            await asyncio.sleep(0.02)

    async def until_leading(self, wanted: bool = True, timeout_s: float = START_S) -> Self:
        async def holds() -> bool:
            return await self.metric("kube_controllers_leader") == wanted

        await self.until(holds, timeout_s, f"leader {wanted}")
        return self

    async def until_ready(self, wanted: bool = True, timeout_s: float = START_S) -> Self:
        async def holds() -> bool:
            return (await self.get("/readiness"))[0] == (200 if wanted else 503)

        await self.until(holds, timeout_s, f"ready {wanted}")
        return self


class Stage:
    """An etcd, and what a user does with it. Leaving the block ends everything that was started on it."""

    def __init__(self, directory: Path, etcd: Path | None = None) -> None:
        """etcd: the server's program, for tests that kill it."""
        self.etcd = EtcdServer(binary=etcd)
        self.store: EtcdStore
        self.resources: ResourceClient
        self._directory = directory
        self._stack = AsyncExitStack()
        self._count = 0

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.callback(self.etcd.close)
            await self.etcd.start_async()
            self.store = EtcdStore(StoreConfig((self.etcd.endpoint,)))
            stack.push_async_callback(self.store.close)
            self.resources = ResourceClient(self.store)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def replica(self, **env: str) -> Replica:
        self._count += 1
        made = Replica({"ETCD_ENDPOINTS": self.etcd.endpoint} | env, self._directory / f"replica{self._count}.log")
        self._stack.callback(made.kill)
        return made

    async def node(self, name: str, number: int, *, labels: dict[str, str] | None = None, **spec: Any) -> int:
        addresses = {"ipv4Address": f"192.0.2.{number}/24", "ipv6Address": f"2001:db8::{number:x}/64"}
        return await self.apply("Node", name, {"bgp": addresses, **spec}, labels={"kubernetes.io/hostname": name}
                                | (labels or {}))  # fmt: skip

    async def apply(self, kind: str, name: str, spec: dict[str, Any], **metadata: Any) -> int:
        document = {
            "apiVersion": "projectcalico.org/v3",
            "kind": kind,
            "metadata": {"name": name} | metadata,
            "spec": spec,
        }
        return (await self.resources.apply(codec.from_json(document))).revision

    async def relabel(self, name: str, labels: dict[str, str]) -> None:
        """All labels, not only new ones, as Kubernetes' nodes change them."""
        await self.resources.patch(
            "Node", name, [{"op": "replace", "path": "/metadata/labels", "value": labels}], PatchType.JSON
        )

    async def configure(self, **host_endpoint: Any) -> None:
        """Into the KubeControllersConfiguration that there is."""
        wanted = convert(model.AutoHostEndpointConfig, host_endpoint)
        while True:
            stored = await self.resources.get("KubeControllersConfiguration", "default")
            assert isinstance(stored, model.KubeControllersConfiguration)
            stored.spec.controllers.node = model.NodeControllerConfig(host_endpoint=wanted)
            with contextlib.suppress(Conflict):
                await self.resources.update(stored)
                return

    async def endpoints(self) -> dict[str, model.HostEndpoint]:
        listed = (await self.resources.list("HostEndpoint")).items
        return {one.metadata.name: one for one in listed if isinstance(one, model.HostEndpoint)}

    async def until_endpoints(self, *names: str, timeout_s: float = START_S) -> dict[str, model.HostEndpoint]:
        found: dict[str, model.HostEndpoint] = {}

        async def holds() -> bool:
            nonlocal found
            found = await self.endpoints()
            return set(found) == set(names)

        await until(holds, timeout_s, lambda: f"{sorted(found)}, wanted {sorted(names)}\n{self.told()}")
        return found

    def told(self) -> str:
        """The ends of the replicas' logs."""
        return "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted(self._directory.glob("*.log")))

    async def configuration(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = to_dict(await self.resources.get("KubeControllersConfiguration", "default"))
        except NotFound:
            return None
        return found

    async def until_auto_create(self, wanted: str | None) -> None:
        """Until the status says that it is in force. None: that the node controller does not run."""

        async def holds() -> bool:
            found = await self.configuration() or {}
            node = found.get("status", {}).get("runningConfig", {}).get("controllers", {}).get("node", {})
            return "status" in found and node.get("hostEndpoint", {}).get("autoCreate") == wanted

        await until(holds, START_S, lambda: f"autoCreate {wanted} in force")

    async def leader(self) -> str:
        found = await self.store.get(ELECTION_KEY)
        return "" if found is None else str(json.loads(found.value)["holder"])


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + timeout_s
    while not await holds():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what()}"
        await asyncio.sleep(0.02)
