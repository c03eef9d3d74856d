"""`python -m services.felix`, `calico-felix`."""

from __future__ import annotations

import sys

from libs.runtime.service import start
from services.felix.app import run
from services.felix.config import FelixConfig


def main() -> int:
    return start(
        run,
        FelixConfig,
        prog="calico-felix",
        description="Node agent: programs policy, routes and interfaces into the kernel and serves the CNI shim.",
    )


if __name__ == "__main__":
    sys.exit(main())
