"""What etcd stored, revision by revision, read with a plain decoder of its own: every object sound, every write allowed
by the one before it, handles, blocks and affinities agreeing at each revision.

Nothing of `libs.ipam` is used here; the rules are those of the data model (block: ordinals, attributes, sequence
numbers; handle: count per block; affinity: the owner's list).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from ipaddress import ip_network
from typing import Any, NamedTuple

from tests.jepsen.history import Instance
from tests.jepsen.raw_etcd import Change

PREFIX = "/calico/ipam/v2/"
MARK = "/calico/ipam/~mark"


class Problem(NamedTuple):
    kind: str  # duplicate, lost, stray, answer, handle, sequence, block, affinity, history, check
    text: str


class Cell(NamedTuple):
    """One used ordinal. handle None: cooling down."""

    handle: str | None
    sequence: int
    pod: str


@dataclass(slots=True)
class RawBlock:
    cidr: str
    owner: str | None
    sequence: int
    cells: dict[str, Cell]  # by address, without the free ones
    wrong: list[str]


@dataclass(slots=True)
class Life:
    """One allocation as etcd saw it. died: revision, 0 while it lives. pod: attribute at birth, the operation's id."""

    instance: Instance
    pod: str
    born: int
    died: int = 0


@dataclass(slots=True)
class Audit:
    problems: list[Problem] = field(default_factory=list)
    lives: dict[Instance, Life] = field(default_factory=dict)
    blocks: dict[str, RawBlock] = field(default_factory=dict)  # by CIDR
    handles: dict[str, dict[str, int]] = field(default_factory=dict)
    affinities: dict[tuple[str, str], str] = field(default_factory=dict)  # (owner, cidr): state
    revisions: int = 0
    _last_sequence: dict[str, int] = field(default_factory=dict)
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)  # (handle, cidr): addresses in the block

    @property
    def living(self) -> dict[Instance, Life]:
        return {instance: life for instance, life in self.lives.items() if not life.died}

    def replay(self, revisions: Iterable[list[Change]]) -> Audit:
        for changes in revisions:
            self.take(changes)
        return self

    def take(self, changes: list[Change]) -> None:
        self.revisions += 1
        touched: set[tuple[str, str]] = set()
        cidrs: set[str] = set()
        for change in changes:
            parts = change.key.removeprefix(PREFIX).split("/")
            try:
                if parts[0] == "assignment":
                    cidr = _cidr(parts[-1])
                    cidrs.add(cidr)
                    touched |= self._block(change, cidr)
                elif parts[0] == "handle":
                    touched |= self._handle(change, parts[1])
                elif parts[0] in ("host", "virtual") and len(parts) == 5:
                    cidr = _cidr(parts[-1])
                    cidrs.add(cidr)
                    self._affinity(change, (f"{parts[0]}:{parts[1]}", cidr))
                elif parts[0] != "config" and change.key != MARK and change.value is not None:
                    self._say("block", change.revision, f"a key that nobody should write: {change.key}")
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                self._say("block", change.revision, f"{change.key} cannot be read: {error!r}")
        self._agree(changes[0].revision, touched, cidrs)

    # --- one object --------------------------------------------------------------------------------------------------

    def _block(self, change: Change, cidr: str) -> set[tuple[str, str]]:
        """Returns the (handle, cidr) whose count may be another now."""
        old = self.blocks.pop(cidr, None)
        new = decode_block(change.value) if change.value is not None else None
        at = change.revision
        if new is not None:
            self.blocks[cidr] = new
            for text in new.wrong:
                self._say("block", at, f"{cidr}: {text}")
            if new.cidr != cidr:
                self._say("block", at, f"{change.key} holds {new.cidr}")
            before = self._last_sequence.get(cidr)
            if old is not None and new.sequence != old.sequence + 1:
                self._say("sequence", at, f"{cidr}: sequence number {old.sequence} became {new.sequence}")
            elif old is None and before is not None and new.sequence <= before:
                self._say("sequence", at, f"{cidr}: made again at {new.sequence}, was at {before}")
            self._last_sequence[cidr] = new.sequence
            if old and old.owner and new.owner and old.owner != new.owner and old.cells and new.cells:
                self._say("affinity", at, f"{cidr}, in use, went from {old.owner} to {new.owner}")
        return self._cells(change.revision, cidr, old, new)

    def _cells(self, at: int, cidr: str, old: RawBlock | None, new: RawBlock | None) -> set[tuple[str, str]]:
        before, after = old.cells if old else {}, new.cells if new else {}
        touched = set()
        for address in before.keys() | after.keys():
            was, is_ = before.get(address), after.get(address)
            if was and is_ and (was.handle, was.sequence) == (is_.handle, is_.sequence):
                continue
            if was is not None and was.handle is not None:
                self.lives[Instance(address, was.handle, was.sequence)].died = at
                self._counts[was.handle, cidr] -= 1
                touched.add((was.handle, cidr))
            if is_ is not None and is_.handle is not None:
                instance = Instance(address, is_.handle, is_.sequence)
                if instance in self.lives:
                    self._say("sequence", at, f"{instance} came again")
                self.lives[instance] = Life(instance, is_.pod, at)
                if old is None:
                    self._say("block", at, f"{instance} appeared with its block")
                elif is_.sequence != old.sequence:
                    self._say("sequence", at, f"{instance} does not remember its block's {old.sequence}")
                self._counts[is_.handle, cidr] = self._counts.get((is_.handle, cidr), 0) + 1
                touched.add((is_.handle, cidr))
        return touched

    def _handle(self, change: Change, identity: str) -> set[tuple[str, str]]:
        old = self.handles.pop(identity, {})
        counts: dict[str, int] = {}
        if change.value is not None:
            counts = json.loads(change.value)["block"]
            self.handles[identity] = counts
            if not counts or any(count < 1 for count in counts.values()):
                self._say("handle", change.revision, f"handle {identity} holds {counts}")
        return {(identity, cidr) for cidr in old.keys() | counts.keys()}

    def _affinity(self, change: Change, key: tuple[str, str]) -> None:
        self.affinities.pop(key, None)
        if change.value is not None:
            self.affinities[key] = json.loads(change.value)["state"] or "confirmed"

    # --- several objects ---------------------------------------------------------------------------------------------

    def _agree(self, at: int, touched: set[tuple[str, str]], cidrs: set[str]) -> None:
        for handle, cidr in touched:
            used = self._counts.get((handle, cidr), 0)
            if used == 0:
                self._counts.pop((handle, cidr), None)
            said = self.handles.get(handle, {}).get(cidr, 0)
            if used != said:
                self._say("handle", at, f"{cidr} has {used} addresses of {handle}, whose handle says {said}")
        for cidr in cidrs:
            block = self.blocks.get(cidr)
            owner = block.owner if block else None
            for (whose, of), state in self.affinities.items():
                if state == "confirmed" and of == cidr and whose != owner:
                    self._say("affinity", at, f"{whose} has {cidr} confirmed, whose block belongs to {owner}")
            if owner and (owner, cidr) not in self.affinities:
                self._say("affinity", at, f"{cidr} belongs to {owner}, who has no affinity for it")

    def _say(self, kind: str, revision: int, text: str) -> None:
        self.problems.append(Problem(kind, f"revision {revision}: {text}"))


