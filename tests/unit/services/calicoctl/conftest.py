from __future__ import annotations

import pytest

from tests.unit.services.calicoctl.ctl import Ctl


@pytest.fixture
def ctl() -> Ctl:
    return Ctl()
