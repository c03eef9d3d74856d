"""The reader that most tests of the feed begin with."""

from __future__ import annotations

import pytest

from libs.feed.feed import Phase
from tests.unit.libs.feed.feed_stage import POD, POLICY, SET, Reader, policy_state, set_state, workload


@pytest.fixture
def reader() -> Reader:
    """Follows typha a at revision 10, node stream 5, policy stream 3 (version 3), set stream 8 ({10.0.0.1/32})."""
    made = Reader()
    made.hello()
    made.snapshot(10, 5, {POLICY: policy_state(3, 3), SET: set_state(8, "10.0.0.1/32")}, workloads={POD: workload()})
    assert made.feed.phase is Phase.FOLLOWING
    made.now += 10
    made.beat()
    return made
