"""How much longer everything may take than on a usual machine; on a kernel in a virtual machine, several times."""

from __future__ import annotations

import os

VARIABLE = "CALICO_TEST_PATIENCE"
FACTOR = float(os.environ.get(VARIABLE, "1"))


def patient(timeout_s: float) -> float:
    """A deadline that was chosen for a usual machine, for this one."""
    return timeout_s * FACTOR
