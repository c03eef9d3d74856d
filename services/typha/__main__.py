"""`python -m services.typha`, `calico-typha`."""

from __future__ import annotations

import sys

from libs.runtime.service import start
from services.typha.app import run
from services.typha.config import TyphaConfig


def main() -> int:
    return start(
        run,
        TyphaConfig,
        prog="calico-typha",
        description="Watches etcd once, calculates policy once for all nodes, publishes what each node needs.",
    )


if __name__ == "__main__":
    sys.exit(main())
