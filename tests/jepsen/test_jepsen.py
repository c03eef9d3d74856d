"""Address management under fire (docs/design/ipam-proof.md): a short run for every day, a long one for `./dev hunt`,
and mistakes put into the clients that the verdict has to find.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from tests.jepsen.mutations import MUTATIONS
from tests.jepsen.points import Loss
from tests.jepsen.report import shortfalls, table
from tests.jepsen.runner import Outcome, Plan, run

pytestmark = pytest.mark.servers

SEED = int(os.environ.get("JEPSEN_SEED", "1"))
# In every run; the others need luck or time and belong to the hunt.
QUICK = ("assign-without-block-revision", "create-without-absence", "release-ignores-sequence")


def show(outcome: Outcome) -> str:
    """Printed by pytest when the test fails: seed, counters, what was wrong."""
    return table(outcome) + "\n" + "\n".join(f"{problem.kind}: {problem.text}" for problem in outcome.problems[:30])


@pytest.mark.timeout(400)
def test_short_run_gives_no_address_twice_and_loses_none(crash_etcd: Path) -> None:
    print(f"JEPSEN_SEED={SEED}")
    plan = Plan(
        seed=SEED,
        operations=600,
        at_most_s=150,
        kills=2,
        slots=6,
        life_s=(2.0, 5.0),
        calm_s=(0.5, 2.0),
        etcd=crash_etcd,
    )
    outcome = run(plan)
    assert outcome.problems == [], show(outcome)
    assert outcome.history.crashes.total() > 0, show(outcome)
    assert outcome.nemesis["killed"] >= 2, show(outcome)
    assert outcome.judgement.allocations > 100, show(outcome)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.hunt) for name in MUTATIONS]
)
@pytest.mark.timeout(400)
def test_mistake_is_found(name: str, crash_etcd: Path) -> None:
    """Many answers get lost here, since some mistakes only show then. A mistake is given six runs:
    one in ten shows nothing, since too few wrong releases meet an address that has another owner.
    """
    breaks = name == "writes-are-repeated"  # shows only when members do
    for attempt in range(6):
        outcome = run(
            Plan(
                seed=SEED + attempt,
                operations=600,
                at_most_s=60,
                kills=6 if breaks else 0,
                slots=6,
                life_s=(2.0, 6.0),
                calm_s=(0.2, 1.0) if breaks else (1e6, 1e6),
                loss=Loss(0.01, 0.05, 0.02),
                mutation=name,
                etcd=crash_etcd,
            )
        )
        if outcome.problems:
            print(f"{name}: {len(outcome.problems)} problems in run {attempt + 1}, first: {outcome.problems[0]}")
            return
    pytest.fail(f"{name}: {MUTATIONS[name].what}: not found\n{show(outcome)}")


@pytest.mark.hunt
@pytest.mark.timeout(5400)
def test_hundred_thousand_operations_give_no_address_twice_and_lose_none(crash_etcd: Path) -> None:
    seed = Random().getrandbits(32)
    print(f"seed {seed}")
    outcome = run(
        Plan(
            seed=seed, recorded=True, operations=100_000, at_most_s=5000, crashes_each=20, kills=50, etcd=crash_etcd
        )
    )  # fmt: skip
    print(table(outcome))
    assert outcome.problems == [], show(outcome)
    assert shortfalls(outcome) == []
