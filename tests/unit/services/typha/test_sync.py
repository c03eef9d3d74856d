"""etcd into the calculation, over the store's fake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from libs import model
from libs.bus import wire
from libs.policy.calculator import Calculator
from libs.policy.output import PolicyKey
from libs.store.api import StoreError
from libs.store.memory import MemoryEtcd, MemoryStore
from services.typha.shell.sync import PREFIX, Sync, WentBack
from tests.unit.services.typha.samples import endpoint, policy, value

GONE = PolicyKey("GlobalNetworkPolicy", "web")


class Synced:
    """A Sync in a task, as typha runs it."""

    def __init__(self, server: MemoryEtcd) -> None:
        self.store = MemoryStore(server)
        self.writer = MemoryStore(server)
        self.calculator = Calculator()
        self.batches: list[tuple[int, list[wire.EventMsg]]] = []
        self.sync = Sync(self.store, self.calculator, lambda rev, events: self.batches.append((rev, events)))
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self.sync.run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
            self.task = None

    async def put(self, *entries: tuple[str, bytes | None]) -> None:
        for key, data in entries:
            await (self.writer.delete(key) if data is None else self.writer.put(key, data))
        await until(lambda: self.sync.rev >= self.writer.server.revision)

    @property
    def events(self) -> list[wire.EventMsg]:
        return [event for _, events in self.batches for event in events]

    def policies(self) -> set[str]:
        self.calculator.flush()
        return {key.name for key in self.calculator.policies}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)


@pytest_asyncio.fixture
async def synced() -> AsyncIterator[Synced]:
    server = MemoryEtcd()
    first = MemoryStore(server)
    for key, data in (endpoint("node1", "p1", "web", 1), policy("web", "web", "db"), policy("web2", "web", "ops")):
        await first.put(key, data)
    made = Synced(server)
    made.start()
    await until(lambda: made.sync.in_sync)
    yield made
    await made.stop()


async def test_listing_is_fed_whole_and_then_every_change(synced: Synced) -> None:
    assert synced.policies() == {"web", "web2"}
    assert (synced.sync.rev, synced.sync.size) == (synced.writer.server.revision, 3)
    await synced.put(policy("web3", "web", "x"), (policy("web", "", "")[0], None))
    assert synced.policies() == {"web2", "web3"}
    assert [(event.action, event.key.rpartition("/")[2]) for event in synced.events] == [
        ("put", "web3"), ("delete", "web"),
    ]  # fmt: skip
    assert [event.rev for event in synced.events] == [synced.sync.rev - 1, synced.sync.rev]


async def test_value_that_cannot_be_read_is_absent_logged_with_its_key_and_hurts_nobody_else(
    synced: Synced, caplog: pytest.LogCaptureFixture
) -> None:
    key = policy("web", "", "")[0]
    await synced.put((key, b'{"kind": "GlobalNetworkPolicy", "spec": {"order": [}'), policy("web4", "web", "x"))
    assert synced.policies() == {"web2", "web4"}
    assert list(synced.sync.bad) == [key]
    assert [record.__dict__["key"] for record in caplog.records if record.levelname == "ERROR"] == [key]
    bad, good = synced.events
    assert bad.error
    assert bad.value == wire.NULL
    assert not good.error
    assert good.value != wire.NULL
    await synced.put(policy("web", "web", "db"))
    assert synced.policies() == {"web", "web2", "web4"}
    assert not synced.sync.bad


async def test_listing_after_lost_history_deletes_by_comparison(synced: Synced) -> None:
    await synced.stop()
    await synced.writer.delete(policy("web", "", "")[0])
    await synced.writer.put(*policy("web5", "web", "x"))
    synced.writer.server.compact(synced.writer.server.revision)
    before = synced.sync.rev
    synced.start()
    await until(lambda: synced.sync.rev > before)
    assert synced.policies() == {"web2", "web5"}
    assert synced.sync.size == 3


async def test_datastore_that_is_away_is_waited_for_and_nothing_is_deleted_meanwhile(synced: Synced) -> None:
    synced.writer.server.down = True
    for _ in range(100):
        await asyncio.sleep(0)
    assert synced.policies() == {"web", "web2"}
    synced.writer.server.down = False
    await synced.put(policy("web6", "web", "x"))
    assert synced.policies() == {"web", "web2", "web6"}


async def test_unchanged_keys_are_not_fed_again_by_a_second_listing(synced: Synced) -> None:
    await synced.stop()
    fed: list[str] = []
    update = synced.calculator.update

    def noted(key: str, resource: model.Resource | None, problem: str = "") -> None:
        fed.append(key)
        update(key, resource, problem)

    synced.calculator.update = noted  # type: ignore[method-assign]
    await synced.writer.put(*policy("web7", "web", "x"))
    synced.start()
    await until(lambda: synced.sync.rev == synced.writer.server.revision)
    assert fed == [policy("web7", "", "")[0]]


async def test_etcd_restored_to_an_older_state_ends_the_sync(synced: Synced) -> None:
    image = synced.writer.server.snapshot()
    await synced.put(policy("web8", "web", "x"))
    synced.writer.server.restore(image)
    assert synced.task is not None
    with pytest.raises((WentBack, StoreError)):
        await asyncio.wait_for(synced.task, 30)
    with pytest.raises(WentBack):
        await asyncio.wait_for(synced.sync.run(), 30)
    synced.task = None
    assert synced.policies() == {"web", "web2", "web8"}  # nothing of the older state was taken for news


async def test_configuration_is_kept_as_stored(synced: Synced) -> None:
    key, data = value("FelixConfiguration", "default", {"logSeverityScreen": "Debug"})
    await synced.put((key, data))
    assert {name: bytes(raw) for name, raw in synced.sync.take_config().items() if raw is not None} == {key: data}
    assert synced.sync.take_config() == {}
    await synced.put((key, b"{"))
    assert synced.sync.take_config() == {key: None}
    await synced.put((key, data), (key, None))
    assert synced.sync.take_config() == {key: None}


async def test_keys_of_others_are_ignored(synced: Synced) -> None:
    batches = len(synced.batches)
    await synced.put((f"{PREFIX}something/else", b"\xff"), (f"{PREFIX}v1/unknown", b"{}"))
    assert synced.policies() == {"web", "web2"}
    assert synced.events == []
    assert len(synced.batches) > batches  # but their revisions count
