"""`python -m libs.testkit.stock_kernel COMMAND [ARGUMENT …]`: it runs here on a distribution's kernel."""

from __future__ import annotations

import sys
from pathlib import Path

from libs.testkit.stock_kernel.machine import MachineError, environment, run

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        sys.exit(run(sys.argv[1:], cwd=Path.cwd(), env=environment()))
    except MachineError as error:
        sys.exit(f"stock kernel: {error}")
