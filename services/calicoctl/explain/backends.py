"""A trace to each backend of a service: policy meets the packet as kube-proxy has translated it, so that is what is
traced. Only doNotTrack and preDNAT policy of host endpoints meets it before, as it was sent; and, where it goes to a
node port of another node, the policy of the sender.

Flows in: the sender, the service's addresses, what kind of packet. Flows out: `ServiceTrace`, one for each family.
Not followed: kube-proxy's own translation of sources.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from libs.bus import Bus
from libs.policy import nets
from libs.policy.path import BEFORE_TRANSLATION
from libs.policy.trace import Packet
from services.calicoctl.explain import trace
from services.calicoctl.explain.cluster import Cluster
from services.calicoctl.explain.endpoints import Backend, Chosen, NoBackends, choose
from services.calicoctl.explain.ends import End, EndProblem, resolve
from services.calicoctl.explain.packet import PacketProblem, families, is_number
from services.calicoctl.explain.services import CLUSTER_IP, Front
from services.calicoctl.explain.trace import Trace

Describe = Callable[[End, End, int, str], Packet]
"""(source, target, family, port) → the packet."""


@dataclass(frozen=True, slots=True)
class Question:
    """protocol: number. port: the service's, by name or number. family: None for all that both ends have."""

    protocol: int
    port: str
    describe: Describe
    family: int | None = None
    staged: bool = False


