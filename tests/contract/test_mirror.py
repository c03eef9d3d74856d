"""The mirror of some kinds, on the store in memory and on a real etcd."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from random import Random

import pytest

from libs import model
from libs.model import keys
from libs.model.base import Resource
from libs.resources.mirror import Mirror
from libs.store import Store
from libs.testkit.servers import EtcdServer
from tests.contract.store_backends import Backend, eventually, open_backend
from tests.unit.services.typha.samples import value


@pytest.fixture
def etcd_server() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.servers)])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[Backend]:
    """With a server of its own: the keys are Calico's."""
    async with open_backend(request.param, lambda: request.getfixturevalue("etcd_server")) as made:
        yield made


class Followed:
    def __init__(self, store: Store, keep: Callable[[Resource], bool]) -> None:
        self.told: list[frozenset[str]] = []
        self.mirror = Mirror(store, ("Node", "HostEndpoint"), self.told.append, Random(7), keep=keep)

    def names(self) -> list[str]:
        return [one.metadata.name for one in self.mirror.of(model.Node)]


@asynccontextmanager
async def following(store: Store, keep: Callable[[Resource], bool] = lambda resource: True) -> AsyncIterator[Followed]:
    made = Followed(store, keep)
    task = asyncio.create_task(made.mirror.run(), name="mirror")
    try:
        yield made
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def put(store: Store, kind: str, name: str, namespace: str = "") -> int:
    return await store.put(*value(kind, name, {}, namespace))


async def test_it_holds_what_there_is_and_what_comes_and_nothing_else(backend: Backend) -> None:
    other = backend.other()
    await put(other, "Node", "b")
    await put(other, "GlobalNetworkPolicy", "g")
    async with following(backend.store()) as followed:
        mirror = followed.mirror
        assert not mirror.in_sync
        await eventually(lambda: mirror.in_sync)
        assert followed.names() == ["b"]
        assert followed.told == [frozenset({"Node", "HostEndpoint"})]
        await put(other, "GlobalNetworkPolicy", "h")
        revision = await put(other, "Node", "a")
        await mirror.reached(revision)
        assert followed.names() == ["a", "b"]
        assert mirror.of(model.Node)[0].metadata.resource_version == str(revision)
        assert followed.told[1:] == [frozenset({"Node"})]
        assert mirror.of(model.HostEndpoint) == []
        deleted = await other.delete(keys.resource_key("Node", "b"))
        assert deleted is not None
        await mirror.reached(deleted)
        assert followed.names() == ["a"]


async def test_what_is_not_to_be_kept_is_neither_held_nor_told(backend: Backend) -> None:
    other = backend.other()

    async def put_node(name: str, owner: str) -> int:
        return await other.put(*value("Node", name, {}, labels={"owner": owner}))

    await put_node("a", "me")
    await put_node("b", "you")
    async with following(backend.store(), lambda one: one.metadata.labels.get("owner") == "me") as followed:
        mirror = followed.mirror
        await eventually(lambda: mirror.in_sync)
        assert followed.names() == ["a"]
        await mirror.reached(await put_node("b", "you"))
        await mirror.reached(await put_node("c", "you"))
        assert len(followed.told) == 1, "others' changes are nobody's news"
        await mirror.reached(await put_node("c", "me"))
        assert followed.names() == ["a", "c"]
        await mirror.reached(await put_node("a", "you"))
        assert followed.names() == ["c"]
        deleted = await other.delete(keys.resource_key("Node", "b"))
        assert deleted is not None
        await mirror.reached(deleted)
        assert followed.told[1:] == [frozenset({"Node"})] * 2


async def test_a_value_that_cannot_be_read_is_there_and_yet_none(backend: Backend) -> None:
    other, key = backend.other(), keys.resource_key("Node", "a")
    await put(other, "Node", "a")
    async with following(backend.store()) as followed:
        mirror = followed.mirror
        await mirror.reached(await other.put(key, b'{"spec": 7}'))
        assert followed.names() == []
        assert [found.name for found in mirror.unreadable(model.Node)] == ["a"]
        await mirror.reached(await put(other, "Node", "a"))
        assert followed.names() == ["a"]
        assert not mirror.unreadable(model.Node)


async def test_it_stays_while_etcd_is_away_and_catches_up(backend: Backend) -> None:
    other = backend.other()
    await put(other, "Node", "a")
    await put(other, "Node", "b")
    async with following(backend.store()) as followed:
        await eventually(lambda: followed.mirror.in_sync)
        await backend.cut()
        await other.delete(keys.resource_key("Node", "a"))
        revision = await put(other, "Node", "c")
        await other.compact(revision)  # the watch cannot go on where it was
        assert followed.names() == ["a", "b"]
        await backend.mend()
        await eventually(lambda: followed.names() == ["b", "c"])


async def test_another_history_replaces_everything(backend: Backend) -> None:
    other = backend.other()
    for name in ("a", "b", "c"):
        await put(other, "Node", name)
    async with following(backend.store()) as followed:
        await eventually(lambda: followed.mirror.in_sync)
        await backend.replace_history()
        await eventually(lambda: followed.names() == [])
        await put(backend.other(), "Node", "d")
        await eventually(lambda: followed.names() == ["d"])
