"""`calicoctl trace`: what stands between two ends, by the datastore, the nodes' own calculation and their kernels.

Flows in: two ends, a packet for each family, the datastore as calculated here. Flows out: `Trace`, one for each family,
whose verdict is that of the nodes where they answered, else the datastore's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from libs.bus import Bus, BusError, BusTimeout
from libs.bus import explain as asked
from libs.policy.path import Step, allowed
from libs.policy.trace import Packet
from services.calicoctl.explain import asking
from services.calicoctl.explain import hops as way
from services.calicoctl.explain.cluster import Cluster
from services.calicoctl.explain.ends import End
from services.calicoctl.explain.hops import Hop

AT_ONCE = 100
"""Packets of one question, below PACKETS_LIMIT: each time the node reads its ruleset, and the answer must fit the bus,
which leaves 10 kB for each."""


@dataclass(frozen=True, slots=True)
class HopTrace:
    """stored: by the datastore. answer: the node's; None when it did not answer, for `silent`. rev: that it is of.
    failures: what the node could not program.
    """

    hop: Hop
    stored: Sequence[Step]
    answer: asked.Answer | None = None
    rev: int = 0
    silent: str = ""
    failures: Mapping[str, str] = field(default_factory=dict)
    staged: bool = False

    @property
    def steps(self) -> Sequence[Step]:
        return self.stored if self.answer is None or self.answer.error else self.answer.steps

    @property
    def allowed(self) -> bool:
        return allowed(self.steps, staged=self.staged)

    @property
    def differs(self) -> bool:
        """The node applies other policy than the datastore has now."""
        if self.answer is None or self.answer.error or len(self.answer.steps) != len(self.stored):
            return self.answer is not None and not self.answer.error
        return any(
            not mine.decision.same_as(theirs.decision)
            for mine, theirs in zip(self.stored, self.answer.steps, strict=True)
        )

    @property
    def agrees(self) -> bool | None:
        """Whether the kernel does what the node calculated, rule by rule; None: not asked, or it cannot be told."""
        kernel = self.answer.kernel if self.answer is not None else None
        if kernel is None or kernel.accepted is None or self.answer is None:
            return None
        return kernel.accepted is allowed(self.answer.steps)


@dataclass(frozen=True, slots=True)
class Trace:
    source: End
    target: End
    packet: Packet
    hops: Sequence[HopTrace]
    notes: Sequence[str]
    revision: int

    @property
    def allowed(self) -> bool:
        return all(hop.allowed for hop in self.hops)

    @property
    def contradicted(self) -> bool:
        return any(hop.agrees is False for hop in self.hops)


def prepare(
    source: End, target: End, packet: Packet, cluster: Cluster, *, staged: bool, before: Packet | None = None,
    entry: str = "", masked: bool = False,
) -> Trace:  # fmt: skip
    """By the datastore alone. before, entry, masked: as `hops` takes them. Raises EndProblem."""
    found, notes = way.hops(source, target, packet, cluster, before, entry, masked=masked)
    traced = []
    for hop in found:
        steps, assumed = way.calculate(hop, cluster, staged=staged)
        notes += assumed
        traced.append(HopTrace(hop, steps, staged=staged))
    return Trace(source, target, packet, traced, [*source.notes, *target.notes, *notes], cluster.revision)


async def ask(bus: Bus, traces: Sequence[Trace], timeout_s: float, *, kernel: bool = True) -> list[Trace]:
    """The same with the nodes' answers. Each node is asked once for every AT_ONCE packets; nodes at once."""
    places: dict[str, list[tuple[int, int]]] = {}
    for number, trace in enumerate(traces):
        for place, hop in enumerate(trace.hops):
            places.setdefault(hop.hop.node, []).append((number, place))
    answered: dict[tuple[int, int], HopTrace] = {}

    async def of_node(node: str, wanted: list[tuple[int, int]]) -> None:
        for start in range(0, len(wanted), AT_ONCE):
            part = wanted[start : start + AT_ONCE]
            chosen = [traces[number].hops[place] for number, place in part]
            request = asked.TraceRequest(
                questions=tuple(one.hop.question for one in chosen),
                kernel=kernel,
                staged=any(one.staged for one in chosen),
            )
            answered.update(zip(part, await _ask_node(bus, node, request, chosen, timeout_s), strict=True))

    async with asyncio.TaskGroup() as tasks:
        for node, wanted in places.items():
            tasks.create_task(of_node(node, wanted), name=f"trace on {node}")
    return [
        Trace(
            one.source,
            one.target,
            one.packet,
            [answered[number, place] for place in range(len(one.hops))],
            _nodes_know(one, [answered[number, place] for place in range(len(one.hops))]),
            one.revision,
        )
        for number, one in enumerate(traces)
    ]


def _nodes_know(trace: Trace, hops: Sequence[HopTrace]) -> list[str]:
    """Notes without what had to be assumed of nodes that answered by themselves."""
    told = [f"{hop.hop.node}: host endpoint" for hop in hops if hop.answer is not None]
    return [note for note in trace.notes if not any(note.startswith(start) for start in told)]


async def _ask_node(
    bus: Bus, node: str, request: asked.TraceRequest, hops: Sequence[HopTrace], timeout_s: float
) -> list[HopTrace]:
    silent = ""
    try:
        reply = await asking.ask(bus, node, asked.Verb.TRACE, request, asked.TraceReply, timeout_s)
        silent = reply.error
        if not silent and len(reply.answers) == len(hops):
            return [
                HopTrace(hop.hop, hop.stored, answer, reply.rev, answer.error, reply.failures, hop.staged)
                for hop, answer in zip(hops, reply.answers, strict=True)
            ]
    except BusTimeout:
        silent = f"its felix did not answer within {timeout_s:g} s"
    except (BusError, msgspec.MsgspecError) as error:
        silent = asking.reason(error)
    silent = silent or "the answer is not complete"
    return [HopTrace(hop.hop, hop.stored, silent=silent, staged=hop.staged) for hop in hops]
