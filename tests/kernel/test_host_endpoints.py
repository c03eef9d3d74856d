"""Host endpoints as real packets meet them: what comes to a node, leaves it and passes through it, IPv4 and IPv6."""

from __future__ import annotations

import pytest

from libs.policy.output import Action, Host, Policy, PolicyKey, PortRange, Rule, Tier
from services.felix.core.failsafe import FailsafePort
from services.felix.core.options import RulesetOptions
from tests.kernel.ruleset_lab import NODE, OUT, Lab, address, gnp, tcp

pytestmark = pytest.mark.kernel

ALLOW, DENY = Rule(action=Action.ALLOW), Rule(action=Action.DENY)
SOME_FAILSAFES = RulesetOptions(
    failsafe_in=(
        FailsafePort("tcp", 81),
        FailsafePort("tcp", 8000, "198.51.100.0/24"),
        FailsafePort("tcp", 8005, "::/0"),
    ),
    failsafe_out=(FailsafePort("udp", 53),),
)
TO_HOST = ("out", "node", 80, "tcp")
FAILSAFE = ("out", "node", 81, "tcp")
FROM_HOST = ("node", "out", 80, "tcp")
DNS = ("node", "out", 53, "udp")
THROUGH = ("out", "a", 80, "tcp")
BACK = ("a", "out", 80, "tcp")
HOST_TO_POD = ("node", "a", 80, "tcp")


@pytest.fixture(params=[False, True], ids=["plain", "ipvs"])
def lab(built: Lab, request: pytest.FixtureRequest) -> Lab:
    """ipvs: with the ruleset of a host where kube-proxy uses IPVS; what no service concerns is decided the same way."""
    built.fresh(SOME_FAILSAFES, ipvs=request.param)
    built.pods()
    return built


def both(*keys: PolicyKey, action: str = "Deny") -> tuple[Tier, ...]:
    return (Tier(name="default", default_action=action, ingress=keys, egress=keys),)


def policy(
    lab: Lab, name: str, inbound: tuple[Rule, ...] = (), outbound: tuple[Rule, ...] = (), **more: bool
) -> PolicyKey:
    lab.builder.set_policy(gnp(name), Policy(tier="default", inbound=inbound, outbound=outbound, **more))
    return gnp(name)


def test_endpoint_without_policy_or_profile_closes_the_host_but_for_failsafe_ports(lab):
    lab.apply()
    lab.expect({TO_HOST: True, FROM_HOST: True})
    lab.builder.set_host("eth0-host", Host(name="eth0"))
    lab.apply()
    lab.expect(
        {TO_HOST: False, FAILSAFE: True, FROM_HOST: False, DNS: True, THROUGH: True, BACK: True, HOST_TO_POD: True}
    )
    # A failsafe port for a network holds in that network and its family alone.
    lab.expect({("out", "node", 8000, "tcp"): False})
    lab.expect({("out", "node", 8005, "tcp"): False}, versions=(4,))
    lab.expect({("out", "node", 8005, "tcp"): True}, versions=(6,))
    lab.builder.set_host("eth0-host", None)
    lab.apply()
    lab.expect({TO_HOST: True, FROM_HOST: True})


def test_policy_and_profiles_of_a_named_interface(lab):
    key = policy(lab, "host", (tcp(80), tcp(9000, action=Action.DENY)), (tcp(80),))
    lab.builder.set_host("h", Host(name="eth0", tiers=both(key)))
    lab.apply()
    lab.expect({TO_HOST: True, ("out", "node", 9000, "tcp"): False, FROM_HOST: True, ("node", "out", 81, "tcp"): False})
    lab.builder.set_host("h", Host(name="eth0", tiers=both(key, action="Pass"), profiles=("open",)))
    lab.apply()
    lab.expect({TO_HOST: True, ("out", "node", 9000, "tcp"): False, ("node", "out", 81, "tcp"): True})


