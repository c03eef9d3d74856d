"""How often what is in the kernel is compared with what should be there. Pure."""

from __future__ import annotations

from random import Random


def shortest_s(*intervals_s: float | None) -> float:
    """Of those that are set; 0 for never, which is longer than any."""
    return min((one for one in intervals_s if one), default=0.0)


class Timer:
    """One comparison's period, which may change at any time. Each turn is up to a tenth later than the last."""

    def __init__(self, random: Random, now: float) -> None:
        self._random, self._last = random, now

    def due(self, now: float, interval_s: float) -> bool:
        """True once for each interval; never for 0."""
        if not interval_s or now - self._last <= interval_s:
            return False
        self._last = now + self._random.uniform(0, 0.1) * interval_s
        return True
