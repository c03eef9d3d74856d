"""A store that writes nothing before the data's format is known to be ours: what services write through that start, and
enforce what they are told, while the datastore is away (docs/design/compatibility.md, "Downgrades").
"""

from __future__ import annotations

from collections.abc import Sequence

from libs.resources import version_guard
from libs.runtime.exits import ServiceExit
from libs.store.api import Compare, Op, Store, StoreError, TxnResult
from libs.store.through import ReadsThrough


class GuardedStore(ReadsThrough):
    """`libs.store.api.Store` over another one, which it does not close. The first write asks for the format before it;
    it raises StoreError, and does nothing, when the data are of a later release, StoreUnavailable when nobody answers.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._fits = False

    async def _check(self) -> None:
        if self._fits:
            return
        try:
            await version_guard.check(self._store)
        except ServiceExit as error:  # whoever writes is not the one to end the service
            raise StoreError(str(error)) from error
        self._fits = True

    async def create(self, key: str, value: bytes, *, lease: int = 0) -> int:
        await self._check()
        return await self._store.create(key, value, lease=lease)

    async def update(self, key: str, value: bytes, *, mod_revision: int, lease: int = 0) -> int:
        await self._check()
        return await self._store.update(key, value, mod_revision=mod_revision, lease=lease)

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> int:
        await self._check()
        return await self._store.put(key, value, lease=lease)

    async def delete(self, key: str, *, mod_revision: int | None = None) -> int | None:
        await self._check()
        return await self._store.delete(key, mod_revision=mod_revision)

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        await self._check()
        return await self._store.txn(compares, ops)
