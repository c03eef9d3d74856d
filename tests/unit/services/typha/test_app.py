"""Typha's tasks against fakes: what must not end it, and what must."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from libs.bus import wire
from libs.bus.api import BusPayloadTooLarge, BusUnavailable
from libs.bus.memory import MemoryBroker
from libs.runtime.health import Aggregator
from libs.runtime.service import Service
from libs.store.api import Listing
from libs.store.memory import MemoryEtcd, MemoryStore
from services.typha.app import Typha
from services.typha.config import TyphaConfig
from services.typha.shell.sync import WentBack
from tests.unit.services.typha.samples import endpoint, policy, value
from tests.unit.services.typha.test_sync import until


class LateAnswers(MemoryStore):
    """`then` runs after a listing was made and before it is handed over, as a busy network may do it."""

    then: Callable[[], Awaitable[None]] | None = None

    async def list(self, prefix: str, *, revision: int = 0, keys_only: bool = False) -> Listing:
        listing = await super().list(prefix, revision=revision, keys_only=keys_only)
        if self.then is not None:
            await self.then()
        return listing


class Running:
    def __init__(self) -> None:
        server = MemoryEtcd()
        self.store, self.writer = LateAnswers(server), MemoryStore(server)
        self.broker = MemoryBroker()
        self.broker.record = True
        self.bus = self.broker.connect("typha")
        health = Aggregator()
        service = Service("typha", asyncio.TaskGroup(), health, CollectorRegistry())
        config = TyphaConfig(instance="t1")
        self.typha = Typha(config, service, health.register("x"), self.store, self.bus, server.cluster_id)
        self.tasks = [asyncio.create_task(work) for work in (self.typha.sync_forever(), self.typha.flush_forever())]

    async def put(self, *entries: tuple[str, bytes]) -> None:
        for key, data in entries:
            await self.writer.put(key, data)
        await until(lambda: self.typha.sync.rev == self.writer.server.revision)

    async def published(self) -> None:
        await until(lambda: self.typha.publisher.rev >= self.writer.server.revision)

    def alive(self) -> bool:
        return not any(task.done() for task in self.tasks)


@pytest_asyncio.fixture
async def running() -> AsyncIterator[Running]:
    made = Running()
    await made.writer.put(*endpoint("node1", "p1", "web", 1))
    await until(lambda: made.typha.sync.in_sync)
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)


async def test_answer_of_etcd_that_the_watch_has_overtaken_is_no_restore(running: Running) -> None:
    async def overtake() -> None:
        running.store.then = None
        await running.put(policy("web", "web", "db"))

    running.store.then = overtake
    contact = asyncio.create_task(running.typha.contact_forever(running.writer.server.cluster_id))
    await until(lambda: running.typha.contact.head > 0 or contact.done())
    assert not contact.done()
    assert running.typha.contact.head < running.typha.sync.rev
    contact.cancel()


async def test_etcd_that_went_back_ends_the_contact(running: Running) -> None:
    image = running.writer.server.snapshot()
    await running.put(policy("web", "web", "db"))
    for task in running.tasks:
        task.cancel()
    running.writer.server.restore(image)
    with pytest.raises(WentBack):
        await asyncio.wait_for(running.typha.contact_forever(running.writer.server.cluster_id), 5)


@pytest.mark.parametrize("error", [BusUnavailable("full"), BusPayloadTooLarge("1 MiB")])
async def test_messages_that_the_bus_does_not_take_count_as_lost(
    running: Running, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        raise error

    await running.published()
    running.typha.publisher.snapshot("node1", time.monotonic())
    monkeypatch.setattr(running.bus, "publish", refuse)
    await running.put(endpoint("node1", "p2", "web", 2))
    await running.published()
    beating = asyncio.create_task(running.typha.beat_forever())
    await asyncio.sleep(0)
    assert running.alive()
    assert not beating.done()
    beating.cancel()
    monkeypatch.undo()
    assert running.typha.publisher.readers["node1"].seq == 1  # the number is used up: the next commit shows the gap


async def test_event_too_large_for_a_message_is_told_without_its_value(running: Running) -> None:
    large: dict[str, Any] = {"nets": [f"10.{n // 65536}.{n // 256 % 256}.{n % 256}/32" for n in range(70_000)]}
    await running.put(value("GlobalNetworkSet", "large", large))
    await running.published()
    await until(lambda: any(".event." in subject for subject, _ in running.broker.published))
    (data,) = [data for subject, data in running.broker.published if ".event." in subject]
    event = wire.decoder(wire.EventMsg).decode(data)
    assert event.value == wire.NULL
    assert "does not fit" in event.error