def test_endpoint_of_all_interfaces_leaves_workloads_and_loopback_alone(lab):
    lab.builder.set_host("all", Host(name="*"))
    lab.apply()
    lab.expect({TO_HOST: False, FAILSAFE: True, FROM_HOST: False, HOST_TO_POD: True, ("node", "node", 80, "tcp"): True})
    # One of its own takes an interface out of it, at every stage.
    deny = policy(lab, "deny", (DENY,), (DENY,))
    early = policy(lab, "early", (DENY,), pre_dnat=True)
    before = (Tier(name="default", default_action="Pass", ingress=(early,)),)
    lab.builder.set_host("all", Host(name="*", tiers=both(deny), pre_dnat_tiers=before))
    lab.builder.set_host("own", Host(name="eth0", profiles=("open",)))
    lab.apply()
    lab.expect({TO_HOST: True, FROM_HOST: True})
    lab.builder.set_host("own", None)
    lab.apply()
    lab.expect({TO_HOST: False, FAILSAFE: True})


def test_endpoint_found_by_an_expected_address_follows_it(lab):
    host = Host(expected4=(NODE[4],), expected6=(NODE[6],))
    lab.builder.set_host("by-address", host)
    assert lab.builder.expects_addresses
    lab.apply()
    lab.expect({TO_HOST: True})
    assert lab.builder.set_host_addresses({"eth0": frozenset({NODE[4]}), "eth1": frozenset({"203.0.113.1"})})
    lab.apply()
    lab.expect({TO_HOST: False, FAILSAFE: True})
    assert lab.builder.set_host_addresses({"eth0": frozenset(), "eth1": frozenset({NODE[4]})})
    lab.apply()
    lab.expect({TO_HOST: True})


def test_forwarded_traffic_meets_only_policy_that_asks_for_it(lab):
    others = (("out", "a", 81, "tcp"), ("a", "out", 81, "tcp"))
    deny = policy(lab, "deny", (tcp(80, action=Action.DENY), ALLOW), (tcp(80, action=Action.DENY), ALLOW))
    lab.builder.set_host("h", Host(name="eth0", tiers=both(deny)))
    lab.apply()
    lab.expect({TO_HOST: False, THROUGH: True, BACK: True})
    lab.builder.set_host("h", Host(name="eth0", tiers=both(deny), forward_tiers=both(deny)))
    lab.apply()
    lab.expect({TO_HOST: False, THROUGH: False, BACK: False} | dict.fromkeys(others, True))
    allow = policy(lab, "allow", (tcp(80),), (tcp(80),))
    lab.builder.set_host("h", Host(name="eth0", profiles=("open",), forward_tiers=both(allow)))
    lab.apply()
    lab.expect({THROUGH: True, BACK: True} | dict.fromkeys(others, False))
    # Policy of the pod still counts after that of the host.
    lab.pod("a", profiles=("missing",))
    lab.apply()
    lab.expect({THROUGH: False, BACK: False})


def test_pre_dnat_policy_sees_the_port_that_the_sender_wrote(lab):
    for family, to in (("ip", f"{address('a', 4)}:80"), ("ip6", f"[{address('a', 6)}]:80")):
        lab.nft("add", "table", family, "services")
        lab.nft("add", "chain", family, "services", "pre", "{ type nat hook prerouting priority -100; }")
        lab.nft("add", "rule", family, "services", "pre", "tcp", "dport", "8010", "dnat", "to", to)
    try:
        node_port = ("out", "node", 8010, "tcp")
        lab.builder.set_host("h", Host(name="eth0", profiles=("open",)))
        lab.apply()
        lab.expect({node_port: True, THROUGH: True})
        deny = policy(lab, "ports", (tcp(8010, action=Action.DENY),), pre_dnat=True)
        before = (Tier(name="default", default_action="Pass", ingress=(deny,)),)
        lab.builder.set_host("h", Host(name="eth0", profiles=("open",), pre_dnat_tiers=before))
        lab.apply()
        lab.expect({node_port: False, THROUGH: True, TO_HOST: True})
        # What pre-DNAT policy allows, normal policy of the host endpoint does not see again.
        allow = policy(lab, "ports", (tcp(80),), pre_dnat=True)
        assert allow == deny
        lab.builder.set_host("h", Host(name="eth0", pre_dnat_tiers=before))
        lab.apply()
        lab.expect({TO_HOST: True, ("out", "node", 9000, "tcp"): False})
    finally:
        for family in ("ip", "ip6"):
            lab.nft("delete", "table", family, "services")


