"""When the kernel is compared again."""

from __future__ import annotations

from random import Random

import pytest

from services.felix.core.refresh import Timer, shortest_s


@pytest.mark.parametrize(
    ("intervals", "shortest"),
    [((180.0, None), 180.0), ((180.0, 90.0), 90.0), ((30.0, 90.0), 30.0), ((0.0, 90.0), 90.0), ((180.0, 0.0), 180.0),
     ((0.0, 0.0), 0.0), ((0.0, None), 0.0)],
)  # fmt: skip
def test_the_shorter_interval_counts_and_never_is_the_longest(
    intervals: tuple[float | None, ...], shortest: float
) -> None:
    assert shortest_s(*intervals) == shortest


def test_a_timer_is_due_once_in_each_interval_whichever_holds_at_the_moment() -> None:
    timer = Timer(Random(1), 100.0)
    assert not timer.due(1e9, 0.0), "never"
    assert not timer.due(110.0, 10.0)
    assert timer.due(110.1, 10.0)
    assert not timer.due(110.2, 10.0)
    assert not timer.due(120.1, 10.0)
    assert timer.due(121.2, 10.0), "at most a tenth later"
    assert timer.due(123.0, 0.5), "a shorter one holds at once"
