"""CNI requests as values, and the plugin's steps with every one of them failing, or being the last that was made."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from libs.ipam.client import IpamClient
from libs.policy.output import WorkloadKey
from libs.resources.client import ResourceClient
from libs.store.api import StoreUnavailable
from libs.store.memory import MemoryEtcd, MemoryStore
from libs.testkit import bootstrap
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.request import IP_ADDRS, Request, parse, parse_args
from services.felix.core.cni.result import result
from services.felix.core.cni.versions import VERSIONS
from services.felix.core.journal import Journal
from services.felix.core.routing import Address
from services.felix.shell.cni.plugin import Plugin

CONFIG: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "net",
    "type": "calico",
    "ipam": {"type": "calico-ipam", "assign_ipv4": "true", "assign_ipv6": "true"},
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
    return parse(posted({"CNI_COMMAND": command, "CNI_CONTAINERID": container}, **config))


# --- values ---


def test_names_follow_calico() -> None:
    made = request()
    assert made.host_interface("cali") == "cali" + hashlib.sha1(b"ns1.web").hexdigest()[:11]
    assert (made.handle, made.orchestrator, made.namespace) == ("net.c1", "k8s", "ns1")
    assert made.profiles() == ["kns.ns1"]
    plain = parse(posted({"CNI_ARGS": ""}))
    assert (plain.host_interface("cali"), plain.orchestrator, plain.profiles()) == ("calic1", "cni", ["net"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", {}), ("a=b", {"a": "b"}), ("a=b;c=d=e;", {"a": "b", "c": "d=e"}), ("a=", {"a": ""})],
)
def test_arguments(text: str, expected: dict[str, str]) -> None:
    assert parse_args(text) == expected


@pytest.mark.parametrize(
    ("env", "config", "code"),
    [
        ({"CNI_COMMAND": "MOVE"}, {}, 4),
        ({"CNI_CONTAINERID": "-x"}, {}, 4),
        ({"CNI_IFNAME": ".."}, {}, 4),
        ({"CNI_IFNAME": "a/b"}, {}, 4),
        ({"CNI_NETNS": ""}, {}, 4),
        ({"CNI_NETNS": "x"}, {}, 4),
        ({"CNI_ARGS": "x"}, {}, 4),
        ({"CNI_ARGS": "K8S_POD_NAME=web"}, {}, 4),
        ({}, {"cniVersion": "0.2.0"}, 1),
        ({}, {"name": ""}, 7),
        ({}, {"ipam": {"type": "host-local"}}, 7),
        ({}, {"ipam": {"assign_ipv4": "maybe"}}, 7),
        ({}, {"ipam": {"assign_ipv4": "false"}}, 7),
        ({}, {"args": {"cni": {"annotations": {IP_ADDRS: "10.0.0.1"}}}}, 7),
        ({}, {"args": {"cni": {"annotations": {IP_ADDRS: '["10.0.0.1", "10.0.0.2"]'}}}}, 7),
    ],
)
def test_bad_requests_have_the_code_of_the_specification(
    env: dict[str, str], config: dict[str, Any], code: int
) -> None:
    with pytest.raises(CniError) as caught:
        parse(posted(env, **config))
    assert caught.value.code == code
    assert caught.value.object("")["cniVersion"] in VERSIONS


def test_bodies_that_are_no_request_are_refused() -> None:
    for body, code in ((b"", 6), (b"[]", 6), (b'{"env": {}, "config": "{"}', 6), (b'{"env": {}, "config": "[]"}', 7)):
        with pytest.raises(CniError) as caught:
            parse(body)
        assert caught.value.code == code, body


def test_del_needs_no_namespace_and_status_no_container() -> None:
    assert parse(posted({"CNI_COMMAND": "DEL", "CNI_NETNS": ""})).netns == ""
    env = {"CNI_COMMAND": "STATUS", "CNI_CONTAINERID": "", "CNI_IFNAME": "", "CNI_NETNS": "", "CNI_ARGS": ""}
    assert parse(posted(env)).command == "STATUS"


@pytest.mark.parametrize(("version", "numbered"), [("0.3.1", True), ("0.4.0", True), ("1.0.0", False)])
def test_the_result_has_the_form_of_the_version(version: str, numbered: bool) -> None:
    answer = result(
        request(cniVersion=version), "cali1", "02:00:00:00:00:01", [ip_address("10.0.0.1"), ip_address("fd00::1")]
    )
    assert answer["cniVersion"] == version
    assert [entry["address"] for entry in answer["ips"]] == ["10.0.0.1/32", "fd00::1/128"]
    assert [entry.get("version") for entry in answer["ips"]] == (["4", "6"] if numbered else [None, None])


# --- the plugin ---


@dataclass
class FakeLinks:
    """Interfaces by host name; `broken` is what the next connect says."""

    there: dict[str, tuple[str, tuple[Address, ...]]] = field(default_factory=dict)
    broken: CniError | None = None

    def connect(
        self, host: str, netns: str, ifname: str, addresses: tuple[Address, ...], mac: str, mtu_bytes: int
    ) -> None:
        if self.broken is not None:
            raise self.broken
        self.there[host] = (netns, addresses)

    def check(self, host: str, netns: str, ifname: str, addresses: tuple[Address, ...], mac: str) -> list[str]:
        return [] if self.there.get(host) == (netns, addresses) else [f"{host} is not as it should be"]

    def remove(self, host: str, netns: str, ifname: str) -> None:
        self.there.pop(host, None)


@dataclass
class FakeEnforcement:
    comes: bool = True
    asked: list[WorkloadKey] = field(default_factory=list)

    def ready(self) -> bool:
        return True

    async def programmed(self, key: WorkloadKey, rev: int, timeout_s: float) -> bool:
        self.asked.append(key)
        return self.comes

    def enforced(self, key: WorkloadKey) -> bool:
        return self.comes


class FakePeers:
    def __init__(self) -> None:
        self.waits: list[tuple[int, float]] = []

    async def wait(self, rev: int, timeout_s: float) -> bool:
        self.waits.append((rev, timeout_s))
        return False


class Node:
    """A plugin with its surroundings; `restarted` is the next process on the same node."""

    def __init__(self, directory: Path, server: MemoryEtcd | None = None, links: FakeLinks | None = None) -> None:
        self.directory = directory
        self.store = MemoryStore(server)
        self.links, self.enforcement, self.peers = links or FakeLinks(), FakeEnforcement(), FakePeers()
        self.journal = Journal(directory)
        self.plugin = Plugin(
            "node1", ResourceClient(self.store), IpamClient(self.store), self.links, self.enforcement, self.peers,
            self.journal,
            interface_prefix="cali", policy_timeout_s=1.0, mtu_bytes=lambda: 1500,
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


async def test_add_check_and_del(tmp_path: Path) -> None:
    node = await Node(tmp_path).fill()
    answer = await node.plugin.handle(request())
    assert answer is not None
    assert len(answer["ips"]) == 2
    assert node.enforcement.asked == [WorkloadKey("k8s", "ns1/web", "eth0")]
    assert await node.plugin.handle(request("CHECK")) is None
    assert await node.plugin.handle(request()) == answer
    assert (await node.left())["journal"] == []
    await node.plugin.handle(request("DEL"))
    assert await node.left() == NOTHING


@pytest.mark.parametrize("applied", [False, True], ids=["not-sent", "answer-lost"])
@pytest.mark.parametrize("command", ["ADD", "DEL"])
async def test_any_call_to_the_datastore_may_fail_and_nothing_is_left(
    tmp_path: Path, command: str, applied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.felix.shell.cni.undo.UNDO_AGAIN_S", (0.01, 0.01))
    for failing in range(1000):
        node = await Node(tmp_path / str(failing)).fill()
        if command == "DEL":
            await node.plugin.handle(request())
        done = node.store.calls
        seen = 0

        async def before(name: str, key: str, node: Node = node, failing: int = failing) -> None:
            nonlocal seen
            if seen == failing:
                node.store.fail_next(1, applied=applied)
            seen += 1

        node.store.before = before
        error = None
        try:
            await node.plugin.handle(request(command))
        except CniError as caught:
            error = caught
        node.store.before = None
        assert node.store.calls > done
        if error is not None:
            assert error.code == Code.TRY_AGAIN, error
        elif command == "ADD":
            await node.plugin.handle(request("CHECK"))
            await node.plugin.handle(request("DEL"))
        if command == "DEL" and error is not None and not node.journal.unfinished():
            await node.plugin.handle(request("DEL"))  # refused before it began: the runtime asks again
        async with undoing(node):
            await until_nothing(node)
        if seen <= failing:
            break  # the request makes no further call
    assert failing > 4


@pytest.mark.parametrize("command", ["ADD", "DEL"])
async def test_a_process_that_ends_at_any_call_leaves_what_the_next_one_finishes(tmp_path: Path, command: str) -> None:
    for last in range(1000):
        node = await Node(tmp_path / str(last)).fill()
        if command == "DEL":
            await node.plugin.handle(request())
        seen, dead = 0, asyncio.Event()

        async def before(name: str, key: str, last: int = last, dead: asyncio.Event = dead) -> None:
            nonlocal seen
            seen += 1
            if seen > last:  # nothing that this process does from here on has an effect
                dead.set()
                await asyncio.Event().wait()

        node.store.before = before
        asking = asyncio.create_task(node.plugin.handle(request(command)))
        waiting = asyncio.create_task(dead.wait())
        await asyncio.wait({asking, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        complete = asking.done()
        successor = node.restarted()
        if not complete:
            successor.plugin.undo.recover()
            if command == "DEL" and not successor.journal.unfinished():
                await successor.plugin.handle(request("DEL"))
            async with undoing(successor):
                await until_nothing(successor)
        node.store.before = None
        node.store.cut = True
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError, CniError, StoreUnavailable):
            await asking
        if complete:
            break
    assert last > 4


class SlowLinks(FakeLinks):
    """`remove` takes until `may_end` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.removing, self.may_end = threading.Event(), threading.Event()

    def remove(self, host: str, netns: str, ifname: str) -> None:
        self.removing.set()
        assert self.may_end.wait(10)
        super().remove(host, netns, ifname)


