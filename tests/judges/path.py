"""The way of a packet through the node: whose policy it meets, and in which order (data model, sections 5.7 to 5.10).

The judges of policy say what one endpoint makes of a packet; this puts their answers together. Pods have normal policy
only. The node's host endpoint stands on the interface to the outside and has four kinds:

    untracked, preDNAT   for all that comes in (untracked also for what the node sends): an Allow ends what the host
                         endpoint has to say about packets that come in or that the node sends
    forward              for what the node only passes on; no decision lets it through
    normal               for what the node itself sends or gets
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

from libs.testkit import packets
from libs.testkit.packets import Packet
from tests.judges.draw import GUARD, PODS
from tests.judges.shots import HERE, OUT, Shot

NORMAL, FORWARD, UNTRACKED, PRE_DNAT = "normal", "forward", "untracked", "preDNAT"
# Ports that no policy of a host endpoint closes, besides forwarded traffic (facts of Felix, section 4.11).
FAILSAFE_IN = {packets.TCP: (22, 179, 2379, 2380, 5473, 6443, 6666, 6667), packets.UDP: (68,)}
FAILSAFE_OUT = {packets.TCP: (179, 2379, 2380, 5473, 6443, 6666, 6667), packets.UDP: (53, 67)}


class PolicyJudge(Protocol):
    """guarded: whether the node has a host endpoint."""

    guarded: bool

    def says(self, packet: Packet, endpoint: str, direction: str, kind: str) -> str:
        """Allow, Deny, or "" for no decision. endpoint: a pod or `GUARD`; direction: Ingress or Egress."""


class Ask(Protocol):
    """`PolicyJudge.says` of one packet."""

    def __call__(self, endpoint: str, direction: str, kind: str) -> str: ...


def allows(judge: PolicyJudge, shot: Shot) -> bool:
    """Whether the packet gets to its receiver, if the judge is right about every endpoint."""
    packet, sender, receiver, guarded = shot.packet, shot.sender, shot.receiver, judge.guarded
    ask: Ask = partial(judge.says, packet)
    if sender == HERE:
        # What the node sends to its own pods is never policed.
        return receiver != OUT or not guarded or _node_sends(packet, ask)
    if sender in PODS and ask(sender, "Egress", NORMAL) != "Allow":
        return False
    let_in = ""
    if sender == OUT and guarded:
        let_in = _comes_in(packet, ask)
        if let_in == "Deny":
            return False
        if let_in != "Allow" and receiver != HERE and ask(GUARD, "Ingress", FORWARD) == "Deny":
            return False
    if receiver in PODS:
        return ask(receiver, "Ingress", NORMAL) == "Allow"
    if receiver == OUT:
        return not guarded or ask(GUARD, "Egress", FORWARD) != "Deny"
    # To the node itself: a pod's egress policy has been asked, and the lab accepts what that lets through.
    if sender != OUT or not guarded or let_in == "Allow" or failsafe(packet.protocol, packet.dport, FAILSAFE_IN):
        return True
    return ask(GUARD, "Ingress", NORMAL) == "Allow"


def _comes_in(packet: Packet, ask: Ask) -> str:
    """What untracked and pre-DNAT policy say. A failsafe port is let through a stage, but not past the later ones."""
    protocol, into = packet.protocol, failsafe(packet.protocol, packet.dport, FAILSAFE_IN)
    if not into and not failsafe(protocol, packet.sport, FAILSAFE_OUT):  # the answer of a failsafe port is let in too
        decision = ask(GUARD, "Ingress", UNTRACKED)
        if decision:
            return decision
    return "" if into else ask(GUARD, "Ingress", PRE_DNAT)


def _node_sends(packet: Packet, ask: Ask) -> bool:
    protocol, out = packet.protocol, failsafe(packet.protocol, packet.dport, FAILSAFE_OUT)
    if not out and not failsafe(protocol, packet.sport, FAILSAFE_IN):
        decision = ask(GUARD, "Egress", UNTRACKED)
        if decision:
            return decision == "Allow"
    return out or ask(GUARD, "Egress", NORMAL) == "Allow"


def failsafe(protocol: int, port: int, ports: dict[int, tuple[int, ...]]) -> bool:
    return port in ports.get(protocol, ())
