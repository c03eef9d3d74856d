"""What a workload may use of the network: packets a second, connections; and the DSCP mark of what leaves the cluster,
sent by a workload or by the host itself.

    hook-qos-forward, hook-qos-input  (-3, before all policy)  qos-from-<interface>, qos-to-<interface>: limits
    hook-qos-output                   (-3)                     qos-to-<interface>, for what IPVS sends on (ipvs.py)
    hook-dscp                         (postrouting, -150)      one rule for each mark, on a set of source addresses
    hook-dscp-forward                 (-150)                   the same, before IPVS gives answers a service's address

A packet rate holds for every packet, so it must be met before established ones leave; both ends of a packet inside one
node may have a limit, hence jumps. Of connections only the first packet is asked: what is open stays open (section
4.6 of the Felix facts). What the host itself sends to its workload is never limited, as it is never policed. A hook
exists while some workload needs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from libs.nftables import model as nft
from libs.nftables.model import Base, Chain, Field, Hook, Map, Rule, Set, Verdict
from libs.policy.output import NodeInfo, Pool, Qos, Workload
from services.felix.core import names
from services.felix.core.dispatch import MANGLE
from services.felix.core.options import Family, RulesetOptions
from services.felix.core.sink import Section, TableSink

LIMITS = -3
FROM, TO = "qos-from", "qos-to"
CLUSTER = "dscp-cluster-nets"
DEFAULT_BURST = 5  # packets (facts/datamodel.md, qosControls)
TCP = 6


class QosRuleset:
    """One address family's part."""

    def __init__(self, family: Family, options: RulesetOptions) -> None:
        self._family = family
        self._options = options
        self._section = Section()

    def flush(
        self,
        workloads: Mapping[str, Workload],
        host_marks: Mapping[int, frozenset[str]],
        pools: Mapping[str, Pool],
        nodes: Mapping[str, NodeInfo],
        sink: TableSink,
    ) -> None:
        """workloads: those of this node that are up and have limits or a mark, by interface. host_marks: DSCP → the
        host's own addresses that send with it.
        """
        chains: list[Chain] = []
        maps: list[Map] = []
        for name, inbound in ((FROM, False), (TO, True)):
            found = {
                interface: chain
                for interface, workload in workloads.items()
                if (chain := _limits(interface, workload.qos or Qos(), inbound)).rules
            }
            if found:
                chains += found.values()
                elements: dict[str, Verdict] = {one: nft.jump(chain.name) for one, chain in found.items()}
                maps.append(Map(name, (nft.DataType.IFNAME,), elements))
        looks = {one.name: Field.IIFNAME if one.name == FROM else Field.OIFNAME for one in maps}
        # At input before IPVS too: it takes what the limit would have to count.
        ways: list[tuple[Hook, tuple[str, ...], tuple[nft.Expr, ...]]] = [
            (Hook.FORWARD, (FROM, TO), ()), (Hook.INPUT, (FROM,), ()),
        ]  # fmt: skip
        if self._options.mark_ipvs:
            ways.append((Hook.OUTPUT, (TO,), (nft.mark_has(self._options.mark_ipvs),)))
        for hook, fields, match in ways:
            rules = tuple(Rule((*match, nft.Vmap((looks[name],), name))) for name in fields if name in looks)
            if rules:
                chains.append(Chain(f"hook-qos-{hook}", rules, Base(hook, priority=LIMITS)))
        marked, sets = self._marks(workloads, host_marks, pools, nodes)
        self._section.write(sink, [*chains, *marked], sets, maps)

    def _marks(
        self,
        workloads: Mapping[str, Workload],
        host_marks: Mapping[int, frozenset[str]],
        pools: Mapping[str, Pool],
        nodes: Mapping[str, NodeInfo],
    ) -> tuple[list[Chain], list[Set]]:
        sources = {dscp: set(self._family.mine(addresses)) for dscp, addresses in host_marks.items()}
        for workload in workloads.values():
            if workload.qos is not None and workload.qos.dscp is not None:
                own = (net.partition("/")[0] for net in self._family.nets(workload))
                sources.setdefault(workload.qos.dscp, set()).update(own)
        sources = {value: addresses for value, addresses in sources.items() if addresses}
        if not sources:
            return [], []
        inside = self._family.mine(pools) | self._family.addresses(nodes.values())
        sets = [Set(CLUSTER, (self._family.address,), inside, interval=True)]
        rules = [Rule((nft.InSet((self._family.daddr,), CLUSTER), nft.ACCEPT), "stays in the cluster")]
        for value, addresses in sorted(sources.items()):
            name = f"dscp-{value}"
            sets.append(Set(name, (self._family.address,), frozenset(addresses)))
            mark = nft.SetDscp(self._family.table.family, value)
            rules.append(Rule((nft.InSet((self._family.saddr,), name), nft.COUNTER, mark), f"DSCP {value}"))
        chains = [Chain("hook-dscp", tuple(rules), Base(Hook.POSTROUTING, priority=MANGLE))]
        if self._options.ipvs:
            chains.append(Chain("hook-dscp-forward", tuple(rules), Base(Hook.FORWARD, priority=MANGLE)))
        return chains, sets


def interface_chains(interface: str) -> tuple[str, str]:
    return names.interface_chain(FROM, interface), names.interface_chain(TO, interface)


def is_of_marks(name: str) -> bool:
    return name.startswith(("hook-dscp", "dscp-"))


def users(name: str, workloads: Mapping[str, Workload]) -> set[str]:
    """Interfaces of those that need the shared chain, set or map `name`."""
    limits = {interface: workload.qos or Qos() for interface, workload in workloads.items()}
    if is_of_marks(name):
        return {one for one, qos in limits.items() if qos.dscp is not None}
    if name in (FROM, TO) or name.startswith("hook-qos-"):
        return {one for one, qos in limits.items() if any(_limits(one, qos, way).rules for way in (False, True))}
    return set()


def _limits(interface: str, qos: Qos, inbound: bool) -> Chain:
    rate, burst, most = (
        (qos.ingress_packet_rate, qos.ingress_packet_burst, qos.ingress_max_connections)
        if inbound
        else (qos.egress_packet_rate, qos.egress_packet_burst, qos.egress_max_connections)
    )
    return Chain(names.interface_chain(TO if inbound else FROM, interface), tuple(_rules(rate, burst, most)))


def _rules(rate: int, burst: int, most: int) -> Iterable[Rule]:
    if rate:
        over = nft.Limit(rate, "second", burst=burst or DEFAULT_BURST, over=True)
        yield Rule((over, nft.COUNTER, nft.DROP), f"more than {rate} packets a second")
    if most:
        new = (nft.Match(Field.L4PROTO, TCP), nft.ct_state(nft.CtState.NEW), nft.ConnLimit(most))
        yield Rule((*new, nft.COUNTER, nft.Reject(nft.RejectKind.TCP_RESET)), f"more than {most} connections")