@dataclass(frozen=True, slots=True)
class ServiceTrace:
    """One family. traces: to the backends that are not `untraced`, in their order; those have reasons why no node meets
    the packet. problem: why there are no backends at all; `chosen` is None then.
    """

    front: Front
    family: int
    asked: Question
    source: End
    chosen: Chosen | None = None
    traces: Sequence[Trace] = ()
    untraced: Mapping[Backend, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    problem: str = ""

    @property
    def traced(self) -> list[tuple[Backend, Trace]]:
        backends = self.chosen.backends if self.chosen is not None else ()
        return list(zip((one for one in backends if one not in self.untraced), self.traces, strict=True))


def prepare(source: End, fronts: Sequence[Front], asked: Question, cluster: Cluster) -> list[ServiceTrace]:
    """By the datastore alone. fronts: of which one has the port.

    Raises PacketProblem, and EndProblem when there is nothing to trace in any family.
    """
    meant = End(" and ".join(one.shown for one in fronts), addresses=fronts[0].addresses)
    found = []
    for family in families(source, meant, asked.family):
        try:
            front, chosen = _one_of(fronts, family, asked, cluster, source.node)
            _check_ranges(source, front, family)
        except NoBackends as problem:
            found.append(ServiceTrace(fronts[0], family, asked, source, problem=str(problem)))
        else:
            found.append(_to_backends(source, front, family, chosen, asked, cluster))
    if not any(one.traces for one in found):
        reasons = [why for one in found for why in (one.problem, *one.untraced.values()) if why]
        raise EndProblem("\n".join(dict.fromkeys(reasons)))
    return found


def _one_of(
    fronts: Sequence[Front], family: int, asked: Question, cluster: Cluster, sender: str
) -> tuple[Front, Chosen]:
    """Services may share an address when their ports differ. One whose ports are known goes before others."""
    found: list[tuple[Front, Chosen]] = []
    problems: list[EndProblem | PacketProblem] = []
    for front in fronts:
        try:
            found.append((front, choose(front, family, asked.protocol, asked.port, cluster, sender)))
        except (NoBackends, PacketProblem) as problem:
            problems.append(problem)
    found = [one for one in found if one[0].ports] or found
    if len(found) == 1:
        return found[0]
    if found:
        ways = " or ".join(f"service:{front.namespace}/{front.name}" for front, _ in found)
        raise EndProblem(f"{fronts[0].addresses[family]} is of several services that may have this port: write {ways}")
    lacking = next((one for one in problems if isinstance(one, NoBackends)), problems[0])
    raise type(lacking)("\n".join(map(str, problems)))


def _check_ranges(source: End, front: Front, family: int) -> None:
    """Raises NoBackends for a sender that loadBalancerSourceRanges leaves out."""
    address = source.addresses[family]
    ranges = [nets.parse(one) for one in map(str.strip, front.ranges) if nets.valid_address(one, family)]
    if ranges and not any(one.contains(nets.parse(address)) for one in ranges):
        raise NoBackends(
            f"{front.shown}'s loadBalancerSourceRanges do not have {address}: kube-proxy drops what it sends to"
            f" {front.addresses[family]}"
        )


def _to_backends(
    source: End, front: Front, family: int, chosen: Chosen, asked: Question, cluster: Cluster
) -> ServiceTrace:
    traces: list[Trace] = []
    untraced: dict[Backend, str] = {}
    for backend in chosen.backends:
        if front.local and not source.node and not backend.node:
            untraced[backend] = f"its slice names no node, and with {front.policy} Local only its own would serve it"
            continue
        end = resolve(backend.address, cluster)
        packet = asked.describe(source, end, family, str(backend.port))
        number = _sent_to(asked, front, chosen) or packet.dst_port
        sent = msgspec.structs.replace(packet, dst=front.addresses[family], dst_port=number)
        try:
            entry, masked = front.enters(source.node), front.masked
            traces.append(
                trace.prepare(
                    source, end, packet, cluster, staged=asked.staged, before=sent, entry=entry, masked=masked
                )
            )
        except EndProblem as problem:
            untraced[backend] = str(problem)
    notes = [*front.notes, *chosen.notes, *_about_sender(source, front), *_about_number(asked, front, chosen, traces)]
    if front.local:
        notes.append(
            f"kube-proxy's mode IPVS takes {front.policy} Local otherwise: on each node its own endpoints, whoever"
            " sends, or all where it has none"
        )
    return ServiceTrace(front, family, asked, source, chosen, traces, untraced, notes)


def _sent_to(asked: Question, front: Front, chosen: Chosen) -> int:
    """The number of the port before translation; 0 where neither the datastore nor the question has it."""
    return front.number(chosen.port) or (int(asked.port) if is_number(asked.port) else 0)


def _about_sender(source: End, front: Front) -> list[str]:
    if front.enters(source.node):
        return _about_entry(source, front)
    if source.node:
        inside = "externalTrafficPolicy Local counts for what comes from outside: inside, every backend is one"
        return [inside] if front.local and front.kind != CLUSTER_IP else []
    if front.local:
        return [f"{front.policy} Local: a backend gets what comes in by its own node, which is what is traced"]
    return [
        "traced is what comes in by the backend's own node; by another one it gets that node's address as its source"
        " (kube-proxy): trace from that node too"
    ]


def _about_entry(source: End, front: Front) -> list[str]:
    if not front.local:
        return []
    other = "" if source.workload is None else (
        "; of pods' own addresses also by others, where its kube-proxy takes all of the cluster's pods for its own"
        " (--detect-local-mode ClusterCIDR)"
    )  # fmt: skip
    return [f"externalTrafficPolicy Local: {front.entry} serves its node port by its own backends{other}"]


def _about_number(asked: Question, front: Front, chosen: Chosen, traces: Sequence[Trace]) -> list[str]:
    steps = [step for one in traces for hop in one.hops for step in hop.stored]
    if _sent_to(asked, front, chosen) or not any(step.stage in BEFORE_TRANSLATION for step in steps):
        return []
    return [
        "doNotTrack and preDNAT policy meets the service's own number of the port, which is not in the datastore (an"
        " older kube_controllers stored the service): asked is with the backend's"
    ]


async def ask(bus: Bus, found: Sequence[ServiceTrace], timeout_s: float) -> list[ServiceTrace]:
    """The same with the nodes' answers; each node is asked about all of its backends at once."""
    answered = iter(await trace.ask(bus, [one for service in found for one in service.traces], timeout_s))
    return [replace(service, traces=[next(answered) for _ in service.traces]) for service in found]


def groups(service: ServiceTrace, words: Callable[[Trace], str]) -> list[list[tuple[Backend, Trace]]]:
    """Backends to which all is said alike, in order of their first ones: the same verdict by the same rules on nodes in
    the same part, with kernels that say the same (`words`).
    """
    found: dict[Hashable, list[tuple[Backend, Trace]]] = {}
    for backend, one in service.traced:
        found.setdefault((_likeness(one), words(one)), []).append((backend, one))
    return list(found.values())


def _likeness(one: Trace) -> Hashable:
    own = tuple(f"{hop.hop.node}: " for hop in one.hops)  # notes that name the node: what had to be assumed of it
    return (
        one.allowed,
        tuple(note for note in one.notes if not note.startswith(own)),
        tuple(
            (
                hop.hop.role,
                hop.differs,
                tuple((step.stage, step.direction, step.host, step.decision, step.staged) for step in hop.steps),
                tuple(step.decision for step in hop.stored) if hop.differs else (),
            )
            for hop in one.hops
        ),
    )
