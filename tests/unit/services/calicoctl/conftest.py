from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from libs.runtime import logs
from tests.unit.services.calicoctl.ctl import Ctl


@pytest.fixture(autouse=True, scope="module")
def logs_as_before() -> Iterator[None]:
    """Every command sets up the logs of its process, which is also that of all other tests."""
    level = logging.getLogger().level
    yield
    logs.close()
    logging.getLogger().setLevel(level)


@pytest.fixture
def ctl() -> Ctl:
    return Ctl()
