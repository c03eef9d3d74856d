"""Sets of networks asked about prefixes in their wire form, without ever making an address object of a prefix.

A prefix lies inside a network when it is at least as long and its first octets are between the network's first and last
address, compared as bytes; so one comparison of slices answers, whatever the length.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Generic, TypeAlias, TypeVar

from services.bgp.core.paths import Family, IPNetwork, Nlri

L = TypeVar("L")
T = TypeVar("T")
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


class Regions(Generic[L, T]):
    """Which value holds for a prefix, by the networks it lies in: one search, however many they are and however they
    nest.

    networks: each with a label; those of another family are left out. judge: from the labels of all networks that a
    prefix lies in (outermost first) to the value; called once for each network, and once with () for prefixes in none.
    """

    def __init__(
        self, networks: Iterable[tuple[IPNetwork, L]], family: Family, judge: Callable[[tuple[L, ...]], T]
    ) -> None:
        labels: dict[IPNetwork, tuple[L, ...]] = {}
        for network, label in networks:
            if of_family(network, family):
                labels[network] = (*labels.get(network, ()), label)
        self._firsts: list[bytes] = []
        self._lengths: list[int] = []
        self._lasts: list[bytes] = []
        self._outer: list[int] = []  # index of the next larger network, -1: none
        self._values: list[T] = []
        chains: list[tuple[L, ...]] = []
        lasts: list[bytes] = []
        for network in sorted(labels, key=lambda n: (n.network_address.packed, n.prefixlen)):
            outer = len(chains) - 1
            while outer >= 0 and lasts[outer] < network.network_address.packed:
                outer = self._outer[outer]
            length, first, last = _bounds(network)
            chains.append((*(chains[outer] if outer >= 0 else ()), *labels[network]))
            lasts.append(network.broadcast_address.packed)
            self._firsts.append(first)
            self._lengths.append(length)
            self._lasts.append(last + b"\xff" * 16)  # not less than any prefix that begins with it
            self._outer.append(outer)
            self._values.append(judge(chains[-1]))
        self._values.append(judge(()))  # at -1

    def get(self, prefix: Nlri) -> T:
        return self.many((prefix,))[0]

    def many(self, prefixes: Iterable[Nlri]) -> list[T]:
        """The value of each; the loop is here because a call for each prefix would cost more than the search."""
        firsts, lengths, lasts, outer, values = self._firsts, self._lengths, self._lasts, self._outer, self._values
        found: list[T] = []
        append = found.append
        for prefix in prefixes:
            octets = prefix[1:]
            at = bisect_right(firsts, octets) - 1
            while at >= 0 and (prefix[0] < lengths[at] or octets > lasts[at]):
                at = outer[at]
            append(values[at])
        return found


def inside_any(networks: Iterable[IPNetwork], family: Family) -> PrefixTest:
    """Is a prefix inside one of them; networks of the other family are left out."""
    return Regions(((network, True) for network in networks), family, bool).get
