"""CalicoNodeStatus: what is written, when, and what happens when the speaker is silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random

from libs import model
from libs.bus import Msg, wire
from libs.bus.bgp import Origin, Peer, PeerKind, PeerState, Route, State, StateRequest, state_subject
from libs.bus.memory import MemoryBroker
from libs.resources import codec
from libs.resources.client import ResourceClient
from libs.runtime.health import Aggregator
from libs.store.memory import MemoryEtcd, MemoryStore
from services.node.core.status import status_of
from services.node.shell.status import StatusReporter
from tests.contract.store_backends import eventually

NOW = "2026-03-01T10:00:00Z"
PEERS = (
    Peer(name="Mesh_192_0_2_2", kind=PeerKind.MESH, address="192.0.2.2", state=PeerState.ESTABLISHED, since=NOW),
    Peer(name="Node_192_0_2_3", kind=PeerKind.NODE, address="192.0.2.3", port=1790, state=PeerState.ACTIVE),
    Peer(name="Global_2001_db8__9", kind=PeerKind.GLOBAL, address="2001:db8::9", state=PeerState.OPEN_SENT),
    Peer(name="Local_Workload_10_65_0_2", kind=PeerKind.LOCAL_WORKLOAD, address="10.65.0.2", state=PeerState.IDLE),
)
ROUTES = (
    Route(destination="10.65.1.0/26", origin=Origin.NODE_MESH, gateway="192.0.2.2", interface="eth0",
          peer="192.0.2.2", fib=True),
    Route(destination="fd00:65::/122", origin=Origin.STATIC),
)  # fmt: skip
STATE = State(
    node="node1", ready=True, version="1.0", router_id="192.0.2.1", started=NOW, reconfigured=NOW, peers=PEERS,
    routes=ROUTES, route_count={"ipv4": 1, "ipv6": 1},
)  # fmt: skip


def test_each_class_is_told_in_the_words_of_the_resource() -> None:
    status = status_of(["Agent", "BGP", "Routes"], STATE, NOW)
    assert status.last_updated == NOW
    assert status.agent is not None
    for agent in (status.agent.bird_v4, status.agent.bird_v6):
        assert agent is not None
        assert (agent.state, agent.router_id, agent.last_boot_time) == ("Ready", "192.0.2.1", NOW)
    assert status.bgp is not None
    bgp = status.bgp
    counts = (bgp.number_established_v4, bgp.number_not_established_v4, bgp.number_established_v6,
              bgp.number_not_established_v6)  # fmt: skip
    assert counts == (1, 2, 0, 1)
    assert [(one.peer_ip, one.type, one.state, one.since) for one in bgp.peers_v4] == [
        ("192.0.2.2", "NodeMesh", "Established", NOW),
        ("192.0.2.3", "NodePeer", "Active", ""),
        ("10.65.0.2", "NodePeer", "Idle", ""),
    ]
    assert [(one.peer_ip, one.type) for one in bgp.peers_v6] == [("2001:db8::9", "GlobalPeer")]
    assert status.routes is not None
    (v4,), (v6,) = status.routes.routes_v4, status.routes.routes_v6
    assert (v4.type, v4.destination, v4.gateway, v4.interface) == ("FIB", "10.65.1.0/26", "192.0.2.2", "eth0")
    assert v4.learned_from is not None
    assert (v4.learned_from.source_type, v4.learned_from.peer_ip) == ("NodeMesh", "192.0.2.2")
    assert (v6.type, v6.destination) == ("RIB", "fd00:65::/122")


def test_only_the_classes_asked_for() -> None:
    status = status_of(["BGP"], STATE, NOW)
    assert (status.agent, status.routes) == (None, None)
    assert status.bgp is not None


def test_a_silent_speaker_is_not_ready_and_nothing_else_is_claimed() -> None:
    status = status_of(["Agent", "BGP", "Routes"], None, NOW)
    assert status.agent == model.CalicoNodeAgentStatus(
        model.BGPDaemonStatus("NotReady"), model.BGPDaemonStatus("NotReady")
    )
    assert (status.bgp, status.routes) == (None, None)


class Stage:
    def __init__(self, *, bgp_timeout_s: float = 0.2) -> None:
        """bgp_timeout_s: how long a silent speaker is waited for."""
        self.store = MemoryStore(MemoryEtcd())
        self.resources = ResourceClient(self.store)
        self.broker = MemoryBroker()
        self.speaker = self.broker.connect("bgp")
        self.asked: list[StateRequest] = []
        self.health = Aggregator().register("NodeStatus")
        self.reporter = StatusReporter(
            self.store,
            self.broker.connect("node"),
            "node1",
            Random(1),
            bgp_timeout_s=bgp_timeout_s,
        )

    def answer(self, state: State | bytes) -> None:
        def respond(message: Msg) -> None:
            self.asked.append(wire.decoder(StateRequest).decode(message.data))
            message.respond(state if isinstance(state, bytes) else wire.encode(state))

        self.speaker.subscribe(state_subject("node1"), respond)

    async def want(self, name: str, period_s: int, *classes: str, node: str = "node1") -> None:
        document = {
            "apiVersion": "projectcalico.org/v3", "kind": "CalicoNodeStatus", "metadata": {"name": name},
            "spec": {"node": node, "classes": list(classes), "updatePeriodSeconds": period_s},
        }  # fmt: skip
        await self.resources.apply(codec.from_json(document))

    async def status(self, name: str) -> model.CalicoNodeStatusStatus | None:
        found = await self.resources.get("CalicoNodeStatus", name)
        assert isinstance(found, model.CalicoNodeStatus)
        return found.status

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.reporter.run(self.health))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def until(self, name: str, agent: str) -> model.CalicoNodeStatusStatus:
        found: list[model.CalicoNodeStatusStatus] = []

        async def holds() -> bool:
            status = await self.status(name)
            if status is None or status.agent is None or status.agent.bird_v4 is None:
                return False
            found.append(status)
            return status.agent.bird_v4.state == agent

        deadline = asyncio.get_running_loop().time() + 20
        while not await holds():
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.01)
        return found[-1]


async def test_a_status_is_written_at_once_and_again_when_the_speaker_comes() -> None:
    stage = Stage()
    await stage.want("mine", 1, "Agent", "BGP")
    async with stage.running():
        silent = await stage.until("mine", "NotReady")
        assert silent.bgp is None
        stage.answer(STATE)
        told = await stage.until("mine", "Ready")
    assert told.bgp is not None
    assert len(told.bgp.peers_v4) == 3
    assert told.routes is None
    assert {request.routes for request in stage.asked} == {False}  # nobody wanted routes, so none were sent


async def test_an_answer_that_cannot_be_read_is_no_answer() -> None:
    stage = Stage()
    stage.answer(b'{"node": 7')
    await stage.want("mine", 1, "Agent")
    async with stage.running():
        await stage.until("mine", "NotReady")


async def test_other_nodes_and_switched_off_objects_are_left_alone() -> None:
    stage = Stage(bgp_timeout_s=30.0)  # an answer too late would be followed by the next try a day later
    stage.answer(STATE)
    await stage.want("theirs", 1, "Agent", node="node2")
    await stage.want("off", 0, "Agent")
    async with stage.running():
        await stage.want("mine", 86400, "Agent", "Routes")
        await stage.until("mine", "Ready")
        assert await stage.status("theirs") is None
        assert await stage.status("off") is None
        assert [request.routes for request in stage.asked] == [True]
        await stage.want("off", 3600, "Agent")  # switched on: at once, whatever its period is
        await stage.until("off", "Ready")
        # Our own write is no reason to write again: the reporter has seen it, and asked nobody a third time.
        revision = (await stage.store.status()).revision
        await eventually(lambda: stage.reporter.mirrored >= revision)
    assert len(stage.asked) == 2


async def test_what_a_user_changes_meanwhile_is_kept() -> None:
    stage = Stage()
    stage.answer(STATE)
    await stage.want("mine", 1, "Agent")
    async with stage.running():
        await stage.until("mine", "Ready")
        await stage.want("mine", 2, "Agent", "BGP")

        async def told() -> bool:
            status = await stage.status("mine")
            return status is not None and status.bgp is not None

        while not await told():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        found = await stage.resources.get("CalicoNodeStatus", "mine")
        assert isinstance(found, model.CalicoNodeStatus)
        assert found.spec.update_period_seconds == 2


async def test_of_a_large_cluster_only_the_nodes_own_objects_are_held_and_looked_at() -> None:
    stage, looks = Stage(), 0
    take = stage.reporter._take

    def counted(now: float) -> None:
        nonlocal looks
        looks += 1
        take(now)

    stage.reporter._take = counted  # type: ignore[method-assign]
    await stage.want("mine", 600, "Agent")
    for number in range(2, 22):
        await stage.want(f"of-{number}", 10, "Agent", node=f"node{number}")
    async with stage.running():
        await stage.until("mine", "NotReady")
        revision = (await stage.store.status()).revision
        await eventually(lambda: stage.reporter.mirrored >= revision)
        before = looks
        for number in range(2, 22):
            await stage.want(f"of-{number}", 20, "Agent", node=f"node{number}")
        revision = (await stage.store.status()).revision
        await eventually(lambda: stage.reporter.mirrored >= revision)
        assert looks <= before + 1, "its own write, at most"
        assert [one.metadata.name for one in stage.reporter._mirror.of(model.CalicoNodeStatus)] == ["mine"]
        await stage.want("of-2", 10, "Agent")  # another node's becomes ours
        await stage.until("of-2", "NotReady")
