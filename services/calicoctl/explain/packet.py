"""The packet that --protocol, --port and the like describe, for one family."""

from __future__ import annotations

from libs.policy.path import WITH_PORTS
from libs.policy.trace import Packet, protocol_number
from services.calicoctl.explain.ends import End

ICMP, ICMPV6 = 1, 58
ECHO = {ICMP: 8, ICMPV6: 128}
SOURCE_PORT = 40000


class PacketProblem(Exception):
    """The options describe no packet; says which one to change."""


def families(source: End, target: End, wanted: int | None) -> list[int]:
    """Those that both ends have, or the one that is wanted. Raises PacketProblem."""
    both = sorted(source.addresses.keys() & target.addresses.keys())
    if wanted is not None and wanted not in both:
        lacking = source if wanted not in source.addresses else target
        raise PacketProblem(f"{lacking.shown} has no IPv{wanted} address")
    if not both:
        raise PacketProblem(f"{source.shown} and {target.shown} have no address family in common")
    return both if wanted is None else [wanted]


def packet(
    source: End,
    target: End,
    family: int,
    *,
    protocol: str,
    port: str,
    source_port: int = 0,
    icmp_type: int | None = None,
    icmp_code: int | None = None,
) -> Packet:
    """protocol: name in any case, or number; "" is TCP, or ICMP when a type is given. port: number, or name of one of
    the target's ports. Raises PacketProblem.
    """
    number = number_of(protocol, icmp_type)
    if number in (ICMP, ICMPV6):
        number = ICMP if family == 4 else ICMPV6  # each family has its own
    name: str | int = NUMBERS.get(number, number)
    if number in ECHO:
        if port:
            raise PacketProblem(f"--port: {name} has no ports; give --icmp-type")
        kind = ECHO[number] if icmp_type is None else icmp_type
        return Packet(
            src=source.addresses[family], dst=target.addresses[family], protocol=name, icmp_type=kind,
            icmp_code=icmp_code or 0,
        )  # fmt: skip
    if icmp_type is not None or icmp_code is not None:
        raise PacketProblem(f"--icmp-type: {name} is not ICMP")
    if number not in WITH_PORTS:
        if port:
            raise PacketProblem(f"--port: protocol {name} has no ports")
        return Packet(src=source.addresses[family], dst=target.addresses[family], protocol=name)
    if not port:
        raise PacketProblem(f"--port: which port? Rules about {name} may ask for it")
    return Packet(
        src=source.addresses[family],
        dst=target.addresses[family],
        protocol=name,
        src_port=source_port or SOURCE_PORT,
        dst_port=_port(port, str(name), target),
    )


def number_of(protocol: str, icmp_type: int | None = None) -> int:
    """Of the protocol, as `packet` takes it. Raises PacketProblem."""
    asked = protocol.lower() or ("icmp" if icmp_type is not None else "tcp")
    try:
        number = protocol_number(int(asked) if asked.isdecimal() else asked)
    except ValueError:
        raise PacketProblem(f"--protocol: {protocol!r} is neither a number nor one of {', '.join(NAMES)}") from None
    if not 0 <= number <= 255:
        raise PacketProblem(f"--protocol: {number} is not within 0 to 255")
    return number


def is_number(text: str) -> bool:
    """Whether it can be the number of a port."""
    return text.isascii() and text.isdecimal() and len(text) <= 5


def port_number(text: str) -> int:
    """Of digits. Raises PacketProblem."""
    if not is_number(text) or not 0 < int(text) <= 65535:
        raise PacketProblem(f"--port: {text} is not within 1 to 65535")
    return int(text)


def _port(text: str, protocol: str, target: End) -> int:
    if text.isdecimal():
        return port_number(text)
    found = target.ports.get((protocol, text))
    if found is None:
        known = ", ".join(sorted(f"{name} ({of} {number})" for (of, name), number in target.ports.items()))
        has = known or "no named ports"
        raise PacketProblem(f"--port: {target.shown} has no {protocol} port {text!r}; it has {has}")
    return found


NUMBERS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp", 136: "udplite"}
NAMES = tuple(NUMBERS.values())


def shown(one: Packet) -> str:
    """`tcp/8080`, `icmp type 8 code 0`, `protocol 47`."""
    if one.icmp_type is not None:
        return f"{one.protocol} type {one.icmp_type} code {one.icmp_code}"
    if one.dst_port:
        return f"{one.protocol}/{one.dst_port}"
    return f"protocol {one.protocol}"
