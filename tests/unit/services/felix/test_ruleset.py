"""What the ruleset compiler writes, and what a change costs."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from libs.nftables.model import Verdict, VerdictKind
from libs.nftables.text import print_ruleset
from libs.policy.output import (
    Action,
    Icmp,
    IPSet,
    IPSetType,
    Nat,
    NodeInfo,
    Policy,
    PolicyKey,
    Pool,
    PortRange,
    Profile,
    Rule,
    Tier,
)
from services.felix.core.ipsets import LARGEST_GUARD, IpSets, parse_members
from services.felix.core.options import V4, NatOptions, RulesetOptions
from services.felix.core.ruleset import RulesetBuilder
from tests.unit.services.felix.table import Node, gnp, np, wl, workload

ALLOW, DENY, PASS, LOG = (Rule(action=action) for action in (Action.ALLOW, Action.DENY, Action.PASS, Action.LOG))
OPEN = Profile(inbound=(ALLOW,), outbound=(ALLOW,))
GOLDEN = Path(__file__).parents[3] / "golden"


def compiled(*rules: Rule, version: int = 4, sets: dict[str, IPSet] | None = None) -> list[str]:
    """The rules of a policy's ingress chain, in short."""
    node = Node()
    for set_id, ipset in (sets or {}).items():
        node.builder.set_ipset(set_id, ipset)
    node.builder.set_policy(np("p"), Policy(tier="default", inbound=rules))
    node.flush()
    return node.chain("pi-np/ns1/p", version)


def nets(*members: str) -> IPSet:
    return IPSet(IPSetType.NET, frozenset(members))


def list_chains(node: Node) -> list[str]:
    return sorted(name for name in node.v4.chains if name.startswith(("ti-", "to-")) and name != "to-wl-dispatch")


