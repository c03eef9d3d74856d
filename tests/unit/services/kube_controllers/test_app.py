"""The app's lead without an election around it: only the fence stands between it and the datastore."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import pytest
from prometheus_client import CollectorRegistry

from libs.model import keys
from libs.resources.client import ResourceClient
from libs.runtime.config import load
from libs.runtime.exits import ServiceExit
from libs.runtime.health import Aggregator
from libs.runtime.service import Service
from libs.store.api import Compare, FenceLost
from libs.store.memory import MemoryEtcd, MemoryStore
from services.kube_controllers.app import ELECTION_KEY, KubeControllers, run
from services.kube_controllers.config import KubeControllersConfig
from tests.contract.store_backends import eventually
from tests.unit.services.typha.samples import value

ON = {"AUTO_HOST_ENDPOINTS": "enabled"}


class Stage:
    def __init__(self, environ: Mapping[str, str] = ON) -> None:
        self.server = MemoryEtcd()
        self.user = MemoryStore(self.server)
        self.store = MemoryStore(self.server)
        config = load(KubeControllersConfig, [], environ, prog="test")
        self.health = Aggregator()
        self.registry = CollectorRegistry()
        service = Service("test", asyncio.TaskGroup(), self.health, self.registry)
        self.app = KubeControllers(config, service, self.store, Random(7))

    @asynccontextmanager
    async def leading(self) -> AsyncIterator[asyncio.Task[None]]:
        fence = Compare(ELECTION_KEY, await self.user.put(ELECTION_KEY, b"us"))
        task = asyncio.create_task(self.app.lead(fence), name="lead")
        try:
            yield task
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, ExceptionGroup):
                await task

    async def node(self, name: str) -> None:
        await self.user.put(*value("Node", name, {"bgp": {"ipv4Address": "192.0.2.1/24"}}))

    def rounds(self, controller: str) -> float:
        return self.registry.get_sample_value("kube_controllers_rounds_total", {"controller": controller}) or 0.0

    def endpoints(self) -> list[str]:
        prefix = keys.resource_prefix("HostEndpoint")
        return [kv.key.removeprefix(prefix) for kv in self.server.listing(prefix, 0, keys_only=True).kvs]


async def test_without_the_lead_nothing_is_written_and_the_work_ends() -> None:
    stage = Stage()
    await stage.node("a")
    async with stage.leading() as task:
        await eventually(lambda: stage.endpoints() == ["a-auto-hep"])
        await stage.user.put(ELECTION_KEY, b"them")
        await stage.node("b")
        await stage.user.delete(keys.resource_key("Node", "a"))
        with pytest.raises(ExceptionGroup) as ended:
            async with asyncio.timeout(20):
                await task
        assert ended.value.split(FenceLost)[1] is None
    assert stage.endpoints() == ["a-auto-hep"]
    assert "standing by" in stage.health.readiness().table()


async def test_trouble_with_the_datastore_is_tried_again() -> None:
    stage = Stage()
    await stage.node("a")
    async with stage.leading():
        await eventually(lambda: stage.endpoints() == ["a-auto-hep"])
        stage.store.fail_next(3)
        stage.store.fail_next(1, applied=True)  # it happened, and we do not know
        await stage.node("b")
        await eventually(lambda: stage.endpoints() == ["a-auto-hep", "b-auto-hep"])
        stage.store.cut = True
        await stage.user.delete(keys.resource_key("Node", "a"))
        await stage.node("c")
        stage.store.cut = False
        await eventually(lambda: stage.endpoints() == ["b-auto-hep", "c-auto-hep"])


async def test_somebody_is_faster_with_the_same_host_endpoint() -> None:
    """What was looked at is old by the time of the write: it is refused, looked at again, and right in the end."""
    stage = Stage()
    async with stage.leading():
        await eventually(lambda: "in force" in stage.health.readiness().table())
        key, mine = value("HostEndpoint", "a-auto-hep", {"node": "a", "interfaceName": "eth0"})

        async def overtake(operation: str, at: str) -> None:
            if operation == "txn":
                stage.store.before = None
                await stage.user.put(key, mine)

        stage.store.before = overtake
        await stage.node("a")
        await eventually(lambda: stage.store.before is None)
        await stage.node("b")
        await eventually(lambda: "b-auto-hep" in stage.endpoints())
        stored = await ResourceClient(stage.user).get("HostEndpoint", "a-auto-hep")
        assert stored.metadata.labels == {}, "a user's own, found while making ours, is left alone"


async def test_another_program_that_writes_another_status_is_not_fought() -> None:
    stage = Stage()
    key = keys.resource_key("KubeControllersConfiguration", "default")
    async with stage.leading():

        async def revision() -> int:
            found = await stage.user.get(key)
            return found.mod_revision if found and b"runningConfig" in found.value else 0

        await eventually(lambda: "in force" in stage.health.readiness().table())
        assert await revision()
        found = await stage.user.get(key)
        assert found is not None
        theirs = found.value.replace(b'"logSeverityScreen":"Info","healthChecks"', b'"healthChecks"')
        assert theirs != found.value
        before = stage.rounds("configuration")
        at = await stage.user.put(key, theirs)
        await eventually(lambda: stage.rounds("configuration") > before)
        assert await revision() == at


async def test_a_kubeconfig_that_cannot_be_read_ends_it_with_its_name(tmp_path: Path) -> None:
    config = load(KubeControllersConfig, [], {"KUBECONFIG": str(tmp_path / "absent")}, prog="test")
    service = Service("test", asyncio.TaskGroup(), Aggregator(), CollectorRegistry())
    with pytest.raises(ServiceExit, match=r"kubeconfig .*/absent: ") as ended:
        await run(config, service)
    assert ended.value.status == 2
