"""Which nodes a packet meets policy on, and as what: the questions of a trace. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from libs.bus.explain import Place, Question
from libs.policy import nets
from libs.policy.changes import NodeView
from libs.policy.output import Pool
from libs.policy.path import Side, Step, walk
from libs.policy.trace import Packet
from services.calicoctl.explain.cluster import Cluster
from services.calicoctl.explain.ends import End, EndProblem


@dataclass(frozen=True, slots=True)
class Hop:
    """The packet on one node. role: what the node is to it."""

    node: str
    role: str
    question: Question


def hops(
    source: End, target: End, packet: Packet, cluster: Cluster, before: Packet | None = None, entry: str = "",
    *, masked: bool = False,
) -> tuple[list[Hop], list[str]]:  # fmt: skip
    """In the packet's order, and what is worth knowing about its way. before: as it was sent, where the first node
    translates its destination; of no account to workloads' packets, since only host endpoints' policy meets it. entry:
    the node that does it instead, which the sender is not on. masked: kube-proxy on the sender's node gives what goes
    on to another node its own address.

    Raises EndProblem.
    """
    if entry:
        return _by_entry(source, target, packet, cluster, before or packet, entry)
    notes: list[str] = []
    if not source.node and not target.node:
        raise EndProblem("neither end is in the cluster: no node meets this packet")
    if source.node == target.node:
        if source.host and target.host:
            raise EndProblem(f"both ends are node {source.node} itself: nothing stands between them")
        question = Question(packet=packet, sender=_place(source), receiver=_place(target))
        if source.host:
            notes.append("what a node sends to its own workloads is never policed")
        return [Hop(source.node, "both ends", question)], notes
    found = []
    if source.node:
        sent = before if source.host else None
        question = Question(packet=packet, before=sent, sender=_place(source), receiver=Place())
        found.append(Hop(source.node, "sender's node", question))
        if masked:
            packet = _masked(packet, source.node, cluster, notes)
        elif translated := _translated(source, packet, cluster):
            notes.append(f"natOutgoing: beyond {source.node} the source is the node's address {translated}")
            packet = msgspec.structs.replace(packet, src=translated)
    if target.node:
        sent = None if source.node else before
        question = Question(packet=packet, before=sent, sender=Place(), receiver=_place(target))
        found.append(Hop(target.node, "receiver's node", question))
    return found, notes


def _by_entry(
    source: End, target: End, packet: Packet, cluster: Cluster, sent: Packet, entry: str
) -> tuple[list[Hop], list[str]]:
    """By a node port of a node: policy of the sender's own meets the packet as it was `sent`. What goes on to another
    node has the address of `entry` as its source, as kube-proxy masquerades it.
    """
    notes: list[str] = []
    found: list[Hop] = []
    if source.node:
        found.append(Hop(source.node, "sender's node", Question(packet=sent, sender=_place(source), receiver=Place())))
        translated = _translated(source, sent, cluster)
        if translated:
            notes.append(f"natOutgoing: beyond {source.node} the source is the node's address {translated}")
            packet, sent = (msgspec.structs.replace(one, src=translated) for one in (packet, sent))
    ends = target.node == entry
    question = Question(packet=packet, before=sent, sender=Place(), receiver=_place(target) if ends else Place())
    found.append(Hop(entry, "receiver's node" if ends else "node port's node", question))
    if target.node and not ends:
        packet = _masked(packet, entry, cluster, notes)
        found.append(
            Hop(target.node, "receiver's node", Question(packet=packet, sender=Place(), receiver=_place(target)))
        )
    return found, notes


def _masked(packet: Packet, node: str, cluster: Cluster, notes: list[str]) -> Packet:
    """With the node's address as its source."""
    address = cluster.node_addresses(node).get(nets.version_of(packet.src), packet.src)
    notes.append(f"beyond {node} the source is its address {address}, or that of its tunnel (kube-proxy)")
    return msgspec.structs.replace(packet, src=address)


def _place(end: End) -> Place:
    return Place(workload="" if end.workload is None else str(end.workload), here=end.host)


def _translated(source: End, packet: Packet, cluster: Cluster) -> str:
    """The address that takes the place of a workload's when it leaves the pools; "" when none does."""
    if source.workload is None:
        return ""
    pool, pools = _pool_of(packet.src, cluster), cluster.calculator.pools
    if pool is None or not pool.nat_outgoing or any(_within(packet.dst, cidr) for cidr in pools):
        return ""
    return cluster.node_addresses(source.node).get(nets.version_of(packet.src), "")


def _pool_of(address: str, cluster: Cluster) -> Pool | None:
    pools = cluster.calculator.pools
    found = [cidr for cidr in pools if _within(address, cidr)]
    return pools[max(found, key=lambda cidr: nets.parse(cidr).length)] if found else None


def _within(address: str, cidr: str) -> bool:
    return nets.parse(cidr).contains(nets.parse(address))


def calculate(hop: Hop, cluster: Cluster, *, staged: bool) -> tuple[list[Step], list[str]]:
    """The steps by the datastore alone, and what had to be assumed of the node."""
    view, notes = cluster.view(hop.node), []
    guard, any_interface, assumed = _guard(view, hop.node, cluster)
    if assumed:
        notes.append(assumed)
    outside = Side(guard=guard, any_interface=any_interface)

    def side(place: Place) -> Side:
        if place.workload:
            return Side(workload=next(key for key in view.workloads if str(key) == place.workload))
        return Side(here=True) if place.here else outside

    question, rules = hop.question, cluster.host_rules(hop.node)
    ends = side(question.sender), side(question.receiver)
    return walk(view, question.packet, *ends, rules, staged=staged, before=question.before), notes


def _guard(view: NodeView, node: str, cluster: Cluster) -> tuple[str, bool, str]:
    """(host endpoint on the way out of the node, whether it is that of `*`, what was assumed): the datastore does not
    know interfaces, so one that names an interface is taken for the one that counts.
    """
    own = set(cluster.node_addresses(node).values())
    expecting = sorted(name for name, host in view.hosts.items() if own & {*host.expected4, *host.expected6})
    named = sorted(name for name, host in view.hosts.items() if host.name not in ("", "*"))
    everything = sorted(name for name, host in view.hosts.items() if host.name == "*")
    for names in (sorted(set(expecting) & set(named)), named, expecting):
        if names:
            others = f", of {len(named)} that name interfaces" if len(named) > 1 else ""
            assumed = f"{node}: host endpoint {names[0]} is taken for that of the interface in use{others}"
            return names[0], False, assumed
    return (everything[0], True, "") if everything else ("", False, "")
