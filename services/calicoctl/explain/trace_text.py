"""A trace for people, one line a step, and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from libs.bus.explain import KernelRule, KernelVerdict
from libs.policy.output import Action
from libs.policy.path import Decision, Stage, Step
from services.calicoctl.documents import Json
from services.calicoctl.explain.packet import shown
from services.calicoctl.explain.trace import HopTrace, Trace

WORDS = {Action.ALLOW.value: "allowed", Action.DENY.value: "denied", "": "goes on"}
_READ_BACK = "evaluated the ruleset read back from the kernel"


def text(trace: Trace, *, staged: bool = False) -> str:
    return "".join(f"{line}\n" for line in _lines(trace, staged))


def _lines(trace: Trace, staged: bool) -> Iterator[str]:
    packet = trace.packet
    verdict = "ALLOWED" if trace.allowed else "DENIED"
    if_staged = " if staged policies were enforced" if staged else ""
    ends = f"{trace.source.shown} ({packet.src}) -> {trace.target.shown} ({packet.dst})"
    yield f"{ends}, {shown(packet)}: {verdict}{if_staged}"
    for hop in trace.hops:
        if not hop.steps and not hop.silent and hop.answer is None:
            yield f"  {hop.hop.node} ({hop.hop.role}): no policy is asked"
            continue
        yield f"  {hop.hop.node} ({hop.hop.role}){_by(hop, trace)}"
        if not hop.steps:
            yield "    no policy is asked"
        for place, step in enumerate(hop.steps):
            yield from _step(step, staged)
            rule = _decider(hop, place)
            if rule is not None:
                yield f"        kernel's rule {rule.comment!r} in chain {rule.chain}{_counted(rule)}"
        if hop.differs:
            yield from _differs(hop, trace)
        yield f"    kernel: {_kernel(hop, staged)}"
    yield from (f"  note: {note}" for note in trace.notes)


def _by(hop: HopTrace, trace: Trace) -> str:
    if hop.answer is None:
        return f", calculated from the datastore at revision {trace.revision}"
    if hop.answer.error:
        return f", calculated from the datastore at revision {trace.revision}: {hop.answer.error}"
    return f", as the node has it at revision {hop.rev}"


def _step(step: Step, staged: bool) -> Iterator[str]:
    decision = step.decided(staged=staged)
    where = ("host endpoint " if step.host else "") + step.endpoint
    stage = "" if step.stage is Stage.NORMAL else f", {step.stage}"
    yield f"    {step.direction} of {where}{stage}: {WORDS.get(decision.action, decision.action)} {_decided(decision)}"
    for visit in decision.visits:
        if visit.ended:
            continue
        how = f"passed on by rule {visit.rule} of {visit.policy}" if visit.policy is not None else (
            f"none of its {visit.asked} polic{'y' if visit.asked == 1 else 'ies'} matched, default action Pass"
        )  # fmt: skip
        yield f"        before: tier {visit.tier}: {how}"
    for met in decision.logged:
        yield f"        logged by {met.rule}"
    other = step.decision if staged and step.staged is not None else step.staged
    if other is not None:
        name = "as enforced now" if staged else "if staged policies were enforced"
        yield f"        {name}: {WORDS.get(other.action, other.action)} {_decided(other)}"


def _decided(decision: Decision) -> str:
    if decision.policy:
        return f"by tier {decision.tier}, policy {decision.policy}, rule {decision.rule}"
    if decision.profile:
        return f"by profile {decision.profile}, rule {decision.rule}"
    if decision.tier:
        asked = next((one.asked for one in decision.visits if one.ended), 0)
        return f"at the end of tier {decision.tier}: none of its {asked} polic{'y' if asked == 1 else 'ies'} matched"
    if decision.failsafe is not None:
        return f"as failsafe port {decision.failsafe.protocol}/{decision.failsafe.port}"
    return f"({decision.reason})"


def _decider(hop: HopTrace, place: int) -> KernelRule | None:
    kernel = hop.answer.kernel if hop.answer is not None else None
    if kernel is None or place >= len(kernel.deciders):
        return None
    found = kernel.deciders[place]
    return None if found is None else kernel.rules[found]


def _counted(rule: KernelRule) -> str:
    if rule.packets is None:
        return ""
    return f": {rule.packets} packet{'' if rule.packets == 1 else 's'} so far"


def counted(trace: Trace) -> str:
    """What the rule that decided last in the kernel has counted; "" where none is known."""
    deciders = [rule for hop in trace.hops for place in range(len(hop.steps)) if (rule := _decider(hop, place))]
    return _counted(deciders[-1]).removeprefix(": ") if deciders else ""


def kernel_words(trace: Trace, *, staged: bool = False) -> str:
    """What is said of the kernels on the way."""
    return "; ".join(_kernel(hop, staged) for hop in trace.hops)


def _differs(hop: HopTrace, trace: Trace) -> Iterator[str]:
    yield f"    the datastore is further, at revision {trace.revision}:"
    for step in hop.stored:
        words = WORDS.get(step.decision.action, step.decision.action)
        yield f"        {step.direction} of {step.endpoint}: {words} {_decided(step.decision)}"


def _kernel(hop: HopTrace, staged: bool) -> str:
    if hop.silent:
        return f"not asked: {hop.silent}"
    kernel = hop.answer.kernel if hop.answer is not None else None
    if kernel is None:
        return "not asked"
    if kernel.accepted is None:
        return f"cannot tell: {kernel.unknown}"
    now = " with what is enforced now" if staged else ""
    if hop.agrees:
        return f"agrees{now} ({_READ_BACK}){f'; {kernel.unknown}' if kernel.unknown else ''}"
    rule = kernel.rules[-1] if kernel.rules else None
    by = f" by rule {rule.comment!r} in chain {rule.chain}" if rule is not None else ""
    failures = "".join(f"; the node reports {name}: {reason}" for name, reason in sorted(hop.failures.items()))
    verb = "lets the packet through" if kernel.accepted else f"drops the packet{by}"
    return f"DISAGREES: it {verb} ({_READ_BACK}){failures}"


def document(traces: Sequence[Trace]) -> Json:
    return [entry(one) for one in traces]


def entry(trace: Trace) -> dict[str, Json]:
    return {
        "from": trace.source.shown,
        "to": trace.target.shown,
        "packet": msgspec.to_builtins(trace.packet),
        "verdict": "allow" if trace.allowed else "deny",
        "revision": trace.revision,
        "notes": list(trace.notes),
        "hops": [_hop(hop) for hop in trace.hops],
    }


def _hop(hop: HopTrace) -> Json:
    found: dict[str, Json] = {
        "node": hop.hop.node,
        "role": hop.hop.role,
        "allowed": hop.allowed,
        "steps": [_step_document(step) for step in hop.steps],
    }
    if hop.answer is not None and not hop.answer.error:
        found["revision"] = hop.rev
        found["interfaces"] = {"in": hop.answer.incoming, "out": hop.answer.outgoing}
    if hop.differs:
        found["datastore"] = [_step_document(step) for step in hop.stored]
    found["kernel"] = _kernel_document(hop, hop.answer.kernel if hop.answer is not None else None)
    if hop.failures:
        found["failures"] = dict(hop.failures)
    return found


def _step_document(step: Step) -> Json:
    told = msgspec.to_builtins(step)
    told["policy"] = step.decision.policy
    return told  # type: ignore[no-any-return]


def _kernel_document(hop: HopTrace, kernel: KernelVerdict | None) -> Json:
    if kernel is None:
        return {"agrees": None, "reason": hop.silent or "not asked"}
    return {"agrees": hop.agrees, **msgspec.to_builtins(kernel)}
