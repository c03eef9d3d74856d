"""Two BGP sessions and the TCP between them, in memory, with a clock that only the test moves.

A network of one rule: what is sent on one direction of one connection arrives in that order. Everything else is the
test's: which connection comes next, in what pieces, what breaks, how late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from random import Random

from services.bgp.core.paths import Change, Family
from services.bgp.core.session import actions as act
from services.bgp.core.session.connection import Timing
from services.bgp.core.session.negotiation import Restart
from services.bgp.core.session.session import Session
from services.bgp.core.session.states import State
from services.bgp.core.settings import PeerKind, PeerSettings

ADDRESSES = (ip_address("10.0.0.1"), ip_address("10.0.0.2"))


def settings(end: int, *, asn: int = 64512, peer_asn: int | None = None, **changes: object) -> PeerSettings:
    """What end 0 or 1 has configured for the other."""
    values: dict[str, object] = {
        "name": f"Node_{ADDRESSES[1 - end]}",
        "kind": PeerKind.NODE,
        "address": ADDRESSES[1 - end],
        "remote_as": asn if peer_asn is None else peer_asn,
        "local_as": asn,
    }
    return PeerSettings(**(values | changes))  # type: ignore[arg-type]


@dataclass
class End:
    session: Session
    happened: list[act.Action] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    up: bool = False
    kept: list[tuple[Family, ...]] = field(default_factory=list)  # of each `Down`

    def take(self, kind: type[act.Action]) -> list[act.Action]:
        """What happened of this kind, in order."""
        return [one for one in self.happened if isinstance(one, kind)]


@dataclass
class Pipe:
    """One TCP connection. numbers: what each end calls it, None as long as it does not know it, or after it closed it.
    queues[i]: on the way to end i, None is the end of the stream. fresh: the other side has not accepted yet."""

    numbers: list[int | None]
    queues: tuple[deque[bytes | None], deque[bytes | None]] = field(default_factory=lambda: (deque(), deque()))
    opener: int = 0
    fresh: bool = True


class Pair:
    def __init__(
        self,
        first: PeerSettings | None = None,
        second: PeerSettings | None = None,
        *,
        seed: int = 0,
        router_ids: tuple[int, int] = (1, 2),
        timing: Timing | None = None,
        restart: Restart | None = None,
    ) -> None:
        self.now = 1000.0
        self.pipes: list[Pipe] = []
        self.check: Callable[[], None] = lambda: None
        self.random = Random(seed)
        both = (first or settings(0), second or settings(1))
        self.ends = tuple(
            End(Session(both[i], router_ids[i], Random(seed + i), self.now, timing=timing, restart=restart))
            for i in (0, 1)
        )

    def session(self, end: int) -> Session:
        return self.ends[end].session

    def do(self, end: int, actions: list[act.Action]) -> None:
        """Carry out what a session asked for."""
        mine = self.ends[end]
        for action in actions:
            mine.happened.append(action)
            match action:
                case act.Connect(number):
                    pipe = Pipe([None, None], opener=end)
                    pipe.numbers[end] = number
                    self.pipes.append(pipe)
                case act.Send(number, data):
                    assert data
                    self._pipe(end, number).queues[1 - end].append(data)
                case act.Close(number):
                    pipe = self._pipe(end, number)
                    pipe.numbers[end] = None
                    pipe.queues[end].clear()
                    pipe.queues[1 - end].append(None)
                case act.Established():
                    assert not mine.up, "up twice"
                    mine.up = True
                case act.Down(kept=kept):
                    assert mine.up, "down without being up"
                    mine.up = False
                    mine.kept.append(kept)
                case act.Received(changes):
                    assert mine.up
                    assert changes
                    mine.changes += changes
                case _:
                    pass
        assert mine.up == (mine.session.state is State.ESTABLISHED)
        self._tidy()
        self.check()

    def _tidy(self) -> None:
        self.pipes = [pipe for pipe in self.pipes if pipe.numbers != [None, None] or any(pipe.queues)]

    def _pipe(self, end: int, number: int) -> Pipe:
        [pipe] = [pipe for pipe in self.pipes if pipe.numbers[end] == number]
        return pipe

    def start(self) -> None:
        for end in (0, 1):
            self.do(end, self.session(end).start(self.now))

    # --- what the network may do next ---

    def choices(self) -> list[tuple[str, Pipe, int]]:
        """("accept" | "deliver", connection, receiving end)."""
        found: list[tuple[str, Pipe, int]] = []
        for pipe in self.pipes:
            if pipe.fresh:
                found.append(("accept", pipe, 1 - pipe.opener))
            else:
                found += [("deliver", pipe, end) for end in (0, 1) if pipe.queues[end]]
        return found

    def play(self, choice: tuple[str, Pipe, int], piece: int | None = None) -> None:
        """piece: deliver that many octets only, the rest stays."""
        what, pipe, end = choice
        if what == "accept":
            self._accept(pipe, end)
            return
        data = pipe.queues[end].popleft()
        number = pipe.numbers[end]
        if data is None:
            if number is not None:
                pipe.numbers[end] = None
                self.do(end, self.session(end).closed(number, self.now))
            self._tidy()
            return
        if piece is not None and 0 < piece < len(data):
            pipe.queues[end].appendleft(data[piece:])
            data = data[:piece]
        if number is not None:
            self.do(end, self.session(end).received(number, data, self.now))
        self._tidy()

    def _accept(self, pipe: Pipe, end: int) -> None:
        pipe.fresh = False
        opener = pipe.opener
        if pipe.numbers[opener] is None:  # given up meanwhile
            self.pipes.remove(pipe)
            return
        # The number is known only from the answer, so the actions wait for it.
        number, actions = self.session(end).accepted(self.now)
        pipe.numbers[end] = number
        self.do(end, actions)
        mine = pipe.numbers[opener]
        if mine is not None:
            self.do(opener, self.session(opener).connected(mine, self.now))

    def refuse(self, pipe: Pipe) -> None:
        number = pipe.numbers[pipe.opener]
        self.pipes.remove(pipe)
        if number is not None:
            self.do(pipe.opener, self.session(pipe.opener).closed(number, self.now, "connection refused"))

    def cut(self, pipe: Pipe) -> None:
        """Both ends notice at once; what was on the way is lost."""
        self.pipes.remove(pipe)
        for end, number in enumerate(pipe.numbers):
            if number is not None:
                self.do(end, self.session(end).closed(number, self.now, "connection reset by peer"))

    def advance(self, seconds: float) -> None:
        """Time passes; timers fire in their order."""
        until = self.now + seconds
        while True:
            times = [time for one in self.ends if (time := one.session.deadline()) is not None]
            self.now = min([until, *(max(time, self.now) for time in times)])
            due = [i for i in (0, 1) if (at := self.session(i).deadline()) is not None and at <= self.now]
            if not due or self.now >= until:
                break
            for end in due:
                self.do(end, self.session(end).tick(self.now))
            self.now += 0.001
        self.now = max(self.now, until)

    def run(self, seconds: float) -> None:
        """A good network while time passes."""
        until = self.now + seconds
        while self.now < until:
            while choices := self.choices():
                self.play(choices[0])
            self.advance(min(1, until - self.now))

    def replaced(self, end: int, fresh: Pair) -> Pair:
        """One end lost power and is back with an empty memory, as the same end of `fresh`; the other did not notice."""
        for pipe in self.pipes:
            pipe.numbers[end] = None
            for queue in pipe.queues:
                queue.clear()
        fresh.now, fresh.pipes = self.now, self.pipes
        fresh.ends = (self.ends[0], fresh.ends[1]) if end else (fresh.ends[0], self.ends[1])
        fresh.do(end, fresh.session(end).start(fresh.now))
        return fresh

    def settle(self, limit_s: float = 1000) -> None:
        """A good network: everything arrives at once, time passes in between, until both are up on one connection."""
        until = self.now + limit_s
        while self.now < until:
            while choices := self.choices():
                self.play(choices[0])
            if all(one.up for one in self.ends) and len(self.pipes) == 1:
                return
            self.advance(0.5)
        raise AssertionError(f"not up after {limit_s} s: {[one.session.status for one in self.ends]}")
