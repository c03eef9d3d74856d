"""The same random calls to the store in memory and to a real etcd: every answer, error and event must be the same.

Revisions are compared relative to the start of each run, as the real server has a past.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from random import Random

import pytest

from libs.store import (
    Compacted,
    Compare,
    Conflict,
    Delete,
    Event,
    KeyExists,
    KeyValue,
    LeaseLost,
    Op,
    Put,
    Store,
    StoreConfig,
    StoreError,
)
from libs.store.etcd import EtcdStore
from libs.store.memory import MemoryStore
from libs.testkit.servers import EtcdServer

pytestmark = pytest.mark.servers

NAMES = ["a", "a/1", "a/2", "a/10", "b", "b/é", "c"]
Answer = tuple[object, ...]


@pytest.fixture(scope="module")
def etcd_server() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@dataclass
class Twin:
    """One of the two stores, with its revisions and keys made comparable."""

    store: Store
    prefix: str
    base: int = 0
    leases: list[int] = field(default_factory=list)

    def kv(self, kv: KeyValue | None) -> Answer | None:
        if kv is None:
            return None
        lease = self.leases.index(kv.lease) if kv.lease else None
        revisions = kv.mod_revision - self.base, kv.create_revision - self.base
        return (kv.key.removeprefix(self.prefix), kv.value, *revisions, kv.version, lease)

    def event(self, event: Event) -> Answer:
        name = event.key.removeprefix(self.prefix)
        return name, self.kv(event.kv), event.revision - self.base, self.kv(event.previous)

    async def ask(self, call: Callable[[Twin], Awaitable[Answer]]) -> Answer:
        try:
            return await call(self)
        except KeyExists as error:
            return "exists", self.kv(error.current)
        except Conflict as error:
            return "conflict", self.kv(error.current)
        except Compacted as error:
            return "compacted", error.revision - self.base
        except LeaseLost:
            return ("lease lost",)
        except StoreError:
            return ("error",)


def random_call(random: Random, recent: int) -> Callable[[Twin], Awaitable[Answer]]:
    """A call whose arguments are fixed now, so that both twins get the same. recent: latest relative revision."""
    name = random.choice(NAMES)
    value = b"%d" % random.randrange(1000)
    revision = random.randint(max(1, recent - 6), recent + 1)
    which = random.random()
    leased = random.random() < 0.2

    def lease(twin: Twin) -> int:
        return twin.leases[-1] if leased and twin.leases else 0

    async def get(t: Twin) -> Answer:
        return ("get", t.kv(await t.store.get(t.prefix + name)))

    async def get_past(t: Twin) -> Answer:
        return ("past", t.kv(await t.store.get(t.prefix + name, revision=t.base + revision)))

    async def list_all(t: Twin) -> Answer:
        at = t.base + revision if which < 0.5 else 0
        listing = await t.store.list(t.prefix + name[:1], revision=at, keys_only=which < 0.2)
        return ("list", listing.revision - t.base, *map(t.kv, listing.kvs))

    async def create(t: Twin) -> Answer:
        return ("create", await t.store.create(t.prefix + name, value, lease=lease(t)) - t.base)

    async def update(t: Twin) -> Answer:
        done = await t.store.update(t.prefix + name, value, mod_revision=t.base + revision, lease=lease(t))
        return ("update", done - t.base)

    async def update_known(t: Twin) -> Answer:
        found = await t.store.get(t.prefix + name)
        if found is None:
            return ("nothing",)
        return ("update", await t.store.update(t.prefix + name, value, mod_revision=found.mod_revision) - t.base)

    async def put(t: Twin) -> Answer:
        return ("put", await t.store.put(t.prefix + name, value, lease=lease(t)) - t.base)

    async def delete(t: Twin) -> Answer:
        done = await t.store.delete(t.prefix + name, mod_revision=t.base + revision if which < 0.3 else None)
        return ("delete", done and done - t.base)

    picks = [(random.choice(NAMES), random.random() < 0.7) for _ in range(random.randrange(5))]
    guards = [(random.choice(NAMES), random.choice([0, revision])) for _ in range(random.randrange(3))]

    async def txn(t: Twin) -> Answer:
        compares = [Compare(t.prefix + key, mod and t.base + mod) for key, mod in guards]
        ops: list[Op] = [Put(t.prefix + k, value, lease(t)) if write else Delete(t.prefix + k) for k, write in picks]
        result = await t.store.txn(compares, ops)
        current = {key.removeprefix(t.prefix): t.kv(kv) for key, kv in result.current.items()}
        return ("txn", result.succeeded, result.revision - t.base, current)

    async def compact(t: Twin) -> Answer:
        await t.store.compact(t.base + revision)
        return ("compacted",)

    async def grant(t: Twin) -> Answer:
        t.leases.append(await t.store.lease_grant(600))
        return ("lease",)

    async def revoke(t: Twin) -> Answer:
        if t.leases:
            await t.store.lease_revoke(t.leases[-1])
        return ("revoked",)

    common = [get, get_past, list_all, create, update, update_known, update_known, put, put, delete, delete, txn, txn]
    return random.choice([*common * 4, compact, grant, revoke])


@pytest.mark.parametrize("seed", range(12))
async def test_memory_answers_as_etcd_does(etcd_server: EtcdServer, seed: int) -> None:
    random = Random(seed)
    real = Twin(EtcdStore(StoreConfig((etcd_server.endpoint,), page_keys=2)), f"/{uuid.uuid4().hex}/")
    fake = Twin(MemoryStore(), "/t/")
    try:
        for twin in (real, fake):
            twin.base = (await twin.store.status()).revision
        watches = [twin.store.watch(twin.prefix, revision=twin.base + 1) for twin in (real, fake)]
        async with aclosing(watches[0]), aclosing(watches[1]):
            for twin, watch in zip((real, fake), watches, strict=True):
                await twin.store.put(twin.prefix + "z", b"begin")
                await anext(watch)  # connected: what happens from now on is sent to it, whatever is compacted later
            for step in range(250):
                recent = (await fake.store.status()).revision - fake.base
                call = random_call(random, recent)
                answers = [await twin.ask(call) for twin in (real, fake)]
                assert answers[0] == answers[1], f"step {step}, seed {seed}"
                if step % 10 == 9:
                    mark = b"mark %d" % step
                    told = []
                    for twin, watch in zip((real, fake), watches, strict=True):
                        await twin.store.put(twin.prefix + "z", mark)
                        events: list[Event] = []
                        async with asyncio.timeout(10):
                            while not events or events[-1].kv is None or events[-1].kv.value != mark:
                                events += (await anext(watch)).events
                        told.append(list(map(twin.event, events)))
                    assert told[0] == told[1], f"events before step {step}, seed {seed}"
    finally:
        await real.store.close()
        await fake.store.close()
