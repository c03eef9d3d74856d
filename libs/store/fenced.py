"""A store whose every write holds only while one key is as it was: what a leader writes through.

A leader may be stopped for minutes and go on with the write it was about to make, long after another took over; no
clock of its own can tell it. So the key that makes it leader is a condition of each of its transactions, and etcd
refuses what comes late (docs/design/leader-election.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from libs.store.api import (
    Compare,
    Conflict,
    Delete,
    FenceLost,
    KeyExists,
    KeyValue,
    LeaseLost,
    Op,
    Put,
    Store,
    TxnResult,
)
from libs.store.through import ReadsThrough


class FencedStore(ReadsThrough):
    """`libs.store.api.Store` over another one, which it does not close. Each write raises FenceLost, and does nothing,
    once `fence` does not hold. Reads, watches, leases and compaction pass through.
    """

    def __init__(self, store: Store, fence: Compare) -> None:
        if fence.mod_revision < 1:
            raise ValueError("a fence is a key that exists, at its revision")
        super().__init__(store)
        self.fence = fence

    # --- writes ------------------------------------------------------------------------------------------------------

    async def create(self, key: str, value: bytes, *, lease: int = 0) -> int:
        result = await self.txn([Compare(key, 0)], [Put(key, value, lease)])
        if result.succeeded:
            return result.revision
        current = result.current[key]
        assert current is not None, "the fence held, so it was the key's existence that failed"
        raise KeyExists(current)

    async def update(self, key: str, value: bytes, *, mod_revision: int, lease: int = 0) -> int:
        if mod_revision < 1:
            raise ValueError("update needs the revision it replaces; use create for a new key")
        result = await self.txn([Compare(key, mod_revision)], [Put(key, value, lease)])
        if result.succeeded:
            return result.revision
        raise Conflict(key, result.current[key])

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        return (await self.txn([], [Put(key, value, lease)])).revision

    async def delete(self, key: str, *, mod_revision: int | None = None) -> int | None:
        if mod_revision is not None:
            if mod_revision < 1:
                raise ValueError("delete needs the revision of what it removes, or None")
            result = await self.txn([Compare(key, mod_revision)], [Delete(key)])
            if result.succeeded:
                return result.revision
            raise Conflict(key, result.current[key])
        while True:  # a transaction does not tell whether there was something to delete
            found = await self.get(key)
            if found is None:
                return None
            result = await self.txn([Compare(key, found.mod_revision)], [Delete(key)])
            if result.succeeded:
                return result.revision

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        try:
            result = await self._store.txn([self.fence, *compares], ops)
        except LeaseLost as error:
            # etcd looks at the lease of a put before it looks at conditions: ours may have gone with the fence.
            if not self._holds(await self.get(self.fence.key)):
                raise self._lost() from error
            raise
        if not result.succeeded and not self._holds(result.current[self.fence.key]):
            raise self._lost()
        compared = {compare.key for compare in compares}
        return TxnResult(
            result.succeeded, result.revision, {key: kv for key, kv in result.current.items() if key in compared}
        )

    async def confirm(self) -> None:
        """Before a write to something other than this store, which can take no fence: raises FenceLost when we are not
        leader any more. What happens after the answer it cannot tell, so such a write needs a condition of its own.
        """
        if not self._holds(await self.get(self.fence.key)):
            raise self._lost()

    def _holds(self, current: KeyValue | None) -> bool:
        return current is not None and current.mod_revision == self.fence.mod_revision

    def _lost(self) -> FenceLost:
        return FenceLost(f"nothing written: {self.fence.key} is not of revision {self.fence.mod_revision} any more")
