"""Delays: doubling, capped, jittered; periods with jitter."""

from __future__ import annotations

from random import Random

import pytest

from libs.runtime.backoff import Backoff
from libs.runtime.timers import every


def test_delays_double_up_to_the_cap_and_start_again_after_a_success() -> None:
    backoff = Backoff(Random(1), first_s=1, cap_s=10, jitter=0)
    assert [backoff.next_s() for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    backoff.reset()
    assert backoff.next_s() == 1


def test_jitter_takes_at_most_its_part_of_the_delay() -> None:
    backoff = Backoff(Random(1), first_s=8, cap_s=8, jitter=0.5)
    delays = [backoff.next_s() for _ in range(1000)]
    assert 4 <= min(delays) < 4.1
    assert 7.9 < max(delays) <= 8


def test_a_week_of_failures_is_not_an_overflow() -> None:
    backoff = Backoff(Random(1))
    backoff.failures = 10**7
    assert backoff.next_s() <= 30


@pytest.mark.parametrize("wrong", [{"first_s": 0}, {"first_s": 5, "cap_s": 1}, {"factor": 0.5}, {"jitter": 1.5}])
def test_impossible_backoff_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="impossible backoff"):
        Backoff(Random(1), **wrong)


async def turns(count: int, **options: bool) -> list[float]:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async for turn in every(10, Random(1), jitter=0.2, sleep=sleep, **options):
        if turn == count - 1:
            break
    return slept


async def test_every_waits_a_jittered_period_before_each_turn() -> None:
    slept = await turns(500)
    assert len(slept) == 500
    assert 8 <= min(slept) < 8.1
    assert 11.9 < max(slept) <= 12
    assert len(await turns(5, at_once=True)) == 4


async def test_period_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="impossible period"):
        await anext(every(0, Random(1)))
