"""What is said about a prefix: families, prefixes in their wire form, path attributes, and the changes of one UPDATE.

Every part of the speaker talks in these values. They are immutable and interned by who makes many of them, so that a
hundred thousand prefixes of one UPDATE share one `Attributes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network

Nlri: TypeAlias = bytes
"""One prefix as on the wire (RFC 4271 section 4.3): its length in bits, then as many octets as that needs. Host bits
are zero: decoders see to it, so that one prefix is one key."""


class Family(IntEnum):
    """Address families we speak, by AFI; always SAFI 1 (unicast)."""

    IPV4 = 1
    IPV6 = 2

    @property
    def octets(self) -> int:
        return 4 if self is Family.IPV4 else 16


def nlri(network: IPNetwork) -> Nlri:
    """ip_network("10.1.0.0/16") -> b"\\x10\\x0a\\x01"."""
    length = network.prefixlen
    return bytes((length,)) + network.network_address.packed[: (length + 7) // 8]


def network(family: Family, key: Nlri) -> IPNetwork:
    """Inverse of `nlri`."""
    packed = key[1:].ljust(family.octets, b"\0")
    return IPv4Network((packed, key[0])) if family is Family.IPV4 else IPv6Network((packed, key[0]))


class Origin(IntEnum):
    IGP = 0
    EGP = 1
    INCOMPLETE = 2


class SegmentType(IntEnum):
    """RFC 4271 section 4.3, RFC 5065 section 3."""

    SET = 1
    SEQUENCE = 2
    CONFED_SEQUENCE = 3
    CONFED_SET = 4


Segment: TypeAlias = tuple[SegmentType, tuple[int, ...]]
AsPath: TypeAlias = tuple[Segment, ...]


@dataclass(frozen=True)
class Attributes:
    """Path attributes as understood, AS numbers of four octets throughout (RFC 6793's AS4_* are merged by the codec).

    next_hop: packed, 4 or 16 octets; link_local: the second one of RFC 2545, or nothing. communities: as 32-bit
    numbers; extended: 8 octets each; large: three 32-bit numbers each. unknown: (flags, type, value) of optional
    transitive ones that are passed on as they are. partial: types of known ones that someone passed on without knowing
    them (the Partial bit, which stays set).
    """

    origin: Origin = Origin.IGP
    as_path: AsPath = ()
    next_hop: bytes = b""
    link_local: bytes = b""
    med: int | None = None
    local_pref: int | None = None
    atomic_aggregate: bool = False
    aggregator: tuple[int, bytes] | None = None
    communities: tuple[int, ...] = ()
    extended: tuple[bytes, ...] = ()
    large: tuple[tuple[int, int, int], ...] = ()
    originator_id: int | None = None
    cluster_list: tuple[int, ...] = ()
    unknown: tuple[tuple[int, int, bytes], ...] = ()
    partial: tuple[int, ...] = ()

    @cached_property
    def path_length(self) -> int:
        """For the decision process: a set counts as one, confederation segments as none (RFC 4271 9.1.2.2, 5065)."""
        return sum(
            len(numbers) if kind is SegmentType.SEQUENCE else 1
            for kind, numbers in self.as_path
            if kind in (SegmentType.SEQUENCE, SegmentType.SET)
        )

    @cached_property
    def first_as(self) -> int | None:
        """The neighbouring AS: leftmost of the path, None when the path begins with a set or is empty."""
        for kind, numbers in self.as_path:
            if kind is SegmentType.SEQUENCE and numbers:
                return numbers[0]
            if kind is SegmentType.SET:
                return None
        return None


@dataclass(frozen=True, slots=True)
class Reach:
    """Prefixes that are reachable with these attributes. path_ids: one each when the session has add-path receive."""

    family: Family
    attributes: Attributes
    prefixes: list[Nlri]
    path_ids: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Unreach:
    """Prefixes that are not reachable any more. reason: set when an error made the codec withdraw them (RFC 7606)."""

    family: Family
    prefixes: list[Nlri]
    path_ids: list[int] | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class EndOfRib:
    """RFC 4724 section 2."""

    family: Family


Change: TypeAlias = Reach | Unreach | EndOfRib
"""An UPDATE decodes to a list of these, withdrawals first."""
