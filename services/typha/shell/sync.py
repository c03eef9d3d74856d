"""etcd into the calculation: one list, one watch under the prefix, every kind, so that one revision's changes arrive
together.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from libs import model
from libs.bus import wire
from libs.model import keys
from libs.policy.calculator import Calculator
from libs.runtime import garbage
from libs.store.api import Event, Store, StoreError, StoreUnavailable

log = logging.getLogger(__name__)

PREFIX = "/calico/"
CONFIG_KINDS = frozenset({"FelixConfiguration", "ClusterInformation", "BGPConfiguration"})


class WentBack(Exception):
    """etcd's revision is lower than what we have seen, or its cluster id changed: it was restored or replaced."""


class Sync:
    """Keeps a Calculator equal to etcd. `on_batch(rev, events)` is called after each batch was fed, in order.

    A value that cannot be decoded counts as absent (facts/felix.md section 1.1); it is logged with its key, once per
    revision.
    """

    def __init__(
        self, store: Store, calculator: Calculator, on_batch: Callable[[int, list[wire.EventMsg]], None]
    ) -> None:
        self.rev = 0
        self.in_sync = False
        self.bad: dict[str, str] = {}  # key -> why its value is treated as absent
        self.config: dict[str, msgspec.Raw | None] = {}  # changed since last taken
        self._store = store
        self._calculator = calculator
        self._on_batch = on_batch
        self._known: dict[str, int] = {}

    @property
    def size(self) -> int:
        """Keys held."""
        return len(self._known)

    def take_config(self) -> dict[str, msgspec.Raw | None]:
        config, self.config = self.config, {}
        return config

    async def run(self) -> None:
        """List, then follow for ever. Raises WentBack; other trouble is waited out here."""
        delay_s = 0.2
        while True:
            try:
                listing = await self._store.list(PREFIX)
            except StoreUnavailable as error:
                log.warning("datastore unavailable, waiting", extra={"error": str(error)})
                await asyncio.sleep(delay_s)
                delay_s = min(5.0, delay_s * 2)
                continue
            break
        if listing.revision < self.rev:
            raise WentBack(f"etcd is at revision {listing.revision}, we were at {self.rev}")
        fresh = {kv.key: kv.mod_revision for kv in listing.kvs}
        with garbage.paused():
            for key in [key for key in self._known if key not in fresh]:
                self._feed(key, None, 0)
            for kv in listing.kvs:
                if self._known.get(kv.key) != kv.mod_revision:
                    self._feed(kv.key, kv.value, kv.mod_revision)
        self._known = fresh
        self.rev, self.in_sync = listing.revision, True
        log.info("in sync with the datastore", extra={"keys": len(fresh), "rev": self.rev})
        self._on_batch(self.rev, [])
        async for batch in self._store.watch(PREFIX, revision=self.rev + 1, known=dict(fresh)):
            if batch.revision < self.rev:  # the watch listed again, on an etcd that was restored
                raise WentBack(f"etcd is at revision {batch.revision}, we were at {self.rev}")
            messages = [message for event in batch.events if (message := self._event(event)) is not None]
            self.rev = batch.revision
            self._on_batch(self.rev, messages)
        raise StoreError("the watch ended")

    def _event(self, event: Event) -> wire.EventMsg | None:
        if event.kv is None:
            self._known.pop(event.key, None)
            error = self._feed(event.key, None, event.revision)
            message = wire.EventMsg(rev=event.revision, action="delete", key=event.key)
        else:
            self._known[event.key] = event.kv.mod_revision
            error = self._feed(event.key, event.kv.value, event.kv.mod_revision)
            message = wire.EventMsg(rev=event.revision, action="put", key=event.key, error=error)
            if not error and is_json(event.kv.value):
                message.value = msgspec.Raw(event.kv.value)
        return message if keys.parse_key(event.key) is not None else None

    def _feed(self, key: str, value: bytes | None, mod_revision: int) -> str:
        """Hand one key to the calculation; returns why its value was refused, or ""."""
        parsed = keys.parse_key(key)
        if parsed is None:
            return ""
        error = ""
        resource = None
        if value is not None:
            try:
                resource = model.from_storage(key, value, mod_revision)
            except model.DecodeError as problem:
                error = str(problem)
                log.error("bad value, treated as absent", extra={"key": key, "rev": mod_revision, "error": error})
        if error:
            self.bad[key] = error
        else:
            self.bad.pop(key, None)
        if isinstance(parsed, keys.ResourceKey) and parsed.kind in CONFIG_KINDS:
            self.config[key] = msgspec.Raw(value) if value is not None and not error else None
        self._calculator.update(key, resource, error)
        return error


def is_json(value: bytes) -> bool:
    try:
        msgspec.json.decode(value)
    except msgspec.DecodeError:
        return False
    return True