def test_what_the_host_sends_to_a_translated_address_is_judged_by_the_real_one(lab):
    other = {4: "198.51.100.7", 6: "2001:db8:7::7"}
    for family, version in (("ip", 4), ("ip6", 6)):
        to = OUT[4] if version == 4 else f"[{OUT[6]}]"
        lab.nft("add", "table", family, "services")
        lab.nft("add", "chain", family, "services", "out", "{ type nat hook output priority -100; }")
        lab.nft(
            "add",
            "rule",
            family,
            "services",
            "out",
            family,
            "daddr",
            other[version],
            "tcp",
            "dport",
            "8010",
            "dnat",
            "to",
            f"{to}:80",
        )
        lab.spaces["node"].ip([f"route add {other[version]} dev cali-b"])
    try:
        for allowed in (True, False):
            rule = tcp(80, action=Action.ALLOW if allowed else Action.DENY)
            key = policy(lab, "egress", (ALLOW,), (rule, tcp(8010)))
            lab.builder.set_host("h", Host(name="eth0", tiers=both(key)))
            lab.apply()
            for version in (4, 6):
                got = lab.reach("node", other[version], 8010, wanted=allowed)
                assert got is allowed, f"IPv{version}, {allowed=}"
    finally:
        for version in (4, 6):
            lab.spaces["node"].ip([f"route del {other[version]} dev cali-b"])
        for family in ("ip", "ip6"):
            lab.nft("delete", "table", family, "services")


def test_untracked_policy_decides_before_connection_tracking(lab):
    key = policy(
        lab,
        "raw",
        (tcp(80),),
        (Rule(action=Action.ALLOW, protocol="tcp", src_ports=(PortRange(80, 80),)),),
        untracked=True,
    )
    raw = both(key, action="Pass")
    lab.builder.set_host("h", Host(name="eth0", untracked_tiers=raw))
    lab.apply()
    lab.expect({TO_HOST: True, ("out", "node", 9000, "tcp"): False, FAILSAFE: True})
    tracked = lab.conntrack()
    assert "dport=81" in tracked, "a tracked flow leaves an entry"
    assert not any("dport=80 " in line for line in tracked.splitlines()), tracked
    policy(lab, "raw", (tcp(80, action=Action.DENY),), untracked=True)
    lab.builder.set_host("h", Host(name="eth0", profiles=("open",), untracked_tiers=raw))
    lab.apply()
    lab.expect({TO_HOST: False, ("out", "node", 9000, "tcp"): True})
    # `*` does not take part in untracked policy.
    lab.builder.set_host("h", Host(name="*", profiles=("open",), untracked_tiers=raw))
    lab.apply()
    lab.expect({TO_HOST: True})


def test_lowest_name_has_an_interface_that_two_host_endpoints_name(lab):
    lab.builder.set_host("b", Host(name="eth0"))
    lab.builder.set_host("a", Host(name="eth0", profiles=("open",)))
    lab.apply()
    lab.expect({TO_HOST: True})
    lab.builder.set_host("a", None)
    lab.apply()
    lab.expect({TO_HOST: False})


@pytest.mark.parametrize("deny", ["Drop", "Reject"])
def test_everything_goes_with_the_last_host_endpoint_and_a_restart_rewrites_nothing(built, deny):
    options = RulesetOptions(deny_action=deny)
    built.fresh(options)
    built.pods()
    built.apply()
    empty = {family: built.nft("-s", "list", "table", family, "calico") for family in ("ip", "ip6")}

    def fill(lab: Lab) -> None:
        normal = policy(lab, "normal", (tcp(80),), (tcp(80),))
        raw = policy(lab, "raw", (tcp(81, action=Action.DENY),), untracked=True)
        early = policy(lab, "early", (tcp(8000),), pre_dnat=True)
        lab.builder.set_host(
            "h",
            Host(
                name="eth0",
                profiles=("open",),
                tiers=both(normal),
                forward_tiers=both(normal),
                untracked_tiers=both(raw, action="Pass"),
                pre_dnat_tiers=both(early, action="Pass"),
            ),
        )
        lab.builder.set_host("all", Host(name="*", tiers=both(normal), forward_tiers=both(normal)))

    fill(built)
    built.apply()
    built.fresh(options)
    built.pods()
    fill(built)
    assert [(done.changed_rules, done.changed_elements) for done in built.apply()] == [(0, 0), (0, 0)]
    for name in ("h", "all"):
        built.builder.set_host(name, None)
    for name in ("normal", "raw", "early"):
        built.builder.set_policy(gnp(name), None)
    built.apply()
    assert {family: built.nft("-s", "list", "table", family, "calico") for family in ("ip", "ip6")} == empty
