"""How much longer everything may take than on a usual machine (on a kernel in a virtual machine, several times), and
time to wait in that a machine that stands still does not use up.
"""

from __future__ import annotations

import os
import time

VARIABLE = "CALICO_TEST_PATIENCE"
FACTOR = float(os.environ.get(VARIABLE, "1"))


def patient(timeout_s: float) -> float:
    """A deadline that was chosen for a usual machine, for this one."""
    return timeout_s * FACTOR


class Allowance:
    """Seconds to wait in. Time in which this thread was held up counts as one step at most: a machine that stands still
    is neither a policy nor a loss.
    """

    STEP_S = 0.02

    def __init__(self, left_s: float) -> None:
        self._left_s = left_s
        self._seen_at = time.monotonic()

    def step(self) -> float:
        """How long to wait next; 0 once it is used up."""
        now = time.monotonic()
        self._left_s -= min(now - self._seen_at, self.STEP_S)
        self._seen_at = now
        return max(0.0, min(self._left_s, self.STEP_S))
