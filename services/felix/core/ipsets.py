"""The IP sets of one address family: what the kernel sets should hold, and what changed since they were last written.

Flows in: IP sets of the policy calculation, as snapshots or as added and removed members. Flows out: for each IP set
the kernel sets that carry it (`Half`), their whole content for a set that is new in the kernel, else only the elements
to add and remove. Which of them the table has is the caller's knowledge (family.py), and so is what to compile anew
when a set changes its halves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from libs.nftables import model as nft
from libs.policy.output import IPSetType
from services.felix.core import names
from services.felix.core.options import Family
from services.felix.core.rules import Half, UnknownSet
from services.felix.core.sets import Net, NetMembers, address_text, net_text, parse_net, parse_port_member

PROTOCOL_NAMES = {6: "tcp", 17: "udp", 132: "sctp"}
PortMember = tuple[int, int, int]
LARGEST_GUARD = 512  # members of one family


@dataclass(slots=True)
class Members:
    """Members of one IP set by family, parsed. Only the lists of the set's own type are filled."""

    nets: dict[int, list[Net]] = field(default_factory=lambda: {4: [], 6: []})
    ports: dict[int, list[PortMember]] = field(default_factory=lambda: {4: [], 6: []})


def parse_members(type_: IPSetType, texts: Iterable[str]) -> Members:
    """Raises ValueError naming the first member that is not of this type."""
    out = Members()
    for text in texts:
        try:
            if type_ is IPSetType.NET:
                family, net = parse_net(text)
                out.nets[family].append(net)
            else:
                family, member = parse_port_member(text)
                out.ports[family].append(member)
        except ValueError as error:
            raise ValueError(f"bad member {text!r}: {error}") from error
    return out


@dataclass(slots=True)
class Change:
    """Elements to add to and remove from one kernel set, disjoint."""

    add: set[str] = field(default_factory=set)
    remove: set[str] = field(default_factory=set)

    def merge(self, add: Iterable[str], remove: Iterable[str]) -> None:
        """A later change on top; `add` and `remove` are real changes, never repetitions."""
        for element in remove:
            if element in self.add:
                self.add.discard(element)
            else:
                self.remove.add(element)
        for element in add:
            if element in self.remove:
                self.remove.discard(element)
            else:
                self.add.add(element)