class TestRules:
    def test_cheap_matches_come_first_and_interval_sets_last(self):
        rule = Rule(
            action=Action.ALLOW,
            protocol="tcp",
            src_sets=("s:nets", "s:pods"),
            dst_ports=(PortRange(80, 80),),
            not_src_nets=("10.9.0.0/16",),
        )
        sets = {"s:nets": nets("10.0.0.0/8"), "s:pods": nets("10.0.0.1/32")}
        assert compiled(rule, sets=sets) == [
            "meta l4proto 6 ip saddr != 10.9.0.0/16 th dport 80 ip saddr @s-pods-h ip saddr @s-nets-n accept"
        ]

    def test_set_with_hosts_and_networks_becomes_two_rules_and_its_negation_one(self):
        sets = {"s:both": nets("10.1.0.0/16", "10.2.0.1/32")}
        assert compiled(Rule(action=Action.DENY, src_sets=("s:both",)), sets=sets) == [
            "ip saddr @s-both-h drop",
            "ip saddr @s-both-n drop",
        ]
        assert compiled(Rule(action=Action.DENY, not_dst_sets=("s:both",)), sets=sets) == [
            "ip daddr != @s-both-h ip daddr != @s-both-n drop"
        ]

    def test_two_sets_with_both_halves_become_four_rules(self):
        sets = {"s:x": nets("10.1.0.0/16", "10.2.0.1/32"), "s:y": nets("10.3.0.0/16", "10.4.0.1/32")}
        rules = compiled(Rule(action=Action.LOG, src_sets=("s:x",), dst_sets=("s:y",)), sets=sets)
        assert sorted(rules) == sorted(
            {
                'ip saddr @s-x-h ip daddr @s-y-h log "calico-packet: "',
                'ip saddr @s-x-h ip daddr @s-y-n log "calico-packet: "',
                'ip daddr @s-y-h ip saddr @s-x-n log "calico-packet: "',
                'ip saddr @s-x-n ip daddr @s-y-n log "calico-packet: "',
            }
        )

    def test_logged_alternatives_exclude_each_other_and_final_ones_do_not(self):
        sets = {"n:http": IPSet(IPSetType.IP_PORT, frozenset({"10.0.0.1,tcp:8080"}))}
        rule = Rule(action=Action.LOG, protocol="tcp", dst_ports=(PortRange(80, 80),), dst_named_port_sets=("n:http",))
        named = "ip daddr . meta l4proto . th dport @n-http"
        assert compiled(rule, sets=sets) == [
            'meta l4proto 6 th dport 80 log "calico-packet: "',
            f'meta l4proto 6 th dport != 80 {named} log "calico-packet: "',
        ]
        assert compiled(msgspec.structs.replace(rule, action=Action.ALLOW), sets=sets)[1] == (
            f"meta l4proto 6 {named} accept"
        )

    def test_several_ports_share_one_named_set_by_content(self):
        node = Node()
        web = (PortRange(443, 443), PortRange(80, 80))
        mixed = (PortRange(8000, 8010), PortRange(8011, 8020), PortRange(80, 80))
        rules = (
            Rule(action=Action.ALLOW, protocol="tcp", dst_ports=web),
            Rule(action=Action.DENY, protocol="udp", not_src_ports=web[::-1]),
            Rule(action=Action.ALLOW, protocol="tcp", dst_ports=mixed),
        )
        node.builder.set_policy(np("p"), Policy(tier="default", inbound=rules, outbound=rules))
        node.flush()
        assert node.chain("pi-np/ns1/p") == [
            "meta l4proto 6 th dport @ports-80-443 accept",
            "meta l4proto 17 th sport != @ports-80-443 drop",
            "meta l4proto 6 th dport @ports-80-8000_8020 accept",
        ]
        assert node.v4.sets["ports-80-443"].interval is False
        assert node.v4.sets["ports-80-8000_8020"].elements == {"80", "8000-8020"}
        node.builder.set_policy(np("p"), None)
        node.flush()
        assert not [name for name in node.v4.sets if name.startswith("ports-")]

    def test_many_networks_share_a_set_without_the_covered_ones(self):
        rule = Rule(action=Action.ALLOW, src_nets=("10.0.0.0/8", "10.1.0.0/16", "192.168.0.0/16", "fd00::/8"))
        assert compiled(rule)[0].startswith("ip saddr @nets-10.0.0.0/8-192.168.0.0/16"[:20])
        assert compiled(rule, version=6) == ["ip6 saddr fd00::/8 accept"]

    def test_rules_of_the_other_family_are_left_out(self):
        six = Rule(action=Action.ALLOW, not_src_nets=("fd00::/8",))
        assert compiled(six) == []
        assert compiled(six, version=6) == ["ip6 saddr != fd00::/8 accept"]
        assert compiled(Rule(action=Action.ALLOW, ip_version=6)) == []

    def test_everything_and_its_negation(self):
        assert compiled(Rule(action=Action.ALLOW, src_nets=("0.0.0.0/0", "10.0.0.0/8"))) == ["accept"]
        assert compiled(Rule(action=Action.ALLOW, not_dst_nets=("0.0.0.0/0",))) == []
        assert compiled(Rule(action=Action.ALLOW, protocol="tcp", dst_ports=(PortRange(0, 65535),))) == [
            "meta l4proto 6 accept"
        ]
        assert compiled(Rule(action=Action.ALLOW, protocol="tcp", not_dst_ports=(PortRange(0, 65535),))) == []

    def test_icmp_type_with_code_and_its_negation(self):
        assert compiled(Rule(action=Action.DENY, protocol="icmp", icmp=Icmp(8, 0))) == [
            "meta l4proto 1 icmp type 8 icmp code 0 drop"
        ]
        assert compiled(Rule(action=Action.DENY, protocol="icmpv6", not_icmp=Icmp(128, 0)), version=6) == [
            "meta l4proto 58 icmpv6 type != 128 drop",
            "meta l4proto 58 icmpv6 type 128 icmpv6 code != 0 drop",
        ]
        assert compiled(Rule(action=Action.DENY, protocol="icmp", icmp=Icmp(8))) != []
        assert compiled(Rule(action=Action.DENY, protocol="icmp", icmp=Icmp(8)), version=6) == []

    def test_numeric_ports_without_protocol_match_only_protocols_with_ports(self):
        assert compiled(Rule(action=Action.ALLOW, dst_ports=(PortRange(80, 80),))) == [
            "meta l4proto @protocols-with-ports th dport 80 accept"
        ]

    def test_comment_names_policy_rule_action_and_annotations_within_its_limit(self):
        node = Node()
        rule = Rule(action=Action.ALLOW, annotations={"team": 'say "shop"', "b": "x"})
        long = PolicyKey("NetworkPolicy", "n" * 253, "s" * 63)
        for key in (np("p"), long):
            node.builder.set_policy(key, Policy(tier="default", inbound=(rule,)))
        node.flush()
        assert node.v4.chains["pi-np/ns1/p"].rules[0].comment == "np/ns1/p/0 allow; b=x,team=say ?shop?"
        (name,) = (name for name in node.v4.chains if name.startswith("pi-np/sss"))
        comment = node.v4.chains[name].rules[0].comment
        assert len(name) <= 200
        assert len(comment) <= 127
        assert comment.startswith("np/sss")
        assert comment.endswith("/0 allow; b=x,team=say ?shop?")

    def test_log_prefix_fills_its_specifiers_and_rate_limits(self):
        node = Node(RulesetBuilder(RulesetOptions(log_prefix="%t|%k|%n|%p", log_rate=(10, "minute"))))
        node.builder.set_policy(np("p"), Policy(tier="sec", inbound=(LOG,)))
        node.builder.set_profile("kns.ns1", Profile(inbound=(LOG,)))
        node.flush()
        assert node.chain("pi-np/ns1/p") == ['limit log "sec|np|p|ns1/p: "']
        assert node.chain("pri-kns.ns1") == ['limit log "|pro|kns.ns1|kns.ns1: "']

    @pytest.mark.parametrize(
        ("rule", "reason"),
        [
            (Rule(action=Action.ALLOW, src_sets=("s:gone",)), "IP set s:gone is not known"),
            (Rule(action=Action.ALLOW, src_nets=("10.0.0.1/8",)), "host bits"),
            (Rule(action=Action.ALLOW, protocol="quic"), "unknown protocol 'quic'"),
            (Rule(action=Action.ALLOW, protocol="tcp", dst_ports=(PortRange(9, 8),)), "bad port range 9-8"),
            (Rule(action=Action.ALLOW, src_sets=("n:http",)), "IP set n:http is not of type NET"),
            (Rule(action=Action.ALLOW, icmp=Icmp(256, None)), "bad ICMP type or code 256"),
            (Rule(action=Action.ALLOW, not_icmp=Icmp(8, 300)), "bad ICMP type or code 300"),
        ],
    )
    def test_rules_that_cannot_be_programmed_deny_and_say_why(self, rule, reason):
        node = Node()
        node.builder.set_ipset("n:http", IPSet(IPSetType.IP_PORT, frozenset({"10.0.0.1,tcp:80"})))
        node.builder.set_policy(np("p"), Policy(tier="default", inbound=(ALLOW, rule), outbound=(ALLOW,)))
        node.flush()
        assert node.chain("pi-np/ns1/p") == ["drop"]
        assert node.chain("po-np/ns1/p") == ["accept"]
        assert reason in node.builder.refused[np("p")]
        node.builder.set_policy(np("p"), Policy(tier="default", inbound=(ALLOW,)))
        node.flush()
        assert node.builder.refused == {}