def pod_request(command: str, pod: str) -> Request:
    arguments = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=ns1;K8S_POD_NAME={pod}"
    return parse(posted({"CNI_COMMAND": command, "CNI_CONTAINERID": f"c-{pod}", "CNI_ARGS": arguments}))


async def test_other_pods_are_plugged_in_while_the_kernel_removes_an_interface(tmp_path: Path) -> None:
    links = SlowLinks()
    node = await Node(tmp_path, links=links).fill()
    await node.plugin.handle(pod_request("ADD", "a"))
    removal = asyncio.create_task(node.plugin.handle(pod_request("DEL", "a")))
    assert await asyncio.to_thread(links.removing.wait, 10)
    assert await node.plugin.handle(pod_request("ADD", "b")) is not None
    assert not removal.done()
    links.may_end.set()
    await removal
    assert set(links.there) == {pod_request("ADD", "b").host_interface("cali")}


async def test_a_cancelled_del_ends_only_with_the_removal_that_it_began(tmp_path: Path) -> None:
    links = SlowLinks()
    node = await Node(tmp_path, links=links).fill()
    await node.plugin.handle(pod_request("ADD", "a"))
    removal = asyncio.create_task(node.plugin.handle(pod_request("DEL", "a")))
    assert await asyncio.to_thread(links.removing.wait, 10)
    removal.cancel()
    again = asyncio.create_task(node.plugin.handle(pod_request("ADD", "a")))
    for _ in range(20):  # the cancellation has long arrived by then
        await asyncio.sleep(0)
    assert not removal.done()
    assert not again.done()
    links.may_end.set()
    assert await again is not None
    assert removal.cancelled()
    assert links.there


