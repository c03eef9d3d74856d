"""One node whose felix is killed at steps, one pod on it that comes and goes, and the verdict: wholly there or gone.

The verdict asks everybody who could hold a trace (tests/cluster/traces.py). "There" is also connected, and under its
policy, as seen from another node.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import SIGKILL

from libs.ipam.client import IpamClient
from libs.testkit.cluster import Node, Pod
from libs.testkit.pods import CniError
from libs.testkit.processes import Probe
from libs.testkit.reach import check
from libs.testkit.topology import Namespace, remove
from tests.cluster.conftest import ALLOW, DENY, World, until
from tests.cluster.steps.plan import Plan, write_plan
from tests.cluster.traces import WEPS, journal, traces

NETWORK = "k8s-pod-network"
LABELS = {"role": "server"}
OPEN, CLOSED = 8080, 9090  # what the policy of LABELS lets in, and what it does not


@dataclass
class Lab:
    world: World
    node: Node
    client: Pod  # on another node
    plan: Path
    hits: Path
    seen: Path
    pods: int = 0
    untouched: list[str] = field(default_factory=list)

    @classmethod
    async def open(cls, world: World, node: Node, client: Pod) -> Lab:
        directory = node.directory
        made = cls(world, node, client, directory / "plan.json", directory / "hits", directory / "seen")
        made.untouched = await made.traces()
        return made

    # --- steps ---

    def arm(self, *steps: str, signal: int = SIGKILL, victim: int = 0) -> None:
        """The signal goes to felix (victim 0) or to another process, at each of the steps in their order."""
        self.hits.unlink(missing_ok=True)
        write_plan(self.plan, Plan(steps=steps, hits=str(self.hits), signal=signal, victim=victim))

    def record(self, *steps: str) -> None:
        """What happens or, with steps, what happens once felix was killed at each of them."""
        self.hits.unlink(missing_ok=True)
        self.seen.unlink(missing_ok=True)
        seen = str(self.seen)
        write_plan(
            self.plan,
            Plan(steps=steps, hits=str(self.hits), record="" if steps else seen, record_last=seen if steps else ""),
        )

    def disarm(self) -> None:
        self.plan.unlink(missing_ok=True)

    def recorded(self) -> list[str]:
        return _lines(self.seen)

    def reached(self) -> list[str]:
        """Steps at which the signal was sent since `arm`."""
        return _lines(self.hits)

    async def all_reached(self, *steps: str, timeout_s: float) -> bool:
        """Waits for those that come after the answer. Disarms."""

        async def reached() -> bool:
            return self.reached() == list(steps)

        with contextlib.suppress(AssertionError):
            await until(reached, timeout_s, "the steps")
        self.disarm()
        return await reached()

    def lives(self) -> int:
        """How often felix has ended."""
        return len(_lines(self.plan.with_name("lives")))

    async def ended(self, lives: int) -> None:
        async def more() -> bool:
            return self.lives() > lives

        await until(more, 60, "felix ends")

    # --- the pod ---

    def new_pod(self) -> Pod:
        self.pods += 1
        name = f"{self.node.name}-pod{self.pods}"
        pod = Pod(name, "ns1", self.node.name, Namespace(f"cal-{self.world.cluster.id}-{name}"), dict(LABELS))
        pod.netns.create()
        self.world.cluster._namespaces.append(pod.netns)  # goes with the cluster when a test fails
        return pod

    def another_container(self, pod: Pod) -> Pod:
        """What the runtime makes when it gives up a sandbox: the same pod in a new container."""
        fresh = replace(self.new_pod(), name=pod.name)
        fresh.container_id = "f" + fresh.container_id[1:]
        return fresh

    async def ask(self, command: str, pod: Pod) -> CniError | None:
        """What the plugin says; the answer of ADD is kept in the pod. Error 11 or success, nothing else."""
        try:
            answer = await self.world.cluster.cni(command, pod)  # type: ignore[arg-type]
        except CniError as error:
            if error.code != 11:
                raise
            return error
        if command == "ADD":
            pod.result = answer
        return None

    async def insist(self, command: str, pod: Pod, timeout_s: float = 60.0) -> None:
        """As a runtime does: again while it is told to try again."""

        async def done() -> bool:
            return await self.ask(command, pod) is None

        await until(done, timeout_s, f"{command} of {pod.name}")

    def discard(self, pod: Pod) -> None:
        remove([pod.netns])
        self.world.cluster._namespaces.remove(pod.netns)

    async def ready(self) -> None:
        await self.world.cluster.wait_ready(nodes=[self.node])

    async def no_block(self) -> None:
        """Take the node's blocks away, so that its next pod is its first."""
        store = self.world.store
        for version in (4, 6):
            for claim in (await store.list(f"/calico/ipam/v2/host/{self.node.name}/ipv{version}/block/")).kvs:
                name = claim.key.rpartition("/")[2]
                await store.delete(f"/calico/ipam/v2/assignment/ipv{version}/block/{name}")
                await store.delete(claim.key)

    # --- verdicts ---

    async def settled(self) -> None:
        async def empty() -> bool:
            return not journal(self.node)

        await until(empty, 60, f"the journal of {self.node.name} is empty")

    async def traces(self, *pods: Pod) -> list[str]:
        return await traces(self.world, self.node, *pods)

    async def assert_gone(self, *pods: Pod) -> None:
        """At once or, for what follows the datastore (nftables, status files), soon."""
        try:
            await until(lambda: self.is_gone(*pods), 60, "gone")
        except AssertionError:
            assert await self.traces(*pods) == self.untouched  # tells what is left
            raise

    async def is_gone(self, *pods: Pod) -> bool:
        return await self.traces(*pods) == self.untouched

    async def is_there(self) -> bool:
        """Has the pod an endpoint? Then `assert_there` tells whether everything else is."""
        return bool((await self.world.store.list(f"{WEPS}ns1/{self.node.name}-")).kvs)

    async def is_told(self) -> bool:
        return any(line.startswith("status ") for line in await self.traces())

    async def assert_there(self, pod: Pod, *others: Pod) -> None:
        """Everything of `pod` and nothing of the others; CHECK agrees; packets pass as policy says, and no others."""
        blocks = await IpamClient(self.world.store).ips_by_handle(f"{NETWORK}.{pod.container_id}")
        held = sorted(str(one.address) for one in blocks)
        if not pod.result:  # the answer got lost; ADD gives it again and changes nothing
            await until(self.is_told, 60, f"the status of {pod.name}")  # it follows the last step
            before = await self.traces(pod)
            await self.insist("ADD", pod)
            assert await self.traces(pod) == before
        assert held == sorted(str(address) for address in pod.addresses)
        found = await self.traces(pod)
        links = [line for line in found if line.startswith("link ")]
        host = pod.result["interfaces"][0]["name"]
        assert links == [f"link {host}"], found
        assert len([line for line in found if line.startswith("address ")]) == 2, found
        assert len([line for line in found if line.startswith("route ") and f"dev {host}" in line]) >= 2, found
        assert any(line.startswith("nftables ") and host in line for line in found), found
        assert not [line for line in found if line.startswith("journal ")], found
        endpoints = await self.world.store.list(f"{WEPS}ns1/{self.node.name}-")
        owners = [json.loads(kv.value)["spec"]["containerID"] for kv in endpoints.kvs]
        assert owners == [pod.container_id], found
        for other in others:
            if other.container_id != pod.container_id:
                assert not [line for line in await self.traces(other) if other.container_id in line], found
        await self.insist("CHECK", pod)
        probe = Probe(pod.name, pod.netns, (OPEN, CLOSED), ())
        try:
            await self.world.known(self.client.node)  # the way to a block that is new
            flows = [
                self.world.cluster.flow(self.client, pod, port, family=f) for port in (OPEN, CLOSED) for f in (4, 6)
            ]
            wanted = [ALLOW, ALLOW, DENY, DENY]
            assert await asyncio.to_thread(check, flows, timeout_s=0.25, wanted=wanted) == wanted
        finally:
            probe.stop()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
