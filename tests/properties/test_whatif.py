"""What a change of policy would do, against asking about every pair and every kind of packet by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random

import msgspec
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from libs import model
from libs.policy import services
from libs.policy.calculator import Calculator
from libs.policy.changes import NodeView
from libs.policy.services import Service
from libs.policy.trace import Direction, Packet, decide, decide_tiers, narrowed
from libs.policy.whatif import Peer, Report, State, compare
from tests.judges.draw import OUTSIDE, Draw
from tests.judges.trial import NAMES, draw_case, view_of
from tests.unit.libs.policy import build

SEEDS = st.integers(0, 2**32 - 1)


def peers(calculator: Calculator) -> list[Peer]:
    found = [
        Peer(str(key), key, node, workload.nets4, workload.nets6) for node, key, workload in calculator.workloads()
    ]
    outside = [
        Peer(address, None, "", *(((f"{address}/32",), ()) if version == 4 else ((), (f"{address}/128",))))
        for version in (4, 6)
        for address in OUTSIDE[version][:3]
    ]
    return found + outside


def changed(random: Random, draw: Draw, resources: Sequence[model.Resource]) -> list[model.Resource]:
    """Some policies go, some are other ones; now and then a set, a tier, an endpoint's labels. Or sets alone."""
    out = []
    only_sets = random.random() < 0.3
    for one in resources:
        if not only_sets and one.kind.endswith("NetworkPolicy") and random.random() < 0.3:
            if random.random() < 0.5 and not one.kind.startswith("Staged"):
                out.append(draw.with_other_rules(one))
            continue
        if one.kind in ("NetworkSet", "GlobalNetworkSet") and random.random() < (0.8 if only_sets else 0.2):
            one = msgspec.structs.replace(one, spec=msgspec.structs.replace(one.spec, nets=one.spec.nets[1:]))
        if one.kind == "WorkloadEndpoint" and random.random() < (0.5 if only_sets else 0.1):
            labels = draw.labels()
            one = msgspec.structs.replace(one, metadata=msgspec.structs.replace(one.metadata, labels=labels))
        if not only_sets and one.kind == "Tier" and random.random() < 0.1:
            continue
        out.append(one)
    return out


def verdict(views: dict[str, NodeView], source: Peer, target: Peer, packet: Packet, *, staged: bool) -> bool:
    for peer, direction in ((source, Direction.EGRESS), (target, Direction.INGRESS)):
        if peer.key is None:
            continue
        view = views[peer.node]
        if decide(view.workloads[peer.key], view, packet, direction, staged=staged).action != "allow":
            return False
    return True


def packets(
    random: Random, report: Report, version: int, source: Peer, target: Peer
) -> Iterable[tuple[Service, Packet]]:
    """One of each service, with a port anywhere in its range, and some drawn freely."""
    port = 40000
    for service in report.asked[version]:
        packet = service.packet(source.address(version), target.address(version), port)
        if service.high:
            packet = msgspec.structs.replace(packet, dst_port=random.randint(service.low, service.high))
        yield service, packet
    for _ in range(10):
        protocol = random.choice(("tcp", "udp", "sctp", 47, 2, "icmp" if version == 4 else "icmpv6"))
        packet = Packet(src=source.address(version), dst=target.address(version), protocol=protocol)
        if str(protocol).startswith("icmp"):
            kinds = random.choice((0, 3, 8, 13, 128, 139)), random.choice((0, 1, 5))
            packet = msgspec.structs.replace(packet, icmp_type=kinds[0], icmp_code=kinds[1])
        elif isinstance(protocol, str):
            packet = msgspec.structs.replace(packet, src_port=port, dst_port=random.randint(1, 65535))
        service = services.find(report.asked[version], packet)
        assert service is not None
        yield service, packet


@settings(max_examples=settings().max_examples // 5, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(SEEDS, st.booleans(), st.booleans())
def test_what_if_is_every_pair_asked_by_itself(seed: int, staged: bool, many: bool) -> None:
    random = Random(seed)
    draw = Draw(random)
    cluster = draw.cluster(many)
    resources = cluster.resources
    before, after = build.calculate(*resources), build.calculate(*changed(random, draw, resources))
    ends = peers(before)
    states = State(before), State(after, staged=staged)
    views = [{node: state.view(node) for node in state.nodes} for state in (before, after)]
    report = compare(*states, ends)
    told = {
        (change.version, source, target, service): change.allowed
        for change in report.changes
        for source, target in change.each()
        for service in change.services
    }
    assert all(change.pairs for change in report.changes)
    assert report.pairs == len({key[:3] for key in told})
    assert len(told) == sum(change.pairs * len(change.services) for change in report.changes)
    rules = [
        rule
        for state in states
        for holder in (*state.view.policies.values(), *state.view.profiles.values())
        for rule in (*holder.inbound, *holder.outbound)
    ]
    source_port, _ = services.source_port(rules)
    pairs = [(a, b) for a in ends for b in ends if a != b and (a.key is not None or b.key is not None)]
    for source, target in random.sample(pairs, min(40, len(pairs))):
        for version in (4, 6):
            if not (source.address(version) and target.address(version)):
                continue
            drawn_packets = list(packets(random, report, version, source, target))
            for service, drawn in random.sample(drawn_packets, min(12, len(drawn_packets))):
                packet = msgspec.structs.replace(drawn, src_port=source_port if drawn.src_port else 0)
                now = verdict(views[0], source, target, packet, staged=False)
                then = verdict(views[1], source, target, packet, staged=staged)
                expected = None if now == then else then
                assert told.get((version, source, target, service)) is expected, (source, target, service, packet)


def test_the_drawn_changes_change_something() -> None:
    seen = 0
    for seed in range(20):
        random = Random(seed)
        draw = Draw(random)
        resources = draw.cluster(False).resources
        before, after = build.calculate(*resources), build.calculate(*changed(random, draw, resources))
        seen += bool(compare(State(before), State(after), peers(before)).changes)
    assert seen >= 5


@settings(max_examples=settings().max_examples // 4, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(SEEDS, st.booleans(), st.booleans())
def test_what_is_left_between_two_addresses_decides_as_the_whole(seed: int, many: bool, staged: bool) -> None:
    cluster, shots = draw_case(seed, 60, many)
    view = view_of(cluster.resources)
    for shot in shots:
        one = shot.packet
        packet = Packet(
            src=str(one.src), dst=str(one.dst), protocol=NAMES.get(one.protocol, one.protocol), src_port=one.sport,
            dst_port=one.dport, icmp_type=one.icmp_type, icmp_code=one.icmp_code,
        )  # fmt: skip
        for workload in view.workloads.values():
            for direction in Direction:
                whole = decide(workload, view, packet, direction, staged=staged)
                tiers, left = narrowed(workload.tiers, workload.profiles, view, packet, direction, staged=staged)
                part = decide_tiers(tiers, workload.profiles, left, packet, direction, staged=staged)
                assert (part.action, part.reason, part.tier) == (whole.action, whole.reason, whole.tier)
