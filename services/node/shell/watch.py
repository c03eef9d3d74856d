"""Notices that something below a prefix of the datastore changed; what, whoever is told reads for itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from random import Random

from libs.runtime.backoff import Backoff
from libs.store.api import Compacted, Store, StoreError

log = logging.getLogger(__name__)


async def notice(store: Store, prefix: str, changed: Callable[[], None], random: Random) -> None:
    """For ever. Also called once at the start, and whenever changes may have been missed."""
    backoff = Backoff(random, first_s=0.2, cap_s=5.0)
    while True:
        try:
            listing = await store.list(prefix, keys_only=True)
            changed()
            backoff.reset()
            async with aclosing(store.watch(prefix, revision=listing.revision + 1)) as batches:
                async for batch in batches:
                    if batch.events:
                        changed()
        except Compacted as error:
            log.info("listing again", extra={"prefix": prefix, "reason": str(error)})
        except StoreError as error:
            log.warning("not followed, trying again", extra={"prefix": prefix, "error": str(error)})
            await asyncio.sleep(backoff.next_s())
