"""Random policy, real packets: what gets through is what the plain reading of the policy says."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from libs.nftables.evaluate import Packet
from libs.policy.output import Action, Icmp, IPSet, IPSetType, Policy, PolicyKey, PortRange, Profile, Rule, Tier
from libs.testkit.reach import Verdict, check
from tests.kernel.ruleset_lab import Lab, Question, address, gnp, np, running_lab
from tests.unit.services.felix.oracle import World, judge

pytestmark = pytest.mark.kernel

NAMES = ("a", "b", "s", "out")
HOSTS = tuple(f"{address(n, v)}/{32 if v == 4 else 128}" for n in NAMES for v in (4, 6))
NETS = ("10.77.0.0/24", "10.77.0.0/30", "10.77.0.2/31", "0.0.0.0/0", "192.0.2.0/24", "fd77::/64", "fd77::2/127", "::/0")
POLICIES = (gnp("block"), np("web"), np("db"), PolicyKey("StagedNetworkPolicy", "trial", "ns1"))
FLOWS: tuple[Question, ...] = tuple(
    (sender, target, port, protocol)
    for sender in ("a", "b", "out")
    for target in ("s", "b")
    if sender != target
    for port, protocol in ((80, "tcp"), (8080, "tcp"), (53, "udp"), (8080, "udp"), (0, "icmp"))
)
NUMBERS = {"tcp": 6, "udp": 17}


def some(values, most=2):
    return st.lists(st.sampled_from(values), max_size=most, unique=True).map(tuple)


def rarely(strategy, default):
    return st.one_of(st.just(default), st.just(default), strategy)


PORTS = st.sampled_from((PortRange(80, 80), PortRange(53, 80), PortRange(8000, 9000), PortRange(81, 81)))
SETS = rarely(some(("s:one", "s:two")), ())
NAMED = rarely(st.just(("n:web",)), ())
ANY = {"src_sets": SETS, "dst_sets": SETS, "not_src_sets": SETS, "src_nets": rarely(some((*NETS, *HOSTS), 3), ())}
RULES = st.one_of(
    st.builds(Rule, action=st.sampled_from(tuple(Action)), **ANY),
    st.builds(
        Rule,
        action=st.sampled_from(tuple(Action)),
        protocol=st.sampled_from(("tcp", "udp")),
        dst_ports=rarely(st.lists(PORTS, max_size=3).map(tuple), ()),
        not_dst_ports=rarely(st.lists(PORTS, max_size=2).map(tuple), ()),
        dst_named_port_sets=NAMED,
        not_dst_named_port_sets=NAMED,
        src_ports=rarely(st.sampled_from(((PortRange(1024, 65535),), (PortRange(0, 1023),))), ()),
        **ANY,
    ),
    st.builds(
        Rule,
        action=st.sampled_from(tuple(Action)),
        protocol=st.sampled_from(("icmp", "icmpv6")),
        icmp=rarely(st.builds(Icmp, st.sampled_from((8, 128, 0)), st.sampled_from((None, 0, 1))), None),
        not_icmp=rarely(st.builds(Icmp, st.sampled_from((8, 128, 0)), st.sampled_from((None, 0, 1))), None),
    ),
)
RULE_LISTS = st.lists(RULES, max_size=4).map(tuple)
POLICY = st.builds(Policy, tier=st.just("default"), inbound=RULE_LISTS, outbound=RULE_LISTS)
TIERS = st.lists(
    st.builds(
        Tier,
        name=st.sampled_from(("sec", "default")),
        default_action=st.sampled_from(("Deny", "Pass")),
        ingress=some(POLICIES, 3),
        egress=rarely(some(POLICIES, 2), ()),
    ),
    max_size=2,
    unique_by=lambda tier: tier.name,
).map(tuple)


MEMBERS = st.frozensets(st.sampled_from((*HOSTS, *NETS)), max_size=5)
PORT_MEMBERS = st.frozensets(
    st.sampled_from([f"{h.partition('/')[0]},{p}" for h in HOSTS for p in ("tcp:80", "udp:8080")]), max_size=6
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running_lab() as made:
        yield made


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    sets=st.fixed_dictionaries(dict.fromkeys(("s:one", "s:two"), MEMBERS)),
    named=PORT_MEMBERS,
    policies=st.fixed_dictionaries(dict.fromkeys(POLICIES, POLICY)),
    web=RULE_LISTS,
    tiers=st.fixed_dictionaries({"a": rarely(TIERS, ()), "b": TIERS, "s": TIERS}),
)
def test_real_packets_meet_the_verdict_of_the_policy(lab, sets, named, policies, web, tiers):
    world = World(policies=policies, profiles={"web": Profile(inbound=web, outbound=(Rule(action=Action.ALLOW),))})
    world.sets = {set_id: IPSet(IPSetType.NET, members) for set_id, members in sets.items()}
    world.sets["n:web"] = IPSet(IPSetType.IP_PORT, named)
    builder = lab.fresh()
    for set_id, ipset in world.sets.items():
        builder.set_ipset(set_id, ipset)
    for key, policy in world.policies.items():
        builder.set_policy(key, policy)
    builder.set_profile("web", world.profiles["web"])
    for name, own in tiers.items():
        lab.pod(name, *own, profiles=("web",))
    world.workloads = lab.workloads
    lab.apply()
    questions = [(version, question) for version in (4, 6) for question in FLOWS]
    allowed = [judge(world, packet_of(question, version)).allowed for version, question in questions]
    wanted = [Verdict.ALLOW if is_ else Verdict.DENY for is_ in allowed]
    flows = [lab.flow(question, version) for version, question in questions]
    wrong = []
    for asked, verdict, is_ in zip(
        questions, check(flows, timeout_s=0.5, tries=2, wanted=wanted), allowed, strict=True
    ):
        if (verdict is Verdict.ALLOW) != is_:
            wrong.append((*asked, str(verdict)))
    assert wrong == []


def packet_of(question: Question, version: int) -> Packet:
    """The first packet of such a flow. Its source port is one that the kernel picks."""
    sender, target, port, protocol = question
    if protocol == "icmp":
        number, sport = (1, 8 << 8) if version == 4 else (58, 128 << 8)
    else:
        number, sport = NUMBERS[protocol], 40000
    return Packet(
        ip_address(address(sender, version)),
        ip_address(address(target, version)),
        number,
        sport,
        port,
        iif="eth0" if sender == "out" else f"cali-{sender}",
        oif=f"cali-{target}",
    )
