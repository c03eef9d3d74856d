"""Skip blocks: consecutive policies of a tier behind one look-up of all the addresses that any of them asks for.

A policy whose every rule needs a source (ingress) or a destination (egress) out of known addresses has a *guard*: the
sets and networks of which the address must be in one for the policy to say anything. Neighbours with guards become a
block, entered only by packets whose address is in the union of their guards; blocks become children of larger blocks.
A packet that matches in none of a thousand policies then costs some twenty look-ups in place of a thousand. Policies
without a guard stay where they are, between the blocks: order, and so the meaning, is Calico's (docs/adr/0009).

Where a block ends is decided by a digest of the policies' ids, not by counting: a policy that comes or goes changes
the blocks around it, and no other. Pure functions; the chains and sets are family.py's and lists.py's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import msgspec

from libs.policy.output import PolicyKey, Rule
from services.felix.core import names
from services.felix.core.sets import parse_net

SMALLEST = 4  # fewer neighbours than this are not worth a look-up
LARGEST = 12  # a block ends here, whatever the digests say
BITS = 2  # of the digest decide: one policy in 4 ends a block that is large enough
MOST_ITEMS = 12  # a row of more items than this is folded once more
DEEPEST = 5  # levels; the kernel allows 16 nested jumps, of which the way to a list takes up to 5
INLINE_NETS = 8  # so many networks are cheaper as rules of their own than as an interval set


class Guard(msgspec.Struct, frozen=True):
    """The address must be in one of these, in canonical order. None of either: nothing can match.

    name: of a block's guard, a digest of the policies' ids. Their union is called after it, so that a policy that asks
    for another set changes what is in the union, and not which set that is.
    """

    sets: tuple[str, ...] = ()  # ids of IP sets of networks, or of unions
    nets: tuple[str, ...] = ()
    name: str = ""

    @property
    def inline(self) -> tuple[str, ...]:
        """Networks to compare with one by one; more than a few are in the union."""
        return self.nets if len(self.nets) <= INLINE_NETS else ()

    @property
    def in_union(self) -> tuple[str, ...]:
        return self.nets if len(self.nets) > INLINE_NETS else ()

    @property
    def id(self) -> str:
        """The IP set to look into: the only one itself, or else the union; "" for none."""
        return f"u:{self.name}" if self.is_union else self.sets[0] if self.sets else ""

    @property
    def is_union(self) -> bool:
        return len(self.sets) > 1 or bool(self.in_union)


class Item(msgspec.Struct, frozen=True, cache_hash=True):
    """A policy in a list. passes: one of its rules there says Pass. guard: None when any address may match."""

    key: PolicyKey
    passes: bool = False
    guard: Guard | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """items: in order. passes: something in it may say Pass, so whoever jumps here must look at the mark after.

    chain: its name, a digest of everything that the chain does and of the look-up before it. It is the block's
    identity: blocks of one name are one chain, in however many lists.
    """

    chain: str
    inbound: bool
    items: tuple[Item | Block, ...]
    guard: Guard
    passes: bool

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Block) and other.chain == self.chain

    def __hash__(self) -> int:
        return hash(self.chain)

    @property
    def first(self) -> PolicyKey:
        item = self.items[0]
        return item.key if isinstance(item, Item) else item.first

    @property
    def last(self) -> PolicyKey:
        item = self.items[-1]
        return item.key if isinstance(item, Item) else item.last

    def blocks(self) -> Iterator[Block]:
        """Those in it, the inner ones first, and itself."""
        for item in self.items:
            if isinstance(item, Block):
                yield from item.blocks()
        yield self

    def policies(self) -> Iterator[PolicyKey]:
        for item in self.items:
            if isinstance(item, Item):
                yield item.key
            else:
                yield from item.policies()

    def __len__(self) -> int:
        """Policies in it."""
        return sum(1 if isinstance(item, Item) else len(item) for item in self.items)


Row: TypeAlias = tuple[Item | Block, ...]


def guard(rules: Iterable[Rule], inbound: bool) -> Guard | None:
    """What the source (destination, for egress) must be in for any of these rules to match; None: no such thing.

    Raises ValueError for a network that is none. Of several sets that a rule requires, the first in order guards.
    """
    sets: set[str] = set()
    nets: set[str] = set()
    for rule in rules:
        required, networks = (rule.src_sets, rule.src_nets) if inbound else (rule.dst_sets, rule.dst_nets)
        if required:
            sets.add(min(required))
        elif networks and all(parse_net(net)[1][1] for net in networks):
            nets.update(networks)
        else:
            return None
    return Guard(tuple(sorted(sets)), tuple(sorted(nets)))


def fold(items: Sequence[Item], inbound: bool) -> Row:
    """The row of a list chain: guarded neighbours are in blocks, the others where they were."""
    row: Row = tuple(items)
    for level in range(1, DEEPEST + 1):
        if level > 1 and len(row) <= MOST_ITEMS:
            break
        folded = _fold(row, inbound, level)
        if folded == row:
            break
        row = folded
    return row


def _fold(row: Row, inbound: bool, level: int) -> Row:
    out: list[Item | Block] = []
    run: list[Item | Block] = []

    def end() -> None:
        if len(run) < SMALLEST:
            out.extend(run)
        else:
            out.append(_block(tuple(run), inbound))
        run.clear()

    for item in row:
        if item.guard is None:
            end()
            out.append(item)
            continue
        run.append(item)
        last = item.key if isinstance(item, Item) else item.last
        if len(run) >= LARGEST or (len(run) >= SMALLEST and _height(last) >= level):
            end()
    end()
    return tuple(out)


def _block(items: Row, inbound: bool) -> Block:
    sets: set[str] = set()
    nets: set[str] = set()
    for item in items:
        assert item.guard is not None
        if isinstance(item, Item):
            sets.update(item.guard.sets)
            nets.update(item.guard.nets)
        else:
            nets.update(item.guard.inline)
            if item.guard.id:
                sets.add(item.guard.id)
    policies = (item.guard.name if isinstance(item, Block) else f"{item.key.kind}/{item.key}" for item in items)
    name = names.digest("\n".join((str(inbound), *policies)), 20)
    guard = Guard(tuple(sorted(sets)), tuple(sorted(nets)), name)
    content = (f"{item.key.kind}/{item.key} {item.passes}" if isinstance(item, Item) else item.chain for item in items)
    return Block(
        names.block_chain(inbound, "\n".join((guard.id, *guard.inline, *content))),
        inbound,
        items,
        guard,
        any(item.passes for item in items),
    )


@lru_cache(maxsize=65536)
def _height(key: PolicyKey) -> int:
    """How many levels of blocks end after this policy: one in 4 ends the first, of these one in 4 the second."""
    value = int.from_bytes(hashlib.sha256(f"{key.kind}/{key}".encode()).digest()[:4], "big")
    height = 0
    while height < DEEPEST and value & (1 << BITS) - 1 == 0:
        value >>= BITS
        height += 1
    return height
