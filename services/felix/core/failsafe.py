"""Failsafe ports: what a host endpoint's policy can never close (facts/felix.md section 4.11)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_network

from libs.nftables import model as nft
from libs.nftables.model import Chain, Field, Rule
from libs.policy.path import DEFAULT_FAILSAFE_IN, DEFAULT_FAILSAFE_OUT
from services.felix.core.sets import PROTOCOLS

FAILSAFE_IN, FAILSAFE_OUT = "failsafe-in", "failsafe-out"
FAILSAFE_IN_RAW, FAILSAFE_OUT_RAW = "failsafe-in-raw", "failsafe-out-raw"


@dataclass(frozen=True, slots=True)
class FailsafePort:
    """protocol: name in lower case. net: the other side must be in it; "" is anybody of either family."""

    protocol: str
    port: int
    net: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"failsafe port: unknown protocol {self.protocol!r}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"failsafe port: {self.port} is no port")
        if self.net:
            ip_network(self.net, strict=False)

    def __str__(self) -> str:
        return f"{self.protocol}/{self.port}" + (f" {self.net}" if self.net else "")


DEFAULT_IN = tuple(FailsafePort(one.protocol, one.port) for one in DEFAULT_FAILSAFE_IN)
DEFAULT_OUT = tuple(FailsafePort(one.protocol, one.port) for one in DEFAULT_FAILSAFE_OUT)


def chains(
    version: int,
    remote: tuple[Field, Field],
    inbound: Iterable[FailsafePort],
    outbound: Iterable[FailsafePort],
    always: Sequence[Rule],
    *,
    raw: bool,
) -> list[Chain]:
    """always: what else must get through, first in every chain. remote: the fields of the other side's address, of what
    comes in and of what goes out. raw: those before connection tracking too, where answers must be let through by their
    source port.
    """
    source, destination = remote
    into = [rule for port in inbound for rule in _port(version, port, source, Field.DPORT)]
    out = [rule for port in outbound for rule in _port(version, port, destination, Field.DPORT)]
    found = [Chain(FAILSAFE_IN, (*always, *into)), Chain(FAILSAFE_OUT, (*always, *out))]
    if raw:
        answers_in = [rule for port in outbound for rule in _port(version, port, source, Field.SPORT)]
        answers_out = [rule for port in inbound for rule in _port(version, port, destination, Field.SPORT)]
        found += [
            Chain(FAILSAFE_IN_RAW, (*always, *into, *answers_in)),
            Chain(FAILSAFE_OUT_RAW, (*always, *out, *answers_out)),
        ]
    return found


def _port(version: int, port: FailsafePort, address: Field, field: Field) -> Iterable[Rule]:
    matches: list[nft.Expr] = [
        nft.Match(Field.L4PROTO, PROTOCOLS[port.protocol]),
        nft.Match(field, port.port),
    ]
    if port.net:
        net = ip_network(port.net, strict=False)
        if net.version != version:
            return
        if net.prefixlen:
            matches.append(nft.Match(address, str(net)))
    text = f"failsafe {port}" if field is Field.DPORT else f"answer of failsafe {port}"
    yield Rule((*matches, nft.COUNTER, nft.ACCEPT), text)
