"""One way to prefixes: who told us, with which attributes, by way of which next hop.

A `Path` is shared by all prefixes that one peer told us with the same attributes and that its import filters treat
alike, so that a table of a hundred thousand prefixes holds as many references and a few hundred paths.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum

from services.bgp.core.paths import Attributes, Family
from services.bgp.core.rib.decision import Rank, Tie

DEFAULT_LOCAL_PREF = 100


class Community(IntEnum):
    """Well-known ones (RFC 1997, RFC 8326, RFC 9494)."""

    GRACEFUL_SHUTDOWN = 0xFFFF0000
    LLGR_STALE = 0xFFFF0006
    NO_LLGR = 0xFFFF0007
    NO_EXPORT = 0xFFFFFF01
    NO_ADVERTISE = 0xFFFFFF02
    NO_EXPORT_SUBCONFED = 0xFFFFFF03


class Preference(IntEnum):
    """Before any attribute (BIRD's `preference`): what this node has beats what it hears, except during a live
    migration.

    A workload that moved here has a route of a metric below the normal one, and beats what its old node still says;
    what a peer says with such a metric beats that in turn, for then the workload has moved on.
    """

    KERNEL = 10
    LEARNED = 100
    KERNEL_URGENT = 150
    LEARNED_URGENT = 200
    STATIC = 210  # blocks and services


@dataclass(frozen=True, slots=True)
class NextHopState:
    """What the kernel's routes say about a next hop. metric: of the route to it. interface: where it goes out."""

    reachable: bool
    metric: int = 0
    interface: str = ""


class NextHop:
    """Shared by the paths that go by it, so that one change is one assignment."""

    __slots__ = ("__weakref__", "address", "state")

    def __init__(self, address: bytes, state: NextHopState) -> None:
        self.address = address
        self.state = state


HERE = NextHop(b"", NextHopState(reachable=True))
"""Next hop of what this node originates."""


class Rejected(Enum):
    """Why a path that arrived takes no part in the decision."""

    AS_LOOP = "our AS number is in its AS_PATH"  # RFC 4271 section 9.1.2
    ORIGINATOR_LOOP = "we are its originator"  # RFC 4456 section 8
    CLUSTER_LOOP = "our cluster is in its CLUSTER_LIST"
    OWN_NEXT_HOP = "its next hop is an address of ours"  # RFC 4271 section 5.1.3
    NO_NEXT_HOP = "it has no next hop of its family"
    FILTER = "a filter rejects it"


class Source:
    """Where paths come from: a peer, or this node. `peers.Peer` adds what only a peer has."""

    __slots__ = (
        "__weakref__",
        "address_key",
        "client",
        "cluster_id",
        "generation",
        "internal",
        "name",
        "remote",
        "router_id",
    )

    def __init__(self, name: str, remote: bool) -> None:
        self.name = name
        self.remote = remote
        self.internal = False
        self.client = False  # of the reflector that we are
        self.cluster_id = 0
        self.router_id = 0
        self.address_key: tuple[int, bytes] = (0, b"")
        self.generation = 0  # of the session: paths of an older one are stale

    def __repr__(self) -> str:
        return f"<{self.name}>"


class Path:
    """received: as it came; attributes: after import policy. where: the rule that accepted or rejected it, if one
    did."""

    __slots__ = (
        "__weakref__",
        "attributes",
        "family",
        "generation",
        "llgr_begun",
        "llgr_stale",
        "next_hop",
        "path_id",
        "preference",
        "rank",
        "received",
        "rejected",
        "source",
        "tie",
        "where",
    )

    def __init__(
        self,
        source: Source,
        family: Family,
        received: Attributes,
        attributes: Attributes,
        next_hop: NextHop,
        preference: int,
        path_id: int = 0,
        rejected: Rejected | None = None,
        where: str = "",
    ) -> None:
        self.source = source
        self.family = family
        self.received = received
        self.attributes = attributes
        self.next_hop = next_hop
        self.preference = preference
        self.path_id = path_id
        self.rejected = rejected
        self.where = where
        self.generation = source.generation
        self.llgr_begun = False
        self.llgr_stale = Community.LLGR_STALE in attributes.communities  # here, or where it came from
        self.rank: Rank = self._rank()
        originator = attributes.originator_id
        self.tie: Tie = (
            source.router_id if originator is None else originator,
            len(attributes.cluster_list),
            source.address_key,
            path_id,
        )

    def _rank(self) -> Rank:
        attributes = self.attributes
        local_pref = DEFAULT_LOCAL_PREF if attributes.local_pref is None else attributes.local_pref
        return (self.llgr_stale, -self.preference, -local_pref, attributes.path_length, int(attributes.origin))

    @property
    def usable(self) -> bool:
        return self.rejected is None and self.next_hop.state.reachable

    @property
    def stale(self) -> bool:
        return self.generation != self.source.generation

    def begin_llgr(self) -> None:
        """RFC 9494 section 4.2: from now on it is the last choice."""
        self.llgr_begun = self.llgr_stale = True
        self.rank = self._rank()

    def __repr__(self) -> str:
        return f"<Path of {self.source.name} via {self.next_hop.address.hex()}>"
