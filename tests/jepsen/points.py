"""The points at which a client can die: before each of its datastore calls is sent, and after it was applied but
before the answer is seen.

`KINDS` names every sort of call that `libs.ipam` makes; `TroubledStore` stands between the client and its store,
recognises the call by its keys and conditions, kills the process where it was told to, and loses some answers.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from libs.store.api import Compare, Delete, KeyValue, Listing, Op, Put, Store, StoreUnavailable, TxnResult
from tests.jepsen.history import Journal

T = TypeVar("T")

PREFIX = "/calico/ipam/v2/"
SETTINGS = PREFIX + "config"
RESOURCES = "/calico/resources/v3/projectcalico.org/"

# Kind of call: of how many such calls one is picked to die at, so that clients do some work before they die.
KINDS: dict[str, int] = {
    "read settings": 3,
    "list pools": 3,
    "list reservations": 3,
    "read node": 3,
    "read block": 25,
    "read handle": 12,
    "read affinity": 3,
    "list affinities": 4,
    "list block keys": 3,
    "list blocks": 3,
    "assign": 20,  # handles and blocks; may release in the same transaction
    "release": 12,  # the same without an assignment
    "rewrite block": 2,  # collect what has rested, change attributes
    "announce claim": 2,  # affinity pending
    "create block": 2,  # and confirm
    "confirm claim": 1,  # block unchanged
    "take over block": 1,  # another host's idle one
    "remove stale affinity": 2,  # the block is not the owner's
    "give up empty block": 2,  # block and affinity deleted
    "give up used block": 1,  # it stays without an owner
    "write settings": 1,
    "delete host": 1,
}
WHEN = ("before", "after")
POINTS = [(kind, when) for kind in KINDS for when in WHEN]


@dataclass(frozen=True, slots=True)
class Arm:
    """Die at the `count`-th call of this kind from now on."""

    kind: str
    when: str
    count: int


@dataclass(frozen=True, slots=True)
class Loss:
    """Share of transactions that are never sent, are applied without an answer, or arrive after their answer was given
    up.
    """

    before: float = 0.003
    after: float = 0.007
    late: float = 0.005
    late_s: float = 1.5


class TroubledStore:
    """The calls that `libs.ipam` makes of a store, and no others."""

    def __init__(self, store: Store, journal: Journal, arm: Arm | None, loss: Loss, rng: Random) -> None:
        self._store = store
        self._journal = journal
        self._arm = arm
        self._left = arm.count if arm else 0
        self._loss = loss
        self._rng = rng
        self._late: set[asyncio.Task[TxnResult]] = set()

    async def get(self, key: str, *, revision: int = 0) -> KeyValue | None:
        return await self._at(kind_of_read(key), lambda: self._store.get(key, revision=revision))

    async def list(self, prefix: str, *, revision: int = 0, keys_only: bool = False) -> Listing:
        kind = kind_of_list(prefix, keys_only)
        return await self._at(kind, lambda: self._store.list(prefix, revision=revision, keys_only=keys_only))

    async def delete(self, key: str, *, mod_revision: int | None = None) -> int | None:
        return await self._at(kind_of_delete(key), lambda: self._store.delete(key, mod_revision=mod_revision))

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        kind = kind_of_txn(compares, ops)
        answered: bool | None = None
        try:
            result = await self._at(kind, lambda: self._lossy(compares, ops))
            answered = result.succeeded
            return result
        finally:
            self._journal.write(e="txn", k=kind, ok=answered)

    async def _lossy(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        fate, loss = self._rng.random(), self._loss
        if fate < loss.before:
            raise StoreUnavailable("never sent")
        if fate < loss.before + loss.late:
            task = asyncio.create_task(self._send_late(compares, ops), name="late transaction")
            self._late.add(task)
            task.add_done_callback(self._forget)
            await asyncio.sleep(self._rng.uniform(0, 0.02))
            raise StoreUnavailable("still on its way")
        result = await self._store.txn(compares, ops)
        if fate < loss.before + loss.late + loss.after:
            raise StoreUnavailable("answer lost")
        return result

    async def _send_late(self, compares: Sequence[Compare], ops: Sequence[Op]) -> TxnResult:
        await asyncio.sleep(self._rng.choice([0.002, 0.01, 0.1, 1.0]) * self._rng.random() * self._loss.late_s)
        return await self._store.txn(compares, ops)

    def _forget(self, task: asyncio.Task[TxnResult]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            task.exception()  # looked at: what it says nobody waits for

    async def settle(self) -> None:
        """Everything that was to come late has come."""
        while self._late:
            await asyncio.wait(self._late)

    async def _at(self, kind: str, call: Callable[[], Awaitable[T]]) -> T:
        if kind not in KINDS:
            raise NotImplementedError(f"a call that is not among the crash points: {kind}")
        self._perhaps_die(kind, "before")
        result = await call()
        self._perhaps_die(kind, "after")
        return result

    def _perhaps_die(self, kind: str, when: str) -> None:
        if self._arm is None or (self._arm.kind, self._arm.when) != (kind, when):
            return
        self._left -= 1
        if self._left <= 0:
            self._journal.write(e="crash", k=kind, w=when)
            os.kill(os.getpid(), signal.SIGKILL)


# --- which call is it ------------------------------------------------------------------------------------------------


def kind_of_read(key: str) -> str:
    if key == SETTINGS:
        return "read settings"
    if key.startswith(RESOURCES + "nodes/"):
        return "read node"
    return {"block": "read block", "handle": "read handle", "affinity": "read affinity"}.get(_sort(key), f"get {key}")


def kind_of_list(prefix: str, keys_only: bool) -> str:
    if prefix.startswith(RESOURCES):
        return {"ippools/": "list pools", "ipreservations/": "list reservations"}.get(
            prefix.removeprefix(RESOURCES), f"list {prefix}"
        )
    if prefix.startswith(PREFIX + "assignment/"):
        return "list block keys" if keys_only else "list blocks"
    return "list affinities" if _sort(prefix) == "affinity" else f"list {prefix}"


def kind_of_delete(key: str) -> str:
    return "delete host" if key.startswith(PREFIX + "host/") and _sort(key) == "other" else f"delete {key}"


def kind_of_txn(compares: Sequence[Compare], ops: Sequence[Op]) -> str:
    conditions = {compare.key: compare.mod_revision for compare in compares}
    puts = {_sort(op.key): op for op in ops if isinstance(op, Put)}
    gone = [_sort(op.key) for op in ops if isinstance(op, Delete)]
    written = {_sort(op.key) for op in ops}
    if written == {"settings"}:
        return "write settings"
    if "affinity" not in written and not any(_sort(key) == "affinity" for key in conditions):
        if any(key == SETTINGS or key.startswith(RESOURCES) for key in conditions):
            return "assign"
        return "release" if "handle" in written else "rewrite block"
    if "affinity" in puts:
        if "block" not in written:
            return "announce claim"
        if conditions[puts["block"].key] == 0:
            return "create block"
        return "take over block" if sum(_sort(key) == "affinity" for key in conditions) > 1 else "confirm claim"
    if "block" in written:
        return "give up empty block" if "block" in gone else "give up used block"
    return "remove stale affinity"


def _sort(key: str) -> str:
    if key == SETTINGS:
        return "settings"
    parts = key.removeprefix(PREFIX).split("/")
    if parts[0] == "assignment":
        return "block"
    if parts[0] == "handle":
        return "handle"
    return "affinity" if parts[0] in ("host", "virtual") and len(parts) == 5 else "other"
