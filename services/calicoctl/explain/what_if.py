"""`calicoctl what-if`: the datastore as it is against a copy in which files were applied, by the code of `apply`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from libs import model
from libs.model import keys, selector
from libs.policy import services
from libs.policy.output import WorkloadKey
from libs.policy.path import WITH_PORTS
from libs.policy.services import Service
from libs.policy.trace import Direction, Packet, Reason, Verdict, protocol_number
from libs.policy.whatif import Change, Flow, Peer, Report, State, judge_flow
from libs.resources.client import ResourceClient
from libs.store.api import Listing
from libs.store.memory import Image, MemoryEtcd, MemoryStore
from services.calicoctl import actions
from services.calicoctl.actions import Input
from services.calicoctl.chosen import kind_of
from services.calicoctl.documents import ARGUMENTS, Document, Json, Position
from services.calicoctl.explain import cluster, packet
from services.calicoctl.explain.cluster import Cluster
from services.calicoctl.explain.ends import EndProblem, resolve

NAMED = 8  # names of a group that are spelt out for people


class WhatIfProblem(Exception):
    """What would be applied is refused, or the question is none; says what is wrong."""


# --- the state that would be ------------------------------------------------------------------------------------------


async def applied(
    listing: Listing, documents: Sequence[Input], deletions: Sequence[Input], namespace: str, *, staged: bool
) -> tuple[Cluster, list[str]]:
    """The datastore after these documents were applied, and others deleted, and what is worth knowing of it. staged:
    what staged policies would delete is deleted as well. Raises WhatIfProblem.
    """
    server = MemoryEtcd()
    server.restore(Image({kv.key: kv for kv in listing.kvs}, listing.revision))
    async with MemoryStore(server) as store:
        client = ResourceClient(store)
        problems, notes = [], []
        for verb, given in ((actions.verb("apply"), documents), (actions.verb("delete"), deletions)):
            outcome = await actions.run(verb, client, given, namespace)
            problems += outcome.failures
            notes += outcome.notes
        if problems:
            raise WhatIfProblem("\n".join(problems))
        if staged:
            notes += await _staged_deletions(store)
        after = await store.list(keys.RESOURCES)
    return cluster.of_listing(after.kvs, listing.revision), notes


async def _staged_deletions(store: MemoryStore) -> list[str]:
    notes = []
    for kv in (await store.list(keys.RESOURCES)).kvs:
        try:
            resource = model.from_storage(kv.key, kv.value, kv.mod_revision)
        except model.DecodeError:
            continue
        if getattr(resource.spec, "staged_action", "") != "Delete":
            continue
        kind, meta = resource.kind.removeprefix("Staged"), resource.metadata
        if await store.delete(keys.resource_key(kind, meta.name, meta.namespace)) is not None:
            notes.append(f"{resource.kind} {meta.name} would delete {kind} {meta.name}")
    return notes


def deletions(texts: Iterable[str]) -> list[Input]:
    """Of `KIND/NAME` and `KIND/NAMESPACE/NAME`. Raises WhatIfProblem."""
    found: list[Input] = []
    for number, text in enumerate(texts, start=1):
        kind, *rest = text.split("/")
        if not 1 <= len(rest) <= 2 or not all(rest):
            raise WhatIfProblem(f"--delete: {text!r} is not KIND/NAME or KIND/NAMESPACE/NAME, such as gnp/block")
        metadata: dict[str, Json] = {"name": rest[-1]}
        if len(rest) == 2:
            metadata["namespace"] = rest[0]
        found.append(Document(ARGUMENTS, number, {"kind": kind_of(kind), "metadata": metadata}, Position(1)))
    return found


# --- what is asked ----------------------------------------------------------------------------------------------------


def peers(known: Cluster, outside: Iterable[str]) -> list[Peer]:
    """Every workload endpoint, and addresses outside. Raises WhatIfProblem for one that is inside, or none."""
    found = [Peer(_name(key), key, node, workload.nets4, workload.nets6) for node, key, workload in known.workloads()]
    for text in outside:
        end = resolve(text, known)
        if end.node:
            raise WhatIfProblem(f"--with: {text} is {end.shown}; only addresses outside can be added")
        four, six = ((f"{end.addresses[v]}/{bits}",) if v in end.addresses else () for v, bits in ((4, 32), (6, 128)))
        found.append(Peer(text, None, "", four, six))
    return found


def _name(key: WorkloadKey) -> str:
    """`ns1/web`; with its interface when that is not the usual one."""
    return key.workload if key.endpoint == "eth0" else f"{key.workload}/{key.endpoint}"


def selected(known: Cluster, everyone: Iterable[Peer], namespaces: Sequence[str], expression: str) -> set[Peer] | None:
    """Those of these namespaces whose labels match; None when nothing is asked for. Raises WhatIfProblem."""
    if not namespaces and not expression:
        return None
    try:
        wanted = selector.parse(expression)
    except selector.SelectorError as error:
        raise WhatIfProblem(f"--selector: {error}") from None
    labels = {(node, key): workload.labels for node, key, workload in known.workloads()}
    found = {
        peer
        for peer in everyone
        if peer.key is not None
        and (not namespaces or peer.key.workload.partition("/")[0] in namespaces)
        and wanted.matches(labels[peer.node, peer.key])
    }
    if not found:
        raise WhatIfProblem("no endpoint is of that namespace and selector")
    return found


def asked(protocol: str, ports: Sequence[int]) -> dict[int, list[Service]] | None:
    """None: all that rules tell apart. Raises WhatIfProblem."""
    if not protocol and not ports:
        return None
    name = protocol.lower() or "tcp"
    try:
        number = protocol_number(int(name) if name.isdecimal() else name)
    except ValueError:
        raise WhatIfProblem(f"--protocol: {protocol!r} is neither a number nor a known name") from None
    if number in (packet.ICMP, packet.ICMPV6):
        if ports:
            raise WhatIfProblem("--port: ICMP has no ports")
        return {4: [services.single(1, icmp=(8, 0))], 6: [services.single(58, icmp=(128, 0))]}
    if number not in WITH_PORTS:
        if ports:
            raise WhatIfProblem(f"--port: protocol {name} has no ports")
        return {4: [services.single(number)], 6: [services.single(number)]}
    if not ports:
        raise WhatIfProblem(f"--protocol {name}: give --port as well")
    wanted = [services.single(number, port) for port in ports]
    return {4: wanted, 6: wanted}


class _Recorded(msgspec.Struct):
    """A line of a file of flows."""

    src: str
    dst: str
    proto: str | int = "tcp"
    port: int = 0
    src_port: int = 0


def flows(text: str, known: Cluster, states: tuple[State, State]) -> list[Flow]:
    """text: JSON lines {"src", "dst", "proto", "port"}; ends as `trace` takes them. Raises WhatIfProblem."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            one = msgspec.json.decode(line, type=_Recorded)
            ends = resolve(one.src, known), resolve(one.dst, known)
            for family in packet.families(*ends, None):
                about = packet.packet(
                    *ends, family, protocol=str(one.proto), port=str(one.port or ""), source_port=one.src_port
                )
                found.append(flow(known, states, about))
        except (msgspec.MsgspecError, EndProblem, packet.PacketProblem) as error:
            raise WhatIfProblem(f"flows: line {number}: {error}") from None
    return found


