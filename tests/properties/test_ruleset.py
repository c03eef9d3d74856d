"""The compiled ruleset says of every packet what the policy says; the way to a state leaves no trace in it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from random import Random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from libs.nftables import model as nft
from libs.nftables.evaluate import Evaluator, Packet
from libs.policy.output import (
    Action,
    Icmp,
    IPSet,
    IPSetType,
    Policy,
    PolicyKey,
    PortRange,
    Profile,
    Rule,
    Tier,
    Workload,
    WorkloadKey,
)
from tests.unit.services.felix.oracle import NUMBERS, World, judge, program
from tests.unit.services.felix.table import Node

V4 = [f"10.0.0.{n}" for n in range(6)] + ["10.0.1.1", "192.168.0.1"]
V6 = [f"fd00::{n}" for n in range(1, 7)] + ["fd00:1::1", "fe80::1"]
NETS4 = (
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.0/30",
    "10.0.0.2/31",
    "10.0.0.4/31",
    "10.0.1.0/24",
    "0.0.0.0/0",
    "192.168.0.0/16",
)
NETS6 = ("fd00::/16", "fd00::/64", "fd00::/126", "fd00::2/127", "fd00::4/127", "fd00:1::/32", "::/0", "fe80::/10")
HOSTS = tuple([f"{a}/32" for a in V4] + [f"{a}/128" for a in V6])
NET_SETS = ("s:a", "s:b", "s:c")
PORT_SETS = ("n:http", "svc:web")
PORTS = (22, 80, 81, 443, 4789)
POLICIES = (
    PolicyKey("GlobalNetworkPolicy", "block"),
    PolicyKey("NetworkPolicy", "web", "ns1"),
    PolicyKey("NetworkPolicy", "db", "ns1"),
    PolicyKey("StagedNetworkPolicy", "trial", "ns1"),
    PolicyKey("NetworkPolicy", "gone", "ns1"),  # never defined by `worlds`
)
INTERFACES = ("cali1", "cali2")
KEYS = tuple(WorkloadKey("k8s", f"ns1/pod{n}", "eth0") for n in range(3))


def some(values, most=2):
    return st.lists(st.sampled_from(values), max_size=most, unique=True).map(tuple)


def rarely(strategy, default):
    return st.one_of(st.just(default), st.just(default), strategy)


RANGE = st.builds(lambda a, b: PortRange(min(a, b), max(a, b)), *[st.sampled_from(PORTS)] * 2)
RANGES = rarely(st.lists(RANGE, max_size=3).map(tuple), ())
NETS = rarely(some((*NETS4, *NETS6, *HOSTS), 3), ())
NOT_NETS = rarely(some((*(n for n in (*NETS4, *NETS6) if not n.endswith("/0")), *HOSTS), 3), ())
SETS = rarely(some(NET_SETS, 2), ())
NAMED = rarely(some(PORT_SETS, 2), ())
ICMP = rarely(st.builds(Icmp, st.sampled_from((8, 128, 135)), st.sampled_from((None, 0, 1))), None)
RULES = st.builds(
    Rule,
    action=st.sampled_from(tuple(Action)),
    ip_version=rarely(st.sampled_from((4, 6)), 0),
    protocol=st.sampled_from((None, "tcp", "udp", "icmp", "icmpv6", 132)),
    not_protocol=rarely(st.sampled_from(("tcp", 17)), None),
    icmp=ICMP, not_icmp=ICMP,
    src_nets=NETS, dst_nets=NETS, not_src_nets=NOT_NETS, not_dst_nets=NOT_NETS,
    src_ports=RANGES, dst_ports=RANGES, not_src_ports=RANGES, not_dst_ports=RANGES,
    src_named_port_sets=NAMED, dst_named_port_sets=NAMED, not_src_named_port_sets=NAMED, not_dst_named_port_sets=NAMED,
    src_sets=SETS, dst_sets=SETS, not_src_sets=SETS, not_dst_sets=SETS,
    dst_ip_port_sets=rarely(some(PORT_SETS, 1), ()),
).map(lambda rule: admissible(rule))  # fmt: skip


def admissible(rule: Rule) -> Rule:
    """An ICMP match needs its protocol and excludes ports, as admission demands."""
    if rule.icmp is None and rule.not_icmp is None:
        return rule
    protocol = rule.protocol if rule.protocol in ("icmp", "icmpv6") else "icmp" if rule.ip_version != 6 else "icmpv6"
    no_ports = dict.fromkeys(("src_ports", "dst_ports", "not_src_ports", "not_dst_ports"), ())
    return msgspec.structs.replace(rule, protocol=protocol, not_protocol=None, **no_ports)


ASPECTS = {
    "ip_version": st.sampled_from((4, 6)),
    "not_protocol": st.sampled_from(("tcp", "udp", "icmp", 47)),
    **dict.fromkeys(("icmp", "not_icmp"), st.builds(Icmp, st.sampled_from((8, 128)), st.sampled_from((None, 0, 1)))),
    **dict.fromkeys(("src_nets", "dst_nets"), some((*NETS4, *NETS6, *HOSTS), 3)),
    **dict.fromkeys(("not_src_nets", "not_dst_nets"), some((*NETS4[:6], *NETS6[:6], *HOSTS), 3)),
    **dict.fromkeys(
        ("src_ports", "dst_ports", "not_src_ports", "not_dst_ports"), st.lists(RANGE, max_size=3).map(tuple)
    ),
    **dict.fromkeys(
        ("src_named_port_sets", "dst_named_port_sets", "not_src_named_port_sets", "not_dst_named_port_sets"),
        some(PORT_SETS, 2),
    ),
    **dict.fromkeys(("src_sets", "dst_sets", "not_src_sets", "not_dst_sets"), some(NET_SETS, 2)),
    "dst_ip_port_sets": some(PORT_SETS, 1),
}


@st.composite
def focused_rules(draw):
    """A rule with one or two kinds of match, so that it often decides."""
    fields = draw(st.lists(st.sampled_from(sorted(ASPECTS)), min_size=1, max_size=2, unique=True))
    matches = {field: draw(ASPECTS[field]) for field in fields}
    protocol = draw(st.sampled_from((None, "tcp", "udp")))
    return admissible(Rule(action=draw(st.sampled_from(tuple(Action))), protocol=protocol, **matches))


# Most rules that hypothesis would build from all fields at once match nothing; these match often.
LIGHT_RULES = st.builds(
    Rule,
    action=st.sampled_from(tuple(Action)),
    protocol=st.sampled_from((None, "tcp", "udp")),
    src_sets=SETS, dst_sets=SETS, not_src_sets=SETS,
    dst_ports=RANGES, dst_named_port_sets=NAMED, not_src_nets=NOT_NETS,
)  # fmt: skip
PLAIN_RULES = st.builds(Rule, action=st.sampled_from(tuple(Action)), protocol=st.sampled_from((None, "tcp", "udp")))
RULE_LISTS = st.lists(st.one_of(RULES, LIGHT_RULES, PLAIN_RULES), max_size=3).map(tuple)
NET_MEMBERS = st.frozensets(st.sampled_from((*HOSTS, *NETS4, *NETS6)), max_size=6)
PORT_MEMBERS = st.frozensets(
    st.builds(
        lambda a, p, n: f"{a},{p}:{n}",
        st.sampled_from((*V4, *V6)),
        st.sampled_from(("tcp", "udp")),
        st.sampled_from(PORTS),
    ),
    max_size=6,
)
IP_SETS = {
    **{set_id: st.builds(IPSet, st.just(IPSetType.NET), NET_MEMBERS) for set_id in NET_SETS},
    **{set_id: st.builds(IPSet, st.just(IPSetType.IP_PORT), PORT_MEMBERS) for set_id in PORT_SETS},
}
POLICY = st.builds(Policy, tier=st.just("default"), inbound=RULE_LISTS, outbound=RULE_LISTS)
PROFILE = st.builds(Profile, inbound=RULE_LISTS, outbound=RULE_LISTS)
TIERS = st.lists(
    st.builds(
        Tier,
        name=st.sampled_from(("sec", "default")),
        default_action=st.sampled_from(("Deny", "Pass")),
        ingress=st.permutations(POLICIES).flatmap(lambda keys: st.integers(0, 4).map(lambda n: tuple(keys[:n]))),
        egress=some(POLICIES, 3),
    ),
    max_size=2,
    unique_by=lambda tier: tier.name,
).map(tuple)
WORKLOAD = st.builds(
    Workload,
    name=st.sampled_from(INTERFACES),
    state=rarely(st.just("down"), "active"),
    profiles=rarely(some(("open", "closed", "missing"), 2), ("open",)),
    nets4=some(HOSTS[:6], 2).map(lambda nets: nets or HOSTS[:1]),
    nets6=some(HOSTS[8:14], 2).map(lambda nets: nets or HOSTS[8:9]),
    tiers=TIERS,
)


@st.composite
def worlds(draw):
    world = World()
    world.sets = {set_id: draw(strategy) for set_id, strategy in IP_SETS.items() if draw(st.integers(0, 9))}
    world.policies = {key: draw(POLICY) for key in POLICIES[:-1]}
    world.profiles = {
        "open": Profile(inbound=(Rule(action=Action.ALLOW),), outbound=(Rule(action=Action.ALLOW),)),
        "closed": draw(PROFILE),
    }
    world.workloads = {key: draw(WORKLOAD) for key in KEYS if draw(st.integers(0, 4))}
    return world


def packets(world: World, version: int, count: int, seed: int):
    """Most come from a workload under its own address; the rest lie, or come from elsewhere."""
    random = Random(seed)
    pick = random.choice
    senders = [
        (w.name, ip_address(net.partition("/")[0]))
        for w in world.workloads.values()
        for net in (w.nets4 if version == 4 else w.nets6)
    ]
    addresses = [ip_address(a) for a in (V4 if version == 4 else V6)]
    for _ in range(count):
        protocol = pick((6, 6, 6, 17, 17, 1 if version == 4 else 58, 132, 4, 47))
        if protocol in (1, 58):
            ports = (pick((8, 128, 135)) << 8 | pick((0, 1)), pick((0, 80, 7777)))
        else:
            ports = (pick((*PORTS, 5000)), pick((*PORTS, 5000)))
        iif, src = pick(("eth0", "eth0", "eth0", *INTERFACES, "cali9")), pick(addresses)
        if senders and random.random() < 0.6:
            iif, src = pick(senders)
        yield Packet(
            src,
            pick(addresses),
            protocol,
            *ports,
            iif=iif,
            oif=pick((*INTERFACES, *INTERFACES, "eth0", "cali9" if random.random() < 0.2 else "eth0")),
            ct_state=pick(
                (nft.CtState.NEW,) * 20 + (nft.CtState.ESTABLISHED, nft.CtState.RELATED, nft.CtState.INVALID)
            ),
            mark=pick((0, 0x20000, 0xFFFFFFFF)),
        )


def walk(evaluator: Evaluator, packet: Packet, to_host: bool):
    """Through the hooks that such a packet meets; (accepted, lines logged)."""
    logs = 0
    for hook in (nft.Hook.PREROUTING, nft.Hook.INPUT if to_host else nft.Hook.FORWARD):
        outcome = evaluator.run(hook, packet if hook is nft.Hook.PREROUTING or not to_host else replace(packet, oif=""))
        logs += len(outcome.logged)
        if not outcome.accepted:
            return False, logs
        packet = replace(packet, mark=outcome.mark)
    return True, logs


@given(worlds(), st.integers(0, 2**32))
def test_compiled_rules_judge_every_packet_as_the_policy_does(world, seed):
    node = program(world)
    for version, table in ((4, node.v4), (6, node.v6)):
        evaluator = Evaluator(table.ruleset())
        for number, packet in enumerate(packets(world, version, 300, seed)):
            to_host = number % 7 == 0
            want = judge(world, packet, to_host)
            assert walk(evaluator, packet, to_host) == (want.allowed, want.logs), (packet, to_host)


@given(
    st.lists(st.one_of(RULES, focused_rules(), focused_rules()), min_size=12, max_size=12),
    st.fixed_dictionaries(IP_SETS),
    st.integers(0, 2**32),
)
def test_each_rule_alone_matches_the_packets_it_describes(rules, sets, seed):
    """One policy for each rule: a rule that others hide in a whole policy is seen here."""
    keys = [PolicyKey("GlobalNetworkPolicy", f"p{number}") for number in range(len(rules))]
    world = World(
        policies={key: Policy(tier="t", inbound=(rule,)) for key, rule in zip(keys, rules, strict=True)},
        sets=sets,
        workloads={
            WorkloadKey("k8s", f"ns1/pod{number}", "eth0"): Workload(
                name=f"cali{number}", tiers=(Tier(name="t", default_action="Pass", ingress=(key,)),), profiles=("open",)
            )
            for number, key in enumerate(keys)
        },
        profiles={"open": Profile(inbound=(Rule(action=Action.ALLOW),))},
    )
    node = program(world)
    random = Random(seed)
    for version, table in ((4, node.v4), (6, node.v6)):
        evaluator = Evaluator(table.ruleset())
        for packet in packets(World(), version, 360, seed):
            number = random.randrange(len(rules))
            own = replace(
                aimed(packet, rules[number], sets, random), iif="eth0", oif=f"cali{number}", ct_state=nft.CtState.NEW
            )
            want = judge(world, own)
            assert walk(evaluator, own, False) == (want.allowed, want.logs), (rules[number], own)


def aimed(packet: Packet, rule: Rule, sets: dict[str, IPSet], random: Random) -> Packet:
    """The packet, mostly with what the rule asks for: its protocol, its ports, a member of its named ports."""
    if rule.protocol is not None and random.random() < 0.8:
        number = NUMBERS.get(rule.protocol, rule.protocol)
        if number in (1, 58):
            icmp = rule.icmp or rule.not_icmp or Icmp(8, 0)
            packet = replace(packet, protocol=number, sport=icmp.type << 8 | random.choice((0, 1)))
        else:
            packet = replace(packet, protocol=number, sport=random.choice(PORTS), dport=random.choice(PORTS))
    for ids, address, port in (
        ((*rule.dst_named_port_sets, *rule.dst_ip_port_sets, *rule.not_dst_named_port_sets), "dst", "dport"),
        ((*rule.src_named_port_sets, *rule.not_src_named_port_sets), "src", "sport"),
    ):
        members = [m for set_id in ids for m in sorted(sets[set_id].members)]
        members = [m for m in members if (":" in m.partition(",")[0]) == (packet.src.version == 6)]
        if members and random.random() < 0.7:
            host, _, rest = random.choice(members).partition(",")
            protocol, _, number = rest.partition(":")
            packet = replace(packet, protocol=NUMBERS[protocol], **{address: ip_address(host), port: int(number)})
    return packet


@given(worlds())
def test_packets_apart_from_workloads_meet_nothing_of_ours(world):
    node = program(world)
    for version, table in ((4, node.v4), (6, node.v6)):
        evaluator = Evaluator(table.ruleset())
        for packet in packets(world, version, 100, 1):
            packet = replace(packet, iif="eth0", oif="eth1")
            for hook in nft.Hook:
                outcome = evaluator.run(hook, packet)
                assert outcome.accepted
                assert outcome.mark == packet.mark
                assert all(rule.comment == "established" for _, rule in outcome.fired)


SETS_BY_TYPE = ((NET_SETS, NET_MEMBERS), (PORT_SETS, PORT_MEMBERS))
CHANGES = st.one_of(
    st.tuples(st.just("policy"), st.sampled_from(POLICIES), st.none() | POLICY),
    st.tuples(st.just("profile"), st.sampled_from(("open", "closed", "missing")), st.none() | PROFILE),
    st.tuples(st.just("workload"), st.sampled_from(KEYS), st.none() | WORKLOAD),
    *(st.tuples(st.just("ipset"), st.just(set_id), st.none() | strategy) for set_id, strategy in IP_SETS.items()),
    *(
        st.tuples(st.just(kind), st.sampled_from(ids), st.tuples(members, members))
        for ids, members in SETS_BY_TYPE
        for kind in ("members", "again")
    ),
    st.tuples(st.just("flush"), st.none(), st.none()),
)


def change(world: World, node: Node, kind: str, key, value) -> None:
    """One update, told to the builder and noted in the world. `again`: a set goes and comes back, perhaps another."""
    builder = node.builder
    if kind == "flush":
        node.flush()
    elif kind in ("members", "again"):
        if key not in world.sets:
            return
        added, removed = value
        changed = IPSet(world.sets[key].type, (world.sets[key].members - removed) | added)
        if kind == "members":
            builder.change_ipset(key, added, removed)
        else:
            builder.set_ipset(key, None)
            builder.set_ipset(key, changed)
        world.sets[key] = changed
    else:
        getattr(builder, f"set_{kind}")(key, value)
        stores = {"policy": world.policies, "profile": world.profiles, "workload": world.workloads, "ipset": world.sets}
        stores[kind].pop(key, None)  # type: ignore[call-overload]
        if value is not None:
            stores[kind][key] = value  # type: ignore[index]


@given(worlds(), st.lists(CHANGES, min_size=6, max_size=25))
def test_any_way_to_a_state_ends_in_the_same_ruleset(world, changes):
    node = program(world)
    for kind, key, value in changes:
        change(world, node, kind, key, value)
    node.flush()
    fresh = program(world)
    assert node.v4.ruleset() == fresh.v4.ruleset()
    assert node.v6.ruleset() == fresh.v6.ruleset()
    assert node.flush() == []
