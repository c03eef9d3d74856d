"""IP sets: which members each set holds, worked out from the items that its selector matches.

In: items' networks and named ports under the index's numbers, the sets that active rules refer to, and which items
joined or left a set's selector. Out: for each set, members added and removed.

A member belongs to a set while at least one matched item contributes it; two items may share an address for a moment,
so presence is asked of all owners of the network instead of being counted. In a NET set a network inside another member
is left out (an interval set refuses overlaps) and comes back when the cover goes. Both families share one set.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import TypeVar

import msgspec
from pyroaring import BitMap

from libs.model.selector import Selector, unique_id
from libs.policy import nets
from libs.policy.index import Entry, LabelIndex
from libs.policy.nets import Net
from libs.policy.output import IPSet, IPSetType

K = TypeVar("K", bound=Hashable)

PORT_PROTOCOLS = frozenset({"tcp", "udp", "sctp"})
ANY_PROTOCOL = "any"


class NamedPort(msgspec.Struct, frozen=True, array_like=True):
    """A port that an endpoint gives a name. protocol: tcp, udp or sctp."""

    name: str
    protocol: str
    port: int


class SetSpec:
    """What a set stands for. Exactly one of: the networks of what `selector` matches; with `port_name` the (address,
    protocol, port) of the ports so named; with `service` what its endpoint slices hold."""

    __slots__ = ("id", "port_name", "protocol", "selector", "service", "type")

    def __init__(
        self,
        set_id: str,
        type_: IPSetType,
        selector: Selector | None,
        port_name: str = "",
        protocol: str = "",
        service: str = "",
    ) -> None:
        self.id = set_id
        self.type = type_
        self.selector = selector
        self.port_name = port_name
        self.protocol = protocol
        self.service = service


def selector_set(selector: Selector) -> SetSpec:
    return SetSpec(selector.id, IPSetType.NET, selector)


def named_port_set(selector: Selector, protocol: str, port_name: str) -> SetSpec:
    """protocol: tcp, udp, sctp, or any, which takes the protocol of each port's own definition."""
    set_id = unique_id("n", f"{selector.id},{protocol},{port_name}")
    return SetSpec(set_id, IPSetType.IP_PORT, selector, port_name, protocol)


def service_set(name: str, namespace: str, *, with_ports: bool) -> SetSpec:
    """Every (address, protocol, port) of the service, or its addresses alone."""
    prefix, type_ = ("svc", IPSetType.IP_PORT) if with_ports else ("svcnoport", IPSetType.NET)
    service = f"{namespace}/{name}"
    return SetSpec(unique_id(prefix, service), type_, None, service=service)


class Contributor(msgspec.Struct, frozen=True):
    """What an item can put into sets."""

    nets: tuple[str, ...] = ()
    ports: tuple[NamedPort, ...] = ()


class _Set:
    __slots__ = ("entry", "members", "spec", "users", "wide")

    def __init__(self, spec: SetSpec, entry: Entry | None) -> None:
        self.spec = spec
        self.entry = entry
        self.members: set[str] = set()  # as published
        self.wide: dict[
            tuple[int, int], set[int]
        ] = {}  # (version, length) -> bases of networks that could cover others
        self.users = 1

    def covered(self, net: Net) -> bool:
        if not self.wide:
            return False
        bits = nets.BITS[net.version]
        for (version, length), bases in self.wide.items():
            if version == net.version and length < net.length:
                shift = bits - length
                if net.base >> shift << shift in bases:
                    return True
        return False


class SetDelta:
    """Changes of one set's members, folded: what was added and removed again is in neither."""

    __slots__ = ("added", "removed")

    def __init__(self) -> None:
        self.added: set[str] = set()
        self.removed: set[str] = set()


