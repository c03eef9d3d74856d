"""The way of a new connection's first packet through one node: whose policy it meets, and what each one says.

A packet comes from, and goes to, one of three places as a node sees them: a workload of this node, the node itself, or
the outside, which is everything behind an interface that is no workload's. Workloads have normal policy. An interface
to the outside may have a host endpoint, which has four kinds of policy (facts: data model, sections 5.7 to 5.10):

    doNotTrack, preDNAT   for all that comes in (doNotTrack also for what the node sends): an Allow ends what host
                          endpoints have to say about packets that come in or that the node sends
    applyOnForward        for what the node only passes on; where nothing decides, the packet goes on
    normal                for what the node itself sends or gets; failsafe ports first

What the node sends to its own workloads is never policed. Every step is calculated even when an earlier one denies, so
that one answer tells all that stands in a packet's way. Where the node translates the destination, as kube-proxy does
for services, doNotTrack and preDNAT policy meets the packet as it was `before`, all other the one that came of it. Not
looked at: limits, and whether a route leads there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

import msgspec

from libs.policy import nets
from libs.policy.changes import NodeView
from libs.policy.output import Action, Host, Tier, Workload, WorkloadKey
from libs.policy.trace import Direction, Packet, Reason, Visit, decide_tiers, protocol_number

WITH_PORTS = frozenset({6, 17, 132, 136})


class Stage(StrEnum):
    NORMAL = "normal"
    FORWARD = "applyOnForward"
    UNTRACKED = "doNotTrack"
    PRE_DNAT = "preDNAT"
    TO_HOST = "endpointToHost"
    """What DefaultEndpointToHostAction makes of what a workload sends to its own node."""


BEFORE_TRANSLATION = frozenset({Stage.UNTRACKED, Stage.PRE_DNAT})


class Side(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One end of the packet as the node sees it: a workload, the node itself (`here`), or else the outside.

    guard: host endpoint of the interface to the outside, "" when it has none. any_interface: it is the one of `*`,
    whose doNotTrack policy does not count.
    """

    workload: WorkloadKey | None = None
    here: bool = False
    guard: str = ""
    any_interface: bool = False


class Failsafe(msgspec.Struct, frozen=True, omit_defaults=True):
    """A port that no policy of a host endpoint closes. net: where the other side must be; "" anywhere."""

    protocol: str
    port: int
    net: str = ""


# Calico's list, and NATS, which took the place of Typha's port 5473: felix that cannot reach it would never learn of
# the policy that lets it out again, and NATS servers that cannot reach each other part the cluster as etcd's would.
NATS_CLIENTS, NATS_ROUTES = 4222, 6222
_SERVICES = (179, 2379, 2380, NATS_CLIENTS, 5473, NATS_ROUTES, 6443, 6666, 6667)
DEFAULT_FAILSAFE_IN = (*(Failsafe("tcp", port) for port in (22, *_SERVICES)), Failsafe("udp", 68))
DEFAULT_FAILSAFE_OUT = (Failsafe("udp", 53), Failsafe("udp", 67), *(Failsafe("tcp", port) for port in _SERVICES))


class HostRules(msgspec.Struct, frozen=True, kw_only=True):
    """What of a node's configuration decides about packets. endpoint_to_host: Drop, Accept or Return."""

    failsafe_in: tuple[Failsafe, ...] = DEFAULT_FAILSAFE_IN
    failsafe_out: tuple[Failsafe, ...] = DEFAULT_FAILSAFE_OUT
    endpoint_to_host: str = "Drop"


class Met(msgspec.Struct, frozen=True, omit_defaults=True):
    """A Log rule on the way, `np/ns1/web/0`; of profiles `pro/kns.ns1/0`."""

    rule: str