def flow(known: Cluster, states: tuple[State, State], about: Packet) -> Flow:
    """Of addresses. Ends that are nobody's have no policy of their own. An endpoint that would go away keeps its
    policy here."""
    ends = []
    for address in (about.src, about.dst):
        end = resolve(address, known)
        there = end.workload is not None and all((end.node, end.workload) in state.workloads for state in states)
        name = end.workload.workload if end.workload is not None else address
        ends.append(Peer(name, end.workload if there else None, end.node))
    return judge_flow(states, ends[0], ends[1], about)


# --- telling ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Told:
    """A change in both families, where it is the same in both."""

    families: tuple[int, ...]
    change: Change
    services: tuple[str, ...]


def told(report: Report) -> list[Told]:
    found: dict[object, Told] = {}
    for one in report.changes:
        words = tuple(services.shown(one.services))
        alike = tuple(word.replace("icmpv6", "icmp") for word in words)
        key = frozenset(one.sources), frozenset(one.targets), alike, one.allowed
        other = found.get(key)
        families = (one.version,) if other is None else (*other.families, one.version)
        found[key] = Told(families, one if other is None else other.change, words if other is None else other.services)
    return sorted(found.values(), key=lambda one: (-one.change.pairs, one.change.version, one.services))


def text(report: Report, changed_flows: Sequence[Flow], all_flows: int, notes: Sequence[str], limit: int) -> str:
    return "".join(f"{line}\n" for line in _lines(report, changed_flows, all_flows, notes, limit))


