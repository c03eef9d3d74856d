"""A packet's way through this node in the words of its ruleset: interfaces, hooks, and the rules that should decide.

Flows in: a question, what the calculation makes of it (libs/policy/path.py), the ruleset as it was read back from the
kernel. Flows out: whether the kernel lets the packet through, and which of its rules decided each of the steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address

from libs.bus.explain import KernelRule, KernelVerdict, Place
from libs.nftables import evaluate
from libs.nftables.model import Hook
from libs.nftables.readback import Fired, ReadBack
from libs.policy import trace
from libs.policy.changes import NodeView
from libs.policy.output import Action, IPSet, WorkloadKey
from libs.policy.path import Decision, Failsafe, HostRules, Side, Step
from services.felix.core import names
from services.felix.core.failsafe import FailsafePort
from services.felix.core.hosts import ANY
from services.felix.core.options import RulesetOptions


@dataclass(frozen=True, slots=True)
class Ways:
    """Interfaces that a packet comes in by and leaves by; "" for the node itself, and where no route tells."""

    incoming: str = ""
    outgoing: str = ""


def host_rules(options: RulesetOptions) -> HostRules:
    def ports(given: Sequence[FailsafePort]) -> tuple[Failsafe, ...]:
        return tuple(Failsafe(one.protocol, one.port, one.net) for one in given)

    return HostRules(
        failsafe_in=ports(options.failsafe_in),
        failsafe_out=ports(options.failsafe_out),
        endpoint_to_host=options.endpoint_to_host,
    )


def guards(interfaces_of_hosts: Mapping[str, set[str]]) -> dict[str, str]:
    """interface, or ANY, → host endpoint that acts there."""
    return {interface: host for host, interfaces in interfaces_of_hosts.items() for interface in interfaces}


def side(place: Place, interface: str, guards: Mapping[str, str]) -> Side:
    """Raises ValueError for what names no workload endpoint."""
    if place.workload:
        return Side(workload=WorkloadKey.parse(place.workload))
    if place.here:
        return Side(here=True)
    if interface in guards:
        return Side(guard=guards[interface])
    return Side(guard=guards.get(ANY, ""), any_interface=ANY in guards)


def judge(
    table: ReadBack,
    packet: trace.Packet,
    sender: Place,
    ways: Ways,
    steps: Sequence[Step],
    *,
    here: bool,
    before: trace.Packet | None = None,
) -> tuple[KernelVerdict, list[Fired]]:
    """What the kernel's ruleset does with the packet; counters are yet to be looked up. here: it is for the node.
    before: as `Question` has it.
    """
    found, dialled = _packet(packet, ways), _packet(before or packet, ways)
    if sender.here:
        hooks: tuple[Hook, ...] = (Hook.OUTPUT,)
    else:
        hooks = (Hook.PREROUTING, Hook.INPUT if here else Hook.FORWARD)
    fired: list[Fired] = []
    accepted = True
    for hook in hooks:
        # Before routing nobody knows where the packet leaves by, and what is for the node itself leaves by nothing.
        oif = ways.outgoing if hook in (Hook.FORWARD, Hook.OUTPUT) else ""
        try:
            outcome = table.evaluator.run(hook, replace(found, oif=oif), replace(dialled, oif=oif))
        except (evaluate.ForeignRule, KeyError) as error:
            return KernelVerdict(accepted=None, unknown=f"{error.args[0]} is not Calico's"), []
        except ValueError as error:
            return KernelVerdict(accepted=None, unknown=str(error)), []
        fired += table.fired(outcome)
        accepted = outcome.accepted
        if not accepted:
            break
        found = replace(found, mark=outcome.mark)
    rules = tuple(KernelRule(chain=one.chain, comment=one.comment) for one in fired)
    return KernelVerdict(accepted=accepted, rules=rules, deciders=_deciders(steps, fired)), fired


def _packet(packet: trace.Packet, ways: Ways) -> evaluate.Packet:
    protocol = trace.protocol_number(packet.protocol)
    sport, dport = packet.src_port, packet.dst_port
    if packet.icmp_type is not None:
        sport, dport = packet.icmp_type << 8 | (packet.icmp_code or 0), 0
    return evaluate.Packet(
        ip_address(packet.src), ip_address(packet.dst), protocol, sport, dport, iif=ways.incoming, oif=ways.outgoing
    )


def _deciders(steps: Sequence[Step], fired: Sequence[Fired]) -> tuple[int | None, ...]:
    """For each step the place of the rule that has the name of its decision; each rule counts for one step."""
    out: list[int | None] = []
    start = 0
    for step in steps:
        wanted = label(step.decision)
        found = next(
            (
                place
                for place in range(start, len(fired))
                if wanted and (fired[place].comment == wanted or fired[place].comment.startswith(f"{wanted};"))
            ),
            None,
        )
        out.append(found)
        if found is not None:
            start = found + 1
    return tuple(out)


def label(decision: Decision) -> str:
    """The comment of the rule that decides so (docs/design/ownership.md); "" where no rule does."""
    if decision.failsafe is not None:
        return names.comment(f"failsafe {FailsafePort(*_fields(decision.failsafe))}")
    if decision.policy:
        return names.comment(f"{decision.policy}/{decision.rule} {decision.action}")
    if decision.profile:
        return names.comment(f"pro/{decision.profile}/{decision.rule} {decision.action}")
    if decision.tier:
        return names.comment(f"end of tier {decision.tier}: no policy decided")
    if decision.action == Action.DENY:
        return decision.reason if decision.reason.startswith("DefaultEndpoint") else "no profile allowed it"
    return ""


def _fields(failsafe: Failsafe) -> tuple[str, int, str]:
    return failsafe.protocol, failsafe.port, failsafe.net


def part_of_view(
    whole: NodeView, keys: Sequence[WorkloadKey], hosts: Sequence[str], ipsets: Mapping[str, IPSet]
) -> NodeView:
    """Of a node's view what these endpoints need, in values of its own. Raises KeyError for endpoints that it lacks."""
    workloads = {key: whole.workloads[key] for key in keys}
    guarding = {name: whole.hosts[name] for name in hosts}
    wanted = {key for one in workloads.values() for key in one.policy_keys()}
    wanted |= {key for host in guarding.values() for key in host.policy_keys()}
    profiles = {name for one in workloads.values() for name in one.profiles}
    profiles |= {name for host in guarding.values() for name in host.profiles}
    found = NodeView(
        workloads=workloads,
        hosts=guarding,
        policies={key: whole.policies[key] for key in wanted},
        profiles={name: whole.profiles[name] for name in profiles},
        ipsets={},
    )
    needed = {one for policy in found.policies.values() for one in policy.set_ids()}
    needed |= {one for profile in found.profiles.values() for one in profile.set_ids()}
    found.ipsets.update((name, IPSet(ipsets[name].type, frozenset(ipsets[name].members))) for name in needed)
    return found
