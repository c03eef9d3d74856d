"""Readiness gates: URLs that must answer before a pod is connected (facts/cni-typha-node-bgp-ctl.md section 1.2)."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import aiohttp

from services.felix.core.cni.errors import CniError, Code

PERIOD_S = 5.0
ATTEMPT_S = 5.0
LIMIT_S = 30.0


async def wait_for_gates(urls: tuple[str, ...]) -> None:
    """Until each answers with a status of 200 to 399, all at once. Raises CniError."""
    for url in urls:
        _check_url(url)
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ATTEMPT_S)) as session:
        await asyncio.gather(*(_wait_for(session, url) for url in urls))


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good:
        raise CniError(Code.INVALID_CONFIG, f"network configuration: readiness_gates: {url!r} is no HTTP URL")


async def _wait_for(session: aiohttp.ClientSession, url: str) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LIMIT_S
    while True:
        started = loop.time()
        try:
            async with session.get(url, allow_redirects=False) as response:
                if 200 <= response.status < 400:
                    return
                problem = f"status {response.status}"
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            problem = str(error) or type(error).__name__
        again = started + PERIOD_S
        if again >= deadline:
            raise CniError(Code.TRY_AGAIN, f"readiness gate {url} is not ready after {LIMIT_S:g} s", problem)
        await asyncio.sleep(max(0.0, again - loop.time()))
