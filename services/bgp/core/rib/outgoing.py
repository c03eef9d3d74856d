"""What becomes of a path on its way to peers: may they have it, what do the filters say, which attributes does it get.

RFC 4271 sections 5.1 and 9.1.3, RFC 4456 section 8, RFC 1997, RFC 9494 section 4.6. All that depends on the path
alone is done once for it; `Export.many` is left for prefixes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from services.bgp.core.export import Communities, ExportPolicy
from services.bgp.core.filters import MAX_PRIORITY, Chain, Outcome, RouteFacts, add_communities, apply, prepend
from services.bgp.core.paths import Attributes, Family, Nlri
from services.bgp.core.rib.path import Community, Path, Source
from services.bgp.core.settings import FilterRule, NextHopMode
from services.bgp.core.wire.context import Context


class Withheld(Enum):
    """Why a best path is not told to a peer."""

    SPLIT_HORIZON = "it came from there"
    INTERNAL = "internal to internal, and neither is our client"  # RFC 4271 section 9.2, RFC 4456
    COMMUNITY = "a well-known community forbids it"
    LLGR = "long-lived stale, and the peer does not know of that"
    NO_NEXT_HOP = "no next hop that the peer could use"
    INTERFACE = "it goes out by a device whose routes stay here"
    FILTER = "a filter rejects it"
    POLICY = "neither a block, a service nor inside a pool that may leave"


@dataclass(frozen=True, slots=True)
class Terms:
    """Everything that makes what one peer is told differ from another: peers of equal terms share an update group."""

    family: Family
    context: Context
    local_as: int
    client: bool
    cluster_id: int
    next_hop: bytes  # ours towards them; empty when we have none of the family
    keep_next_hop: bool  # of what was learned
    long_lived: bool
    rules: tuple[tuple[str, FilterRule], ...]


class Out:
    """What is told about prefixes: attributes as they go out, or None for a withdrawal. One object for equal ones of a
    group, so prefixes are grouped by it. source: who told us, and so is not told."""

    __slots__ = ("__weakref__", "attributes", "source")

    def __init__(self, attributes: Attributes | None, source: Source) -> None:
        self.attributes = attributes
        self.source = source

    def __repr__(self) -> str:
        return f"<Out of {self.source.name}: {self.attributes}>"


@dataclass(frozen=True, slots=True)
class _Facts:
    """Of a path, what its way out needs. Not the path: what is kept here must not keep it alive."""

    source: Source
    next_hop: bytes
    llgr_stale: bool


@dataclass(slots=True)
class Export:
    """What terms make of one path: `many` says it for prefixes, in order. When `many` is None it is `out` for all of
    them, and nothing when that is None, for the reason `withheld`. where: the rule of a filter that decided."""

    many: Callable[[Sequence[Nlri]], list[Out | None]] | None
    out: Out | None = None
    withheld: Withheld | None = None
    where: str = ""
    explain: Callable[[Nlri], tuple[Withheld | None, str]] | None = None


class Exporter:
    """One group's export policy, for the settings it was made with."""

    def __init__(
        self, terms: Terms, policy: ExportPolicy, normal: int, intern: Callable[[Attributes, Source], Out]
    ) -> None:
        self.terms = terms
        self.policy = policy
        self._normal = normal
        self._chain = Chain(terms.rules, terms.context.internal)
        self._intern = intern

    def export(self, path: Path) -> Export:
        withheld = self._forbidden(path)
        if withheld is not None:
            return Export(None, withheld=withheld)
        facts = _Facts(path.source, self._next_hop(path), path.llgr_stale)
        attributes, metric = self._with_local_pref(path)
        interface = path.next_hop.state.interface
        steps = self._chain.resolve(RouteFacts(attributes, path.source.remote, interface))
        if steps and steps[0][0] is None:
            outcome = steps[0][1]
            if not outcome.accept:
                return Export(None, withheld=Withheld.FILTER, where=outcome.where)
            return Export(None, self._finish(facts, apply(outcome.rule, attributes)), where=outcome.where)
        allowed = self.policy.by_interface(interface, self.terms.context.internal) if interface else True
        if not allowed and not steps:
            return Export(None, withheld=Withheld.INTERFACE)
        urgent, policy = metric < self._normal, self.policy
        told: dict[Communities | None, Out | None] = {None: None}
        outs = [
            (test, self._finish(facts, apply(outcome.rule, attributes)) if outcome.accept else None)
            for test, outcome in steps
        ]

        def default(prefixes: Sequence[Nlri]) -> list[Out | None]:
            if not allowed:
                return [None] * len(prefixes)
            verdicts = policy.verdicts(prefixes, urgent)
            different = set(verdicts)
            for added in different - told.keys():
                told[added] = self._finish(facts, add_communities(attributes, added or ()))
            if len(different) == 1:
                return [told[verdicts[0]]] * len(verdicts)
            return [told[added] for added in verdicts]

        def filtered(prefixes: Sequence[Nlri]) -> list[Out | None]:
            found = default(prefixes)
            for at, prefix in enumerate(prefixes):
                for test, out in outs:
                    if test is None or test(prefix):
                        found[at] = out
                        break
            return found

        def explain(prefix: Nlri) -> tuple[Withheld | None, str]:
            hit: Outcome | None = next((o for test, o in steps if test is None or test(prefix)), None)
            if hit is not None:
                return (None if hit.accept else Withheld.FILTER), hit.where
            if not allowed:
                return Withheld.INTERFACE, ""
            return (None if policy.verdict(prefix, urgent) is not None else Withheld.POLICY), ""

        return Export(filtered if steps else default, explain=explain)

    def _forbidden(self, path: Path) -> Withheld | None:
        source, terms = path.source, self.terms
        communities = path.attributes.communities
        if Community.NO_ADVERTISE in communities:
            return Withheld.COMMUNITY
        if not terms.context.internal and (
            Community.NO_EXPORT in communities or Community.NO_EXPORT_SUBCONFED in communities
        ):
            return Withheld.COMMUNITY
        if source.remote and source.internal and terms.context.internal and not (source.client or terms.client):
            return Withheld.INTERNAL
        if path.llgr_stale and not terms.long_lived:
            return Withheld.LLGR
        if not self._next_hop(path):
            return Withheld.NO_NEXT_HOP
        return None

    def _with_local_pref(self, path: Path) -> tuple[Attributes, int]:
        """(attributes as filters see them, metric): LOCAL_PREF says the metric; without one it is the normal one."""
        attributes = path.attributes
        if attributes.local_pref is None:
            return replace(attributes, local_pref=MAX_PRIORITY - self._normal), self._normal
        return attributes, MAX_PRIORITY - attributes.local_pref

    def _next_hop(self, path: Path) -> bytes:
        """Empty when there is none that the peer could use."""
        terms = self.terms
        own, family = terms.next_hop, terms.family
        if path.source.remote and terms.keep_next_hop:
            kept = path.attributes.next_hop
            if len(kept) == family.octets or terms.context.extended_next_hop:
                return kept
        return own

    def _finish(self, facts: _Facts, attributes: Attributes) -> Out:
        """Attributes as they go out; `attributes` come from filters or export policy."""
        terms, source = self.terms, facts.source
        changes: dict[str, object] = {"next_hop": facts.next_hop, "link_local": b""}
        if terms.context.internal:
            if source.remote and source.internal:  # reflected: RFC 4456 section 8
                if attributes.originator_id is None:
                    changes["originator_id"] = source.router_id
                cluster = source.cluster_id if source.client else terms.cluster_id
                changes["cluster_list"] = (cluster, *attributes.cluster_list)
        else:
            changes["as_path"] = prepend(attributes.as_path, (terms.local_as,))
            changes["local_pref"] = None
            changes["originator_id"] = None
            changes["cluster_list"] = ()
            if source.remote:
                changes["med"] = None  # not for other neighbouring ASes: RFC 4271 section 5.1.4
        if facts.llgr_stale and Community.LLGR_STALE not in attributes.communities:
            changes["communities"] = (*attributes.communities, int(Community.LLGR_STALE))
        return self._intern(_replaced(attributes, changes), source)


def _replaced(attributes: Attributes, changes: Mapping[str, object]) -> Attributes:
    return replace(attributes, **changes)  # type: ignore[arg-type]  # names and types as in Attributes


def keeps_next_hop(mode: NextHopMode, keep_ebgp: bool, internal: bool) -> bool:
    """BIRD: to our own AS a learned next hop stays, to another (all our sessions are multihop) ours takes its place."""
    if mode is NextHopMode.SELF:
        return False
    return mode is NextHopMode.KEEP or internal or keep_ebgp
