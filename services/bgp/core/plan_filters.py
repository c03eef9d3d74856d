"""BGPFilters as the speaker applies them, parsed."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from ipaddress import ip_network

from libs.policy.bgp_output import BgpFilter, BgpFilterRule
from services.bgp.core.paths import Family
from services.bgp.core.settings import Filter, FilterRule
from services.bgp.core.view import View

NOTHING_PASSES = Filter(
    imports={family: (FilterRule("Reject"),) for family in Family},
    exports={family: (FilterRule("Reject"),) for family in Family},
)
"""For a filter of which no version was ever understood: better no route than one that was to be held back."""


def filters(view: View, used: Collection[str]) -> dict[str, Filter]:
    """Those in use. One that does not exist has no rules, as in Calico, and is reported."""
    found: dict[str, Filter] = {}
    for name in sorted(used):
        entry = view.filters.get(name)
        if entry is None:
            view.report("BGPFilter", name, "does not exist, so peers go on without it")
            found[name] = Filter()
        elif entry.problem:
            view.report("BGPFilter", name, f"{entry.problem}; nothing passes it")
            found[name] = NOTHING_PASSES
        else:
            found[name] = _filter(entry)
    return found


def _filter(entry: BgpFilter) -> Filter:
    return Filter(
        imports={Family.IPV4: _rules(entry.import4), Family.IPV6: _rules(entry.import6)},
        exports={Family.IPV4: _rules(entry.export4), Family.IPV6: _rules(entry.export6)},
    )


@lru_cache(maxsize=1024)
def _rules(rules: tuple[BgpFilterRule, ...]) -> tuple[FilterRule, ...]:
    return tuple(
        FilterRule(
            action=rule.action,
            network=ip_network(rule.cidr) if rule.cidr else None,
            match_operator=rule.match_operator,
            min_length=rule.min_length,
            max_length=rule.max_length,
            source=rule.source,
            interface=rule.interface,
            peer_type=rule.peer_type,
            communities=tuple(map(community, rule.communities)),
            as_path_prefix=rule.as_path_prefix,
            priority=rule.priority,
            add_communities=tuple(map(community, rule.add_communities)),
            prepend=rule.prepend,
            set_priority=rule.set_priority,
        )
        for rule in rules
    )


def community(text: str) -> tuple[int, ...]:
    """ "64512:100" -> (64512, 100); three numbers are a large community. Raises ValueError."""
    parts = tuple(map(int, text.split(":")))
    if len(parts) not in (2, 3):
        raise ValueError(f"{text!r} is no community")
    return parts
