"""One leader among equal processes: the one whose lease holds a key in etcd.

    campaign: create the key, or wait until it goes      tenure: `lead(fence)` runs until the key or the lease is lost
        └───────────────────────────────────────────────────┘  and again, for ever

The key goes by itself when its holder has been silent for the lease's time to live, at once when the holder ends in an
orderly way. A leader steps down when it sees its key gone, and also when its lease was not renewed in time and so may
have gone (etcd out of reach). Neither is what keeps a late write out: everything that the leader writes goes through a
`FencedStore` with the fence that it is given.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from random import Random

from libs.runtime.backoff import Backoff
from libs.store.api import Compacted, Compare, FenceLost, KeyExists, LeaseLost, Store, StoreError

log = logging.getLogger(__name__)

_RETRY_CAP_S = 5.0
_GOODBYE_S = 5.0


class Election:
    """key: what leaders hold; its value is `{"holder": holder}`, for people. ttl_s: how long a silent leader stays one,
    whole seconds; etcd raises it to its own minimum (2 s by default).
    """

    def __init__(self, store: Store, key: str, *, holder: str, ttl_s: int, random: Random) -> None:
        self.key = key
        self.holder = holder
        self.leading = False
        self.leader = ""  # who held the key when we last looked; "" before that
        self._store = store
        self._ttl_s = ttl_s
        self._lease = 0
        self._backoff = Backoff(random, first_s=0.2, cap_s=_RETRY_CAP_S)

    async def run(self, lead: Callable[[Compare], Awaitable[None]]) -> None:
        """For ever. `lead` is called when we are leader and cancelled when we are not any more; it does not return by
        itself. It may raise FenceLost; whatever else it raises ends the election.
        """
        try:
            while True:
                try:
                    fence = await self._campaign()
                except StoreError as error:
                    log.warning("not standing for election now", extra={"key": self.key, "error": str(error)})
                    await asyncio.sleep(self._backoff.next_s())
                    continue
                self._backoff.reset()
                await self._tenure(fence, lead)
        finally:
            await self._resign()

    async def _campaign(self) -> Compare:
        """Returns when the key is ours."""
        value = json.dumps({"holder": self.holder}, separators=(",", ":")).encode()
        while True:
            if not self._lease:
                self._lease = await self._store.lease_grant(self._ttl_s)
            try:
                fence = Compare(self.key, await self._store.create(self.key, value, lease=self._lease))
            except LeaseLost:
                await self._drop_lease()
                continue
            except KeyExists as exists:
                current = exists.current
                if current.lease != self._lease:
                    self.leader = _holder(current.value)
                    log.info("standing by", extra={"key": self.key, "leader": self.leader})
                    await self._until_free(current.mod_revision)
                    continue
                if not self._store.lease_left_s(self._lease):
                    await self._drop_lease()  # the key is of an earlier tenure, and goes with it
                    continue
                fence = Compare(self.key, current.mod_revision)  # the answer to an earlier try was lost
            self.leader = self.holder
            return fence

    async def _tenure(self, fence: Compare, lead: Callable[[Compare], Awaitable[None]]) -> None:
        log.info("leading", extra={"key": self.key, "rev": fence.mod_revision, "holder": self.holder})
        self.leading = True
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._end_with_key(fence), name="election key")
                tasks.create_task(self._end_with_lease(), name="election lease")
                tasks.create_task(_for_ever(lead, fence), name="leader")
        except* FenceLost as lost:
            log.warning("not leading any more", extra={"key": self.key, "reason": str(lost.exceptions[0])})
        finally:
            self.leading = False

    async def _end_with_key(self, fence: Compare) -> None:
        try:
            await self._until_free(fence.mod_revision)
        except StoreError as error:
            raise FenceLost(f"the key cannot be watched: {error}") from error
        raise FenceLost("the key has gone")

    async def _end_with_lease(self) -> None:
        while left_s := self._store.lease_left_s(self._lease):  # noqa: ASYNC110  # a deadline that moves, not a poll
            await asyncio.sleep(left_s)
        raise FenceLost("the lease was not renewed in time")

    async def _until_free(self, revision: int) -> None:
        """Until the key is not of that revision any more, or nobody can tell."""
        with suppress(Compacted):  # then the caller looks
            async with aclosing(self._store.watch(self.key, revision=revision + 1)) as batches:
                async for batch in batches:
                    if any(event.key == self.key for event in batch.events):
                        return

    async def _drop_lease(self) -> None:
        lease, self._lease = self._lease, 0
        await self._store.lease_revoke(lease)

    async def _resign(self) -> None:
        if self._lease:
            with suppress(StoreError, TimeoutError):
                async with asyncio.timeout(_GOODBYE_S):
                    await self._drop_lease()


async def _for_ever(lead: Callable[[Compare], Awaitable[None]], fence: Compare) -> None:
    await lead(fence)
    raise RuntimeError("what the leader does has ended, and the lead with it")


def _holder(value: bytes) -> str:
    try:
        return str(json.loads(value)["holder"])
    except (ValueError, KeyError, TypeError):
        return "unknown"
