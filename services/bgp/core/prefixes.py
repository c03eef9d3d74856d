"""Sets of networks asked about prefixes in their wire form, without ever making an address object of a prefix.

A prefix lies inside a network when it is at least as long and its first octets are between the network's first and last
address, compared as bytes; so one comparison of slices answers, whatever the length.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import TypeAlias

from services.bgp.core.paths import Family, IPNetwork, Nlri

PrefixTest: TypeAlias = Callable[[Nlri], bool]


def of_family(network: IPNetwork, family: Family) -> bool:
    return (network.version == 4) is (family is Family.IPV4)


def _bounds(network: IPNetwork) -> tuple[int, bytes, bytes]:
    """(length, first octets, last octets), as many octets as the length needs."""
    octets = (network.prefixlen + 7) // 8
    return network.prefixlen, network.network_address.packed[:octets], network.broadcast_address.packed[:octets]


def never(prefix: Nlri) -> bool:
    return False


def inside(network: IPNetwork) -> PrefixTest:
    """Is a prefix the network itself or a part of it (BIRD's `net ~`)."""
    length, first, last = _bounds(network)
    end = 1 + len(first)

    def test(prefix: Nlri) -> bool:
        return prefix[0] >= length and first <= prefix[1:end] <= last

    return test


def inside_any(networks: Iterable[IPNetwork], family: Family) -> PrefixTest:
    """Is a prefix inside one of them; networks of the other family are left out. Cost does not grow with their
    number."""
    outer: list[IPNetwork] = []
    for network in sorted(
        {n for n in networks if of_family(n, family)}, key=lambda n: (n.network_address.packed, n.prefixlen)
    ):
        if not outer or network.network_address.packed > outer[-1].broadcast_address.packed:
            outer.append(network)
    if not outer:
        return never
    if len(outer) == 1:
        return inside(outer[0])
    bounds = [_bounds(network) for network in outer]
    lengths = [length for length, _, _ in bounds]
    firsts = [first for _, first, _ in bounds]
    lasts = [last for _, _, last in bounds]

    def test(prefix: Nlri) -> bool:
        at = bisect_right(firsts, prefix[1:]) - 1
        if at < 0:
            return False
        last = lasts[at]
        return prefix[0] >= lengths[at] and prefix[1 : 1 + len(last)] <= last

    return test
