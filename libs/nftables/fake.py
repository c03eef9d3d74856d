"""A ruleset in memory that refuses what the kernel refuses, atomically, with the kernel's error numbers.

It encodes every operation as the kernel transport does, so values that cannot be encoded fail here too and message
counts agree. The contract suite runs on both. Not modelled: counting, time-outs, and what rules do to packets.
"""

from __future__ import annotations

import copy
import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, pairwise

from libs.nftables.codec import encode_rule
from libs.nftables.messages import BatchBuilder
from libs.nftables.model import Base, Rule, Table, Verdict
from libs.nftables.ops import (
    AddElements,
    AddRules,
    AddVerdicts,
    Committed,
    DelChain,
    DelElements,
    DelSet,
    DelTable,
    Drifted,
    Failure,
    FlushChain,
    KernelChain,
    KernelRule,
    KernelSet,
    KernelTable,
    NewChain,
    NewSet,
    NewTable,
    Op,
    SetSpec,
    SpliceRules,
    TransactionRefused,
    describe,
    describe_element,
    describe_rule,
)
from libs.nftables.types import key_length

JUMP_DEPTH_MAX = 16  # NFT_JUMP_STACK_SIZE


@dataclass(slots=True)
class _Rule:
    handle: int
    rule: Rule


@dataclass(slots=True)
class _Chain:
    base: Base | None
    rules: list[_Rule] = field(default_factory=list)


@dataclass(slots=True)
class _Set:
    spec: SetSpec
    elements: dict[bytes, Verdict | None] = field(default_factory=dict)


@dataclass(slots=True)
class _Table:
    chains: dict[str, _Chain] = field(default_factory=dict)
    sets: dict[str, _Set] = field(default_factory=dict)


class _Refused(Exception):
    def __init__(self, code: int, about: str) -> None:
        self.failure = Failure(about, code, f"{os.strerror(code)} ({errno.errorcode[code]})")


class FakeRuleset:
    """Implements ops.Transport. Tests may edit `tables` as a foreign writer would (call touched() afterwards)."""

    def __init__(self) -> None:
        self.tables: dict[Table, _Table] = {}
        self.generation = 1
        self.commits: list[tuple[Op, ...]] = []
        self.reads = 0
        self.broken: OSError | None = None  # raised by the next commits, after which the state is as before
        self._handles = count(1)

    def touched(self) -> None:
        """Someone else has committed."""
        self.generation += 1

    async def read(self, table: Table) -> KernelTable:
        self.reads += 1
        held = self.tables.get(table)
        found = KernelTable(held is not None, self.generation)
        if held is None:
            return found
        for name, chain in held.chains.items():
            rules = [KernelRule(r.handle, encode_rule(table.family, r.rule)) for r in chain.rules]
            found.chains[name] = KernelChain(chain.base, rules)
        for name, entry in held.sets.items():
            if entry.spec.is_map:
                found.sets[name] = KernelSet(name, entry.spec, set(), dict(entry.elements))
            else:
                found.sets[name] = KernelSet(name, entry.spec, set(entry.elements))
        return found

    async def commit(self, table: Table, ops: Sequence[Op], generation: int | None = None) -> Committed:
        if self.broken is not None:
            raise self.broken
        if generation is not None and generation != self.generation:
            raise Drifted(f"the ruleset is not at generation {generation} any more")
        builder = BatchBuilder(table)
        held = self.tables.get(table)
        draft = copy.deepcopy(held)
        try:
            for op in ops:
                handles: list[int] = []
                if isinstance(op, SpliceRules):
                    handles = self._splice_handles(table, op)
                builder.add(op, handles)
                draft = self._apply(draft, op)
            if draft is not None:
                _validate(draft)
        except _Refused as refused:
            raise TransactionRefused(table, [refused.failure]) from None
        if draft is None:
            self.tables.pop(table, None)
        else:
            self.tables[table] = draft
        self.generation += 1
        self.commits.append(tuple(ops))
        return Committed(len(builder.messages))

    def _splice_handles(self, table: Table, op: SpliceRules) -> list[int]:
        held = self.tables.get(table)
        chain = held.chains.get(op.chain) if held is not None else None
        handles = [rule.handle for rule in chain.rules] if chain is not None else []
        if len(handles) != op.length:
            raise Drifted(f"chain {op.chain} of table {table} has {len(handles)} rules, not {op.length}")
        return handles

    def _apply(self, held: _Table | None, op: Op) -> _Table | None:
        if isinstance(op, NewTable):
            return held if held is not None else _Table()
        if held is None:
            raise _Refused(errno.ENOENT, describe(op))
        match op:
            case DelTable():
                return None
            case NewSet(spec):
                if spec.name in held.sets:
                    raise _Refused(errno.EEXIST, describe(op))
                held.sets[spec.name] = _Set(spec)
            case DelSet(name):
                if name not in held.sets:
                    raise _Refused(errno.ENOENT, describe(op))
                if _set_used(held, name):
                    raise _Refused(errno.EBUSY, describe(op))
                del held.sets[name]
            case NewChain(name, base):
                _new_chain(held, op, name, base)
            case FlushChain(name):
                _chain(held, name, describe(op)).rules.clear()
            case DelChain(name):
                _chain(held, name, describe(op)).rules.clear()
                if name in set(_targets(held)):
                    raise _Refused(errno.EBUSY, describe(op))
                del held.chains[name]
            case AddRules(name, rules):
                chain = _chain(held, name, describe_rule(name, 0, rules[0]) if rules else describe(op))
                chain.rules.extend(self._checked(held, name, rules, 0))
            case SpliceRules(name, length, head, tail, rules):
                _chain(held, name, describe(op)).rules[head : length - tail] = self._checked(held, name, rules, head)
            case AddElements(spec, elements):
                _add(held, spec, [(element, None) for element in elements])
            case AddVerdicts(spec, verdicts):
                _add(held, spec, list(verdicts))
            case DelElements(spec, elements):
                entry = _unlocked(held, spec)
                for element in elements:
                    if element not in entry.elements:
                        raise _Refused(errno.ENOENT, describe_element(spec, element))
                    del entry.elements[element]
        return held

    def _checked(self, held: _Table, chain: str, rules: Sequence[Rule], first: int) -> list[_Rule]:
        checked = []
        for index, rule in enumerate(rules, first):
            about = describe_rule(chain, index, rule)
            for target in rule.chains():
                _check_target(held, target, about)
            for name in rule.sets():
                if name not in held.sets:
                    raise _Refused(errno.ENOENT, about)
            checked.append(_Rule(next(self._handles), rule))
        return checked


