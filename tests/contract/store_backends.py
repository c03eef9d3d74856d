"""The two worlds that the store's contract is tried in: in memory, and a real etcd behind a relay that can be cut."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from libs.store import Event, Store, StoreConfig, StoreUnavailable, WatchBatch
from libs.store.etcd import EtcdStore
from libs.store.memory import MemoryEtcd, MemoryStore
from libs.testkit.relay import Relay
from libs.testkit.servers import EtcdServer

FAST_LEASES = ("--heartbeat-interval=20", "--election-timeout=200")  # etcd's smallest TTL is then one second
DEADLINE_S = 20.0


class Backend(Protocol):
    """prefix: of this test alone. `store`: a client that can be cut off; `other`: one that cannot."""

    prefix: str

    def store(self) -> Store: ...

    def other(self) -> Store: ...

    async def cut(self) -> None:
        """`store`s lose their connection."""
        ...

    async def mend(self) -> None: ...

    async def stop_server(self) -> None:
        """As power loss."""
        ...

    async def start_server(self) -> None: ...

    async def replace_history(self) -> None:
        """Another, empty etcd in the place of this one."""
        ...

    async def pass_time(self, seconds: float) -> None: ...

    async def close(self) -> None: ...


class MemoryBackend:
    def __init__(self) -> None:
        self.prefix = "/t/"
        self.server = MemoryEtcd()
        self._stores: list[MemoryStore] = []

    def store(self) -> MemoryStore:
        self._stores.append(MemoryStore(self.server))
        return self._stores[-1]

    def other(self) -> MemoryStore:
        return MemoryStore(self.server)

    async def cut(self) -> None:
        for store in self._stores:
            store.cut = True

    async def mend(self) -> None:
        for store in self._stores:
            store.cut = False

    async def stop_server(self) -> None:
        self.server.down = True

    async def start_server(self) -> None:
        self.server.down = False

    async def replace_history(self) -> None:
        self.server.restore(MemoryEtcd().snapshot())

    async def pass_time(self, seconds: float) -> None:
        self.server.advance(seconds)

    async def close(self) -> None:
        pass


class EtcdBackend:
    def __init__(self, server: EtcdServer, *, request_timeout_s: float = 5.0) -> None:
        self.request_timeout_s = request_timeout_s
        self.prefix = f"/{uuid.uuid4().hex}/"
        self.server = server
        self.relay = Relay(server.port)
        self._stores: list[EtcdStore] = []

    async def open(self) -> None:
        await self.relay.mend()

    def store(self) -> EtcdStore:
        return self._make(f"http://127.0.0.1:{self.relay.port}")

    def other(self) -> EtcdStore:
        return self._make(self.server.endpoint)

    def _make(self, endpoint: str) -> EtcdStore:
        self._stores.append(EtcdStore(StoreConfig((endpoint,), request_timeout_s=self.request_timeout_s)))
        return self._stores[-1]

    async def cut(self) -> None:
        await self.relay.cut()

    async def mend(self) -> None:
        await self.relay.mend()

    async def stop_server(self) -> None:
        self.server.kill()

    async def start_server(self) -> None:
        await self.server.start_async()

    async def replace_history(self, *, same_id: bool = False) -> None:
        """same_id: as one restored from a backup with the settings of before."""
        self.server.forget()
        if not same_id:
            self.server.cluster_token = uuid.uuid4().hex
        await self.server.start_async()

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        for store in self._stores:
            await store.close()
        await self.relay.cut()
        if not self.server.running:
            await self.server.start_async()


@asynccontextmanager
async def open_backend(kind: str, server: Callable[[], EtcdServer]) -> AsyncIterator[Backend]:
    """kind: "memory" or "etcd"; only the latter asks for a server."""
    if kind == "memory":
        yield MemoryBackend()
        return
    made = EtcdBackend(server())
    await made.open()
    try:
        yield made
    finally:
        await made.close()


async def take(batches: AsyncGenerator[WatchBatch, None], enough: Callable[[list[Event]], bool]) -> list[Event]:
    """Events of a watch until `enough`, with a deadline; checks on the way that revisions only grow and are whole."""
    events: list[Event] = []
    last = 0
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while not enough(events):
        try:
            async with asyncio.timeout_at(deadline):
                batch = await anext(batches)
        except TimeoutError:
            raise AssertionError(f"no more than {[(e.key, e.revision) for e in events]}, told to {last}") from None
        if not batch.resync:
            revisions = [event.revision for event in batch.events]
            assert revisions == sorted(revisions)
            assert all(revision > last for revision in revisions), "a revision was told twice or torn"
            assert not revisions or revisions[-1] == batch.revision
        last = batch.revision
        events += batch.events
    return events


async def eventually_get(store: Store, key: str) -> bytes | None:
    """Its value, None where it is not, as soon as the store answers."""
    async with asyncio.timeout(20):
        while True:
            try:
                found = await store.get(key)
            except StoreUnavailable:
                await asyncio.sleep(0.01)
                continue
            return found and found.value


async def eventually(check: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    async with asyncio.timeout(deadline_s):
        for pause in itertools.chain((0.0, 0.001, 0.005), itertools.repeat(0.02)):
            if check():
                return
            await asyncio.sleep(pause)