class TestEndpoints:
    def test_tiers_profiles_and_the_end(self):
        node = Node()
        node.builder.set_policy(gnp("sec"), Policy(tier="sec", inbound=(PASS,)))
        node.builder.set_policy(np("web"), Policy(tier="default", inbound=(ALLOW,), outbound=(PASS,)))
        tiers = (
            Tier(name="sec", ingress=(gnp("sec"),)),
            Tier(name="default", default_action="Pass", ingress=(np("web"),), egress=(np("web"),)),
        )
        node.builder.set_workload(wl("a"), workload("a", "10.0.0.1", *tiers, profiles=("kns.ns1", "ksa.ns1.x")))
        node.flush()
        outbound, app, sec = (name for name in sorted(list_chains(node), key=lambda n: (n[1] == "i", n)))
        profiles = ["jump pri-kns.ns1", "jump pri-ksa.ns1.x", "drop"]
        assert node.chain("tw-calia") == [f"jump {sec}", f"jump {app}", *profiles]
        assert node.chain("fw-calia") == [f"jump {outbound}", "jump pro-kns.ns1", "jump pro-ksa.ns1.x", "drop"]
        assert node.chain(sec) == [
            "mark & 0xfffdffff ^ 0x0",
            "jump pi-gnp/sec",
            "meta mark & 0x20000 == 0x20000 return",
            "drop",
        ]
        assert node.chain(app) == ["jump pi-np/ns1/web"]  # no Pass in this direction, and no drop at the end
        assert node.chain(outbound) == ["mark & 0xfffdffff ^ 0x0", "jump po-np/ns1/web"]
        assert node.chain("po-np/ns1/web") == ["mark & 0xfffdffff ^ 0x20000 return"]

    def test_endpoints_with_equal_lists_share_one_chain(self):
        node = Node()
        for name in ("p", "q"):
            node.builder.set_policy(np(name), Policy(tier="default", inbound=(ALLOW,)))
        tier = Tier(name="default", ingress=(np("p"), np("q")))
        for number in range(3):
            node.builder.set_workload(wl(f"w{number}"), workload(f"w{number}", f"10.0.0.{number}", tier))
        other = Tier(name="default", ingress=(np("q"), np("p")))
        node.builder.set_workload(wl("x"), workload("x", "10.0.0.9", other))
        node.flush()
        assert len(list_chains(node)) == 2
        node.builder.set_workload(wl("x"), None)
        node.flush()
        assert len(list_chains(node)) == 1

    def test_only_staged_policies_make_no_tier(self):
        node = Node()
        staged = PolicyKey("StagedGlobalNetworkPolicy", "trial")
        tier = Tier(name="default", ingress=(staged,), egress=(staged,))
        node.builder.set_workload(wl("a"), workload("a", "10.0.0.1", tier))
        node.flush()
        assert node.chain("tw-calia") == ["jump pri-kns.ns1", "drop"]
        node.builder.set_policy(staged, Policy(tier="default", inbound=(Rule(action=Action.DENY, src_sets=("s:x",)),)))
        assert node.flush() == []
        assert node.builder.refused == {}

    def test_unknown_profile_and_policy_have_chains_that_deny(self):
        node = Node()
        node.builder.set_workload(wl("a"), workload("a", "10.0.0.1", Tier(name="default", egress=(np("p"),))))
        node.flush()
        assert node.chain("pri-kns.ns1") == node.chain("po-np/ns1/p") == ["drop"]
        node.builder.set_profile("kns.ns1", OPEN)
        node.builder.set_policy(np("p"), Policy(tier="default"))
        node.flush()
        assert node.chain("pri-kns.ns1") == ["accept"]
        assert node.chain("po-np/ns1/p") == []
        node.builder.set_workload(wl("a"), None)
        node.builder.set_profile("kns.ns1", None)
        node.builder.set_policy(np("p"), None)
        node.flush()
        assert not [name for name in node.v4.chains if name.startswith(("pi-", "po-", "pri-", "pro-"))]

    def test_lowest_key_owns_an_interface_and_the_next_takes_over(self):
        node = Node()
        node.builder.set_workload(wl("b"), workload("x", "10.0.0.2", profiles=("second",)))
        node.builder.set_workload(wl("a"), workload("x", "10.0.0.1", profiles=("first",)))
        node.flush()
        assert node.chain("tw-calix") == ["jump pri-first", "drop"]
        assert node.v4.sets["wl-addrs"].elements == {"calix . 10.0.0.1"}
        node.builder.set_workload(wl("a"), None)
        node.flush()
        assert node.chain("tw-calix") == ["jump pri-second", "drop"]
        assert node.v4.sets["wl-addrs"].elements == {"calix . 10.0.0.2"}

    def test_inactive_workload_is_dropped_in_every_stage(self):
        node = Node()
        node.builder.set_workload(wl("a"), workload("a", "10.0.0.1", state="inactive"))
        node.flush()
        down = Verdict(VerdictKind.GOTO, "wl-down")
        assert node.v4.maps["from-wl"].elements == node.v4.maps["to-wl"].elements == {"calia": down}
        assert node.v4.sets["wl-addrs"].elements == frozenset()
        assert node.chain("hook-forward-to")[0] == "oifname @wl-down drop"
        assert "tw-calia" not in node.v4.chains
        node.builder.set_workload(wl("a"), workload("a", "10.0.0.1"))
        node.flush()
        assert node.v4.maps["to-wl"].elements == {"calia": Verdict(VerdictKind.GOTO, "tw-calia")}
        assert node.chain("hook-forward-to")[0] == "ct state & 0x6 != 0x0 accept"

    def test_foreign_source_prefixes_need_the_setting(self):
        allowed = msgspec.structs.replace(
            workload("a", "10.0.0.1"), allowed_source_prefixes=("10.9.0.0/16", "10.8.0.1/32", "fd09::/64")
        )
        node = Node()
        node.builder.set_workload(wl("a"), allowed)
        node.flush()
        assert "spoof-calia" not in node.v4.chains
        node = Node(RulesetBuilder(RulesetOptions(allow_source_spoofing=True)))
        node.builder.set_workload(wl("a"), allowed)
        node.flush()
        assert node.chain("spoof-calia") == ["ip saddr 10.9.0.0/16 accept", "drop"]
        assert node.v4.sets["wl-addrs"].elements == {"calia . 10.0.0.1", "calia . 10.8.0.1"}
        assert node.chain("spoofed-source") == ["iifname vmap @spoof-allowed", "drop"]
        node.builder.set_workload(wl("a"), workload("a", "10.0.0.1"))
        node.flush()
        assert "spoof-allowed" not in node.v4.maps
        assert node.chain("spoofed-source") == ["drop"]