def _chain(held: _Table, name: str, about: str) -> _Chain:
    if name not in held.chains:
        raise _Refused(errno.ENOENT, about)
    return held.chains[name]


def _new_chain(held: _Table, op: NewChain, name: str, base: Base | None) -> None:
    have = held.chains.get(name)
    if have is None:
        held.chains[name] = _Chain(base)
        return
    if base is None:
        return  # nothing to change
    same = have.base is not None and (have.base.hook, have.base.type, have.base.priority) == (
        base.hook,
        base.type,
        base.priority,
    )
    if not same:
        raise _Refused(errno.EEXIST, describe(op))
    have.base = base


def _targets(held: _Table) -> Iterator[str]:
    """Chains that a rule or an element leads to, once per reference."""
    for chain in held.chains.values():
        for entry in chain.rules:
            yield from entry.rule.chains()
    for table_set in held.sets.values():
        for verdict in table_set.elements.values():
            if verdict is not None and verdict.chain:
                yield verdict.chain


def _set_used(held: _Table, name: str) -> bool:
    return any(name in entry.rule.sets() for chain in held.chains.values() for entry in chain.rules)


def _check_target(held: _Table, target: str, about: str) -> None:
    if target not in held.chains:
        raise _Refused(errno.ENOENT, about)
    if held.chains[target].base is not None:
        raise _Refused(errno.EOPNOTSUPP, about)


def _unlocked(held: _Table, spec: SetSpec) -> _Set:
    about = f"elements of {'map' if spec.is_map else 'set'} {spec.name}"
    if spec.name not in held.sets:
        raise _Refused(errno.ENOENT, about)
    entry = held.sets[spec.name]
    if entry.spec.constant and _set_used(held, spec.name):
        raise _Refused(errno.EBUSY, about)
    return entry


def _add(held: _Table, spec: SetSpec, items: list[tuple[bytes, Verdict | None]]) -> None:
    entry = _unlocked(held, spec)
    for element, verdict in items:
        if verdict is not None and verdict.chain:
            _check_target(held, verdict.chain, describe_element(spec, element))
        if entry.elements.get(element, verdict) != verdict:
            raise _Refused(errno.EEXIST, describe_element(spec, element))
        entry.elements[element] = verdict
    if spec.interval and len(spec.key) == 1:
        half = key_length(spec.key)
        for before, after in pairwise(sorted(entry.elements)):
            if before[half:] >= after[:half]:
                raise _Refused(errno.EEXIST, describe_element(spec, after))


def _validate(held: _Table) -> None:
    """Jumps from base chains must end and must not nest deeper than the kernel's stack."""
    for name, chain in held.chains.items():
        if chain.base is not None:
            _walk(held, name, [])


def _walk(held: _Table, name: str, above: list[str]) -> None:
    if name in above:
        raise _Refused(errno.ELOOP, f"chain {name}")
    if len(above) > JUMP_DEPTH_MAX:
        raise _Refused(errno.EMLINK, f"chain {name}")
    for index, entry in enumerate(held.chains[name].rules):
        for target in _reached(held, entry.rule):
            if target not in held.chains:
                raise AssertionError(f"rule {index} of {name} leads to {target}, which was checked before")
            _walk(held, target, [*above, name])


def _reached(held: _Table, rule: Rule) -> set[str]:
    found = set(rule.chains())
    for name in rule.sets():
        for verdict in held.sets[name].elements.values():
            if verdict is not None and verdict.chain:
                found.add(verdict.chain)
    return found
