"""List chains and the skip blocks in them, for one address family: which there are, who shares them, when they change.

A list is folded anew when its policies, their guards or their Pass rules change; blocks that come out the same as
before, here or in another list, are kept with their chains and unions. A chain is written anew when it is new, or when
a set that it looks into gets or loses one of its halves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TypeAlias

from libs.nftables import model as nft
from libs.nftables.model import Chain, Rule
from libs.policy.output import Action, IPSetType, PolicyKey
from libs.policy.output import Rule as PolicyRule
from services.felix.core import blocks, names
from services.felix.core.blocks import Block, Guard, Item, Row
from services.felix.core.dispatch import TierList
from services.felix.core.ipsets import IpSets
from services.felix.core.options import Family, RulesetOptions
from services.felix.core.sets import covering, net_text, parse_net
from services.felix.core.sink import TableSink
from services.felix.core.state import State

Holder: TypeAlias = TierList | Block  # whose chain has look-ups
Deny: TypeAlias = Callable[[str], Rule]  # comment → a rule that denies


class ListChains:
    def __init__(self, family: Family, options: RulesetOptions, ip_sets: IpSets, deny: Deny) -> None:
        self._family = family
        self._ip_sets = ip_sets
        self._deny = deny
        self._fold = options.skip_blocks
        self._mark = options.mark_pass
        self._items: dict[tuple[PolicyKey, bool], Item] = {}
        self._rows: dict[TierList, Row] = {}
        self._blocks: Counter[Block] = Counter()  # how many lists and blocks jump to it
        self._unions: Counter[str] = Counter()  # how many blocks are behind it
        self._parts: dict[str, Guard] = {}  # what is in it
        self._looks: dict[Holder, tuple[str, ...]] = {}  # the guards that its chain looks into
        self._lookers: dict[str, set[Holder]] = {}  # the same, by guard

    def flush(
        self,
        state: State,
        changed: Iterable[TierList],
        policies: Iterable[PolicyKey],
        denied: Callable[[PolicyKey], bool],
        sink: TableSink,
    ) -> dict[Holder, dict[str, str]]:
        """Writes what the changed lists, and the lists of these written policies, need.

        denied: true for a policy whose chain denies everything, whatever its rules say. Returns for every chain that
        was written, or went, the kernel sets that it looks into now, each with the id of its IP set.
        """
        looks: dict[Holder, dict[str, str]] = {}
        lists = set(changed)
        for key in policies:
            lists |= self._look_at(key, state, denied(key))
        released: list[Row] = []
        write: set[Holder] = set()
        for tier_list in lists:
            old = self._rows.pop(tier_list, None)
            if old is not None:
                released.append(old)
            if tier_list not in state.list_users:
                self._remove(tier_list, sink)
                looks[tier_list] = {}
                continue
            items = [self._items.get((key, tier_list.inbound), Item(key)) for key in tier_list.policies]
            row = blocks.fold(items, tier_list.inbound) if self._fold else tuple(items)
            self._rows[tier_list] = row
            self._use(row, write)
            self._put_unions(row)
            if row != old:
                write.add(tier_list)
        for row in released:  # only now: what old and new rows share stays
            for block in self._release(row):
                self._remove(block, sink)
                looks[block] = {}
        for guard in self._ip_sets.reshaped:
            write |= self._lookers.get(guard, set())
        looks |= {holder: self._write(holder, sink) for holder in write}
        return looks

    def behind(self, holder: Holder, set_id: str) -> set[PolicyKey]:
        """Policies in the blocks to which the holder's chain jumps by this IP set or union."""
        row = self._rows[holder] if isinstance(holder, TierList) else holder.items
        return {
            key for item in row if isinstance(item, Block) and item.guard.id == set_id for key in item.policies()
        }  # fmt: skip

    def _look_at(self, key: PolicyKey, state: State, denied: bool) -> set[TierList]:
        """The lists to fold anew since this policy is another kind of item now."""
        out: set[TierList] = set()
        for inbound in (True, False):
            rules = state.rules(key, inbound)
            item = None
            if rules is not None:
                passes = any(rule.action is Action.PASS for rule in rules)
                item = Item(key, passes, None if denied else self._guard(rules, inbound))
            if item != self._items.get((key, inbound)):
                if item is None:
                    del self._items[key, inbound]
                else:
                    self._items[key, inbound] = item
                out |= {used for used in state.lists_of.get(key, ()) if used.inbound == inbound}
        return out

    def _guard(self, rules: Iterable[PolicyRule], inbound: bool) -> Guard | None:
        """None too for what this family cannot look up: a rule that is for the other one alone may say anything."""
        try:
            guard = blocks.guard(rules, inbound)
        except ValueError:
            return None
        known = guard is not None and all(map(self._ip_sets.can_guard, guard.sets))
        return guard if known else None

    def _use(self, row: Row, appeared: set[Holder]) -> None:
        for item in row:
            if isinstance(item, Item):
                continue
            self._blocks[item] += 1
            if self._blocks[item] > 1:
                continue
            self._use(item.items, appeared)
            appeared.add(item)
            if item.guard.is_union:
                self._unions[item.guard.id] += 1

    def _put_unions(self, row: Row) -> None:
        """Of new blocks, and of those that stay while their policies ask for other sets; the inner ones first."""
        for item in row:
            for block in item.blocks() if isinstance(item, Block) else ():
                guard = block.guard
                if guard.is_union and self._parts.get(guard.id) != guard:
                    self._parts[guard.id] = guard
                    self._ip_sets.put_union(guard.id, guard.sets, guard.in_union)

    def _release(self, row: Row) -> Iterator[Block]:
        """Yields the blocks that nobody jumps to any more, outer ones first."""
        for item in row:
            if isinstance(item, Item):
                continue
            self._blocks[item] -= 1
            if self._blocks[item]:
                continue
            del self._blocks[item]
            if item.guard.is_union:
                self._unions[item.guard.id] -= 1
                if not self._unions[item.guard.id]:
                    del self._unions[item.guard.id], self._parts[item.guard.id]
                    self._ip_sets.remove_union(item.guard.id)
            yield item
            yield from self._release(item.items)

    def _remove(self, holder: Holder, sink: TableSink) -> None:
        sink.del_chain(holder.chain)
        self._look(holder, ())

    def _write(self, holder: Holder, sink: TableSink) -> dict[str, str]:
        """Returns the kernel sets that its rules look into, each with the id of its IP set."""
        top = holder if isinstance(holder, TierList) else None
        row = holder.items if isinstance(holder, Block) else self._rows[holder]
        drop = top is not None and top.drop
        rules: list[Rule] = []
        sets: dict[str, str] = {}
        if top is not None and any(item.passes for item in row):
            rules.append(Rule((nft.mark_and(~self._mark),)))
        for position, item in enumerate(row, 1):
            if isinstance(item, Item):
                rules.append(Rule((nft.jump(names.policy_chain(item.key, holder.inbound)),)))
                passed = f"passed by {item.key}"
            else:
                rules += self._jumps(item, sets)
                passed = "passed by one of these"
            # The end of a chain returns anyway: without a drop there, a look at the mark would change nothing.
            if item.passes and (position < len(row) or drop):
                rules.append(Rule((nft.mark_has(self._mark), nft.RETURN), names.comment(passed)))
        if top is not None and top.drop:
            rules.append(self._deny(f"end of tier {top.tier}: no policy decided"))
        sink.set_chain(Chain(holder.chain, tuple(rules)))
        self._look(holder, {item.guard.id for item in row if isinstance(item, Block) and item.guard.id})
        return sets

    def _jumps(self, block: Block, sets: dict[str, str]) -> Iterator[Rule]:
        """One rule for each half of the union, and for each network. They exclude each other: a packet enters once."""
        field, version = (self._family.saddr if block.inbound else self._family.daddr), self._family.version
        comment = names.comment(f"{len(block)} policies, {block.first} to {block.last}")
        earlier: list[nft.Expr] = []
        if block.guard.id:
            for half in self._ip_sets.halves(block.guard.id, IPSetType.NET):
                sets[half.name] = block.guard.id
                yield Rule((nft.InSet((field,), half.name), nft.jump(block.chain)), comment)
                earlier.append(nft.InSet((field,), half.name, negate=True))
        parsed = map(parse_net, block.guard.inline)
        for net in covering((net for family, net in parsed if family == version), self._family.bits):
            yield Rule((nft.Match(field, net_text(version, net)), *earlier, nft.jump(block.chain)), comment)

    def _look(self, holder: Holder, guards: Collection[str]) -> None:
        """Remembers the sets whose halves its chain spells."""
        for guard in self._looks.pop(holder, ()):
            self._lookers[guard].discard(holder)
            if not self._lookers[guard]:
                del self._lookers[guard]
        if guards:
            self._looks[holder] = tuple(guards)
            for guard in self._looks[holder]:
                self._lookers.setdefault(guard, set()).add(holder)
