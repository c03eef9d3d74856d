"""Typhas that share readers, each deciding alone by what it hears: counts become even, calmly, and stay so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from libs.bus import wire
from libs.bus.subjects import Role
from services.typha.core.balance import (
    ASKED_AGAIN_S,
    LEFT_ALONE_S,
    LISTEN_S,
    MISSED_BEATS_S,
    MOVE_S,
    PACE_S,
    SETTLE_S,
    Balance,
    Move,
    Party,
    next_target,
)

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=6).map(lambda row: {f"t{i}": n for i, n in enumerate(row)})


def beat(instance: str, *, leaving: bool = False, age_s: float = 0.1, protocol: int = 1) -> wire.Beat:
    epoch = wire.Epoch(instance, 1, 7)
    return wire.Beat(epoch=epoch, rev=1, etcd_age_s=age_s, head=1, leaving=leaving, protocol=protocol)


class World:
    """Steps of 50 ms. Each typha ticks at times of its own, more than once a second too; reports and beats come late.
    stubborn: readers that never move.
    """

    def __init__(self, counts: Sequence[int], seed: int, delay_s: float, stubborn: int = 0) -> None:
        self.random, self.delay_s, self.now = Random(seed), delay_s, 0.0
        self.balances: dict[str, Balance] = {}
        self.ticks: dict[str, float] = {}
        self.leaving: set[str] = set()
        self.able_at: dict[str, float] = {}  # from when on, by whoever knows all
        self.where: dict[Party, str] = {}
        self.stubborn: set[Party] = set()
        self.reports: dict[Party, float] = {}  # due at
        self.wire: list[tuple[float, str, Party | wire.Beat]] = []  # arrives at, to whom
        self.arrivals: list[tuple[float, Party, str]] = []  # of movers, at their new typha
        self.moves: list[tuple[float, str, Move]] = []
        for index in range(len(counts)):
            self.start(f"t{index}")
        for index, count in enumerate(counts):
            for number in range(count):
                party = self.random.choice(list(Role)), f"n{index}-{number}"
                self.where[party] = f"t{index}"
                self.reports[party] = self.random.uniform(0, 10)
        self.stubborn = set(self.random.sample(sorted(self.where), min(stubborn, len(self.where))))

    def start(self, name: str) -> None:
        self.balances[name] = Balance(name, self.now)
        self.ticks[name] = self.now + self.random.uniform(0, 1)
        self.able_at[name] = self.now

    def own(self, name: str) -> list[Party]:
        return [party for party, instance in self.where.items() if instance == name]

    def late(self) -> float:
        return self.now + self.random.uniform(0, self.delay_s)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.05
            self.step()

    def step(self) -> None:
        due = [one for one in self.arrivals if one[0] <= self.now]
        self.arrivals = [one for one in self.arrivals if one[0] > self.now]
        for _, party, target in due:
            if target in self.balances:
                self.where[party] = target
                self.reports[party] = self.now
        for party, at in self.reports.items():
            if at <= self.now:
                self.reports[party] = self.now + 10.0
                self.wire += [(self.late(), name, party) for name in self.balances]
        arrived = [one for one in self.wire if one[0] <= self.now]
        self.wire = [one for one in self.wire if one[0] > self.now]
        for _, name, message in arrived:
            balance = self.balances.get(name)
            if balance is None:
                continue
            if isinstance(message, wire.Beat):
                balance.beat(message, self.now)
            else:
                balance.report(message, self.where[message], self.now)
        for name, balance in self.balances.items():
            if self.ticks[name] <= self.now:
                self.ticks[name] = self.now + self.random.uniform(0.3, 1.0)
                self.wire += [(self.late(), other, beat(name, leaving=name in self.leaving)) for other in self.balances]
                if name not in self.leaving:
                    self.moved(name, balance.even_out(self.own(name), self.now))

    def moved(self, name: str, move: Move | None) -> None:
        if move is None:
            return
        assert move.target in self.balances, "to a typha that never was"
        assert move.target not in self.leaving or self.now - self.able_at[move.target] < self.delay_s + PACE_S
        assert self.where[move.party] == name, "a reader of another one"
        self.moves.append((self.now, name, move))
        if move.party not in self.stubborn:
            self.arrivals.append((self.now + self.random.uniform(0, 1 + self.delay_s), move.party, move.target))

    def spread(self) -> int:
        counts = Counter(self.where.values())
        numbers = [counts[name] for name in self.balances if name not in self.leaving]
        return max(numbers) - min(numbers)

    def check_pace(self) -> None:
        last: dict[str, float] = {}
        for at, name, _ in self.moves:
            assert at - last.get(name, -PACE_S) >= PACE_S - 1e-6, f"{name} moved two within a second"
            last[name] = at


@given(counts=COUNTS)
def test_moves_follow_from_counts_until_they_differ_by_one_and_no_longer(counts: dict[str, int]) -> None:
    counts, steps = dict(counts), 0
    while (donors := [name for name in counts if next_target(counts, name) is not None]) != []:
        donor = donors[steps % len(donors)]
        target = next_target(counts, donor)
        assert target is not None
        assert counts[donor] >= counts[target] + 2
        counts[donor], counts[target], steps = counts[donor] - 1, counts[target] + 1, steps + 1
        assert steps <= 400
    assert max(counts.values()) - min(counts.values()) <= 1


@given(counts=COUNTS)
def test_all_may_move_at_once_without_filling_the_same_place(counts: dict[str, int]) -> None:
    """None of the receivers gets more than its share, whoever has it from."""
    targets = [target for name in counts if (target := next_target(counts, name)) is not None]
    mean = -(-sum(counts.values()) // len(counts))
    for target in set(targets):
        donors = [name for name in counts if next_target(counts, name) == target]
        assert counts[target] + len(donors) <= mean


@given(count=st.integers(0, 40), more=st.lists(st.booleans(), min_size=1, max_size=6))
def test_counts_that_differ_by_one_are_even(count: int, more: list[bool]) -> None:
    counts = {f"t{index}": count + one for index, one in enumerate(more)}
    assert all(next_target(counts, name) is None for name in counts)


@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
    delay_s=st.sampled_from((0.0, 0.3, 2.0)),
)
def test_counts_become_even_one_a_second_and_then_nothing_moves(counts: list[int], seed: int, delay_s: float) -> None:
    world = World(counts, seed, delay_s)
    world.run(LISTEN_S + sum(counts) * PACE_S + 25)
    world.check_pace()
    assert world.spread() <= 1
    moved = len(world.moves)
    needed = sum(max(0, count - sum(counts) // len(counts)) for count in counts)
    assert moved <= 2 * needed, "readers go to and fro"
    world.run(30)
    assert len(world.moves) == moved, "even, and still moving"


@given(
    count=st.integers(0, 12),
    more=st.lists(st.integers(0, 1), min_size=1, max_size=4),
    seed=st.integers(0, 10**6),
)
def test_nothing_moves_when_counts_are_even(count: int, more: list[int], seed: int) -> None:
    world = World([count + one for one in more], seed, 0.5)
    world.run(40)
    assert world.moves == []


@given(count=st.integers(1, 20), seed=st.integers(0, 10**6), stubborn=st.integers(1, 20))
def test_readers_that_do_not_move_are_asked_once_and_left_alone(count: int, seed: int, stubborn: int) -> None:
    world = World([count, 0], seed, 0.3, stubborn)
    world.run(LISTEN_S + count * PACE_S + MOVE_S + 40)
    world.check_pace()
    asked = Counter(move.party for _, _, move in world.moves)
    assert all(asked[party] <= 1 for party in world.stubborn)
    willing = count - len(world.stubborn)
    assert len(world.own("t1")) >= min(willing, count // 2)


@given(counts=st.lists(st.integers(1, 10), min_size=2, max_size=3), seed=st.integers(0, 10**6))
def test_a_typha_that_joins_gets_its_share_and_only_when_it_has_settled(counts: list[int], seed: int) -> None:
    world = World(counts, seed, 0.3)
    world.run(LISTEN_S + sum(counts) + 25)
    before = len(world.moves)
    world.start("late")
    joined = world.now
    world.run(SETTLE_S - 0.1)
    assert not world.own("late")
    assert len(world.moves) == before
    world.run(sum(counts) + 25)
    assert world.spread() <= 1
    assert all(at >= joined + SETTLE_S for at, _, _ in world.moves[before:])


@given(counts=st.lists(st.integers(0, 10), min_size=2, max_size=3), seed=st.integers(0, 10**6))
def test_nobody_is_sent_to_a_typha_that_leaves_and_its_own_are_spread(counts: list[int], seed: int) -> None:
    world = World(counts, seed, 0.3)
    world.run(LISTEN_S + sum(counts) + 25)
    world.leaving.add("t0")
    world.able_at["t0"] = world.now
    world.run(PACE_S + 1)
    balance, before = world.balances["t0"], len(world.moves)
    while (move := balance.hand_over(world.own("t0"), world.now)) is not None:
        world.moved("t0", move)
        world.run(0.2)
    world.run(25)
    assert world.own("t0") == []
    assert all(move.target != "t0" for _, _, move in world.moves[before:])
    assert world.spread() <= 1


def listening(now: float = 0.0) -> tuple[Balance, list[Party]]:
    """Ten readers here, and the time of listening is over."""
    balance = Balance("a", now - LISTEN_S)
    parties = [(Role.FELIX, f"n{number}") for number in range(10)]
    for party in parties:
        balance.report(party, "a", now)
    return balance, parties


def test_only_typhas_that_can_serve_get_readers() -> None:
    for bad in (beat("b", leaving=True), beat("b", age_s=9.0), beat("b", protocol=2), beat("a")):
        balance, parties = listening()
        for second in range(10):
            balance.beat(bad, second)
        assert balance.even_out(parties, 9.0) is None
        assert balance.hand_over(parties, 9.0) is None
    balance, parties = listening()
    for second in range(10):
        balance.beat(beat("b"), second)
    assert balance.even_out(parties, 9.0 + MISSED_BEATS_S + 0.1) is None  # it fell silent
    assert balance.even_out(parties, 9.0) == Move((Role.FELIX, "n0"), "b")


def test_a_new_typha_moves_nobody_before_it_knows_the_others_readers() -> None:
    balance = Balance("a", 0.0)
    for second in range(10):
        balance.beat(beat("b"), second)
        balance.report((Role.FELIX, "n1"), "a", second)
        balance.report((Role.BGP, "n1"), "a", second)
        assert balance.even_out([(Role.FELIX, "n1"), (Role.BGP, "n1")], second) is None


def test_a_reader_that_did_not_move_may_be_asked_again_much_later() -> None:
    balance, parties = listening()
    now = 0.0
    asked: list[float] = []
    while now < LEFT_ALONE_S + 40:
        balance.beat(beat("b"), now)
        for party in parties:
            balance.report(party, "a", now)
        move = balance.even_out(parties, now)
        if move is not None and move.party == (Role.FELIX, "n0"):
            asked.append(now)
        now += 1.0
    assert len(asked) == 2
    assert asked[1] - asked[0] >= LEFT_ALONE_S


def test_a_typha_that_leaves_asks_again_soon_and_also_those_that_did_not_move_before() -> None:
    balance, parties = listening()
    only = parties[:1]
    for second in range(10):
        balance.beat(beat("b"), second)
    assert balance.even_out(only, 9.0) == Move(only[0], "b")
    asked: list[float] = []
    now = 9.0
    while now < 9.0 + MOVE_S + 30:
        now += 0.5
        balance.beat(beat("b"), now)
        for party in parties:
            balance.report(party, "a", now)
        if balance.hand_over(only, now) is not None:
            asked.append(now)
            assert balance.pending(only, now)
    assert asked == [9.0 + MOVE_S, 9.0 + MOVE_S + ASKED_AGAIN_S, 9.0 + MOVE_S + 2 * ASKED_AGAIN_S]
    assert not balance.pending(only, now)


def test_a_reader_that_never_reports_holds_a_leaving_typha_up_for_some_seconds_only() -> None:
    balance, _ = listening()
    silent = [(Role.FELIX, "new")]
    balance.beat(beat("b"), 9.0)
    assert balance.hand_over(silent, 9.0) is None
    assert balance.pending(silent, 9.0)
    assert balance.pending(silent, 9.0 + MOVE_S - 0.1)
    assert not balance.pending(silent, 9.0 + MOVE_S)