class SetTable:
    def __init__(self, index: LabelIndex) -> None:
        self._index = index
        self._contributors: dict[int, Contributor] = {}
        self._owners: dict[str, tuple[int, ...]] = {}  # network -> items that have it
        self._former: dict[
            int, set[str]
        ] = {}  # item -> networks it had or has, for items changed since the last refresh
        self._sets: dict[str, _Set] = {}
        self._sets_of: dict[Entry, dict[str, _Set]] = {}
        self._slices: dict[str, tuple[str, frozenset[str], frozenset[str]]] = {}  # slice → service, members, addresses
        self._slices_of: dict[str, set[str]] = {}  # service → its slices
        self._service_sets: dict[str, dict[str, _Set]] = {}  # service → its active sets
        self._changed_services: set[str] = set()

    # --- what items contribute ----------------------------------------------------------------------------------------

    def put_item(self, number: int, contributor: Contributor) -> None:
        old = self._contributors.get(number)
        if old == contributor:
            return
        touched = self._former.setdefault(number, set())
        if old is not None:
            touched.update(old.nets)
            self._disown(number, old.nets)
        touched.update(contributor.nets)
        self._contributors[number] = contributor
        for net in set(contributor.nets):
            self._owners[net] = (*self._owners.get(net, ()), number)

    def drop_item(self, number: int) -> None:
        old = self._contributors.pop(number, None)
        if old is not None:
            self._former.setdefault(number, set()).update(old.nets)
            self._disown(number, old.nets)

    def _disown(self, number: int, networks: Iterable[str]) -> None:
        for net in set(networks):
            left = tuple(owner for owner in self._owners[net] if owner != number)
            if left:
                self._owners[net] = left
            else:
                del self._owners[net]

    def put_slice(self, identity: str, service: str, members: frozenset[str], addresses: frozenset[str]) -> None:
        self.drop_slice(identity)
        self._slices[identity] = (service, members, addresses)
        self._slices_of.setdefault(service, set()).add(identity)
        self._changed_services.add(service)

    def drop_slice(self, identity: str) -> None:
        old = self._slices.pop(identity, None)
        if old is not None:
            slices = self._slices_of[old[0]]
            slices.discard(identity)
            if not slices:
                del self._slices_of[old[0]]
            self._changed_services.add(old[0])

    def _served(self, spec: SetSpec) -> set[str]:
        """Members of a service's set: of all its slices."""
        which = 1 if spec.type is IPSetType.IP_PORT else 2
        return set().union(*(self._slices[one][which] for one in self._slices_of.get(spec.service, ())))

    # --- which sets are active ----------------------------------------------------------------------------------------

    def activate(self, spec: SetSpec) -> bool:
        """One more user of a set; true when it is new, with its members complete."""
        known = self._sets.get(spec.id)
        if known is not None:
            known.users += 1
            return False
        entry = None if spec.selector is None else self._index.add_selector(spec.selector)
        new = self._sets[spec.id] = _Set(spec, entry)
        if entry is not None:
            self._sets_of.setdefault(entry, {})[spec.id] = new
            self._refresh_members(new, self._candidates(new, entry.matched), SetDelta())
        else:
            self._service_sets.setdefault(spec.service, {})[spec.id] = new
            new.members = self._served(spec)
        return True

    def deactivate(self, set_id: str) -> bool:
        """One user less; true when it was the last and the set is gone."""
        known = self._sets[set_id]
        known.users -= 1
        if known.users:
            return False
        del self._sets[set_id]
        if known.entry is not None:
            _drop(self._sets_of, known.entry, set_id)
            self._index.drop_selector(known.entry)
        else:
            _drop(self._service_sets, known.spec.service, set_id)
        return True

    def refresh(self, changed: Iterable[Entry]) -> dict[str, SetDelta]:
        """Bring the members of all sets up to date.

        changed: entries whose `flipped` holds the items that joined or left. Returns what changed by set id.
        """
        touched: dict[Entry, BitMap] = {entry: BitMap(entry.flipped) for entry in changed if entry in self._sets_of}
        for number in self._former:
            if number in self._contributors:
                for entry in self._index.entries_of(number):
                    if entry in self._sets_of:
                        touched.setdefault(entry, BitMap()).add(number)
        deltas: dict[str, SetDelta] = {}
        for entry, numbers in touched.items():
            for set_id, one in self._sets_of[entry].items():
                delta = SetDelta()
                self._refresh_members(one, self._candidates(one, numbers), delta)
                if delta.added or delta.removed:
                    deltas[set_id] = delta
        self._former.clear()
        for service in self._changed_services:
            for set_id, one in self._service_sets.get(service, {}).items():
                delta, now = SetDelta(), self._served(one.spec)
                delta.added, delta.removed = now - one.members, one.members - now
                one.members = now
                if delta.added or delta.removed:
                    deltas[set_id] = delta
        self._changed_services.clear()
        return deltas

    # --- reading ------------------------------------------------------------------------------------------------------

    def __contains__(self, set_id: str) -> bool:
        return set_id in self._sets

    def __iter__(self) -> Iterator[str]:
        return iter(self._sets)

    def __len__(self) -> int:
        return len(self._sets)

    def get(self, set_id: str) -> IPSet | None:
        one = self._sets.get(set_id)
        return None if one is None else IPSet(one.spec.type, frozenset(one.members))

    # --- members ------------------------------------------------------------------------------------------------------

    def _candidates(self, one: _Set, numbers: Iterable[int]) -> set[str]:
        """Members that could have come or gone because of these items, by what they contribute now and contributed
        before.
        """
        networks: set[str] = set()
        for number in numbers:
            former = self._former.get(number)
            if former is not None:
                networks |= former
            elif (contributor := self._contributors.get(number)) is not None:
                networks.update(contributor.nets)
        if one.spec.type is IPSetType.NET:
            return networks
        return self._port_candidates(one, networks)

    def _port_candidates(self, one: _Set, networks: set[str]) -> set[str]:
        """For a named-port set: what owners of these networks contribute now, and what is published for their
        addresses.
        """
        candidates: set[str] = set()
        for net in networks:
            for owner in self._owners.get(net, ()):
                candidates.update(self._port_members(one.spec, net, self._contributors[owner]))
        addresses = {nets.address(net) for net in networks}
        candidates.update(member for member in one.members if member.partition(",")[0] in addresses)
        return candidates

    @staticmethod
    def _port_members(spec: SetSpec, net: str, contributor: Contributor) -> list[str]:
        return [
            f"{nets.address(net)},{port.protocol}:{port.port}"
            for port in contributor.ports
            if port.name == spec.port_name and spec.protocol in (ANY_PROTOCOL, port.protocol)
        ]

    def _contributed(self, one: _Set, member: str) -> bool:
        matched = one.entry.matched if one.entry is not None else BitMap()
        if one.spec.type is IPSetType.NET:
            return any(owner in matched for owner in self._owners.get(member, ()))
        text = member.partition(",")[0]
        net = f"{text}/{nets.BITS[nets.version_of(text)]}"
        return any(
            owner in matched and member in self._port_members(one.spec, net, self._contributors[owner])
            for owner in self._owners.get(net, ())
        )

    def _refresh_members(self, one: _Set, candidates: set[str], delta: SetDelta) -> None:
        present = {member for member in candidates if self._contributed(one, member)}
        if one.spec.type is IPSetType.NET:
            uncovered = self._update_covers(one, candidates, present)
            if uncovered:
                candidates = candidates | uncovered
                present |= uncovered
            present = {member for member in present if not (one.wide and one.covered(nets.parse(member)))}
        for member in candidates:
            if member in present:
                if member not in one.members:
                    one.members.add(member)
                    delta.added.add(member)
            elif member in one.members:
                one.members.discard(member)
                delta.removed.add(member)

    def _update_covers(self, one: _Set, candidates: set[str], present: set[str]) -> set[str]:
        """Note which wide networks came and went; return the set's members inside those, whose visibility may have
        changed.
        """
        moved: list[Net] = []
        for member in candidates:
            if member.endswith(("/32", "/128")) and (net := nets.parse(member)).is_host:
                continue
            net = nets.parse(member)
            bases = one.wide.setdefault((net.version, net.length), set())
            if (member in present) is not (net.base in bases):
                moved.append(net)
                if member in present:
                    bases.add(net.base)
                else:
                    bases.discard(net.base)
            if not bases:
                del one.wide[net.version, net.length]
        if not moved or one.entry is None:
            return set()
        inside: set[str] = set()
        for number in one.entry.matched:
            for member in self._contributors[number].nets if number in self._contributors else ():
                net = nets.parse(member)
                if any(cover.contains(net) for cover in moved):
                    inside.add(member)
        return inside


def _drop(groups: dict[K, dict[str, _Set]], group: K, set_id: str) -> None:
    del groups[group][set_id]
    if not groups[group]:
        del groups[group]
