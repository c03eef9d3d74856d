from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from libs.ipam.affinity import AffinityState, Owner
from libs.ipam.block import Block, allocate, with_owner
from libs.ipam.claims import Step, claim_step, reclaimable
from tests.unit.libs.ipam.test_block import NOW, fresh

ME = Owner.host("node-1")
MINE, OTHERS = fresh(), with_owner(fresh(), Owner.host("node-2"), NOW)
OWNERLESS = with_owner(fresh(), None, NOW)
PENDING, CONFIRMED, GOING = AffinityState.PENDING, AffinityState.CONFIRMED, AffinityState.PENDING_DELETION


@pytest.mark.parametrize(
    ("state", "block", "may_take", "step"),
    [
        (None, None, False, Step.ANNOUNCE),
        (GOING, None, False, Step.ANNOUNCE),
        (PENDING, None, False, Step.CREATE),
        (CONFIRMED, None, False, Step.CREATE),
        (None, MINE, False, Step.ANNOUNCE),
        (GOING, MINE, False, Step.ANNOUNCE),
        (PENDING, MINE, False, Step.CONFIRM),
        (CONFIRMED, MINE, False, Step.DONE),
        (None, OTHERS, False, Step.LOST),
        (PENDING, OTHERS, False, Step.LOST),
        (CONFIRMED, OTHERS, False, Step.LOST),
        (CONFIRMED, OWNERLESS, False, Step.LOST),
        (None, OTHERS, True, Step.ANNOUNCE),
        (PENDING, OTHERS, True, Step.TAKE_OVER),
    ],
)
def test_next_step_of_a_claim(state: AffinityState | None, block: Block | None, may_take: bool, step: Step) -> None:
    assert claim_step(state, block, ME, may_take=may_take) is step


def test_only_old_empty_blocks_of_other_hosts_may_be_taken() -> None:
    later = NOW + timedelta(minutes=1)
    assert reclaimable(OTHERS, ME, later)
    assert reclaimable(replace(OTHERS, claimed_at=""), ME, NOW)
    assert not reclaimable(OTHERS, ME, later - timedelta(seconds=1))
    assert not reclaimable(allocate(OTHERS, 1, "h", {})[0], ME, later)
    assert not reclaimable(MINE, ME, later)
    assert not reclaimable(OWNERLESS, ME, later)
    assert not reclaimable(with_owner(MINE, Owner.load_balancer(), NOW), ME, later)