async def test_the_first_thing_that_went_wrong_is_what_the_runtime_reads(tmp_path: Path) -> None:
    node = await Node(tmp_path).fill()
    node.links.broken = CniError(Code.IO_FAILURE, "no such cable")
    with pytest.raises(CniError, match="no such cable"):
        await node.plugin.handle(request())
    assert await node.left() == NOTHING


async def test_a_policy_that_does_not_come_undoes_everything(tmp_path: Path) -> None:
    node = await Node(tmp_path).fill()
    node.enforcement.comes = False
    with pytest.raises(CniError) as caught:
        await node.plugin.handle(request())
    assert caught.value.code == Code.TRY_AGAIN
    assert await node.left() == NOTHING


async def test_the_interface_goes_at_once_even_when_the_datastore_is_away(tmp_path: Path) -> None:
    node = await Node(tmp_path).fill()
    node.enforcement.comes = False
    programmed = node.enforcement.programmed

    async def away(key: WorkloadKey, rev: int, timeout_s: float) -> bool:
        node.store.cut = True
        return await programmed(key, rev, timeout_s)

    node.enforcement.programmed = away  # type: ignore[method-assign]
    with pytest.raises(CniError):
        await node.plugin.handle(request())
    assert node.links.there == {}
    assert (await node.left())["journal"] == ["c1"]
    node.store.cut = False
    async with undoing(node):
        await until_nothing(node)


async def test_a_late_del_of_another_container_takes_only_its_own_addresses(tmp_path: Path) -> None:
    node = await Node(tmp_path).fill()
    await node.plugin.handle(request(container="old"))
    await node.plugin.handle(request(container="new"))
    await node.plugin.handle(request("DEL", container="old"))
    left = await node.left()
    assert left["addresses"] == ["net.new", "net.new"]
    assert len(left["links"]) == len(left["endpoints"]) == 1
    await node.plugin.handle(request("CHECK", container="new"))


async def test_what_is_left_to_undo_does_not_hit_a_container_that_succeeded_since(tmp_path: Path) -> None:
    node = await Node(tmp_path).fill()
    node.enforcement.comes = False
    node.store.before = None

    async def cut(key: WorkloadKey, rev: int, timeout_s: float) -> bool:
        node.store.cut = True
        return False

    usual, node.enforcement.programmed = node.enforcement.programmed, cut  # type: ignore[method-assign]
    with pytest.raises(CniError):
        await node.plugin.handle(request())
    node.store.cut, node.enforcement.comes = False, True
    node.enforcement.programmed = usual  # type: ignore[method-assign]
    assert await node.plugin.handle(request()) is not None  # the same container again, before the undoing came round
    async with undoing(node):
        await asyncio.sleep(0.05)
    await node.plugin.handle(request("CHECK"))


async def test_a_node_that_is_unknown_gets_no_pods(tmp_path: Path) -> None:
    node = await Node(tmp_path).fill()
    await node.store.delete(bootstrap.key("nodes", "node1"))
    with pytest.raises(CniError, match="no Node node1"):
        await node.plugin.handle(request())
    assert await node.left() == NOTHING
