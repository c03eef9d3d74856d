"""The node service as a process, on a real etcd and a real NATS."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from libs import model
from libs.bus import wire
from libs.bus.bgp import State, state_subject
from libs.bus.config import BusConfig
from libs.bus.nats import NatsBus
from libs.ipam.client import IpamClient
from libs.resources import codec
from libs.resources.client import ResourceClient
from libs.store.config import StoreConfig
from libs.store.etcd import EtcdStore
from libs.testkit.servers import EtcdServer, NatsServer, free_port
from tests.contract.typha_stage import Child

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("node")]


class Stage:
    def __init__(self, etcd: EtcdServer, nats: NatsServer, store: EtcdStore, bus: NatsBus, directory: Path) -> None:
        self.env = {"ETCD_ENDPOINTS": etcd.endpoint, "NATS_URL": nats.url, "NODENAME": "node1"}
        self.etcd, self.store, self.bus = etcd, store, bus
        self.resources = ResourceClient(store)
        self._directory = directory
        self._count = 0

    def start(self, *arguments: str, **env: str) -> Child:
        self._count += 1
        log = self._directory / f"node{self._count}.log"
        return Child("services.node", *arguments, env=self.env | env, log=log)

    async def apply(self, kind: str, name: str, spec: dict[str, Any]) -> None:
        document = {"apiVersion": "projectcalico.org/v3", "kind": kind, "metadata": {"name": name}, "spec": spec}
        await self.resources.apply(codec.from_json(document))

    async def pool(self, name: str, cidr: str, **spec: Any) -> None:
        await self.apply("IPPool", name, {"cidr": cidr, "nodeSelector": "all()", **spec})

    async def vxlan(self) -> str:
        node = await self.resources.get("Node", "node1")
        assert isinstance(node, model.Node)
        return node.spec.ipv4_vxlan_tunnel_addr

    async def wipe(self) -> None:
        for kv in (await self.store.list("/calico/")).kvs:
            await self.store.delete(kv.key)
        await self.apply("Node", "node1", {"bgp": {"ipv4Address": "192.0.2.1/24"}})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        etcd, nats = EtcdServer(), NatsServer()
        stack.callback(etcd.close)
        stack.callback(nats.close)
        await asyncio.gather(etcd.start_async(), nats.start_async())
        store = EtcdStore(StoreConfig((etcd.endpoint,)))
        stack.push_async_callback(store.close)
        bus = await stack.enter_async_context(NatsBus(BusConfig.from_env({"NATS_URL": nats.url}), name="test"))
        await bus.wait_connected(10)
        yield Stage(etcd, nats, store, bus, tmp_path_factory.mktemp("node"))


@pytest_asyncio.fixture(loop_scope="module")
async def stage(world: Stage) -> Stage:
    await world.wipe()
    return world


async def until(holds: Callable[[], Awaitable[bool]], child: Child, what: str) -> None:
    deadline = time.monotonic() + 30
    while not await holds():
        assert child.process.poll() is None, child.log.read_text()[-3000:]
        assert time.monotonic() < deadline, f"{what}\n{child.log.read_text()[-3000:]}"
        await asyncio.sleep(0.02)


async def test_o06_an_init_container_allocates_once_and_ends(stage: Stage) -> None:
    await stage.pool("one", "10.65.0.0/24", blockSize=28, vxlanMode="Always")
    child = stage.start("allocate-tunnel-addresses")
    assert await child.status(60) == 0, child.log.read_text()
    first = await stage.vxlan()
    assert ip_address(first) in ip_network("10.65.0.0/24")
    assert await stage.start("allocate-tunnel-addrs").status(60) == 0
    assert await stage.vxlan() == first


async def test_o06_what_cannot_be_had_in_time_ends_with_status_1_and_says_why(stage: Stage) -> None:
    child = stage.start("allocate-tunnel-addresses", NODENAME="nobody", CALICO_NODE_ONCE_TIMEOUT_S="0.5")
    assert await child.status(60) == 1
    assert "nobody" in child.log.read_text()


async def test_usage_mistakes_end_with_status_2(stage: Stage) -> None:
    child = stage.start("fly")
    assert await child.status(60) == 2
    assert "no such verb: fly" in child.log.read_text()


async def test_o06_the_tunnel_address_moves_with_its_pool_and_goes_with_the_last(stage: Stage) -> None:
    port = free_port()
    child = stage.start(CALICO_NODE_HEALTHHOST="127.0.0.1", CALICO_NODE_HEALTHPORT=str(port))
    try:
        await stage.pool("one", "10.65.0.0/24", blockSize=28, vxlanMode="Always")

        async def inside(cidr: str) -> bool:
            told = await stage.vxlan()
            return bool(told) and ip_address(told) in ip_network(cidr)

        await until(lambda: inside("10.65.0.0/24"), child, "an address of the first pool")
        await stage.pool("two", "10.66.0.0/24", blockSize=28, vxlanMode="Always")
        await stage.apply("IPPool", "one", {"cidr": "10.65.0.0/24", "blockSize": 28, "nodeSelector": "all()",
                                             "vxlanMode": "Always", "disabled": True})  # fmt: skip
        await until(lambda: inside("10.66.0.0/24"), child, "an address of the second pool")
        await stage.apply("IPPool", "two", {"cidr": "10.66.0.0/24", "blockSize": 28, "nodeSelector": "all()",
                                             "vxlanMode": "Never"})  # fmt: skip

        async def gone() -> bool:
            ipam = IpamClient(stage.store)
            held = [a for block in await ipam.blocks() for a in block.allocated()]
            return await stage.vxlan() == "" and held == []

        await until(gone, child, "no address any more, and none left allocated")

        async def ready() -> bool:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://127.0.0.1:{port}/readiness") as answer,
            ):
                return answer.status == 200

        await until(ready, child, "ready")
    finally:
        child.process.terminate()
    assert await child.status(60) == 0


async def test_g21_the_status_follows_the_speaker_on_the_bus(stage: Stage) -> None:
    spec = {"node": "node1", "classes": ["Agent", "BGP"], "updatePeriodSeconds": 1}
    await stage.apply("CalicoNodeStatus", "mine", spec)
    child = stage.start()

    async def agent(wanted: str) -> bool:
        found = await stage.resources.get("CalicoNodeStatus", "mine")
        assert isinstance(found, model.CalicoNodeStatus)
        told = found.status
        return (
            told is not None
            and told.agent is not None
            and told.agent.bird_v4 is not None
            and told.agent.bird_v4.state == wanted
        )

    subscription = None
    try:
        await until(lambda: agent("NotReady"), child, "NotReady while nobody answers")
        state = wire.encode(State(node="node1", ready=True, router_id="192.0.2.1"))
        subscription = stage.bus.subscribe(state_subject("node1"), lambda message: message.respond(state))
        await until(lambda: agent("Ready"), child, "Ready when the speaker answers")
        subscription.unsubscribe()
        await until(lambda: agent("NotReady"), child, "NotReady when it does not any more")
    finally:
        child.process.terminate()
    assert await child.status(60) == 0


async def test_d06_while_it_starts_up_it_is_not_ready(tmp_path: Path) -> None:
    """Start-up waits for the datastore: nothing has reported yet, and that is not all being well."""
    port, env = free_port(), {"WAIT_FOR_DATASTORE": "true", "NODENAME": "node1"}
    env |= {"ETCD_ENDPOINTS": f"http://127.0.0.1:{free_port()}", "CALICO_NODENAME_FILE": str(tmp_path / "nodename")}
    env |= {"CALICO_NODE_HEALTHHOST": "127.0.0.1", "CALICO_NODE_HEALTHPORT": str(port)}
    child = Child("services.node", "run", "--supervise", env=env, log=tmp_path / "log")
    try:

        async def waits() -> bool:
            return "waiting for the datastore" in child.log.read_text()

        await until(waits, child, "it waits")
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/readiness") as answer:
                assert answer.status == 503
                assert "starting up" in await answer.text()
            async with session.get(f"http://127.0.0.1:{port}/liveness") as answer:
                assert answer.status == 204
    finally:
        child.kill()
