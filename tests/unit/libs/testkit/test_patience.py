"""Time to wait in, of which a machine that stands still uses nothing up."""

from __future__ import annotations

import pytest

from libs.testkit import patience
from libs.testkit.patience import Allowance


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_a_pause_counts_as_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(patience, "time", clock)
    allowance = Allowance(3 * Allowance.STEP_S)
    assert allowance.step() == Allowance.STEP_S
    clock.now += 1000
    assert allowance.step() == Allowance.STEP_S
    clock.now += Allowance.STEP_S / 2  # what was waited for came early
    assert allowance.step() == pytest.approx(Allowance.STEP_S)
    clock.now += Allowance.STEP_S
    assert allowance.step() == pytest.approx(Allowance.STEP_S / 2)
    clock.now += Allowance.STEP_S
    assert allowance.step() == 0
    assert allowance.step() == 0
