"""One address family's chains and maps of host endpoints.

A node has few host endpoints, so everything of theirs is made anew when one of them changes; the reconciler sees only
what is different.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from libs.nftables import model as nft
from libs.nftables.model import Chain, Map, Rule, Set, Verdict
from services.felix.core import hosts
from services.felix.core.hosts import ANY, HostEndpoint, StageKind
from services.felix.core.options import Family, RulesetOptions
from services.felix.core.sink import Section, TableSink


class HostRuleset:
    """deny: makes the rule that ends normal policy, from its comment."""

    def __init__(self, family: Family, options: RulesetOptions, deny: Callable[[str], Rule]) -> None:
        self._family = family
        self._options = options
        self._deny = deny
        self._section = Section()

    def flush(self, endpoints: Mapping[str, HostEndpoint], sink: TableSink, *, tunnels: bool) -> None:
        """endpoints: by interface; ANY stands for all others. tunnels: overlays are in use."""
        if not endpoints:
            self._section.write(sink, ())
            return
        used = [stage for stage in hosts.STAGES if any(stage in host.lists for host in endpoints.values())]
        sets = []
        if self._family.version == 6:
            sets = [Set(hosts.NEIGHBOUR_TYPES, (nft.DataType.ICMPV6_TYPE,), hosts.NEIGHBOUR_DISCOVERY)]
        named = bool(endpoints.keys() - {ANY})
        maps = [Map(stage.map, (nft.DataType.IFNAME,), _elements(stage, endpoints)) for stage in used if named]
        self._section.write(sink, self._chains(endpoints, used, named, tunnels), sets, maps)

    def _chains(
        self, endpoints: Mapping[str, HostEndpoint], used: list[StageKind], named: bool, tunnels: bool
    ) -> Iterable[Chain]:
        anywhere = tuple(endpoints[ANY].lists) if ANY in endpoints else ()
        yield from hosts.base_chains(used, self._options, named=named, wildcard=anywhere, tunnels=tunnels)
        yield from hosts.failsafe_chains(self._family, self._options, raw=any(stage in hosts.RAW for stage in used))
        deny = self._deny("no profile allowed it")
        for interface, host in endpoints.items():
            for stage in host.lists:
                yield hosts.endpoint_chain(stage, interface, host, deny, self._options)


def _elements(stage: StageKind, endpoints: Mapping[str, HostEndpoint]) -> dict[str, Verdict]:
    """An interface with a host endpoint of its own that has no say at this stage leaves it, lest it falls to ANY."""
    out = {}
    for interface, host in endpoints.items():
        if interface != ANY:
            out[interface] = nft.goto(hosts.chain_name(stage, interface)) if stage in host.lists else nft.ACCEPT
    return out
