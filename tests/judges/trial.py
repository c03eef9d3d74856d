"""One case before the three judges: a drawn cluster, its packets, what each judge says, and what a quarrel needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random

from libs import model
from libs.model import codec
from libs.policy.changes import NodeView
from libs.policy.output import Host, Workload
from libs.policy.trace import Direction, Reason, decide, decide_tiers
from libs.policy.trace import Packet as TracePacket
from libs.testkit.packets import Packet
from tests.judges.draw import GUARD, NODE, PODS, Cluster, Draw
from tests.judges.kernel_judge import KernelJudge
from tests.judges.path import FORWARD, NORMAL, PRE_DNAT, UNTRACKED, allows
from tests.judges.reference import Counters, Reference
from tests.judges.shots import Shot, draw_shots
from tests.unit.libs.policy import build

NAMES = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp", 136: "udplite"}


@dataclass
class Quarrel:
    """A packet on which the judges do not agree."""

    shot: Shot
    reference: bool
    trace: bool
    kernel: bool | None = None  # None: not asked

    def __str__(self) -> str:
        said = {"reference": self.reference, "trace": self.trace, "kernel": self.kernel}
        return f"{self.shot}: " + ", ".join(f"{judge} {SAYINGS[verdict]}" for judge, verdict in said.items())


SAYINGS = {True: "allows", False: "denies", None: "was not asked"}


@dataclass
class Record:
    """What a run of many cases has seen."""

    cases: int = 0
    many: int = 0  # cases with many policies for an endpoint
    packets: int = 0
    allowed: int = 0
    protocols: Counter[str] = field(default_factory=Counter)
    counters: Counters = field(default_factory=Counters)
    quarrels: list[str] = field(default_factory=list)


class Trace:
    """The second judge: the product's own explanation of what its calculation says."""

    def __init__(self, view: NodeView) -> None:
        self._view = view
        self._endpoints: dict[str, Workload | Host] = {one.name: one for one in view.workloads.values()}
        self._endpoints |= view.hosts
        self.guarded = bool(view.hosts)

    def says(self, packet: Packet, endpoint: str, direction: str, kind: str) -> str:
        asked = TracePacket(
            src=str(packet.src),
            dst=str(packet.dst),
            protocol=NAMES.get(packet.protocol, packet.protocol),
            src_port=packet.sport,
            dst_port=packet.dport,
            icmp_type=packet.icmp_type,
            icmp_code=packet.icmp_code,
        )
        way = Direction.INGRESS if direction == "Ingress" else Direction.EGRESS
        if kind == NORMAL:
            where = self._endpoints[endpoint if endpoint == GUARD else f"cali{endpoint}"]
            return decide(where, self._view, asked, way).action.capitalize()
        host = self._view.hosts[endpoint]
        tiers = {FORWARD: host.forward_tiers, UNTRACKED: host.untracked_tiers, PRE_DNAT: host.pre_dnat_tiers}[kind]
        verdict = decide_tiers(tiers, (), self._view, asked, way)
        return "" if verdict.reason is Reason.NO_PROFILE_MATCHED else verdict.action.capitalize()


def view_of(resources: Iterable[model.Resource]) -> NodeView:
    return build.view_of(*resources, node=NODE)


def draw_case(seed: int, packets: int, many: bool | None = None) -> tuple[Cluster, list[Shot]]:
    """The same for the same seed. packets: how many to draw; a few fewer are left."""
    random = Random(seed)
    cluster = Draw(random).cluster(many)
    return cluster, draw_shots(random, packets, guarded=cluster.guarded)


def compare(
    resources: Sequence[model.Resource], view: NodeView, shots: Sequence[Shot], kernel: Sequence[bool], record: Record
) -> list[Quarrel]:
    """Asks the first two judges about every packet, and holds what they say against the kernel's verdicts."""
    reference, trace = Reference(resources, record.counters), Trace(view)
    quarrels = []
    for shot, got_through in zip(shots, kernel, strict=True):
        should, traced = allows(reference, shot), allows(trace, shot)
        record.packets += 1
        record.allowed += should
        record.protocols[f"IPv{shot.packet.version} {NAMES.get(shot.packet.protocol, 'gre')}"] += 1
        if not should == traced == got_through:
            quarrels.append(Quarrel(shot, should, traced, got_through))
    return quarrels


def run_case(judge: KernelJudge, seed: int, packets: int, record: Record, many: bool | None = None) -> list[str]:
    """Draws and judges a case; returns what to print of each quarrel, with as little of the cluster as shows it."""
    cluster, shots = draw_case(seed, packets, many)
    view = view_of(cluster.resources)
    judge.load(view)
    quarrels = compare(cluster.resources, view, shots, judge.judge(shots), record)
    record.cases += 1
    record.many += cluster.many
    shown = [explain(judge, cluster, one, f"seed {seed}") for one in quarrels[:1]]
    shown += [f"seed {seed}: {one}" for one in quarrels[1:]]
    record.quarrels += shown
    return shown


# --- making a quarrel small ---


def explain(judge: KernelJudge, cluster: Cluster, quarrel: Quarrel, title: str) -> str:
    """The quarrel, and the resources that it needs."""

    def still(resources: list[model.Resource]) -> bool:
        view, shot = view_of(resources), quarrel.shot
        reference, trace = Reference(resources), Trace(view)
        if any(end in PODS and end not in reference.endpoints for end in (shot.sender, shot.receiver)):
            return False
        verdicts = [allows(reference, shot), allows(trace, shot)]
        if (verdicts[0] != verdicts[1]) is not (quarrel.reference != quarrel.trace):
            return False
        if quarrel.reference != quarrel.trace:
            return True
        judge.load(view)
        return judge.judge([shot]) != verdicts[:1]

    needed = smallest(cluster.resources, still)
    return "\n    ".join([f"{title}: {quarrel}", *(codec.encode(one).decode() for one in needed)])


def smallest(resources: list[model.Resource], still: Callable[[list[model.Resource]], bool]) -> list[model.Resource]:
    """Leaves out whole resources, then single rules, as long as `still` holds of the rest."""
    kept = list(resources)
    for one in resources:
        fewer = [other for other in kept if other is not one]
        if still(fewer):
            kept = fewer
    for index, one in enumerate(kept):
        for direction in ("ingress", "egress"):
            for rule in list(getattr(one.spec, direction, ())) if hasattr(one, "spec") else ():
                cut = _without(kept[index], direction, rule)
                if still([*kept[:index], cut, *kept[index + 1 :]]):
                    kept[index] = cut
    return kept


def _without(resource: model.Resource, direction: str, rule: model.Rule) -> model.Resource:
    cut = codec.copy(resource)
    rules = getattr(cut.spec, direction)
    del rules[rules.index(rule)]
    return cut
