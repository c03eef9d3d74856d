"""A block: the unit of address management that hosts own, as a value, and everything that may be done to it.

Bytes or a CIDR flow in, new values flow out; nothing here reads a clock or a store. A block lives at
`/calico/ipam/v2/assignment/ipv4/block/10.0.0.0-26` and has this JSON (field order as written, optional ones left out):

    {"cidr": "10.0.0.0/26", "affinity": "host:node1" | "virtual:load-balancer" | null, "affinity_claim_time": RFC 3339,
     "allocations": [null | index into attributes, one per ordinal],
     "unallocated": [free ordinals, the longest idle first],
     "attributes": [{"handle_id": …, "secondary": {…}, "alternateOwnerAttrs": {…}, "releasedAt": RFC 3339}],
     "sequenceNumber": n, "sequenceNumberForAllocation": {"ordinal": n}, "deleted": false}

Ordinal o is address base + o. Free ordinals are taken from the head of `unallocated` and come back at its tail. A
released address keeps its place in `allocations` with an attribute that holds only `releasedAt` until its cooldown
has passed. Every write of a block raises `sequenceNumber` by one; an ordinal remembers the number from before that
write, so who wants to release an old allocation of an address that was given away again since is found out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from ipaddress import ip_network

import msgspec

from libs.ipam import wire
from libs.ipam.affinity import Owner
from libs.ipam.errors import AddressInUse, BlockCorrupt, StaleRelease
from libs.ipam.handles import WINDOWS_RESERVED, clean_handle
from libs.ipam.wire import Address, Network

IsReserved = Callable[[Address], bool]


class _WireAttribute(msgspec.Struct, omit_defaults=True):
    handle_id: str | None = None
    secondary: dict[str, str] | None = None
    alternate: dict[str, str] | None = msgspec.field(name="alternateOwnerAttrs", default=None)
    released_at: str | None = msgspec.field(name="releasedAt", default=None)


class _WireBlock(msgspec.Struct):
    cidr: str
    affinity: str | None = None
    affinity_claim_time: str | msgspec.UnsetType | None = msgspec.UNSET
    allocations: list[int | None] | None = None
    unallocated: list[int] | None = None
    attributes: list[_WireAttribute] | None = None
    sequence: int = msgspec.field(name="sequenceNumber", default=0)
    sequence_for: dict[int, int] | None = msgspec.field(name="sequenceNumberForAllocation", default=None)
    deleted: bool = False
    host_affinity: str | msgspec.UnsetType | None = msgspec.field(name="hostAffinity", default=msgspec.UNSET)


_decoder = msgspec.json.Decoder(_WireBlock)


@dataclass(frozen=True, slots=True)
class Attribute:
    """What several ordinals may share. `released_at` is the stored text; set, it means cooling down and nothing else
    is.
    """

    handle: str | None = None
    owner: Mapping[str, str] = field(default_factory=dict)  # JSON `secondary`: pod, namespace, node, type, timestamp …
    alternate: Mapping[str, str] = field(default_factory=dict)  # a VM's second owner while it migrates
    released_at: str = ""


@dataclass(frozen=True, slots=True)
class Allocation:
    """One address that is not free. `sequence` is None where an old writer stored none."""

    address: Address
    handle: str | None
    attrs: Mapping[str, str]
    alternate: Mapping[str, str]
    sequence: int | None
    released_at: datetime | None  # set: cooling down since then, nobody owns it


@dataclass(frozen=True, slots=True)
class Block:
    cidr: Network
    owner: Owner | None
    claimed_at: str  # RFC 3339 as stored, "" when unknown
    allocations: tuple[int | None, ...]
    unallocated: tuple[int, ...]
    attributes: tuple[Attribute, ...]
    sequence: int
    sequence_for: Mapping[int, int]
    deleted: bool = False

    @property
    def size(self) -> int:
        return len(self.allocations)

    @property
    def empty(self) -> bool:
        """Nobody's address in it. One that cools down counts as used: forgetting the block would forget its rest."""
        return all(
            index is None or self.attributes[index].handle == WINDOWS_RESERVED for index in set(self.allocations)
        )

    @property
    def superfluous(self) -> bool:
        """To be deleted instead of written: nobody owns it and nobody has an address of it."""
        return self.owner is None and self.empty

    def address(self, ordinal: int) -> Address:
        return self.cidr[ordinal]

    def ordinal(self, address: Address) -> int:
        """Raises ValueError for an address outside the block."""
        if address not in self.cidr:
            raise ValueError(f"{address} is not in block {self.cidr}")
        return int(address) - int(self.cidr.network_address)

    def allocation(self, address: Address) -> Allocation | None:
        """None: free."""
        ordinal = self.ordinal(address)
        index = self.allocations[ordinal]
        return None if index is None else self._allocation(ordinal, index)

    def allocated(self) -> Iterator[Allocation]:
        """Every address that is not free, in order of address, cooling ones included."""
        for ordinal, index in enumerate(self.allocations):
            if index is not None:
                yield self._allocation(ordinal, index)

    def _allocation(self, ordinal: int, index: int) -> Allocation:
        attribute = self.attributes[index]
        return Allocation(
            self.cidr[ordinal],
            attribute.handle,
            attribute.owner,
            attribute.alternate,
            self.sequence_for.get(ordinal),
            wire.parse_rfc3339(attribute.released_at) if attribute.released_at else None,
        )

    def held_by(self, handle: str) -> list[Address]:
        indexes = {i for i, attribute in enumerate(self.attributes) if attribute.handle == handle}
        return [self.cidr[o] for o, index in enumerate(self.allocations) if index in indexes] if indexes else []

    def free_count(self, reserved: IsReserved | None = None) -> int:
        """Addresses that may be given out now: not those of a reservation."""
        if reserved is None:
            return len(self.unallocated)
        return sum(not reserved(self.cidr[ordinal]) for ordinal in self.unallocated)


