"""Periodic work with jitter: `async for _ in every(90, random): resync()`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random


async def every(
    period_s: float,
    random: Random,
    *,
    jitter: float = 0.1,
    at_once: bool = False,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AsyncIterator[int]:
    """Counts 0, 1, 2… for ever, one after each period. The caller's own work comes on top, so turns never pile up.

    jitter: each wait is uniformly between period_s * (1 - jitter) and period_s * (1 + jitter). at_once: the first comes
    without a wait. Raises ValueError for a period that is not above zero.
    """
    if period_s <= 0 or not 0 <= jitter <= 1:
        raise ValueError(f"impossible period of {period_s} s with jitter {jitter}")
    turn = 0
    if not at_once:
        await sleep(jittered(period_s, random, jitter))
    while True:
        yield turn
        turn += 1
        await sleep(jittered(period_s, random, jitter))


def jittered(period_s: float, random: Random, jitter: float = 0.1) -> float:
    return period_s * (1 + jitter * (2 * random.random() - 1))
