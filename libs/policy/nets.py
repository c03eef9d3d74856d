"""Networks as text, in the canonical form that goes to the wire, and as numbers, for containment."""

from __future__ import annotations

import ipaddress
import re
from functools import lru_cache
from typing import NamedTuple

BITS = {4: 32, 6: 128}
# Python also reads netmasks and the zones of link-local addresses; neither is a form of the API, nor of nft's sets.
_FORM = re.compile(r"[0-9a-fA-F.:]+(/[0-9]+)?")
_MAC = re.compile(r"[0-9a-f]{12}")


class Net(NamedTuple):
    """A network as numbers. `base` is the integer of its first address."""

    version: int
    base: int
    length: int

    @property
    def is_host(self) -> bool:
        return self.length == BITS[self.version]

    def contains(self, other: Net) -> bool:
        return (
            self.version == other.version
            and self.length <= other.length
            and (other.base >> (BITS[self.version] - self.length)) == (self.base >> (BITS[self.version] - self.length))
        )


@lru_cache(maxsize=65536)
def canonical(text: str) -> str:
    """A network or single address with its host bits cleared and a prefix length: "10.0.0.1" -> "10.0.0.1/32".

    Raises ValueError for anything that is neither.
    """
    if not _FORM.fullmatch(text):
        raise ValueError(f"{text!r} is neither a network nor an address")
    return str(ipaddress.ip_network(text, strict=False))


def canonical_address(text: str) -> str:
    """An address in canonical form. Raises ValueError for anything else."""
    if not _FORM.fullmatch(text):
        raise ValueError(f"{text!r} is no address")
    return str(ipaddress.ip_address(text))


@lru_cache(maxsize=65536)
def parse(text: str) -> Net:
    """The numbers of a canonical network, or of a bare address. Raises ValueError."""
    network = ipaddress.ip_network(text, strict=False)
    return Net(network.version, int(network.network_address), network.prefixlen)


def address(net: str) -> str:
    """The address part of a network's text."""
    return net.partition("/")[0]


def version_of(net: str) -> int:
    return 6 if ":" in net else 4


def text(net: Net) -> str:
    """The canonical text of a network."""
    first = ipaddress.IPv4Address(net.base) if net.version == 4 else ipaddress.IPv6Address(net.base)
    return f"{first}/{net.length}"


def nth_address(net: str, ordinal: int) -> str:
    """The address `ordinal` places after the first of a network, without a prefix length."""
    version, base, _ = parse(net)
    return text(Net(version, base + ordinal, BITS[version])).partition("/")[0]


def valid_address(text: str, version: int | None = None) -> str:
    """An address, of that family if one is asked for, with or without a prefix length, as it is; "" for anything
    else.
    """
    try:
        canonical(text)
    except ValueError:
        return ""
    return text if version in (None, version_of(text)) else ""


def valid_mac(text: str) -> str:
    """A MAC that an interface can have, in any form of the API (66:aa:…, 66-aa-…, 66aa.bbcc.ddee), as 66:aa:…; "" for
    anything else, such as one of a group.
    """
    digits = re.sub(r"[:.-]", "", text).lower()
    if not _MAC.fullmatch(digits) or int(digits[:2], 16) & 1 or not int(digits, 16):
        return ""
    return ":".join(re.findall("..", digits))
