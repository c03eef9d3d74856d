"""A table as it was read from the kernel, as a value that packets can be walked through (evaluate.py).

The kernel's rules come as octets. A rule that we write is recognised by them, for the encoding of a rule is a function
of it; there is no other decoder. What nobody wrote here is a foreign rule: it keeps its place, and whoever walks into
it is told.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from libs.nftables.codec import WireRule, encode_rule
from libs.nftables.evaluate import Evaluator, Outcome
from libs.nftables.model import Chain, Map, Rule, Ruleset, Set, Table, Verdict
from libs.nftables.ops import KernelTable
from libs.nftables.types import unpack_element


@dataclass(frozen=True, slots=True)
class Fired:
    """A rule that ran to its end; handle: the kernel's name of it within the chain."""

    chain: str
    handle: int
    comment: str


class ReadBack:
    """known: the rules that the table may hold, of whatever chain."""

    def __init__(self, table: Table, kernel: KernelTable, known: Iterable[Rule]) -> None:
        self.exists = kernel.exists
        by_wire: dict[WireRule, Rule] = {encode_rule(table.family, rule): rule for rule in known}
        self._handles: dict[str, dict[Rule, int]] = {}
        foreign: set[Rule] = set()
        chains = []
        for name, chain in kernel.chains.items():
            rules = []
            for place, one in enumerate(chain.rules):
                rule = by_wire.get(one.wire)
                if rule is None:
                    rule = Rule((), f"rule {place} of chain {name}")
                    foreign.add(rule)
                rules.append(rule)
                self._handles.setdefault(name, {}).setdefault(rule, one.handle)
            chains.append(Chain(name, tuple(rules), chain.base))
        sets: list[Set] = []
        maps: list[Map] = []
        for entry in kernel.sets.values():
            spec = entry.spec
            if spec is None:
                continue  # a rule that looks into it is foreign as well
            if spec.is_map:
                verdicts: dict[str, Verdict] = {
                    unpack_element(spec.key, key): verdict
                    for key, verdict in entry.verdicts.items()
                    if verdict is not None
                }
                maps.append(Map(spec.name, spec.key, verdicts, spec.interval))
            else:
                texts = frozenset(unpack_element(spec.key, element) for element in entry.elements)
                sets.append(Set(spec.name, spec.key, texts, spec.interval))
        self.foreign = sorted(rule.comment for rule in foreign)
        self.evaluator = Evaluator(Ruleset(table, tuple(chains), tuple(sets), tuple(maps)), foreign)

    def fired(self, outcome: Outcome) -> list[Fired]:
        return [Fired(chain, self._handles[chain][rule], rule.comment) for chain, rule in outcome.fired]
