"""Packets for a drawn cluster, from the same small pools as its rules."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from random import Random

from libs.testkit import packets
from libs.testkit.packets import Packet
from tests.judges.draw import (
    ICMP_TYPES,
    NODE_ADDRESS,
    OUTSIDE,
    PODS,
    PORTS,
    REMOTE_PODS,
    SOURCE_PORTS,
    SPOOFER,
    own,
    spoofed,
)

OUT, HERE = "out", "here"  # the places of everything that is not on this node, and of the node itself
FAILSAFE = (22, 68, 179)  # with 53, ports that a host endpoint's policy may not close
PROTOCOLS = (packets.TCP, packets.UDP, packets.SCTP, packets.ICMP, packets.UDPLITE, packets.GRE)
WEIGHTS = (30, 21, 13, 20, 8, 8)


@dataclass(frozen=True, slots=True)
class Shot:
    """A packet and its way: sender and receiver are pods of this node, `OUT` or `HERE`."""

    packet: Packet
    sender: str
    receiver: str

    def __str__(self) -> str:
        p = self.packet
        more = f"type {p.icmp_type} code {p.icmp_code}" if p.icmp_type is not None else f"{p.sport} → {p.dport}"
        return f"{self.sender} {p.src} → {self.receiver} {p.dst} protocol {p.protocol} {more}"


def draw_shots(random: Random, count: int, *, guarded: bool = False) -> list[Shot]:
    """At most `count`: what a connection tracker would take for another one's reply or repetition is left out.

    guarded: the node's own traffic with the outside is of interest, as there is a host endpoint.
    """
    seen: set[Hashable] = set()
    out = []
    for number, shot in enumerate(_shots(random, count, guarded)):
        flow = _flow(shot.packet, number)
        if flow not in seen:
            seen.add(flow)
            out.append(shot)
    return out


def _shots(random: Random, count: int, guarded: bool) -> Iterator[Shot]:
    for _ in range(count):
        version = random.choice((4, 6))
        sender, receiver = _way(random, guarded)
        source, target = _address(random, sender, version), _address(random, receiver, version)
        if sender == SPOOFER and random.random() < 0.25:
            source = spoofed(version, random)
        protocol = random.choices(PROTOCOLS, WEIGHTS)[0]
        src, dst = ip_address(source), ip_address(target)
        if protocol == packets.ICMP:
            number = packets.ICMP if version == 4 else packets.ICMPV6
            types = (*ICMP_TYPES[version], *ICMP_TYPES[version][:1] * 2)  # echo more often
            packet = Packet(src, dst, number, icmp_type=random.choice(types), icmp_code=random.choice((0, 0, 1, 3)))
        elif protocol in packets.WITH_PORTS:
            sport = random.choice(SOURCE_PORTS) if random.random() < 0.4 else random.randint(1024, 65535)
            dport = random.choice((*PORTS, *FAILSAFE) if HERE in (sender, receiver) else PORTS)
            packet = Packet(src, dst, protocol, sport, dport)
        else:
            packet = Packet(src, dst, protocol)
        yield Shot(packet, sender, receiver)


def _way(random: Random, guarded: bool) -> tuple[str, str]:
    """From a pod to another, to the outside or from there; sometimes to the node or from it."""
    pod, other = random.sample(tuple(PODS), 2)
    ways = ((pod, other), (pod, OUT), (OUT, pod), (pod, HERE), (HERE, pod), (OUT, HERE), (HERE, OUT))
    return random.choices(ways, (22, 20, 26, 4, 1, 15, 12) if guarded else (36, 24, 33, 5, 1, 1, 0))[0]


def _address(random: Random, place: str, version: int) -> str:
    if place == HERE:
        return NODE_ADDRESS[version]
    if place != OUT:
        return own(place, version)
    return random.choice((*(own(name, version) for name in REMOTE_PODS), *OUTSIDE[version]))


def _flow(packet: Packet, number: int) -> Hashable:
    """Equal for packets of one connection. Trackers without a module for a protocol see its addresses only."""
    if packet.icmp_type is not None:
        return number  # the identifier is the packet's own
    with_ports = packet.protocol in packets.WITH_PORTS and packet.protocol != packets.UDPLITE
    ends = [(packet.src, packet.sport), (packet.dst, packet.dport)]
    return packet.protocol, frozenset(ends if with_ports else (address for address, _ in ends))
