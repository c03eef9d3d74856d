"""Policy as real packets meet it: the compiled ruleset in a node's namespace, pods around it, IPv4 and IPv6."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest

from libs.policy.output import (
    Action,
    Icmp,
    IPSet,
    IPSetType,
    Nat,
    Policy,
    PolicyKey,
    Pool,
    PortRange,
    Profile,
    Rule,
    Tier,
    WorkloadKey,
)
from libs.testkit.reach import Flow, Verdict, check
from libs.testkit.topology import Namespace
from services.felix.core.options import NatOptions, RulesetOptions
from tests.kernel.ruleset_lab import NODE, Lab, address, gnp, hosts_of, np, tcp

pytestmark = pytest.mark.kernel

ALLOW, DENY, PASS, LOG = (Rule(action=action) for action in (Action.ALLOW, Action.DENY, Action.PASS, Action.LOG))


@pytest.fixture
def lab(built: Lab) -> Lab:
    built.fresh()
    built.pods()
    return built


def ingress(lab: Lab, name: str, *rules: Rule, tier: str = "default") -> None:
    lab.builder.set_policy(np(name), Policy(tier=tier, namespace="ns1", inbound=rules))


def only(*names: str, tier: str = "default", default_action: str = "Deny") -> Tier:
    return Tier(name=tier, default_action=default_action, ingress=tuple(np(name) for name in names))


def test_open_profile_allows_everything_and_a_deny_all_policy_nothing(lab):
    lab.apply()
    lab.expect({("a", "s", 80, "tcp"): True, ("a", "s", 53, "udp"): True, ("a", "s", 0, "icmp"): True})
    ingress(lab, "deny-all")
    lab.pod("s", only("deny-all"))
    lab.apply()
    lab.expect({("a", "s", 80, "tcp"): False, ("a", "s", 53, "udp"): False, ("a", "b", 80, "tcp"): True})
    lab.pod("s")
    lab.builder.set_policy(np("deny-all"), None)
    lab.apply()
    lab.expect({("a", "s", 80, "tcp"): True})


def test_first_matching_rule_decides_and_log_does_not(lab):
    lab.pod("s", only("p"))
    ingress(lab, "p", LOG, tcp(8080, action=Action.DENY), tcp(8080), tcp(9000))
    lab.apply()
    lab.expect({("a", "s", 8080, "tcp"): False, ("a", "s", 9000, "tcp"): True})
    assert lab.counted("np/ns1/p/0 log") > 0
    ingress(lab, "p", tcp(8080), tcp(8080, action=Action.DENY))
    lab.apply()
    lab.expect({("a", "s", 8080, "tcp"): True, ("a", "s", 9000, "tcp"): False})


def test_policies_are_met_in_the_order_of_the_tier(lab):
    ingress(lab, "first", tcp(80))
    ingress(lab, "second", tcp(80, action=Action.DENY), tcp(81))
    lab.pod("s", only("first", "second"))
    lab.apply()
    lab.expect({("a", "s", 80, "tcp"): True, ("a", "s", 81, "tcp"): True, ("a", "s", 8080, "tcp"): False})
    lab.pod("s", only("second", "first"))
    lab.apply()
    lab.expect({("a", "s", 80, "tcp"): False, ("a", "s", 81, "tcp"): True})


def test_global_policy_denies_only_the_members_of_its_set(lab):
    lab.builder.set_ipset("s:bad", hosts_of("b"))
    lab.builder.set_policy(
        gnp("block"),
        Policy(tier="default", inbound=(Rule(action=Action.DENY, src_sets=("s:bad",)), ALLOW), outbound=(ALLOW,)),
    )
    both = Tier(name="default", ingress=(gnp("block"),), egress=(gnp("block"),))
    lab.pod("s", both)
    lab.pod("a", both)
    lab.apply()
    lab.expect({("a", "s", 80, "tcp"): True, ("b", "s", 80, "tcp"): False, ("b", "a", 53, "udp"): False})
    lab.builder.change_ipset("s:bad", hosts_of("a").members, hosts_of("b").members)
    assert [applied.changed_rules for applied in lab.apply()] == [0, 0]
    lab.expect({("a", "s", 80, "tcp"): False, ("b", "s", 80, "tcp"): True})


@pytest.mark.parametrize("mask", [0xFFFF0000, 0x00000F00])
def test_pass_leads_to_the_next_tier_and_allow_does_not(lab, mask):
    lab.fresh(RulesetOptions(mark_mask=mask))
    lab.pods()
    ingress(lab, "sec", tcp(80, action=Action.PASS), tcp(8080), tcp(9000, action=Action.PASS), tier="sec")
    ingress(lab, "app", tcp(80, action=Action.DENY), tcp(9000))
    lab.pod("s", only("sec", tier="sec"), only("app"))
    lab.apply()
    lab.expect(
        {
            ("a", "s", 80, "tcp"): False,  # passed, then denied
            ("a", "s", 8080, "tcp"): True,  # allowed in the first tier
            ("a", "s", 9000, "tcp"): True,  # passed, then allowed
            ("a", "s", 81, "tcp"): False,  # nobody decided in the first tier
        }
    )


def test_pass_in_the_last_tier_leads_to_the_profiles(lab):
    ingress(lab, "p", tcp(80, action=Action.PASS))
    lab.builder.set_profile("web", Profile(inbound=(tcp(80),), outbound=(ALLOW,)))
    lab.pod("s", only("p"), profiles=("web",))
    lab.apply()
    lab.expect({("a", "s", 80, "tcp"): True, ("a", "s", 8080, "tcp"): False})


@pytest.mark.parametrize(("default_action", "allowed"), [("Deny", False), ("Pass", True)])
def test_end_of_tier_follows_the_default_action(lab, default_action, allowed):
    ingress(lab, "p", tcp(81))
    lab.pod("s", only("p", default_action=default_action))
    lab.apply()
    lab.expect({("a", "s", 81, "tcp"): True, ("a", "s", 80, "tcp"): allowed})


def test_staged_policies_neither_deny_nor_make_a_tier_take_part(lab):
    staged = PolicyKey("StagedNetworkPolicy", "trial", "ns1")
    lab.builder.set_policy(staged, Policy(tier="default", inbound=(DENY,)))
    lab.pod("s", Tier(name="default", ingress=(staged,)))
    lab.apply()
    lab.expect({("a", "s", 80, "tcp"): True})


def test_ports_ranges_and_names_are_alternatives(lab):
    named = {f"{address('s', v)},tcp:9000" for v in (4, 6)}
    lab.builder.set_ipset("n:http", IPSet(IPSetType.IP_PORT, frozenset(named)))
    rule = Rule(
        action=Action.ALLOW,
        protocol="tcp",
        dst_ports=(PortRange(80, 80), PortRange(8000, 8005)),
        dst_named_port_sets=("n:http",),
    )
    ingress(lab, "p", rule)
    lab.pod("s", only("p"))
    lab.apply()
    wanted = dict.fromkeys((80, 8000, 8005, 9000), True) | dict.fromkeys((81, 8010, 8080), False)
    lab.expect({("a", "s", port, "tcp"): allowed for port, allowed in wanted.items()})
    lab.expect({("a", "s", 8080, "udp"): False})


def test_many_networks_with_two_excluded(lab):
    nets = [f"10.{n}.0.0/16" for n in range(76, 95)] + ["198.51.100.0/24"]
    nets6 = [f"fd{n}::/32" for n in range(76, 95)] + ["2001:db8:9::/48"]
    rule4 = Rule(
        action=Action.ALLOW,
        src_nets=tuple(nets),
        not_src_nets=(f"{address('b', 4)}/32", "10.78.0.0/16"),
    )
    rule6 = Rule(
        action=Action.ALLOW,
        src_nets=tuple(nets6),
        not_src_nets=(f"{address('b', 6)}/128", "fd78::/32"),
    )
    ingress(lab, "p", rule4, rule6)
    lab.pod("s", only("p"))
    lab.apply()
    lab.expect({("a", "s", 80, "tcp"): True, ("b", "s", 80, "tcp"): False, ("out", "s", 80, "tcp"): False})


def test_set_of_hosts_and_networks_matches_either_and_each_packet_once(lab):
    mixed = hosts_of("a").members | {"192.0.2.0/24", "2001:db8::/64"}
    lab.builder.set_ipset("s:mixed", IPSet(IPSetType.NET, mixed))
    ingress(lab, "p", Rule(action=Action.LOG, src_sets=("s:mixed",)), Rule(action=Action.ALLOW, src_sets=("s:mixed",)))
    lab.pod("s", only("p"))
    lab.apply()
    lab.expect({("a", "s", 80, "tcp"): True, ("b", "s", 80, "tcp"): False, ("out", "s", 80, "tcp"): True})
    # At least one of each sender: a late answer is asked for again.
    assert lab.counted("np/ns1/p/0 log") == lab.counted("np/ns1/p/1 allow") >= 2
    ingress(lab, "p", Rule(action=Action.ALLOW, not_src_sets=("s:mixed",)))
    lab.apply()
    lab.expect({("a", "s", 80, "tcp"): False, ("b", "s", 80, "tcp"): True, ("out", "s", 80, "tcp"): False})
    lab.builder.change_ipset("s:mixed", {"10.77.0.0/24", "fd77::/64"}, {"192.0.2.0/24", "2001:db8::/64"})
    lab.apply()
    lab.expect({("a", "s", 80, "tcp"): False, ("b", "s", 80, "tcp"): False, ("out", "s", 80, "tcp"): True})


def test_icmp_type_and_code(lab):
    echo = tuple(Rule(action=Action.DENY, protocol=p, icmp=Icmp(t, 0)) for p, t in (("icmp", 8), ("icmpv6", 128)))
    ingress(lab, "p", *echo, ALLOW)
    lab.pod("s", only("p"))
    lab.apply()
    lab.expect({("a", "s", 0, "icmp"): False, ("a", "s", 80, "tcp"): True, ("a", "b", 0, "icmp"): True})
    others = tuple(Rule(action=Action.DENY, protocol=p, not_icmp=Icmp(t, 0)) for p, t in (("icmp", 8), ("icmpv6", 128)))
    ingress(lab, "p", *others, ALLOW)
    lab.apply()
    lab.expect({("a", "s", 0, "icmp"): True})


def test_profiles_are_met_in_order_and_a_missing_one_drops(lab):
    lab.builder.set_profile("no-web", Profile(inbound=(tcp(80, action=Action.DENY),)))
    lab.pod("s", profiles=("no-web", "open"))
    lab.apply()
    lab.expect({("a", "s", 80, "tcp"): False, ("a", "s", 8080, "tcp"): True})
    lab.pod("s", profiles=("gone", "open"))
    lab.apply()
    lab.expect({("a", "s", 80, "tcp"): False, ("a", "s", 8080, "tcp"): False, ("s", "a", 80, "tcp"): False})
    lab.pod("s", profiles=())
    lab.apply()
    lab.expect({("a", "s", 8080, "tcp"): False})


def test_unknown_policy_and_unknown_set_deny(lab):
    lab.pod("s", only("never-seen"))
    lab.apply()
    lab.expect({("a", "s", 80, "tcp"): False})
    ingress(lab, "never-seen", Rule(action=Action.ALLOW, not_src_sets=("s:unknown",)))
    lab.apply()
    lab.expect({("a", "s", 80, "tcp"): False})


def test_unknown_workload_interface_is_dropped_both_ways(lab):
    lab.apply()
    lab.expect({("x", "s", 80, "tcp"): False, ("s", "x", 0, "icmp"): False, ("x", "node", 80, "tcp"): False})
    lab.expect({("out", "node", 80, "tcp"): True, ("a", "s", 80, "tcp"): True})


def test_host_reaches_its_pods_whatever_the_policy_says(lab):
    ingress(lab, "deny-all")
    lab.pod("s", only("deny-all"))
    lab.apply()
    lab.expect({("node", "s", 80, "tcp"): True, ("node", "s", 53, "udp"): True, ("out", "s", 80, "tcp"): False})


def test_pod_to_its_host_meets_egress_policy_then_the_configured_action(lab):
    lab.apply()
    lab.expect({("a", "node", 80, "tcp"): False, ("out", "node", 80, "tcp"): True})
    lab.fresh(RulesetOptions(endpoint_to_host="Return"))
    lab.pods()
    lab.builder.set_policy(
        np("e"), Policy(tier="default", outbound=(tcp(80), Rule(action=Action.ALLOW, protocol="udp")))
    )
    lab.pod("a", Tier(name="default", egress=(np("e"),)))
    lab.apply()
    lab.expect({("a", "node", 80, "tcp"): True, ("a", "node", 8080, "tcp"): False, ("b", "node", 8080, "tcp"): True})


def test_source_that_is_not_the_pods_own_is_dropped(lab):
    lab.apply()
    pod = lab.spaces["a"]
    pod.ip(["addr add 10.77.0.99/32 dev eth0", "addr add fd77::99/128 dev eth0 nodad"])
    node = lab.spaces["node"]
    node.ip(["route add 10.77.0.99/32 dev cali-a", "route add fd77::99/128 dev cali-a"])
    try:
        for version, false in ((4, "10.77.0.99"), (6, "fd77::99")):
            question = ("a", "s", 80, "tcp")
            flows = [
                lab.flow(question, version, source=false),
                lab.flow(question, version, source=address("a", version)),
            ]
            want = [Verdict.DENY, Verdict.ALLOW]
            assert check(flows, timeout_s=0.6, wanted=want) == want
            assert lab.counted("spoofed source", "ip" if version == 4 else "ip6") > 0
        lab.fresh(RulesetOptions(allow_source_spoofing=True))
        lab.pods()
        lab.pod("a", allowed_source_prefixes=("10.77.0.96/27", "fd77::90/124"))
        lab.apply()
        flows = [lab.flow(("a", "s", 80, "tcp"), v, source=s) for v, s in ((4, "10.77.0.99"), (6, "fd77::99"))]
        flows += [lab.flow(("b", "s", 80, "tcp"), 4)]
        want = [Verdict.ALLOW] * 3
        assert check(flows, timeout_s=0.6, wanted=want) == want
    finally:
        node.ip(["route del 10.77.0.99/32 dev cali-a", "route del fd77::99/128 dev cali-a"])
        pod.ip(["addr del 10.77.0.99/32 dev eth0", "addr del fd77::99/128 dev eth0"])


def test_neighbour_discovery_works_under_deny_all(lab):
    """Without it IPv6 would not even reach the pod's own gateway."""
    lab.builder.set_policy(np("deny"), Policy(tier="default", inbound=(), outbound=()))
    lab.pod("s", Tier(name="default", ingress=(np("deny"),), egress=(np("deny"),)))
    lab.apply()
    lab.spaces["s"].ip(["neigh flush dev eth0"])
    lab.spaces["node"].ip(["neigh flush dev cali-s"])
    lab.expect({("node", "s", 80, "tcp"): True}, versions=(6,))


