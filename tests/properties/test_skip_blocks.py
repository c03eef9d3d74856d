"""Skip blocks change what a packet costs, and nothing else: verdicts, log lines and counters stay those of the list."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.nftables import model as nft
from libs.nftables.evaluate import Evaluator, Packet
from libs.policy.output import Action, IPSet, IPSetType, Policy, PolicyKey, Profile, Rule, Tier, Workload, WorkloadKey
from services.felix.core import blocks, ipsets
from services.felix.core.options import RulesetOptions
from services.felix.core.ruleset import RulesetBuilder
from tests.unit.services.felix.oracle import World, judge, program

V4 = tuple(f"10.0.{n}.1" for n in range(24))
V6 = tuple(f"fd00::{n:x}" for n in range(1, 25))
SETS = tuple(f"s:{n}" for n in range(16))
NETS = ("10.0.0.0/16", "10.0.4.0/22", "10.0.9.1/32", "10.0.16.0/20", "fd00::/124", "fd00::12/127", "0.0.0.0/0", "::/0")
HOSTS = (*(f"{a}/32" for a in V4), *(f"{a}/128" for a in V6))
PODS = tuple(WorkloadKey("k8s", f"ns1/pod{n}", "eth0") for n in range(3))
OPEN = Profile(inbound=(Rule(action=Action.ALLOW),), outbound=(Rule(action=Action.ALLOW),))


class Clusters:
    """Draws by a seed: lists of this length have too many parts for hypothesis to draw and shrink one by one."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.guarded = self.random.choice((0.8, 0.95, 1.0))

    def rule(self) -> Rule:
        random, pick = self.random, self.random.choice
        action = random.choices(tuple(Action), (6, 2, 1, 1))[0]
        matches: dict[str, object] = {"protocol": pick((None, "tcp", "udp"))}
        for side in ("src", "dst"):
            if random.random() < self.guarded:
                if random.random() < 0.85:
                    matches[f"{side}_sets"] = tuple(random.sample(SETS, pick((1, 1, 2))))
                else:
                    matches[f"{side}_nets"] = tuple(random.sample(NETS, pick((1, 2))))
            if random.random() < 0.1:
                matches[f"not_{side}_sets"] = (pick(SETS),)
        if random.random() < 0.05:
            matches["ip_version"] = pick((4, 6))
        return Rule(action=action, **matches)  # type: ignore[arg-type]

    def policy(self) -> Policy:
        def rules() -> tuple[Rule, ...]:
            return tuple(self.rule() for _ in range(self.random.choice((0, 1, 1, 1, 2))))

        return Policy(tier="t", inbound=rules(), outbound=rules())

    def ipset(self) -> IPSet:
        random = self.random
        members = {*random.sample(HOSTS, random.randrange(6))}
        if random.random() < 0.2:
            members |= {*random.sample(NETS[:6], 2)}
        return IPSet(IPSetType.NET, frozenset(members))

    def tiers(self, keys: list[PolicyKey]) -> tuple[Tier, ...]:
        def some() -> tuple[PolicyKey, ...]:
            return tuple(key for key in keys if self.random.random() < 0.9)

        actions = [self.random.choice(("Deny", "Pass")) for _ in range(2)]
        half = len(keys) // 3
        return (
            Tier(name="a", default_action=actions[0], ingress=some()[:half], egress=some()[:half]),
            Tier(name="b", default_action=actions[1], ingress=some()[half:], egress=some()[half:]),
        )

    def world(self) -> World:
        world = World()
        keys = [PolicyKey("GlobalNetworkPolicy", f"p{n}") for n in range(self.random.choice((6, 30, 80, 200)))]
        world.policies = {key: self.policy() for key in keys if self.random.random() < 0.97}
        world.sets = {set_id: self.ipset() for set_id in SETS if self.random.random() < 0.97}
        world.profiles = {"open": OPEN}
        for number, key in enumerate(PODS):
            world.workloads[key] = Workload(
                name=f"cali{number}",
                profiles=("open",),
                nets4=(f"{V4[number]}/32",),
                nets6=(f"{V6[number]}/128",),
                tiers=self.tiers(keys),
            )
        return world

    def change(self, world: World, builder: RulesetBuilder) -> None:
        """One update, told to the builder and noted in the world."""
        random = self.random
        keys = sorted({key for one in world.workloads.values() for tier in one.tiers for key in tier.ingress}, key=str)
        match random.choice(("policy", "policy", "ipset", "members", "members", "members", "again", "tiers")):
            case "policy":
                key = random.choice(keys)
                new = self.policy() if random.random() < 0.8 else None
                world.policies.pop(key, None)
                if new is not None:
                    world.policies[key] = new
                builder.set_policy(key, new)
            case "ipset":
                set_id, ipset = random.choice(SETS), self.ipset() if random.random() < 0.8 else None
                world.sets.pop(set_id, None)
                if ipset is not None:
                    world.sets[set_id] = ipset
                builder.set_ipset(set_id, ipset)
            case "members" if world.sets:
                set_id = random.choice(sorted(world.sets))
                added, removed = self.ipset().members, self.ipset().members
                world.sets[set_id] = IPSet(IPSetType.NET, (world.sets[set_id].members - removed) | added)
                builder.change_ipset(set_id, added, removed)
            case "again" if world.sets:  # goes and comes back, another, before anything is written
                set_id = random.choice(sorted(world.sets))
                world.sets[set_id] = self.ipset()
                builder.set_ipset(set_id, None)
                builder.set_ipset(set_id, world.sets[set_id])
            case "tiers":
                key = random.choice(PODS)
                old = world.workloads[key]
                workload = msgspec.structs.replace(old, tiers=self.tiers(keys))
                world.workloads[key] = workload
                builder.set_workload(key, workload)

    def packets(self, version: int, count: int) -> list[Packet]:
        pick = self.random.choice
        addresses = V4 if version == 4 else V6
        elsewhere = (*addresses, *addresses, "8.8.8.8" if version == 4 else "2001::8")
        out = []
        for _ in range(count):
            sender, receiver = pick((0, 1, 2, None)), pick((0, 1, 2, None))
            out.append(
                Packet(
                    ip_address(pick(elsewhere) if sender is None else addresses[sender]),
                    ip_address(pick(addresses) if receiver is None else addresses[receiver]),
                    pick((6, 17, 132)),
                    5000,
                    80,
                    iif="eth0" if sender is None else f"cali{sender}",
                    oif="eth0" if receiver is None else f"cali{receiver}",
                    mark=pick((0, 0x20000)),
                )
            )
        return out


