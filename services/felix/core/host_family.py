"""One address family's chains and maps of host endpoints, written as differences from what was written before.

A node has few host endpoints, so everything of theirs is made anew when one of them changes; the reconciler sees only
what is different.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from libs.nftables import model as nft
from libs.nftables.model import Chain, Map, Rule, Set, Verdict
from services.felix.core import hosts
from services.felix.core.hosts import ANY, HostEndpoint, StageKind
from services.felix.core.options import Family, RulesetOptions
from services.felix.core.sink import TableSink


class HostRuleset:
    """deny: makes the rule that ends normal policy, from its comment."""

    def __init__(self, family: Family, options: RulesetOptions, deny: Callable[[str], Rule]) -> None:
        self._family = family
        self._options = options
        self._deny = deny
        self._chains: dict[str, Chain] = {}
        self._maps: dict[str, dict[str, Verdict]] = {}
        self._with_set = False

    def flush(self, endpoints: Mapping[str, HostEndpoint], sink: TableSink) -> None:
        """endpoints: by interface; ANY stands for all others."""
        used = [stage for stage in hosts.STAGES if any(stage in host.lists for host in endpoints.values())]
        chains = {chain.name: chain for chain in self._make_chains(endpoints, used)}
        maps = {stage.map: _elements(stage, endpoints) for stage in used} if endpoints.keys() - {ANY} else {}
        self._write_set(bool(endpoints) and self._family.version == 6, sink)
        for name, elements in maps.items():
            old = self._maps.get(name)
            if old is None:
                sink.put_map(Map(name, (nft.DataType.IFNAME,), elements))
                continue
            if gone := old.keys() - elements.keys():
                sink.remove_verdicts(name, gone)
            if new := {key: verdict for key, verdict in elements.items() if old.get(key) != verdict}:
                sink.put_verdicts(name, new)
        for name, chain in chains.items():
            if self._chains.get(name) != chain:
                sink.set_chain(chain)
        for name in self._chains.keys() - chains.keys():
            sink.del_chain(name)
        for name in self._maps.keys() - maps.keys():
            sink.del_map(name)
        self._chains, self._maps = chains, maps

    def _make_chains(self, endpoints: Mapping[str, HostEndpoint], used: list[StageKind]) -> list[Chain]:
        if not endpoints:
            return []
        anywhere = endpoints[ANY].lists.keys() if ANY in endpoints else ()
        out = list(
            hosts.base_chains(used, self._options, named=bool(endpoints.keys() - {ANY}), wildcard=tuple(anywhere))
        )
        out += hosts.failsafe_chains(self._family, self._options, raw=any(stage in hosts.RAW for stage in used))
        deny = self._deny("no profile allowed it")
        for interface, host in endpoints.items():
            out += [hosts.endpoint_chain(stage, interface, host, deny, self._options) for stage in host.lists]
        return out

    def _write_set(self, wanted: bool, sink: TableSink) -> None:
        if wanted and not self._with_set:
            types = (nft.DataType.ICMPV6_TYPE,)
            sink.put_set(Set(hosts.NEIGHBOUR_TYPES, types, hosts.NEIGHBOUR_DISCOVERY))
        elif self._with_set and not wanted:
            sink.del_set(hosts.NEIGHBOUR_TYPES)
        self._with_set = wanted


def _elements(stage: StageKind, endpoints: Mapping[str, HostEndpoint]) -> dict[str, Verdict]:
    """An interface with a host endpoint of its own that has no say at this stage leaves it, lest it falls to ANY."""
    out = {}
    for interface, host in endpoints.items():
        if interface != ANY:
            out[interface] = nft.goto(hosts.chain_name(stage, interface)) if stage in host.lists else nft.ACCEPT
    return out
