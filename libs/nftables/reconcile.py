"""Brings one nftables table to its desired state, in one atomic transaction per step, but for new networks in sets.

These go ahead in a transaction of their own. Linux (seen with 6.18) puts a transaction's rules and the elements of hash
sets in force at one moment, and what is new in an interval set a little later, object by object: rules that come in the
same transaction would look into sets that seem empty, for microseconds, or milliseconds when the writer is held up.
Ahead of the rules that need it a new set concerns nobody. And where only elements change, a network is in its set
before the addresses that it covers leave theirs (tests/judges/test_under_traffic.py).

A step plans from what was touched since the last one, so adding an element to a set of 100,000, or changing one
chain of 1,000, costs that element or chain. The kernel is read only when its content is not known: at start, after
an error, on resync(). A restarted process therefore adopts what it finds and writes nothing if nothing differs.
Whatever is in the table and not desired is removed: the table is ours.

The first write after a reading carries the ruleset's generation, so that nobody's change in between is overwritten
unseen. Later writes do not: they are changes relative to our own table, valid whatever others do in theirs, and a
foreign edit in ours either makes the kernel refuse or is found by the next resync (kernel.ForeignChanges asks for
one at once).

Order inside a transaction: verdicts to remove, rules to flush, sets, chains, elements, rules, verdicts to add, then
what is unwanted. A chain is written only while a base chain, a rule of a written chain, or a map element leads to it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from libs.nftables.codec import WireRule, encode_rule
from libs.nftables.model import Chain, Rule, Table, Verdict
from libs.nftables.ops import (
    AddElements,
    AddRules,
    AddVerdicts,
    DelChain,
    DelElements,
    DelSet,
    DelTable,
    Drifted,
    FlushChain,
    KernelTable,
    NewChain,
    NewSet,
    NewTable,
    Op,
    SetSpec,
    SpliceRules,
    TransactionRefused,
    Transport,
)
from libs.nftables.state import MapState, SetState, TableState

FAILURES_BEFORE_REWRITE = 3
DRIFT_ATTEMPTS = 5
SPLICE_FROM = 8  # rules kept that make it worth asking the kernel for their handles; shorter chains are rewritten whole


@dataclass(frozen=True, slots=True)
class Applied:
    """What a step wrote. A replaced rule or verdict counts once for its end and once for its beginning."""

    changed_rules: int = 0
    changed_elements: int = 0
    messages: int = 0
    transactions: int = 0


@dataclass(slots=True)
class _Plan:
    """Ops by stage; `transactions()` puts the stages in order."""

    generation: int | None = None
    ahead: list[Op] = field(default_factory=list)  # new interval sets, with all that they hold
    gains: list[Op] = field(default_factory=list)  # networks that interval sets gain which lose none
    table: list[Op] = field(default_factory=list)
    release: list[Op] = field(default_factory=list)  # verdicts and rules that hold references
    redefine: list[Op] = field(default_factory=list)  # sets and chains that must go before they come again
    create: list[Op] = field(default_factory=list)
    elements: list[Op] = field(default_factory=list)
    rules: list[Op] = field(default_factory=list)
    verdicts: list[Op] = field(default_factory=list)
    remove: list[Op] = field(default_factory=list)
    changed_rules: int = 0
    changed_elements: int = 0

    def transactions(self) -> list[list[Op]]:
        """In order, none of them empty."""
        rest = [
            *self.release, *self.redefine, *self.create, *self.elements, *self.rules, *self.verdicts, *self.remove,
        ]  # fmt: skip
        ahead = self.ahead
        if len(rest) > len(self.elements):  # the old rules should not see what comes with new ones
            rest = [*self.gains, *rest]
        else:
            ahead = [*ahead, *self.gains]
        if any(isinstance(op, DelTable) for op in self.table):  # it takes along what is made before
            return [[*self.table, *ahead, *rest]]
        parts = ([*self.table, *ahead], rest) if ahead else ([*self.table, *rest],)
        return [ops for ops in parts if ops]


class TableReconciler:
    """Only this object writes the table. Edit `desired`, set `in_sync` once it is complete, call step().

    step() raises TransactionRefused (each failure names its object; the kernel keeps the old content), NetlinkError,
    OSError. Call it again after a pause; the third failure in a row is answered by rewriting the table as a whole,
    in one transaction.
    """

    def __init__(self, transport: Transport, table: Table) -> None:
        self.desired = TableState(table)
        self.in_sync = False
        self._transport = transport
        self._table = table
        self._known = False  # whether the fields below say what the kernel holds
        self._stale = False
        self._failures = 0
        self._live: dict[str, Chain] = {}
        self._references: Counter[str] = Counter()  # chain → rules of live chains and map elements that lead to it
        self._sets: dict[str, SetSpec] = {}
        self._verdicts: dict[str, dict[bytes, Verdict]] = {}
        self._lock = asyncio.Lock()

    def resync(self) -> None:
        """Read the kernel at the next step; counts even when called while a step is under way."""
        self._stale = True

    async def step(self) -> Applied:
        async with self._lock:
            if not self.in_sync:
                return Applied()
            rewrite = self._failures >= FAILURES_BEFORE_REWRITE - 1
            try:
                applied = await self._step(rewrite)
            except BaseException as error:
                self._known = False
                self._failures += isinstance(error, Exception)  # being cancelled is no failure
                raise
            self._failures = 0
            return applied

    async def _step(self, rewrite: bool) -> Applied:
        """Once with what we know, then, if that was refused, once more with what the kernel says."""
        if self._known and not self._stale and not rewrite:
            plan = self._plan_touched()
            try:
                return await self._commit(plan)
            except (TransactionRefused, Drifted):
                self._known = False
        for attempt in range(DRIFT_ATTEMPTS):
            self._known = self._stale = False
            kernel = await self._transport.read(self._table)
            plan = self._plan_all(kernel, rewrite)
            try:
                return await self._commit(plan)
            except Drifted:
                if attempt == DRIFT_ATTEMPTS - 1:
                    raise
        raise AssertionError("the loop above returns or raises")

    async def _commit(self, plan: _Plan) -> Applied:
        self._known = False  # a cancellation in the middle leaves it so
        generation, messages, transactions = plan.generation, 0, 0
        for ops in plan.transactions():
            done = await self._transport.commit(self._table, ops, generation)
            messages, transactions = messages + done.messages, transactions + done.transactions
            if generation is not None:
                generation = (generation + 1) & 0xFFFFFFFF or 1  # each commit counts one; the kernel leaves out 0
        self._known = True
        return Applied(plan.changed_rules, plan.changed_elements, messages, transactions)

    # --- from what was touched
    # ------------------------------------------------------------------------------------------

    def _plan_touched(self) -> _Plan:
        plan, desired = _Plan(), self.desired
        rewritten: set[str] = set()  # chains flushed because a set they look up is made anew
        touched = set(desired.dirty_chains)
        for name in desired.dirty_sets:
            self._plan_set(plan, name, rewritten, touched)
        before = self._update_live(touched)
        desired.dirty_chains.clear()
        desired.dirty_sets.clear()
        desired.buried.clear()
        for name in rewritten - before.keys():
            before[name] = self._live[name]
        for name, old in before.items():
            self._plan_chain(plan, name, old, name in rewritten)
        return plan

    def _plan_set(self, plan: _Plan, name: str, rewritten: set[str], touched: set[str]) -> None:
        state: SetState | MapState | None = self.desired.sets.get(name) or self.desired.maps.get(name)
        have, replaced = self._sets.get(name), False
        frozen = have is not None and have.constant and isinstance(state, SetState) and bool(state.pending)
        if have is not None and (state is None or state.spec != have or frozen):
            for verdict in self._verdicts.pop(name, {}).values():
                self._unrefer(verdict, touched)
            del self._sets[name]
            users = {chain.name for chain in self._live.values() if any(name in rule.sets() for rule in chain.rules)}
            if state is None:
                plan.remove.insert(0, DelSet(name))
            else:
                for user in sorted(users - rewritten):
                    plan.release.append(FlushChain(user))
                rewritten |= users
                plan.redefine.append(DelSet(name))
                have, replaced = None, True
        if state is None:
            return
        if have is None:
            _plan_set(plan, state.spec, replaced)
            self._sets[name] = state.spec
        if isinstance(state, SetState):
            pending, state.pending = state.pending, {}
            add = sorted(state.wanted) if have is None else [element for element, wanted in pending.items() if wanted]
            drop = [] if have is None else [element for element, wanted in pending.items() if not wanted]
            _plan_elements(plan, state.spec, add, drop, fresh=have is None, replaced=replaced)
            return
        keys, state.pending = state.pending, set()
        committed = self._verdicts.setdefault(name, {})
        _plan_verdicts(plan, state, committed, keys if have is not None else set(state.wanted))
        for key in keys | (set(state.wanted) if have is None else set()):
            old, new = committed.pop(key, None), state.wanted.get(key)
            self._unrefer(old, touched)
            if new is not None:
                committed[key] = new
                if new.chain:
                    self._references[new.chain] += 1
                    touched.add(new.chain)

    def _unrefer(self, verdict: Verdict | None, touched: set[str]) -> None:
        if verdict is not None and verdict.chain:
            self._references[verdict.chain] -= 1
            touched.add(verdict.chain)

    def _update_live(self, touched: Iterable[str]) -> dict[str, Chain | None]:
        """Follow changed chains and references to what must be written now; name → what was written before."""
        before: dict[str, Chain | None] = {}
        queue = list(touched)
        while queue:
            name = queue.pop()
            have, want = self._live.get(name), self.desired.chains.get(name)
            if want is not None and want.base is None and self._references[name] <= 0:
                want = None
            if want is have:
                continue
            before.setdefault(name, have)
            for chain, weight in ((have, -1), (want, 1)):
                for rule in chain.rules if chain is not None else ():
                    for target in rule.chains():
                        self._references[target] += weight
                        queue.append(target)
            if want is None:
                del self._live[name]
            else:
                self._live[name] = want
        return before

    def _plan_chain(self, plan: _Plan, name: str, old: Chain | None, rewritten: bool) -> None:
        new = self._live.get(name)
        family = self._table.family
        have = None if old is None else [encode_rule(family, rule) for rule in old.rules]
        if new is None:
            if old is not None and have is not None:
                _plan_removal(plan, name, len(have))
            return
        if old is None or have is None:
            _plan_creation(plan, new)
            return
        _plan_base(plan, old, new)
        if rewritten:
            plan.rules.append(AddRules(name, new.rules))
            plan.changed_rules += len(have) + len(new.rules)
        elif _needs_recreation(old, new):
            _plan_append(plan, new)
        else:
            _plan_rules(plan, name, have, new.rules, [encode_rule(family, rule) for rule in new.rules])

    # --- from what the kernel holds
    # -------------------------------------------------------------------------------------

    def _plan_all(self, kernel: KernelTable, rewrite: bool) -> _Plan:
        """Everything compared with everything; resets what is known to what is desired."""
        plan, desired = _Plan(generation=kernel.generation), self.desired
        if rewrite and kernel.exists:
            plan.table.append(DelTable())
            kernel = KernelTable(False, kernel.generation)
        if not kernel.exists:
            plan.table.append(NewTable())
        desired.dirty_sets.clear()
        desired.dirty_chains.clear()
        desired.buried.clear()
        rewritten = self._compare_sets(plan, kernel)
        self._live = {}
        self._references = Counter()
        for verdicts in self._verdicts.values():
            self._references.update(verdict.chain for verdict in verdicts.values() if verdict.chain)
        self._update_live(desired.chains)
        self._compare_chains(plan, kernel, rewritten)
        return plan

    def _compare_sets(self, plan: _Plan, kernel: KernelTable) -> set[str]:
        """Returns the kernel's chains that must be flushed because a set they look up is made anew."""
        desired = self.desired
        states: dict[str, SetState | MapState] = {**desired.sets, **desired.maps}
        replaced = []
        for name, entry in kernel.sets.items():
            state = states.get(name)
            frozen = (
                isinstance(state, SetState) and state.spec.constant and state.wanted != entry.elements
            )  # the kernel refuses to touch it while rules use it
            if state is None or entry.spec != state.spec or frozen:
                replaced.append(name)
        affected = _chains_using(kernel, [name for name in replaced if name in states])
        for name in replaced:
            (plan.redefine if name in states else plan.remove).append(DelSet(name))
        self._sets = {name: state.spec for name, state in states.items()}
        self._verdicts = {name: dict(state.wanted) for name, state in desired.maps.items()}
        for name, state in states.items():
            have = None if name in replaced else kernel.sets.get(name)
            if have is None:
                _plan_set(plan, state.spec, name in replaced)
            if isinstance(state, SetState):
                state.pending = {}
                elements = have.elements if have is not None else set()
                if state.wanted != elements:
                    add, drop = sorted(state.wanted - elements), sorted(elements - state.wanted)
                    _plan_elements(plan, state.spec, add, drop, fresh=have is None, replaced=name in replaced)
            else:
                state.pending = set()
                verdicts = have.verdicts if have is not None else {}
                if state.wanted != verdicts:
                    _plan_verdicts(plan, state, verdicts, state.wanted.keys() | verdicts.keys())
        for name in sorted(affected):
            plan.release.append(FlushChain(name))
        return affected

    def _compare_chains(self, plan: _Plan, kernel: KernelTable, rewritten: set[str]) -> None:
        family = self._table.family
        for name, chain in self._live.items():
            entry = kernel.chains.get(name)
            if entry is None:
                _plan_creation(plan, chain)
                continue
            old = Chain(name, base=entry.base)
            have = [rule.wire for rule in entry.rules]
            _plan_base(plan, old, chain)
            if name in rewritten or _needs_recreation(old, chain):
                _plan_append(plan, chain)
            else:
                want = [encode_rule(family, rule) for rule in chain.rules]
                if have != want:
                    _plan_rules(plan, name, have, chain.rules, want)
        for name in kernel.chains.keys() - self._live.keys():
            _plan_removal(plan, name, len(kernel.chains[name].rules))