def test_established_connection_survives_policy_changes_and_new_ones_meet_the_new_policy(lab):
    ingress(lab, "p", tcp(9000))
    lab.pod("s", only("p"))
    lab.apply()
    for version in (4, 6):
        stream = connect(lab, "a", address("s", version), 9000)
        echo(stream, b"before")
        ingress(lab, "other", DENY)
        lab.pod("b", only("other"))
        lab.apply()
        echo(stream, b"after an unrelated change")
        ingress(lab, "p", DENY)
        lab.apply()
        echo(stream, b"after a deny")
        stream.close()
        lab.expect({("a", "s", 9000, "tcp"): False}, versions=(version,))
        ingress(lab, "p", tcp(9000))
        lab.apply()


def connect(lab: Lab, sender: str, to: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    stream = lab.spaces[sender].socket(family, socket.SOCK_STREAM)
    stream.settimeout(5)
    stream.connect((to, port))
    return stream


def echo(stream: socket.socket, data: bytes) -> None:
    stream.sendall(data)
    got = b""
    while len(got) < len(data):
        part = stream.recv(100)
        assert part, "the connection was closed"
        got += part
    assert got == data


def test_inactive_workload_is_cut_off_even_in_its_open_connections(lab):
    lab.apply()
    stream = connect(lab, "a", address("s", 4), 9000)
    echo(stream, b"up")
    lab.pod("s", state="inactive")
    lab.apply()
    lab.expect({("a", "s", 80, "tcp"): False, ("s", "a", 80, "tcp"): False})
    stream.settimeout(0.4)
    with pytest.raises(TimeoutError):
        echo(stream, b"down")
    stream.close()
    lab.pod("s")
    lab.apply()
    lab.expect({("a", "s", 80, "tcp"): True})


def test_of_two_workloads_on_one_interface_the_lower_id_acts_and_the_other_takes_over(lab):
    ingress(lab, "mine", tcp(80))
    ingress(lab, "other", tcp(8080))
    lab.pod("s", only("mine"))
    lower, mine = WorkloadKey("k8s", "ns1/a-second", "eth0"), WorkloadKey("k8s", "ns1/s", "eth0")
    second = msgspec.structs.replace(lab.workloads[mine], tiers=(only("other"),))
    web, alt = ("a", "s", 80, "tcp"), ("a", "s", 8080, "tcp")
    lab.apply()
    lab.expect({web: True, alt: False})
    lab.builder.set_workload(lower, second)
    lab.apply()
    lab.expect({web: False, alt: True})
    lab.builder.set_workload(lower, msgspec.structs.replace(second, state="inactive"))
    lab.apply()
    lab.expect({web: False, alt: False})
    lab.builder.set_workload(lower, None)
    lab.apply()
    lab.expect({web: True, alt: False})


def test_encapsulated_packets_from_a_pod_are_dropped(lab):
    with_vxlan = socket.AF_INET, socket.SOCK_DGRAM
    lab.apply()
    receiver = lab.spaces["out"].socket(*with_vxlan)
    receiver.bind(("0.0.0.0", 4789))
    receiver.settimeout(2)
    sender = lab.spaces["a"].socket(*with_vxlan)
    sender.sendto(b"tunnelled", (address("out", 4), 4789))
    deadline = time.monotonic() + 2
    while not lab.counted("VXLAN sent by a workload") and time.monotonic() < deadline:
        pass
    assert lab.counted("VXLAN sent by a workload") == 1
    outside = lab.spaces["node"].socket(*with_vxlan)
    outside.sendto(b"the host may", (address("out", 4), 4789))
    assert receiver.recv(100) == b"the host may"
    for one in (receiver, sender, outside):
        one.close()


def test_traffic_that_leaves_the_pools_wears_the_nodes_address(lab):
    lab.builder.set_pool("10.77.0.0/24", Pool(cidr="10.77.0.0/24", nat_outgoing=True))
    lab.builder.set_pool("fd77::/64", Pool(cidr="fd77::/64", nat_outgoing=True))
    lab.apply()
    for version in (4, 6):
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        for target, seen in (("out", address("node", version)), ("s", address("a", version))):
            receiver = lab.spaces[target].socket(family, socket.SOCK_DGRAM)
            receiver.bind((address(target, version), 5353))
            receiver.settimeout(2)
            sender = lab.spaces["a"].socket(family, socket.SOCK_DGRAM)
            sender.sendto(b"who am I", (address(target, version), 5353))
            _, source = receiver.recvfrom(100)
            assert ip_address(source[0]) == ip_address(seen)
            sender.close()
            receiver.close()
    lab.builder.set_pool("10.77.0.0/24", None)
    lab.apply()
    assert "masquerade" not in lab.nft("list", "table", "ip", "calico")


def test_listing_names_policies_and_counts_and_loads_again(lab):
    lab.builder.set_ipset("s:web", hosts_of("a"))
    lab.builder.set_ipset("s:nets", IPSet(IPSetType.NET, frozenset({"10.0.0.0/8", "0.0.0.0/1", "fd00::/8"})))
    lab.builder.set_ipset("n:http", IPSet(IPSetType.IP_PORT, frozenset({"10.77.0.3,tcp:80", "fd77::3,tcp:80"})))
    lab.builder.set_pool("10.77.0.0/24", Pool(cidr="10.77.0.0/24", nat_outgoing=True))
    lab.builder.set_policy(
        gnp("sec.block"),
        Policy(
            tier="sec", inbound=(LOG, Rule(action=Action.DENY, src_sets=("s:nets",), not_src_sets=("s:web",)), PASS)
        ),
    )
    ingress(
        lab,
        "web",
        Rule(action=Action.ALLOW, src_sets=("s:web",), dst_named_port_sets=("n:http",), annotations={"team": "shop"}),
        tcp(443, 8443, 9000),
        Rule(action=Action.DENY, protocol="udp", not_dst_ports=(PortRange(1, 1024), PortRange(2000, 2001))),
        Rule(action=Action.ALLOW, protocol="icmp", icmp=Icmp(8, 0)),
        Rule(action=Action.ALLOW, protocol="icmpv6", not_icmp=Icmp(128, 0)),
        Rule(action=Action.ALLOW, src_nets=("10.77.0.0/24", "192.0.2.0/24", "fd77::/64", "2001:db8::/32")),
        Rule(action=Action.ALLOW, not_protocol=132),
    )
    lab.pod("s", Tier(name="sec", ingress=(gnp("sec.block"),)), only("web"), state="active")
    lab.pod("b", state="inactive")
    lab.apply()
    lab.expect({("a", "s", 80, "tcp"): True})
    listing = lab.nft("list", "table", "ip", "calico")
    for text in (
        "chain pi-np/ns1/web {",
        "chain pi-gnp/sec.block {",
        "chain tw-cali-s {",
        "team=shop",
        "end of tier sec",
    ):
        assert text in listing
    assert re.search(r'counter packets [1-9]\d* bytes \d+ accept comment "np/ns1/web/0 allow; team=shop"', listing)
    again = Namespace(lab.spaces["node"].name + "2")
    again.create()
    try:
        text = lab.nft("list", "ruleset")
        inside = ["ip", "netns", "exec", again.name, "nft"]
        loaded = subprocess.run([*inside, "-f", "-"], input=text, capture_output=True, text=True)
        assert loaded.returncode == 0, loaded.stderr
        listed = subprocess.run([*inside, "list", "ruleset"], capture_output=True, text=True, check=True).stdout
        assert listed == text
    finally:
        again.delete()


@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_recorded_ruleset_of_a_small_cluster_loads(lab, family):
    text = (Path(__file__).parents[1] / "golden" / f"ruleset-small-{family}.nft").read_text()
    inside = ["ip", "netns", "exec", lab.spaces["out"].name, "nft", "-c", "-f", "-"]
    checked = subprocess.run(inside, input=text, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_floating_address_leads_to_its_pod_and_from_the_pod_to_itself(lab):
    lab.fresh(RulesetOptions(nat=NatOptions(floating_ips=True)))
    lab.pods()
    lab.pod("s", nat4=(Nat("192.0.2.50", address("s", 4)),), nat6=(Nat("2001:db8::50", address("s", 6)),))
    lab.apply()
    out, node = lab.spaces["out"], lab.spaces["node"]
    out.ip([f"route add 192.0.2.50 via {NODE[4]}", f"route add 2001:db8::50 via {NODE[6]}"])
    node.ip(["route add 192.0.2.50 dev cali-s", "route add 2001:db8::50 dev cali-s"])
    try:
        to = [ip_address("192.0.2.50"), ip_address("2001:db8::50")]
        flows = [Flow(lab.spaces[sender].path, target, 80) for sender in ("out", "a", "s") for target in to]
        want = [Verdict.ALLOW] * 6
        assert check(flows, wanted=want) == want
    finally:
        out.ip([f"route del 192.0.2.50 via {NODE[4]}", f"route del 2001:db8::50 via {NODE[6]}"])
        node.ip(["route del 192.0.2.50 dev cali-s", "route del 2001:db8::50 dev cali-s"])


def test_restarted_process_finds_its_own_rules_and_writes_nothing(lab):
    def tell() -> None:
        lab.builder.set_ipset("s:web", hosts_of("a", "b"))
        ingress(lab, "p", Rule(action=Action.ALLOW, src_sets=("s:web",)), tcp(80, 443, 8080), PASS)
        lab.pods()
        lab.pod("s", only("p"))

    tell()
    lab.apply()
    lab.fresh()
    tell()
    assert [applied.transactions for applied in lab.apply()] == [0, 0]


def test_answers_of_a_rejecting_node_come_at_once(lab):
    lab.fresh(RulesetOptions(deny_action="Reject"))
    lab.pods()
    lab.pod("s", only("deny-all"))
    ingress(lab, "deny-all", Rule(action=Action.DENY, protocol="tcp"))
    lab.apply()
    for version in (4, 6):
        assert check([lab.flow(("a", "s", 80, "tcp"), version)], timeout_s=2) == [Verdict.REFUSED]
