"""Does somebody whom we need answer: what a service's readiness asks over and over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

EVERY_S = 2.0
"""Between two questions."""
TIMEOUT_S = 5.0
"""After which no answer counts as one."""
STALE_S = 30.0
"""A reporter that heard nothing of the question for so long is not ready."""


async def trouble(question: Awaitable[object], *failures: type[Exception]) -> str:
    """Why there was no answer, "" when there was one. failures: what the question raises for want of an answer."""
    none: tuple[type[Exception], ...] = (TimeoutError, *failures)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await question
    except none as error:
        return str(error) or f"no answer within {TIMEOUT_S:g} s"
    return ""
