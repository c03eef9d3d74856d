"""The decision process: RFC 4271 section 9.1.2.2 with RFC 4456 section 9, preference and long-lived stale paths
before it.

By elimination over the whole set, as the RFC has it, and not pair by pair: MED compares only within one neighbouring
AS, so "better than" is not transitive and a chain of comparisons would depend on the order of arrival. The result
depends on nothing but the set.

What is left after the comparison of IGP metrics is the ECMP set (BIRD's `merge paths`); the rest of the steps choose
the one that is told to peers.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from services.bgp.core.rib.path import Path

Rank: TypeAlias = tuple[bool, int, int, int, int]
"""Steps that need only the path, smaller is better: long-lived stale, preference, LOCAL_PREF, AS path, ORIGIN."""
Tie: TypeAlias = tuple[int, int, tuple[int, bytes], int]
"""Last steps: router or originator id, length of CLUSTER_LIST, (IP version, address) of the peer, path id."""

MAX_MULTIPATH: Final = 16  # BIRD's default limit


class Reason(Enum):
    """Why a path is where it is; a loser's names the step that removed it."""

    BEST = "best"
    MULTIPATH = "equal cost, installed beside the best"
    REJECTED = "rejected on import"
    UNREACHABLE = "next hop is not reachable"
    LLGR_STALE = "long-lived stale"
    PREFERENCE = "lower preference of its kind"
    LOCAL_PREF = "lower LOCAL_PREF"
    PATH_LENGTH = "longer AS_PATH"
    ORIGIN = "worse ORIGIN"
    MED = "higher MED from the same neighbouring AS"
    EXTERNAL = "internal, and an external one is there"
    IGP_METRIC = "its next hop is farther"
    ROUTER_ID = "higher router or originator id"
    CLUSTER_LIST = "longer CLUSTER_LIST"
    PEER_ADDRESS = "higher peer address"
    PATH_ID = "higher path id"
    MULTIPATH_LIMIT = f"equal cost, beyond {MAX_MULTIPATH} next hops"


RANK_REASONS: Final = (Reason.LLGR_STALE, Reason.PREFERENCE, Reason.LOCAL_PREF, Reason.PATH_LENGTH, Reason.ORIGIN)
TIE_REASONS: Final = (Reason.ROUTER_ID, Reason.CLUSTER_LIST, Reason.PEER_ADDRESS, Reason.PATH_ID)


def decide(paths: Iterable[Path], why: dict[Path, Reason] | None = None) -> list[Path]:
    """The best path first, then the others of its ECMP set in order of the last steps; empty when none can be used.

    why: filled with the reason of every path, for people; left out when nobody asks.
    """
    left = [path for path in paths if path.rejected is None and path.next_hop.state.reachable]
    if why is not None:
        for path in paths:
            if path.rejected is not None:
                why[path] = Reason.REJECTED
            elif not path.next_hop.state.reachable:
                why[path] = Reason.UNREACHABLE
    if len(left) > 1:
        best_rank = min(path.rank for path in left)
        if why is not None:
            for path in left:
                if path.rank != best_rank:
                    why[path] = next(r for r, a, b in zip(RANK_REASONS, path.rank, best_rank, strict=True) if a != b)
        left = [path for path in left if path.rank == best_rank]
    if len(left) > 1:
        left = _lowest_med(left, why)
    if len(left) > 1:
        nearest = min((_internal(path), path.next_hop.state.metric) for path in left)
        if why is not None:
            for path in left:
                if (_internal(path), path.next_hop.state.metric) != nearest:
                    why[path] = Reason.EXTERNAL if _internal(path) != nearest[0] else Reason.IGP_METRIC
        left = [path for path in left if (_internal(path), path.next_hop.state.metric) == nearest]
    if len(left) > 1:
        left.sort(key=_tie)
    if why is not None and left:
        why[left[0]] = Reason.BEST
        for path in left[1:]:
            why[path] = Reason.MULTIPATH
    return left


def next_hops(chosen: list[Path]) -> tuple[list[Path], list[Path]]:
    """Of an ECMP set, those that get a next hop in the kernel, each next hop once; and those beyond the limit."""
    taken: dict[bytes, Path] = {}
    beyond: list[Path] = []
    for path in chosen:
        if path.next_hop.address in taken:
            continue
        if len(taken) == MAX_MULTIPATH:
            beyond.append(path)
        else:
            taken[path.next_hop.address] = path
    return list(taken.values()), beyond


def tie_reason(loser: Path, best: Path) -> Reason:
    """The step that chose between two of one ECMP set."""
    return next(r for r, a, b in zip(TIE_REASONS, loser.tie, best.tie, strict=True) if a != b)


def _lowest_med(paths: list[Path], why: dict[Path, Reason] | None) -> list[Path]:
    """RFC 4271 section 9.1.2.2 c: within each neighbouring AS; a missing MED is 0, the best."""
    lowest: dict[int | None, int] = {}
    for path in paths:
        neighbour, med = path.attributes.first_as, path.attributes.med or 0
        if neighbour not in lowest or med < lowest[neighbour]:
            lowest[neighbour] = med
    left = []
    for path in paths:
        if (path.attributes.med or 0) == lowest[path.attributes.first_as]:
            left.append(path)
        elif why is not None:
            why[path] = Reason.MED
    return left


def _internal(path: Path) -> bool:
    """Local routes count as external ones do: nearer than what another router of our AS says."""
    return path.source.internal


def _tie(path: Path) -> Tie:
    return path.tie
