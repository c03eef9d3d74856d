"""What is known of the stored objects, and a transaction in the making on top of it. Pure.

`Cache` holds blocks and handles with the revision they were read or written at; it may be out of date, and that is no
danger: every transaction demands of each object it relied on that its revision is still the known one, and the answer
to a refused transaction brings the objects up to date. `Draft` collects changes; each block it changes is written
once, with its sequence number raised by one, however many addresses changed hands in it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from libs.ipam import keys
from libs.ipam.block import Block, collect, decode_block, encode_block, written
from libs.ipam.handles import Handle, decode_handle, encode_handle
from libs.ipam.wire import Network
from libs.store.api import Compare, Delete, KeyValue, Op, Put

T = TypeVar("T")

MAX_ENTRIES = 2048  # of each kind: own blocks are few, handles of recent pods many
MAX_OPS = 100  # etcd refuses transactions of more than 128 conditions or operations; some are left for the last job


@dataclass(frozen=True, slots=True)
class Known(Generic[T]):
    """`value` None: known to be absent, `revision` 0."""

    value: T | None
    revision: int


class Cache:
    """Blocks by CIDR, handles by identity; the oldest go first when there are too many."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[Network, Known[Block]] = OrderedDict()
        self._handles: OrderedDict[str, Known[Handle]] = OrderedDict()

    def block(self, cidr: Network) -> Known[Block] | None:
        """None: not known."""
        return self._blocks.get(cidr)

    def handle(self, identity: str) -> Known[Handle] | None:
        return self._handles.get(identity)

    def learn_block(self, cidr: Network, kv: KeyValue | None) -> Known[Block]:
        """Raises BlockCorrupt."""
        known: Known[Block] = Known(decode_block(kv.value), kv.mod_revision) if kv else Known(None, 0)
        self.set_block(cidr, known)
        return known

    def learn_handle(self, identity: str, kv: KeyValue | None) -> Known[Handle]:
        """Raises IpamError(HANDLE_CORRUPT)."""
        known: Known[Handle] = Known(decode_handle(kv.value), kv.mod_revision) if kv else Known(None, 0)
        self.set_handle(identity, known)
        return known

    def set_block(self, cidr: Network, known: Known[Block]) -> None:
        _set(self._blocks, cidr, known)

    def set_handle(self, identity: str, known: Known[Handle]) -> None:
        _set(self._handles, identity, known)

    def forget_block(self, cidr: Network) -> None:
        self._blocks.pop(cidr, None)

    def forget_handle(self, identity: str) -> None:
        self._handles.pop(identity, None)


K = TypeVar("K")


def _set(entries: OrderedDict[K, Known[T]], key: K, known: Known[T]) -> None:
    entries[key] = known
    entries.move_to_end(key)
    if len(entries) > MAX_ENTRIES:
        entries.popitem(last=False)


Mark = tuple[dict[Network, tuple[Known[Block], Block]], dict[str, tuple[Known[Handle], Handle]], dict[str, int]]