def _lines(
    report: Report, changed_flows: Sequence[Flow], all_flows: int, notes: Sequence[str], limit: int
) -> Iterator[str]:
    groups = told(report)
    for one in groups[:limit]:
        change = one.change
        families = " and ".join(f"IPv{version}" for version in one.families)
        yield f"{families}, {', '.join(one.services)}: would be {'ALLOWED' if change.allowed else 'DENIED'}"
        yield f"  from {_names(change.sources)}"
        yield f"  to   {_names(change.targets)}"
        yield f"  now:  {_decided(change.before)}"
        yield f"  then: {_decided(change.after)}"
    if len(groups) > limit:
        yield f"… and {len(groups) - limit} more groups of pairs: ask with --limit, --in or --selector"
    for flow in changed_flows[:limit]:
        verdict = "ALLOWED" if flow.allowed[1] else "DENIED"
        yield f"flow {flow.source.name} -> {flow.target.name}, {packet.shown(flow.packet)}: would be {verdict}"
        yield f"  now:  {_decided(flow.before)}"
        yield f"  then: {_decided(flow.after)}"
    if len(changed_flows) > limit:
        yield f"… and {len(changed_flows) - limit} more flows"
    kinds = sum(map(len, report.asked.values()))
    if report.pairs:
        yield f"{report.pairs} of {report.compared} pairs of endpoints would be treated otherwise."
    else:
        yield f"Nothing changes for {report.compared} pairs of endpoints and {kinds} kinds of packets."
    if all_flows:
        yield f"{len(changed_flows)} of {all_flows} flows would be treated otherwise."
    yield from (f"note: {note}" for note in notes)


def _names(group: Sequence[Peer]) -> str:
    names = sorted(one.name for one in group)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _decided(decider: tuple[Direction, Verdict | None]) -> str:
    direction, verdict = decider
    if verdict is None:
        return "allowed: no policy of the cluster is asked"
    word = "allowed" if verdict.action == "allow" else "denied"
    match verdict.reason:
        case Reason.POLICY_RULE:
            by = f"by tier {verdict.tier}, policy {verdict.policy}, rule {verdict.rule}"
        case Reason.TIER_DEFAULT:
            by = f"at the end of tier {verdict.tier}"
        case Reason.PROFILE_RULE:
            by = f"by profile {verdict.profile}, rule {verdict.rule}"
        case _:
            by = f"({verdict.reason})"
    return f"{word} {by} ({direction})"


def document(report: Report, changed_flows: Sequence[Flow], all_flows: int, notes: Sequence[str], limit: int) -> Json:
    return {
        "compared": report.compared,
        "changed": report.pairs,
        "changes": [
            {
                "families": list(one.families),
                "services": list(one.services),
                "verdict": "allow" if one.change.allowed else "deny",
                "from": [*sorted(peer.name for peer in one.change.sources)],
                "to": [*sorted(peer.name for peer in one.change.targets)],
                "before": _decider_document(one.change.before),
                "after": _decider_document(one.change.after),
            }
            for one in told(report)[:limit]
        ],
        "flows": {
            "compared": all_flows,
            "changed": len(changed_flows),
            "changes": [
                {
                    "from": one.source.name,
                    "to": one.target.name,
                    "packet": msgspec.to_builtins(one.packet),
                    "verdict": "allow" if one.allowed[1] else "deny",
                    "before": _decider_document(one.before),
                    "after": _decider_document(one.after),
                }
                for one in changed_flows[:limit]
            ],
        },
        "notes": list(notes),
    }


def _decider_document(decider: tuple[Direction, Verdict | None]) -> Json:
    direction, verdict = decider
    if verdict is None:
        return {"direction": str(direction), "action": "allow"}
    found: dict[str, Json] = {"direction": str(direction), "action": str(verdict.action), "reason": str(verdict.reason)}
    if verdict.policy is not None and verdict.reason is Reason.POLICY_RULE:
        found["policy"] = str(verdict.policy)
    more = {"tier": verdict.tier, "profile": verdict.profile, "rule": verdict.rule}
    return found | {name: value for name, value in more.items() if value not in ("", None)}


def host_notes(now: Cluster, then: Cluster) -> list[str]:
    """Host endpoints whose policy would be another one."""
    found = []
    for node in sorted(now.calculator.nodes):
        before, after = now.calculator.view(node), then.calculator.view(node)
        for name in sorted(before.hosts.keys() & after.hosts.keys()):
            one, two = before.hosts[name], after.hosts[name]
            policies = one.policy_keys() | two.policy_keys()
            if one != two or any(before.policies.get(key) != after.policies.get(key) for key in policies):
                found.append(name)
    return [f"host endpoints with other policy, which is not judged here: {', '.join(found)}"] if found else []