class Decision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """action: allow, deny, or "" where nothing decided and the packet goes on.

    policy: `np/ns1/web`. rule: its place from 0 in the policy or profile; None where an end decided. visits: tiers in
    order.
    """

    action: str
    reason: str
    tier: str = ""
    policy: str = ""
    profile: str = ""
    rule: int | None = None
    failsafe: Failsafe | None = None
    visits: tuple[Visit, ...] = ()
    logged: tuple[Met, ...] = ()

    def same_as(self, other: Decision) -> bool:
        """Decided by the same, alike."""
        mine = (self.action, self.tier, self.policy, self.profile, self.rule)
        return mine == (other.action, other.tier, other.policy, other.profile, other.rule)


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One endpoint's say. endpoint: `k8s/ns1/web/eth0`, or the name of a host endpoint. staged: what is decided when
    staged policies are enforced, where that is another thing.
    """

    endpoint: str
    host: bool
    direction: Direction
    stage: Stage
    decision: Decision
    staged: Decision | None = None

    def decided(self, *, staged: bool = False) -> Decision:
        return self.staged if staged and self.staged is not None else self.decision


def allowed(steps: Iterable[Step], *, staged: bool = False) -> bool:
    return all(step.decided(staged=staged).action != Action.DENY for step in steps)


def walk(
    view: NodeView,
    packet: Packet,
    sender: Side,
    receiver: Side,
    rules: HostRules,
    *,
    staged: bool = False,
    before: Packet | None = None,
) -> list[Step]:
    """The steps in order. staged: whose Allow ends what a host endpoint has to say: as things would be. before: the
    packet as this node meets it, where the node itself translates its destination.

    Raises KeyError for an endpoint that the view lacks, ValueError for a packet that is none (an address, a protocol).
    """
    return _Walk(view, packet, before or packet, sender, receiver, rules, staged).run()


class _Walk:
    def __init__(
        self,
        view: NodeView,
        packet: Packet,
        before: Packet,
        sender: Side,
        receiver: Side,
        rules: HostRules,
        staged: bool,
    ) -> None:
        self._view = view
        self._packet = packet
        self._before = before
        self._sender = sender
        self._receiver = receiver
        self._rules = rules
        self._staged = staged
        self._steps: list[Step] = []

    def run(self) -> list[Step]:
        sender, receiver = self._sender, self._receiver
        if sender.here:
            if receiver.guard and receiver.workload is None:
                self._node_sends(self._view.hosts[receiver.guard])
            return self._steps
        if sender.workload is not None:
            self._workload(sender.workload, Direction.EGRESS)
        let_in = False
        if sender.guard and sender.workload is None:
            host = self._view.hosts[sender.guard]
            let_in = self._comes_in(host)
            if not let_in and not receiver.here:
                self._host(host, Direction.INGRESS, Stage.FORWARD, host.forward_tiers)
        if receiver.workload is not None:
            self._workload(receiver.workload, Direction.INGRESS)
        elif receiver.here:
            self._to_node(let_in)
        elif receiver.guard:
            host = self._view.hosts[receiver.guard]
            self._host(host, Direction.EGRESS, Stage.FORWARD, host.forward_tiers)
        return self._steps

    def _to_node(self, let_in: bool) -> None:
        sender = self._sender
        if sender.workload is not None:
            if self._rules.endpoint_to_host == "Drop":
                reason = "DefaultEndpointToHostAction is Drop"
                decision = Decision(action=Action.DENY, reason=reason)
                self._add(str(sender.workload), False, Direction.EGRESS, Stage.TO_HOST, decision, None)
        elif sender.guard and not let_in:
            host = self._view.hosts[sender.guard]
            self._normal(host, sender.guard, Direction.INGRESS)

    def _comes_in(self, host: Host) -> bool:
        """What doNotTrack and preDNAT policy say; True when one of them lets the packet in. Failsafe ports are let
        through a stage, but not past the later ones.
        """
        into = self._failsafe(Direction.INGRESS, self._before)
        answer = _open(self._rules.failsafe_out, self._before.protocol, self._before.src_port, self._before.src)
        asked = into is None and answer is None and not self._sender.any_interface
        if asked and self._host(host, Direction.INGRESS, Stage.UNTRACKED, host.untracked_tiers) == Action.ALLOW:
            return True
        if into is not None:
            return False
        return self._host(host, Direction.INGRESS, Stage.PRE_DNAT, host.pre_dnat_tiers) == Action.ALLOW

    def _node_sends(self, host: Host) -> None:
        out = self._failsafe(Direction.EGRESS, self._before)
        answer = _open(self._rules.failsafe_in, self._before.protocol, self._before.src_port, self._before.dst)
        asked = out is None and answer is None and not self._receiver.any_interface
        if asked and self._host(host, Direction.EGRESS, Stage.UNTRACKED, host.untracked_tiers) == Action.ALLOW:
            return
        self._normal(host, self._receiver.guard, Direction.EGRESS)

    def _failsafe(self, direction: Direction, packet: Packet) -> Failsafe | None:
        if direction is Direction.INGRESS:
            return _open(self._rules.failsafe_in, packet.protocol, packet.dst_port, packet.src)
        return _open(self._rules.failsafe_out, packet.protocol, packet.dst_port, packet.dst)

    def _normal(self, host: Host, name: str, direction: Direction) -> None:
        failsafe = self._failsafe(direction, self._packet)
        if failsafe is not None:
            decision = Decision(action=Action.ALLOW, reason="a failsafe port", failsafe=failsafe)
            self._add(name, True, direction, Stage.NORMAL, decision, None)
            return
        self._tiers(name, True, direction, Stage.NORMAL, host.tiers, host.profiles)

    def _workload(self, key: WorkloadKey, direction: Direction) -> None:
        workload: Workload = self._view.workloads[key]
        if workload.state != "active":
            decision = Decision(action=Action.DENY, reason="the workload is administratively down")
            self._add(str(key), False, direction, Stage.NORMAL, decision, None)
            return
        self._tiers(str(key), False, direction, Stage.NORMAL, workload.tiers, workload.profiles)

    def _host(self, host: Host, direction: Direction, stage: Stage, tiers: Sequence[Tier]) -> str:
        """A stage in which profiles have no say; it is no step when no policy is in it."""
        if not any(tier.ingress if direction is Direction.INGRESS else tier.egress for tier in tiers):
            return ""
        name = self._sender.guard if direction is Direction.INGRESS else self._receiver.guard
        return self._tiers(name, True, direction, stage, tuple(tiers), ())

    def _tiers(
        self,
        name: str,
        host: bool,
        direction: Direction,
        stage: Stage,
        tiers: tuple[Tier, ...],
        profiles: tuple[str, ...],
    ) -> str:
        now, then = (self._decide(tiers, profiles, direction, stage, staged=staged) for staged in (False, True))
        return self._add(name, host, direction, stage, now, None if then.same_as(now) else then)

    def _decide(
        self, tiers: tuple[Tier, ...], profiles: tuple[str, ...], direction: Direction, stage: Stage, *, staged: bool
    ) -> Decision:
        visits: list[Visit] = []
        packet = self._before if stage in BEFORE_TRANSLATION else self._packet
        verdict = decide_tiers(tiers, profiles, self._view, packet, direction, staged=staged, visits=visits)
        action, reason = str(verdict.action), str(verdict.reason)
        if verdict.reason is Reason.NO_PROFILE_MATCHED:
            if stage is not Stage.NORMAL:
                action, reason = "", "no policy decided"
            elif not profiles:
                reason = "no policy decided, and the endpoint has no profile"
        policy = verdict.policy if verdict.reason is Reason.POLICY_RULE else None
        return Decision(
            action=action,
            reason=reason,
            tier=verdict.tier,
            policy="" if policy is None else str(policy),
            profile=verdict.profile,
            rule=verdict.rule,
            visits=tuple(visits),
            logged=tuple(
                Met(f"{one.policy if one.policy is not None else f'pro/{one.profile}'}/{one.rule}")
                for one in verdict.logged
            ),
        )

    def _add(
        self,
        name: str,
        host: bool,
        direction: Direction,
        stage: Stage,
        decision: Decision,
        staged: Decision | None,
    ) -> str:
        step = Step(endpoint=name, host=host, direction=direction, stage=stage, decision=decision, staged=staged)
        self._steps.append(step)
        return step.decided(staged=self._staged).action


def _open(ports: Iterable[Failsafe], protocol: str | int, port: int, remote: str) -> Failsafe | None:
    number = protocol_number(protocol)
    if number not in WITH_PORTS:
        return None
    for one in ports:
        near = not one.net or nets.parse(nets.canonical(one.net)).contains(nets.parse(remote))
        if near and protocol_number(one.protocol) == number and one.port == port:
            return one
    return None
