"""While a change is applied, new flows go on: none that is allowed before and after is lost, none that is denied before
and after gets through; but for the one packet that a CPU is judging at that very moment.

The kernel puts a transaction in force by one counter. A packet takes the rules of the generation that it found when it
came to a base chain; but each look-up in a set takes the elements of the moment (nft_do_chain and nft_genmask_cur in
Linux 6.18). So a packet on its way through the rules while the counter moves can meet old rules and new elements. It is
one for each CPU and transaction at most, here: one in each family, seen in about two changes of a hundred.

What an interval set gains and loses comes into force a little after the rules of the same transaction. Where a change
does both to sets that are there already, the rules in between are neither the old nor the new ones, and more packets
may see it on a busy machine; such changes are applied here as well, but not judged.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from libs import model
from libs.nftables.model import Ruleset
from libs.policy.calculator import Calculator
from libs.testkit.packets import Packet
from tests.judges.change import calculated, draw_steps
from tests.judges.draw import NODE
from tests.judges.kernel_judge import KernelJudge, feed, running_judge
from tests.judges.path import allows
from tests.judges.reference import Reference
from tests.judges.shots import Shot, draw_shots

pytestmark = pytest.mark.kernel

DEEP = settings().max_examples > 100  # the profile for long runs
SHOTS, STEPS = 400, 3


@pytest.fixture(scope="module")
def judge() -> Iterator[KernelJudge]:
    with running_judge() as made:
        yield made


class Traffic(threading.Thread):
    """Sends the same packets again and again, each time as first packets of flows; remembers the wrong ones."""

    def __init__(self, judge: KernelJudge, shots: Sequence[Shot], expected: Sequence[bool]) -> None:
        super().__init__(name="traffic")
        self.flowing = threading.Event()
        self.rounds = 0
        self.wrong: list[tuple[Packet, str]] = []
        self._judge, self._shots, self._expected = judge, shots, expected
        self._enough = threading.Event()
        self._failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._enough.is_set() or not self.rounds:
                verdicts = self._judge.judge(self._shots, on_burst=self.flowing.set)
                self.rounds += 1
                self.wrong += [
                    (shot.packet, f"{shot}: {'lost' if want else 'got through'}")
                    for shot, got, want in zip(self._shots, verdicts, self._expected, strict=True)
                    if got is not want
                ]
        except BaseException as error:  # handed to the test
            self._failure = error
        finally:
            self.flowing.set()

    def stop(self) -> None:
        self._enough.set()
        self.join()
        if self._failure is not None:
            raise self._failure


@settings(max_examples=300 if DEEP else 10, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.integers(0, 2**32 - 1))
def test_what_a_change_does_not_concern_does_not_feel_it(judge: KernelJudge, seed: int) -> None:
    random = Random(seed)
    calculator, state = Calculator(), dict[str, model.Resource]()
    steps = draw_steps(random, STEPS)
    calculated(calculator, state, steps[0])
    view = calculator.view(NODE)
    builder = judge.load(view)
    reference = Reference(list(state.values()))
    for step in steps[1:]:
        calculated(calculator, state, step)
        old, view = view, calculator.view(NODE)
        before, reference = reference, Reference(list(state.values()))
        shots, expected = [], []
        for shot in draw_shots(random, SHOTS):
            verdict = allows(reference, shot)
            if allows(before, shot) is verdict:
                shots.append(shot)
                expected.append(verdict)
        traffic = Traffic(judge, shots, expected)
        traffic.start()
        try:
            assert traffic.flowing.wait(30)
            tables = judge.desired()
            feed(builder, old, view)
            judge.apply(builder)
        finally:
            traffic.stop()
        for version, table, now in zip((4, 6), tables, judge.desired(), strict=True):
            if networks_change(table, now):
                continue
            wrong = [text for packet, text in traffic.wrong if packet.version == version]
            assert len(wrong) <= 1, wrong


def networks_change(before: Ruleset, after: Ruleset) -> bool:
    """Whether a set of networks that both have holds others."""
    then = {one.name: one.elements for one in before.sets if one.interval}
    return any(then.get(one.name, one.elements) != one.elements for one in after.sets)