class TestCost:
    @pytest.fixture
    def node(self) -> Node:
        node = Node()
        node.builder.set_profile("kns.ns1", OPEN)
        for number in range(40):
            node.builder.set_policy(
                np(f"p{number}"), Policy(tier="default", inbound=(Rule(action=Action.ALLOW, src_sets=("s:web",)),))
            )
        node.builder.set_ipset("s:web", nets(*(f"10.1.{n}.1/32" for n in range(200))))
        self.tier = Tier(name="default", ingress=tuple(np(f"p{number}") for number in range(40)))
        for number in range(50):
            node.builder.set_workload(wl(f"w{number}"), workload(f"w{number}", f"10.0.0.{number}", self.tier))
        node.flush()
        return node

    def test_new_endpoint_costs_its_chains_two_verdicts_and_its_address(self, node):
        node.builder.set_workload(wl("new"), workload("new", "10.0.1.1", self.tier))
        assert sorted(node.flush()) == [
            "add 1 to wl-addrs",
            "put 1 into from-wl",
            "put 1 into to-wl",
            "set chain fw-calinew",
            "set chain tw-calinew",
        ]
        node.builder.set_workload(wl("new"), None)
        assert sorted(node.flush()) == [
            "del chain fw-calinew",
            "del chain tw-calinew",
            "remove 1 from from-wl",
            "remove 1 from to-wl",
            "remove 1 from wl-addrs",
        ]

    def test_new_member_costs_one_element(self, node):
        node.builder.change_ipset("s:web", {"10.2.0.1/32"}, set())
        assert node.flush() == ["add 1 to s-web-h"]
        node.builder.set_ipset("s:web", nets(*(f"10.1.{n}.1/32" for n in range(199)), "10.2.0.1/32"))
        assert node.flush() == ["remove 1 from s-web-h"]

    def test_first_network_of_a_set_rewrites_only_the_policies_that_use_it(self, node):
        node.builder.set_policy(np("other"), Policy(tier="default", inbound=(DENY,)))
        node.flush()
        node.builder.change_ipset("s:web", {"10.1.0.0/24"}, set())
        calls = node.flush()
        assert "remove 1 from s-web-h" in calls
        assert "put set s-web-n" in calls
        assert not [call for call in calls if "other" in call or "cali" in call]
        assert len(calls) == 83  # 40 policies with two chains each, the set's two halves, the list's look-ups into it

    def test_changed_policy_costs_its_own_chains(self, node):
        deny = Rule(action=Action.DENY, src_sets=("s:web",))
        node.builder.set_policy(np("p7"), Policy(tier="default", inbound=(deny,)))
        assert sorted(node.flush()) == ["set chain pi-np/ns1/p7", "set chain po-np/ns1/p7"]
        before = {*node.v4.chains}
        node.builder.set_policy(np("p7"), Policy(tier="default", inbound=(deny, PASS)))
        node.flush()
        # It leaves its block, of which two may remain; the list looks for the mark.
        assert len({*node.v4.chains} - before) <= 2
        assert len(list_chains(node)) == 1
        node.builder.set_policy(np("p7"), Policy(tier="default", inbound=(DENY, PASS)))
        assert sorted(node.flush()) == ["set chain pi-np/ns1/p7", "set chain po-np/ns1/p7"]

    def test_nothing_new_costs_nothing(self, node):
        node.builder.set_workload(wl("w1"), workload("w1", "10.0.0.1", self.tier))
        node.builder.set_profile("kns.ns1", OPEN)
        assert node.flush() == []