def new_block(cidr: Network, owner: Owner, now: datetime, sequence: int) -> Block:
    """All free. sequence: nanoseconds since the epoch, so that a block made again never repeats an old number."""
    size = cidr.num_addresses
    return Block(cidr, owner, wire.rfc3339(now), (None,) * size, tuple(range(size)), (), sequence, {})


def decode_block(data: bytes) -> Block:
    """Unknown fields are ignored, as every other reader does. Raises BlockCorrupt for what could not be worked on
    safely.
    """
    try:
        raw = _decoder.decode(data)
        cidr = ip_network(raw.cidr, strict=False)
        legacy = raw.host_affinity or None
        text = raw.affinity or (f"host:{legacy}" if legacy else None)
        owner = Owner.parse(text) if text else None
        attributes = tuple(
            Attribute(
                None if a.handle_id is None else clean_handle(a.handle_id),
                a.secondary or {},
                a.alternate or {},
                a.released_at or "",
            )
            for a in raw.attributes or ()
        )
        for attribute in attributes:
            if attribute.released_at:
                wire.parse_rfc3339(attribute.released_at)
    except ValueError as error:  # msgspec's own errors are ValueErrors too
        raise BlockCorrupt(f"block: {error}") from error
    allocations = tuple(raw.allocations or ())
    unallocated = tuple(raw.unallocated or ())
    if len(allocations) != cidr.num_addresses:
        raise BlockCorrupt(f"block {cidr}: {len(allocations)} allocations for {cidr.num_addresses} addresses")
    if any(i is not None and not 0 <= i < len(attributes) for i in set(allocations)):
        raise BlockCorrupt(f"block {cidr}: an allocation points outside its {len(attributes)} attributes")
    if unallocated and not (min(unallocated) >= 0 and max(unallocated) < len(allocations)):
        raise BlockCorrupt(f"block {cidr}: a free ordinal is outside the block")
    return Block(
        cidr,
        owner,
        raw.affinity_claim_time or "",
        allocations,
        unallocated,
        attributes,
        raw.sequence,
        raw.sequence_for or {},
        raw.deleted,
    )


