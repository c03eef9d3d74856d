"""The ruleset read back from the kernel and walked in software says what the kernel does with real packets, and which
rule of it decided; and it is seen when the kernel holds something else than was calculated."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from libs.bus.explain import KernelVerdict, Place
from libs.nftables.kernel import KernelRuleset
from libs.nftables.model import Table
from libs.nftables.readback import ReadBack
from libs.policy.changes import NodeView
from libs.policy.path import Side, Step, allowed, walk
from libs.policy.trace import Packet as TracePacket
from libs.testkit.netns import can_make_namespaces
from libs.testkit.packets import Packet
from services.felix.core import explain
from services.felix.core.explain import Ways
from services.felix.core.ruleset import RulesetBuilder
from tests.judges.draw import GUARD, PODS, Draw, own
from tests.judges.kernel_judge import OPTIONS, KernelJudge, running_judge
from tests.judges.shots import HERE, Shot
from tests.judges.trial import NAMES, draw_case, view_of
from tests.unit.libs.policy import build

DEEP = settings().max_examples > 100


@pytest.fixture(scope="module")
def judge() -> Iterator[KernelJudge]:
    if not can_make_namespaces():
        pytest.skip("needs root and network namespaces")
    with running_judge() as made:
        yield made


class Software:
    """The kernel's tables as they are now, and the calculation beside them."""

    def __init__(self, judge: KernelJudge, view: NodeView) -> None:
        self._view = view
        self._tables: dict[int, ReadBack] = {}
        kernel = KernelRuleset(judge.node.path)
        try:
            for version, table, desired in zip((4, 6), RulesetBuilder.tables(), judge.desired(), strict=True):
                known = [rule for chain in desired.chains for rule in chain.rules]
                self._tables[version] = ReadBack(table, kernel.read(table), known)
        finally:
            kernel.close()
        self._keys = {workload.name: key for key, workload in view.workloads.items()}

    @property
    def foreign(self) -> list[str]:
        return [one for table in self._tables.values() for one in table.foreign]

    def ask(self, shot: Shot) -> tuple[list[Step], KernelVerdict]:
        one = shot.packet
        packet = TracePacket(
            src=str(one.src), dst=str(one.dst), protocol=NAMES.get(one.protocol, one.protocol), src_port=one.sport,
            dst_port=one.dport, icmp_type=one.icmp_type, icmp_code=one.icmp_code,
        )  # fmt: skip
        steps = walk(
            self._view, packet, self._side(shot.sender), self._side(shot.receiver), explain.host_rules(OPTIONS)
        )
        ways = Ways(self._interface(shot.sender), self._interface(shot.receiver))
        sender = Place(here=shot.sender == HERE)
        table = self._tables[one.version]
        verdict, _ = explain.judge(table, packet, sender, ways, steps, here=shot.receiver == HERE)
        return steps, verdict

    def _side(self, place: str) -> Side:
        if place in PODS:
            return Side(workload=self._keys[f"cali{place}"])
        return Side(here=True) if place == HERE else Side(guard=GUARD if GUARD in self._view.hosts else "")

    def _interface(self, place: str) -> str:
        return f"cali{place}" if place in PODS else "" if place == HERE else "eth0"


@pytest.mark.kernel
@settings(max_examples=800 if DEEP else 25, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.integers(0, 2**31), st.booleans(), st.booleans())
def test_the_walk_through_the_kernels_ruleset_is_the_kernels_own(
    judge: KernelJudge, seed: int, many: bool, guarded: bool
) -> None:
    while guarded and not Draw(Random(seed)).cluster(many).guarded:
        seed += 1
    cluster, shots = draw_case(seed, 200, many)
    view = view_of(cluster.resources)
    judge.load(view)
    really = judge.judge(shots)
    software = Software(judge, view)
    assert software.foreign == []
    for shot, got_through in zip(shots, really, strict=True):
        steps, verdict = software.ask(shot)
        assert verdict.accepted is got_through, (str(shot), verdict)
        assert allowed(steps) is got_through, (str(shot), steps)
        named = [place for place in verdict.deciders if place is not None]
        assert named == sorted(set(named))  # each rule counts for one step
        for step, decider in zip(steps, verdict.deciders, strict=True):
            if decider is None:  # a step behind one that denied, or where nothing decides
                assert not got_through or not step.decision.action, (str(shot), step, verdict)
            else:
                assert explain.label(step.decision) in verdict.rules[decider].comment


