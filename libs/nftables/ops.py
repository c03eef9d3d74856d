"""What a transaction is made of, what a table looks like when read back, and what can go wrong: the words that the
reconciler, the kernel transport and the fake share.

Elements are bytes as in types.pack_elements: `key`, or `low + high` in a set with intervals.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from libs.nftables.codec import WireRule
from libs.nftables.model import Base, DataType, Rule, Table, Verdict
from libs.nftables.types import unpack_element


@dataclass(frozen=True, slots=True)
class SetSpec:
    """A set or verdict map without its elements."""

    name: str
    key: tuple[DataType, ...]
    interval: bool = False
    constant: bool = False
    timeout_s: int = 0
    is_map: bool = False


@dataclass(frozen=True, slots=True)
class NewTable:
    pass


@dataclass(frozen=True, slots=True)
class DelTable:
    """With everything in it."""


@dataclass(frozen=True, slots=True)
class NewSet:
    spec: SetSpec


@dataclass(frozen=True, slots=True)
class DelSet:
    """With its elements; refused while a rule looks it up."""

    name: str


@dataclass(frozen=True, slots=True)
class NewChain:
    """For an existing base chain: change its policy."""

    name: str
    base: Base | None


@dataclass(frozen=True, slots=True)
class FlushChain:
    name: str


@dataclass(frozen=True, slots=True)
class DelChain:
    """With its rules; refused while a rule or a map element leads to it."""

    name: str


@dataclass(frozen=True, slots=True)
class AddRules:
    """Append."""

    chain: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class SpliceRules:
    """Keep the first `head` and the last `tail` of the chain's `length` rules, replace what is between by `rules`.

    Refused with Drifted when the chain does not have `length` rules.
    """

    chain: str
    length: int
    head: int
    tail: int
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class AddElements:
    spec: SetSpec
    elements: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class DelElements:
    """Of a set or a map; refused when one is missing."""

    spec: SetSpec
    elements: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class AddVerdicts:
    spec: SetSpec
    elements: Sequence[tuple[bytes, Verdict]]


Op: TypeAlias = (
    NewTable | DelTable | NewSet | DelSet | NewChain | FlushChain | DelChain | AddRules | SpliceRules | AddElements
    | DelElements | AddVerdicts
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class KernelRule:
    handle: int
    wire: WireRule


@dataclass(slots=True)
class KernelChain:
    base: Base | None
    rules: list[KernelRule] = field(default_factory=list)


@dataclass(slots=True)
class KernelSet:
    """spec is None when the set is of a kind that we never make; only its name counts then."""

    name: str
    spec: SetSpec | None
    elements: set[bytes] = field(default_factory=set)
    verdicts: dict[bytes, Verdict | None] = field(default_factory=dict)  # None: a verdict that we never write
    count: int | None = None  # of elements, where the kernel tells and it changes by commits alone


@dataclass(slots=True)
class KernelTable:
    """A table as it is. exists is False when there is none (then the rest is empty)."""

    exists: bool
    generation: int
    chains: dict[str, KernelChain] = field(default_factory=dict)
    sets: dict[str, KernelSet] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Committed:
    messages: int
    transactions: int = 1


class TransactionError(Exception):
    """Base of what a commit can raise; the kernel then holds exactly what it held before."""


class Drifted(TransactionError):
    """Someone else changed the ruleset since it was read: read again."""


_NAMED = re.compile(r"(?:chain|set|map) (\S+)(?: \((?:flush|delete)\))?\Z")


@dataclass(frozen=True, slots=True)
class Failure:
    object: str  # `rule 3 of chain cali-fw-x`, `element 10.0.0.1 of set s-web`
    code: int  # errno
    message: str

    def __str__(self) -> str:
        return f"{self.object}: {self.message}"

    @property
    def name(self) -> str:
        """Of the chain, set or map that the object is or is part of; "" for the table itself."""
        found = _NAMED.search(self.object)
        return found[1] if found else ""


class TransactionRefused(TransactionError):
    """The kernel refused. The first failure is the cause; later ones may only follow from it."""

    def __init__(self, table: Table, failures: Sequence[Failure]) -> None:
        self.table = table
        self.failures = tuple(failures)
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        super().__init__(f"table {table}: {failures[0]}{more}")


class Transport(Protocol):
    """A ruleset that can be read and changed: the kernel's, or the fake's."""

    async def read(self, table: Table) -> KernelTable: ...

    async def commit(self, table: Table, ops: Sequence[Op], generation: int | None = None) -> Committed:
        """All of ops or none. generation: refuse with Drifted if the ruleset is not at this one any more.

        Raises TransactionRefused, Drifted, OSError (state unknown).
        """
        ...


def describe_element(spec: SetSpec, element: bytes) -> str:
    kind = "map" if spec.is_map else "set"
    return f"element {unpack_element(spec.key, element)} of {kind} {spec.name}"


def describe_rule(chain: str, index: int, rule: Rule) -> str:
    comment = f' "{rule.comment}"' if rule.comment else ""
    return f"rule {index}{comment} of chain {chain}"


def describe(op: Op) -> str:
    """The object that an op is about, for messages."""
    match op:
        case NewTable() | DelTable():
            return "the table"
        case NewSet(spec):
            return f"{'map' if spec.is_map else 'set'} {spec.name}"
        case DelSet(name):
            return f"set {name} (delete)"
        case NewChain(name):
            return f"chain {name}"
        case FlushChain(name):
            return f"chain {name} (flush)"
        case DelChain(name):
            return f"chain {name} (delete)"
        case AddRules(chain) | SpliceRules(chain):
            return f"rules of chain {chain}"
        case AddElements(spec) | DelElements(spec) | AddVerdicts(spec):
            return f"elements of {'map' if spec.is_map else 'set'} {spec.name}"
