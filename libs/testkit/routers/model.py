"""What a router is asked to do, and what it says it learned, in words that all daemons share."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Literal, TypeAlias

Family: TypeAlias = Literal["ipv4", "ipv6"]
AsSet: TypeAlias = frozenset[int]


def family_of(text: str) -> Family:
    """Of an address or a prefix."""
    return "ipv6" if ":" in text else "ipv4"


@dataclass(frozen=True, slots=True)
class Route:
    """One path with its attributes, as announced or as found in a RIB; compared by what travels on the wire.

    next_hop "" means: the announcing router. as_path: AS numbers from left to right, a set as a frozenset.
    extended: as `rt:A:B` or `soo:A:B`. unknown: (type, value in hex) of optional transitive attributes. best, stale,
    neighbour and path_id tell where it stands and do not count in comparisons.
    """

    prefix: str
    next_hop: str = ""
    link_local: str = ""
    origin: str = "igp"
    as_path: tuple[int | AsSet, ...] = ()
    med: int | None = None
    local_pref: int | None = None
    communities: frozenset[tuple[int, int]] = frozenset()
    extended: frozenset[str] = frozenset()
    large: frozenset[tuple[int, int, int]] = frozenset()
    atomic: bool = False
    aggregator: tuple[int, str] | None = None
    originator_id: str = ""
    cluster_list: tuple[str, ...] = ()
    unknown: frozenset[tuple[int, str]] = frozenset()
    best: bool = field(default=True, compare=False)
    stale: bool = field(default=False, compare=False)
    neighbour: str = field(default="", compare=False)
    path_id: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", str(ip_network(self.prefix)))
        for name in ("next_hop", "link_local"):
            if text := getattr(self, name):
                object.__setattr__(self, name, str(ip_address(text)))

    @property
    def family(self) -> Family:
        return family_of(self.prefix)


@dataclass(frozen=True, slots=True)
class Reject:
    """An import filter: what lies in the prefix (it included) is not taken."""

    prefix: str


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One session. Empty families: that of the address.

    dynamic: take whoever connects from this prefix (address is then not connected to). multihop and ttl_security:
    number of hops. graceful_restart: advertised restart time in seconds. next_hop_extended: IPv4 routes with IPv6 next
    hops (RFC 8950). long_lived: long-lived stale time in seconds (RFC 9494). as4 False: 2-octet AS numbers only.
    interface: of a link-local address. export_none: tell nothing.
    """

    address: str
    asn: int
    local_address: str = ""
    local_as: int | None = None
    port: int = 179
    password: str = ""
    passive: bool = False
    dynamic: str = ""
    multihop: int | None = None
    ttl_security: int | None = None
    families: tuple[Family, ...] = ()
    graceful_restart: int | None = None
    long_lived: int | None = None
    hold_time_s: int = 90
    keepalive_s: int | None = None
    rr_client: bool = False
    next_hop_self: bool = False
    next_hop_keep: bool = False
    add_path: Literal["", "send", "receive", "both"] = ""
    as4: bool = True
    next_hop_extended: bool = False
    allow_local_as: int = 0
    imports: tuple[Reject, ...] = ()
    export_none: bool = False
    interface: str = ""

    @property
    def spoken(self) -> tuple[Family, ...]:
        return self.families or (family_of(self.dynamic or self.address),)

    @property
    def key(self) -> str:
        """A name that every configuration language takes."""
        text = self.dynamic or self.address
        return "p_" + "".join(c if c.isalnum() else "_" for c in text)


@dataclass(frozen=True, slots=True)
class Router:
    """A whole router. addresses: its own, IPv4 and IPv6. ecmp: how many equal next hops go to the kernel.

    lean: for measuring; no debug logs, nothing kept that only questions need, kernel routes not read back.
    """

    asn: int
    router_id: str
    neighbours: tuple[Neighbour, ...] = ()
    routes: tuple[Route, ...] = ()
    addresses: tuple[str, ...] = ()
    port: int = 179
    install: bool = True
    ecmp: int = 16
    cluster_id: str = ""
    lean: bool = False

    def own(self, family: Family) -> str:
        """Its address of a family; "" when it has none."""
        return next((address for address in self.addresses if family_of(address) == family), "")


@dataclass(frozen=True, slots=True)
class Session:
    """state: `established`, or the daemon's own word in lower case; times as negotiated, where it tells them."""

    state: str
    hold_time_s: int | None = None
    keepalive_s: int | None = None
    said: str = ""
    """Everything the daemon tells about it, for messages and for what only one of them knows."""

    @property
    def up(self) -> bool:
        return self.state == "established"
