"""Compaction of etcd's history, once per period, by one of all who do it: what Calico's kube-controllers and
Kubernetes' API server do, with the same key, so that several on one etcd do it once.

    key `compact_rev_key`: its version is a clock of periods; who raises it compacts to the revision of a period ago

The value is that revision, for people. Who finds the version changed since the last look was beaten by another, and
only learns the new version. Nothing younger than a period is ever compacted, so a watch or a paged list that is less
than a period behind goes on undisturbed.
"""

from __future__ import annotations

from libs.store.api import Compare, Put, Store

KEY = "compact_rev_key"


class Compactor:
    """For one process; call `step` once per period. Raises StoreError, then nothing was compacted by us."""

    def __init__(self, store: Store, key: str = KEY) -> None:
        self._store = store
        self._key = key
        self._version = 0
        self._revision = 0  # of the datastore at the last step; 0: not looked yet

    async def step(self) -> int | None:
        """Returns the revision that was compacted, None when it was somebody else's turn, or the first look."""
        found = await self._store.get(self._key)
        version = found.version if found is not None else 0
        target = self._revision
        if version != self._version or not target:
            self._version = version
            self._revision = (await self._store.status()).revision
            return None
        compare = Compare(self._key, found.mod_revision if found is not None else 0)
        result = await self._store.txn([compare], [Put(self._key, str(target).encode())])
        self._revision = result.revision
        if not result.succeeded:
            current = result.current[self._key]
            self._version = current.version if current is not None else 0
            return None
        self._version = version + 1
        now, self._revision = self._revision, 0  # a compaction that fails, or is cut short, is followed by a first look
        await self._store.compact(target)
        self._revision = now
        return target