class TestSkipBlocks:
    """Which policies stand behind one look-up; what the blocks mean is proved in properties/test_skip_blocks.py."""

    def build(self, *rules: tuple[Rule, ...], **sets: IPSet) -> Node:
        node = Node()
        for name, ipset in sets.items():
            node.builder.set_ipset(f"s:{name}", ipset)
        keys = tuple(np(f"p{number}") for number in range(len(rules)))
        for key, inbound in zip(keys, rules, strict=True):
            node.builder.set_policy(key, Policy(tier="default", inbound=inbound))
        node.builder.set_workload(wl("a"), workload("a", "10.0.0.1", Tier(name="default", ingress=keys)))
        node.flush()
        return node

    def listed(self, node: Node, version: int = 4) -> list[str]:
        (name,) = list_chains(node)
        return node.chain(name, version)

    def asks(self, *names: str, action: Action = Action.ALLOW) -> tuple[Rule, ...]:
        return tuple(Rule(action=action, src_sets=(f"s:{name}",)) for name in names)

    def test_four_neighbours_that_ask_for_sources_stand_behind_the_union_of_these(self):
        sets = {"x": nets("10.1.0.1/32", "10.1.0.2/32"), "y": nets("10.1.0.2/32"), "z": nets()}
        node = self.build(self.asks("x"), self.asks("y", "z"), (), self.asks("x"), **sets)
        look, end = self.listed(node)
        union, block = look.split("@")[1].split(" jump ")
        assert node.v4.sets[union].elements == {"10.1.0.1", "10.1.0.2"}
        assert node.chain(block) == [f"jump pi-np/ns1/p{number}" for number in range(4)]
        assert end == "drop"
        node.builder.change_ipset("s:x", (), {"10.1.0.1/32", "10.1.0.2/32"})
        assert sorted(node.flush()) == sorted(["remove 2 from s-x-h", f"remove 1 from {union}"])
        assert node.v4.sets[union].elements == {"10.1.0.2"}

    def test_one_set_that_all_ask_for_needs_no_union(self):
        node = self.build(*[self.asks("x")] * 4, x=nets("10.1.0.1/32", "10.2.0.0/16"))
        assert [line.split(" jump")[0] for line in self.listed(node)] == [
            "ip saddr @s-x-h", "ip saddr @s-x-n", "drop",
        ]  # fmt: skip
        assert not [name for name in node.v4.sets if name.startswith("u-")]

    def test_any_source_stays_outside_and_parts_its_neighbours(self):
        anyone = (Rule(action=Action.DENY, protocol="tcp", dst_ports=(PortRange(22, 22),)),)
        node = self.build(*[self.asks("x")] * 3, anyone, *[self.asks("x")] * 5, x=nets("10.1.0.1/32"))
        lines = self.listed(node)
        assert lines[:4] == [f"jump pi-np/ns1/p{number}" for number in range(4)]
        assert lines[4].startswith("ip saddr @s-x-h jump bi-")
        assert len(lines) <= 7  # a block of four or five, then what is left, then the drop

    @pytest.mark.parametrize("inbound", [True, False])
    @pytest.mark.parametrize("broken", ["bogus", "10.0.0.1/8"])
    def test_network_that_is_none_in_a_rule_for_the_other_family_is_refused_there_alone(self, inbound, broken):
        """The family that leaves the rule out never reads its networks; nor may its guard."""
        node = Node()
        side = "src_nets" if inbound else "dst_nets"
        rules = (Rule(action=Action.ALLOW, ip_version=6, **{side: (broken,)}),)
        node.builder.set_policy(np("p"), Policy(tier="t", **{"inbound" if inbound else "outbound": rules}))
        node.flush()
        assert broken in node.builder.refused[np("p")]
        name = f"{'pi' if inbound else 'po'}-np/ns1/p"
        assert node.chain(name, 4) == []
        assert node.chain(name, 6) == ["drop"]

    def test_unknown_and_refused_policies_stay_outside(self):
        bad = Rule(action=Action.ALLOW, src_sets=("s:x",), protocol="tcp", dst_ports=(PortRange(70000, 70000),))
        node = self.build(*[self.asks("x")] * 4, (bad,), *[self.asks("gone")] * 4, x=nets("10.1.0.1/32"))
        lines = self.listed(node)
        assert [line for line in lines if "jump pi-" in line] == [f"jump pi-np/ns1/p{number}" for number in range(4, 9)]
        assert node.chain("pi-np/ns1/p4") == node.chain("pi-np/ns1/p5") == ["drop"]
        node.builder.set_ipset("s:gone", nets("10.3.0.1/32"))
        node.flush()
        assert [line for line in self.listed(node) if "jump pi-" in line] == ["jump pi-np/ns1/p4"]

    def test_a_few_networks_are_compared_one_by_one_and_a_packet_enters_once(self):
        net = (Rule(action=Action.LOG, src_nets=("10.1.0.0/16", "fd00::/64")),)
        node = self.build(*[self.asks("x")] * 3, net, x=nets("10.1.0.1/32"))
        hosts, network, _ = self.listed(node)
        block = hosts.rpartition(" ")[2]
        assert network == f"ip saddr 10.1.0.0/16 ip saddr != @s-x-h jump {block}"
        assert f"ip6 saddr fd00::/64 ip6 saddr != @s-x-h jump {block}" in self.listed(node, 6)

    def test_many_networks_are_part_of_the_union(self):
        rules = [
            (Rule(action=Action.ALLOW, src_nets=tuple(f"10.{3 * number + at}.0.0/16" for at in range(3))),)
            for number in range(4)
        ]
        node = self.build(*rules)
        look, _ = self.listed(node)
        union = look.split("@")[1].split()[0]
        assert union.endswith("-n")
        assert len(node.v4.sets[union].elements) == 12
        every = self.build(*[(Rule(action=Action.ALLOW, src_nets=("10.0.0.0/8", "0.0.0.0/0")),)] * 5)
        assert self.listed(every)[0] == "jump pi-np/ns1/p0"

    def test_pass_inside_is_looked_for_inside_and_after(self):
        node = self.build(self.asks("x", action=Action.PASS), *[self.asks("x")] * 3, x=nets("10.1.0.1/32"))
        clear, look, passed, end = self.listed(node)
        assert clear == "mark & 0xfffdffff ^ 0x0"
        assert passed == "meta mark & 0x20000 == 0x20000 return"
        inside = node.chain(look.rpartition(" ")[2])
        assert inside[:2] == ["jump pi-np/ns1/p0", passed]
        assert end == "drop"

    def test_a_large_set_guards_nothing(self):
        small = nets(*(f"10.1.{n >> 8}.{n & 255}/32" for n in range(LARGEST_GUARD)))
        node = self.build(*[self.asks("big")] * 4, *[self.asks("x")] * 4, big=small, x=nets("10.2.0.1/32"))
        direct = {f"jump pi-np/ns1/p{number}" for number in range(4)}
        before = self.listed(node)
        assert not direct & {*before}
        node.builder.change_ipset("s:big", {"10.3.0.1/32"}, set())
        node.flush()
        assert direct <= {*self.listed(node)}
        node.builder.change_ipset("s:big", set(), {"10.3.0.1/32"})
        node.flush()
        assert self.listed(node) == before

    def test_blocks_go_with_their_list(self):
        node = self.build(self.asks("x"), self.asks("y"), self.asks("x"), self.asks("y"), x=nets(), y=nets())
        node.builder.set_workload(wl("a"), None)
        node.flush()
        assert not [name for name in (*node.v4.chains, *node.v4.sets) if name.startswith(("bi-", "u-"))]


