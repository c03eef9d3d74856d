"""A run in Markdown, and what it falls short of."""

from __future__ import annotations

from collections import Counter

from tests.jepsen.points import KINDS, WHEN
from tests.jepsen.runner import Outcome

CONFLICTS = 0.2


def shortfalls(outcome: Outcome) -> list[str]:
    """Quotas of the plan that were not met; none for a run without quotas."""
    plan, history = outcome.plan, outcome.history
    found = []
    if not plan.recorded:
        return found
    if len(history.operations) < plan.operations:
        found.append(f"{len(history.operations)} operations of {plan.operations}")
    if outcome.nemesis["killed"] < plan.kills:
        found.append(f"members killed {outcome.nemesis['killed']} times of {plan.kills}")
    if history.conflict_share < CONFLICTS:
        found.append(
            f"{100 * history.conflict_share:.1f} % of the compare-and-swaps refused, not {100 * CONFLICTS:.0f}"
        )
    found += [
        f"crash point {kind}, {when}: hit {history.crashes[kind, when]} times of {plan.crashes_each}"
        for kind in KINDS
        for when in WHEN
        if history.crashes[kind, when] < plan.crashes_each
    ]
    return found


def table(outcome: Outcome) -> str:
    history, judgement, nemesis = outcome.history, outcome.judgement, outcome.nemesis
    answers = Counter(operation.outcome for operation in history.operations.values())
    kinds = Counter(operation.kind for operation in history.operations.values())
    problems = Counter(problem.kind for problem in outcome.problems)
    swaps = {
        answer: sum(n for (_, ok), n in history.transactions.items() if ok is answer) for answer in (True, False, None)
    }
    lines = [
        f"- operations {len(history.operations)}: answered {answers['ok']}, refused {answers['fail']},"
        f" without an answer {answers['info']}; by kind: {', '.join(f'{k} {n}' for k, n in kinds.most_common())}",
        f"- compare-and-swaps: {swaps[True]} succeeded, {swaps[False]} refused ({100 * history.conflict_share:.1f} %),"
        f" {swaps[None]} without an answer",
        f"- client processes {history.starts}: {history.crashes.total()} killed themselves at a crash point,"
        f" {outcome.outside_kills} were killed from outside",
        f"- etcd members: killed {nemesis['killed']} times, paused {nemesis['paused']}; the leader"
        f" {nemesis['leader hit']} times, two of three at once {nemesis['majority lost']}",
        f"- allocations acknowledged {judgement.allocations}; at the end {len(judgement.expected)} held,"
        f" {len(judgement.collectable)} left to garbage collection; revisions audited {outcome.revisions}",
        f"- duplicates {problems['duplicate']}, losses {problems['lost']}, problems in all {problems.total()}",
        f"- `calicoctl ipam check`: {outcome.check}",
        f"- seed {outcome.plan.seed}, {outcome.elapsed_s:.0f} s",
        "",
        "| store operation | killed before | after | swaps succeeded | refused | no answer |",
        "|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        hits = " | ".join(str(history.crashes[kind, when]) for when in WHEN)
        swapped = [history.transactions[kind, answer] for answer in (True, False, None)]
        lines.append(f"| {kind} | {hits} | {' | '.join(str(n) if any(swapped) else '' for n in swapped)} |")
    return "\n".join(lines)
