"""What the ruleset compiler writes to: the desired state of one nftables table; a guard around it; and sections of it
that are small enough to be made anew whenever something in them changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from libs.nftables.model import Chain, Map, Ruleset, Set, Verdict


class TableSink(Protocol):
    """The part of libs.nftables.state.TableState that the compiler writes to."""

    def set_chain(self, chain: Chain) -> None: ...

    def del_chain(self, name: str) -> None: ...

    def put_set(self, definition: Set) -> None: ...

    def del_set(self, name: str) -> None: ...

    def add_elements(self, name: str, texts: Iterable[str]) -> None: ...

    def remove_elements(self, name: str, texts: Iterable[str]) -> None: ...

    def put_map(self, definition: Map) -> None: ...

    def del_map(self, name: str) -> None: ...

    def put_verdicts(self, name: str, elements: Mapping[str, Verdict]) -> None: ...

    def remove_verdicts(self, name: str, texts: Iterable[str]) -> None: ...

    def replace(self, ruleset: Ruleset) -> None: ...


class GuardedSink:
    """Notes the edits that are refused, by the name of the chain, set or map, and goes on with the others."""

    def __init__(self, sink: TableSink) -> None:
        self.refused: dict[str, str] = {}
        self._sink = sink

    def _try(self, name: str, edit: Callable[[], None]) -> None:
        try:
            edit()
        except (ValueError, KeyError) as error:
            self.refused.setdefault(name, str(error))

    def set_chain(self, chain: Chain) -> None:
        self._try(chain.name, lambda: self._sink.set_chain(chain))

    def del_chain(self, name: str) -> None:
        self._sink.del_chain(name)

    def put_set(self, definition: Set) -> None:
        self._try(definition.name, lambda: self._sink.put_set(definition))

    def del_set(self, name: str) -> None:
        self._sink.del_set(name)

    def add_elements(self, name: str, texts: Iterable[str]) -> None:
        self._try(name, lambda: self._sink.add_elements(name, texts))

    def remove_elements(self, name: str, texts: Iterable[str]) -> None:
        self._try(name, lambda: self._sink.remove_elements(name, texts))

    def put_map(self, definition: Map) -> None:
        self._try(definition.name, lambda: self._sink.put_map(definition))

    def del_map(self, name: str) -> None:
        self._sink.del_map(name)

    def put_verdicts(self, name: str, elements: Mapping[str, Verdict]) -> None:
        self._try(name, lambda: self._sink.put_verdicts(name, elements))

    def remove_verdicts(self, name: str, texts: Iterable[str]) -> None:
        self._try(name, lambda: self._sink.remove_verdicts(name, texts))

    def replace(self, ruleset: Ruleset) -> None:
        self._sink.replace(ruleset)


class Section:
    """Chains, sets and maps of one concern, written as differences from what was written before."""

    def __init__(self) -> None:
        self._chains: dict[str, Chain] = {}
        self._sets: dict[str, Set] = {}
        self._maps: dict[str, Map] = {}

    def write(
        self, sink: TableSink, chains: Iterable[Chain], sets: Iterable[Set] = (), maps: Iterable[Map] = ()
    ) -> None:
        """All that the section holds from now on."""
        new_chains = {chain.name: chain for chain in chains}
        new_sets = {one.name: one for one in sets}
        new_maps = {one.name: one for one in maps}
        for name, new in new_sets.items():
            old = self._sets.get(name)
            if old is None or (old.key, old.interval) != (new.key, new.interval):
                sink.put_set(new)
                continue
            if gone := old.elements - new.elements:
                sink.remove_elements(name, gone)
            if more := new.elements - old.elements:
                sink.add_elements(name, more)
        for name, new_map in new_maps.items():
            old_map = self._maps.get(name)
            if old_map is None:
                sink.put_map(new_map)
                continue
            if missing := old_map.elements.keys() - new_map.elements.keys():
                sink.remove_verdicts(name, missing)
            changed = {
                key: verdict for key, verdict in new_map.elements.items() if old_map.elements.get(key) != verdict
            }
            if changed:
                sink.put_verdicts(name, changed)
        for name, chain in new_chains.items():
            if self._chains.get(name) != chain:
                sink.set_chain(chain)
        for name in self._chains.keys() - new_chains.keys():
            sink.del_chain(name)
        for name in self._sets.keys() - new_sets.keys():
            sink.del_set(name)
        for name in self._maps.keys() - new_maps.keys():
            sink.del_map(name)
        self._chains, self._sets, self._maps = new_chains, new_sets, new_maps
