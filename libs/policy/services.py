"""Every kind of packet that rules can tell apart: protocols, ranges of ports, types of ICMP.

The verdict about two addresses is the same for all packets of one `Service`, so asking about one of them is asking
about all. Source ports are not told apart: what is asked has one that no rule names, where there is such a port.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from libs.policy.output import IPSet, Rule
from libs.policy.path import WITH_PORTS
from libs.policy.trace import Packet, protocol_number

ICMP = {4: 1, 6: 58}
ALWAYS = (6, 17)
NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp", 136: "udplite"}
LAST_PORT = 65535


class Service(msgspec.Struct, frozen=True, order=True):
    """protocol: number; -1 stands for all that no rule names. Ports from low to high, both 0 for protocols without.
    icmp: (type, code); -1 is every type, or code of that type, that no rule names. example: one of those that -1 stands
    for: a protocol, or type and code.
    """

    protocol: int
    low: int = 0
    high: int = 0
    icmp: tuple[int, int] | None = None
    example: tuple[int, int] = (0, 0)

    def packet(self, src: str, dst: str, src_port: int) -> Packet:
        number = self.example[0] if self.protocol < 0 else self.protocol
        name: str | int = NAMES.get(number, number)
        if self.icmp is not None:
            kind, code = self.example if -1 in self.icmp else self.icmp
            return Packet(src=src, dst=dst, protocol=name, icmp_type=kind, icmp_code=code)
        ports = (src_port, self.low) if number in WITH_PORTS else (0, 0)
        return Packet(src=src, dst=dst, protocol=name, src_port=ports[0], dst_port=ports[1])


def single(protocol: int, port: int = 0, icmp: tuple[int, int] | None = None) -> Service:
    """One service as a user asks for it."""
    return Service(protocol, port, port, icmp)


def all_of(rules: Iterable[Rule], ipsets: Mapping[str, IPSet], version: int) -> list[Service]:
    """All that these rules tell apart, in one address family."""
    named: set[int] = set(ALWAYS)
    cuts: dict[int, set[int]] = {number: {1} for number in WITH_PORTS}  # where another range of ports begins
    icmp: set[tuple[int, int | None]] = set()
    for rule in rules:
        protocols = {protocol_number(one) for one in (rule.protocol, rule.not_protocol) if one is not None}
        named |= protocols
        ranges = (*rule.dst_ports, *rule.not_dst_ports)
        about = WITH_PORTS if rule.protocol is None else protocols & WITH_PORTS
        for number in about if ranges else ():
            named.add(number)
            cuts[number].update(port for one in ranges for port in (one.first, one.last + 1))
        for set_id in (*rule.dst_named_port_sets, *rule.not_dst_named_port_sets, *rule.dst_ip_port_sets):
            for member in ipsets[set_id].members:
                text, _, port = member.partition(",")[2].partition(":")
                number = protocol_number(int(text) if text.isdecimal() else text)
                named.add(number)
                cuts.setdefault(number, {1}).update((int(port), int(port) + 1))
        icmp.update((kind.type, kind.code) for kind in (rule.icmp, rule.not_icmp) if kind is not None)
    services: list[Service] = []
    for number in sorted(named - set(ICMP.values())):
        if number not in WITH_PORTS:
            services.append(Service(number))
            continue
        starts = sorted(port for port in cuts[number] if 1 <= port <= LAST_PORT)
        ends = [start - 1 for start in starts[1:]] + [LAST_PORT]
        services += [Service(number, low, high) for low, high in zip(starts, ends, strict=True)]
    services += _icmp(icmp, version)
    other = next((number for number in range(47, 256) if number not in named | WITH_PORTS | {1, 58}), None)
    if other is not None:
        services.append(Service(-1, example=(other, 0)))
    return services


def _icmp(named: set[tuple[int, int | None]], version: int) -> list[Service]:
    protocol = ICMP[version]
    services = []
    types = {kind for kind, _ in named}
    for kind in sorted(types):
        codes = {code for one, code in named if one == kind and code is not None}
        services += [Service(protocol, icmp=(kind, code)) for code in sorted(codes)]
        other = next((code for code in range(256) if code not in codes), None)
        if other is not None:
            services.append(Service(protocol, icmp=(kind, -1), example=(kind, other)))
    echo = 8 if version == 4 else 128
    rest = next((kind for kind in (echo, *range(256)) if kind not in types), None)
    if rest is not None:
        services.append(Service(protocol, icmp=(-1, -1), example=(rest, 0)))
    return services


def find(services: Iterable[Service], packet: Packet) -> Service | None:
    """The one among all that rules tell apart to which a packet belongs."""
    number = protocol_number(packet.protocol)
    rest: Service | None = None
    for one in services:
        if one.protocol < 0:
            rest = rest or one
        elif one.protocol != number:
            continue
        elif one.icmp is None:
            if not one.high or one.low <= packet.dst_port <= one.high:
                return one
        elif one.icmp == (packet.icmp_type, packet.icmp_code):
            return one
        elif one.icmp == (packet.icmp_type, -1) or (one.icmp == (-1, -1) and (rest is None or rest.icmp is None)):
            rest = one
    return rest


def source_port(rules: Iterable[Rule]) -> tuple[int, bool]:
    """(a source port that no rule names, whether any rule names one at all)."""
    ranges = [one for rule in rules for one in (*rule.src_ports, *rule.not_src_ports)]
    ephemeral = (*range(40000, LAST_PORT + 1), *range(1, 40000))
    free = next((port for port in ephemeral if not any(one.first <= port <= one.last for one in ranges)), 40000)
    return free, bool(ranges)


def shown(services: Sequence[Service]) -> list[str]:
    """In the fewest words: `tcp/80`, `udp`, `tcp/8000-8085`, `icmp type 8`, `icmp` (other types), `other protocols`."""
    rest: list[str] = []
    ranges: dict[int, list[list[int]]] = {}
    for one in sorted(services):
        name = NAMES.get(one.protocol, str(one.protocol))
        if one.protocol < 0:
            continue
        if one.icmp is not None:
            rest.append(f"{name}{_icmp_words(one)}")
        elif one.high:
            joined = ranges.setdefault(one.protocol, [])
            if joined and joined[-1][1] + 1 == one.low:
                joined[-1][1] = one.high
            else:
                joined.append([one.low, one.high])
        else:
            rest.append(f"protocol {name}")
    ports = [
        NAMES[protocol] + ("" if (low, high) == (1, LAST_PORT) else f"/{low}" if low == high else f"/{low}-{high}")
        for protocol, found in ranges.items()
        for low, high in found
    ]
    others = ["other protocols"] if any(one.protocol < 0 for one in services) else []
    return [*ports, *rest, *others]


def _icmp_words(one: Service) -> str:
    assert one.icmp is not None
    kind, code = one.icmp
    if kind < 0:
        return ""
    return f" type {kind}" + (f" code {code}" if code >= 0 else "")
