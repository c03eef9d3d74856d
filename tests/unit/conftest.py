"""Event loops of unit tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from libs.testkit.virtual_time import VirtualTimeLoop


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """With the mark `virtual_time` a busy machine is no later than a fast one."""
    if item.get_closest_marker("virtual_time"):
        return {"virtual": VirtualTimeLoop}
    return {"real": asyncio.new_event_loop}