def encode_block(block: Block) -> bytes:
    """The stored text, to the byte. Does not raise the sequence number: that is `written`."""
    return wire.encode(
        _WireBlock(
            str(block.cidr),
            None if block.owner is None else str(block.owner),
            block.claimed_at or msgspec.UNSET,
            list(block.allocations),
            list(block.unallocated),
            [
                _WireAttribute(
                    a.handle,
                    dict(sorted(a.owner.items())) or None,
                    dict(sorted(a.alternate.items())) or None,
                    a.released_at or None,
                )
                for a in block.attributes
            ],
            block.sequence,
            dict(sorted(block.sequence_for.items(), key=lambda item: str(item[0]))),
            block.deleted,
        )
    )


def written(block: Block) -> Block:
    """The block as it has to be stored: once per write, however many changes it carries."""
    return replace(block, sequence=block.sequence + 1)


def with_owner(block: Block, owner: Owner | None, now: datetime) -> Block:
    return replace(block, owner=owner, claimed_at=wire.rfc3339(now) if owner else "")


def problems(block: Block) -> list[str]:
    """What contradicts itself, in words; empty for a sound block."""
    found = contradictions(block)
    used = {o for o, index in enumerate(block.allocations) if index is not None}
    if missing := used - set(block.sequence_for):
        found.append(f"allocated without a sequence number: {sorted(missing)}")
    if stray := set(block.sequence_for) - used:
        found.append(f"sequence numbers of free ordinals: {sorted(stray)}")
    return found


def contradictions(block: Block) -> list[str]:
    """The same but for sequence numbers, which Calico before 3.21 does not write, and 3.28 leaves where addresses were
    released by their handle: its own reader takes a missing one for 0 and a stray one for nothing.
    """
    found = []
    free = set(block.unallocated)
    used = {o for o, index in enumerate(block.allocations) if index is not None}
    if len(free) != len(block.unallocated):
        found.append("an ordinal is free twice")
    if free & used:
        found.append(f"ordinals both free and allocated: {sorted(free & used)}")
    if lost := set(range(block.size)) - free - used:
        found.append(f"ordinals neither free nor allocated: {sorted(lost)}")
    if orphans := set(range(len(block.attributes))) - set(block.allocations):
        found.append(f"attributes of no address: {sorted(orphans)}")
    return found


def allocate(
    block: Block, count: int, handle: str | None, attrs: Mapping[str, str], reserved: IsReserved | None = None
) -> tuple[Block, list[Address]]:
    """Take up to `count` free addresses from the head of the queue; fewer when there are not more.

    Reserved ones keep their place in the queue. An ordinal that some faulty writer lists as free although it is
    allocated is passed over too: giving an address twice is the one mistake that must not be possible.
    """
    taken: list[int] = []
    for ordinal in block.unallocated:
        if len(taken) == count:
            break
        if (
            block.allocations[ordinal] is None
            and not (reserved and reserved(block.cidr[ordinal]))
            and ordinal not in taken
        ):
            taken.append(ordinal)
    if not taken:
        return block, []
    return _take(block, taken, handle, attrs), [block.cidr[ordinal] for ordinal in taken]


def allocate_exact(block: Block, address: Address, handle: str | None, attrs: Mapping[str, str]) -> Block:
    """Take this address; reservations do not stop an explicit option. Raises AddressInUse, ValueError outside the
    block.
    """
    present = block.allocation(address)
    if present is not None:
        raise AddressInUse(address, present.handle, cooling=present.released_at is not None)
    return _take(block, [block.ordinal(address)], handle, attrs)


def _take(block: Block, ordinals: list[int], handle: str | None, attrs: Mapping[str, str]) -> Block:
    attribute = Attribute(None if handle is None else clean_handle(handle), dict(attrs))
    attributes, index = _shared(block.attributes, attribute)
    allocations = list(block.allocations)
    for ordinal in ordinals:
        allocations[ordinal] = index
    gone = set(ordinals)
    return replace(
        block,
        allocations=tuple(allocations),
        unallocated=tuple(o for o in block.unallocated if o not in gone),
        attributes=attributes,
        sequence_for={**block.sequence_for, **dict.fromkeys(ordinals, block.sequence)},
    )


def _shared(attributes: tuple[Attribute, ...], wanted: Attribute) -> tuple[tuple[Attribute, ...], int]:
    for index, attribute in enumerate(attributes):
        if attribute == wanted:
            return attributes, index
    return (*attributes, wanted), len(attributes)