# --- pieces of a plan -----------------------------------------------------------------------------------------------


def _plan_set(plan: _Plan, spec: SetSpec, replaced: bool) -> None:
    """replaced: one of the same name must go first."""
    (plan.ahead if spec.interval and not replaced else plan.create).append(NewSet(spec))


def _plan_elements(
    plan: _Plan, spec: SetSpec, add: list[bytes], drop: list[bytes], *, fresh: bool, replaced: bool
) -> None:
    """What an interval set loses may overlap with what it gains, so both are one transaction."""
    if drop:
        plan.elements.append(DelElements(spec, drop))
    if add:
        gains = plan.ahead if fresh else plan.gains
        (gains if spec.interval and not drop and not replaced else plan.elements).append(AddElements(spec, add))
    plan.changed_elements += len(add) + len(drop)


def _plan_verdicts(plan: _Plan, state: MapState, have: Mapping[bytes, Verdict | None], keys: Iterable[bytes]) -> None:
    """A verdict cannot be changed in place (EEXIST): it goes first and comes again later in the same transaction."""
    drop, add = [], []
    for key in sorted(keys):
        new = state.wanted.get(key)
        if key in have:
            if have[key] == new:
                continue
            drop.append(key)
        if new is not None:
            add.append((key, new))
    if drop:
        plan.release.append(DelElements(state.spec, drop))
    if add:
        plan.verdicts.append(AddVerdicts(state.spec, add))
    plan.changed_elements += len(add) + len(drop)


