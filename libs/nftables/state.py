"""The desired content of one table, edited in place, which remembers what was touched.

A step of the reconciler costs what has changed, not what there is: every edit notes its chain, or the very elements,
as pending. Edits are cheap, do no I/O, and raise ElementError or ValueError for values that can never be programmed,
leaving the state as it was.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from libs.nftables.codec import encode_rule
from libs.nftables.intervals import ConcatUnion, Union
from libs.nftables.model import NAME_MAX, Chain, DataType, Map, Ruleset, Set, Table, Verdict
from libs.nftables.ops import SetSpec
from libs.nftables.types import TYPES, ElementError, key_length, pack_elements, padded, unpack_element


def _spec(definition: Set | Map) -> SetSpec:
    if not 0 < len(definition.name) <= NAME_MAX:
        raise ValueError(f"set name {definition.name!r} must have 1 to {NAME_MAX} characters")
    if definition.interval and len(definition.key) == 1:
        only = definition.key[0]
        if TYPES[only].little or only is DataType.IFNAME:
            raise ValueError(f"set {definition.name}: {only} values have no order, so no intervals")
    if key_length(definition.key) > 64:
        raise ValueError(f"set {definition.name}: key of {key_length(definition.key)} bytes, at most 64 fit")
    if isinstance(definition, Map):
        return SetSpec(definition.name, definition.key, definition.interval, is_map=True)
    return SetSpec(definition.name, definition.key, definition.interval, definition.constant, definition.timeout_s)


class SetState:
    """One set: `wanted` is what the kernel must hold, `pending` how that differs from what it was last told (True:
    add).
    """

    def __init__(self, definition: Set) -> None:
        self.spec = _spec(definition)
        self.wanted: set[bytes] = set()
        self.pending: dict[bytes, bool] = {}
        self._members = _members(self.spec)
        self.replace(definition.elements)

    def add(self, texts: Iterable[str]) -> None:
        packed = pack_elements(self.spec.key, texts, interval=self.spec.interval)
        if self._members is None:
            self._apply(packed - self.wanted, set())
            return
        for member in packed:
            self._apply(*self._members.add(member))

    def remove(self, texts: Iterable[str]) -> None:
        packed = pack_elements(self.spec.key, texts, interval=self.spec.interval)
        if self._members is None:
            self._apply(set(), packed & self.wanted)
            return
        for member in packed:
            self._apply(*self._members.remove(member))

    def replace(self, texts: Iterable[str]) -> None:
        packed = pack_elements(self.spec.key, texts, interval=self.spec.interval)
        if self._members is not None:
            self._members.load(packed)
            packed = set(self._members.intervals)
        self._apply(packed - self.wanted, self.wanted - packed)

    def _apply(self, add: set[bytes], remove: set[bytes]) -> None:
        self.wanted -= remove
        self.wanted |= add
        for elements, other in ((remove, True), (add, False)):
            for element in elements:
                if self.pending.get(element) is other:
                    del self.pending[element]
                else:
                    self.pending[element] = not other

    def texts(self) -> list[str]:
        """What the kernel must hold, as text."""
        return [unpack_element(self.spec.key, element) for element in sorted(self.wanted)]


def _members(spec: SetSpec) -> Union | ConcatUnion | None:
    if not spec.interval:
        return None
    if len(spec.key) == 1:
        return Union()
    parts, at = [], 0
    for part in spec.key:
        parts.append((at, TYPES[part].length))
        at += padded(TYPES[part].length)
    addresses = [i for i, part in enumerate(spec.key) if part in (DataType.IPV4, DataType.IPV6)]
    return ConcatUnion(parts, addresses[0] if addresses else len(spec.key) - 1)


class MapState:
    """One verdict map; pending holds the keys whose verdict was touched."""

    def __init__(self, definition: Map) -> None:
        self.spec = _spec(definition)
        self.wanted: dict[bytes, Verdict] = {}
        self.pending: set[bytes] = set()
        self.replace(definition.elements)

    def put(self, elements: Mapping[str, Verdict]) -> None:
        for key, verdict in self._packed(elements).items():
            if self.wanted.get(key) != verdict:
                self.wanted[key] = verdict
                self.pending.add(key)

    def remove(self, texts: Iterable[str]) -> None:
        for key in pack_elements(self.spec.key, texts, interval=self.spec.interval):
            if self.wanted.pop(key, None) is not None:
                self.pending.add(key)

    def replace(self, elements: Mapping[str, Verdict]) -> None:
        packed = self._packed(elements)
        for key in self.wanted.keys() - packed.keys():
            del self.wanted[key]
            self.pending.add(key)
        for key, verdict in packed.items():
            if self.wanted.get(key) != verdict:
                self.wanted[key] = verdict
                self.pending.add(key)

    def _packed(self, elements: Mapping[str, Verdict]) -> dict[bytes, Verdict]:
        packed: dict[bytes, Verdict] = {}
        for text, verdict in elements.items():
            (key,) = pack_elements(self.spec.key, (text,), interval=self.spec.interval)
            if packed.get(key, verdict) != verdict:
                raise ElementError(f"map {self.spec.name}: {text!r} is given two verdicts")
            packed[key] = verdict
        return packed


class TableState:
    """Desired chains, sets and maps of one table. Set and map names share one name space."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.chains: dict[str, Chain] = {}
        self.sets: dict[str, SetState] = {}
        self.maps: dict[str, MapState] = {}
        self.dirty_chains: set[str] = set()
        self.dirty_sets: set[str] = set()  # names of sets and maps
        self.buried: dict[str, SetState | MapState] = {}  # deleted here, not yet in the kernel: may come back to life

    def set_chain(self, chain: Chain) -> None:
        """Create or replace. Rules are encoded here already, so a bad value is refused now, by name, and not by the
        kernel.
        """
        if self.chains.get(chain.name) == chain:
            return
        if not 0 < len(chain.name) <= NAME_MAX:
            raise ValueError(f"chain name {chain.name!r} must have 1 to {NAME_MAX} characters")
        for index, rule in enumerate(chain.rules):
            try:
                encode_rule(self.table.family, rule)
            except (ValueError, OverflowError, struct.error) as error:
                raise ElementError(f"chain {chain.name} rule {index}: {error}") from error
        self.chains[chain.name] = chain
        self.dirty_chains.add(chain.name)

    def del_chain(self, name: str) -> None:
        if self.chains.pop(name, None) is not None:
            self.dirty_chains.add(name)

    def put_set(self, definition: Set) -> None:
        """Create, or make an existing set hold exactly these elements; another type or flag replaces the set."""
        if definition.name in self.maps:
            raise ValueError(f"{definition.name} is a map already")
        spec, have = _spec(definition), self.sets.get(definition.name)
        if have is None or have.spec != spec:
            fresh = SetState(definition)
            former = self._former(have, spec)
            self.sets[definition.name] = former if isinstance(former, SetState) else fresh
        self.sets[definition.name].replace(definition.elements)
        self.dirty_sets.add(definition.name)

    def _former(self, have: SetState | MapState | None, spec: SetSpec) -> SetState | MapState | None:
        """Bury what is replaced; the buried one of that name if it is of the kind wanted now.

        The kernel still holds the first one buried since the last step, and only that object knows how it differs
        from it.
        """
        if have is not None:
            self.buried.setdefault(spec.name, have)
        buried = self.buried.get(spec.name)
        return self.buried.pop(spec.name) if buried is not None and buried.spec == spec else None

    def del_set(self, name: str) -> None:
        gone = self.sets.pop(name, None)
        if gone is not None:
            self.buried.setdefault(name, gone)
            self.dirty_sets.add(name)

    def set_elements(self, name: str, texts: Iterable[str]) -> None:
        """KeyError when there is no such set; so do the next two."""
        self.sets[name].replace(texts)
        self.dirty_sets.add(name)

    def add_elements(self, name: str, texts: Iterable[str]) -> None:
        self.sets[name].add(texts)
        self.dirty_sets.add(name)

    def remove_elements(self, name: str, texts: Iterable[str]) -> None:
        """Those that are not there are ignored."""
        self.sets[name].remove(texts)
        self.dirty_sets.add(name)

    def put_map(self, definition: Map) -> None:
        if definition.name in self.sets:
            raise ValueError(f"{definition.name} is a set already")
        spec, have = _spec(definition), self.maps.get(definition.name)
        if have is None or have.spec != spec:
            fresh = MapState(definition)
            former = self._former(have, spec)
            self.maps[definition.name] = former if isinstance(former, MapState) else fresh
        self.maps[definition.name].replace(definition.elements)
        self.dirty_sets.add(definition.name)

    def del_map(self, name: str) -> None:
        gone = self.maps.pop(name, None)
        if gone is not None:
            self.buried.setdefault(name, gone)
            self.dirty_sets.add(name)

    def put_verdicts(self, name: str, elements: Mapping[str, Verdict]) -> None:
        """Add or change; KeyError when there is no such map."""
        self.maps[name].put(elements)
        self.dirty_sets.add(name)

    def remove_verdicts(self, name: str, texts: Iterable[str]) -> None:
        self.maps[name].remove(texts)
        self.dirty_sets.add(name)

    def replace(self, ruleset: Ruleset) -> None:
        """Make the state equal to `ruleset`, touching only what differs."""
        if ruleset.table != self.table:
            raise ValueError(f"ruleset is of table {ruleset.table}, not {self.table}")
        chains = {chain.name: chain for chain in ruleset.chains}
        sets = {definition.name: definition for definition in ruleset.sets}
        maps = {definition.name: definition for definition in ruleset.maps}
        for name in self.chains.keys() - chains.keys():
            self.del_chain(name)
        for name in self.sets.keys() - sets.keys():
            self.del_set(name)
        for name in self.maps.keys() - maps.keys():
            self.del_map(name)
        for definition in sets.values():
            self.put_set(definition)
        for map_definition in maps.values():
            self.put_map(map_definition)
        for chain in chains.values():
            self.set_chain(chain)

    def ruleset(self) -> Ruleset:
        """A value of what is wanted; elements in the kernel's form (overlaps merged)."""
        return Ruleset(
            self.table,
            tuple(self.chains.values()),
            tuple(
                Set(s.spec.name, s.spec.key, frozenset(s.texts()), s.spec.interval, s.spec.constant, s.spec.timeout_s)
                for s in self.sets.values()
            ),
            tuple(
                Map(
                    m.spec.name,
                    m.spec.key,
                    {unpack_element(m.spec.key, key): verdict for key, verdict in m.wanted.items()},
                    m.spec.interval,
                )
                for m in self.maps.values()
            ),
        )
