"""The plugin's steps with every one of them failing, or being the last that was made."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from libs.policy.output import WorkloadKey
from libs.store.api import StoreUnavailable
from libs.testkit import bootstrap
from services.felix.core.cni.endpoint import Place
from services.felix.core.cni.errors import CniError, Code
from services.felix.core.cni.request import Request, parse
from services.felix.shell.cni.turns import Turns
from services.felix.shell.cni.undo import FORGET_S
from tests.unit.services.felix.cni_stage import NOTHING, FakeLinks, Node, posted, request, undoing, until_nothing


@pytest.mark.parametrize(
    "arguments",
    ["", "K8S_POD_NAME=box", "IgnoreUnknown=1;K8S_POD_NAMESPACE=;K8S_POD_NAME=box"],
    ids=["", "name", "Podman"],
)
def test_a_name_alone_makes_no_pod_of_kubernetes(arguments: str) -> None:
    made = parse(posted({"CNI_ARGS": arguments}))
    assert (made.orchestrator, made.namespace, made.pod) == ("cni", "default", "")
    assert made.host_interface("cali") == "calic1"


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


async def test_add_again_tells_the_mtu_as_well(tmp_path: Path) -> None:
    node = await Node(tmp_path).fill()
    answer = await node.plugin.handle(request(cniVersion="1.1.0"))
    assert [interface["mtu"] for interface in (answer or {})["interfaces"]] == [1500, 1500]
    assert await node.plugin.handle(request(cniVersion="1.1.0")) == answer


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
        seen, dead, buried = 0, asyncio.Event(), asyncio.Event()

        async def before(
            name: str, key: str, last: int = last, dead: asyncio.Event = dead, buried: asyncio.Event = buried
        ) -> None:
            nonlocal seen
            seen += 1
            if seen > last:  # nothing that this process does from here on has an effect
                dead.set()
                await buried.wait()

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
        buried.set()
        with contextlib.suppress(asyncio.CancelledError, CniError, StoreUnavailable):
            await asking
        if complete:
            break
    assert last > 4


class SlowLinks(FakeLinks):
    """`remove` takes until `may_end` is set, also when it is cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.removing, self.may_end = asyncio.Event(), asyncio.Event()

    async def remove(self, host: str, netns: str, ifname: str) -> None:
        self.removing.set()
        end = asyncio.ensure_future(self.may_end.wait())
        try:
            await asyncio.shield(end)
        finally:
            await end
            await super().remove(host, netns, ifname)


def pod_request(command: str, pod: str) -> Request:
    arguments = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=ns1;K8S_POD_NAME={pod}"
    return parse(posted({"CNI_COMMAND": command, "CNI_CONTAINERID": f"c-{pod}", "CNI_ARGS": arguments}))


async def test_other_pods_are_plugged_in_while_the_kernel_removes_an_interface(tmp_path: Path) -> None:
    links = SlowLinks()
    node = await Node(tmp_path, links=links).fill()
    await node.plugin.handle(pod_request("ADD", "a"))
    removal = asyncio.create_task(node.plugin.handle(pod_request("DEL", "a")))
    await asyncio.wait_for(links.removing.wait(), 10)
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
    await asyncio.wait_for(links.removing.wait(), 10)
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


async def test_an_address_is_given_up_once_other_nodes_have_forgotten_it(tmp_path: Path) -> None:
    node = await Node(tmp_path).fill()
    await node.plugin.handle(pod_request("ADD", "a"))
    asked, forgotten = asyncio.Event(), asyncio.Event()

    async def wait(rev: int, timeout_s: float) -> bool:
        node.peers.waits.append((rev, timeout_s))
        asked.set()
        return await forgotten.wait()

    node.peers.wait = wait  # type: ignore[method-assign]
    before = node.store.server.revision
    removal = asyncio.create_task(node.plugin.handle(pod_request("DEL", "a")))
    await asyncio.wait_for(asked.wait(), 10)
    left = await node.left()
    assert (left["endpoints"], len(left["addresses"])) == ([], 2)
    assert node.peers.waits == [(before + 1, FORGET_S)]
    assert not removal.done()
    forgotten.set()
    await removal
    assert await node.left() == NOTHING


async def test_what_is_still_to_be_undone_is_no_answer_to_a_repeated_add(tmp_path: Path) -> None:
    """Felix died after the pod was connected and before it said so in the journal; the runtime asks again at once."""
    node = await Node(tmp_path).fill()
    await node.plugin.handle(request())
    entry = Place("node1", "cali").entry("ADD", request())
    await node.journal.begin(entry)
    successor = node.restarted()
    successor.plugin.undo.recover()
    answer = await successor.plugin.handle(request())
    async with undoing(successor):
        for _ in range(50):
            await asyncio.sleep(0)
    assert answer is not None
    await successor.plugin.handle(request("CHECK"))
    assert (await successor.left())["journal"] == []
    await successor.plugin.handle(request("DEL"))
    assert await successor.left() == NOTHING


async def test_turns_of_requests_that_fail_are_forgotten() -> None:
    turns = Turns()

    async def fail(name: str) -> None:
        async with turns.of(name):
            await asyncio.sleep(0)
            raise ValueError

    await asyncio.gather(*(fail(f"cali{number % 3}") for number in range(9)), return_exceptions=True)
    assert (turns._locks, turns._users) == ({}, {})


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
