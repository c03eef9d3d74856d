"""What several kernel tests stand on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kernel.ruleset_lab import Lab, running_lab


@pytest.fixture(scope="module")
def built() -> Iterator[Lab]:
    """A pretend node with its pods, for the tests of one module; `fresh()` makes it new for each."""
    with running_lab() as lab:
        yield lab
