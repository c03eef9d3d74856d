"""IP sets split for the kernel: hosts in a hash, networks in an interval set, each address in exactly one of them.

A lookup in an interval set costs some four times one in a hash (docs/adr/0007), and most sets hold only pods. So a NET
set of the policy calculation becomes up to two kernel sets: hosts (full-length members) and networks. Interval sets
refuse overlap, and a rule on both halves must fire once for a packet, hence only covering networks are kept, and no
host below one of them. The other members are remembered: taking away 10.0.0.0/8 brings back 10.1.0.0/16 and 10.0.0.7.

Addresses are plain integers of one family here; a network is (first address, prefix length).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_network

Net = tuple[int, int]
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "udplite": 136, "icmp": 1, "icmpv6": 58}
BITS = {4: 32, 6: 128}


def parse_net(text: str) -> tuple[int, Net]:
    """(family, network) of `10.0.0.0/8`, `fd00::/64` or a bare address. Raises ValueError, for host bits too."""
    if ":" not in text:
        address, _, length = text.partition("/")
        octets = address.split(".")
        if len(octets) == 4 and (length == "32" or not length):  # nearly every member of nearly every set
            a, b, c, d = (int(o) for o in octets)
            if 0 <= a < 256 and 0 <= b < 256 and 0 <= c < 256 and 0 <= d < 256:
                return 4, (a << 24 | b << 16 | c << 8 | d, 32)
    net = ip_network(text)
    return net.version, (int(net.network_address), net.prefixlen)


def address_text(family: int, value: int) -> str:
    if family == 4:  # three times faster than IPv4Address, and there may be a hundred thousand
        return f"{value >> 24}.{value >> 16 & 255}.{value >> 8 & 255}.{value & 255}"
    return str(IPv6Address(value))


def net_text(family: int, net: Net) -> str:
    """`10.0.0.0/8`; a full-length network is its address alone, as nft writes it."""
    value, length = net
    return address_text(family, value) + ("" if length == BITS[family] else f"/{length}")


def parse_port_member(text: str) -> tuple[int, tuple[int, int, int]]:
    """(family, (address, protocol number, port)) of `10.0.0.1,tcp:80`."""
    host, _, rest = text.partition(",")
    protocol, _, port = rest.partition(":")
    family, (value, length) = parse_net(host)
    number = PROTOCOLS.get(protocol) or int(protocol)
    if length != BITS[family] or not 0 <= int(port) <= 65535 or not 0 <= number <= 255:
        raise ValueError(f"{text!r} is not address,protocol:port")
    return family, (value, number, int(port))


@dataclass(slots=True)
class Delta:
    """What to do to the kernel sets; `add` and `remove` of one kind are disjoint.

    gained, lost: the members themselves, covered ones too.
    """

    add_hosts: set[int] = field(default_factory=set)
    remove_hosts: set[int] = field(default_factory=set)
    add_nets: set[Net] = field(default_factory=set)
    remove_nets: set[Net] = field(default_factory=set)
    gained: list[Net] = field(default_factory=list)
    lost: list[Net] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.add_hosts or self.remove_hosts or self.add_nets or self.remove_nets)

    def show_host(self, host: int) -> None:
        _toggle(host, self.add_hosts, self.remove_hosts)

    def hide_host(self, host: int) -> None:
        _toggle(host, self.remove_hosts, self.add_hosts)

    def show_net(self, net: Net) -> None:
        _toggle(net, self.add_nets, self.remove_nets)

    def hide_net(self, net: Net) -> None:
        _toggle(net, self.remove_nets, self.add_nets)


def _toggle(item: int | Net, want: set, undo: set) -> None:  # type: ignore[type-arg]
    if item in undo:
        undo.discard(item)
    else:
        want.add(item)


class NetMembers:
    """Members of a NET set of one family, and which of them the kernel should hold. A change costs what it moves."""

    def __init__(self, bits: int) -> None:
        self.hosts: set[int] = set()  # for the hash half
        self.nets: set[Net] = set()  # for the interval half: covering networks only
        self._bits = bits
        self._all_nets: set[Net] = set()
        self._lengths: dict[int, int] = {}  # prefix length -> how many networks have it
        self._ordered_nets: list[Net] = []  # all networks, for "what lies inside"
        self._all_hosts: set[int] = set()
        self._ordered_hosts: list[int] | None = None  # kept from the first network on

    def all(self) -> set[Net]:
        return self._all_nets | {(host, self._bits) for host in self._all_hosts}

    def __len__(self) -> int:
        return len(self._all_nets) + len(self._all_hosts)

    def __contains__(self, net: Net) -> bool:
        """Whether it is a member itself; one that another covers is none for that."""
        return net[0] in self._all_hosts if net[1] == self._bits else net in self._all_nets

    def change(self, added: Iterable[Net], removed: Iterable[Net]) -> Delta:
        """Members that are there already, or missing already, are ignored. A member in both is added."""
        delta = Delta()
        added = list(added)
        keep = set(added)
        for net in removed:
            if net not in keep:
                self._remove(net, delta)
        for net in added:
            self._add(net, delta)
        return delta

    def _add(self, net: Net, delta: Delta) -> None:
        value, length = net
        if length == self._bits:
            if value in self._all_hosts:
                return
            self._all_hosts.add(value)
            delta.gained.append(net)
            if self._ordered_hosts is not None:
                insort(self._ordered_hosts, value)
            if not self._covered(value, length):
                self.hosts.add(value)
                delta.show_host(value)
            return
        if net in self._all_nets:
            return
        if self._ordered_hosts is None:
            self._ordered_hosts = sorted(self._all_hosts)
        self._all_nets.add(net)
        delta.gained.append(net)
        self._lengths[length] = self._lengths.get(length, 0) + 1
        insort(self._ordered_nets, net)
        if self._covered(value, length):
            return
        for inner in self._nets_inside(net):
            if inner in self.nets:
                self.nets.discard(inner)
                delta.hide_net(inner)
        for host in self._hosts_inside(net):
            if host in self.hosts:
                self.hosts.discard(host)
                delta.hide_host(host)
        self.nets.add(net)
        delta.show_net(net)

    def _remove(self, net: Net, delta: Delta) -> None:
        value, length = net
        if length == self._bits:
            if value not in self._all_hosts:
                return
            self._all_hosts.discard(value)
            delta.lost.append(net)
            if self._ordered_hosts is not None:
                del self._ordered_hosts[bisect_left(self._ordered_hosts, value)]
            if value in self.hosts:
                self.hosts.discard(value)
                delta.hide_host(value)
            return
        if net not in self._all_nets:
            return
        self._all_nets.discard(net)
        delta.lost.append(net)
        del self._ordered_nets[bisect_left(self._ordered_nets, net)]
        if self._lengths[length] == 1:
            del self._lengths[length]
        else:
            self._lengths[length] -= 1
        if net not in self.nets:
            return
        self.nets.discard(net)
        delta.hide_net(net)
        for inner in self._nets_inside(net):
            if not self._covered(*inner):
                self.nets.add(inner)
                delta.show_net(inner)
        for host in self._hosts_inside(net):
            if not self._covered(host, self._bits):
                self.hosts.add(host)
                delta.show_host(host)

    def _covered(self, value: int, length: int) -> bool:
        """True when a shorter network of the set holds `value`."""
        return any(
            (value >> (self._bits - shorter) << (self._bits - shorter), shorter) in self._all_nets
            for shorter in self._lengths
            if shorter < length
        )

    def _nets_inside(self, net: Net) -> list[Net]:
        value, length = net
        low = bisect_left(self._ordered_nets, (value, length + 1))
        high = bisect_left(self._ordered_nets, (value + (1 << (self._bits - length)), 0))
        return [inner for inner in self._ordered_nets[low:high] if inner[1] > length]

    def _hosts_inside(self, net: Net) -> list[int]:
        value, length = net
        assert self._ordered_hosts is not None
        low = bisect_left(self._ordered_hosts, value)
        return self._ordered_hosts[low : bisect_left(self._ordered_hosts, value + (1 << (self._bits - length)))]


def covering(nets: Iterable[Net], bits: int) -> list[Net]:
    """The networks that no other of them covers, in order; full-length members count as networks here."""
    out: list[Net] = []
    end = -1
    for value, length in sorted(set(nets)):
        if value > end:
            out.append((value, length))
            end = value + (1 << (bits - length)) - 1
    return out
