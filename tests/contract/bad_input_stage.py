"""apiserver as a process of its own with its real settings, but for shorter deadlines, that must not grow whatever is
sent to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

from tests.contract.apiserver_process import POLICIES, SETS, Running, network_set, policy, running

LIMIT = 3 * 1024 * 1024
HEAD_S, BODY_S, IDLE_S = 8.0, 12.0, 120.0
MB = 1024 * 1024
GROWTH_MB = 120
"""By which the server may have grown after all of it: a body, decoded, checked and answered, takes several times its
size, and Python gives memory back late.
"""
MERGE, PATCH, STRATEGIC, APPLY = (
    f"application/{kind}" for kind in
    ("merge-patch+json", "json-patch+json", "strategic-merge-patch+json", "apply-patch+yaml")
)  # fmt: skip


def under_fire(directory: Path) -> Iterator[Running]:
    """Of one module's tests. Raises AssertionError at the end when the server has grown."""
    flags = {
        "head_timeout_s": str(HEAD_S),
        "body_timeout_s": str(BODY_S),
        "idle_timeout_s": str(IDLE_S),
        "user_rate_per_s": "0",
    }
    with running(directory, **flags) as found:
        asyncio.run(_warm(found))
        before = found.rss_bytes
        yield found
        grown = (found.rss_bytes - before) / MB
        assert grown < GROWTH_MB, f"the server grew by {grown:.0f} MB"


async def _warm(server: Running) -> None:
    """What the tests refer to; and the server has loaded what it loads when first asked."""
    await server.answers()
    assert (await server.ask("POST", POLICIES, policy("there", order=1, types=["Ingress"]))).status == 201
    assert (await server.ask("POST", SETS, network_set("there", ["10.0.0.0/8", "fd00::/8"]))).status == 201
    for path in ("/openapi/v3", "/openapi/v2", "/apis", POLICIES, SETS):
        assert (await server.ask("GET", path)).status == 200