def _plan_creation(plan: _Plan, chain: Chain) -> None:
    plan.create.append(NewChain(chain.name, chain.base))
    _plan_append(plan, chain)


def _plan_append(plan: _Plan, chain: Chain) -> None:
    if chain.rules:
        plan.rules.append(AddRules(chain.name, chain.rules))
        plan.changed_rules += len(chain.rules)


def _plan_removal(plan: _Plan, name: str, rules: int) -> None:
    """Every unwanted chain lets go of its targets before the first of them is deleted."""
    plan.release.append(FlushChain(name))
    plan.remove.append(DelChain(name))
    plan.changed_rules += rules


def _needs_recreation(old: Chain, new: Chain) -> bool:
    """Only the policy of a base chain can be changed in place."""
    if old.base is None or new.base is None:
        return old.base != new.base
    return (old.base.hook, old.base.type, old.base.priority) != (new.base.hook, new.base.type, new.base.priority)


def _plan_base(plan: _Plan, old: Chain, new: Chain) -> None:
    if _needs_recreation(old, new):
        plan.release.append(FlushChain(old.name))
        plan.redefine.append(DelChain(old.name))
        plan.create.append(NewChain(new.name, new.base))
    elif old.base != new.base:
        plan.create.append(NewChain(new.name, new.base))


