"""The way through a node, against the judges' plain reference on drawn clusters, and by examples."""

from __future__ import annotations

from random import Random

import pytest

from libs.policy.path import Failsafe, HostRules, Side, Stage, allowed, walk
from libs.policy.trace import Direction, Packet
from tests.judges.draw import GUARD, PODS, Draw
from tests.judges.path import FAILSAFE_IN, FAILSAFE_OUT, allows
from tests.judges.reference import Reference
from tests.judges.shots import HERE, OUT
from tests.judges.trial import NAMES, draw_case, view_of
from tests.unit.libs.policy import build


def rules(action: str = "Accept") -> HostRules:
    def ports(table: dict[int, tuple[int, ...]]) -> tuple[Failsafe, ...]:
        return tuple(Failsafe(NAMES[protocol], port) for protocol, ports in table.items() for port in ports)

    return HostRules(failsafe_in=ports(FAILSAFE_IN), failsafe_out=ports(FAILSAFE_OUT), endpoint_to_host=action)


# Those in which the node has a host endpoint: its stages are what may go wrong.
GUARDED = [seed for seed in range(300) if Draw(Random(seed)).cluster().guarded]


@pytest.mark.parametrize("seed", [*range(10), *GUARDED])
def test_the_way_is_that_of_the_reference(seed: int) -> None:
    cluster, shots = draw_case(seed, 120)
    view, reference = view_of(cluster.resources), Reference(cluster.resources)
    keys = {workload.name: key for key, workload in view.workloads.items()}

    def side(place: str) -> Side:
        if place in PODS:
            return Side(workload=keys[f"cali{place}"])
        return Side(here=True) if place == HERE else Side(guard=GUARD if GUARD in view.hosts else "")

    for shot in shots:
        packet = Packet(
            src=str(shot.packet.src),
            dst=str(shot.packet.dst),
            protocol=NAMES.get(shot.packet.protocol, shot.packet.protocol),
            src_port=shot.packet.sport,
            dst_port=shot.packet.dport,
            icmp_type=shot.packet.icmp_type,
            icmp_code=shot.packet.icmp_code,
        )
        steps = walk(view, packet, side(shot.sender), side(shot.receiver), rules())
        assert allowed(steps) is allows(reference, shot), (shot, steps)
        assert OUT in (shot.sender, shot.receiver) or not any(step.host for step in steps)


def two_pods(*resources):
    pods = [build.wep("a", nets=("10.0.0.1/32",), profiles=("p",)), build.wep("b", nets=("10.0.0.2/32",))]
    view = build.view_of(*pods, build.profile("p", egress=[build.rule()]), *resources, node="n1")
    first, second = sorted(view.workloads, key=str)
    return view, Side(workload=first), Side(workload=second)


PACKET = Packet(src="10.0.0.1", dst="10.0.0.2", dst_port=80)


def test_every_step_is_told_though_the_first_one_denies() -> None:
    deny = build.gnp("deny", types=["Egress"], egress=[build.rule("Deny")])
    view, a, b = two_pods(deny, build.gnp("open", types=["Ingress"], ingress=[build.rule()]))
    out, into = walk(view, PACKET, a, b, rules())
    assert (out.direction, out.decision.action, out.decision.policy) == (Direction.EGRESS, "deny", "gnp/deny")
    assert (into.direction, into.decision.action, into.decision.rule) == (Direction.INGRESS, "allow", 0)


def test_tiers_that_passed_and_rules_that_log_are_told() -> None:
    view, a, b = two_pods(
        build.tier("first", 1),
        build.tier("second", 2, "Pass"),
        build.gnp("f.log", tier="first", types=["Ingress"], ingress=[build.rule("Log"), build.rule("Pass")]),
        build.gnp("s.none", tier="second", types=["Ingress"], ingress=[build.rule("Deny", "UDP")]),
    )
    decision = walk(view, PACKET, a, b, rules())[1].decision
    assert decision.reason == "no policy decided, and the endpoint has no profile"
    assert [(one.tier, one.ended, one.rule) for one in decision.visits] == [
        ("first", False, 1),
        ("second", False, None),
    ]
    assert [one.rule for one in decision.logged] == ["gnp/f.log/0"]


def test_staged_policy_is_told_beside_what_is_enforced() -> None:
    open_ = build.gnp("open", types=["Ingress"], ingress=[build.rule()])
    staged = build.gnp("close", staged="Set", order=1.0, types=["Ingress"], ingress=[build.rule("Deny")])
    view, a, b = two_pods(open_, staged)
    steps = walk(view, PACKET, a, b, rules())
    assert allowed(steps)
    assert not allowed(steps, staged=True)
    assert steps[1].staged is not None
    assert steps[1].staged.policy == "sgnp/close"
    assert steps[0].staged is None