def decode_block(data: bytes) -> RawBlock:
    raw: dict[str, Any] = json.loads(data)
    addresses = _addresses(raw["cidr"])
    allocations, attributes = raw["allocations"], raw["attributes"]
    free, sequences = raw["unallocated"], {int(o): n for o, n in raw["sequenceNumberForAllocation"].items()}
    used = {o for o, index in enumerate(allocations) if index is not None}
    wrong = []
    if len(allocations) != len(addresses):
        wrong.append(f"{len(allocations)} ordinals for {len(addresses)} addresses")
    if len(set(free)) != len(free):
        wrong.append(f"an ordinal is free twice: {free}")
    if set(free) & used:
        wrong.append(f"free and allocated: {sorted(set(free) & used)}")
    if set(range(len(allocations))) - set(free) - used:
        wrong.append(f"neither free nor allocated: {sorted(set(range(len(allocations))) - set(free) - used)}")
    if set(sequences) != used:
        wrong.append(f"sequence numbers for {sorted(sequences)}, allocated are {sorted(used)}")
    if {allocations[o] for o in used} != set(range(len(attributes))):
        wrong.append(f"{len(attributes)} attributes, used are {sorted({allocations[o] for o in used})}")
    cells = {}
    for ordinal in sorted(used):
        attribute = attributes[allocations[ordinal]]
        cooling = bool(attribute.get("releasedAt"))
        handle = None if cooling else attribute.get("handle_id")
        if not cooling and not handle:
            wrong.append(f"ordinal {ordinal} is allocated to nobody")
        pod = (attribute.get("secondary") or {}).get("pod", "")
        cells[addresses[ordinal]] = Cell(handle, sequences.get(ordinal, -1), pod)
    return RawBlock(raw["cidr"], raw["affinity"], raw["sequenceNumber"], cells, wrong)


@cache
def _addresses(cidr: str) -> list[str]:
    return [str(address) for address in ip_network(cidr)]


def _cidr(last_part: str) -> str:
    address, _, length = last_part.rpartition("-")
    return f"{address}/{length}"