def test_network_that_rules_spell_stays_in_a_union_when_a_set_loses_it():
    ip_sets = IpSets(V4)
    ip_sets.replace("s:x", IPSetType.NET, parse_members(IPSetType.NET, ["10.1.0.0/16", "10.2.0.0/16"]))
    ip_sets.put_union("u:x", ("s:x",), ["10.1.0.0/16"])
    lost = parse_members(IPSetType.NET, ["10.1.0.0/16", "10.2.0.0/16"])
    ip_sets.change("s:x", IPSetType.NET, parse_members(IPSetType.NET, []), lost)
    assert ip_sets.kernel_set("u:x", "u-x-n").elements == {"10.1.0.0/16"}


def test_unions_are_forgotten_without_taking_members_out_of_one_another(monkeypatch):
    ip_sets = IpSets(V4)
    for number in range(3):
        ip_sets.replace(f"s:{number}", IPSetType.NET, parse_members(IPSetType.NET, [f"10.0.0.{number}"]))
    ip_sets.put_union("u:inner", ("s:0", "s:1"), ())
    ip_sets.put_union("u:outer", ("s:2", "u:inner"), ())
    monkeypatch.delattr(IpSets, "_change_nets")
    ip_sets.forget_unions()
    assert not ip_sets.can_guard("u:inner")
    assert not ip_sets.can_guard("u:outer")


