"""Compaction when it fails: what is younger than a period stays (with a real etcd: tests/contract)."""

from __future__ import annotations

import asyncio

import pytest

from libs.store.api import StoreUnavailable
from libs.store.compactor import Compactor
from libs.store.memory import MemoryEtcd, MemoryStore


class Refusing(MemoryStore):
    """compact() fails while `trouble` says so."""

    trouble: BaseException | None = None

    async def compact(self, revision: int) -> None:
        if self.trouble is not None:
            raise self.trouble
        await super().compact(revision)


@pytest.mark.parametrize("trouble", [StoreUnavailable("away"), asyncio.CancelledError()])
async def test_a_compaction_that_failed_is_not_repeated_at_once_up_to_now(trouble: BaseException) -> None:
    """The caller tries again within a fraction of a second; what was written just then must stay readable."""
    store = Refusing(MemoryEtcd())
    compactor = Compactor(store)
    await store.create("/calico/a", b"1")
    assert await compactor.step() is None
    store.trouble = trouble
    with pytest.raises(type(trouble)):
        await compactor.step()
    store.trouble = None
    young = await store.create("/calico/b", b"1")
    assert await compactor.step() is None, "history of less than a period is gone"
    assert (await store.list("/calico/", revision=young - 1)).kvs
    compacted = await compactor.step()
    assert compacted is not None
    assert compacted >= young
