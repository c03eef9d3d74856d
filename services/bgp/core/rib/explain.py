"""For people: every path of a prefix, why it won or lost, what the kernel has, and who is told what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from services.bgp.core.paths import Attributes, Family, Nlri
from services.bgp.core.rib.decision import Reason, decide, next_hops, tie_reason
from services.bgp.core.rib.fib import FibRoute
from services.bgp.core.rib.groups import Group
from services.bgp.core.rib.outgoing import Withheld
from services.bgp.core.rib.path import Path, Rejected
from services.bgp.core.rib.table import Entry, paths_of


@dataclass(frozen=True, slots=True)
class PathExplanation:
    """received: as it came; attributes: after import. rejected: why it takes no part. where: the rule of a filter
    that took or rejected it. step: for one of the ECMP set that is not the best, the step that chose between them."""

    source: str
    path_id: int
    next_hop: bytes
    received: Attributes
    attributes: Attributes
    preference: int
    reason: Reason
    step: Reason | None
    rejected: Rejected | None
    where: str
    stale: bool
    llgr_stale: bool


@dataclass(frozen=True, slots=True)
class Advertisement:
    """attributes: as the peer gets them, None: it is not told, for `withheld`. where: the filter's rule that
    decided."""

    peer: str
    attributes: Attributes | None
    withheld: Withheld | None = None
    where: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """paths: the best first. advertised: every peer of an established session with the family."""

    family: Family
    prefix: Nlri
    paths: tuple[PathExplanation, ...]
    fib: FibRoute | None
    advertised: tuple[Advertisement, ...]


def explain(
    family: Family, prefix: Nlri, entry: Entry | None, fib: FibRoute | None, groups: Mapping[str, Group]
) -> Explanation:
    """groups: by the peer that is in them. What they hold is up to date."""
    paths = paths_of(entry)
    why: dict[Path, Reason] = {}
    chosen = decide(paths, why)
    for path in next_hops(chosen)[1]:
        why[path] = Reason.MULTIPATH_LIMIT
    ordered = chosen + [path for path in paths if path not in chosen]
    best = chosen[0] if chosen else None
    told = tuple(_advertisement(name, group, prefix, best) for name, group in sorted(groups.items()))
    return Explanation(family, prefix, tuple(_path(path, why[path], best) for path in _each(ordered)), fib, told)


def _each(paths: Iterable[Path]) -> list[Path]:
    return list(dict.fromkeys(paths))


def _path(path: Path, reason: Reason, best: Path | None) -> PathExplanation:
    equal = reason in (Reason.MULTIPATH, Reason.MULTIPATH_LIMIT)
    return PathExplanation(
        source=path.source.name,
        path_id=path.path_id,
        next_hop=path.next_hop.address,
        received=path.received,
        attributes=path.attributes,
        preference=path.preference,
        reason=reason,
        step=tie_reason(path, best) if equal and best is not None else None,
        rejected=path.rejected,
        where=path.where,
        stale=path.stale,
        llgr_stale=path.llgr_stale,
    )


def _advertisement(name: str, group: Group, prefix: Nlri, best: Path | None) -> Advertisement:
    if best is None:
        return Advertisement(name, None)
    if best.source is group.members[name].source:
        return Advertisement(name, None, Withheld.SPLIT_HORIZON)
    export = group.export(best)
    out = group.out.get(prefix)
    withheld, where = (export.withheld, export.where) if export.explain is None else export.explain(prefix)
    return Advertisement(name, out.attributes if out is not None else None, withheld, where)
