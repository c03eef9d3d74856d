"""Which rule decides about a packet."""

from __future__ import annotations

import pytest

from libs import model
from libs.policy.output import Action
from libs.policy.trace import Direction, Packet, Reason, Verdict, decide
from tests.unit.libs.policy.build import gnp, gnp_key, gns, profile, rule, tier, view_of, wep, workload

X = wep("x", labels={"a": "1"}, profiles=("allow",), ports=(("web", "TCP", 80),))
ALLOW = profile("allow", ingress=[rule("Allow")], egress=[rule("Allow")])
CLIENTS = gns("clients", {"role": "client"}, ("198.51.100.0/24", "2001:db8::/64"))
PACKET = Packet(src="198.51.100.7", dst="10.0.0.1", protocol="tcp", src_port=40000, dst_port=80)


def verdict(*resources: model.Resource, packet: Packet = PACKET, staged: bool = False) -> Verdict:
    view = view_of(X, ALLOW, CLIENTS, *resources)
    return decide(workload(view, "x"), view, packet, Direction.INGRESS, staged=staged)


def test_profile_decides_without_policy() -> None:
    assert verdict() == Verdict(action=Action.ALLOW, reason=Reason.PROFILE_RULE, profile="allow", rule=0)


def test_policy_that_selects_but_does_not_match_denies_at_the_tiers_end() -> None:
    assert verdict(gnp("p", ingress=[rule(source={"nets": ["192.0.2.0/24"]})])) == Verdict(
        action=Action.DENY, reason=Reason.TIER_DEFAULT, tier="default", policy=gnp_key("p")
    )


def test_tier_that_passes_by_default_leaves_it_to_the_next() -> None:
    resources = (tier("t", 1, "Pass"), gnp("p", tier="t", ingress=[rule("Deny", "UDP")]))
    assert verdict(*resources).profile == "allow"


def test_pass_goes_to_the_next_tier_and_log_is_noted() -> None:
    found = verdict(
        tier("t", 1),
        tier("default", 1e6),
        gnp("p", tier="t", ingress=[rule("Log"), rule("Pass"), rule("Deny")]),
        gnp("q", ingress=[rule("Deny", "TCP")]),
    )
    assert (found.action, found.policy, found.rule) == (Action.DENY, gnp_key("q"), 0)
    assert [(one.policy, one.rule) for one in found.logged] == [(gnp_key("p"), 0)]


def test_staged_policy_counts_only_when_asked_and_then_replaces_its_namesake() -> None:
    resources = (gnp("p", ingress=[rule("Allow")]), gnp("p", staged="Set", ingress=[rule("Deny")]))
    assert verdict(*resources).action is Action.ALLOW
    assert verdict(*resources, staged=True).action is Action.DENY


def test_tier_of_staged_policies_alone_is_passed() -> None:
    assert verdict(gnp("p", staged="Set", ingress=[rule("Deny")])).reason is Reason.PROFILE_RULE


def test_no_profile_no_policy_denies() -> None:
    view = view_of(wep("y"))
    found = decide(workload(view, "y"), view, PACKET, Direction.INGRESS)
    assert (found.action, found.reason) == (Action.DENY, Reason.NO_PROFILE_MATCHED)


@pytest.mark.parametrize(
    ("one", "matches"),
    [
        (rule(protocol="TCP"), True),
        (rule(protocol=6), True),
        (rule(protocol="UDP"), False),
        (rule(not_protocol=model.Protocol("TCP")), False),
        (rule(ip_version=6), False),
        (rule(protocol="ICMP"), False),
        (rule(source={"nets": ["198.51.100.0/25"]}), True),
        (rule(source={"nets": ["198.51.100.128/25"]}), False),
        (rule(source={"not_nets": ["198.51.100.0/25"]}), False),
        (rule(source={"selector": "role == 'client'"}), True),
        (rule(source={"selector": "role == 'other'"}), False),
        (rule(source={"not_selector": "role == 'client'"}), False),
        (rule(source={"not_selector": "role == 'other'"}), True),
        (rule(protocol="TCP", destination={"ports": [79, "80:81"]}), True),
        (rule(protocol="TCP", destination={"ports": [81]}), False),
        (rule(protocol="TCP", destination={"not_ports": [80]}), False),
        (rule(protocol="TCP", destination={"ports": ["web"]}), True),
        (rule(protocol="TCP", destination={"ports": [81, "web"]}), True),
        (rule(protocol="TCP", destination={"ports": ["other"]}), False),
        (rule(protocol="TCP", destination={"not_ports": ["web"]}), False),
        (rule(protocol="TCP", destination={"selector": "a == '1'", "ports": ["web"]}), True),
        (rule(destination={"services": model.ServiceMatch(name="s", namespace="n")}), False),
    ],
)
def test_rule_match(one: model.Rule, matches: bool) -> None:
    found = verdict(gnp("p", ingress=[one]))
    assert (found.reason is Reason.POLICY_RULE) is matches


@pytest.mark.parametrize(("type_", "code", "matches"), [(8, None, True), (8, 0, True), (8, 1, False), (0, None, False)])
def test_icmp_match(type_: int, code: int | None, matches: bool) -> None:
    packet = Packet(src="198.51.100.7", dst="10.0.0.1", protocol="icmp", icmp_type=8, icmp_code=0)
    one = rule(protocol="ICMP", icmp=model.ICMPFields(type=type_, code=code))
    assert (verdict(gnp("p", ingress=[one]), packet=packet).action is Action.ALLOW) is matches


def test_negated_networks_of_the_other_family_take_the_rule_out() -> None:
    six = Packet(src="2001:db8::7", dst="fd00::1", protocol="tcp", src_port=40000, dst_port=80)
    deny = gnp("p", ingress=[rule("Deny", source={"not_nets": ["198.51.100.0/25"]}), rule("Allow")])
    assert verdict(deny, packet=six).rule == 1
    assert verdict(deny, packet=PACKET).rule == 1
    assert verdict(deny, packet=Packet(src="192.0.2.1", dst="10.0.0.1")).rule == 0


def test_egress_uses_outbound_rules() -> None:
    view = view_of(X, ALLOW, gnp("p", types=["Egress"], egress=[rule("Deny")]))
    assert decide(workload(view, "x"), view, PACKET, Direction.EGRESS).action is Action.DENY
    assert decide(workload(view, "x"), view, PACKET, Direction.INGRESS).action is Action.ALLOW