def _plan_rules(plan: _Plan, name: str, have: list[WireRule], rules: tuple[Rule, ...], want: list[WireRule]) -> None:
    """Replace what differs between the common head and the common tail: unchanged rules keep their counters."""
    if have == want:
        return
    shorter = min(len(have), len(want))
    head = 0
    while head < shorter and have[head] == want[head]:
        head += 1
    tail = 0
    while tail < shorter - head and have[-1 - tail] == want[-1 - tail]:
        tail += 1
    new = rules[head : len(rules) - tail]
    if head == len(have):
        plan.rules.append(AddRules(name, new))
        plan.changed_rules += len(new)
    elif head + tail < SPLICE_FROM:
        plan.release.append(FlushChain(name))
        if rules:
            plan.rules.append(AddRules(name, rules))
        plan.changed_rules += len(have) + len(rules)
    else:
        plan.rules.append(SpliceRules(name, len(have), head, tail, new))
        plan.changed_rules += len(have) - head - tail + len(new)


def _chains_using(kernel: KernelTable, sets: list[str]) -> set[str]:
    """Chains whose rules mention one of the sets; by their bytes, so foreign rules count as well."""
    needles = [name.encode() + b"\0" for name in sets]
    return {
        name
        for name, chain in kernel.chains.items()
        if any(needle in rule.wire.expressions for rule in chain.rules for needle in needles)
    }
