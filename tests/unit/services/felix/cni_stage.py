"""A CNI plugin with its surroundings, and requests for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libs.ipam.client import IpamClient
from libs.netlink.podlink import PodVeth
from libs.policy.output import WorkloadKey
from libs.resources.client import ResourceClient
from libs.store.memory import MemoryEtcd, MemoryStore
from libs.testkit import bootstrap
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.request import Request, parse
from services.felix.core.journal import Delegation
from services.felix.shell.cni.add import AddSettings
from services.felix.shell.cni.plugin import Plugin
from services.felix.shell.journal import Journal

CONFIG: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "net",
    "type": "calico",
    "ipam": {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true"},
    "policy": {"type": "k8s"},
}
ENVIRONMENT = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/var/run/netns/x",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns1;K8S_POD_NAME=web",
}


def posted(env: dict[str, str] | None = None, **config: Any) -> bytes:
    return json.dumps({"env": ENVIRONMENT | (env or {}), "config": json.dumps(CONFIG | config)}).encode()


def request(command: str = "ADD", container: str = "c1", **config: Any) -> Request:
    """CHECK with a result that says no more than it must, unless another is given."""
    if command == "CHECK":
        config.setdefault("prevResult", {"interfaces": [{"name": "eth0", "sandbox": ENVIRONMENT["CNI_NETNS"]}]})
    return parse(posted({"CNI_COMMAND": command, "CNI_CONTAINERID": container}, **config))


@dataclass
class FakeLinks:
    """Interfaces by host name; `broken` is what the next connect says."""

    there: dict[str, PodVeth] = field(default_factory=dict)
    broken: CniError | None = None

    def connect(self, pod: PodVeth) -> None:
        if self.broken is not None:
            raise self.broken
        self.there[pod.host_name] = pod

    def check(self, pod: PodVeth) -> list[str]:
        there = self.there.get(pod.host_name)
        same = there is not None and (there.netns, there.addresses) == (pod.netns, pod.addresses)
        return [] if same else [f"{pod.host_name} is not as it should be"]

    def mtu_bytes(self, host: str) -> int:
        return self.there[host].mtu_bytes if host in self.there else 0

    async def remove(self, host: str, netns: str, ifname: str) -> None:
        self.there.pop(host, None)


@dataclass
class FakeEnforcement:
    comes: bool = True
    follows: bool = True
    fails: str = ""
    asked: list[WorkloadKey] = field(default_factory=list)
    limits_s: list[float] = field(default_factory=list)

    def ready(self) -> bool:
        return True

    def following(self) -> bool:
        return self.follows

    def failing(self) -> str:
        return self.fails

    async def programmed(self, key: WorkloadKey, rev: int, timeout_s: float) -> bool:
        self.asked.append(key)
        self.limits_s.append(timeout_s)
        return self.comes

    def enforced(self, key: WorkloadKey) -> bool:
        return self.comes


class FakePeers:
    def __init__(self) -> None:
        self.waits: list[tuple[int, float]] = []

    async def wait(self, rev: int, timeout_s: float) -> bool:
        self.waits.append((rev, timeout_s))
        return False


class FakePlugins:
    """Another plugin for addresses: gives what `answer` says, refuses with what `refusal` says."""

    def __init__(self) -> None:
        self.answer: dict[str, Any] | None = None
        self.refusal: dict[str, CniError] = {}
        self.called: list[tuple[str, Delegation]] = []
        self.there = True

    def find(self, delegation: Delegation) -> object:
        if not self.there:
            raise CniError(Code.INVALID_CONFIG, f"no {delegation.plugin} in CNI_PATH")
        return None

    async def run(self, command: str, delegation: Delegation) -> dict[str, Any] | None:
        self.find(delegation)
        self.called.append((command, delegation))
        if command in self.refusal:
            raise self.refusal[command]
        return self.answer if command == "ADD" else None


class Node:
    """A plugin with its surroundings; `restarted` is the next process on the same node."""

    def __init__(self, directory: Path, server: MemoryEtcd | None = None, links: FakeLinks | None = None) -> None:
        self.directory = directory
        self.store = MemoryStore(server)
        self.links, self.enforcement, self.peers = links or FakeLinks(), FakeEnforcement(), FakePeers()
        self.plugins = FakePlugins()
        self.journal = Journal(directory)
        self.plugin = Plugin(
            "node1", ResourceClient(self.store), IpamClient(self.store), self.links, self.enforcement, self.peers,
            self.journal,
            self.plugins, AddSettings(1.0, lambda: 1500, directory.parent / "mtu"), interface_prefix="cali",
        )  # fmt: skip

    def restarted(self) -> Node:
        return Node(self.directory, self.store.server, self.links)

    async def fill(self) -> Node:
        for kind, plural, name, spec in (
            ("Node", "nodes", "node1", {}),
            ("IPPool", "ippools", "v4", bootstrap.pool_spec("10.65.0.0/16", block_size=26)),
            ("IPPool", "ippools", "v6", bootstrap.pool_spec("fd00:65::/48", block_size=122)),
        ):
            await self.store.put(bootstrap.key(plural, name), bootstrap.resource(kind, name, spec))
        return self

    async def left(self) -> dict[str, Any]:
        """What is there of attachments, beyond blocks and affinities, which stay with a node."""
        clean = MemoryStore(self.store.server)
        blocks = await IpamClient(clean).blocks()
        return {
            "addresses": sorted(one.handle or "" for block in blocks for one in block.allocated()),
            "handles": [kv.key for kv in (await clean.list("/calico/ipam/v2/handle/")).kvs],
            "endpoints": (await ResourceClient(clean).list("WorkloadEndpoint")).items,
            "links": sorted(self.links.there),
            "journal": [entry.container for entry in self.journal.unfinished()],
        }


NOTHING: dict[str, Any] = {"addresses": [], "handles": [], "endpoints": [], "links": [], "journal": []}


@asynccontextmanager
async def undoing(node: Node) -> AsyncIterator[None]:
    task = asyncio.create_task(node.plugin.undo.undo_forever())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_nothing(node: Node) -> None:
    deadline = asyncio.get_running_loop().time() + 10
    while (left := await node.left()) != NOTHING:
        assert asyncio.get_running_loop().time() < deadline, left
        await asyncio.sleep(0.01)