class TestNat:
    def test_pools_with_nat_outgoing_install_the_hook_and_their_removal_takes_it_away(self):
        node = Node()
        node.flush()
        assert not [name for name in node.v4.chains if "nat" in name]
        node.builder.set_pool("10.0.0.0/16", Pool(cidr="10.0.0.0/16", nat_outgoing=True))
        node.builder.set_pool("10.1.0.0/16", Pool(cidr="10.1.0.0/16"))
        node.flush()
        assert node.chain("nat-outgoing") == ["ip saddr @masq-ipam-pools ip daddr != @network-ip-pools masquerade"]
        assert node.v4.sets["network-ip-pools"].elements == {"10.0.0.0/16", "10.1.0.0/16"}
        assert not [name for name in node.v6.chains if "nat" in name]
        node.builder.set_pool("10.0.0.0/16", Pool(cidr="10.0.0.0/16"))
        node.flush()
        assert not [name for name in (*node.v4.chains, *node.v4.sets) if "nat" in name or "pools" in name]

    def test_options_for_ports_address_interface_and_hosts(self):
        options = NatOptions(exclude_hosts=True, ports=(1024, 2047), address={4: "192.0.2.7"}, out_interface="eth*")
        node = Node(RulesetBuilder(RulesetOptions(nat=options)))
        node.builder.set_pool("10.0.0.0/16", Pool(cidr="10.0.0.0/16", nat_outgoing=True))
        node.builder.set_node("n1", NodeInfo(ipv4="192.0.2.1/24"))
        node.flush()
        match = "oifname eth* ip saddr @masq-ipam-pools ip daddr != @network-ip-pools ip daddr != @all-hosts-net nat"
        assert node.chain("nat-outgoing") == [f"meta l4proto 6 {match}", f"meta l4proto 17 {match}", match]
        assert node.v4.sets["all-hosts-net"].elements == {"192.0.2.1"}

    def test_floating_addresses_lead_in_and_hairpin_out(self):
        node = Node(RulesetBuilder(RulesetOptions(nat=NatOptions(floating_ips=True))))
        floating = msgspec.structs.replace(workload("a", "10.0.0.1"), nat4=(Nat("192.0.2.50", "10.0.0.1"),))
        node.builder.set_workload(wl("a"), floating)
        node.flush()
        assert node.chain("fip-dnat") == ["ip daddr 192.0.2.50 nat"]
        assert node.chain("fip-snat") == ["ip saddr 10.0.0.1 ip daddr 10.0.0.1 nat"]
        node.builder.set_workload(wl("a"), None)
        node.flush()
        assert not [name for name in node.v4.chains if "fip" in name or "nat" in name]