def fired(evaluator: Evaluator, packet: Packet) -> tuple[bool, list[str], list[str]]:
    """Through both hooks: whether it passes, the lines logged, and the comments of the counted rules it met."""
    logs: list[str] = []
    counted: list[str] = []
    for hook in (nft.Hook.PREROUTING, nft.Hook.FORWARD):
        outcome = evaluator.run(hook, packet)
        logs += outcome.logged
        counted += [rule.comment for _, rule in outcome.fired if nft.COUNTER in rule.exprs]
        if not outcome.accepted:
            return False, logs, counted
        packet = replace(packet, mark=outcome.mark)
    return True, logs, counted


@given(st.integers(0, 2**32))
def test_with_blocks_every_packet_meets_the_same_rules(seed):
    clusters = Clusters(seed)
    world = clusters.world()
    node, flat = program(world), program(world, RulesetOptions(skip_blocks=False))
    for version in (4, 6):
        with_blocks, without = (Evaluator((one.v4 if version == 4 else one.v6).ruleset()) for one in (node, flat))
        for packet in clusters.packets(version, 40):
            got = fired(with_blocks, packet)
            assert got == fired(without, packet), packet
            want = judge(world, packet)
            assert (got[0], len(got[1])) == (want.allowed, want.logs), packet


@pytest.fixture(scope="module")
def small_guards():
    """Sets cross the limit of what may guard now and then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ipsets, "LARGEST_GUARD", 3)
        yield


@pytest.mark.usefixtures("small_guards")
@given(st.integers(0, 2**32))
def test_any_way_to_a_state_ends_in_the_same_blocks(seed):
    clusters = Clusters(seed)
    world = clusters.world()
    node = program(world)
    for _ in range(6):
        for _ in range(clusters.random.choice((1, 1, 3))):
            clusters.change(world, node.builder)
        node.flush()
        fresh = program(world)
        assert node.v4.ruleset() == fresh.v4.ruleset()
        assert node.v6.ruleset() == fresh.v6.ruleset()
        assert node.flush() == []


def guarded(count: int) -> list[blocks.Item]:
    return [
        blocks.Item(PolicyKey("NetworkPolicy", f"p{n}", "ns"), False, blocks.Guard((f"s:{n}",))) for n in range(count)
    ]


def flat(row: blocks.Row) -> list[blocks.Item]:
    return [one for item in row for one in (flat(item.items) if isinstance(item, blocks.Block) else [item])]


@given(st.integers(0, 3000), st.sets(st.integers(0, 2999), max_size=20))
def test_a_policy_that_comes_changes_few_blocks(count, unguarded):
    items = guarded(count)
    for at in unguarded:
        if at < count:
            items[at] = blocks.Item(items[at].key)
    row = blocks.fold(items, True)
    assert flat(row) == items
    assert all(isinstance(item, blocks.Item) or item.guard for item in row)
    before = {*every_block(row)}
    middle = count // 2
    fewer = blocks.fold(items[:middle] + items[middle + 1 :], True)
    if len(row) > blocks.MOST_ITEMS and len(fewer) > blocks.MOST_ITEMS:
        assert len({*every_block(fewer)} - before) <= 3 * blocks.DEEPEST


def every_block(row: blocks.Row):
    for item in row:
        if isinstance(item, blocks.Block):
            yield item
            yield from every_block(item.items)
