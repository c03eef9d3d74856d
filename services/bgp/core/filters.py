"""BGPFilters, compiled: from rules to functions, once, so that nothing is interpreted for a prefix.

Two stages. What a rule asks of a path (source, interface, communities, AS path, priority) is answered once for each
path by `Chain.resolve`; what is left are the tests of the prefix, of those rules only that can still match. A path that
no rule asks a prefix for has one outcome, whatever the number of its prefixes.

The first rule that matches decides, over all filters of a peer in their order; none: the caller's default. Semantics
are those of the functions that Calico's confd writes for BIRD: conditions AND-ed, `In` includes the network itself, a
priority is 2147483647 - LOCAL_PREF, operations only where a rule accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from services.bgp.core.paths import AsPath, Attributes, Family, Segment, SegmentType, nlri
from services.bgp.core.prefixes import PrefixTest, inside, never
from services.bgp.core.settings import Filter, FilterRule

MAX_PRIORITY = 2147483647
"""LOCAL_PREF and kernel metric are each other's complement to this (facts: `local_pref = 2147483647 - metric`)."""


@dataclass(frozen=True, slots=True)
class RouteFacts:
    """What a rule may ask of a path. remote: learned over BGP. interface: that of its next hop, or of a local route."""

    attributes: Attributes
    remote: bool
    interface: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a rule that matched does. where: `FILTER import rule 2`, for people."""

    accept: bool
    where: str
    rule: FilterRule


Step = tuple[PrefixTest | None, Outcome]
"""Of a resolved chain, in order: None matches every prefix and can only be the last."""


@dataclass(frozen=True, slots=True)
class _Compiled:
    asks: tuple[Callable[[RouteFacts], bool], ...]
    prefix_test: PrefixTest | None
    outcome: Outcome


class Chain:
    """The filters of one peer in one direction and family."""

    def __init__(self, rules: Iterable[tuple[str, FilterRule]], internal: bool) -> None:
        """rules: each with where it stands. internal: the peer is of our AS (`peerType`)."""
        self._rules = tuple(
            _Compiled(_asks(rule), _prefix_test(rule), Outcome(rule.action == "Accept", where, rule))
            for where, rule in rules
            if not rule.peer_type or (rule.peer_type == "iBGP") is internal
        )

    @property
    def asks_interface(self) -> bool:
        """Does an outcome depend on where next hops go out."""
        return any(rule.outcome.rule.interface for rule in self._rules)

    def resolve(self, facts: RouteFacts) -> tuple[Step, ...]:
        steps: list[Step] = []
        for rule in self._rules:
            if rule.prefix_test is never or not all(ask(facts) for ask in rule.asks):
                continue
            steps.append((rule.prefix_test, rule.outcome))
            if rule.prefix_test is None:
                break
        return tuple(steps)


def rules_of(
    names: Iterable[str], filters: Mapping[str, Filter], family: Family, export: bool
) -> tuple[tuple[str, FilterRule], ...]:
    """The rules that a peer's list of filters comes to, each with where it stands; names that do not exist give
    none."""
    direction = "export" if export else "import"
    found: list[tuple[str, FilterRule]] = []
    for name in names:
        if (filtered := filters.get(name)) is None:
            continue
        by_family = filtered.exports if export else filtered.imports
        found += [(f"{name} {direction} rule {n}", rule) for n, rule in enumerate(by_family.get(family, ()), 1)]
    return tuple(found)


def apply(rule: FilterRule, attributes: Attributes) -> Attributes:
    """The rule's operations. Communities are added once; prepended numbers come out in the order they are written
    in."""
    changed = add_communities(attributes, rule.add_communities)
    if rule.prepend:
        changed = replace(changed, as_path=prepend(changed.as_path, rule.prepend))
    if rule.set_priority is not None:
        changed = replace(changed, local_pref=MAX_PRIORITY - rule.set_priority)
    return changed


def add_communities(attributes: Attributes, added: Iterable[tuple[int, ...]]) -> Attributes:
    """Pairs go to COMMUNITIES, triples to LARGE_COMMUNITIES; what is there already stays where it is."""
    standard, large = attributes.communities, attributes.large
    for community in added:
        if len(community) == 2:
            number = community[0] << 16 | community[1]
            if number not in standard:
                standard = (*standard, number)
        else:
            triple = (community[0], community[1], community[2])
            if triple not in large:
                large = (*large, triple)
    if standard is attributes.communities and large is attributes.large:
        return attributes
    return replace(attributes, communities=standard, large=large)


def prepend(path: AsPath, numbers: tuple[int, ...]) -> AsPath:
    """RFC 4271 section 5.1.2: into the leading sequence, or into a new one where that would have more than 255."""
    if path and path[0][0] is SegmentType.SEQUENCE and len(path[0][1]) + len(numbers) <= 255:
        leading: Segment = (SegmentType.SEQUENCE, numbers + path[0][1])
        return (leading, *path[1:])
    return ((SegmentType.SEQUENCE, numbers), *path)


def _prefix_test(rule: FilterRule) -> PrefixTest | None:
    """None: any prefix. Lengths belong to the network: `NotIn 10.0.0.0/8 of 24 to 32` takes all but those."""
    network = rule.network
    if network is None:
        return None
    low = 0 if rule.min_length is None else rule.min_length
    high = network.max_prefixlen if rule.max_length is None else rule.max_length
    if rule.match_operator in ("Equal", "NotEqual"):
        key, fits = nlri(network), low <= network.prefixlen <= high
        if rule.match_operator == "Equal":
            return key.__eq__ if fits else never
        return key.__ne__ if fits else None
    within = inside(network)
    if rule.match_operator == "In":
        return lambda prefix: low <= prefix[0] <= high and within(prefix)
    return lambda prefix: not (low <= prefix[0] <= high and within(prefix))


def _asks(rule: FilterRule) -> tuple[Callable[[RouteFacts], bool], ...]:
    asks: list[Callable[[RouteFacts], bool]] = []
    if rule.source:
        asks.append(lambda facts: facts.remote)
    if rule.interface:
        asks.append(lambda facts: bool(facts.interface) and fnmatchcase(facts.interface, rule.interface))
    if rule.communities:
        asks.append(lambda facts: all(has_community(facts.attributes, c) for c in rule.communities))
    if rule.as_path_prefix:
        asks.append(lambda facts: begins_with(facts.attributes.as_path, rule.as_path_prefix))
    if rule.priority is not None:
        wanted = MAX_PRIORITY - rule.priority
        asks.append(lambda facts: facts.attributes.local_pref == wanted)
    return tuple(asks)


def has_community(attributes: Attributes, community: tuple[int, ...]) -> bool:
    if len(community) == 2:
        return (community[0] << 16 | community[1]) in attributes.communities
    return community in attributes.large


def begins_with(path: AsPath, numbers: tuple[int, ...]) -> bool:
    """BIRD's `bgp_path ~ [= 65000 65001 * =]`: a set stands for one number, and matches when the number is in it."""
    at = 0
    for kind, segment in path:
        places = ((number,) for number in segment) if kind is SegmentType.SEQUENCE else iter((segment,))
        for place in places:
            if at == len(numbers):
                return True
            if numbers[at] not in place:
                return False
            at += 1
    return at == len(numbers)
