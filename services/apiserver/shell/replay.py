"""The past of one kind, for watchers who left off before the cache began: a watch of etcd from there on.

After a restart the cache knows only what came since; etcd knows more, until it compacts. A replay tells the changes
after its first revision exactly as they happened. It goes on for as long as it has readers, since an idle kind has no
event by which to see that the past is over; a reader moves to the cache as soon as it has come as far as that reaches.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing

from libs.model import keys
from libs.model.kinds import Kind
from libs.store.api import Compacted, Store, StoreError
from services.apiserver.core.window import Expired, Log, change_of

log = logging.getLogger(__name__)


class Replay:
    """readers: how many watch from it. failed: nothing comes any more; readers must list again."""

    def __init__(self, store: Store, kind: Kind, after: int, *, max_changes: int, max_bytes: int) -> None:
        self.log = Log(after, max_changes=max_changes, max_bytes=max_bytes)
        self.moved = asyncio.Event()
        self.readers = 0
        self.failed = False
        self.task: asyncio.Task[None] | None = None
        self._store, self._kind = store, kind

    async def run(self) -> None:
        """Until cancelled, or until history is lost."""
        prefix = keys.resource_prefix(self._kind.kind)
        try:
            async with aclosing(self._store.watch(prefix, revision=self.log.revision + 1)) as batches:
                async for batch in batches:
                    parsed = ((event, keys.parse_key(event.key)) for event in batch.events)
                    ours = (event for event, key in parsed if isinstance(key, keys.ResourceKey))
                    found = (change_of(self._kind, event) for event in ours)
                    self.log.append((change for change in found if change is not None), batch.revision)
                    self._wake()
        except (Compacted, Expired, StoreError) as error:
            log.info("replay ends", extra={"kind": self._kind.kind, "from": self.log.floor, "reason": str(error)})
        finally:
            self.failed = True
            self._wake()

    def fail(self) -> None:
        self.failed = True
        if self.task is not None:
            self.task.cancel()

    def _wake(self) -> None:
        self.moved.set()
        self.moved.clear()


async def begin_at(store: Store, kind: Kind, since: int, slack: int) -> int | None:
    """The revision after which a replay for a reader at `since` should begin; None when etcd has compacted that.

    Up to `slack` earlier than needed, so that of many readers who come back at once most can share one.
    """
    somewhere = keys.resource_prefix(kind.kind)
    for revision in (max(1, since - slack), since):
        try:
            await store.get(somewhere, revision=revision)
        except Compacted:
            continue
        return revision
    return None
