"""How long to wait before the next try: doubling, capped, jittered so that a thousand nodes do not return together."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random


@dataclass(slots=True)
class Backoff:
    """`next_s()` after each failure, `reset()` after a success.

    jitter: the part of the delay that is random; 0.5 gives between half of the nominal delay and all of it, 1.0 between
    zero and all. The nominal delay is first_s, then factor times more at each failure, at most cap_s.
    """

    random: Random
    first_s: float = 0.1
    cap_s: float = 30.0
    factor: float = 2.0
    jitter: float = 0.5
    failures: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.first_s <= 0 or self.cap_s < self.first_s or self.factor < 1 or not 0 <= self.jitter <= 1:
            raise ValueError(f"impossible backoff: {self}")

    def next_s(self) -> float:
        # Bounded exponent: 2.0 ** 2000 would overflow on a node that has been cut off for a week.
        nominal_s = min(self.cap_s, self.first_s * self.factor ** min(self.failures, 64))
        self.failures += 1
        return nominal_s * (1 - self.jitter * self.random.random())

    def reset(self) -> None:
        self.failures = 0