def test_to_the_node_by_its_own_action() -> None:
    view, a, _ = two_pods()
    here = Side(here=True)
    assert allowed(walk(view, PACKET, a, here, rules("Accept")))
    steps = walk(view, PACKET, a, here, rules("Drop"))
    assert [step.stage for step in steps] == [Stage.NORMAL, Stage.TO_HOST]
    assert not allowed(steps)


def test_failsafe_port_counts_for_its_network_only() -> None:
    guard = build.hep("e", "n1", interface="eth0")
    view = build.view_of(guard, build.gnp("deny", ingress=[build.rule("Deny")]), node="n1")
    only = HostRules(failsafe_in=(Failsafe("tcp", 22, "192.0.2.0/24"),))
    outside, here = Side(guard="e"), Side(here=True)
    for source, verdict in (("192.0.2.9", True), ("198.51.100.9", False)):
        steps = walk(view, Packet(src=source, dst="10.0.0.9", dst_port=22), outside, here, only)
        assert allowed(steps) is verdict


def test_untracked_policy_of_any_interface_does_not_count() -> None:
    guard = build.hep("e", "n1", interface="*")
    raw = build.gnp("raw", do_not_track=True, apply_on_forward=True, types=["Ingress"], ingress=[build.rule("Deny")])
    view = build.view_of(guard, raw, build.gnp("open", ingress=[build.rule()]), node="n1")
    packet, here = Packet(src="192.0.2.9", dst="10.0.0.9", dst_port=80), Side(here=True)
    assert not allowed(walk(view, packet, Side(guard="e"), here, rules()))
    assert allowed(walk(view, packet, Side(guard="e", any_interface=True), here, rules()))


def test_untracked_and_pre_dnat_policy_meets_the_packet_before_translation_all_other_behind_it() -> None:
    guard = build.hep("e", "n1", interface="eth0")

    def only(address: str, port: int) -> list:
        return [build.rule("Deny", "TCP", destination={"nets": [address], "ports": [port]}), build.rule("Pass")]

    sent, packet = (
        Packet(src="192.0.2.9", dst="10.96.0.10", dst_port=80),
        Packet(src="192.0.2.9", dst="10.0.0.1", dst_port=8080),
    )
    outside, here = Side(guard="e"), Side(here=True)
    for stage, where, place in (
        ({"do_not_track": True, "apply_on_forward": True}, sent, outside),
        ({"pre_dnat": True, "apply_on_forward": True}, sent, outside),
        ({"apply_on_forward": True}, packet, outside),
        ({}, packet, outside),
    ):
        for denied in (sent, packet):
            deny = build.gnp("deny", types=["Ingress"], ingress=only(f"{denied.dst}/32", denied.dst_port), **stage)
            view = build.view_of(guard, deny, build.wep("a", profiles=("p",)), node="n1")
            receiver = here if not stage else Side(guard="e")
            steps = walk(view, packet, place, receiver, rules(), before=sent)
            by_policy = [
                step for step in steps if step.decision.policy == "gnp/deny" and step.decision.action == "deny"
            ]
            assert bool(by_policy) is (denied is where), (stage, denied)
            assert [step.decision.action for step in walk(view, sent, place, receiver, rules())] == [
                step.decision.action for step in walk(view, sent, place, receiver, rules(), before=sent)
            ]


def test_failsafe_ports_of_the_early_stages_are_those_of_the_packet_as_sent() -> None:
    guard = build.hep("e", "n1", interface="eth0")
    deny = build.gnp("deny", pre_dnat=True, apply_on_forward=True, types=["Ingress"], ingress=[build.rule("Deny")])
    view = build.view_of(guard, deny, node="n1")
    only, here = HostRules(failsafe_in=(Failsafe("tcp", 22),)), Side(here=True)
    sent = Packet(src="192.0.2.9", dst="10.96.0.10", dst_port=22)
    packet = Packet(src="192.0.2.9", dst="10.0.0.1", dst_port=2222)
    assert [one.stage for one in walk(view, packet, Side(guard="e"), here, only, before=sent)] == [Stage.NORMAL]
    assert Stage.PRE_DNAT in [one.stage for one in walk(view, sent, Side(guard="e"), here, only, before=packet)]
