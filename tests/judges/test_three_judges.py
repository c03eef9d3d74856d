"""A plain reference, the product's trace and the kernel decide alike about every drawn packet (see
docs/design/policy-proof.md)."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from libs.testkit import packets
from libs.testkit.netns import can_make_namespaces
from libs.testkit.packets import Packet
from tests.judges import record as recording
from tests.judges.change import follow
from tests.judges.draw import PODS, own
from tests.judges.kernel_judge import KernelJudge, running_judge
from tests.judges.path import allows
from tests.judges.reference import Counters, Reference
from tests.judges.shots import PROTOCOLS, Shot
from tests.judges.trial import Record, draw_case, run_case, view_of
from tests.unit.libs.policy import build

SEEDS = st.integers(0, 2**32 - 1)
DEEP = settings().max_examples > 100  # the profile for long runs
AT_LEAST, POSITIVE_ONLY = 500, ("ipVersion", "global()", "namespaceSelector", "service", "serviceAccounts")


def examples(gate: int, deep: int) -> settings:
    # A smaller seed is no smaller cluster, so there is nothing to shrink: trial.py leaves out what is not needed.
    return settings(max_examples=deep if DEEP else gate, phases=(Phase.explicit, Phase.reuse, Phase.generate))


@pytest.fixture(scope="module")
def judge() -> Iterator[KernelJudge]:
    if not can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    with running_judge() as made:
        yield made


def one_of_each() -> list[Shot]:
    shots = []
    for version in (4, 6):
        src, dst = ip_address(own("a", version)), ip_address(own("b", version))
        for protocol in PROTOCOLS:
            if protocol == packets.ICMP:
                number, kind = (packets.ICMP, 8) if version == 4 else (packets.ICMPV6, 128)
                packet = Packet(src, dst, number, icmp_type=kind, icmp_code=0)
            else:
                packet = Packet(src, dst, protocol, *((1000, 80) if protocol in packets.WITH_PORTS else ()))
            shots.append(Shot(packet, "a", "b"))
    return shots


@pytest.mark.kernel
def test_every_protocol_is_let_through_or_held_by_policy_alone(judge: KernelJudge) -> None:
    allow = [build.rule()]
    pods = [
        build.wep(pod, namespace="ns1", nets=(f"{own(pod, 4)}/32", f"{own(pod, 6)}/128"), profiles=("open",))
        for pod in PODS
    ]
    resources = [*pods, build.profile("open", ingress=allow, egress=allow)]
    judge.load(view_of(resources))
    assert judge.judge(one_of_each()) == [True] * 12
    judge.verify_checksums(True)
    try:
        verified = [shot for shot in one_of_each() if shot.packet.protocol != packets.UDPLITE]
        assert judge.judge(verified) == [True] * 10
    finally:
        judge.verify_checksums(False)
    judge.load(view_of([*resources, build.gnp("nothing")]))
    assert judge.judge(one_of_each()) == [False] * 12


@pytest.mark.kernel
@examples(18, 1500)
@given(SEEDS)
def test_the_judges_agree_on_any_cluster(judge: KernelJudge, seed: int) -> None:
    assert run_case(judge, seed, 250, Record()) == []


@pytest.mark.kernel
@examples(8, 500)
@given(SEEDS)
def test_the_judges_agree_where_many_policies_select_a_pod(judge: KernelJudge, seed: int) -> None:
    assert run_case(judge, seed, 250, Record(), many=True) == []


@pytest.mark.kernel
@examples(8, 400)
@given(SEEDS)
def test_after_changes_ruleset_and_verdicts_are_those_of_a_fresh_start(judge: KernelJudge, seed: int) -> None:
    assert [str(one) for one in follow(judge, seed, 100, Record())] == []


def test_what_is_drawn_asks_every_kind_of_match_and_is_allowed_about_as_often_as_not() -> None:
    counters, allowed, asked = Counters(), 0, 0
    for seed in range(40):
        cluster, shots = draw_case(seed, 60)
        reference = Reference(cluster.resources, counters)
        asked += len(shots)
        allowed += sum(allows(reference, shot) for shot in shots)
    assert 0.2 < allowed / asked < 0.8
    assert missing(counters, 10) == {}


def missing(counters: Counters, wanted: int) -> dict[str, int]:
    """Kinds of match that were asked less often than wanted."""
    sides = ("nets", "selector", "port", "port range", "named port", "namespaceSelector", "global()", "service",
             "serviceAccounts names", "serviceAccounts selector")  # fmt: skip
    kinds = ["ipVersion", "protocol name", "protocol number", "icmp type", "icmp type and code"]
    kinds += [f"{side} {kind}" for side in ("source", "destination") for kind in sides]
    kinds += [f"not {kind}" for kind in kinds if not any(word in kind for word in POSITIVE_ONLY)]
    return {kind: counters.asked[kind] for kind in kinds if counters.asked[kind] < wanted}


@pytest.mark.kernel
@pytest.mark.hunt
def test_fifty_thousand_packets_without_a_quarrel() -> None:
    record = recording.run(50_000, 0)
    assert record.quarrels == []
    assert 0.2 < record.allowed / record.packets < 0.8
    assert missing(record.counters, AT_LEAST) == {}