def one_pod_open() -> NodeView:
    allow = [build.rule()]
    pods = [
        build.wep(pod, namespace="ns1", nets=(f"{own(pod, 4)}/32", f"{own(pod, 6)}/128"), profiles=("open",))
        for pod in PODS
    ]
    only = build.gnp("only", "all()", types=["Ingress"], ingress=[build.rule("Allow", "TCP")])
    return view_of([*pods, build.profile("open", ingress=allow, egress=allow), only])


SHOT = Shot(Packet(ip_address(own("a", 4)), ip_address(own("b", 4)), 6, 1000, 80), "a", "b")


def nft(judge: KernelJudge, *words: str) -> str:
    command = ["ip", "netns", "exec", judge.node.name, "nft", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def table_text() -> str:
    table: Table = RulesetBuilder.tables()[0]
    return f"{table.family} {table.name}"


@pytest.mark.kernel
def test_a_rule_that_is_not_there_any_more_is_a_disagreement(judge: KernelJudge) -> None:
    view = one_pod_open()
    judge.load(view)
    steps, verdict = Software(judge, view).ask(SHOT)
    assert (allowed(steps), verdict.accepted) == (True, True)
    assert [verdict.rules[place].comment for place in verdict.deciders if place is not None] == [
        "pro/open/0 allow", "gnp/only/0 allow",
    ]  # fmt: skip
    nft(judge, "flush", "chain", *table_text().split(), "pi-gnp/only")
    assert judge.judge([SHOT]) == [False]
    steps, verdict = Software(judge, view).ask(SHOT)
    assert (allowed(steps), verdict.accepted) == (True, False)
    assert verdict.rules[-1].comment == "end of tier default: no policy decided"


@pytest.mark.kernel
def test_a_rule_of_somebody_elses_is_said_where_a_packet_meets_it(judge: KernelJudge) -> None:
    view = one_pod_open()
    judge.load(view)
    nft(judge, "insert", "rule", *table_text().split(), "pi-gnp/only", "ip", "daddr", own("b", 4), "drop")
    software = Software(judge, view)
    assert software.foreign == ["rule 0 of chain pi-gnp/only"]
    _, verdict = software.ask(SHOT)
    assert verdict.accepted is None
    assert verdict.unknown == "rule 0 of chain pi-gnp/only is not Calico's"
    elsewhere = Shot(Packet(ip_address(own("a", 6)), ip_address(own("b", 6)), 6, 1000, 80), "a", "b")
    assert software.ask(elsewhere)[1].accepted is True


@pytest.mark.kernel
def test_counters_are_those_that_nft_shows(judge: KernelJudge) -> None:
    judge.load(one_pod_open())
    assert judge.judge([SHOT]) == [True]
    table = RulesetBuilder.tables()[0]
    kernel = KernelRuleset(judge.node.path)
    try:
        (seen,) = kernel.counters(table, "pi-gnp/only").values()
    finally:
        kernel.close()
    listed = json.loads(nft(judge, "-j", "list", "chain", *table_text().split(), "pi-gnp/only"))
    (counter,) = [
        expr["counter"]
        for item in listed["nftables"]
        for expr in item.get("rule", {}).get("expr", [])
        if "counter" in expr
    ]
    assert seen == (counter["packets"], counter["bytes"])
    assert seen[0] >= 1