class Draft:
    """One transaction: the known state, the changes wanted, and what must not have changed meanwhile."""

    def __init__(self, cache: Cache, now: datetime, cooldown_s: int) -> None:
        self._cache = cache
        self._now = now
        self._cooldown_s = cooldown_s
        self._blocks: dict[Network, tuple[Known[Block], Block]] = {}  # as known, as wanted
        self._handles: dict[str, tuple[Known[Handle], Handle]] = {}
        self._guards: dict[str, int] = {}

    def mark(self) -> Mark:
        return dict(self._blocks), dict(self._handles), dict(self._guards)

    def restore(self, mark: Mark) -> None:
        """Undo everything since the mark, for a job that failed half-way through its plan."""
        self._blocks, self._handles, self._guards = mark

    @property
    def operations(self) -> int:
        """Conditions, of which there are at least as many as writes."""
        return len(self._guards) + len(self._blocks) + len(self._handles)

    @property
    def full(self) -> bool:
        return self.operations >= MAX_OPS

    def __bool__(self) -> bool:
        return bool(self._blocks or self._handles)

    def block(self, cidr: Network) -> Block | None:
        """The block with this draft's changes and with what has rested long enough freed; None: absent or not known."""
        if cidr in self._blocks:
            return self._blocks[cidr][1]
        known = self._cache.block(cidr)
        if known is None or known.value is None:
            return None
        return self.collected(known.value)

    def collected(self, block: Block) -> Block:
        """The block with what has rested long enough freed."""
        return collect(block, self._now, self._cooldown_s)

    def put_block(self, block: Block) -> None:
        """Also without a change: the write alone makes every concurrent writer of the old block fail."""
        self._blocks[block.cidr] = (self._base_block(block.cidr), block)

    def handle(self, identity: str) -> Handle:
        """A handle that is not known is taken to be absent; the transaction finds out."""
        if identity in self._handles:
            return self._handles[identity][1]
        known = self._cache.handle(identity)
        return known.value if known and known.value else Handle()

    def put_handle(self, identity: str, handle: Handle) -> None:
        base = self._handles[identity][0] if identity in self._handles else self._cache.handle(identity)
        self._handles[identity] = (base or Known(None, 0), handle)

    def guard(self, conditions: Mapping[str, int]) -> None:
        """Keys that must still have these revisions (0: absent)."""
        self._guards.update(conditions)

    def _base_block(self, cidr: Network) -> Known[Block]:
        if cidr in self._blocks:
            return self._blocks[cidr][0]
        known = self._cache.block(cidr)
        if known is None:
            raise RuntimeError(f"block {cidr} changed without being known")
        return known

    @property
    def block_cidrs(self) -> Iterable[Network]:
        return self._blocks

    @property
    def handle_ids(self) -> Iterable[str]:
        return self._handles

    @property
    def guards(self) -> Mapping[str, int]:
        return self._guards

    def transaction(self) -> tuple[list[Compare], list[Op]]:
        """Conditions and writes. A block that is empty and has no owner, and a handle of nothing, are deleted."""
        compares = [Compare(key, revision) for key, revision in self._guards.items()]
        ops: list[Op] = []
        for identity, (handle_base, handle) in self._handles.items():
            key = keys.handle(identity)
            compares.append(Compare(key, handle_base.revision))
            if handle.blocks:
                ops.append(Put(key, encode_handle(handle)))
            elif handle_base.revision:
                ops.append(Delete(key))
        for cidr, (block_base, block) in self._blocks.items():
            key = keys.block(cidr)
            compares.append(Compare(key, block_base.revision))
            if block.superfluous:
                ops.append(Delete(key))
            else:
                ops.append(Put(key, encode_block(written(block))))
        return compares, ops

    def committed(self, revision: int) -> None:
        """Make the cache know what the transaction wrote at this revision."""
        for identity, (_, handle) in self._handles.items():
            self._cache.set_handle(identity, Known(handle, revision) if handle.blocks else Known(None, 0))
        for cidr, (_, block) in self._blocks.items():
            self._cache.set_block(cidr, Known(None, 0) if block.superfluous else Known(written(block), revision))

    def refused(self, current: Mapping[str, KeyValue | None]) -> bool:
        """Take in what the refused transaction found. True when a guard was what changed."""
        for identity in self._handles:
            key = keys.handle(identity)
            if key in current:
                self._cache.learn_handle(identity, current[key])
            else:
                self._cache.forget_handle(identity)
        for cidr in self._blocks:
            key = keys.block(cidr)
            if key in current:
                self._cache.learn_block(cidr, current[key])
            else:
                self._cache.forget_block(cidr)
        return any(_revision(current.get(key)) != revision for key, revision in self._guards.items() if key in current)


def _revision(kv: KeyValue | None) -> int:
    return kv.mod_revision if kv else 0
