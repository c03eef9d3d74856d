"""What Calico says about a packet, worked out one rule at a time from the policy calculation's values: no chains, no
sets, no marks.

Written from the semantics (datamodel facts, section 5), not from the compiler, and slow on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from libs.nftables.evaluate import Packet
from libs.policy.output import STAGED_KINDS, Action, IPSet, Policy, PolicyKey, Profile, Rule, Workload, WorkloadKey
from services.felix.core.options import RulesetOptions
from services.felix.core.ruleset import RulesetBuilder
from tests.unit.services.felix.table import Node

NUMBERS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132, "udplite": 136}
NAMES = {6: "tcp", 17: "udp", 132: "sctp"}
ESTABLISHED, RELATED, INVALID = 2, 4, 1


@dataclass
class World:
    policies: dict[PolicyKey, Policy] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    sets: dict[str, IPSet] = field(default_factory=dict)
    workloads: dict[WorkloadKey, Workload] = field(default_factory=dict)

    def owner(self, interface: str) -> Workload | None:
        keys = sorted(key for key, w in self.workloads.items() if w.name == interface)
        return self.workloads[keys[0]] if keys else None


@dataclass
class Judgement:
    allowed: bool
    logs: int = 0


def judge(world: World, packet: Packet, to_host: bool = False) -> Judgement:
    """A packet that arrives on packet.iif and is forwarded to packet.oif, or, to_host, ends on the node itself."""
    out = Judgement(True)
    established = bool(packet.ct_state & (ESTABLISHED | RELATED))
    neighbour = to_host and packet.protocol == 58 and packet.icmp_type in (130, 131, 132, 133, 135, 136)
    if packet.iif.startswith("cali"):
        sender = world.owner(packet.iif)
        if sender is None or sender.state != "active":
            if not (sender is None and _v6_exception(packet)):
                return Judgement(False)
        elif not _own_source(sender, packet):
            return Judgement(False)
        if not established and not neighbour:
            if sender is None or packet.ct_state & INVALID:
                return Judgement(False)
            if packet.protocol == 4 or (packet.protocol == 17 and packet.dport == 4789):
                return Judgement(False)
            out.allowed = _endpoint(world, sender, packet, False, out)
        if not out.allowed:
            return out
        if to_host:
            out.allowed = established or neighbour  # DefaultEndpointToHostAction Drop
            return out
    if not to_host and packet.oif.startswith("cali"):
        receiver = world.owner(packet.oif)
        if receiver is not None and receiver.state != "active":
            out.allowed = False
        elif not established:
            if receiver is None or packet.ct_state & INVALID:
                out.allowed = False
            else:
                out.allowed = _endpoint(world, receiver, packet, True, out)
    return out


def _v6_exception(packet: Packet) -> bool:
    if packet.src.version != 6:
        return False
    return packet.src in ip_network("fe80::/10") or (packet.src == ip_address("::") and packet.protocol == 58)


def _own_source(sender: Workload, packet: Packet) -> bool:
    nets = sender.nets4 if packet.src.version == 4 else sender.nets6
    return any(packet.src in ip_network(net) for net in nets) or _v6_exception(packet)


def _endpoint(world: World, workload: Workload, packet: Packet, inbound: bool, out: Judgement) -> bool:
    for tier in workload.tiers:
        keys = [k for k in (tier.ingress if inbound else tier.egress) if k.kind not in STAGED_KINDS]
        if not keys:
            continue
        verdict = None
        for key in keys:
            policy = world.policies.get(key)
            if policy is None:
                return False
            verdict = _rules(world, policy.inbound if inbound else policy.outbound, packet, out)
            if verdict is not None:
                break
        if verdict is Action.ALLOW:
            return True
        if verdict is Action.DENY or (verdict is None and tier.default_action != "Pass"):
            return False
    for name in workload.profiles:
        profile = world.profiles.get(name)
        if profile is None:
            return False
        verdict = _rules(world, profile.inbound if inbound else profile.outbound, packet, out)
        if verdict in (Action.ALLOW, Action.DENY):
            return verdict is Action.ALLOW
    return False


def _rules(world: World, rules: tuple[Rule, ...], packet: Packet, out: Judgement) -> Action | None:
    if any(set_id not in world.sets for rule in rules if _for_family(rule, packet) for set_id in rule.set_ids()):
        return Action.DENY  # half-known: fail closed
    for rule in rules:
        if matches(world, rule, packet):
            if rule.action is Action.LOG:
                out.logs += 1
            else:
                return rule.action
    return None


def _for_family(rule: Rule, packet: Packet) -> bool:
    version = packet.src.version
    if rule.ip_version not in (0, version):
        return False
    for nets in (rule.src_nets, rule.dst_nets, rule.not_src_nets, rule.not_dst_nets):
        if nets and not any(ip_network(net).version == version for net in nets):
            return False
    if any(
        ip_network(n).prefixlen == 0 and ip_network(n).version == version
        for n in (*rule.not_src_nets, *rule.not_dst_nets)
    ):
        return False
    needs_icmp = rule.icmp is not None or rule.not_icmp is not None
    return not (needs_icmp and rule.protocol is not None and _number(rule.protocol) != (1 if version == 4 else 58))


def matches(world: World, rule: Rule, packet: Packet) -> bool:
    if not _for_family(rule, packet):
        return False
    version = packet.src.version
    if rule.protocol is not None and packet.protocol != _number(rule.protocol):
        return False
    if rule.not_protocol is not None and packet.protocol == _number(rule.not_protocol):
        return False
    for icmp, wanted in ((rule.icmp, True), (rule.not_icmp, False)):
        if icmp is not None:
            if packet.protocol != (1 if version == 4 else 58):
                return False
            same = icmp.type == packet.icmp_type and icmp.code in (None, packet.icmp_code)
            if same is not wanted:
                return False
    for address, nets, not_nets, sets, not_sets in (
        (packet.src, rule.src_nets, rule.not_src_nets, rule.src_sets, rule.not_src_sets),
        (packet.dst, rule.dst_nets, rule.not_dst_nets, rule.dst_sets, rule.not_dst_sets),
    ):
        if nets and not any(address in ip_network(net) for net in nets):
            return False
        if any(address in ip_network(net) for net in not_nets):
            return False
        if not all(_in_net_set(world, set_id, address) for set_id in sets):
            return False
        if any(_in_net_set(world, set_id, address) for set_id in not_sets):
            return False
    numeric = rule.src_ports or rule.dst_ports or rule.not_src_ports or rule.not_dst_ports
    if numeric and rule.protocol is None and packet.protocol not in (6, 17, 132, 136):
        return False
    for address, port, ranges, named, not_ranges, not_named in (
        (packet.src, packet.sport, rule.src_ports, rule.src_named_port_sets, rule.not_src_ports,
         rule.not_src_named_port_sets),
        (packet.dst, packet.dport, rule.dst_ports, rule.dst_named_port_sets, rule.not_dst_ports,
         rule.not_dst_named_port_sets),
    ):  # fmt: skip
        member = f"{address},{NAMES.get(packet.protocol, packet.protocol)}:{port}"
        in_ranges = any(r.first <= port <= r.last for r in ranges)
        if (ranges or named) and not (in_ranges or any(member in world.sets[s].members for s in named)):
            return False
        if any(r.first <= port <= r.last for r in not_ranges) or any(
            member in world.sets[s].members for s in not_named
        ):
            return False
    member = f"{packet.dst},{NAMES.get(packet.protocol, packet.protocol)}:{packet.dport}"
    return all(member in world.sets[s].members for s in rule.dst_ip_port_sets)


def _in_net_set(world: World, set_id: str, address: object) -> bool:
    return any(address in ip_network(member) for member in world.sets[set_id].members)  # type: ignore[operator]


def _number(protocol: str | int) -> int:
    return NUMBERS[protocol] if isinstance(protocol, str) else protocol


def program(world: World, options: RulesetOptions | None = None) -> Node:
    """A node that was told all of it."""
    node = Node(RulesetBuilder(options))
    for key, policy in world.policies.items():
        node.builder.set_policy(key, policy)
    for name, profile in world.profiles.items():
        node.builder.set_profile(name, profile)
    for set_id, ipset in world.sets.items():
        node.builder.set_ipset(set_id, ipset)
    for key, workload in world.workloads.items():
        node.builder.set_workload(key, workload)
    node.flush()
    return node