@dataclass(frozen=True, slots=True)
class ReleaseOption:
    """Give up one address. What is None is not checked."""

    address: Address
    handle: str | None = None
    sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Released:
    """`freed`: addresses given up with the handle they had; `unallocated`: those that nobody held."""

    block: Block
    freed: list[tuple[Address, str | None]]
    unallocated: list[Address]


def release(block: Block, options: Iterable[ReleaseOption], now: datetime, cooldown_s: int) -> Released:
    """Give up addresses: at once to the tail of the queue, or after `cooldown_s`.

    All or nothing: raises StaleRelease when one option names another handle or sequence number than the address has
    now.
    """
    freed: dict[int, str | None] = {}
    unallocated: list[Address] = []
    for option in options:
        ordinal = block.ordinal(option.address)
        present = block.allocation(option.address)
        if present is None or present.released_at is not None:
            unallocated.append(option.address)
            continue
        if option.handle is not None and clean_handle(option.handle) != present.handle:
            raise StaleRelease(f"{option.address} belongs to handle {present.handle!r}, not {option.handle!r}")
        if option.sequence is not None and option.sequence != present.sequence:
            raise StaleRelease(f"{option.address} was assigned at sequence {present.sequence}, not {option.sequence}")
        freed[ordinal] = present.handle
    if not freed:
        return Released(block, [], unallocated)
    attributes, index = _shared(block.attributes, Attribute(released_at=wire.rfc3339_not_before(now)))
    allocations = list(block.allocations)
    for ordinal in freed:
        allocations[ordinal] = index
    cooling = replace(
        block,
        allocations=tuple(allocations),
        attributes=attributes,
        sequence_for={**block.sequence_for, **dict.fromkeys(freed, block.sequence)},
    )
    return Released(
        collect(_without_unused_attributes(cooling), now, cooldown_s),
        [(block.cidr[ordinal], handle) for ordinal, handle in freed.items()],
        unallocated,
    )


def collect(block: Block, now: datetime, cooldown_s: int) -> Block:
    """Free what has rested long enough, the longest rested first. Done to every block that is about to be written."""
    due: list[tuple[datetime, int]] = []
    for index, attribute in enumerate(block.attributes):
        if attribute.released_at:
            since = wire.parse_rfc3339(attribute.released_at)
            if cooldown_s <= 0 or since + timedelta(seconds=cooldown_s) < now:
                due += [(since, ordinal) for ordinal, i in enumerate(block.allocations) if i == index]
    if not due:
        return block
    freed = [ordinal for _, ordinal in sorted(due)]
    allocations = list(block.allocations)
    for ordinal in freed:
        allocations[ordinal] = None
    gone = set(freed)
    return _without_unused_attributes(
        replace(
            block,
            allocations=tuple(allocations),
            unallocated=(*(o for o in block.unallocated if o not in gone), *freed),
            sequence_for={o: n for o, n in block.sequence_for.items() if o not in gone},
        )
    )


def _without_unused_attributes(block: Block) -> Block:
    used = set(block.allocations)
    keep = [index for index in range(len(block.attributes)) if index in used]
    if len(keep) == len(block.attributes):
        return block
    number = {old: new for new, old in enumerate(keep)}
    return replace(
        block,
        allocations=tuple(None if index is None else number[index] for index in block.allocations),
        attributes=tuple(block.attributes[index] for index in keep),
    )


def set_owner_attributes(
    block: Block, address: Address, owner: Mapping[str, str], alternate: Mapping[str, str]
) -> Block:
    """Rewrite who uses an allocated address (a VM that migrates), keeping its handle and sequence number.

    Raises ValueError when nobody holds the address.
    """
    ordinal = block.ordinal(address)
    index = block.allocations[ordinal]
    if index is None or block.attributes[index].released_at:
        raise ValueError(f"{address} is not assigned")
    changed = replace(block.attributes[index], owner=dict(owner), alternate=dict(alternate))
    attributes, new_index = _shared(block.attributes, changed)
    allocations = list(block.allocations)
    allocations[ordinal] = new_index
    return _without_unused_attributes(replace(block, allocations=tuple(allocations), attributes=attributes))