def test_bad_members_and_unknown_sets_are_refused_and_change_nothing():
    builder = RulesetBuilder()
    with pytest.raises(ValueError, match=r"bad member '10\.0\.0\.300/32'"):
        builder.set_ipset("s:web", nets("10.0.0.1/32", "10.0.0.300/32"))
    with pytest.raises(KeyError):
        builder.change_ipset("s:web", {"10.0.0.1/32"}, set())
    builder.set_ipset("n:http", IPSet(IPSetType.IP_PORT, frozenset()))
    with pytest.raises(ValueError, match=r"bad member '10\.0\.0\.1,tcp:70000'"):
        builder.change_ipset("n:http", {"10.0.0.1,tcp:70000"}, set())


def test_options_are_checked():
    with pytest.raises(ValueError, match="DefaultEndpointToHostAction is 'Maybe'"):
        RulesetOptions(endpoint_to_host="Maybe")
    with pytest.raises(ValueError, match="InterfacePrefix"):
        RulesetOptions(interface_prefixes=("cali", ""))


def small_cluster() -> Node:
    """Two tiers, a Pass, a staged policy, both kinds of IP set, a service, named ports, three pods, a NAT pool."""
    node = Node()
    b = node.builder
    b.set_ipset("s:TqLohIFmwleJANVwI_zJXgxvVhYs8wHJz0wDVQ", nets("10.65.0.11/32", "10.65.0.12/32", "fd00:65::b/128"))
    b.set_ipset("s:5WvsM1VD4iM6DBAlBgJdq1vGfLLSL6RkNIgm_w", nets("192.0.2.9/32", "198.51.100.0/24", "2001:db8:1::/48"))
    b.set_ipset("n:web-http", IPSet(IPSetType.IP_PORT, frozenset({"10.65.0.10,tcp:8080", "fd00:65::a,tcp:8080"})))
    b.set_ipset("svc:dns", IPSet(IPSetType.IP_PORT, frozenset({"10.65.0.53,udp:53", "10.65.0.53,tcp:53"})))
    b.set_policy(
        gnp("security.blocklist"),
        Policy(
            tier="security",
            inbound=(
                Rule(action=Action.LOG, src_sets=("s:5WvsM1VD4iM6DBAlBgJdq1vGfLLSL6RkNIgm_w",)),
                Rule(action=Action.DENY, src_sets=("s:5WvsM1VD4iM6DBAlBgJdq1vGfLLSL6RkNIgm_w",)),
                PASS,
            ),
        ),
    )
    b.set_policy(
        np("server"),
        Policy(
            tier="default",
            namespace="ns1",
            inbound=(
                Rule(
                    action=Action.ALLOW,
                    protocol="tcp",
                    src_sets=("s:TqLohIFmwleJANVwI_zJXgxvVhYs8wHJz0wDVQ",),
                    dst_ports=(PortRange(9000, 9010),),
                    dst_named_port_sets=("n:web-http",),
                    annotations={"team": "shop"},
                ),
                Rule(
                    action=Action.ALLOW,
                    ip_version=4,
                    protocol="icmp",
                    icmp=Icmp(8, 0),
                    src_nets=("10.65.0.0/24",),
                    not_src_nets=("10.65.0.12/32",),
                ),
            ),
            outbound=(Rule(action=Action.ALLOW, dst_ip_port_sets=("svc:dns",)),),
        ),
    )
    b.set_policy(PolicyKey("StagedNetworkPolicy", "trial", "ns1"), Policy(tier="default", inbound=(DENY,)))
    b.set_profile("kns.ns1", OPEN)
    security = Tier(name="security", ingress=(gnp("security.blocklist"),))
    app = Tier(
        name="default", ingress=(np("server"), PolicyKey("StagedNetworkPolicy", "trial", "ns1")), egress=(np("server"),)
    )
    for name, address, tiers in (
        ("00000000001", "10.65.0.10", (security, app)),
        ("00000000002", "10.65.0.11", (security,)),
        ("00000000003", "10.65.0.12", ()),
    ):
        last = address.rpartition(".")[2]
        pod = workload(name, address, *tiers)
        b.set_workload(wl(name), msgspec.structs.replace(pod, nets6=(f"fd00:65::{int(last):x}/128",)))
    b.set_pool("10.65.0.0/16", Pool(cidr="10.65.0.0/16", nat_outgoing=True))
    b.set_pool("fd00:65::/64", Pool(cidr="fd00:65::/64"))
    node.flush()
    return node


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_small_cluster_reads_as_recorded(family):
    """UPDATE_GOLDEN=1 writes the files; a person reads the difference."""
    node = small_cluster()
    text = print_ruleset((node.v4 if family == "ip" else node.v6).ruleset())
    path = GOLDEN / f"ruleset-small-{family}.nft"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()