class IpSets:
    def __init__(self, family: Family) -> None:
        self.changes: dict[str, Change] = {}  # by kernel set; for sets that the kernel has
        self.reshaped: set[str] = (
            set()
        )  # ids whose kernel sets are others than before: appeared, gone, gained or lost a half
        self.replaced: set[str] = set()  # kernel sets whose content was dropped since: changes no longer tell all
        self._family = family
        self._nets: dict[str, NetMembers] = {}
        self._ports: dict[str, set[PortMember]] = {}
        self._parts: dict[str, tuple[tuple[str, ...], frozenset[Net]]] = {}  # of each union: ids of sets, and networks
        self._unions: dict[str, set[str]] = {}  # part → the unions that it is in

    def replace(self, set_id: str, type_: IPSetType, members: Members) -> None:
        """The set's whole content; the difference to what it was becomes the change."""
        if type_ is IPSetType.NET:
            self._forget(set_id, self._ports)
            if set_id not in self._nets:  # the caller will write it as a whole: no element of it is a change
                self._nets[set_id] = NetMembers(self._family.bits)
                delta = self._nets[set_id].change(members.nets[self._family.version], ())
                self.reshaped.add(set_id)
                self._change_unions(set_id, delta.gained, ())
                return
            wanted = set(members.nets[self._family.version])
            self._change_nets(set_id, wanted, self._nets[set_id].all() - wanted)
        else:
            self._forget(set_id, self._nets)
            new = set(members.ports[self._family.version])
            if set_id not in self._ports:
                self._ports[set_id] = new
                self.reshaped.add(set_id)
                return
            self._change_ports(set_id, new, self._ports[set_id] - new)

    def change(self, set_id: str, type_: IPSetType, added: Members, removed: Members) -> None:
        version = self._family.version
        if type_ is IPSetType.NET:
            self._change_nets(set_id, added.nets[version], removed.nets[version])
        else:
            self._change_ports(set_id, added.ports[version], removed.ports[version])

    def remove(self, set_id: str) -> None:
        self._forget(set_id, self._nets)
        self._forget(set_id, self._ports)

    def put_union(self, union_id: str, parts: tuple[str, ...], nets: Iterable[str]) -> None:
        """A set that holds what its parts hold, and `nets`, from now on; parts: IP sets of networks, or unions."""
        ours = frozenset(net for version, net in map(parse_net, nets) if version == self._family.version)
        self._part_from(union_id)
        self._parts[union_id] = parts, ours
        for part in parts:
            self._unions.setdefault(part, set()).add(union_id)
        wanted = {*ours, *(net for part in parts for net in self._nets[part].all())}
        if union_id in self._nets:
            have = self._nets[union_id].all()
            self._change_nets(union_id, wanted - have, have - wanted)
            return
        self._nets[union_id] = NetMembers(self._family.bits)
        self._nets[union_id].change(wanted, ())
        self.reshaped.add(union_id)

    def remove_union(self, union_id: str) -> None:
        self._part_from(union_id)
        del self._parts[union_id]
        self._forget(union_id, self._nets)

    def _part_from(self, union_id: str) -> None:
        for part in self._parts.get(union_id, ((), None))[0]:
            self._unions[part].discard(union_id)
            if not self._unions[part]:
                del self._unions[part]

    def forget_unions(self) -> None:
        """For a ruleset that starts from nothing with these sets."""
        for union_id in reversed([*self._parts]):  # outer ones first: nothing is taken out of what goes as well
            self.remove_union(union_id)

    def can_guard(self, set_id: str) -> bool:
        """Whether it may be a part of unions. Large ones may not: each level of unions would hold all of it again, and
        write it all again when another part changes. An id is in `reshaped` when the answer becomes another.
        """
        return set_id in self._nets and len(self._nets[set_id]) <= LARGEST_GUARD

    def halves(self, set_id: str, type_: IPSetType) -> Sequence[Half]:
        """The kernel sets that together hold this IP set; each address is in one of them only.

        Raises UnknownSet when there is no such set, and ValueError when it is of the other type.
        """
        name = names.ip_set(set_id)
        if type_ is IPSetType.NET and set_id in self._nets:
            members = self._nets[set_id]
            halves = []
            if members.hosts or not members.nets:
                halves.append(Half(f"{name}-h", interval=False))
            if members.nets:
                halves.append(Half(f"{name}-n", interval=True))
            return halves
        if type_ is IPSetType.IP_PORT and set_id in self._ports:
            return [Half(name, interval=False)]
        if set_id in self._nets or set_id in self._ports:
            raise ValueError(f"IP set {set_id} is not of type {type_}")
        raise UnknownSet(set_id)

    def kernel_set(self, set_id: str, name: str) -> nft.Set:
        """The kernel set `name`, one of those that `halves` lists for this id, with all its elements."""
        version = self._family.version
        if set_id in self._ports:
            key = (self._family.address, nft.DataType.PROTO, nft.DataType.PORT)
            return nft.Set(name, key, frozenset(self._port_text(member) for member in self._ports[set_id]))
        members = self._nets[set_id]
        if name.endswith("-n"):
            nets = frozenset(net_text(version, net) for net in members.nets)
            return nft.Set(name, (self._family.address,), nets, interval=True)
        return nft.Set(name, (self._family.address,), frozenset(address_text(version, host) for host in members.hosts))

    def _change_nets(self, set_id: str, added: Iterable[Net], removed: Iterable[Net]) -> None:
        version, members = self._family.version, self._nets[set_id]
        before, could_guard = self.halves(set_id, IPSetType.NET), self.can_guard(set_id)
        delta = members.change(added, removed)
        self._change_unions(set_id, delta.gained, delta.lost)
        if set_id not in self._parts and could_guard != self.can_guard(set_id):
            self.reshaped.add(set_id)
        if not delta:
            return
        if before != self.halves(set_id, IPSetType.NET):
            self.reshaped.add(set_id)
        name = names.ip_set(set_id)
        if delta.add_hosts or delta.remove_hosts:
            self._record(
                f"{name}-h",
                (address_text(version, host) for host in delta.add_hosts),
                (address_text(version, host) for host in delta.remove_hosts),
            )
        if delta.add_nets or delta.remove_nets:
            self._record(
                f"{name}-n",
                (net_text(version, net) for net in delta.add_nets),
                (net_text(version, net) for net in delta.remove_nets),
            )

    def _change_unions(self, part: str, gained: Sequence[Net], lost: Iterable[Net]) -> None:
        """After a part changed: a member leaves a union only with the last part that has it."""
        for union_id in self._unions.get(part, ()):
            parts, nets = self._parts[union_id]
            others = [self._nets[other] for other in parts if other in self._nets]
            gone = [net for net in lost if net not in nets and not any(net in other for other in others)]
            self._change_nets(union_id, gained, gone)

    def _change_ports(self, set_id: str, added: Iterable[PortMember], removed: Iterable[PortMember]) -> None:
        have = self._ports[set_id]
        added = set(added)
        gone = (set(removed) - added) & have
        new = added - have
        have -= gone
        have |= new
        if new or gone:
            self._record(names.ip_set(set_id), map(self._port_text, new), map(self._port_text, gone))

    def written(self) -> None:
        """Everything up to now has been handed on."""
        self.changes, self.reshaped, self.replaced = {}, set(), set()

    def _record(self, name: str, add: Iterable[str], remove: Iterable[str]) -> None:
        self.changes.setdefault(name, Change()).merge(add, remove)

    def _forget(self, set_id: str, where: dict[str, NetMembers] | dict[str, set[PortMember]]) -> None:
        if set_id in where:
            if where is self._nets and set_id in self._unions:
                lost = self._nets.pop(set_id).all()
                self._change_unions(set_id, (), lost)
            else:
                del where[set_id]
            self.reshaped.add(set_id)
            name = names.ip_set(set_id)
            for kernel_name in (name, f"{name}-h", f"{name}-n"):
                self.changes.pop(kernel_name, None)
                self.replaced.add(kernel_name)

    def _port_text(self, member: PortMember) -> str:
        host, protocol, port = member
        return f"{address_text(self._family.version, host)} . {PROTOCOL_NAMES.get(protocol, protocol)} . {port}"
